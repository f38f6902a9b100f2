#!/usr/bin/env bash
# Builds the extension for an existing server and installs it there. The server itself is not
# touched: which routes it offers then depends on whether it has the patch.
#
#   install.sh /path/to/pg_config
set -euo pipefail

pg_config=${1:-}
version=
if [ -n "$pg_config" ]; then
	version=$("$pg_config" --version 2>/dev/null || true)
	case $version in
	PostgreSQL\ [0-9]*)
		PG=${version#PostgreSQL }
		PG=${PG%%[!0-9]*}
		;;
	*)
		echo "error: $pg_config is not a pg_config that runs" >&2
		exit 1
		;;
	esac
	if [ ! -f "$(dirname "$0")/versions/$PG" ]; then
		echo "error: $pg_config is that of $version, which the extension does not support" >&2
		exit 1
	fi
	export PG
fi
. "$(dirname "$0")/lib.sh"

if [ -z "$pg_config" ]; then
	die 'make install needs to know the server' 'for example: make install PG_CONFIG=/usr/bin/pg_config'
fi
pg_config=$(cd "$(dirname "$(command -v "$pg_config")")" && pwd -P)/$(basename "$pg_config")
if ! grep -q "^pg$PG = " "$ROOT/Cargo.toml"; then
	die "the extension has no cargo feature pg$PG for $version"
fi
if [ ! -f "$("$pg_config" --includedir-server)/postgres.h" ]; then
	die "the header files of $version are not installed" \
		"on Debian they are in the package postgresql-server-dev-$PG"
fi
"$TOOLS/prerequisites.sh"
"$TOOLS/extension.sh" "$pg_config"
say "Installed for $version in $("$pg_config" --pkglibdir)"
note "next: shared_preload_libraries = 'pg_parallel_backup' in postgresql.conf, and a restart"
