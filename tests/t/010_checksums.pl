# Page checksums: what is corrupt is reported, what is not is not.

use strict;
use warnings FATAL => 'all';

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

use constant BLOCK => 8192;

my $tempdir = PostgreSQL::Test::Utils::tempdir;
my $node = parallel_node('main');
my $pgdata = $node->data_dir;
$node->safe_psql('postgres', q(
	CREATE TABLE good AS SELECT generate_series(1, 20000) AS id;
	CREATE TABLE one AS SELECT generate_series(1, 20000) AS id;
	CREATE TABLE many AS SELECT generate_series(1, 20000) AS id;
	CREATE TABLE future AS SELECT generate_series(1, 2000) AS id;
	CREATE INDEX ON good (id);
	CHECKPOINT;));
my %path = map { $_ => $node->safe_psql('postgres', "SELECT pg_relation_filepath('$_')") }
  qw(good one many future);
my $dbdir = $path{good} =~ s{/[^/]+\z}{}r;

sub patch_file
{
	my ($path, $offset, $bytes) = @_;
	open my $fh, '+<:raw', "$pgdata/$path" or die "$path: $!";
	seek($fh, $offset, 0);
	print $fh $bytes;
	close $fh or die $!;
	return;
}

# pg_checksums on the stopped cluster.
sub bad_checksums
{
	my ($stdout) = run_command([ 'pg_checksums', '--check', '--pgdata' => $pgdata ]);
	my ($bad) = $stdout =~ /^Bad checksums:\s+(\d+)$/m;
	return $bad;
}

sub failures_in_stats
{
	$node->safe_psql('postgres', 'SELECT pg_stat_force_next_flush()');
	return $node->safe_psql('postgres',
		q(SELECT checksum_failures FROM pg_stat_database WHERE datname = 'postgres'));
}

# A sound cluster first, a second segment with it: its block numbers go on where
# the first one ends.  pg_checksums computes what its page must have.
$node->stop;
{
	my $page;
	open my $fh, '<:raw', "$pgdata/$path{good}" or die $!;
	sysread($fh, $page, BLOCK) == BLOCK or die;
	close $fh;
	write_file("$pgdata/$dbdir/99999", $page x 2);
	write_file("$pgdata/$dbdir/99999.1", $page x 2);
	write_file("$pgdata/$dbdir/99999.7", $page x 2);
	write_file("$pgdata/$dbdir/99999_vm.1", $page x 2);
	command_ok([ 'pg_checksums', '--disable', '--no-sync', '--pgdata' => $pgdata ], 'checksums off');
	command_ok([ 'pg_checksums', '--enable', '--no-sync', '--pgdata' => $pgdata ], 'checksums on');
	is(bad_checksums(), 0, 'pg_checksums finds nothing');
}
$node->start;
{
	my $conn = connection($node);
	start_backup($conn);
	my @files = map { $_->{path} } grep { $_->{type} eq 'f' } list_files($conn);
	my $failures = 0;
	my $notices = 0;
	while (my @batch = splice(@files, 0, 500))
	{
		my $transfer = fetch($conn, \@batch);
		$failures += $_->{failures} for @{ $transfer->{files} };
		$notices += @{ $transfer->{reply}{notices} };
	}
	is($failures, 0, 'every page of a sound cluster verifies');
	is($notices, 0, 'no warning');
	# Ranges count blocks from the beginning of the relation, not of the range.
	my $transfer = fetch($conn,
		[ [ "$dbdir/99999.7", BLOCK, BLOCK ], [ "$dbdir/99999.1", BLOCK ], [ $path{good}, 5 * BLOCK, 3 * BLOCK ] ]);
	is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), '0 0 0', 'ranges verify');
	ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
	$conn->close;
}

