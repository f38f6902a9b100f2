//! The four commands: from what a grammar parsed into types that cannot be wrong, and back into
//! the text that a client sends.

use std::fmt::{self, Write};

use crate::MAX_FILES_PER_COMMAND;
use crate::checksum::ChecksumAlgorithm;
use crate::frame::Compression;
use crate::id::BackupId;
use crate::path::{BackupPath, PathError, encode};
use crate::sqlstate::SqlState;

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
}

impl Default for StartBackup {
    fn default() -> Self {
        Self {
            label: DEFAULT_LABEL.to_vec(),
            checkpoint: Checkpoint::Spread,
            progress: false,
            verify_checksums: true,
            max_rate: None,
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
    pub compression: Compression,
    /// The compression level, in the algorithm's own scale.
    pub compression_level: Option<i32>,
}

/// One file of SEND_FILES_CONTENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRequest {
    /// Which.
    pub path: BackupPath,
    /// Which part of it; all of it if none is named.
    pub range: Option<Range>,
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
            | Self::WrongKind { .. }
            | Self::UnknownWord { .. }
            | Self::NoFiles => SqlState::SYNTAX_ERROR,
            Self::MaxRate { .. } => SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            Self::OutOfRange { .. } => SqlState::INVALID_PARAMETER_VALUE,
            Self::Path { .. } => SqlState::INVALID_NAME,
            Self::UnknownBackup(_) => SqlState::UNDEFINED_OBJECT,
            Self::TooManyFiles => SqlState::PROGRAM_LIMIT_EXCEEDED,
        }
    }
}

impl Command {
    /// Checks what a grammar parsed. `files` is empty but for SEND_FILES_CONTENT.
    pub fn parse(
        kind: CommandKind,
        files: Vec<RawFile>,
        options: Vec<RawOption>,
    ) -> Result<Self, CommandError> {
        let options = Options::new(kind, options);
        match kind {
            CommandKind::StartBackup => parse_start_backup(options).map(Self::StartBackup),
            CommandKind::SendFileList => parse_send_file_list(options).map(Self::SendFileList),
            CommandKind::SendFilesContent => {
                parse_send_files_content(files, options).map(Self::SendFilesContent)
            }
            CommandKind::StopBackup => parse_stop_backup(options).map(Self::StopBackup),
        }
    }

    /// Which of the four.
    pub const fn kind(&self) -> CommandKind {
        match self {
            Self::StartBackup(_) => CommandKind::StartBackup,
            Self::SendFileList(_) => CommandKind::SendFileList,
            Self::SendFilesContent(_) => CommandKind::SendFilesContent,
            Self::StopBackup(_) => CommandKind::StopBackup,
        }
    }

