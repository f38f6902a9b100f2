//! Everything that the extension itself can refuse or fail at, with its SQLSTATE and hint.
//!
//! An error is a value until it reaches the route that the command came by, which reports it
//! once. What PostgreSQL's own functions raise does not pass through here.

use std::io;

use compression::EncodeError;
use protocol::path::encode;
use protocol::{BackupId, CommandError, CommandKind, SqlState};

/// What a command's handler returns.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the extension.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command itself is wrong.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The library was loaded in the middle of a session.
    #[error("pg_parallel_backup must be loaded by way of \"shared_preload_libraries\"")]
    NotPreloaded,
    /// The server has another version of the patch.
    #[error("pg_parallel_backup does not fit the patch of this server")]
    HookVersion {
        /// The version of the server's hook.
        found: i32,
        /// The version that this library was made for.
        expected: i32,
    },
    /// A CALL from within another statement.
    #[error("{procedure} cannot be executed from a function or procedure")]
    NestedCall {
        /// The command.
        procedure: &'static str,
    },
    /// A CALL that several result sets cannot answer.
    #[error("{procedure} cannot be called by the extended query protocol")]
    ExtendedProtocol {
        /// The command.
        procedure: &'static str,
    },
    /// A CALL by a role that could not read the cluster's files otherwise.
    #[error("permission denied to call {procedure}")]
    NotForThisRole {
        /// The command.
        procedure: &'static str,
    },
    /// This session is in backup mode already, by whatever means.
    #[error("a backup is already in progress in this session")]
    BackupInProgress,
    /// pg_backup_start or pg_backup_stop in the session of a coordinator.
    #[error("a parallel backup is in progress in this session")]
    OwnsBackup,
    /// No slot is free.
    #[error("too many parallel backups")]
    TooManyBackups {
        /// `pg_parallel_backup.max_backups`.
        limit: usize,
    },
    /// A command that only makes sense while a backup runs, in a session that has none.
    #[error("no parallel backup is running in this session")]
    NoBackup {
        /// The command.
        command: CommandKind,
    },
    /// STOP_BACKUP on another connection than the coordinator's.
    #[error("parallel backup \"{0}\" was not started in this session")]
    NotCoordinator(BackupId),
    /// No such backup, or no longer.
    #[error("parallel backup \"{0}\" does not exist")]
    UnknownBackup(BackupId),
    /// It belongs to another role.
    #[error("permission denied for parallel backup \"{0}\"")]
    OtherRole(BackupId),
    /// cancel_backup() by a role that may not terminate the backup's sessions.
    #[error("permission denied to cancel parallel backup \"{0}\"")]
    CannotCancel(BackupId),
    /// cancel_backup() by a role that may not terminate any session.
    #[error("permission denied for function pg_terminate_backend")]
    CannotTerminate,
    /// Something other than its WAL is asked of a backup that was stopped.
    #[error("parallel backup \"{0}\" has been stopped")]
    Stopped(BackupId),
    /// The coordinator is stopping it.
    #[error("parallel backup \"{0}\" is being stopped")]
    Stopping(BackupId),
    /// It was aborted while a transfer ran.
    #[error("parallel backup \"{0}\" was aborted")]
    Aborted(BackupId),
    /// Nothing to attach to.
    #[error("parallel backup \"{0}\" does not exist")]
    LeaseGone(BackupId),
    /// A backup that ends with the session that has started it.
    #[error("parallel backup \"{0}\" has no lease")]
    NoLease(BackupId),
    /// Another session has attached.
    #[error("parallel backup \"{0}\" was taken over by another session")]
    TakenOver(BackupId),
    /// Nobody has attached in time.
    #[error("parallel backup \"{0}\" was aborted because its lease ran out")]
    LeaseOver(BackupId),
    /// Its lease was light, and its place needed.
    #[error("parallel backup \"{0}\" was aborted because another backup needed its place")]
    GivenUp(BackupId),
    /// START_BACKUP's NEW_BACKUP_ID is another's.
    #[error("parallel backup \"{0}\" already exists")]
    NameTaken(BackupId),
    /// The keeper's slot could not keep the WAL.
    #[error(
        "parallel backup \"{0}\" was aborted because the WAL it needs exceeds \"max_slot_wal_keep_size\""
    )]
    SlotLost(BackupId),
    /// All background workers are taken.
    #[error("no background process is free for a parallel backup with a lease")]
    NoProcess,
    /// The keeper has ended before it has begun.
    #[error("could not start background process for a parallel backup")]
    KeeperNotStarted,
    /// What the keeper has failed at, in its words.
    #[error("{message}")]
    Keeper {
        /// The SQLSTATE.
        sqlstate: SqlState,
        /// The message.
        message: String,
        /// The hint.
        hint: Option<String>,
    },
    /// A label that PostgreSQL would refuse.
    #[error("backup label too long (max {limit} bytes)")]
    LabelTooLong {
        /// Bytes that it may have.
        limit: usize,
    },
    /// STOP_BACKUP came too early.
    #[error("cannot stop the parallel backup while files of it are being sent")]
    TransfersRunning {
        /// How many connections are busy.
        transfers: usize,
    },
    /// STOP_BACKUP's LABEL is not the running backup's.
    #[error("the given backup_label is not that of the running backup")]
    LabelMismatch,
    /// The standby became a primary.
    #[error("the standby was promoted during online backup")]
    Promoted,
    /// A path that no file list of this backup could have had.
    #[error("file \"{}\" is not part of a backup", encode(.path))]
    NotInBackup {
        /// The path.
        path: Vec<u8>,
    },
    /// A directory, or something else that has no bytes to send.
    #[error("\"{}\" is not a regular file", encode(.path))]
    NotRegular {
        /// The path.
        path: Vec<u8>,
    },
    /// A file among relation files whose name has a dot and no segment number after it: before 17,
    /// BASE_BACKUP ends there too.
    #[error("invalid segment number 0 in file \"{}\"", encode(.path))]
    InvalidSegment {
        /// The path.
        path: Vec<u8>,
    },
    /// A range of a file that is not a relation's.
    #[error("cannot send a range of file \"{}\": it is not a relation file", encode(.path))]
    RangeOfOther {
        /// The path.
        path: Vec<u8>,
    },
    /// A range that cuts a block.
    #[error("range of file \"{}\" does not begin and end at block boundaries", encode(.path))]
    RangeAlignment {
        /// The path.
        path: Vec<u8>,
        /// The block size in bytes.
        block_size: usize,
    },
    /// A WAL segment that was recycled or removed.
    #[error("requested WAL segment {segment} has already been removed")]
    WalRemoved {
        /// Its file name.
        segment: String,
    },
    /// A WAL segment with another size than the cluster's segments have.
    #[error("unexpected WAL file size \"{segment}\"")]
    WalSize {
        /// Its file name.
        segment: String,
    },
    /// The CRC of the control file does not match.
    #[error("calculated CRC checksum does not match value stored in file \"global/pg_control\"")]
    ControlFileCrc,
    /// Page checksum failures, after the results of STOP_BACKUP.
    #[error("checksum verification failure during base backup")]
    ChecksumFailures,
    /// Blocks of a file that is not a relation's.
    #[error("cannot send blocks of file \"{}\": it is not a relation file", encode(.path))]
    BlocksOfOther {
        /// The path.
        path: Vec<u8>,
    },
    /// A block that no segment has.
    #[error("file \"{}\" cannot have a block {block}", encode(.path))]
    BlockNumber {
        /// The path.
        path: Vec<u8>,
        /// The block.
        block: u32,
        /// How many blocks a segment has at most.
        segment_blocks: u32,
    },
    /// PostgreSQL's block numbers of a file do not ascend.
    #[error("blocks of file \"{}\" are out of order", encode(.path))]
    BlockOrder {
        /// The path.
        path: Vec<u8>,
    },
    /// An incremental backup of a server that has none.
    #[error("incremental backups need PostgreSQL 17 or later")]
    NoIncremental,
    /// An incremental backup that a keeper would have to hold.
    #[error("an incremental backup cannot have a lease")]
    LeaseOfIncrement,
    /// summarize_wal is off.
    #[error("incremental backups cannot be taken unless WAL summarization is enabled")]
    NoSummaries,
    /// An incremental backup to nothing.
    #[error("must UPLOAD_MANIFEST before performing an incremental START_BACKUP")]
    NoManifest,
    /// UPLOAD_MANIFEST's manifest is out of reach.
    #[error("the patch of this server does not hand over the manifest that was uploaded")]
    ManifestNotHandedOver,
    /// UPLOAD_MANIFEST has taken another.
    #[error("the manifest that this backup goes by is gone, since another was uploaded")]
    ManifestReplaced,
    /// A gap in a manifest, or an overlap.
    #[error("piece of the manifest begins at byte {offset}, but {expected} bytes were uploaded")]
    ManifestPiece {
        /// Where it begins.
        offset: i64,
        /// Where it should.
        expected: u64,
    },
    /// The list of an incremental backup on another connection than the coordinator's.
    #[error("files of incremental parallel backup \"{0}\" can only be listed in the session that started it")]
    ListElsewhere(BackupId),
    /// An operating system call on a file failed.
    #[error("could not {action} \"{}\": {}", encode(.path), os_message(.source))]
    Io {
        /// What was tried, with the kind of thing: "open file".
        action: &'static str,
        /// The path.
        path: Vec<u8>,
        /// The system's answer.
        source: io::Error,
    },
    /// A file's bytes could not be compressed.
    #[error(transparent)]
    Compression(#[from] EncodeError),
    /// The server's random source failed.
    #[error("could not generate random backup identifier")]
    NoRandom,
    /// The timeline history does not lead from the backup's start to its end.
    #[error("start timeline {start} not found in history of timeline {end}")]
    TimelineHistory {
        /// The timeline on which the backup started.
        start: u32,
        /// The timeline on which it ended.
        end: u32,
    },
}

