#!/usr/bin/env bash
# Removes what was built in this checkout. The cache is shared by checkouts: only named.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

rm -rf "$BUILD" "$ROOT/target"
say 'Removed build/ and target/'
cache=${PPB_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/pg_parallel_backup}
if [ -d "$cache" ]; then
	note "finished builds are still in $cache ($(du -sh "$cache" | cut -f 1)); remove it if you like"
fi
