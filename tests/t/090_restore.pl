# pg_parallel_restore: a data directory of archives, by whomever they were written, checked and started; and what it
# refuses, with nothing left.

use strict;
use warnings FATAL => 'all';

use File::Copy ();
use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, init => { has_archiving => 1, allows_streaming => 1, extra => ['--allow-group-access'] },
	conf => "checkpoint_timeout = 1d\nallow_in_place_tablespaces = on\n");
my $pgdata = $node->data_dir;

mkdir "$tempdir/ts=1" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts=1'",
	"CREATE TABLESPACE in_place LOCATION ''",
	"CREATE TABLE t AS SELECT id, repeat('x', 500) AS filler FROM generate_series(1, 30000) AS id",
	'CREATE TABLE t1 TABLESPACE ts AS SELECT generate_series(1, 20000) AS id',
	'CREATE TABLE t2 TABLESPACE in_place AS SELECT generate_series(1, 1000) AS id',
	'VACUUM FREEZE');
my $ts = $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = 'ts'");
my $in_place = $node->safe_psql('postgres', "SELECT oid FROM pg_tablespace WHERE spcname = 'in_place'");
my $query = 'SELECT (SELECT count(*) FROM t), (SELECT sum(id) FROM t1), (SELECT sum(id) FROM t2)';
my $expected = $node->safe_psql('postgres', $query);

my @ours = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-Ft', '--dbname' => $node->connstr('postgres'));
my @theirs = ('pg_basebackup', '--no-sync', '--checkpoint' => 'fast', '-Ft', '--dbname' => $node->connstr('postgres'));
my @restore = ('pg_parallel_restore', '--no-sync');
my @mapping = ('-T' => "$tempdir/ts\\=1=$tempdir/new_ts");
my $copies = 0;

# A restored directory: verified as pg_verifybackup does it, and started.
sub is_good
{
	my ($name, $directory, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new('copy' . ++$copies);

	command_ok([ 'pg_verifybackup', $params{has_wal} ? () : '--no-parse-wal', $directory ], "$name: pg_verifybackup")
	  unless $params{no_manifest};
	my @left = grep { /^pgsql_tmp/ } slurp_dir($directory);
	is_deeply(\@left, [], "$name: no claim is left");
	ok(!-e "$directory/tablespace_map", "$name: recovery has no links to make");
	is(sprintf('%o', (stat $directory)[2] & 0777), '750', "$name: mode of the data directory");
	is((-l "$directory/pg_tblspc/$ts") ? readlink "$directory/pg_tblspc/$ts" : '', "$tempdir/new_ts", "$name: the tablespace's link");
	ok(!-l "$directory/pg_tblspc/$in_place" && -d "$directory/pg_tblspc/$in_place", "$name: the tablespace that is in place");
	rename $directory, $copy->data_dir or die $!;
	$copy->enable_restoring($node, 0) unless $params{has_wal};
	start_copy($copy, conf => "archive_mode = off\n");
	ok($copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), "$name: recovered") unless $params{is_standby};
	is($copy->safe_psql('postgres', $query), $expected, "$name: data") unless $params{no_in_place};
	$copy->stop;
	File::Path::remove_tree($copy->data_dir, "$tempdir/new_ts");
	return;
}

