//! What a command was given, whether the replication grammar read it or a procedure was called with it: each
//! value of its type, `None` where nothing was said. `check` holds them against their limits and each other.

use super::MAX_RATE_RANGE;
use super::{
    Checkpoint, Command, CommandError, Extent, FileRequest, Range, SendFileList, SendFilesContent,
    StartBackup, StopBackup,
};
use crate::MAX_FILES_PER_COMMAND;
use crate::blocks::{BlockList, MAX_BLOCK_LISTS};
use crate::compression::{Method, Specification, WireCompression};
use crate::id::BackupId;
use crate::path::{BackupPath, encode};

/// START_BACKUP's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartBackupOptions {
    /// LABEL, in whatever encoding the client has.
    pub label: Option<Vec<u8>>,
    /// CHECKPOINT, a word.
    pub checkpoint: Option<Vec<u8>>,
    /// PROGRESS.
    pub progress: Option<bool>,
    /// VERIFY_CHECKSUMS.
    pub verify_checksums: Option<bool>,
    /// MAX_RATE in kB/s (1,024 bytes).
    pub max_rate: Option<i64>,
    /// INCREMENTAL.
    pub incremental: Option<bool>,
    /// LEASE in seconds.
    pub lease: Option<i64>,
    /// BACKUP_ID, which stands alone.
    pub backup_id: Option<Vec<u8>>,
    /// LIGHT_LEASE.
    pub light_lease: Option<bool>,
    /// NEW_BACKUP_ID.
    pub new_backup_id: Option<Vec<u8>>,
}

impl StartBackupOptions {
    /// The command. BACKUP_ID makes it [`Command::Attach`].
    pub fn check(self) -> Result<Command, CommandError> {
        if let Some(id) = self.backup_id {
            // What it would have to say was settled when the backup started.
            let others = [
                ("label", self.label.is_some()),
                ("checkpoint", self.checkpoint.is_some()),
                ("progress", self.progress.is_some()),
                ("verify_checksums", self.verify_checksums.is_some()),
                ("max_rate", self.max_rate.is_some()),
                ("incremental", self.incremental.is_some()),
                ("lease", self.lease.is_some()),
                ("light_lease", self.light_lease.is_some()),
                ("new_backup_id", self.new_backup_id.is_some()),
            ];
            stands_alone("BACKUP_ID", &others)?;
            return backup_id(&id).map(Command::Attach);
        }
        let default = StartBackup::default();
        Ok(Command::StartBackup(StartBackup {
            label: self.label.unwrap_or(default.label),
            checkpoint: self.checkpoint.as_deref().map_or(Ok(default.checkpoint), checkpoint)?,
            progress: self.progress.unwrap_or(default.progress),
            verify_checksums: self.verify_checksums.unwrap_or(default.verify_checksums),
            max_rate: self.max_rate.map(max_rate).transpose()?,
            incremental: self.incremental.unwrap_or(default.incremental),
            lease: self.lease.map(|lease| seconds("lease", lease)).transpose()?,
            light_lease: self.light_lease.unwrap_or(default.light_lease),
            new_backup_id: self.new_backup_id.as_deref().map(new_backup_id).transpose()?,
        }))
    }
}

/// SEND_FILE_LIST's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SendFileListOptions {
    /// BACKUP_ID.
    pub backup_id: Option<Vec<u8>>,
    /// ESTIMATE.
    pub estimate: Option<bool>,
    /// TOTALS.
    pub totals: Option<bool>,
}

impl SendFileListOptions {
    /// The command.
    pub fn check(self) -> Result<Command, CommandError> {
        let default = SendFileList::default();
        let estimate = self.estimate.unwrap_or(default.estimate);
        let totals = self.totals.unwrap_or(default.totals);
        if totals && !estimate {
            return Err(CommandError::WrongKind { option: "totals", wanted: "estimate" });
        }
        Ok(Command::SendFileList(SendFileList {
            backup_id: self.backup_id.as_deref().map(backup_id).transpose()?,
            estimate,
            totals,
        }))
    }
}

/// A file of SEND_FILES_CONTENT and what was said of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileOptions {
    /// The percent-encoded path.
    pub path: Vec<u8>,
    /// OFFSET in bytes.
    pub offset: Option<i64>,
    /// LENGTH in bytes.
    pub length: Option<i64>,
    /// BLOCKS, as text.
    pub blocks: Option<Vec<u8>>,
}

