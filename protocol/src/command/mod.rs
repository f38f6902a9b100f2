//! The four commands: from what a grammar parsed into types that cannot be wrong, and back into
//! the text that a client sends.

mod call;
mod grammar;
mod options;
mod parse;
mod upload;

use std::fmt;

use crate::MAX_FILES_PER_COMMAND;
use crate::blocks::{BlockList, MAX_BLOCK_LISTS};
use crate::checksum::ChecksumAlgorithm;
use crate::compression::{SpecificationError, WireCompression};
use crate::id::BackupId;
use crate::path::{BackupPath, PathError};
use crate::sqlstate::SqlState;

pub use options::{
    FileOptions, SendFileListOptions, SendFilesContentOptions, StartBackupOptions, StopBackupOptions,
};
pub use upload::{MANIFEST_PIECE, ManifestPiece};

/// MAX_RATE's bounds in kB/s: BASE_BACKUP's (`MAX_RATE_LOWER` and `MAX_RATE_UPPER`).
pub const MAX_RATE_RANGE: std::ops::RangeInclusive<i64> = 32..=1_048_576;

/// The label of a backup that was given none: BASE_BACKUP's.
pub const DEFAULT_LABEL: &[u8] = b"base backup";

/// Which of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// START_BACKUP.
    StartBackup,
    /// SEND_FILE_LIST.
    SendFileList,
    /// SEND_FILES_CONTENT.
    SendFilesContent,
    /// STOP_BACKUP.
    StopBackup,
}

impl CommandKind {
    /// The command's name, its completion tag on the replication route.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StartBackup => "START_BACKUP",
            Self::SendFileList => "SEND_FILE_LIST",
            Self::SendFilesContent => "SEND_FILES_CONTENT",
            Self::StopBackup => "STOP_BACKUP",
        }
    }
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A command, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// START_BACKUP.
    StartBackup(StartBackup),
    /// SEND_FILE_LIST.
    SendFileList(SendFileList),
    /// SEND_FILES_CONTENT.
    SendFilesContent(SendFilesContent),
    /// STOP_BACKUP.
    StopBackup(StopBackup),
    /// START_BACKUP with BACKUP_ID: become the coordinator of a backup that has a lease.
    Attach(BackupId),
    /// STOP_BACKUP with RELEASE: give a backup up; without a name it is the session's own.
    Release(Option<BackupId>),
}

/// START_BACKUP's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartBackup {
    /// The backup label, in whatever encoding the client has.
    pub label: Vec<u8>,
    /// How the starting checkpoint is spread.
    pub checkpoint: Checkpoint,
    /// Whether to estimate tablespace sizes.
    pub progress: bool,
    /// Whether the server verifies pages unless a transfer says otherwise.
    pub verify_checksums: bool,
    /// One rate for all connections, in kB/s (1,024 bytes).
    pub max_rate: Option<u32>,
    /// Only what has changed since the backup whose manifest was uploaded.
    pub incremental: bool,
    /// How many seconds the backup is to outlive its coordinator; `None` if nothing was said of it, and 0 is
    /// not at all.
    pub lease: Option<u32>,
    /// Whether the lease takes nothing that somebody else could need: no WAL is held for it, and it is given up when
    /// its place is needed.
    pub light_lease: bool,
    /// The backup's name; without one the server makes it.
    pub new_backup_id: Option<BackupId>,
}

impl Default for StartBackup {
    fn default() -> Self {
        Self {
            label: DEFAULT_LABEL.to_vec(),
            checkpoint: Checkpoint::Spread,
            progress: false,
            verify_checksums: true,
            max_rate: None,
            incremental: false,
            lease: None,
            light_lease: false,
            new_backup_id: None,
        }
    }
}

/// The CHECKPOINT option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// As fast as possible.
    Fast,
    /// Spread over time.
    Spread,
}

/// SEND_FILE_LIST's options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SendFileList {
    /// The backup; on the coordinator it may be left out.
    pub backup_id: Option<BackupId>,
    /// Whether to list with no backup running, for sizing only.
    pub estimate: bool,
    /// With `estimate`: sums for each tablespace alone, not a row for each file.
    pub totals: bool,
}

/// SEND_FILES_CONTENT's files and options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SendFilesContent {
    /// The files, in the order they are wanted.
    pub files: Vec<FileRequest>,
    /// The backup; on the coordinator it may be left out.
    pub backup_id: Option<BackupId>,
    /// Overrides START_BACKUP's choice.
    pub verify_checksums: Option<bool>,
    /// The checksum in each end frame.
    pub file_checksum: ChecksumAlgorithm,
    /// How data frames are compressed.
    pub compression: WireCompression,
}

/// One file of SEND_FILES_CONTENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRequest {
    /// Which.
    pub path: BackupPath,
    /// What of it.
    pub extent: Extent,
}

/// What of a file is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Extent {
    /// All of it.
    #[default]
    Whole,
    /// A range.
    Range(Range),
    /// Some blocks.
    Blocks(BlockList),
}

/// A range of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; to the file's end if not given.
    pub length: Option<u64>,
}

/// STOP_BACKUP's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopBackup {
    /// Checked against the running backup's if given.
    pub backup_id: Option<BackupId>,
    /// The content of backup_label, checked against the running backup's if given.
    pub label: Option<Vec<u8>>,
    /// Whether to wait until the WAL that the backup needs is archived.
    pub wait: bool,
    /// Backends that are terminated first, if they are sending something of this backup: workers that
    /// the client has lost.
    pub terminate_transfers: Vec<u32>,
}

impl Default for StopBackup {
    fn default() -> Self {
        Self { backup_id: None, label: None, wait: true, terminate_transfers: Vec::new() }
    }
}

