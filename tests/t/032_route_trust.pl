# Whose procedures pg_parallel_basebackup calls: those of the extension alone. A database's owner can
# make a schema of any name and procedures of any kind in it, and a superuser who backs up by way of
# that database must run none of that code.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Proxy;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
my $node = parallel_node('main', extension => 1, conf => "listen_addresses = '127.0.0.1'\n");
# No replication connection: the procedures are the only way in.
write_file($node->data_dir . '/pg_hba.conf', "local all all trust\n");
$node->reload;
$node->safe_psql('postgres', 'CREATE ROLE mallory LOGIN');

# What runs as somebody else leaves its mark.
my $attack = q($$BEGIN ALTER ROLE mallory SUPERUSER; RAISE WARNING 'captured'; END$$);

sub database
{
	my ($extension) = @_;

	$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS app');
	$node->safe_psql('postgres', 'CREATE DATABASE app OWNER mallory');
	$node->safe_psql('app', 'CREATE EXTENSION pg_parallel_backup') if $extension;
	return;
}

# The superuser's backup by way of the database: refused with these words, or made; and in either case
# nothing that was put in its way has run.
sub attacked
{
	my ($name, $refusal, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local %ENV = (%ENV, %{ $params{environment} || {} });

	$node->command_checks_all([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-X' => 'fetch', '-j' => 2, '-d' => 'dbname=app', '-D' => $target ],
		$refusal ? 1 : 0, [qr/^$/], [ $refusal || (), qr/\A(?!.*captured)/s ], $name);
	is($node->safe_psql('postgres', "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"), 'f', "$name: nobody became superuser");
	$node->safe_psql('postgres', 'ALTER ROLE mallory NOSUPERUSER');
	if ($refusal) { ok(!-e $target, "$name: nothing is left") }
	else { command_ok([ 'pg_verifybackup', $target ], "$name: pg_verifybackup") }
	File::Path::remove_tree($target);
	return;
}

sub as_mallory
{
	my ($sql) = @_;

	$node->safe_psql('app', $sql, extra_params => [ '-U' => 'mallory' ]);
	return;
}

my $arguments = 'label text DEFAULT NULL, checkpoint text DEFAULT NULL, progress boolean DEFAULT NULL, verify_checksums boolean DEFAULT NULL, max_rate int8 DEFAULT NULL';
my $foreign = qr/: procedure parallel_backup\.start_backup in database "app" does not belong to the extension pg_parallel_backup\b.*Nothing was called/s;
my $open = qr/: schema "parallel_backup" in database "app" can be changed by roles that are not superusers\b.*Nothing of it was called/s;

# Everything made up.
database(0);
as_mallory(qq(
	CREATE SCHEMA parallel_backup;
	CREATE PROCEDURE parallel_backup.start_backup($arguments) LANGUAGE plpgsql AS $attack;
	CREATE PROCEDURE parallel_backup.send_file_list(backup_id text DEFAULT NULL, estimate boolean DEFAULT NULL) LANGUAGE plpgsql AS $attack;
	CREATE PROCEDURE parallel_backup.send_files_content(files text[], backup_id text DEFAULT NULL) LANGUAGE plpgsql AS $attack;
	CREATE PROCEDURE parallel_backup.stop_backup(backup_id text DEFAULT NULL, label text DEFAULT NULL, wait boolean DEFAULT NULL) LANGUAGE plpgsql AS $attack;));
attacked('procedures of the owner', $open);

# The extension is there, and its schema is somebody's: renamed after the look, it would be another.
database(1);
$node->safe_psql('app', 'ALTER SCHEMA parallel_backup OWNER TO mallory');
attacked('a schema of the owner', $open);

# Whoever may create there can put an overload before the procedure, now or after the look.
database(1);
$node->safe_psql('app', 'GRANT CREATE ON SCHEMA parallel_backup TO mallory');
attacked('a schema that the owner may create in', $open);
as_mallory("CREATE PROCEDURE parallel_backup.start_backup(label text, checkpoint text) LANGUAGE plpgsql AS $attack");
attacked('an overload', $open);
$node->safe_psql('app', 'REVOKE CREATE ON SCHEMA parallel_backup FROM mallory');
attacked('an overload from before', $foreign);
database(1);
$node->safe_psql('app', 'GRANT CREATE ON SCHEMA parallel_backup TO PUBLIC');
attacked('a schema that all may create in', $open);

# The same name and arguments, but no member of the extension.
database(1);
$node->safe_psql('app', q(
	ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.start_backup;
	DROP PROCEDURE parallel_backup.start_backup;
	GRANT CREATE ON SCHEMA parallel_backup TO mallory));
as_mallory("CREATE PROCEDURE parallel_backup.start_backup($arguments) LANGUAGE plpgsql AS $attack");
$node->safe_psql('app', 'REVOKE CREATE ON SCHEMA parallel_backup FROM mallory');
attacked('no member of the extension', $foreign);

# A member of the extension, but not of its library.
database(1);
$node->safe_psql('app', "CREATE OR REPLACE PROCEDURE parallel_backup.start_backup($arguments) LANGUAGE plpgsql AS $attack");
attacked('a member that is not the library\'s', $foreign);

# Operators, functions and a type that come before those of pg_catalog.
database(1);
as_mallory(q(
	CREATE SCHEMA evil;
	CREATE DOMAIN evil.text AS pg_catalog.text;
	CREATE FUNCTION evil.attack() RETURNS boolean LANGUAGE plpgsql AS $$BEGIN ALTER ROLE mallory SUPERUSER; RAISE WARNING 'captured'; RETURN true; END$$;));
for my $type ('name', '"char"', 'pg_catalog.text', 'oid', 'integer', 'bigint', 'boolean')
{
	as_mallory("CREATE FUNCTION evil.$_->[0](a $type, b $type) RETURNS boolean LANGUAGE sql AS 'SELECT evil.attack()';
		CREATE OPERATOR evil.$_->[1] (LEFTARG = $type, RIGHTARG = $type, FUNCTION = evil.$_->[0])")
	  for [ 'eq', '=' ], [ 'ne', '<>' ];
}
as_mallory('ALTER DATABASE app SET search_path = evil, pg_catalog');
attacked('search_path of the database', undef);
as_mallory('ALTER DATABASE app RESET search_path');
attacked('search_path of the environment', undef, environment => { PGOPTIONS => '-c search_path=evil,pg_catalog' });

# An example that a reader copies is no worse.
database(0);
as_mallory("CREATE SCHEMA parallel_backup; CREATE PROCEDURE parallel_backup.start_backup($arguments) LANGUAGE plpgsql AS $attack");
my @examples = ([ 'shell', 'bash', "$ENV{PPB_ROOT}/docs/examples/backup.sh" ]);
my ($python) = grep { system("$_ -c 'import psycopg' 2>/dev/null") == 0 } $ENV{PPB_PYTHON} // (), 'python3', '/usr/bin/python3';
push @examples, [ 'python', $python, "$ENV{PPB_ROOT}/docs/examples/backup.py" ] if $python;
for my $example (@examples)
{
	my ($name, @command) = @$example;
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'app');
	command_checks_all([ @command, $target, $name eq 'python' ? 'dbname=app' : () ], 1, [qr/^$/],
		[qr/the procedures are not those of the extension/], "$name example: refused");
	is($node->safe_psql('postgres', "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"), 'f', "$name example: nobody became superuser");
	ok(!-e $target, "$name example: nothing is left");
	$node->safe_psql('postgres', 'ALTER ROLE mallory NOSUPERUSER');
}

# A pooler makes up the key that it gives for a server process, here by a network that changes it: two
# commands may reach two server processes.
{
	write_file($node->data_dir . '/pg_hba.conf', "local all all trust\nhost all all 127.0.0.1/32 trust\n");
	$node->reload;
	my $pooler = ParallelBackup::Proxy->new(server => $node->port, find => "K\0\0\0\x0c", at => 8, xor => 1, always => 1, flag => "$tempdir/flag");
	command_checks_all([ 'pg_parallel_basebackup', '-X' => 'none', '-D' => $target, '-d' => 'host=127.0.0.1 dbname=postgres sslmode=disable port=' . $pooler->port ],
		1, [qr/^$/], [qr/: the connection goes to a connection pooler, .* Connect to the server itself/s], 'a pooler: refused');
	ok(-e "$tempdir/flag", 'a pooler: the key was another');
	ok(!-e $target, 'a pooler: nothing is left');
}

$node->stop;
done_testing();
