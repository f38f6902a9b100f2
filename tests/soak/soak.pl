# Backups of a cluster that is never quiet, for as long as MINUTES says: every output, compression, verify side, WAL
# method and number of connections, from the primary and from a standby, with faults at random moments. A backup
# that is reported as a success is verified, put together, started and asked for its data; of one that failed there is
# a message, and nothing else. After each, nothing is left on the server, and it goes on. What happens is drawn at
# random; SEED, which is printed, draws it again, but for the moments.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);
use ParallelBackup::Archive;
use ParallelBackup::Lease;
use ParallelBackup::Load;
use ParallelBackup::Test;

# Standbys are known by their own names.
delete $ENV{PGAPPNAME};

my $minutes = $ENV{MINUTES} || 10;
my $seed = $ENV{SEED} || int rand 1_000_000_000;
diag("SEED=$seed MINUTES=$minutes");
srand $seed;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $until = time + 60 * $minutes;
my $major = server_major();

# How often what came to pass, and the words of failures.
my (%count, %fault_count, %said);
my $bytes = 0;

my %conf = (
	primary => q(
allow_in_place_tablespaces = on
checkpoint_timeout = 30s
max_wal_size = 256MB
wal_keep_size = 2GB
hot_standby_feedback = off
full_page_writes = on
restart_after_crash = on
) . ($major >= 17 ? "summarize_wal = on\n" : ''));

my $primary = lease_node('primary', segsize => 16, conf => $conf{primary});
work_on($primary);
mkdir "$tempdir/ts" or die $!;
on('postgres', "CREATE TABLESPACE ts LOCATION '$tempdir/ts'");
on('postgres', q(CREATE TABLESPACE in_place LOCATION ''));
on('postgres', 'CREATE EXTENSION amcheck');
$primary->command_ok([ 'pgbench', '--quiet', '--initialize', '--scale' => 3, '--no-vacuum', 'postgres' ], 'pgbench tables');
on('postgres', q(CREATE TABLE long AS SELECT g AS id, repeat('x', 500) AS filler FROM generate_series(1, 50000) g));
on('postgres', "CREATE TABLE $_ AS SELECT g AS id, repeat('x', 300) AS filler FROM generate_series(1, 3000) g; CREATE INDEX ON $_ (id)")
  for map { "t$_" } 1 .. 8;

