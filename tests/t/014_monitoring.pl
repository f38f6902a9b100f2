# What a running backup shows of itself, and who may cancel it.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use List::Util qw(sum);
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant LARGE => 64 * 1024 * 1024;

my $node = parallel_node('main', extension => 1);
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 1000) AS id;
	CREATE ROLE nobody LOGIN;
	CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
	CREATE ROLE signaller LOGIN IN ROLE pg_signal_backend, pg_monitor;
	CREATE ROLE backup LOGIN REPLICATION;
	CREATE ROLE other LOGIN REPLICATION;));
may_back_up($node, qw(backup other));
make_file("$pgdata/large", LARGE);

sub sql_as
{
	my ($user, $sql) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', $sql,
		extra_params => [ '--username' => $user, '--set' => 'VERBOSITY=verbose' ]);
	return $ret == 0 ? $stdout : $stderr;
}

sub row
{
	my ($columns, $id) = @_;
	return $node->safe_psql('postgres',
		"SELECT $columns FROM parallel_backup.backups WHERE backup_id = '$id'");
}

is($node->safe_psql('postgres', 'SELECT count(*) FROM parallel_backup.backups'), 0, 'no backup, no row');
is($node->safe_psql('postgres',
		q(SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
		  FROM pg_attribute WHERE attrelid = 'parallel_backup.backups'::regclass)),
	'backup_id text, pid integer, usename name, label text, start_lsn pg_lsn, start_tli bigint, '
	. 'state text, started timestamp with time zone, workers integer, files bigint, bytes bigint, '
	. 'total bigint, checksum_failures bigint, max_rate integer, lease integer, attached boolean, lease_left integer, keeper integer',
	'columns of the view');

# While a backup runs.
{
	my $offset = -s $node->logfile;
	my $coordinator = connection($node, user => 'backup');
	my $start = start_backup($coordinator, LABEL => 'watched', PROGRESS => 'true', MAX_RATE => 1048576);
	my $id = $start->{backup_id};
	my @id = (BACKUP_ID => $id);

	is(row(q(pid, usename, label, start_lsn, start_tli, state, workers, files, bytes, checksum_failures, max_rate), $id),
		$coordinator->pid . "|backup|watched|$start->{recptr}|1|running|0|0|0|0|1048576", 'its row');
	is(row(q(started BETWEEN now() - interval '1 hour' AND now()), $id), 't', 'since when');
	my $total = row('total', $id);
	cmp_ok($total, '>', LARGE, 'the total is known with PROGRESS');

	# A transfer that waits for its client, on two connections.
	my @conns = (connection($node, user => 'backup'), $coordinator);
	for my $conn (@conns)
	{
		$conn->send_query(send_files_sql([ 'PG_VERSION', 'large' ], @id));
		$conn->read_until(sub { $_[0]{type} eq 'd' && length($_[0]{frame}{data} // '') > 3 });
	}
	is(row('workers', $id), 2, 'workers: connections that transfer');
	is(row('files', $id), 2, 'files that ended');
	my $pids = join(', ', map { $_->pid } @conns);
	ok($node->poll_query_until('postgres', qq(
		SELECT count(*) = 2 AND bool_and(phase = 'streaming database files') AND bool_and(backup_streamed > 0)
		FROM pg_stat_progress_basebackup WHERE pid IN ($pids))), 'pg_stat_progress_basebackup: both connections');
	is($node->safe_psql('postgres', "SELECT tablespaces_total FROM pg_stat_progress_basebackup WHERE pid = " . $coordinator->pid),
		1, 'pg_stat_progress_basebackup: tablespaces');
	cmp_ok($node->safe_psql('postgres', "SELECT backup_total FROM pg_stat_progress_basebackup WHERE pid = " . $coordinator->pid),
		'>', LARGE, 'pg_stat_progress_basebackup: total');
	# Which has walsenders alone.
	is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT state, ' ') FROM pg_stat_replication WHERE pid IN ($pids)"),
		stock_server() ? '' : 'backup', 'pg_stat_replication: state');
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid IN ($pids) AND " . sending()),
		2, 'pg_stat_activity: the command');

	ok(!$_->finish->{error}, 'the transfer ends') for @conns;
	is(row('workers, files, bytes', $id), '0|4|' . 2 * (LARGE + 3), 'after the transfers');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_progress_basebackup WHERE pid = ' . $conns[0]->pid),
		0, 'a worker that is done reports no progress');

	# Who sees it.
	is(sql_as('monitor', 'SELECT label FROM parallel_backup.backups'), 'watched', 'pg_monitor sees it');
	like(sql_as('nobody', 'SELECT label FROM parallel_backup.backups'), qr/ERROR:  42501: (?:permission denied|must be a (?:superuser|member))/,
		'others do not');

	my $stop = stop_backup($coordinator);
	is(row('state, workers', $id), 'stopped|0', 'stopped');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_progress_basebackup'), 0, 'no progress after it');
	$_->close for @conns;
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), 'gone with its owner');

	# The log, by log_replication_commands.
	my @logged =
	  stock_server()
	  ? map { qr/received parallel backup command: $_$/m } ('START_BACKUP', "SEND_FILES_CONTENT, backup $id, 2 files", 'STOP_BACKUP')
	  : map { qr/received replication command: $_/ } ('START_BACKUP ', q{SEND_FILES_CONTENT \('PG_VERSION', 'large'\)}, 'STOP_BACKUP');
	ok($node->log_contains($_, $offset), "logged: $_") for @logged;
}

