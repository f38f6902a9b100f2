# The directories of a backup belong to one client: from before the backup starts until it is complete or
# its pieces are removed.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $claim = 'pgsql_tmp.pg_parallel_basebackup';
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
# The original's tablespace lies apart: the server may write there at any time.
my $source = PostgreSQL::Test::Utils::tempdir_short;
# A spread checkpoint that has something to do, of what the buffers hold, lasts until somebody asks for a fast
# one.
my $node = parallel_node('main', extension => 1, conf => "checkpoint_timeout = '1h'\nshared_buffers = '16MB'\n");
$node->safe_psql('postgres', qq(
	CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
	CREATE TABLESPACE space LOCATION '$source'));
$node->safe_psql('postgres', 'CREATE TABLE u TABLESPACE space AS SELECT generate_series(1, 1000) AS id');

my @client = ('pg_parallel_basebackup', '--no-sync', '-T' => "$source=$tempdir/space");
my @second = (@client, '-c' => 'fast');

# Starts the client and waits until it waits for its checkpoint.
sub waits_for_checkpoint
{
	my (@options) = @_;
	my %run = (out => '', err => '');

	$node->safe_psql('postgres', 'UPDATE t SET id = id');
	local %ENV = $node->_get_env();
	$run{handle} = IPC::Run::start([ @client, @options ], '>' => \$run{out}, '2>' => \$run{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event LIKE 'Checkpoint%' AND query ~* 'START_BACKUP|starting parallel backup'))
	  or die "it does not wait: $run{err}";
	return \%run;
}

sub goes_on { $node->safe_psql('postgres', 'CHECKPOINT'); return }

# The exit code of one that was started, once it is over.
sub ended
{
	my ($run) = @_;

	$run->{handle}->finish;
	note($run->{err});
	my $status = $run->{handle}->full_result(0);
	return $status & 127 ? "signal " . ($status & 127) : $status >> 8;
}

