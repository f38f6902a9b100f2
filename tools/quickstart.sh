#!/usr/bin/env bash
# The whole story on a real cluster: about 1 GB made by pgbench, over two tablespaces, is backed
# up by several connections while pgbench goes on writing; the copy is verified, started, and
# asked whether its books balance. Needs build/pg$PG (tools/build.sh).
#
# The copy stays in build/quickstart, stopped; a second run replaces it. The source cluster and
# everything else goes at the end, on failure too. No TCP port is opened: all connections are
# local sockets.
#
#   PPB_SCALE   pgbench's scale, 15 MB each (default 72)
#   PPB_JOBS    connections that copy files (default 4)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

scale=${PPB_SCALE:-72}
jobs=${PPB_JOBS:-4}

make_scratch
user=$("$TOOLS/as-user.sh" --name)

# The copy must outlive this script and be within reach of the user who can start it: so must
# the programs. In a checkout that only root may enter, both go elsewhere.
keep=$BUILD/quickstart
if ! as_user test -r "$INSTALL/bin/postgres"; then
	keep=/var/tmp/pg_parallel_backup-quickstart
	note "$user may not read $ROOT: the copy goes to $keep"
	if [ -L "$keep" ] || { [ -e "$keep" ] && [ ! -O "$keep" ]; }; then
		die "$keep is somebody else's" 'move it out of the way'
	fi
	mkdir -p "$keep"
	chmod 755 "$keep"
	RUN_INSTALL=$keep/pg$PG
fi
bin=$RUN_INSTALL/bin
copy=$keep/copy
source=$keep/source
sockets=$SCRATCH/sockets
port=54320
while [ -e "/tmp/.s.PGSQL.$port" ]; do port=$((port + 1)); done

