# Somebody who can write to the data directory swaps files for links, FIFOs and directories, and directories for links, while
# requests and backups run: nothing outside of the data directory is ever read, and nobody waits for a FIFO. A link in any directory
# that is walked is left out. Paths as long as a message may be are refused like any other.
#
# SWAPS is how often each is asked for meanwhile, 300 by default.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};

my $rounds = $ENV{SWAPS} || 300;
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1);
my $pgdata = $node->data_dir;
my $dbdir = 'base/' . $node->safe_psql('postgres', q(SELECT oid FROM pg_database WHERE datname = 'postgres'));
$node->safe_psql('postgres', 'CREATE TABLE t AS SELECT generate_series(1, 20000) AS id');

# What must never be seen, and whose name is nowhere else.
my $secret = 'the secret of somebody else' x 300;
mkdir "$tempdir/outside" or die $!;
write_file("$tempdir/outside/$_", $secret) for qw(file only_outside);
my $content = 'what belongs to the cluster' x 300;
my @files = ("$dbdir/987654", 'pg_xact/swapped', 'swapped');
mkdir "$pgdata/$_" or die $! for 'directory', "$dbdir/directory";
my @within = ('directory/file', "$dbdir/directory/file");

# In a process of its own, until it is killed: one thing after another in place of each file, and of two directories.
sub swapping
{
	my $pid = fork() // die $!;
	return $pid if $pid;
	my $parent = getppid();
	my $put = sub {
		my ($path, $make) = @_;
		$make->("$path.new");
		unlink $path or rmdir $path;
		rename "$path.new", $path;
	};
	my @kinds = (
		sub { write_file($_[0], $content) },
		sub { symlink "$tempdir/outside/file", $_[0] },
		sub { write_file($_[0], $content) },
		sub { POSIX::mkfifo($_[0], 0600) },
		sub { mkdir $_[0] },
		sub { symlink 'nowhere', $_[0] },
		# A link that leads back is one all the same.
		sub { symlink "$pgdata/PG_VERSION", $_[0] });
	eval {
		for (my $turn = 0; getppid() == $parent; $turn++)
		{
			$put->("$pgdata/$_", $kinds[ $turn % @kinds ]) for @files;
			for my $path (@within)
			{
				my $directory = "$pgdata/" . ($path =~ s{/file$}{}r);
				unlink "$directory/file" if !-l $directory;
				rmdir $directory or unlink $directory;
				if ($turn % 2) { symlink "$tempdir/outside", $directory }
				else { mkdir $directory; write_file("$directory/file", $content) }
			}
		}
	};
	POSIX::_exit(0);
}

