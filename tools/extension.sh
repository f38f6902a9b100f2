#!/usr/bin/env bash
# Builds the extension in release mode and installs it into a server: by default build/pg$PG,
# else the one whose pg_config is given. DESTDIR is honoured.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"

pg_config=${1:-$INSTALL/bin/pg_config}
use_target_dir
use_server "$pg_config"
step 'Building the extension (a minute or two the first time)' \
	cargo build --release "${features[@]}" --manifest-path "$ROOT/Cargo.toml" -p pg_parallel_backup

library=${DESTDIR:-}$("$pg_config" --pkglibdir)
extension=${DESTDIR:-}$("$pg_config" --sharedir)/extension
if ! mkdir -p "$library" "$extension" 2>/dev/null || [ ! -w "$library" ] || [ ! -w "$extension" ]; then
	die "$(id -un) may not write to $library and $extension" \
		'the extension is built; run this again as a user who may' \
		'(with CARGO_TARGET_DIR='"$CARGO_TARGET_DIR"' nothing is compiled twice)'
fi
install -m 755 "$CARGO_TARGET_DIR/release/libpg_parallel_backup.so" "$library/pg_parallel_backup.so"
# An install script of an earlier version must not stay: it would take a schema that is there already.
rm -f "$extension"/pg_parallel_backup--*.sql
install -m 644 "$ROOT/pg_parallel_backup.control" "$ROOT"/sql/*.sql "$extension"