# What is beside relations: before 17 every file among them has pages, but for a few by name, and a
# segment number of zero is an error (is_checksummed_file, sendFile).
{
	my $loose = server_major() < 17;
	# Of a database that nobody connects to: its own files are in the way of that.
	my $dbdir = 'base/1';
	# Pages with an LSN of zero, not new: never right.
	my $page = pack('x14 S a*', 1, "\x01" x (BLOCK - 16));
	my @names = qw(notes notes.2 PG_VERSION_ PG_VERSION pg_filenode.map);
	my %before = map { my $path = "$pgdata/$dbdir/$_"; $_ => -e $path ? slurp_file($path) : undef } @names;
	write_file("$pgdata/$dbdir/$_", $page x 2) for @names;
	write_file("$pgdata/$dbdir/notes.txt", $page);
	write_file("$pgdata/pg_xact/notes", $page);
	my $conn = connection($node);
	start_backup($conn);
	my $transfer = fetch($conn, [ (map { "$dbdir/$_" } @names), 'pg_xact/notes' ]);
	is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), $loose ? '2 2 2 0 0 0' : '0 0 0 0 0 0',
		'files beside relations');
	like(join("\n", map { $_->{message} } @{ $transfer->{reply}{notices} }),
		$loose ? qr/notes\.2", block 262145: calculated/ : qr/^\z/, 'their warnings');
	if ($loose)
	{
		is_error($conn, send_files_sql(["$dbdir/notes.txt"]), 'XX000',
			qr/^invalid segment number 0 in file "$dbdir\/notes\.txt"$/, 'no segment number');
	}
	is(scalar @{ fetch($conn, ["$dbdir/notes.txt"], VERIFY_CHECKSUMS => 'false')->{files} }, 1,
		'not read as one where nothing is verified');
	my $stop = stop_backup($conn);
	is($stop->{totals}{checksum_failures}, $loose ? 6 : 0, 'in the totals');
	$conn->close;

	# The client, whoever verifies: it says and does the same.
	my %words;
	for my $verify (qw(client server))
	{
		my @command = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--wal-method' => 'none',
			'--verify' => $verify, '--dbname' => $node->connstr('postgres'), '--pgdata' => "$tempdir/beside_$verify");
		if ($loose)
		{
			$node->command_checks_all([@command], 1, [qr/^$/],
				[qr/error: .*file "$dbdir\/notes\.txt".*ERROR:  invalid segment number 0 in file "$dbdir\/notes\.txt"/],
				"--verify=$verify: no segment number");
			ok(!-e "$tempdir/beside_$verify", "--verify=$verify: no segment number: nothing is left");
		}
		rename("$pgdata/$dbdir/notes.txt", "$tempdir/notes.txt") or die $!;
		IPC::Run::run([@command], '>' => \my $stdout, '2>' => \my $stderr);
		is($? >> 8, $loose ? 1 : 0, "--verify=$verify: exit code");
		# In which order files come is not said.
		$words{$verify} = join("\n", sort split /\n/, $stderr);
		my @found = $words{$verify} =~ /checksum verification failed in file "$dbdir\/([^"]+)", block (\d+):/g;
		is("@found", $loose ? 'PG_VERSION_ 0 PG_VERSION_ 1 notes 0 notes 1 notes.2 262144 notes.2 262145' : '',
			"--verify=$verify: files beside relations");
		like($words{$verify}, $loose ? qr/^WARNING:  6 total checksum verification failures$/m : qr/^(?!.*checksum)/s,
			"--verify=$verify: in the totals");
		ok(slurp_file("$tempdir/beside_$verify/$dbdir/$_") eq slurp_file("$pgdata/$dbdir/$_"), "--verify=$verify: $_ as it is") for @names;
		rename("$tempdir/notes.txt", "$pgdata/$dbdir/notes.txt") or die $!;
	}
	is($words{client}, $words{server}, 'the same words');
	for my $name (@names, 'notes.txt')
	{
		if (defined $before{$name}) { write_file("$pgdata/$dbdir/$name", $before{$name}) }
		else { unlink "$pgdata/$dbdir/$name" }
	}
	unlink "$pgdata/pg_xact/notes";
}