impl Error {
    /// An [`Error::Io`], from the pieces at hand.
    pub fn io(action: &'static str, path: &[u8], source: io::Error) -> Self {
        Self::Io { action, path: path.to_vec(), source }
    }

    /// The SQLSTATE, by the table of docs/protocol.md.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Command(error) => error.sqlstate(),
            Self::ExtendedProtocol { .. }
            | Self::NoIncremental
            | Self::LeaseOfIncrement
            | Self::ManifestNotHandedOver => SqlState::FEATURE_NOT_SUPPORTED,
            Self::NestedCall { .. } => SqlState::ACTIVE_SQL_TRANSACTION,
            Self::NotPreloaded
            | Self::HookVersion { .. }
            | Self::BackupInProgress
            | Self::OwnsBackup
            | Self::NoBackup { .. }
            | Self::NotCoordinator(_)
            | Self::Stopping(_)
            | Self::TransfersRunning { .. }
            | Self::NoSummaries
            | Self::NoManifest
            | Self::ManifestReplaced
            | Self::ListElsewhere(_)
            | Self::NoLease(_)
            | Self::Promoted => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::TooManyBackups { .. } | Self::NoProcess => SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            Self::KeeperNotStarted => SqlState::INSUFFICIENT_RESOURCES,
            Self::Keeper { sqlstate, .. } => *sqlstate,
            Self::UnknownBackup(_) | Self::LeaseGone(_) | Self::Stopped(_) => SqlState::UNDEFINED_OBJECT,
            Self::OtherRole(_)
            | Self::CannotCancel(_)
            | Self::CannotTerminate
            | Self::NotForThisRole { .. }
            | Self::NotInBackup { .. } => SqlState::INSUFFICIENT_PRIVILEGE,
            Self::Aborted(_)
            | Self::TakenOver(_)
            | Self::LeaseOver(_)
            | Self::GivenUp(_)
            | Self::SlotLost(_) => SqlState::QUERY_CANCELED,
            Self::NameTaken(_) => SqlState::DUPLICATE_OBJECT,
            Self::LabelTooLong { .. }
            | Self::LabelMismatch
            | Self::RangeOfOther { .. }
            | Self::RangeAlignment { .. }
            | Self::BlocksOfOther { .. }
            | Self::BlockNumber { .. }
            | Self::ManifestPiece { .. } => SqlState::INVALID_PARAMETER_VALUE,
            Self::NotRegular { .. } => SqlState::WRONG_OBJECT_TYPE,
            Self::WalRemoved { .. } => SqlState::UNDEFINED_FILE,
            Self::ControlFileCrc | Self::ChecksumFailures => SqlState::DATA_CORRUPTED,
            Self::WalSize { .. } | Self::InvalidSegment { .. } => SqlState::INTERNAL_ERROR,
            Self::Io { source, .. } => io_sqlstate(source),
            Self::Compression(EncodeError::OutOfMemory) => SqlState::OUT_OF_MEMORY,
            Self::Compression(EncodeError::Library(_)) => SqlState::INTERNAL_ERROR,
            Self::NoRandom | Self::TimelineHistory { .. } | Self::BlockOrder { .. } => {
                SqlState::INTERNAL_ERROR
            }
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotPreloaded => Some(
                "Add \"pg_parallel_backup\" to \"shared_preload_libraries\" and restart the server.".into(),
            ),
            Self::HookVersion { found, expected } => Some(format!(
                "The server's hook has version {found}, this library needs version {expected}: install the library \
                 that belongs to the patch."
            )),
            Self::ExtendedProtocol { .. } => Some(
                "Send the CALL with its arguments as literals, without parameters, by the simple query protocol."
                    .into(),
            ),
            Self::NotForThisRole { .. } => Some(
                "Besides EXECUTE the role needs the REPLICATION attribute or the rights of \"pg_read_server_files\"."
                    .into(),
            ),
            Self::OwnsBackup => Some("Use STOP_BACKUP, or disconnect to abort the backup.".into()),
            Self::TooManyBackups { limit } => Some(format!(
                "At most {limit} can run at once: raise \"pg_parallel_backup.max_backups\" and restart the server."
            )),
            Self::LeaseGone(_) => Some(
                "It has ended: its lease has run out, it was cancelled or released, another backup needed its \
                 place, its WAL could not be kept, or the server was restarted. The server's log says which. A new backup has to be started."
                    .into(),
            ),
            Self::NoLease(_) => {
                Some("It was started without LEASE, and ends with the session that has started it.".into())
            }
            Self::SlotLost(_) => Some(
                "Raise \"max_slot_wal_keep_size\", or take the backup when less is written, and start another one."
                    .into(),
            ),
            Self::NoProcess => Some(
                "You might need to raise \"max_worker_processes\": each parallel backup with a lease takes one.".into(),
            ),
            Self::KeeperNotStarted => Some("More details may be available in the server log.".into()),
            Self::Keeper { hint, .. } => hint.clone(),
            Self::NoBackup { command: CommandKind::StopBackup } => {
                Some("Only the connection that sent START_BACKUP can stop its backup.".into())
            }
            Self::NoBackup { .. } => {
                Some("Send START_BACKUP first, or name a running backup with BACKUP_ID.".into())
            }
            Self::TransfersRunning { transfers } => Some(format!(
                "{transfers} transfer(s) are still running: read each to its end, then send STOP_BACKUP again."
            )),
            Self::Promoted => Some(
                "This means that the backup being taken is corrupt and should not be used. \
                 Try taking another online backup."
                    .into(),
            ),
            Self::Compression(EncodeError::OutOfMemory) => {
                Some("A lower level of compression takes less memory.".into())
            }
            Self::RangeAlignment { block_size, .. } => {
                Some(format!("Offset and length must be multiples of {block_size} bytes."))
            }
            Self::BlockNumber { segment_blocks, .. } => {
                Some(format!("A file has at most {segment_blocks} blocks, beginning with 0."))
            }
            Self::NoSummaries => Some("Set \"summarize_wal\" to on, and begin with a full backup.".into()),
            Self::NoManifest => Some(
                "On the SQL route it is the procedure parallel_backup.upload_manifest, with is_last in its last call."
                    .into(),
            ),
            Self::ManifestNotHandedOver => Some(
                "Build the server with the patch of pg_parallel_backup 0.3.0 or later, or use the SQL procedures."
                    .into(),
            ),
            Self::ManifestPiece { .. } => Some("Begin again, with the first piece.".into()),
            _ => None,
        }
    }
}

