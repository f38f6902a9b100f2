# What happens while archives are written: files that change, connections that are lost, bytes that a
# network changes, signals. Nothing half is ever in an archive that is called good, and nothing is left of one that
# is not.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Proxy;
use ParallelBackup::Test;

use constant MB => 1024 * 1024;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
my $node = parallel_node('main', extension => 1, conf => <<CONF);
listen_addresses = '127.0.0.1'
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
CONF
my $pgdata = $node->data_dir;
my $theirs = "application_name = 'pg_parallel_basebackup' AND pid <> (SELECT pid FROM parallel_backup.backups)";

# The ways in which archives come about: placed, in order, and in order through a compressor.
my @ways = ([ 'files', [] ], [ 'gzip', ['-z'] ]);

# Starts a backup that is slow, and waits until the list is complete and files are sent.
sub start_slowly
{
	my (@options) = @_;
	my %run = (err => '');

	$run{handle} = IPC::Run::start(
		[ 'pg_parallel_basebackup', '--no-sync', '-v', '-Ft', '-c' => 'fast', '-X' => 'none', '-r' => '4M', '--no-verify-checksums', '-D' => $target, '-d' => $node->connstr('postgres'), @options ],
		'>' => \$run{out}, '2>' => \$run{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%run;
}

sub finished
{
	my ($run, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$run->{handle}->finish;
	is($run->{handle}->full_result(0), 0, "$name: exit code") or diag($run->{err});
	return;
}

sub base
{
	my ($archive) = glob "$target/base.tar*";
	return map { $_->{name} => $_ } members($archive);
}

# Relation files by their names, each with bytes of its own.
sub relation
{
	my ($name, $size, $byte) = @_;
	write_file("$pgdata/base/1/$name", $byte x $size);
	return "base/1/$name";
}

sub digest
{
	my ($content) = @_;
	return Digest::SHA->new(256)->add($content)->hexdigest;
}

for my $way (@ways)
{
	my ($kind, $options) = @$way;

	# The largest file comes first, and takes seconds. Meanwhile all others change.
	my $first = relation(90000, 24 * MB, 'f');
	# More than a part where files come in order.
	my $grown = relation(90001, 9 * MB, 'g');
	my $shrunk = relation(90002, MB, 's');
	my $gone = relation(90003, MB, 'v');
	my $small = relation(90004, 8192, 'k');
	write_file("$pgdata/other", 'o' x (2 * MB));
	my $run = start_slowly(@$options, '-j' => 1);
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_stat_activity WHERE ' . sending()), "$kind: files are sent");
	append_to_file("$pgdata/$grown", 'G' x 8192);
	truncate "$pgdata/$shrunk", 8192 or die $!;
	unlink "$pgdata/$gone" or die $!;
	append_to_file("$pgdata/$small", 'K' x 8192);
	append_to_file("$pgdata/other", 'O');
	finished($run, "$kind: files that change");
	my %base = base();
	is($base{$first}{digest}, digest('f' x (24 * MB)), "$kind: the file that stays");
	is($base{$grown}{digest}, digest('g' x (9 * MB)), "$kind: a relation file that grows has the size that was listed");
	is($base{$shrunk}{digest}, digest(('s' x 8192) . ("\0" x (MB - 8192))), "$kind: one that shrinks is filled up")
	  if $kind eq 'files';
	is($base{$gone}, undef, "$kind: one that goes is left out");
	is($base{other}{digest}, digest(('o' x (2 * MB)) . 'O'), "$kind: any other file comes as it is then");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], "$kind: pg_verifybackup") if server_major() >= 18;
	File::Path::remove_tree($target);
	unlink "$pgdata/$_" for ($first, $grown, $shrunk, $small, 'other');

	# A connection is lost in the middle of a file, which is no more when it is asked for again.
	my @large = map { relation($_, 12 * MB, chr($_ % 26 + 65)) } (91000, 91001);
	$run = start_slowly(@$options, '-j' => 2);
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE $theirs AND " . sending()), "$kind: the worker is sent files");
	# Only now are both files open, and not read to their ends for a second more.
	unlink map { "$pgdata/$_" } @large;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $theirs");
	finished($run, "$kind: a lost connection");
	like($run->{err}, qr/lost a connection/, "$kind: the connection was lost");
	%base = base();
	for my $path (@large)
	{
		next if !$base{$path};
		is($base{$path}{size}, 12 * MB, "$kind: $path has its size");
	}
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], "$kind: a lost connection: pg_verifybackup") if server_major() >= 18;
	File::Path::remove_tree($target);

	# A signal.
	relation(92000, 12 * MB, 'x');
	$run = start_slowly(@$options, '-j' => 2);
	ok($node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_stat_activity WHERE ' . sending()), "$kind: files are sent");
	ok(-e (glob "$target/base.tar*")[0], "$kind: the archive is there");
	$run->{handle}->signal('TERM');
	$run->{handle}->finish;
	is($run->{handle}->full_result(0) >> 8, 1, "$kind: a signal: exit code");
	like($run->{err}, qr/backup was interrupted/, "$kind: a signal: why it ended");
	ok(!-e $target, "$kind: a signal: nothing is left");
	unlink "$pgdata/base/1/92000";
}

# Damage on the way.
$node->safe_psql('postgres', $_) for (
	q(CREATE TABLE marked AS SELECT i, 'MARKED-' || to_char(i, 'FM00000') || repeat('x', 500) AS t FROM generate_series(1, 4000) i),
	'CREATE TABLE small AS SELECT 1 AS id', 'VACUUM FREEZE', 'CHECKPOINT');
write_file("$pgdata/other", 'OTHER-FILE' x 1000);
my $path = $node->safe_psql('postgres', "SELECT pg_relation_filepath('marked')");
for my $way (@ways)
{
	my ($kind, $options) = @$way;

	for my $change (
		[ 'a page', { find => 'MARKED-00500', at => 3, xor => 1 } ],
		[ 'a file', { find => 'OTHER-FILE', at => 20, xor => 64 } ],
		[ 'any byte', { nth => 3_000_000, xor => 4 } ],
		[ 'always', { find => 'OTHER-FILE', at => 20, xor => 64, always => 1 } ])
	{
		my ($name, $params) = @$change;
		my $proxy = ParallelBackup::Proxy->new(server => $node->port, flag => "$tempdir/changed", %$params);
		my $result = run_log(
			[
				'pg_parallel_basebackup', '--no-sync', '-Ft', '-c' => 'fast', '-X' => 'none', '-j' => 2, '-D' => $target,
				'-d' => "host=127.0.0.1 port=@{[ $proxy->port ]} dbname=postgres sslmode=disable gssencmode=disable", @$options
			]);
		$proxy->stop;
		ok(-e "$tempdir/changed", "$kind: $name: something was changed");
		unlink "$tempdir/changed";
		ok($name eq 'always' ? !$result : 1, "$kind: $name: the end");
		if ($result)
		{
			my %base = base();
			is($base{$path}{digest}, digest(slurp_file("$pgdata/$path")), "$kind: $name: the table");
			is($base{other}{digest}, digest(slurp_file("$pgdata/other")), "$kind: $name: the file");
		}
		else
		{
			ok(!-e $target, "$kind: $name: nothing is left");
		}
		File::Path::remove_tree($target);
	}
}

$node->stop;
done_testing();
