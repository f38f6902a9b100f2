#!/usr/bin/env bash
# Builds Debian packages into build/deb: the extension, for Debian's own server of the major
# version PG, and the client, for the system's libpq. Does not need root.
#
#   deb.sh [/path/to/pg_config]   by default that of Debian's postgresql-server-dev-$PG; one given
#                                 only brings the header files, the paths in the package stay Debian's
#
# The time in the packages is SOURCE_DATE_EPOCH, by default that of the last commit.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"

PACKAGING=$ROOT/packaging
OUT=$BUILD/deb
WORK=$OUT/work
SERVER=postgresql-$PG-pg-parallel-backup
CLIENT=pg-parallel-basebackup

main() {
	local pg_config=${1:-/usr/lib/postgresql/$PG/bin/pg_config}
	if ! PPB_PG_CONFIG=${1:-} "$TOOLS/prerequisites.sh" deb; then
		die "the packages for PostgreSQL $PG cannot be built on this machine" \
			"where Debian has no postgresql-server-dev-$PG, name the pg_config of another installation:" \
			"make deb PG=$PG PG_CONFIG=/path/to/pg_config"
	fi
	check_pg_config "$pg_config"

	upstream=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
	version=$upstream-1
	export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(source_date)}

	# Only what this script has made: packages for other major versions stay.
	rm -rf "$WORK" "$OUT/${SERVER}"_*.deb "$OUT/${CLIENT}"_*.deb
	mkdir -p "$WORK/debian"
	compile "$pg_config"
	describe
	stage_server
	stage_client
	pack "$SERVER" -e"$WORK/$SERVER/usr/lib/postgresql/$PG/lib/pg_parallel_backup.so"
	pack "$CLIENT" -e"$WORK/$CLIENT/usr/bin/pg_parallel_basebackup" -e"$WORK/$CLIENT/usr/bin/pg_parallel_restore"
	rm -rf "$WORK"
	note "install them with: apt install $OUT/${SERVER}_*.deb $OUT/${CLIENT}_*.deb"
}

check_pg_config() {
	local found
	found=$("$1" --version 2>/dev/null || true)
	case $found in
	"PostgreSQL $PG"[!0-9]*) ;;
	'') die "$1 is not a pg_config that runs" ;;
	*) die "$1 is that of $found, not of PostgreSQL $PG" ;;
	esac
	if [ ! -f "$("$1" --includedir-server)/postgres.h" ]; then
		die "the header files of $found are not installed" \
			"on Debian they are in the package postgresql-server-dev-$PG"
	fi
}

source_date() {
	git -C "$ROOT" log -1 --format=%ct 2>/dev/null || stat -c %Y "$ROOT/CHANGELOG.md"
}

# The profile "deb" has a directory of its own, so that its flags compile nothing else anew. The
# builder's directories stay out of the packages.
compile() {
	use_target_dir
	RUSTFLAGS="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
	export RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$CARGO_TARGET_DIR=/target"
	(
		use_server "$1"
		step 'Building the extension for Debian (a minute or two the first time)' \
			cargo build --profile deb "${features[@]}" --manifest-path "$ROOT/Cargo.toml" -p pg_parallel_backup
	)
	# Whatever server the extension is for, the client is linked with the system's libpq.
	export PPB_RUN_PATH=
	PG_CONFIG='' PQ_LIB_DIR=$(pkg-config --variable=libdir libpq) step 'Building the client for Debian' \
		cargo build --profile deb --locked --manifest-path "$ROOT/Cargo.toml" -p pg_parallel_backup_client
	built=$CARGO_TARGET_DIR/deb
}

# What dpkg's tools read: debian/control and debian/changelog.
describe() {
	sed "s/@PG@/$PG/g" "$PACKAGING/control" >"$WORK/debian/control"
	cat >"$WORK/debian/changelog" <<-CHANGELOG
		pg-parallel-backup ($version) unstable; urgency=medium

		  * Release $upstream; changelog.gz says what is new.

		 -- $(sed -n 's/^Maintainer: //p' "$PACKAGING/control")  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
	CHANGELOG
}

