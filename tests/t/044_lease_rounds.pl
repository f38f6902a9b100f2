# Backups with --lease of a cluster under pgbench, over a network that loses connections: the coordinator's in each
# phase, the workers' and the WAL stream's; in every third round it also changes bytes. A few rounds here; make check-lease ROUNDS=50 for many. The moments come
# from a random number that is printed, and can be given by SEED.

use strict;
use warnings FATAL => 'all';

use File::Copy ();
use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Disturbance;
use ParallelBackup::Lease;
use ParallelBackup::Test;

my $rounds = $ENV{ROUNDS} || 3;
my $seed = $ENV{SEED} || int rand 1_000_000;
srand $seed;
note("SEED=$seed ROUNDS=$rounds");

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $archive = "$tempdir/archive";
mkdir $archive or die "$archive: $!";
my $node = lease_node('main', segsize => 16, conf => qq(
archive_mode = on
archive_command = 'sleep 0.2; cp "%p" "$archive/%f"'
checkpoint_timeout = 30s
max_replication_slots = 20
max_worker_processes = 20
max_wal_senders = 30
max_connections = 60
));
$node->command_ok([ 'pgbench', '--quiet', '--initialize', '--scale' => 3, '--no-vacuum', 'postgres' ], 'pgbench tables');
my $load = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client' => 2, '--time' => 100_000, '--rate' => 200, '-h' => $node->host, '-p' => $node->port, 'postgres' ],
	'>' => \my $out, '2>' => \my $err);

sub pick { return $_[ int rand @_ ] }

# What happens in one round: at least one loss of the coordinator's connection in each phase that it has, and some more.
# Some changed bytes too, if that is wanted.
sub events
{
	my ($wal, $changes) = @_;
	my @phases = ('list', 'stop', ('files') x pick(2, 3, 4));
	push @phases, 'wal' if $wal eq 'fetch';
	push @phases, ('stream') x pick(1, 2) if $wal eq 'stream';
	push @phases, 'start' if rand() < 0.3;
	push @phases, 'attach' if rand() < 0.3;
	push @phases, 'release' if rand() < 0.5;
	my $transfers = 0;
	my %longest = (list => 50_000, files => 3_000_000, stop => 10_000, wal => 16 << 20, stream => 8 << 20, attach => 300, start => 300, release => 20);

	my @changes = map {
		my $phase = pick('list', 'files', 'files', 'files', 'stop', 'start', $wal eq 'fetch' ? 'wal' : $wal eq 'stream' ? 'stream' : ());
		{ phase => $phase, after => int exp rand log $longest{$phase}, skip => pick(0, 1, 2), how => 'change', bit => int rand 8 }
	} 1 .. $changes;
	return [ @changes, map {
		my $phase = $_;
		my $after = rand() < 0.2 ? pick(-1, 0) : int exp rand log $longest{$phase};
		{ phase => $phase, after => $after, skip => $phase eq 'files' && $transfers++ ? pick(0, 0, 1, 2) : 0, how => pick(qw(cut cut client server half stall)), for => sprintf('%.1f', 0.2 + rand 1.5) }
	} @phases ];
}

sub is_sound
{
	my ($copy, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is($copy->safe_psql('postgres', q(
		SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
		AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)
		AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)
		AND (SELECT count(*) FROM pgbench_accounts) = 300000)), 't', "$name: sums");
	return;
}

my ($lost, $changed, $refused, %happened) = (0, 0, 0);
for my $round (1 .. $rounds)
{
	my $wal = pick(qw(stream fetch none));
	my $is_tar = $wal ne 'none' && $round % 4 == 0;
	my $changes = $round % 3 == 0 ? pick(1, 2, 3) : 0;
	my $plan = events($wal, $changes);
	my $name = "round $round";
	my $copy = PostgreSQL::Test::Cluster->new("copy$round");
	my $target = $is_tar ? "$tempdir/tar" : $copy->data_dir;
	note(join "\n", "$name: -X $wal" . ($is_tar ? ' -Ft' : ''), map { my $event = $_; join ' ', map { "$_=$event->{$_}" } sort keys %$event } @$plan);
	my $network = ParallelBackup::Disturbance->new(node => $node, dir => "$tempdir/network$round", plan => $plan);
	my ($stdout, $stderr) = ('', '');
	my $client = IPC::Run::start([ 'pg_parallel_basebackup', '--no-sync', '-v', '--lease' => 60, '-c' => 'fast', '-X' => $wal, '-j' => pick(1 .. 4), '-D' => $target,
			'-d' => "host=127.0.0.1 port=@{[ $network->port ]} dbname=postgres", $is_tar ? '-Ft' : () ],
		'>' => \$stdout, '2>' => \$stderr, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	my $ended = $client->finish;
	note($stderr);
	my @happened = $network->happened;
	$network->stop;
	if ($changes)
	{
		# It is made, and right, or it is not, and says why: what was changed in what has no checksum ends it.
		$changed += grep { $plan->[$_]{how} eq 'change' } @happened;
		ok($ended || $stderr =~ /^pg_parallel_basebackup: error: \S/m, "$name: the backup is made, or it says why") or diag("SEED=$seed ROUNDS=$round\n$stderr");
		unlike($stderr, qr/panicked|This is a bug/, "$name: no bug");
		if (!$ended)
		{
			$refused++;
			ok(!-e $target, "$name: nothing is left here");
			# What the client could not release ends with its lease.
			sql($node, 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups') if $stderr =~ /could not release/;
			nothing_left($node, $name);
			next;
		}
	}
	else { ok($ended, "$name: the backup is made") or diag("SEED=$seed ROUNDS=$round\n$stderr") }
	# Not each time that was meant to: how many transfers there are, and streams, is a matter of chance, too.
	my %was = map { $plan->[$_]{phase} => 1 } @happened;
	is(join(' ', grep { !$was{$_} && $_ ne 'attach' } map { $_->{phase} } grep { $_->{how} ne 'change' } @$plan), '', "$name: each phase was disturbed");
	$happened{ $plan->[$_]{phase} }++ for @happened;
	$lost++ while $stderr =~ /: warning: lost /g;
	# A server process whose client is gone without a word ends when the network does.
	nothing_left($node, $name);
	last if !$ended;

	if ($is_tar)
	{
		mkdir $copy->data_dir, 0700 or die $!;
		system_or_bail('tar', '-xf', "$target/base.tar", '-C', $copy->data_dir);
		system_or_bail('tar', '-xf', "$target/pg_wal.tar", '-C', $copy->data_dir . '/pg_wal') if $wal eq 'stream';
		File::Copy::copy("$target/backup_manifest", $copy->data_dir . '/backup_manifest') or die $!;
		File::Path::remove_tree($target);
	}
	command_ok([ 'pg_verifybackup', $wal eq 'none' ? '--no-parse-wal' : (), $copy->data_dir ], "$name: pg_verifybackup");
	if ($wal eq 'none')
	{
		$copy->append_conf('postgresql.conf', qq(restore_command = 'cp "$archive/%f" "%p"'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n));
		write_file($copy->data_dir . '/recovery.signal', '');
	}
	start_copy($copy, conf => "archive_mode = off\nautovacuum = off\n");
	$copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'the copy does not end its recovery';
	is_sound($copy, $name);
	$copy->stop('immediate');
	File::Path::remove_tree($copy->data_dir);
}
note("$lost connections were lost, $changed bytes changed, $refused backups refused for that; " . join ', ', map { "$_ $happened{$_}" } sort keys %happened);
$load->signal('TERM');
$load->finish;
$node->stop;
done_testing();
