# MAX_RATE is one budget for all connections of a backup.  Only lower bounds are
# asserted: a slow machine cannot break them.

use strict;
use warnings FATAL => 'all';

use IO::Select;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant { MB => 1024 * 1024, RATE => 2048 };

my $node = parallel_node('main');
my $pgdata = $node->data_dir;
make_file("$pgdata/file$_", 2 * MB) for 1 .. 4;

# Fetches one file on each of some connections at once; returns bytes and seconds.
sub transfer_at_once
{
	my ($name, $start, @conns) = @_;
	my $select = IO::Select->new(map { $_->socket } @conns);
	my %conn_of = map { $_->socket => $_ } @conns;
	my $bytes = 0;
	my $begun = time;

	my $n = 0;
	$_->send_query(
		send_files_sql([ 'file' . ++$n ], BACKUP_ID => $start->{backup_id}),
		on_frame => sub { $bytes += length($_[0]{data}) if $_[0]{type} eq 'd' })
	  for @conns;
	while ($select->count)
	{
		for my $socket ($select->can_read($PostgreSQL::Test::Utils::timeout_default))
		{
			my $conn = $conn_of{$socket};
			$conn->fill;
			while (my $message = $conn->poll)
			{
				next if $message->{type} ne 'Z';
				is($conn->reply->{error}, undef, "$name: no error");
				$select->remove($socket);
				last;
			}
		}
	}
	return ($bytes, time - $begun);
}

my $coordinator = connection($node);
my @workers = map { connection($node) } 1 .. 4;

# The burst that is forgiven: a second's worth, and a frame.
for my $conns (1, 4)
{
	my $start = start_backup($coordinator, MAX_RATE => RATE);
	my ($bytes, $seconds) = transfer_at_once("$conns connections", $start, @workers[ 0 .. $conns - 1 ]);
	is($bytes, $conns * 2 * MB, "$conns connections: bytes");
	cmp_ok($seconds, '>=', $bytes / (RATE * 1024) - 1,
		"$conns connections: not faster than the rate allows");
	ok(!stop_backup($coordinator)->{reply}{error}, "$conns connections: STOP_BACKUP");
}

# Without a rate the same ends; nothing is remembered of the last one.
{
	my $start = start_backup($coordinator);
	my ($bytes) = transfer_at_once('no rate', $start, @workers);
	is($bytes, 8 * MB, 'no rate: bytes');
	stop_backup($coordinator);
}

# Two backups have two budgets, each its own.
{
	my $second = connection($node);
	my $slow = start_backup($coordinator, MAX_RATE => RATE);
	start_backup($second);
	my ($bytes, $seconds) = transfer_at_once('beside another backup', $slow, @workers[ 0 .. 1 ]);
	cmp_ok($seconds, '>=', $bytes / (RATE * 1024) - 1, 'another backup does not lift it');
	stop_backup($_) for ($coordinator, $second);
	$second->close;
}

# The client passes it on.
{
	my $dir = PostgreSQL::Test::Cluster->new('copy');
	my $begun = time;
	$node->command_ok(
		[
			'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--jobs' => 4,
			'--max-rate' => '8M', '--wal-method' => 'none', '--dbname' => $node->connstr('postgres'),
			'--pgdata' => $dir->data_dir
		],
		'client');
	my $seconds = time - $begun;
	my $tree = file_tree($dir->data_dir);
	my $bytes = 0;
	$bytes += $_->{size} // 0 for values %$tree;
	cmp_ok($seconds, '>=', $bytes / (8 * MB) - 1.5, 'client: not faster than the rate allows');
	for my $rate ('31', '1048577', '0', '-1', 'x', '2G', '32Q')
	{
		$node->command_fails_like(
			[ 'pg_parallel_basebackup', '--pgdata' => 'nowhere', "--max-rate=$rate" ],
			qr/transfer rate|invalid --max-rate unit/, "client: --max-rate $rate");
	}
}

$_->close for (@workers, $coordinator);
unlink map { "$pgdata/file$_" } 1 .. 4;
my $copy = PostgreSQL::Test::Cluster->new('raw_copy');
raw_backup($node, $copy->data_dir, start => { MAX_RATE => 1048576 });
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT 1'), 1, 'the copy runs');
$copy->stop;

done_testing();
