# Chains of increments of a cluster that is never quiet, by either program, from a primary and from a standby, across
# promotions: each is combined, verified, started and looked at. What happens is drawn at random; SEED, which is
# printed, brings it again. ROUNDS of it (`make check-incremental` has 20).

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Load;
use ParallelBackup::Test;

# Standbys are known by their own names.
delete $ENV{PGAPPNAME};

plan skip_all => 'incremental backups are from 17 on' if server_major() < 17;

my $rounds = $ENV{ROUNDS} || 1;
my $seed = $ENV{SEED} || int rand 1_000_000_000;
diag("SEED=$seed ROUNDS=$rounds");
srand $seed;

use constant SEGMENT => 1024 * 1024 * 1024;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $number = 0;
my ($node, $standby);
# Where the tablespace of each server lies.
my %space;

# A cluster with a relation of more than a segment: the first is pages that nobody has used, and takes no place.
sub begin
{
	$number++;
	$node = parallel_node("primary$number", extension => 1, segsize => 16, conf => qq(
summarize_wal = on
allow_in_place_tablespaces = on
checkpoint_timeout = 30s
max_wal_size = 256MB
wal_keep_size = 1GB
hot_standby_feedback = off
));
	work_on($node);
	$standby = undef;
	my $space = $space{ $node->name } = "$tempdir/ts$number";
	mkdir $space or die $!;
	on('postgres', "CREATE TABLESPACE ts LOCATION '$space'");
	on('postgres', "CREATE TABLESPACE in_place LOCATION ''");
	on('postgres', 'CREATE EXTENSION amcheck');
	$node->command_ok([ 'pgbench', '--quiet', '--initialize', '--scale' => 2, '--no-vacuum', 'postgres' ], 'pgbench tables');
	on('postgres', q(CREATE TABLE long (id int, filler text)));
	my $path = on('postgres', q(SELECT pg_relation_filepath('long')));
	$node->stop;
	make_file($node->data_dir . "/$path", SEGMENT);
	$node->start;
	on('postgres', q(INSERT INTO long SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g));
	cmp_ok(-s $node->data_dir . "/$path.1", '>', 0, 'a second segment');
	on('postgres', "CREATE TABLE $_ AS SELECT g AS id, repeat('x', 300) AS filler FROM generate_series(1, 3000) g; CREATE INDEX ON $_ (id)")
	  for map { "t$_" } 1 .. 8;
	on('postgres', 'CHECKPOINT');
	return;
}

# Its files go too.
sub retire
{
	my ($server) = @_;

	$server->stop;
	File::Path::remove_tree($server->data_dir, delete $space{ $server->name });
	return;
}

sub restores
{
	my ($name, $expected, @chain) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");

	command_ok(
		[ 'pg_combinebackup', '--no-sync', '--output' => $copy->data_dir, '--tablespace-mapping' => "$tempdir/$chain[-1]_ts=$tempdir/combined_ts", map { "$tempdir/$_" } @chain ],
		"$name: pg_combinebackup of @{[ scalar @chain ]}");
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "$name: pg_verifybackup");
	unlink map { $copy->data_dir . "/$_" } 'standby.signal';
	start_copy($copy, conf => "primary_conninfo = ''\nsummarize_wal = off\n");
	is($copy->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 'f', "$name: the copy is up");
	is(balances($copy), 't', "$name: it is consistent");
	is(sums($copy), $expected, "$name: it has the data") if defined $expected;
	$copy->command_ok([ 'pg_amcheck', '--all', '--install-missing', '--heapallindexed' ], "$name: pg_amcheck");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir, "$tempdir/combined_ts");
	return;
}

# Archives become what a plain backup is. Without a map recovery leaves the links as they are.
sub extracted
{
	my ($name) = @_;
	my $directory = "$tempdir/$name";

	extract_backup("$tempdir/archives", $directory);
	rename "$tempdir/archives/backup_manifest", "$directory/backup_manifest" or die $!;
	my ($oid) = slurp_file("$directory/tablespace_map") =~ /^(\d+) /;
	rename "$directory.$oid", "${directory}_ts" or die $!;
	unlink "$directory/pg_tblspc/$oid", "$directory/tablespace_map";
	symlink "${directory}_ts", "$directory/pg_tblspc/$oid" or die $!;
	File::Path::remove_tree("$tempdir/archives");
	return;
}

