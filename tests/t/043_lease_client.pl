# The client's --lease: what becomes of a backup whose connections are lost, and of one that fails. Whatever it is,
# nothing is left on the server. Losses at random moments are in 044.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Client;
use ParallelBackup::Disturbance;
use ParallelBackup::Lease;
use ParallelBackup::Proxy;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
my $node = lease_node('main', conf => q(
listen_addresses = '127.0.0.1'
checkpoint_timeout = 1h
max_replication_slots = 6
wal_keep_size = 0
));
make_file($node->data_dir . '/base/5/987654', 16 * 1024 * 1024);
my @client = ('pg_parallel_basebackup', '--no-sync', '-v', '-c' => 'fast', '-D' => $target);

# A backup that is under way, slowly, and fetches on its coordinator.
sub fetching_client
{
	my (@options) = @_;
	my $run = start_client($node, @client, '-r' => '4M', @options);

	wait_until($node, 'SELECT count(*) > 0 FROM parallel_backup.backups WHERE pid IN (SELECT pid FROM pg_stat_activity WHERE ' . sending() . ')', 'the coordinator fetches');
	@$run{qw(id coordinator)} = split /\|/, sql($node, 'SELECT backup_id, pid FROM parallel_backup.backups');
	return $run;
}

# It is there, and right.
sub is_good
{
	my ($name, @verify) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_ok([ 'pg_verifybackup', @verify, $target ], "$name: pg_verifybackup");
	File::Path::remove_tree($target);
	return;
}

sub is_not_there
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok(!-e $target, "$name: nothing is left here");
	File::Path::remove_tree($target);
	return;
}

