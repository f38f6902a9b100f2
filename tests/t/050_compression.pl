# Compressed transfers: what the server sends as streams of lz4 and zstd, read by the programs of these
# names. Errors of the options are in 003.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Compressed qw(header through %COMPRESSION);
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant { KB => 1024, MB => 1024 * 1024 };

my $node = parallel_node('main', extension => 1);
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 100000) AS id;
	CHECKPOINT;));
my $table = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t')");
my $dbdir = $table =~ s{/\d+\z}{}r;

# Bytes that no method makes smaller, and some of which half is left.
sub noise
{
	my ($length) = @_;

	open my $random, '<:raw', '/dev/urandom' or die $!;
	my $bytes = '';
	while (length $bytes < $length)
	{
		sysread($random, $bytes, $length - length $bytes, length $bytes) or die $!;
	}
	return $bytes;
}

sub half_noise { return unpack('H*', noise($_[0] / 2)) }

my %content = (
	'c.empty' => '',
	'c.byte' => 'x',
	'c.little' => 'little' x 1000,
	'c.sample' => 'sample, ' x (16 * KB),
	'c.sample_and_a_byte' => 'sample, ' x (16 * KB) . '!',
	'c.half' => half_noise(3 * MB),
	'c.noise' => noise(3 * MB),
	'c.little_noise' => noise(5000),
	# By its beginning it is judged.
	'c.late' => noise(128 * KB) . "\0" x MB,
	'c.early' => "\0" x (128 * KB) . noise(MB),
	# One byte in twenty, and a little less than that.
	'c.five_percent' => noise(121 * KB) . "\0" x (7 * KB),
	'c.four_percent' => noise(125 * KB) . "\0" x (3 * KB));
write_file("$pgdata/$_", $content{$_}) for keys %content;
my %as_it_is = map { $_ => 1 } qw(c.empty c.byte c.noise c.little_noise c.late c.four_percent);
my @names = sort keys %content;

# What a client asks before it starts.
for my $conn (sql_connection($node), connection($node))
{
	is(query_ok($conn, 'SHOW pg_parallel_backup.features')->{results}[0]{rows}[0][0], 'lz4, zstd, lease' . (server_major() < 17 ? '' : ', incremental') . ', stream_checksum, totals', 'features');
	$conn->close;
}

sub is_whole
{
	my ($name, $transfer) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is_deeply([ map { $_->{path} } @{ $transfer->{files} } ], \@names, "$name: files");
	is(join(' ', grep { $_->{data} ne $content{ $_->{path} } } @{ $transfer->{files} }), '', "$name: bytes");
	is(join(' ', map { $_->{length} } @{ $transfer->{files} }), join(' ', map { length $content{$_} } @names), "$name: lengths");
	return;
}

