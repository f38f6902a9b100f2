-- The extension's SQL: what it makes, who may use it, what it says where no backup
-- runs.  Backups themselves are for the TAP tests.
\set VERBOSITY verbose
\set SHOW_CONTEXT never

CREATE EXTENSION pg_parallel_backup;
\dx pg_parallel_backup
\dx+ pg_parallel_backup
\d+ parallel_backup.backups

-- Comments
SELECT obj_description('parallel_backup'::regnamespace, 'pg_namespace') IS NOT NULL AS schema_comment,
       obj_description('parallel_backup.backups'::regclass, 'pg_class') IS NOT NULL AS view_comment,
       obj_description('parallel_backup.cancel_backup(text)'::regprocedure, 'pg_proc') IS NOT NULL AS function_comment;

-- No backup, no row
SELECT * FROM parallel_backup.backups;

-- Functions
SELECT p.oid::regprocedure AS function, pg_get_function_result(p.oid) AS result,
       provolatile, proparallel, proisstrict, prosecdef
  FROM pg_proc p WHERE pronamespace = 'parallel_backup'::regnamespace
 ORDER BY 1::text;

-- Privileges
\dn+ parallel_backup
\dp parallel_backup.*
CREATE ROLE regress_parallel_backup_nobody;
CREATE ROLE regress_parallel_backup_monitor IN ROLE pg_monitor;
SET ROLE regress_parallel_backup_nobody;
\set VERBOSITY default
SELECT * FROM parallel_backup.backups;
\set VERBOSITY verbose
RESET ROLE;
SET ROLE regress_parallel_backup_monitor;
SELECT count(*) FROM parallel_backup.backups;
RESET ROLE;

-- Nothing to cancel
\set VERBOSITY sqlstate
SELECT parallel_backup.cancel_backup('00000000000000000000000000000000');
SELECT parallel_backup.cancel_backup('not an identifier');
SELECT parallel_backup.cancel_backup('');
\set VERBOSITY terse
SELECT parallel_backup.cancel_backup('00000000000000000000000000000000');
SELECT parallel_backup.cancel_backup('not an identifier');
SELECT parallel_backup.cancel_backup(NULL);

-- Settings
SHOW pg_parallel_backup.max_backups;
SELECT name, setting, unit, category, short_desc, context, vartype, min_val, max_val, boot_val
  FROM pg_settings WHERE name LIKE 'pg\_parallel\_backup.%' ORDER BY name COLLATE "C";
SET pg_parallel_backup.max_backups = 1;
SET pg_parallel_backup.no_such_setting = 1;

-- It leaves nothing behind
DROP ROLE regress_parallel_backup_nobody, regress_parallel_backup_monitor;
DROP EXTENSION pg_parallel_backup;
SELECT count(*) FROM pg_proc WHERE probin LIKE '%pg_parallel_backup%';
SELECT to_regclass('parallel_backup.backups');

-- Nor does it go where it does not belong
CREATE EXTENSION pg_parallel_backup SCHEMA public;
CREATE EXTENSION pg_parallel_backup VERSION 'none';
CREATE EXTENSION pg_parallel_backup;
ALTER EXTENSION pg_parallel_backup SET SCHEMA public;
DROP EXTENSION pg_parallel_backup;
