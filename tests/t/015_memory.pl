# The server's memory does not grow with the number of files, nor with the number
# of commands.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant { FILES => 100_000, BOUND_KB => 4096 };


my $node = parallel_node('main');
my $pgdata = $node->data_dir;
my $dbdir = 'base/' . $node->safe_psql('postgres',
	"SELECT oid FROM pg_database WHERE datname = 'postgres'");

# The most that a process has had in memory so far, in kB, without what it shares.
sub high_water
{
	my ($conn) = @_;
	my ($kb) = slurp_file('/proc/' . $conn->pid . '/status') =~ /^VmHWM:\s+(\d+) kB$/m;
	return $kb;
}

my $coordinator = connection($node);
my $start = start_backup($coordinator);
my $conn = connection($node);
my @id = (BACKUP_ID => $start->{backup_id});

sub count_list
{
	my ($sql) = @_;
	my $rows = 0;
	my $reply = $conn->query($sql, on_row => sub { $rows++ });
	die $reply->{error}{message} if $reply->{error};
	return $rows;
}

# Everything once, so that what is allocated for good is there; then many files.
my $list = "SEND_FILE_LIST (BACKUP_ID '$id[1]')";
my $few = count_list($list);
fetch($conn, [ ('PG_VERSION') x 1024 ], @id, FILE_CHECKSUM => 'SHA256');
my $before = high_water($conn);

my @paths;
for my $n (1 .. FILES)
{
	my $path = sprintf('%s/%d.%d', $dbdir, 4_000_000_000 + int($n / 10), 1 + $n % 10);
	open my $fh, '>', "$pgdata/$path" or die "$path: $!";
	close $fh;
	push @paths, $path if $n <= 1024;
}
is(count_list($list), $few + FILES, 'every file is listed');
cmp_ok(high_water($conn) - $before, '<', BOUND_KB, 'a long list takes no memory in the server');
is(count_list($list), $few + FILES, 'and once more');
cmp_ok(high_water($conn) - $before, '<', BOUND_KB, 'a second one neither');

# A list that nobody reads is a transfer like any other: STOP_BACKUP is refused,
# and a terminated server process goes.
{
	my $reader = connection($node);
	$reader->send_query($list);
	$reader->read_until(sub { $_[0]{type} eq 'D' });
	is_error($coordinator, 'STOP_BACKUP', '55000',
		qr/^cannot stop the parallel backup while files of it are being sent$/,
		'STOP_BACKUP while a list is sent');
	# PostgreSQL lets go of a client only if the write was blocked before the signal came.
	wait_until_full($node, $reader);
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $reader->pid . ')');
	ok($node->poll_query_until('postgres',
			'SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ' . $reader->pid),
		'a list that nobody reads can be terminated');
	$reader->drop;

	# Cancelled, the connection is usable; so when the coordinator has gone.
	my $other = connection($node);
	my $start = start_backup($other);
	$reader = connection($node);
	for my $end (qw(cancel drop))
	{
		$reader->send_query("SEND_FILE_LIST (BACKUP_ID '$start->{backup_id}')");
		$reader->read_until(sub { $_[0]{type} eq 'D' });
		my $message;
		if ($end eq 'cancel')
		{
			$reader->cancel;
			$message = qr/^canceling statement due to user request$/;
		}
		else
		{
			my $pid = $other->pid;
			$other->drop;
			$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
			$message = qr/^parallel backup "$start->{backup_id}" was aborted$/;
		}
		is_report($reader->finish->{error}, '57014', $message, "a list, $end");
		still_works($reader, "a list, $end: usable");
	}
	$reader->close;
}

# Many commands.
for my $round (1 .. 30)
{
	my $transfer = fetch($conn, \@paths, @id, FILE_CHECKSUM => 'SHA256');
	die 'files are missing' if @{ $transfer->{files} } != @paths;
}
cmp_ok(high_water($conn) - $before, '<', BOUND_KB, 'many commands take no memory in the server');
for my $round (1 .. 200)
{
	my $reply = $conn->query("SEND_FILES_CONTENT ('base') WITH (BACKUP_ID '$id[1]')");
	die 'not refused' if !$reply->{error};
	$reply = $conn->query("SEND_FILES_CONTENT ('%') WITH (BACKUP_ID '$id[1]')");
	die 'not refused' if !$reply->{error};
}
cmp_ok(high_water($conn) - $before, '<', BOUND_KB, 'nor do refused ones');

# Nor do they keep files open.  Where the session has a database, its catalogs are.
my $ours = stock_server() ? qr{/base(?:/\d+)?\z|/4\d{9}\.\d+\z|PG_VERSION} : qr{/base(?:/|\z)|PG_VERSION};
my @open = grep { (readlink("/proc/" . $conn->pid . "/fd/$_") // '') =~ m{^\Q$pgdata\E} }
  slurp_dir('/proc/' . $conn->pid . '/fd');
is(scalar(grep { readlink('/proc/' . $conn->pid . "/fd/$_") =~ $ours } @open),
	0, 'no file is left open');

unlink "$pgdata/$_" for grep { m{^\Q$dbdir\E/4\d{9}\.} } map { "$dbdir/$_" } slurp_dir("$pgdata/$dbdir");
is(count_list($list), $few, 'a short list again');
ok(!stop_backup($coordinator)->{reply}{error}, 'STOP_BACKUP');
$_->close for ($coordinator, $conn);

my $copy = PostgreSQL::Test::Cluster->new('copy');
raw_backup($node, $copy->data_dir);
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT 1'), 1, 'the copy runs');
$copy->stop;

done_testing();