# --- the coordinator's server process ends, again and again; the WAL stream's, and those of the workers
{
	my $run = fetching_client('--lease' => 60, '-j' => 2);
	is(row($node, 'lease, attached', $run->{id}), '60|t', 'the lease');
	for my $round (1 .. 3)
	{
		sql($node, "SELECT pg_terminate_backend(pid) FROM parallel_backup.backups");
		wait_until($node, "SELECT attached AND pid <> $run->{coordinator} FROM parallel_backup.backups", "round $round: another coordinator");
		$run->{coordinator} = row($node, 'pid', $run->{id});
	}
	sql($node, q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_parallel_basebackup'));
	is(client_ended($run), 0, 'connections were lost: exit code');
	is(scalar(() = $run->{err} =~ /: came back to the backup$/mg), 4, 'connections were lost: came back');
	like($run->{err}, qr/: going on with the WAL stream$/m, 'connections were lost: the WAL stream too');
	like($run->{err}, qr/: released the backup on the server$/m, 'connections were lost: released');
	nothing_left($node, 'connections were lost');
	is_good('connections were lost');
}

# --- the server ends with the backup: it is not there any more when the client comes back
{
	my $run = fetching_client('--lease' => 60, '-j' => 2);
	$node->stop('immediate');
	$node->start;
	is(client_ended($run), 2, 'the server has restarted: exit code');
	like($run->{err}, qr/error: (?:\S.*: )?the server does not have the backup any more: ERROR: +parallel backup "$run->{id}" does not exist$/m, 'the server has restarted: error');
	like($run->{err}, qr/^\S+ hint: What was in the way may pass: the backup can be begun anew by the same command\.$/m, 'the server has restarted: hint');
	nothing_left($node, 'the server has restarted');
	is_not_there('the server has restarted');
}

# --- cancelled on the server, which is meant
{
	my $run = fetching_client('--lease' => 60, '-X' => 'none');
	sql($node, "SELECT parallel_backup.cancel_backup('$run->{id}')");
	is(client_ended($run), 2, 'cancelled: exit code');
	like($run->{err}, qr/error: .*parallel backup "$run->{id}"/, 'cancelled: error');
	nothing_left($node, 'cancelled');
	is_not_there('cancelled');
}

# --- somebody else has taken the backup over: it is left to him
{
	my $run = fetching_client('--lease' => 60, '-j' => 1);
	my $other = connection($node);
	attach_ok($other, $run->{id});
	is(client_ended($run), 1, 'taken over: exit code');
	like($run->{err}, qr/error: .*parallel backup "$run->{id}" was taken over by another session$/m, 'taken over: error');
	is(row($node, 'state, attached', $run->{id}), 'running|t', 'taken over: it goes on');
	query_ok($other, 'STOP_BACKUP (RELEASE)');
	$other->close;
	nothing_left($node, 'taken over');
	is_not_there('taken over');
}

# --- interrupted, where nobody can go on with it
{
	my $run = fetching_client('--lease' => 60, '-j' => 2, '-Ft');
	$run->{handle}->signal('INT');
	is(client_ended($run), 1, 'archives, interrupted: exit code');
	unlike($run->{err}, qr/--resume/, 'archives, interrupted: not to be resumed');
	like($run->{err}, qr/: released the backup on the server$/m, 'archives, interrupted: released');
	nothing_left($node, 'archives, interrupted');
	is_not_there('archives, interrupted');
}

# --- what is wrong here is nothing that passes
{
	my $run = fetching_client('--lease' => 60, '-j' => 1, '-N');
	rename $target, "$target.away" or die $!;
	is(client_ended($run), 1, 'the directory is gone: exit code');
	nothing_left($node, 'the directory is gone');
	File::Path::remove_tree($target, "$target.away");
}

# --- leases that the server does not grant, or does not know
{
	sql($node, q(ALTER SYSTEM SET pg_parallel_backup.max_lease = 0));
	$node->reload;
	my $run = fetching_client('--lease' => 60, '-X' => 'none');
	is(row($node, 'lease', $run->{id}), '', 'no leases: none');
	sql($node, "SELECT pg_terminate_backend($run->{coordinator})");
	is(client_ended($run), 2, 'no leases: exit code');
	like($run->{err}, qr/warning: the server grants no leases \(pg_parallel_backup\.max_lease\): a connection that is lost ends the backup$/m, 'no leases: warning');
	like($run->{err}, qr/error: lost the connection that coordinates the backup: /, 'no leases: error');
	nothing_left($node, 'no leases');
	is_not_there('no leases');
	sql($node, q(ALTER SYSTEM SET pg_parallel_backup.max_lease = '20s'));
	$node->reload;
	$run = fetching_client('--lease' => 60);
	is(row($node, 'lease', $run->{id}), 20, 'a shorter lease');
	is(client_ended($run), 0, 'a shorter lease: exit code');
	nothing_left($node, 'a shorter lease');
	is_good('a shorter lease');
	sql($node, q(ALTER SYSTEM RESET pg_parallel_backup.max_lease));
	$node->reload;

	my $proxy = ParallelBackup::Proxy->new(server => $node->port, flag => "$tempdir/changed", find => ', lease', at => 2, xor => 1, always => 1);
	command_fails_like([ @client, '--lease' => 60, '-d' => "host=127.0.0.1 port=@{[ $proxy->port ]} dbname=postgres sslmode=disable" ],
		qr/error: server does not support leases\n.*hint: .*older than 0\.3\.0/, 'a server without leases');
	ok(-e "$tempdir/changed", 'a server without leases: which was one by the proxy');
	$proxy->stop;
	ok(!-e $target, 'a server without leases: nothing was begun');
	nothing_left($node, 'a server without leases');
}

# --- no place for a lease: refused before anything is begun that would have to be paid for
{
	my @slots = map { "s$_" } 1 .. 6;
	sql($node, "SELECT pg_create_physical_replication_slot('$_')") for @slots;
	my $result = IPC::Run::run([ @client, '--lease' => 60, '-X' => 'none', '-d' => $node->connstr('postgres') ], '2>' => \my $stderr);
	is($? >> 8, 2, 'no slot: exit code');
	like($stderr, qr/max_replication_slots/, 'no slot: the setting');
	sql($node, "SELECT pg_drop_replication_slot('$_')") for @slots;
	is_not_there('no slot');
	nothing_left($node, 'no slot');
}

# --- answers that are lost: STOP_BACKUP's and that of the release
for my $phase (qw(stop release))
{
	my $network = ParallelBackup::Disturbance->new(node => $node, dir => "$tempdir/$phase", plan => [ { phase => $phase, after => 0, how => 'cut', for => 0 } ]);
	my $result = IPC::Run::run([ @client, '--lease' => 60, '-d' => "host=127.0.0.1 port=@{[ $network->port ]} dbname=postgres" ], '2>' => \my $stderr);
	ok($result, "$phase: made") or diag($stderr);
	note($stderr);
	is(join(' ', $network->happened), '0', "$phase: its answer was lost");
	unlike($stderr, qr/could not release/, "$phase: no complaint");
	$network->stop;
	nothing_left($node, $phase);
	is_good($phase);
}

$node->stop;
done_testing();
