# Backups that are begun and abandoned, again and again, in every way in which a client can go away; and connections that send
# garbage. Nothing of them is left, and the memory of the postmaster and of sessions that stay does not grow.
#
# CYCLES is how many backups are abandoned, 120 by default (`make check-attacks` has 10,000).

use strict;
use warnings FATAL => 'all';

use IO::Select;
use IO::Socket::UNIX;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Lease;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

# What an allocator may keep, in kB: nothing that grows with the number of backups.
use constant { BOUND_KB => 1024, GARBAGE => 100 };

my $cycles = $ENV{CYCLES} || 120;
my $seed = $ENV{SEED} || int rand 1_000_000_000;
srand $seed;
note("SEED=$seed CYCLES=$cycles");
my $node = lease_node('main', conf => "max_connections = 150\ncheckpoint_timeout = 1d\nlog_statement = none\n");
my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
my $checkpointer = sql($node, q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'));

# What a process has to itself, in kB.
sub memory
{
	my ($pid) = @_;
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB$/m;
	return $kb;
}

sub descriptors { return scalar grep { /^\d/ } slurp_dir("/proc/$_[0]/fd") }

# Goes on through all of it, with backups of its own and attempts at others'.
my $lasting = connection($node);
my $died = 0;

my @ways = (
	[ 'the connection is lost' => sub { $_[0]->drop } ],
	[ 'the client leaves' => sub { $_[0]->close } ],
	[ 'the session is terminated' => sub { sql($node, 'SELECT pg_terminate_backend(' . $_[0]->pid . ')'); $_[0]->drop } ],
	[ 'the client leaves in the middle of a list' => sub { $_[0]->send_query('SEND_FILE_LIST'); $_[0]->read_until(sub { $_[0]{type} eq 'D' }); $_[0]->drop } ],
	[ 'the client leaves in the middle of a file' => sub { $_[0]->send_query(send_files_sql([ ('PG_VERSION') x 500 ])); $_[0]->read_until(sub { $_[0]{type} eq 'd' }); $_[0]->drop } ],
	[ 'the client leaves before an answer' => sub { $_[0]->drop }, 'sent' ],
	[ 'another backup is begun, which fails' => sub { $_[0]->query('START_BACKUP'); $_[0]->drop } ],
	[ 'the backup is cancelled' => sub { sql($node, 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups'); $_[0]->drop } ],
	[ 'with a lease: it is cancelled' => sub { $_[0]->drop; sql($node, 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups') }, 'lease' ],
	[ 'with a lease: its keeper is terminated' => sub { $_[0]->drop; sql($node, q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper')) }, 'lease' ]);
my %done;

sub abandon
{
	my ($count) = @_;
	for my $cycle (1 .. $count)
	{
		my $way = $ways[ $cycle % @ways ];
		my ($name, $do, $how) = @$way;
		my $conn = connection($node);
		if (($how // '') eq 'sent') { $conn->send_query(q(START_BACKUP (CHECKPOINT 'fast'))) }
		else { start_backup($conn, ($how // '') eq 'lease' ? (LEASE => 60) : ()) }
		$do->($conn);
		$done{$name}++;
		# One that is whole, on a session that stays.
		next if $cycle % 10;
		start_backup($lasting);
		$lasting->query('STOP_BACKUP (WAIT false)')->{error} and $died++;
		$lasting->query("START_BACKUP (BACKUP_ID '" . '0' x 32 . "')")->{error} or $died++;
		$node->poll_query_until('postgres', 'SELECT count(*) < 5 FROM parallel_backup.backups') or die 'backups stay';
	}
	return;
}

# Everything once, so that what is allocated for good is there.
abandon(2 * @ways);
nothing_left($node, 'the first of them');
my %before = (postmaster => memory($postmaster), session => memory($lasting->pid), checkpointer => memory($checkpointer), files => descriptors($postmaster));
abandon($cycles);
nothing_left($node, "$cycles backups that were abandoned");
note("$_: $done{$_}") for sort keys %done;
is($died, 0, 'what a session asks for in between is answered');
cmp_ok(memory($postmaster) - $before{postmaster}, '<', BOUND_KB, 'memory of the postmaster');
cmp_ok(memory($lasting->pid) - $before{session}, '<', BOUND_KB, 'memory of a session that stays');
cmp_ok(memory($checkpointer) - $before{checkpointer}, '<', BOUND_KB, 'memory of the checkpointer');
is(descriptors($postmaster), $before{files}, 'open files of the postmaster');

# Garbage: before the startup packet, instead of it, and in every place of messages that a client could send.
my @commands = map { ParallelBackup::Test::stock_server() ? ParallelBackup::Call::call_of($_) : $_ } (
	q(START_BACKUP (CHECKPOINT 'fast', LABEL 'x')), 'SEND_FILE_LIST', 'STOP_BACKUP',
	q(SEND_FILES_CONTENT ('PG_VERSION', 'base/1/1259' (OFFSET '0', LENGTH '8192')) WITH (FILE_CHECKSUM 'SHA256')));
sub bytes { return join '', map { chr int rand 256 } 1 .. $_[0] }

# A command some of whose bytes are others.
sub mangled
{
	my $text = $commands[ rand @commands ];
	for (1 .. 1 + rand 4)
	{
		my $what = rand;
		my $at = int rand length $text;
		if ($what < 0.5) { substr($text, $at, 1) = chr(1 + rand 255) }
		elsif ($what < 0.7) { substr($text, $at, 1 + rand 5) = '' if length $text > 10 }
		elsif ($what < 0.9) { substr($text, $at, 0) = ('(' x 100, "'", '"', ',' x 50, "\\", '%00', '-9223372036854775808')[ rand 7 ] }
		else { substr($text, $at, 0) = 'x' x rand 100_000 }
	}
	return $text;
}

sub rubbish
{
	my ($round) = @_;
	my $address = $node->host . '/.s.PGSQL.' . $node->port;
	my $kind = $round % 4;

	if ($kind == 0)
	{
		my $socket = IO::Socket::UNIX->new(Peer => $address) or return;
		syswrite $socket, bytes(1 + rand 5000);
		return $socket;
	}
	my $conn = eval { connection($node) } or return;
	if ($kind == 1)
	{
		for (1 .. 20)
		{
			my $reply = eval { $conn->query(mangled()) };
			last if !$reply || !defined $reply->{status};
		}
	}
	elsif ($kind == 2)
	{
		eval { start_backup($conn) };
		syswrite $conn->socket, 'Q' . pack('N', 10 + rand 100) . bytes(200);
	}
	else
	{
		# Messages of a copy that nobody has begun, and of a length that there is not.
		syswrite $conn->socket, join '', map { $_ . pack('N', 4 + 20) . bytes(20) } qw(d c f d);
		syswrite $conn->socket, 'd' . pack('N', 0x7FFFFFFF) . bytes(1000);
	}
	return $conn;
}
local $SIG{PIPE} = 'IGNORE';
for my $pass (1, 2)
{
	my @connections = map { rubbish($_) } 1 .. GARBAGE;
	cmp_ok(scalar @connections, '>', GARBAGE / 2, "pass $pass: connections that send garbage");
	ref $_ eq 'ParallelBackup::Connection' ? $_->drop : close $_ for @connections;
	ok($node->poll_query_until('postgres', q(SELECT count(*) <= 2 FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender'))), "pass $pass: they are gone");
	nothing_left($node, "pass $pass: garbage");
	# What the first have left for good is no leak.
	%before = (%before, postmaster => memory($postmaster)) if $pass == 1;
}
cmp_ok(memory($postmaster) - $before{postmaster}, '<', BOUND_KB, 'garbage: memory of the postmaster');
is(descriptors($postmaster), $before{files}, 'garbage: open files of the postmaster');
cmp_ok(memory($lasting->pid) - $before{session}, '<', BOUND_KB, 'garbage: memory of a session that stays');
is(sql($node, q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer')), $checkpointer, 'no process of the server has crashed');
unlike(slurp_file($node->logfile), qr/PANIC|panicked|TRAP|was terminated by signal/, 'and none says so');
$lasting->close;

my $copy = PostgreSQL::Test::Cluster->new('copy');
$node->command_ok([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-D' => $copy->data_dir ], 'a backup');
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM touched'), 60, 'the copy has the data');
$copy->stop;
$node->stop;
done_testing();
