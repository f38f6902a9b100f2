# Every refusal: code and words.  After each one the connection is usable and the
# backup goes on.

use strict;
use warnings FATAL => 'all';

use POSIX qw(mkfifo);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', conf => "pg_parallel_backup.max_backups = 2\n");
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 1000) AS id;
	CREATE ROLE other LOGIN REPLICATION;
	CREATE ROLE nobody LOGIN;));
may_back_up($node, 'other');
my $dbdir = 'base/' . $node->safe_psql('postgres',
	"SELECT oid FROM pg_database WHERE datname = 'postgres'");
my $relpath = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t')");
my $no_id = '0123456789abcdef' x 2;

# No backup yet.
{
	my $conn = connection($node);

	is_error($conn, 'SEND_FILE_LIST', '55000',
		qr/^no parallel backup is running in this session$/, 'list before start');
	is_error($conn, "SEND_FILES_CONTENT ('PG_VERSION')", '55000',
		qr/^no parallel backup is running in this session$/, 'files before start');
	is_error($conn, 'STOP_BACKUP', '55000',
		qr/^no parallel backup is running in this session$/, 'stop before start');
	for my $id ($no_id, 'x', '', uc($no_id), "${no_id}'x", '%s', "\xc3\xa9")
	{
		my $quoted = quote_literal($id);
		is_error($conn, "SEND_FILE_LIST (BACKUP_ID $quoted)", '42704',
			qr/^(?:parallel )?backup ".*" does not exist$/, "list of unknown backup \"$id\"");
		is_error($conn, "SEND_FILES_CONTENT ('PG_VERSION') WITH (BACKUP_ID $quoted)", '42704',
			qr/^(?:parallel )?backup ".*" does not exist$/, "files of unknown backup \"$id\"");
	}
	is_error($conn, "STOP_BACKUP (BACKUP_ID '$no_id')", '42704',
		qr/^parallel backup "$no_id" does not exist$/, 'stop of an unknown backup');
	$conn->close;
}