    /// The command as the replication grammar reads it. Bytes, because a label may be in any
    /// encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut options = OptionList::default();
        let mut text = self.kind().name().as_bytes().to_vec();
        match self {
            Self::StartBackup(start) => {
                options.quoted("LABEL", &start.label);
                options.bare(match start.checkpoint {
                    Checkpoint::Fast => "CHECKPOINT 'fast'",
                    Checkpoint::Spread => "CHECKPOINT 'spread'",
                });
                if start.progress {
                    options.bare("PROGRESS");
                }
                if !start.verify_checksums {
                    options.bare("VERIFY_CHECKSUMS false");
                }
                if let Some(rate) = start.max_rate {
                    options.bare(&format!("MAX_RATE {rate}"));
                }
            }
            Self::SendFileList(list) => {
                options.backup_id(list.backup_id);
                if list.estimate {
                    options.bare("ESTIMATE");
                }
            }
            Self::SendFilesContent(content) => {
                text.push(b' ');
                text.extend(parenthesized(content.files.iter().map(|file| file.to_bytes())));
                options.backup_id(content.backup_id);
                if let Some(verify) = content.verify_checksums {
                    options.bare(if verify { "VERIFY_CHECKSUMS true" } else { "VERIFY_CHECKSUMS false" });
                }
                if !content.file_checksum.is_empty() {
                    options.bare(&format!("FILE_CHECKSUM '{}'", content.file_checksum.name()));
                }
                if content.compression != Compression::None {
                    options.bare(&format!("COMPRESSION '{}'", compression_name(content.compression)));
                }
                if let Some(level) = content.compression_level {
                    options.bare(&format!("COMPRESSION_LEVEL '{level}'"));
                }
                if !options.0.is_empty() {
                    text.extend_from_slice(b" WITH");
                }
            }
            Self::StopBackup(stop) => {
                options.backup_id(stop.backup_id);
                if let Some(label) = &stop.label {
                    options.quoted("LABEL", label);
                }
                if !stop.wait {
                    options.bare("WAIT false");
                }
                if !stop.terminate_transfers.is_empty() {
                    options.bare(&format!("TERMINATE_TRANSFERS '{}'", pid_list(&stop.terminate_transfers)));
                }
            }
        }
        if !options.0.is_empty() {
            text.push(b' ');
            text.extend(parenthesized(options.0.into_iter()));
        }
        text
    }

    /// The command as a CALL of its SQL procedure, for a session with standard_conforming_strings
    /// on. The procedures' arguments are in sql/pg_parallel_backup--*.sql.
    pub fn to_call(&self) -> Vec<u8> {
        let mut arguments = ArgumentList::default();
        match self {
            Self::StartBackup(start) => {
                arguments.quoted("label", &start.label);
                arguments.quoted(
                    "checkpoint",
                    match start.checkpoint {
                        Checkpoint::Fast => b"fast",
                        Checkpoint::Spread => b"spread",
                    },
                );
                arguments.bare("progress", start.progress.then_some(true));
                arguments.bare("verify_checksums", (!start.verify_checksums).then_some(false));
                arguments.bare("max_rate", start.max_rate);
            }
            Self::SendFileList(list) => {
                arguments.backup_id(list.backup_id);
                arguments.bare("estimate", list.estimate.then_some(true));
            }
            Self::SendFilesContent(content) => {
                arguments.files(&content.files);
                arguments.backup_id(content.backup_id);
                arguments.bare("verify_checksums", content.verify_checksums);
                if !content.file_checksum.is_empty() {
                    arguments.quoted("file_checksum", content.file_checksum.name().as_bytes());
                }
                if content.compression != Compression::None {
                    arguments.quoted("compression", compression_name(content.compression).as_bytes());
                }
                arguments.bare("compression_level", content.compression_level);
            }
            Self::StopBackup(stop) => {
                arguments.backup_id(stop.backup_id);
                if let Some(label) = &stop.label {
                    arguments.quoted("label", label);
                }
                arguments.bare("wait", (!stop.wait).then_some(false));
                if !stop.terminate_transfers.is_empty() {
                    arguments.quoted("terminate_transfers", pid_list(&stop.terminate_transfers).as_bytes());
                }
            }
        }
        let procedure = format!("CALL parallel_backup.{}", self.kind().name().to_ascii_lowercase());
        [procedure.into_bytes(), parenthesized(arguments.0.into_iter())].concat()
    }
}

impl FileRequest {
    /// All of a file.
    pub fn whole(path: BackupPath) -> Self {
        Self { path, range: None }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut text = quote(self.path.encoded().as_bytes());
        if let Some(range) = self.range {
            let mut clause = format!(" (OFFSET '{}'", range.offset);
            if let Some(length) = range.length {
                // Writing to a String cannot fail.
                let _ = write!(clause, ", LENGTH '{length}'");
            }
            text.extend_from_slice(clause.as_bytes());
            text.push(b')');
        }
        text
    }
}

fn parse_start_backup(mut options: Options) -> Result<StartBackup, CommandError> {
    let mut command = StartBackup::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"label" => command.label = value.text("label")?,
            b"checkpoint" => {
                command.checkpoint = match &*value.text("checkpoint")?.to_ascii_lowercase() {
                    b"fast" => Checkpoint::Fast,
                    b"spread" => Checkpoint::Spread,
                    other => return Err(unknown_word("checkpoint type", other)),
                }
            }
            b"progress" => command.progress = value.boolean("progress")?,
            b"verify_checksums" => command.verify_checksums = value.boolean("verify_checksums")?,
            b"max_rate" => {
                let rate = value.integer("max_rate")?;
                command.max_rate = u32::try_from(rate).ok().filter(|_| MAX_RATE_RANGE.contains(&rate));
                if command.max_rate.is_none() {
                    return Err(CommandError::MaxRate { value: rate });
                }
            }
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(command)
}

