# Connections that are lost in the middle of a backup are made again, as many as there were, and the
# backup is none the worse.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
my $node = parallel_node('main', extension => 1);
my $theirs = "application_name = 'pg_parallel_basebackup' AND pid <> (SELECT pid FROM parallel_backup.backups)";

# The coordinator's server process stands still while it fetches, so that the backup cannot end; the
# others have nothing to do after a while, and are terminated.
sub held_up
{
	my ($meanwhile, @options) = @_;
	my $stderr = '';
	my $client = IPC::Run::start([ 'pg_parallel_basebackup', '--no-sync', '-v', '-c' => 'fast', '-X' => 'none', '-j' => 3, '-r' => '8M', '-D' => $target, '-d' => $node->connstr('postgres'), @options ],
		'2>' => \$stderr, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));

	ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_stat_activity WHERE pid IN (SELECT pid FROM parallel_backup.backups) AND ' . sending()), 'the coordinator fetches');
	my $coordinator = $node->safe_psql('postgres', 'SELECT pid FROM parallel_backup.backups');
	kill 'STOP', $coordinator;
	my $lived = eval { $meanwhile->($client, \$stderr); 1 };
	my $error = $@;
	kill 'CONT', $coordinator;
	die $error if !$lived;
	$client->finish;
	return ($client->full_result(0) >> 8, $stderr);
}

my ($status, $stderr) = held_up(sub {
	for my $round (1 .. 4)
	{
		ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE $theirs AND state IS DISTINCT FROM 'active'"), "round $round: both workers are there and wait");
		my $gone = $node->safe_psql('postgres', "SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE $theirs");
		$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $theirs" . ($round % 2 ? ' LIMIT 1' : ''));
		ok($node->poll_query_until('postgres', "SELECT count(*) = 2 AND bool_or(pid NOT IN ($gone)) FROM pg_stat_activity WHERE $theirs"), "round $round: as many as before");
	}
});
is($status, 0, 'connections were lost: exit code') or diag($stderr);
my $lost = () = $stderr =~ /lost a connection/g;
my $replaced = () = $stderr =~ /replaced the connection that was lost/g;
is("$lost $replaced", '6 6', 'connections were lost and replaced') or diag($stderr);
command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], 'connections were lost: pg_verifybackup');
File::Path::remove_tree($target);

$node->safe_psql('postgres', 'CREATE ROLE backup LOGIN REPLICATION');
may_back_up($node, 'backup');

# Where no other can be had the backup goes on with what it has, and ends when that has fetched all.
($status, $stderr) = held_up(sub {
	ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE $theirs AND state IS DISTINCT FROM 'active'"), 'nobody is let in: both workers wait');
	write_file($node->data_dir . '/pg_hba.conf', "local all,replication backup reject\nlocal all,replication all trust\n");
	$node->reload;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $theirs");
	ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE $theirs"), 'nobody is let in: the workers are gone');
	# The client looks now and then at connections that have nothing to do.
	my ($client, $said) = @_;
	$client->pump until $$said =~ /lost a connection/;
}, '-U' => 'backup');
is($status, 0, 'nobody is let in: exit code') or diag($stderr);
like($stderr, qr/lost a connection/, 'nobody is let in: connections were lost');
unlike($stderr, qr/replaced the connection/, 'nobody is let in: and not replaced');
command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], 'nobody is let in: pg_verifybackup');

$node->stop;
done_testing();