/// An option as a grammar yields it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOption {
    /// The name, already folded to lower case where it was not quoted.
    pub name: Vec<u8>,
    /// The value, if any.
    pub value: Option<RawValue>,
}

/// An option's value as a grammar yields it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawValue {
    /// A bare word or a quoted string.
    Text(Vec<u8>),
    /// An integer.
    Integer(i64),
}

/// A file as a grammar yields it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFile {
    /// The percent-encoded path.
    pub path: Vec<u8>,
    /// What stood in parentheses behind it.
    pub options: Vec<RawOption>,
}

/// Why a command is refused before anything is looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// An option that the command does not have.
    #[error("unrecognized {command} option: \"{option}\"")]
    UnknownOption {
        /// The command.
        command: CommandKind,
        /// The option's name, percent-encoded where it is not plain.
        option: String,
    },
    /// An option given twice.
    #[error("duplicate option \"{0}\"")]
    DuplicateOption(String),
    /// An option beside one that stands alone.
    #[error("option \"{option}\" cannot be used with {alone}")]
    StandsAlone {
        /// The other option's name.
        option: String,
        /// The one that stands alone.
        alone: &'static str,
    },
    /// A value of the wrong kind.
    #[error("{option} requires {wanted}")]
    WrongKind {
        /// The option's name.
        option: &'static str,
        /// What it requires, with its article.
        wanted: &'static str,
    },
    /// A word that the option does not know.
    #[error("unrecognized {what}: \"{value}\"")]
    UnknownWord {
        /// What the word should have been.
        what: &'static str,
        /// The word, percent-encoded where it is not plain.
        value: String,
    },
    /// MAX_RATE out of range.
    #[error("{value} is outside the valid range for parameter \"MAX_RATE\" (32 .. 1048576)")]
    MaxRate {
        /// The rate asked for.
        value: i64,
    },
    /// Another number out of range.
    #[error("{value} is outside the valid range for parameter \"{option}\"")]
    OutOfRange {
        /// The option's name.
        option: &'static str,
        /// The value, as given.
        value: String,
    },
    /// A compression that no transfer can have.
    #[error("invalid compression specification: {0}")]
    Compression(SpecificationError),
    /// More of a compression that was not asked for.
    #[error("compression {0} cannot be specified unless compression is enabled")]
    NoCompression(&'static str),
    /// COMPRESSION_LEVEL, and another level in COMPRESSION_DETAIL.
    #[error("compression level is specified more than once")]
    LevelTwice,
    /// A path that no file can have.
    #[error("invalid path \"{path}\": {source}")]
    Path {
        /// The path, percent-encoded once more.
        path: String,
        /// What is wrong with it.
        source: PathError,
    },
    /// A backup_id that no backup can have.
    #[error("backup \"{0}\" does not exist")]
    UnknownBackup(String),
    /// More files than one command may ask for.
    #[error("cannot send more than {MAX_FILES_PER_COMMAND} files in one command")]
    TooManyFiles,
    /// Longer lists of blocks than one command may have.
    #[error("lists of blocks in one command cannot have more than {MAX_BLOCK_LISTS} bytes together")]
    BlockListsTooLong,
    /// BLOCKS with OFFSET or LENGTH.
    #[error("blocks cannot be combined with offset or length")]
    BlocksAndRange,
    /// SEND_FILES_CONTENT without a file.
    #[error("no file was asked for")]
    NoFiles,
}

impl CommandError {
    /// The SQLSTATE of the error, by PROTOCOL's table; what it does not name is a syntax error, as
    /// in BASE_BACKUP.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::UnknownOption { .. }
            | Self::DuplicateOption(_)
            | Self::StandsAlone { .. }
            | Self::WrongKind { .. }
            | Self::UnknownWord { .. }
            | Self::NoCompression(_)
            | Self::LevelTwice
            | Self::BlocksAndRange
            | Self::NoFiles => SqlState::SYNTAX_ERROR,
            Self::MaxRate { .. } => SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            Self::OutOfRange { .. } => SqlState::INVALID_PARAMETER_VALUE,
            Self::Compression(error) => match error {
                SpecificationError::Level { .. } => SqlState::INVALID_PARAMETER_VALUE,
                SpecificationError::Workers => SqlState::FEATURE_NOT_SUPPORTED,
                SpecificationError::UnknownMethod(_)
                | SpecificationError::EmptyOption
                | SpecificationError::UnknownOption(_)
                | SpecificationError::NoValue(_)
                | SpecificationError::NoInteger(_)
                | SpecificationError::NoBoolean(_)
                | SpecificationError::NoLevels(_)
                | SpecificationError::NoWorkers(_)
                | SpecificationError::NoLong(_) => SqlState::SYNTAX_ERROR,
            },
            Self::Path { .. } => SqlState::INVALID_NAME,
            Self::UnknownBackup(_) => SqlState::UNDEFINED_OBJECT,
            Self::TooManyFiles | Self::BlockListsTooLong => SqlState::PROGRAM_LIMIT_EXCEEDED,
        }
    }
}

impl Command {
    /// Which of the four.
    pub const fn kind(&self) -> CommandKind {
        match self {
            Self::StartBackup(_) | Self::Attach(_) => CommandKind::StartBackup,
            Self::SendFileList(_) => CommandKind::SendFileList,
            Self::SendFilesContent(_) => CommandKind::SendFilesContent,
            Self::StopBackup(_) | Self::Release(_) => CommandKind::StopBackup,
        }
    }
}

impl FileRequest {
    /// All of a file.
    pub fn whole(path: BackupPath) -> Self {
        Self { path, extent: Extent::Whole }
    }
}

#[cfg(test)]
mod tests;
