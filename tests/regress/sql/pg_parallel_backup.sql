-- The extension's SQL: what it makes, who may use it, what it says where no backup
-- runs.  Backups themselves are for the TAP tests.

CREATE EXTENSION pg_parallel_backup;
SELECT extname, extnamespace::regnamespace AS schema, extrelocatable
  FROM pg_extension WHERE extname = 'pg_parallel_backup';

-- What belongs to it
SELECT pg_describe_object(classid, objid, objsubid) AS object
  FROM pg_depend
 WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
   AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_parallel_backup')
   AND classid <> 'pg_type'::regclass
 ORDER BY pg_describe_object(classid, objid, objsubid) COLLATE "C";
\d parallel_backup.backups
SELECT p.oid::regprocedure AS function, pg_get_function_result(p.oid) AS result,
       provolatile, proparallel, proisstrict, prosecdef
  FROM pg_proc p WHERE pronamespace = 'parallel_backup'::regnamespace
 ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT obj_description('parallel_backup.backups'::regclass, 'pg_class') IS NOT NULL AS view_comment,
       obj_description('parallel_backup.cancel_backup(text)'::regprocedure, 'pg_proc') IS NOT NULL AS function_comment;

-- No backup, no row
SELECT * FROM parallel_backup.backups;

-- Privileges, but for the owner's
SELECT 'schema' AS kind, nspname AS name, grantee::regrole, privilege_type, is_grantable
  FROM pg_namespace, aclexplode(nspacl)
 WHERE nspname = 'parallel_backup' AND grantee <> nspowner
UNION ALL
SELECT 'view', relname, grantee::regrole, privilege_type, is_grantable
  FROM pg_class, aclexplode(relacl)
 WHERE oid = 'parallel_backup.backups'::regclass AND grantee <> relowner
UNION ALL
SELECT 'function', proname, grantee::regrole, privilege_type, is_grantable
  FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
 WHERE pronamespace = 'parallel_backup'::regnamespace AND grantee <> proowner
 ORDER BY 1, 2, 3, 4;
CREATE ROLE regress_parallel_backup_nobody;
CREATE ROLE regress_parallel_backup_monitor IN ROLE pg_monitor;
SET ROLE regress_parallel_backup_nobody;
SELECT * FROM parallel_backup.backups;
SELECT * FROM parallel_backup.get_backups();
RESET ROLE;
SET ROLE regress_parallel_backup_monitor;
SELECT count(*) FROM parallel_backup.backups;
DELETE FROM parallel_backup.backups;
RESET ROLE;

-- Nothing to cancel: code, then words
\set VERBOSITY sqlstate
SELECT parallel_backup.cancel_backup('00000000000000000000000000000000');
SELECT parallel_backup.cancel_backup('not an identifier');
SELECT parallel_backup.cancel_backup('');
\set VERBOSITY terse
SELECT parallel_backup.cancel_backup('00000000000000000000000000000000');
SELECT parallel_backup.cancel_backup('not an identifier');
SELECT parallel_backup.cancel_backup('');
SELECT parallel_backup.cancel_backup(NULL) IS NULL AS strict;

-- Settings
SHOW pg_parallel_backup.max_backups;
SELECT name, setting, unit, context, vartype, min_val, max_val, boot_val,
       short_desc ~ '^Sets .*\.$' AS short_desc, extra_desc ~ '\.$' AS extra_desc
  FROM pg_settings WHERE vartype = 'integer' AND name LIKE 'pg\_parallel\_backup.%' ORDER BY name COLLATE "C";
SET pg_parallel_backup.max_backups = 1;
-- its value is the server's, with the patch or without
SELECT context, vartype, boot_val, short_desc ~ '^Shows .*\.$' AS short_desc
  FROM pg_settings WHERE name = 'pg_parallel_backup.replication_grammar';
-- incremental backups are from 17 on
SELECT replace(setting, ', incremental', '') AS setting, context, vartype, short_desc ~ '^Shows .*\.$' AS short_desc
  FROM pg_settings WHERE name = 'pg_parallel_backup.features';
SET pg_parallel_backup.features = 'telepathy';
SET pg_parallel_backup.replication_grammar = off;
SET pg_parallel_backup.no_such_setting = 1;

-- It leaves nothing behind
DROP EXTENSION pg_parallel_backup;
DROP ROLE regress_parallel_backup_nobody, regress_parallel_backup_monitor;
SELECT count(*) FROM pg_proc WHERE probin LIKE '%pg_parallel_backup%';
SELECT to_regclass('parallel_backup.backups') IS NULL AS gone;

-- Nor does it go where it does not belong
CREATE EXTENSION pg_parallel_backup SCHEMA public;
CREATE EXTENSION pg_parallel_backup;
ALTER EXTENSION pg_parallel_backup SET SCHEMA public;
CREATE EXTENSION pg_parallel_backup;
DROP EXTENSION pg_parallel_backup;