# Without PROGRESS and MAX_RATE.
{
	my $conn = connection($node);
	my $start = start_backup($conn);
	my $id = $start->{backup_id};
	is(row('total IS NULL, max_rate IS NULL, label', $id), 't|t|base backup', 'unknown is null');
	# The list says what it comes to, whoever asks for it.
	my $worker = connection($node);
	my $bytes = sum(map { $_->{size} } list_files($worker, BACKUP_ID => $id));
	is(row('total', $id), $bytes, 'the total is known after a list');
	list_files($conn);
	my $own = 'SELECT backup_total FROM pg_stat_progress_basebackup WHERE pid = ' . $conn->pid;
	cmp_ok($node->safe_psql('postgres', $own), '>=', $bytes, "and in the coordinator's progress after its own");
	$worker->close;
	stop_backup($conn);
	$conn->close;
}

# What is refused in the coordinator's session does not take its row in pg_stat_progress_basebackup, by
# neither way in, although an aborted transaction does so.
for my $conn (connection($node), sql_connection($node))
{
	my $by = $conn->calls ? 'by SQL' : 'by the grammar';
	my $start = start_backup($conn, PROGRESS => 'true');
	my $own = 'SELECT phase, backup_total > 0, tablespaces_total FROM pg_stat_progress_basebackup WHERE pid = ' . $conn->pid;
	my $row = 'streaming database files|t|1';
	is($node->safe_psql('postgres', $own), $row, "$by: progress");
	for my $refused (
		[ 'START_BACKUP', '55000', qr/^a backup is already in progress in this session$/ ],
		[ "START_BACKUP (CHECKPOINT 'x')", '42601', qr/^unrecognized checkpoint type: "x"$/ ],
		[ "SEND_FILES_CONTENT ('..')", '42602', qr/^invalid path/ ],
		[ "STOP_BACKUP (LABEL 'x')", '22023', qr/^the given backup_label is not that/ ],
		$conn->calls ? [ 'SELECT 1/0', '22012', qr/^division by zero$/ ] : ())
	{
		is_error($conn, @$refused, "$by: $refused->[0]");
		is($node->safe_psql('postgres', $own), $row, "$by: still there after $refused->[0]");
	}
	if ($conn->calls)
	{
		query_ok($conn, 'VACUUM pg_am');
		is($node->safe_psql('postgres', $own), $row, "$by: and after another command that has reported progress");
	}
	stop_backup($conn);
	is($node->safe_psql('postgres', $own), '', "$by: gone with the backup");
	$conn->query('SELECT 1/0') if $conn->calls;
	is($node->safe_psql('postgres', $own), '', "$by: and for good");
	$conn->close;
}

