# pg_parallel_restore of a full backup and its increments, ours and pg_basebackup's in turn: combined, checked, started;
# and what is no chain.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

plan skip_all => 'PostgreSQL has incremental backups from 17 on' if server_major() < 17;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, conf => "summarize_wal = on\nallow_in_place_tablespaces = on\n");
mkdir "$tempdir/ts" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	"CREATE TABLESPACE in_place LOCATION ''",
	q(CREATE TABLE t AS SELECT g AS id, 0 AS n FROM generate_series(1, 100000) g),
	'CREATE TABLE t1 TABLESPACE ts AS SELECT g AS id, 0 AS n FROM generate_series(1, 50000) g',
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT g AS id, 0 AS n FROM generate_series(1, 1000) g');
my $ts = $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = 'ts'");
my $query = join ' UNION ALL ', map { "SELECT '$_', count(*), sum(hashtext($_\::text)) FROM $_" } qw(t t1 t2);
my @common = ('--no-sync', '--checkpoint' => 'fast', '-Ft', '--dbname' => $node->connstr('postgres'));
my @restore = ('pg_parallel_restore', '--no-sync', '-T' => "$tempdir/ts=$tempdir/new ts");

# full, one, two: the programs in turn.
my %data;
my $prior;
my @programs = ('pg_parallel_basebackup', 'pg_basebackup', 'pg_parallel_basebackup');
for my $name (qw(full one two))
{
	my $program = shift @programs;
	$node->command_ok([ $program, @common, '-D' => "$tempdir/$name", $prior ? ('-i' => "$tempdir/$prior/backup_manifest") : (), $name eq 'two' ? ('-Z' => 'client-zstd') : () ],
		"$name by $program");
	$data{$name} = $node->safe_psql('postgres', "$query ORDER BY 1");
	$node->safe_psql('postgres', $_) for (
		"UPDATE t SET n = n + 1 WHERE id % 1000 = 7",
		"INSERT INTO t1 SELECT g, 7 FROM generate_series(1, 20000) g",
		"DELETE FROM t2 WHERE id <= 10");
	$prior = $name;
}

sub is_good
{
	my ($name, $directory, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");

	command_ok([ 'pg_verifybackup', $directory ], "$name: pg_verifybackup");
	ok(!-e "$directory.restore", "$name: nothing is left of its members");
	is(readlink "$directory/pg_tblspc/$ts", "$tempdir/new ts", "$name: the tablespace's link");
	is_deeply([ grep { /^pgsql_tmp/ } slurp_dir($directory), slurp_dir("$tempdir/new ts") ], [], "$name: no claim is left");
	rename $directory, $copy->data_dir or die $!;
	start_copy($copy);
	is($copy->safe_psql('postgres', "$query ORDER BY 1"), $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir, "$tempdir/new ts");
	return;
}

sub is_refused
{
	my ($name, $command, $words) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_checks_all([ @restore, '-D' => "$tempdir/copy", @$command ], 1, [qr/^\z/], [$words], $name);
	ok(!-e "$tempdir/copy" && !-e "$tempdir/copy.restore" && !-e "$tempdir/new ts", "$name: nothing is left");
	return;
}

command_ok([ @restore, '-D' => "$tempdir/copy", "$tempdir/full", "$tempdir/one", "$tempdir/two" ], 'three are one');
is_good('three', "$tempdir/copy", $data{two});
command_checks_all([ @restore, '-v', '-P', '-D' => "$tempdir/copy", '--work-directory' => "$tempdir/work", '--waldir' => "$tempdir/wal", "$tempdir/full", "$tempdir/one" ],
	0, [qr/^\z/], [qr/combining 2 backups by "[^"]+pg_combinebackup"/], 'two are one');
ok(!-e "$tempdir/work", 'nothing is left of a directory of its own');
is(readlink "$tempdir/copy/pg_wal", "$tempdir/wal", 'where WAL is');
is_good('two', "$tempdir/copy", $data{one});
File::Path::remove_tree("$tempdir/wal");
command_ok([ @restore, '-D' => "$tempdir/copy", "$tempdir/full" ], 'the full one alone');
is_good('full', "$tempdir/copy", $data{full});
# Into a directory that is there, and stays what it is.
mkdir "$tempdir/copy" or die $!;
command_ok([ @restore, '-D' => "$tempdir/copy", "$tempdir/full", "$tempdir/one" ], 'an empty directory');
is_good('empty', "$tempdir/copy", $data{one});

is_refused('an increment alone', ["$tempdir/one"], qr/error: backup at "\Q$tempdir\E\/one" is an incremental backup\npg_parallel_restore: hint: Name the backups that it needs before it, the full one first\.$/m);
is_refused('two full ones', [ "$tempdir/full", "$tempdir/full" ], qr/error: backup at "\Q$tempdir\E\/full" is a full backup, but only the first backup should be a full backup$/m);
is_refused('one left out', [ "$tempdir/full", "$tempdir/two" ], qr/error: backup at "\Q$tempdir\E\/full" starts at LSN [0-9A-F\/]+, but expected [0-9A-F\/]+$/m);
is_refused('another program', [ '--pg-combinebackup' => 'pg_verifybackup', "$tempdir/full", "$tempdir/one" ], qr/error: program "pg_verifybackup" is not pg_combinebackup$/m);
is_refused('no program', [ '--pg-combinebackup' => "$tempdir/none", "$tempdir/full", "$tempdir/one" ], qr/error: could not execute program "\Q$tempdir\E\/none": No such file or directory$/m);

# A program in its place that makes something, and fails, or is interrupted.
my $version = `pg_combinebackup --version`;
chomp $version;
my $script = "$tempdir/combine";
write_file($script, "#!/bin/sh\nif [ \"\$1\" = --version ]; then echo '$version'; exit; fi\n"
	  . "mkdir '$tempdir/copy/base'; echo x >'$tempdir/copy/base/f'; echo x >'$tempdir/new ts/f'\n"
	  . "if [ -e '$tempdir/waits' ]; then touch '$tempdir/has come'; exec sleep 600; fi; exit 3\n", 0755);
is_refused('a program that fails', [ '--pg-combinebackup' => $script, "$tempdir/full", "$tempdir/one" ], qr/error: pg_combinebackup failed: exit status: 3$/m);
{
	write_file("$tempdir/waits", '');
	my ($stdout, $stderr) = ('', '');
	my $run = IPC::Run::start([ @restore, '-D' => "$tempdir/copy", '--pg-combinebackup' => $script, "$tempdir/full", "$tempdir/one" ], '>' => \$stdout, '2>' => \$stderr);
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last if -e "$tempdir/has come";
		select undef, undef, undef, 0.1;
	}
	ok(-e "$tempdir/has come", 'it is combining');
	$run->signal('INT');
	$run->finish;
	is($run->full_result(0) >> 8, 1, 'SIGINT: exit code');
	like($stderr, qr/error: restore was interrupted$/m, 'SIGINT: message');
	ok(!-e "$tempdir/copy" && !-e "$tempdir/copy.restore" && !-e "$tempdir/new ts", 'SIGINT: nothing is left');
}

done_testing();
