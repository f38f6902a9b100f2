# The server's clock is set back while a backup with a rate runs: nobody waits for it to be late
# again. The server runs with a library (modules/clock) that does so.

use strict;
use warnings FATAL => 'all';

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $library = "$tempdir/clock.so";
my $control = "$tempdir/set_back";
my ($cc) = run_command([ 'pg_config', '--cc' ]);
command_ok(
	[
		split(' ', $ENV{CC} // $cc), '-std=gnu11', '-O1', '-fPIC', '-shared', '-D_GNU_SOURCE',
		'-o', $library, dirname(__FILE__) . '/../modules/clock/clock.c', '-ldl'
	],
	'the library that sets the clock back');

my $node = parallel_node('main', start => 0);
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{CLOCK_SET_BACK} = $control;
	$node->start;
}
$node->safe_psql('postgres', 'CREATE EXTENSION pg_parallel_backup; CREATE TABLE t AS SELECT generate_series(1, 1000) AS id');
make_file($node->data_dir . '/large', 256 * 1024);

my $conn = connection($node);
my $id = start_backup($conn, MAX_RATE => 4096)->{backup_id};
# From now on the rate's next byte has a time.
is(fetch($conn, ['large'], BACKUP_ID => $id)->{reply}{error}, undef, 'before');
my $then = $node->safe_psql('postgres', 'SELECT extract(epoch FROM clock_timestamp())::int8');
write_file($control, '');
cmp_ok($node->safe_psql('postgres', 'SELECT extract(epoch FROM clock_timestamp())::int8'), '<', $then, 'the clock is set back');
is(fetch($conn, ['large'], BACKUP_ID => $id)->{reply}{error}, undef, 'and files are sent as before');
ok(!stop_backup($conn)->{reply}{error}, 'STOP_BACKUP');
$conn->close;
unlink $control, $node->data_dir . '/large';

my $copy = PostgreSQL::Test::Cluster->new('copy');
raw_backup($node, $copy->data_dir, start => { MAX_RATE => 1048576 });
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, 'data of the copy');
$copy->stop;

done_testing();
