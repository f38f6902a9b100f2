#!/usr/bin/env bash
# Builds the client in release mode and installs its programs in build/pg$PG/bin.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"

use_target_dir
use_server "$INSTALL/bin/pg_config"
step 'Building the client' \
	cargo build --release --locked --manifest-path "$ROOT/Cargo.toml" -p pg_parallel_backup_client
install -m 755 "$CARGO_TARGET_DIR"/release/pg_parallel_{basebackup,restore} "$INSTALL/bin/"
