# A server that is the client's enemy: its list names places outside of the copy, or sizes that there are not; its frames come
# twice, out of order, without an end, or are of files that nobody asked for; and all of its checksums are right. The client ends
# with a word about it, has written nowhere else, and leaves nothing.
#
# ENTRIES is how long a list is that is too long, 50,000 by default.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Frame qw(digest_of);
use ParallelBackup::Hostile;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

use constant GB => 1024 * 1024 * 1024;

my $entries = $ENV{ENTRIES} || 50_000;
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1);
mkdir $_ or die $! for "$tempdir/ts", "$tempdir/place";
$node->safe_psql('postgres', $_) for ("CREATE TABLESPACE ts LOCATION '$tempdir/ts'", 'CREATE TABLE t TABLESPACE ts AS SELECT 1 AS id');
my $ts = $node->safe_psql('postgres', q(SELECT oid FROM pg_tablespace WHERE spcname = 'ts'));
my $target = "$tempdir/place/target";
my $before = file_tree("$tempdir/place");

# All that the client may take, in kB: several threads with their stacks, and no more of what the server says.
my @limited = ('bash', '-c', 'ulimit -v 2000000; exec "$@"', 'sh');

# A backup from the server that lies so.
sub refused
{
	my ($name, $lie, $words, @options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $server = ParallelBackup::Hostile->new(node => $node, %$lie);
	my ($stdout, $stderr);
	my $run = IPC::Run::run(
		[
			@limited, 'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-X' => 'none', '-j' => 2, '-D' => $target, '-T' => "$tempdir/ts=$tempdir/place/new_ts",
			# With a lease, what is no answer is taken for damage on the way, and asked for again for some time.
			'--lease' => 0, @options, '-d' => 'host=127.0.0.1 dbname=postgres sslmode=disable gssencmode=disable port=' . $server->port
		],
		'>' => \$stdout, '2>' => \$stderr, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	my $status = $?;
	$server->stop;
	# With a lease it says that it may be tried again.
	is($status >> 8, "@options" =~ /--lease/ ? 2 : 1, "$name: exit code") or diag($stderr);
	like($stderr, $words, "$name: what it says");
	unlike($stderr, qr/panicked|This is a bug/, "$name: no bug");
	compare_trees($before, "$tempdir/place", "$name: nothing is written elsewhere, and nothing is left");
	File::Path::remove_tree("$tempdir/place");
	mkdir "$tempdir/place" or die $!;
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), "$name: no backup is left on the server");
	return;
}

# The frames that are around bytes.
my $begin = sub { my ($size, $offset, $length, $path) = @_; return 'f' . pack('q> q> q> q> N C Z*', $size, $offset, $length, 1_700_000_000, 0600, 0, $path) };
my $end = sub { my ($data) = @_; return 'e' . pack('q> N C n a*', length $data, 0, 1, 4, digest_of('CRC32C', $data)) };

