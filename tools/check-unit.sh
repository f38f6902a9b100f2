#!/usr/bin/env bash
# The tests that need no server: cargo test over the whole workspace.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"
. "$TOOLS/counts.sh"

say 'Unit tests'
use_target_dir
use_server "$INSTALL/bin/pg_config"
mkdir -p "$LOGS"
status=0
(cd "$ROOT" && cargo test --workspace --lib --bins --tests --no-fail-fast "${workspace_features[@]}") \
	>"$LOGS/unit.log" 2>&1 </dev/null || status=$?

# "test result: ok. 12 passed; 0 failed; 1 ignored; ..."
read -r passed failed < <(awk '/^test result:/ { passed += $4; failed += $6 }
	END { print passed + 0, failed + 0 }' "$LOGS/unit.log")
if [ "$status" -ne 0 ]; then
	grep -E '^(error|test .*FAILED|---- |thread .* panicked)' "$LOGS/unit.log" >&2 || true
	tail -n 20 "$LOGS/unit.log" >&2
	note "the whole log: $LOGS/unit.log"
	# It did not compile, or a test program died before it could count.
	if [ "$failed" -eq 0 ]; then failed=1; fi
fi
note "unit tests: $passed passed, $failed failed"
counts unit "$passed" "$failed"
