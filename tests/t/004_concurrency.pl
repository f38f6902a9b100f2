# Several backups at once, and every way in which a connection can go away.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant LARGE => 64 * 1024 * 1024;

# Without full_page_writes the WAL tells whether a backup is running.
# With enough shared buffers for a spread checkpoint to last until somebody has looked at it.
my $node = parallel_node('main', extension => 1, conf => "full_page_writes = off\nshared_buffers = 16MB\n");
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 1000) AS id;
	CREATE TABLE probe (id int);
	INSERT INTO probe VALUES (0);));
make_file("$pgdata/large", LARGE);

# Backup mode, by its effect: a page that changes is logged whole.
sub in_backup_mode
{
	my $plan = $node->safe_psql('postgres', q(
		INSERT INTO probe VALUES (1);
		CHECKPOINT;
		EXPLAIN (ANALYZE, WAL, COSTS OFF, TIMING OFF, SUMMARY OFF) INSERT INTO probe VALUES (1);));
	return $plan =~ /WAL: .*fpi=/ ? 1 : 0;
}

# Waits until no backup is left, then checks that nothing of it is left.
sub is_over
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok($node->poll_query_until('postgres',
			'SELECT count(*) = 0 FROM parallel_backup.backups'), "$name: no backup is left");
	is(in_backup_mode(), 0, "$name: not in backup mode");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_progress_basebackup'),
		0, "$name: no progress is left");
	return;
}

sub wait_gone
{
	my ($pid) = @_;

	return $node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
}

# A coordinator and a worker whose transfer is under way and cannot end, because
# nobody reads it.
sub begin_transfer
{
	my (%options) = @_;
	my $coordinator = connection($node);
	my $start = start_backup($coordinator, %options);
	my $worker = connection($node);
	my @id = (BACKUP_ID => $start->{backup_id});

	$worker->send_query(send_files_sql(['large'], @id));
	$worker->read_until(sub { $_[0]{type} eq 'd' });
	return ($coordinator, $worker, $start, @id);
}

# What the rest of a cut transfer looks like: whole frames, then the error.
sub is_cut
{
	my ($reply, $sqlstate, $message, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is_report($reply->{error}, $sqlstate, $message, $name);
	my $transfer = ParallelBackup::Transfer->of($reply->{frames});
	ok(!$transfer->complete, "$name: in the middle of the file");
	is($reply->{copy_done}, undef, "$name: no CopyDone");
	is($reply->{partial} // 0, 0, "$name: no message is cut");
	return;
}

# Waits until the server takes connections again.  Not by psql: one that is
# refused may be gone before the query is written to it, which IPC::Run takes for
# an error of the test.
sub wait_ready
{
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if system_log('pg_isready', '--quiet', '--host', $node->host, '--port', $node->port) == 0;
		usleep(100_000);
	}
	return 0;
}

my $postmaster = slurp_file("$pgdata/postmaster.pid");

# The probe itself.
is(in_backup_mode(), 0, 'not in backup mode');

# Two backups at once, one inside of the other, both good.
{
	my $outer = PostgreSQL::Test::Cluster->new('outer');
	my $inner = PostgreSQL::Test::Cluster->new('inner');
	my $after_inner;
	raw_backup($node, $outer->data_dir,
		start => { LABEL => 'outer' },
		after_list => sub {
			my ($state) = @_;
			$node->safe_psql('postgres', 'INSERT INTO t SELECT generate_series(1001, 1500)');
			raw_backup($node, $inner->data_dir,
				start => { LABEL => 'inner' },
				before_stop => sub {
					is($node->safe_psql('postgres',
							q(SELECT string_agg(label || ' ' || state, ', ' ORDER BY label) FROM parallel_backup.backups)),
						'inner running, outer running', 'two backups at once');
					isnt($_[0]{start}{backup_id}, $state->{start}{backup_id},
						'each with its own identifier');
				});
			is(in_backup_mode(), 1, 'in backup mode until the last one ends');
			$node->safe_psql('postgres', 'INSERT INTO t SELECT generate_series(1501, 2000)');
		});
	is_over('two backups');
	for ([ $outer, 2000 ], [ $inner, 1500 ])
	{
		my ($copy, $rows) = @$_;
		command_ok([ 'pg_verifybackup', $copy->data_dir ], $copy->name . ': pg_verifybackup');
		start_copy($copy);
		is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), $rows, $copy->name . ': data');
		$copy->stop;
	}
}

