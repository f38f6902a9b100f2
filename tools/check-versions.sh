#!/usr/bin/env bash
# Lint and every test on the default version, and every test on Debian's own server; clippy, the SQL
# tests and the TAP tests on the others. All of it runs even if something fails; the last line is the
# test summary over all of them.
#
# CI_VERSIONS='15' names the others that run, by default 15 and 17; CI_STOCK='15' the versions of
# Debian's own servers, by default the one that Debian 12 has, 15.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

default=18
versions=${CI_VERSIONS-15 17}
stock=${CI_STOCK-15}
status=0
passed=0
failed=0
lines=()

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
			lines+=("PostgreSQL $version: make $target: $ok passed, $bad failed in $((SECONDS - start)) s")
			;;
		*) lines+=("PostgreSQL $version: make $target in $((SECONDS - start)) s") ;;
		esac
		# The next one's logs have the same names.
		if [ -d build/log/tap ]; then
			rm -rf "build/log/tap-$target-$version"
			mv build/log/tap "build/log/tap-$target-$version"
		fi
	done
}

run "$default" lint check
for version in $stock; do
	run "$version" check-stock
done
for version in $versions; do
	run "$version" lint check-regress check-tap
done

printf '%s\n' "${lines[@]}" "All of it in $((SECONDS / 60)) min"
echo "$passed passed, $failed failed"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ]
