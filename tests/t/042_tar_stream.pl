# Archives that are written from beginning to end: on standard output, and compressed by the client.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, conf => "checkpoint_timeout = 1d\nbgwriter_lru_maxpages = 0\n");
my $pgdata = $node->data_dir;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--format' => 'tar');

$node->safe_psql('postgres', $_) for (
	# More than one part of a file.
	"CREATE TABLE t AS SELECT id, repeat(md5(id::text), 15) AS filler FROM generate_series(1, 40000) AS id",
	'VACUUM FREEZE');
# More than is kept in memory, and no relation.
make_file("$pgdata/spooled", 17 * 1024 * 1024);
$node->restart;
my $query = 'SELECT count(*), sum(id), md5(string_agg(filler, NULL ORDER BY id)) FROM t';
my $expected = $node->safe_psql('postgres', $query);

sub started
{
	my ($archives, $name, $as) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new($as);

	extract_backup($archives, $copy->data_dir);
	my $manifest = -e "$archives/backup_manifest" ? "$archives/backup_manifest" : $copy->data_dir . '/backup_manifest';
	command_ok([ 'pg_verifybackup', '--manifest-path' => $manifest, '--ignore' => 'backup_manifest', $copy->data_dir ], "$name: pg_verifybackup of what was extracted");
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir);
	return;
}

# Through a pipe: one archive with all that belongs to a backup.
for my $jobs (1, 4)
{
	my $name = "standard output, -j $jobs";
	mkdir "$tempdir/pipe" or die $!;
	$node->command_ok([ 'bash', '-c', 'set -o pipefail; "$@" | cat >"$0"', "$tempdir/pipe/base.tar", @client, '-D' => '-', '-X' => 'fetch', '-j' => $jobs ], $name);
	my @base = map { $_->{name} } members("$tempdir/pipe/base.tar");
	is($base[0], 'backup_label', "$name: the label is first");
	is_deeply([ @base[ -2, -1 ] ], [ 'global/pg_control', 'backup_manifest' ], "$name: pg_control and the manifest are last");
	started("$tempdir/pipe", $name, "pipe_$jobs");
	File::Path::remove_tree("$tempdir/pipe");
}
$node->command_checks_all([ 'bash', '-c', 'set -o pipefail; "$@" | head -c 100000 >/dev/null', 'sh', @client, '-D' => '-', '-X' => 'none', '-j' => 2 ],
	1, [qr/^\z/], [qr/error: could not write to file "standard output": Broken pipe/], 'nobody reads to the end');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), 'nobody reads to the end: nothing is left on the server');
$node->command_checks_all([ @client, '-D' => '-' ], 1, [qr/^\z/], [qr/error: cannot stream write-ahead logs in tar mode to stdout/], 'WAL cannot be streamed into a pipe');
$node->command_ok([ 'bash', '-c', 'set -o pipefail; "$@" | tar -t >"$0"', "$tempdir/list", @client, '-D' => '-', '-X' => 'none', '--no-manifest' ], 'without a manifest');
unlike(slurp_file("$tempdir/list"), qr/backup_manifest/, 'without a manifest: none is there');

# Compressed, by the options of pg_basebackup.
for my $case (
	[ 'gz', '-z' ], [ 'gz', '-Z' => '1' ], [ 'gz', '-Z' => 'gzip:level=9' ],
	[ 'lz4', '-Z' => 'client-lz4' ], [ 'lz4', '-Z' => 'lz4:9' ],
	[ 'zst', '-Z' => 'client-zstd' ], [ 'zst', '-Z' => 'zstd:level=1,workers=2' ], [ 'zst', '-Z' => 'zstd:level=1,long' ])
{
	my ($suffix, @options) = @$case;
	my $name = "@options";
	my $archives = "$tempdir/compressed";
	$node->command_checks_all([ @client, '-D' => $archives, '-j' => 2, @options ], 0, [qr/^\z/], [qr/^\z/], $name);
	is_deeply([ sort grep { !/^\.\.?\z/ } slurp_dir($archives) ],
		[ sort 'backup_manifest', "base.tar.$suffix", $suffix eq 'gz' ? 'pg_wal.tar.gz' : 'pg_wal.tar' ], "$name: what is there");
	my @base = members("$archives/base.tar.$suffix");
	ok(@base > 100, "$name: the archive can be read");
	cmp_ok(-s "$archives/base.tar.$suffix", '<', 40 * 1024 * 1024, "$name: it is smaller");
	# gzip and lz4 by zlib and lz4 of PostgreSQL's own: of one member, or frame, alone.
	my $with = { gz => 'with_zlib', lz4 => 'with_lz4', zst => 'with_zstd' }->{$suffix};
	if (server_major() >= 18 && !stock_server() && (`pg_config --configure` =~ { gz => qr/^(?!.*without-zlib)/s, lz4 => qr/with-lz4/, zst => qr/with-zstd/ }->{$suffix}))
	{
		command_ok([ 'pg_verifybackup', '--no-parse-wal', $archives ], "$name: pg_verifybackup of the archives");
	}
	started($archives, $name, "copy_" . ($name =~ s/\W+/_/gr));
	File::Path::remove_tree($archives);
}

for my $case (
	[ 'zip', qr/error: unrecognized compression algorithm: "zip"/ ],
	[ 'gzip:level=10', qr/error: invalid compression specification: compression algorithm "gzip" expects a compression level between 1 and 9/ ],
	[ 'lz4:workers=2', qr/error: invalid compression specification: compression algorithm "lz4" does not accept a worker count/ ])
{
	my ($compress, $message) = @$case;
	$node->command_checks_all([ @client, '-D' => "$tempdir/none", '-Z' => $compress ], 1, [qr/^\z/], [$message], "refused: -Z $compress");
}

# A tablespace is an archive of its own, for which standard output has no place.
mkdir "$tempdir/ts";
$node->safe_psql('postgres', "CREATE TABLESPACE ts LOCATION '$tempdir/ts'");
$node->command_checks_all([ @client, '-D' => '-', '-X' => 'none' ], 1, [qr/^\z/],
	[qr/error: can only write single tablespace to stdout, database has 2/], 'a tablespace');

$node->stop;
done_testing();