# Rows of the list: path, type, size, mtime, mode. One more before the first.
sub listed
{
	my (@rows) = @_;
	my $is_first = 1;
	return (command => 'list', row => sub {
		my ($row) = @_;
		my @more = $is_first ? @rows : ();
		$is_first = 0;
		# As many columns as the server's own.
		return ((map { [ @$_, (undef) x (@$row - @$_) ] } @more), $row);
	});
}
sub entry { my ($path, $type, $size) = @_; return [ $path, $type // 'f', $size // 1, 1_700_000_000, '600' ] }

refused("listed: $_", { listed(entry($_)) }, qr/error: .*(?:path|name)/)
  for ('../evil', "$tempdir/place/evil", 'base/../../evil', '%2E%2E/evil', 'base/./evil', 'base//evil', '', 'evil%00', 'evil%2', "base/evil%2F..%2F..%2Fevil", 'evil/');
refused("listed: a name of 64 kB", { listed(entry('evil' x 16384)) }, qr/error: .*(?:path|name)/);
refused("listed: a depth of 64 kB", { listed(entry('e/' x 32767 . 'e')) }, qr/error: .*(?:path|name)/);
refused("listed: a size of $_", { listed(entry('evil', 'f', $_)) }, qr/error: .*size/)
  for ('-1', '18446744073709551616', '99999999999999999999999', '1e3', '0x10', '', ' 1');
refused('listed: a size of -1, with a lease', { listed(entry('evil', 'f', -1)) }, qr/error: .*size/, '--lease' => 5);
refused("listed: a type of \"$_\"", { listed(entry('evil', $_)) }, qr/error: .*type/) for ('z', '', 'ff', 'l');
# What the client makes itself, or makes a link of.
refused("listed: $_", { listed(entry($_)) }, qr/error: /)
  for ('backup_label', 'tablespace_map', 'backup_manifest', 'global/pg_control', 'pgsql_tmp.pg_parallel_basebackup', 'pgsql_tmp.pg_parallel_basebackup.resume', 'pg_wal', "pg_tblspc/$ts");
# Sent too, as soon as they are asked for: what the real server does not have is said to have vanished.
refused('sent: a file that is a directory too',
	{
		listed(entry('evil'), entry('evil/more')),
		command => qr/SEND_FILE_LIST *\((?!.*estimate)|SEND_FILES_CONTENT *\(/is,
		frame => sub { my ($frame) = @_; $frame =~ /^v(evil.*)\0\z/ ? ($begin->(1, 0, 1, $1), 'dx', $end->('x')) : $frame }
	},
	qr/error: .*evil.*(?:directory|exists)/i);
refused('listed: more than there is room for', { listed(entry('base/1/987654', 'f', '9223372036854775807')) }, qr/error: /);
{
	my $number = 0;
	refused("listed: $entries files that there are not, and then a wrong one",
		{ command => 'list', row => sub {
			my ($row) = @_;
			return $row if $number;
			return (sub { return $number++ < $entries ? [ @{ entry("base/1/evil$number") }, (undef) x (@$row - 5) ] : undef }, [ @{ entry('../evil') }, (undef) x (@$row - 5) ], $row);
		} },
		qr/error: .*(?:path|name)/);
}

# Totals, which are asked for before the backup starts.
{
	my $totals = qr/SEND_FILE_LIST *\(.*totals/is;
	my $is_first;
	my $told = sub {
		my (@rows) = @_;
		$is_first = 1;
		return { command => $totals, row => sub { my ($row) = @_; my @more = $is_first ? @rows : (); $is_first = 0; return (@more, $row) } };
	};
	refused("totals: $_->[0]", $told->($_->[1]), $_->[2])
	  for ([ 'a size of -1', [ $ts, 1, -1 ], qr/error: .*(?:number|size|value)/ ],
		[ 'an OID beyond any', [ '4294967296', 1, 1 ], qr/error: .*(?:number|value)/ ]);
	refused('totals: more than there is room for', { command => $totals, row => sub { return [ $_[0][0], 1, '18446744073709551615' ] } },
		qr/error: not enough space for the backup/);
	my $number = 0;
	refused("totals: $entries tablespaces that there are not, and then a wrong one",
		$told->(sub { return $number++ < $entries ? [ 100_000 + $number, 1, 8192 ] : undef }, [ 'evil', 1, 1 ]),
		qr/error: .*evil/);
}

# Frames: one of them becomes these, on the first connection that has it.
sub instead
{
	my ($type, $frames) = @_;
	my $is_done = 0;
	return (command => 'files', frame => sub {
		my ($frame) = @_;
		return $frame if $is_done || substr($frame, 0, 1) ne $type;
		$is_done = 1;
		return $frames->($frame);
	});
}
sub path_of { return unpack('x37 Z*', substr($_[0], 1)) }
sub length_of { return unpack('q>', substr($_[0], 17, 8)) }

my $asked = qr/error: .*(?:sent|server|frame|file)/;
my @lies = (
	[ 'a file that nobody asked for, before another', f => sub { ($begin->(4, 0, 4, 'evil'), 'devil', $end->('evil'), $_[0]) } ],
	[ 'a file that nobody asked for, behind another', e => sub { ($_[0], $begin->(4, 0, 4, 'evil'), 'devil', $end->('evil')) } ],
	[ 'a file outside, instead of another', f => sub { $begin->(length_of($_[0]), 0, length_of($_[0]), '../evil') } ],
	[ 'an absolute path', f => sub { $begin->(length_of($_[0]), 0, length_of($_[0]), "$tempdir/place/evil") } ],
	[ 'the path of another file', f => sub { $begin->(length_of($_[0]), 0, length_of($_[0]), 'PG_VERSION2') } ],
	[ 'a file that begins twice', f => sub { ($_[0], $_[0]) } ],
	[ 'a file that ends twice', e => sub { ($_[0], $_[0]) } ],
	[ 'a file without a beginning', f => sub { () } ],
	[ 'a file without an end', e => sub { () } ],
	[ 'a file that ends before its bytes', f => sub { ($_[0], $end->('')) } ],
	[ 'bytes twice', d => sub { ($_[0], $_[0]) } ],
	[ 'bytes that are missing', d => sub { () } ],
	[ 'bytes without an end', d => sub { my $data = 'd' . "\x01" x 262144; my $left = 3 * GB; sub { ($left -= length $data) > 0 ? $data : undef } } ],
	[ 'files without an end', e => sub { my $count = 1_000_000; ($_[0], sub { $count-- > 0 ? $begin->(0, 0, 0, "evil$count") : undef }) } ],
	[ 'a negative length', f => sub { $begin->(-1, 0, -1, path_of($_[0])) } ],
	[ 'a negative offset', f => sub { $begin->(length_of($_[0]), -8192, length_of($_[0]), path_of($_[0])) } ],
	[ 'a length of 8 EB', f => sub { $begin->(9223372036854775807, 0, 9223372036854775807, path_of($_[0])) } ],
	[ 'an offset of 8 EB', f => sub { $begin->(length_of($_[0]), 9223372036854767616, length_of($_[0]), path_of($_[0])) } ],
	[ 'an unknown compression', f => sub { substr($_[0], 37, 1) = "\x09"; $_[0] } ],
	[ 'a compression that was not asked for', f => sub { substr($_[0], 37, 1) = "\x02"; $_[0] } ],
	[ 'a path without its end', f => sub { substr($_[0], 0, -1) } ],
	[ 'a path of 64 kB', f => sub { $begin->(length_of($_[0]), 0, length_of($_[0]), 'e/' x 32767 . 'e') } ],
	[ 'an empty frame', f => sub { ('', $_[0]) } ],
	[ 'a frame that is cut', f => sub { substr $_[0], 0, 20 } ],
	[ 'a number of bytes that is not', e => sub { substr($_[0], 8, 1) ^= "\x01"; $_[0] } ],
	[ 'an unknown checksum', e => sub { substr($_[0], 13, 1) = "\x63"; $_[0] } ],
	[ 'a checksum that is longer than the frame', e => sub { substr($_[0], 14, 2) = "\xff\xff"; $_[0] } ],
	[ 'a file that has vanished, and nobody asked for', f => sub { ("vevil\0", $_[0]) } ],
	[ 'a file that has vanished, outside', f => sub { ("v../evil\0", $_[0]) } ],
	[ 'a file that has vanished in its middle', d => sub { ($_[0], "v$0\0") } ]);
for my $lie (@lies)
{
	my ($name, $type, $frames) = @$lie;
	refused("sent: $name", { instead($type, $frames) }, $asked);
}

# What is said of the cluster at the beginning, and of the backup at its end.
refused("a tablespace \"$_\"", { command => qr/START_BACKUP *\(/i, row => sub { my ($row, $set) = @_; $row->[0] = $_ if $set == 1; $row } }, qr/error: /)
  for ('../../evil', "$ts/../../evil", '', '-1', '99999999999', $tempdir);
refused('tablespaces twice', { command => qr/START_BACKUP *\(/i, row => sub { my ($row, $set) = @_; $set == 1 ? ($row, [@$row]) : $row } }, qr/error: /);
{
	# Whatever is no absolute path is taken for a tablespace in place, by its number.
	my $server = ParallelBackup::Hostile->new(node => $node, command => qr/START_BACKUP *\(/i, row => sub { my ($row, $set) = @_; $row->[1] = '../../evil' if $set == 1 && defined $row->[0]; $row });
	command_ok([ 'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-X' => 'none', '-D' => $target, '-d' => 'host=127.0.0.1 dbname=postgres sslmode=disable gssencmode=disable port=' . $server->port ],
		'a tablespace at a place that is no path');
	$server->stop;
	is_deeply([ grep { !/^\.\.?\z/ } slurp_dir("$tempdir/place") ], ['target'], 'a tablespace at a place that is no path: nothing is outside of the copy');
	is_deeply([ grep { !/^\.\.?\z/ && !/^(?:place|ts)\z/ } slurp_dir($tempdir) ], [], 'a tablespace at a place that is no path: nor further up');
	ok(-d "$target/pg_tblspc/$ts" && !-l "$target/pg_tblspc/$ts", 'a tablespace at a place that is no path: it is a directory in place');
	File::Path::remove_tree("$tempdir/place");
	mkdir "$tempdir/place" or die $!;
}
refused("WAL \"$_\"", { command => 'stop', row => sub { my ($row, $set) = @_; $set == 3 ? [$_, @$row[ 1 .. $#$row ]] : $row } }, qr/error: /, '-X' => 'fetch')
  for ('../../evil', "$tempdir/place/evil", '00000001000000000000000', '0000000100000000000000GG', '');
refused("a control file of $_->[0]", { command => 'stop', row => sub { my ($row, $set) = @_; $row->[0] = $_->[1] if $set == 1; $row } }, qr/error: /)
  for ([ 'nothing', '' ], [ 'half a byte', 'abc' ], [ 'no digits', 'xyz' x 100 ], [ 'less than there is', 'ab' x 8191 ], [ 'a megabyte', 'ab' x 1048576 ]);

# Sizes in the list are what was, and no more: they may be whatever they like.
{
	for my $how ([ '--progress', '-t' => 'blackhole' ], [ '--no-estimate-size', '-D' => $target, '-T' => "$tempdir/ts=$tempdir/place/new_ts" ])
	{
		my $server = ParallelBackup::Hostile->new(node => $node, listed(map { entry("base/1/evil$_", 'f', '18446744073709551615') } 1 .. 4));
		command_checks_all([ 'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-X' => 'none', @$how, '-d' => 'host=127.0.0.1 dbname=postgres sslmode=disable gssencmode=disable port=' . $server->port ],
			0, [qr/^/], [qr/^(?!.*panicked)/s], "listed: sizes that have no sum, of files that are gone: $how->[0]");
		$server->stop;
	}
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], 'listed: sizes that have no sum: pg_verifybackup');
	File::Path::remove_tree("$tempdir/place");
	mkdir "$tempdir/place" or die $!;
}

# Whoever was lied to is none the worse.
command_ok([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-X' => 'fetch', '-D' => $target, '-T' => "$tempdir/ts=$tempdir/place/new_ts", '-d' => $node->connstr('postgres') ], 'an honest server');
my $copy = PostgreSQL::Test::Cluster->new('copy');
rename $target, $copy->data_dir or die $!;
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1, 'the copy has the data');
$copy->stop;
$node->stop;
done_testing();
