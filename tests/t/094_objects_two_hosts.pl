# docs/examples/two_hosts.py: two processes that share nothing but a bucket fetch one backup, and all that they have
# stored is a copy that starts.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::ObjectStore;
use ParallelBackup::Test;

plan skip_all => 'NOT TESTED: PPB_NO_OBJECTS says that no object store is to be had' if $ENV{PPB_NO_OBJECTS};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $example = "$ENV{PPB_ROOT}/docs/examples/two_hosts.py";
my $node = parallel_node('main', extension => 1);
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT g AS id, repeat(md5(g::text), 30) AS filler FROM generate_series(1, 8000) g;
	CREATE ROLE backup LOGIN IN ROLE pg_read_server_files;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO backup;));
my $query = 'SELECT count(*), sum(hashtext(filler)) FROM t';
my $store = object_store('hosts');

# boto3 comes with the store, psycopg with the system.
ok(defined $ENV{PPB_BOTO3}, 'where boto3 is');
local $ENV{PYTHONPATH} = $ENV{PPB_BOTO3};
my ($python) = grep { system("$_ -c 'import psycopg, boto3' 2>/dev/null") == 0 } $ENV{PPB_PYTHON} // (), 'python3', '/usr/bin/python3';
ok(defined $python, 'a Python that has psycopg and boto3') or BAIL_OUT('tools/prerequisites.sh sees to it that there is one');

my @runs;
for my $host (2, 1)
{
	my ($stdout, $stderr) = ('', '');
	my @command = ('env', $store->environment, 'PGUSER=backup', $python, $example, $host, 2, 'hosts', 'main/monday', $node->connstr('postgres'));
	push @runs, { host => $host, stderr => \$stderr, run => IPC::Run::start(\@command, '<' => \undef, '>' => \$stdout, '2>' => \$stderr, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default)) };
}
for (@runs)
{
	$_->{run}->finish;
	is($_->{run}->full_result(0), 0, "host $_->{host}: exit code") or diag(${ $_->{stderr} });
}
is_deeply([ $store->list('main/monday/') ], [ map { "main/monday/$_" } qw(last.tar part.1.tar part.2.tar plan.json) ], 'what is in the bucket');

my $copy = PostgreSQL::Test::Cluster->new('copy');
mkdir $copy->data_dir, 0700 or die $!;
$store->download('main/monday', "$tempdir/place");
for my $archive (qw(part.2 part.1 last))
{
	cmp_ok(-s "$tempdir/place/$archive.tar", '>', 100_000, "$archive.tar has something in it");
	system_or_bail('tar', '-xf', "$tempdir/place/$archive.tar", '-C', $copy->data_dir);
}
start_copy($copy);
is($copy->safe_psql('postgres', $query), $node->safe_psql('postgres', $query), 'data of the copy');
$copy->stop;

done_testing();
