#!/usr/bin/env bash
# Lint and every test on the default version; of the others, clippy and the tests of what differs between
# versions and routes. All of it runs even if something fails; the last line is the test summary over all
# of them.
#
# EVERYTHING=1 runs every test on each. CI_VERSIONS='15' names the others that run with the patch, by default
# 15 and 17; CI_STOCK='15' the versions of Debian's own servers, by default the one that Debian 12 has, 15.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

default=18
versions=${CI_VERSIONS-15 17}
stock=${CI_STOCK-15}
# What runs in the server's processes: the commands, backup state, the list, the data path, incremental.
server='00[1-8] 01 021 024 034 035 036 038 040_lease 041_lease 050 070 072 101 102'
# The same by the SQL procedures, and the client that calls them, once for each kind of output.
routes="$server 009 020 025 026 027 029 030 031 032 037 040_tar 042 043 046 051 06 080 081 090 094"
status=0
passed=0
failed=0
lines=()

# patterns WORD...: the files of tests/t that begin with one of the words, as TESTS wants them.
patterns() {
	if [ -z "${EVERYTHING:-}" ]; then printf 'tests/t/%s*.pl ' "$@"; fi
}

# run VERSION TARGET...: targets of make; those that check leave a summary.
run() {
	local version=$1 target ok bad start
	shift
	for target in "$@"; do
		start=$SECONDS
		rm -f build/log/summary
		if ! make --no-print-directory PG="$version" "$target"; then
			status=1
			lines+=("PostgreSQL $version: make $target failed")
		fi
		case $target in
		check*)
			# "12 passed, 0 failed"
			if ! read -r ok _ bad _ < <(cat build/log/summary 2>/dev/null); then ok=0 bad=1; fi
			passed=$((passed + ok))
			failed=$((failed + bad))
			lines+=("PostgreSQL $version${PPB_STOCK:+ stock}: make $target: $ok passed, $bad failed in $((SECONDS - start)) s")
			;;
		*) lines+=("PostgreSQL $version: make $target in $((SECONDS - start)) s") ;;
		esac
		# The next one's logs have the same names.
		if [ -d build/log/tap ]; then
			rm -rf "build/log/tap-$target-$version${PPB_STOCK:+-stock}"
			mv build/log/tap "build/log/tap-$target-$version${PPB_STOCK:+-stock}"
		fi
	done
}

run "$default" lint check
set -f # patterns, not files
# shellcheck disable=SC2086 # words
for version in $stock; do
	PPB_STOCK=1 run "$version" check-regress
	PPB_STOCK=1 TESTS=$(patterns $routes) run "$version" check-tap
done
# shellcheck disable=SC2086 # words
for version in $versions; do
	run "$version" lint check-regress
	TESTS=$(patterns $server) run "$version" check-tap
done

printf '%s\n' "${lines[@]}" "All of it in $((SECONDS / 60)) min"
echo "$passed passed, $failed failed"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ]
