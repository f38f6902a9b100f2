# Files that change, come and go between the list and the transfer, and within it.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Frame qw(digest_of);
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant MB => 1024 * 1024;

my $node = parallel_node('main');
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id;
	CREATE TABLE dropped AS SELECT generate_series(1, 1000) AS id;
	CREATE TABLE truncated AS SELECT generate_series(1, 20000) AS id;
	CREATE TABLE extended AS SELECT generate_series(1, 1000) AS id;
	CREATE TABLE logged AS SELECT generate_series(1, 1000) AS id;
	CHECKPOINT;));
my %path = map { $_ => $node->safe_psql('postgres', "SELECT pg_relation_filepath('$_')") }
  qw(kept dropped truncated extended logged);

my $coordinator = connection($node);
my $start = start_backup($coordinator);
my $worker = connection($node);
my @id = (BACKUP_ID => $start->{backup_id});

sub slurp
{
	my ($path) = @_;
	open my $fh, '<:raw', "$pgdata/$path" or die "$path: $!";
	local $/;
	return <$fh>;
}

# Gone before its first byte: a "v" frame, in its place among the others.
{
	my @list = list_files($worker, @id);
	ok(scalar(grep { $_->{path} eq $path{dropped} } @list), 'listed');
	$node->safe_psql('postgres', 'DROP TABLE dropped; CHECKPOINT;');
	ok(!-e "$pgdata/$path{dropped}", 'dropped');

	my $reply = query_ok($worker,
		send_files_sql([ 'PG_VERSION', $path{dropped}, 'postgresql.conf', 'base/1/never_was' ], @id));
	is(join('', map { $_->{type} } @{ $reply->{frames} }) =~ s/d+/d/gr, 'fdevfdev',
		'frames: file, vanished, file, vanished');
	my $transfer = ParallelBackup::Transfer->of($reply->{frames});
	is_deeply($transfer->{vanished}, [ $path{dropped}, 'base/1/never_was' ], 'vanished paths');
	is($transfer->{files}[1]{data}, slurp('postgresql.conf'), 'what comes after is whole');

	# So for a range, and for all of a batch.
	$transfer = fetch($worker, [ [ $path{dropped}, 8192, 8192 ] ], @id);
	is_deeply($transfer->{vanished}, [ $path{dropped} ], 'a range of a vanished file');
	$transfer = fetch($worker, [ ('base/1/never_was') x 100 ], @id);
	is(scalar @{ $transfer->{vanished} }, 100, 'nothing but vanished files');
	# A directory of its own that is gone.
	$transfer = fetch($worker, ['base/4294967294/1'], @id);
	is_deeply($transfer->{vanished}, ['base/4294967294/1'], 'a directory that is gone');
}

# Truncated and extended between list and transfer: fstat tells the size.
{
	my ($listed) = grep { $_->{path} eq $path{truncated} } list_files($worker, @id);
	cmp_ok($listed->{size}, '>', 80 * 8192, 'size in the list');
	$node->safe_psql('postgres', 'DELETE FROM truncated WHERE id > 200; VACUUM truncated; CHECKPOINT;');
	my $file = fetch($worker, [ $path{truncated} ], @id)->{files}[0];
	is($file->{size}, 8192, 'truncated since: size');
	is($file->{length}, 8192, 'truncated since: length');
	ok($file->{data} eq slurp($path{truncated}), 'truncated since: bytes');
	$file = fetch($worker, [ [ $path{truncated}, 81920, 8192 ] ], @id)->{files}[0];
	is("$file->{size} $file->{offset} $file->{length}", '8192 81920 0',
		'truncated since: a range beyond the end');

	$node->safe_psql('postgres', 'INSERT INTO extended SELECT generate_series(1001, 20000); CHECKPOINT;');
	$file = fetch($worker, [ $path{extended} ], @id)->{files}[0];
	is($file->{length}, -s "$pgdata/$path{extended}", 'extended since: length');
	ok($file->{data} eq slurp($path{extended}), 'extended since: bytes');
}

