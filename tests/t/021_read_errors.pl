# Files that cannot be read to their end: in the middle of a frame that goes straight from page cache
# to socket, and by way of the outbox. The server runs with a library (modules/read_faults) that makes reading fail on demand.

use strict;
use warnings FATAL => 'all';

use Errno qw(EAGAIN EINTR EINVAL EIO ENOSYS);
use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Test;

use constant MB => 1024 * 1024;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $library = "$tempdir/read_faults.so";
my $control = "$tempdir/faults";
{
	my ($cc) = run_command([ 'pg_config', '--cc' ]);
	command_ok(
		[
			split(' ', $ENV{CC} // $cc), '-std=gnu11', '-O1', '-fPIC', '-shared', '-D_GNU_SOURCE',
			'-o', $library, dirname(__FILE__) . '/../modules/read_faults/read_faults.c'
		],
		'the library that makes reading fail');
}

my $node = parallel_node('main', start => 0);
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{READ_FAULTS} = $control;
	$node->start;
}
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE EXTENSION pg_parallel_backup;
	CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;));

# In the second frame of the file, within a block; no byte of it is zero.
my $offset = 1_500_000;
my $content = join('', map { chr(1 + $_ % 255) } 0 .. 4 * MB - 1);
# What goes straight from page cache to socket is a relation file by its name.
my $large = 'base/' . $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = 'postgres'") . '/987654';
write_file("$pgdata/$large", $content);

