# A backup that outlives its connections: who holds it, who is attached, and what comes back.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Lease;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = lease_node('main', conf => qq(
pg_parallel_backup.max_backups = 3
max_worker_processes = 10
max_replication_slots = 8
archive_mode = on
archive_command = 'test ! -e "$tempdir/stuck"'
checkpoint_timeout = 1h
));
my $pgdata = $node->data_dir;
sql($node, q(
	CREATE TABLE t AS SELECT generate_series(1, 1000) AS id;
	CREATE ROLE backup LOGIN REPLICATION;
	CREATE ROLE other LOGIN REPLICATION;));
may_back_up($node, 'backup', 'other');
my $relpath = sql($node, "SELECT pg_relation_filepath('t')");
# More than any socket's buffer.
my $large = 'base/5/987654';
make_file("$pgdata/$large", 64 * 1024 * 1024);
my $taken = sub { return qr/^parallel backup "$_[0]" was taken over by another session$/ };

# A transfer that has begun, and whose client reads nothing. If it had read something, there might be room for more
# that the server does not hear of before most of it is free: woken by something else it would come as far as the next
# look at its backup, and tell its client that it is lost.
sub hold_up
{
	my ($conn, @options) = @_;

	$conn->send_query(send_files_sql([$large], VERIFY_CHECKSUMS => 'false', @options));
	wait_until_full($node, $conn);
	return;
}

