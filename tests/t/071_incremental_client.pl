# Incremental backups by the client: beside pg_basebackup's of the same idle cluster, in one chain with them, and
# what goes wrong on the way.

use strict;
use warnings FATAL => 'all';

use Digest::SHA ();
use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Increment;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;

if (server_major() < 17)
{
	my $node = parallel_node('main');
	$node->command_fails_like(
		[ 'pg_parallel_basebackup', '-D' => "$tempdir/target", '-d' => $node->connstr('postgres'), '-i' => '/dev/null' ],
		qr/error: server does not support incremental backup\n.*hint: .*PostgreSQL 17 or later/s, 'before 17');
	ok(!-e "$tempdir/target", 'before 17: nothing is left');
	done_testing();
	exit;
}

# Nothing must change between two backups: no checkpoint of its own, no snapshot in WAL.
my $node = parallel_node('main', extension => 1, conf => qq(
summarize_wal = on
allow_in_place_tablespaces = on
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
));
my $pgdata = $node->data_dir;
mkdir "$tempdir/ts" or die $!;
for my $sql (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	"CREATE TABLESPACE in_place LOCATION ''",
	q(CREATE TABLE t AS SELECT g AS id, repeat('x', 700) AS filler FROM generate_series(1, 40000) g),
	'CREATE INDEX ON t (id)',
	'CREATE TABLE t1 TABLESPACE ts AS SELECT g AS id, 0 AS n FROM generate_series(1, 20000) g',
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT g AS id, 0 AS n FROM generate_series(1, 20000) g',
	'CREATE TABLE moving AS SELECT g AS id FROM generate_series(1, 2000) g',
	'CREATE TABLE shrinking AS SELECT g AS id FROM generate_series(1, 50000) g',
	'CREATE TABLE gone AS SELECT 1 AS id',
	'CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) AS id',
	'CREATE DATABASE other',
	'VACUUM FREEZE')
{
	$node->safe_psql('postgres', $sql);
}
my @common = ('--no-sync', '--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'));

# A backup by one of the two programs; its tablespace beside it.
sub take
{
	my ($program, $name, @options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my ($prior) = map { $options[ $_ + 1 ] } grep { $options[$_] eq '--prior' } 0 .. $#options - 1;
	@options = grep { $_ ne '--prior' && (!defined $prior || $_ ne $prior) } @options;
	push @options, '--incremental' => "$tempdir/$prior/backup_manifest" if defined $prior;
	push @options, '--jobs' => 3 if $program ne 'pg_basebackup' && !grep { $_ eq '--jobs' } @options;
	$node->command_ok(
		[ $program, @common, '--pgdata' => "$tempdir/$name", '--tablespace-mapping' => "$tempdir/ts=$tempdir/${name}_ts", @options ],
		"$name: $program");
	return;
}

sub change
{
	my ($round) = @_;

	$node->safe_psql('postgres', $_)
	  for "UPDATE t SET filler = 'round $round' WHERE id % 3000 = $round",
	  "UPDATE t1 SET n = n + 1 WHERE id % 5000 = 0",
	  "UPDATE t2 SET n = n + 1 WHERE id < 100",
	  "CREATE TABLE new$round AS SELECT g AS id FROM generate_series(1, 3000) g",
	  'ALTER TABLE moving SET TABLESPACE ' . ($round % 2 ? 'ts' : 'pg_default'),
	  "DELETE FROM shrinking WHERE id > 50000 - $round * 10000",
	  'VACUUM (TRUNCATE) shrinking',
	  "CREATE DATABASE new$round STRATEGY " . ($round % 2 ? 'wal_log' : 'file_copy');
	$node->safe_psql('postgres', 'DROP TABLE gone') if $round == 1;
	$node->safe_psql('postgres', 'DROP DATABASE new1') if $round == 3;
	return;
}

# Rows and their sum in every table, database by database.
sub sums
{
	my ($of) = @_;
	my @sums;

	for my $database (split /\n/, $of->safe_psql('postgres', 'SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1'))
	{
		my @tables = split /\n/, $of->safe_psql($database, q(SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1));
		push @sums, map { "$database $_ " . $of->safe_psql($database, "SELECT count(*), coalesce(sum(hashtext(t::text)), 0) FROM $_ t") } @tables;
	}
	return join "\n", @sums;
}

# A server on what pg_combinebackup makes of a chain.
sub restores
{
	my ($name, $expected, @chain) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");

	command_ok(
		[ 'pg_combinebackup', '--no-sync', '--output' => $copy->data_dir, '--tablespace-mapping' => "$tempdir/$chain[-1]_ts=$tempdir/combined_${name}_ts", map { "$tempdir/$_" } @chain ],
		"$name: pg_combinebackup");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $copy->data_dir ], "$name: pg_verifybackup");
	start_copy($copy);
	is(sums($copy), $expected, "$name: the copy has the data");
	$copy->command_ok([ 'pg_amcheck', '--all', '--install-missing' ], "$name: pg_amcheck");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir, "$tempdir/combined_${name}_ts");
	return;
}