fn parse_send_file_list(mut options: Options) -> Result<SendFileList, CommandError> {
    let mut command = SendFileList::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"backup_id" => command.backup_id = Some(value.backup_id()?),
            b"estimate" => command.estimate = value.boolean("estimate")?,
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(command)
}

fn parse_send_files_content(
    files: Vec<RawFile>,
    mut options: Options,
) -> Result<SendFilesContent, CommandError> {
    if files.is_empty() {
        return Err(CommandError::NoFiles);
    }
    if files.len() > MAX_FILES_PER_COMMAND {
        return Err(CommandError::TooManyFiles);
    }
    let mut command = SendFilesContent::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"backup_id" => command.backup_id = Some(value.backup_id()?),
            b"verify_checksums" => command.verify_checksums = Some(value.boolean("verify_checksums")?),
            b"file_checksum" => {
                let text = value.text("file_checksum")?;
                command.file_checksum = std::str::from_utf8(&text)
                    .ok()
                    .and_then(|name| name.parse().ok())
                    .ok_or_else(|| unknown_word("checksum algorithm", &text))?;
            }
            b"compression" => {
                let text = value.text("compression")?;
                command.compression = [Compression::None, Compression::Lz4, Compression::Zstd]
                    .into_iter()
                    .find(|algorithm| compression_name(*algorithm).as_bytes().eq_ignore_ascii_case(&text))
                    .ok_or_else(|| unknown_word("compression algorithm", &text))?;
            }
            b"compression_level" => {
                let level = value.integer("compression_level")?;
                command.compression_level = Some(i32::try_from(level).map_err(|_| {
                    CommandError::OutOfRange { option: "compression_level", value: level.to_string() }
                })?);
            }
            _ => return Err(options.unknown(&name)),
        }
    }
    command.files = files.into_iter().map(parse_file).collect::<Result<_, _>>()?;
    Ok(command)
}

fn parse_file(file: RawFile) -> Result<FileRequest, CommandError> {
    let path = BackupPath::parse(&file.path)
        .map_err(|source| CommandError::Path { path: encode(&file.path), source })?;
    let mut offset = None;
    let mut length = None;
    let mut options = Options::new(CommandKind::SendFilesContent, file.options);
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"offset" => offset = Some(value.size("offset")?),
            b"length" => length = Some(value.size("length")?),
            _ => return Err(options.unknown(&name)),
        }
    }
    match (offset, length) {
        (None, Some(_)) => Err(CommandError::WrongKind { option: "length", wanted: "an offset" }),
        (Some(offset), length) => Ok(FileRequest { path, range: Some(Range { offset, length }) }),
        (None, None) => Ok(FileRequest::whole(path)),
    }
}

fn parse_stop_backup(mut options: Options) -> Result<StopBackup, CommandError> {
    let mut command = StopBackup::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"backup_id" => command.backup_id = Some(value.backup_id()?),
            b"label" => command.label = Some(value.text("label")?),
            b"wait" => command.wait = value.boolean("wait")?,
            b"terminate_transfers" => command.terminate_transfers = value.pids("terminate_transfers")?,
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(command)
}