# A worker is terminated while its client does not read: a write that blocks
# inside of a frame gives way to that.
{
	my ($coordinator, $worker, $start, @id) = begin_transfer();
	is(in_backup_mode(), 1, 'in backup mode while a backup runs');
	is($node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $worker->pid . ')'),
		't', 'worker terminated');
	ok(wait_gone($worker->pid), 'the terminated worker is gone though nobody reads');
	$worker->drop;

	# Another one fetches the file; the backup ends well.
	my $other = connection($node);
	is(fetch($other, ['large'], @id)->{files}[0]{length}, LARGE, 'fetched again');
	ok($node->poll_query_until('postgres', 'SELECT workers = 0 FROM parallel_backup.backups'),
		'the dead worker is not counted');
	my $stop = stop_backup($coordinator);
	ok(!$stop->{reply}{error}, 'STOP_BACKUP after a worker was terminated');
	$other->close;
	$coordinator->close;
	is_over('worker terminated');
}

# A worker is terminated while its client reads: whole frames and a FATAL error. At the lowest rate, which takes
# long to fill a socket that is not read meanwhile.
{
	my ($coordinator, $worker) = begin_transfer(MAX_RATE => 32);
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $worker->pid . ')');
	my $reply = $worker->finish;
	is_report($reply->{error}, '57P01', qr/terminating connection due to administrator command/,
		'terminated while its client reads');
	ok($reply->{eof}, 'and disconnected');
	ParallelBackup::Transfer->of($reply->{frames});
	$worker->drop;
	ok(!stop_backup($coordinator)->{reply}{error}, 'STOP_BACKUP after it');
	$coordinator->close;
	is_over('worker terminated, client reading');
}

# A worker's client goes away without a word.
{
	my ($coordinator, $worker, $start, @id) = begin_transfer();
	my $pid = $worker->pid;
	$worker->drop;
	ok(wait_gone($pid), 'the worker of a client that went away is gone');
	is(fetch($coordinator, ['PG_VERSION'])->{files}[0]{data}, server_major() . "\n", 'the backup goes on');
	ok(!stop_backup($coordinator)->{reply}{error}, 'STOP_BACKUP after a client went away');
	$coordinator->close;
	is_over('client of a worker gone');
}

# The coordinator dies: terminated, gone without a word, gone politely.
for my $death (qw(terminate drop close))
{
	my $offset = -s $node->logfile;
	my ($coordinator, $worker, $start, @id) = begin_transfer();
	my $pid = $coordinator->pid;

	if ($death eq 'terminate')
	{
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	}
	else
	{
		$coordinator->$death;
	}
	ok(wait_gone($pid), "coordinator, $death: gone");
	# The worker's client begins to read again.
	is_cut($worker->finish, '57014', qr/^parallel backup "$start->{backup_id}" was aborted$/,
		"coordinator, $death: the transfer");
	is($worker->reply->{status}, 'I', "coordinator, $death: the worker is ready again");
	is_error($worker, send_files_sql(['PG_VERSION'], @id), '42704',
		qr/^parallel backup "$start->{backup_id}" does not exist$/,
		"coordinator, $death: later files");
	is_error($worker, "SEND_FILE_LIST (BACKUP_ID '$id[1]')", '42704',
		qr/^parallel backup "$start->{backup_id}" does not exist$/,
		"coordinator, $death: later list");
	is_over("coordinator, $death");
	ok($node->log_contains(
			qr/WARNING:  aborting backup due to backend exiting before (?:pg_backup_stop was called|STOP_BACKUP)/, $offset),
		"coordinator, $death: the log says so");
	$coordinator->drop if $death eq 'terminate';

	# The worker's connection can start a backup of its own.
	start_backup($worker);
	ok(!stop_backup($worker)->{reply}{error}, "coordinator, $death: the worker starts a backup");
	$worker->close;
	is_over("coordinator, $death, then another");
}

