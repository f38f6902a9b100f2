#!/usr/bin/env bash
# The unit tests of the crates that do no I/O, protocol and pages, under Miri, which carries out each instruction with an eye on
# what the language promises. It comes with a nightly compiler alone: PPB_MIRI names the toolchain, by default nightly.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

toolchain=${PPB_MIRI:-nightly}
if ! cargo "+$toolchain" miri --version >/dev/null 2>&1; then
	die "there is no Miri in the toolchain $toolchain" \
		'with rustup: rustup component add --toolchain nightly miri rust-src'
fi
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(cache_dir)/target-miri}
# Tests read files with pages that a server wrote.
MIRIFLAGS=-Zmiri-disable-isolation
# Without these there is one way to a page's checksum, that of a processor that has neither.
RUSTFLAGS=-Ctarget-feature=+sse4.1,+avx2
export CARGO_TARGET_DIR MIRIFLAGS RUSTFLAGS
cd "$ROOT"
for crate in protocol pages; do
	say "Miri: $crate"
	cargo "+$toolchain" miri test --locked --lib -p "pg_parallel_backup_$crate"
done
