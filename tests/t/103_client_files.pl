# Directories of the client's that cannot be opened or made: it says so, and leaves nothing. It runs with a library
# (modules/io_faults) that has such calls fail, from the first, the second and so on.

use strict;
use warnings FATAL => 'all';

use Errno qw(EACCES EMFILE ENOSPC);
use File::Basename;
use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $library = "$tempdir/io_faults.so";
my $control = "$tempdir/faults";
my ($cc) = run_command([ 'pg_config', '--cc' ]);
command_ok([ split(' ', $ENV{CC} // $cc), '-std=gnu11', '-O1', '-fPIC', '-shared', '-D_GNU_SOURCE', '-o', $library, dirname(__FILE__) . '/../modules/io_faults/io_faults.c' ],
	'the library that makes calls fail');

my $node = parallel_node('main', extension => 1);
my $copy = "$tempdir/copy";
my @client = ('env', "LD_PRELOAD=$library", "IO_FAULTS=$control", 'pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--wal-method' => 'none',
	'-d' => $node->connstr('postgres'));

for my $output ([], ['-Ft'], [ '-Ft', '--volumes=1MB' ])
{
	my %given_back;
	for my $case ([ open => EMFILE ], [ open => EACCES ], [ create => ENOSPC ])
	{
		my ($call, $error) = @$case;
		for my $after (0 .. 7)
		{
			my $what = join ' ', @$output, "$call fails with error $error after $after:";
			write_file($control, "0 $call $error $after $copy");
			my $is_complete = IPC::Run::run([ @client, @$output, '-D' => "$copy/within" ], '>' => \my $stdout, '2>' => \my $stderr);
			note($stderr);
			is($is_complete ? 1 : 0, unlink("$control.seen") ? 0 : 1, "$what it fails if something has failed");
			if (!$is_complete)
			{
				like($stderr, qr/^pg_parallel_basebackup: error: could not /, "$what it says so");
				# Whoever cannot look into a directory cannot empty it.
				my $is_said = $call eq 'open' && $stderr =~ /^pg_parallel_basebackup: error: failed to remove data directory: /m;
				ok($is_said || !-e $copy, "$what nothing is left, or it is said");
				$given_back{$call}++ if !-e $copy;
			}
			File::Path::remove_tree($copy);
		}
	}
	# The two directories, each of which is opened once it is made.
	cmp_ok($given_back{$_}, '>=', 4, join ' ', @$output, "$_: given back") for qw(open create);
}

$node->stop;
done_testing();
