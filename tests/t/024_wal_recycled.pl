# WAL that the server recycles while a client is slow to read: what comes before a good end
# frame is the segment that was asked for, for a segment's file is used again for another.

use strict;
use warnings FATAL => 'all';

use IO::Socket::INET;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Test;

use constant SEGMENT => 1 << 20;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', conf => <<CONF);
listen_addresses = '127.0.0.1'
checkpoint_timeout = 1d
wal_keep_size = 0
min_wal_size = 16MB
max_wal_size = 32MB
wal_recycle = on
CONF
my $pgdata = $node->data_dir;
my $user = $node->safe_psql('postgres', 'SELECT current_user');
append_to_file("$pgdata/pg_hba.conf", "host all,replication $user 127.0.0.1/32 trust\n");
$node->reload;
$node->safe_psql('postgres', 'CREATE TABLE t (t text)');

sub inode { return (stat "$pgdata/pg_wal/$_[0]")[1] // 0 }

# Writes WAL and checkpoints, until the file of a segment has another name.
sub recycle
{
	my ($segment) = @_;
	my $inode = inode($segment);

	for (1 .. 40)
	{
		return 1 if inode($segment) != $inode && grep { (stat $_)[1] == $inode } glob "$pgdata/pg_wal/0*";
		$node->safe_psql('postgres', "INSERT INTO t SELECT repeat('w', 500) FROM generate_series(1, 1500)")
		  for 1 .. 2;
		$node->safe_psql('postgres', 'SELECT pg_switch_wal()');
		$node->safe_psql('postgres', 'CHECKPOINT');
	}
	return 0;
}

# Overwrites the recycled files, as a server does in time.
sub write_wal
{
	$node->safe_psql('postgres', "INSERT INTO t SELECT repeat('w', 500) FROM generate_series(1, 1500)") for 1 .. 30;
	return;
}

for my $round (1 .. 3)
{
	my $conn = connection($node, tcp => 1);
	my $start = start_backup($conn);
	my $stop = stop_backup($conn, WAIT => 'false');
	my ($segment) = @{ $stop->{wal} };
	my $expected = slurp_file("$pgdata/pg_wal/$segment");

	is(length $expected, SEGMENT, "round $round: a segment");
	$conn->send_query(send_files_sql([ "pg_wal/$segment" ], BACKUP_ID => $start->{backup_id}));
	# All that the kernel takes is sent, and nobody reads.
	$conn->readable(10);
	ok(recycle($segment), "round $round: its file is used again");
	write_wal();
	my $reply = $conn->finish;
	if ($reply->{error})
	{
		is($reply->{error}{sqlstate}, '58P01', "round $round: the segment is gone");
		ok(!(grep { $_->{type} eq 'e' } @{ $reply->{frames} }), "round $round: and said so before its end");
	}
	else
	{
		my $data = join '', map { $_->{data} } grep { $_->{type} eq 'd' } @{ $reply->{frames} };
		is(scalar(grep { $_->{type} eq 'e' } @{ $reply->{frames} }), 1, "round $round: its end");
		is(length $data, SEGMENT, "round $round: its length");
		my @wrong = grep { substr($data, $_ * 8192, 8192) ne substr($expected, $_ * 8192, 8192) } 0 .. SEGMENT / 8192 - 1;
		is("@wrong", '', "round $round: every block is the segment's");
	}
	$conn->close;
}
done_testing();