impl FileOptions {
    /// `lists` is how many bytes the lists of blocks of one command have so far.
    fn check(self, lists: &mut usize) -> Result<FileRequest, CommandError> {
        let path = BackupPath::parse(&self.path)
            .map_err(|source| CommandError::Path { path: encode(&self.path), source })?;
        let offset = self.offset.map(|offset| bytes("offset", offset)).transpose()?;
        let length = self.length.map(|length| bytes("length", length)).transpose()?;
        let blocks = match self.blocks {
            None => None,
            Some(text) => {
                *lists += text.len();
                if *lists > MAX_BLOCK_LISTS {
                    return Err(CommandError::BlockListsTooLong);
                }
                Some(BlockList::parse(&text).map_err(|_| CommandError::WrongKind {
                    option: "blocks",
                    wanted: "a list of ascending block numbers",
                })?)
            }
        };
        let extent = match (blocks, offset, length) {
            (None, None, None) => Extent::Whole,
            (None, Some(offset), length) => Extent::Range(Range { offset, length }),
            (None, None, Some(_)) => {
                return Err(CommandError::WrongKind { option: "length", wanted: "an offset" });
            }
            (Some(blocks), None, None) => Extent::Blocks(blocks),
            (Some(_), _, _) => return Err(CommandError::BlocksAndRange),
        };
        Ok(FileRequest { path, extent })
    }
}

/// SEND_FILES_CONTENT's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SendFilesContentOptions {
    /// BACKUP_ID.
    pub backup_id: Option<Vec<u8>>,
    /// VERIFY_CHECKSUMS.
    pub verify_checksums: Option<bool>,
    /// FILE_CHECKSUM, a word.
    pub file_checksum: Option<Vec<u8>>,
    /// COMPRESSION, a word.
    pub compression: Option<Vec<u8>>,
    /// COMPRESSION_LEVEL.
    pub compression_level: Option<i64>,
    /// COMPRESSION_DETAIL.
    pub compression_detail: Option<Vec<u8>>,
}

impl SendFilesContentOptions {
    /// The command that asks for these files.
    pub fn check(self, files: Vec<FileOptions>) -> Result<Command, CommandError> {
        if files.is_empty() {
            return Err(CommandError::NoFiles);
        }
        if files.len() > MAX_FILES_PER_COMMAND {
            return Err(CommandError::TooManyFiles);
        }
        let compression = compression(
            self.compression.as_deref(),
            self.compression_level,
            self.compression_detail.as_deref(),
        )?;
        let file_checksum = match self.file_checksum {
            None => SendFilesContent::default().file_checksum,
            Some(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|name| name.parse().ok())
                .ok_or_else(|| unknown_word("checksum algorithm", &text))?,
        };
        let mut lists = 0;
        Ok(Command::SendFilesContent(SendFilesContent {
            backup_id: self.backup_id.as_deref().map(backup_id).transpose()?,
            verify_checksums: self.verify_checksums,
            file_checksum,
            compression,
            files: files.into_iter().map(|file| file.check(&mut lists)).collect::<Result<_, _>>()?,
        }))
    }
}

/// STOP_BACKUP's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopBackupOptions {
    /// BACKUP_ID.
    pub backup_id: Option<Vec<u8>>,
    /// LABEL, the content of backup_label.
    pub label: Option<Vec<u8>>,
    /// WAIT.
    pub wait: Option<bool>,
    /// TERMINATE_TRANSFERS, process IDs with commas between them.
    pub terminate_transfers: Option<Vec<u8>>,
    /// RELEASE, which stands with BACKUP_ID alone.
    pub release: Option<bool>,
}

impl StopBackupOptions {
    /// The command. RELEASE makes it [`Command::Release`].
    pub fn check(self) -> Result<Command, CommandError> {
        let default = StopBackup::default();
        let id = self.backup_id.as_deref().map(backup_id).transpose()?;
        if self.release == Some(true) {
            let others = [
                ("label", self.label.is_some()),
                ("wait", self.wait.is_some()),
                ("terminate_transfers", self.terminate_transfers.is_some()),
            ];
            stands_alone("RELEASE", &others)?;
            return Ok(Command::Release(id));
        }
        Ok(Command::StopBackup(StopBackup {
            backup_id: id,
            label: self.label,
            wait: self.wait.unwrap_or(default.wait),
            terminate_transfers: self.terminate_transfers.map(process_ids).transpose()?.unwrap_or_default(),
        }))
    }
}

