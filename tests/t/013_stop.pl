# STOP_BACKUP: the wait for the archive, sent again, and WAL after it.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $archive = "$tempdir/archive";
mkdir $archive or die $!;
my $node = parallel_node('main', extension => 1, conf => qq(
archive_mode = on
wal_keep_size = 0
archive_command = 'test ! -e "$tempdir/stuck" && cp "%p" "$archive/%f"'
));
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 1000) AS id;
	CREATE ROLE other LOGIN REPLICATION;));
may_back_up($node, 'other');
my $relpath = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t')");
my $no_id = '0123456789abcdef' x 2;

sub state_of
{
	my ($id) = @_;
	return $node->safe_psql('postgres',
		"SELECT state FROM parallel_backup.backups WHERE backup_id = '$id'");
}

sub results_of
{
	my ($reply) = @_;
	return [ map { [ $_->{columns}, $_->{rows} ] } @{ $reply->{results} } ];
}

# The wait is cancelled, and the command sent again.
{
	my $conn = connection($node);
	my $worker = connection($node);
	my $start = start_backup($conn);
	my @id = (BACKUP_ID => $start->{backup_id});
	fetch($worker, [ 'PG_VERSION', $relpath ], @id);

	write_file("$tempdir/stuck", '');
	for my $round (1, 2)
	{
		$conn->send_query('STOP_BACKUP');
		ok($node->poll_query_until('postgres',
				'SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = ' . $conn->pid
				. q( AND wait_event = 'BackupWaitWalArchive')),
			"round $round: waits for the archive");
		is($node->safe_psql('postgres', 'SELECT phase FROM pg_stat_progress_basebackup WHERE pid = ' . $conn->pid),
			'waiting for wal archiving to finish', "round $round: progress");
		$conn->cancel;
		my $reply = $conn->finish;
		is_report($reply->{error}, '57014', qr/^canceling statement due to user request$/,
			"round $round: cancelled");
		is(scalar @{ $reply->{results} }, 0, "round $round: no results yet");
		is(state_of($start->{backup_id}), 'stopped', "round $round: the backup is stopped");
		is_error($worker, send_files_sql(['PG_VERSION'], @id), '42704', qr/has been stopped$/,
			"round $round: no more files");
		is_error($conn, "START_BACKUP (CHECKPOINT 'slow')", '42601', qr/^unrecognized checkpoint type: "slow"$/,
			"round $round: a command that is wrong changes nothing");
	}
	$node->safe_psql('postgres', 'INSERT INTO t VALUES (0); SELECT pg_switch_wal();');

	# Without the wait: the same end, whatever was written since.
	my $first = stop_backup($conn, WAIT => 'false');
	ok(!$first->{reply}{error}, 'STOP_BACKUP again, without waiting');
	is($first->{totals}{files}, 2, 'totals are kept');

	unlink "$tempdir/stuck";
	my $again = stop_backup($conn);
	ok(!$again->{reply}{error}, 'STOP_BACKUP again, waiting');
	is_deeply(results_of($again->{reply}), results_of($first->{reply}), 'the same results');
	is(scalar(grep { $_->{message} =~ /all required WAL segments have been archived/ } @{ $again->{reply}{notices} }),
		1, 'a notice that all is archived');
	is_deeply([ grep { /^[0-9A-F]{24}\z/ && !-f "$archive/$_" } @{ $again->{wal} } ], [],
		'and all of it is');
	my $labelled = stop_backup($conn, @id, LABEL => $start->{labelfile});
	is_deeply(results_of($labelled->{reply}), results_of($first->{reply}), 'and again, with LABEL');
	is_error($conn, "STOP_BACKUP (LABEL 'other')", '22023',
		qr/^the given backup_label is not that of the running backup$/, 'and with another one');

	# The history file of the backup is in the archive.
	ok(scalar(grep { /\.backup\z/ } slurp_dir($archive)), 'backup history file');
	$_->close for ($conn, $worker);
}