for my $route (stock_server() ? () : 'commands', 'calls')
{
	my $connect = $route eq 'calls' ? \&sql_connection : \&connection;
	my $coordinator = $connect->($node);
	my $worker = $connect->($node);
	my $id = start_backup($coordinator)->{backup_id};
	my @id = (BACKUP_ID => $id);

	for my $method (qw(lz4 zstd))
	{
		# The way in makes no difference to a level.
		my @levels =
		    $route eq 'calls' && !stock_server() ? (1)
		  : $method eq 'lz4' ? (0, 1, 3, 9, 12)
		  : (-131072, -7, 0, 1, 9, 22);
		for my $level (undef, @levels)
		{
			my @options = (@id, COMPRESSION => $method);
			push @options, COMPRESSION_LEVEL => $level if defined $level;
			my $name = "$route, $method" . (defined $level ? ":$level" : '');

			# One transfer, so that a context serves files of all kinds.
			my $transfer = fetch($worker, \@names, @options, FILE_CHECKSUM => 'SHA256');
			is_whole($name, $transfer);
			# The fastest of all leaves such bytes as they are.
			next if defined $level && $level == -131072;
			is_deeply(
				{ map { $_->{path} => $_->{compression} } @{ $transfer->{files} } },
				{ map { $_ => $as_it_is{$_} ? 0 : $COMPRESSION{$method} } @names },
				"$name: what is compressed")
			  if ($level // 3) >= 1 && $method eq 'zstd';
			my @streams = grep { $_->{compression} } @{ $transfer->{files} };
			cmp_ok(scalar @streams, '>', 2, "$name: some are");
			is(join(' ', grep { $_->{compression} && $as_it_is{ $_->{path} } } @{ $transfer->{files} }), '', "$name: but not what gains nothing");
			cmp_ok(length $_->{stream}, '<=', $_->{length} + $_->{length} / 64 + KB, "$name: $_->{path} has no more than its bound")
			  for @streams;
			for my $header (map { header($_->{compression}, $_->{stream}) } @streams)
			{
				ok(!$header->{checksum}, "$name: no checksum of its own");
				if ($method eq 'lz4') { is("$header->{block} $header->{linked}", 256 * KB . ' 1', "$name: blocks") }
				else { cmp_ok($header->{window}, '<=', 8 * MB, "$name: window") }
			}
		}

		# A digest is of the file, whatever comes of it.
		my @options = (@id, COMPRESSION => $method);
		for my $digest (qw(NONE CRC32C SHA512))
		{
			is_whole("$route, $method, $digest", fetch($worker, \@names, @options, FILE_CHECKSUM => $digest));
		}

		# Ranges are streams of their own, and streams one after the other are one.
		{
			my @ranges = map { [ $table, $_ * 64 * KB, 64 * KB ] } 0 .. 3;
			my $transfer = fetch($worker, \@ranges, @options, VERIFY_CHECKSUMS => 'true', FILE_CHECKSUM => 'SHA256');
			my $bytes = substr(slurp_file("$pgdata/$table"), 0, 256 * KB);
			is(join('', map { $_->{data} } @{ $transfer->{files} }), $bytes, "$route, $method: ranges");
			is(join(' ', map { $_->{compression} } @{ $transfer->{files} }), join(' ', ($COMPRESSION{$method}) x 4),
				"$route, $method: ranges are compressed");
			my @streams = map { $_->{stream} } @{ $transfer->{files} };
			is(through([ $method, '-dcq' ], join('', @streams)), $bytes, "$route, $method: one behind the other");
		}

		# Many little ones.
		{
			my $transfer = fetch($worker, [ ('c.little') x 100 ], @options, FILE_CHECKSUM => 'SHA256');
			is(scalar(grep { $_->{data} eq $content{'c.little'} } @{ $transfer->{files} }), 100, "$route, $method: many files");
		}

		# What comes and goes.
		{
			my $reply = query_ok($worker, send_files_sql([ 'c.little', 'c.never_was', 'c.half' ], @options));
			like(join('', map { $_->{type} } @{ $reply->{frames} }) =~ s/d+/d/gr, qr/^fdcevfdc?e\z/, "$route, $method: a file that is not there");

			write_file("$pgdata/c.large", half_noise(32 * MB));
			my (@frames, $cut);
			$worker->send_query(send_files_sql([ 'c.large', 'PG_VERSION' ], @options, FILE_CHECKSUM => 'SHA256'),
				on_frame => sub { push @frames, $_[0] });
			$worker->read_until(sub { $_[0]{type} eq 'd' });
			truncate("$pgdata/c.large", 31 * MB) or die $!;
			ok(!$worker->finish->{error}, "$route, $method: truncated in mid-transfer: no error");
			my $transfer = ParallelBackup::Transfer->of(\@frames);
			is($transfer->{files}[0]{length}, 32 * MB, "$route, $method: truncated in mid-transfer: announced");
			is(substr($transfer->{files}[0]{data}, 31 * MB) =~ tr/\0//c, 0, "$route, $method: truncated in mid-transfer: filled");
			is($transfer->{files}[1]{data}, server_major() . "\n", "$route, $method: truncated in mid-transfer: what comes after it");

			# Cancelled, between two messages.
			write_file("$pgdata/c.large", half_noise(32 * MB));
			@frames = ();
			$worker->send_query(send_files_sql(['c.large'], @options), on_frame => sub { push @frames, $_[0] });
			$worker->read_until(sub { $_[0]{type} eq 'd' });
			$worker->cancel;
			is_report($worker->finish->{error}, '57014', qr/^canceling statement due to user request$/, "$route, $method: cancelled");
			is(join('', map { $_->{type} } @frames) =~ s/d+/d/gr, 'fd', "$route, $method: cancelled: frames");
			still_works($worker, "$route, $method: cancelled: usable");
			unlink "$pgdata/c.large";
			is_whole("$route, $method, after it", fetch($worker, \@names, @options, FILE_CHECKSUM => 'SHA256'));
		}
	}

	# Windows: 8 MiB whatever the level, 128 MiB where it was asked for.
	{
		my $part = noise(10 * MB);
		# Compressible enough at its beginning.
		write_file("$pgdata/c.far", "\0" x (128 * KB) . $part . $part);
		my @options = (@id, COMPRESSION => 'zstd', COMPRESSION_LEVEL => 1, FILE_CHECKSUM => 'SHA256');
		my ($near) = @{ fetch($worker, ['c.far'], @options)->{files} };
		my ($far) = @{ fetch($worker, ['c.far'], @options, COMPRESSION_DETAIL => 'long')->{files} };
		ok($_->{data} eq "\0" x (128 * KB) . $part . $part, "$route: bytes of a file of 20 MB") for ($near, $far);
		cmp_ok(header(2, $near->{stream})->{window}, '<=', 8 * MB, "$route: window");
		cmp_ok(header(2, $far->{stream})->{window}, '>', 16 * MB, "$route, long: window");
		cmp_ok(length $near->{stream}, '>', 20 * MB, "$route: what is far is not found");
		cmp_ok(length $far->{stream}, '<', 11 * MB, "$route, long: is found");
		unlink "$pgdata/c.far";
	}

	# Counted are bytes of files.
	{
		my ($before) = split /\|/, $node->safe_psql('postgres', "SELECT bytes FROM parallel_backup.backups WHERE backup_id = '$id'");
		fetch($worker, \@names, @id, COMPRESSION => 'zstd');
		my $bytes = 0;
		$bytes += length for values %content;
		is($node->safe_psql('postgres', "SELECT bytes - $before FROM parallel_backup.backups WHERE backup_id = '$id'"),
			$bytes, "$route: bytes in the view");
	}

	my $stop = stop_backup($coordinator, WAIT => 'false');
	ok(!$stop->{reply}{error}, "$route: STOP_BACKUP");

	# WAL, which is never what it was.
	for my $method (qw(lz4 zstd))
	{
		my $transfer = fetch($worker, [ map { "pg_wal/$_" } @{ $stop->{wal} } ], @id, COMPRESSION => $method, FILE_CHECKSUM => 'SHA256');
		is(join(' ', map { $_->{compression} } @{ $transfer->{files} }), join(' ', ($COMPRESSION{$method}) x @{ $stop->{wal} }), "$route, $method: WAL is compressed");
	}
	$_->close for ($worker, $coordinator);
}

# MAX_RATE is of what goes over the network. The first would take five minutes otherwise, and more than any timeout.
{
	make_file("$pgdata/c.zeroes", 10 * MB);
	write_file("$pgdata/c.later", "\0" x (128 * KB) . noise(MB));
	my $conn = connection($node);
	start_backup($conn, MAX_RATE => 32);
	for my $method (qw(lz4 zstd))
	{
		my $file = fetch($conn, ['c.zeroes'], COMPRESSION => $method, FILE_CHECKSUM => 'SHA256')->{files}[0];
		is($file->{length}, 10 * MB, "MAX_RATE, $method: a file that compresses well");
	}
	stop_backup($conn, WAIT => 'false');
	start_backup($conn, MAX_RATE => 256);
	my $begun = time;
	is(fetch($conn, ['c.later'], COMPRESSION => 'zstd', FILE_CHECKSUM => 'SHA256')->{files}[0]{compression}, 2, 'MAX_RATE: one that does not in the end');
	cmp_ok(time - $begun, '>=', 2, 'MAX_RATE: takes its time');
	stop_backup($conn, WAIT => 'false');
	$conn->close;
	unlink map { "$pgdata/$_" } qw(c.zeroes c.later);
}

# Pages are verified before they are compressed, and the rest is as ever.
{
	# A page that is neither new nor right, among others that are.
	my $page = pack('x14 S a*', 1, "\x01" x (8192 - 16));
	my $sound = substr(slurp_file("$pgdata/$table"), 0, 40 * 8192);
	write_file("$pgdata/base/1/99999", $page x 40);
	my $conn = connection($node);
	start_backup($conn);
	for my $method (qw(none lz4 zstd))
	{
		my $transfer = fetch($conn, [ 'base/1/99999', $table ], COMPRESSION => $method, VERIFY_CHECKSUMS => 'true', FILE_CHECKSUM => 'SHA256');
		is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), '40 0', "$method: failures in the end frames");
		is(scalar @{ $transfer->{reply}{notices} }, 7, "$method: warnings");
		ok($transfer->{files}[0]{data} eq $page x 40, "$method: sent all the same");
		ok(substr($transfer->{files}[1]{data}, 0, length $sound) eq $sound, "$method: a sound one");
	}
	is_report(stop_backup($conn, WAIT => 'false')->{reply}{error}, 'XX001', qr/^checksum verification failure during base backup$/, 'STOP_BACKUP says so');
	$conn->close;
	unlink "$pgdata/base/1/99999";
}

