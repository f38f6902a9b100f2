# Unlogged and temporary relations, and file names of every kind.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir;
my $node = parallel_node('main');
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 1000) AS id;
	CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
	INSERT INTO unlogged SELECT generate_series(1, 20000);
	CREATE UNLOGGED SEQUENCE unlogged_sequence;
	VACUUM unlogged;
	CHECKPOINT;));
# Before 17 all of these files count as pages among relations, and a name with a dot but no segment
# number ends BASE_BACKUP: 010_checksums.pl.
my $verify = server_major() >= 17;
my @start = $verify ? () : (VERIFY_CHECKSUMS => 'false');
my @no_verify = $verify ? () : ('--no-verify-checksums');
my $dbdir = 'base/' . $node->safe_psql('postgres',
	"SELECT oid FROM pg_database WHERE datname = 'postgres'");

# A session with temporary relations, open all the while.
my $session = ParallelBackup::Connection->new($node);
query_ok($session, 'CREATE TEMP TABLE temporary AS SELECT generate_series(1, 20000) AS id');
my $temporary = query_ok($session, "SELECT pg_relation_filepath('temporary')")->{results}[0]{rows}[0][0];
like($temporary, qr{/t\d+_\d+\z}, 'path of a temporary relation');
ok(-f "$pgdata/$temporary", 'which is on disk');

# Names as bytes.  Those that look like relations are not parsed as such where
# PostgreSQL would not.
my @names = (
	'with blank', ' leading', 'trailing ', "new\nline", "tab\there", 'per%cent', '%41',
	"it's", 'double"quote', 'back\\slash', 'semi;colon', '$dollar`tick', '*?[x]', '-dash',
	"\xe4\xf6\xfc-latin1", "\xff\xfe\x80", "\xc3\xa4-utf8", "\x01\x7f", 'a' x 255,
	'16384_init2', '123_fsm_x', '00123', '12345.0', '12345.01', '4294967296', '99999999999', '12345.4294967296',
	'12345.99999999999999999999', '123_init.x', '123_vm.', 't_1', 't1_', 't1', 'pgsql_tm', 'pg_internal.ini',
	'backup_label.old', 'tablespace_map.old', '.hidden', '...', 'postmaster.pid2', 'pg_control');
my %content;
mkdir "$pgdata/odd dir\n\xff%" or die $!;
mkdir "$pgdata/$dbdir/odd" or die $!;
mkdir "$pgdata/empty dir" or die $!;
chmod(0750, "$pgdata/empty dir");
for my $dir ('', "odd dir\n\xff%/", "$dbdir/", "$dbdir/odd/")
{
	for my $name (@names)
	{
		my $path = "$dir$name";
		$content{$path} = "content of $path\n";
		write_file("$pgdata/$path", $content{$path}, length($name) % 2 ? 0600 : 0640);
	}
}
# Depth and length: the longest name in a deep directory.
{
	my $deep = join('/', ('d' x 50) x 12);
	my $at = $pgdata;
	for (split '/', $deep) { $at .= "/$_"; mkdir $at or die $! }
	$content{"$deep/file"} = 'deep';
	write_file("$pgdata/$deep/file", 'deep');
}
# Excluded at any depth.
for my $path ('odd dir' . "\n\xff%" . '/pgsql_tmp.x', "$dbdir/odd/backup_manifest",
	"$dbdir/odd/pg_internal.init.1", "$dbdir/odd/postmaster.opts", "$dbdir/odd/.DS_Store")
{
	write_file("$pgdata/$path", 'excluded');
}
mkdir "$pgdata/$dbdir/odd/pg_notify" or die $!;
write_file("$pgdata/$dbdir/odd/pg_notify/x", 'excluded');
mkdir "$pgdata/$dbdir/odd/pgsql_tmp" or die $!;
write_file("$pgdata/$dbdir/odd/pgsql_tmp/x", 'excluded');

