# pg_parallel_restore of backups in volumes: by their index, alone or in a chain that it finds itself; list and prune.

use strict;
use warnings FATAL => 'all';

use File::Copy ();
use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use JSON::PP ();
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $has_increments = server_major() >= 17;
my $node = parallel_node('main', extension => 1, conf => $has_increments ? "summarize_wal = on\n" : '');
mkdir "$tempdir/ts" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	q(CREATE TABLE t AS SELECT g AS id, 0 AS n, repeat(md5(g::text), 10) AS filler FROM generate_series(1, 30000) g),
	'CREATE TABLE t1 TABLESPACE ts AS SELECT g AS id, 0 AS n FROM generate_series(1, 50000) g');
my $ts = $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = 'ts'");
my $query = join ' UNION ALL ', map { "SELECT '$_', count(*), sum(hashtext($_\::text)) FROM $_" } qw(t t1);
my $places = "$tempdir/places";
mkdir $places or die $!;
my @backup = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-Ft', '--volumes=2MB', '--dbname' => $node->connstr('postgres'));
my @restore = ('pg_parallel_restore', '--no-sync', '-T' => "$tempdir/ts=$tempdir/new_ts");
my $copies = 0;

sub is_good
{
	my ($name, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new('copy' . ++$copies);

	command_ok([ 'pg_verifybackup', "$tempdir/copy" ], "$name: pg_verifybackup");
	is(readlink "$tempdir/copy/pg_tblspc/$ts", "$tempdir/new_ts", "$name: the tablespace's link");
	rename "$tempdir/copy", $copy->data_dir or die $!;
	start_copy($copy);
	is($copy->safe_psql('postgres', "$query ORDER BY 1"), $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir, "$tempdir/new_ts");
	return;
}

sub is_refused
{
	my ($name, $command, $words) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_checks_all([ @restore, '-D' => "$tempdir/copy", @$command ], 1, [qr/^\z/], [$words], $name);
	ok(!-e "$tempdir/copy" && !-e "$tempdir/new_ts", "$name: nothing is left");
	return;
}

# A week: two full backups, and what goes on from them.
my (%data, $prior);
my @week = ([ 'a/full' ], [ 'a/one', 'a/full' ], [ 'two', 'a/one' ], [ 'b' ], [ 'c', 'b' ]);
@week = grep { @$_ == 1 } @week unless $has_increments;
for my $day (@week)
{
	my ($name, $from) = @$day;
	my @compress = $name eq 'two' || $name eq 'b' ? ('-Z' => 'server-zstd:1') : $name eq 'a/one' ? ('-Z' => 'client-gzip:1') : ();

	mkdir "$places/a" unless -d "$places/a";
	$node->command_ok([ @backup, '-D' => "$places/$name", '-l' => "label of $name", @compress, $from ? ('-i' => "$places/$from/backup_manifest") : () ], "backup $name");
	$data{$name} = $node->safe_psql('postgres', "$query ORDER BY 1");
	$node->safe_psql('postgres', $_) for (
		'UPDATE t SET n = n + 1 WHERE id % 1000 = 7',
		'INSERT INTO t1 SELECT g, 7 FROM generate_series(1, 20000) g');
}

for my $name (map { $_->[0] } @week)
{
	# In another directory than itself an increment looks for nothing.
	next if $name eq 'two';
	command_ok([ @restore, '-D' => "$tempdir/copy", "$places/$name" ], "$name: restored");
	is_good($name, $data{$name});
}
if ($has_increments)
{
	is_refused('what an increment needs is not named', [ "$places/a/one", "$places/two" ], qr/error: backup at "[^"]+" is an incremental backup$/m);
	command_ok([ @restore, '-D' => "$tempdir/copy", "$places/two" ], 'two: found below');
	is_good('two', $data{two});
	command_ok([ @restore, '-D' => "$tempdir/copy", "$places/a/full", "$places/a/one", "$places/two" ], 'two: by name');
	is_good('two, by name', $data{two});
}

# list
my ($stdout, $stderr) = run_command([ 'pg_parallel_restore', 'list', $places ]);
is($stderr, '', 'list: no message');
like($stdout, qr/^name +kind +ended +version +system identifier +size +goes on from +label\n/, 'list: head');
like($stdout, qr/^a\/full +full +20\S+Z +@{[ server_major() ]}\.\d+ +\d+ +\d+(?:\.\d+)? \S+ +label of a\/full$/m, 'list: a full backup');
like($stdout, qr/^two +incremental .* a\/one +label of two$/m, 'list: an increment') if $has_increments;
($stdout, $stderr) = run_command([ 'pg_parallel_restore', 'list', '--json', $places ]);
my $list = JSON::PP::decode_json($stdout);
is_deeply([ map { $_->{name} } @$list ], [ map { $_->[0] } @week ], 'list --json: in the order of time');
is_deeply([ map { $_->{prior} } @$list ], [ map { $_->[1] } @week ], 'list --json: what goes on from what');
($stdout, $stderr) = run_command([ 'pg_parallel_restore', 'list', "$tempdir/ts" ]);
is((split /\n/, $stdout)[1], undef, 'list: no backup');

# Volumes that are not what the index says.
my $damaged = sub {
	my ($name, $words, $change, $from) = @_;
	my $place = "$tempdir/damaged";

	$from = "$places/" . ($from // 'b');
	mkdir $place or die $!;
	for my $file (grep { !/^\.\.?\z/ } slurp_dir($from))
	{
		File::Copy::copy("$from/$file", "$place/$file") or die $!;
	}
	$change->($place);
	is_refused($name, [$place], $words);
	File::Path::remove_tree($place);
	return;
};
my ($volume) = sort grep { /^base\.\d+\.tar/ } slurp_dir("$places/b");
my ($wal) = sort grep { /^pg_wal\.\d+\.tar\z/ } slurp_dir("$places/a/full");
$damaged->('a volume that is missing', qr/error: "\Q$tempdir\E\/damaged\/\Q$volume\E" is missing\n.*detail: The index of the backup says that it is part of it\.$/m,
	sub { unlink "$_[0]/$volume" or die $! });
$damaged->('a volume that was cut', qr/error: "\Q$tempdir\E\/damaged\/\Q$volume\E" has size \d+, but size \d+ in the index of the backup$/m,
	sub { truncate "$_[0]/$volume", 1000 or die $! });
$damaged->('bytes behind the end of an archive', qr/error: could not read archive "\Q$tempdir\E\/damaged\/\Q$wal\E": its SHA-256 digest is not that of the index$/m,
	sub { open my $file, '+<:raw', "$_[0]/$wal" or die $!; sysseek $file, (-s $file) - 3, 0; sysread $file, my $byte, 1; sysseek $file, (-s $file) - 3, 0; syswrite $file, chr(ord($byte) ^ 1); CORE::close($file) }, 'a/full');
$damaged->('a volume with other bytes', qr/error: /,
	sub { open my $file, '+<:raw', "$_[0]/$volume" or die $!; sysseek $file, 5000, 0; sysread $file, my $byte, 1; sysseek $file, 5000, 0; syswrite $file, chr(ord($byte) ^ 1); CORE::close($file) });
$damaged->('another manifest', qr/error: "\Q$tempdir\E\/damaged\/backup_manifest" (?:has size|is not that of the index)/,
	sub { File::Copy::copy("$places/a/full/backup_manifest", "$_[0]/backup_manifest") or die $! });
$damaged->('no index', qr/error: "\Q$tempdir\E\/damaged" has no backup$/m, sub { unlink "$_[0]/backup_index.json" or die $! });
$damaged->('an index that is no JSON', qr/error: could not parse backup index: /, sub { truncate "$_[0]/backup_index.json", 100 or die $! });

# prune
my $names = sub { [ map { $_->{name} } @{ JSON::PP::decode_json((run_command([ 'pg_parallel_restore', 'list', '--json', $places ]))[0]) } ] };
my $all = $names->();
($stdout, $stderr) = run_command([ 'pg_parallel_restore', 'prune', '--keep-full=2', $places ]);
is_deeply($names->(), $all, 'prune: nothing is too much');
is($stdout . $stderr, '', 'prune: and nothing is said');
($stdout, $stderr) = run_command([ 'pg_parallel_restore', 'prune', '--keep-full=1', '--dry-run', $places ]);
is_deeply($names->(), $all, 'prune --dry-run: nothing is removed');
my @gone = $has_increments ? (qw(two a/one a/full)) : ('a/full');
is($stderr, join("\n", map { my $kind = $_ eq 'a/full' ? 'full' : 'incremental'; "pg_parallel_restore: would remove $kind backup \"$places/$_\"" } @gone), 'prune --dry-run: what would be');
write_file("$places/a/full/note", 'of somebody else');
command_ok([ 'pg_parallel_restore', 'prune', '--keep-full=1', $places ], 'prune');
is_deeply($names->(), [ grep { my $name = $_; !grep { $_ eq $name } @gone } @$all ], 'prune: what stays');
ok(!-e "$places/two", 'prune: nothing is left') if $has_increments;
is_deeply([ grep { !/^\.\.?\z/ } slurp_dir("$places/a/full") ], ['note'], 'prune: but for what is not of the backup');
command_ok([ @restore, '-D' => "$tempdir/copy", "$places/" . ($has_increments ? 'c' : 'b') ], 'what stays can be restored');
is_good('after pruning', $data{ $has_increments ? 'c' : 'b' });
command_fails_like([ 'pg_parallel_restore', 'prune', $places ], qr/error: must specify --keep-full/, 'prune without a number');

done_testing();
