# How the client ends before its time: by signals, by a limit of the user's, while nobody answers. Each
# time nothing is left.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();
use ParallelBackup::Client;
use ParallelBackup::Proxy;
use ParallelBackup::TLS;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
my $node = parallel_node('main', extension => 1, conf => "checkpoint_timeout = '1h'\nshared_buffers = '16MB'\n");
make_file($node->data_dir . '/large', 8 * 1024 * 1024);
my @client = ('pg_parallel_basebackup', '--no-sync', '-D' => $target);

sub is_sending
{
	my ($run) = @_;

	$node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_stat_activity WHERE ' . sending())
	  or die "the transfer did not begin: $run->{err}";
	return;
}

sub nothing_is_left
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok(!-e $target, "$name: nothing is left");
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), "$name: nor on the server");
	File::Path::remove_tree($target);
	return;
}

# Between client and server: passes everything on until it gets SIGUSR1, and nothing from then on.
sub start_proxy
{
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 100, Proto => 'tcp') or die "no listener: $!";
	my $pid = fork // die "no fork: $!";
	return ($pid, $listener->sockport) if $pid;

	my $stalled = 0;
	local $SIG{USR1} = sub { $stalled = 1 };
	local $SIG{TERM} = 'DEFAULT';
	local $SIG{PIPE} = 'IGNORE';
	my $select = IO::Select->new($listener);
	my (%other, @kept);
	while (1)
	{
		my @ready = $select->can_read;
		next if !@ready;
		for my $socket (@ready)
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				push @kept, $client;
				next if $stalled;
				my $server = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port) or next;
				@other{ $client, $server } = ($server, $client);
				$select->add($client, $server);
				next;
			}
			if ($stalled) { $select->remove($socket); next }
			my $count = sysread $socket, my $bytes, 65536;
			if (!$count || !defined syswrite $other{$socket}, $bytes)
			{
				$select->remove($socket, $other{$socket});
				shutdown $_, 2 for $socket, $other{$socket};
			}
		}
	}
}

# --- ignored from the beginning, as by nohup and for what a script puts into the background: for good
for my $signal (qw(HUP INT))
{
	local $SIG{$signal} = 'IGNORE';
	my $run = start_client($node, @client, '-c' => 'fast', '-r' => '8M');
	is_sending($run);
	$run->{handle}->signal($signal);
	is(client_ended($run), 0, "SIG$signal is ignored: the backup goes on");
	command_ok([ 'pg_verifybackup', $target ], "SIG$signal is ignored: pg_verifybackup");
	File::Path::remove_tree($target);
}
for my $signal (qw(HUP INT TERM))
{
	my $run = start_client($node, @client, '-c' => 'fast', '-r' => '4M');
	is_sending($run);
	$run->{handle}->signal($signal);
	is(client_ended($run), 1, "SIG$signal: exit code");
	is(scalar(() = $run->{err} =~ /error: /g), 1, "SIG$signal: one error");
	like($run->{err}, qr/^pg_parallel_basebackup: error: backup was interrupted$/m, "SIG$signal: says so");
	nothing_is_left("SIG$signal");
}

# --- nobody answers any more: during a transfer, and while the checkpoint is waited for. With a lease the server, which
# cannot be told, would keep the backup
for my $case ([ 'a transfer', '-c' => 'fast', '-r' => '4M' ], [ 'a checkpoint', '-c' => 'spread' ])
{
	my ($name, @options) = @$case;
	my ($proxy, $port) = start_proxy();
	$node->safe_psql('postgres', 'CREATE TABLE IF NOT EXISTS t AS SELECT generate_series(1, 20000) AS id; UPDATE t SET id = id');
	my $run = start_client($node, @client, '--lease' => 0, @options, '-h' => '127.0.0.1', '-p' => $port);
	if ($options[1] eq 'fast') { is_sending($run) }
	else
	{
		$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event LIKE 'Checkpoint%' AND query ~* 'START_BACKUP|starting parallel backup'))
		  or die "no checkpoint: $run->{err}";
	}
	kill 'USR1', $proxy;
	$run->{handle}->signal('TERM');
	is(client_ended($run), 1, "stalled in $name: exit code");
	like($run->{err}, qr/^pg_parallel_basebackup: error: backup was interrupted$/m, "stalled in $name: says so");
	ok(!-e $target, "stalled in $name: nothing is left");
	kill 'TERM', $proxy;
	waitpid $proxy, 0;
	$node->safe_psql('postgres', 'CHECKPOINT');
	nothing_is_left("stalled in $name, in the end");
}