# Entries of a manifest without their times.
sub manifest
{
	my ($path) = @_;
	my %entries;
	my $text = slurp_file($path);

	while ($text =~ /^\{ "(?:Path|Encoded-Path)": "((?:[^"\\]|\\.)*)", (.*?) \},?$/mg)
	{
		my ($name, $rest) = ($1, $2);
		$rest =~ s/(?:, )?"Last-Modified": "[^"]*"//;
		$entries{$name} = $rest;
	}
	return \%entries;
}

take('pg_basebackup', 'full', '--wal-method' => 'none');
take('pg_parallel_basebackup', 'full2');
change(1);
# A shutdown writes statistics and what else waits; after it the cluster is idle.
$node->restart;
$node->safe_psql('postgres', 'CHECKPOINT');

# What must differ, and why: start LSN and time; checkpoint location, since each backup makes one; and the manifest,
# which lists both.
my %differ = map { $_ => 1 } qw(backup_label backup_manifest global/pg_control);
my $number = 0;
for my $options ([], [ '--jobs' => 1 ], [ '--manifest-checksums' => 'SHA256' ], [ '--manifest-checksums' => 'SHA512', '--verify' => 'server' ], [ '--verify' => 'server' ], [ '--no-verify-checksums' ], [ '--manifest-checksums' => 'NONE' ])
{
	my $name = 'increment' . ++$number;
	my @theirs = grep { $_ !~ /^(?:--jobs|1|--verify|server)\z/ } @$options;
	my $said = join ' ', "increment", @$options;
	take('pg_basebackup', "$name.serial", '--prior' => 'full', '--wal-method' => 'none', @theirs);
	take('pg_parallel_basebackup', "$name.parallel", '--prior' => 'full', '--wal-method' => 'none', @$options);
	my ($serial, $parallel) = map { file_tree("$tempdir/$name.$_") } qw(serial parallel);
	for my $tree ($serial, $parallel)
	{
		$_->{target} =~ s/\.(?:serial|parallel)_ts\z/_ts/ for grep { $_->{type} eq 'l' } values %$tree;
	}
	compare_trees($serial, $parallel, "$said: data directory", differ => \%differ);
	compare_trees("$tempdir/$name.serial_ts", "$tempdir/$name.parallel_ts", "$said: tablespace");
	my ($left, $right) = map { manifest("$tempdir/$name.$_/backup_manifest") } qw(serial parallel);
	is_deeply([ sort keys %$right ], [ sort keys %$left ], "$said: the manifests list the same files");
	is_deeply([ grep { !$differ{$_} && $left->{$_} ne $right->{$_} } sort keys %$left ], [], "$said: and say the same of them");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', "$tempdir/$name.parallel" ], "$said: pg_verifybackup");
	my $label = slurp_file("$tempdir/$name.parallel/backup_label");
	my ($from) = slurp_file("$tempdir/full/backup_label") =~ m{^START WAL LOCATION: (\S+)}m;
	like($label, qr{^INCREMENTAL FROM LSN: \Q$from\E\nINCREMENTAL FROM TLI: 1\n\z}m, "$said: the label");
	File::Path::remove_tree(map { ("$tempdir/$name.$_", "$tempdir/$name.${_}_ts") } qw(serial parallel));
}