# WAL after it: by the same identifier, on any connection, members only.
{
	# That can do BASE_BACKUP as well, whatever the server.
	my $conn = connection($node, replication => 'database');
	my $worker = connection($node);
	my $start = start_backup($conn);
	my @id = (BACKUP_ID => $start->{backup_id});
	$node->safe_psql('postgres', 'SELECT pg_switch_wal(); INSERT INTO t VALUES (0); SELECT pg_switch_wal();');
	my $stop = stop_backup($conn);
	my @wal = map { "pg_wal/$_" } @{ $stop->{wal} };
	cmp_ok(scalar @wal, '>=', 3, 'several segments');
	is_deeply([@wal], [ sort @wal ], 'oldest first');
	is(state_of($start->{backup_id}), 'stopped', 'stopped');

	for my $who ($worker, $conn)
	{
		my $transfer = fetch($who, \@wal, @id, FILE_CHECKSUM => 'SHA256');
		is_deeply([ map { $_->{path} } @{ $transfer->{files} } ], \@wal, 'WAL is served');
		is(scalar(grep { $_->{length} != 1024 * 1024 } @{ $transfer->{files} }), 0, 'whole segments');
		is(unpack('S<', $transfer->{files}[0]{data}) & 0xFF00, 0xD100,
			'which begin with the magic of a page of WAL');
	}
	is(scalar @{ fetch($conn, [ $wal[0] ])->{files} }, 1, 'the coordinator needs no BACKUP_ID');

	my $later = 'pg_wal/' . $node->safe_psql('postgres',
		"SELECT pg_walfile_name('$stop->{recptr}'::pg_lsn + 3 * 1024 * 1024)");
	for my $path ('PG_VERSION', $relpath, 'global/pg_control', 'pg_wal', $later,
		'pg_wal/000000010000000000000000', 'pg_wal/x', 'pg_wal/archive_status/x', 'backup_label')
	{
		is_error($worker, send_files_sql([$path], @id), '42704', qr/has been stopped$/, "stopped: $path");
	}
	# A wrong name in a batch does not cost what comes before.
	my $reply = $worker->query(send_files_sql([ $wal[0], 'PG_VERSION' ], @id));
	is_report($reply->{error}, '42704', qr/has been stopped$/, 'WAL, then another file');
	ok(ParallelBackup::Transfer->of($reply->{frames})->complete, 'whole frames');

	is_error($worker, "SEND_FILE_LIST (BACKUP_ID '$id[1]')", '42704',
		qr/has been stopped$/, 'no list any more');
	is_error($worker, send_files_sql([ [ $wal[0], 0, 8192 ] ], @id), '22023',
		qr/it is not a relation file/, 'no ranges of WAL');
	my $other = connection($node, user => 'other');
	is_error($other, send_files_sql([ $wal[0] ], @id), '42501',
		qr/^permission denied for parallel backup/, 'nor for another role');
	$other->close;

	# A segment that is gone.
	unlink "$pgdata/$wal[0]" or die $!;
	my ($name) = $wal[0] =~ m{/(.+)};
	for my $who ($worker, $conn)
	{
		is_error($who, send_files_sql([ $wal[0] ], @id), '58P01',
			qr/^requested WAL segment \Q$name\E has already been removed$/, 'a segment that is gone');
	}
	is(scalar @{ fetch($worker, [ $wal[1] ], @id)->{files} }, 1, 'the others are served');

	# One that a checkpoint removes (it is archived, STOP_BACKUP has waited for
	# that): the server knows that it is gone though a file of that name may be there.
	$node->safe_psql('postgres', 'SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT;');
	ok(!-e "$pgdata/$wal[1]", 'removed or recycled by a checkpoint');
	($name) = $wal[1] =~ m{/(.+)};
	is_error($worker, send_files_sql([ $wal[1] ], @id), '58P01',
		qr/^requested WAL segment \Q$name\E has already been removed$/, 'a segment that was removed');
	link("$pgdata/PG_VERSION", "$pgdata/$wal[1]") or die $!;
	is_error($worker, send_files_sql([ $wal[1] ], @id), '58P01',
		qr/^requested WAL segment \Q$name\E has already been removed$/,
		'a file of the name of a removed segment');
	unlink "$pgdata/$wal[1]";

	# Until the coordinator starts another backup, or leaves.
	my $next = start_backup($conn);
	is_error($worker, send_files_sql([ $wal[2] ], @id), '42704',
		qr/^parallel backup "$id[1]" does not exist$/, 'another backup was started');
	$stop = stop_backup($conn);
	is(scalar @{ fetch($worker, ["pg_wal/$stop->{wal}[0]"], BACKUP_ID => $next->{backup_id})->{files} }, 1,
		'whose WAL is served');

	# BASE_BACKUP is free again on this session, and changes nothing of that.
	query_ok($conn, "BASE_BACKUP (CHECKPOINT 'fast', MANIFEST 'no', WAIT false)", on_frame => sub { });
	is(state_of($next->{backup_id}), 'stopped', 'BASE_BACKUP after STOP_BACKUP');
	is_deeply(results_of(stop_backup($conn)->{reply}), results_of($stop->{reply}), 'and STOP_BACKUP after that');
	$conn->close;
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), 'left');
	is_error($worker, send_files_sql(["pg_wal/$stop->{wal}[0]"], BACKUP_ID => $next->{backup_id}), '42704',
		qr/^parallel backup "$next->{backup_id}" does not exist$/, 'the coordinator has left');
	$worker->close;
}

