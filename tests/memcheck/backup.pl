# A backup by each way, in each shape: what runs under valgrind. Few data; what matters is each line of code once, not
# how often. tools/check-memcheck.sh looks at what valgrind has to say.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $summaries = server_major() >= 17;
my $node = parallel_node('main', extension => 1, conf => $summaries ? "summarize_wal = on\n" : '');
mkdir "$tempdir/ts" or die "$tempdir/ts: $!";
$node->safe_psql('postgres', "CREATE TABLESPACE ts LOCATION '$tempdir/ts'");
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS filler FROM generate_series(1, 30000) g;
	CREATE TABLE u TABLESPACE ts AS SELECT * FROM t LIMIT 1000;
	CREATE UNLOGGED TABLE unlogged AS SELECT 1;
	CHECKPOINT;));

my $made = 0;

# A backup, verified; and its copy started where that is asked for.
sub backup
{
	my ($name, $options, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $target = "$tempdir/b" . ++$made;

	$node->command_ok(
		[
			'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-j' => 2, '-D' => $target,
			($params{archive} ? () : ('-T' => "$tempdir/ts=$target.ts")), @$options
		],
		$name);
	return $target if $params{archive};
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], "$name: verified");
	return $target;
}

my $full = backup('plain, verified by the client', ['--verify=client']);
backup('verified by the server, with SHA checksums', [ '--verify=server', '--manifest-checksums=SHA256' ]);
backup('server-zstd', [ '-Z', 'server-zstd:level=1', '--verify=server' ]);
backup('server-zstd with a long window', [ '-Z', 'server-zstd:level=3,long' ]);
backup('server-lz4, at a rate', [ '-Z', 'server-lz4', '--max-rate=64M' ]);
backup('WAL by files', [ '-X', 'fetch', '--lease=0' ]);
backup('with a lease', ['--lease=60']);
my $tar = backup('archives of the server\'s streams', [ '-F', 't', '-Z', 'server-zstd' ], archive => 1);
my $volumes = backup('volumes', [ '-F', 't', '--volumes=32MB', '-Z', 'client-lz4' ], archive => 1);

for my $from ([ archives => $tar ], [ volumes => $volumes ])
{
	my ($what, $place) = @$from;
	$node->command_ok(
		[
			'pg_parallel_restore', '--no-sync', '-D' => "$place.copy", '-T' => "$tempdir/ts=$place.copy.ts", $place
		],
		"restored: $what");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', "$place.copy" ], "restored: $what: verified");
}

if ($summaries)
{
	$node->safe_psql('postgres', q(UPDATE t SET filler = 'y' WHERE id % 1000 = 0; CHECKPOINT;));
	my $increment = backup('incremental', [ '--incremental' => "$full/backup_manifest", '--verify=server' ]);
	backup('incremental, compressed', [ '--incremental' => "$full/backup_manifest", '-Z', 'server-zstd' ]);
	$node->command_ok([ 'pg_combinebackup', '-T' => "$increment.ts=$increment.both.ts", '-o' => "$increment.both", $full, $increment ],
		'combined');
}

# What ends early: a backup that is cancelled while a file of it is wanted that there is not.
{
	my $coordinator = connection($node);
	my $id = start_backup($coordinator, LABEL => 'early')->{backup_id};
	is_error($coordinator, send_files_sql(['base/../x'], BACKUP_ID => $id), '42602', qr{^invalid path "base/../x": }, 'a path that is none');
	is($node->safe_psql('postgres', "SELECT parallel_backup.cancel_backup('$id')"), 't', 'cancelled');
	$coordinator->close;
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), 'and gone');
}

my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->{_name} = 'copy';
system_or_bail('cp', '-a', $full, $copy->data_dir);
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), '30000|450015000', 'the copy has its data');
$copy->stop;
$node->stop;

done_testing();
