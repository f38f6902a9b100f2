# pg_parallel_basebackup: its options, what it leaves behind, how it fails.

use strict;
use warnings FATAL => 'all';

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

program_help_ok('pg_parallel_basebackup');
program_version_ok('pg_parallel_basebackup');
program_options_handling_ok('pg_parallel_basebackup');

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, init => { has_archiving => 1 });
my $pgdata = $node->data_dir;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast');

# Options that make no sense, before anything is touched.
for my $case (
	[ [], qr/must specify output directory/ ],
	[ [ '-D' => 'x', 'more' ], qr/too many command-line arguments \(first is "more"\)/ ],
	[ [ '-D' => 'x', '-X' => 'maybe' ], qr/invalid wal-method option "maybe", must be "fetch", "stream", or "none"/ ],
	[ [ '-D' => 'x', '-c' => 'slow' ], qr/invalid checkpoint argument "slow", must be "fast" or "spread"/ ],
	[ [ '-D' => 'x', '-F' => 'zip' ], qr/invalid output format "zip", must be "plain" or "tar"/ ],
	[ [ '-D' => 'x', '-j' => '0' ], qr/-j\/--jobs must be in range 1\.\./ ],
	[ [ '-D' => 'x', '-j' => 'x' ], qr/invalid value "x" for option -j\/--jobs/ ],
	[ [ '-D' => 'x', '-s' => '-1' ], qr/-s\/--status-interval must be in range/ ],
	[ [ '-D' => 'x', '-S' => 's', '-X' => 'fetch' ], qr/replication slots can only be used with WAL streaming/ ],
	[ [ '-D' => 'x', '-S' => 's', '-X' => 'none' ], qr/replication slots can only be used with WAL streaming/ ],
	[ [ '-D' => 'x', '-S' => 's', '--no-slot' ], qr/--no-slot cannot be used with slot name/ ],
	[ [ '-D' => 'x', '-C' ], qr/--create-slot needs a slot to be specified using --slot/ ],
	[ [ '-D' => 'x', '-C', '-S' => 's', '--no-slot' ], qr/--no-slot cannot be used with slot name|incompatible options/ ],
	[ [ '-D' => 'x', '--waldir' => 'relative' ], qr/WAL directory location must be an absolute path/ ],
	[ [ '-D' => 'x', '-P', '--no-estimate-size' ], qr/--progress and --no-estimate-size are incompatible options/ ],
	[ [ '-D' => 'x', '--no-manifest', '--manifest-checksums' => 'SHA256' ], qr/--no-manifest and --manifest-checksums are incompatible options/ ],
	[ [ '-D' => 'x', '--no-manifest', '--manifest-force-encode' ], qr/--no-manifest and --manifest-force-encode are incompatible options/ ],
	[ [ '-D' => 'x', '--manifest-checksums' => 'MD5' ], qr/unrecognized checksum algorithm: "MD5"/ ],
	[ [ '-D' => 'x', '--sync-method' => 'maybe' ], qr/unrecognized sync method: maybe/ ],
	[ [ '-D' => 'x', '--no-such-option' ], qr/unrecognized option|invalid option/ ])
{
	my ($options, $message) = @$case;
	command_checks_all([ 'pg_parallel_basebackup', @$options ],
		1, [qr/^$/], [qr/^pg_parallel_basebackup: error: .*$message/s], "options: @$options");
}

# A server that is not there, or does not answer to the role.
command_fails_like(
	[ @client, '-D' => "$tempdir/none", '-h' => $tempdir, '-p' => $node->port ],
	qr/error: connection to server on socket/, 'no server');
ok(!-e "$tempdir/none", 'no server: nothing is left');

# Without the library on the server's side.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$node->command_fails_like([ @client, '-D' => "$tempdir/none" ],
	qr/shared_preload_libraries/, 'the library is not loaded');
ok(!-e "$tempdir/none", 'the library is not loaded: nothing is left');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_parallel_backup'");
$node->restart;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
	CREATE ROLE backup LOGIN REPLICATION;
	CREATE ROLE nobody LOGIN;));
may_back_up($node, 'backup');

$node->command_fails_like([ @client, '-D' => "$tempdir/none", '-U' => 'nobody' ],
	qr/permission denied to start WAL sender|must be superuser or replication role to start walsender/, 'a role without REPLICATION');
$node->command_fails_like([ @client, '-D' => "$tempdir/none", '-U' => 'no such role' ],
	qr/role "no such role" does not exist/, 'a role that does not exist');
