# The SQL procedures: the same replies as the replication grammar, rights, and that a
# transfer holds back nothing.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

# Descriptors of a process, by what they lead to.  Catalogs stay open where a session
# has once looked, and the WAL segment that is written to changes by itself.
sub descriptors
{
	my ($pid, $file) = @_;
	my @open = map { readlink($_) // () } glob "/proc/$pid/fd/*";

	return [ sort grep { m{/\Q$file\E\z} || !m{/(?:base|global|pg_wal)/} } @open ];
}

# The session takes statements and transactions as if nothing had been.
sub usable
{
	my ($conn, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @statements = ('SELECT 1', 'BEGIN', 'CREATE TEMP TABLE scratch ON COMMIT DROP AS SELECT 1 AS a',
		'INSERT INTO scratch VALUES (2)', 'SAVEPOINT s', 'ROLLBACK TO s', 'COMMIT', 'BEGIN', 'ROLLBACK');
	my @failed = grep { $_->{error} } map { $conn->query($_) } @statements;

	is(@failed, 0, "$name: the session is usable") or diag(explain(\@failed));
	return;
}

{
	my $patched = !stock_server();
	my $server = $patched ? 'patched' : 'stock';
	my $node = parallel_node($server,
		extension => 0,
		conf => "log_replication_commands = on\narchive_mode = on\narchive_command = 'true'\n");
	my $pgdata = $node->data_dir;
	my $psql = sub { return $node->safe_psql('postgres', $_[0]) };
	note("$server server");

	is($psql->('SHOW pg_parallel_backup.replication_grammar'), $patched ? 'on' : 'off', "$server: what the server says of itself");

	$psql->('CREATE EXTENSION pg_parallel_backup');
	is($psql->("SELECT extversion = default_version FROM pg_extension JOIN pg_available_extensions ON name = extname WHERE extname = 'pg_parallel_backup'"), 't', "$server: the default version");
	is($psql->("SELECT count(*) FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e' WHERE pronamespace = 'parallel_backup'::regnamespace AND prokind = 'p'"), 5, "$server: the four procedures, and that of manifests");
	$psql->(q(
		CREATE ROLE plain LOGIN IN ROLE pg_read_server_files;
		CREATE ROLE other LOGIN REPLICATION;
		CREATE ROLE nobody LOGIN;
		CREATE ROLE caller LOGIN;
		GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO plain, other;
		GRANT ALL ON ALL ROUTINES IN SCHEMA parallel_backup TO caller;
		CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
		CREATE TABLE big AS SELECT repeat('x', 7000) AS a FROM generate_series(1, 3000);
		ALTER TABLE big ALTER a SET STORAGE PLAIN;
		CREATE TABLE large AS SELECT g AS id, repeat(md5(g::text), 30) AS a FROM generate_series(1, 16000) g;
		CHECKPOINT));
	my $big = $psql->("SELECT pg_relation_filepath('large')");
	ok(-s "$pgdata/$big" > 12 << 20, "$server: a file larger than what sockets hold");

	# --- the same replies by both routes
	my $sql = sql_connection($node);
	if ($patched)
	{
		my $rep = connection($node);
		my $start = start_backup($rep, LABEL => "it's a \\ label", PROGRESS => undef);
		my $id = $start->{backup_id};
		my @rows = list_files($rep);
		is_deeply([ list_files($sql, BACKUP_ID => $id) ], \@rows, 'the same list');
		ok(@rows > 500, 'a whole list');
		my @files = (
			'PG_VERSION', 'no such file', [ $big, 8192 ], [ $big, 8192, 16384 ],
			map { $_->{path} } grep { $_->{type} eq 'f' && $_->{path} =~ m{^global/} } @rows);
		my %options = (BACKUP_ID => $id, FILE_CHECKSUM => 'SHA256');
		my $by_grammar = fetch($rep, \@files, %options)->{reply};
		my $by_call = fetch($sql, \@files, %options)->{reply};
		is_deeply($by_call->{frames}, $by_grammar->{frames}, 'the same frames');
		is($by_call->{$_}, $by_grammar->{$_}, "the same $_") for qw(copies copy_format copy_columns copy_done status);
		is($by_grammar->{tag}, 'SEND_FILES_CONTENT', 'tag of the grammar');
		is($by_call->{tag}, 'CALL', 'tag of the procedure');
		my $stop = stop_backup($rep, WAIT => 'false');

		my $other = start_backup($sql, LABEL => "it's a \\ label", PROGRESS => undef);
		my @other_rows = list_files($sql);
		# A coordinator by SQL, a worker by the grammar.
		is(fetch($rep, ['PG_VERSION'], BACKUP_ID => $other->{backup_id})->{files}[0]{data}, server_major() . "\n", 'a worker by the grammar of a backup by SQL');
		my $other_stop = stop_backup($sql, WAIT => 'false');
		for my $pair ([ $start, $other, 'START_BACKUP' ], [ $stop, $other_stop, 'STOP_BACKUP' ])
		{
			my ($left, $right, $name) = @$pair;
			my $shape = sub {
				return [ map { { columns => $_->{columns}, types => $_->{types}, tag => $_->{tag} =~ s/\d+//r } } @{ $_[0]->{reply}{results} } ];
			};
			is_deeply($shape->($right), $shape->($left), "$name: the same columns, types and tags");
		}
		is($other->{$_}, $start->{$_}, "the same $_") for qw(tli protocol system_identifier wal_segment_size block_size data_checksums in_recovery);
		like($other->{labelfile}, qr/^LABEL: it's a \\ label$/m, 'the label');
		is_deeply([ sort map { $_->{path} } @other_rows ], [ sort map { $_->{path} } @rows ], 'the same paths');
		$rep->close;
	}

	# Without the patch the commands are SQL, and none.
	for my $case (
		[ 'true', '0A000', qr/^cannot execute SQL commands in WAL sender for physical replication$/ ],
		[ 'database', '42601', qr/^syntax error at or near "START_BACKUP"$/ ])
	{
		next if $patched;
		my ($replication, $sqlstate, $message) = @$case;
		my $conn = ParallelBackup::Connection->new($node, replication => $replication);
		is_error($conn, 'START_BACKUP', $sqlstate, $message, "$server: the command itself, replication=$replication");
		still_works($conn, "$server: the command itself, replication=$replication: usable");
		$conn->close;
	}

	# Over replication=database too.
	{
		my $mixed = ParallelBackup::Connection->new($node, replication => 'database', calls => 1);
		my $id = start_backup($mixed)->{backup_id};
		is(fetch($sql, ['PG_VERSION'], BACKUP_ID => $id)->{files}[0]{data}, server_major() . "\n", "$server: a worker of a replication=database coordinator");
		is(fetch($mixed, ['PG_VERSION'])->{reply}{tag}, 'CALL', "$server: a transfer over replication=database");
		is(stop_backup($mixed, WAIT => 'false')->{reply}{tag}, 'CALL', "$server: stopped over replication=database");
		$mixed->close;
	}

	# --- a whole backup by a role that has been granted the procedures and nothing else
	{
		my $copy = PostgreSQL::Test::Cluster->new("copy_of_$server");
		my $state = raw_backup($node, $copy->data_dir, workers => 2, connection => { calls => 1, user => 'plain' }, stop => { WAIT => 'false' });
		command_ok([ 'pg_verifybackup', $copy->data_dir ], "$server: pg_verifybackup");
		start_copy($copy);
		is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), $psql->('SELECT count(*), sum(id) FROM t'), "$server: data of the copy");
		$copy->stop;
	}

	# --- what a transfer holds
	my $owner = sql_connection($node, user => 'plain');
	my $id = start_backup($owner)->{backup_id};
	my $worker = sql_connection($node, user => 'plain');
	my $pid = $worker->pid;
	my $holds = "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR xact_start IS NOT NULL)";
	my $locks = "SELECT count(*) FROM pg_locks WHERE pid = $pid";
	my $nothing = sub {
		my ($name) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		is($psql->($holds), 0, "$name: no snapshot and no transaction");
		is($psql->($locks), 0, "$name: no lock");
	};
	# Begins a transfer of the large file and stops reading inside of it.
	my $hold_up = sub {
		my ($conn, @more) = @_;
		$conn->send_query(send_files_call([ @more, $big ], BACKUP_ID => $id));
		$conn->read_until(sub { ($_[0]{frame} // { type => '' })->{type} eq 'd' });
	};
	fetch($worker, [$big], BACKUP_ID => $id);
	usable($worker, "$server, after a first transfer");
	my $before = descriptors($pid, $big);
	is(scalar(grep { /\Q$big\E\z/ } @$before), 0, "$server: the file is not open");

	for my $setting (
		'default_transaction_isolation = DEFAULT',
		"default_transaction_isolation = 'repeatable read'",
		"default_transaction_isolation = 'serializable'",
		"default_transaction_read_only = on")
	{
		query_ok($worker, "SET $setting");
		$hold_up->($worker);
		$nothing->("$server, $setting, while it sends");
		is($psql->("SELECT state FROM pg_stat_activity WHERE pid = $pid"), 'active', "$server, $setting: it is sending");
		is($psql->("SELECT phase FROM pg_stat_progress_basebackup WHERE pid = $pid"), 'streaming database files', "$server, $setting: progress");
		my $reply = $worker->finish;
		is($reply->{tag}, 'CALL', "$server, $setting: it ends");
		$nothing->("$server, $setting, after it");
	}
	query_ok($worker, 'SET default_transaction_read_only = off');
	query_ok($worker, 'RESET default_transaction_isolation');
	is($psql->("SELECT count(*) FROM pg_stat_progress_basebackup WHERE pid = $pid"), 0, "$server: no progress after it");
	usable($worker, "$server, after success");
	is_deeply(descriptors($pid, $big), $before, "$server, after success: the same descriptors");

	# Cancelled.
	$hold_up->($worker);
	$worker->cancel;
	is_report($worker->finish->{error}, '57014', qr/^canceling statement due to user request$/, "$server: cancelled");
	$nothing->("$server, cancelled");
	is_deeply(descriptors($pid, $big), $before, "$server, cancelled: the same descriptors");
	usable($worker, "$server, cancelled");

	# An error before anything is sent, and one in the middle of the copy.
	is_error($worker, send_files_call(['../x'], BACKUP_ID => $id), '42602', qr/^invalid path "\.\.\/x"/, "$server: a bad path");
	is_error($worker, send_files_call([], BACKUP_ID => $id), '42601', qr/^no file was asked for$/, "$server: no file");
	is_error($worker, send_files_call([ [ 'base', undef, 8192 ] ], BACKUP_ID => $id), '42601', qr/^length requires an offset$/, "$server: a length without an offset");
	is_error($worker, 'CALL parallel_backup.send_file_list(no_such_option => true)', '42883', qr/procedure .* does not exist/, "$server: an unknown option");
	is_error($worker, 'CALL parallel_backup.send_file_list()', '55000', qr/./, "$server: no backup here");
	write_file("$pgdata/unreadable", 'x' x 10, 0);
	{
		my $reply = $worker->query(send_files_call([ $big, 'unreadable' ], BACKUP_ID => $id));
		is_report($reply->{error}, '42501', qr/^could not open file "unreadable": Permission denied$/, "$server: an error in mid copy");
		ok(@{ $reply->{frames} } > 2, "$server: an error in mid copy: after frames");
		is($reply->{status}, 'I', "$server: an error in mid copy: idle");
	}
	unlink "$pgdata/unreadable";
	$nothing->("$server, after errors");
	is_deeply(descriptors($pid, $big), $before, "$server, after errors: the same descriptors");
	usable($worker, "$server, after errors");
	is(fetch($worker, ['PG_VERSION'], BACKUP_ID => $id)->{files}[0]{length}, length(server_major()) + 1, "$server, after errors: the backup goes on");

	# A timeout: the session stays, and so does the backup.
	query_ok($worker, "SET statement_timeout = '300ms'");
	{
		my $slow = sql_connection($node, user => 'plain');
		my $slow_id = start_backup($slow, MAX_RATE => 1024)->{backup_id};
		my $reply = $worker->query(send_files_call([$big], BACKUP_ID => $slow_id));
		is_report($reply->{error}, '57014', qr/^canceling statement due to statement timeout$/, "$server: timeout");
		query_ok($worker, 'RESET statement_timeout');
		$nothing->("$server, timeout");
		usable($worker, "$server, timeout");
		is(fetch($worker, ['PG_VERSION'], BACKUP_ID => $slow_id)->{files}[0]{length}, length(server_major()) + 1, "$server, timeout: the backup goes on");
		$slow->close;
	}

	# --- refused
	my $estimate = 'CALL parallel_backup.send_file_list(estimate => true)';
	my $nested = qr/^SEND_FILE_LIST .*(?:transaction block|procedure|function)/;
	$psql->(q(
		CREATE PROCEDURE inner_call() LANGUAGE plpgsql AS 'BEGIN CALL parallel_backup.send_file_list(estimate => true); END';
		CREATE PROCEDURE definer_call() LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN CALL parallel_backup.send_file_list(estimate => true); END';
		CREATE PROCEDURE sql_call() LANGUAGE sql AS 'CALL parallel_backup.send_file_list(estimate => true)';
		CREATE FUNCTION inner_function() RETURNS int LANGUAGE plpgsql AS 'BEGIN CALL parallel_backup.send_file_list(estimate => true); RETURN 1; END';
		CREATE FUNCTION disguised(text, boolean) RETURNS void LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_send_file_list_wrapper';
		CREATE PROCEDURE calls_disguised() LANGUAGE plpgsql AS 'BEGIN PERFORM disguised(NULL, true); END';
		CREATE PROCEDURE definer_list(text, boolean) LANGUAGE c SECURITY DEFINER AS '$libdir/pg_parallel_backup', 'parallel_backup_send_file_list_wrapper';
		CREATE PROCEDURE settings_list(text, boolean) LANGUAGE c SET work_mem = '1MB' AS '$libdir/pg_parallel_backup', 'parallel_backup_send_file_list_wrapper';
	));
	for my $refused (
		[ "DO 'BEGIN $estimate; END'", 'DO block' ],
		[ 'CALL inner_call()', 'a procedure of PL/pgSQL' ],
		[ 'CALL definer_call()', 'a procedure that is SECURITY DEFINER' ],
		[ 'CALL sql_call()', 'a procedure of SQL' ],
		[ 'SELECT inner_function()', 'a function' ],
		[ 'SELECT disguised(NULL, true)', 'its own function, as another' ],
		[ 'CALL calls_disguised()', 'its own function, below another procedure' ],
		[ 'CALL definer_list(NULL, true)', 'SECURITY DEFINER itself' ],
		[ 'CALL settings_list(NULL, true)', 'settings of its own' ],
		[ "$estimate; SELECT 1", 'several statements' ],
		[ "SELECT 1; $estimate", 'several statements, the last' ])
	{
		my ($statement, $name) = @$refused;
		my $reply = is_error($sql, $statement, '25001', qr/./, "$server: refused, $name");
		is(scalar(grep { $_->{columns}[0] eq 'filename' } @{ $reply->{results} }), 0, "$server: refused, $name: no list");
		is($reply->{status}, 'I', "$server: refused, $name: idle");
	}
	query_ok($sql, 'BEGIN');
	is_error($sql, $estimate, '25001', qr/cannot run inside a transaction block$/, "$server: refused, transaction block");
	query_ok($sql, 'ROLLBACK');
	usable($sql, "$server, after refusals");
	if (server_major() >= 16)
	{
		my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$estimate \\bind \\g");
		like($stderr, qr/0A000/, "$server: refused, extended protocol");
		is($stdout, '', "$server: refused, extended protocol: nothing");
	}
	my $alone = query_ok($sql, $estimate);
	ok(@{ $alone->{results}[0]{rows} } > 500, "$server: a list alone");

	# What only has the name gets nothing.
	$psql->(q(
		CREATE SCHEMA elsewhere;
		GRANT USAGE ON SCHEMA elsewhere TO PUBLIC;
		CREATE PROCEDURE elsewhere.send_file_list(estimate boolean) LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''elsewhere''; END';
	));
	query_ok($sql, 'BEGIN');
	query_ok($sql, 'SET LOCAL search_path = elsewhere');
	my $elsewhere = query_ok($sql, 'CALL send_file_list(estimate => true)');
	is($elsewhere->{notices}[0]{message}, 'elsewhere', "$server: a procedure of the same name");
	is($elsewhere->{status}, 'T', "$server: a procedure of the same name: its transaction goes on");
	query_ok($sql, 'COMMIT');

	# --- rights
	my $nobody = sql_connection($node, user => 'nobody');
	is_error($nobody, "CALL parallel_backup.$_", '42501', qr/^permission denied for procedure/, "$server: not for everybody: $_")
	  for ('start_backup()', 'send_file_list(estimate => true)', "send_files_content(ARRAY['PG_VERSION'])", 'stop_backup()');
	is_error($nobody, q(CREATE FUNCTION pg_temp.f(text, boolean) RETURNS void LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_send_file_list_wrapper'),
		'42501', qr/^permission denied for language c$/, "$server: nobody makes a way of his own");
	my $other = sql_connection($node, user => 'other');
	is_error($other, send_files_call(['PG_VERSION'], BACKUP_ID => $id), '42501', qr/./, "$server: another role's backup");
	is(fetch($sql, ['PG_VERSION'], BACKUP_ID => $id)->{reply}{tag}, 'CALL', "$server: a superuser may");
	$nobody->close;
	# EXECUTE alone is given away by the dozen.
	my $caller = sql_connection($node, user => 'caller');
	is_error($caller, "CALL parallel_backup.$_", '42501', qr/^permission denied to call [A-Z_]+$/, "$server: EXECUTE alone does not suffice: $_")
	  for 'start_backup()', 'send_file_list(estimate => true)', q(send_files_content(ARRAY['PG_VERSION'])), 'stop_backup()';
	still_works($caller, "$server: the session goes on");
	$caller->close;
	$other->close;

	# --- the log
	my $log = slurp_file($node->logfile);
	like($log, qr/LOG:  received parallel backup command: START_BACKUP$/m, "$server: START_BACKUP in the log");
	like($log, qr/LOG:  received parallel backup command: SEND_FILES_CONTENT, backup $id, 2 files$/m, "$server: SEND_FILES_CONTENT in the log");

	# --- the coordinator is killed
	$hold_up->($worker, 'PG_VERSION');
	$psql->('SELECT pg_terminate_backend(' . $owner->pid . ')');
	ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM parallel_backup.backups WHERE backup_id = '$id' AND state = 'running'"), "$server: coordinator killed: the backup is gone");
	is_report($worker->finish->{error}, '57014', qr/abort/, "$server: coordinator killed: the transfer");
	$nothing->("$server, coordinator killed");
	is_deeply(descriptors($pid, $big), $before, "$server, coordinator killed: the same descriptors");
	usable($worker, "$server, coordinator killed");
	is_error($worker, send_files_call(['PG_VERSION'], BACKUP_ID => $id), '42704', qr/does not exist/, "$server: coordinator killed: afterwards");
	start_backup($worker);
	is(stop_backup($worker, WAIT => 'false')->{reply}{tag}, 'CALL', "$server: a next backup");
	$worker->close;
	$sql->close;

	# --- a coordinator whose commands fail
	{
		my $conn = sql_connection($node);
		query_ok($conn, 'SELECT pg_backup_start(\'own\', true)');
		is_error($conn, "CALL parallel_backup.start_backup(checkpoint => 'fast')", '55000', qr/already/, "$server: in backup mode by pg_backup_start");
		query_ok($conn, 'SELECT pg_backup_stop(false)');
		is_error($conn, "CALL parallel_backup.start_backup(max_rate => 1)", '22003', qr/^1 is outside the valid range for parameter "MAX_RATE"/, "$server: an option out of range");
		is_error($conn, 'CALL parallel_backup.stop_backup()', '55000', qr/./, "$server: nothing to stop");
		usable($conn, "$server, nothing to stop");

		# Cancelled while it waits for the checkpoint, it leaves nothing.
		$psql->('CREATE TABLE dirty AS SELECT generate_series(1, 200000) AS id');
		query_ok($conn, "SET statement_timeout = '200ms'");
		is_error($conn, "CALL parallel_backup.start_backup(checkpoint => 'spread')", '57014', qr/^canceling statement due to statement timeout$/, "$server: start cancelled");
		query_ok($conn, 'RESET statement_timeout');
		usable($conn, "$server, start cancelled");
		is($psql->('SELECT count(*) FROM parallel_backup.backups WHERE pid = ' . $conn->pid), 0, "$server: start cancelled: no backup");

		my $running = start_backup($conn)->{backup_id};
		is_error($conn, "CALL parallel_backup.start_backup()", '55000', qr/./, "$server: a second start");
		is_error($conn, "SELECT pg_backup_stop()", '55000', qr/./, "$server: pg_backup_stop");
		usable($conn, "$server, a backup runs");
		query_ok($conn, 'DISCARD ALL');
		is($psql->("SELECT state FROM parallel_backup.backups WHERE backup_id = '$running'"), 'running', "$server: the backup goes on");
		is($psql->('SELECT count(*) FROM pg_stat_activity WHERE pid = ' . $conn->pid . ' AND (backend_xmin IS NOT NULL OR xact_start IS NOT NULL)'), 0, "$server: between commands the coordinator holds nothing");

		# Cancelled while it waits for the archive, it is stopped and says so again.
		$psql->("ALTER SYSTEM SET archive_command = 'false'");
		$psql->('SELECT pg_reload_conf()');
		# Who is connected later than the archiver was told sees it.
		ok($node->poll_query_until('postgres', q(SELECT current_setting('archive_command') = 'false')), "$server: the archive fails");
		query_ok($conn, "SET statement_timeout = '1s'");
		my $first = $conn->query('CALL parallel_backup.stop_backup()');
		is_report($first->{error}, '57014', qr/^canceling statement due to statement timeout$/, "$server: stop cancelled");
		query_ok($conn, 'RESET statement_timeout');
		is($psql->("SELECT state FROM parallel_backup.backups WHERE backup_id = '$running'"), 'stopped', "$server: stop cancelled: it is stopped");
		my $again = stop_backup($conn, WAIT => 'false');
		is($again->{reply}{tag}, 'CALL', "$server: stopped again");
		usable($conn, "$server, stopped again");
		is(fetch($conn, [ map { "pg_wal/$_" } @{ $again->{wal} } ], BACKUP_ID => $running)->{reply}{tag}, 'CALL', "$server: WAL after it");
		$conn->close;
	}

	# --- other statements' errors come out as they went in
	{
		my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nCREATE TABLE bad (a int, b no_such_type);");
		like($stderr, qr/42704.*\nLINE 1: CREATE TABLE bad \(a int, b no_such_type\);\n {30,}\^/, "$server: an error's position");
		($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nALTER TABLE t ADD CONSTRAINT small CHECK (id < 10);");
		like($stderr, qr/TABLE NAME:  t\n.*CONSTRAINT NAME:  small/s, "$server: an error's table and constraint");
	}

	# --- beside another library on the same hook
	my $libdir = $node->config_data('--pkglibdir');
  SKIP:
	{
		skip 'no pg_stat_statements', 1 unless -e "$libdir/pg_stat_statements.so";
		for my $order ('pg_stat_statements, pg_parallel_backup', 'pg_parallel_backup, pg_stat_statements')
		{
			$node->append_conf('postgresql.conf', "shared_preload_libraries = '$order'\npg_stat_statements.track = all");
			$node->restart;
			$psql->('CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT pg_stat_statements_reset()');
			my $conn = sql_connection($node);
			start_backup($conn);
			is(fetch($conn, [ 'PG_VERSION', $big ])->{reply}{tag}, 'CALL', "$server, $order: a transfer");
			is(stop_backup($conn, WAIT => 'false')->{reply}{tag}, 'CALL', "$server, $order: a backup");
			usable($conn, "$server, $order");
			$conn->close;
			cmp_ok($psql->("SELECT count(*) FROM pg_stat_statements WHERE query LIKE 'CALL parallel_backup.%'"), '>=', 3, "$server, $order: counted");
		}
	}
	$node->stop;
}

done_testing();
