# -Ft: archives as pg_basebackup writes them, by all connections at once.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, init => { has_archiving => 1 }, conf => <<CONF);
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
allow_in_place_tablespaces = on
CONF
my $pgdata = $node->data_dir;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--format' => 'tar');

mkdir "$tempdir/ts" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	"CREATE TABLESPACE in_place LOCATION ''",
	"CREATE TABLE t AS SELECT id, repeat('x', 500) AS filler FROM generate_series(1, 20000) AS id",
	'CREATE TABLE t1 TABLESPACE ts AS SELECT generate_series(1, 20000) AS id',
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT generate_series(1, 1000) AS id',
	'CREATE ROLE backup LOGIN REPLICATION',
	'VACUUM FREEZE');
may_back_up($node, 'backup');
my ($ts) = $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = 'ts'");
my $in_place = $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = 'in_place'");
write_file("$pgdata/not of a block", 'x' x 70_001);
# Longer than what is kept in memory.
make_file("$pgdata/spooled", 17 * 1024 * 1024);
mkdir "$pgdata/a directory";
chmod 0750, "$pgdata/a directory";
write_file("$pgdata/a directory/f", '', 0640);
$node->restart;

my $query = 'SELECT (SELECT count(*) FROM t), (SELECT sum(id) FROM t1), (SELECT sum(id) FROM t2)';
my $expected = $node->safe_psql('postgres', $query);

# What pg_verifybackup says of the archives, where it reads them.
sub verified
{
	my ($archives, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return if server_major() < 18;
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $archives ], "$name: pg_verifybackup of the archives");
	return;
}

sub started
{
	my ($archives, $name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	for my $program (tar_programs())
	{
		my $copy = PostgreSQL::Test::Cluster->new("$params{as}_$program");
		extract_backup($archives, $copy->data_dir, with => $program);
		# The map says where the tablespace is now.
		command_ok([ 'pg_verifybackup', '--ignore' => 'tablespace_map', $params{has_wal} ? () : '--no-parse-wal', '--manifest-path' => "$archives/backup_manifest", $copy->data_dir ],
			"$name: pg_verifybackup of what $program has extracted")
		  unless $params{no_manifest};
		if (!$params{has_wal})
		{
			$copy->enable_restoring($node, 0);
		}
		start_copy($copy, conf => "archive_mode = off\n");
		ok($copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), "$name: $program: recovered");
		is($copy->safe_psql('postgres', $query), $expected, "$name: $program: data");
		ok(!-l $copy->data_dir . "/pg_tblspc/$in_place" && -d _, "$name: $program: the tablespace that is in place");
		is(readlink($copy->data_dir . "/pg_tblspc/$ts"), $copy->data_dir . ".$ts", "$name: $program: the tablespace's link");
		$copy->stop;
		File::Path::remove_tree($copy->data_dir, $copy->data_dir . ".$ts");
	}
	return;
}