/// The SQLSTATE that PostgreSQL's errcode_for_file_access gives, for what reading files can
/// yield.
fn io_sqlstate(error: &io::Error) -> SqlState {
    match error.kind() {
        io::ErrorKind::PermissionDenied => SqlState::INSUFFICIENT_PRIVILEGE,
        io::ErrorKind::NotFound => SqlState::UNDEFINED_FILE,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => SqlState::WRONG_OBJECT_TYPE,
        _ => SqlState::IO_ERROR,
    }
}

/// The operating system's words, as `%m` prints them: without Rust's "(os error 2)".
fn os_message(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_words() {
        let path = b"base/5/a b".to_vec();
        let cases = [
            (Error::NotRegular { path: path.clone() }, "42809", "\"base/5/a%20b\" is not a regular file"),
            (
                Error::NotInBackup { path: path.clone() },
                "42501",
                "file \"base/5/a%20b\" is not part of a backup",
            ),
            (
                Error::WalRemoved { segment: "000000010000000000000002".into() },
                "58P01",
                "requested WAL segment 000000010000000000000002 has already been removed",
            ),
            (Error::TooManyBackups { limit: 8 }, "53400", "too many parallel backups"),
        ];
        for (error, code, words) in cases {
            assert_eq!((error.sqlstate().as_str(), error.to_string().as_str()), (code, words));
        }
    }

    #[test]
    fn io_errors_say_the_path_and_keep_the_source() {
        let error = Error::io("open file", b"base/5/1", io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(error.sqlstate().as_str(), "42501");
        assert_eq!(error.to_string(), "could not open file \"base/5/1\": permission denied");
        assert!(std::error::Error::source(&error).is_some());
        let error = Error::io("open file", b"a", io::Error::from_raw_os_error(2));
        assert_eq!(error.to_string(), "could not open file \"a\": No such file or directory");
    }
}
