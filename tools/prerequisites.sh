#!/usr/bin/env bash
# Makes sure that what the build needs is there. Each need is probed for itself, so that any
# distribution will do; on Debian and its kin the packages whose probe fails are installed.
#
#   prerequisites.sh       for servers, tests and all else
#   prerequisites.sh deb   for Debian packages alone; PPB_PG_CONFIG is a pg_config whose header
#                          files are used instead of postgresql-server-dev-$PG
set -euo pipefail
. "$(dirname "$0")/lib.sh"

has_program() { command -v "$1" >/dev/null; }
has_header() { echo "#include <$1>" | cc -E -o /dev/null - 2>/dev/null; }
# Whether some Python has these modules, of those that tests and tools/objects.sh look at.
has_python() {
	local python
	for python in ${PPB_PYTHON:-} python3 /usr/bin/python3; do
		if "$python" -c "import $1" 2>/dev/null; then return 0; fi
	done
	return 1
}
has_venv() { has_python 'ensurepip, venv'; }
has_perl() { perl "${@/#/-M}" -e 1 2>/dev/null; }
# bindgen loads libclang when it runs and needs the compiler's own headers (stddef.h) with it.
# Any version does; Debian's generic package brings the one of its release.
has_libclang() {
	if [ -n "${LIBCLANG_PATH:-}" ]; then return 0; fi
	if compgen -G '/usr/lib/llvm*/lib/libclang*.so*' >/dev/null &&
		compgen -G '/usr/lib/llvm*/lib/clang/*/include/stddef.h' >/dev/null; then
		return 0
	fi
	grep -q 'libclang[-.0-9]*\.so' <<<"$(ldconfig -p 2>/dev/null)" &&
		compgen -G '/usr/lib*/clang/*/include/stddef.h' >/dev/null
}

# --- Rust: no package of a stable distribution is new enough, so it is asked for, not installed

needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
how_to="Rust's own installer, rustup, brings it: see https://www.rust-lang.org/tools/install"
if ! has_program cargo || ! has_program rustc; then
	die "Rust $needed or newer is needed, and cargo was not found in PATH" "$how_to"
fi
if ! found=$(rustc --version 2>&1); then
	die 'rustc is in PATH but does not run:' "$found" "$how_to"
fi
found=$(awk '{ print $2 }' <<<"$found")
if [ "$(printf '%s\n' "$needed" "${found%%-*}" | sort -V | head -n 1)" != "$needed" ]; then
	die "Rust $needed or newer is needed, and $(command -v rustc) is $found" \
		"with rustup: rustup update stable" "$how_to"
fi

# --- everything else

# Debian package, what it is for (as said where there are no Debian packages), probe
needs() {
	cat <<-'TABLE'
		build-essential|a C compiler and make|has_program cc && has_program make
		bison|bison|has_program bison
		flex|flex|has_program flex
		perl|perl with its core modules|has_perl Test::More TAP::Harness Time::HiRes
		libipc-run-perl|the perl module IPC::Run|has_perl IPC::Run
		pkg-config|pkg-config|has_program pkg-config
		patch|patch|has_program patch
		bzip2|bzip2|has_program bzip2
		xz-utils|xz|has_program xz
		curl|curl|has_program curl
		ca-certificates|CA certificates in /etc/ssl/certs|compgen -G '/etc/ssl/certs/*' >/dev/null
		util-linux|flock|has_program flock
		libreadline-dev|readline's header files|has_header readline/readline.h || has_header editline/readline.h
		zlib1g-dev|zlib's header files|has_header zlib.h
		liblz4-dev|lz4's header files|has_header lz4.h
		libzstd-dev|zstd's header files|has_header zstd.h
		libssl-dev|OpenSSL's header files|has_header openssl/ssl.h
		libicu-dev|ICU's header files|has_header unicode/ucol.h
		libclang-dev|libclang and its header files|has_libclang
	TABLE
	if [ -n "${PPB_STOCK:-}" ]; then
		echo "postgresql-$PG|Debian's PostgreSQL $PG|test -x /usr/lib/postgresql/$PG/bin/postgres"
		echo "postgresql-server-dev-$PG|its header files|test -f /usr/include/postgresql/$PG/server/postgres.h"
	fi
	if [ "${PPB_SERVER:-}" = debug ] || [ -n "${PPB_VALGRIND:-}" ]; then
		echo 'valgrind|valgrind, with its header files|has_program valgrind && has_header valgrind/memcheck.h'
		echo "libc6-dbg|the C library's symbols, which valgrind asks for|compgen -G '/usr/lib/debug/.build-id/*' >/dev/null"
	fi
	if [ -n "${PPB_CHECK:-}" ]; then
		# tests/lib/ParallelBackup/Compressed.pm reads with them what the server has compressed.
		echo 'lz4|the program lz4|has_program lz4'
		echo 'zstd|the program zstd|has_program zstd'
		echo 'libarchive-tools|bsdtar|has_program bsdtar'
		if [ -z "${PPB_NO_OBJECTS:-}" ]; then
			echo 'python3-venv|venv for Python, with pip|has_venv'
		fi
		echo 'python3-psycopg|psycopg 3 for Python (PPB_PYTHON names one that has it)|has_python psycopg'
	fi
}

