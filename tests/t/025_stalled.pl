# A client that no longer reads: what it holds up, and how it is got rid of.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Proxy;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $node = parallel_node('main', extension => 1, conf => "listen_addresses = '127.0.0.1'\n");
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 1000) AS id;
	CREATE ROLE backup LOGIN REPLICATION;));
may_back_up($node, 'backup');

# More than any socket's buffer, of each kind: "relation" goes straight from the page cache, "other"
# by way of the outbox.
my $relation = 'base/5/987654';
my $other = 'other';
make_file("$pgdata/$_", 64 * 1024 * 1024) for ($relation, $other);

# Which of these backends are there.
sub alive
{
	my $pids = join(', ', map { $_->pid } @_);
	return $node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid IN ($pids)");
}

# A backup, and for each file a worker that has read some of it and reads no more.
sub stalled
{
	my ($user, @files) = @_;
	my $coordinator = connection($node, defined $user ? (user => $user) : ());
	my $id = start_backup($coordinator, VERIFY_CHECKSUMS => 'false')->{backup_id};
	my @workers;
	for my $file (@files)
	{
		my $worker = connection($node, defined $user ? (user => $user) : ());
		stall($worker, $file, $id);
		push @workers, $worker;
	}
	return ($coordinator, $id, @workers);
}

sub stall
{
	my ($worker, $file, $id) = @_;

	$worker->send_query(send_files_sql([$file], BACKUP_ID => $id));
	$worker->read_until(sub { $_[0]{type} eq 'd' && length($_[0]{frame}{data} // '') });
	wait_until_full($node, $worker);
	return;
}

my $running = qr/^cannot stop the parallel backup while files of it are being sent$/;

# STOP_BACKUP ends the transfers that it names, of its own backup, and no other.
{
	my ($coordinator, $id, @workers) = stalled('backup', $relation, $other, $other);
	my ($strange, $strange_id, $other_backup) = stalled('backup', $relation);
	my $idle = connection($node, user => 'backup');
	my @strangers = ($idle, $other_backup, $strange);

	is_error($coordinator, 'STOP_BACKUP', '55000', $running, 'stalled transfers', hint => qr/^3 transfer\(s\)/);
	my $pids = join(', ', map { $_->pid } @workers[ 0, 1 ], @strangers);
	is_error($coordinator, "STOP_BACKUP (TERMINATE_TRANSFERS '$pids')", '55000', $running,
		'two of three are ended', hint => qr/^1 transfer\(s\)/);
	ok($_->finish->{eof}, 'a named one ends') for @workers[ 0, 1 ];
	is(alive($workers[2], @strangers), 4, 'no other does, and none that is of another backup or of none');

	# The rest of a file that was slow to be read is as good as ever.
	my $transfer = $workers[2]->finish;
	ok(!$transfer->{error} && !$transfer->{eof}, 'who was only slow goes on');
	stall($workers[2], $relation, $id);
	my $stop = stop_backup($coordinator, TERMINATE_TRANSFERS => '' . $workers[2]->pid . ',' . $idle->pid);
	ok(!$stop->{reply}{error}, 'STOP_BACKUP, with the last one ended');
	still_works($idle, 'an idle connection that was named is not touched');
	$_->drop for ($coordinator, $strange, @workers, $other_backup, $idle);
}

# Not those of another role.
{
	my ($coordinator, $id) = stalled('backup');
	my $worker = connection($node);
	stall($worker, $relation, $id);
	is_error($coordinator, "STOP_BACKUP (TERMINATE_TRANSFERS '" . $worker->pid . "')", '55000', $running,
		q(a superuser's transfer));
	is(alive($worker), 1, 'is not ended by another role');
	$_->drop for ($coordinator, $worker);
}

# The client of this project, with a worker whose connection is gone on its side alone, as behind a NAT
# that has forgotten it: it has the server end what it knows to be its own.
{
	my $proxy = ParallelBackup::Proxy->new(server => $node->port, strand => 3);
	my $target = PostgreSQL::Test::Utils::tempdir . '/stranded';
	my @command = ('pg_parallel_basebackup', '-D', $target, '-j', 3, '-c', 'fast', '-X', 'fetch', '--verify=server',
		'-d', 'host=127.0.0.1 dbname=postgres sslmode=disable port=' . $proxy->port);
	my ($stdout, $stderr) = run_command(\@command);
	like($stderr, qr/lost a connection/, 'a worker is lost to the client');
	ok(-e "$target/backup_manifest", 'the backup is complete all the same') or diag($stderr);
	$proxy->stop;
}

# The library with the declaration of 0.2.0, of an extension that was not updated.
{
	$node->safe_psql('postgres', q(CREATE PROCEDURE stop_backup(backup_id text, label text, wait boolean)
		LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_stop_backup_wrapper'));
	my $conn = sql_connection($node);
	my $id = start_backup($conn)->{backup_id};
	is_error($conn, "CALL stop_backup('$id', NULL, false, terminate_transfers => '1')", '42883',
		qr/^procedure stop_backup\(.*\) does not exist$/, 'an argument that it does not have');
	my $reply = $conn->query("CALL stop_backup('$id', NULL, false)");
	ok(!$reply->{error} && @{ $reply->{results} } == 5, 'and without it the backup is stopped');
	$conn->close;
}

# What is no list of processes.
{
	my ($coordinator) = stalled('backup');
	for my $wrong ('x', '0', '-5', '1,', '99999999999')
	{
		is_error($coordinator, "STOP_BACKUP (TERMINATE_TRANSFERS '$wrong')", '42601',
			qr/^terminate_transfers requires a list of process IDs$/, "\"$wrong\"");
	}
	ok(!stop_backup($coordinator, TERMINATE_TRANSFERS => '')->{reply}{error}, 'an empty list');
	$coordinator->drop;
}

# A limit of the server's own, which is off by default. By either way out, and without TERMINATE_TRANSFERS.
{
	my $log = -s $node->logfile;
	$node->safe_psql('postgres', q(ALTER SYSTEM SET pg_parallel_backup.client_timeout = '3s'));
	$node->reload;
	$node->poll_query_until('postgres', q(SELECT current_setting('pg_parallel_backup.client_timeout') = '3s')) or die 'no limit';
	my ($coordinator, $id, @workers) = stalled('backup', $relation, $other);
	# With some room in the socket, less than it takes to wake who waits for room: what is said after the half of a
	# message that is there already would be taken for its rest.
	$_->fill(300_000) for @workers;
	my $pids = join(', ', map { $_->pid } @workers);
	ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid IN ($pids)"), 'transfers whose client takes nothing are ended');
	my $said = () = slurp_file($node->logfile, $log) =~ /LOG:  terminating parallel backup transfer due to client timeout$/mg;
	is($said, 2, 'the log says so');
	for my $worker (@workers)
	{
		my $transfer = $worker->finish;
		ok($transfer->{eof} && !ParallelBackup::Transfer->of($transfer->{frames})->complete, 'what the client has of it does not look complete');
	}
	ok(!stop_backup($coordinator)->{reply}{error}, 'and STOP_BACKUP has nothing to wait for');
	$coordinator->close;
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_parallel_backup.client_timeout');
	$node->reload;
}

unlink "$pgdata/$relation", "$pgdata/$other";
my $copy = PostgreSQL::Test::Cluster->new('copy');
raw_backup($node, $copy->data_dir);
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, 'data of the copy');
$copy->stop;

done_testing();