# Reading of a file fails from the offset on, by sendfile() and by pread().
sub faults
{
	my ($sendfile, $read, %params) = @_;
	write_file($control, join(' ', $params{offset} // $offset, $sendfile, $read, $params{once} ? 1 : 0, "$pgdata/" . ($params{path} // $large)));
	return;
}

sub no_faults
{
	unlink $control;
	return;
}

# How many calls have failed since this was last asked.
sub seen
{
	my $count = -s "$control.seen" // 0;
	unlink "$control.seen";
	return $count;
}

# A transfer that must end with an error in the file.
sub fails_in_frame
{
	my ($name, $conn, @id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @options = (@id, VERIFY_CHECKSUMS => 'false');
	my @files = ('PG_VERSION', $large, 'postgresql.conf');
	my $reply = $conn->query(send_files_sql(\@files, @options));
	my @frames = @{ $reply->{frames} };

	is_report($reply->{error}, '58030', qr/^could not read file "\Q$large\E": Input\/output error$/, $name);
	is(scalar @{ $reply->{errors} }, 1, "$name: one error");
	# One that was whole, one that has begun and has no end, and nothing more.
	is(join('', map { $_->{type} } @frames) =~ s/d+/d/gr, 'fdefd', "$name: frames");
	my ($begin) = grep { $_->{type} eq 'f' && $_->{path} eq $large } @frames;
	my ($data, $in_file) = ('', 0);
	for my $frame (@frames)
	{
		$in_file = $frame->{path} eq $large if $frame->{type} eq 'f';
		$data .= $frame->{data} if $in_file && $frame->{type} eq 'd';
	}
	is($begin->{length}, length($content), "$name: what was announced");
	cmp_ok(length($data), '>', $offset, "$name: the frame was completed");
	cmp_ok(length($data), '<', length($content), "$name: and was the last");
	ok(substr($data, 0, $offset) eq substr($content, 0, $offset), "$name: the bytes before the error");
	is(substr($data, $offset) =~ tr/\0//c, 0, "$name: zeroes from there on");
	return;
}

# The same where the server looks at the bytes: a chunk is sent whole or not at all.
sub fails_between_frames
{
	my ($name, $conn, @id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $reply = $conn->query(send_files_sql([ 'PG_VERSION', $large, 'postgresql.conf' ], @id, FILE_CHECKSUM => 'CRC32C', VERIFY_CHECKSUMS => 'false'));
	my @frames = @{ $reply->{frames} };

	is_report($reply->{error}, '58030', qr/^could not read file "\Q$large\E": Input\/output error$/, $name);
	is(join('', map { $_->{type} } @frames) =~ s/d+/d/gr, 'fdefd', "$name: frames");
	my @data = map { $_->{data} } grep { $_->{type} eq 'd' } @frames;
	shift @data;
	my $data = join('', @data);
	cmp_ok(length($data), '<=', $offset, "$name: nothing behind the error");
	cmp_ok(length($data), '>', MB, "$name: what came before it");
	ok($data eq substr($content, 0, length($data)), "$name: the bytes before the error");
	return;
}

# Compressed there is nothing for sendfile(), and what cannot be read ends a stream where it stands.
sub fails_in_stream
{
	my ($name, $conn, @id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	for my $at ($offset, 0)
	{
		faults(EIO, EIO, offset => $at);
		my $reply = $conn->query(send_files_sql([ 'PG_VERSION', $large, 'postgresql.conf' ], @id, VERIFY_CHECKSUMS => 'false', COMPRESSION => 'zstd'));
		my @frames = @{ $reply->{frames} };

		is_report($reply->{error}, '58030', qr/^could not read file "\Q$large\E": Input\/output error$/, "$name, from $at");
		is(scalar @{ $reply->{errors} }, 1, "$name, from $at: one error");
		# Which file it is, the client knows even where no byte of it was read.
		is(join('', map { $_->{type} } @frames) =~ s/d+/d/gr, $at ? 'fdefd' : 'fdef', "$name, from $at: frames");
		my ($begin) = grep { $_->{type} eq 'f' && $_->{path} eq $large } @frames;
		is($begin->{compression}, $at ? 2 : 0, "$name, from $at: what was announced");
		no_faults();
	}
	return;
}

sub is_whole
{
	my ($name, $conn, @id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $transfer = fetch($conn, [ 'PG_VERSION', $large, 'postgresql.conf' ], @id, VERIFY_CHECKSUMS => 'false');

	ok($transfer->{files}[1]{data} eq $content, "$name: the bytes");
	is($transfer->{files}[2]{data}, slurp_file("$pgdata/postgresql.conf"), "$name: the file behind it");
	return;
}

for my $route (stock_server() ? () : 'commands', 'calls')
{
	my $connect = $route eq 'calls' ? \&sql_connection : \&connection;
	my $coordinator = $connect->($node);
	my $worker = $connect->($node);
	my $id = start_backup($coordinator)->{backup_id};
	my @id = (BACKUP_ID => $id);
	my $state = sub { $node->safe_psql('postgres', "SELECT state, workers FROM parallel_backup.backups WHERE backup_id = '$id'") };

	for my $conn ($worker, $coordinator)
	{
		my $name = "$route, " . ($conn == $worker ? 'worker' : 'coordinator');

		faults(EIO, EIO);
		fails_in_frame("$name, no reading", $conn, @id);
		is($state->(), 'running|0', "$name: the backup goes on");
		fails_in_frame("$name, no reading, again", $conn, @id);
		fails_between_frames("$name, no reading, digest", $conn, @id);
		no_faults();
		fails_in_stream("$name, no reading, compressed", $conn, @id);
		is_whole("$name, mended", $conn, @id);
	}
	# What is not for sendfile() is read.
	for my $case (
		[ 'EIO that reading does not see', EIO, 1 ],
		[ 'EIO from there on that reading does not see', EIO, 0 ],
		[ 'EINVAL at once', EINVAL, 0, offset => 0 ],
		[ 'ENOSYS at once', ENOSYS, 0, offset => 0 ],
		[ 'EINVAL in the middle', EINVAL, 0 ],
		# What passes is tried again.
		[ 'interrupted', EINTR, 1 ],
		[ 'a full socket', EAGAIN, 1 ])
	{
		my ($name, $errno, $once, %params) = @$case;
		seen();
		faults($errno, 0, once => $once, %params);
		is_whole("$route, $name", $worker, @id);
		# The frame where it begins, and each that follows.
		$once ? is(seen(), 1, "$route, $name: seen once") : cmp_ok(seen(), '>', 1, "$route, $name: seen again and again");
		no_faults();
	}
	# In the place of what cannot be sent, reading fails too, at its first byte.
	faults(EINVAL, EIO, offset => 0);
	is_error($worker, send_files_sql([$large], @id, VERIFY_CHECKSUMS => 'false'), '58030',
		qr/^could not read file "\Q$large\E": Input\/output error$/, "$route: at the first byte");
	no_faults();

	is($state->(), 'running|0', "$route: the backup goes on");
	ok(!stop_backup($coordinator, WAIT => 'false')->{reply}{error}, "$route: STOP_BACKUP");
	$_->close for ($worker, $coordinator);
}

# The client asks again for what failed, three times. This one takes the outbox.
{
	rename("$pgdata/$large", "$pgdata/large") or die $!;
	$large = 'large';
	my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--jobs' => 2, '--verify' => 'client', '--dbname' => $node->connstr('postgres'));
	my $again = qr/warning: could not fetch file "large", will try again: ERROR:  could not read file "large": Input\/output error/;

	seen();
	faults(EIO, EIO);
	$node->command_checks_all([ @client, '--pgdata' => "$tempdir/failed" ],
		1, [qr/^$/], [ $again, qr/error: .*in 3 tries: ERROR:  could not read file "large": Input\/output error/ ], 'the client gives up');
	ok(!-e "$tempdir/failed", 'and leaves nothing');
	is(seen(), 3, 'three tries');
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), 'on the server neither');

	faults(EIO, EIO, once => 1);
	$node->command_checks_all([ @client, '--pgdata' => "$tempdir/again" ], 0, [qr/^$/], [$again], 'the client fetches again');
	is(seen(), 1, 'one call failed');
	command_ok([ 'pg_verifybackup', "$tempdir/again" ], 'pg_verifybackup');
	ok(slurp_file("$tempdir/again/large") eq $content, 'the file is whole');

	# A relation's file.
	$node->safe_psql('postgres', q(
		CREATE TABLE big AS SELECT repeat('x', 7000) AS a FROM generate_series(1, 500);
		ALTER TABLE big ALTER a SET STORAGE PLAIN;
		TRUNCATE big;
		INSERT INTO big SELECT repeat('x', 7000) FROM generate_series(1, 500);
		CHECKPOINT;));
	my $path = $node->safe_psql('postgres', "SELECT pg_relation_filepath('big')");
	cmp_ok(-s "$pgdata/$path", '>', $offset, 'a table that is large enough');
	faults(EIO, EIO, once => 1, path => $path);
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	$node->command_checks_all([ @client, '--pgdata' => $copy->data_dir ], 0, [qr/^$/],
		[qr/warning: could not fetch file "\Q$path\E", will try again: ERROR:  could not read file "\Q$path\E": Input\/output error/],
		"a table's file");
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "a table's file: pg_verifybackup");
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(length(a)) FROM big'), '500|3500000', 'data of the copy');
	$copy->stop;
}
$node->stop;

done_testing();
