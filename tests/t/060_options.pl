# Options that say where a backup goes and who it is for: targets, a bare database name, the program's name,
# --dry-run, the look at the space.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1);
my $pgdata = $node->data_dir;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast');
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
	CREATE ROLE backup LOGIN REPLICATION;
	CREATE ROLE nobody LOGIN;));
may_back_up($node, 'backup');

sub backups_on_server
{
	return $node->safe_psql('postgres', 'SELECT count(*) FROM parallel_backup.backups');
}

# pg_basebackup's refusals, before anything is touched.
for my $case (
	[ [ '-t' => 'blackhole' ], qr/WAL cannot be streamed when a backup target is specified/ ],
	[ [ '-t' => 'blackhole', '-X' => 'none', '-D' => 'x' ], qr/cannot specify both output directory and backup target/ ],
	[ [ '-t' => 'blackhole', '-X' => 'none', '-F' => 't' ], qr/cannot specify both format and backup target/ ],
	[ [ '-t' => 'blackhole', '-X' => 'none', '--waldir' => '/w' ], qr/WAL directory location cannot be specified along with a backup target/ ],
	[ [ '-t' => 'blackhole', '-X' => 'none', '-Z' => 'client-gzip' ], qr/client-side compression is not possible when a backup target is specified/ ],
	[ [ '-t' => 'blackhole', '-X' => 'none', '-R' ], qr/recovery configuration cannot be written when a backup target is used/ ],
	[ [ '-t' => 'bogus', '-X' => 'none' ], qr/unrecognized target: "bogus"/ ],
	[ [ '-t' => 'server:/x', '-X' => 'none' ], qr/backup target "server" is not supported\n.*detail: The files of a parallel backup come over several connections.*hint: Run this program on the server's host/s ],
	[ [ '-D' => 'x', '-z' ], qr/only tar mode backups can be compressed/ ],
	[ [ '-D' => 'x', '--progress=xml' ], qr/invalid progress argument "xml", must be "json"/ ],
	[ [ '-D' => 'x', '--dry-run', '--report=r' ], qr/--dry-run and --report are incompatible options/ ])
{
	my ($options, $message) = @$case;
	command_checks_all([ 'pg_parallel_basebackup', @$options ],
		1, [qr/^$/], [qr/^pg_parallel_basebackup: error: .*$message/s], "options: @$options");
}

# Nowhere: received, verified, and nothing written.
for my $method (qw(none fetch))
{
	$node->command_checks_all([ @client, '-t' => 'blackhole', '-X' => $method, '-v', '-j' => 2 ],
		0, [qr/^$/], [qr/base backup received and discarded\n/], "-t blackhole -X $method");
	is(backups_on_server(), 0, "-t blackhole -X $method: over on the server");
}
$node->command_ok([ @client, '-t' => 'client', '-D' => "$tempdir/client" ], '-t client');
command_ok([ 'pg_verifybackup', "$tempdir/client" ], '-t client: pg_verifybackup');

# A database's name alone, also one that would have to be quoted.
$node->safe_psql('postgres', q(CREATE DATABASE "it's mine"));
$node->safe_psql("it's mine", 'CREATE EXTENSION pg_parallel_backup');
for my $name ('postgres', "it's mine")
{
	(my $target = "$tempdir/$name") =~ tr/' /__/;
	$node->command_ok([ @client, '-d' => $name, '-D' => $target, '-X' => 'fetch', '-R' ], "-d $name");
	command_ok([ 'pg_verifybackup', $target ], "-d $name: pg_verifybackup");
	# From 17 a standby that synchronizes slots needs it.
	my $settings = slurp_file("$target/postgresql.auto.conf");
	my $quoted = $name eq 'postgres' ? 'dbname=postgres' : q(dbname=''it\\\\''s mine'');
	if (server_major() >= 17) { like($settings, qr/\Q$quoted\E/, "-d $name: in primary_conninfo") }
	else { unlike($settings, qr/dbname/, "-d $name: not in primary_conninfo") }
}
$node->command_fails_like([ @client, '-d' => 'no such database', '-D' => "$tempdir/none", '-X' => 'fetch', '-h' => 'nowhere.invalid' ],
	qr/could not translate host name/, '-h counts beside a bare name');

# Called by another name, it speaks by that.
{
	my ($program) = grep { -x } map { "$_/pg_parallel_basebackup" } split(/:/, $ENV{PATH});
	symlink $program, "$tempdir/pg_basebackup" or die "could not make a link: $!";
	command_checks_all([ "$tempdir/pg_basebackup" ], 1, [qr/^$/],
		[qr/^pg_basebackup: error: must specify .*\npg_basebackup: hint: Try "pg_basebackup --help"/], 'a link pg_basebackup');
	command_like([ "$tempdir/pg_basebackup", '--help' ], qr/^  pg_basebackup \[OPTION\]\.\.\.$/m, 'its --help');
}

# The manual page and completions.
for my $what (qw(man bash zsh fish))
{
	my ($stdout, $stderr) = run_command([ 'pg_parallel_basebackup', "--generate=$what" ]);
	like($stdout, qr/tablespace(\\?-)mapping/, "--generate=$what");
	is($stderr, '', "--generate=$what: nothing else");
}

# --dry-run changes nothing, and says what would happen.
{
	my @dry = ('pg_parallel_basebackup', '--dry-run', '-D' => "$tempdir/dry");
	my $label = $node->safe_psql('postgres', 'SELECT checkpoint_lsn FROM pg_control_checkpoint()');
	$node->command_checks_all([ @dry, '-U' => 'backup', '-X' => stock_server() ? 'fetch' : 'stream' ],
		0, [ qr/^server: PostgreSQL \d/, qr/^connections: 4 for files/m, qr/^files: \d+, \d+ MB$/m,
			qr/^directory "\Q$tempdir\E\/dry": would be created, needs \d+ MB/m,
			qr/^dry run: the backup can be made, nothing was changed$/m ],
		[qr/^$/], '--dry-run');
	ok(!-e "$tempdir/dry", '--dry-run: no directory');
	is($node->safe_psql('postgres', 'SELECT checkpoint_lsn FROM pg_control_checkpoint()'), $label, '--dry-run: no checkpoint');
	is(backups_on_server(), 0, '--dry-run: no backup');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), 0, '--dry-run: no slot');

	# What would fail is said, with an exit code.
	$node->command_checks_all([ @dry, '-S' => 'nope' ], 1,
		[qr/dry run: the backup would fail/], [qr/error: replication slot "nope" does not exist/], '--dry-run: no such slot');
	$node->safe_psql('postgres', q(SELECT pg_create_physical_replication_slot('there')));
	$node->command_checks_all([ @dry, '-S' => 'there', '-C' ], 1,
		[qr/would fail/], [qr/error: replication slot "there" already exists/], '--dry-run: a slot that is there');
	$node->command_ok([ @dry, '-S' => 'there' ], '--dry-run: a slot to use');
	is($node->safe_psql('postgres', q(SELECT restart_lsn IS NULL AND NOT active FROM pg_replication_slots)), 't', '--dry-run: which is as it was');
	$node->command_fails_like([ @dry, '-U' => 'nobody' ],
		qr/permission denied to start WAL sender|must be superuser or replication role/, '--dry-run: a role without rights');
	$node->command_fails_like([ @dry, '-X' => 'fetch', '-U' => 'nobody' ],
		qr/role "nobody" may not execute the procedures/, '--dry-run: a role without rights, by procedures');
	$node->command_fails_like([ @dry, '-j' => 50 ],
		qr/needs 51 connections/, '--dry-run: more connections than there are');
	write_file("$tempdir/dry/full", 'x') if mkdir "$tempdir/dry";
	$node->command_fails_like(\@dry, qr/directory "\Q$tempdir\E\/dry" exists but is not empty/, '--dry-run: a full directory');
	mkdir "$tempdir/locked", 0500;
	$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-D' => "$tempdir/locked/dry" ], 1,
		[qr/would fail/], [qr/error: could not create directory "\Q$tempdir\E\/locked\/dry": Permission denied/], '--dry-run: a directory that cannot be made');

	# Archives go to that directory as well; how large they get compressed nobody knows.
	my $free = qr/(?:, \d+ MB are free)?$/m;
	for my $case ([ [], qr/, needs \d+ MB$free/ ], [ ['--gzip'], $free ])
	{
		my ($options, $line) = @$case;
		$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-Ft', @$options, '-D' => "$tempdir/tar" ], 0,
			[ qr/^directory "\Q$tempdir\E\/tar": would be created$line/m, qr/the backup can be made/ ], [qr/^$/], "--dry-run -Ft @$options");
		$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-Ft', @$options, '-D' => "$tempdir/locked/tar" ], 1,
			[qr/would fail/], [qr/error: could not create directory "\Q$tempdir\E\/locked\/tar": Permission denied/], "--dry-run -Ft @$options: a directory that cannot be made");
	}
	$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-Ft', '-X' => 'none', '-D' => '-' ], 0,
		[qr/^(?!.*^directory).*the backup can be made/ms], [qr/^$/], '--dry-run -Ft to standard output');
}