# For the commands that we print: paths as one would type them in the checkout.
as=
if [ "$(id -u)" -eq 0 ]; then as="runuser -u $user -- "; fi
show_bin=${bin#"$ROOT"/}
show_copy=${copy#"$ROOT"/}

pg() {
	local program=$1
	shift
	as_user "$bin/$program" "$@"
}
query() { pg psql -XAtq -v ON_ERROR_STOP=1 -h "$sockets" -p "$port" -d bench -c "$1"; }

# timed "What happens" command...: as step, for commands of which one is a function.
timed() {
	local what=$1 start
	start=$(now)
	shift
	say "$what"
	if ! "$@" >"$SCRATCH/output" 2>&1; then
		tail -n 30 "$SCRATCH/output" >&2
		die "this step failed: $what"
	fi
	note "done in $(duration $(($(now) - start)))"
}

if [ -f "$copy/data/postmaster.pid" ] && pg pg_ctl -D "$copy/data" status >/dev/null 2>&1; then
	die "the copy of an earlier run is still running" \
		"stop it with: $as$show_bin/pg_ctl -D $show_copy/data stop"
fi

bench=
finished=
before_scratch_goes() {
	if [ -n "$bench" ]; then kill -TERM -- "-$bench" 2>/dev/null || true; fi
	stop_servers_below "$keep"
	rm -rf "$source"
	if [ -z "$finished" ]; then
		mkdir -p "$LOGS/quickstart"
		cp "$SCRATCH"/*.log "$LOGS/quickstart/" 2>/dev/null || true
		rm -rf "$copy"
		note "the copy and the source cluster were removed; server logs: $LOGS/quickstart"
	fi
}

rm -rf "$copy" "$source"
mkdir -p "$keep"
if [ "$RUN_INSTALL" != "$INSTALL" ]; then
	rm -rf "$RUN_INSTALL"
	cp -a --reflink=auto "$INSTALL" "$RUN_INSTALL"
fi
require_free "$keep" $((scale * 15 * 2 + 2500)) # twice the data, and WAL
mkdir "$copy" "$source" "$source/indexes" "$source/journal" "$sockets"
if [ "$(id -u)" -eq 0 ]; then chown -R "$user:" "$copy" "$source" "$sockets"; fi
chmod 700 "$copy" "$source" "$sockets"
cd "$SCRATCH"

# --- the source cluster ----------------------------------------------------------------------

# Peer authentication: nobody but the user who owns the files gets in, during this run and when
# the copy is started later.
make_cluster() {
	pg initdb -D "$source/data" -U "$user" --auth-local=peer --auth-host=scram-sha-256 \
		--data-checksums --no-locale --encoding=UTF8 --no-sync
	as_user tee -a "$source/data/postgresql.conf" >/dev/null <<-CONF
		shared_preload_libraries = 'pg_parallel_backup'
		listen_addresses = ''
		shared_buffers = 256MB
		max_wal_size = 4GB
		checkpoint_timeout = 30min
	CONF
	pg pg_ctl -D "$source/data" -l "$SCRATCH/source.log" -o "-k $sockets -p $port" -w start
	pg createdb -h "$sockets" -p "$port" bench
	query "CREATE TABLESPACE indexes LOCATION '$source/indexes'"
	query "CREATE TABLESPACE journal LOCATION '$source/journal'"
	pg pgbench -h "$sockets" -p "$port" -i -q -s "$scale" --index-tablespace=indexes bench
	query 'ALTER TABLE pgbench_history SET TABLESPACE journal'
	query 'ALTER TABLE pgbench_tellers SET TABLESPACE journal'
}
timed "Making a cluster of about $((scale * 15)) MB with two tablespaces, by pgbench" make_cluster

say 'Starting pgbench, which writes all the while'
set -m
pg pgbench -h "$sockets" -p "$port" -n -c 2 -j 1 -T 3600 bench >"$SCRATCH/pgbench.log" 2>&1 </dev/null &
bench=$!
set +m
for _ in {1..100}; do
	if [ "$(query 'SELECT count(*) FROM pgbench_history')" -gt 100 ]; then break; fi
	sleep 0.1
done

# --- the backup ------------------------------------------------------------------------------

say "Backing it up: pg_parallel_basebackup -j $jobs"
before=$(query 'SELECT count(*) FROM pgbench_history')
start=$(now)
run_job "$TOOLS/as-user.sh" "$bin/pg_parallel_basebackup" -h "$sockets" -p "$port" \
	-D "$copy/data" -j "$jobs" -c fast -X stream -P -l quickstart \
	-T "$source/indexes=$copy/indexes" -T "$source/journal=$copy/journal" ||
	die 'pg_parallel_basebackup failed'
took=$(($(now) - start))
if ! kill -0 "$bench" 2>/dev/null; then
	cat "$SCRATCH/pgbench.log" >&2
	die 'pgbench ended before the backup did'
fi
committed=$(($(query 'SELECT count(*) FROM pgbench_history') - before))
kill -TERM -- "-$bench"
wait "$bench" || true
bench=
bytes=$(du -sb "$copy" | cut -f 1)
files=$(grep -c '"Path"\|"Encoded-Path"' "$copy/data/backup_manifest")
note "done in $(duration "$took")"

timed 'Verifying the copy: pg_verifybackup' pg pg_verifybackup --quiet "$copy/data"

# --- the copy, by itself ---------------------------------------------------------------------

remove_source() {
	pg pg_ctl -D "$source/data" -m fast -w stop
	rm -rf "$source"
}
timed 'Stopping and removing the source cluster, tablespaces and all' remove_source

timed 'Starting the copy' pg pg_ctl -D "$copy/data" -l "$SCRATCH/copy.log" \
	-o "-k $sockets -p $port" -w -t 300 start

timed 'Looking for corruption in the copy: pg_amcheck' pg pg_amcheck -h "$sockets" -p "$port" \
	-j 2 --install-missing --heapallindexed --all

say "Checking that the books balance"
sums=$(query 'SELECT (SELECT sum(abalance) FROM pgbench_accounts),
	(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),
	(SELECT sum(delta) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)')
IFS='|' read -r accounts tellers branches history transactions <<<"$sums"
if [ "$accounts" != "$tellers" ] || [ "$accounts" != "$branches" ] || [ "$accounts" != "$history" ]; then
	die "the sums of the copy differ: accounts $accounts, tellers $tellers, branches $branches, history $history"
fi
if [ "$transactions" -lt "$before" ]; then
	die "the copy has $transactions transactions, fewer than the $before from before the backup"
fi
note "accounts, tellers, branches and history all say $accounts, after $transactions transactions"

timed 'Stopping the copy' pg pg_ctl -D "$copy/data" -m fast -w stop
finished=yes

cat <<SUMMARY

  A parallel backup of PostgreSQL $PG, from a busy server to a running copy

    size          $((bytes / 1000000)) MB in $files files, 2 tablespaces
    time          $(duration "$took"), $((bytes / 1000 / took)) MB/s
    connections   $jobs for the files, and 1 for the WAL
    meanwhile     pgbench committed $committed transactions
    verified      pg_verifybackup, pg_amcheck, and pgbench's own sums
    where         $copy

  To start the copy, look at it, and stop it again:

    $as$show_bin/pg_ctl -D $show_copy/data -o '-k /tmp -p $port' -l $show_copy/log -w start
    $as$show_bin/psql -h /tmp -p $port bench
    $as$show_bin/pg_ctl -D $show_copy/data stop

SUMMARY
