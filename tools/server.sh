#!/usr/bin/env bash
# Builds the patched PostgreSQL server and installs it as build/pg$PG, or as build/pg$PG-$PPB_SERVER one that is
# built in another way. Finished builds are kept in the cache by the hash of all that goes into them, and copied
# from there: an install can be copied anywhere, because its programs find their files from where they are themselves.
#
# stock-include in it holds the server headers of the same release without the patch, for
# the test that an extension built for a stock server loads in the patched one.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# A prefix that never exists: whatever failed to be relocated then fails for all to see, and
# does not read somebody else's files.
prefix=/pg$PG
configure_options=(
	--prefix="$prefix" --disable-rpath --enable-tap-tests
	--with-lz4 --with-zstd --with-ssl=openssl
)
case ${PPB_SERVER:-} in
debug) configure_options+=(--enable-cassert --enable-debug CFLAGS=-Og CPPFLAGS=-DUSE_VALGRIND) ;;
esac

build() {
	local work=$1 tarball=$2 tree patch jobs
	jobs=$(nproc)
	mkdir "$work/tree"
	tar -xf "$tarball" -C "$work/tree"
	tree=$(echo "$work"/tree/*)
	cd "$tree"
	# For the linker, in place of -rpath: from bin to lib, and from lib/postgresql to lib.
	# shellcheck disable=SC2016 # the dynamic loader expands $ORIGIN
	export LD_RUN_PATH='$ORIGIN/../lib:$ORIGIN/..'
	./configure "${configure_options[@]}"
	make -s -j"$jobs" -C src/backend generated-headers
	make -s -C src/include install DESTDIR="$work/stock"
	for patch in "${patches[@]}"; do
		if ! patch -p1 --batch --forward --reject-file=- <"$patch"; then
			echo "$patch does not apply to ${tree##*/}"
			return 1
		fi
	done
	make -s -j"$jobs" world-bin
	make -s install-world-bin DESTDIR="$work/dest"
	mv "$(find "$work/stock" -name server -type d)" "$work/dest$prefix/stock-include"
}

shopt -s nullglob
patches=("$ROOT/patches/$PG"/*.patch)
if [ "${PPB_SERVER:-}" = unpatched ]; then patches=(); fi

# `step` cannot run a function with `set -e` in force, so the script calls itself.
if [ "${1:-}" = --build ]; then
	build "$2" "$3"
	exit
fi

tarball=$("$TOOLS/source.sh")
key=$({
	sha256sum <"$tarball"
	cat "${patches[@]}" </dev/null
	echo "$prefix" "${configure_options[@]}"
	declare -f build
} | sha256sum | cut -c 1-16)
if [ "$(cat "$INSTALL/.built-from" 2>/dev/null)" = "$key" ]; then exit 0; fi

cache=$(cache_dir)/server
entry=$cache/pg$PG${PPB_SERVER:+-$PPB_SERVER}-$key
mkdir -p "$cache" "$BUILD"
lock "$cache/.lock" 'build of the server'
if [ ! -d "$entry" ]; then
	require_free "$cache" 1500
	release=$(tar -xOf "$tarball" --wildcards --occurrence=1 '*/configure' 2>/dev/null |
		sed -n "s/^PACKAGE_VERSION='\(.*\)'/\1/p" || true)
	if [ -z "$release" ]; then die "$tarball is not a source tarball of PostgreSQL"; fi
	if [ "${release%%[!0-9]*}" != "$PG" ]; then
		die "$tarball is PostgreSQL $release, and PG=$PG was asked for"
	fi
	work=$(mktemp -d "$cache/.new.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT TERM HUP
	step "Building PostgreSQL $release with ${#patches[@]} patch(es) (about 3 minutes on 2 cores)" \
		"$BASH" "$0" --build "$work" "$tarball"
	mv "$work/dest$prefix" "$entry"
	rm -rf "$work"
fi
say "Installing the server in ${INSTALL#"$ROOT"/}"
new=$BUILD/.${INSTALL##*/}.new
rm -rf "$INSTALL" "$new"
cp -a --reflink=auto "$entry" "$new"
echo "$entry" >"$new/.cache-entry"
echo "$key" >"$new/.built-from"
mv "$new" "$INSTALL"