stage_server() {
	local root=$WORK/$SERVER library extension
	library=$root/usr/lib/postgresql/$PG/lib
	extension=$root/usr/share/postgresql/$PG/extension
	install -d "$library" "$extension"
	install -m 644 "$built/libpg_parallel_backup.so" "$library/pg_parallel_backup.so"
	strip --strip-unneeded --remove-section=.comment --remove-section=.note "$library/pg_parallel_backup.so"
	install -m 644 "$ROOT/pg_parallel_backup.control" "$ROOT"/sql/*.sql "$extension"
	documents "$SERVER" pg_parallel_backup "${features[@]:1}"
	sed "s/@PG@/$PG/g" "$PACKAGING/README.Debian" >"$root/usr/share/doc/$SERVER/README.Debian"
	install -m 644 "$ROOT/docs/protocol.md" "$root/usr/share/doc/$SERVER/"
}

stage_client() {
	local root=$WORK/$CLIENT share=$WORK/$CLIENT/usr/share program
	install -d "$root/usr/bin" "$share"/{man/man1,bash-completion/completions,zsh/vendor-completions} \
		"$share/fish/vendor_completions.d"
	for program in pg_parallel_basebackup pg_parallel_restore; do
		install -m 755 "$built/$program" "$root/usr/bin/"
		strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/$program"
		# All of it from the definition that --help is made from.
		"$built/$program" --generate=man | gzip -9n >"$share/man/man1/$program.1.gz"
		"$built/$program" --generate=bash >"$share/bash-completion/completions/$program"
		"$built/$program" --generate=zsh >"$share/zsh/vendor-completions/_$program"
		"$built/$program" --generate=fish >"$share/fish/vendor_completions.d/$program.fish"
	done
	documents "$CLIENT" pg_parallel_backup_client
	install -m 644 "$ROOT/docs/options.md" "$share/doc/$CLIENT/"
	install -d "$share/doc/$CLIENT/examples"
	install -m 644 "$ROOT/docs/recipes/README.md" "$share/doc/$CLIENT/examples/"
	install -m 755 "$ROOT"/docs/recipes/*.sh "$share/doc/$CLIENT/examples/"
}

# documents PACKAGE CRATE cargo's options...: /usr/share/doc/PACKAGE
documents() {
	local doc=$WORK/$1/usr/share/doc/$1 crate=$2
	shift 2
	install -d "$doc"
	install -m 644 "$ROOT/README.md" "$doc/"
	gzip -9nc "$ROOT/CHANGELOG.md" >"$doc/changelog.gz"
	gzip -9nc "$WORK/debian/changelog" >"$doc/changelog.Debian.gz"
	copyright >"$doc/copyright"
	third_party "$crate" "$@" | gzip -9n >"$doc/third-party.gz"
}

# LICENSE in the form of Debian's copyright file.
copyright() {
	local holder text
	holder=$(sed -n 's/^Copyright (c) /Copyright: /p' "$ROOT/LICENSE")
	text=$(sed -e '1,/^Copyright/d' -e 's/^$/./' -e 's/^/ /' "$ROOT/LICENSE" | sed '1{/^ \.$/d}')
	sed '/^@LICENSE@$/,$d' "$PACKAGING/copyright"
	printf '%s\nLicense: PostgreSQL\n%s\n' "$holder" "$text"
}

# third_party CRATE cargo's options...: the crates whose code is in the binary, and the notices
# that their licenses want to be passed on.
third_party() {
	local crate=$1 name number license directory file
	shift
	cargo tree --locked --manifest-path "$ROOT/Cargo.toml" -p "$crate" "$@" --target "$(rustc -vV | sed -n 's/^host: //p')" \
		--edges normal,no-proc-macro --prefix none --format '{p}|{l}' |
		sed -n -e 's/ (\*)$//' -e 's/^\([^ ]*\) v\([^ |]*\)|\(.*\)$/\1 \2 \3/p' | LC_ALL=C sort -u |
		while read -r name number license; do
			printf '%s %s: %s\n' "$name" "$number" "${license:-see below}"
			for directory in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$number"; do
				for file in "$directory"/{LICENSE,LICENCE,COPYING,COPYRIGHT,NOTICE}* "$directory"/liblz4/lib/LICENSE; do
					if [ -f "$file" ]; then printf '\n--- %s\n\n' "${file##*/}" && cat "$file"; fi
				done
			done
			printf '\n%s\n\n' '======================================================================'
		done
}

# pack PACKAGE -eBINARY: the .deb from what is staged.
pack() {
	local root=$WORK/$1 architecture
	architecture=$(dpkg --print-architecture)
	install -d "$root/DEBIAN"
	(
		cd "$WORK"
		# The extension's references to the server itself belong to no library: not worth a word.
		dpkg-shlibdeps --warnings=0 -O "$2" >substvars
		dpkg-gencontrol -p"$1" -P"$root" -Tsubstvars -v"$version" -O >control
		cd "$root"
		find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums
	)
	mv "$WORK/control" "$root/DEBIAN/control"
	chmod -R u=rwX,go=rX "$root"
	dpkg-deb --root-owner-group -Zxz --build "$root" "$OUT/${1}_${version}_$architecture.deb" >/dev/null
	say "Built ${OUT#"$ROOT"/}/${1}_${version}_$architecture.deb"
}

main "$@"
