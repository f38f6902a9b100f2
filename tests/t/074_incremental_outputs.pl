# Incremental backups in every output: archives, compressed ones, one on standard output, and plain backups that
# travel compressed. File by file what pg_basebackup makes of the same idle cluster, combined, and started.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Increment;
use ParallelBackup::Test;

plan skip_all => 'PostgreSQL has incremental backups from 17 on' if server_major() < 17;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
# Nothing must change between two backups: no checkpoint of its own, no snapshot in WAL.
my $node = parallel_node('main', extension => 1, conf => qq(
summarize_wal = on
allow_in_place_tablespaces = on
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
));
mkdir "$tempdir/ts" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	"CREATE TABLESPACE in_place LOCATION ''",
	q(CREATE TABLE t AS SELECT g AS id, repeat('x', 700) AS filler FROM generate_series(1, 40000) g),
	'CREATE TABLE t1 TABLESPACE ts AS SELECT g AS id, 0 AS n FROM generate_series(1, 20000) g',
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT g AS id, 0 AS n FROM generate_series(1, 20000) g',
	'CREATE TABLE shrinking AS SELECT g AS id FROM generate_series(1, 50000) g',
	'VACUUM FREEZE');
my $ts = $node->safe_psql('postgres', q(SELECT oid FROM pg_tablespace WHERE spcname = 'ts'));
my $in_place = $node->safe_psql('postgres', q(SELECT oid FROM pg_tablespace WHERE spcname = 'in_place'));
my $big = $node->safe_psql('postgres', q(SELECT pg_relation_filepath('t')));
my $query = join ' UNION ALL ', map { "SELECT '$_', count(*), sum(hashtext($_\::text)) FROM $_" } qw(t t1 t2 shrinking);
my @common = ('--no-sync', '--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'));
my @mapping = ('--tablespace-mapping' => "$tempdir/ts=$tempdir/target_ts");

# All that is in a plain backup, its tablespace included, but for where that lies.
sub content
{
	my ($directory, $tablespace) = @_;
	my %tree = %{ file_tree($directory) };

	if (defined $tablespace)
	{
		delete $tree{"pg_tblspc/$ts"};
		my $there = file_tree($tablespace);
		$tree{"tablespace/$_"} = $there->{$_} for keys %$there;
	}
	delete $tree{$_} for grep { m{^pg_wal/[0-9A-F]|^pg_wal/archive_status/} } keys %tree;
	return \%tree;
}

# What differs between two backups of an idle cluster: start LSN and time, the location of the checkpoint, the
# manifest, which lists both.
my %differ = map { $_ => 1 } qw(backup_label backup_manifest global/pg_control);

# A server on what pg_combinebackup makes of the chain.
sub restores
{
	my ($name, $expected, $increment, @links) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new($name =~ s/\W+/_/gr);

	command_ok(
		[ 'pg_combinebackup', '--no-sync', '--output' => $copy->data_dir, @links, "$tempdir/full", $increment ],
		"$name: pg_combinebackup");
	# As extracted the map says where the archive's tablespace is, and recovery would go by that.
	command_ok([ 'pg_verifybackup', '--ignore' => 'tablespace_map', $copy->data_dir ], "$name: pg_verifybackup of what is combined");
	unlink $copy->data_dir . '/tablespace_map';
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir, "$tempdir/combined_ts");
	return;
}

$node->command_ok([ 'pg_basebackup', @common, '-D' => "$tempdir/full", '--tablespace-mapping' => "$tempdir/ts=$tempdir/full_ts", '-X' => 'none' ], 'the full backup');

# An increment of many blocks comes in parts; others have a few, or none, or are truncated.
$node->safe_psql('postgres', $_) for (
	q(UPDATE t SET filler = repeat('y', 700) WHERE id < 24000 AND id % 8 = 0),
	'UPDATE t1 SET n = n + 1 WHERE id % 5000 = 0',
	'UPDATE t2 SET n = n + 1 WHERE id < 100',
	'DELETE FROM shrinking WHERE id > 1000',
	'VACUUM (TRUNCATE) shrinking',
	'CREATE DATABASE other');
# A shutdown writes statistics and what else waits; after it the cluster is idle.
$node->restart;
$node->safe_psql('postgres', 'CHECKPOINT');
my $expected = $node->safe_psql('postgres', $query);
my @prior = ('--incremental' => "$tempdir/full/backup_manifest");

