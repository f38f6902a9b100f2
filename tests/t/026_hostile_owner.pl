# A role that may create schemas in a database, and owns it perhaps, gets nothing of the
# extension into its hands: neither before CREATE EXTENSION nor by what it made before an update.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $node = parallel_node('main', extension => 0);
$node->safe_psql('postgres', 'CREATE ROLE mallory LOGIN; CREATE DATABASE app OWNER mallory');

sub as_mallory { return $node->safe_psql('app', $_[0], extra_params => [ '-U', 'mallory' ]) }

sub refused
{
	my ($sql, $message, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($code, undef, $stderr) = $node->psql('app', "\\set VERBOSITY verbose\n$sql");

	like($stderr, $message, $name);
	return;
}

# What is in the catalogs of an extension: its members with their owners and rights, and where it is.
my $state = q(
	SET search_path = pg_catalog;
	SELECT extnamespace::regnamespace, extversion, extrelocatable FROM pg_extension WHERE extname = 'pg_parallel_backup';
	SELECT pg_describe_object(d.classid, d.objid, 0) COLLATE "C" AS object, coalesce(
			(SELECT pg_get_userbyid(nspowner) || ' ' || nspacl::text FROM pg_namespace WHERE oid = d.objid AND d.classid = 'pg_namespace'::regclass),
			(SELECT pg_get_userbyid(relowner) || ' ' || relacl::text FROM pg_class WHERE oid = d.objid AND d.classid = 'pg_class'::regclass),
			(SELECT pg_get_userbyid(proowner) || ' ' || coalesce(proacl::text, '') || ' ' || md5(pg_get_functiondef(oid))
				FROM pg_proc WHERE oid = d.objid AND d.classid = 'pg_proc'::regclass))
	FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pg_parallel_backup'
	ORDER BY object;
	SELECT pg_describe_object(d.refclassid, d.refobjid, 0) FROM pg_depend d JOIN pg_extension e ON d.objid = e.oid
	WHERE d.classid = 'pg_extension'::regclass AND e.extname = 'pg_parallel_backup');

# The control file.
is($node->safe_psql('app', q(SELECT superuser, trusted, relocatable, schema FROM pg_available_extension_versions WHERE name = 'pg_parallel_backup')),
	't|f|f|pg_catalog', 'for superusers alone, and in a schema that is nobody else\'s');
is((() = $node->safe_psql('app', q(SELECT name FROM pg_available_extension_versions WHERE name = 'pg_parallel_backup')) =~ /\n/g), 0,
	'no earlier version can be had');
{
	my ($code, undef, $stderr) = $node->psql('app', 'CREATE EXTENSION pg_parallel_backup', extra_params => [ '-U', 'mallory' ]);
	like($stderr, qr/permission denied to create extension/, 'the database\'s owner cannot make it');
}

# The schema is there already.
as_mallory('CREATE SCHEMA parallel_backup');
refused('CREATE EXTENSION pg_parallel_backup', qr/ERROR:  42P06: schema "parallel_backup" already exists/, 'a schema of that name');
as_mallory('DROP SCHEMA parallel_backup');

# Objects of the names that the script uses, wherever they may lie.
for my $schema ('public', 'mallory')
{
	as_mallory("CREATE SCHEMA IF NOT EXISTS $schema; " . join(';', map { s/SCHEMA/$schema/gr } (
		'CREATE DOMAIN SCHEMA.text AS int', 'CREATE DOMAIN SCHEMA.int8 AS bool', 'CREATE DOMAIN SCHEMA.pg_lsn AS bool', 'CREATE TYPE SCHEMA.timestamptz AS (a int)',
		'CREATE VIEW SCHEMA.pg_roles AS SELECT 1 AS oid', 'CREATE VIEW SCHEMA.backups AS SELECT 1 AS one',
		q(CREATE FUNCTION SCHEMA.get_backups() RETURNS int LANGUAGE sql AS 'SELECT 1'),
		q(CREATE FUNCTION SCHEMA.eq(oid, oid) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'captured'; END $$),
		'CREATE OPERATOR SCHEMA.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = SCHEMA.eq)',
		q(CREATE FUNCTION SCHEMA.plus(timestamptz, interval) RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'captured'; END $$),
		'CREATE OPERATOR SCHEMA.+ (LEFTARG = timestamptz, RIGHTARG = interval, FUNCTION = SCHEMA.plus)')));
}
as_mallory('ALTER DATABASE app SET search_path = mallory, public, pg_catalog');
$node->safe_psql('app', 'CREATE EXTENSION pg_parallel_backup');
is($node->safe_psql('app', 'SELECT count(*) FROM parallel_backup.backups'), '0', 'the view has nothing of others');
my $fresh = $node->safe_psql('app', $state);
$node->safe_psql('postgres', 'CREATE DATABASE reference; ');
$node->safe_psql('reference', 'CREATE EXTENSION pg_parallel_backup');
is($node->safe_psql('reference', $state), $fresh, 'the same as where nothing lies in wait');

# Afterwards.
for my $sql ('ALTER SCHEMA parallel_backup RENAME TO mine', 'DROP SCHEMA parallel_backup CASCADE',
	'CREATE FUNCTION parallel_backup.start_backup() RETURNS int LANGUAGE sql RETURN 1', 'DROP EXTENSION pg_parallel_backup',
	'ALTER SCHEMA parallel_backup OWNER TO mallory', 'GRANT CREATE ON SCHEMA parallel_backup TO mallory')
{
	my ($code, undef, $stderr) = $node->psql('app', $sql, on_error_stop => 1, extra_params => [ '-U', 'mallory' ]);
	like("$code $stderr", qr/must be owner|permission denied|no privileges were granted/, "refused to the database's owner: $sql");
}

# What 0.2.0 left: the extension in a schema that somebody else owns.
my $to_0_2_0 = q(
	SET search_path = pg_catalog;
	BEGIN;
	ALTER EXTENSION pg_parallel_backup DROP SCHEMA parallel_backup;
	ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.upload_manifest;
	DROP PROCEDURE parallel_backup.upload_manifest;
	ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.start_backup;
	DROP PROCEDURE parallel_backup.start_backup;
	CREATE PROCEDURE parallel_backup.start_backup(label text DEFAULT NULL, checkpoint text DEFAULT NULL, progress boolean DEFAULT NULL,
		verify_checksums boolean DEFAULT NULL, max_rate int8 DEFAULT NULL)
		LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_start_backup_wrapper';
	ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.start_backup;
	ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.stop_backup;
	DROP PROCEDURE parallel_backup.stop_backup;
	CREATE PROCEDURE parallel_backup.stop_backup(backup_id text DEFAULT NULL, label text DEFAULT NULL, wait boolean DEFAULT NULL)
		LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_stop_backup_wrapper';
	ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.stop_backup;
	ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.send_files_content;
	DROP PROCEDURE parallel_backup.send_files_content;
	CREATE PROCEDURE parallel_backup.send_files_content(files text[], backup_id text DEFAULT NULL, offsets int8[] DEFAULT NULL,
		lengths int8[] DEFAULT NULL, verify_checksums boolean DEFAULT NULL, file_checksum text DEFAULT NULL,
		compression text DEFAULT NULL, compression_level int4 DEFAULT NULL)
		LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_send_files_content_wrapper';
	ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.send_files_content;
	ALTER EXTENSION pg_parallel_backup DROP PROCEDURE parallel_backup.send_file_list;
	DROP PROCEDURE parallel_backup.send_file_list;
	CREATE PROCEDURE parallel_backup.send_file_list(backup_id text DEFAULT NULL, estimate boolean DEFAULT NULL)
		LANGUAGE c AS '$libdir/pg_parallel_backup', 'parallel_backup_send_file_list_wrapper';
	ALTER EXTENSION pg_parallel_backup ADD PROCEDURE parallel_backup.send_file_list;
	ALTER EXTENSION pg_parallel_backup DROP VIEW parallel_backup.backups;
	DROP VIEW parallel_backup.backups;
	ALTER EXTENSION pg_parallel_backup DROP FUNCTION parallel_backup.get_backups;
	DROP FUNCTION parallel_backup.get_backups;
	CREATE FUNCTION parallel_backup.get_backups(OUT backup_id text, OUT pid int4, OUT role oid, OUT label text, OUT start_lsn text,
		OUT start_tli int8, OUT state text, OUT started int8, OUT workers int4, OUT files int8, OUT bytes int8, OUT total int8,
		OUT checksum_failures int8, OUT max_rate int4) RETURNS SETOF record LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED
		AS '$libdir/pg_parallel_backup', 'parallel_backup_get_backups_wrapper';
	ALTER EXTENSION pg_parallel_backup ADD FUNCTION parallel_backup.get_backups;
	CREATE VIEW parallel_backup.backups AS SELECT * FROM parallel_backup.get_backups();
	ALTER EXTENSION pg_parallel_backup ADD VIEW parallel_backup.backups;
	UPDATE pg_extension SET extnamespace = 'parallel_backup'::regnamespace, extversion = '0.2.0' WHERE extname = 'pg_parallel_backup';
	INSERT INTO pg_depend SELECT 'pg_extension'::regclass, oid, 0, 'pg_namespace'::regclass, extnamespace, 0, 'n' FROM pg_extension WHERE extname = 'pg_parallel_backup';
	ALTER SCHEMA parallel_backup OWNER TO mallory;
	COMMIT;);
my $update = 'ALTER EXTENSION pg_parallel_backup UPDATE';
$node->safe_psql('app', $to_0_2_0);
is($node->safe_psql('app', 'SELECT count(*) FROM parallel_backup.backups'), '0', 'the view of an extension that was not updated');
as_mallory('GRANT ALL ON SCHEMA parallel_backup TO pg_monitor WITH GRANT OPTION; GRANT CREATE ON SCHEMA parallel_backup TO PUBLIC');
as_mallory(q(CREATE PROCEDURE parallel_backup.start_backup(label text) LANGUAGE sql AS 'SELECT 1'));
refused($update, qr/ERROR:  55000: schema "parallel_backup" has objects that do not belong to extension.*DETAIL:  These are: function start_backup\(mallory\.text\)\./s,
	'an update finds what was put beside it');
as_mallory('DROP PROCEDURE parallel_backup.start_backup(mallory.text); CREATE TABLE parallel_backup.mine (id int)');
refused($update, qr/These are: table mine\./, 'whatever it is');
as_mallory('DROP TABLE parallel_backup.mine; ALTER SCHEMA parallel_backup RENAME TO elsewhere; CREATE SCHEMA parallel_backup');
refused($update, qr/ERROR:  55000: schema "parallel_backup" is not the one.*DETAIL:  That one is called elsewhere now/s, 'and that the schema is another');
as_mallory('DROP SCHEMA parallel_backup');
refused($update, qr/ERROR:  55000: schema "parallel_backup" is not the one/, 'or gone');
as_mallory('ALTER SCHEMA elsewhere RENAME TO parallel_backup');
$node->safe_psql('app', $update);
is($node->safe_psql('app', $state), $fresh, 'updated: the same as from the beginning');
$node->safe_psql('app', 'DROP EXTENSION pg_parallel_backup');
is($node->safe_psql('app', q(SELECT count(*) FROM pg_namespace WHERE nspname = 'parallel_backup')), '0', 'nothing is left');

done_testing();