# New pages are not checked, and neither is what has changed since the start.
$node->stop;
{
	# All zeros; a page whose header says new though there is something in it.
	make_file("$pgdata/$dbdir/99998", 4 * BLOCK);
	patch_file("$dbdir/99998", BLOCK + 100, 'garbage');
	# An LSN in the future (and a checksum that cannot fit): two halves, each in
	# the machine's byte order.
	patch_file($path{future}, 0, pack('L L', 0x7FFFFFFF, 0));
	# A file that is no relation's, beside relations: it has no pages.
	write_file("$pgdata/$dbdir/not_a_relation", "\x01" x (2 * BLOCK));
	write_file("$pgdata/base/99999", "\x01" x (2 * BLOCK));
	write_file("$pgdata/pg_xact/99999", "\x01" x (2 * BLOCK));
}
$node->start;
{
	my $conn = connection($node);
	start_backup($conn);
	my $transfer = fetch($conn,
		[ "$dbdir/99998", $path{future}, "$dbdir/not_a_relation", 'base/99999', 'pg_xact/99999', "$dbdir/PG_VERSION" ]);
	is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), '0 0 0 0 0 0', 'not checked');
	is(scalar @{ $transfer->{reply}{notices} }, 0, 'and not warned of');
	ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
	$conn->close;
}
# A relation file that does not end with a page: a warning, as in BASE_BACKUP.
{
	my $conn = connection($node);
	write_file("$pgdata/$dbdir/99997", slurp_file("$pgdata/$path{good}") =~ s/^(.{8292}).*/$1/sr);
	start_backup($conn);
	my $transfer = fetch($conn, ["$dbdir/99997"]);
	is($transfer->{files}[0]{length}, BLOCK + 100, 'an odd size: whole');
	is($transfer->{files}[0]{failures}, 0, 'an odd size: no failure');
	my @messages = map { $_->{message} } @{ $transfer->{reply}{notices} };
	is(scalar @messages, 1, 'an odd size: one warning');
	like($messages[0],
		qr/^could not verify checksum in file "(?:\.\/)?$dbdir\/99997", block \d+: read buffer size \d+ and page size 8192 differ$/,
		'an odd size: its words');
	ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
	$conn->close;
}
$node->stop;
unlink map { "$pgdata/$_" } ("$dbdir/99997", "$dbdir/99998", "$dbdir/not_a_relation", 'base/99999', 'pg_xact/99999');
$node->start;
$node->safe_psql('postgres', 'DROP TABLE future');
$node->stop;

# Corruption: one page of one table, eight of another, one of the second segment.
my @blocks = (0, 1, 3, 4, 5, 7, 8, 20);
$node->corrupt_page_checksum($path{one}, 2 * BLOCK);
$node->corrupt_page_checksum($path{many}, $_ * BLOCK) for @blocks;
$node->corrupt_page_checksum("$dbdir/99999.1", BLOCK);
is(bad_checksums(), 10, 'pg_checksums finds ten');
$node->start;
my $in_stats = failures_in_stats();