# What the list has.
{
	my $conn = connection($node);
	start_backup($conn, @start);
	my @list = list_files($conn);
	my %listed = map { $_->{path} => $_ } @list;

	is(scalar(grep { encode_path($_->{path}) ne $_->{name} } @list), 0,
		'every name has its one spelling');
	is_deeply([ map { encode_path($_) } grep { !$listed{$_} } sort keys %content ], [],
		'odd names are listed');
	is_deeply([ map { encode_path($_) } grep { m{(?:^|/)(?:pgsql_tmp|backup_manifest$|pg_internal\.init|postmaster\.opts$|\.DS_Store)} } keys %listed ],
		[], 'exclusions at any depth');
	is($listed{"$dbdir/odd/pg_notify"}{type}, 'd', 'an emptied directory at any depth');
	ok(!$listed{"$dbdir/odd/pg_notify/x"}, 'is empty');
	is($listed{'empty dir'}{mode}, 0750, 'mode of a directory');

	ok(!$listed{$temporary}, 'a temporary relation is not listed');
	is_error($conn, send_files_sql([$temporary]), '42501', qr/is not part of a backup$/,
		'nor served');
	for my $relation (qw(unlogged unlogged_pkey unlogged_sequence))
	{
		my $path = $node->safe_psql('postgres', "SELECT pg_relation_filepath('$relation')");
		ok(-f "$pgdata/$path", "$relation is on disk");
		ok(!$listed{$path}, "$relation is not listed");
		ok(!$listed{"${path}_$_"}, "${relation}'s $_ fork is not listed") for qw(fsm vm);
		is($listed{"${path}_init"}{type}, 'f', "$relation: the init fork is listed");
		is_deeply(fetch($conn, [$path])->{vanished}, [$path], "$relation: counts as vanished");
		is(scalar @{ fetch($conn, ["${path}_init"])->{files} }, 1, "$relation: init fork sent");
	}

	# Each by name.
	my @paths = sort keys %content;
	my $transfer = fetch($conn, \@paths, FILE_CHECKSUM => 'CRC32C');
	is_deeply([ map { encode_path($_->{path}) } @{ $transfer->{files} } ],
		[ map { encode_path($_) } @paths ], 'frames carry the raw bytes of the path');
	is(scalar(grep { $_->{data} ne $content{ $_->{path} } } @{ $transfer->{files} }), 0, 'bytes');
	ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
	$conn->close;
}

sub is_copy
{
	my ($copy, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $tree = file_tree($copy->data_dir);
	my $original = file_tree($pgdata);

	command_ok([ 'pg_verifybackup', $copy->data_dir ], "$name: pg_verifybackup");
	is_deeply(
		[
			map { encode_path($_) } grep {
				    !$tree->{$_}
				  || $tree->{$_}{digest} ne $original->{$_}{digest}
				  || $tree->{$_}{mode} != $original->{$_}{mode}
			} sort keys %content
		],
		[],
		"$name: odd names, bytes and modes");
	is($tree->{'empty dir'}{type} . $tree->{'empty dir'}{mode}, 'd' . 0750, "$name: an empty directory");
	ok(!$tree->{$temporary}, "$name: no temporary relation");
	ok(!$tree->{"$dbdir/odd/pgsql_tmp"}, "$name: no temporary directory");
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, "$name: data");
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM unlogged'), 0, "$name: unlogged relation");
	$copy->safe_psql('postgres', q(INSERT INTO unlogged VALUES (1); SELECT nextval('unlogged_sequence')));
	is($copy->safe_psql('postgres', 'SELECT id FROM unlogged WHERE id = 1'), 1, "$name: which can be used");
	$copy->stop;
	return;
}

{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	raw_backup($node, $copy->data_dir, start => {@start});
	is_copy($copy, 'raw');
}
{
	my $copy = PostgreSQL::Test::Cluster->new('client_copy');
	$node->command_ok(
		[
			'pg_parallel_basebackup', @no_verify, '--no-sync', '--checkpoint' => 'fast', '--jobs' => 3,
			'--dbname' => $node->connstr('postgres'), '--pgdata' => $copy->data_dir
		],
		'client');
	is_copy($copy, 'client');
}
# Every manifest entry in Encoded-Path.
{
	my $dir = "$tempdir/encoded";
	$node->command_ok(
		[
			'pg_parallel_basebackup', @no_verify, '--no-sync', '--checkpoint' => 'fast', '--manifest-force-encode',
			'--dbname' => $node->connstr('postgres'), '--pgdata' => $dir
		],
		'client, --manifest-force-encode');
	my $manifest = slurp_file("$dir/backup_manifest");
	like($manifest, qr/"Encoded-Path": "/, 'paths are encoded');
	unlike($manifest, qr/"Path": "/, 'all of them');
	command_ok([ 'pg_verifybackup', $dir ], 'pg_verifybackup reads them');
}
$session->close;

done_testing();
