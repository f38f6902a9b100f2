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
	"$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/$target" -max_total_time="$((60 * ${MINUTES:-10}))" -timeout=20 \
		-rss_limit_mb=4096 -artifact_prefix="artifacts/$target/" "${corpora[@]}" >"$log" 2>&1 || {
		status=1
		note "failed: see $log and fuzz/artifacts/$target"
	}
	note "$(grep -E '^Done|^#[0-9]+.*(DONE|cov)' "$log" | tail -n 1)"
done
exit "$status"
