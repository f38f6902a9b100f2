# The four commands as a raw connection sees them, and a whole backup made by
# nothing but what docs/protocol.md says.

use strict;
use warnings FATAL => 'all';

use File::Find ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Frame qw(digest_of);
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant { TEXT => 25, INT4 => 23, INT8 => 20, OID => 26 };

my $node = parallel_node('main');
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT g AS id, repeat('x', 200) AS filler FROM generate_series(1, 20000) g;
	CREATE INDEX ON t (id);
	CREATE TABLE empty (id int);
	VACUUM t;
	CHECKPOINT;));
my $relpath = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t')");
my $empty = $node->safe_psql('postgres', "SELECT pg_relation_filepath('empty')");

# Columns and types of a result set, without the last of each.
sub is_shape
{
	my ($result, $name, @expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @got = map { $result->{columns}[$_] => $result->{types}[$_] }
	  0 .. $#{ $result->{columns} };

	is_deeply(\@got, [ @expected, checksum => TEXT ], "$name: columns and types");
	return;
}

# What BASE_BACKUP would list, written down once more (basebackup.c, sendDir): the
# cluster has no tablespace, no unlogged and no temporary relation.
sub expected_list
{
	my %expected;
	my $keep_empty =
	  qr{^(?:pg_stat_tmp|pg_replslot|pg_dynshmem|pg_notify|pg_serial|pg_snapshots|pg_subtrans|pg_wal)\z};

	File::Find::find(
		{
			no_chdir => 1,
			preprocess => sub {
				my $dir = substr($File::Find::dir, length($pgdata));
				$dir =~ s{^/}{};
				return () if $dir =~ $keep_empty;
				return @_;
			},
			wanted => sub {
				my $path = substr($File::Find::name, length($pgdata));
				$path =~ s{^/}{} or return;
				my ($name) = $path =~ m{([^/]+)\z};
				return
				  if $name =~ /^(?:pgsql_tmp.*|pg_internal\.init.*|backup_label|tablespace_map|backup_manifest|postmaster\.pid|postmaster\.opts|postgresql\.auto\.conf\.tmp|current_logfiles\.tmp|\.DS_Store)\z/
				  || $path eq 'global/pg_control';
				my @stat = lstat($File::Find::name);
				$expected{$path} = [
					-d _ ? ('d', 0) : ('f', $stat[7]),
					$stat[9], $stat[2] & 07777
				];
			}
		},
		$pgdata);
	# Always there, with pg_wal's own attributes.
	my @wal = @{ $expected{pg_wal} };
	$expected{"pg_wal/$_"} = [@wal] for wal_directories();
	return \%expected;
}

for my $replication (qw(true database))
{
	my $prefix = "replication=$replication";
	my $conn = connection($node, replication => $replication);

	# START_BACKUP
	my $start = start_backup($conn,
		LABEL => q(it's "one"),
		PROGRESS => 'true');
	my $results = $start->{reply}{results};
	is(scalar @$results, 3, "$prefix START_BACKUP: three result sets");
	is($start->{reply}{tag}, tag_of($conn, 'START_BACKUP'), "$prefix START_BACKUP: tag");
	is_deeply([ map { $_->{tag} } @$results ],
		[ ('SELECT 1') x 3 ], "$prefix START_BACKUP: tags of the results");
	is_shape(
		$results->[0], "$prefix START_BACKUP 1",
		recptr => TEXT, tli => INT8, backup_id => TEXT, protocol => INT4,
		system_identifier => TEXT, wal_segment_size => INT8, block_size => INT4,
		data_checksums => INT4, in_recovery => INT4);
	is_shape($results->[1], "$prefix START_BACKUP 2",
		spcoid => OID, spclocation => TEXT, size => INT8);
	is_shape($results->[2], "$prefix START_BACKUP 3",
		labelfile => TEXT, spcmapfile => TEXT);
	like($start->{recptr}, qr{^[0-9A-F]+/[0-9A-F]+\z}, "$prefix recptr");
	is($start->{tli}, 1, "$prefix tli");
	like($start->{backup_id}, qr/^[0-9a-f]{32}\z/, "$prefix backup_id");
	is($start->{protocol}, 1, "$prefix protocol");
	is($start->{system_identifier},
		$node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()'),
		"$prefix system_identifier");
	is($start->{wal_segment_size}, 1024 * 1024, "$prefix wal_segment_size");
	is($start->{block_size}, 8192, "$prefix block_size");
	is($start->{data_checksums}, 1, "$prefix data_checksums");
	is($start->{in_recovery}, 0, "$prefix in_recovery");
	is(scalar @{ $start->{tablespaces} }, 1, "$prefix one tablespace");
	is($start->{tablespaces}[0][0], undef, "$prefix data directory: no oid");
	is($start->{tablespaces}[0][1], undef, "$prefix data directory: no location");
	cmp_ok($start->{tablespaces}[0][2], '>', 20_000, "$prefix size in kB");
	cmp_ok($start->{tablespaces}[0][2], '<', 200_000, "$prefix size in kB");
	like(
		$start->{labelfile},
		qr{^START WAL LOCATION: \Q$start->{recptr}\E \(file [0-9A-F]{24}\)
CHECKPOINT LOCATION: [0-9A-F/]+
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: .+
LABEL: it's "one"
START TIMELINE: 1
\z}, "$prefix backup_label");
	is($start->{spcmapfile}, undef, "$prefix no tablespace_map");

	# SEND_FILE_LIST
	my $expected = expected_list();
	my $reply = query_ok($conn, 'SEND_FILE_LIST');
	is(scalar @{ $reply->{results} }, 1, "$prefix SEND_FILE_LIST: one result set");
	is($reply->{tag}, tag_of($conn, 'SEND_FILE_LIST'), "$prefix SEND_FILE_LIST: tag");
	is($reply->{results}[0]{tag}, 'SELECT ' . @{ $reply->{results}[0]{rows} }, "$prefix SEND_FILE_LIST: tag of the result");
	is_shape($reply->{results}[0], "$prefix SEND_FILE_LIST",
		filename => TEXT, type => TEXT, size => INT8, mtime => INT8, mode => INT4);
	my %listed;
	my @orphans;
	my $duplicates = 0;
	for my $row (map { @{ $_->{rows} } } checked_results($reply))
	{
		my ($path, @entry) = @$row;
		$path = decode_path($path);
		$duplicates++ if exists $listed{$path};
		if ($path =~ m{^(.+)/[^/]+\z})
		{
			push @orphans, $path unless $listed{$1} && $listed{$1}[0] eq 'd';
		}
		$listed{$path} = \@entry;
	}
	is($duplicates, 0, "$prefix nothing is listed twice");
	is_deeply(\@orphans, [], "$prefix a directory comes before what is in it");
	is_deeply([ sort keys %listed ], [ sort keys %$expected ], "$prefix paths");
	# What a running server writes by itself may change between the two looks.
	my @differ = grep {
		     $expected->{$_}
		  && "@{ $listed{$_} }" ne "@{ $expected->{$_} }"
		  && !/^(?:pg_stat|pg_xact|pg_logical|log)\b/
	} keys %listed;
	is_deeply(\@differ, [], "$prefix type, size, mtime and mode")
	  or diag(explain({ map { $_ => [ $listed{$_}, $expected->{$_} ] } @differ }));

	# SEND_FILES_CONTENT: a whole file.
	$reply = query_ok($conn, "SEND_FILES_CONTENT ('PG_VERSION')");
	is($reply->{copies}, 1, "$prefix SEND_FILES_CONTENT: one copy");
	is("$reply->{copy_format} $reply->{copy_columns}", '0 0',
		"$prefix SEND_FILES_CONTENT: text, no columns");
	is($reply->{copy_done}, 1, "$prefix SEND_FILES_CONTENT: CopyDone");
	is($reply->{tag}, tag_of($conn, 'SEND_FILES_CONTENT'), "$prefix SEND_FILES_CONTENT: tag");
	is(scalar @{ $reply->{results} }, 0, "$prefix SEND_FILES_CONTENT: no result set");
	is(join('', map { $_->{type} } @{ $reply->{frames} }), 'fde', "$prefix frames");
	my $begin = $reply->{frames}[0];
	my @stat = stat("$pgdata/PG_VERSION");
	is($begin->{path}, 'PG_VERSION', "$prefix f: path");
	is($begin->{size}, 3, "$prefix f: size");
	is($begin->{offset}, 0, "$prefix f: offset");
	is($begin->{length}, 3, "$prefix f: length");
	is($begin->{mtime}, $stat[9], "$prefix f: mtime");
	is($begin->{mode}, $stat[2] & 07777, "$prefix f: mode");
	is($begin->{compression}, 0, "$prefix f: compression");
	is($reply->{frames}[1]{data}, server_major() . "\n", "$prefix d: bytes");
	my $end = $reply->{frames}[2];
	is($end->{bytes}, 3, "$prefix e: bytes");
	is($end->{failures}, 0, "$prefix e: page checksum failures");
	is($end->{algorithm}, 'NONE', "$prefix e: algorithm");
	is($end->{digest}, '', "$prefix e: no checksum");

	# A worker names the backup; the coordinator may.
	my $worker = connection($node, replication => $replication);
	my @id = (BACKUP_ID => $start->{backup_id});
	is(scalar @{ fetch($worker, ['PG_VERSION'], @id)->{files} }, 1, "$prefix a worker");
	is(scalar @{ fetch($conn, ['PG_VERSION'], @id)->{files} }, 1,
		"$prefix the coordinator with BACKUP_ID");
	is(scalar(my @l = list_files($worker, @id)), scalar keys %listed,
		"$prefix the list on a worker");

	# Many, in the order asked, the same one twice, an empty one.
	my @many = ($relpath, 'PG_VERSION', $empty, 'postgresql.conf', 'PG_VERSION');
	my $transfer = fetch($worker, \@many, @id);
	is_deeply([ map { $_->{path} } @{ $transfer->{files} } ],
		\@many, "$prefix many files, in order");
	is($transfer->{files}[2]{length}, 0, "$prefix an empty file");
	is($transfer->{files}[2]{frames}, 0, "$prefix without data frames");
	for my $file (@{ $transfer->{files} })
	{
		is(digest_of('SHA256', $file->{data}),
			digest_of('SHA256', slurp_file("$pgdata/$file->{path}")),
			"$prefix bytes of $file->{path}");
	}

	# Ranges of a relation file.
	my $whole = slurp_file("$pgdata/$relpath");
	my $size = length($whole);
	for my $range (
		[ 0, 8192, 8192 ],
		[ 8192, 16384, 16384 ],
		[ 0, undef, $size ],
		[ 16384, undef, $size - 16384 ],
		[ $size - 8192, 81920, 8192 ],
		[ 0, 1 << 40, $size ],
		[ $size, 8192, 0 ],
		[ $size + 8192, 8192, 0 ],
		[ 0, 0, 0 ])
	{
		my ($offset, $length, $got) = @$range;
		my $name = "$prefix range $offset, " . ($length // 'to the end');
		my $file = fetch($worker, [ [ $relpath, $offset, $length ] ], @id)->{files}[0];
		is($file->{size}, $size, "$name: file size");
		is($file->{offset}, $offset, "$name: offset");
		is($file->{length}, $got, "$name: clamped length");
		ok($file->{data} eq ($got ? substr($whole, $offset, $got) : ''), "$name: bytes");
	}
	$transfer = fetch($worker,
		[ [ $relpath, 8192, 8192 ], 'PG_VERSION', [ $relpath, 0, 8192 ] ], @id);
	is_deeply([ map { "$_->{path} $_->{offset} $_->{length}" } @{ $transfer->{files} } ],
		[ "$relpath 8192 8192", 'PG_VERSION 0 3', "$relpath 0 8192" ],
		"$prefix ranges and files together");

	# Numbers that do not fit into 32 bits, in a file of holes.
	my $big = ($relpath =~ s{/\d+\z}{/99999}r);
	my $far = 5 * 1024 * 1024 * 1024;
	make_file("$pgdata/$big", $far + 8192);
	my ($entry) = grep { $_->{path} eq $big } list_files($worker, @id);
	is($entry->{size}, $far + 8192, "$prefix a large file: size in the list");
	my $piece = fetch($worker, [ [ $big, $far, 16384 ] ], @id, FILE_CHECKSUM => 'CRC32C')->{files}[0];
	is("$piece->{size} $piece->{offset} $piece->{length}", $far + 8192 . " $far 8192",
		"$prefix a large file: a range far out");
	unlink "$pgdata/$big";

	# Digests; ParallelBackup::Transfer has compared them with the bytes.
	for my $algorithm (qw(NONE CRC32C SHA224 SHA256 SHA384 SHA512 sha256))
	{
		$transfer = fetch($worker, [ 'postgresql.conf', $empty, [ $relpath, 0, 8192 ] ],
			@id, FILE_CHECKSUM => $algorithm);
		is_deeply([ map { $_->{algorithm} } @{ $transfer->{files} } ],
			[ (uc $algorithm) x 3 ], "$prefix FILE_CHECKSUM $algorithm");
	}

	$transfer = fetch($worker, ['PG_VERSION'], @id, COMPRESSION => 'none');
	is($transfer->{files}[0]{data}, server_major() . "\n", "$prefix COMPRESSION none");

	# The longest command: 1,024 files.
	$transfer = fetch($worker, [ ('PG_VERSION') x 1024 ], @id);
	is(scalar @{ $transfer->{files} }, 1024, "$prefix 1,024 files in one command");

	# STOP_BACKUP
	my $stop = stop_backup($conn, @id, LABEL => $start->{labelfile}, WAIT => 'false');
	ok(!$stop->{reply}{error}, "$prefix STOP_BACKUP");
	is($stop->{reply}{tag}, tag_of($conn, 'STOP_BACKUP'), "$prefix STOP_BACKUP: tag");
	$results = $stop->{reply}{results};
	is_shape($results->[0], "$prefix STOP_BACKUP 1", recptr => TEXT, tli => INT8);
	is_shape($results->[1], "$prefix STOP_BACKUP 2", controlfile => TEXT);
	is_shape($results->[2], "$prefix STOP_BACKUP 3",
		tli => INT8, start_lsn => TEXT, end_lsn => TEXT);
	is_shape($results->[3], "$prefix STOP_BACKUP 4", filename => TEXT);
	is_shape($results->[4], "$prefix STOP_BACKUP 5",
		labelfile => TEXT, files => INT8, bytes => INT8, checksum_failures => INT8);
	is($stop->{tli}, 1, "$prefix stop: tli");
	is($node->safe_psql('postgres', "SELECT '$stop->{recptr}'::pg_lsn > '$start->{recptr}'::pg_lsn"),
		't', "$prefix stop: recptr");
	is(length($stop->{controlfile}), 8192, "$prefix pg_control: size");
	is(unpack('Q<', $stop->{controlfile}), $start->{system_identifier},
		"$prefix pg_control: system identifier");
	is_deeply($stop->{ranges}, [ [ 1, $start->{recptr}, $stop->{recptr} ] ],
		"$prefix WAL ranges");
	my ($first) = $start->{labelfile} =~ /file ([0-9A-F]{24})/;
	is($stop->{wal}[0], $first, "$prefix first WAL file");
	is_deeply([ grep { !-f "$pgdata/pg_wal/$_" } @{ $stop->{wal} } ],
		[], "$prefix all WAL files exist");
	like($stop->{totals}{labelfile}, qr/^START WAL LOCATION.*^LABEL: it's "one"$/ms,
		"$prefix label in the totals");
	cmp_ok($stop->{totals}{files}, '>=', 1024 + 30, "$prefix files in the totals");
	is($stop->{totals}{checksum_failures}, 0, "$prefix no checksum failures");

	$conn->close;
	$worker->close;
}

# A default START_BACKUP: no options at all, no checkpoint to wait for.
{
	my $conn = connection($node);
	$node->safe_psql('postgres', 'CHECKPOINT');
	my $reply = query_ok($conn, 'START_BACKUP;');
	like($reply->{results}[2]{rows}[0][0], qr/^LABEL: base backup$/m, 'default label');
	is($reply->{results}[1]{rows}[0][2], undef, 'no size without PROGRESS');
	my $stop = stop_backup($conn);
	ok(!$stop->{reply}{error}, 'STOP_BACKUP without options');

	# The same session may start another one.
	my $again = start_backup($conn);
	isnt($again->{backup_id}, $reply->{results}[0]{rows}[0][2], 'a new identifier');
	stop_backup($conn);
	$conn->close;
}

# Lists for sizing, with no backup running.
{
	my $conn = connection($node);
	my @estimate = list_files($conn, ESTIMATE => 'true');
	is_deeply([ grep { $_->{path} eq $relpath } @estimate ]->[0]{size},
		-s "$pgdata/$relpath", 'SEND_FILE_LIST (ESTIMATE)');
	is_error($conn, "SEND_FILES_CONTENT ('PG_VERSION')", '55000',
		qr/no parallel backup is running in this session/, 'a list is not a backup');
	$conn->close;
}

# The whole, with three workers.
for my $replication (qw(true database))
{
	my $copy = PostgreSQL::Test::Cluster->new("copy_$replication");
	my $state = raw_backup($node, $copy->data_dir,
		workers => 3,
		connection => { replication => $replication },
		after_list => sub {
			$node->safe_psql('postgres',
				'INSERT INTO t SELECT g FROM generate_series(20001, 21000) g; CHECKPOINT;');
		},
		before_stop => sub {
			$node->safe_psql('postgres', 'INSERT INTO empty VALUES (1)');
		});
	is($state->{stop}{totals}{files}, $state->{files}, "whole, $replication: files in the totals");
	is($state->{stop}{totals}{bytes}, $state->{bytes}, "whole, $replication: bytes in the totals");
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "whole, $replication: pg_verifybackup");
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t; SELECT count(*) FROM empty'),
		$node->safe_psql('postgres', 'SELECT count(*) FROM t; SELECT count(*) FROM empty'),
		"whole, $replication: data of the copy");
	$copy->stop;
}

# The coordinator alone makes a backup as well.
{
	my $copy = PostgreSQL::Test::Cluster->new('serial');
	raw_backup($node, $copy->data_dir, workers => 0);
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'serial: pg_verifybackup');
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 22000, 'serial: data');
	$copy->stop;
}

done_testing();