fn pid_list(pids: &[u32]) -> String {
    pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn compression_name(algorithm: Compression) -> &'static str {
    match algorithm {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

fn unknown_word(what: &'static str, value: &[u8]) -> CommandError {
    CommandError::UnknownWord { what, value: encode(value) }
}

/// The options not yet read, each of which may come once.
struct Options {
    command: CommandKind,
    rest: std::vec::IntoIter<RawOption>,
    seen: Vec<Vec<u8>>,
}

impl Options {
    fn new(command: CommandKind, options: Vec<RawOption>) -> Self {
        Self { command, rest: options.into_iter(), seen: Vec::new() }
    }

    fn next(&mut self) -> Result<Option<(Vec<u8>, Value)>, CommandError> {
        let Some(option) = self.rest.next() else { return Ok(None) };
        if self.seen.contains(&option.name) {
            return Err(CommandError::DuplicateOption(encode(&option.name)));
        }
        self.seen.push(option.name.clone());
        Ok(Some((option.name, Value(option.value))))
    }

    fn unknown(&self, name: &[u8]) -> CommandError {
        CommandError::UnknownOption { command: self.command, option: encode(name) }
    }
}

/// An option's value, read as defGetString, defGetBoolean and defGetInt64 read it; a quoted number
/// is taken too, since the grammar's own integers have 32 bits.
struct Value(Option<RawValue>);

impl Value {
    fn text(self, option: &'static str) -> Result<Vec<u8>, CommandError> {
        match self.0 {
            Some(RawValue::Text(text)) => Ok(text),
            Some(RawValue::Integer(number)) => Ok(number.to_string().into_bytes()),
            None => Err(CommandError::WrongKind { option, wanted: "a parameter" }),
        }
    }

    fn boolean(self, option: &'static str) -> Result<bool, CommandError> {
        let answer = match self.0 {
            None => Some(true),
            Some(RawValue::Integer(0)) => Some(false),
            Some(RawValue::Integer(1)) => Some(true),
            Some(RawValue::Integer(_)) => None,
            Some(RawValue::Text(text)) => match &*text.to_ascii_lowercase() {
                b"true" | b"on" => Some(true),
                b"false" | b"off" => Some(false),
                _ => None,
            },
        };
        answer.ok_or(CommandError::WrongKind { option, wanted: "a Boolean value" })
    }

    fn integer(self, option: &'static str) -> Result<i64, CommandError> {
        let number = match self.0 {
            Some(RawValue::Integer(number)) => Some(number),
            Some(RawValue::Text(text)) => std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()),
            None => None,
        };
        number.ok_or(CommandError::WrongKind { option, wanted: "an integer value" })
    }

    /// A number of bytes, at most what an int64 holds.
    fn size(self, option: &'static str) -> Result<u64, CommandError> {
        let text = self.text(option)?;
        if text.is_empty() || !text.strip_prefix(b"-").unwrap_or(&text).iter().all(u8::is_ascii_digit) {
            return Err(CommandError::WrongKind { option, wanted: "a number of bytes" });
        }
        let digits = String::from_utf8(text).unwrap_or_default();
        digits
            .parse::<i64>()
            .ok()
            .and_then(|number| u64::try_from(number).ok())
            .ok_or(CommandError::OutOfRange { option, value: digits })
    }

    /// Process IDs with commas between them; none at all is a list too.
    fn pids(self, option: &'static str) -> Result<Vec<u32>, CommandError> {
        let text = String::from_utf8(self.text(option)?).unwrap_or_else(|_| "?".to_owned());
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        text.split(',')
            .map(|pid| {
                pid.trim().parse::<i32>().ok().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)
            })
            .collect::<Option<_>>()
            .ok_or(CommandError::WrongKind { option, wanted: "a list of process IDs" })
    }

    fn backup_id(self) -> Result<BackupId, CommandError> {
        let text = self.text("backup_id")?;
        std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| CommandError::UnknownBackup(encode(&text)))
    }
}

/// Options on their way out.
#[derive(Default)]
struct OptionList(Vec<Vec<u8>>);

impl OptionList {
    fn bare(&mut self, option: &str) {
        self.0.push(option.as_bytes().to_vec());
    }

    fn quoted(&mut self, name: &str, value: &[u8]) {
        self.0.push([name.as_bytes(), b" ", &quote(value)].concat());
    }

    fn backup_id(&mut self, id: Option<BackupId>) {
        if let Some(id) = id {
            self.bare(&format!("BACKUP_ID '{id}'"));
        }
    }
}

/// Named arguments of a procedure on their way out.
#[derive(Default)]
struct ArgumentList(Vec<Vec<u8>>);

impl ArgumentList {
    fn add(&mut self, name: &str, value: &[u8]) {
        self.0.push([name.as_bytes(), b" => ", value].concat());
    }

    fn bare(&mut self, name: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.add(name, value.to_string().as_bytes());
        }
    }

    fn quoted(&mut self, name: &str, value: &[u8]) {
        self.add(name, &quote(value));
    }

    fn backup_id(&mut self, id: Option<BackupId>) {
        if let Some(id) = id {
            self.quoted("backup_id", id.to_string().as_bytes());
        }
    }

    fn files(&mut self, files: &[FileRequest]) {
        let paths: Vec<_> = files.iter().map(|file| quote(file.path.encoded().as_bytes())).collect();
        // With its type even an empty array means what it should: that no file was asked for.
        self.add("files", &[b"ARRAY[", &paths.join(&b", "[..])[..], b"]::pg_catalog.text[]"].concat());
        self.numbers("offsets", files, |range| Some(range.offset));
        self.numbers("lengths", files, |range| range.length);
    }

    /// A number for each file, NULL where there is none; nothing at all where no file has one.
    fn numbers(&mut self, name: &str, files: &[FileRequest], number: impl Fn(Range) -> Option<u64>) {
        let numbers: Vec<_> = files.iter().map(|file| file.range.and_then(&number)).collect();
        if numbers.iter().any(Option::is_some) {
            let list: Vec<_> = numbers
                .iter()
                .map(|number| number.map_or_else(|| "NULL".to_owned(), |number| number.to_string()))
                .collect();
            self.add(name, format!("'{{{}}}'", list.join(",")).as_bytes());
        }
    }
}