ok(!-e "$tempdir/none", 'nothing is left');

# More connections than the server has walsenders for, or room at all.
$node->command_fails_like([ @client, '-D' => "$tempdir/none", '-j' => 50 ],
	stock_server() ? qr/too many clients already\n.*hint: .*needs 51 connections/s : qr/max_wal_senders/, 'too many connections');
ok(!-e "$tempdir/none", 'too many connections: nothing is left');

# Targets.
{
	mkdir "$tempdir/full";
	write_file("$tempdir/full/precious", 'x');
	$node->command_fails_like([ @client, '-D' => "$tempdir/full" ],
		qr/directory "\Q$tempdir\E\/full" exists but is not empty/, 'a directory that is not empty');
	is_deeply([ grep { !/^\.\.?\z/ } slurp_dir("$tempdir/full") ], ['precious'], 'is left alone');
	write_file("$tempdir/file", 'x');
	$node->command_fails_like([ @client, '-D' => "$tempdir/file" ],
		qr/\Q$tempdir\E\/file/, 'a file as the directory');
	is(slurp_file("$tempdir/file"), 'x', 'is left alone');
	$node->command_fails_like([ @client, '-D' => "$tempdir/none", '--waldir' => "$tempdir/full" ],
		qr/directory "\Q$tempdir\E\/full" exists but is not empty/, 'a WAL directory that is not empty');
	ok(!-e "$tempdir/none", 'nothing is left');
	$node->command_fails([ @client, '-D' => "$tempdir/file/below" ], 'a directory below a file');
}

# Each -X, by a role that can do nothing but back up.
sub started
{
	my ($copy, $name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	start_copy($copy, %params);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), $node->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), "$name: data of the copy");
	$copy->stop;
	return;
}

{
	my $copy = PostgreSQL::Test::Cluster->new('none');
	$node->command_ok([ @client, '-D' => $copy->data_dir, '-X' => 'none', '-U' => 'backup' ], '-X none');
	is_deeply([ grep { /^[0-9A-F]{24}/ } slurp_dir($copy->data_dir . '/pg_wal') ], [], '-X none: no WAL');
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $copy->data_dir ], '-X none: pg_verifybackup');
	$copy->enable_restoring($node, 0);
	start_copy($copy, conf => "archive_mode = off\n");
	ok($copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), '-X none: restored from the archive');
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 20000, '-X none: data of the copy');
	$copy->stop;
}
for my $method (qw(fetch stream))
{
	my $copy = PostgreSQL::Test::Cluster->new($method);
	$node->command_ok(
		[ @client, '-D' => $copy->data_dir, '-X' => $method, '-U' => 'backup', '-j' => 3, '-l' => "a 'label'" ],
		"-X $method");
	my @wal = grep { /^[0-9A-F]{24}\z/ } slurp_dir($copy->data_dir . '/pg_wal');
	cmp_ok(scalar @wal, '>=', 1, "-X $method: WAL is there");
	# Those that are streamed are not marked, as in pg_basebackup.
	is_deeply([ grep { !-f $copy->data_dir . "/pg_wal/archive_status/$_.done" } @wal ],
		[], "-X $method: and marked as archived") if $method eq 'fetch';
	like(slurp_file($copy->data_dir . '/backup_label'), qr/^LABEL: a 'label'$/m, "-X $method: label");
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "-X $method: pg_verifybackup");
	started($copy, "-X $method", conf => "archive_mode = off\n");
}

# Every number of connections; an empty directory is fine; relative paths.
for my $jobs (1, 2, 8)
{
	mkdir "$tempdir/jobs$jobs";
	$node->command_ok([ @client, '-D' => "$tempdir/jobs$jobs", "--jobs=$jobs" ], "-j $jobs into an empty directory");
	command_ok([ 'pg_verifybackup', $tempdir . "/jobs$jobs" ], "-j $jobs: pg_verifybackup");
}
is(PostgreSQL::Test::Utils::system_log(
		'sh', '-c', "cd '$tempdir' && exec pg_parallel_basebackup -N -c fast -D relative/dir/ -d '"
		. ($node->connstr('postgres') =~ s/'/'\\''/gr) . "'"), 0, 'a relative path');
command_ok([ 'pg_verifybackup', "$tempdir/relative/dir" ], 'a relative path: pg_verifybackup');

