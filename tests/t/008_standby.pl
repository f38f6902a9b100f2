# A standby as the source.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir;
my $primary = parallel_node('primary');
$primary->safe_psql('postgres', 'CREATE TABLE t AS SELECT generate_series(1, 1000) AS id');
$primary->backup('base');

sub make_standby
{
	my ($name) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->start;
	$primary->wait_for_replay_catchup($standby);
	return $standby;
}

# A checkpoint of the primary, replayed: the standby's next restartpoint.
sub checkpoint
{
	my ($standby) = @_;
	$primary->safe_psql('postgres', 'CHECKPOINT');
	$primary->wait_for_replay_catchup($standby);
	return;
}

my $standby = make_standby('standby');
checkpoint($standby);

# What the commands say of a standby.
{
	my $conn = connection($standby);
	my $start = start_backup($conn);

	is($start->{in_recovery}, 1, 'in_recovery');
	like($start->{labelfile}, qr/^BACKUP FROM: standby$/m, 'backup_label');
	my %listed = map { $_->{path} => 1 } list_files($conn);
	ok($listed{'standby.signal'}, 'standby.signal is listed, as in BASE_BACKUP');
	my $stop = stop_backup($conn);
	ok(!$stop->{reply}{error}, 'STOP_BACKUP');
	is_deeply($stop->{ranges}, [ [ 1, $start->{recptr}, $stop->{recptr} ] ], 'WAL ranges');
	$conn->close;
}

# A backup while the primary writes; the copy is started on its own.
sub is_backup_of
{
	my ($copy, $rows, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_ok([ 'pg_verifybackup', $copy->data_dir ], "$name: pg_verifybackup");
	unlink $copy->data_dir . '/standby.signal' or die $!;
	# The primary's address is of no use to the copy.
	start_copy($copy, conf => "primary_conninfo = ''\n");
	is($copy->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 'f', "$name: started");
	cmp_ok($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), '>=', $rows, "$name: data");
	is($copy->safe_psql('postgres', 'SELECT count(*) - max(id) FROM t'), 0, "$name: no row is missing");
	$copy->stop;
	return;
}

{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	my $next = 1000;
	my $write = sub {
		$primary->safe_psql('postgres',
			'INSERT INTO t SELECT generate_series(' . ($next + 1) . ', ' . ($next + 1000) . ')');
		$next += 1000;
		checkpoint($standby);
	};
	raw_backup($standby, $copy->data_dir,
		after_start => $write,
		after_list => $write,
		before_stop => $write);
	is_backup_of($copy, 1000, 'raw');

	# Without WAL of its own: the end is pg_control's minimum recovery point, so
	# the copy must have what was replayed when STOP_BACKUP came.
	my $client = PostgreSQL::Test::Cluster->new('client_copy');
	$standby->command_ok(
		[
			'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--jobs' => 3,
			'--dbname' => $standby->connstr('postgres'), '--pgdata' => $client->data_dir,
			'--wal-method' => 'fetch'
		],
		'client, -X fetch');
	is_backup_of($client, $next, 'client');
}

# The copy as a standby of the same primary.
{
	my $copy = PostgreSQL::Test::Cluster->new('cascade');
	raw_backup($standby, $copy->data_dir);
	$primary->safe_psql('postgres', 'INSERT INTO t SELECT max(id) + 1 FROM t');
	start_copy($copy);
	my $rows = $primary->safe_psql('postgres', 'SELECT count(*) FROM t');
	ok($copy->poll_query_until('postgres', "SELECT count(*) = $rows FROM t"), 'a second standby');
	$copy->stop;
}

# full_page_writes turned off meanwhile.
{
	my $conn = connection($standby);
	start_backup($conn);
	$primary->safe_psql('postgres', 'ALTER SYSTEM SET full_page_writes = off');
	$primary->reload;
	ok($primary->poll_query_until('postgres', q(SELECT setting = 'off' FROM pg_settings WHERE name = 'full_page_writes')), 'off');
	checkpoint($standby);
	is_error($conn, 'STOP_BACKUP', '55000',
		qr/^WAL generated with "?full_page_writes=off"? was replayed during online backup$/,
		'full_page_writes turned off', hint => qr/corrupt/);
	still_works($conn, 'usable after it');
	is_error($conn, "START_BACKUP (CHECKPOINT 'fast')", '55000',
		qr/^WAL generated with "?full_page_writes=off"? was replayed since last restartpoint$/,
		'START_BACKUP with full_page_writes off');
	still_works($conn, 'usable after that');
	$primary->safe_psql('postgres', 'ALTER SYSTEM RESET full_page_writes');
	$primary->reload;
	checkpoint($standby);
	$primary->safe_psql('postgres', 'SELECT pg_switch_wal()');
	checkpoint($standby);
	start_backup($conn);
	ok(!stop_backup($conn)->{reply}{error}, 'good again');
	$conn->close;
}