# Memory depends on the level alone: not on the size of a file, nor on the number of files or commands.
{
	my $high_water = sub { return slurp_file('/proc/' . $_[0]->pid . '/status') =~ /^VmHWM:\s+(\d+) kB$/m ? $1 : die };
	write_file("$pgdata/c.16", half_noise(16 * MB));
	write_file("$pgdata/c.160", half_noise(16 * MB) x 10);
	my $coordinator = connection($node);
	my @id = (BACKUP_ID => start_backup($coordinator)->{backup_id});
	my $drain = sub {
		my ($conn, $files, @options) = @_;
		my $reply = $conn->query(send_files_sql($files, @id, @options), on_frame => sub { });
		die $reply->{error}{message} if $reply->{error};
	};
	# In MiB, docs/protocol.md; beside it what every backend takes.
	for my $case ([ lz4 => 0, 1 ], [ lz4 => 12, 2 ], [ zstd => -5, 2 ], [ zstd => 1, 3 ], [ zstd => 3, 5 ], [ zstd => 9, 30 ])
	{
		my ($method, $level, $most) = @$case;
		my $conn = connection($node);
		my @options = (FILE_CHECKSUM => 'SHA256', COMPRESSION => $method, COMPRESSION_LEVEL => $level);
		$drain->($conn, ['c.16'], @id, FILE_CHECKSUM => 'SHA256');
		my $plain = $high_water->($conn);
		$drain->($conn, ['c.16'], @options);
		my $once = $high_water->($conn);
		cmp_ok($once - $plain, '<', $most * KB, "$method:$level: memory");
		$drain->($conn, ['c.160'], @options) if $level < 9;
		$drain->($conn, [ ('c.little', 'c.sample_and_a_byte') x 20 ], @options) for 1 .. 5;
		cmp_ok($high_water->($conn) - $once, '<', 2 * KB, "$method:$level: the same for a larger file and for more commands");
		$conn->close;
	}
	stop_backup($coordinator, WAIT => 'false');
	$coordinator->close;
	unlink map { "$pgdata/$_" } qw(c.16 c.160);
}

# Whole backups.
unlink map { "$pgdata/$_" } @names;
my $copies = 0;
for my $case ([ lz4 => {} ], [ zstd => { COMPRESSION_LEVEL => 1 } ], [ zstd => { COMPRESSION_DETAIL => 'level=5,long' } ])
{
	my ($method, $more) = @$case;
	my $name = join(' ', $method, %$more);
	my $copy = PostgreSQL::Test::Cluster->new('copy' . ++$copies);
	my $state = raw_backup($node, $copy->data_dir, transfer => { COMPRESSION => $method, %$more });
	is($state->{failures}, 0, "$name: no failures");
	my $totals = $state->{stop}{totals};
	is("$totals->{files} $totals->{bytes}", "$state->{files} $state->{bytes}", "$name: totals are of files' bytes");
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "$name: pg_verifybackup");
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), '100000|5000050000', "$name: data of the copy");
	$copy->stop;
}

done_testing();
