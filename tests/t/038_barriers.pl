# DROP DATABASE and DROP TABLESPACE ask every process to look up (process signal barriers), and wait
# until it has; so does the replay of DROP DATABASE on a standby. A transfer looks up while its client
# does not read, whatever it is sending.

use strict;
use warnings FATAL => 'all';

use Fcntl;
use IPC::Run ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::TLS;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, conf => "listen_addresses = '127.0.0.1'\n");
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', 'CREATE TABLE t AS SELECT generate_series(1, 1000) AS id');

# More than any socket's buffer: what goes straight from the page cache, what goes by way of the
# outbox, and rows.
my ($relation, $other) = ('base/5/987654', 'other');
make_file("$pgdata/$_", 64 * 1024 * 1024) for ($relation, $other);
mkdir "$pgdata/many" or die $!;
write_file("$pgdata/many/" . 'n' x 200 . $_, '') for 1 .. 20_000;

my $coordinator = connection($node);
my $id = start_backup($coordinator, VERIFY_CHECKSUMS => 'false')->{backup_id};
my @stalled;
for my $sql (send_files_sql([$relation], BACKUP_ID => $id), send_files_sql([$other], BACKUP_ID => $id),
	"SEND_FILE_LIST (BACKUP_ID '$id')")
{
	my $conn = connection($node);
	$conn->send_query($sql);
	$conn->read_until(sub { $_[0]{type} =~ /^[dD]$/ });
	wait_until_full($node, $conn);
	push @stalled, $conn;
}

# One over TLS: psql, which nobody reads from.
my ($psql, $fifo);
SKIP:
{
	skip 'the server has no TLS', 1 unless has_tls();
	my $user = $node->safe_psql('postgres', 'SELECT current_user');
	append_to_file("$pgdata/pg_hba.conf", "hostssl all,replication $user 127.0.0.1/32 trust\n");
	offer_tls($node);
	$node->reload;
	POSIX::mkfifo("$tempdir/unread", 0600) or die $!;
	# Opened for both, so that it neither waits for a reader nor has one.
	sysopen($fifo, "$tempdir/unread", O_RDWR) or die $!;
	my $sql = send_files_sql([$other], BACKUP_ID => $id);
	$psql = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', 'host=127.0.0.1 sslmode=require application_name=unread port=' . $node->port
			  . (stock_server() ? ' dbname=postgres' : ' replication=true'),
			'-c', stock_server() ? send_files_call([$other], BACKUP_ID => $id) : $sql ],
		'<' => '/dev/null', '>' => "$tempdir/unread", '2>' => "$tempdir/psql.err");
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity
		WHERE application_name = 'unread' AND wait_event = 'ClientWrite' AND ) . sending())
	  or die 'psql does not stall: ' . slurp_file("$tempdir/psql.err");
	pass('a transfer over TLS waits for its client');
}

sub done
{
	my ($name, @sql) = @_;
	my $timed_out;

	$node->psql('postgres', $_, timeout => $PostgreSQL::Test::Utils::timeout_default, timed_out => \$timed_out, on_error_die => 1)
	  for @sql;
	ok(!$timed_out, $name);
	return;
}
my $location = "$tempdir/space";
mkdir $location or die $!;
done('DROP DATABASE', 'CREATE DATABASE doomed', 'DROP DATABASE doomed');
# A file that a checkpoint has yet to remove is what makes it ask.
done('DROP TABLESPACE', "CREATE TABLESPACE space LOCATION '$location'",
	'CREATE TABLE doomed TABLESPACE space AS SELECT 1', 'DROP TABLE doomed', 'DROP TABLESPACE space');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite')),
	@stalled + ($psql ? 1 : 0), 'with every one of them still waiting for its client');

# Which has lost nothing by it.
my @replies = map { $_->finish } @stalled;
ok(!$_->{error} && !$_->{eof}, 'a stalled one goes on') for @replies;
for my $reply (@replies[ 0, 1 ])
{
	my $data = join '', map { $_->{data} } grep { $_->{type} eq 'd' } @{ $reply->{frames} };
	is(length $data, 64 * 1024 * 1024, 'its length');
}
is(scalar(grep { $_->[0] =~ /^many\// } @{ $replies[2]{results}[0]{rows} }), 20_000, 'its rows');
checked_results($replies[2]);
if ($psql)
{
	$psql->kill_kill;
	$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'unread' AND ) . sending());
}
ok(!stop_backup($coordinator)->{reply}{error}, 'STOP_BACKUP');
$_->close for ($coordinator, @stalled);

# On a standby.
rmdir "$pgdata/many" if unlink glob("$pgdata/many/*");
{
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	chmod 0600, $standby->data_dir . '/server.key';
	$standby->start;
	$node->wait_for_replay_catchup($standby);
	$coordinator = connection($standby);
	$id = start_backup($coordinator, VERIFY_CHECKSUMS => 'false')->{backup_id};
	my $conn = connection($standby);
	$conn->send_query(send_files_sql([$other], BACKUP_ID => $id));
	$conn->read_until(sub { $_[0]{type} eq 'd' });
	wait_until_full($standby, $conn);
	$node->safe_psql('postgres', $_) for ('CREATE DATABASE doomed', 'DROP DATABASE doomed');
	$node->wait_for_replay_catchup($standby);
	pass('replay goes on beside a stalled transfer');
	ok(!$conn->finish->{error}, 'which goes on too');
	ok(!stop_backup($coordinator, WAIT => 'false')->{reply}{error}, 'STOP_BACKUP');
	$_->close for ($coordinator, $conn);
	$standby->stop;
}

unlink "$pgdata/$relation", "$pgdata/$other";
my $copy = PostgreSQL::Test::Cluster->new('copy');
raw_backup($node, $copy->data_dir);
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, 'data of the copy');
$copy->stop;

done_testing();