/// A literal of the replication grammar, or of SQL with standard_conforming_strings: quotes
/// doubled, nothing else is special.
fn quote(value: &[u8]) -> Vec<u8> {
    let mut text = vec![b'\''];
    for &byte in value {
        if byte == b'\'' {
            text.push(byte);
        }
        text.push(byte);
    }
    text.push(b'\'');
    text
}

fn parenthesized(items: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    [&b"("[..], &items.collect::<Vec<_>>().join(&b", "[..]), b")"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00112233445566778899aabbccddeeff";

    fn word(name: &str, value: &str) -> RawOption {
        RawOption { name: name.into(), value: Some(RawValue::Text(value.into())) }
    }

    fn number(name: &str, value: i64) -> RawOption {
        RawOption { name: name.into(), value: Some(RawValue::Integer(value)) }
    }

    fn flag(name: &str) -> RawOption {
        RawOption { name: name.into(), value: None }
    }

    fn file(path: &str, options: Vec<RawOption>) -> RawFile {
        RawFile { path: path.into(), options }
    }

    fn start(options: Vec<RawOption>) -> Result<StartBackup, CommandError> {
        match Command::parse(CommandKind::StartBackup, vec![], options)? {
            Command::StartBackup(command) => Ok(command),
            other => panic!("parsed {other:?}"),
        }
    }

    fn content(files: Vec<RawFile>, options: Vec<RawOption>) -> Result<SendFilesContent, CommandError> {
        match Command::parse(CommandKind::SendFilesContent, files, options)? {
            Command::SendFilesContent(command) => Ok(command),
            other => panic!("parsed {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        assert_eq!(start(vec![]), Ok(StartBackup::default()));
        assert_eq!(
            Command::parse(CommandKind::StopBackup, vec![], vec![]),
            Ok(Command::StopBackup(StopBackup::default()))
        );
    }

    #[test]
    fn process_ids() {
        let pids = |value: RawOption| -> Result<Vec<u32>, CommandError> {
            match Command::parse(CommandKind::StopBackup, vec![], vec![value])? {
                Command::StopBackup(command) => Ok(command.terminate_transfers),
                other => panic!("parsed {other:?}"),
            }
        };
        assert_eq!(pids(word("terminate_transfers", "12, 34,5")), Ok(vec![12, 34, 5]));
        assert_eq!(pids(number("terminate_transfers", 12)), Ok(vec![12]));
        assert_eq!(pids(word("terminate_transfers", "")), Ok(vec![]));
        for wrong in ["0", "-1", "1,", "1 2", "2147483648", "x"] {
            let error = pids(word("terminate_transfers", wrong)).unwrap_err();
            assert_eq!(error.sqlstate(), SqlState::SYNTAX_ERROR);
            assert_eq!(error.to_string(), "terminate_transfers requires a list of process IDs", "{wrong}");
        }
        assert!(pids(flag("terminate_transfers")).is_err());
    }

    #[test]
    fn all_options_of_start_backup() {
        let command = start(vec![
            word("label", "my label"),
            word("checkpoint", "FAST"),
            flag("progress"),
            word("verify_checksums", "off"),
            number("max_rate", 32),
        ]);
        assert_eq!(
            command,
            Ok(StartBackup {
                label: b"my label".to_vec(),
                checkpoint: Checkpoint::Fast,
                progress: true,
                verify_checksums: false,
                max_rate: Some(32),
            })
        );
    }

    #[test]
    fn refusals_have_code_and_words() {
        let refused = |options, code: SqlState, words: &str| {
            let error = start(options).unwrap_err();
            assert_eq!((error.sqlstate(), error.to_string().as_str()), (code, words));
        };
        refused(vec![flag("lable")], SqlState::SYNTAX_ERROR, "unrecognized START_BACKUP option: \"lable\"");
        refused(
            vec![flag("progress"), flag("progress")],
            SqlState::SYNTAX_ERROR,
            "duplicate option \"progress\"",
        );
        refused(vec![flag("label")], SqlState::SYNTAX_ERROR, "label requires a parameter");
        refused(vec![number("progress", 2)], SqlState::SYNTAX_ERROR, "progress requires a Boolean value");
        refused(
            vec![word("checkpoint", "slow")],
            SqlState::SYNTAX_ERROR,
            "unrecognized checkpoint type: \"slow\"",
        );
        for rate in [0, 31, 1_048_577, -1] {
            refused(
                vec![number("max_rate", rate)],
                SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                &format!("{rate} is outside the valid range for parameter \"MAX_RATE\" (32 .. 1048576)"),
            );
        }
    }

    #[test]
    fn files_and_ranges() {
        let command = content(
            vec![
                file("base/5/1", vec![]),
                file("base/5/2", vec![word("offset", "8192")]),
                file("base/5/3", vec![number("offset", 0), word("length", "17179869184")]),
            ],
            vec![word("backup_id", ID), word("file_checksum", "sha256"), word("compression", "lz4")],
        )
        .unwrap();
        assert_eq!(command.files[0].range, None);
        assert_eq!(command.files[1].range, Some(Range { offset: 8192, length: None }));
        assert_eq!(command.files[2].range, Some(Range { offset: 0, length: Some(1 << 34) }));
        assert_eq!(command.file_checksum, ChecksumAlgorithm::Sha256);
        assert_eq!(command.compression, Compression::Lz4);
    }

    #[test]
    fn refusals_of_files() {
        let code = |files, options| content(files, options).unwrap_err().sqlstate();
        assert_eq!(code(vec![], vec![]), SqlState::SYNTAX_ERROR);
        assert_eq!(code(vec![file("/etc/passwd", vec![])], vec![]), SqlState::INVALID_NAME);
        assert_eq!(
            code(vec![file("a", vec![word("offset", "-8192")])], vec![]),
            SqlState::INVALID_PARAMETER_VALUE
        );
        assert_eq!(code(vec![file("a", vec![word("offset", "x")])], vec![]), SqlState::SYNTAX_ERROR);
        assert_eq!(
            code(vec![file("a", vec![word("offset", "99999999999999999999")])], vec![]),
            SqlState::INVALID_PARAMETER_VALUE
        );
        assert_eq!(code(vec![file("a", vec![word("length", "1")])], vec![]), SqlState::SYNTAX_ERROR);
        assert_eq!(code(vec![file("a", vec![])], vec![word("backup_id", "x")]), SqlState::UNDEFINED_OBJECT);
        assert_eq!(code(vec![file("a", vec![])], vec![word("file_checksum", "md5")]), SqlState::SYNTAX_ERROR);
        let many = |n| (0..n).map(|i| file(&format!("f{i}"), vec![])).collect::<Vec<_>>();
        assert_eq!(content(many(1024), vec![]).unwrap().files.len(), 1024);
        assert_eq!(code(many(1025), vec![]), SqlState::PROGRAM_LIMIT_EXCEEDED);
    }

    #[test]
    fn text_of_the_commands() {
        let path = |text: &str| BackupPath::parse(text.as_bytes()).unwrap();
        let cases: [(Command, &str); 7] = [
            (
                Command::StartBackup(StartBackup { label: b"it's".to_vec(), ..StartBackup::default() }),
                "START_BACKUP (LABEL 'it''s', CHECKPOINT 'spread')",
            ),
            (
                Command::StartBackup(StartBackup {
                    label: b"l".to_vec(),
                    checkpoint: Checkpoint::Fast,
                    progress: true,
                    verify_checksums: false,
                    max_rate: Some(1024),
                }),
                "START_BACKUP (LABEL 'l', CHECKPOINT 'fast', PROGRESS, VERIFY_CHECKSUMS false, MAX_RATE 1024)",
            ),
            (Command::SendFileList(SendFileList::default()), "SEND_FILE_LIST"),
            (
                Command::SendFilesContent(SendFilesContent {
                    files: vec![
                        FileRequest::whole(path("base/5/it's%20me")),
                        FileRequest {
                            path: path("base/5/1"),
                            range: Some(Range { offset: 8192, length: Some(8192) }),
                        },
                    ],
                    ..SendFilesContent::default()
                }),
                "SEND_FILES_CONTENT ('base/5/it''s%20me', 'base/5/1' (OFFSET '8192', LENGTH '8192'))",
            ),
            (
                Command::SendFilesContent(SendFilesContent {
                    files: vec![FileRequest::whole(path("a"))],
                    backup_id: Some(ID.parse().unwrap()),
                    verify_checksums: Some(false),
                    file_checksum: ChecksumAlgorithm::Crc32c,
                    compression: Compression::Zstd,
                    compression_level: Some(-3),
                }),
                "SEND_FILES_CONTENT ('a') WITH (BACKUP_ID '00112233445566778899aabbccddeeff', \
                 VERIFY_CHECKSUMS false, FILE_CHECKSUM 'CRC32C', COMPRESSION 'zstd', COMPRESSION_LEVEL '-3')",
            ),
            (
                Command::StopBackup(StopBackup { wait: false, ..StopBackup::default() }),
                "STOP_BACKUP (WAIT false)",
            ),
            (
                Command::StopBackup(StopBackup {
                    terminate_transfers: vec![17, 4711],
                    ..StopBackup::default()
                }),
                "STOP_BACKUP (TERMINATE_TRANSFERS '17,4711')",
            ),
        ];
        for (command, text) in cases {
            assert_eq!(String::from_utf8(command.to_bytes()).unwrap(), text);
        }
    }

    #[test]
    fn calls_of_the_procedures() {
        let path = |text: &str| BackupPath::parse(text.as_bytes()).unwrap();
        let cases: [(Command, &str); 7] = [
            (
                Command::StartBackup(StartBackup {
                    label: br"it's a \ label".to_vec(),
                    ..StartBackup::default()
                }),
                r"CALL parallel_backup.start_backup(label => 'it''s a \ label', checkpoint => 'spread')",
            ),
            (
                Command::StartBackup(StartBackup {
                    label: b"l".to_vec(),
                    checkpoint: Checkpoint::Fast,
                    progress: true,
                    verify_checksums: false,
                    max_rate: Some(1024),
                }),
                "CALL parallel_backup.start_backup(label => 'l', checkpoint => 'fast', progress => true, \
                 verify_checksums => false, max_rate => 1024)",
            ),
            (Command::SendFileList(SendFileList::default()), "CALL parallel_backup.send_file_list()"),
            (
                Command::SendFilesContent(SendFilesContent {
                    files: vec![
                        FileRequest::whole(path("base/5/it's%20me")),
                        FileRequest {
                            path: path("base/5/1"),
                            range: Some(Range { offset: 8192, length: Some(16384) }),
                        },
                        FileRequest {
                            path: path("base/5/2"),
                            range: Some(Range { offset: 0, length: None }),
                        },
                    ],
                    ..SendFilesContent::default()
                }),
                "CALL parallel_backup.send_files_content(files => ARRAY['base/5/it''s%20me', 'base/5/1', \
                 'base/5/2']::pg_catalog.text[], offsets => '{NULL,8192,0}', lengths => '{NULL,16384,NULL}')",
            ),
            (
                Command::SendFilesContent(SendFilesContent {
                    files: vec![FileRequest::whole(path("a"))],
                    backup_id: Some(ID.parse().unwrap()),
                    verify_checksums: Some(false),
                    file_checksum: ChecksumAlgorithm::Crc32c,
                    compression: Compression::Zstd,
                    compression_level: Some(-3),
                }),
                "CALL parallel_backup.send_files_content(files => ARRAY['a']::pg_catalog.text[], \
                 backup_id => '00112233445566778899aabbccddeeff', verify_checksums => false, \
                 file_checksum => 'CRC32C', compression => 'zstd', compression_level => -3)",
            ),
            (Command::StopBackup(StopBackup::default()), "CALL parallel_backup.stop_backup()"),
            (
                Command::StopBackup(StopBackup {
                    backup_id: None,
                    label: Some(b"it's".to_vec()),
                    wait: false,
                    terminate_transfers: vec![17, 4711],
                }),
                "CALL parallel_backup.stop_backup(label => 'it''s', wait => false, \
                 terminate_transfers => '17,4711')",
            ),
        ];
        for (command, text) in cases {
            assert_eq!(String::from_utf8(command.to_call()).unwrap(), text);
        }
    }
}