# A second client that must not get a directory that is in use; it leaves everything as it is.
sub is_refused
{
	my ($name, $directory, @options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = file_tree($tempdir);

	local %ENV = $node->_get_env();
	command_checks_all([ @second, @options ], 1, [qr/^$/],
		[ qr/^pg_parallel_basebackup: error: directory "\Q$directory\E" is in use by another backup\n.*detail: The claim on it is the file "\Q$directory\/$claim\E", made by process \d+ on host ".*hint: If that backup is no longer running/s ],
		$name);
	is_deeply(file_tree($tempdir), $before, "$name: nothing is changed");
	return;
}

# A whole backup, without a trace of the claims.
sub is_whole
{
	my ($name, $directory, @others) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_ok([ 'pg_verifybackup', $directory ], "$name: pg_verifybackup");
	is_deeply([ grep { -e "$_/$claim" } $directory, @others ], [], "$name: the claim is gone");
	File::Path::remove_tree($directory, @others);
	return;
}

# --- a second client while the first waits for its checkpoint: into a directory that was made, and into
# one that was there and is empty
for my $exists (0, 1)
{
	my $name = $exists ? 'a directory that was there' : 'a new directory';
	my ($target, $wal) = ("$tempdir/target", "$tempdir/wal");
	if ($exists) { mkdir $_ for $target, $wal, "$tempdir/space" }
	my $first = waits_for_checkpoint('-D' => $target, '--waldir' => $wal);
	is(((stat "$target/$claim")[2] // 0) & 07777, 0600, "$name: its claim");

	is_refused("$name: -D", $target, '-D' => $target);
	is_refused("$name: -D, --no-clean", $target, '-D' => $target, '--no-clean');
	is_refused("$name: --waldir", $wal, '-D' => "$tempdir/other", '--waldir' => $wal);
	is_refused("$name: -D where the first has --waldir", $wal, '-D' => $wal);
	symlink $target, "$tempdir/link";
	is_refused("$name: by another name", "$tempdir/link", '-D' => "$tempdir/link");
	is_refused("$name: a directory in it", $target, '-D' => "$tempdir/link/base/new");
	unlink "$tempdir/link";
	local %ENV = $node->_get_env();
	command_fails_like([ 'pg_basebackup', '-D' => $target ], qr/exists but is not empty/, "$name: pg_basebackup");

	goes_on();
	is(ended($first), 0, "$name: the first backup");
	is_whole($name, $target, $wal, "$tempdir/space");
}

# --- several that start together: one gets it
for my $round (1 .. 3)
{
	my $target = "$tempdir/new/target";
	local %ENV = $node->_get_env();
	my @runs = map {
		my %run = (out => '', err => '');
		$run{handle} = IPC::Run::start([ @second, '-D' => $target, '-j' => 1 ], '>' => \$run{out}, '2>' => \$run{err},
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
		\%run
	} 1 .. 5;
	my @codes = map { ended($_) } @runs;
	is_deeply([ sort @codes ], [ 0, 1, 1, 1, 1 ], "several together, $round: one gets it");
	is_deeply([ grep { !/error: directory ".*" (?:is in use by another backup|exists but is not empty)/ } map { $_->{err} } grep { $_->{handle}->full_result(0) } @runs ],
		[], "several together, $round: the others say why not");
	is_whole("several together, $round", $target, "$tempdir/space");
	rmdir "$tempdir/new";
}

# --- a tablespace's directory, known once the backup has begun
{
	my $first = waits_for_checkpoint('-D' => "$tempdir/target", '-r' => '4M', '-j' => 1);
	goes_on();
	$node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_stat_activity WHERE ' . sending()) or die 'no transfer';
	local %ENV = $node->_get_env();
	command_checks_all([ @second, '-D' => "$tempdir/other" ], 1, [qr/^$/],
		[qr/error: directory "\Q$tempdir\E\/space" is in use by another backup\n/], 'a tablespace');
	ok(-e "$tempdir/space/$claim" && !-e "$tempdir/other", 'a tablespace: the second removes what is its own');
	is(ended($first), 0, 'a tablespace: the first backup');
	is_whole('a tablespace', "$tempdir/target", "$tempdir/space");
}

# --- killed: what it leaves is refused until somebody has looked at it
{
	my $target = "$tempdir/target";
	mkdir $target;
	my $first = waits_for_checkpoint('-D' => $target);
	$first->{handle}->signal('KILL');
	is(ended($first), 'signal 9', 'killed');
	is_refused('killed', $target, '-D' => $target);
	unlink "$target/$claim";
	# Its server process does not notice before the checkpoint is over.
	goes_on();
	local %ENV = $node->_get_env();
	command_ok([ @second, '-D' => $target ], 'killed: the hint helps');
	is_whole('killed', $target, "$tempdir/space");
}

# --- somebody else replaces a directory, or takes it over, while the first waits
for my $case (
	[ 'replaced', sub { rename $_[0], "$_[0].old"; mkdir $_[0] } ],
	[ 'taken over', sub { unlink "$_[0]/$claim"; write_file("$_[0]/$claim", '') } ],
	[ 'freed', sub { unlink "$_[0]/$claim" } ])
{
	my ($name, $action) = @$case;
	for my $end (qw(backup signal))
	{
		my $target = "$tempdir/target";
		my $first = waits_for_checkpoint('-D' => $target);
		$action->($target);
		write_file("$target/precious", 'x');
		if ($end eq 'signal') { $first->{handle}->signal('TERM') }
		goes_on();
		is(ended($first), 1, "$name, $end: exit code");
		like($first->{err}, qr/error: directory "\Q$target\E" was replaced or taken over by somebody else while the backup ran\n/, "$name, $end: says so");
		ok(-e "$target/precious" && !-e "$target/PG_VERSION", "$name, $end: what is there now is left alone");
		File::Path::remove_tree($target, "$target.old", "$tempdir/space");
	}
}

# --- one client, one directory by two names
{
	local %ENV = $node->_get_env();
	mkdir "$tempdir/real";
	symlink "$tempdir/real", "$tempdir/link";
	command_fails_like([ @second, '-D' => "$tempdir/real", '--waldir' => "$tempdir/link" ],
		qr/error: directory "\Q$tempdir\E\/link" cannot be used for two purposes/, '-D and --waldir are one');
	is_deeply([ grep { !/^\.\.?\z/ } slurp_dir("$tempdir/real") ], [], 'nothing is left');
	unlink "$tempdir/link";
	rmdir "$tempdir/real";

	command_fails_like([ 'pg_parallel_basebackup', '-N', '-c' => 'fast', '-D' => "$tempdir/real", '-T' => "$source=$tempdir/real/" ],
		qr/error: directory "\Q$tempdir\E\/real" cannot be used for two purposes/, '-D and a tablespace are one');
	ok(!-e "$tempdir/real", 'nothing is left');

	# One in the other is what pg_basebackup allows too.
	command_ok([ @second, '-D' => "$tempdir/real", '--waldir' => "$tempdir/real/wal" ], '--waldir in -D');
	is(readlink("$tempdir/real/pg_wal"), "$tempdir/real/wal", '--waldir in -D: the link');
	is_deeply([ grep { -e "$_/$claim" } map { "$tempdir/$_" } qw(real real/wal space) ], [], '--waldir in -D: the claims are gone');
	File::Path::remove_tree("$tempdir/real", "$tempdir/space");
	command_fails_like([ @second, '-D' => "$tempdir/space/below" ], qr/error: directory "\Q$tempdir\E\/space" exists but is not empty/, '-D in a tablespace');
	ok(!-e "$tempdir/space", '-D in a tablespace: nothing is left');
}

# --- a copy made beside all this is one
my $copy = PostgreSQL::Test::Cluster->new('copy');
$node->command_ok([ @second, '-D' => $copy->data_dir ], 'a backup at the end');
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)'), '20000|1000', 'data of the copy');
$copy->stop;

done_testing();
