-- complain if the script is sourced in psql and not by ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_parallel_backup UPDATE TO '0.3.0'" to load this file. \quit

-- Before 0.3.0 CREATE EXTENSION took a schema "parallel_backup" that was there already, whoever owned it.
-- That role could put procedures of its own beside those of the extension, or another schema in its place,
-- and whoever called them ran its code. From here on the schema is the extension's, like all that is in it.
DO $$
DECLARE
    extension pg_catalog.oid;
    schema pg_catalog.oid;
    owner pg_catalog.name;
    strangers pg_catalog.text;
    grantee pg_catalog.text;
BEGIN
    SELECT e.oid, e.extnamespace, pg_catalog.pg_get_userbyid(e.extowner)
        INTO STRICT extension, schema, owner
        FROM pg_catalog.pg_extension AS e WHERE e.extname = 'pg_parallel_backup';
    IF schema IS DISTINCT FROM (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'parallel_backup') THEN
        RAISE EXCEPTION 'schema "parallel_backup" is not the one that extension "pg_parallel_backup" was installed in'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = pg_catalog.format('That one is called %I now.', schema::pg_catalog.regnamespace::pg_catalog.text),
                  HINT = 'Find out who has renamed it, and drop and create the extension.';
    END IF;

    SELECT pg_catalog.string_agg(pg_catalog.pg_describe_object(d.classid, d.objid, 0), ', ')
        INTO strangers
        FROM pg_catalog.pg_depend AS d
        WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = schema
          AND d.deptype = 'n' AND d.classid <> 'pg_catalog.pg_extension'::pg_catalog.regclass
          AND NOT EXISTS (
              SELECT FROM pg_catalog.pg_depend AS m
              WHERE m.classid = d.classid AND m.objid = d.objid AND m.refobjid = extension
                AND m.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND m.deptype = 'e');
    IF strangers IS NOT NULL THEN
        RAISE EXCEPTION 'schema "parallel_backup" has objects that do not belong to extension "pg_parallel_backup"'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = pg_catalog.format('These are: %s.', strangers),
                  HINT = 'Find out who has made them, and drop them.';
    END IF;

    EXECUTE pg_catalog.format('ALTER SCHEMA parallel_backup OWNER TO %I', owner);
    FOR grantee IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'
                                       ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END
        FROM pg_catalog.pg_namespace AS n, pg_catalog.aclexplode(n.nspacl) AS a
        WHERE n.oid = schema AND a.grantee <> n.nspowner
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON SCHEMA parallel_backup FROM %s CASCADE', grantee);
    END LOOP;
    GRANT USAGE ON SCHEMA parallel_backup TO PUBLIC;

    -- A schema cannot belong to the extension that is in it. The extension itself has no need of one, and
    -- no statement moves it where it is not relocatable.
    UPDATE pg_catalog.pg_extension SET extnamespace = 'pg_catalog'::pg_catalog.regnamespace WHERE oid = extension;
    DELETE FROM pg_catalog.pg_depend
        WHERE classid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND objid = extension
          AND refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND refobjid = schema;
    ALTER EXTENSION pg_parallel_backup ADD SCHEMA parallel_backup;
END $$;