# Options.
{
	my $conn = connection($node);
	my $files = "SEND_FILES_CONTENT ('PG_VERSION') WITH";

	# What a call cannot say: options of a file that are none of its own.
	my @grammar_alone = stock_server() ? () : (
		[ "SEND_FILES_CONTENT ('PG_VERSION' (FOO '1'))", '42601', qr/^unrecognized SEND_FILES_CONTENT option: "foo"$/ ],
		[ "SEND_FILES_CONTENT ('PG_VERSION' (OFFSET '0', OFFSET '0'))", '42601', qr/^duplicate option "offset"$/ ]);
	# Names and types of arguments are PostgreSQL's affair where the command is a call.
	my $unknown = sub { return ('42883', qr/^procedure parallel_backup\.\Q$_[0]\E does not exist$/) };
	my $repeated = sub { return ('42601', qr/^argument name "$_[0]" used more than once$/) };
	for my $case (
		# Unknown and repeated.
		[ 'START_BACKUP (FOO)', '42601', qr/^unrecognized START_BACKUP option: "foo"$/, $unknown->('start_backup(foo => boolean)') ],
		[ 'START_BACKUP (ESTIMATE 1)', '42601', qr/^unrecognized START_BACKUP option: "estimate"$/, $unknown->('start_backup(estimate => integer)') ],
		[ 'START_BACKUP (WAL)', '42601', qr/^unrecognized START_BACKUP option: "wal"$/, $unknown->('start_backup(wal => boolean)') ],
		[ 'START_BACKUP (start_backup)', '42601', qr/^unrecognized START_BACKUP option: "start_backup"$/, $unknown->('start_backup(start_backup => boolean)') ],
		[ "START_BACKUP (LABEL 'a', LABEL 'b')", '42601', qr/^duplicate option "label"$/, $repeated->('label') ],
		[ "START_BACKUP (LABEL 'a', label 'a')", '42601', qr/^duplicate option "label"$/, $repeated->('label') ],
		[ 'START_BACKUP (MAX_RATE 32, CHECKPOINT fast, MAX_RATE 32)', '42601', qr/^duplicate option "max_rate"$/, $repeated->('max_rate') ],
		[ 'SEND_FILE_LIST (FOO)', '42601', qr/^unrecognized SEND_FILE_LIST option: "foo"$/, $unknown->('send_file_list(foo => boolean)') ],
		[ 'SEND_FILE_LIST (ESTIMATE, ESTIMATE)', '42601', qr/^duplicate option "estimate"$/, $repeated->('estimate') ],
		[ 'SEND_FILE_LIST (TOTALS)', '42601', qr/^totals requires estimate$/ ],
		[ 'SEND_FILE_LIST (TOTALS, ESTIMATE false)', '42601', qr/^totals requires estimate$/ ],
		[ "$files (FOO 'x')", '42601', qr/^unrecognized SEND_FILES_CONTENT option: "foo"$/, $unknown->('send_files_content(files => text[], foo => unknown)') ],
		[ "$files (BACKUP_ID '$no_id', BACKUP_ID '$no_id')", '42601', qr/^duplicate option "backup_id"$/, $repeated->('backup_id') ],
		@grammar_alone,
		[ 'STOP_BACKUP (FOO)', '42601', qr/^unrecognized STOP_BACKUP option: "foo"$/, $unknown->('stop_backup(foo => boolean)') ],
		[ 'STOP_BACKUP (WAIT false, WAIT false)', '42601', qr/^duplicate option "wait"$/, $repeated->('wait') ],
		# Out of range.
		[ 'START_BACKUP (MAX_RATE 31)', '22003', qr/^31 is outside the valid range for parameter "MAX_RATE" \(32 \.\. 1048576\)$/ ],
		[ 'START_BACKUP (MAX_RATE 0)', '22003', qr/^0 is outside the valid range for parameter "MAX_RATE"/ ],
		[ 'START_BACKUP (MAX_RATE 1048577)', '22003', qr/^1048577 is outside the valid range for parameter "MAX_RATE"/ ],
		[ "START_BACKUP (MAX_RATE '-1')", '22003', qr/^-1 is outside the valid range for parameter "MAX_RATE"/ ],
		[ "START_BACKUP (CHECKPOINT 'slow')", '42601', qr/^unrecognized checkpoint type: "slow"$/ ],
		[ "START_BACKUP (LABEL '" . ('x' x 1025) . "')", '22023', qr/^backup label too long \(max 1024 bytes\)$/ ],
		[ "$files (FILE_CHECKSUM 'MD5')", '42601', qr/^unrecognized checksum algorithm: "MD5"$/ ],
		[ "$files (COMPRESSION 'gzip')", '42601', qr/^unrecognized compression algorithm: "gzip"$/ ],
		# Of the wrong kind.
		[ "START_BACKUP (PROGRESS 'maybe')", '42601', qr/^progress requires a Boolean value$/, '22P02', qr/^invalid input syntax for type boolean: "maybe"$/ ],
		[ "START_BACKUP (MAX_RATE 'x')", '42601', qr/^max_rate requires an integer value$/, '22P02', qr/^invalid input syntax for type bigint: "x"$/ ],
		[ "$files (VERIFY_CHECKSUMS 2)", '42601', qr/^verify_checksums requires a Boolean value$/, $unknown->('send_files_content(files => text[], verify_checksums => integer)') ],
		[ 'START_BACKUP (LABEL)', '42601', qr/^label requires a parameter$/, $unknown->('start_backup(label => boolean)') ],
		# Compression that there is not.
		[ "$files (COMPRESSION lz4, COMPRESSION_LEVEL '-1')", '22023', qr/^invalid compression specification: compression algorithm "lz4" expects a compression level between 1 and 12 \(default at 0\)$/ ],
		[ "$files (COMPRESSION 'zstd', COMPRESSION_LEVEL 23)", '22023', qr/^invalid compression specification: compression algorithm "zstd" expects a compression level between -131072 and 22 \(default at 3\)$/ ],
		[ "$files (COMPRESSION 'zstd', COMPRESSION_LEVEL '-131073')", '22023', qr/^invalid compression specification: compression algorithm "zstd" expects/ ],
		[ "$files (COMPRESSION 'none', COMPRESSION_LEVEL 1)", '42601', qr/^invalid compression specification: compression algorithm "none" does not accept a compression level$/ ],
		[ "$files (COMPRESSION_LEVEL 3)", '42601', qr/^compression level cannot be specified unless compression is enabled$/ ],
		[ "$files (COMPRESSION_DETAIL 'long')", '42601', qr/^compression detail cannot be specified unless compression is enabled$/ ],
		[ "$files (COMPRESSION zstd, COMPRESSION_DETAIL 'thunk')", '42601', qr/^invalid compression specification: unrecognized compression option: "thunk"$/ ],
		[ "$files (COMPRESSION zstd, COMPRESSION_DETAIL '')", '42601', qr/^invalid compression specification: found empty string where a compression option was expected$/ ],
		[ "$files (COMPRESSION lz4, COMPRESSION_DETAIL 'long')", '42601', qr/^invalid compression specification: compression algorithm "lz4" does not support long-distance mode$/ ],
		[ "$files (COMPRESSION zstd, COMPRESSION_DETAIL 'level=3', COMPRESSION_LEVEL 3)", '42601', qr/^compression level is specified more than once$/ ],
		[ "$files (COMPRESSION zstd, COMPRESSION_DETAIL 'workers=2')", '0A000', qr/^invalid compression specification: a transfer is not compressed by several workers$/ ])
	{
		my ($sql, $sqlstate, $message, @by_call) = @$case;
		($sqlstate, $message) = @by_call if @by_call && stock_server();
		is_error($conn, $sql, $sqlstate, $message, substr($sql, 0, 90));
	}
	# The longest label there can be.
	my $start = start_backup($conn, LABEL => 'x' x 1024);
	like($start->{labelfile}, qr/^LABEL: x{1024}$/m, 'a label of 1,024 bytes');
	ok(!stop_backup($conn, LABEL => $start->{labelfile})->{reply}{error}, 'and its backup');
	still_works($conn, 'usable after all of that');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_progress_basebackup'),
		0, 'and no backup was started');
	$conn->close;
}