needs_deb() {
	cat <<-'TABLE'
		build-essential|a C compiler|has_program cc
		pkg-config|pkg-config|has_program pkg-config
		libclang-dev|libclang and its header files|has_libclang
		libpq-dev|libpq's header files|pkg-config --exists libpq
		dpkg-dev|Debian's dpkg-dev|has_program dpkg-shlibdeps && has_program dpkg-gencontrol
	TABLE
	if [ -z "${PPB_PG_CONFIG:-}" ]; then
		echo "postgresql-server-dev-$PG|the header files of PostgreSQL $PG|test -x /usr/lib/postgresql/$PG/bin/pg_config"
	fi
	if [ -n "${PPB_CHECK:-}" ]; then
		echo 'lintian|lintian|has_program lintian'
	fi
}

table=needs
if [ "${1:-}" = deb ]; then table=needs_deb; fi
probe_all() {
	local package thing probe
	missing_packages=() missing_things=()
	while IFS='|' read -r package thing probe; do
		if ! eval "$probe"; then
			missing_packages+=("$package")
			missing_things+=("$thing")
		fi
	done < <("$table")
}

no_main=/etc/postgresql-common/createcluster.d/ppb-no-main.conf
sudo=()
clusters_as_before() {
	"${sudo[@]}" rm -f "$no_main"
	"${sudo[@]}" rmdir --ignore-fail-on-non-empty "${no_main%/*}" 2>/dev/null || true
}

install_packages() {
	if [ "$(id -u)" -ne 0 ]; then
		if has_program sudo && sudo -n true 2>/dev/null; then
			sudo=(sudo -n)
		else
			die 'some Debian packages are missing, and this user may not install them' \
				'as root, run:' '' \
				"    apt-get install --no-install-recommends ${missing_packages[*]}" '' \
				'and then this command again'
		fi
	fi
	mkdir -p "$LOGS"
	say "Installing Debian packages: ${missing_packages[*]}"
	"${sudo[@]}" apt-get update -q >"$LOGS/apt.log" 2>&1 || true
	# Debian's server would come with a cluster, made and started. Read where postgresql-common has
	# been installed, which may be about to happen.
	case " ${missing_packages[*]} " in
	*" postgresql-$PG "*)
		trap clusters_as_before EXIT
		"${sudo[@]}" mkdir -p "${no_main%/*}"
		echo 'create_main_cluster = false' | "${sudo[@]}" tee "$no_main" >/dev/null
		;;
	esac
	if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q -o DPkg::Lock::Timeout=300 \
		--no-install-recommends "${missing_packages[@]}" >>"$LOGS/apt.log" 2>&1 </dev/null; then
		tail -n 20 "$LOGS/apt.log" >&2
		die 'apt-get could not install the packages' "the whole log: $LOGS/apt.log"
	fi
}

probe_all
if [ ${#missing_packages[@]} -gt 0 ] && has_program apt-get; then
	install_packages
	probe_all
fi
if [ ${#missing_things[@]} -gt 0 ]; then
	die 'this machine lacks what the build needs:' "${missing_things[@]/#/- }"
fi