# A transfer of WAL that is under way when the coordinator moves on ends.
{
	# The next backup's checkpoint shall not remove it.
	$node->append_conf('postgresql.conf', q(wal_keep_size = '64MB'));
	$node->reload;
	my $conn = connection($node);
	my $worker = connection($node);
	my $start = start_backup($conn);
	my $stop = stop_backup($conn);
	$worker->send_query(send_files_sql([ ("pg_wal/$stop->{wal}[0]") x 8 ], BACKUP_ID => $start->{backup_id}));
	$worker->read_until(sub { $_[0]{type} eq 'd' });
	my $next = start_backup($conn);
	is_report($worker->finish->{error}, '57014',
		qr/^parallel backup "$start->{backup_id}" was aborted$/, 'WAL under way, another backup');
	is(fetch($worker, ['PG_VERSION'], BACKUP_ID => $next->{backup_id})->{files}[0]{data},
		server_major() . "\n", 'which the same worker fetches from');
	ok(!stop_backup($conn)->{reply}{error}, 'and which ends well');
	$_->close for ($conn, $worker);
	$node->append_conf('postgresql.conf', 'wal_keep_size = 0');
	$node->reload;
}

# Totals over all connections: each e frame, ranges and files that come twice.
{
	my $conn = connection($node);
	my @workers = map { connection($node) } 1 .. 3;
	my $start = start_backup($conn);
	my @id = (BACKUP_ID => $start->{backup_id});
	my ($files, $bytes) = (0, 0);
	for my $who ($conn, @workers)
	{
		for my $set ([ 'PG_VERSION', $relpath ], [ [ $relpath, 0, 8192 ], [ $relpath, 8192, 8192 ] ],
			['base/1/never_was'])
		{
			my $transfer = fetch($who, $set, @id);
			$files += @{ $transfer->{files} };
			$bytes += $_->{length} for @{ $transfer->{files} };
		}
	}
	is($node->safe_psql('postgres', "SELECT files, bytes FROM parallel_backup.backups WHERE backup_id = '$id[1]'"),
		"$files|$bytes", 'totals in the view');
	# A worker that has left has still counted.
	$_->close for @workers;
	my $stop = stop_backup($conn);
	is("$stop->{totals}{files} $stop->{totals}{bytes}", "$files $bytes", 'totals of STOP_BACKUP');
	is($stop->{totals}{labelfile}, $start->{labelfile}, 'labelfile is that of the start');
	# Files of WAL do not change them afterwards.
	fetch($conn, ["pg_wal/$stop->{wal}[0]"]);
	is_deeply(stop_backup($conn)->{totals}, $stop->{totals}, 'WAL is not counted');
	$conn->close;
}

# pg_wal may be a link.
{
	$node->stop;
	rename("$pgdata/pg_wal", "$tempdir/wal") or die $!;
	symlink("$tempdir/wal", "$pgdata/pg_wal") or die $!;
	$node->start;
	my $conn = connection($node);
	start_backup($conn);
	my %listed = map { $_->{path} => $_ } list_files($conn);
	is($listed{pg_wal}{type}, 'd', 'pg_wal, a link: listed as a directory');
	is($listed{pg_wal}{mode}, (stat($pgdata))[2] & 07777, 'with the mode of one');
	is(join(' ', sort grep { m{^pg_wal/} } keys %listed), join(' ', map { "pg_wal/$_" } wal_directories()),
		'with what belongs in it');
	my $stop = stop_backup($conn);
	is(scalar @{ fetch($conn, [ map { "pg_wal/$_" } @{ $stop->{wal} } ])->{files} },
		scalar @{ $stop->{wal} }, 'pg_wal, a link: WAL is served');
	$conn->close;

	my $copy = PostgreSQL::Test::Cluster->new('copy');
	raw_backup($node, $copy->data_dir);
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'pg_verifybackup');
	start_copy($copy, conf => "archive_mode = off\n");
	cmp_ok($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), '>=', 1000, 'data of the copy');
	$copy->stop;
}

done_testing();
