#!/usr/bin/env bash
# Everything that a test or the quickstart runs, from nothing to build/pg$PG.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

"$TOOLS/prerequisites.sh"
"$TOOLS/server.sh"
"$TOOLS/extension.sh"
"$TOOLS/client.sh"
