//! Options as the replication grammar yields them, read into those that a command has.

use super::{
    Command, CommandError, CommandKind, FileOptions, RawFile, RawOption, RawValue, SendFileListOptions,
    SendFilesContentOptions, StartBackupOptions, StopBackupOptions,
};
use crate::path::encode;

impl Command {
    /// Checks what the grammar parsed. `files` is empty but for SEND_FILES_CONTENT.
    pub fn parse(
        kind: CommandKind,
        files: Vec<RawFile>,
        options: Vec<RawOption>,
    ) -> Result<Self, CommandError> {
        let options = Options::new(kind, options);
        match kind {
            CommandKind::StartBackup => start_backup(options)?.check(),
            CommandKind::SendFileList => send_file_list(options)?.check(),
            CommandKind::SendFilesContent => {
                let options = send_files_content(options)?;
                options.check(files.into_iter().map(file).collect::<Result<_, _>>()?)
            }
            CommandKind::StopBackup => stop_backup(options)?.check(),
        }
    }
}

fn start_backup(mut options: Options) -> Result<StartBackupOptions, CommandError> {
    let mut given = StartBackupOptions::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"label" => given.label = Some(value.text("label")?),
            b"checkpoint" => given.checkpoint = Some(value.text("checkpoint")?),
            b"progress" => given.progress = Some(value.boolean("progress")?),
            b"verify_checksums" => given.verify_checksums = Some(value.boolean("verify_checksums")?),
            b"max_rate" => given.max_rate = Some(value.integer("max_rate")?),
            b"incremental" => given.incremental = Some(value.boolean("incremental")?),
            b"lease" => given.lease = Some(value.integer("lease")?),
            b"backup_id" => given.backup_id = Some(value.text("backup_id")?),
            b"light_lease" => given.light_lease = Some(value.boolean("light_lease")?),
            b"new_backup_id" => given.new_backup_id = Some(value.text("new_backup_id")?),
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(given)
}

fn send_file_list(mut options: Options) -> Result<SendFileListOptions, CommandError> {
    let mut given = SendFileListOptions::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"backup_id" => given.backup_id = Some(value.text("backup_id")?),
            b"estimate" => given.estimate = Some(value.boolean("estimate")?),
            b"totals" => given.totals = Some(value.boolean("totals")?),
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(given)
}

fn send_files_content(mut options: Options) -> Result<SendFilesContentOptions, CommandError> {
    let mut given = SendFilesContentOptions::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"backup_id" => given.backup_id = Some(value.text("backup_id")?),
            b"verify_checksums" => given.verify_checksums = Some(value.boolean("verify_checksums")?),
            b"file_checksum" => given.file_checksum = Some(value.text("file_checksum")?),
            b"compression" => given.compression = Some(value.text("compression")?),
            b"compression_level" => given.compression_level = Some(value.integer("compression_level")?),
            b"compression_detail" => given.compression_detail = Some(value.text("compression_detail")?),
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(given)
}

fn file(file: RawFile) -> Result<FileOptions, CommandError> {
    let mut given = FileOptions { path: file.path, ..FileOptions::default() };
    let mut options = Options::new(CommandKind::SendFilesContent, file.options);
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"offset" => given.offset = Some(value.bytes("offset")?),
            b"length" => given.length = Some(value.bytes("length")?),
            b"blocks" => given.blocks = Some(value.text("blocks")?),
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(given)
}

fn stop_backup(mut options: Options) -> Result<StopBackupOptions, CommandError> {
    let mut given = StopBackupOptions::default();
    while let Some((name, value)) = options.next()? {
        match &*name {
            b"backup_id" => given.backup_id = Some(value.text("backup_id")?),
            b"label" => given.label = Some(value.text("label")?),
            b"wait" => given.wait = Some(value.boolean("wait")?),
            b"terminate_transfers" => given.terminate_transfers = Some(value.text("terminate_transfers")?),
            b"release" => given.release = Some(value.boolean("release")?),
            _ => return Err(options.unknown(&name)),
        }
    }
    Ok(given)
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

    /// A number of bytes; more than an int64 holds is no wrong word, but out of range.
    fn bytes(self, option: &'static str) -> Result<i64, CommandError> {
        let text = self.text(option)?;
        if text.is_empty() || !text.strip_prefix(b"-").unwrap_or(&text).iter().all(u8::is_ascii_digit) {
            return Err(CommandError::WrongKind { option, wanted: "a number of bytes" });
        }
        let digits = String::from_utf8(text).unwrap_or_default();
        digits.parse().map_err(|_| CommandError::OutOfRange { option, value: digits })
    }
}
