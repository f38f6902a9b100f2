# A library beside ours that has set the hook of the patch, before it or after it.

use strict;
use warnings FATAL => 'all';

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::RawBackup;
use ParallelBackup::Test;

my $library = PostgreSQL::Test::Utils::tempdir . '/hook_observer.so';
my ($cc) = run_command([ 'pg_config', '--cc' ]);
my ($include) = run_command([ 'pg_config', '--includedir-server' ]);
command_ok(
	[
		split(' ', $ENV{CC} // $cc), '-std=gnu11', '-O1', '-fPIC', '-shared', '-D_GNU_SOURCE',
		"-I$include", '-o', $library, dirname(__FILE__) . '/../modules/hook_observer/hook_observer.c'
	],
	'compiled');

my $node = parallel_node('main');
$node->safe_psql('postgres', 'CREATE TABLE t AS SELECT generate_series(1, 1000) AS id');
for my $preload ("$library, pg_parallel_backup", "pg_parallel_backup, $library")
{
	my $order = $preload =~ /backup$/ ? 'loaded before' : 'loaded after';
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$preload'");
	$node->restart;

	my $conn = connection($node);
	my $reply = query_ok($conn, "START_BACKUP (CHECKPOINT 'fast')");
	is_deeply([ map { $_->{message} } @{ $reply->{notices} } ], ['observed START_BACKUP'], "$order: it looks on, once");
	is(@{ $reply->{results} }, 3, "$order: and the command is carried out, once");
	is_error($conn, "STOP_BACKUP (WAIT false, LABEL 'x')", '42501', qr/^more than one option$/, "$order: it refuses");
	ok(!stop_backup($conn)->{reply}{error}, "$order: and nothing has happened by that");
	$conn->close;
}

my $copy = PostgreSQL::Test::Cluster->new('copy');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_parallel_backup'");
$node->restart;
raw_backup($node, $copy->data_dir);
start_copy($copy);
is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 1000, 'data of the copy');
$copy->stop;

done_testing();