# The coordinator dies while workers wait for the rate limit, nothing being sent.
{
	my ($coordinator, $worker, $start, @id) = begin_transfer(MAX_RATE => 32);
	my $second = connection($node);
	$second->send_query(send_files_sql(['large'], @id));
	$coordinator->drop;
	is_report($worker->finish->{error}, '57014', qr/was aborted$/, 'rate limit: first worker');
	# The second may have been too late to begin.
	my $reply = $second->finish;
	like($reply->{error}{sqlstate}, qr/^(?:57014|42704)$/, 'rate limit: second worker');
	$_->close for ($worker, $second);
	is_over('coordinator gone, rate limit');
}

# The coordinator dies in the middle of its own transfer, and of its own list.
{
	my $coordinator = connection($node);
	start_backup($coordinator);
	$coordinator->send_query(send_files_sql(['large']));
	$coordinator->read_until(sub { $_[0]{type} eq 'd' });
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $coordinator->pid . ')');
	ok(wait_gone($coordinator->pid), 'the coordinator gives way in its own transfer');
	$coordinator->drop;
	is_over('coordinator terminated in its own transfer');

	my $conn = connection($node);
	start_backup($conn);
	$conn->send_query('SEND_FILE_LIST');
	$conn->drop;
	is_over('coordinator gone in its own list');
}

# The coordinator is killed while START_BACKUP waits for a spread checkpoint.
{
	$node->safe_psql('postgres', 'CREATE TABLE dirty AS SELECT generate_series(1, 200000) AS id');
	my $coordinator = connection($node);
	$coordinator->send_query("START_BACKUP (CHECKPOINT 'spread')");
	ok($node->poll_query_until('postgres',
			q(SELECT count(*) = 1 FROM parallel_backup.backups WHERE state = 'starting')), 'starting');
	$coordinator->cancel;
	my $reply = $coordinator->finish;
	is_report($reply->{error}, '57014', qr/canceling statement due to user request/,
		'START_BACKUP cancelled in its checkpoint');
	is_over('START_BACKUP cancelled');
	start_backup($coordinator);
	ok(!stop_backup($coordinator)->{reply}{error}, 'and sent again');
	$coordinator->close;
	is_over('START_BACKUP cancelled, then sent again');
}

# The coordinator is terminated there.
{
	$node->safe_psql('postgres', 'CREATE TABLE dirtier AS SELECT generate_series(1, 200000) AS id');
	my $coordinator = connection($node);
	$coordinator->send_query("START_BACKUP (CHECKPOINT 'spread')");
	ok($node->poll_query_until('postgres',
			q(SELECT count(*) = 1 FROM parallel_backup.backups WHERE state = 'starting')), 'starting');
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM parallel_backup.backups');
	is_report($coordinator->finish->{error}, '57P01', qr/terminating connection/,
		'coordinator terminated in its checkpoint');
	$coordinator->drop;
	is_over('coordinator terminated in its checkpoint');
}

# STOP_BACKUP against transfers that come and go: each is either counted and
# whole or refused, and none is under way once the backup is stopped.
{
	my $coordinator = connection($node);
	my @workers = map { connection($node) } 1 .. 3;
	my ($refused, $sent, @wrong) = (0, 0);
	for my $round (1 .. 100)
	{
		my $start = start_backup($coordinator);
		my @id = (BACKUP_ID => $start->{backup_id});
		my $files = 0;
		$_->send_query(send_files_sql([ ('PG_VERSION') x 5 ], @id)) for @workers;
		my $reply;
		while (1)
		{
			$reply = $coordinator->query('STOP_BACKUP (WAIT false)');
			last if !$reply->{error};
			push @wrong, "STOP_BACKUP: $reply->{error}{message}"
			  if $reply->{error}{sqlstate} ne '55000';
		}
		for my $worker (@workers)
		{
			my $answer = $worker->finish;
			my $whole = @{ ParallelBackup::Transfer->of($answer->{frames})->{files} };
			$files += $whole;
			if ($answer->{error})
			{
				$refused++;
				push @wrong, "$whole files and $answer->{error}{sqlstate} $answer->{error}{message}"
				  if $whole
				  || $answer->{error}{sqlstate} !~ /^(?:42704|55000)$/;
			}
			else { $sent++ }
		}
		my $totals = $reply->{results}[4]{rows}[0];
		push @wrong, "$totals->[1] files counted, $files received" if $totals->[1] != $files;
	}
	is_deeply(\@wrong, [], 'STOP_BACKUP against transfers');
	note("$sent sent, $refused refused");
	$_->close for (@workers, $coordinator);
	is_over('STOP_BACKUP against transfers');
}

