# How a test suite reports its numbers. Sourced after lib.sh.
# shellcheck shell=bash

# counts SUITE PASSED FAILED: for check.sh's summary; a failure ends the script.
counts() {
	if [ -n "${PPB_COUNTS:-}" ]; then echo "$1 $2 $3 $SECONDS" >>"$PPB_COUNTS"; fi
	if [ "$3" -gt 0 ] || [ "$2" -eq 0 ]; then return 1; fi
}
