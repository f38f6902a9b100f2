# Incremental backups by the commands alone: the upload of a manifest, the list and its blocks, their
# content, and chains that pg_combinebackup puts together. Before 17 there are none.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Increment;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant BLOCK => 8192;

if (server_major() < 17)
{
	my $node = parallel_node('main', extension => 1);
	my $message = qr/^incremental backups need PostgreSQL 17 or later$/;
	is_error(connection($node), 'START_BACKUP (INCREMENTAL)', '0A000', $message, 'START_BACKUP');
	my $conn = sql_connection($node);
	is_error($conn, 'START_BACKUP (INCREMENTAL)', '0A000', $message, 'start_backup');
	is_error($conn, q(CALL parallel_backup.upload_manifest('x')), '0A000', $message, 'upload_manifest');
	my $start = start_backup($conn, INCREMENTAL => 'false');
	is_error($conn, send_files_sql([ { path => 'PG_VERSION', blocks => '0' } ]),
		'22023', qr/^cannot send blocks of file "PG_VERSION": it is not a relation file$/, 'blocks of no relation');
	is(length(fetch($conn, [ { path => 'base/1/1259', blocks => '0,2-3' } ])->{files}[0]{data}),
		3 * BLOCK, 'blocks are served by any version');
	done_testing();
	exit;
}

# A summary ends at a checkpoint, and nothing happens unless the test does it.
my $node = parallel_node('main', extension => 1, conf => "summarize_wal = on\nwal_keep_size = 0\n");
my $pgdata = $node->data_dir;
my $backups = $node->backup_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS filler FROM generate_series(1, 20000) g;
	CREATE INDEX ON t (id);
	CREATE TABLE cold AS SELECT g AS id FROM generate_series(1, 20000) g;
	CREATE TABLE shrinking AS SELECT g AS id, repeat('x', 500) AS filler FROM generate_series(1, 20000) g;
	CREATE TABLE gone AS SELECT 1 AS id;
	CREATE UNLOGGED TABLE unlogged AS SELECT g AS id FROM generate_series(1, 1000) g;
	CREATE DATABASE other;
	VACUUM;
	CHECKPOINT;));
my %path = map { $_ => $node->safe_psql('postgres', "SELECT pg_relation_filepath('$_')") }
  qw(t t_id_idx cold shrinking gone unlogged);

sub sums
{
	my ($of) = @_;

	return $of->safe_psql('postgres',
		'SELECT count(*), sum(hashtext(t::text)) FROM t UNION ALL SELECT count(*), sum(id) FROM cold UNION ALL SELECT count(*), sum(id) FROM shrinking ORDER BY 1, 2');
}

sub read_blocks
{
	my ($path, $list) = @_;
	my $bytes = slurp_file($path);

	return join '', map { substr($bytes, $_ * BLOCK, BLOCK) } block_numbers($list);
}

my @connections = (connection($node));
push @connections, sql_connection($node) if !stock_server();

# What START_BACKUP wants first.
for my $conn (@connections)
{
	my $way = $conn->calls ? 'call' : 'command';
	is_error($conn, 'START_BACKUP (INCREMENTAL)', '55000',
		qr/^must UPLOAD_MANIFEST before performing an incremental START_BACKUP$/,
		"$way: no manifest", hint => qr/upload_manifest/);
	is_error($conn, "START_BACKUP (INCREMENTAL 'x')", $conn->calls ? '22P02' : '42601',
		$conn->calls ? qr/boolean/ : qr/^incremental requires a Boolean value$/, "$way: no Boolean");
}

# A full backup, and what is uploaded of it.
my $full = raw_backup($node, "$backups/full");
my $manifest = slurp_file("$backups/full/backup_manifest");
for my $conn (@connections)
{
	my $way = $conn->calls ? 'call' : 'command';
	my %wrong = (
		'another system' => [
			$manifest =~ s/("System-Identifier": )\d+/${1}4711/r,
			qr/^system identifier in backup manifest is 4711, but database system identifier is \d+$/
		],
		'damaged' => [ $manifest =~ s/"Size": 3,/"Size": 4,/r, qr/^manifest checksum mismatch$/ ],
		'cut' => [ substr($manifest, 0, -20), qr/^could not parse backup manifest: / ],
		'empty' => [ '', qr/^could not parse backup manifest: / ],
		'no JSON' => [ 'x' x 300_000, qr/^could not parse backup manifest: / ]);
	for my $kind (sort keys %wrong)
	{
		my ($text, $message) = @{ $wrong{$kind} };
		is_report(upload_manifest($conn, $text)->{error}, 'XX000', $message, "$way: a manifest that is $kind");
		still_works($conn, "$way: and the connection works");
		is_error($conn, 'START_BACKUP (INCREMENTAL)', '55000', qr/^must UPLOAD_MANIFEST/,
			"$way: START_BACKUP does not take it");
	}
}

