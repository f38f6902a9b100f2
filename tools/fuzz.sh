#!/usr/bin/env bash
# Fuzzing by libFuzzer with AddressSanitizer: each target of fuzz/, or those in TARGETS, for MINUTES each. What was found to be
# of interest is kept in fuzz/corpus, beside fuzz/seeds, which the repository has, and what fails in fuzz/artifacts. Sets
# cargo-fuzz up in the cache if it is not installed. The compiler's unstable flags are allowed for this build alone.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"

VERSION=0.13.2

"$TOOLS/prerequisites.sh"
"$TOOLS/server.sh"
use_server "$INSTALL/bin/pg_config"
fuzz=$(command -v cargo-fuzz || true)
if [ -z "$fuzz" ]; then
	tools=$(cache_dir)/tools
	fuzz=$tools/bin/cargo-fuzz
	mkdir -p "$tools"
	if [ ! -x "$fuzz" ]; then
		lock "$tools/.lock" 'installation of cargo-fuzz'
		step 'Installing cargo-fuzz (a minute, once)' \
			cargo install --quiet --locked --root "$tools" --target-dir "$tools/target" "cargo-fuzz@$VERSION"
		rm -rf "$tools/target"
	fi
fi
cd "$ROOT/fuzz"
CARGO_TARGET_DIR=$(cache_dir)/target-fuzz
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