/// Fails if one of the others was given.
fn stands_alone(alone: &'static str, others: &[(&str, bool)]) -> Result<(), CommandError> {
    match others.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(CommandError::StandsAlone { option: (*option).to_owned(), alone }),
        None => Ok(()),
    }
}

fn checkpoint(text: &[u8]) -> Result<Checkpoint, CommandError> {
    match &*text.to_ascii_lowercase() {
        b"fast" => Ok(Checkpoint::Fast),
        b"spread" => Ok(Checkpoint::Spread),
        other => Err(unknown_word("checkpoint type", other)),
    }
}

fn max_rate(value: i64) -> Result<u32, CommandError> {
    u32::try_from(value)
        .ok()
        .filter(|_| MAX_RATE_RANGE.contains(&value))
        .ok_or(CommandError::MaxRate { value })
}

/// A number of seconds, at most what an int32 holds.
fn seconds(option: &'static str, value: i64) -> Result<u32, CommandError> {
    i32::try_from(value)
        .ok()
        .and_then(|value| u32::try_from(value).ok())
        .ok_or_else(|| CommandError::OutOfRange { option, value: value.to_string() })
}

fn bytes(option: &'static str, value: i64) -> Result<u64, CommandError> {
    u64::try_from(value).map_err(|_| CommandError::OutOfRange { option, value: value.to_string() })
}

fn backup_id(text: &[u8]) -> Result<BackupId, CommandError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| CommandError::UnknownBackup(encode(text)))
}

/// A name that a backup is to have.
fn new_backup_id(text: &[u8]) -> Result<BackupId, CommandError> {
    backup_id(text)
        .map_err(|_| CommandError::WrongKind { option: "new_backup_id", wanted: "32 hexadecimal digits" })
}

/// Process IDs with commas between them; none at all is a list too.
fn process_ids(text: Vec<u8>) -> Result<Vec<u32>, CommandError> {
    let text = String::from_utf8(text).unwrap_or_else(|_| "?".to_owned());
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|pid| {
            pid.trim().parse::<i32>().ok().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)
        })
        .collect::<Option<_>>()
        .ok_or(CommandError::WrongKind { option: "terminate_transfers", wanted: "a list of process IDs" })
}

fn compression(
    method: Option<&[u8]>,
    level: Option<i64>,
    detail: Option<&[u8]>,
) -> Result<WireCompression, CommandError> {
    let Some(method) = method else {
        return match (detail, level) {
            (None, None) => Ok(WireCompression::default()),
            (Some(_), _) => Err(CommandError::NoCompression("detail")),
            (None, Some(_)) => Err(CommandError::NoCompression("level")),
        };
    };
    let method = compression_method(method)?;
    let read = |text: &str| Specification::parse(method, Some(text)).map_err(CommandError::Compression);
    let level = level.map(|level| read(&level.to_string())).transpose()?;
    let detail = detail.map(|detail| read(&encode_words(detail))).transpose()?;
    let mut all = detail.or(level).unwrap_or(Specification { method, ..Specification::default() });
    if let (Some(level), Some(_)) = (level, detail) {
        if all.level.is_some() {
            return Err(CommandError::LevelTwice);
        }
        all.level = level.level;
    }
    WireCompression::try_from(all).map_err(CommandError::Compression)
}

/// A word, and only those that a frame can say.
fn compression_method(text: &[u8]) -> Result<Method, CommandError> {
    [Method::None, Method::Lz4, Method::Zstd]
        .into_iter()
        .find(|method| method.name().as_bytes().eq_ignore_ascii_case(text))
        .ok_or_else(|| unknown_word("compression algorithm", text))
}

/// Text as it is where every encoding has it, and percent-encoded, as no option is, where not.
fn encode_words(text: &[u8]) -> String {
    match std::str::from_utf8(text) {
        Ok(text) if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => text.to_owned(),
        _ => encode(text),
    }
}

fn unknown_word(what: &'static str, value: &[u8]) -> CommandError {
    CommandError::UnknownWord { what, value: encode(value) }
}