-- With other arguments they are other procedures, which nobody may execute yet.
DROP PROCEDURE parallel_backup.start_backup(text, text, boolean, boolean, int8);
CREATE PROCEDURE parallel_backup.start_backup(
    label text DEFAULT NULL,
    checkpoint text DEFAULT NULL,
    progress boolean DEFAULT NULL,
    verify_checksums boolean DEFAULT NULL,
    max_rate int8 DEFAULT NULL,
    incremental boolean DEFAULT NULL,
    lease int4 DEFAULT NULL,
    backup_id text DEFAULT NULL,
    light_lease boolean DEFAULT NULL,
    new_backup_id text DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_start_backup_wrapper';
REVOKE EXECUTE ON PROCEDURE parallel_backup.start_backup(text, text, boolean, boolean, int8, boolean, int4, text, boolean, text) FROM PUBLIC;

DROP PROCEDURE parallel_backup.send_file_list(text, boolean);
CREATE PROCEDURE parallel_backup.send_file_list(
    backup_id text DEFAULT NULL,
    estimate boolean DEFAULT NULL,
    totals boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_send_file_list_wrapper';
REVOKE EXECUTE ON PROCEDURE parallel_backup.send_file_list(text, boolean, boolean) FROM PUBLIC;

DROP PROCEDURE parallel_backup.send_files_content(text[], text, int8[], int8[], boolean, text, text, int4);
CREATE PROCEDURE parallel_backup.send_files_content(
    files text[],
    backup_id text DEFAULT NULL,
    offsets int8[] DEFAULT NULL,
    lengths int8[] DEFAULT NULL,
    verify_checksums boolean DEFAULT NULL,
    file_checksum text DEFAULT NULL,
    compression text DEFAULT NULL,
    compression_level int4 DEFAULT NULL,
    compression_detail text DEFAULT NULL,
    blocks text[] DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_send_files_content_wrapper';
REVOKE EXECUTE ON PROCEDURE parallel_backup.send_files_content(text[], text, int8[], int8[], boolean, text, text, int4, text, text[]) FROM PUBLIC;

DROP PROCEDURE parallel_backup.stop_backup(text, text, boolean);
CREATE PROCEDURE parallel_backup.stop_backup(
    backup_id text DEFAULT NULL,
    label text DEFAULT NULL,
    wait boolean DEFAULT NULL,
    terminate_transfers text DEFAULT NULL,
    release boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_stop_backup_wrapper';
REVOKE EXECUTE ON PROCEDURE parallel_backup.stop_backup(text, text, boolean, text, boolean) FROM PUBLIC;

CREATE PROCEDURE parallel_backup.upload_manifest(
    piece bytea,
    piece_offset int8 DEFAULT NULL,
    is_last boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_upload_manifest_wrapper';
REVOKE EXECUTE ON PROCEDURE parallel_backup.upload_manifest(bytea, int8, boolean) FROM PUBLIC;

-- Other columns, of a function and of the view on it: both are made anew, with the rights of a new one.
DROP VIEW parallel_backup.backups;
DROP FUNCTION parallel_backup.get_backups();
CREATE FUNCTION parallel_backup.get_backups(
    OUT backup_id text,
    OUT pid int4,
    OUT role oid,
    OUT label text,
    OUT start_lsn text,
    OUT start_tli int8,
    OUT state text,
    OUT started int8,
    OUT workers int4,
    OUT files int8,
    OUT bytes int8,
    OUT total int8,
    OUT checksum_failures int8,
    OUT max_rate int4,
    OUT lease int4,
    OUT lease_left int4,
    OUT keeper int4)
RETURNS SETOF record
LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'parallel_backup_get_backups_wrapper';

REVOKE EXECUTE ON FUNCTION parallel_backup.get_backups() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION parallel_backup.get_backups() TO pg_monitor;

CREATE VIEW parallel_backup.backups AS
SELECT b.backup_id,
       b.pid,
       r.rolname AS usename,
       b.label,
       b.start_lsn::pg_lsn AS start_lsn,
       b.start_tli,
       b.state,
       '2000-01-01 00:00:00+00'::timestamptz + b.started * interval '1 microsecond' AS started,
       b.workers,
       b.files,
       b.bytes,
       b.total,
       b.checksum_failures,
       b.max_rate,
       b.lease,
       b.pid IS NOT NULL AS attached,
       b.lease_left,
       b.keeper
FROM parallel_backup.get_backups() AS b
     LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = b.role;

GRANT SELECT ON parallel_backup.backups TO pg_monitor;

COMMENT ON VIEW parallel_backup.backups IS
    'parallel backups of this server; sizes in bytes, max_rate in kB/s, leases in seconds, workers are connections that are sending';

COMMENT ON FUNCTION parallel_backup.cancel_backup(text) IS
    'abort a parallel backup: its transfers end, its coordinator is terminated, or its keeper';
