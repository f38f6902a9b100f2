# The patched server without the library: the four commands fail with words that
# help, and everything else is as before, down to the numbers that other
# extensions are compiled with.

use strict;
use warnings FATAL => 'all';

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir;
my $node = parallel_node('bare', preload => '', conf => server_major() >= 17 ? "summarize_wal = on\n" : '');
$node->safe_psql('postgres', 'CREATE TABLE t AS SELECT generate_series(1, 1000) AS id');

# The commands without the library.
for my $replication (qw(true database))
{
	my $conn = connection($node, replication => $replication);

	for my $command (
		'START_BACKUP',
		"START_BACKUP (LABEL 'x', CHECKPOINT fast)",
		'SEND_FILE_LIST',
		"SEND_FILE_LIST (BACKUP_ID 'x')",
		"SEND_FILES_CONTENT ('PG_VERSION')",
		"SEND_FILES_CONTENT ('a' (OFFSET '0', LENGTH '8192'), 'b') WITH (BACKUP_ID 'x')",
		"SEND_FILES_CONTENT ('a') with (\"backup_id\" 'x')",
		'STOP_BACKUP',
		'STOP_BACKUP (WAIT false);')
	{
		my ($name) = $command =~ /^(\w+)/;
		is_error(
			$conn, $command, '55000',
			qr/^\Q$name\E needs the library pg_parallel_backup$/,
			"replication=$replication $command",
			hint => qr/^Add "pg_parallel_backup" to "shared_preload_libraries" and restart the server\.$/);
	}
	still_works($conn, "replication=$replication: still usable");
	$conn->close;
}

# What the grammar does not allow.
{
	my $conn = connection($node);
	for my $command (
		'START_BACKUP ()',
		'START_BACKUP LABEL',
		'SEND_FILE_LIST (BACKUP_ID)(x)',
		'SEND_FILES_CONTENT',
		'SEND_FILES_CONTENT ()',
		'SEND_FILES_CONTENT (PG_VERSION)',
		"SEND_FILES_CONTENT ('a' 'b')",
		"SEND_FILES_CONTENT ('a',)",
		"SEND_FILES_CONTENT ('a') (BACKUP_ID 'x')",
		"SEND_FILES_CONTENT ('a') WITHOUT (BACKUP_ID 'x')",
		"SEND_FILES_CONTENT ('a') WITH",
		"SEND_FILES_CONTENT ('a') \"with\" (BACKUP_ID 'x')",
		'STOP_BACKUP; STOP_BACKUP')
	{
		is_error($conn, $command, '42601', qr/syntax error/, $command);
	}
	$conn->close;
}

# Keywords as option names, and their neighbours as identifiers.
{
	my $conn = connection($node);
	for my $word (qw(start_backup send_file_list send_files_content stop_backup
		START_BACKUP offset length with))
	{
		my $lower = lc $word;
		is_error(
			$conn, "BASE_BACKUP ($word)", '42601',
			qr/unrecognized base backup option: "$lower"/,
			"BASE_BACKUP ($word)");
		is_error(
			$conn, "BASE_BACKUP ($word 'x')", '42601',
			qr/unrecognized base backup option: "$lower"/,
			"BASE_BACKUP ($word 'x')");
	}
	for my $slot (qw("start_backup" "stop_backup" offset length with files))
	{
		query_ok($conn, "CREATE_REPLICATION_SLOT $slot PHYSICAL");
		my $reply = query_ok($conn, "READ_REPLICATION_SLOT $slot");
		is($reply->{results}[0]{rows}[0][0], 'physical', "slot $slot");
		query_ok($conn, "DROP_REPLICATION_SLOT $slot");
	}
	$conn->close;
}

