# Who verifies: --verify=client and --verify=server make the same backup and say the
# same of damaged pages, on plain and on encrypted connections.

use strict;
use warnings FATAL => 'all';

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::TLS;
use ParallelBackup::Test;

use constant BLOCK => 8192;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', conf => qq(
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
log_replication_commands = on
listen_addresses = '127.0.0.1'
));
my $pgdata = $node->data_dir;
mkdir "$tempdir/ts" or die $!;
for my $sql (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	'CREATE TABLE one AS SELECT generate_series(1, 20000) AS id',
	'CREATE TABLE many AS SELECT generate_series(1, 20000) AS id',
	'CREATE TABLE spaced TABLESPACE ts AS SELECT generate_series(1, 20000) AS id',
	# More than is given to one connection of four, in a file of its own: split.
	"CREATE TABLE big (id int, t text)",
	"ALTER TABLE big ALTER t SET STORAGE plain",
	"INSERT INTO big SELECT i, repeat('x', 1900) FROM generate_series(1, 72000) i",
	'VACUUM FREEZE')
{
	$node->safe_psql('postgres', $sql);
}
$node->restart;
$node->safe_psql('postgres', 'CHECKPOINT');
my %path = map { $_ => $node->safe_psql('postgres', "SELECT pg_relation_filepath('$_')") } qw(one many big spaced);
my $rows = q(SELECT count(*), sum(id) FROM big WHERE ctid < '(17000,0)');
my $expected = $node->safe_psql('postgres', $rows);
cmp_ok(-s "$pgdata/$path{big}", '>', 128 << 20, 'a file that is worth splitting');

my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--wal-method' => 'none', '--no-estimate-size');
my $plain = $node->connstr('postgres');

# The commands that a backup sends say who verifies.
sub who_verified
{
	my ($offset) = @_;
	my $log = slurp_file($node->logfile, $offset);
	my @transfers = $log =~ /(?:received replication command|statement): ((?:CALL parallel_backup\.)?send_files_content.*)/gi;
	return 'nobody' if !@transfers;
	# Without the server's checksum, only relation files of some size.
	my @unchecked = grep { !/FILE_CHECKSUM/i } @transfers;
	return 'server' if !@unchecked;
	for my $transfer (@unchecked)
	{
		return "unclear: $transfer" if $transfer !~ /VERIFY_CHECKSUMS (?:=> )?false/i;
		my @files = $transfer =~ m{'((?:base|global|pg_tblspc)?[^'\s=>]*/[^']+)'}g;
		my @others = grep { !m{/\d+(?:_[a-z]+)?(?:\.\d+)?\z} } @files;
		return "unclear: $transfer" if !@files || @others;
	}
	return @unchecked < @transfers ? 'client' : 'client alone';
}

my $number = 0;

sub backup
{
	my ($name, $who, $connstr, @options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $dir = "$tempdir/" . ++$number;
	my $offset = -s $node->logfile;

	my ($stdout, $stderr) = run_command(
		[ @client, '--jobs' => 4, '--verbose', '--dbname' => $connstr, '--pgdata' => $dir,
			'--tablespace-mapping' => "$tempdir/ts=$dir.ts", @options ]);
	like($stderr, qr/base backup completed/, $name) or diag($stderr);
	is(who_verified($offset), $who, "$name: who verified");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $dir ], "$name: pg_verifybackup");
	return ($dir, $stderr);
}

# The same directory, whatever the way.
my %differ = ('backup_label' => 1, 'backup_manifest' => 1, 'global/pg_control' => 1);