# Names of directories as pg_basebackup reads them.
{
	my $dir = "$tempdir/names";
	$node->command_checks_all([ @client, '-D' => "$dir/.", '-T' => '/no/such/../tablespace=/elsewhere' ], 0, [qr/^$/],
		[qr/^pg_parallel_basebackup: warning: the server has no tablespace in directory "\/no\/tablespace"$/m], 'a name that ends with "."');
	command_ok([ 'pg_verifybackup', $dir ], 'a name that ends with ".": pg_verifybackup');
	$node->command_fails_like([ @client, '-D' => "$tempdir/none", '--waldir' => "$tempdir/x/../none/" ],
		qr/error: WAL directory and output directory must not be the same/, '--waldir and -D are one');
	ok(!-e "$tempdir/none", '--waldir and -D are one: nothing is left');
}

# As many open files as it takes, or an error that says so before anything else happens.
{
	my $command = join ' ', map { "'$_'" } @client, '-D' => "$tempdir/few", '-j' => 8;
	$node->command_checks_all([ 'sh', '-c', "ulimit -n 12; exec $command" ], 1, [qr/^$/],
		[ qr/^pg_parallel_basebackup: error: cannot open enough files for 9 connections\n.*detail: This backup needs up to \d+ open files; the limit is 12\.\n.*hint: Raise the limit/ ],
		'ulimit -n');
	ok(!-e "$tempdir/few", 'ulimit -n: nothing is left');
	$node->command_ok([ 'sh', '-c', "ulimit -S -n 12; exec $command" ], 'ulimit -S -n');
	command_ok([ 'pg_verifybackup', "$tempdir/few" ], 'ulimit -S -n: pg_verifybackup');
}

# --waldir
{
	my $copy = PostgreSQL::Test::Cluster->new('waldir');
	$node->command_ok([ @client, '-D' => $copy->data_dir, '--waldir' => "$tempdir/wal" ], '--waldir');
	is(readlink($copy->data_dir . '/pg_wal'), "$tempdir/wal", '--waldir: a link');
	ok(-d "$tempdir/wal/archive_status", '--waldir: with what belongs in it');
	command_ok([ 'pg_verifybackup', $copy->data_dir ], '--waldir: pg_verifybackup');
	started($copy, '--waldir', conf => "archive_mode = off\n");
}

# Manifests.
for my $algorithm (qw(CRC32C SHA224 SHA256 SHA384 SHA512 NONE none))
{
	my $dir = "$tempdir/manifest_$algorithm";
	$node->command_ok([ @client, '-D' => $dir, '-X' => 'none', '--manifest-checksums' => $algorithm ],
		"--manifest-checksums $algorithm");
	my $manifest = slurp_file("$dir/backup_manifest");
	if (uc $algorithm eq 'NONE') { unlike($manifest, qr/"Checksum"/, 'no checksums') }
	else { like($manifest, qr/"Checksum-Algorithm": "$algorithm"/, "its algorithm, $algorithm") }
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $dir ], "$algorithm: pg_verifybackup");
	write_file("$dir/PG_VERSION", "19\n");
	command_fails([ 'pg_verifybackup', '--no-parse-wal', $dir ], "$algorithm: a change is noticed")
	  if uc $algorithm ne 'NONE';
}
$node->command_ok([ @client, '-D' => "$tempdir/no_manifest", '-X' => 'none', '--no-manifest' ], '--no-manifest');
ok(!-e "$tempdir/no_manifest/backup_manifest", 'no manifest');

# On disk before success is reported: with the default and with syncfs.
for my $method (qw(fsync syncfs))
{
	my $dir = "$tempdir/$method";
	$node->command_ok([ 'pg_parallel_basebackup', '-c' => 'fast', '-D' => $dir, '-X' => 'fetch', '--sync-method' => $method ],
		"--sync-method $method");
	command_ok([ 'pg_verifybackup', $dir ], "$method: pg_verifybackup");
	ok(!-e "$dir/backup_manifest.tmp", "$method: no temporary manifest");
}

# -P and -v, not on a terminal.
$node->command_checks_all([ @client, '-D' => "$tempdir/progress", '-P', '-v' ],
	0, [qr/^$/], [ qr/100%/, qr/pg_parallel_basebackup: .*(?:start|checkpoint)/is ], '-P -v');
$node->command_checks_all([ @client, '-D' => "$tempdir/quiet" ], 0, [qr/^$/], [qr/^$|NOTICE/], 'quiet otherwise');

