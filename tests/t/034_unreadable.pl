# A file that the server may not read: the backup ends with the server's word about it, as BASE_BACKUP
# does, and no connection is taken for lost.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main');
my $secret = $node->data_dir . '/secret';
write_file($secret, 'x');
chmod 0, $secret;

for my $jobs (1, 3)
{
	$node->command_checks_all([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-j' => $jobs, '-D' => "$tempdir/target" ],
		1, [qr/^$/], [ qr/^pg_parallel_basebackup: error: could not fetch file "secret": ERROR:  could not open file "secret": Permission denied$/m, qr/\A(?!.*(?:lost|try again))/s ],
		"-j $jobs: an unreadable file");
	ok(!-e "$tempdir/target", "-j $jobs: nothing is left");
}
# It was that file alone.
unlink $secret or die "could not remove $secret: $!";
$node->command_ok([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-D' => "$tempdir/target" ], 'without it');
command_ok([ 'pg_verifybackup', "$tempdir/target" ], 'without it: pg_verifybackup');

$node->stop;
done_testing();