# Within the transfer, which waits because nobody reads: cut or filled up to the
# length that was announced.  With a checksum, which covers the fill, the bytes go
# by way of a buffer; without, straight from the page cache.
for my $change (
	[ 'truncated', 3 * MB ],
	[ 'truncated to nothing', 0 ],
	[ 'truncated inside of a block', 5 * MB + 1000 ],
	[ 'extended', 48 * MB ])
{
	my ($name, $size) = @$change;
	# A file of no relation, and one whose name is a relation's (in blocks of 1s,
	# which do not pass for new pages, so that verification is off).
	for my $way (map { my $path = $_; map { [ $path, $_ ] } qw(SHA256 NONE) } 'large', 'base/1/99999')
	{
		my ($path, $digest) = @$way;
		my $name = "$name, $digest";
		write_file("$pgdata/$path", "\x01" x (32 * MB));
		my $received = 0;
		my $zeros = 0;
		my $sum = Digest::SHA->new(256);
		my ($begin, $end);
		$worker->send_query(
			send_files_sql([ $path, 'PG_VERSION' ], @id,
				FILE_CHECKSUM => $digest, VERIFY_CHECKSUMS => 'false'),
			on_frame => sub {
				my ($frame) = @_;
				$begin //= $frame if $frame->{type} eq 'f';
				$end //= $frame if $frame->{type} eq 'e';
				return if $frame->{type} ne 'd' || $end;
				$received += length($frame->{data});
				$zeros += ($frame->{data} =~ tr/\0//);
				$sum->add($frame->{data});
			});
		$worker->read_until(sub { $_[0]{type} eq 'd' });
		truncate("$pgdata/$path", $size) or die $!;
		my $reply = $worker->finish;
		ok(!$reply->{error}, "$name in mid-transfer, $path: no error");
		is($begin->{length}, 32 * MB, "$name in mid-transfer, $path: announced");
		is($received, 32 * MB, "$name in mid-transfer, $path: sent");
		is($end->{bytes}, 32 * MB, "$name in mid-transfer, $path: counted");
		ok($end->{digest} eq ($digest eq 'NONE' ? '' : $sum->digest),
			"$name in mid-transfer, $path: digest");
		if ($size < 32 * MB) { cmp_ok($zeros, '>', 8 * MB, "$name in mid-transfer, $path: filled") }
		else { is($zeros, 0, "$name in mid-transfer, $path: not filled") }
		unlink "$pgdata/$path";
	}
}

# Removed within the transfer: the descriptor still reads it.
{
	write_file("$pgdata/large", "\x01" x (32 * MB));
	$worker->send_query(send_files_sql(['large'], @id));
	$worker->read_until(sub { $_[0]{type} eq 'd' });
	unlink "$pgdata/large";
	my $transfer = ParallelBackup::Transfer->of($worker->finish->{frames});
	is($transfer->{files}[0]{data} =~ tr/\x01//, 32 * MB, 'removed in mid-transfer: whole');
	is_deeply(fetch($worker, ['large'], @id)->{vanished}, ['large'], 'then vanished');
}

# Renamed over within the transfer: the old one, whole; then the new one.
{
	write_file("$pgdata/large", "\x01" x (32 * MB));
	write_file("$pgdata/large.new", 'new');
	$worker->send_query(send_files_sql(['large'], @id));
	$worker->read_until(sub { $_[0]{type} eq 'd' });
	rename("$pgdata/large.new", "$pgdata/large") or die $!;
	my $transfer = ParallelBackup::Transfer->of($worker->finish->{frames});
	is($transfer->{files}[0]{data} =~ tr/\x01//, 32 * MB, 'renamed over in mid-transfer: the old one');
	is(fetch($worker, ['large'], @id)->{files}[0]{data}, 'new', 'then the new one');
	unlink "$pgdata/large";
}

# An unlogged relation's init fork appears after the list: the other forks vanish.
{
	my ($db, $number) = $path{logged} =~ m{^(.+)/(\d+)\z};
	my $init = "$db/${number}_init";
	is(scalar @{ fetch($worker, [ $path{logged} ], @id)->{files} }, 1, 'before the init fork');
	write_file("$pgdata/$init", '');
	my $transfer = fetch($worker,
		[ $path{logged}, "$db/${number}_fsm", "$path{logged}.1", $init, [ $path{logged}, 0, 8192 ] ], @id);
	is_deeply($transfer->{vanished},
		[ $path{logged}, "$db/${number}_fsm", "$path{logged}.1", $path{logged} ],
		'forks beside an init fork vanish');
	is_deeply([ map { $_->{path} } @{ $transfer->{files} } ], [$init], 'the init fork is sent');
	my %listed = map { $_->{path} => 1 } list_files($worker, @id);
	ok(!$listed{ $path{logged} }, 'and no longer listed');
	ok($listed{$init}, 'but the init fork is');
	unlink "$pgdata/$init";
}

# A mode that changes is that of the descriptor.
{
	chmod(0640, "$pgdata/postgresql.conf");
	utime(1_000_000_000, 1_000_000_000, "$pgdata/postgresql.conf");
	my $file = fetch($worker, ['postgresql.conf'], @id)->{files}[0];
	is($file->{mode}, 0640, 'mode of the descriptor');
	is($file->{mtime}, 1_000_000_000, 'mtime of the descriptor');
	chmod(0600, "$pgdata/postgresql.conf");
}

ok(!stop_backup($coordinator)->{reply}{error}, 'STOP_BACKUP');
$_->close for ($worker, $coordinator);

# All of that within one backup, which must be good.
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	my $changes = sub {
		my ($n) = @_;
		$node->safe_psql('postgres', qq(
			CREATE TABLE "new$n" AS SELECT generate_series(1, 3000) AS id;
			DROP TABLE IF EXISTS victim;
			CREATE TABLE victim AS SELECT generate_series(1, 5000) AS id;
			DELETE FROM extended WHERE id > 100;
			VACUUM extended;
			INSERT INTO truncated SELECT generate_series(1, 5000);
			TRUNCATE logged;
			INSERT INTO logged VALUES ($n);
			CREATE DATABASE db$n TEMPLATE template0 STRATEGY file_copy;
			CHECKPOINT;));
	};
	$changes->(0);
	my $victim = $node->safe_psql('postgres', q(SELECT pg_relation_filepath('victim')));
	my $state = raw_backup($node, $copy->data_dir,
		after_start => sub { $changes->(1) },
		after_list => sub { $changes->(2) },
		before_stop => sub { $changes->(3) });
	cmp_ok(scalar @{ $state->{vanished} }, '>=', 1, 'files vanished during the backup');
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'pg_verifybackup');
	start_copy($copy);
	my $query = q(
		SELECT count(*), sum(id) FROM victim;
		SELECT count(*), sum(id) FROM extended;
		SELECT count(*), sum(id) FROM truncated;
		SELECT * FROM logged;
		SELECT count(*) FROM new0, (SELECT id FROM new3 LIMIT 1) n;
		SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database;);
	is($copy->safe_psql('postgres', $query), $node->safe_psql('postgres', $query), 'data of the copy');
	is($copy->safe_psql('db3', 'SELECT 1'), 1, 'a database made during the backup');
	$copy->command_ok([ 'pg_amcheck', '--all', '--install-missing' ], 'pg_amcheck');
	$copy->stop;
}

done_testing();