# Slots.
{
	my $slots = q(SELECT string_agg(slot_name || ' ' || temporary, ', ') FROM pg_replication_slots);
	$node->command_fails_like([ @client, '-D' => "$tempdir/none", '-S' => 'missing' ],
		qr/replication slot "missing" does not exist/, '-S of a slot that does not exist');
	ok(!-e "$tempdir/none", '-S of a slot that does not exist: nothing is left');
	$node->command_ok([ @client, '-D' => "$tempdir/slot", '-C', '-S' => 'slot0' ], '-C -S');
	is($node->safe_psql('postgres', $slots), 'slot0 false', '-C -S: the slot stays');
	$node->command_fails_like([ @client, '-D' => "$tempdir/none", '-C', '-S' => 'slot0' ],
		qr/replication slot "slot0" already exists/, '-C -S of one that exists');
	ok(!-e "$tempdir/none", '-C -S of one that exists: nothing is left');
	$node->command_ok([ @client, '-D' => "$tempdir/slot2", '-S' => 'slot0' ], '-S');
	isnt($node->safe_psql('postgres', q(SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'slot0')),
		'', '-S: the slot was used');
	$node->safe_psql('postgres', q(SELECT pg_drop_replication_slot('slot0')));
	$node->command_ok([ @client, '-D' => "$tempdir/no_slot", '--no-slot' ], '--no-slot');
	is($node->safe_psql('postgres', $slots), '', 'no slot is left');
}

# -R
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$node->command_ok(
		[
			@client, '-D' => $standby->data_dir, '-R', '-C', '-S' => 'standby_slot',
			'-d' => $node->connstr('postgres')
		],
		'-R');
	ok(-f $standby->data_dir . '/standby.signal', '-R: standby.signal');
	my $conf = slurp_file($standby->data_dir . '/postgresql.auto.conf');
	like($conf, qr/^primary_slot_name = 'standby_slot'$/m, '-R: primary_slot_name');
	like($conf, qr/^primary_conninfo = '.*port=@{[ $node->port ]}.*'$/m, '-R: primary_conninfo');
	unlike($conf, qr/replication=/, '-R: without what is its own');
	command_ok([ 'pg_verifybackup', $standby->data_dir ], '-R: pg_verifybackup');
	start_copy($standby, conf => "archive_mode = off\n");
	is($standby->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 't', '-R: a standby');
	$node->safe_psql('postgres', 'INSERT INTO t VALUES (20001)');
	ok($standby->poll_query_until('postgres', 'SELECT count(*) = 20001 FROM t'), '-R: which follows');
	is($node->safe_psql('postgres', q(SELECT active FROM pg_replication_slots WHERE slot_name = 'standby_slot')),
		't', '-R: by its slot');
	$standby->stop;
	$node->safe_psql('postgres', q(SELECT pg_drop_replication_slot('standby_slot')));
}

# Timeouts of the server are not for it.
{
	$node->append_conf('postgresql.conf', "idle_session_timeout = 200\nstatement_timeout = 200\n");
	$node->reload;
	make_file("$pgdata/large", 8 * 1024 * 1024);
	$node->command_ok([ @client, '-D' => "$tempdir/timeouts", '-r' => '16M' ], 'with timeouts on the server');
	command_ok([ 'pg_verifybackup', "$tempdir/timeouts" ], 'with timeouts on the server: pg_verifybackup');
	$node->append_conf('postgresql.conf', "idle_session_timeout = 0\nstatement_timeout = 0\n");
	$node->reload;
}

# Its connections: for replication or ordinary ones.
my $connected = q((backend_type = 'walsender' OR application_name = 'pg_parallel_basebackup'));

# Runs the client with a rate that gives time to act, and acts.
make_file("$pgdata/large", 8 * 1024 * 1024);
sub while_running
{
	my ($name, $options, $action) = @_;
	my ($out, $err) = ('', '');
	my $timer = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	# What the one before has left on the server would be taken for ours.
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE $connected")
	  or die "$name: the server is not idle";
	local %ENV = $node->_get_env();
	my $handle = IPC::Run::start([ @client, '-r' => '4M', @$options ],
		'>' => \$out, '2>' => \$err, $timer);
	$node->poll_query_until('postgres', 'SELECT count(*) > 1 FROM pg_stat_activity WHERE ' . sending())
	  or die "$name: the transfer did not begin: $err";
	$action->($handle);
	$handle->finish;
	note("$name: $err");
	my $status = $handle->full_result(0);
	return ($status & 127 ? "signal $status" : $status >> 8, $err);
}