# The other commands, and SQL.
{
	my $conn = connection($node);
	my $reply = query_ok($conn, 'IDENTIFY_SYSTEM');
	is($reply->{results}[0]{tag}, 'IDENTIFY_SYSTEM', 'IDENTIFY_SYSTEM');
	is_deeply(
		$reply->{results}[0]{columns},
		[qw(systemid timeline xlogpos dbname)],
		'IDENTIFY_SYSTEM: columns');
	$reply = query_ok($conn, 'SHOW wal_segment_size');
	is($reply->{results}[0]{rows}[0][0], '1MB', 'SHOW');
	is_error($conn, 'SELECT 1', '0A000',
		qr/cannot execute SQL commands in WAL sender for physical replication/,
		'SQL on a physical connection');
	is_error($conn, 'WITH x AS (SELECT 1) SELECT * FROM x', '0A000',
		qr/cannot execute SQL commands in WAL sender for physical replication/,
		'WITH on a physical connection');

	# UPLOAD_MANIFEST asks for a copy; an invalid one is refused as before.
	if (server_major() >= 17)
	{
		$conn->send_query('UPLOAD_MANIFEST');
		$conn->read_until(sub { $_[0]{type} eq 'G' });
		is($conn->reply->{copy_in}, 1, 'UPLOAD_MANIFEST: copy in');
		$conn->send_message('d', "not a manifest\n");
		$conn->send_message('c', '');
		$reply = $conn->finish;
		like($reply->{error}{message}, qr/manifest/, 'UPLOAD_MANIFEST: refusal');
	}
	still_works($conn, 'still usable');

	# The extended protocol stays closed.
	$conn->send_message('P', "\0IDENTIFY_SYSTEM\0" . pack('n', 0));
	$conn->send_message('S', '');
	$reply = $conn->finish;
	is_report($reply->{error}, '08P01',
		qr/extended query protocol not supported in a replication connection/,
		'extended protocol');
	$conn->close;
}
{
	my $conn = connection($node, replication => 'database');
	my $reply = query_ok($conn, 'WITH x AS (SELECT 1 AS a) SELECT * FROM x');
	is_deeply($reply->{results}[0]{rows}, [ ['1'] ], 'SQL that begins with WITH');
	$reply = query_ok($conn, 'SELECT 1 AS start_backup; SELECT 2 AS "offset"');
	is_deeply([ map { $_->{columns}[0] } @{ $reply->{results} } ],
		[qw(start_backup offset)], 'SQL that holds the words');
	query_ok($conn, 'CREATE TEMP TABLE stop_backup (send_file_list int, length int)');
	$reply = query_ok($conn, 'SELECT send_file_list, length FROM stop_backup');
	is_deeply($reply->{results}[0]{columns}, [qw(send_file_list length)],
		'the words as SQL identifiers');
	query_ok($conn, 'BEGIN');
	$reply = is_error($conn, 'START_BACKUP', '25001',
		qr/^START_BACKUP cannot run inside a transaction block$/,
		'in a transaction block');
	is($reply->{status}, 'E', 'the transaction has failed');
	query_ok($conn, 'ROLLBACK');
	$conn->close;
}

