#!/usr/bin/env bash
# Runs every test suite, the quick ones first, and adds up what passed and failed. A suite that
# fails does not keep the others from running. The last line is the total.
#
#   check.sh               unit model regress tap; with PPB_STOCK, on Debian's own server, without the models,
#                          which have no server
#   check.sh SUITE...      those alone
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if [ $# -eq 0 ]; then
	set -- unit model regress tap
	if [ -n "${PPB_STOCK:-}" ]; then set -- unit regress tap; fi
fi
# What only tests need is looked for as well.
PPB_CHECK=1 "$TOOLS/build.sh"

mkdir -p "$LOGS"
export PPB_COUNTS=$LOGS/counts
: >"$PPB_COUNTS"
status=0
for suite in "$@"; do
	"$TOOLS/check-$suite.sh" || {
		status=$?
		if [ "$status" -ge 128 ]; then exit "$status"; fi # interrupted
		# A suite that could not even count has still failed.
		if ! grep -q "^$suite " "$PPB_COUNTS"; then echo "$suite 0 1 0" >>"$PPB_COUNTS"; fi
	}
done

say 'Summary'
awk '{ printf "    %-8s %s passed, %s failed in %s s\n", $1, $2, $3, $4 }' "$PPB_COUNTS"
if [ "$status" -ne 0 ]; then note "logs: $LOGS"; fi
awk '{ passed += $2; failed += $3 } END { printf "%d passed, %d failed\n", passed, failed }' \
	"$PPB_COUNTS" | tee "$LOGS/summary"
exit "$status"
