#!/usr/bin/env bash
# Runs a command as an ordinary user: PostgreSQL's server refuses to run as root.
#
#   as-user.sh command...   directly, or when called by root as PPB_USER, else postgres,
#                           else nobody; its HOME is PPB_HOME, a directory it owns
#   as-user.sh --name       only prints the user's name
set -euo pipefail

if [ "$(id -u)" -ne 0 ]; then
	if [ "${1:-}" = --name ]; then exec id -un; fi
	exec "$@"
fi

user=${PPB_USER:-}
if [ -z "$user" ]; then
	if id postgres >/dev/null 2>&1; then user=postgres; else user=nobody; fi
fi
if ! uid=$(id -u "$user" 2>/dev/null) || [ "$uid" -eq 0 ]; then
	echo "error: PPB_USER=$user is not an ordinary user of this machine" >&2
	exit 1
fi
if [ "${1:-}" = --name ]; then
	echo "$user"
	exit
fi

export HOME=${PPB_HOME:-/} USER=$user LOGNAME=$user
unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_RUNTIME_DIR TMPDIR
if [ -n "${PPB_HOME:-}" ]; then export TMPDIR=$PPB_HOME; fi

# setpriv first: it becomes the command, so that signals reach it.
if command -v setpriv >/dev/null; then
	exec setpriv --reuid="$uid" --regid="$(id -g "$user")" --init-groups -- "$@"
elif command -v runuser >/dev/null; then
	exec runuser -u "$user" -- "$@"
fi
echo "error: neither setpriv nor runuser is installed (package util-linux)" >&2
exit 1
