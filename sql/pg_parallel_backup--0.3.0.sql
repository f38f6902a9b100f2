-- complain if the script is sourced in psql and not by CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_parallel_backup" to load this file. \quit

-- Made here, and not by CREATE EXTENSION: that would take one that is there already, and with it whoever
-- owns it and may put procedures of these names into it.
CREATE SCHEMA parallel_backup;
GRANT USAGE ON SCHEMA parallel_backup TO PUBLIC;

-- A row a backup; the view below is what to look at.
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

-- The rights are those of pg_terminate_backend, which it calls.
CREATE FUNCTION parallel_backup.cancel_backup(backup_id text)
RETURNS boolean
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'parallel_backup_cancel_backup_wrapper';

COMMENT ON FUNCTION parallel_backup.cancel_backup(text) IS
    'abort a parallel backup: its transfers end, its coordinator is terminated, or its keeper';

-- The commands of a parallel backup, for servers without the replication grammar. An argument
-- that is NULL is an option that was not given.
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

CREATE PROCEDURE parallel_backup.send_file_list(
    backup_id text DEFAULT NULL,
    estimate boolean DEFAULT NULL,
    totals boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_send_file_list_wrapper';

-- Paths are percent-encoded, as send_file_list returns them; offsets, lengths and lists of blocks belong to
-- the files at the same place.
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

CREATE PROCEDURE parallel_backup.stop_backup(
    backup_id text DEFAULT NULL,
    label text DEFAULT NULL,
    wait boolean DEFAULT NULL,
    terminate_transfers text DEFAULT NULL,
    release boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_stop_backup_wrapper';

-- The manifest of the backup that the next one is to be an increment to, piece by piece.
CREATE PROCEDURE parallel_backup.upload_manifest(
    piece bytea,
    piece_offset int8 DEFAULT NULL,
    is_last boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_upload_manifest_wrapper';

-- They read every file of the cluster, and pg_hba.conf's replication rules do not guard them.
REVOKE EXECUTE ON PROCEDURE parallel_backup.start_backup(text, text, boolean, boolean, int8, boolean, int4, text, boolean, text) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE parallel_backup.send_file_list(text, boolean, boolean) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE parallel_backup.send_files_content(text[], text, int8[], int8[], boolean, text, text, int4, text, text[]) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE parallel_backup.stop_backup(text, text, boolean, text, boolean) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE parallel_backup.upload_manifest(bytea, int8, boolean) FROM PUBLIC;
