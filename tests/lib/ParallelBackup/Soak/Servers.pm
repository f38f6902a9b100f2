# The servers of a soak: a primary and its standby, on which everything can go wrong, and a look at what a backup has
# left on them.

package ParallelBackup::Soak::Servers;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use File::Basename;
use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);
use ParallelBackup::Lease;
use ParallelBackup::Load;
use ParallelBackup::TLS;
use ParallelBackup::Test;

our @EXPORT = qw(
  begin_servers end_servers primary standby servers space_of start_server restart_server answers both_answer
  connection_to network_connection has_spaces mapped_to replace_standby backends settle nothing_is_left
  io_library io_control no_io_faults
);

my ($tempdir, $primary, $standby);
# Where the tablespace of each lies, and how many files its postmaster had open once it was up.
my (%space, %descriptors);
my $standbys = 0;
# Without tablespaces a backup can go to standard output.
my $has_spaces;

sub primary { return $primary }

sub standby { return $standby }

sub servers { return ($primary, $standby) }

sub has_spaces { return $has_spaces }

# Options that put the tablespace, if there is one, elsewhere.
sub mapped_to { my ($from, $to) = @_; return $has_spaces ? ('-T' => "$space{ $from->name }=$to") : () }

# How a client gets to a server, or to it by a network.
sub connection_to
{
	my ($of, $over_tls) = @_;
	return $over_tls ? network_connection($of->port, $over_tls) : $of->connstr('postgres');
}

sub network_connection
{
	my ($port, $over_tls) = @_;
	return "host=127.0.0.1 port=$port dbname=postgres" . ($over_tls ? ' sslmode=require gssencmode=disable' : '');
}

sub space_of { return $space{ $_[0]->name } }

# The library that makes calls fail, and the file that says which: of a server.
sub io_library { return "$tempdir/io_faults.so" }

sub io_control { return "$tempdir/io_faults." . $_[0]->name }

# What has failed meanwhile is over; true if something has.
sub no_io_faults
{
	my ($of) = @_;
	my $has_failed = -e io_control($of) . '.seen';

	unlink io_control($of), io_control($of) . '.seen';
	return $has_failed;
}

sub _with_faults
{
	my ($of, $do) = @_;

	local $ENV{LD_PRELOAD} = io_library();
	local $ENV{IO_FAULTS} = io_control($of);
	$do->();
	return;
}

sub start_server { my ($of) = @_; _with_faults($of, sub { $of->start }); return }

sub restart_server { my ($of, $mode) = @_; $of->stop($mode); start_server($of); return }