$node->command_ok([ 'pg_basebackup', @common, @prior, '-D' => "$tempdir/theirs", '--tablespace-mapping' => "$tempdir/ts=$tempdir/theirs_ts", '-X' => 'none' ], 'by pg_basebackup');
my $theirs = content("$tempdir/theirs", "$tempdir/theirs_ts");
my $large = increment_path($big);
cmp_ok($theirs->{$large} ? $theirs->{$large}{size} : 0, '>', 2 << 23, 'an increment that comes in parts where archives are written from beginning to end');
for my $place ('tablespace', "pg_tblspc/$in_place")
{
	ok((grep { m{^\Q$place\E/.*/INCREMENTAL\.} } keys %$theirs), "increments in $place");
}

for my $case (
	[ 'tar', '-Ft' ],
	[ 'tar.zst', '-Ft', '-Z' => 'client-zstd' ],
	[ 'tar.gz', '-Ft', '-z', '-X' => 'fetch', '-j' => 1, '--manifest-checksums' => 'SHA256' ],
	[ 'server-zstd', '-Z' => 'server-zstd' ],
	[ 'server-lz4', '-Z' => 'server-lz4', '-X' => 'fetch', '--manifest-checksums' => 'SHA256' ])
{
	my ($name, @options) = @$case;
	my $is_tar = $options[0] eq '-Ft';
	my $target = "$tempdir/target";
	unshift @options, @mapping if !$is_tar;
	$node->command_checks_all([ 'pg_parallel_basebackup', @common, @prior, '-j' => 3, '-D' => $target, @options ], 0, [qr/^\z/], [qr/^\z/], $name);
	my ($plain, $tablespace) = ($target, "${target}_ts");
	if ($is_tar)
	{
		my ($suffix) = $name =~ /^tar(\.\w+)?/;
		my @archives = map { $_ . ($suffix // '') } "$ts.tar", "$in_place.tar", 'base.tar';
		my @there = grep { /^(?!pg_wal)\w/ } slurp_dir($target);
		is_deeply([ sort @there ], [ sort 'backup_manifest', @archives ], "$name: what is there");
		command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], "$name: pg_verifybackup of the archives") if server_major() >= 18;
		$plain = "$tempdir/extracted";
		$tablespace = "$plain.$ts";
		extract_backup($target, $plain);
		rename "$target/backup_manifest", "$plain/backup_manifest" or die $!;
	}
	compare_trees($theirs, content($plain, $tablespace), "$name: what pg_basebackup makes", differ => \%differ, $is_tar ? (only_in_right => { tablespace_map => 1 }) : ());
	restores($name, $expected, $plain, '--tablespace-mapping' => "$tablespace=$tempdir/combined_ts");
	File::Path::remove_tree($target, "${target}_ts", $plain, $tablespace);
}

# One archive on standard output, with the manifest in it, of a cluster without tablespaces.
$node->safe_psql('postgres', $_) for (
	'ALTER TABLE t1 SET TABLESPACE pg_default', 'ALTER TABLE t2 SET TABLESPACE pg_default',
	'DROP TABLESPACE ts', 'DROP TABLESPACE in_place', 'CHECKPOINT');
$node->restart;
$node->safe_psql('postgres', 'CHECKPOINT');
my @stdout = ('bash', '-c', 'set -o pipefail; out=$1; shift; "$@" | zstd -q -dcf >"$out"', 'sh');
my %members;
for my $case ([ 'pg_basebackup' ], [ 'pg_parallel_basebackup' ], [ 'pg_parallel_basebackup', '-Z' => 'client-zstd' ])
{
	my ($program, @options) = @$case;
	my $name = join ' ', $program, '-Ft -D -', @options;
	my $plain = "$tempdir/plain";
	mkdir $plain;
	chmod 0700, $plain;
	$node->command_checks_all([ @stdout, "$plain/base.tar", $program, @common, @prior, '-Ft', '-X' => 'fetch', '-D' => '-', @options ], 0, [qr/^\z/], [qr/^\z/], $name);
	my %member = map { ($_->{name} =~ s{^\./}{}r => "$_->{type} $_->{mode} $_->{size} $_->{digest}") }
	  grep { $_->{name} !~ m{^(?:backup_label|backup_manifest|global/pg_control)\z|^pg_wal/[0-9A-F]|^pg_wal/archive_status/.} } members("$plain/base.tar");
	$members{theirs} //= \%member;
	is_deeply(\%member, $members{theirs}, "$name: the members");
	if (@options)
	{
		extract_backup($plain, "$plain.x");
		restores($name, $expected, "$plain.x");
	}
	File::Path::remove_tree($plain, "$plain.x");
}

$node->stop;
done_testing();
