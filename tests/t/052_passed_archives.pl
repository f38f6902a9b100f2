# Archives of what the server has compressed: its streams go into them as they came, and what came otherwise than
# it was sent does not.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Compressed qw(%COMPRESSION);
use ParallelBackup::Proxy;
use ParallelBackup::TLS;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, conf => "listen_addresses = '127.0.0.1'\n"
	. "checkpoint_timeout = 1d\nbgwriter_lru_maxpages = 0\n" . (server_major() >= 17 ? "summarize_wal = on\n" : ''));
my $pgdata = $node->data_dir;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--format' => 'tar');

mkdir "$tempdir/ts" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	# More than one part of a file.
	"CREATE TABLE t AS SELECT id, repeat(md5(id::text), 15) AS filler FROM generate_series(1, 40000) AS id",
	'CREATE TABLE apart TABLESPACE ts AS SELECT id, md5(id::text) AS filler FROM generate_series(1, 20000) AS id',
	'VACUUM FREEZE');
# More than is kept in memory and no relation; and what does not get smaller, of an odd size.
make_file("$pgdata/spooled", 17 * 1024 * 1024 + 1);
{
	srand(42);
	write_file("$pgdata/noise", join '', map { chr int rand 256 } 1 .. 300_001);
}
$node->restart;
my $table = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t')");
my $query = 'SELECT count(*), sum(hashtext(filler)::bigint) FROM (SELECT filler FROM t UNION ALL SELECT filler FROM apart) AS all_of_them';
my $expected = $node->safe_psql('postgres', $query);
my $configured = `pg_config --configure`;
my $number = 0;

# Of 18 on, pg_verifybackup reads archives itself.
sub reads_archives
{
	my ($suffix) = @_;
	my $without = { gz => qr/without-zlib/, lz4 => qr/^(?!.*with-lz4)/s, zst => qr/^(?!.*with-zstd)/s }->{$suffix};

	return server_major() >= 18 && $configured !~ $without;
}

