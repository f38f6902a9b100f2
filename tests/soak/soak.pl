# Backups of a cluster that is never quiet, for as long as MINUTES says: every output, compression, verify side, WAL
# method and number of connections, full and incremental, from the primary and from a standby, by either way in, with
# faults at random moments and at each of the client's commands. A backup that is reported as a success is verified, put together,
# started and asked for its data; of one that failed there is a message, and nothing else. After each, nothing is left
# on the servers, and they go on. What happens is drawn at random; SEED, which is printed, draws it again, but for the moments.
# FAULT is a pattern of the faults to try alone, TLS how many backups in a hundred are over TLS.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use ParallelBackup::Load;
use ParallelBackup::ObjectStore;
use ParallelBackup::Soak::Copy;
use ParallelBackup::Soak::Fault;
use ParallelBackup::Soak::Request;
use ParallelBackup::Soak::Servers;
use ParallelBackup::Test;

# Standbys are known by their own names.
delete $ENV{PGAPPNAME};

my $minutes = $ENV{MINUTES} || 10;
my $seed = $ENV{SEED} || int rand 1_000_000_000;
my $tls = $ENV{TLS} || 30;
diag("SEED=$seed MINUTES=$minutes TLS=$tls");
srand $seed;

# Numbers for a part of a backup that depend on nothing but these: how many others were drawn while a client ran is a matter of
# moments.
sub draw_anew
{
	my ($number, $part) = @_;
	srand($seed + 1_000_003 * $number + $part);
	return;
}

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $until = time + 60 * $minutes;
my $store = $ENV{PPB_S3} ? object_store('soak') : undef;

# How often what came to pass, and the words of failures.
my (%count, %asked_for, %fault_count, %said);
my $bytes = 0;
my $last_words = '';