# Chains, each link by either program.
take('pg_parallel_basebackup', 'a1', '--prior' => 'full2');
take('pg_basebackup', 'b1', '--prior' => 'full2');
change(2);
take('pg_basebackup', 'a2', '--prior' => 'a1');
take('pg_parallel_basebackup', 'b2', '--prior' => 'b1');
change(3);
take('pg_parallel_basebackup', 'a3', '--prior' => 'a2', '--wal-method' => 'fetch');
take('pg_parallel_basebackup', 'b3', '--prior' => 'b2', '--manifest-checksums' => 'SHA384');
my $expected = sums($node);
restores('mixed', $expected, qw(full2 a1 a2 a3));
restores('mixed2', $expected, qw(full2 b1 b2 b3));
take('pg_parallel_basebackup', 'direct', '--prior' => 'full');
restores('direct', $expected, qw(full direct));

# What it says, and writes nowhere.
{
	my ($stdout, $stderr) = run_command([ 'pg_parallel_basebackup', @common, '-v', '--discard', '-i' => "$tempdir/a3/backup_manifest" ]);
	like($stderr, qr/uploading manifest of the prior backup/, 'the upload is said');
	like($stderr, qr/that is \d+\.\d % of the \d+ bytes of a full backup/, 'and how much was sent');
}

# A tablespace by a name of its own, and a network that cannot be trusted with it: over TCP every page is checked.
$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'");
$node->restart;
{
	local $common[-1] = 'host=127.0.0.1 dbname=postgres port=' . $node->port;
	take('pg_parallel_basebackup', 'tcp', '--prior' => 'b3');
	restores('tcp', $expected, qw(full2 b1 b2 b3 tcp));
}

# Manifests that are of no use.
my $text = slurp_file("$tempdir/full2/backup_manifest");
sub refused
{
	my ($name, $manifest, $message) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	write_file("$tempdir/manifest", $manifest) if defined $manifest;

	$node->command_fails_like(
		[ 'pg_parallel_basebackup', @common, '-D' => "$tempdir/target", '-i' => "$tempdir/manifest", '--tablespace-mapping' => "$tempdir/ts=$tempdir/target_ts" ],
		$message, $name);
	ok(!-e "$tempdir/target" && !-e "$tempdir/target_ts", "$name: nothing is left");
	unlink "$tempdir/manifest";
	return;
}
sub signed
{
	my ($manifest) = @_;
	$manifest =~ s/^"Manifest-Checksum".*//ms;
	return $manifest . qq("Manifest-Checksum": ") . Digest::SHA::sha256_hex($manifest) . qq("}\n);
}
refused('no manifest', undef, qr{error: could not open file "\Q$tempdir\E/manifest": No such file or directory});
refused('a damaged manifest', $text =~ s/"Size": 3,/"Size": 4,/r, qr/error: could not upload manifest: ERROR:  manifest checksum mismatch/);
refused('another system', signed($text =~ s/("System-Identifier": )\d+/${1}4711/r),
	qr/error: could not upload manifest: ERROR:  system identifier in backup manifest is 4711, but database system identifier is \d+/);
refused('a manifest of version 1', signed($text =~ s/Manifest-Version": 2/Manifest-Version": 1/r),
	qr/error: could not upload manifest: ERROR:  backup manifest version 1 does not support incremental backup/);