# Pieces.
{
	my $conn = sql_connection($node);
	my $call = sub {
		my ($bytes, @more) = @_;
		return sprintf q(CALL parallel_backup.upload_manifest('\x%s'%s)), unpack('H*', $bytes),
		  join('', map { ", $_" } @more);
	};
	query_ok($conn, $call->(substr($manifest, 0, 100)));
	is_error($conn, 'START_BACKUP (INCREMENTAL)', '55000', qr/^must UPLOAD_MANIFEST/, 'half a manifest');
	my $gap = qr/^piece of the manifest begins at byte (?:100|5|-1), but 0 bytes were uploaded$/;
	is_error($conn, $call->('x', 100), '22023', $gap, 'which is then gone');
	query_ok($conn, $call->(substr($manifest, 0, 100)));
	is_error($conn, $call->(substr($manifest, 101), 101), '22023',
		qr/^piece of the manifest begins at byte 101, but 100 bytes were uploaded$/, 'a gap',
		hint => qr/Begin again/);
	is_error($conn, $call->('x', $_), '22023', $gap, "byte $_ first") for 5, -1;
	query_ok($conn, $call->($manifest, 0, 'true'));
	is_error($conn, $call->('x', length $manifest), '22023',
		qr/^piece of the manifest begins at byte \d+, but 0 bytes were uploaded$/, 'more than the last');
	# NULL is what was not given; a new manifest takes the place of another.
	query_ok($conn, $call->('{', 'NULL', 'NULL'));
	query_ok($conn, $call->($manifest, 0, 'true'));
	$conn->query('SELECT 1');
	ok(start_backup($conn, INCREMENTAL => 'true')->{backup_id}, 'the manifest outlives commands');
	$conn->query('CALL parallel_backup.stop_backup()');
	is_error($conn, 'START_BACKUP (INCREMENTAL)', '55000', qr/^must UPLOAD_MANIFEST/, 'and is used up');
	is_error($conn, "BEGIN; " . $call->('x'), '25001', qr/UPLOAD_MANIFEST/, 'in a transaction block');
	$conn->query('ROLLBACK');
	$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
	my $nobody = sql_connection($node, user => 'nobody');
	is_error($nobody, $call->('x'), '42501', qr/^permission denied for procedure upload_manifest$/, 'no EXECUTE');
	$node->safe_psql('postgres', 'GRANT EXECUTE ON PROCEDURE parallel_backup.upload_manifest TO nobody');
	is_error($nobody, $call->('x'), '42501', qr/^permission denied to call UPLOAD_MANIFEST$/, 'EXECUTE alone');
	$nobody->close;
	$conn->close;
}

# What has changed since.
$node->safe_psql('postgres', q(
	UPDATE t SET filler = 'y' WHERE id % 2000 = 0;
	DELETE FROM shrinking WHERE id > 5000;
	VACUUM (TRUNCATE) shrinking;
	DROP TABLE gone;
	CREATE TABLE fresh AS SELECT g AS id FROM generate_series(1, 1000) g;
	CREATE DATABASE another;
	CREATE DATABASE copied STRATEGY file_copy;));
