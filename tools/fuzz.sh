#!/usr/bin/env bash
# Fuzzing by libFuzzer with AddressSanitizer: each target of fuzz/, or those in TARGETS, for MINUTES each. What was found to be
# of interest is kept in fuzz/corpus, and what fails in fuzz/artifacts; what has failed once is in fuzz/seeds, of the
# repository, and tried each time. The compiler's unstable flags are allowed for this build alone.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"

"$TOOLS/prerequisites.sh"
"$TOOLS/server.sh"
use_server "$INSTALL/bin/pg_config"
fuzz=$(cargo_tool cargo-fuzz 0.13.2)
cd "$ROOT/fuzz"
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(cache_dir)/target-fuzz}
export CARGO_TARGET_DIR RUSTC_BOOTSTRAP=1
step 'Building (some minutes the first time)' "$fuzz" build --fuzz-dir "$ROOT/fuzz"
if [ -z "${TARGETS:-}" ]; then
	TARGETS=$(sed -n 's/^name = "\([a-z]*\)"$/\1/p' Cargo.toml)
fi
status=0
for target in $TARGETS; do
	say "$target"
	mkdir -p "corpus/$target" "artifacts/$target"
	corpora=("corpus/$target")
	if [ -d "seeds/$target" ]; then corpora+=("seeds/$target"); fi
	log=$ROOT/build/log/fuzz-$target.log
	mkdir -p "${log%/*}"
	: >"$log"
	program=$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/$target
	until=$((SECONDS + 60 * ${MINUTES:-10}))
	while [ "$SECONDS" -lt "$until" ]; do
		begun=$(wc -c <"$log")
		if "$program" -max_total_time="$((until - SECONDS))" -timeout=20 -rss_limit_mb=4096 \
			-artifact_prefix="artifacts/$target/" "${corpora[@]}" >>"$log" 2>&1; then break; fi
		# The clock on the wall goes on where a busy machine lets us wait: what takes long, takes long again.
		found=$(tail -c "+$((begun + 1))" "$log" | sed -n "s,^.*Test unit written to \(artifacts/$target/timeout-[0-9a-f]*\)$,\1,p")
		if [ -n "$found" ] && "$program" -timeout=20 "$found" >>"$log" 2>&1; then
			note "$found took long once, and not again: going on"
			rm "$found"
			continue
		fi
		status=1
		note "failed: see $log and fuzz/artifacts/$target"
		break
	done
	note "$(grep -E '^Done|^#[0-9]+.*(DONE|cov)' "$log" | tail -n 1)"
done
exit "$status"