for my $wal (qw(stream fetch none))
{
	for my $jobs (1, 4)
	{
		my $name = "-X $wal -j $jobs";
		my $archives = "$tempdir/$wal.$jobs";
		$node->command_checks_all([ @client, '-D' => $archives, '-X' => $wal, '-j' => $jobs, '-U' => 'backup' ],
			0, [qr/^\z/], [ $wal eq 'none' ? qr// : qr/^\z/ ], $name);
		is_deeply([ sort grep { !/^\.\.?\z/ } slurp_dir($archives) ],
			[ sort "$ts.tar", "$in_place.tar", 'base.tar', 'backup_manifest', $wal eq 'stream' ? 'pg_wal.tar' : () ], "$name: what is there");
		verified($archives, $name);
		my @base = members("$archives/base.tar");
		is($base[0]{name}, 'backup_label', "$name: the label is first");
		is($base[-1]{name}, 'global/pg_control', "$name: pg_control is last");
		my @wal = grep { $_->{name} =~ m{^pg_wal/[0-9A-F]{24}\z} } @base;
		is(@wal > 0, $wal eq 'fetch', "$name: WAL is where it belongs");
		my %known;
		is_deeply([ grep { $known{$_}++ } map { $_->{name} } @base ], [], "$name: nothing is there twice");
		started($archives, $name, as => "${wal}_$jobs", has_wal => $wal ne 'none') if $jobs > 1;
		File::Path::remove_tree($archives);
	}
}

# Member by member what pg_basebackup writes. The order is not, nor the owner, whom only the server knows.
{
	my %ours = (backup_label => 1, tablespace_map => 1, 'global/pg_control' => 1);
	my $both = sub {
		my ($name, @options) = @_;
		my %archives;

		for my $program (qw(pg_basebackup pg_parallel_basebackup))
		{
			$archives{$program} = "$tempdir/$program";
			$node->command_ok([ $program, '--no-sync', '--checkpoint' => 'fast', '-Ft', '-X' => 'fetch', '-D' => $archives{$program}, @options ], "$name: $program");
		}
		# 15 leaves out what is in place.
		for my $archive ('base.tar', "$ts.tar", server_major() < 16 ? () : "$in_place.tar")
		{
			my @sides;
			for my $program (qw(pg_basebackup pg_parallel_basebackup))
			{
				my %member = map { ($_->{name} =~ s{^\./}{}r) => $_ } members("$archives{$program}/$archive");
				delete @member{ grep { m{^pg_wal/[0-9A-F]|^pg_wal/archive_status/} } keys %member };
				for my $name (keys %member)
				{
					delete $member{$name}{name};
					# Checkpoints make files there and remove them.
					delete $member{$name}{mtime} if $member{$name}{type} == 5 || $name =~ m{^pg_logical/};
					# Written when the backup is made; -R's settings with two programs' names in them.
					delete @{ $member{$name} }{qw(mtime digest)} if $ours{$name};
					delete @{ $member{$name} }{qw(mtime digest size)} if $name =~ m{^(?:backup_label|postgresql\.auto\.conf|standby\.signal)\z};
				}
				push @sides, \%member;
			}
			is_deeply($sides[1], $sides[0], "$name: $archive");
		}
		File::Path::remove_tree(values %archives);
	};
	$both->('the same members');
	$both->('the same members with -R', '-R');
}

# -R: the settings are written on at the end of what the server has.
{
	append_to_file("$pgdata/postgresql.auto.conf", "work_mem = '5MB'\n");
	my $archives = "$tempdir/standby";
	$node->command_ok([ @client, '-D' => $archives, '-R', '-j' => 2, '-v' ], '-R');
	is(scalar(grep { $_->{name} =~ /^(?:postgresql\.auto\.conf|standby\.signal)\z/ } members("$archives/base.tar")), 2, '-R: each file once');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	extract_backup($archives, $standby->data_dir);
	like(slurp_file($standby->data_dir . '/postgresql.auto.conf'), qr/work_mem = '5MB'\nprimary_conninfo = /, '-R: settings');
	start_copy($standby, conf => "archive_mode = off\n");
	$node->safe_psql('postgres', 'CREATE TABLE later AS SELECT 42 AS id');
	$node->wait_for_replay_catchup($standby);
	is($standby->safe_psql('postgres', 'SELECT id FROM later'), 42, '-R: the copy is a standby');
	$standby->stop;
	File::Path::remove_tree($archives, $standby->data_dir);
}

# Refused before anything is asked of the server.
mkdir "$tempdir/full";
write_file("$tempdir/full/precious", 'x');
for my $case (
	[ [ '-D' => "$tempdir/full" ], qr/directory "\Q$tempdir\E\/full" exists but is not empty/ ],
	[ [ '-D' => "$tempdir/none", '--waldir' => "$tempdir/wal" ], qr/WAL directory location can only be specified in plain mode/ ],
	[ [ '-D' => '-' ], qr/cannot stream write-ahead logs in tar mode to stdout/ ])
{
	my ($options, $message) = @$case;
	$node->command_checks_all([ @client, @$options ], 1, [qr/^\z/], [$message], "refused: @$options");
}
is(slurp_file("$tempdir/full/precious"), 'x', 'refused: what was there is left alone');
ok(!-e "$tempdir/none", 'refused: nothing is left');

$node->command_checks_all([ @client, '-D' => "$tempdir/mapped", '-X' => 'none', '-T' => "$tempdir/ts=$tempdir/other" ],
	0, [qr/^\z/], [qr/warning: tablespace mappings have no effect in tar format/], '-T');
ok(!-e "$tempdir/other", '-T: no directory is made');
File::Path::remove_tree("$tempdir/mapped");

# A name that the format has no room for.
my $long = 'x' x 100;
write_file("$pgdata/$long", 'x');
$node->command_checks_all([ @client, '-D' => "$tempdir/none" ], 1, [qr/^\z/],
	[qr/error: file name too long for tar format: "$long"/], 'a name that is too long');
ok(!-e "$tempdir/none", 'a name that is too long: nothing is left');
unlink "$pgdata/$long";
write_file("$pgdata/" . 'x' x 99, 'x');
$node->command_ok([ @client, '-D' => "$tempdir/long", '-X' => 'none' ], 'the longest name that there is room for');
is(scalar(grep { $_->{name} eq 'x' x 99 } members("$tempdir/long/base.tar")), 1, 'the longest name that there is room for: is there');

# A limit on the size of files stands for a full disk: the error is the system's, and nothing is left.
$node->command_checks_all([ 'bash', '-c', 'ulimit -f 10000; exec "$@"', 'sh', @client, '-D' => "$tempdir/none", '-X' => 'none' ],
	1, [qr/^\z/], [qr/error: could not write to file "\Q$tempdir\E\/none\/base\.tar": File too large/], 'no room for the archive');
ok(!-e "$tempdir/none", 'no room for the archive: nothing is left');

$node->stop;
done_testing();