# The keeper, and what it shows.
{
	my $conn = connection($node, user => 'backup');
	my $start = start_backup($conn, LEASE => 300, PROGRESS => 'true', LABEL => 'kept', MAX_RATE => 1048576);
	my $id = $start->{backup_id};
	my $keeper = keeper_of($node, $id);

	is($start->{lease}, 300, 'the lease that was granted');
	is(row($node, 'pid, usename, label, start_lsn, state, lease, attached, lease_left, max_rate', $id),
		join('|', $conn->pid, 'backup', 'kept', $start->{recptr}, 'running', 300, 't', '', 1048576), 'the view');
	isnt($keeper, $conn->pid, 'the keeper is another process');
	is(sql($node, "SELECT backend_type, datname, state, query, backend_xid, backend_xmin, xact_start FROM pg_stat_activity WHERE pid = $keeper"),
		"parallel backup keeper||idle|parallel backup $id running, attached to process " . $conn->pid . '|||',
		'the keeper, and that it holds back nothing');
	is(sql($node, 'SELECT backend_xmin FROM pg_stat_activity WHERE pid = ' . $conn->pid), '', 'nor does the coordinator');
	is(sql($node, "SELECT slot_type, temporary, active_pid, xmin, restart_lsn = '$start->{recptr}', wal_status FROM pg_replication_slots WHERE slot_name = 'pg_parallel_backup_$id'"),
		"physical|t|$keeper||t|reserved", 'its slot');
	is(in_backup_mode($node), 1, 'the server is in backup mode');
	is(sql($node, 'SELECT phase FROM pg_stat_progress_basebackup WHERE pid = ' . $conn->pid), 'streaming database files',
		q(the coordinator's progress));
	is(sql($node, "SELECT pg_cancel_backend($keeper)"), 't', 'a query of the keeper is cancelled');
	# Which waits until every process has looked up.
	$node->safe_psql('postgres', $_) for ('CREATE DATABASE gone', 'DROP DATABASE gone');
	is_error($conn, 'START_BACKUP (LEASE 10)', '55000', qr/^a backup is already in progress in this session$/,
		'another backup in this session');
	cmp_ok(scalar(list_files($conn)), '>', 500, 'the list');

	my $transfer = fetch($conn, [ 'PG_VERSION', $relpath ], FILE_CHECKSUM => 'SHA256');
	is(scalar @{ $transfer->{files} }, 2, 'files');
	is(sql($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $keeper"), 1, 'which was nothing to it');
	my $stop = stop_backup($conn);
	ok(!$stop->{reply}{error}, 'STOP_BACKUP');
	is("$stop->{totals}{files} $stop->{totals}{labelfile}", "2 $start->{labelfile}", 'totals and label');
	is(scalar(grep { $_->{message} =~ /^all required WAL segments have been archived$/ } @{ $stop->{reply}{notices} }), 1,
		'the notice of the archive');
	is(in_backup_mode($node), 0, 'backup mode is left');
	is(row($node, 'state, attached', $id), 'stopped|t', 'the backup is still there');
	is(sql($node, "SELECT query LIKE '% stopped, attached to process %' FROM pg_stat_activity WHERE pid = $keeper"), 't',
		'the keeper says so');
	is(scalar @{ fetch($conn, [ map { "pg_wal/$_" } @{ $stop->{wal} } ])->{files} }, scalar @{ $stop->{wal} }, 'WAL');

	# What is refused costs the stopped backup nothing.
	is_error($conn, 'START_BACKUP (INCREMENTAL, LEASE 10)', '0A000', qr/^an incremental backup cannot have a lease$/,
		'an incremental backup with a lease');
	is(stop_backup($conn)->{totals}{files}, 2, 'the answer may be asked for once more');

	# Nothing has to be waited for.
	my $reply = query_ok($conn, 'STOP_BACKUP (RELEASE)');
	is(scalar @{ $reply->{results} }, 0, 'RELEASE returns no result set');
	is($reply->{tag}, tag_of($conn, 'STOP_BACKUP'), 'but its tag');
	is(sql($node, q(SELECT count(*) FROM parallel_backup.backups)), 0, 'released: no backup');
	is(sql($node, q(SELECT count(*) FROM pg_replication_slots)), 0, 'nor slot, at once');
	nothing_left($node, 'released');
	is_gone($conn, $id, 'a backup that was released');
	is_error($conn, 'STOP_BACKUP', '55000', qr/^no parallel backup is running in this session$/, 'nothing to stop');
	$conn->close;
}

# Detached: the transfers of others go on. Attached: everything as it was.
{
	my $conn = connection($node, user => 'backup');
	my $worker = connection($node, user => 'backup');
	my $start = start_backup($conn, LEASE => 300, PROGRESS => 'true');
	my $id = $start->{backup_id};
	my @id = (BACKUP_ID => $id);
	hold_up($worker, @id);
	sql($node, 'SELECT pg_terminate_backend(' . $conn->pid . ')');
	$conn->finish;
	$conn->drop;
	wait_until($node, "SELECT NOT attached FROM parallel_backup.backups WHERE backup_id = '$id'", 'detached');
	is(row($node, 'pid IS NULL, state, lease_left BETWEEN 200 AND 300, usename, workers', $id), 't|running|t|backup|1', 'the view');
	wait_until($node, "SELECT query LIKE '% running, detached with a lease of 300 s' FROM pg_stat_activity WHERE pid = " . keeper_of($node, $id),
		'the keeper says so');
	my $sent = $worker->finish;
	ok(!$sent->{error} && !$sent->{eof} && ParallelBackup::Transfer->of($sent->{frames})->complete,
		'a transfer under way is completed');
	is(scalar @{ fetch($worker, [$relpath], @id)->{files} }, 1, 'and another one done');
	is(in_backup_mode($node), 1, 'the server is in backup mode');
	is_error($worker, 'STOP_BACKUP' . " (BACKUP_ID '$id')", '55000', qr/^parallel backup "$id" was not started in this session$/,
		'a worker cannot stop it');
	is_error($worker, "STOP_BACKUP (BACKUP_ID '$id', RELEASE)", '55000', qr/^parallel backup "$id" was not started in this session$/,
		'nor release it');

	my $next = connection($node, user => 'backup');
	my $again = attach_ok($next, $id);
	my %first = %$start;
	delete $first{reply};
	is_deeply($again, \%first, 'the same result sets as the first time');
	is(row($node, 'pid, attached, lease_left', $id), $next->pid . '|t|', 'the view');
	is(sql($node, 'SELECT phase, backup_total > 0 FROM pg_stat_progress_basebackup WHERE pid = ' . $next->pid), 'streaming database files|t',
		q(the new coordinator's progress));
	is_deeply(attach_ok($next, $id), \%first, 'once more, in the same session');
	is(scalar @{ fetch($next, [$relpath])->{files} }, 1, 'it needs no BACKUP_ID');
	is(scalar @{ fetch($worker, [$relpath], @id)->{files} }, 1, 'a worker fetches as before');

	# An answer that was lost.
	my $stop = stop_backup($next);
	$next->drop;
	my $third = connection($node, user => 'backup');
	is_deeply(attach_ok($third, $id), \%first, 'a stopped backup');
	is(row($node, 'state', $id), 'stopped', 'is still stopped');
	is_error($third, send_files_sql([$relpath]), '42704', qr/has been stopped$/, 'no more files');
	my $later = stop_backup($third, LABEL => $start->{labelfile});
	is_deeply([ map { $_->{rows} } @{ $later->{reply}{results} } ], [ map { $_->{rows} } @{ $stop->{reply}{results} } ],
		'STOP_BACKUP returns the same again');
	is(scalar @{ fetch($worker, ["pg_wal/$stop->{wal}[0]"], @id)->{files} }, 1, 'WAL, on a worker');
	is_error($third, q(STOP_BACKUP (LABEL 'x')), '22023', qr/^the given backup_label is not that of the running backup$/, 'another label');
	query_ok($third, "STOP_BACKUP (RELEASE, BACKUP_ID '$id')");
	nothing_left($node, 'released by another session');
	$_->close for ($worker, $third);
}

# The last to come has it.
{
	my @conns = map { connection($node, user => 'backup') } 1 .. 6;
	my $id = start_backup($conns[0], LEASE => 300)->{backup_id};
	attach_ok($conns[1], $id);
	my $aside = sub {
		my ($sql, $name) = @_;
		is_error($conns[0], $sql, '57014', $taken->($id), $name);
		is_error($conns[0], 'STOP_BACKUP', '55000', qr/^no parallel backup is running in this session$/, "$name, and once only");
		attach_ok($conns[0], $id);
		attach_ok($conns[1], $id);
	};
	$aside->('SEND_FILE_LIST', 'the old one lists');
	$aside->(send_files_sql([$relpath]), 'the old one fetches');
	$aside->(send_files_sql([$relpath], BACKUP_ID => $id), 'the old one fetches by name');
	$aside->('STOP_BACKUP', 'the old one stops');
	$aside->('STOP_BACKUP (RELEASE)', 'the old one releases');
	# It can be a worker like any other.
	$conns[0]->query('SEND_FILE_LIST');
	is(scalar @{ fetch($conns[0], [$relpath], BACKUP_ID => $id)->{files} }, 1, 'the old one as a worker');
	my $other = start_backup($conns[0]);
	is(row($node, 'attached, lease, keeper', $other->{backup_id}), 't||', 'or as the coordinator of another backup, without a lease');
	stop_backup($conns[0]);

	# In the middle of a transfer.
	hold_up($conns[1]);
	attach_ok($conns[2], $id);
	is_report($conns[1]->finish->{error}, '57014', $taken->($id), 'the old one is sending');
	is_error($conns[1], 'STOP_BACKUP', '55000', qr/^no parallel backup is running in this session$/, 'and has been told');

	# At once.
	$_->send_query("START_BACKUP (BACKUP_ID '$id')") for @conns[ 1 .. 5 ];
	ok(!$_->finish->{error}, 'many attach at once') for @conns[ 1 .. 5 ];
	my $pid = row($node, 'pid', $id);
	my ($winner) = grep { $_->pid == $pid } @conns;
	ok($winner, 'one has it');
	is_error($_, 'SEND_FILE_LIST', '57014', $taken->($id), 'no other') for grep { $_ != $winner } @conns[ 1 .. 5 ];

	# Its client is gone, and the server does not know.
	my ($heir) = grep { $_ != $winner } @conns[ 1 .. 5 ];
	hold_up($winner);
	attach_ok($heir, $id);
	is_error($heir, 'SEND_FILE_LIST (ESTIMATE, BACKUP_ID x)', '42704', qr/does not exist$/, 'an error changes nothing');
	my $stop = stop_backup($heir);
	ok(!$stop->{reply}{error}, 'STOP_BACKUP ends what the old one was sending');
	my $end = $winner->finish;
	ok($end->{eof}, 'and with it the connection') or diag(explain($end->{errors}));
	# START_BACKUP gives up what was stopped.
	my $next = start_backup($heir);
	is(row($node, 'count(*)', $id), 0, 'another backup of the session');
	stop_backup($heir);
	$_->close for @conns;
	nothing_left($node, 'after many sessions');
}

# In whatever STOP_BACKUP is.
{
	my @conns = map { connection($node, user => 'backup') } 1 .. 4;
	my $start = start_backup($conns[0], LEASE => 300);
	my $id = $start->{backup_id};
	fetch($conns[0], [$relpath]);
	my $keeper = keeper_of($node, $id);
	# The keeper takes its time.
	kill('STOP', $keeper);
	$conns[0]->send_query('STOP_BACKUP');
	wait_until($node, "SELECT state = 'stopping' FROM parallel_backup.backups WHERE backup_id = '$id'", 'being stopped');
	is_error($conns[3], send_files_sql([$relpath], BACKUP_ID => $id), '55000', qr/is being stopped$/, 'no more transfers');
	my $again = attach_ok($conns[1], $id);
	is($again->{recptr}, $start->{recptr}, 'a session attaches meanwhile');
	is_report($conns[0]->finish->{error}, '57014', $taken->($id), 'the old one waited for the answer');
	$conns[1]->send_query('STOP_BACKUP');
	wait_until($node, q(SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = ) . $conns[1]->pid, 'the new one waits');
	$conns[1]->cancel;
	is_report($conns[1]->finish->{error}, '57014', qr/^canceling statement due to user request$/, 'it is cancelled');
	is(row($node, 'state, attached', $id), 'stopping|t', 'but still attached, and the backup still being stopped');
	$conns[1]->send_query('STOP_BACKUP');
	sql($node, 'SELECT pg_terminate_backend(' . $conns[1]->pid . ')');
	$conns[1]->drop;
	wait_until($node, "SELECT NOT attached FROM parallel_backup.backups WHERE backup_id = '$id'", 'now nobody is');
	kill('CONT', $keeper);
	wait_until($node, "SELECT state = 'stopped' FROM parallel_backup.backups WHERE backup_id = '$id'", 'it is stopped all the same');

	# The archive.
	attach_ok($conns[2], $id);
	my $stop = stop_backup($conns[2]);
	is($stop->{totals}{files}, 1, 'the answer');
	query_ok($conns[2], 'STOP_BACKUP (RELEASE)');
	write_file("$tempdir/stuck", '');
	$id = start_backup($conns[2], LEASE => 300)->{backup_id};
	$conns[2]->send_query('STOP_BACKUP');
	wait_until($node, q(SELECT wait_event = 'BackupWaitWalArchive' FROM pg_stat_activity WHERE pid = ) . $conns[2]->pid, 'it waits for the archive');
	is(row($node, 'state', $id), 'stopped', 'the backup is stopped');
	attach_ok($conns[3], $id);
	is_report($conns[2]->finish->{error}, '57014', $taken->($id), 'the old one waited for the archive');
	my $early = stop_backup($conns[3], WAIT => 'false');
	$conns[3]->send_query('STOP_BACKUP');
	wait_until($node, q(SELECT wait_event = 'BackupWaitWalArchive' FROM pg_stat_activity WHERE pid = ) . $conns[3]->pid, 'the new one waits for it');
	sql($node, 'SELECT pg_terminate_backend(' . $conns[3]->pid . ')');
	$conns[3]->drop;
	unlink "$tempdir/stuck";
	my $last = connection($node, user => 'backup');
	attach_ok($last, $id);
	my $late = stop_backup($last);
	is(scalar(grep { $_->{message} =~ /^all required WAL segments have been archived$/ } @{ $late->{reply}{notices} }), 1,
		'the last one waits until the archive has it');
	is_deeply([ map { $_->{rows} } @{ $late->{reply}{results} } ], [ map { $_->{rows} } @{ $early->{reply}{results} } ], 'the same results');
	query_ok($last, 'STOP_BACKUP (RELEASE)');
	$_->close for ($conns[0], $conns[2], $last);
	nothing_left($node, 'after STOP_BACKUP in every phase');
}

# Whose it is.
{
	my $conn = connection($node, user => 'backup');
	my $id = start_backup($conn, LEASE => 300)->{backup_id};
	my $other = connection($node, user => 'other');
	is_error($other, "START_BACKUP (BACKUP_ID '$id')", '42501', qr/^permission denied for parallel backup "$id"$/, 'another role');
	is_error($other, send_files_sql([$relpath], BACKUP_ID => $id), '42501', qr/^permission denied for parallel backup "$id"$/,
		'which may not fetch either');
	still_works($conn, 'it is attached as it was');
	is(scalar @{ fetch($conn, [$relpath])->{files} }, 1, 'and fetches');

	# A superuser may, and the backup stays the role's.
	my $super = connection($node);
	attach_ok($super, $id);
	is(row($node, 'pid, usename', $id), $super->pid . '|backup', 'a superuser attaches');
	is(scalar @{ fetch($super, [$relpath])->{files} }, 1, 'and fetches');
	my $worker = connection($node, user => 'backup');
	is(scalar @{ fetch($worker, [$relpath], BACKUP_ID => $id)->{files} }, 1, 'so does the role');
	is_error($other, "START_BACKUP (BACKUP_ID '$id')", '42501', qr/^permission denied/, 'the other role still may not');
	is_error($conn, 'SEND_FILE_LIST', '57014', $taken->($id), 'the role has lost it');
	my ($code, undef, $stderr) = $node->psql('postgres', "SELECT parallel_backup.cancel_backup('$id')", extra_params => [ '-U', 'other' ]);
	like($stderr, qr/permission denied to cancel parallel backup/, 'the other role may not cancel it');
	is($node->safe_psql('postgres', "SELECT parallel_backup.cancel_backup('$id')", extra_params => [ '-U', 'backup' ]), 't',
		'the role may');
	wait_until($node, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper'), 'the keeper is terminated');
	is_error($super, 'SEND_FILE_LIST', '57014', qr/^parallel backup "$id" was aborted$/, 'the superuser is told');
	nothing_left($node, 'cancelled');
	$_->close for ($conn, $other, $super, $worker);
}

# How long it is.
{
	my $conn = connection($node);
	my $id = start_backup($conn, LEASE => 999999)->{backup_id};
	is(row($node, 'lease', $id), 3600, 'no longer than max_lease');
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	sql($node, q(ALTER SYSTEM SET pg_parallel_backup.max_lease = '2min'));
	$node->reload;
	wait_until($node, q(SELECT current_setting('pg_parallel_backup.max_lease') = '2min'), 'a shorter max_lease');
	$conn->close;
	$conn = connection($node);
	is(start_backup($conn, LEASE => 121)->{lease}, 120, 'is what is granted');
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	sql($node, 'ALTER SYSTEM SET pg_parallel_backup.max_lease = 0');
	$node->reload;
	wait_until($node, q(SELECT current_setting('pg_parallel_backup.max_lease') = '0'), 'no leases');
	$conn->close;
	$conn = connection($node);
	my $start = start_backup($conn, LEASE => 10);
	is($start->{lease}, 0, 'nothing is granted');
	is(row($node, 'lease, lease_left, keeper, attached', $start->{backup_id}), '|||t', 'and the session holds the backup itself');
	my $second = connection($node);
	is_error($second, "START_BACKUP (BACKUP_ID '$start->{backup_id}')", '55000', qr/^parallel backup "$start->{backup_id}" has no lease$/,
		'nobody attaches to it', hint => qr/^It was started without LEASE/);
	is_error($conn, "START_BACKUP (BACKUP_ID '$start->{backup_id}')", '55000', qr/^a backup is already in progress in this session$/,
		'not even itself');
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	nothing_left($node, 'RELEASE of a backup that runs in the session');
	is_error($conn, send_files_sql([$relpath], BACKUP_ID => $start->{backup_id}), '42704', qr/does not exist$/, 'it is gone');
	sql($node, 'ALTER SYSTEM RESET pg_parallel_backup.max_lease');
	$node->reload;
	wait_until($node, q(SELECT current_setting('pg_parallel_backup.max_lease') = '1h'), 'leases again');
	$_->close for ($conn, $second);

	$conn = connection($node);
	my $plain = start_backup($conn, LEASE => 0);
	is($plain->{lease}, 0, 'LEASE 0');
	is(row($node, 'keeper', $plain->{backup_id}), '', 'has no keeper');
	stop_backup($conn);
	$plain = start_backup($conn);
	ok(!exists $plain->{lease}, 'without LEASE no column');
	stop_backup($conn);
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	is_error($conn, 'STOP_BACKUP', '55000', qr/^no parallel backup is running in this session$/, 'RELEASE without a lease');
	$conn->close;
	nothing_left($node, 'without leases');
}

# What is refused.
{
	my $conn = connection($node);
	my $no_id = '0123456789abcdef' x 2;
	my @wrong = (
		[ q(START_BACKUP (LEASE '-1')), '22023', qr/^-1 is outside the valid range for parameter "lease"$/ ],
		[ q(START_BACKUP (LEASE '2147483648')), '22023|22003', qr/^2147483648 is outside the valid range for parameter "lease"$|out of range/ ],
		[ q(START_BACKUP (BACKUP_ID 'x')), '42704', qr/^backup "x" does not exist$/ ],
		[ "START_BACKUP (BACKUP_ID '$no_id', PROGRESS)", '42601', qr/^option "progress" cannot be used with BACKUP_ID$/ ],
		[ "START_BACKUP (BACKUP_ID '$no_id', LEASE 5)", '42601', qr/^option "lease" cannot be used with BACKUP_ID$/ ],
		[ 'STOP_BACKUP (RELEASE, WAIT false)', '42601', qr/^option "wait" cannot be used with RELEASE$/ ],
		[ 'STOP_BACKUP (RELEASE)', '55000', qr/^no parallel backup is running in this session$/ ],
		[ "STOP_BACKUP (RELEASE, BACKUP_ID '$no_id')", '42704', qr/^parallel backup "$no_id" does not exist$/ ]);
	for my $case (@wrong)
	{
		my ($sql, $codes, $message) = @$case;
		my $error = $conn->query($sql)->{error};
		like($error->{sqlstate}, qr/^(?:$codes)\z/, "$sql: SQLSTATE");
		like($error->{message}, $message, "$sql: message");
	}
	is_gone($conn, $no_id, 'a backup that never was');
	my $label = 'x' x 1025;
	is_error($conn, "START_BACKUP (LEASE 10, LABEL '$label')", '22023', qr/^backup label too long \(max 1024 bytes\)$/, 'a label that is too long');
	my $start = start_backup($conn, LEASE => 10, LABEL => 'y' x 1024);
	like($start->{labelfile}, qr/^LABEL: y{1024}$/m, 'one that is not');
	is_error($conn, "START_BACKUP (BACKUP_ID '$no_id')", '55000', qr/^a backup is already in progress in this session$/, 'attach while another backup runs');
	query_ok($conn, 'STOP_BACKUP (RELEASE)');
	nothing_left($node, 'refused');

	# In the coordinator's session, by PostgreSQL's own functions.
	my $db = connection($node, replication => 'database');
	start_backup($db, LEASE => 10);
	is_error($db, q(SELECT pg_backup_start('x')), '55000', qr/^a parallel backup is in progress in this session$/, 'pg_backup_start');
	query_ok($db, 'STOP_BACKUP (RELEASE)');
	query_ok($db, q(SELECT pg_backup_start('x', true)));
	is_error($db, 'START_BACKUP (LEASE 10)', '55000', qr/^a backup is already in progress in this session$/, 'after pg_backup_start');
	query_ok($db, 'SELECT 1 FROM pg_backup_stop(false)');
	$_->close for ($conn, $db);
	nothing_left($node, 'beside pg_backup_start');
}

# As many as there may be, whoever is attached.
{
	my @conns = map { connection($node) } 1 .. 4;
	my @ids = map { start_backup($_, LEASE => 300)->{backup_id} } @conns[ 0 .. 2 ];
	$_->drop for @conns[ 0, 1 ];
	wait_until($node, 'SELECT count(*) = 2 FROM parallel_backup.backups WHERE NOT attached', 'two of three are detached');
	is(sql($node, q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper')), 3, 'a keeper for each');
	is_error($conns[3], 'START_BACKUP (LEASE 10)', '53400', qr/^too many parallel backups$/, 'a fourth');
	is_error($conns[3], 'START_BACKUP', '53400', qr/^too many parallel backups$/, 'nor one without a lease');
	for my $id (@ids)
	{
		attach_ok($conns[3], $id);
		query_ok($conns[3], 'STOP_BACKUP (RELEASE)');
	}
	is_error($conns[2], 'SEND_FILE_LIST', '57014', qr/^parallel backup "$ids[2]" was (?:aborted|taken over by another session)$/, 'whose backup was taken and released');
	$_->close for @conns[ 2, 3 ];
	nothing_left($node, 'all places');
}

# From the beginning to the end, with a coordinator that is lost after each step.
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	my $state;
	my $lost = sub {
		($state) = @_;
		my $id = $state->{start}{backup_id};
		$state->{coordinator}->drop;
		$state->{coordinator} = connection($node);
		attach_ok($state->{coordinator}, $id);
	};
	my $first = connection($node);
	raw_backup($node, $copy->data_dir, coordinator => $first, start => { LEASE => 300 }, after_start => $lost, after_list => $lost, before_stop => $lost);
	query_ok($state->{coordinator}, 'STOP_BACKUP (RELEASE)');
	$state->{coordinator}->close;
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'pg_verifybackup');
	start_copy($copy, conf => "archive_mode = off\n");
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, 'data of the copy');
	$copy->stop;
	nothing_left($node, 'a whole backup');
}

done_testing();
