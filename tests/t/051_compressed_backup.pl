# The client's compressed backups: what comes decompressed is what the server read, whatever happens on
# the way.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Compressed qw(%COMPRESSION);
use ParallelBackup::Proxy;
use ParallelBackup::Test;

my $node = parallel_node('main', start => 0);
$node->append_conf('postgresql.conf', 'log_replication_commands = on');
$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'");
$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION IF NOT EXISTS pg_parallel_backup;
	CREATE TABLE t AS SELECT id, md5(id::text) AS hash FROM generate_series(1, 200000) AS id;
	CREATE INDEX ON t (id);
	CHECKPOINT;));
my $table = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t')");
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--jobs' => 2, '-X' => 'fetch');
my $sum = $node->safe_psql('postgres', 'SELECT count(*), sum(hashtext(hash)::bigint) FROM t');
my $number = 0;

sub is_good
{
	my ($directory, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_ok([ 'pg_verifybackup', $directory ], "$name: pg_verifybackup");
	return ok(slurp_file("$directory/$table") eq slurp_file($node->data_dir . "/$table"), "$name: the table");
}

# What the server is asked for by the options, and what the copy is.
for my $case (
	[ 'server-lz4', qr/lz4/ ],
	[ 'server-zstd:level=1', qr/zstd/ ],
	[ 'server-zstd:-5', qr/zstd/ ],
	[ 'server-zstd:level=2,long', qr/zstd/ ],
	[ 'server-lz4:12', qr/lz4/, '--manifest-checksums' => 'SHA256' ],
	[ 'server-zstd', qr/zstd/, '--verify' => 'client' ],
	[ 'server-lz4', qr/lz4/, '-X' => 'stream' ])
{
	my ($compress, $method, @more) = @$case;
	my $name = join(' ', $compress, @more);
	my $copy = PostgreSQL::Test::Cluster->new('copy' . ++$number);
	$node->command_checks_all(
		[ @client, '--compress' => $compress, @more, '--dbname' => $node->connstr('postgres'), '--pgdata' => $copy->data_dir ],
		0, [qr/^$/], [qr/^$/], $name);
	is_good($copy->data_dir, $name);
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(hashtext(hash)::bigint) FROM t'), $sum, "$name: data of the copy");
	$copy->stop;
}

# What the server has no word for is done in another way, with a warning.
for my $case (
	[ 'server-zstd:level=1,workers=4', qr/warning: workers are ignored: each connection compresses by itself, use more of them \(-j\)/ ],
	[ 'server-gzip:5', qr/warning: the server does not compress with gzip, zstd is used on the way/ ])
{
	my ($compress, $warning) = @$case;
	my $directory = "$tempdir/backup" . ++$number;
	$node->command_checks_all(
		[ @client, '--compress' => $compress, '--dbname' => $node->connstr('postgres'), '--pgdata' => $directory ],
		0, [qr/^$/], [$warning], $compress);
	is_good($directory, $compress);
}
$node->command_fails_like([ @client, '-Z' => 'server-zstd:level=23', '-D' => "$tempdir/no" ],
	qr/error: could not initiate base backup: ERROR:  invalid compression specification: compression algorithm "zstd" expects a compression level between -131072 and 22 \(default at 3\)/,
	'a level that there is not');
$node->command_fails_like([ @client, '-Z' => 'server-extrasquishy', '-D' => "$tempdir/no" ],
	qr/error: could not initiate base backup: ERROR:  unrecognized compression algorithm: "extrasquishy"/, 'a method that there is not');
$node->command_ok([ @client, '-Z' => 'server-zstd', '-t' => 'blackhole', '--dbname' => $node->connstr('postgres') ], 'into the black hole');

# Through a network that changes bytes. Compressed, one bit is enough to change all that follows; the copy is
# right or there is none.
sub through
{
	my ($name, $compress, %params) = @_;
	my $directory = "$tempdir/backup" . ++$number;
	my $flag = "$tempdir/flag";
	unlink $flag;
	my $proxy = ParallelBackup::Proxy->new(server => $node->port, flag => $flag, %params);
	my ($stdout, $stderr) = run_command([ @client, '--compress' => $compress, '--pgdata' => $directory,
		'--dbname' => 'host=127.0.0.1 dbname=postgres sslmode=disable gssencmode=disable port=' . $proxy->port ]);
	$proxy->stop;
	ok(-e $flag, "$name: a byte was changed");
	return ($directory, $stderr);
}

# A copy that is called good is, and where there is none it was said why: what was found out on the coordinator's
# connection ends the backup.
sub is_good_or_refused
{
	my ($directory, $stderr, $said, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	if (-e "$directory/backup_manifest") { is_good($directory, $name) }
	else { like($stderr, qr/error: .*$said/, "$name: refused") }
	return;
}

for my $method (qw(lz4 zstd))
{
	my $byte = $COMPRESSION{$method};
	# In the head of a stream, and in the middle: the frame of the table's file says where it is.
	my $begin = pack('C', $byte) . "$table\0";
	for my $case (
		[ 'the magic number' => 0, 0x01, 1 ],
		[ 'the frame descriptor' => 4, 0x04, 1 ],
		# One that says how far away the same bytes are may name others that are the same.
		[ 'a block' => 3000, 0x20, 0 ],
		[ 'another' => 8000, 0x08, 0 ])
	{
		my ($name, $at, $xor, $is_sure) = @$case;
		# Behind the path: head of the message with the data, 5 bytes, and its type.
		my ($directory, $stderr) = through("$method, $name", "server-$method", find => $begin, at => length($begin) + 6 + $at, xor => $xor);
		next if !$is_sure && $stderr eq '' && is_good($directory, "$method, $name: no matter");
		like($stderr, qr/warning: could not fetch file "\Q$table\E", will try again: .*damaged in transit/, "$method, $name: found")
		  or diag($stderr);
		is_good($directory, "$method, $name");
	}
	# Each time: no backup.
	my ($directory, $stderr) = through("$method, always", "server-$method", find => $begin, at => length($begin) + 6 + 5000, xor => 1, always => 1);
	like($stderr, qr/error: .*\Q$table\E.*damaged in transit/, "$method, always: refused");
	ok(!-e $directory, "$method, always: nothing is left");
	# What a file is said to be.
	for my $kind ([ 'not compressed' => $byte ], [ 'compressed in another way' => 3 ], [ 'in no way that there is' => 0x80 ])
	{
		my ($name, $xor) = @$kind;
		my ($other, $stderr) = through("$method, $name", "server-$method", find => $begin, at => 0, xor => $xor);
		isnt($stderr, '', "$method, $name: found");
		is_good_or_refused($other, $stderr, qr/server sent an invalid file transfer/, "$method, $name");
	}
}
# Where nothing was asked for, nothing is decompressed.
{
	my ($directory, $stderr) = through('not asked for', 'none', find => "\0$table\0", at => 0, xor => 2);
	like($stderr, qr/compression that was not asked for/, 'not asked for: found');
	is_good_or_refused($directory, $stderr, qr/not asked for/, 'not asked for');
}

# Somewhere in the first 8 kB of the table's stream.
{
	my $seed = $ENV{PPB_SEED} // time;
	note("PPB_SEED=$seed");
	srand($seed);
	for my $round (1 .. 10)
	{
		my $method = qw(lz4 zstd) [ $round % 2 ];
		my $begin = pack('C', $COMPRESSION{$method}) . "$table\0";
		my ($at, $xor) = (int(rand(8192)), 1 << int(rand(8)));
		my $name = "$method, bit $xor of byte $at";
		my ($directory, $stderr) = through($name, "server-$method", find => $begin, at => length($begin) + 6 + $at, xor => $xor);
		is_good($directory, $name) or diag($stderr);
	}
}

$node->stop;
done_testing();