# A backup from whichever server, by whichever program, while things happen.
sub take
{
	my ($name, $from, $prior, $busy) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $program = pick(qw(pg_parallel_basebackup pg_parallel_basebackup pg_basebackup));
	my @mapping = ('--tablespace-mapping' => $space{ $from->name } . "=$tempdir/${name}_ts");
	# Archives have no holes: not for a full backup with its segment of nothing.
	my @output = $program eq 'pg_basebackup' ? () : pick(
		[], [ '--compress' => 'server-lz4' ], [ '--compress' => 'server-zstd' ],
		defined $prior ? ([ '--format' => 'tar' ], [ '--format' => 'tar', '--compress' => 'client-zstd' ]) : ())->@*;
	my $is_tar = grep { $_ eq 'tar' } @output;
	my @options = ('--no-sync', '--checkpoint' => 'fast', '--pgdata' => $is_tar ? "$tempdir/archives" : "$tempdir/$name",
		$is_tar ? () : @mapping, @output, '--dbname' => $from->connstr('postgres'));

	push @options, '--incremental' => "$tempdir/$prior/backup_manifest" if defined $prior;
	push @options, '--jobs' => pick(1, 2, 4), $busy ? ('--max-rate' => pick('16M', '64M')) : () if $program ne 'pg_basebackup';
	push @options, pick([], [ '--manifest-checksums' => 'SHA256' ])->@*;
	note(join ' ', $program, @options);
	my ($stdout, $stderr) = ('', '');
	my $run = IPC::Run::start([ $program, @options ], '>' => \$stdout, '2>' => \$stderr, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	while ($busy && $run->pumpable)
	{
		deed_while_it_runs();
		$run->pump_nb;
	}
	$run->finish;
	is($run->full_result(0), 0, "$name: $program @output from " . $from->name) or diag($stderr);
	extracted($name) if $is_tar;
	return;
}

for my $round (1 .. $rounds)
{
	# A new cluster now and then; otherwise the one that has been through it all.
	if (!$node || rand() < 0.2)
	{
		retire($_) for grep { $_ } $node, $standby;
		begin();
	}
	start_load();
	some_deeds();
	if ($round % 2 || !$standby)
	{
		# From a backup of our own: a relation with pages that are in no WAL. It has summaries only of WAL that it
		# has received itself, and so is there before the chain begins.
		retire($standby) if $standby;
		$standby = PostgreSQL::Test::Cluster->new("standby$round");
		my $place = $space{ $standby->name } = "$tempdir/standby${round}_ts";
		$node->command_ok(
			[ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-D' => $standby->data_dir, '-R', '-T' => $space{ $node->name } . "=$place", '-d' => $node->connstr('postgres') ],
			'a standby');
		start_copy($standby);
	}
	my @chain = ("r${round}_full");
	take($chain[0], $node, undef, 1);
	for my $link (1 .. 3 + int rand 2)
	{
		some_deeds();
		my $from = pick($node, $node, $standby);
		if ($from == $standby)
		{
			# So that there is something to go on from.
			on('postgres', 'SELECT pg_switch_wal()');
			on('postgres', 'CHECKPOINT');
			$node->wait_for_replay_catchup($standby);
			$standby->safe_psql('postgres', 'CHECKPOINT');
		}
		my $name = "r${round}_$link";
		take($name, $from, $chain[-1], $from == $node);
		push @chain, $name;
	}
	restores("busy$round", undef, @chain);
	stop_load();
	on('postgres', 'CHECKPOINT');
	my $last = "r${round}_last";
	take($last, $node, $chain[-1], 0);
	push @chain, $last;
	restores("quiet$round", sums($node), @chain);

	# Another timeline: what was the standby goes on, and the chain with it.
	if (rand() < 0.5 || $rounds == 1)
	{
		$node->wait_for_replay_catchup($standby);
		my $old = $node;
		$old->stop;
		$standby->promote;
		($node, $standby) = ($standby, undef);
		work_on($node);
		on('postgres', 'CHECKPOINT');
		some_deeds();
		on('postgres', 'CHECKPOINT');
		my $name = "r${round}_promoted";
		take($name, $node, $chain[-1], 0);
		push @chain, $name;
		restores("promoted$round", sums($node), @chain);
		File::Path::remove_tree($old->data_dir, delete $space{ $old->name });
	}
	File::Path::remove_tree(map { ("$tempdir/$_", "$tempdir/${_}_ts") } @chain);
}
$standby->stop if $standby;
$node->stop if $node;
done_testing();
