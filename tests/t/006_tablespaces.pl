# Tablespaces: elsewhere, in place, inside of the data directory, and one that is
# made while the backup runs.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', conf => "allow_in_place_tablespaces = on\n");
my $pgdata = $node->data_dir;
my $port = $node->port;

# A location with a space, an equals sign and a backslash, for the map's sake.
my $outside = "$tempdir/out=side it\\s";
# As -T wants it.
my $escaped = $outside =~ s/=/\\=/gr;
my $inside = "$pgdata/ts_inside";
mkdir $_ or die "$_: $!" for ($outside, $inside);
for my $sql (
	"CREATE TABLESPACE outside LOCATION '$outside'",
	"CREATE TABLESPACE in_place LOCATION ''",
	"CREATE TABLESPACE inside LOCATION '$inside'",
	'CREATE TABLE t0 AS SELECT generate_series(1, 1000) AS id',
	'CREATE TABLE t1 TABLESPACE outside AS SELECT generate_series(1, 1000) AS id',
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT generate_series(1, 1000) AS id',
	'CREATE TABLE t3 TABLESPACE inside AS SELECT generate_series(1, 1000) AS id',
	'CREATE UNLOGGED TABLE u1 TABLESPACE outside AS SELECT generate_series(1, 1000) AS id',
	'CREATE DATABASE in_outside TABLESPACE outside',
	'CHECKPOINT')
{
	$node->safe_psql('postgres', $sql);
}
my %oid = map { $_ => $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = '$_'") }
  qw(outside in_place inside);
my %path = map { $_ => $node->safe_psql('postgres', "SELECT pg_relation_filepath('$_')") }
  qw(t1 t2 t3 u1);
my ($version) = $path{t1} =~ m{/(PG_\d+_\d+)/};
my $query = join(' UNION ALL ', map { "SELECT count(*), sum(id) FROM t$_" } 0 .. 3) . ' ORDER BY 1, 2';
my $expected = $node->safe_psql('postgres', $query);

sub link_count
{
	my ($dir) = @_;
	return scalar grep { -l "$dir/pg_tblspc/$_" } slurp_dir("$dir/pg_tblspc");
}

# START_BACKUP's header and the list.
{
	my $conn = connection($node);
	my $start = start_backup($conn, PROGRESS => 'true');
	my %location = map { ($_->[0] // 'data') => $_->[1] } @{ $start->{tablespaces} };

	is(scalar keys %location, 4, 'three tablespaces and the data directory');
	is($start->{tablespaces}[-1][0], undef, 'the data directory is the last');
	is($location{ $oid{outside} }, $outside, 'location: outside');
	is($location{ $oid{in_place} }, "pg_tblspc/$oid{in_place}", 'location: in place');
	is($location{ $oid{inside} }, $inside, 'location: inside');
	is(scalar(grep { !defined $_->[2] || $_->[2] !~ /^\d+\z/ } @{ $start->{tablespaces} }),
		0, 'each has a size');
	(my $mapped = $outside) =~ s/\\/\\\\/g;
	is_deeply(
		[ sort split /\n/, $start->{spcmapfile} ],
		[ sort "$oid{outside} $mapped", "$oid{inside} $inside" ],
		'tablespace_map: the links, as BASE_BACKUP has it');

	# The sums without a list are those of the list.
	my %sum;
	for my $file (list_files($conn, ESTIMATE => 'true'))
	{
		my ($space) = $file->{path} =~ m{^pg_tblspc/(\d+)/};
		my $sum = $sum{ $space // 'data' } //= [ 0, 0 ];
		$sum->[0]++ if $file->{type} eq 'f';
		$sum->[1] += $file->{size};
	}
	my ($totals) = checked_results(query_ok($conn, 'SEND_FILE_LIST (ESTIMATE, TOTALS)'));
	is_deeply($totals->{columns}, [qw(spcoid files size)], 'TOTALS: columns');
	is_deeply({ map { ($_->[0] // 'data') => [ @$_[ 1, 2 ] ] } @{ $totals->{rows} } }, \%sum, 'TOTALS: the sums of the list');
	is($totals->{rows}[-1][0], undef, 'TOTALS: the data directory is the last');

	my @list = list_files($conn);
	my %listed = map { $_->{path} => $_ } @list;
	ok($listed{ $path{$_} }, "$_ is listed") for qw(t1 t2 t3);
	ok(!$listed{ $path{u1} }, 'an unlogged relation is not');
	ok($listed{"$path{u1}_init"}, 'its init fork is');
	for (values %oid)
	{
		is($listed{"pg_tblspc/$_/$version"}{type}, 'd', "directory of tablespace $_");
	}
	is(scalar(grep { m{^ts_inside/} } keys %listed), 0,
		'a tablespace inside of the data directory is listed once');
	is($listed{ts_inside}{type}, 'd', 'its place is listed as a directory');
	my %count;
	$count{ $_->{path} }++ for @list;
	is(scalar(grep { $_ > 1 } values %count), 0, 'nothing is listed twice');

	# Files of each are served; what is beside the version directory is not.
	write_file("$outside/stray", 'x');
	mkdir "$outside/PG_17_1";
	write_file("$outside/PG_17_1/x", 'x');
	my $transfer = fetch($conn, [ map { $path{$_} } qw(t1 t2 t3) ]);
	is_deeply([ map { $_->{path} } @{ $transfer->{files} } ],
		[ map { $path{$_} } qw(t1 t2 t3) ], 'files of each');
	for my $path ("pg_tblspc/$oid{outside}/stray", "pg_tblspc/$oid{outside}/PG_17_1/x",
		"ts_inside/$version/PG_VERSION", 'ts_inside/x')
	{
		is_error($conn, send_files_sql([$path]), '42501', qr/is not part of a backup$/, $path);
	}
	is_error($conn, send_files_sql([ $path{t1} =~ s{/[^/]+\z}{}r ]), '42809',
		qr/is not a regular file$/, 'a directory of a tablespace');
	unlink "$outside/stray", "$outside/PG_17_1/x";
	rmdir "$outside/PG_17_1";

	# One that is made now is neither listed nor served.
	$node->safe_psql('postgres', "CREATE TABLESPACE later LOCATION ''");
	$node->safe_psql('postgres', 'CREATE TABLE t_later TABLESPACE later AS SELECT generate_series(1, 10) AS id');
	mkdir "$tempdir/later";
	$node->safe_psql('postgres', "CREATE TABLESPACE later_link LOCATION '$tempdir/later'");
	$node->safe_psql('postgres', 'CREATE TABLE t_later_link TABLESPACE later_link AS SELECT generate_series(1, 10) AS id');
	my %later = map { $_ => $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = '$_'") }
	  qw(later later_link);
	%listed = map { $_->{path} => 1 } list_files($conn);
	for my $name (qw(later later_link))
	{
		is(scalar(grep { m{^pg_tblspc/$later{$name}(?:/|\z)} } keys %listed), 0,
			"$name: not listed");
		my $path = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t_$name')");
		is_error($conn, send_files_sql([$path]), '42501', qr/is not part of a backup$/,
			"$name: not served");
	}
	$node->safe_psql('postgres', $_)
	  for ('DROP TABLE t_later, t_later_link', 'DROP TABLESPACE later', 'DROP TABLESPACE later_link');

	# One that goes away meanwhile is no error.
	$node->safe_psql('postgres', 'DROP TABLE t2');
	$node->safe_psql('postgres', 'DROP TABLESPACE in_place');
	%listed = map { $_->{path} => 1 } list_files($conn);
	is(scalar(grep { m{^pg_tblspc/$oid{in_place}/} } keys %listed), 0, 'dropped: no longer listed');
	is_deeply(fetch($conn, [ $path{t2} ])->{vanished}, [ $path{t2} ], 'dropped: vanished');
	ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
	$conn->close;

	$node->safe_psql('postgres', $_)
	  for ("CREATE TABLESPACE in_place LOCATION ''",
		'CREATE TABLE t2 TABLESPACE in_place AS SELECT generate_series(1, 1000) AS id');
	$oid{in_place} = $node->safe_psql('postgres', q(SELECT oid FROM pg_tablespace WHERE spcname = 'in_place'));
}

# A raw backup with the two of them relocated, one made while it runs.
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	my %new = map { $_ => "$tempdir/new_$_" } qw(outside inside);
	my $before = file_tree($outside);
	raw_backup($node, $copy->data_dir,
		tablespaces => { map { $oid{$_} => $new{$_} } keys %new },
		before_stop => sub {
			$node->safe_psql('postgres', "CREATE TABLESPACE later LOCATION ''");
			$node->safe_psql('postgres',
				'CREATE TABLE t_later TABLESPACE later AS SELECT generate_series(1, 10) AS id');
		});
	ok(!-e $copy->data_dir . '/tablespace_map', 'no tablespace_map');
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'pg_verifybackup');
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $expected, 'data of the copy');
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t_later'), 10,
		'a tablespace made during the backup comes from WAL');
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM u1'), 0, 'an unlogged relation is empty');
	is($copy->safe_psql('in_outside', 'SELECT 1'), 1, 'a database in a tablespace');
	for my $name (keys %new)
	{
		is(readlink($copy->data_dir . "/pg_tblspc/$oid{$name}"), $new{$name}, "$name: link of the copy");
	}

	# The copy writes to its own.
	$copy->safe_psql('postgres', 'INSERT INTO t1 SELECT 1 FROM generate_series(1, 5000); DROP TABLE u1; CHECKPOINT;');
	compare_trees($before, $outside, 'the tablespaces of the original are untouched');
	is($node->safe_psql('postgres', $query), $expected, 'and so is its data');
	$copy->stop;
	$node->safe_psql('postgres', 'DROP TABLE t_later');
	$node->safe_psql('postgres', 'DROP TABLESPACE later');
}

# The client, likewise.
{
	my $copy = PostgreSQL::Test::Cluster->new('client_copy');
	my %new = map { $_ => "$tempdir/client_$_" } qw(outside inside);
	my $before = file_tree($outside);
	my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--jobs' => 3,
		'--dbname' => $node->connstr('postgres'));

	# Without a mapping the original's locations are in use.
	$node->command_fails_like([ @client, '--pgdata' => "$tempdir/refused" ],
		qr/exists but is not empty/, 'a location that is in use');
	ok(!-e "$tempdir/refused", 'and nothing is left of it');
	compare_trees($before, $outside, 'nor is the original touched');

	$node->command_ok(
		[
			@client,
			'--pgdata' => $copy->data_dir,
			'--tablespace-mapping' => "$escaped=$new{outside}",
			'--tablespace-mapping' => "$inside=$new{inside}"
		],
		'the client relocates tablespaces');
	ok(!-e $copy->data_dir . '/tablespace_map', 'client: no tablespace_map');
	is(link_count($copy->data_dir), 2, 'client: two links');
	ok(!-l $copy->data_dir . "/pg_tblspc/$oid{in_place}" && -d _, 'client: one in place');
	for my $name (keys %new)
	{
		is(readlink($copy->data_dir . "/pg_tblspc/$oid{$name}"), $new{$name}, "client: $name");
	}
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'client: pg_verifybackup');
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $expected, 'client: data of the copy');
	$copy->safe_psql('postgres', 'INSERT INTO t1 SELECT 1 FROM generate_series(1, 5000); DROP TABLE t3; CHECKPOINT;');
	compare_trees($before, $outside, 'client: the tablespaces of the original are untouched');
	is($node->safe_psql('postgres', $query), $expected, 'client: and so is its data');
	$copy->stop;

	# Mappings that cannot be.
	for my $case (
		[ 'nonsense', qr/invalid tablespace mapping format "nonsense", must be "OLDDIR=NEWDIR"/ ],
		[ '=/tmp/x', qr/invalid tablespace mapping format/ ],
		[ "$escaped=", qr/invalid tablespace mapping format/ ],
		[ "$escaped=/a=/b", qr/multiple "=" signs in tablespace mapping/ ],
		[ "relative=$tempdir/x", qr/old directory is not an absolute path in tablespace mapping: relative/ ],
		[ "$escaped=relative", qr/new directory is not an absolute path in tablespace mapping: relative/ ])
	{
		my ($mapping, $message) = @$case;
		$node->command_fails_like(
			[ @client, '--pgdata' => "$tempdir/refused", '--tablespace-mapping' => $mapping ],
			$message, "mapping \"$mapping\"");
		ok(!-e "$tempdir/refused", 'nothing is left');
	}
}

# More than a process may have open by its soft limit: each is claimed by a file that stays open.
{
	my @places = map { "$tempdir/many$_" } 1 .. 60;
	mkdir $_ or die $! for @places;
	$node->safe_psql('postgres', join '', map { "CREATE TABLESPACE many$_ LOCATION '$places[$_ - 1]';" } 1 .. 60);
	my @mapping = map { ('--tablespace-mapping' => "$_=$tempdir/copies$1") if /(\d+)$/ } @places;
	my @others = ('--tablespace-mapping' => "$escaped=$tempdir/others1", '--tablespace-mapping' => "$inside=$tempdir/others2");
	$node->command_ok(
		[ 'sh', '-c', 'ulimit -S -n 220; exec "$@"', 'sh', 'pg_parallel_basebackup', '-N', '-c' => 'fast', '-j' => 1, '-X' => 'none', '-d' => $node->connstr('postgres'), '--pgdata' => "$tempdir/copy_of_many", @others, @mapping ],
		'more tablespaces than files may be open');
	command_ok([ 'pg_verifybackup', '--no-parse-wal', "$tempdir/copy_of_many" ], 'many: pg_verifybackup');
	cmp_ok(link_count("$tempdir/copy_of_many"), '>=', 60, 'many: links');
}

done_testing();
