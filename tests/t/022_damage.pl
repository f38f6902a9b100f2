# Damage on the way: whatever byte a network changes, a backup that was reported as a
# success has only bytes that the server read.

use strict;
use warnings FATAL => 'all';

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Proxy;
use ParallelBackup::TLS;
use ParallelBackup::Test;

use constant BLOCK => 8192;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $backups = 0;

sub bytes_of
{
	my ($path, $offset, $length) = @_;

	open my $file, '<:raw', $path or die "$path: $!";
	seek $file, $offset, 0;
	read($file, my $bytes, $length) == $length or die "$path is short";
	return $bytes;
}

# A cluster where every kind of file can be told by what is in it.
sub cluster
{
	my ($name, $checksums) = @_;
	my $node = parallel_node($name, checksums => $checksums, extension => 1, conf => <<CONF);
listen_addresses = '127.0.0.1'
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
CONF
	my $pgdata = $node->data_dir;

	mkdir "$tempdir/$name.ts" or die $!;
	$node->safe_psql('postgres', $_) for (
		"CREATE TABLESPACE ts LOCATION '$tempdir/$name.ts'",
		q(CREATE TABLE marked AS SELECT i, 'MARKED-' || to_char(i, 'FM00000') || repeat('x', 500) AS t FROM generate_series(1, 400) i),
		q(CREATE TABLE small AS SELECT 'SMALL-ONE'::text AS t),
		'CREATE TABLE spaced TABLESPACE ts AS SELECT 1 AS id',
		'VACUUM FREEZE');
	my $path = $node->safe_psql('postgres', "SELECT pg_relation_filepath('marked')");
	$node->stop;
	# Pages that were added and never written to.
	append_to_file("$pgdata/$path", "\0" x (4 * BLOCK));
	$node->start;
	return ($node, "$pgdata/$path", $path);
}

# The last row of the list, up to its checksum: what comes after it does not tell that it is missing.
sub last_listed
{
	my ($node) = @_;
	my $conn = sql_connection($node);
	my $row = $conn->query("CALL parallel_backup.send_file_list(estimate => true)")->{results}[0]{rows}[-1];
	$conn->close;
	my $values = join '', map { pack('N/a*', $_) } @$row;

	return 'D' . pack('N n', 4 + 2 + length $values, scalar @$row) . substr($values, 0, -8);
}

# Backs up through a network that changes a byte. Returns whether it says that all is well.
sub backup_through
{
	my ($node, $copy, $connstr, $change, @options) = @_;
	my $proxy = ParallelBackup::Proxy->new(server => $node->port, flag => "$copy.changed", %$change);

	my $run = IPC::Run::start(
		[
			'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--jobs' => 2,
			'--dbname' => "host=127.0.0.1 port=@{[ $proxy->port ]} $connstr",
			'--pgdata' => $copy, '--tablespace-mapping' => "$tempdir/@{[ $node->name ]}.ts=$copy.ts", @options
		],
		'>' => \my $stdout, '2>' => \my $stderr, my $patience = IPC::Run::timeout(20));
	# Where a message became longer, client and server wait for each other, as with any client of libpq.
	if (!eval { $run->finish; 1 })
	{
		$run->signal('TERM');
		$patience->start($PostgreSQL::Test::Utils::timeout_default);
		if (!eval { $run->finish; 1 })
		{
			fail('a client that is told to end does so');
			$run->kill_kill;
		}
	}
	my $code = $run->full_result;
	$proxy->stop;
	return ($code == 0, $stderr);
}

# A copy that was called good is good.
sub is_good
{
	my ($node, $copy, $reference, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($left, $right) = map { file_tree($_) } ($copy, $reference);

	# Each backup has its own.
	for my $tree ($left, $right)
	{
		delete @$tree{ grep { m{^(?:backup_label|backup_manifest|global/pg_control|pg_wal/.*|pg_tblspc/\d+)\z} } keys %$tree };
	}
	compare_trees($left, $right, "$name: the copy");
	compare_trees("$copy.ts", "$reference.ts", "$name: its tablespace");
	for my $segment (glob "$copy/pg_wal/[0-9A-F]*")
	{
		my ($file) = $segment =~ m{/([0-9A-F]{24})\z} or next;
		# What follows the end of the last record is not of the backup.
		is(bytes_of($segment, 0, BLOCK), bytes_of($node->data_dir . "/pg_wal/$file", 0, BLOCK), "$name: $file");
	}
	my $label = slurp_file("$copy/backup_label");
	like($label, qr{\ASTART WAL LOCATION: [0-9A-F/]+ \(file [0-9A-F]{24}\)
CHECKPOINT LOCATION: [0-9A-F/]+
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: .*
LABEL: pg_parallel_basebackup base backup
START TIMELINE: 1\n\z}, "$name: backup_label");
	my ($control) = run_command([ 'pg_controldata', $copy ]);
	unlike($control, qr/WARNING/, "$name: control file");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $copy ], "$name: pg_verifybackup");
	return;
}