refused('another timeline', signed($text =~ s/"Timeline": 1/"Timeline": 7/r),
	qr/error: could not initiate base backup: ERROR:  timeline 7 found in manifest, but not in this server's history/);
refused('the future', signed($text =~ s{"End-LSN": "[^"]*"}{"End-LSN": "FF/0"}r),
	qr/error: could not initiate base backup: ERROR:  manifest requires WAL from final timeline 1 ending at FF\/0, but this backup starts at/);
refused('before there were summaries', signed($text =~ s{"Start-LSN": "[^"]*"}{"Start-LSN": "0/28"}r),
	qr/error: could not initiate base backup: ERROR:  WAL summaries are required on timeline 1 from /);
{
	# One of 100 MB, with files that nobody has.
	my $entry = $text =~ /^(\{ "Path": "PG_VERSION".*?\}),$/m ? $1 : die;
	my $many = join ",\n", map { $entry =~ s/PG_VERSION/base\/4711\/$_/r } 1 .. 780_000;
	write_file("$tempdir/large", signed($text =~ s/\Q$entry\E,\n/$entry,\n$many,\n/r));
	undef $many;
	cmp_ok(-s "$tempdir/large", '>', 100_000_000, 'a manifest of 100 MB');
	my ($stdout, $stderr) = run_command([ 'pg_parallel_basebackup', @common, '-v', '-D' => "$tempdir/large_increment", '-i' => "$tempdir/large", '--tablespace-mapping' => "$tempdir/ts=$tempdir/large_ts" ]);
	like($stderr, qr/base backup completed$/, 'is taken');
	my ($kilobytes) = $stderr =~ /used at most (\d+) kB of memory/;
	cmp_ok($kilobytes, '<', 32 * 1024, 'without the client keeping it in memory');
	File::Path::remove_tree("$tempdir/large_increment", "$tempdir/large_ts");
}

# How large an increment is the list says: more than there is room for, though the cluster is larger still.
{
	my $large = "$pgdata/large";
	open(my $file, '>', $large) or die "could not create $large: $!";
	truncate($file, 3 << 40) or die "could not extend $large: $!";
	close($file);
	$node->command_fails_like(
		[ 'pg_parallel_basebackup', @common, '--checkpoint' => 'spread', '-D' => "$tempdir/roomless", '-T' => "$tempdir/ts=$tempdir/roomless_ts", '-i' => "$tempdir/full2/backup_manifest" ],
		qr/error: not enough space for the backup in "\Q$tempdir\E\/roomless"\n.*detail: The backup needs 31\d{5} MB/, 'an increment without room');
	ok(!-e "$tempdir/roomless" && !-e "$tempdir/roomless_ts", 'an increment without room: nothing is left');
	unlink $large;
}

# Workers that are terminated: their parts come again.
$node->safe_psql('postgres', q(UPDATE t SET filler = repeat('y', 700)));
{
	my $stderr = '';
	my $theirs = "application_name = 'pg_parallel_basebackup' AND pid <> (SELECT pid FROM parallel_backup.backups)";
	my $client = IPC::Run::start(
		[ 'pg_parallel_basebackup', @common, '-v', '-r' => '8M', '-j' => 3, '-D' => "$tempdir/killed", '--tablespace-mapping' => "$tempdir/ts=$tempdir/killed_ts", '-i' => "$tempdir/b3/backup_manifest" ],
		'2>' => \$stderr, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE $theirs AND " . sending()), 'workers fetch');
	is($node->safe_psql('postgres', "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE $theirs AND " . sending()), 2, 'and are terminated')
	  or diag($stderr);
	$client->finish;
	is($client->full_result(0), 0, 'the backup is made') or diag($stderr);
	like($stderr, qr/lost a connection/, 'connections were lost');
	restores('killed', sums($node), qw(full2 b1 b2 b3 killed));
}

$node->stop;
done_testing();