# Transactions, and backup mode by other means, on a connection with a database.
{
	my $conn = connection($node, replication => 'database');

	query_ok($conn, 'BEGIN');
	for my $command ('START_BACKUP', 'SEND_FILE_LIST', "SEND_FILES_CONTENT ('PG_VERSION')",
		'STOP_BACKUP')
	{
		my ($name) = $command =~ /^(\w+)/;
		query_ok($conn, 'ROLLBACK');
		query_ok($conn, 'BEGIN');
		my $reply = is_error($conn, $command, '25001', qr/^$name cannot run inside a transaction block$/, "$name in a transaction");
		is($reply->{status}, 'E', "$name in a transaction: failed block");
	}
	query_ok($conn, 'ROLLBACK');

	# pg_backup_start first.
	query_ok($conn, "SELECT pg_backup_start('mine', true)");
	is_error($conn, 'START_BACKUP', '55000',
		qr/^a backup is already in progress in this session$/,
		'START_BACKUP after pg_backup_start');
	query_ok($conn, 'SELECT * FROM pg_backup_stop(false)');

	# The same by other names, which only a superuser can give.
	$node->safe_psql('postgres', q(
		CREATE FUNCTION alias_start(text, boolean) RETURNS pg_lsn LANGUAGE internal AS 'pg_backup_start';
		CREATE FUNCTION alias_stop(boolean, OUT lsn pg_lsn, OUT labelfile text, OUT spcmapfile text)
			RETURNS record LANGUAGE internal AS 'pg_backup_stop';
		CREATE FUNCTION definer_stop(boolean, OUT lsn pg_lsn, OUT labelfile text, OUT spcmapfile text)
			RETURNS record LANGUAGE internal SECURITY DEFINER SET work_mem = '1MB' AS 'pg_backup_stop';
		CREATE FUNCTION sql_stop() RETURNS pg_lsn LANGUAGE sql AS 'SELECT lsn FROM alias_stop(false)';
		CREATE FUNCTION alias_md5(text) RETURNS text LANGUAGE internal AS 'md5_text';));
	query_ok($conn, "SELECT alias_start('mine', true)");
	query_ok($conn, 'SELECT * FROM alias_stop(false)');

	# Then the other way around.
	my $start = start_backup($conn);
	is_error($conn, "SELECT pg_backup_start('x', true)", '55000',
		qr/backup is (?:already )?in progress in this session$/,
		'pg_backup_start on the coordinator');
	is_error($conn, 'SELECT * FROM pg_backup_stop(false)', '55000',
		qr/^a parallel backup is in progress in this session$/,
		'pg_backup_stop on the coordinator',
		hint => qr/STOP_BACKUP/);
	is_error($conn, 'SELECT lsn FROM pg_catalog.pg_backup_stop()', '55000',
		qr/^a parallel backup is in progress in this session$/,
		'pg_backup_stop with its default, qualified');
	is_error($conn, q(DO $$ BEGIN PERFORM pg_backup_stop(false); END $$), '55000',
		qr/^a parallel backup is in progress in this session$/,
		'pg_backup_stop inside of a function');
	is_error($conn, q(EXECUTE x), '26000', qr/does not exist/, 'an SQL error of its own');
	query_ok($conn, 'PREPARE x AS SELECT lsn FROM pg_backup_stop(false)');
	is_error($conn, 'EXECUTE x', '55000',
		qr/^a parallel backup is in progress in this session$/, 'pg_backup_stop, prepared');
	for my $call ("SELECT alias_start('x', true)", 'SELECT * FROM alias_stop(false)',
		'SELECT alias_stop(false)', 'SELECT * FROM definer_stop(false)', 'SELECT sql_stop()')
	{
		is_error($conn, $call, '55000',
			qr/^a parallel backup is in progress in this session$/, "$call on the coordinator");
	}
	is(query_ok($conn, q(SELECT alias_md5('x') = md5('x')))->{results}[0]{rows}[0][0], 't',
		'other functions are free');
	is_error($conn, 'BASE_BACKUP', '55000',
		qr/^a backup is already in progress in this session$/,
		'BASE_BACKUP on the coordinator');
	is_error($conn, 'START_BACKUP', '55000',
		qr/^a backup is already in progress in this session$/, 'a second START_BACKUP');

	# The same functions are free on another session meanwhile.
	is($node->safe_psql('postgres',
			"SELECT 1 FROM pg_backup_start('other', true); SELECT labelfile ~ 'other' FROM pg_backup_stop(false)"),
		"1\nt", 'pg_backup_start elsewhere');

	is(scalar @{ fetch($conn, ['PG_VERSION'])->{files} }, 1, 'the backup goes on');
	my $stop = stop_backup($conn, LABEL => $start->{labelfile});
	ok(!$stop->{reply}{error}, 'and ends');

	# And are free again here.
	query_ok($conn, "SELECT pg_backup_start('again', true)");
	my $reply = query_ok($conn, 'SELECT labelfile FROM pg_backup_stop(false)');
	like($reply->{results}[0]{rows}[0][0], qr/LABEL: again/, 'pg_backup_start after STOP_BACKUP');
	$conn->close;
}