my $standby = PostgreSQL::Test::Cluster->new('standby');
$primary->command_ok(
	[ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-D' => $standby->data_dir, '-R', '-T' => "$tempdir/ts=$tempdir/standby_ts", '-d' => $primary->connstr('postgres') ],
	'a standby');
start_copy($standby);
my %space = (primary => "$tempdir/ts", standby => "$tempdir/standby_ts");

sub backends
{
	my ($of) = @_;
	return split /\n/, $of->safe_psql('postgres', q(SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_parallel_basebackup'));
}

# Whether it answers, within a minute.
sub answers
{
	my ($of) = @_;
	for (1 .. 600)
	{
		return 1 if system('psql', '-XAtqc', 'SELECT 1', '-o', '/dev/null', '-d', $of->connstr('postgres'), '--set=ON_ERROR_STOP=1', '-L', '/dev/null') == 0;
		sleep 0.1;
	}
	return 0;
}

# What can go wrong: done to the client's process, or to the server that it backs up.
my %faults = (
	'client: SIGTERM' => sub { kill 'TERM', $_[0] },
	'client: SIGINT' => sub { kill 'INT', $_[0] },
	'client: SIGKILL' => sub { kill 'KILL', $_[0] },
	'client: stopped for a while' => sub { kill 'STOP', $_[0]; sleep 0.5 + rand 2; kill 'CONT', $_[0] },
	'backend terminated' => sub { my @pids = backends($_[1]); $_[1]->safe_psql('postgres', 'SELECT pg_terminate_backend(' . pick(@pids) . ')') if @pids },
	'backend cancelled' => sub { my @pids = backends($_[1]); $_[1]->safe_psql('postgres', 'SELECT pg_cancel_backend(' . pick(@pids) . ')') if @pids },
	'backup cancelled' => sub { $_[1]->safe_psql('postgres', 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups') },
	'backend stopped for a while' => sub { my @pids = backends($_[1]) or return; my $pid = pick(@pids); kill 'STOP', $pid; sleep 0.5 + rand 1; kill 'CONT', $pid },
	'backend: SIGKILL' => sub { my @pids = backends($_[1]); kill 'KILL', pick(@pids) if @pids },
	'server: fast restart' => sub { $_[1]->restart },
	'server: immediate restart' => sub { $_[1]->stop('immediate'); $_[1]->start });

# Options of one backup, and what has to be done to have a data directory of it.
sub draw
{
	my ($from) = @_;
	my %backup = (format => pick(qw(plain plain tar tar blackhole)), wal => pick(qw(stream stream fetch none)), options => []);
	my $options = $backup{options};
	$backup{wal} = pick(qw(fetch none)) if $backup{format} eq 'blackhole';

	push @$options, '--jobs' => pick(1, 2, 3, 4, 8), '-X' => $backup{wal};
	push @$options, '--verify' => pick(qw(client server)) if rand() < 0.3;
	push @$options, '--max-rate' => pick('8M', '32M') if rand() < 0.2;
	push @$options, '--manifest-checksums' => pick(qw(CRC32C SHA256 SHA512)) if rand() < 0.3;
	push @$options, '--no-verify-checksums' if rand() < 0.1;
	push @$options, '--no-sync' if rand() < 0.8;
	# One that was asked for, none, or what is taken by default.
	push @$options, '--lease' => $backup{lease} if defined($backup{lease} = pick(60, 60, 0, undef, undef));
	if ($backup{format} eq 'plain')
	{
		push @$options, '-Z' => pick(qw(server-lz4 server-zstd server-zstd:level=1)) if rand() < 0.3;
		push @$options, '-T' => $space{ $from->name } . '=@_ts';
	}
	elsif ($backup{format} eq 'tar')
	{
		push @$options, '-Ft', pick([], [], [ '-z' ], [ '-Z' => 'client-lz4' ], [ '-Z' => 'client-zstd:1' ], [ '-Z' => 'server-lz4' ], [ '-Z' => 'server-zstd' ])->@*;
	}
	else { push @$options, '-t' => 'blackhole' }
	return \%backup;
}

# Of a success: it is verified, started and has what pgbench keeps equal.
sub restores
{
	my ($backup, $place, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");
	my $directory = $copy->data_dir;
	my @verify = ('pg_verifybackup', '--quiet', $backup->{wal} eq 'none' ? '--no-parse-wal' : ());

	if ($backup->{format} eq 'tar')
	{
		extract_backup($place, $directory);
		# The map says where the tablespaces are now.
		command_ok([ @verify, '--ignore' => 'tablespace_map', '--manifest-path' => "$place/backup_manifest", $directory ], "$name: pg_verifybackup");
	}
	else
	{
		command_ok([ @verify, $place ], "$name: pg_verifybackup");
		rename $place, $directory or die "$place: $!";
	}
	unlink "$directory/standby.signal";
	my $conf = "primary_conninfo = ''\n" . ($major >= 17 ? "summarize_wal = off\n" : '');
	if ($backup->{wal} eq 'none')
	{
		# Archive recovery to the end of what there is.
		write_file("$directory/recovery.signal", '');
		$conf .= "restore_command = 'cp \"" . $primary->data_dir . "/pg_wal/%f\" \"%p\"'\n";
	}
	start_copy($copy, conf => $conf);
	$copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'the copy stays in recovery';
	is(balances($copy), 't', "$name: it is consistent");
	if (rand() < 0.3)
	{
		$copy->command_ok([ 'pg_amcheck', '--all', '--install-missing', '--heapallindexed' ], "$name: pg_amcheck");
		$count{'checked by pg_amcheck'}++;
	}
	$copy->stop;
	File::Path::remove_tree($directory, map { "$directory.$_" } map { m{/([0-9]+)\.tar[^/]*\z} ? $1 : () } glob("$place/*"));
	$count{'verified and started'}++;
	return;
}

# One backup, with a fault or without.
sub backup
{
	my ($number) = @_;
	my $from = pick($primary, $primary, $standby);
	my $backup = draw($from);
	my $fault = rand() < 0.5 ? pick(sort keys %faults) : undef;
	# The standby's WAL is the primary's: a restart of the one is enough.
	my $name = "b$number";
	my $place = "$tempdir/$name";
	my @command = ('pg_parallel_basebackup', '--checkpoint' => 'fast', '--dbname' => $from->connstr('postgres'),
		$backup->{format} eq 'blackhole' ? () : ('--pgdata' => $place), map { s/\@_ts\z/${place}_ts/r } $backup->{options}->@*);
	my ($stdout, $stderr) = ('', '');

	my $what = "$name: " . $from->name . ', ' . join(' ', $backup->{options}->@*) . ', ' . ($fault // 'no fault');
	note($what);
	my $run = IPC::Run::start(\@command, '>' => \$stdout, '2>' => \$stderr, IPC::Run::timeout(180));
	my $pid = $run->{KIDS}[0]{PID};
	my $strikes = time + rand(rand() < 0.5 ? 0.3 : 2.5);
	my $struck = 0;
	while ($run->pumpable)
	{
		$run->pump_nb;
		if (defined $fault && !$struck && time >= $strikes)
		{
			$struck = 1;
			$faults{$fault}->($pid, $from);
			answers($_) or die $_->name . ' does not come back' for $primary, $standby;
		}
		eval { deed_while_it_runs(); 1 } or $@ =~ /terminating|the database system|connection|recovery/ or die $@;
	}
	# A client that is gone is no failure of the harness.
	eval { $run->finish; 1 } or $@ =~ /timeout/ && die "$what: it does not end";
	my $code = $run->full_result(0);
	$fault_count{$fault}++ if $struck;
	answers($_) or die $_->name . ' does not come back' for $primary, $standby;
	if ($code != 0 && $struck && -e "$place/pgsql_tmp.pg_parallel_basebackup.resume")
	{
		# With a lease it can be gone on with, if the server was not restarted.
		$count{'gone on with'}++;
		my $again = '';
		$run = IPC::Run::run([ @command, '--resume' ], '>' => \$stdout, '2>' => \$again, IPC::Run::timeout(180));
		$code = $run ? 0 : 1;
		ok($run || $again =~ /does not exist on the server any more/, "$what: going on") or diag($again);
		$count{'gone on with, in vain'}++ if !$run;
		# Then it stays, as it may be all that there is.
		File::Path::remove_tree($place) if !$run;
	}

	if ($code == 0)
	{
		$count{'completed'}++;
		$count{"completed, struck"}++ if $struck;
		if ($backup->{format} ne 'blackhole')
		{
			$bytes += size_of($place);
			restores($backup, $place, $name);
		}
	}
	else
	{
		$count{'failed'}++;
		# What nobody did to it may not fail.
		ok($struck, "$what: it fails only of a fault") or diag($stderr);
		if ($fault ne 'client: SIGKILL')
		{
			like($stderr, qr/^pg_parallel_basebackup: error: \S/m, "$what: it says why");
			unlike($stderr, qr/panicked|This is a bug/, "$what: no bug");
			my ($message) = $stderr =~ /^pg_parallel_basebackup: error: (.*)/m;
			$said{ ($message // '') =~ s/[0-9a-f]{32}/ID/gr =~ s/"[^"]*"/"..."/gr =~ s/\d+/N/gr }++;
			ok(!-e $place, "$what: nothing of it is left here");
		}
	}
	if (($backup->{lease} // 1) && ($fault // '') =~ /^client: SIG/)
	{
		# Whoever was killed could not release it.
		$from->safe_psql('postgres', 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups');
	}
	nothing_left($from, $what);
	is_deeply([ backends($from) ], [], "$what: no connection is left") if $from->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pg_parallel_basebackup'));
	File::Path::remove_tree($place, "${place}_ts");
	return;
}

sub size_of
{
	my ($path) = @_;
	my $sum = 0;
	require File::Find;
	File::Find::find({ no_chdir => 1, follow => 0, wanted => sub { $sum += -s _ if -f $_ } }, $path);
	return $sum;
}

my $number = 0;
start_load();
while (time < $until)
{
	some_deeds();
	backup(++$number);
	if (!Test::More->builder->is_passing)
	{
		diag("SEED=$seed: stopped at backup $number. Servers' logs are beside this file's.");
		last;
	}
	# The load ends with its server.
	eval { stop_load() };
	start_load();
}
eval { stop_load() };
# Of all the backups since the last restart.
$primary->append_conf('postgresql.conf', 'full_page_writes = off');
$primary->reload;
$primary->poll_query_until('postgres', q(SELECT current_setting('full_page_writes') = 'off'));
on('postgres', 'CHECKPOINT');
is(in_backup_mode($primary), 0, 'nobody is in backup mode');
$standby->stop;
$primary->stop;

diag("$number backups in $minutes min, SEED=$seed");
diag("  $_: $count{$_}") for sort keys %count;
diag(sprintf '  bytes of copies: %.1f GB', $bytes / 1e9);
diag("  fault: $_: $fault_count{$_}") for sort keys %fault_count;
diag("  message: $_: $said{$_}") for sort keys %said;
done_testing();