my $fresh = $node->safe_psql('postgres', q(SELECT pg_relation_filepath('fresh')));
my ($another, $copied) = map { $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = '$_'") }
  qw(another copied);
my $expected = sums($node);

my $state = raw_backup(
	$node, "$backups/first",
	prior => $manifest,
	start => { PROGRESS => 'true' },
	after_list => sub {
		my ($state) = @_;
		my $id = $state->{start}{backup_id};
		for my $other (@connections)
		{
			is_error($other, "SEND_FILE_LIST (BACKUP_ID '$id')", '55000',
				qr/^files of incremental parallel backup "$id" can only be listed in the session that started it$/,
				'the list on another connection');
		}
		my $estimate = query_ok($connections[0], 'SEND_FILE_LIST (ESTIMATE)')->{results}[0];
		is(scalar @{ $estimate->{columns} }, 6, 'an estimate has no blocks');
	});
my %listed = map { $_->{path} => $_ } @{ $state->{list} };
my $columns = $state->{start}{labelfile};
like($columns, qr{^INCREMENTAL FROM LSN: \Q$full->{start}{recptr}\E\nINCREMENTAL FROM TLI: 1\n\z}m, 'the label');
is($listed{ $path{cold} }{blocks}, '', 'nothing has changed');
is($listed{ $path{cold} }{truncation_block_length}, (-s "$pgdata/$path{cold}") / BLOCK, 'and it has kept its length');
my $blocks = $listed{ $path{t} }{blocks};
like($blocks, qr/^\d+(?:[-,]\d+)+\z/, 'some blocks have changed');
cmp_ok(scalar block_numbers($blocks), '<', 60, 'not many');
cmp_ok(scalar block_numbers($blocks), '>', 9, 'not few');
ok(defined $listed{ $path{shrinking} }{blocks}, 'a file that has shrunk');
cmp_ok((-s "$backups/full/$path{shrinking}"), '>', -s "$pgdata/$path{shrinking}", 'has shrunk');
is($listed{$fresh}{blocks}, undef, 'a new file is sent whole');
is($listed{"base/$_/1259"}{blocks}, undef, "a new database is sent whole") for $another, $copied;
is($listed{"$path{cold}_fsm"}{blocks}, undef, 'a free space map is sent whole');
is($listed{PG_VERSION}{blocks}, undef, 'what is no relation is sent whole');
ok(!exists $listed{ $path{unlogged} }, 'an unlogged relation is left out');
ok(defined $listed{"$path{unlogged}_init"}, 'but for its init fork');
is($listed{base}{blocks}, undef, 'a directory has no blocks');
is($listed{"$path{t}_vm"}{blocks}, undef, 'a map whose one block has changed is sent whole');
is((grep { defined $_->{blocks} && !defined $_->{truncation_block_length} } @{ $state->{list} }),
	0, 'every list with the length');
is($state->{stop}{totals}{bytes}, $state->{bytes}, 'the bytes are counted');
is_deeply([ sort grep { /INCREMENTAL/ } keys %{ $state->{manifest} } ],
	[ sort map { increment_path($_->{path}) } grep { defined $_->{blocks} } @{ $state->{list} } ],
	'all increments are there');
command_ok([ 'pg_verifybackup', "$backups/first" ], 'pg_verifybackup of the increment');

# The server's word against pg_basebackup's.
my $tempdir = PostgreSQL::Test::Utils::tempdir;
$node->command_ok(
	[ 'pg_basebackup', '--no-sync', '--checkpoint' => 'fast', '--pgdata' => "$tempdir/serial", '--incremental' => "$backups/full/backup_manifest" ],
	'pg_basebackup takes an increment to our full backup');
for my $path (sort grep { defined $listed{$_}{blocks} } keys %listed)
{
	my $name = increment_path($path);
	if (!-e "$tempdir/serial/$name")
	{
		fail("$name is there");
		next;
	}
	next if slurp_file("$tempdir/serial/$name") eq slurp_file("$backups/first/$name");
	fail("$name is the same");
}
pass('compared with pg_basebackup');

# An increment to the increment, on top of more changes.
$node->safe_psql('postgres', q(
	UPDATE t SET filler = 'z' WHERE id % 3000 = 0;
	INSERT INTO shrinking SELECT g, repeat('w', 700) FROM generate_series(100000, 130000) g;
	DROP DATABASE copied;
	TRUNCATE cold;
	INSERT INTO cold SELECT g FROM generate_series(1, 777) g;));
$expected = sums($node);
my $second = raw_backup($node, "$backups/second", prior => slurp_file("$backups/first/backup_manifest"));
like($second->{start}{labelfile}, qr{^INCREMENTAL FROM LSN: \Q$state->{start}{recptr}\E$}m, 'the second label');
command_ok([ 'pg_verifybackup', "$backups/second" ], 'pg_verifybackup of the second');
command_ok(
	[ 'pg_combinebackup', '--no-sync', '--output' => "$tempdir/combined", map { "$backups/$_" } qw(full first second) ],
	'pg_combinebackup');
command_ok([ 'pg_verifybackup', "$tempdir/combined" ], 'pg_verifybackup of what was combined');
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	rename "$tempdir/combined", $copy->data_dir or die $!;
	start_copy($copy);
	is(sums($copy), $expected, 'the copy has the data');
	command_ok([ 'pg_amcheck', '--all', '--install-missing', '--port' => $copy->port, '--host' => $copy->host ], 'pg_amcheck');
	$copy->stop;
}

