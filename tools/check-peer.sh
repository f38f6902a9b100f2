#!/usr/bin/env bash
# PostgreSQL's own TAP files, as its source has them, with our client in the place of pg_basebackup: what they expect
# of that they expect of ours. tests/peer names the files, and which are left out and why; TESTS names some of
# them (src/bin/pg_combinebackup/t/002*.pl). tests/peer-differences names the tests that cannot hold, and why: exactly
# these fail.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/counts.sh"
. "$TOOLS/tap.sh"

say "PostgreSQL's own tests of its peers"
if [ -n "${PPB_STOCK:-}" ]; then die 'these tests need a patched server'; fi
tarball=$("$TOOLS/source.sh")
tap_environment peer

mkdir "$SCRATCH/peer"
tar -xf "$tarball" -C "$SCRATCH/peer" --strip-components=1 --wildcards '*/src/bin/*/t/*.pl'
shopt -s nullglob
cd "$SCRATCH/peer"
# A WAL stream that is lost ends the backup: ours only without a lease, and there is one by default.
# shellcheck disable=SC2016 # Perl's variable
sed -i 's|"$tempdir/sigchld"|&, "--lease=0"|' src/bin/pg_basebackup/t/010_pg_basebackup.pl
tests=()
while read -r pattern reason; do
	case $pattern in '' | '#'*) continue ;; esac
	# shellcheck disable=SC2206 # a pattern
	matching=($pattern)
	for file in "${matching[@]}"; do
		if [ -z "$reason" ]; then
			# shellcheck disable=SC2053 # patterns
			for wanted in ${TESTS:-'*'}; do
				if [[ $file == $wanted ]]; then tests+=("$file"); fi
			done
		else
			note "left out: $file ($reason)"
			for place in "${!tests[@]}"; do
				if [ "${tests[$place]}" = "$file" ]; then unset "tests[$place]"; fi
			done
		fi
	done
done <"$ROOT/tests/peer"
if [ ${#tests[@]} -eq 0 ]; then die "there are no such tests in PostgreSQL $PG"; fi

# The one program that is another, and what all servers of these tests load. Called by a link it speaks by the
# link's name.
mkdir "$SCRATCH/peer/bin"
ln -s "$RUN_INSTALL/bin/pg_parallel_basebackup" "$SCRATCH/peer/bin/pg_basebackup"
export PATH=$SCRATCH/peer/bin:$PATH
echo "shared_preload_libraries = 'pg_parallel_backup'" >"$SCRATCH/peer/postgresql.conf"
export TEMP_CONFIG=$SCRATCH/peer/postgresql.conf
chmod -R a+rX "$SCRATCH/peer"

# What configure has found, for tests that extract and decompress.
export TAR=tar GZIP_PROGRAM=gzip LZ4=lz4 ZSTD=zstd
export PPB_DIFFERENCES=$RUN_ROOT/tests/peer-differences
run_tap peer "$SCRATCH/peer" "${tests[@]}"
