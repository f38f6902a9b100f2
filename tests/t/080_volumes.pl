# Backups in volumes (docs/volumes.md): whatever compresses them, they are extracted by plain tar in any order, and
# are what pg_verifybackup wants.

use strict;
use warnings FATAL => 'all';

use File::Copy ();
use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $seed = $ENV{SEED} // time;
srand $seed;
note "SEED=$seed";
my $node = parallel_node('main', extension => 1, conf => "checkpoint_timeout = 1d\nallow_in_place_tablespaces = on\nwal_level = replica\n"
	. (server_major() >= 17 ? "summarize_wal = on\n" : ''));
my $pgdata = $node->data_dir;
my @common = ('--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'));
my @client = ('pg_parallel_basebackup', @common, '--format' => 'tar');
my $MB = 1024 * 1024;

mkdir "$tempdir/ts" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	"CREATE TABLESPACE in_place LOCATION ''",
	"CREATE TABLESPACE empty LOCATION ''",
	# In several parts, and larger than a volume.
	"CREATE TABLE t AS SELECT id, repeat(md5(id::text), 15) AS filler FROM generate_series(1, 40000) AS id",
	"CREATE TABLE t1 TABLESPACE ts AS SELECT id, repeat(md5(id::text), 15) AS filler FROM generate_series(1, 20000) AS id",
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT id FROM generate_series(1, 20000) AS id',
	'VACUUM FREEZE');
# More than is kept in memory, and no relation.
make_file("$pgdata/spooled", 17 * $MB);
write_file("$pgdata/no \xff utf-8", 'x');
mkdir "$pgdata/empty_directory", 0700 or die $!;
$node->restart;
my $query = join(' UNION ALL ', map { "SELECT '$_', count(*), sum(hashtext(x::text)) FROM $_ x" } qw(t t1 t2)) . ' ORDER BY 1';
my $expected = $node->safe_psql('postgres', $query);

sub started
{
	my ($place, $name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new($params{as} // 'copy_' . ($name =~ s/\W+/_/gr));
	my $index = extract_volumes($place, $copy->data_dir);

	# Whose directories are elsewhere here.
	command_ok([ 'pg_verifybackup', '--ignore' => 'tablespace_map', '--manifest-path' => "$place/backup_manifest", $copy->data_dir ], "$name: pg_verifybackup of what was extracted");
	ok(-d $copy->data_dir . '/empty_directory', "$name: a directory without files") if !$params{slim};
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $params{expected} // $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir, glob($copy->data_dir . '.*'));
	return $index;
}

for my $case (
	[ '', 'none', 1, '-X' => 'stream' ], [ '', 'none', 4, '-X' => 'fetch' ],
	[ '.gz', 'gzip', 3, '-z' ], [ '.lz4', 'lz4', 2, '-Z' => 'lz4' ], [ '.zst', 'zstd', 4, '-Z' => 'zstd:workers=1' ],
	[ '.zst', 'zstd', 4, '-Z' => 'server-zstd', '-X' => 'fetch' ], [ '.lz4', 'lz4', 1, '-Z' => 'server-lz4' ])
{
	my ($suffix, $method, $jobs, @options) = @$case;
	my $name = "-j $jobs @options";
	my $place = "$tempdir/volumes";

	$node->command_checks_all([ @client, '-D' => $place, '--volumes=4MB', '-j' => $jobs, @options ], 0, [qr/^\z/], [qr/^\z/], $name);
	my $index = started($place, $name);
	my @volumes = @{ $index->{volumes} };
	my @base = grep { !ref $_->{content} && $_->{content} eq 'base' } @volumes;
	cmp_ok(scalar @base, '>', 3, "$name: several volumes");
	is(scalar(grep { $_->{name} !~ /\.tar\Q$suffix\E\z/ } @volumes), 0, "$name: names");
	is($index->{compression}, $method, "$name: the index says how they are compressed");
	is_deeply([ map { $_->{name} } grep { $_->{tar_size} > 4 * $MB + 65536 && @{ $_->{files} } > 1 } @volumes ], [], "$name: none is too long but for a file of its own");
	my $segments = grep { !ref $_->{content} && $_->{content} eq 'wal' } @volumes;
	my $fetched = grep { m{^pg_wal/[0-9A-F]{24}\z} } map { @{ $_->{files} } } @base;
	"@options" =~ /fetch/ ? ok(!$segments && $fetched, "$name: WAL is in the data directory's") : ok($segments && !$fetched, "$name: WAL has its own");
	# What pg_basebackup says beside it.
	my ($start) = slurp_file("$pgdata/global/pg_control") ? $index->{wal}{start} : ();
	like($start, qr{^[0-9A-F]+/[0-9A-F]+\z}, "$name: start LSN");
	is($index->{system_identifier}, $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()'), "$name: system identifier");
	is($index->{server_version}, $node->safe_psql('postgres', 'SHOW server_version_num'), "$name: version");
	is(scalar @{ $index->{tablespaces} }, 3, "$name: tablespaces");
	File::Path::remove_tree($place);
}

# While the cluster changes, by the name of a URL, of 1 GB, for a standby.
{
	my $place = "$tempdir/url";
	my $load = IPC::Run::start([ 'psql', '-XqAtd', $node->connstr('postgres'), '-c', 'SET synchronous_commit = off',
			'-c', q(DO $$BEGIN FOR i IN 1..100000 LOOP UPDATE t SET filler = 'x' || i WHERE id = i % 1000; INSERT INTO t2 VALUES (i); CREATE TABLE new AS SELECT i; DROP TABLE new; COMMIT; END LOOP; END$$) ],
		'>' => '/dev/null', '2>' => '/dev/null');
	$node->command_ok([ 'pg_parallel_basebackup', @common, '-D' => "file://$place", '-j' => 4, '-R', '-Z' => 'client-zstd' ], 'under load');
	$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^DO' AND pid <> pg_backend_pid()));
	$load->finish;
	ok($node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE query ~ '^DO' AND pid <> pg_backend_pid())), 'under load: the load is over');
	my $index = volume_index($place);
	is($index->{volumes}[0]{tar_size} > 4 * $MB, 1, 'under load: the usual size');
	my $copy = PostgreSQL::Test::Cluster->new('under_load');
	extract_volumes($place, $copy->data_dir);
	command_ok([ 'pg_verifybackup', '--manifest-path' => "$place/backup_manifest", '--ignore' => 'tablespace_map', '--ignore' => 'standby.signal', '--ignore' => 'postgresql.auto.conf', $copy->data_dir ], 'under load: pg_verifybackup');
	start_copy($copy);
	$node->safe_psql('postgres', 'INSERT INTO t2 VALUES (-1)');
	$node->wait_for_catchup($copy, 'replay');
	is($copy->safe_psql('postgres', $query), $node->safe_psql('postgres', $query), 'under load: the standby has the same data');
	$copy->stop;
	$expected = $node->safe_psql('postgres', $query);
	File::Path::remove_tree($place);
}

SKIP:
{
	skip 'PostgreSQL has incremental backups from 17 on', 1 if server_major() < 17;
	my ($full, $increment) = ("$tempdir/full", "$tempdir/increment");
	$node->command_ok([ @client, '-D' => $full, '--volumes' ], 'full');
	$node->safe_psql('postgres', "UPDATE t SET filler = 'changed' WHERE id % 1000 = 0");
	$node->command_ok([ @client, '-D' => $increment, '--volumes=8MB', '-i' => "$full/backup_manifest", '-Z' => 'server-zstd' ], 'increment');
	my ($prior, $index) = map { volume_index($_) } $full, $increment;
	is($prior->{incremental}, undef, 'full: it goes on from nothing');
	is_deeply($index->{incremental}, { start => $prior->{wal}{start}, timeline => $prior->{wal}{timeline}, manifest_sha256 => $prior->{manifest}{sha256} },
		'increment: the index says what it goes on from');
	my $copy = PostgreSQL::Test::Cluster->new('combined');
	my @parts = map { $tempdir . "/extracted$_" } 0, 1;
	extract_volumes($full, $parts[0]);
	extract_volumes($increment, $parts[1]);
	for my $part ([ 0, $full ], [ 1, $increment ])
	{
		File::Copy::copy("$part->[1]/backup_manifest", "$parts[$part->[0]]/backup_manifest") or die $!;
	}
	# As in plain format: the links are there. Or recovery would make them lead to the increment's.
	unlink "$_/tablespace_map" or die $! for @parts;
	my ($ts) = map { $_->{oid} } grep { $_->{location} eq "$tempdir/ts" } @{ $index->{tablespaces} };
	command_ok([ 'pg_combinebackup', '--no-sync', '-o' => $copy->data_dir, "--tablespace-mapping=$parts[1].$ts=$tempdir/combined_ts", @parts ], 'pg_combinebackup');
	command_ok([ 'pg_verifybackup', '--ignore' => 'tablespace_map', $copy->data_dir ], 'increment: pg_verifybackup of what was combined');
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $node->safe_psql('postgres', $query), 'increment: data');
	$copy->stop;
}

