#!/bin/sh
# A replica for Patroni, by its create_replica_methods (docs/recipes/README.md has the configuration). Patroni calls
#
#   patroni.sh --scope=... --role=replica --datadir=DIRECTORY --connstring=CONNSTR [--KEY=VALUE]...
#
# with a pair for each further key of the method's section in its configuration; of these
# jobs, waldir, max-rate and checkpoint are taken. The password is in the file that PGPASSFILE names. Recovery settings
# are Patroni's own affair.
set -eu

datadir='' connstring='' waldir='' rate=''
jobs=4 checkpoint=fast
while [ $# -gt 0 ]; do
	case $1 in
	--*=*) name=${1%%=*} value=${1#*=} ;;
	--*)
		name=$1
		shift
		value=${1-}
		;;
	*)
		echo "patroni.sh: unexpected argument \"$1\"" >&2
		exit 2
		;;
	esac
	if [ $# -gt 0 ]; then shift; fi
	case $name in
	--datadir) datadir=$value ;;
	--connstring) connstring=$value ;;
	--jobs) jobs=$value ;;
	--waldir) waldir=$value ;;
	--max-rate) rate=$value ;;
	--checkpoint) checkpoint=$value ;;
	# Of no use here: scope, role, and whatever a later Patroni passes.
	*) ;;
	esac
done
if [ -z "$datadir" ] || [ -z "$connstring" ]; then
	echo 'patroni.sh: --datadir and --connstring are needed' >&2
	exit 2
fi

set -- --pgdata="$datadir" --dbname="$connstring" --jobs="$jobs" --checkpoint="$checkpoint" --no-password
if [ -n "$waldir" ]; then set -- "$@" --waldir="$waldir"; fi
if [ -n "$rate" ]; then set -- "$@" --max-rate="$rate"; fi
exec pg_parallel_basebackup "$@"