my $coordinator = connection($node);
my $start = start_backup($coordinator);
my @id = (BACKUP_ID => $start->{backup_id});
my $conn = connection($node);
my $swapping = swapping();
my (%seen, @wrong);
for my $round (1 .. $rounds)
{
	for my $path (@files, @within)
	{
		my $reply = $conn->query(send_files_sql([$path], @id, VERIFY_CHECKSUMS => 'false', FILE_CHECKSUM => $round % 2 ? 'NONE' : 'SHA256'));
		push @wrong, 'the connection ended' if !defined $reply->{status};
		my $frames = $reply->{frames} // [];
		if (my $error = $reply->{error})
		{
			$seen{ $error->{sqlstate} }++;
			push @wrong, "$path: $error->{sqlstate} $error->{message}"
			  if "$error->{sqlstate} $error->{message}" !~ /^(?:42809 "\Q$path\E" is not a regular file|42501 file "\Q$path\E" is not part of a backup)\z/ || grep { $_->{type} eq 'd' } @$frames;
			next;
		}
		my $transfer = ParallelBackup::Transfer->of($frames);
		$seen{vanished}++ if $transfer->{vanished}->@*;
		for my $file ($transfer->{files}->@*)
		{
			$seen{sent}++;
			# It may have been caught while it was written.
			push @wrong, "$path: other bytes" if index($content, $file->{data}) != 0;
		}
	}
	next if $round % 10;
	my @listed = map { $_->{path} } list_files($coordinator);
	push @wrong, 'listed: ' . join ' ', grep { /only_outside/ } @listed if grep { /only_outside/ } @listed;
}
is_deeply([ @wrong ? @wrong[ 0 .. ($#wrong < 9 ? $#wrong : 9) ] : () ], [], 'whatever a path leads to: the file itself, or an error that says no more');
cmp_ok($seen{$_} // 0, '>', 0, "such a request: $_") for qw(sent 42809);
note(join ', ', map { "$_: $seen{$_}" } sort keys %seen);
still_works($conn, 'the connection is usable');

# A client meets the same: it has a copy without any of that, or says what is in its way.
for my $verify (qw(client server))
{
	my $target = "$tempdir/$verify";
	my $is_complete = IPC::Run::run(
		[ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-X' => 'none', '--verify' => $verify, '--no-verify-checksums', '-D' => $target, '-d' => $node->connstr('postgres') ],
		'>' => \my $stdout, '2>' => \my $stderr, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	if ($is_complete)
	{
		my $has_secret = system('grep', '-rqF', 'the secret of somebody else', $target);
		is($has_secret >> 8, 1, "a backup meanwhile, verify=$verify: nothing from outside is in it");
	}
	else
	{
		like($stderr, qr/error: .*ERROR:  (?:"\S+" is not a regular file|file "\S+" is not part of a backup|could not \S+ (?:file|directory) "\S+": )/, "a backup meanwhile, verify=$verify: what is in its way");
		ok(!-e $target, "a backup meanwhile, verify=$verify: nothing is left");
	}
	File::Path::remove_tree($target);
}
kill 'KILL', $swapping;
waitpid $swapping, 0;
for my $path (@files, map { s{/file$}{}r } @within)
{
	for ("$pgdata/$path", "$pgdata/$path.new") { -l || !-d ? unlink $_ : File::Path::remove_tree($_) }
}

# A link in each directory that there is, to a file and to a directory.
{
	my @directories = ('', map { "$_->{path}/" } grep { $_->{type} eq 'd' } list_files($coordinator));
	# What has no entries in a list has its directory walked, or not; in a data directory each is there.
	@directories = grep { -d "$pgdata/$_" } @directories;
	cmp_ok(scalar @directories, '>', 20, 'directories');
	for (@directories)
	{
		symlink "$tempdir/outside/file", "$pgdata/${_}planted_file" or die $!;
		symlink "$tempdir/outside", "$pgdata/${_}planted" or die $!;
	}
	my @listed = map { $_->{path} } list_files($coordinator);
	is_deeply([ grep { /planted|only_outside/ } @listed ], [], 'a link in each directory: none is listed');
	my @not_refused;
	for my $path (map { ("${_}planted_file", "${_}planted", "${_}planted/only_outside") } @directories)
	{
		my $reply = $conn->query(send_files_sql([$path], @id));
		my $words = $reply->{error} ? "$reply->{error}{sqlstate} $reply->{error}{message}" : 'no error';
		push @not_refused, "$path: $words" if $words !~ /^(?:42809 "\Q$path\E" is not a regular file|42501 file "\Q$path\E" is not part of a backup)\z/;
	}
	is_deeply(\@not_refused, [], 'a link in each directory: each is refused, and what is behind it');
	my $target = "$tempdir/planted";
	$node->command_ok([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-X' => 'none', '-D' => $target ], 'a link in each directory: a backup');
	is_deeply([ grep { /planted|only_outside/ } keys file_tree($target)->%* ], [], 'a link in each directory: none is in the copy');
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], 'a link in each directory: pg_verifybackup');
	unlink "$pgdata/${_}planted_file", "$pgdata/${_}planted" for @directories;
	File::Path::remove_tree($target);
}

# Long paths, and bytes that are no text.
for my $path ('a' x 65536, 'a/' x 32768 . 'a', 'a' x 1_000_000, 'base/' . 'b' x 256, '../' x 20000 . 'etc/passwd')
{
	my $name = substr($path, 0, 10) . '... of ' . length $path;
	my $reply = $conn->query(send_files_sql([$path], @id));
	my $words = $reply->{error} ? "$reply->{error}{sqlstate} " . substr $reply->{error}{message}, 0, 40 : "vanished: @{[ scalar grep { $_->{type} eq 'v' } $reply->{frames}->@* ]}";
	like($words, $path =~ /^\.\./ ? qr/^42602 invalid path "/ : qr/^vanished: 1|^58030 could not open (?:file|directory) "/, "a path $name");
	still_works($conn, "a path $name: the connection is usable");
}
for my $path ("\xff\xfe", "base/\xc3", "\xc0\xaf", "\xed\xa0\x80", "PG_VERSION\x80")
{
	my $reply = $conn->query("SEND_FILES_CONTENT (" . quote_literal($path) . ") WITH (BACKUP_ID '$id[1]')");
	is_report($reply->{error}, '22021', qr/^invalid byte sequence for encoding "UTF8": /, 'bytes that are no text: ' . unpack 'H*', $path);
}
ok(!stop_backup($coordinator)->{reply}{error}, 'STOP_BACKUP');
$_->close for $conn, $coordinator;

# Nothing of all this is in the way of a backup.
my $copy = PostgreSQL::Test::Cluster->new('copy');
$node->command_ok([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-X' => 'fetch', '-D' => $copy->data_dir ], 'a backup');
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 20000, 'the copy has the data');
$copy->stop;
$node->stop;
done_testing();
