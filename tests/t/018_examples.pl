# The programs in docs/examples, as a reader would run them: each makes a copy that
# starts.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $examples = "$ENV{PPB_ROOT}/docs/examples";
my $node = parallel_node('main', extension => 1);
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
	CREATE TABLE large AS SELECT g AS id, repeat(md5(g::text), 30) AS a FROM generate_series(1, 4000) g;
	CREATE TABLE "it's" AS SELECT 1 AS a;
	CREATE ROLE backup LOGIN IN ROLE pg_read_server_files;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO backup;));
# Names that need quoting and encoding.
write_file($node->data_dir . "/it's 100%\x01", 'odd');

# Runs an example and looks at the copy.
sub good_copy
{
	my ($name, @command) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new($name);
	my $query = q(SELECT count(*), sum(id), (SELECT sum(hashtext(a)) FROM large), (SELECT a FROM "it's") FROM t);

	{
		local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGUSER => 'backup');
		command_ok([ @command, $copy->data_dir, $name eq 'python' ? ('dbname=postgres', 3) : 3 ], "$name: it runs");
	}
	is(slurp_file($copy->data_dir . "/it's 100%\x01"), 'odd', "$name: a file of an odd name");
	compare_trees($node->data_dir, $copy->data_dir, "$name: the files",
		# What a backup leaves out: of some directories the content.
		ignore => [
			qr{(?:pg_wal|pg_stat_tmp|pg_replslot|pg_dynshmem|pg_notify|pg_subtrans|pg_serial|pg_snapshots)/.*},
			qr/postmaster\.(?:pid|opts)/, qr/backup_label/, qr/.*pg_internal\.init/
		],
		differ => { 'global/pg_control' => 'newer' });
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $node->safe_psql('postgres', $query), "$name: data of the copy");
	$copy->stop;
	return;
}

good_copy('shell', 'bash', "$examples/backup.sh");

SKIP:
{
	# tools/prerequisites.sh sees to it that there is one.
	my ($python) = grep { system("$_ -c 'import psycopg' 2>/dev/null") == 0 } $ENV{PPB_PYTHON} // (), 'python3', '/usr/bin/python3';
	skip 'no Python that has psycopg', 1 unless $python;
	cmp_ok(scalar(split /\n/, slurp_file("$examples/backup.py")), '<', 60, 'python: less than 60 lines');
	good_copy('python', $python, "$examples/backup.py");
}

$node->stop;
done_testing();
