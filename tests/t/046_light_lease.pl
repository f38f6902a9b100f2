# Leases that nobody has asked for: what the client does without --lease, and LIGHT_LEASE of the server. They take
# nothing that somebody else could need, and where one cannot be had the backup is made without.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Client;
use ParallelBackup::Disturbance;
use ParallelBackup::Lease;
use ParallelBackup::Proxy;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
my $node = lease_node('main', conf => q(
listen_addresses = '127.0.0.1'
checkpoint_timeout = 1h
wal_keep_size = 0
max_replication_slots = 3
pg_parallel_backup.max_backups = 3
));
make_file($node->data_dir . '/base/5/987654', 16 * 1024 * 1024);
my @client = ('pg_parallel_basebackup', '--no-sync', '-c' => 'fast');
my $slots = q(SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pg\_parallel\_backup\_%');

# One that is under way, slowly.
sub under_way
{
	my (@options) = @_;
	my $before = sql($node, q(SELECT string_agg(quote_literal(backup_id), ',') FROM parallel_backup.backups)) || q('');
	my $run = start_client($node, @client, '-v', '-r' => '4M', @options);

	wait_until($node, "SELECT count(*) = 1 FROM parallel_backup.backups WHERE bytes > 0 AND backup_id NOT IN ($before)", "it fetches: @options");
	($run->{id}, $run->{coordinator}) = split /\|/, sql($node, "SELECT backup_id, pid FROM parallel_backup.backups WHERE backup_id NOT IN ($before)");
	return $run;
}

sub is_good
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_ok([ 'pg_verifybackup', $target ], "$name: pg_verifybackup");
	File::Path::remove_tree($target);
	return;
}

