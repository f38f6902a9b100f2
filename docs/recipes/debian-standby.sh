#!/usr/bin/env bash
# The data directory of a standby in Debian's layout, where the configuration lies in /etc/postgresql and is not in a
# backup. As the user postgres, after pg_createcluster has made a cluster that was never started:
#
#   debian-standby.sh VERSION CLUSTER CONNSTR [OPTION of pg_parallel_basebackup]...
#
# CONF_ROOT is where clusters are configured, /etc/postgresql by default.
set -euo pipefail
version=$1 cluster=$2 connstr=$3
shift 3
conf=${CONF_ROOT:-/etc/postgresql}/$version/$cluster

# What pg_createcluster has written there, as `pg_conftool show data_directory` says it.
data=$(sed -n "s/^data_directory *= *'\([^']*\)'.*/\1/p" "$conf/postgresql.conf")
if [ -z "$data" ]; then
	echo "debian-standby.sh: $conf/postgresql.conf names no data_directory" >&2
	exit 1
fi
if [ -e "$data/postmaster.pid" ]; then
	echo "debian-standby.sh: the cluster runs, or did not stop well: $data/postmaster.pid" >&2
	exit 1
fi
# Only what initdb has just made may go: a server that is started writes this file, and leaves it there.
if [ -e "$data/postmaster.opts" ]; then
	echo "debian-standby.sh: $data has been in use; remove it yourself if you mean it" >&2
	exit 1
fi

# Beside it first: if the backup fails, what was there is there.
new=$data.new
pg_parallel_basebackup --pgdata="$new" --dbname="$connstr" --write-recovery-conf "$@"
# Of another cluster's settings postgresql.auto.conf alone is in the backup, and ALTER SYSTEM may have set paths of
# the original there; the recovery settings stay.
if grep -E '^ *(config_file|data_directory|hba_file|ident_file|external_pid_file) *=' "$new/postgresql.auto.conf"; then
	echo "debian-standby.sh: take these out of $new/postgresql.auto.conf before the standby starts" >&2
fi
rm -rf "$data"
mv "$new" "$data"
echo "now start it: pg_ctlcluster $version $cluster start"