# A label of any kind.
{
	my $conn = connection($node);
	my $label = "it's \xc3\xa4 100% \"label\"";
	my $start = start_backup($conn, LABEL => $label);
	is(row('label', $start->{backup_id}), $label, 'an odd label');
	ok(!stop_backup($conn, LABEL => $start->{labelfile})->{reply}{error}, 'and stopped with it');
	$conn->close;
}

# One that is not in the server's encoding: the view is still readable.
{
	my $conn = connection($node, options => { client_encoding => 'SQL_ASCII' });
	my $label = "\xff\xfe label";
	if (stock_server())
	{
		# A statement of SQL has an encoding.
		is_error($conn, 'START_BACKUP (LABEL ' . quote_literal($label) . ')', '22021',
			qr/^invalid byte sequence for encoding "UTF8": 0xff$/, 'a label in no encoding');
	}
	else
	{
		my $start = start_backup($conn, LABEL => $label);
		like(row('label', $start->{backup_id}), qr/label$/, 'a label in no encoding');
		ok(!stop_backup($conn, LABEL => $start->{labelfile})->{reply}{error}, 'and stopped with it');
	}
	$conn->close;
}

# cancel_backup()
{
	my ($coordinator, $worker, $start, @id);
	my $begin = sub {
		my ($user) = @_;
		$coordinator = connection($node, defined $user ? (user => $user) : ());
		$start = start_backup($coordinator);
		@id = (BACKUP_ID => $start->{backup_id});
		$worker = connection($node, defined $user ? (user => $user) : ());
		$worker->send_query(send_files_sql(['large'], @id));
		$worker->read_until(sub { $_[0]{type} eq 'd' });
	};
	my $is_cancelled = sub {
		my ($name) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		# Inside of a frame there is no place for its farewell.
		ok($worker->finish->{eof}, "$name: the worker is terminated, inside of a frame as well");
		# The terminated coordinator was idle: its farewell is all there is to read.
		my $message = $coordinator->read_until(sub { $_[0]{type} eq 'E' });
		is_report($message->{report}, '57P01', qr/terminating connection due to administrator command/,
			"$name: the coordinator");
		$_->drop for ($coordinator, $worker);
		ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), "$name: gone");
	};

	my $unknown = '0123456789abcdef' x 2;
	for my $id ($unknown, 'x', '')
	{
		like(sql_as('signaller', "SELECT parallel_backup.cancel_backup('$id')"),
			qr/ERROR:  42704: .*backup ".*" does not exist/, "unknown backup \"$id\"");
	}
	is(sql_as('signaller', 'SELECT parallel_backup.cancel_backup(NULL) IS NULL'), 't', 'strict');

	# A superuser's: by superusers alone.
	$begin->(undef);
	my $cancel = "SELECT parallel_backup.cancel_backup('$id[1]')";
	for my $user (qw(nobody monitor backup signaller))
	{
		like(sql_as($user, $cancel), qr/ERROR:  42501: (?:permission denied|must be a (?:superuser|member))/, "$user cannot cancel a superuser's backup");
	}
	is(row('state, workers', $id[1]), 'running|1', 'it still runs');
	is($node->safe_psql('postgres', $cancel), 't', 'a superuser can');
	$is_cancelled->('by a superuser');

	# A role's own; pg_signal_backend's members; not another's.
	$begin->('backup');
	$cancel = "SELECT parallel_backup.cancel_backup('$id[1]')";
	for my $user (qw(nobody monitor other))
	{
		like(sql_as($user, $cancel), qr/ERROR:  42501: (?:permission denied|must be a (?:superuser|member))/, "$user cannot cancel another's backup");
	}
	is(sql_as('backup', $cancel), 't', 'its own role can');
	$is_cancelled->('by its own role');
	$begin->('backup');
	is(sql_as('signaller', "SELECT parallel_backup.cancel_backup('$id[1]')"), 't', 'pg_signal_backend can');
	$is_cancelled->('by pg_signal_backend');

	# A superuser's transfer from it is not terminated, but ends at its next step.
	$begin->('backup');
	$worker->drop;
	$worker = connection($node);
	$worker->send_query(send_files_sql(['large'], @id));
	$worker->read_until(sub { $_[0]{type} eq 'd' });
	is(sql_as('backup', "SELECT parallel_backup.cancel_backup('$id[1]')"), 't', 'with a transfer of a superuser');
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM parallel_backup.backups WHERE state = 'aborted' AND pid IS NULL"),
		'its row without coordinator, while a transfer is ending');
	# The coordinator is gone: the rights are still looked at.
	my $gone = "SELECT parallel_backup.cancel_backup('$id[1]')";
	for my $user (qw(nobody monitor other))
	{
		like(sql_as($user, $gone), qr/ERROR:  42501: permission denied to cancel parallel backup "$id[1]"/,
			"$user cannot cancel it without its coordinator");
	}
	is(sql_as('backup', $gone), 't', 'its role can, once more');
	is_report($worker->finish->{error}, '57014', qr/^parallel backup "$id[1]" was aborted$/, "the superuser's transfer");
	is_error($worker, send_files_sql(['PG_VERSION'], @id), '42704',
		qr/^parallel backup "$id[1]" does not exist$/, 'no more files');
	$_->drop for ($coordinator, $worker);

	# Who may not execute pg_terminate_backend has not got another way to it.
	$begin->('backup');
	$node->safe_psql('postgres', 'REVOKE EXECUTE ON FUNCTION pg_terminate_backend(integer, bigint) FROM PUBLIC');
	like(sql_as('backup', "SELECT parallel_backup.cancel_backup('$id[1]')"),
		qr/ERROR:  42501: permission denied for function pg_terminate_backend/, 'pg_terminate_backend is revoked');
	is(row('state, workers', $id[1]), 'running|1', 'it still runs');
	$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION pg_terminate_backend(integer, bigint) TO PUBLIC');
	is(sql_as('backup', "SELECT parallel_backup.cancel_backup('$id[1]')"), 't', 'and granted again');
	$is_cancelled->('after a REVOKE');

	# One that is stopped and only serves WAL.
	$coordinator = connection($node);
	$start = start_backup($coordinator);
	stop_backup($coordinator);
	is($node->safe_psql('postgres', "SELECT parallel_backup.cancel_backup('$start->{backup_id}')"), 't', 'a stopped one');
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), 'is gone as well');
	$coordinator->drop;
}

# Settings.
{
	is($node->safe_psql('postgres',
			q(SELECT setting, context, vartype, short_desc <> '' FROM pg_settings WHERE name = 'pg_parallel_backup.max_backups')),
		'8|postmaster|integer|t', 'pg_parallel_backup.max_backups');
	my ($ret, $stdout, $stderr) = $node->psql('postgres', 'SET pg_parallel_backup.max_backups = 9');
	like($stderr, qr/cannot be changed without restarting the server/, 'needs a restart');
	($ret, $stdout, $stderr) = $node->psql('postgres', 'SET pg_parallel_backup.no_such_setting = 9');
	like($stderr, qr/invalid configuration parameter name/, 'the prefix is reserved');
}

unlink "$pgdata/large";
my $copy = PostgreSQL::Test::Cluster->new('copy');
raw_backup($node, $copy->data_dir);
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, 'data of the copy');
is($copy->safe_psql('postgres', 'SELECT count(*) FROM parallel_backup.backups'), 0, 'no backup of its own');
$copy->stop;

done_testing();