for my $checksums (1, 0)
{
	my ($node, $file, $path) = cluster($checksums ? 'sums' : 'plain', $checksums);
	my $pgdata = $node->data_dir;
	my $blocks = (-s $file) / BLOCK;
	my ($system) = $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()');
	my $user = $node->safe_psql('postgres', 'SELECT current_user');
	# On one of them the way in is by the procedures, also where the server has the grammar.
	my $databases = $checksums ? 'all,replication' : 'all';
	write_file("$pgdata/pg_hba.conf", "local all all trust\nhost $databases $user 127.0.0.1/32 trust\n");
	offer_tls($node) if has_tls();
	$node->restart;
	my $size = -s $file;
	my $listed = $path . pack('N a N a*', 1, 'f', length $size, $size);
	my $header = sub { return bytes_of($file, $_[0] * BLOCK, 24) };
	my %change = (
		'a relation page' => { find => 'MARKED-00200', at => 3, xor => 0x20 },
		'an LSN that becomes new' => { find => $header->(3), at => 3, xor => 0x40 },
		'an LSN that becomes new, in the last page' => { find => $header->($blocks - 5), at => 3, xor => 0x40 },
		'pd_checksum' => { find => $header->(4), at => 8, xor => 1 },
		'pd_lower' => { find => $header->(5), at => 12, xor => 4 },
		'pd_upper' => { find => $header->(5), at => 15, xor => 2 },
		'a new page' => { find => $header->($blocks - 5), at => BLOCK + 1000, xor => 1 },
		'a small relation' => { find => 'SMALL-ONE', at => 0, xor => 1 },
		'free space map' => { find => bytes_of("${file}_fsm", 0, 48), at => 30, xor => 1 },
		'visibility map' => { find => bytes_of("${file}_vm", 0, 32), at => 25, xor => 1 },
		'pg_xact' => { find => bytes_of("$pgdata/pg_xact/0000", 0, 64), at => 50, xor => 1 },
		'postgresql.conf' => { find => "\nautovacuum = off", at => 14, xor => 0x20 },
		'a relation map' => { find => pack('V', 0x592717), at => 8, xor => 1 },
		'the label' => { find => 'START TIMELINE: ', at => 16, xor => 2 },
		'the name of the label' => { find => 'LABEL: pg_parallel_basebackup', at => 9, xor => 2 },
		"a tablespace's location" => { find => "$tempdir/@{[ $node->name ]}.ts", at => length("$tempdir/x"), xor => 1 },
		'a listed name' => { find => $listed, at => length($path) - 1, xor => 1 },
		'a listed type' => { find => $listed, at => length($path) + 4, xor => 2 },
		'a listed size' => { find => $listed, at => length($path) + 9, xor => 1 },
		'the last row of the list, which libpq then drops' => { find => last_listed($node), at => 0, xor => 0x20 },
		'the control file' => { find => unpack('H*', bytes_of("$pgdata/global/pg_control", 0, 8)), at => 50, xor => 1 },
		'WAL' => { find => pack('Q<', $system), at => 500, xor => 8 });

	# The reference: nothing is changed on the way.
	my $reference = "$tempdir/reference.$checksums";
	my $plain = "dbname=postgres user=$user sslmode=disable";
	my ($well, $said) = backup_through($node, $reference, $plain, { find => 'nothing has this', at => 0, xor => 1 }, '--wal-method=fetch', '--verbose');
	ok($well, 'a network that changes nothing') or diag($said);
	is_good($node, $reference, $reference, 'a network that changes nothing');
	like($said, $checksums && !stock_server() ? qr/using replication commands/ : qr/using the SQL procedures/, 'by which way');

	for my $case (sort keys %change)
	{
		for my $always ($case =~ /^(?:a relation page|an LSN that becomes new|pg_xact)\z/ ? (0, 1) : 0)
		{
			my $name = ($checksums ? 'page checksums' : 'no page checksums') . ", $case" . ($always ? ', each time' : '');
			my $copy = "$tempdir/" . ++$backups;
			my ($good, $stderr) = backup_through($node, $copy, $plain, { %{ $change{$case} }, always => $always }, '--wal-method=fetch');
			ok(-e "$copy.changed", "$name: a byte was changed");
			if ($good)
			{
				ok(!$always, "$name: what always comes wrong is no success") or diag($stderr);
				is_good($node, $copy, $reference, $name);
			}
			else
			{
				like($stderr, qr/damaged in transit|in 3 tries|does not match|invalid|control file/, "$name: why it failed");
				ok(!-e "$copy/PG_VERSION", "$name: nothing is left");
			}
			# What comes wrong once comes right when it is asked for again.
			ok($good, "$name: mended") or diag($stderr) if !$always && $case =~ /page|LSN|pd_|map|relation|xact|conf/;
		}
	}

	# What the manifest has, and who verifies, makes no difference.
	for my $case ([ 'pg_xact', '--manifest-checksums=NONE' ], [ 'pg_xact', '--no-manifest' ], [ 'pg_xact', '--verify=client' ],
		[ 'a relation page', '--verify=client' ], [ 'a relation page', '--verify=server' ], [ 'a relation page', '--no-verify-checksums', '--no-manifest' ])
	{
		my ($what, @options) = @$case;
		my $name = join ' ', ($checksums ? 'page checksums,' : 'no page checksums,'), @options, $what;
		my $copy = "$tempdir/" . ++$backups;
		my ($good, $stderr) = backup_through($node, $copy, $plain, { %{ $change{$what} }, always => 1 }, '--wal-method=fetch', @options);
		ok(-e "$copy.changed" && !$good, "$name: what always comes wrong is no success");
		like($stderr, qr/could not fetch file "[^"]+" in 3 tries: file "[^"]+" was damaged in transit: its CRC32C checksum does not match/, "$name: why it failed");
		ok(!-e "$copy/PG_VERSION", "$name: nothing is left");
	}

	# Any byte of what the server sends, also where it is encrypted.
	for my $sslmode ('disable', has_tls() ? 'require' : ())
	{
		for my $nth (300, 3_000, 30_000, 300_000, 3_000_000, 9_000_000)
		{
			my $name = ($checksums ? 'page checksums' : 'no page checksums') . ", sslmode=$sslmode, byte $nth";
			my $copy = "$tempdir/" . ++$backups;
			my ($good, $stderr) = backup_through($node, $copy, "dbname=postgres user=$user sslmode=$sslmode", { nth => $nth, xor => 1 }, '--wal-method=fetch');
			ok(-e "$copy.changed", "$name: was changed");
			is_good($node, $copy, $reference, $name) if $good;
			ok($good || !-e "$copy/PG_VERSION", "$name: a good copy or none") or diag($stderr);
		}
	}

	# WAL that is streamed: its page headers, and what a record has in it while the backup runs.
	if ($checksums)
	{
		$node->safe_psql('postgres', q(
			CREATE PROCEDURE chatter() LANGUAGE plpgsql AS $$ BEGIN
				LOOP
					-- In two, so that the procedure itself has no such bytes.
					PERFORM pg_logical_emit_message(false, 'x', 'MARKED-' || 'MESSAGE' || repeat('m', 3000));
					PERFORM pg_sleep(0.002);
					COMMIT;
				END LOOP; END $$));
		my $writer = IPC::Run::start([ 'psql', '-X', '-c', 'CALL chatter()', $node->connstr('postgres') ], '>&' => \my $said);
		for my $case (
			[ 'page header', { find => pack('Q<', $system), at => -10, xor => 1 } ],
			[ 'segment size', { find => pack('Q<', $system), at => 10, xor => 1 } ],
			[ 'position', { find => pack('Q<', $system), at => -46, xor => 1 }, qr/received write-ahead log of 1[0-9A-F]+\/[0-9A-F]+, expected that of 0\/[0-9A-F]+/ ],
			[ 'a record', { find => 'MARKED-MESSAGE', at => 2000, xor => 1 } ],
			[ 'nothing', { find => 'nothing has this', at => 0, xor => 1 } ])
		{
			my ($name, $change, $why) = @$case;
			$why //= qr/write-ahead log at [0-9A-F\/]+ was damaged/;
			my $copy = "$tempdir/" . ++$backups;
			my ($good, $stderr) = backup_through($node, $copy, $plain, { %$change, always => 1 }, '--wal-method=stream');
			is($good ? 1 : 0, $name eq 'nothing' ? 1 : 0, "streamed WAL, $name") or diag($stderr);
			like($stderr, qr/WAL streaming failed: $why/, "streamed WAL, $name: why") if !$good;
			ok($good || !-e "$copy/PG_VERSION", "streamed WAL, $name: nothing is left");
		}
		$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'CALL chatter()'));
		$writer->finish;
	}
	# A timeline's history comes in the stream's connection, without a checksum.
	if ($checksums)
	{
		$node->stop;
		append_to_file("$pgdata/standby.signal", '');
		$node->start;
		$node->promote;
		$node->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'no promotion';
		my $copy = "$tempdir/" . ++$backups;
		my ($good, $stderr) = backup_through($node, $copy, $plain, { find => 'no recovery target specified', at => 4, xor => 1 }, '--wal-method=stream');
		ok($good && -e "$copy.changed", 'timeline history: a byte was changed') or diag($stderr);
		is(slurp_file("$copy/pg_wal/00000002.history"), slurp_file("$pgdata/pg_wal/00000002.history"), 'timeline history: mended');
	}
	$node->stop;
}

done_testing();
