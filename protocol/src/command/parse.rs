//! Commands as a grammar or a CALL yields them, checked.

use super::MAX_RATE_RANGE;
use super::{
    Checkpoint, Command, CommandError, CommandKind, Extent, FileRequest, Range, RawFile, RawOption, RawValue,
    SendFileList, SendFilesContent, StartBackup, StopBackup,
};
use crate::MAX_FILES_PER_COMMAND;
use crate::blocks::{BlockList, MAX_BLOCK_LISTS};
use crate::compression::{Method, Specification, WireCompression};
use crate::id::BackupId;
use crate::path::{BackupPath, encode};

impl Command {
    /// Checks what a grammar parsed. `files` is empty but for SEND_FILES_CONTENT.
    pub fn parse(
        kind: CommandKind,
        files: Vec<RawFile>,
        options: Vec<RawOption>,
    ) -> Result<Self, CommandError> {
        let options = Options::new(kind, options);
        match kind {
            CommandKind::StartBackup => parse_start_backup(options),
            CommandKind::SendFileList => parse_send_file_list(options).map(Self::SendFileList),
            CommandKind::SendFilesContent => {
                parse_send_files_content(files, options).map(Self::SendFilesContent)
            }
            CommandKind::StopBackup => parse_stop_backup(options),
        }
    }
}

fn parse_start_backup(mut options: Options) -> Result<Command, CommandError> {
    let mut command = StartBackup::default();
    let mut attach = None;
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
            b"incremental" => command.incremental = value.boolean("incremental")?,
            b"lease" => command.lease = Some(value.seconds("lease")?),
            b"backup_id" => attach = Some(value.backup_id()?),
            _ => return Err(options.unknown(&name)),
        }
    }
    match attach {
        // What it would have to say was settled when the backup started.
        Some(id) => options.none_but(&[b"backup_id"], "BACKUP_ID").map(|()| Command::Attach(id)),
        None => Ok(Command::StartBackup(command)),
    }
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
    let mut compression = CompressionOptions::default();
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
            b"compression" => compression.method = Some(parse_method(&value.text("compression")?)?),
            b"compression_level" => compression.level = Some(value.integer("compression_level")?),
            b"compression_detail" => compression.detail = Some(value.text("compression_detail")?),
            _ => return Err(options.unknown(&name)),
        }
    }
    command.compression = compression.check()?;
    let mut lists = 0;
    command.files = files.into_iter().map(|file| parse_file(file, &mut lists)).collect::<Result<_, _>>()?;
    Ok(command)
}

/// A word, and only those that a frame can say.
fn parse_method(text: &[u8]) -> Result<Method, CommandError> {
    [Method::None, Method::Lz4, Method::Zstd]
        .into_iter()
        .find(|method| method.name().as_bytes().eq_ignore_ascii_case(text))
        .ok_or_else(|| unknown_word("compression algorithm", text))
}

/// What was said of compression, in whatever order.
#[derive(Default)]
struct CompressionOptions {
    method: Option<Method>,
    level: Option<i64>,
    detail: Option<Vec<u8>>,
}

impl CompressionOptions {
    fn check(self) -> Result<WireCompression, CommandError> {
        let Some(method) = self.method else {
            return match (self.detail, self.level) {
                (None, None) => Ok(WireCompression::default()),
                (Some(_), _) => Err(CommandError::NoCompression("detail")),
                (None, Some(_)) => Err(CommandError::NoCompression("level")),
            };
        };
        let read = |text: &str| Specification::parse(method, Some(text)).map_err(CommandError::Compression);
        let level = self.level.map(|level| read(&level.to_string())).transpose()?;
        let detail = self.detail.map(|detail| read(&encode_words(&detail))).transpose()?;
        let mut all = detail.or(level).unwrap_or(Specification { method, ..Specification::default() });
        if let (Some(level), Some(_)) = (level, detail) {
            if all.level.is_some() {
                return Err(CommandError::LevelTwice);
            }
            all.level = level.level;
        }
        WireCompression::try_from(all).map_err(CommandError::Compression)
    }
}

/// Text as it is where every encoding has it, and percent-encoded, as no option is, where not.
fn encode_words(text: &[u8]) -> String {
    match std::str::from_utf8(text) {
        Ok(text) if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => text.to_owned(),
        _ => encode(text),
    }
}

/// `lists` is how many bytes the lists of blocks have so far.
fn parse_file(file: RawFile, lists: &mut usize) -> Result<FileRequest, CommandError> {
    let path = BackupPath::parse(&file.path)
        .map_err(|source| CommandError::Path { path: encode(&file.path), source })?;
    let mut offset = None;
    let mut length = None;
    let mut blocks = None;
    let mut options = Options::new(CommandKind::SendFilesContent, file.options);
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"offset" => offset = Some(value.size("offset")?),
            b"length" => length = Some(value.size("length")?),
            b"blocks" => {
                let text = value.text("blocks")?;
                *lists += text.len();
                if *lists > MAX_BLOCK_LISTS {
                    return Err(CommandError::BlockListsTooLong);
                }
                blocks = Some(BlockList::parse(&text).map_err(|_| CommandError::WrongKind {
                    option: "blocks",
                    wanted: "a list of ascending block numbers",
                })?);
            }
            _ => return Err(options.unknown(&name)),
        }
    }
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

fn parse_stop_backup(mut options: Options) -> Result<Command, CommandError> {
    let mut command = StopBackup::default();
    let mut release = false;
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"backup_id" => command.backup_id = Some(value.backup_id()?),
            b"label" => command.label = Some(value.text("label")?),
            b"wait" => command.wait = value.boolean("wait")?,
            b"terminate_transfers" => command.terminate_transfers = value.pids("terminate_transfers")?,
            b"release" => release = value.boolean("release")?,
            _ => return Err(options.unknown(&name)),
        }
    }
    if release {
        options.none_but(&[b"release", b"backup_id"], "RELEASE")?;
        return Ok(Command::Release(command.backup_id));
    }
    Ok(Command::StopBackup(command))
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

    /// Fails if there was an option beside these, with which `alone` may not be used.
    fn none_but(&self, these: &[&[u8]], alone: &'static str) -> Result<(), CommandError> {
        match self.seen.iter().find(|name| !these.contains(&&***name)) {
            Some(name) => Err(CommandError::StandsAlone { option: encode(name), alone }),
            None => Ok(()),
        }
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

    /// A number of seconds, at most what an int32 holds.
    fn seconds(self, option: &'static str) -> Result<u32, CommandError> {
        let number = self.integer(option)?;
        i32::try_from(number)
            .ok()
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| CommandError::OutOfRange { option, value: number.to_string() })
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
