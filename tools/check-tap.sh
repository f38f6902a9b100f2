#!/usr/bin/env bash
# The TAP tests on PostgreSQL::Test::Cluster: tests/t/*.pl, or the files that TESTS names
# (a pattern, relative to the checkout, which is the current directory). On a stock server the
# files that tests/patched-only names are left out.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/counts.sh"
. "$TOOLS/tap.sh"

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

tap_environment tap
if [ -n "${DISCARD_CACHES:-}" ]; then
	# What the server has looked up is looked up again each time: what holds on to it fails. A server without
	# assertions does not know the setting.
	export TEMP_CONFIG=$SCRATCH/postgresql.conf PG_TEST_TIMEOUT_DEFAULT=1800
	echo 'debug_discard_caches = 1' >"$TEMP_CONFIG"
fi
# A file that waits for what never comes fails, rather than all of them with it. What was asked to last is left to.
if [ -z "${MINUTES:-}${ROUNDS:-}${CYCLES:-}${DISCARD_CACHES:-}${PPB_SERVER:-}" ]; then
	export PPB_FILE_TIMEOUT=${PPB_FILE_TIMEOUT-900}
fi
run_tap tap "$RUN_ROOT" "${tests[@]}"
