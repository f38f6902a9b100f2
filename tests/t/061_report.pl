# What the client tells programs: --progress=json and --report, and what becomes of a backup when nobody takes it.

use strict;
use warnings FATAL => 'all';

use IPC::Run ();
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1);
my $pgdata = $node->data_dir;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-d' => $node->connstr('postgres'));
$node->safe_psql('postgres', 'CREATE TABLE t AS SELECT generate_series(1, 20000) AS id');
my $number = 0;

sub new_target { return "$tempdir/target" . ++$number }
sub report_of { return JSON::PP::decode_json(slurp_file($_[0])) }

# The report of a good backup.
{
	my ($target, $file) = (new_target(), "$tempdir/report.json");
	write_file($file, 'an old one');
	umask 0027;
	command_ok([ @client, '-D' => $target, '-j' => 3, "--report=$file", '-l' => 'a "label"' ], '--report');
	umask 0077;
	my $report = report_of($file);
	is($report->{outcome}, 'complete', '--report: outcome');
	is($report->{error}, undef, '--report: no error');
	is($report->{label}, 'a "label"', '--report: label');
	is($report->{directory}, $target, '--report: directory');
	is($report->{connections}{files}, 3, '--report: connections');
	is($report->{connections}{lost} + $report->{retries} + $report->{checksum_failures}, 0, '--report: no trouble');
	is($report->{server}{system_identifier}, $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()'), '--report: cluster');
	is($report->{server}{version}, $node->safe_psql('postgres', 'SHOW server_version_num'), '--report: version');
	is($report->{server}{way}, stock_server() ? 'SQL procedures' : 'replication commands', '--report: the way');
	my $manifest = JSON::PP::decode_json(slurp_file("$target/backup_manifest"));
	my $ranges = $manifest->{'WAL-Ranges'};
	is_deeply($report->{wal}{ranges}, [ map { { timeline => $_->{Timeline}, start => $_->{'Start-LSN'}, end => $_->{'End-LSN'} } } @$ranges ], '--report: WAL ranges');
	is($report->{wal}{start}, $ranges->[0]{'Start-LSN'}, '--report: where WAL begins');
	# The manifest has two files more, of the client's own; WAL that is streamed is in neither.
	is($report->{files}, @{ $manifest->{Files} } - 2, '--report: files');
	cmp_ok($report->{bytes}, '>', -s "$target/base/1/1259", '--report: bytes');
	cmp_ok($report->{seconds}{total}, '>=', $report->{seconds}{files}, '--report: seconds');
	like($report->{limit}, qr/^(checkpoint|server|client CPU|disk write)$/, '--report: the limit, on a local socket');
	my $sum = 0;
	$sum += $_ for values %{ $report->{shares} };
	cmp_ok($sum, '<=', 100, '--report: shares');
	is((stat $file)[2] & 07777, 0640, '--report: its mode is that of the umask');
	is((stat $target)[2] & 07777, 0700, '--report: that of the backup is not');
	is_deeply([ grep { /report/ } slurp_dir($tempdir) ], ['report.json'], '--report: nothing else is left');
}

# To standard output; of a rate that is limited.
{
	my ($stdout) = run_command([ @client, '-t' => 'blackhole', '-X' => 'none', '--report=-', '-r' => '8M' ]);
	my $report = JSON::PP::decode_json($stdout);
	is($report->{directory}, undef, '--report=-: the black hole has no directory');
	is($report->{limit}, 'rate limit', '--report=-: a rate limit');
}

# Of what failed.
{
	my ($target, $file) = (new_target(), "$tempdir/failed.json");
	command_fails([ @client, '-D' => $target, "--report=$file", '-S' => 'nope' ], 'a backup that fails');
	my $report = report_of($file);
	is($report->{outcome}, 'failed', 'a backup that fails: outcome');
	like($report->{error}, qr/replication slot "nope" does not exist/, 'a backup that fails: error');
	is($report->{limit}, undef, 'a backup that fails: no limit');
	command_fails([ 'pg_parallel_basebackup', '-h' => $tempdir, '-D' => $target, "--report=$file" ], 'no server');
	like(report_of($file)->{error}, qr/connection to server/, 'no server: error');
}

# Pages that are damaged on the server.
{
	my ($target, $file) = (new_target(), "$tempdir/damaged.json");
	my $path = $node->safe_psql('postgres', q(CREATE TABLE damaged AS SELECT generate_series(1, 100000) AS n; SELECT pg_relation_filepath('damaged')));
	$node->stop;
	open(my $relation, '+<', "$pgdata/$path") or die "could not open $path: $!";
	for my $block (0, 3)
	{
		seek($relation, $block * 8192 + 100, 0);
		print $relation 'damage';
	}
	close($relation);
	$node->start;
	command_fails([ @client, '-D' => $target, "--report=$file" ], 'damaged pages');
	my $report = report_of($file);
	is($report->{outcome}, 'damaged', 'damaged pages: outcome');
	is($report->{checksum_failures}, 2, 'damaged pages: how many');
	$node->safe_psql('postgres', 'DROP TABLE damaged');
}

# Places where no report can be: known before the server is bothered.
{
	my $target = new_target();
	symlink '/dev/null', "$tempdir/link" or die;
	for my $case (
		[ "$tempdir/no/report", qr/could not create file "\Q$tempdir\E\/no\/.*": No such file or directory/ ],
		[ $tempdir, qr/report file "\Q$tempdir\E" exists but is not a regular file/ ],
		[ "$tempdir/link", qr/report file "\Q$tempdir\E\/link" exists but is not a regular file/ ],
		[ '/dev/null', qr/report file "\/dev\/null" exists but is not a regular file/ ],
		[ "$target/report", qr/report file must not be in a directory of the backup/ ])
	{
		my ($file, $message) = @$case;
		command_fails_like([ @client, '-D' => $target, "--report=$file" ], $message, "--report=$file");
		ok(!-e $target, "--report=$file: no backup");
	}
	ok(-c '/dev/null' && -l "$tempdir/link", 'what was there is there');
	mkdir "$tempdir/locked", 0500;
	command_fails_like([ @client, '-D' => $target, "--report=$tempdir/locked/r" ], qr/Permission denied/, '--report in a directory that cannot be written to');
}

# The report cannot be written in the end: the backup is there, and the exit code says that something is wrong.
{
	my ($target, $directory) = (new_target(), "$tempdir/gone");
	mkdir $directory;
	my ($stdout, $stderr) = ('', '');
	my $run = IPC::Run::start([ @client, '-D' => $target, "--report=$directory/r", '-r' => '4M', '-v' ], '>' => \$stdout, '2>' => \$stderr);
	ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM parallel_backup.backups WHERE files > 10)), 'the backup runs');
	rmdir $directory or die "could not remove $directory: $!";
	$run->finish;
	is($run->result(0), 1, 'no place for the report in the end: exit code');
	like($stderr, qr/base backup completed.*error: could not create file "\Q$directory\E.*detail: The backup itself is complete\./s, 'no place for the report in the end: says so');
	command_ok([ 'pg_verifybackup', $target ], 'no place for the report in the end: the backup is good');
}
SKIP:
{
	skip 'no /dev/full', 2 if !-c '/dev/full';
	my $target = new_target();
	my $status = system("pg_parallel_basebackup --no-sync -c fast -d '" . $node->connstr('postgres') . "' -D $target --report=- >/dev/full 2>$tempdir/full");
	isnt($status, 0, 'standard output is full: exit code');
	like(slurp_file("$tempdir/full"), qr/error: could not write report: No space left on device/, 'standard output is full: says so');
}

