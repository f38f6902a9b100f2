#!/usr/bin/env bash
# The crates that are built in: licences, where they come from, versions that are there twice, known advisories
# (deny.toml).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/rust.sh"

cd "$ROOT"
deny=$(cargo_tool cargo-deny 0.20.2)
say 'cargo-deny'
"$deny" --workspace --locked --log-level error check --hide-inclusion-graph licenses bans sources
# The database of advisories is a git repository elsewhere: not every machine may go there.
if "$deny" --log-level off fetch db 2>/dev/null; then
	"$deny" --workspace --locked --log-level error check --hide-inclusion-graph advisories
else
	note 'the database of advisories cannot be reached: nobody has looked into it'
fi