# What was extracted is what the manifest says, and a cluster.
#
# manifest   where it is
# wal        0: WAL is the server's
# start      0: not started
sub restored
{
	my ($archives, $name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new('copy' . ++$number);

	extract_backup($archives, $copy->data_dir);
	my $manifest = -e "$archives/backup_manifest" ? "$archives/backup_manifest" : $copy->data_dir . '/backup_manifest';
	command_ok([ 'pg_verifybackup', '--manifest-path' => $manifest, '--ignore' => 'backup_manifest', '--ignore' => 'tablespace_map',
			$params{wal} // 1 ? () : '--no-parse-wal', $copy->data_dir ], "$name: pg_verifybackup of what was extracted");
	if ($params{start} // 1)
	{
		if (!($params{wal} // 1))
		{
			system('bash', '-c', 'cp "$0"/pg_wal/0000* "$1"/pg_wal/', $pgdata, $copy->data_dir) == 0 or die 'cp failed';
		}
		start_copy($copy);
		is($copy->safe_psql('postgres', $query), $expected, "$name: data");
		$copy->stop('immediate');
	}
	File::Path::remove_tree($copy->data_dir, glob($copy->data_dir . '.*'));
	return;
}

sub frames
{
	my ($path, $suffix) = @_;
	my $magic = { lz4 => "\x04\x22\x4d\x18", zst => "\x28\xb5\x2f\xfd" }->{$suffix};

	return scalar(() = slurp_file($path) =~ /\Q$magic\E/g);
}

# Each method, each way of the WAL, one connection and several.
for my $case ([ 'server-zstd:level=1', 'zst' ], [ 'server-lz4', 'lz4' ], [ 'server-gzip:1', 'gz' ])
{
	my ($compress, $suffix) = @$case;
	my $warning = $suffix eq 'gz' ? qr/\S+ warning: the server does not compress with gzip, archives are compressed by this program\n/ : qr//;

	for my $wal (qw(none fetch stream))
	{
		for my $jobs (1, 4)
		{
			my $name = "$compress, -X $wal, -j $jobs";
			my $archives = "$tempdir/archives";
			$node->command_checks_all([ @client, '-D' => $archives, '-Z' => $compress, '-X' => $wal, '-j' => $jobs ], 0, [qr/^\z/],
				[ $wal eq 'none' ? qr/^${warning}NOTICE:  WAL archiving is not enabled; [^\n]+\n\z/ : qr/^$warning\z/ ], $name);
			my ($ts) = map { /^(\d+)\.tar\.$suffix\z/ } slurp_dir($archives);
			is_deeply([ sort grep { !/^\.\.?\z/ } slurp_dir($archives) ],
				[ sort 'backup_manifest', "base.tar.$suffix", "$ts.tar.$suffix", $wal eq 'stream' ? 'pg_wal.tar' : () ], "$name: what is there");
			if (reads_archives($suffix))
			{
				command_ok([ 'pg_verifybackup', '--no-parse-wal', $archives ], "$name: pg_verifybackup of the archives");
			}
			# Both are once with each way of the WAL; the archives of both have the same.
			my $starts = $jobs == ($suffix eq 'zst' ? 4 : $wal eq 'fetch' ? 4 : 1);
			if ($suffix ne 'gz' && $starts)
			{
				my @members = members("$archives/base.tar.$suffix");
				cmp_ok(frames("$archives/base.tar.$suffix", $suffix), '>', @members, "$name: a frame for each file, and for what is between them");
				cmp_ok(-s "$archives/base.tar.$suffix", '<', 25 * 1024 * 1024, "$name: it is smaller");
			}
			restored($archives, $name, wal => $wal ne 'none') if $starts;
			File::Path::remove_tree($archives);
		}
	}
}

# Other options.
for my $case (
	[ 'zst', 'server-zstd:level=1,long', '--manifest-checksums' => 'SHA256' ],
	[ 'lz4', 'server-lz4:9', '--verify' => 'client', '--max-rate' => '1000M' ],
	[ 'zst', 'server-zstd:-5', '--write-recovery-conf', '--no-slot' ])
{
	my ($suffix, $compress, @options) = @$case;
	my $name = "$compress @options";
	my $archives = "$tempdir/archives";
	$node->command_checks_all([ @client, '-D' => $archives, '-Z' => $compress, '-j' => 2, @options ], 0, [qr/^\z/], [qr/^\z/], $name);
	if (reads_archives($suffix) && "@options" !~ /recovery/)
	{
		command_ok([ 'pg_verifybackup', '--no-parse-wal', $archives ], "$name: pg_verifybackup of the archives");
	}
	if ("@options" =~ /recovery/)
	{
		my %member = map { $_->{name} => $_ } members("$archives/base.tar.$suffix");
		ok(exists $member{'standby.signal'} && $member{'postgresql.auto.conf'}{size} > 100, "$name: settings of a standby are in the archive");
	}
	else { restored($archives, $name, start => 0) }
	File::Path::remove_tree($archives);
}

# An archive through a pipe has all that belongs to a backup, but no tablespace.
{
	my $other = parallel_node('other', extension => 1);
	$other->safe_psql('postgres', 'CREATE TABLE t AS SELECT md5(id::text) AS filler FROM generate_series(1, 20000) AS id; CREATE TABLE apart (filler text)');
	$expected = $other->safe_psql('postgres', $query);
	for my $case ([ zst => 'server-zstd' ], [ lz4 => 'server-lz4' ])
	{
		my ($suffix, $compress) = @$case;
		my $name = "$compress, standard output";
		mkdir "$tempdir/pipe" or die $!;
		$other->command_ok([ 'bash', '-c', 'set -o pipefail; "$@" | cat >"$0"', "$tempdir/pipe/base.tar.$suffix", @client, '-D' => '-', '-X' => 'fetch', '-Z' => $compress ], $name);
		my @names = map { $_->{name} } members("$tempdir/pipe/base.tar.$suffix");
		is_deeply([ @names[ 0, -2, -1 ] ], [ 'backup_label', 'global/pg_control', 'backup_manifest' ], "$name: first and last");
		restored("$tempdir/pipe", $name);
		File::Path::remove_tree("$tempdir/pipe");
	}
	$other->stop;
	$expected = $node->safe_psql('postgres', $query);
}

# An increment.
SKIP: {
	skip 'no incremental backups', 1 if server_major() < 17;
	$node->command_ok([ @client, '-D' => "$tempdir/full", '-Z' => 'server-zstd', '-j' => 2 ], 'full backup');
	$node->safe_psql('postgres', "UPDATE t SET filler = md5(filler) WHERE id % 100 = 0; INSERT INTO t SELECT id, 'more' FROM generate_series(40001, 40100) AS id; CHECKPOINT");
	$expected = $node->safe_psql('postgres', $query);
	for my $checksums (qw(CRC32C SHA224))
	{
		my $name = "increment, $checksums";
		$node->command_ok([ @client, '-D' => "$tempdir/increment", '-Z' => 'server-lz4', '-j' => 2, '--manifest-checksums' => $checksums, '--incremental' => "$tempdir/full/backup_manifest" ], $name);
		my ($full, $increment) = map { "$tempdir/extracted/$_" } qw(full increment);
		extract_backup("$tempdir/full", $full);
		extract_backup("$tempdir/increment", $increment);
		command_ok([ 'pg_verifybackup', '--manifest-path' => "$tempdir/increment/backup_manifest", '--ignore' => 'tablespace_map', $increment ], "$name: pg_verifybackup");
		my $copy = PostgreSQL::Test::Cluster->new('copy' . ++$number);
		# Recovery is to find the tablespace where it was put together.
		my ($ts) = slurp_file("$full/tablespace_map") =~ /^(\d+) /;
		unlink map { "$_/tablespace_map" } $full, $increment;
		File::Path::remove_tree("$tempdir/combined");
		cp_manifest($_) for ([ "$tempdir/full", $full ], [ "$tempdir/increment", $increment ]);
		command_ok([ 'pg_combinebackup', '--manifest-checksums' => $checksums, $full, $increment, '-o' => $copy->data_dir,
				'-T' => readlink("$increment/pg_tblspc/$ts") . "=$tempdir/combined" ], "$name: pg_combinebackup");
		start_copy($copy);
		is($copy->safe_psql('postgres', $query), $expected, "$name: data");
		$copy->stop('immediate');
		File::Path::remove_tree("$tempdir/extracted", "$tempdir/increment", $copy->data_dir);
	}
}

sub cp_manifest
{
	my ($from, $to) = @{ $_[0] };
	write_file("$to/backup_manifest", slurp_file("$from/backup_manifest"));
	return;
}

# Through a network that changes bytes. Nobody here decompresses what comes: every change is found by the checksum
# of the stream, of what it says of itself and of what is said of it, and the file comes again.
sub through
{
	my ($name, $compress, %params) = @_;
	my $archives = "$tempdir/damaged";
	my $flag = "$tempdir/flag";
	unlink $flag;
	my $proxy = ParallelBackup::Proxy->new(server => $node->port, flag => $flag, %params);
	my ($stdout, $stderr) = run_command([ @client, '-Z' => $compress, '-X' => 'fetch', '-j' => 2, '-D' => $archives,
			'--dbname' => 'host=127.0.0.1 dbname=postgres sslmode=disable gssencmode=disable port=' . $proxy->port ]);
	$proxy->stop;
	ok(-e $flag, "$name: a byte was changed");
	return ($archives, $stderr);
}

# A backup that is called good is.
sub is_good_or_none
{
	my ($archives, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	if (-e "$archives/backup_manifest") { restored($archives, $name, start => 0) }
	else { ok(!-e "$archives/base.tar.lz4" && !-e "$archives/base.tar.zst", "$name: nothing is left") }
	File::Path::remove_tree($archives);
	return;
}

# Of the first message with a "c" frame: a stream of less than 4 GB.
my $stream_end = 'd' . pack('N', 4 + 13) . "c\0\0\0\0";
for my $method (qw(lz4 zstd))
{
	# The frame of the first part of the table says how it comes.
	my $begin = pack('C', $COMPRESSION{$method}) . "$table\0";
	my $seed = $ENV{PPB_SEED} // time;
	note("PPB_SEED=$seed");
	srand($seed);
	for my $case (
		[ 'modification time' => $begin, -5, 1 ], [ 'mode' => $begin, -1, 1 ],
		[ 'magic number' => $begin, length($begin) + 6, 1 ], [ 'a block' => $begin, length($begin) + 6 + 3000, 0x20 ],
		[ 'anywhere' => $begin, length($begin) + 6 + int(rand(8192)), 1 << int(rand(8)) ],
		[ 'number of compressed bytes' => $stream_end, 13, 1 ], [ 'checksum of the stream' => $stream_end, 14, 1 ],
		[ 'pages that failed' => $stream_end, 18 + 17, 1 ], [ 'checksum of the file' => $stream_end, 18 + 21, 0x80 ])
	{
		my ($name, $find, $at, $xor) = @$case;
		$name = "$method, $name";
		my ($archives, $stderr) = through($name, "server-$method", find => $find, at => $at, xor => $xor);
		like($stderr, qr/^\S+ warning: could not fetch file "[^"]+", will try again: file "[^"]+" was damaged in transit: (?:the CRC32C checksum of its compressed data does not match|it has \d+ bytes of compressed data and the server counted \d+|could not decompress data: [^\n]+|compressed data [^\n]+)\z/, "$name: found");
		ok(-e "$archives/backup_manifest", "$name: and fetched again");
		is_good_or_none($archives, $name);
	}
	# That there is a checksum at all.
	my ($archives, $stderr) = through("$method, no checksum", "server-$method", find => $stream_end, at => 5, xor => 1);
	like($stderr, qr/server sent an invalid file transfer: a stream without its checksum/, "$method, no checksum: found");
	is_good_or_none($archives, "$method, no checksum");
	# Each time: no backup.
	($archives, $stderr) = through("$method, always", "server-$method", find => $begin, at => length($begin) + 6 + 100, xor => 1, always => 1);
	like($stderr, qr/error: could not fetch file "\Q$table\E" in 3 tries: file "\Q$table\E" was damaged in transit: the CRC32C checksum of its compressed data does not match/, "$method, always: refused");
	ok(!-e $archives, "$method, always: nothing is left");
}

# Encrypted.
SKIP: {
	skip 'the server has no TLS', 1 unless has_tls();
	offer_tls($node);
	$node->restart;
	my @tls = ('--dbname' => 'host=127.0.0.1 dbname=postgres sslmode=require port=' . $node->port, '-j' => 2, '-X' => 'fetch', '-Z' => 'server-zstd');
	$node->command_checks_all([ @client, @tls, '-D' => "$tempdir/tls" ], 0, [qr/^\z/], [qr/^\z/], 'TLS: archives');
	restored("$tempdir/tls", 'TLS: archives', start => 0);
	$node->command_checks_all([ @client, @tls, '--format' => 'plain', '-T' => "$tempdir/ts=$tempdir/ts_tls", '-D' => "$tempdir/plain" ], 0, [qr/^\z/], [qr/^\z/], 'TLS: plain');
	command_ok([ 'pg_verifybackup', "$tempdir/plain" ], 'TLS: plain: pg_verifybackup');
	ok(slurp_file("$tempdir/plain/$table") eq slurp_file("$pgdata/$table"), 'TLS: plain: the table');
}

$node->stop;
done_testing();
