#!/usr/bin/env bash
# A backup each night, the last few of which are kept. For cron:
#
#   30 2 * * *  postgres  /usr/local/bin/nightly.sh /srv/backups 7 'host=db.example user=backup'
#
#   nightly.sh DIRECTORY KEEP CONNSTR [OPTION of pg_parallel_basebackup]...
#
# Backups are directories named by the time when they began, in UTC; beside each its report, NAME.json. What is not
# good has another name and is never counted: only after a backup was made, and verified, do the oldest go.
set -euo pipefail
directory=$1 keep=$2 connstr=$3
shift 3
case $keep in
'' | *[!0-9]* | 0)
	echo "nightly.sh: \"$keep\" is no number of backups to keep" >&2
	exit 2
	;;
esac

cd "$directory"
# One at a time: a backup that takes longer than a day makes the next one wait for tomorrow.
exec 9>.lock
if ! flock --nonblock 9; then
	echo 'nightly.sh: the last one still runs' >&2
	exit 1
fi

name=$(date -u +%Y%m%dT%H%M%SZ)
# What an earlier run left that was killed.
rm -rf ./*.new
pg_parallel_basebackup --pgdata="$name.new" --dbname="$connstr" --report="$name.json" --no-password "$@" 9>&-
pg_verifybackup --quiet "$name.new"
mv "$name.new" "$name"

# The names sort by time. A glob of the shell, so that nothing else in the directory is touched.
shopt -s nullglob
backups=([0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]T[0-9][0-9][0-9][0-9][0-9][0-9]Z)
while [ ${#backups[@]} -gt "$keep" ]; do
	rm -rf "./${backups[0]}" "./${backups[0]}.json"
	backups=("${backups[@]:1}")
done
