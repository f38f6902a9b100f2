#!/usr/bin/env bash
# The models of what the server's processes share, in every order that loom finds: model/, which compiles the
# extension's own source files. Needs no server.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"
. "$TOOLS/counts.sh"

say 'Models of shared memory'
if [ -z "${CARGO_TARGET_DIR:-}" ]; then
	CARGO_TARGET_DIR=$(cache_dir)/target-model
	export CARGO_TARGET_DIR
fi
mkdir -p "$LOGS"
status=0
# What one model takes for itself of the machine's time is not another's.
(cd "$ROOT/model" && cargo test --locked --tests -- --test-threads=1) >"$LOGS/model.log" 2>&1 </dev/null || status=$?

read -r passed failed < <(awk '/^test result:/ { passed += $4; failed += $6 }
	END { print passed + 0, failed + 0 }' "$LOGS/model.log")
if [ "$status" -ne 0 ]; then
	tail -n 40 "$LOGS/model.log" >&2
	note "the whole log: $LOGS/model.log"
	if [ "$failed" -eq 0 ]; then failed=1; fi
fi
note "models: $passed hold, $failed do not"
counts model "$passed" "$failed"