# --- connections that are lost are made again, with neither slot nor journal
{
	my $run = under_way('-D' => $target, '-j' => 2);
	is(row($node, 'lease, attached', $run->{id}), '300|t', 'the lease');
	is(sql($node, $slots), 0, 'which has no slot');
	is(join(' ', grep { /resume/ } slurp_dir($target)), '', 'nor a journal');
	sql($node, "SELECT pg_terminate_backend($run->{coordinator})");
	wait_until($node, "SELECT attached AND pid <> $run->{coordinator} FROM parallel_backup.backups", 'another coordinator');
	sql($node, q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_parallel_basebackup'));
	is(client_ended($run), 0, 'connections were lost: exit code');
	like($run->{err}, qr/: going on with the WAL stream$/m, 'connections were lost: the WAL stream too');
	nothing_left($node, 'connections were lost');
	is_good('connections were lost');
}

# --- where nothing is kept it ends with STOP_BACKUP, or, asked for, after it: once, and nothing is said of it
for my $lease ([], [ '--lease' => 60 ])
{
	my $what = "nothing is kept, @$lease";
	my $log = -s $node->logfile;
	my $run = start_client($node, @client, '-v', '--discard', @$lease);
	is(client_ended($run), 0, "$what: exit code");
	my @released = $run->{err} =~ /: (released the backup on the server)$/mg;
	is(@released, 1, "$what: it is released") or diag($run->{err});
	unlike(slurp_file($node->logfile, $log), qr/ERROR|FATAL|could not/, "$what: no error on the server");
	nothing_left($node, $what);
}

# --- all else is as without a lease: a signal, a failure, a server that has gone
{
	my $run = under_way('-D' => $target);
	$run->{handle}->signal('INT');
	is(client_ended($run), 1, 'interrupted: exit code');
	unlike($run->{err}, qr/resume/, 'interrupted: nothing to go on with');
	ok(!-e $target, 'interrupted: nothing is left here');
	nothing_left($node, 'interrupted');

	for my $lease ([], [ '--lease' => 60 ])
	{
		command_checks_all([ @client, '-D' => $target, '-S' => 'missing', '-d' => $node->connstr('postgres'), @$lease ],
			1, [qr/^$/], [qr/replication slot "missing" does not exist/], "a slot that does not exist, @$lease");
		nothing_left($node, "a slot that does not exist, @$lease");
	}

	$run = under_way('-D' => $target);
	$node->stop('immediate');
	$node->start;
	is(client_ended($run), 1, 'the server has restarted: exit code');
	like($run->{err}, qr/error: (?:\S.*: )?the server does not have the backup any more: /, 'the server has restarted: error');
	unlike($run->{err}, qr/hint: What was in the way/, 'the server has restarted: no more than that');
	ok(!-e $target, 'the server has restarted: nothing is left here');
	nothing_left($node, 'the server has restarted');

	$run = under_way('-D' => $target, '--lease' => 0);
	is(row($node, 'lease', $run->{id}), '', '--lease=0: none');
	sql($node, "SELECT pg_terminate_backend($run->{coordinator})");
	is(client_ended($run), 1, '--lease=0: exit code');
	nothing_left($node, '--lease=0');

	command_fails_like([ @client, '-D' => $target, '--resume', '-d' => $node->connstr('postgres') ], qr/error: --resume needs --lease$/m, '--resume needs --lease');
}

# --- WAL is held for a lease that was asked for alone: where the server removes what a lost stream had still to bring,
# there is no backup
for my $lease ([], [ '--lease' => 60 ])
{
	my $name = "WAL is removed, @$lease";
	my $run = under_way('-D' => $target, @$lease);
	$run->{handle}->signal('STOP');
	wait_until($node, q(SELECT bool_and(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity WHERE query ~ '^START_REPLICATION'), "$name: the stream is lost");
	my $segment = sql($node, 'SELECT pg_walfile_name(pg_current_wal_lsn())');
	sql($node, 'UPDATE touched SET id = id; SELECT pg_switch_wal(); CHECKPOINT') for 1 .. 3;
	is(-e $node->data_dir . "/pg_wal/$segment" ? 'there' : 'gone', @$lease ? 'there' : 'gone', "$name: what it had come to");
	$run->{handle}->signal('CONT');
	is(client_ended($run), @$lease ? 0 : 1, "$name: exit code");
	if (@$lease) { is_good($name) }
	else
	{
		like($run->{err}, qr/error: .*WAL streaming failed: .*requested WAL segment $segment has already been removed$/m, "$name: error");
		ok(!-e $target, "$name: nothing is left here");
	}
	nothing_left($node, $name);
}

# --- what goes to standard output has none
{
	my $run = start_client($node, 'sh', '-c', join ' ', @client, '-Ft -X none -r 4M -D - >/dev/null');
	wait_until($node, 'SELECT count(*) = 1 FROM parallel_backup.backups WHERE bytes > 0', 'standard output');
	is(sql($node, 'SELECT lease IS NULL FROM parallel_backup.backups'), 't', 'standard output: no lease');
	sql($node, 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups');
	client_ended($run);
	nothing_left($node, 'standard output');
}

# --- clients that are killed keep nobody from anything
{
	my @killed;
	for my $number (1 .. 3)
	{
		my $run = under_way('-D' => "$target$number", '-X' => 'none');
		$run->{handle}->signal('KILL');
		is(client_ended($run), 'signal 9', "killed $number");
		wait_until($node, "SELECT NOT attached AND workers = 0 FROM parallel_backup.backups WHERE backup_id = '$run->{id}'", "killed $number: its backup stays");
		push @killed, $run->{id};
	}
	# By both ways to start one, and first that which was left first.
	my $run = under_way('-D' => $target);
	is(row($node, 'state', $killed[0]), '', 'there is room for another');
	like(slurp_file($node->logfile), qr/LOG:  parallel backup "$killed[0]" was aborted because another backup needed its place$/m, q(the server's log));
	my $conn = connection($node);
	my $start = start_backup($conn);
	is(row($node, 'state', $killed[1]), '', 'and for one without a lease');
	my $held = connection($node);
	my $held_id = start_backup($held, LEASE => 60)->{backup_id};
	is(row($node, 'state', $killed[2]), '', 'and for one with a lease');
	# Nobody is attached to this one, but it was asked for.
	$held->drop;
	wait_until($node, "SELECT NOT attached FROM parallel_backup.backups WHERE backup_id = '$held_id'", 'one that was asked for is left');
	my $another = connection($node);
	is_error($another, 'START_BACKUP (LEASE 60, LIGHT_LEASE)', '53400', qr/^too many parallel backups$/, 'which stays', hint => qr/^At most 3 can run at once/);
	is_error($another, "START_BACKUP (BACKUP_ID '$killed[0]')", '42704', qr/^parallel backup "$killed[0]" does not exist$/, 'one that gave its place up', hint => gone_hint());
	command_fails_like([ @client, '-D' => "$tempdir/none", '-d' => $node->connstr('postgres') ], qr/error: could not initiate base backup: ERROR:  too many parallel backups$/m, 'no room at all');
	is(client_ended($run), 0, 'the others go on');
	is_good('the others go on');
	attach_ok($another, $held_id);
	query_ok($_, 'STOP_BACKUP (RELEASE)') for $another, $conn;
	nothing_left($node, 'killed');
	$_->close for $another, $conn;
	File::Path::remove_tree(map { "$target$_" } 1 .. 3);
}

# --- the name of a backup can be given, and its answer lost
{
	my $conn = connection($node);
	my $id = '00112233445566778899aabbccddeeff';
	is(start_backup($conn, LEASE => 60, LIGHT_LEASE => 'true', NEW_BACKUP_ID => $id)->{backup_id}, $id, 'the name that was given');
	is(sql($node, $slots), 0, 'LIGHT_LEASE: no slot');
	my $other = connection($node);
	is_error($other, "START_BACKUP (NEW_BACKUP_ID '$id')", '42710', qr/^parallel backup "$id" already exists$/, 'a name that is taken');
	is_error($other, q(START_BACKUP (NEW_BACKUP_ID 'x')), '42601', qr/^new_backup_id requires 32 hexadecimal digits$/, 'what is no name');
	is_error($other, "START_BACKUP (BACKUP_ID '$id', NEW_BACKUP_ID '$id')", '42601', qr/^option "new_backup_id" cannot be used with BACKUP_ID$/, 'a name and another');
	$conn->drop;
	wait_until($node, 'SELECT NOT attached FROM parallel_backup.backups', 'it is left');
	is(attach_ok($other, $id)->{backup_id}, $id, 'and attached to');
	query_ok($other, 'STOP_BACKUP (RELEASE)');
	nothing_left($node, 'NEW_BACKUP_ID');
	is(start_backup($other, NEW_BACKUP_ID => $id)->{backup_id}, $id, 'the name can be used again, without a lease');
	$other->close;
	nothing_left($node, 'NEW_BACKUP_ID, again');

	for my $lease ([], [ '--lease' => 60 ])
	{
		my $name = "START_BACKUP's answer is lost, @$lease";
		my $network = ParallelBackup::Disturbance->new(node => $node, dir => "$tempdir/start@$lease", plan => [ { phase => 'start', after => 0, how => 'cut', for => 0 } ]);
		my $run = start_client($node, @client, '-v', '-D' => $target, '-d' => "host=127.0.0.1 port=@{[ $network->port ]} dbname=postgres", @$lease);
		is(client_ended($run), 0, "$name: exit code");
		is(join(' ', $network->happened), '0', "$name: it was");
		like($run->{err}, qr/: the backup has started already$/m, "$name: it is found");
		$network->stop;
		nothing_left($node, $name);
		is_good($name);
	}
}

# --- where there is no lease to be had
{
	sql($node, q(ALTER SYSTEM SET pg_parallel_backup.max_lease = 0));
	$node->reload;
	command_checks_all([ @client, '-v', '-D' => $target, '-d' => $node->connstr('postgres') ], 0, [qr/^$/],
		[qr/: the server grants no leases \(pg_parallel_backup\.max_lease\): a connection that is lost ends the backup$/m], 'no leases');
	is_good('no leases');
	command_checks_all([ @client, '-D' => $target, '-d' => $node->connstr('postgres') ], 0, [qr/^$/], [qr/^(?:NOTICE.*\n)?\z/], 'no leases, quietly');
	is_good('no leases, quietly');
	sql($node, q(ALTER SYSTEM SET pg_parallel_backup.max_lease = '20s'));
	$node->reload;
	my $run = under_way('-D' => $target);
	is(row($node, 'lease', $run->{id}), 20, 'a shorter lease');
	is(client_ended($run), 0, 'a shorter lease: exit code');
	is_good('a shorter lease');
	sql($node, q(ALTER SYSTEM RESET pg_parallel_backup.max_lease));
	$node->reload;

	my $proxy = ParallelBackup::Proxy->new(server => $node->port, flag => "$tempdir/changed", find => 'zstd, lease', at => 6, xor => 1, always => 1);
	command_checks_all([ @client, '-v', '-D' => $target, '-d' => "host=127.0.0.1 port=@{[ $proxy->port ]} dbname=postgres sslmode=disable" ], 0, [qr/^$/],
		[qr/: server does not support leases: a connection that is lost ends the backup$/m], 'a server without leases');
	ok(-e "$tempdir/changed", 'a server without leases: which was one by the proxy');
	$proxy->stop;
	is_good('a server without leases');

	if (stock_server())
	{
		# The library is new, the extension's procedures are those of 0.2.0.
		sql($node, q(
			ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.start_backup;
			ALTER PROCEDURE parallel_backup.start_backup RENAME TO start_backup_of_0_3;
			CREATE PROCEDURE parallel_backup.start_backup(label text DEFAULT NULL, checkpoint text DEFAULT NULL, progress boolean DEFAULT NULL,
				verify_checksums boolean DEFAULT NULL, max_rate int8 DEFAULT NULL)
			LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_start_backup_wrapper';
			ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.start_backup;
			ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.send_file_list;
			ALTER PROCEDURE parallel_backup.send_file_list RENAME TO send_file_list_of_0_3;
			CREATE PROCEDURE parallel_backup.send_file_list(backup_id text DEFAULT NULL, estimate boolean DEFAULT NULL)
			LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_send_file_list_wrapper';
			ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.send_file_list));
		command_checks_all([ @client, '-D' => $target, '-d' => $node->connstr('postgres') ], 0, [qr/^$/],
			[qr/warning: the backup has no lease, a connection that is lost ends it: the database needs ALTER EXTENSION pg_parallel_backup UPDATE$/m], 'an extension that was not updated');
		is_good('an extension that was not updated');
		sql($node, q(
			ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.start_backup;
			DROP PROCEDURE parallel_backup.start_backup;
			ALTER PROCEDURE parallel_backup.start_backup_of_0_3 RENAME TO start_backup;
			ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.start_backup;
			ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.send_file_list;
			DROP PROCEDURE parallel_backup.send_file_list;
			ALTER PROCEDURE parallel_backup.send_file_list_of_0_3 RENAME TO send_file_list;
			ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.send_file_list));
	}

	# It needs no slot.
	sql($node, q(ALTER SYSTEM SET max_replication_slots = 0));
	$node->restart;
	$run = under_way('-D' => $target, '-X' => 'fetch');
	is(row($node, 'lease', $run->{id}), 300, 'no slots: a lease');
	is(client_ended($run), 0, 'no slots: exit code');
	is_good('no slots');
	sql($node, q(ALTER SYSTEM RESET max_replication_slots));
	# Which the launcher of logical replication takes.
	sql($node, q(ALTER SYSTEM SET max_worker_processes = 1));
	$node->restart;
	command_checks_all([ @client, '-D' => $target, '-d' => $node->connstr('postgres') ], 0, [qr/^$/],
		[qr/warning: the backup has no lease, a connection that is lost ends it: could not initiate base backup: ERROR:  no background process is free for a parallel backup with a lease\nHINT: .*max_worker_processes/], 'no process');
	is_good('no process');
	command_checks_all([ @client, '-D' => $target, '--lease' => 60, '-d' => $node->connstr('postgres') ], 2, [qr/^$/],
		[qr/error: could not initiate base backup: ERROR:  no background process is free/], 'no process, and it was asked for');
	ok(!-e $target, 'no process, and it was asked for: nothing is left here');
	nothing_left($node, 'no process');
}

$node->stop;
done_testing();
