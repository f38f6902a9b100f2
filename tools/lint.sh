#!/usr/bin/env bash
# rustfmt and clippy over the whole workspace; cargo-deny over what is built in; shellcheck over these scripts where it is
# installed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"

# clippy compiles, and pgrx compiles against a server's header files.
"$TOOLS/prerequisites.sh"
for component in fmt clippy; do
	if ! cargo "$component" --version >/dev/null 2>&1; then
		die "cargo $component is not installed" \
			"with rustup: rustup component add ${component/#fmt/rustfmt}"
	fi
done
"$TOOLS/server.sh"

cd "$ROOT"
say 'rustfmt'
cargo fmt --all --check
say 'clippy'
use_target_dir
use_server "$INSTALL/bin/pg_config"
cargo clippy --workspace --all-targets "${workspace_features[@]}" -- -D warnings
"$TOOLS/deny.sh"
if command -v shellcheck >/dev/null; then
	say 'shellcheck'
	shellcheck --source-path="$TOOLS" --external-sources "$TOOLS"/*.sh "$ROOT"/tests/*.sh "$ROOT"/docs/recipes/*.sh .ci/run
fi
say 'No complaints'
