#!/usr/bin/env bash
# Lint and every test on the default version; clippy, the SQL tests and the TAP tests on the others.
# All of it runs even if something fails; the last line is the test summary over all versions.
#
# CI_VERSIONS='15' names the others that run, by default 15 and 17.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

default=18
versions=${CI_VERSIONS-15 17}
status=0
passed=0
failed=0
lines=()

# run VERSION TARGET...: targets of make; those that check leave a summary.
run() {
	local version=$1 target ok bad
	shift
	for target in "$@"; do
		rm -f build/log/summary
		if ! make --no-print-directory PG="$version" "$target"; then
			status=1
			lines+=("PostgreSQL $version: make $target failed")
		fi
		case $target in check*) ;; *) continue ;; esac
		# "12 passed, 0 failed"
		if ! read -r ok _ bad _ < <(cat build/log/summary 2>/dev/null); then ok=0 bad=1; fi
		passed=$((passed + ok))
		failed=$((failed + bad))
		lines+=("PostgreSQL $version: make $target: $ok passed, $bad failed, $((SECONDS / 60)) min after the start")
	done
	# The next version's logs have the same names.
	if [ -d build/log/tap ]; then
		rm -rf "build/log/tap-$version"
		mv build/log/tap "build/log/tap-$version"
	fi
}

run "$default" lint check
for version in $versions; do
	run "$version" lint check-regress check-tap
done

printf '%s\n' "${lines[@]}"
echo "$passed passed, $failed failed"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ]