# More than any disk has: a file without blocks of its own.
{
	my $huge = "$pgdata/huge";
	open(my $file, '>', $huge) or die "could not create $huge: $!";
	truncate($file, 15 << 40) or die "could not extend $huge: $!";
	close($file);
	my $before = $node->safe_psql('postgres', 'SELECT checkpoint_lsn FROM pg_control_checkpoint()');
	for my $format ([], ['-Ft'], [ '-Ft', '--volumes' ])
	{
		$node->command_fails_like([ @client, @$format, '-D' => "$tempdir/space" ],
			qr/error: not enough space for the backup in "\Q$tempdir\E\/space"\n.*detail: The backup needs 157\d{5} MB on this file system, and \d+ MB are free\.\n.*hint: With --no-estimate-size/, "no space: @$format");
		ok(!-e "$tempdir/space", "no space: @$format: no directory");
	}
	is($node->safe_psql('postgres', 'SELECT checkpoint_lsn FROM pg_control_checkpoint()'), $before, 'no space: no checkpoint');
	$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-D' => "$tempdir/space" ], 1,
		[qr/dry run: the backup would fail/], [qr/error: not enough space for the backup/], 'no space: --dry-run');
	$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-D' => "$tempdir/space", '--no-estimate-size' ], 0,
		[qr/dry run: the backup can be made/], [qr/^$/], '--no-estimate-size does not look');
	$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-Ft', '--gzip', '-D' => "$tempdir/space" ], 0,
		[qr/dry run: the backup can be made/], [qr/^$/], 'space for archives that are compressed: nobody knows');
	unlink $huge;
}

