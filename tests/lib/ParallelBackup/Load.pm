# A cluster that is never quiet: what changes it, drawn at random, and by what it is known again.

package ParallelBackup::Load;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use IPC::Run ();

our @EXPORT = qw(pick on work_on some_deeds deed_while_it_runs move_database far_relation start_load stop_load sums balances);

# The server that things are done on.
my $node;

sub pick { return $_[ int rand @_ ] }

sub on
{
	my ($database, $sql) = @_;
	return $node->safe_psql($database, $sql);
}

# Makes a server the one that things are done on; it has the tablespaces ts and in_place, or none.
sub work_on { ($node) = @_; return }

sub _places { return split /\n/, on('postgres', q(SELECT spcname FROM pg_tablespace WHERE spcname IN ('ts', 'in_place', 'pg_default'))) }

my $counter = 0;
my @deeds = (
	sub { on('postgres', 'TRUNCATE t' . pick(1 .. 8)) },
	sub { my $t = 't' . pick(1 .. 8); on('postgres', "INSERT INTO $t SELECT g, repeat('y', 300) FROM generate_series(1, " . pick(10, 1000, 20000) . ') g') },
	sub { on('postgres', 'UPDATE t' . pick(1 .. 8) . q( SET filler = 'u' || id WHERE id % ) . pick(1, 7, 100) . ' = 0') },
	sub { my $t = 't' . pick(1 .. 8); on('postgres', "DELETE FROM $t WHERE id > " . pick(100, 2000)); on('postgres', "VACUUM (TRUNCATE) $t") },
	sub { on('postgres', 'VACUUM FULL t' . pick(1 .. 8)) },
	sub { my $t = 't' . pick(1 .. 8); on('postgres', "CLUSTER $t USING ${t}_id_idx") if on('postgres', "SELECT to_regclass('${t}_id_idx') IS NOT NULL") eq 't' },
	sub { my $t = 't' . pick(1 .. 8); on('postgres', "DROP TABLE $t; CREATE TABLE $t AS SELECT g AS id, 'new' AS filler FROM generate_series(1, 500) g; CREATE INDEX ON $t (id)") },
	sub { on('postgres', 'ALTER TABLE t' . pick(1 .. 8) . ' SET TABLESPACE ' . pick(_places())) },
	sub { on('postgres', q(INSERT INTO long SELECT g, repeat('z', 500) FROM generate_series(1, 2000) g)) },
	sub { on('postgres', q(INSERT INTO far SELECT g, repeat('f', 500) FROM generate_series(1, 4000) g)) if on('postgres', q(SELECT to_regclass('far') IS NOT NULL)) eq 't' },
	sub { on('postgres', 'UPDATE long SET filler = id::text WHERE id % 50 = ' . pick(0 .. 49)) },
	sub { on('postgres', 'VACUUM long') },
	sub { on('postgres', 'REINDEX TABLE t' . pick(1 .. 8)) },
	sub { on('postgres', 'ALTER TABLE t' . pick(1 .. 8) . ' SET ' . pick('UNLOGGED', 'LOGGED')) },
	sub { on('postgres', 'CHECKPOINT') },
	# In place: another one's replay would make its directory where the first has it.
	sub {
		return if _places() == 1;
		my $name = 's' . ++$counter;
		on('postgres', "CREATE TABLESPACE $name LOCATION ''");
		on('postgres', "CREATE TABLE of_$name TABLESPACE $name AS SELECT g AS id FROM generate_series(1, 3000) g");
	},
	sub {
		my $name = pick(_spaces()) // return;
		on('postgres', "ALTER TABLE ALL IN TABLESPACE $name SET TABLESPACE " . pick(_places()));
	},
	sub {
		my $name = pick(_spaces()) // return;
		on('postgres', "DROP TABLE of_$name");
		# It is empty once a checkpoint has removed the files.
		on('postgres', "DROP TABLESPACE $name") if on('postgres', "SELECT count(*) FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace WHERE spcname = '$name'") eq '0';
	},
	sub {
		my $name = 'd' . ++$counter;
		on('postgres', "CREATE DATABASE $name STRATEGY " . pick('wal_log', 'file_copy'));
		on($name, 'CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 2000) g');
	},
	sub {
		my @names = split /\n/, on('postgres', q(SELECT datname FROM pg_database WHERE datname ~ '^d[0-9]+$'));
		on('postgres', 'DROP DATABASE ' . pick(@names)) if @names > 2;
	});

# Tablespaces that were made here, with a table each.
sub _spaces { return split /\n/, on('postgres', q(SELECT spcname FROM pg_tablespace WHERE spcname ~ '^s[0-9]+$' AND to_regclass('of_' || spcname) IS NOT NULL)) }

# Not while a backup runs: replay copies the directory as it finds it, and neither place may be in the copy. A
# database that is moved during pg_basebackup is lost in the same way.
sub move_database
{
	my @names = split /\n/, on('postgres', q(SELECT datname FROM pg_database WHERE datname ~ '^d[0-9]+$'));
	on('postgres', 'ALTER DATABASE ' . pick(@names) . ' SET TABLESPACE ' . pick(grep { $_ ne 'in_place' } _places())) if @names;
	return;
}

# One that a backup has to bear.
sub deed_while_it_runs { pick(@deeds)->(); return }

sub some_deeds
{
	pick(@deeds, \&move_database)->() for 1 .. pick(2, 4, 8);
	return;
}

# A relation that has nearly a segment, of pages that nobody has used, and takes no place: what is done to it goes on in the next.
sub far_relation
{
	on('postgres', 'CREATE TABLE far (id int, filler text)');
	truncate $node->data_dir . '/' . on('postgres', q(SELECT pg_relation_filepath('far'))), 1024 * 1024 * 1024 - 100 * 8192 or die $!;
	return;
}

# Rows and their sum in every table that outlives a crash.
sub sums
{
	my ($of) = @_;
	my @sums;

	for my $database (split /\n/, $of->safe_psql('postgres', 'SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1'))
	{
		my @tables = split /\n/, $of->safe_psql($database, q(SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1));
		push @sums, map { "$database $_ " . $of->safe_psql($database, "SELECT count(*), coalesce(sum(hashtext(t::text)), 0) FROM $_ t") } @tables;
	}
	return join "\n", @sums;
}

# What pgbench keeps equal at every moment.
sub balances
{
	my ($of) = @_;
	return $of->safe_psql('postgres', q(SELECT a = t AND a = b AND a = h FROM (SELECT
		(SELECT sum(abalance) FROM pgbench_accounts) AS a, (SELECT sum(tbalance) FROM pgbench_tellers) AS t,
		(SELECT sum(bbalance) FROM pgbench_branches) AS b, (SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS h) x));
}

my $load;
sub start_load
{
	$load = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client' => 3, '--time' => 3600, '--rate' => 300, '--port' => $node->port, '--host' => $node->host, 'postgres' ],
		'>' => '/dev/null', '2>' => '/dev/null');
	return;
}

sub stop_load
{
	$load->signal('INT');
	$load->finish;
	return;
}

1;