# Progress as JSON: lines, of which each is an object.
{
	my $target = new_target();
	my ($stdout, $stderr) = run_command([ @client, '-D' => $target, '--progress=json' ]);
	my @lines = map { JSON::PP::decode_json($_) } split(/\n/, $stdout);
	cmp_ok(scalar @lines, '>=', 1, '--progress=json: at least the last line');
	my $last = $lines[-1];
	is($last->{outcome}, 'complete', '--progress=json: outcome');
	is($last->{bytes_done}, $last->{bytes_total}, '--progress=json: bytes');
	is($last->{files_done}, $last->{files_total}, '--progress=json: files');
	like($last->{time}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/, '--progress=json: time');
	is_deeply([ sort keys %$last ], [ sort qw(time outcome phase elapsed_seconds bytes_done bytes_total files_done files_total bytes_per_second seconds_left retries connections_lost) ], '--progress=json: all fields');
	is($stderr, '', '--progress=json: nothing else');
}

# Who does not read, or goes away, holds nothing up.
{
	my $target = new_target();
	my $status = system("bash", "-c", "set -o pipefail; pg_parallel_basebackup --no-sync -c fast -d '" . $node->connstr('postgres') . "' -D $target --progress=json 2>$tempdir/deaf | true");
	is($status, 0, 'a reader that has gone away: the backup succeeds');
	unlike(slurp_file("$tempdir/deaf"), qr/error/, 'a reader that has gone away: no error');
	command_ok([ 'pg_verifybackup', $target ], 'a reader that has gone away: the backup is good');

	pipe(my $reader, my $writer) or die "could not make a pipe: $!";
	$writer->blocking(0);
	1 while syswrite($writer, 'x' x 4096);
	$writer->blocking(1);
	$target = new_target();
	my $pid = fork // die "could not fork: $!";
	if (!$pid)
	{
		open(STDOUT, '>&', $writer) or die;
		exec @client, '-D' => $target, '--progress=json' or die;
	}
	waitpid($pid, 0);
	is($?, 0, 'a pipe that is full: the backup succeeds');
	command_ok([ 'pg_verifybackup', $target ], 'a pipe that is full: the backup is good');
}

# Other languages have other commas; JSON has not.
{
	local $ENV{LC_ALL} = 'de_DE.UTF-8';
	local $ENV{LANG} = 'de_DE.UTF-8';
	my ($stdout) = run_command([ @client, '-t' => 'blackhole', '-X' => 'none', '--report=-' ]);
	ok(eval { JSON::PP::decode_json($stdout)->{outcome} eq 'complete' }, 'another locale');
}

# Started, and asked for its data.
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	command_ok([ @client, '-D' => $copy->data_dir, "--report=$tempdir/last.json", '--progress=json' ], 'a backup at the end');
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'), '20000|200010000', 'its data');
	$copy->stop;
}

done_testing();