# --- a cancel request gets through where it can: nothing else would tell the server before its checkpoint
# is over
{
	$node->safe_psql('postgres', 'UPDATE t SET id = id');
	my $run = start_client($node, @client, '-c' => 'spread');
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event LIKE 'Checkpoint%' AND query ~* 'START_BACKUP|starting parallel backup'))
	  or die "no checkpoint: $run->{err}";
	$run->{handle}->signal('INT');
	is(client_ended($run), 1, 'cancelled: exit code');
	nothing_is_left('cancelled');
	$node->safe_psql('postgres', 'CHECKPOINT');
}

# --- and it says no more than the connection itself, where libpq can do that
SKIP:
{
	skip 'the server has no TLS', 5 unless has_tls();
	my $pgdata = $node->data_dir;
	write_file("$pgdata/pg_hba.conf", "local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n");
	offer_tls($node);
	$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\n");
	$node->restart;
	my $proxy = ParallelBackup::Proxy->new(server => $node->port, log => "$tempdir/codes");
	$node->safe_psql('postgres', 'UPDATE t SET id = id');
	my $run = start_client($node, @client, '-c' => 'spread', '-d' => 'host=127.0.0.1 sslmode=require gssencmode=disable port=' . $proxy->port);
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event LIKE 'Checkpoint%' AND query ~* 'START_BACKUP|starting parallel backup'))
	  or die "no checkpoint: $run->{err}";
	my $before = () = slurp_file("$tempdir/codes") =~ /^/mg;
	$run->{handle}->signal('INT');
	is(client_ended($run), 1, 'cancelled over TLS: exit code');
	nothing_is_left('cancelled over TLS');
	my @codes = split /\n/, slurp_file("$tempdir/codes");
	cmp_ok(scalar @codes, '>', $before, 'cancelled over TLS: by a request');
	# SSLRequest and CancelRequest; libpq before 17 has no other way.
	is_deeply([ grep { $_ != 80877103 } @codes ], [ server_major() < 17 ? 80877102 : () ], 'cancelled over TLS: encrypted');
	$proxy->stop;
	$node->safe_psql('postgres', 'CHECKPOINT');
}

# --- a second signal, when the first has no effect: here because the client waits for a file to be opened
for my $made (0, 1)
{
	mkdir $target if !$made;
	$node->safe_psql('postgres', 'UPDATE t SET id = id');
	my $run = start_client($node, @client, '-c' => 'spread');
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event LIKE 'Checkpoint%' AND query ~* 'START_BACKUP|starting parallel backup'))
	  or die "no checkpoint: $run->{err}";
	POSIX::mkfifo("$target/backup_manifest.tmp", 0600) or die "no FIFO: $!";
	$node->safe_psql('postgres', 'CHECKPOINT');
	# Made immediately before the file.
	Time::HiRes::sleep(0.01) until -d "$target/pg_tblspc";
	# Two that come together may be heard as one.
	while ($run->{handle}->pumpable)
	{
		$run->{handle}->signal('TERM');
		$run->{handle}->pump_nb;
		Time::HiRes::sleep(0.05);
	}
	is(client_ended($run), 1, 'two signals: exit code');
	like($run->{err}, qr/^pg_parallel_basebackup: error: backup was interrupted\n.*removing (?:contents of )?data directory/m, 'two signals: says so');
	is_deeply([ $made ? grep { -e } $target : grep { !/^\.\.?\z/ } slurp_dir($target) ], [], 'two signals: nothing is left');
	File::Path::remove_tree($target);
	nothing_is_left('two signals');
}

# --- a file that would be longer than the user allows
{
	my $command = join ' ', map { "'$_'" } @client, '-c' => 'fast';
	local %ENV = $node->_get_env();
	# Whatever has started this test may ignore the signal, and have handed that down.
	local $SIG{XFSZ} = 'DEFAULT';
	command_checks_all([ 'sh', '-c', "ulimit -f 4000; exec $command" ], 1, [qr/^$/],
		[qr/^pg_parallel_basebackup: error: could not write to file ".*": File too large$/m], 'ulimit -f');
	nothing_is_left('ulimit -f');
}

done_testing();