# As quick as can be.
sub new_backup_works
{
	my ($from, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_ok([ 'pg_parallel_basebackup', '--discard', '-c' => 'fast', '-d' => $from->connstr('postgres') ], "$what: a new backup works");
	return;
}

# A client that should have ended long ago: what its threads are at, and no more of it.
sub is_out_of_time
{
	my ($error, $pid, $what) = @_;

	die $error if $error !~ /timeout/;
	diag(`ps -Lo tid,stat,wchan:20,time,comm -p $pid`);
	kill 'KILL', $pid;
	die "$what: it does not end";
}

# Runs it: its status, what it said, whether the fault has come to pass, and the command without what the fault did to it.
sub client
{
	my ($request, $fault, $is_quiet, $what) = @_;
	my @command = ('pg_parallel_basebackup', '--checkpoint' => 'fast', $request->{options}->@*);
	my @environment = ($fault ? $fault->environment : (), $request->{format} eq 'objects' ? $store->environment : ());
	my ($stdout, $stderr) = ('', '');
	my $pipe;

	$fault->begin if $fault;
	# Not before: its processes would have the pipe too.
	if ($request->{format} eq 'pipe')
	{
		mkdir $request->{place} or die $!;
		open($pipe, '|-:raw', 'bash', '-c', 'cat >"$0"', "$request->{place}/base.tar") or die $!;
	}
	my $connection = $fault ? $fault->connection_string : connection_to(@$request{qw(from over_tls)});
	my $run = IPC::Run::start([ @environment ? ('env', @environment) : (), @command, '--dbname' => $connection ],
		'>' => $pipe // \$stdout, '2>' => \$stderr, IPC::Run::timeout(180));
	my $pid = $run->{KIDS}[0]{PID};
	while ($run->pumpable)
	{
		eval { $run->pump_nb; 1 } or is_out_of_time($@, $pid, $what);
		both_answer() if $fault && $fault->happens($pid) && !$fault->is_down;
		if ($is_quiet) { Time::HiRes::sleep(0.01) }
		else { eval { deed_while_it_runs(); 1 } or $@ =~ /terminating|the database system|connection|Broken pipe|recovery|Permission denied|No space|Too many open|Input\/output/ or die $@ }
	}
	# A client that is gone is no failure of the harness.
	eval { $run->finish; 1 } or $@ =~ /timeout/ && is_out_of_time($@, $pid, $what);
	close $pipe if $pipe;
	my $struck = $fault ? $fault->ends : 0;
	both_answer();
	return ($run->full_result(0), $stderr, $struck, @command, '--dbname' => connection_to(@$request{qw(from over_tls)}));
}

# With a lease it can be gone on with, if the server was not restarted.
sub resume
{
	my ($request, $what, @command) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($stdout, $stderr) = ('', '');
	my $is_complete = IPC::Run::run([ @command, '--resume' ], '>' => \$stdout, '2>' => \$stderr, IPC::Run::timeout(180));

	$count{ $is_complete ? 'gone on with' : 'gone on with, in vain' }++;
	ok($is_complete || $stderr =~ /does not exist on the server any more|was promoted|checksum/, "$what: going on") or diag($stderr);
	# Then it stays, as it may be all that there is.
	File::Path::remove_tree($request->{place}) if !$is_complete;
	return $is_complete;
}

# Of a failure there is a message, and nothing else.
sub fails_cleanly
{
	my ($request, $fault, $struck, $stderr, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	# What nobody did to it may not fail.
	ok($struck, "$what: it fails only of a fault") or diag($stderr);
	if (!$fault || $fault->{name} ne 'client: SIGKILL')
	{
		like($stderr, qr/^pg_parallel_basebackup: error: \S/m, "$what: it says why");
		unlike($stderr, qr/panicked|This is a bug/, "$what: no bug");
		my ($message) = $stderr =~ /^pg_parallel_basebackup: error: (.*)/m;
		$said{ ($message // '') =~ s/[0-9a-f]{32}/ID/gr =~ s/"[^"]*"/"..."/gr =~ s/\d+/N/gr }++;
		if ($fault && $fault->{words})
		{
			like($stderr, $fault->{words}, "$what: in the words of the fault");
			# It is complete, but for what is said of the pages.
			return;
		}
		if ($request->{format} eq 'objects') { is_deeply([ $store->list("$request->{name}/") ], [], "$what: nothing of it is in the store") }
		elsif ($request->{format} ne 'pipe' && !($fault && $fault->{name} =~ /, open\z/ && $stderr =~ /^pg_parallel_basebackup: error: failed to remove /m))
		{
			# Whoever cannot look into a directory cannot empty it, but says so.
			ok(!-e $_, "$what: nothing of it is left here") for @$request{qw(place spaces)};
		}
	}
	elsif ($request->{format} eq 'objects')
	{
		command_ok([ 'env', $store->environment, 'pg_parallel_basebackup', '--remove-leftovers', '-D' => $request->{url} ], "$what: what is left in the store can be removed");
		is_deeply([ $store->list("$request->{name}/"), $store->uploads ], [], "$what: nothing of it is in the store then");
	}
	return;
}

# One backup, with a fault or without.
sub backup
{
	my ($number) = @_;
	my $from = pick(primary(), primary(), standby());
	my $name = "b$number";
	my $place = "$tempdir/$name";
	my $prior = rand() < 0.5 ? prior_of() : undef;
	my $request = draw($from, $name, $place, $prior, $store, $tls);
	my $fault = rand() < 0.7 || $ENV{FAULT} ? draw_fault($request, $from, "$place.network", $ENV{FAULT}) : undef;
	my $is_quiet = rand() < 0.3;
	$request->{from} = $from;
	my $what = join ', ', "$name: " . $from->name, join(' ', $request->{options}->@*), $request->{over_tls} ? 'over TLS' : (), $fault ? $fault->words : 'no fault',
	  $is_quiet ? 'nothing changes' : ();
	note($last_words = $what);
	$asked_for{ $request->{format} }++;
	$asked_for{increments}++ if defined $prior;
	$asked_for{'from the standby'}++ if $from == standby();
	$asked_for{'over TLS'}++ if $request->{over_tls};
	$asked_for{'by the procedures'}++ if stock_server() || $request->{role} eq 'calls';

	my $has_far = !$is_quiet && $from == primary() && $request->{format} =~ /^(?:plain|blackhole)\z/ && !defined $prior && rand() < 0.15;
	far_relation() if $has_far;
	my $sums;
	if ($is_quiet)
	{
		stop_load();
		$sums = sums(primary());
	}
	if ($from == standby() && ($is_quiet || defined $prior))
	{
		# So that there is all of it, and something to go on from.
		on('postgres', 'SELECT pg_switch_wal()');
		settle();
	}

	my ($status, $stderr, $struck, @command) = client($request, $fault, $is_quiet, $what);
	draw_anew($number, 2);
	$fault_count{ $fault->{name} }++ if $struck;
	if ($status != 0 && $struck && -e "$place/pgsql_tmp.pg_parallel_basebackup.resume")
	{
		$status = 0 if resume($request, $what, @command);
	}
	if ($status == 0)
	{
		ok(!$fault || !$fault->has_to_fail, "$what: it must not succeed");
		$count{'completed'}++;
		$count{'completed, struck'}++ if $struck;
		if ($request->{format} ne 'blackhole')
		{
			$bytes += size_of($place) if -d $place;
			restores($request, $from, store => $store, count => \%count, sums => $sums, rows => spoiled_rows());
		}
	}
	else
	{
		$count{'failed'}++;
		fails_cleanly($request, $fault, $struck, $stderr, $what);
	}
	if (($request->{lease} // 1) && $fault && $fault->{name} =~ /^client: SIG|^client's/)
	{
		# Whoever was killed could not release it.
		$from->safe_psql('postgres', 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups');
	}
	my $is_promoted = $fault && $struck && $fault->{name} =~ /promotion/;
	nothing_is_left($from, $what, closely => !$is_promoted && ($status != 0 || $number % 5 == 0));
	new_backup_works($from, $what) if $status != 0;
	# All of it is kept then.
	return if !Test::More->builder->is_passing;
	$fault->clean_up if $fault;
	on('postgres', 'DROP TABLE far') if $has_far;
	File::Path::remove_tree($place, "$place.network", $status == 0 ? () : "${place}_ts");
	return;
}

my $spoiled_rows;
sub spoiled_rows { return $spoiled_rows //= on('postgres', 'SELECT count(*), sum(id), sum(hashtext(filler)) FROM spoiled') }

# Everything that is needed to look at it goes to where the logs are.
sub keep
{
	my $kept = "$ENV{TESTLOGDIR}/soak-$seed";
	eval { stop_load() };
	eval { $_->stop('immediate', fail_ok => 1) } for servers();
	mkdir $kept or return;
	system('cp', '-a', '--reflink=auto', $tempdir, "$kept/copies");
	system('cp', '-a', '--reflink=auto', $_->data_dir, "$kept/" . $_->name) for servers();
	diag("SEED=$seed: stopped at $last_words");
	diag('what there was is in soak-' . $seed . " beside the servers' logs");
	return;
}

my $number = 0;
my $is_alive = eval {
	begin_servers($tempdir);
	spoiled_rows();
	on('postgres', 'CHECKPOINT');
	settle();
	start_load();
	while (time < $until)
	{
		draw_anew(++$number, 0);
		some_deeds();
		draw_anew($number, 1);
		backup($number);
		last if !Test::More->builder->is_passing;
		# The load ends with its server.
		eval { stop_load() };
		start_load();
	}
	1;
};
fail("$last_words: $@") if !$is_alive;
if (!Test::More->builder->is_passing) { keep() }
else
{
	eval { stop_load() };
	forget_chain();
	nothing_is_left(primary(), 'in the end', closely => 1);
	end_servers();
}

diag("$number backups in $minutes min, SEED=$seed");
diag("  asked for: $_: $asked_for{$_}") for sort keys %asked_for;
diag("  $_: $count{$_}") for sort keys %count;
diag(sprintf '  bytes of copies: %.1f GB', $bytes / 1e9);
diag("  fault: $_: $fault_count{$_}") for sort keys %fault_count;
diag("  message: $_: $said{$_}") for sort keys %said;
diag('  nothing lost, nothing left') if Test::More->builder->is_passing;
done_testing();
