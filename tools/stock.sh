#!/usr/bin/env bash
# Debian's own server, unpatched, as a copy in build/stock$PG: bin, lib, share and header files under
# the paths they have in the system. PostgreSQL finds its files from where its programs are
# themselves, as long as they lie to one another as they were installed; so the extension can be
# installed into the copy, and nothing in /usr changes. Libraries of other packages, libpq among them,
# stay the system's.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

directories=(lib/postgresql/"$PG" share/postgresql/"$PG" include/postgresql)
packages=(postgresql-"$PG" postgresql-client-"$PG" postgresql-server-dev-"$PG")

key=$({
	dpkg-query -W -f '${Package} ${Version}\n' "${packages[@]}"
	cat "$0"
} | sha256sum | cut -c 1-16)
if [ "$(cat "$INSTALL/.built-from" 2>/dev/null)" = "$key" ]; then exit 0; fi

say "Copying Debian's PostgreSQL $(dpkg-query -W -f '${Version}' "postgresql-$PG") to ${TREE#"$ROOT"/}"
rm -rf "$TREE" "$TREE.new"
mkdir -p "$TREE.new/usr"
# An extension of ours that is installed in the system is not what is to be tested.
tar -C /usr -cf - --exclude='pg_parallel_*' "${directories[@]}" | tar -C "$TREE.new/usr" -xf - --no-same-owner
new=$TREE.new${INSTALL#"$TREE"}
# Where the compiler takes the header files and libpq from: a path that stays the same.
echo "/usr/lib/postgresql/$PG" >"$new/.cache-entry"
echo "$key" >"$new/.built-from"

# What is relocated is read from the copy, so a path that is not would show here, not as a test of
# some other server.
for what in bindir pkglibdir sharedir includedir-server; do
	path=$("$new/bin/pg_config" "--$what")
	case $path in
	"$TREE.new"/*) ;;
	*) die "Debian's PostgreSQL $PG cannot be used from a copy: pg_config --$what says $path" ;;
	esac
done
mv "$TREE.new" "$TREE"