{
	my $conn = connection($node);
	my $worker = connection($node);
	my $start = start_backup($conn);
	my @id = (BACKUP_ID => $start->{backup_id});

	# One.
	my $transfer = fetch($worker, [ $path{one}, $path{good} ], @id);
	is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), '1 0', 'one page: the end frame');
	is(scalar @{ $transfer->{reply}{notices} }, 1, 'one page: one warning');
	is($transfer->{reply}{notices}[0]{severity}, 'WARNING', 'one page: its severity');
	like($transfer->{reply}{notices}[0]{message},
		qr/^checksum verification failed in file "(?:\.\/)?\Q$path{one}\E", block 2: calculated [0-9A-F]{1,4} but expected [0-9A-F]{1,4}$/,
		'one page: its words');

	# Eight: five warnings, the line that no more come, the total.
	$transfer = fetch($worker, [ $path{many} ], @id);
	is($transfer->{files}[0]{failures}, 8, 'eight pages: the end frame');
	my @messages = map { $_->{message} } @{ $transfer->{reply}{notices} };
	is_deeply([ map { /^checksum verification failed in file "(?:\.\/)?\Q$path{many}\E", block (\d+):/ } @messages ],
		[ @blocks[ 0 .. 4 ] ], 'eight pages: five of them by name');
	is(scalar(grep { /^further checksum verification failures in file "(?:\.\/)?\Q$path{many}\E" will not be reported$/ } @messages),
		1, 'eight pages: and no further ones');
	is(scalar(grep { /^file "(?:\.\/)?\Q$path{many}\E" has a total of 8 checksum verification failures$/ } @messages),
		1, 'eight pages: and their total');
	is(scalar @messages, 7, 'eight pages: nothing else');

	# Numbers of a later segment.
	$transfer = fetch($worker, ["$dbdir/99999.1"], @id);
	is($transfer->{files}[0]{failures}, 1, 'second segment: the end frame');
	like($transfer->{reply}{notices}[0]{message},
		qr/99999\.1", block 131073: calculated/, 'second segment: the block');

	# Ranges.
	$transfer = fetch($worker,
		[ [ $path{many}, 0, 2 * BLOCK ], [ $path{many}, 2 * BLOCK, BLOCK ], [ $path{many}, 8 * BLOCK, 100 * BLOCK ] ], @id);
	is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), '2 0 2', 'ranges: the end frames');

	# Not asked for.
	$transfer = fetch($worker, [ $path{one}, $path{many} ], @id, VERIFY_CHECKSUMS => 'false');
	is(join(' ', map { $_->{failures} } @{ $transfer->{files} }), '0 0', 'VERIFY_CHECKSUMS false: the end frames');
	is(scalar @{ $transfer->{reply}{notices} }, 0, 'VERIFY_CHECKSUMS false: no warning');

	# The bytes are sent as they are.
	ok($transfer->{files}[0]{data} eq slurp_file("$pgdata/$path{one}"), 'a corrupt file is sent as it is');

	# After the results, the error.
	my $stop = stop_backup($conn);
	is_report($stop->{reply}{error}, 'XX001',
		qr/^checksum verification failure during base backup$/, 'STOP_BACKUP');
	is(scalar @{ $stop->{reply}{results} }, 5, 'its results are all there');
	is($stop->{totals}{checksum_failures}, 1 + 8 + 1 + 4, 'failures in the totals');
	is(scalar(grep { $_->{message} =~ /^14 total checksum verification failures$/ } @{ $stop->{reply}{notices} }),
		1, 'a warning with their number');
	still_works($conn, 'the connection is usable');
	is(failures_in_stats() - $in_stats, 14, 'pg_stat_database.checksum_failures');

	# START_BACKUP may turn it off for all, and a command on again.
	start_backup($conn, VERIFY_CHECKSUMS => 'false');
	$transfer = fetch($conn, [ $path{one} ]);
	is($transfer->{files}[0]{failures}, 0, 'off for the backup');
	$transfer = fetch($conn, [ $path{one} ], VERIFY_CHECKSUMS => 'true');
	is($transfer->{files}[0]{failures}, 1, 'on for one command');
	is_report(stop_backup($conn)->{reply}{error}, 'XX001', qr/^checksum verification failure/, 'which counts');
	start_backup($conn, VERIFY_CHECKSUMS => 'false');
	fetch($conn, [ $path{one}, $path{many} ]);
	ok(!stop_backup($conn)->{reply}{error}, 'off for all of the backup: no error');
	$_->close for ($worker, $conn);
}

# The whole cluster, beside pg_checksums.
{
	my $dir = "$tempdir/whole";
	my $state = raw_backup($node, $dir);
	is($state->{failures}, 10, 'a whole backup finds what pg_checksums finds');
	is($state->{stop}{totals}{checksum_failures}, 10, 'in the totals too');
}

# The client reports, keeps the directory, and says so by its exit code.
{
	my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--jobs' => 3,
		'--dbname' => $node->connstr('postgres'));
	my $dir = "$tempdir/client";
	$node->command_checks_all(
		[ @client, '--pgdata' => $dir ],
		1, [qr/^$/],
		[ qr/WARNING:.*checksum verification failed/s, qr/checksum error occurred/ ],
		'the client reports checksum failures');
	ok(-f "$dir/PG_VERSION", 'and keeps the directory');
	# As pg_basebackup leaves it: complete, but for the manifest's last name.
	ok(!-e "$dir/backup_manifest", 'which cannot pass for a good one');
	rename("$dir/backup_manifest.tmp", "$dir/backup_manifest");
	command_ok([ 'pg_verifybackup', $dir ], 'but is complete');

	my $copy = PostgreSQL::Test::Cluster->new('copy');
	$node->command_ok([ @client, '--no-verify-checksums', '--pgdata' => $copy->data_dir ],
		'--no-verify-checksums');
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM good'), 20000, 'data of the copy');
	$copy->stop;
}

# Without data checksums nothing is checked.
{
	$node->stop;
	command_ok([ 'pg_checksums', '--disable', '--no-sync', '--pgdata' => $pgdata ], 'checksums off');
	$node->start;
	my $conn = connection($node);
	my $start = start_backup($conn);
	is($start->{data_checksums}, 0, 'data_checksums');
	is(fetch($conn, [ $path{many} ], VERIFY_CHECKSUMS => 'true')->{files}[0]{failures}, 0,
		'no data checksums, no failures');
	ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
	$conn->close;
}

done_testing();
