-- complain if the script is sourced in psql and not by ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_parallel_backup UPDATE TO '0.2.0'" to load this file. \quit

-- The commands of a parallel backup, for servers without the replication grammar. An argument
-- that is NULL is an option that was not given.
CREATE PROCEDURE parallel_backup.start_backup(
    label text DEFAULT NULL,
    checkpoint text DEFAULT NULL,
    progress boolean DEFAULT NULL,
    verify_checksums boolean DEFAULT NULL,
    max_rate int8 DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_start_backup_wrapper';

CREATE PROCEDURE parallel_backup.send_file_list(
    backup_id text DEFAULT NULL,
    estimate boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_send_file_list_wrapper';

-- Paths are percent-encoded, as send_file_list returns them; offsets and lengths belong to the
-- files at the same place.
CREATE PROCEDURE parallel_backup.send_files_content(
    files text[],
    backup_id text DEFAULT NULL,
    offsets int8[] DEFAULT NULL,
    lengths int8[] DEFAULT NULL,
    verify_checksums boolean DEFAULT NULL,
    file_checksum text DEFAULT NULL,
    compression text DEFAULT NULL,
    compression_level int4 DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_send_files_content_wrapper';

CREATE PROCEDURE parallel_backup.stop_backup(
    backup_id text DEFAULT NULL,
    label text DEFAULT NULL,
    wait boolean DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'parallel_backup_stop_backup_wrapper';

-- They read every file of the cluster, and pg_hba.conf's replication rules do not guard them.
REVOKE EXECUTE ON PROCEDURE parallel_backup.start_backup(text, text, boolean, boolean, int8) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE parallel_backup.send_file_list(text, boolean) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE parallel_backup.send_files_content(text[], text, int8[], int8[], boolean, text, text, int4) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE parallel_backup.stop_backup(text, text, boolean) FROM PUBLIC;