# A running backup, its coordinator and a worker; after each refusal both are
# asked for a file.
my $coordinator = connection($node);
my $start = start_backup($coordinator);
my $worker = connection($node);
my @id = (BACKUP_ID => $start->{backup_id});

sub refused
{
	my ($sql, $sqlstate, $message, $name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	for my $conn ($worker, $coordinator)
	{
		is_error($conn, $sql, $sqlstate, $message, $name, %params);
		is(fetch($conn, ['PG_VERSION'], @id)->{files}[0]{data},
			server_major() . "\n", "$name: the backup goes on");
	}
	return;
}

# Paths as they stand in the command.
sub refused_path
{
	my ($path, $sqlstate, $message) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	refused(
		'SEND_FILES_CONTENT (' . quote_literal($path) . ") WITH (BACKUP_ID '$id[1]')",
		$sqlstate, $message, "path \"$path\"");
	return;
}

# Malformed.
my $invalid = qr/^invalid path ".*": /;
refused_path($_, '42602', $invalid)
  for ('', '/', '/etc/passwd', '.', '..', './PG_VERSION', '../x', 'base/../PG_VERSION',
	'base//1', 'base/', 'base/.', 'base/..', '%', '%2', '%2G', '%g0', 'a%', 'base/%00', '%2E%2E/x',
	'%41', 'a%2Fb', 'a%2fb', 'with blank', "tab\t", 'PG_VERSION%0', "\xc3\xa9", '%c3', '%25%');

# Outside of what a backup contains.
my $outside = qr/^file ".*" is not part of a backup$/;
{
	my $segment = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_current_wal_lsn())');
	write_file("$pgdata/$dbdir/t3_123", 'x' x 8192);
	write_file("$pgdata/$dbdir/t3_123_fsm", 'x' x 8192);
	write_file("$pgdata/$dbdir/pgsql_tmp1", 'x');
	mkdir "$pgdata/base/pgsql_tmp";
	write_file("$pgdata/base/pgsql_tmp/pgsql_tmp1.0", 'x');
	write_file("$pgdata/pg_replslot/x", 'x');
	write_file("$pgdata/pg_stat_tmp/x", 'x');
	write_file("$pgdata/backup_manifest", 'x');
	write_file("$pgdata/$dbdir/.DS_Store", 'x');
	refused_path($_, '42501', $outside)
	  for ('global/pg_control', 'backup_label', 'tablespace_map', 'backup_manifest',
		'postmaster.pid', 'postmaster.opts', "$dbdir/backup_label",
		"$dbdir/pg_internal.init", 'global/pg_internal.init', 'pg_replslot/x',
		'pg_stat_tmp/x', 'pg_notify/0000', 'pg_subtrans/0000', 'pg_dynshmem/x',
		'pg_serial/x', 'pg_snapshots/x', "$dbdir/t3_123", "$dbdir/t3_123_fsm",
		"$dbdir/pgsql_tmp1", 'base/pgsql_tmp/pgsql_tmp1.0', "$dbdir/.DS_Store",
		"pg_wal/$segment", 'pg_wal/000000010000000000000001', 'pg_wal/x',
		'pg_wal/archive_status/x', 'pg_wal/summaries/x', 'pg_tblspc/1/PG_18_202506291/1/1',
		'pg_tblspc/99999999999/x', 'postgresql.auto.conf.tmp', 'current_logfiles.tmp');
	unlink map { "$pgdata/$_" } ("$dbdir/t3_123", "$dbdir/t3_123_fsm",
		"$dbdir/pgsql_tmp1", 'base/pgsql_tmp/pgsql_tmp1.0', 'pg_replslot/x',
		'pg_stat_tmp/x', 'backup_manifest', "$dbdir/.DS_Store");
	rmdir "$pgdata/base/pgsql_tmp";
}