# A query cancel in mid-transfer: once the client reads on, once while it does not.
for my $rate (0, 64)
{
	my ($coordinator, $worker, $start, @id) =
	  begin_transfer($rate ? (MAX_RATE => $rate) : ());
	$worker->cancel;
	my $reply = $worker->finish;
	is_cut($reply, '57014', qr/^canceling statement due to user request$/,
		"cancelled, rate $rate");
	is($reply->{status}, 'I', "cancelled, rate $rate: usable");
	is(fetch($worker, ['PG_VERSION'], @id)->{files}[0]{data}, server_major() . "\n",
		"cancelled, rate $rate: the backup goes on");
	my $stop = stop_backup($coordinator);
	ok(!$stop->{reply}{error}, "cancelled, rate $rate: STOP_BACKUP");
	is($stop->{totals}{files}, 1, "cancelled, rate $rate: only whole files are counted");
	is($stop->{totals}{bytes}, 3, "cancelled, rate $rate: and their bytes");
	$_->close for ($worker, $coordinator);
	is_over("cancelled, rate $rate");
}

# STOP_BACKUP is refused while two transfers run, and they finish.
{
	my ($coordinator, $worker, $start, @id) = begin_transfer();
	my $second = connection($node);
	$second->send_query(send_files_sql(['large'], @id));
	$second->read_until(sub { $_[0]{type} eq 'd' });
	my $reply = is_error($coordinator, 'STOP_BACKUP', '55000',
		qr/^cannot stop the parallel backup while files of it are being sent$/,
		'STOP_BACKUP with two transfers', hint => qr/2 transfer/);
	ok(!$_->finish->{error}, 'transfer to its end') for ($worker, $second);
	my $stop = stop_backup($coordinator);
	is($stop->{totals}{files}, 2, 'both are counted');
	is($stop->{totals}{bytes}, 2 * LARGE, 'and their bytes');
	$_->close for ($worker, $second, $coordinator);
	is_over('two transfers');
}

is(slurp_file("$pgdata/postmaster.pid"), $postmaster, 'the same postmaster');
ok(!$node->log_contains(qr/was terminated by signal|PANIC|TRAP|crash of another server process/),
	'no process crashed');

# A crash of a worker's server process takes all of them down; after it there is
# nothing left of the backup, and another can begin.
{
	$node->append_conf('postgresql.conf', 'restart_after_crash = on');
	$node->reload;
	my ($coordinator, $worker, $start, @id) = begin_transfer();
	kill('KILL', $worker->pid);
	ok($coordinator->finish->{eof}, 'a crash: the coordinator is gone');
	$_->drop for ($coordinator, $worker);
	ok(wait_ready(), 'a crash: the server is back');
	is_over('a crash');
	my $conn = connection($node);
	start_backup($conn);
	is_error($conn, send_files_sql(['PG_VERSION'], @id), '42704', qr/does not exist$/,
		'a crash: the identifier is forgotten');
	ok(!stop_backup($conn)->{reply}{error}, 'a crash: the next backup');
	$conn->close;
}

# A fast shutdown with a backup and a transfer under way.
{
	my ($coordinator, $worker) = begin_transfer();
	$node->stop('fast');
	$_->drop for ($coordinator, $worker);
	$node->start;
	is_over('after a fast shutdown');
}

# And after all that a backup is as good as ever.
unlink "$pgdata/large";
my $copy = PostgreSQL::Test::Cluster->new('copy');
raw_backup($node, $copy->data_dir);
command_ok([ 'pg_verifybackup', $copy->data_dir ], 'pg_verifybackup');
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 2000, 'data of the copy');
$copy->stop;

done_testing();
