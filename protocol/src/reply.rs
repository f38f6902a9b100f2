//! The result sets: names and types of their columns, in order. Each row of each of them ends with
//! [`CHECKSUM`].

/// A column's SQL type. Values travel as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`.
    Text,
    /// `int4`.
    Int4,
    /// `int8`.
    Int8,
    /// `oid`.
    Oid,
}

/// A column of a result set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// The column's name.
    pub name: &'static str,
    /// Its type.
    pub kind: ColumnType,
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Text }
}
const fn int4(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Int4 }
}
const fn int8(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Int8 }
}
const fn oid(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Oid }
}

/// The last column: CRC-32C of all values of the reply so far, in hex. Only servers since 0.3.0 have
/// it.
pub const CHECKSUM: Column = text("checksum");

/// START_BACKUP, first result set: one row.
pub const START: &[Column] = &[
    text("recptr"),
    int8("tli"),
    text("backup_id"),
    int4("protocol"),
    text("system_identifier"),
    int8("wal_segment_size"),
    int4("block_size"),
    int4("data_checksums"),
    int4("in_recovery"),
];

/// What comes after [`START`] where a lease was asked for, or a session attaches: the seconds that were
/// granted.
pub const LEASE: Column = int4("lease");

/// START_BACKUP, second result set: a row a tablespace, the data directory last with NULLs; sizes
/// in kB.
pub const TABLESPACES: &[Column] = &[oid("spcoid"), text("spclocation"), int8("size")];

/// START_BACKUP, third result set: one row.
pub const LABELS: &[Column] = &[text("labelfile"), text("spcmapfile")];

/// SEND_FILE_LIST: a row a file or directory.
pub const FILE_LIST: &[Column] = &[text("filename"), text("type"), int8("size"), int8("mtime"), int4("mode")];

/// SEND_FILE_LIST of an incremental backup.
pub const INCREMENTAL_FILE_LIST: &[Column] = &[
    text("filename"),
    text("type"),
    int8("size"),
    int8("mtime"),
    int4("mode"),
    text("blocks"),
    int8("truncation_block_length"),
];

/// SEND_FILE_LIST with TOTALS: a row a tablespace, the data directory last with NULL; bytes.
pub const FILE_TOTALS: &[Column] = &[oid("spcoid"), int8("files"), int8("size")];

/// STOP_BACKUP, first result set: one row.
pub const STOP: &[Column] = &[text("recptr"), int8("tli")];

/// STOP_BACKUP, second result set: one row, pg_control in hex.
pub const CONTROL_FILE: &[Column] = &[text("controlfile")];

/// STOP_BACKUP, third result set: a row a timeline, newest first.
pub const WAL_RANGES: &[Column] = &[int8("tli"), text("start_lsn"), text("end_lsn")];

/// STOP_BACKUP, fourth result set: a row a WAL segment or history file.
pub const WAL_FILES: &[Column] = &[text("filename")];

/// STOP_BACKUP, fifth result set: one row.
pub const TOTALS: &[Column] = &[text("labelfile"), int8("files"), int8("bytes"), int8("checksum_failures")];