sub begin_servers
{
	($tempdir) = @_;
	my ($cc) = run_command([ 'pg_config', '--cc' ]);
	system_or_bail(split(' ', $ENV{CC} // $cc), '-std=gnu11', '-O1', '-fPIC', '-shared', '-D_GNU_SOURCE', '-o', io_library(),
		"$ENV{PPB_ROOT}/tests/modules/io_faults/io_faults.c");
	$primary = lease_node('primary', segsize => 16, conf => q(
listen_addresses = '127.0.0.1'
allow_in_place_tablespaces = on
checkpoint_timeout = 30s
max_wal_size = 256MB
wal_keep_size = 2GB
hot_standby_feedback = off
full_page_writes = on
log_statement = ddl
restart_after_crash = on
) . (server_major() >= 17 ? "summarize_wal = on\n" : ''));
	# Its standbys have the same key.
	offer_tls($primary) if has_tls();
	restart_server($primary);
	work_on($primary);
	$space{primary} = "$tempdir/ts";
	mkdir "$tempdir/ts" or die $!;
	on('postgres', 'CREATE EXTENSION amcheck');
	$has_spaces = rand() < 0.7;
	on('postgres', $_) for $has_spaces ? ("CREATE TABLESPACE ts LOCATION '$tempdir/ts'", q(CREATE TABLESPACE in_place LOCATION '')) : ();
	$primary->command_ok([ 'pgbench', '--quiet', '--initialize', '--scale' => 3, '--no-vacuum', 'postgres' ], 'pgbench tables');
	on('postgres', q(CREATE TABLE long AS SELECT g AS id, repeat('x', 500) AS filler FROM generate_series(1, 50000) g));
	# Nobody writes to this one.
	on('postgres', q(CREATE TABLE spoiled AS SELECT g AS id, repeat('s', 100) AS filler FROM generate_series(1, 5000) g; VACUUM FREEZE spoiled));
	on('postgres', "CREATE TABLE $_ AS SELECT g AS id, repeat('x', 300) AS filler FROM generate_series(1, 3000) g; CREATE INDEX ON $_ (id)")
	  for map { "t$_" } 1 .. 8;
	_roles();
	replace_standby();
	both_answer();
	_count_descriptors($_) for servers();
	return;
}

# Who has what backups need but the right to replicate, and whose sessions are cut short wherever PostgreSQL does so.
sub _roles
{
	on('postgres', q(
		CREATE ROLE calls LOGIN IN ROLE pg_read_server_files;
		GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO calls;
		CREATE ROLE timed LOGIN REPLICATION;
		GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO timed;));
	on('postgres', "ALTER ROLE timed SET $_ = '300ms'")
	  for qw(statement_timeout idle_session_timeout idle_in_transaction_session_timeout lock_timeout), server_major() >= 17 ? 'transaction_timeout' : ();
	return;
}

# A standby of a backup of our own, instead of the one there was.
sub replace_standby
{
	if ($standby)
	{
		$standby->stop('immediate');
		File::Path::remove_tree($standby->data_dir, delete $space{ $standby->name });
	}
	$standby = PostgreSQL::Test::Cluster->new('standby' . ++$standbys);
	my $space = $space{ $standby->name } = "$tempdir/standby${standbys}_ts";
	$primary->command_ok(
		[ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-D' => $standby->data_dir, '-R', mapped_to($primary, $space), '-d' => $primary->connstr('postgres') ],
		'a standby');
	_with_faults($standby, sub { start_copy($standby) });
	_count_descriptors($standby) if answers($standby);
	return;
}

sub end_servers
{
	$standby->stop;
	$primary->stop;
	return;
}

# Whether it answers, within a minute.
sub answers
{
	my ($of) = @_;
	for (1 .. 600)
	{
		return 1 if system('psql', '-XAtqc', 'SELECT 1', '-o', '/dev/null', '-d', $of->connstr('postgres'), '--set=ON_ERROR_STOP=1', '-L', '/dev/null') == 0;
		sleep 0.1;
	}
	return 0;
}

sub both_answer
{
	answers($_) or die $_->name . ' does not come back' for servers();
	return;
}

# The processes of one part in the backups of a server: worker, coordinator, keeper, or whichever.
my %part = (
	any => q(SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_parallel_basebackup'),
	coordinator => 'SELECT pid FROM parallel_backup.backups',
	worker => q(SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_parallel_basebackup' AND pid NOT IN (SELECT pid FROM parallel_backup.backups WHERE pid IS NOT NULL)),
	keeper => q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper'));

sub backends
{
	my ($of, $part) = @_;
	return grep { $_ ne '' } split /\n/, $of->safe_psql('postgres', $part{ $part // 'any' });
}

# The postmaster's open files do not become more. One that has started its children anew has done so in a way of its own.
sub _postmaster
{
	my ($of) = @_;
	my ($pid) = slurp_file($of->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	my $checkpointer = $of->safe_psql('postgres', q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'));
	return ($pid, "$pid $checkpointer");
}

sub _count_descriptors
{
	my ($of) = @_;
	my ($pid, $life) = _postmaster($of);

	$descriptors{ $of->name } = [ $life, scalar grep { /^\d/ } slurp_dir("/proc/$pid/fd") ];
	return;
}

sub _descriptors_are_as_before
{
	my ($of, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($life, $count) = $descriptors{ $of->name }->@*;

	_count_descriptors($of);
	my ($new_life, $new_count) = $descriptors{ $of->name }->@*;
	cmp_ok($new_count, '<=', $count, "$what: the postmaster has no more files open") if $life eq $new_life;
	return;
}

# What the standby needs before the next backup of it: a restart point behind all of the WAL that says pages are not
# written as a whole.
sub settle
{
	on('postgres', 'CHECKPOINT');
	$primary->wait_for_replay_catchup($standby);
	$standby->safe_psql('postgres', 'CHECKPOINT');
	return;
}

sub _set_full_page_writes
{
	my ($value) = @_;

	$primary->safe_psql('postgres', "ALTER SYSTEM SET full_page_writes = '$value'");
	$primary->reload;
	$primary->poll_query_until('postgres', "SELECT current_setting('full_page_writes') = '$value'") or die 'the setting does not come';
	return;
}

# After a backup: of both servers, since a fault of the one can be felt on the other.
sub nothing_is_left
{
	my ($from, $what, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	_set_full_page_writes('off') if $params{closely};
	for my $of (servers())
	{
		my $name = "$what: " . $of->name;
		ok($of->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pg_parallel_basebackup')), "$name: no connection");
		nothing_left($of, $name);
		# One for a WAL stream is temporary, and goes with its session.
		ok($of->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_replication_slots'), "$name: no slot, and no WAL that is kept for it");
		_descriptors_are_as_before($of, $name);
		my ($postmaster) = _postmaster($of);
		my @ours = grep { /parallel.?backup|pg_parallel_basebackup/ } map { _title($_) } _children($postmaster);
		is_deeply(\@ours, [], "$name: no process");
	}
	if ($params{closely})
	{
		_set_full_page_writes('on');
		settle();
	}
	return;
}

sub _children
{
	my ($pid) = @_;
	return split ' ', slurp_file("/proc/$pid/task/$pid/children");
}

# It may be gone by now.
sub _title
{
	my ($pid) = @_;
	open my $file, '<', "/proc/$pid/cmdline" or return '';
	local $/;
	return <$file> // '';
}

1;
