# The directory that the client writes beside pg_basebackup's of the same idle
# cluster: the same files, bytes and modes, but for what is named here.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
# Nothing must change between the two: no checkpoint of its own, no snapshot in
# WAL, no statistics on disk.
my $node = parallel_node('main', conf => qq(
allow_in_place_tablespaces = on
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
));
my $pgdata = $node->data_dir;
mkdir "$tempdir/ts" or die $!;
for my $sql (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	"CREATE TABLESPACE in_place LOCATION ''",
	'CREATE TABLE t AS SELECT generate_series(1, 50000) AS id',
	'CREATE INDEX ON t (id)',
	'CREATE TABLE t1 TABLESPACE ts AS SELECT generate_series(1, 1000) AS id',
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT generate_series(1, 1000) AS id',
	'CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) AS id',
	'CREATE DATABASE other',
	'VACUUM FREEZE')
{
	$node->safe_psql('postgres', $sql);
}
write_file("$pgdata/odd name\n\xff", 'x');
write_file("$pgdata/pg_replslot/x", 'x');
chmod(0640, "$pgdata/pg_ident.conf");
mkdir "$pgdata/a directory";
chmod(0750, "$pgdata/a directory");

# A shutdown writes statistics and what else waits; after it the cluster is idle.
$node->restart;
$node->safe_psql('postgres', 'CHECKPOINT');

my @common = ('--no-sync', '--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'));

# What must differ, and why.
my %differ = (
	# Start LSN and time, and the label where it is given.
	'backup_label' => 1,
	# Lists backup_label, pg_control and times.
	'backup_manifest' => 1,
	# Checkpoint location: each backup makes one.
	'global/pg_control' => 1);

sub both
{
	my ($name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $ts = "$tempdir/$name";

	$node->command_ok(
		[
			'pg_basebackup', @common, '--pgdata' => "$ts.serial",
			'--tablespace-mapping' => "$tempdir/ts=$ts.serial_ts", @{ $params{options} || [] }
		],
		"$name: pg_basebackup");
	$node->command_ok(
		[
			'pg_parallel_basebackup', @common, '--pgdata' => "$ts.parallel", '--jobs' => 4,
			'--tablespace-mapping' => "$tempdir/ts=$ts.parallel_ts", @{ $params{options} || [] }
		],
		"$name: pg_parallel_basebackup");

	my ($serial, $parallel) = map { file_tree("$ts.$_") } qw(serial parallel);
	# The links lead to each copy's own tablespace, as they were told.
	for my $tree ($serial, $parallel)
	{
		$_->{target} =~ s/\.(?:serial|parallel)_ts\z/_ts/
		  for grep { $_->{type} eq 'l' } values %$tree;
	}
	compare_trees($serial, $parallel, "$name: data directory",
		differ => \%differ,
		ignore => $params{ignore});
	compare_trees("$ts.serial_ts", "$ts.parallel_ts", "$name: tablespace");
	is((stat("$ts.serial"))[2], (stat("$ts.parallel"))[2], "$name: mode of the directory");
	is((stat("$ts.serial_ts"))[2], (stat("$ts.parallel_ts"))[2], "$name: mode of the tablespace");

	# Where the same file is in both manifests, it is described alike.
	my ($left, $right) = map { manifest("$ts.$_/backup_manifest") } qw(serial parallel);
	return if !$left;
	for my $pattern (@{ $params{ignore} || [] })
	{
		delete @$_{ grep { /^$pattern\z/ } keys %$_ } for ($left, $right);
	}
	is_deeply(
		[ sort keys %$right ], [ sort keys %$left ], "$name: the manifests list the same files");
	is_deeply([ grep { !$differ{$_} && $left->{$_} ne $right->{$_} } sort keys %$left ],
		[], "$name: and say the same of them");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', "$ts.parallel" ], "$name: pg_verifybackup");
	return;
}

# Entries of a manifest, without their times: pg_basebackup writes those of the
# moment for some.
sub manifest
{
	my ($path) = @_;
	return undef if !-e $path;
	my %entries;
	my $text = slurp_file($path);
	while ($text =~ /^\{ "(Path|Encoded-Path)": "((?:[^"\\]|\\.)*)", (.*?) \},?$/mg)
	{
		my ($kind, $name, $rest) = ($1, $2, $3);
		$name = pack('H*', $name) if $kind eq 'Encoded-Path';
		$rest =~ s/"Last-Modified": "[^"]*", //;
		$entries{$name} = "$kind $rest";
	}
	return \%entries;
}

# WAL of its own time, so under -X it differs by name.  Whether the last streamed
# segment is marked as archived depends on the moment in which the stream ends.
my @wal = ('pg_wal/[0-9A-F]{24}', 'pg_wal/archive_status/[0-9A-F]{24}\.done');

both('none', options => [ '--wal-method' => 'none' ]);
both('fetch', options => [ '--wal-method' => 'fetch' ], ignore => \@wal);
both('stream', options => [ '--wal-method' => 'stream' ], ignore => \@wal);
both(
	'crc',
	options => [ '--wal-method' => 'none', '--manifest-checksums' => 'SHA512', '--label' => 'the same' ]);
both('force', options => [ '--wal-method' => 'none', '--manifest-force-encode' ]);
both('write_conf', options => [ '--wal-method' => 'none', '--write-recovery-conf' ]);
{
	local $differ{'backup_manifest'};
	delete $differ{'backup_manifest'};
	both('no_manifest', options => [ '--wal-method' => 'none', '--no-manifest' ]);
	for (qw(serial parallel))
	{
		ok(!-e "$tempdir/no_manifest.$_/backup_manifest", "$_: no manifest");
	}
}

# With group access on both sides.
{
	$node->stop;
	chmod_recursive($pgdata, 0750, 0640);
	chmod_recursive("$tempdir/ts", 0750, 0640);
	$node->start;
	local $differ{'backup_manifest'} = 1;
	both('group', options => [ '--wal-method' => 'none' ]);
	ok((stat("$tempdir/group.parallel/PG_VERSION"))[2] & 0040, 'group access is carried over');
}

# The raw backup of the tests' own client is the same again.
{
	my $dir = "$tempdir/raw";
	my ($oid) = grep { -l "$pgdata/pg_tblspc/$_" } slurp_dir("$pgdata/pg_tblspc");
	raw_backup($node, $dir, wal => 0, tablespaces => { $oid => "$tempdir/raw_ts" });
	compare_trees("$tempdir/group.parallel", $dir, 'the raw backup',
		differ => { %differ, backup_manifest => 1, "pg_tblspc/$oid" => 1 });
	compare_trees("$tempdir/group.parallel_ts", "$tempdir/raw_ts", 'its tablespace');
}

# One of them runs.
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	rename("$tempdir/fetch.parallel", $copy->data_dir) or die $!;
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t, (SELECT 1 FROM t1, t2 LIMIT 1) x'),
		50000, 'data of the copy');
	$copy->stop;
}

done_testing();