# What is in a name is quoted, not interpreted.
{
	my $reply = $worker->query(
		"SEND_FILES_CONTENT ('pg_replslot/%25s%25n%25d''\"\\') WITH (BACKUP_ID '$id[1]')");
	is($reply->{error}{message}, q(file "pg_replslot/%25s%25n%25d'"\\" is not part of a backup),
		'a path of format characters');
	$reply = $worker->query("SEND_FILE_LIST (BACKUP_ID '%s%n')");
	like($reply->{error}{message}, qr/^backup "%25s%25n" does not exist$/, 'an identifier of format characters');
	$reply = $worker->query("START_BACKUP (CHECKPOINT '%s%n')");
	like($reply->{error}{message}, qr/^unrecognized checkpoint type: "%(?:25)?s%(?:25)?n"$/, 'a value of format characters');
}

# Not a regular file.
my $special = qr/^"\S+" is not a regular file$/;
{
	mkfifo("$pgdata/$dbdir/x", 0600) or die "mkfifo: $!";
	symlink('/etc/passwd', "$pgdata/$dbdir/link") or die $!;
	symlink("$pgdata/PG_VERSION", "$pgdata/link") or die $!;
	symlink('nowhere', "$pgdata/dangling") or die $!;
	my $path = "$tempdir/s";
	require IO::Socket::UNIX;
	my $socket = IO::Socket::UNIX->new(Local => $path, Listen => 1) or die $!;
	rename($path, "$pgdata/socket") or die $!;
	refused_path($_, '42809', $special)
	  for ('base', $dbdir, 'global', 'pg_wal', 'pg_tblspc', 'pg_replslot', "$dbdir/x", "$dbdir/link",
		'link', 'dangling', 'socket');

	# A link on the way is not followed either: neither out of the data
	# directory nor inside of it.
	mkdir "$tempdir/outside";
	write_file("$tempdir/outside/secret", 'secret');
	symlink("$tempdir/outside", "$pgdata/linkdir") or die $!;
	symlink($dbdir, "$pgdata/linkdb") or die $!;
	symlink("$tempdir/outside", "$pgdata/pg_tblspc/77777") or die $!;
	refused_path('linkdir/secret', '42501', $outside);
	refused_path('linkdb/PG_VERSION', '42501', $outside);
	refused_path('pg_tblspc/77777/secret', '42501', $outside);
	refused_path('pg_tblspc/77777', '42501', $outside);

	# The list leaves them out with BASE_BACKUP's warning.
	my $reply = query_ok($worker, "SEND_FILE_LIST (BACKUP_ID '$id[1]')");
	my %listed = map { $_->[0] => 1 } @{ $reply->{results}[0]{rows} };
	for my $name ("$dbdir/x", "$dbdir/link", 'link', 'dangling', 'socket', 'linkdir', 'linkdb')
	{
		ok(!$listed{$name}, "\"$name\" is not listed");
		is(scalar(grep { $_->{message} =~ /^skipping special file "(?:\.\/)?\Q$name\E"$/ }
					@{ $reply->{notices} }), 1, "\"$name\": a warning");
	}
	ok(!grep({ m{^pg_tblspc/} } keys %listed), 'a link that is no tablespace is not followed');
	unlink map { "$pgdata/$_" }
	  ("$dbdir/x", "$dbdir/link", 'link', 'dangling', 'socket', 'linkdir', 'linkdb', 'pg_tblspc/77777');
}

# Below a file.
refused_path('PG_VERSION/x', '42501', $outside);

# Ranges.
{
	my $with = "WITH (BACKUP_ID '$id[1]')";
	my $align = qr/^range of file "\Q$relpath\E" does not begin and end at block boundaries$/;
	refused("SEND_FILES_CONTENT ('$relpath' (OFFSET '1')) $with", '22023', $align, 'offset 1',
		hint => qr/multiples of 8192 bytes/);
	refused("SEND_FILES_CONTENT ('$relpath' (OFFSET '0', LENGTH '100')) $with", '22023', $align, 'length 100');
	refused("SEND_FILES_CONTENT ('$relpath' (OFFSET '8192', LENGTH '8193')) $with", '22023', $align, 'length 8193');
	refused("SEND_FILES_CONTENT ('PG_VERSION' (OFFSET '0')) $with", '22023',
		qr/^cannot send a range of file "PG_VERSION": it is not a relation file$/, 'range of another file');
	refused("SEND_FILES_CONTENT ('pg_xact/0000' (OFFSET '0', LENGTH '8192')) $with", '22023',
		qr/^cannot send a range of file "pg_xact\/0000": it is not a relation file$/, 'range of pg_xact');
	# In a call the offset is a bigint before it is one of ours.
	my @range = ('22023', qr/^\S+ is outside the valid range for parameter "offset"$/);
	my @bigint_range = stock_server() ? ('22003', qr/^value "\d+" is out of range for type bigint$/) : @range;
	refused("SEND_FILES_CONTENT ('$relpath' (OFFSET '-8192')) $with", @range, "offset '-8192'");
	for my $bad (q('9223372036854775808'), q('99999999999999999999'))
	{
		refused("SEND_FILES_CONTENT ('$relpath' (OFFSET $bad)) $with", @bigint_range, "offset $bad");
	}
	for my $bad (q('x'), q('0x10'), q(''), q('8192.0'))
	{
		refused("SEND_FILES_CONTENT ('$relpath' (OFFSET $bad)) $with",
			stock_server()
			? ('22P02', qr/^invalid input syntax for type bigint: "@{[ $bad =~ s{'}{}gr ]}"$/)
			: ('42601', qr/^offset requires a number of bytes$/),
			"offset $bad");
	}
	for my $loose (q(' 0'), q('0 '), q('+0'))
	{
		my $command = "SEND_FILES_CONTENT ('$relpath' (OFFSET $loose)) $with";
		if (stock_server())
		{
			is(query_ok($worker, $command)->{frames}[0]{offset}, 0, "offset $loose, a bigint");
		}
		else
		{
			refused($command, '42601', qr/^offset requires a number of bytes$/, "offset $loose");
		}
	}
	refused("SEND_FILES_CONTENT ('$relpath' (OFFSET '0', LENGTH '-1')) $with", '22023',
		qr/^-1 is outside the valid range for parameter "length"$/, 'length -1');
	# As far as a number goes: there is nothing of the file there.
	my $last = '9223372036854767616';
	is(fetch($worker, [ [ $relpath, $last, $last ] ], @id)->{files}[0]{length}, 0,
		'a range at the end of all numbers');
	refused("SEND_FILES_CONTENT ('$relpath' (LENGTH '8192')) $with", '42601',
		qr/^length requires an offset$/, 'length without an offset');
}

# Too many files.
refused("SEND_FILES_CONTENT (" . join(', ', ("'PG_VERSION'") x 1025) . ") WITH (BACKUP_ID '$id[1]')",
	'54000', qr/^cannot send more than 1024 files in one command$/, '1,025 files');

# A refusal in the middle of a batch: what came before was sent whole.
{
	my $reply = $worker->query(send_files_sql([ 'PG_VERSION', $relpath, 'base', 'PG_VERSION' ], @id));
	is_report($reply->{error}, '42809', $special, 'the third of four');
	my $transfer = ParallelBackup::Transfer->of($reply->{frames});
	ok($transfer->complete, 'no frame is cut');
	is_deeply([ map { $_->{path} } @{ $transfer->{files} } ],
		[ 'PG_VERSION', $relpath ],
		'files before the refused one');
	is(fetch($worker, ['PG_VERSION'], @id)->{files}[0]{data}, server_major() . "\n", 'and on it goes');
}

# Wrong order.
{
	is_error($worker, 'SEND_FILE_LIST', '55000',
		qr/^no parallel backup is running in this session$/, 'a worker without BACKUP_ID');
	is_error($worker, "SEND_FILES_CONTENT ('PG_VERSION')", '55000',
		qr/^no parallel backup is running in this session$/, 'a worker without BACKUP_ID');
	is_error($worker, 'STOP_BACKUP', '55000',
		qr/^no parallel backup is running in this session$/, 'STOP_BACKUP by a worker');
	is_error($worker, "STOP_BACKUP (BACKUP_ID '$id[1]')", '55000',
		qr/^parallel backup "$id[1]" was not started in this session$/,
		'STOP_BACKUP by a worker, with the identifier');
	is_error($coordinator, 'START_BACKUP', '55000',
		qr/^a backup is already in progress in this session$/, 'a second START_BACKUP');
	is_error($coordinator, "SEND_FILE_LIST (BACKUP_ID '$no_id')", '42704',
		qr/backup "$no_id" does not exist/, 'another identifier on the coordinator');
}

# Roles.
{
	my $other = connection($node, user => 'other');
	is_error($other, "SEND_FILE_LIST (BACKUP_ID '$id[1]')", '42501',
		qr/^permission denied for parallel backup "$id[1]"$/, 'list of another role');
	is_error($other, send_files_sql(['PG_VERSION'], @id), '42501',
		qr/^permission denied for parallel backup "$id[1]"$/, 'files of another role');
	still_works($other, 'another role: usable');

	# Its own backup, and the superuser as its worker.
	my $own = start_backup($other);
	is(fetch($worker, ['PG_VERSION'], BACKUP_ID => $own->{backup_id})->{files}[0]{data},
		server_major() . "\n", 'a superuser may be the worker of any backup');
	my $third = connection($node);
	is_error($third, 'START_BACKUP', '53400', qr/^too many parallel backups$/,
		'max_backups', hint => qr/pg_parallel_backup\.max_backups/);
	still_works($third, 'max_backups: usable');
	stop_backup($other);
	$other->close;

	# The coordinator of the stopped one has left: there is room again.
	ok($node->poll_query_until('postgres',
			"SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'other'"), 'left');
	start_backup($third);
	ok(!stop_backup($third)->{reply}{error}, 'room again');
	$third->close;

	# What a walsender needs, the commands need: nothing less than REPLICATION.
	my $nobody = ParallelBackup::Connection->new($node, user => 'nobody',
		replication => 'true', fail_ok => 1);
	is_report($nobody->startup_error, '42501',
		# Before 16: must be superuser or replication role to start walsender
		qr/permission denied to start WAL sender|must be superuser or replication role/, 'a role without REPLICATION');
}

# STOP_BACKUP while a transfer runs.
{
	make_file("$pgdata/large", 64 * 1024 * 1024);
	$worker->send_query(send_files_sql(['large'], @id));
	$worker->read_until(sub { $_[0]{type} eq 'd' });
	# It is not being read: the transfer cannot end.
	is_error($coordinator, 'STOP_BACKUP', '55000',
		qr/^cannot stop the parallel backup while files of it are being sent$/,
		'STOP_BACKUP while a transfer runs', hint => qr/1 transfer/);
	my $reply = $worker->finish;
	ok(!$reply->{error}, 'the transfer goes on');
	is(ParallelBackup::Transfer->of($reply->{frames})->{files}[0]{length},
		64 * 1024 * 1024, 'to its end');
	unlink "$pgdata/large";
}

# A directory that cannot be read ends the list; the backup goes on.
{
	mkdir "$pgdata/locked";
	chmod 0300, "$pgdata/locked";
	is_error($worker, "SEND_FILE_LIST (BACKUP_ID '$id[1]')", '42501',
		qr/^could not read directory "locked": Permission denied$/, 'a directory that cannot be read');
	rmdir "$pgdata/locked";
	ok(scalar(list_files($worker, @id)), 'and then the list');
}

# STOP_BACKUP with what does not belong to it; then in earnest.
{
	is_error($coordinator, "STOP_BACKUP (LABEL 'x')", '22023',
		qr/^the given backup_label is not that of the running backup$/, 'another label');
	is_error($coordinator, "STOP_BACKUP (BACKUP_ID '$no_id')", '42704',
		qr/backup "$no_id" does not exist/, 'another identifier');
	my $stop = stop_backup($coordinator, @id, LABEL => $start->{labelfile});
	ok(!$stop->{reply}{error}, 'the backup ends well after all');
	is_error($worker, send_files_sql(['PG_VERSION'], @id), '42704',
		qr/^parallel backup "$id[1]" has been stopped$/, 'no more files after it');
	is_error($worker, "SEND_FILE_LIST (BACKUP_ID '$id[1]')", '42704',
		qr/^parallel backup "$id[1]" has been stopped$/, 'no list after it');
}
$worker->close;
$coordinator->close;

# All of that has left a server that can be backed up.
my $copy = PostgreSQL::Test::Cluster->new('copy');
raw_backup($node, $copy->data_dir, workers => 2);
command_ok([ 'pg_verifybackup', $copy->data_dir ], 'pg_verifybackup');
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, 'data of the copy');
$copy->stop;
ok(!$node->log_contains(qr/was terminated by signal|PANIC|TRAP/), 'the server is well');

done_testing();