sub same
{
	my ($one, $other, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($left, $right) = map { file_tree($_) } ($one, $other);
	for my $tree ($left, $right)
	{
		$_->{target} = 'a tablespace' for grep { $_->{type} eq 'l' } values %$tree;
	}
	compare_trees($left, $right, "$name: data directory", differ => \%differ);
	compare_trees("$one.ts", "$other.ts", "$name: tablespace");
	return;
}

my ($first, $said) = backup('by default', 'client', $plain);
my ($received, $sent) = $said =~ /received \d+ bytes in (\d+) files; the server sent \d+ bytes in (\d+) files/;
cmp_ok($sent, '>', $received, 'a big file came in parts');
for my $case (
	[ '--verify=client', 'client', $plain, '--verify=client' ],
	[ '--verify=server', 'server', $plain, '--verify=server' ],
	[ 'through libpq', 'client', $plain, '--through-libpq' ],
	[ 'one connection', 'client', $plain, '--jobs=1' ],
	[ 'TCP', 'client', "$plain host=127.0.0.1 sslmode=disable" ])
{
	my ($name, $who, $connstr, @options) = @$case;
	my ($dir) = backup($name, $who, $connstr, @options);
	same($first, $dir, $name);
}
{
	# Checksums that parts cannot be put together from.
	my ($dir) = backup('SHA256', 'client', $plain, '--manifest-checksums=SHA256');
	like(slurp_file("$dir/backup_manifest"), qr/"SHA256"/, 'the manifest has them');
	same($first, $dir, 'SHA256');
}

# Encryption: the server verifies, unless it is told otherwise.
SKIP:
{
	skip 'the server has no TLS', 1 unless has_tls();
	offer_tls($node);
	$node->restart;
	$node->safe_psql('postgres', 'CHECKPOINT');
	my $tls = "$plain host=127.0.0.1 sslmode=require";
	my ($reference) = backup('ssl = on, plain connection', 'client', $plain);
	for my $case ([ 'TLS', 'server' ], [ 'TLS, --verify=client', 'client', '--verify=client' ], [ 'TLS, --verify=server', 'server', '--verify=server' ])
	{
		my ($name, $who, @options) = @$case;
		my ($dir) = backup($name, $who, $tls, @options);
		same($reference, $dir, $name);
	}
	# libpq's buffer grows with the data where messages are larger than what is encrypted at once. The program itself takes as
	# much as it does without encryption, which is more or less by how it was built, and TLS has libraries of its own.
	my $memory = sub {
		my ($connection, @options) = @_;
		my ($stdout, $stderr) = run_command([ 'pg_parallel_basebackup', '--discard', '--checkpoint' => 'fast', '--jobs' => 1, '--verbose', @options, '--dbname' => $connection ]);
		my ($kb) = $stderr =~ /used at most (\d+) kB of memory/ or diag($stderr);
		return $kb // 'inf';
	};
	my $usual = $memory->($plain);
	for my $way ('--verbose', '--through-libpq')
	{
		cmp_ok($memory->($tls, $way), '<', $usual + (8 << 10), "TLS, $way: memory in kB, of $usual");
	}
}

# --discard: nothing is written, and everything was read.
{
	my ($stdout, $stderr) = run_command([ 'pg_parallel_basebackup', '--discard', '--checkpoint' => 'fast', '--jobs' => 4, '--verbose', '--dbname' => $plain ]);
	like($stderr, qr/base backup received and discarded/, '--discard');
	my ($bytes) = $stderr =~ /received (\d+) bytes/;
	cmp_ok($bytes, '>', -s "$pgdata/$path{big}", '--discard: what it received');
	like($stderr, qr/used at most \d+ kB of memory/, '--discard: its memory');
}

# Damage: the same words, the same end, whoever found it.
$node->stop;
my @blocks = (0, 1, 3, 4, 5, 7, 8, 20);
$node->corrupt_page_checksum($path{one}, 2 * BLOCK);
$node->corrupt_page_checksum($path{many}, $_ * BLOCK) for @blocks;
$node->corrupt_page_checksum($path{spaced}, BLOCK);
# In the last part.
$node->corrupt_page_checksum($path{big}, 17000 * BLOCK);
$node->start;
my %words;
for my $verify (qw(client server))
{
	my $dir = "$tempdir/damaged.$verify";
	IPC::Run::run(
		[ @client, '--jobs' => 4, '--verify' => $verify, '--dbname' => $plain, '--pgdata' => $dir, '--tablespace-mapping' => "$tempdir/ts=$dir.ts" ],
		'>' => \my $stdout, '2>' => \my $stderr);
	my $code = $? >> 8;
	is($code, 1, "damage, $verify: exit code");
	# In which order files come is not said.
	$words{$verify} = join("\n", sort grep { !/archiving is not enabled/ } split /\n/, $stderr);
	like($stderr, qr/WARNING:  checksum verification failed in file "\Q$path{one}\E", block 2: calculated/, "damage, $verify: one page");
	like($stderr, qr/file "\Q$path{many}\E" has a total of 8 checksum verification failures/, "damage, $verify: eight");
	like($stderr, qr/"\Q$path{big}\E", block 17000:/, "damage, $verify: in a file that is split");
	like($stderr, qr/11 total checksum verification failures/, "damage, $verify: all of them");
	ok(-f "$dir/backup_manifest.tmp", "damage, $verify: the directory stays");
	rename("$dir/backup_manifest.tmp", "$dir/backup_manifest");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $dir ], "damage, $verify: and is complete");
}
is($words{client}, $words{server}, 'damage: the same words');
same("$tempdir/damaged.client", "$tempdir/damaged.server", 'damage');
{
	$node->command_checks_all([ 'pg_parallel_basebackup', '--discard', '--checkpoint' => 'fast', '--dbname' => $plain ],
		1, [qr/^$/], [ qr/checksum verification failed in file/, qr/checksum error occurred/ ], 'damage, --discard');
	my $offset = -s $node->logfile;
	$node->command_ok([ @client, '--no-verify-checksums', '--dbname' => $plain, '--pgdata' => "$tempdir/unverified", '--tablespace-mapping' => "$tempdir/ts=$tempdir/unverified.ts" ],
		'damage, --no-verify-checksums');
	is(who_verified($offset), 'server', q(without page checksums the server's checksums are all that there is));
}
$node->stop;

# What was made over one of these ways starts.
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	$node->start;
	$node->command_ok([ 'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--no-verify-checksums', '--jobs' => 4,
		'--dbname' => $plain, '--pgdata' => $copy->data_dir, '--tablespace-mapping' => "$tempdir/ts=$tempdir/copy_ts" ], 'a last one');
	$node->stop;
	start_copy($copy);
	# Up to the page that is damaged.
	is($copy->safe_psql('postgres', $rows), $expected, 'data of the copy');
	$copy->stop;
}

done_testing();
