#!/usr/bin/env bash
# A backup as one compressed archive on standard output, for whatever takes a stream:
#
#   stream.sh CONNSTR [OPTION of pg_parallel_basebackup]... | ssh elsewhere 'cat >monday.tar.zst'
#
# The WAL that it needs is in it. A cluster with tablespaces of its own does not fit into one archive, and is refused.
# COMPRESS is the program between, `zstd -q -T0` by default.
#
# The exit code is that of the backup. Whoever takes the stream does not see it: what a backup that failed has sent is an
# archive that is cut off, which tar and zstd say. Keep it under another name until this script has ended well.
set -euo pipefail
connstr=$1
shift
# The one that COMPRESS names has its own arguments.
# shellcheck disable=SC2086
pg_parallel_basebackup --format=tar --pgdata=- --wal-method=fetch --dbname="$connstr" "$@" | ${COMPRESS:-zstd -q -T0}