# A library of the stock server.
{
	my ($prefix) = run_command([ 'pg_config', '--prefix' ]);
	my ($cc) = run_command([ 'pg_config', '--cc' ]);
	my $include = $ENV{STOCK_INCLUDE} // "$prefix/stock-include";
	my $source = dirname(__FILE__) . '/../modules/stock_abi/stock_abi.c';
	my $library = "$tempdir/stock_abi.so";

	ok(-f "$include/postgres.h", "headers of the stock server are in $include")
	  or BAIL_OUT('set STOCK_INCLUDE to the server headers of the stock build');
	ok(!-f "$include/replication/parallel_backup.h", 'and they are not the patched ones');

	# Numbered one by one from 16; before, an enumeration that only begins with one.
	my $tags = -f "$include/nodes/nodetags.h"
	  ? slurp_file("$include/nodes/nodetags.h")
	  : slurp_file("$include/nodes/nodes.h") =~ s/.*?^typedef enum NodeTag\n//msr =~ s/^\} NodeTag;.*//msr;
	open my $out, '>', "$tempdir/stock_nodetags.h" or die $!;
	my ($ntags, $next) = (0, 0);
	while ($tags =~ /^\s*T_(\w+)(?: = (\d+))?,?\s*(?:\/\*.*)?$/mg)
	{
		$next = $2 if defined $2;
		print $out qq({$next, "$1"},\n) if $1 ne 'Invalid';
		$next++;
		$ntags++;
	}
	close $out;
	cmp_ok($ntags, '>', 400, 'tags read from the stock headers');

	command_ok(
		[
			split(' ', $ENV{CC} // $cc), '-std=gnu11', '-O1', '-fPIC', '-shared', '-D_GNU_SOURCE',
			"-I$include", "-I$tempdir", '-o', $library, $source
		],
		'compiled with the stock headers');

	$node->safe_psql('postgres', qq(
		CREATE FUNCTION stock_abi_tags() RETURNS int AS '$library' LANGUAGE C;
		CREATE FUNCTION stock_abi_parse(text) RETURNS int AS '$library' LANGUAGE C STRICT;
		CREATE FUNCTION stock_abi_hooks() RETURNS text AS '$library' LANGUAGE C;
		CREATE FUNCTION stock_abi_window() RETURNS bigint AS '$library' LANGUAGE C WINDOW;));
	cmp_ok($node->safe_psql('postgres', 'SELECT stock_abi_tags()'),
		'>=', 18, 'nodes made by the server have the stock tags');
	# New in 16.
	my $json = server_major() >= 16 ? q(json_object('a': 1)) : '1';
	for my $sql (
		'SELECT a + 1, count(*) FILTER (WHERE b), sum(c) OVER w FROM t JOIN u USING (id), LATERAL f(x) WINDOW w AS (PARTITION BY d ORDER BY e) LIMIT 3',
		'WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT CASE WHEN n IS NULL THEN ARRAY[1] ELSE (x).y[1:2] END FROM r FOR UPDATE',
		'INSERT INTO t (a) VALUES ($1), (DEFAULT) ON CONFLICT (a) DO UPDATE SET b = 1 RETURNING *',
		'MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (1)',
		qq(SELECT $json, xmlelement(name x), t::int COLLATE "C", GREATEST(1, 2), CURRENT_DATE FROM t TABLESAMPLE bernoulli (1)))
	{
		cmp_ok($node->safe_psql('postgres', "SELECT stock_abi_parse(\$stock\$$sql\$stock\$)"),
			'>', 5, 'parse tree: ' . substr($sql, 0, 40));
	}
	is($node->safe_psql('postgres', q(
		LOAD ') . $library . q(';
		CREATE TABLE seen (id int);
		SELECT sum(n) FROM (SELECT stock_abi_window() OVER () AS n FROM generate_series(1, 4)) s;
		SELECT stock_abi_window() OVER () FROM generate_series(1, 1);
		SELECT stock_abi_hooks();)),
		"10\n1\n1 1", 'window function and hooks');

	# As a preloaded library too.
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$library'");
	$node->restart;
	cmp_ok($node->safe_psql('postgres', 'SELECT stock_abi_tags()'),
		'>=', 18, 'preloaded');
	my $conn = connection($node, replication => 'database');
	is_error($conn, 'START_BACKUP', '55000', qr/needs the library/,
		'the commands beside another library');
	$conn->close;
	$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
	$node->restart;
}

# The library outside of shared_preload_libraries.
{
	my ($ret, $stdout, $stderr) =
	  $node->psql('postgres', "\\set VERBOSITY verbose\nLOAD 'pg_parallel_backup'");
	isnt($ret, 0, 'LOAD fails');
	like($stderr, qr/ERROR:  55000: .*pg_parallel_backup.*shared_preload_libraries/s,
		'LOAD: code and words');
	my $conn = connection($node);
	is_error($conn, 'START_BACKUP', '55000', qr/needs the library/, 'after LOAD');
	still_works($conn, 'the server is well');
	$conn->close;
}

# BASE_BACKUP, whole and, where there is such a thing, incremental (UPLOAD_MANIFEST), and the
# copy started.
if (server_major() < 17)
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	command_ok(
		[
			'pg_basebackup', '--no-sync', '--checkpoint' => 'fast',
			'--dbname' => $node->connstr('postgres'), '--pgdata' => $copy->data_dir
		],
		'pg_basebackup');
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), '1000|500500', 'data of the copy');
	$copy->stop;
}
else
{
	my $full = "$tempdir/full";
	my $incremental = "$tempdir/incremental";
	my @pg_basebackup = (
		'pg_basebackup', '--no-sync', '--checkpoint' => 'fast',
		'--dbname' => $node->connstr('postgres'));
	command_ok([ @pg_basebackup, '--pgdata' => $full ], 'pg_basebackup');
	$node->safe_psql('postgres', 'INSERT INTO t SELECT generate_series(1001, 1500)');
	command_ok(
		[
			@pg_basebackup, '--pgdata' => $incremental,
			'--incremental' => "$full/backup_manifest"
		],
		'pg_basebackup --incremental');
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	command_ok(
		[
			'pg_combinebackup', '--no-sync', '--output' => $copy->data_dir,
			$full, $incremental
		],
		'pg_combinebackup');
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'),
		'1500|1125750', 'data of the copy');
	$copy->stop;
}

done_testing();