# A disk that is full, in the words of a limit that anybody can set.
$node->command_checks_all([ 'bash', '-c', 'ulimit -f 2048; exec "$@"', 'sh', @client, '-D' => "$tempdir/limited", '--volumes' ],
	1, [qr/^\z/], [qr/error: could not write to file "\Q$tempdir\E\/limited\/[^"]*": File too large/], 'no room');
ok(!-e "$tempdir/limited", 'no room: nothing is left');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), 'no room: nothing is left on the server');

# A place that is taken.
mkdir "$tempdir/taken" or die $!;
write_file("$tempdir/taken/backup_index.json", '{}');
$node->command_fails_like([ @client, '-D' => "$tempdir/taken", '--volumes' ], qr/directory "\Q$tempdir\E\/taken" exists but is not empty/, 'a directory with a backup');

for my $case (
	[ [ '--volumes' ], qr/error: only tar mode backups can be written in volumes/ ],
	[ [ '-Fp', '--volumes=1GB' ], qr/error: only tar mode backups can be written in volumes/ ],
	[ [ '-Ft', '--volumes=1TB' ], qr/error: invalid volume size "1TB"\n.*hint: It is a whole number of "MB" or "GB", from 1MB to 64GB/ ],
	[ [ '-Ft', '--volumes=' ], qr/error: option "--volumes" requires an argument|error: invalid volume size ""/ ],
	[ [ '-Ft', '--volumes', '--waldir' => '/x' ], qr/error: WAL directory location can only be specified in plain mode/ ])
{
	my ($options, $complaint) = @$case;
	$node->command_fails_like([ 'pg_parallel_basebackup', @common, '-D' => "$tempdir/refused", @$options ], $complaint, "refused: @$options");
}
$node->command_fails_like([ 'pg_parallel_basebackup', '-D' => '-', '-Ft', '-X' => 'none', '--volumes' ], qr/error: cannot write volumes to stdout/, 'refused: standard output');
$node->command_fails_like([ 'pg_parallel_basebackup', '-D' => 'ftp://x/y' ], qr/error: unrecognized storage "ftp"/, 'refused: another storage');
$node->command_fails_like([ 'pg_parallel_basebackup', '-D' => 's3://b/p', '-Fp' ], qr/error: only tar mode backups can be written to a URL/, 'refused: plain format to a URL');
ok(!-e "$tempdir/refused", 'refused: nothing is made');

done_testing();