# Promoted meanwhile.
{
	my $worker = connection($standby);
	my $conn = connection($standby);
	my $start = start_backup($conn);
	my @id = (BACKUP_ID => $start->{backup_id});
	is(fetch($worker, ['PG_VERSION'], @id)->{files}[0]{data}, server_major() . "\n", 'before promotion');
	$standby->promote;
	ok($standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'promoted');
	for my $case ([ $worker, "SEND_FILE_LIST (BACKUP_ID '$id[1]')" ],
		[ $worker, send_files_sql(['PG_VERSION'], @id) ],
		[ $conn, 'STOP_BACKUP' ])
	{
		is_error($case->[0], $case->[1], '55000',
			qr/^the standby was promoted during online backup$/,
			substr($case->[1], 0, 20) . ' after promotion',
			hint => qr/^This means that the backup being taken is corrupt and should not be used\. Try taking another online backup\.$/);
	}
	still_works($_, 'usable after it') for ($conn, $worker);
	$worker->close;
	$conn->close;

	# The new primary is backed up with two timelines behind it.
	my $copy = PostgreSQL::Test::Cluster->new('new_timeline');
	my $state = raw_backup($standby, $copy->data_dir);
	is($state->{start}{tli}, 2, 'the new timeline');
	is($state->{start}{in_recovery}, 0, 'no longer in recovery');
	ok(scalar(grep { $_ eq '00000002.history' } @{ $state->{stop}{wal} }), 'its history file is sent');
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'new timeline: pg_verifybackup');
	start_copy($copy);
	cmp_ok($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), '>', 1000, 'new timeline: data');
	$copy->stop;
}

# A timeline switch during the backup: a standby of a standby that is promoted.
{
	my $upstream = make_standby('upstream');
	my $downstream = PostgreSQL::Test::Cluster->new('downstream');
	$upstream->backup('base');
	$downstream->init_from_backup($upstream, 'base', has_streaming => 1);
	$downstream->start;
	checkpoint($upstream);
	$primary->safe_psql('postgres', 'SELECT pg_switch_wal()');
	$primary->wait_for_replay_catchup($upstream);
	$upstream->wait_for_replay_catchup($downstream, $primary);

	my $copy = PostgreSQL::Test::Cluster->new('two_timelines');
	my $state = raw_backup($downstream, $copy->data_dir,
		before_stop => sub {
			$upstream->promote;
			$upstream->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
			$upstream->safe_psql('postgres', 'CREATE TABLE after AS SELECT 1 AS id; CHECKPOINT;');
			$downstream->poll_query_until('postgres',
				q(SELECT count(*) = 1 FROM pg_class WHERE relname = 'after'))
			  or die 'the downstream standby does not follow';
			$downstream->safe_psql('postgres', 'CHECKPOINT');
		});
	is($state->{start}{tli}, 1, 'timeline at the start');
	is($state->{stop}{tli}, 2, 'timeline at the end');
	is_deeply([ sort map { $_->[0] } @{ $state->{stop}{ranges} } ], [ 1, 2 ],
		'two WAL ranges');
	my %range = map { $_->[0] => $_ } @{ $state->{stop}{ranges} };
	is($range{1}[1], $state->{start}{recptr}, 'the first begins at the start');
	is($range{2}[1], $range{1}[2], 'the second where the first ends');
	is($range{2}[2], $state->{stop}{recptr}, 'and ends at the end');
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'two timelines: pg_verifybackup');
	unlink $copy->data_dir . '/standby.signal' or die $!;
	start_copy($copy, conf => "primary_conninfo = ''\n");
	is($copy->safe_psql('postgres', 'SELECT id FROM after'), 1, 'two timelines: data');
	$copy->stop;
}

done_testing();
