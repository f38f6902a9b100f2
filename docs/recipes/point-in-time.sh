#!/usr/bin/env bash
# A cluster as it was at a moment: from a backup and an archive of WAL files.
#
#   point-in-time.sh BACKUP DIRECTORY ARCHIVE SETTING...
#
# SETTINGs say where recovery ends, for instance
#   "recovery_target_time = '2026-11-25 12:00:00 UTC'"
#   "recovery_target_name = 'before the update'"
# The backup stays as it is: DIRECTORY is a copy of it, to be started with pg_ctl. Tablespaces need more care than
# this: their links in pg_tblspc lead to the backup's.
set -euo pipefail
backup=$1 directory=$2 archive=$3
shift 3

if [ -n "$(find "$backup/pg_tblspc" -mindepth 1 -print -quit)" ]; then
	echo "point-in-time.sh: $backup has tablespaces" >&2
	exit 1
fi
# A backup that is not what it was is better heard of now.
pg_verifybackup --no-parse-wal --quiet "$backup"
mkdir -m 700 "$directory"
cp -a "$backup/." "$directory/"
rm "$directory/backup_manifest"
# In a string of postgresql.conf a quote is doubled; in restore_command % has a meaning, and the shell reads it.
quoted=$(printf '%q' "$archive")
quoted=${quoted//%/%%}
quoted=${quoted//\'/\'\'}
{
	printf "restore_command = 'cp %s/%%f \"%%p\"'\n" "$quoted"
	printf '%s\n' "$@" "recovery_target_action = 'promote'"
} >>"$directory/postgresql.auto.conf"
touch "$directory/recovery.signal"