# Refused in these words, and nothing is there that was not there before.
sub is_refused
{
	my ($name, $command, $words, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	command_checks_all([ @restore, '-D' => "$tempdir/copy", @mapping, @$command ], 1, [qr/^\z/], [$words], $name);
	ok(!-e "$tempdir/copy" && !-e "$tempdir/new_ts" && !-e "$tempdir/copy.restore", "$name: nothing is left");
	return;
}

# Ours and pg_basebackup's, in every form.
{
	my @forms = (
		[ ours => 'none', '-X' => 'stream' ],
		[ ours => 'gzip', '-X' => 'fetch', '-Z' => 'client-gzip:1' ],
		[ ours => 'lz4', '-X' => 'stream', '-Z' => 'server-lz4' ],
		[ ours => 'zstd', '-X' => 'none', '-Z' => 'server-zstd:1', '--manifest-checksums' => 'SHA256' ],
		[ theirs => 'none', '-X' => 'fetch', '--manifest-checksums' => 'NONE' ],
		[ theirs => 'gzip', '-X' => 'stream', '-z' ]);
	for my $form (@forms)
	{
		my ($by, $compression, @options) = @$form;
		my $name = "$by, $compression";
		my $has_wal = "@options" !~ /-X none/;
		# 15's server leaves out what is in place.
		my $no_in_place = $by eq 'theirs' && server_major() < 16;
		$node->command_ok([ $by eq 'ours' ? @ours : @theirs, '-D' => "$tempdir/archives", @options ], "$name: backup");
		my @arguments = ('-j' => $compression eq 'lz4' ? 1 : 4);
		push @arguments, '--waldir' => "$tempdir/wal" if $compression eq 'lz4';
		command_checks_all([ @restore, '-D' => "$tempdir/copy", @mapping, @arguments, "$tempdir/archives" ],
			0, [qr/^\z/], [ $has_wal ? qr/^\z/ : qr/^pg_parallel_restore: warning: the backup has no WAL: recovery needs that of timeline 1 from [0-9A-F\/]+ to [0-9A-F\/]+, from an archive$/ ],
			"$name: restored");
		is((-l "$tempdir/copy/pg_wal") ? readlink "$tempdir/copy/pg_wal" : '', $compression eq 'lz4' ? "$tempdir/wal" : '', "$name: where WAL is");
		if ($no_in_place)
		{
			File::Path::remove_tree("$tempdir/copy", "$tempdir/new_ts");
		}
		else
		{
			is_good($name, "$tempdir/copy", has_wal => $has_wal);
		}
		File::Path::remove_tree("$tempdir/archives", "$tempdir/wal");
	}
}

# A standby; settings that -R has changed are nothing that the manifest knows.
{
	$node->command_ok([ @ours, '-D' => "$tempdir/archives", '-R' ], '-R: backup');
	command_ok([ @restore, '-D' => "$tempdir/copy", @mapping, "$tempdir/archives" ], '-R: restored');
	ok(-e "$tempdir/copy/standby.signal", '-R: standby.signal');
	like(slurp_file("$tempdir/copy/postgresql.auto.conf"), qr/^primary_conninfo/m, '-R: settings');
	is_good('-R', "$tempdir/copy", has_wal => 1, is_standby => 1);
	File::Path::remove_tree("$tempdir/archives");
}

# What came through a pipe has its manifest within, where there is no tablespace.
{
	my $small = parallel_node('small', extension => 1);
	mkdir "$tempdir/piped" or die $!;
	my $connection = $small->connstr('postgres');
	for my $options ('', '-Z client-zstd')
	{
		my $file = "$tempdir/piped/base.tar" . ($options eq '' ? '' : '.zst');
		is(system("pg_parallel_basebackup --no-sync -c fast -X fetch -Ft $options -D - -d '$connection' >'$file'"), 0, "piped $options: backup");
		command_ok([ @restore, '-D' => "$tempdir/copy", "$tempdir/piped" ], "piped $options: restored");
		command_ok([ 'pg_verifybackup', "$tempdir/copy" ], "piped $options: pg_verifybackup");
		unlink $file or die $!;
		File::Path::remove_tree("$tempdir/copy");
	}
	$small->stop;
}

# What is there is not touched, and what is wrong with a backup is said.
{
	$node->command_ok([ @ours, '-D' => "$tempdir/archives" ], 'backup to be damaged');
	mkdir "$tempdir/copy" or die $!;
	write_file("$tempdir/copy/f", 'x');
	command_checks_all([ @restore, '-D' => "$tempdir/copy", @mapping, "$tempdir/archives" ], 1, [qr/^\z/],
		[qr/error: directory "\Q$tempdir\E\/copy" exists but is not empty$/m], 'a directory with something in it');
	is(slurp_file("$tempdir/copy/f"), 'x', '... is left alone');
	File::Path::remove_tree("$tempdir/copy");
	command_checks_all([ @restore, '-D' => "$tempdir/copy", "$tempdir/archives" ], 1, [qr/^\z/],
		[qr/error: directory "\Q$tempdir\E\/ts=1" exists but is not empty$/m], 'the place of a tablespace');
	ok(!-e "$tempdir/copy", '... nothing is left');
	is_refused('no backup', ["$tempdir/ts=1"], qr/error: "\Q$tempdir\E\/ts=1" has no backup$/m);
	is_refused('no directory', ["$tempdir/none"], qr/error: could not open directory "\Q$tempdir\E\/none": No such file or directory$/m);

	# damaged(name, words, what to do to the copy of the archives, arguments)
	my $damaged = sub {
		my ($name, $words, $change, @arguments) = @_;
		my $place = "$tempdir/damaged";

		mkdir $place or die $!;
		for my $file (grep { !/^\.\.?\z/ } slurp_dir("$tempdir/archives"))
		{
			File::Copy::copy("$tempdir/archives/$file", "$place/$file") or die $!;
		}
		$change->($place);
		is_refused($name, [ @arguments, $place ], $words);
		File::Path::remove_tree($place);
		return;
	};
	my $flip = sub {
		my ($file, $at) = @_;
		open my $handle, '+<:raw', $file or die $!;
		sysseek $handle, $at, 0;
		sysread $handle, my $byte, 1;
		sysseek $handle, $at, 0;
		syswrite $handle, chr(ord($byte) ^ 0x10) or die $!;
		close $handle;
	};
	# Where the bytes of a file are in an archive.
	my $find = sub {
		my ($archive, $member) = @_;
		open my $handle, '<:raw', $archive or die $!;
		my $at = 0;
		while (sysread($handle, my $header, 512) == 512)
		{
			my $size = substr($header, 124, 1) eq "\x80" ? unpack('Q>', substr $header, 128, 8) : oct unpack 'Z12', substr $header, 124, 12;
			return $at + 512 if unpack('Z100', $header) eq $member;
			$at += 512 + 512 * int(($size + 511) / 512);
			sysseek $handle, $at, 0;
		}
		die "no member $member";
	};
	my $table = $node->safe_psql('postgres', "SELECT pg_relation_filepath('t')");
	my $first_wal = (sort grep { /^[0-9A-F]{24}\z/ } map { $_->{name} } members("$tempdir/archives/pg_wal.tar"))[0];

	$damaged->('a byte of a table', qr/error: checksum mismatch for file "\Q$table\E" in archive "\Q$tempdir\E\/damaged\/base\.tar"$/m,
		sub { $flip->("$_[0]/base.tar", $find->("$_[0]/base.tar", $table) + 100_000) });
	$damaged->('a byte of pg_control', qr/error: checksum mismatch for file "global\/pg_control" in archive/,
		sub { $flip->("$_[0]/base.tar", $find->("$_[0]/base.tar", 'global/pg_control') + 100) });
	$damaged->('a byte of the map', qr/error: checksum mismatch for file "tablespace_map" in archive/,
		sub { $flip->("$_[0]/base.tar", $find->("$_[0]/base.tar", 'tablespace_map') + 12) });
	$damaged->('a byte of a name', qr/error: could not read archive|has no end|present in the backup but not in the manifest/,
		sub { $flip->("$_[0]/base.tar", $find->("$_[0]/base.tar", $table) - 512 + 3) });
	$damaged->('a byte of WAL', qr/error: write-ahead log at [0-9A-F\/]+ was damaged: /,
		sub { $flip->("$_[0]/pg_wal.tar", $find->("$_[0]/pg_wal.tar", $first_wal) + 60) });
	$damaged->('a byte of the manifest', qr/error: could not parse "backup_manifest": manifest checksum mismatch$/m,
		sub { $flip->("$_[0]/backup_manifest", 200) });
	$damaged->('an archive that was cut', qr/error: archive "\Q$tempdir\E\/damaged\/base\.tar" has no end$/m,
		sub { truncate "$_[0]/base.tar", (-s "$_[0]/base.tar") - 1024 or die $! });
	$damaged->('an archive that is missing', qr/error: "pg_tblspc\/$ts\/\S+" is present in the manifest but not in the backup\npg_parallel_restore: detail: [0-9]+ files are missing in all\.$/m,
		sub { unlink "$_[0]/$ts.tar" or die $! });
	$damaged->('no manifest', qr/error: "\Q$tempdir\E\/damaged" has no "backup_manifest"\npg_parallel_restore: detail: .*\npg_parallel_restore: hint: To restore the backup all the same, use --no-manifest\.$/m,
		sub { unlink "$_[0]/backup_manifest" or die $! });
	$damaged->('two backups', qr/error: "\Q$tempdir\E\/damaged" has more than one backup$/m,
		sub { write_file("$_[0]/base.tar.gz", '') });
	# A member more, and one twice: GNU tar's --append.
	$damaged->('a file that nobody knows', qr/error: "planted" is present in the backup but not in the manifest$/m,
		sub { write_file("$tempdir/planted", 'x'); system_or_bail('tar', '-C', $tempdir, '-rf', "$_[0]/base.tar", 'planted') });
	$damaged->('a file twice', qr/error: file "backup_label" is there twice$/m,
		sub { my ($place) = @_; system_or_bail('tar', '-C', $place, '-xf', "$place/base.tar", 'backup_label'); system_or_bail('tar', '-C', $place, '-rf', "$place/base.tar", 'backup_label') });
	$damaged->('a link', qr/error: archive "\Q$tempdir\E\/damaged\/base\.tar" has a symbolic link that no backup has: "base\/1\/link"$/m,
		sub { File::Path::make_path("$tempdir/l/base/1"); symlink '/etc', "$tempdir/l/base/1/link"; system_or_bail('tar', '-C', "$tempdir/l", '-rf', "$_[0]/base.tar", 'base/1/link'); File::Path::remove_tree("$tempdir/l") });
	$damaged->('a way out', qr/error: archive "\Q$tempdir\E\/damaged\/$ts\.tar" has a member that no backup has: "\.\.\/planted"\npg_parallel_restore: detail: The path has an empty, "\." or "\.\." component\.$/m,
		sub { mkdir "$tempdir/below"; system_or_bail('tar', '-C', "$tempdir/below", '-P', '-rf', "$_[0]/$ts.tar", '../planted'); rmdir "$tempdir/below" });
	$damaged->('no WAL of the beginning', qr/error: could not find WAL file "$first_wal"$/m,
		sub { system_or_bail('tar', '--delete', '-f', "$_[0]/pg_wal.tar", $first_wal);
			  # So that it is not taken for a backup without WAL.
			  my $next = substr($first_wal, 0, 16) . sprintf '%08X', 0xFF; make_file("$tempdir/$next", 1024 * 1024); system_or_bail('tar', '-C', $tempdir, '-rf', "$_[0]/pg_wal.tar", $next) });

	# Without a manifest, as the user wants it: what cannot be checked is not, what can be is.
	unlink "$tempdir/archives/backup_manifest" or die $!;
	command_ok([ @restore, '-D' => "$tempdir/copy", @mapping, '--no-manifest', "$tempdir/archives" ], '--no-manifest');
	is_good('--no-manifest', "$tempdir/copy", has_wal => 1, no_manifest => 1);
	File::Path::remove_tree("$tempdir/archives");
}

# Progress, and files that may not grow, which takes everything away.
{
	$node->command_ok([ @ours, '-D' => "$tempdir/archives", '-Z' => 'client-gzip:1' ], 'backup');
	command_checks_all([ @restore, '-D' => "$tempdir/copy", @mapping, '-P', '-v', "$tempdir/archives" ], 0, [qr/^\z/],
		[qr/^([0-9]+)\/\1 kB \(100%\), ([0-9]+)\/\g2 files$/m], 'progress');
	File::Path::remove_tree("$tempdir/copy", "$tempdir/new_ts");
	command_checks_all([ 'sh', '-c', 'ulimit -f 1000; exec "$@"', 'sh', @restore, '-D' => "$tempdir/copy", @mapping, "$tempdir/archives" ],
		1, [qr/^\z/], [qr/error: could not write to file "[^"]+": File too large$/m], 'a limit on the size of files');
	ok(!-e "$tempdir/copy" && !-e "$tempdir/new_ts", '... nothing is left');
	File::Path::remove_tree("$tempdir/archives");
}

done_testing();
