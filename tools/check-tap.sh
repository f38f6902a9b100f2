#!/usr/bin/env bash
# The TAP tests on PostgreSQL::Test::Cluster: tests/t/*.pl, or the files that TESTS names
# (a pattern, relative to the checkout). PPB_JOBS files run at a time, two by default.
#
# A test finds, besides what PostgreSQL's own build sets for such tests:
#   STOCK_INCLUDE   the server headers of the same release without the patch
#   PPB_ROOT        the checkout, which is also the current directory
#   PPB_STOCK       set where the server is a stock one, of build/stock$PG
# and the programs of the server first in PATH. On a stock server the files that
# tests/patched-only names are left out.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/counts.sh"

say 'TAP tests'
shopt -s nullglob
cd "$ROOT"
# shellcheck disable=SC2206 # a list of patterns
tests=(${TESTS:-tests/t/*.pl})
if [ ${#tests[@]} -eq 0 ]; then die "there are no tests in ${TESTS:-tests/t}"; fi
for file in "${tests[@]}"; do
	if [ ! -f "$file" ]; then die "TESTS: there is no file $file"; fi
done
shopt -u nullglob
if [ -n "${PPB_STOCK:-}" ]; then
	candidates=("${tests[@]}") tests=()
	for file in "${candidates[@]}"; do
		if why=$(sed -n "s/^$(basename "$file")  *//p" tests/patched-only) && [ -n "$why" ]; then
			note "left out on a stock server: $file ($why)"
		else
			tests+=("$file")
		fi
	done
	if [ ${#tests[@]} -eq 0 ]; then die 'nothing is left to run'; fi
fi

make_scratch
make_readable
require_free "$SCRATCH" 2000
mkdir -p "$LOGS"
rm -rf "$LOGS/tap"

before_scratch_goes() {
	if [ -d "$SCRATCH/log" ]; then cp -r "$SCRATCH/log" "$LOGS/tap"; fi
	if [ "$1" -ne 0 ]; then note "logs: $LOGS/tap"; fi
}

pgxs=$(dirname "$("$RUN_INSTALL/bin/pg_config" --pgxs)")/..
export PATH=$RUN_INSTALL/bin:$PATH
# For pg_regress, which is linked with libpq and lies where its run path does not reach.
export LD_LIBRARY_PATH=$RUN_INSTALL/lib
export PERL5LIB=$pgxs/test/perl:$RUN_ROOT/tests/lib
export PG_REGRESS=$pgxs/test/regress/pg_regress
export TESTDATADIR=$SCRATCH/data TESTLOGDIR=$SCRATCH/log PG_TEST_PORT_DIR=$SCRATCH/ports
# Before 16 one directory for both, with names below it that are given.
export TESTDIR=$SCRATCH
export STOCK_INCLUDE=$RUN_INSTALL/stock-include PPB_ROOT=$RUN_ROOT
mkdir "$SCRATCH"/{data,log,ports,tmp_check}
ln -s ../log "$SCRATCH/tmp_check/log"
if [ "$(id -u)" -eq 0 ]; then chown "$("$TOOLS/as-user.sh" --name):" "$SCRATCH"/{data,log,ports,tmp_check}; fi

# Each test's servers start as a copy of this one: half a second saved for each.
export INITDB_TEMPLATE=$SCRATCH/template
as_user initdb -D "$INITDB_TEMPLATE" -A trust --no-locale --encoding=UTF8 --no-instructions --no-sync \
	>"$SCRATCH/initdb.log" 2>&1 || { cat "$SCRATCH/initdb.log" >&2; die 'initdb failed'; }

cd "$RUN_ROOT"
status=0
run_job "$TOOLS/as-user.sh" perl "$RUN_ROOT/tools/run-tap.pl" "${PPB_JOBS:-2}" "$SCRATCH/log/counts" \
	"${tests[@]}" || status=$?
if [ -f "$SCRATCH/log/counts" ]; then
	read -r passed failed <"$SCRATCH/log/counts"
else
	passed=0 failed=1
fi
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
note "TAP tests: $passed passed, $failed failed in ${#tests[@]} file(s)"
counts tap "$passed" "$failed"