# Files that change between the list and their fetching: what is fetched then may be whatever it is, replay puts it
# right.
$node->safe_psql('postgres', $_)
  for q(CREATE TABLE dropped AS SELECT g AS id FROM generate_series(1, 9000) g),
  q(CREATE TABLE cut AS SELECT g AS id FROM generate_series(1, 90000) g),
  q(CREATE TABLE grown AS SELECT g AS id FROM generate_series(1, 9000) g),
  # Or the first look at each page would change it: hints are logged where there are page checksums.
  'VACUUM (FREEZE) dropped, cut, grown', 'CHECKPOINT';
my $before = raw_backup($node, "$backups/before");
$node->safe_psql('postgres', 'UPDATE dropped SET id = 0 WHERE id = 1; UPDATE cut SET id = id + 1 WHERE id % 9000 = 0; UPDATE grown SET id = 0 WHERE id = 1');
my %file = map { $_ => $node->safe_psql('postgres', "SELECT pg_relation_filepath('$_')") } qw(dropped cut grown);
my $changing = raw_backup(
	$node, "$backups/changing",
	prior => slurp_file("$backups/before/backup_manifest"),
	after_list => sub {
		my %listed = map { $_->{path} => $_ } @{ $_[0]{list} };
		ok(length($listed{ $file{$_} }{blocks} // ''), "some blocks of $_ are to be fetched") for qw(dropped cut grown);
		my $size = -s "$pgdata/$file{cut}";
		$node->safe_psql('postgres', $_)
		  for 'DROP TABLE dropped', 'DELETE FROM cut WHERE id > 5000', 'VACUUM (TRUNCATE) cut',
		  'INSERT INTO grown SELECT g FROM generate_series(1, 50000) g', 'CHECKPOINT';
		ok(!-e "$pgdata/$file{dropped}", 'a file that goes after it was listed');
		cmp_ok(-s "$pgdata/$file{cut}", '<', $size, 'one that shrinks');
		cmp_ok(-s "$pgdata/$file{grown}", '>', $listed{ $file{grown} }{size}, 'and one that grows');
	});
is_deeply([ grep { $_ eq $file{dropped} } @{ $changing->{vanished} } ], [ $file{dropped} ], 'the first has vanished');
is(-s "$backups/changing/" . increment_path($file{cut}), $changing->{manifest}{ increment_path($file{cut}) }{size},
	'the second has as many blocks as it was listed with');
command_ok([ 'pg_verifybackup', "$backups/changing" ], 'pg_verifybackup of what changed meanwhile');
command_ok([ 'pg_combinebackup', '--no-sync', '--output' => "$tempdir/changed", "$backups/before", "$backups/changing" ],
	'pg_combinebackup of it');
{
	my $copy = PostgreSQL::Test::Cluster->new('changed');
	rename "$tempdir/changed", $copy->data_dir or die $!;
	start_copy($copy);
	my $query = 'SELECT count(*), sum(id) FROM cut UNION ALL SELECT count(*), sum(id) FROM grown ORDER BY 1, 2';
	is($copy->safe_psql('postgres', $query), $node->safe_psql('postgres', $query), 'its copy has the data');
	is($copy->safe_psql('postgres', q(SELECT count(*) FROM pg_class WHERE relname = 'dropped')), 0, 'and not what was dropped');
	command_ok([ 'pg_amcheck', '--all', '--install-missing', '--port' => $copy->port, '--host' => $copy->host ], 'its pg_amcheck');
	$copy->stop;
}

# Blocks, as bytes.
for my $conn (@connections)
{
	my $way = $conn->calls ? 'call' : 'command';
	upload_manifest($conn, $manifest);
	my $start = start_backup($conn, INCREMENTAL => 'true');
	my $size = -s "$pgdata/$path{t}";
	my $last = $size / BLOCK - 1;
	my @lists = ('', '0', "0-$last", "0,2-3,7,9-100,$last", '1,3,5,7,9,11', '10-300', '0-7,20-27,40-400');
	# Verified on the way, or straight from the page cache, or with a checksum.
	for my $options ([], [ VERIFY_CHECKSUMS => 'false' ], [ FILE_CHECKSUM => 'CRC32C' ], [ FILE_CHECKSUM => 'SHA256' ])
	{
		my $transfer = fetch($conn, [ map { { path => $path{t}, blocks => $_ } } @lists ], @$options);
		is_deeply([ map { [ @$_{qw(size offset length)} ] } @{ $transfer->{files} } ],
			[ map { [ $size, 0, BLOCK * scalar block_numbers($_) ] } @lists ], "$way @$options: begin frames");
		is((grep { $transfer->{files}[$_]{data} ne read_blocks("$pgdata/$path{t}", $lists[$_]) } 0 .. $#lists),
			0, "$way @$options: the blocks that were asked for");
		is((grep { $_->{failures} } @{ $transfer->{files} }), 0, "$way @$options: and they verify");
	}
	# In slices, in any order.
	my @numbers = block_numbers($lists[6]);
	my $slices = fetch($conn, [ map { { path => $path{t}, blocks => $_ } } reverse @numbers ]);
	is(join('', map { $_->{data} } reverse @{ $slices->{files} }), read_blocks("$pgdata/$path{t}", $lists[6]),
		"$way: one by one");
	# What the file does not have.
	my $beyond = fetch($conn, [ map { { path => $path{t}, blocks => $_ } } ($last + 1), "$last-" . ($last + 100), '0,131071' ]);
	my @data = map { $_->{data} } @{ $beyond->{files} };
	is($data[0], "\0" x BLOCK, "$way: a block behind the end");
	is($data[1], read_blocks("$pgdata/$path{t}", $last) . "\0" x (100 * BLOCK), "$way: across the end");
	is($data[2], read_blocks("$pgdata/$path{t}", '0') . "\0" x BLOCK, "$way: the last block that there can be");
	is_deeply(fetch($conn, [ { path => 'base/5/4711', blocks => '0' } ])->{vanished}, ['base/5/4711'], "$way: no such file");

	# What is refused.
	my $of = sub { send_files_sql([ { path => $path{t}, blocks => $_[0] } ]) };
	for my $list ('1-0', '3,1', '1,1', ' 1', '1,', '01', 'x', '1-1', '0-99999999999')
	{
		is_error($conn, $of->($list), '42601', qr/^blocks requires a list of ascending block numbers$/, "$way: '$list'");
	}
	is_error($conn, $of->('131072'), '22023', qr/^file "$path{t}" cannot have a block 131072$/,
		"$way: a block that no file has", hint => qr/at most 131072 blocks/);
	is_error($conn, $of->('0-4294967294'), '22023', qr/cannot have a block 4294967294$/, "$way: very many");
	is_error($conn, "SEND_FILES_CONTENT ('$path{t}' (BLOCKS '0', OFFSET '0'))", '42601',
		qr/^blocks cannot be combined with offset or length$/, "$way: with an offset");
	is_error($conn, send_files_sql([ { path => 'PG_VERSION', blocks => '0' } ]), '22023',
		qr/^cannot send blocks of file "PG_VERSION": it is not a relation file$/, "$way: of no relation");
	is(length(fetch($conn, [ { path => $path{t}, blocks => join(',', map { 2 * $_ } 0 .. 999) } ])->{files}[0]{data}),
		1000 * BLOCK, "$way: a long list");
	my $longest = join ',', map { 3 * $_ . '-' . (3 * $_ + 1) } 0 .. 43_690;
	is_error($conn, send_files_sql([ ({ path => $path{cold}, blocks => $longest }) x 2 ]), '54000',
		qr/^lists of blocks in one command cannot have more than 1048576 bytes together$/, "$way: too long");
	still_works($conn, "$way: the connection works");

	# The list once more says the same.
	is_deeply([ list_files($conn) ], [ list_files($conn) ], "$way: two lists");
	my $stop = stop_backup($conn);
	ok(!$stop->{reply}{error}, "$way: STOP_BACKUP");
	is_error($conn, 'SEND_FILE_LIST', '42704', qr/has been stopped$/, "$way: no list after it");
}

# A manifest that is uploaded in the middle of a backup takes the place of the one it goes by.
if (!stock_server())
{
	my $conn = connection($node);
	upload_manifest($conn, $manifest);
	start_backup($conn, INCREMENTAL => 'true');
	list_files($conn);
	upload_manifest($conn, $manifest) for 1 .. 2;
	is_error($conn, 'SEND_FILE_LIST', '55000',
		qr/^the manifest that this backup goes by is gone, since another was uploaded$/, 'replaced');
	ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
	start_backup($conn, INCREMENTAL => 'true');
	ok(scalar list_files($conn), 'for the next backup it serves');
	$conn->close;
}

# Pages are verified by their numbers in the relation, wherever in a list they stand.
{
	my $dbdir = $path{t} =~ s{/[^/]+\z}{}r;
	my $bytes = slurp_file("$pgdata/$path{t}");
	# The second segment: pages of the first are wrong there.
	write_file("$pgdata/$dbdir/99999", $bytes);
	write_file("$pgdata/$dbdir/99999.1", $bytes);
	my $conn = connection($node);
	start_backup($conn);
	my $transfer = fetch($conn, [ map { { path => "$dbdir/$_", blocks => '1,5-6' } } '99999', '99999.1' ]);
	is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), '0 3', 'failures are counted');
	my @notices = map { $_->{message} =~ /block (\d+): calculated/ } @{ $transfer->{reply}{notices} };
	is("@notices", '131073 131077 131078', 'and named by their numbers');
	$conn->close;
	unlink map { "$pgdata/$dbdir/$_" } '99999', '99999.1';
}

# Without summaries.
{
	my $conn = connection($node);
	$node->safe_psql('postgres', 'SELECT pg_switch_wal(); CHECKPOINT');
	upload_manifest($conn, $manifest);
	$node->safe_psql('postgres', q(ALTER SYSTEM SET summarize_wal = off));
	$node->reload;
	$node->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = $$walsummarizer$$)')
	  or die 'the summarizer does not end';
	is_error($conn, 'START_BACKUP (INCREMENTAL)', '55000',
		qr/^incremental backups cannot be taken unless WAL summarization is enabled$/, 'summarize_wal is off', hint => qr/summarize_wal/);
	ok(start_backup($conn)->{backup_id}, 'a full backup can be taken');
	stop_backup($conn);
	$node->safe_psql('postgres', q(ALTER SYSTEM SET summarize_wal = on));
	my @summaries = grep { /\.summary\z/ } slurp_dir("$pgdata/pg_wal/summaries");
	ok(scalar @summaries, 'there are summaries');
	unlink map { "$pgdata/pg_wal/summaries/$_" } @summaries;
	$node->reload;
	$node->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = $$walsummarizer$$)')
	  or die 'no summarizer';
	upload_manifest($conn, $manifest);
	is_error($conn, 'START_BACKUP (INCREMENTAL, CHECKPOINT fast)', '55000',
		qr/^WAL summaries are required on timeline 1 from \S+ to \S+, but (?:no summaries for that timeline and LSN range exist|the summaries for that timeline and LSN range are incomplete)$/,
		'summaries are missing');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM parallel_backup.backups WHERE state <> 'stopped')), 0, 'and no backup is left');
	ok(start_backup($conn)->{backup_id}, 'a full backup can be taken');
	stop_backup($conn);
	$conn->close;
}

# A summarizer that stands still is waited for, and the wait can be cancelled.
{
	my $again = raw_backup($node, "$backups/again");
	my $pid = $node->safe_psql('postgres', q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsummarizer'));
	my $conn = connection($node);
	upload_manifest($conn, slurp_file("$backups/again/backup_manifest"));
	kill 'STOP', $pid;
	$conn->send_query('START_BACKUP (INCREMENTAL, CHECKPOINT fast)');
	my $waits = $node->poll_query_until('postgres', q(SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'WalSummaryReady')));
	$conn->cancel if $waits;
	kill 'CONT', $pid;
	ok($waits, 'START_BACKUP waits for the summarizer');
	is_report($conn->finish->{error}, '57014', qr/^canceling statement due to user request$/, 'cancelled');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM parallel_backup.backups WHERE state <> 'stopped')), 0, 'no backup is left');
	upload_manifest($conn, slurp_file("$backups/again/backup_manifest"));
	ok(start_backup($conn, INCREMENTAL => 'true')->{backup_id}, 'and then it goes on');
	stop_backup($conn);
	$conn->close;
}

$_->close for @connections;
done_testing();
