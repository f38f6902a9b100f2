#!/usr/bin/env bash
# The crates that are built in: licences, where they come from, versions that are there twice, known advisories
# (deny.toml). Sets cargo-deny up in the cache if it is not installed, which takes some minutes once.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

VERSION=0.20.2

cd "$ROOT"
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
	tools=$(cache_dir)/tools
	deny=$tools/bin/cargo-deny
	mkdir -p "$tools"
	if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $VERSION" ]; then
		lock "$tools/.lock" 'installation of cargo-deny'
		step 'Installing cargo-deny (some minutes, once)' \
			cargo install --quiet --locked --root "$tools" --target-dir "$tools/target" "cargo-deny@$VERSION"
		rm -rf "$tools/target"
	fi
fi
say 'cargo-deny'
"$deny" --workspace --locked --log-level error check --hide-inclusion-graph licenses bans sources
# The database of advisories is a git repository elsewhere: not every machine may go there.
if "$deny" --log-level off fetch db 2>/dev/null; then
	"$deny" --workspace --locked --log-level error check --hide-inclusion-graph advisories
else
	note 'the database of advisories cannot be reached: nobody has looked into it'
fi