sub is_gone
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($node->poll_query_until('postgres', qq(
		SELECT (SELECT count(*) FROM parallel_backup.backups) = 0
		   AND (SELECT count(*) FROM pg_stat_activity WHERE $connected) = 0
		   AND (SELECT count(*) FROM pg_replication_slots) = 0)),
		"$name: nothing is left on the server");
	return;
}

# Interrupted: it removes what it made, unless it is told not to.
for my $signal (qw(INT TERM))
{
	my ($result) = while_running("SIG$signal", [ '-D' => "$tempdir/interrupted", '--waldir' => "$tempdir/iwal" ],
		sub { $_[0]->signal($signal) });
	isnt($result, 0, "SIG$signal: fails");
	ok(!-e "$tempdir/interrupted", "SIG$signal: the directory is removed");
	ok(!-e "$tempdir/iwal", "SIG$signal: the WAL directory too");
	is_gone("SIG$signal");
}
{
	mkdir "$tempdir/existing";
	my ($result) = while_running('an existing directory', [ '-D' => "$tempdir/existing" ], sub { $_[0]->signal('INT') });
	isnt($result, 0, 'an existing directory: fails');
	is_deeply([ grep { !/^\.\.?\z/ } slurp_dir("$tempdir/existing") ], [], 'an existing directory: emptied and kept');
	($result) = while_running('--no-clean', [ '-D' => "$tempdir/kept", '--no-clean' ], sub { $_[0]->signal('INT') });
	isnt($result, 0, '--no-clean: fails');
	ok(-d "$tempdir/kept", '--no-clean: the directory is kept');
	ok(!-e "$tempdir/kept/global/pg_control", '--no-clean: and cannot pass for a whole one');
	is_gone('--no-clean');
}

# A worker is killed: the others fetch its files.
{
	my ($result, $err) = while_running('worker killed', [ '-D' => "$tempdir/worker", '-j' => 4 ],
		sub {
			is($node->safe_psql('postgres', q(
				SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE ) . sending() . q(
				  AND pid <> (SELECT pid FROM parallel_backup.backups) LIMIT 1)), 't', 'worker killed');
		});
	is($result, 0, 'worker killed: the backup succeeds') or diag($err);
	command_ok([ 'pg_verifybackup', "$tempdir/worker" ], 'worker killed: pg_verifybackup');
	is_gone('worker killed');
}

# The coordinator is killed, or the backup cancelled: failure, and nothing is left.
for my $case (
	[ 'coordinator killed', 'SELECT pg_terminate_backend(pid) FROM parallel_backup.backups', '--lease' => 0 ],
	[ 'backup cancelled', 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups' ])
{
	my ($name, $sql, @options) = @$case;
	my ($result, $err) = while_running($name, [ '-D' => "$tempdir/failed", @options ],
		sub { is($node->safe_psql('postgres', $sql), 't', $name) });
	is($result, 1, "$name: exit code");
	like($err, qr/^pg_parallel_basebackup: error: /m, "$name: says so");
	ok(!-e "$tempdir/failed", "$name: nothing is left of it");
	is_gone($name);
}

# The list breaks off when other connections may already be at its first files.
{
	my $locked = "$pgdata/locked";
	mkdir $locked;
	write_file("$locked/file", 'x');
	chmod 0400, $locked;
	# A look at the sizes finds it before the backup starts.
	for my $case ([1], [ 1, '--no-estimate-size' ], [ 4, '--no-estimate-size' ])
	{
		my ($jobs, @look) = @$case;
		my $name = "list broken off, -j $jobs @look";
		$node->command_fails_like([ @client, @look, '-D' => "$tempdir/failed", '-j' => $jobs ],
			qr/error: could not get file list: ERROR:  could not stat file or directory "locked\/file": Permission denied$/m, $name);
		ok(!-e "$tempdir/failed", "$name: nothing is left of it");
		is_gone($name);
	}
	chmod 0700, $locked;
	unlink "$locked/file";
	rmdir $locked;
}

# The server goes down.
{
	my ($result, $err) = while_running('server down', [ '-D' => "$tempdir/failed" ],
		sub { $node->stop('immediate') });
	is($result, 1, 'server down: exit code');
	ok(!-e "$tempdir/failed", 'server down: nothing is left of it');
	$node->start;
}

# A whole one at the end.
unlink "$pgdata/large";
my $copy = PostgreSQL::Test::Cluster->new('copy');
$node->command_ok([ @client, '-D' => $copy->data_dir ], 'a backup at the end');
started($copy, 'at the end', conf => "archive_mode = off\n");

done_testing();
