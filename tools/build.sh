#!/usr/bin/env bash
# Everything that a test or the quickstart runs, from nothing to build/pg$PG; with PPB_STOCK, to
# build/stock$PG.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

"$TOOLS/prerequisites.sh"
if [ -n "${PPB_STOCK:-}" ]; then "$TOOLS/stock.sh"; else "$TOOLS/server.sh"; fi
"$TOOLS/extension.sh"
"$TOOLS/client.sh"