# A tablespace's place is looked at too, once it is known.
{
	my $directory = PostgreSQL::Test::Utils::tempdir_short;
	$node->safe_psql('postgres', "CREATE TABLESPACE ts LOCATION '$directory'");
	my $oid = $node->safe_psql('postgres', q(SELECT oid FROM pg_tablespace WHERE spcname = 'ts'));
	$node->safe_psql('postgres', 'CREATE TABLE elsewhere TABLESPACE ts AS SELECT 1 AS one');
	my ($version) = glob("$directory/PG_*");
	my $huge = "$version/huge";
	open(my $file, '>', $huge) or die "could not create $huge: $!";
	truncate($file, 15 << 40) or die "could not extend $huge: $!";
	close($file);
	my @mapping = ('-T' => "$directory=$tempdir/mapped");
	$node->command_fails_like([ @client, '-D' => "$tempdir/space", @mapping ],
		qr/error: not enough space for the backup in/, 'no space for a tablespace');
	ok(!-e "$tempdir/space" && !-e "$tempdir/mapped", 'no space for a tablespace: nothing is left');
	my ($stdout) = run_command([ 'pg_parallel_basebackup', '--dry-run', '-d' => $node->connstr('postgres'), '-D' => "$tempdir/space", @mapping ]);
	like($stdout, stock_server() ? qr/^directory "\Q$tempdir\E\/mapped": would be created, needs 157\d+ MB/m : qr/^tablespace $oid: needs 157\d+ MB/m,
		'no space for a tablespace: --dry-run');
	# Archives of tablespaces are where the others are, or nowhere.
	$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-Ft', '-D' => "$tempdir/space" ], 1,
		[qr/^(?!.*^tablespace).*^directory "\Q$tempdir\E\/space": would be created, needs 157\d+ MB/ms], [qr/error: not enough space for the backup in/], 'no space for the archive of a tablespace: --dry-run');
	$node->command_checks_all([ 'pg_parallel_basebackup', '--dry-run', '-Ft', '-X' => 'none', '-D' => '-' ], 1,
		[qr/would fail/], [qr/error: can only write single tablespace to stdout, database has 2/], 'a tablespace on standard output: --dry-run');
	my $before = $node->safe_psql('postgres', 'SELECT checkpoint_lsn FROM pg_control_checkpoint()');
	$node->command_checks_all([ @client, '-Ft', '-X' => 'none', '-D' => '-' ], 1,
		[qr/^$/], [qr/error: can only write single tablespace to stdout, database has 2/], 'a tablespace on standard output');
	is($node->safe_psql('postgres', 'SELECT checkpoint_lsn FROM pg_control_checkpoint()'), $before, 'a tablespace on standard output: no checkpoint');
	unlink $huge;
	$node->command_ok([ @client, '-D' => "$tempdir/space", @mapping ], 'space for a tablespace');
	command_ok([ 'pg_verifybackup', "$tempdir/space" ], 'space for a tablespace: pg_verifybackup');
}

# Started, and asked for its data.
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	$node->safe_psql('postgres', 'DROP TABLE elsewhere; DROP TABLESPACE ts;');
	$node->command_ok([ @client, '-d' => 'postgres', '-t' => 'client', '-D' => $copy->data_dir, '-P' ], 'a backup at the end');
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), '20000|200010000', 'its data');
	$copy->stop;
}

done_testing();
