# How a backup with a lease ends before it is released, and that nothing is left of it: no backup mode, no slot, no
# process, no shared memory.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Lease;
use ParallelBackup::Test;

my $node = lease_node('main', init => { allows_streaming => 1 }, conf => q(
max_worker_processes = 12
max_replication_slots = 4
wal_keep_size = 0
checkpoint_timeout = 1h
restart_after_crash = on
));
my $pgdata = $node->data_dir;
my $large = 'base/5/987654';
make_file("$pgdata/$large", 64 * 1024 * 1024);
sql($node, q(CREATE TABLE t AS SELECT id, repeat('x', 1000) AS filler FROM generate_series(1, 10000) AS id));

# A backup whose coordinator is there, or is not any more.
sub running { my $conn = connection($node, @_); return ($conn, start_backup($conn, LEASE => 300)->{backup_id}) }

sub detached
{
	my (%start) = @_;
	my $conn = connection($node);
	my $id = start_backup($conn, LEASE => 300, %start)->{backup_id};
	$conn->drop;
	wait_until($node, "SELECT NOT attached FROM parallel_backup.backups WHERE backup_id = '$id'", 'detached');
	return $id;
}

# A transfer that has begun, and whose client does not read on.
sub hold_up
{
	my ($conn, $id) = @_;

	$conn->send_query(send_files_sql([$large], BACKUP_ID => $id, VERIFY_CHECKSUMS => 'false'));
	$conn->read_until(sub { $_[0]{type} eq 'd' && length($_[0]{frame}{data} // '') });
	return;
}

sub keepers { return sql($node, q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper')) }

# The lease runs out.
{
	my $late = connection($node);
	my $worker = connection($node);
	my $id = detached(LEASE => 1);
	hold_up($worker, $id);
	nothing_left_but_transfers($id);
	is_report($worker->finish->{error}, '57014', qr/^parallel backup "$id" was aborted because its lease ran out$/, 'a transfer of a worker');
	nothing_left($node, 'the lease has run out');
	is_gone($late, $id, 'too late');
	is_error($late, send_files_sql([$large], BACKUP_ID => $id), '42704', qr/^parallel backup "$id" does not exist$/, 'nor files');
	like(slurp_file($node->logfile), qr/LOG:  parallel backup "$id" was aborted because its lease ran out/, q(the server's log));

	# Of a stopped one too, and not while somebody is attached.
	my ($conn, $other) = running();
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	my $short = start_backup($conn, LEASE => 1)->{backup_id};
	stop_backup($conn);
	my $began = time;
	wait_until($node, "SELECT clock_timestamp() > to_timestamp($began + 3)", 'longer than the lease');
	is(row($node, 'state, attached', $short), 'stopped|t', 'attached');
	is(stop_backup($conn)->{reply}{error}, undef, 'and at its service');
	$conn->drop;
	nothing_left($node, 'the lease of a stopped backup has run out');
	$_->close for ($late, $worker);
}

sub nothing_left_but_transfers
{
	my ($id) = @_;

	wait_until($node, "SELECT state = 'aborted' AND keeper IS NULL AND workers = 1 FROM parallel_backup.backups WHERE backup_id = '$id'",
		'aborted, with a transfer that has not looked yet');
	return;
}

# While it starts.
{
	my $start = q(START_BACKUP (LEASE 300, CHECKPOINT 'spread'));
	my $starting = q(SELECT backup_id FROM parallel_backup.backups WHERE state = 'starting');
	my $begin = sub {
		my ($conn) = @_;
		sql($node, 'CHECKPOINT; UPDATE t SET id = id');
		$conn->send_query($start);
		wait_until($node, q(SELECT count(*) = 1 FROM pg_stat_activity AS a, parallel_backup.backups AS b
			WHERE a.pid = b.keeper AND b.state = 'starting' AND a.wait_event = 'CheckpointDone'), 'the keeper waits for the checkpoint');
		is(sql($node, 'SELECT phase FROM pg_stat_progress_basebackup WHERE pid = ' . $conn->pid), 'waiting for checkpoint to finish', 'progress');
		return sql($node, $starting);
	};
	my $late = connection($node);

	my $conn = connection($node);
	my $id = $begin->($conn);
	is_gone($late, $id, 'one that is still starting');
	$conn->cancel;
	is_report($conn->finish->{error}, '57014', qr/^canceling statement due to user request$/, 'cancelled');
	nothing_left($node, 'START_BACKUP was cancelled');
	still_works($conn, 'the session goes on');

	$id = $begin->($conn);
	sql($node, 'SELECT pg_terminate_backend(' . $conn->pid . ')');
	is_report($conn->finish->{error}, '57P01', qr/^terminating connection due to administrator command$/, 'terminated');
	nothing_left($node, 'the coordinator was terminated');
	$conn->drop;

	# A walsender does not look, by this or any other setting.
	$conn = sql_connection($node, options => { client_connection_check_interval => '50ms' });
	$id = $begin->($conn);
	$conn->drop;
	nothing_left($node, 'the client has gone');
	is_gone($late, $id, 'a backup that never started');

	$conn = connection($node);
	$id = $begin->($conn);
	is(sql($node, "SELECT parallel_backup.cancel_backup('$id')"), 't', 'cancel_backup()');
	is_report($conn->finish->{error}, '57014', qr/^parallel backup "$id" was aborted$/, 'the coordinator is told');
	nothing_left($node, 'cancel_backup() of one that starts');
	still_works($conn, 'and goes on');

	$id = $begin->($conn);
	sql($node, 'SELECT pg_terminate_backend(' . keeper_of($node, $id) . ')');
	is_report($conn->finish->{error}, '57014', qr/^parallel backup "$id" was aborted$/, 'the keeper was terminated');
	nothing_left($node, 'the keeper was terminated while it started');
	is_error($conn, 'STOP_BACKUP', '55000', qr/^no parallel backup is running in this session$/, 'nothing to stop');
	$_->close for ($conn, $late);
}

# Terminated, with somebody attached and without.
{
	my ($conn, $id) = running();
	my $worker = connection($node);
	hold_up($worker, $id);
	sql($node, 'SELECT pg_terminate_backend(' . keeper_of($node, $id) . ')');
	nothing_left_but_transfers($id);
	is_report($worker->finish->{error}, '57014', qr/^parallel backup "$id" was aborted$/, 'a worker is told');
	is_error($conn, 'STOP_BACKUP', '57014', qr/^parallel backup "$id" was aborted$/, 'the coordinator is told');
	is_error($conn, 'STOP_BACKUP', '55000', qr/^no parallel backup is running in this session$/, 'once');
	nothing_left($node, 'the keeper was terminated');
	$id = detached();
	is(sql($node, "SELECT parallel_backup.cancel_backup('$id')"), 't', 'cancel_backup() of a detached one');
	nothing_left($node, 'cancel_backup()');
	is_gone($worker, $id, 'a cancelled one');
	$_->close for ($conn, $worker);
}

# WAL that cannot be kept.
{
	my ($conn, $id) = running();
	my $other = connection($node);
	my $plain = start_backup($other)->{backup_id};
	sql($node, q(ALTER SYSTEM SET max_slot_wal_keep_size = '2MB'));
	$node->reload;
	wait_until($node, q(SELECT current_setting('max_slot_wal_keep_size') = '2MB'), 'a limit');
	my $write = sub { sql($node, 'INSERT INTO touched (id) VALUES (0); SELECT pg_switch_wal();') for 1 .. 8; sql($node, 'CHECKPOINT') };
	$write->();
	wait_until($node, q(SELECT count(*) = 0 FROM pg_replication_slots), 'the slot is lost');
	my $words = qr/^parallel backup "$id" was aborted because the WAL it needs exceeds "max_slot_wal_keep_size"$/;
	is_error($conn, 'SEND_FILE_LIST', '57014', $words, 'the coordinator is told', hint => qr/^Raise "max_slot_wal_keep_size"/);
	like(slurp_file($node->logfile), qr/LOG:  parallel backup "$id" was aborted because the WAL it needs exceeds "max_slot_wal_keep_size"/,
		q(the server's log));
	is(row($node, 'state', $plain), 'running', 'a backup without a lease keeps no WAL, and goes on');
	stop_backup($other, WAIT => 'false');
	query_ok($other, 'STOP_BACKUP (RELEASE)');
	nothing_left($node, 'WAL was lost');

	$id = detached();
	$write->();
	nothing_left($node, 'WAL was lost with nobody attached');
	is_gone($conn, $id, 'one that has lost its WAL');
	sql($node, 'ALTER SYSTEM RESET max_slot_wal_keep_size');
	$node->reload;
	wait_until($node, q(SELECT current_setting('max_slot_wal_keep_size') = '-1'), 'no limit');

	# Without one, what is written stays: from before the start, until it is released.
	my $start = start_backup($conn, LEASE => 300);
	my $first = sql($node, "SELECT pg_walfile_name('$start->{recptr}')");
	$write->();
	ok(-e "$pgdata/pg_wal/$first", 'WAL of a running backup is kept');
	my $stop = stop_backup($conn, WAIT => 'false');
	$conn->drop;
	$write->();
	ok(-e "$pgdata/pg_wal/$first", 'and that of a stopped one, with nobody attached');
	$conn = connection($node);
	attach_ok($conn, $start->{backup_id});
	is(scalar @{ fetch($conn, [ map { "pg_wal/$_" } @{ $stop->{wal} } ])->{files} }, scalar @{ $stop->{wal} }, 'all of it is served');
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	$write->();
	ok(!-e "$pgdata/pg_wal/$first", 'and is removed after that');
	nothing_left($node, 'WAL was kept');
	$_->close for ($conn, $other);
}

# Slots and processes that are taken.
{
	my $conn = connection($node);
	sql($node, "SELECT pg_create_physical_replication_slot('taken_$_')") for 1 .. 4;
	is_error($conn, q(START_BACKUP (LEASE 10, CHECKPOINT 'fast')), '53400', qr/^all replication slots are in use$/, 'no slot', hint => qr/max_replication_slots/);
	nothing_left($node, 'no slot');
	start_backup($conn);
	stop_backup($conn, WAIT => 'false');
	$conn->close;
	sql($node, "SELECT pg_drop_replication_slot('taken_$_')") for 1 .. 4;

	$node->append_conf('postgresql.conf', "max_worker_processes = 1\nmax_replication_slots = 0\n");
	$node->restart;
	$conn = connection($node);
	is_error($conn, q(START_BACKUP (LEASE 10, CHECKPOINT 'fast')), '53400', qr/^no background process is free for a parallel backup with a lease$/,
		'no process', hint => qr/max_worker_processes/) if sql($node, q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication launcher')) == 1;
	nothing_left($node, 'no process');
	start_backup($conn);
	stop_backup($conn, WAIT => 'false');
	$conn->close;
	$node->append_conf('postgresql.conf', "max_worker_processes = 12\n");
	$node->restart;
	$conn = connection($node);
	is_error($conn, q(START_BACKUP (LEASE 10, CHECKPOINT 'fast')), '55000', qr/^replication slots can only be used if "?max_replication_slots"? > 0$/, 'no slots at all');
	nothing_left($node, 'no slots at all');
	$conn->close;
	$node->append_conf('postgresql.conf', "max_replication_slots = 4\n");
	$node->restart;
}

# Shutdown.
for my $mode (qw(smart fast immediate))
{
	my $id = detached();
	my $stopped = detached();
	my $conn = connection($node);
	attach_ok($conn, $stopped);
	stop_backup($conn, WAIT => 'false');
	$conn->drop;
	wait_until($node, 'SELECT count(*) = 2 FROM parallel_backup.backups WHERE NOT attached', "$mode: both are detached");
	# It would wait as long as pg_ctl does.
	$node->stop($mode);
	ok(!-e "$pgdata/postmaster.pid", "$mode shutdown does not wait for leases");
	$node->start;
	nothing_left($node, "$mode shutdown");
	$conn = connection($node);
	is_gone($conn, $_, "$mode shutdown: after it") for ($id, $stopped);
	$conn->close;
}

# A crash of any backend.
{
	my ($conn, $id) = running();
	my $detached = detached();
	my $victim = connection($node);
	kill('KILL', $victim->pid);
	$conn->finish;
	wait_until_up($node);
	nothing_left($node, 'a crash');
	my $late = connection($node);
	is_gone($late, $_, 'after a crash') for ($id, $detached);
	$_->drop for ($conn, $victim);

	# That of a keeper is one.
	$id = start_backup($late, LEASE => 300)->{backup_id};
	kill('KILL', keeper_of($node, $id));
	$late->finish;
	wait_until_up($node);
	nothing_left($node, 'a keeper was killed');
	$late->drop;
}

# Without the extension, and without the library.
{
	my $id = detached(LEASE => 2);
	sql($node, 'DROP EXTENSION pg_parallel_backup');
	is(keepers(), 1, 'the extension is dropped: the keeper is there');
	wait_until($node, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper'), 'until the lease has run out');
	is(sql($node, 'SELECT count(*) FROM pg_replication_slots'), 0, 'and no slot is left');
	is(in_backup_mode($node), 0, 'nor backup mode');
	sql($node, 'CREATE EXTENSION pg_parallel_backup');
	nothing_left($node, 'the extension was dropped');

	$id = detached();
	$node->append_conf('postgresql.conf', q(shared_preload_libraries = ''));
	$node->stop('immediate');
	$node->start;
	is(sql($node, 'SELECT count(*) FROM pg_replication_slots') . keepers(), '00', 'the library was removed: neither slot nor keeper');
	is(scalar(grep { /^pg_parallel_backup/ } slurp_dir("$pgdata/pg_replslot")), 0, 'nor a slot on disk');
	is(in_backup_mode($node), 0, 'nor backup mode');
	$node->append_conf('postgresql.conf', q(shared_preload_libraries = 'pg_parallel_backup'));
	$node->restart;
}

# A standby, and its promotion.
{
	# Without whole pages in it WAL is not enough for a backup of a standby.
	my $whole_pages = sub {
		$node->append_conf('postgresql.conf', "full_page_writes = $_[0]");
		$node->reload;
		wait_until($node, "SELECT current_setting('full_page_writes') = '$_[0]'", "full_page_writes is $_[0]");
		sql($node, 'CHECKPOINT');
	};
	$whole_pages->('on');
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', 'full_page_writes = off');
	$standby->start;
	$node->wait_for_replay_catchup($standby);
	sql($node, 'CHECKPOINT');
	$node->wait_for_replay_catchup($standby);

	my $conn = connection($standby);
	my $worker = connection($standby);
	my $start = start_backup($conn, LEASE => 300);
	my $id = $start->{backup_id};
	is("$start->{in_recovery} $start->{lease}", '1 300', 'on a standby');
	$conn->drop;
	$conn = connection($standby);
	attach_ok($conn, $id);
	is(scalar @{ fetch($worker, ['PG_VERSION'], BACKUP_ID => $id)->{files} }, 1, 'attached again');
	ok(!stop_backup($conn, WAIT => 'false')->{reply}{error}, 'stopped');
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	nothing_left($standby, 'on a standby');

	$id = start_backup($conn, LEASE => 300)->{backup_id};
	my $stopped = connection($standby);
	my $stopped_id = start_backup($stopped, LEASE => 300)->{backup_id};
	my $stop = stop_backup($stopped, WAIT => 'false');
	my $detached = connection($standby);
	start_backup($detached, LEASE => 300);
	$detached->drop;
	$standby->promote;
	wait_until($standby, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper'), 'promoted: one keeper is left');
	is_error($conn, 'STOP_BACKUP', '55000', qr/^the standby was promoted during online backup$/, 'the coordinator is told',
		hint => qr/^This means that the backup being taken is corrupt/);
	is(row($standby, 'state', $stopped_id), 'stopped', 'what was stopped before is good');
	is_deeply([ map { $_->{rows} } @{ stop_backup($stopped, WAIT => 'false')->{reply}{results} } ], [ map { $_->{rows} } @{ $stop->{reply}{results} } ],
		'and returned as it was');
	query_ok($stopped, 'STOP_BACKUP (RELEASE)');
	nothing_left($standby, 'promoted');
	like(slurp_file($standby->logfile), qr/LOG:  the standby was promoted during online backup/, q(the server's log));
	$_->close for ($conn, $worker, $stopped);
	$standby->stop;
	$whole_pages->('off');
}

# Many that nobody comes back for: no more memory than for the first, and no place lost.  PPB_LEASES says how many.
{
	my $conn = connection($node);
	my $resident = sub {
		my ($pid) = @_;
		my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB$/m;
		return $kb;
	};
	my $postmaster = (split /\n/, slurp_file("$pgdata/postmaster.pid"))[0];
	my $round = sub {
		query_ok($conn, q(START_BACKUP (LEASE 300, CHECKPOINT 'fast')));
		query_ok($conn, 'STOP_BACKUP (RELEASE)');
		my $lost = connection($node);
		start_backup($lost, LEASE => 1);
		$lost->drop;
	};
	my $full = q(SELECT count(*) < 3 FROM parallel_backup.backups);
	my $many = $ENV{PPB_LEASES} // 25;
	my @before;
	for my $n (1 .. $many)
	{
		$round->();
		$node->poll_query_until('postgres', $full) or die 'leases do not run out';
		@before = map { $resident->($_) } ($conn->pid, $postmaster) if $n == 5;
	}
	nothing_left($node, "$many leases");
	my @after = map { $resident->($_) } ($conn->pid, $postmaster);
	cmp_ok($after[0] - $before[0], '<', 512, 'a session that starts many');
	cmp_ok($after[1] - $before[1], '<', 512, 'and the postmaster');
	$conn->close;
}

done_testing();
