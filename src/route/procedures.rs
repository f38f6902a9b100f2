//! The SQL procedures: the same commands on any server that has loaded the library, patched or
//! not. What declares them, and who may call them, is sql/pg_parallel_backup--*.sql.

// The wrappers that pgrx generates are unsafe functions, and cannot be generated elsewhere.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::prelude::*;
use protocol::command::{RawFile, RawOption, RawValue};
use protocol::{Command, CommandKind};

use crate::command;
use crate::pg::procedure::{self, Called, Transaction};
use crate::pg::{guard, report};

/// START_BACKUP.
#[pg_extern(sql = false)]
fn parallel_backup_start_backup(
    label: Option<String>,
    checkpoint: Option<String>,
    progress: Option<bool>,
    verify_checksums: Option<bool>,
    max_rate: Option<i64>,
    info: pg_sys::FunctionCallInfo,
) {
    let options = [
        text("label", label),
        text("checkpoint", checkpoint),
        boolean("progress", progress),
        boolean("verify_checksums", verify_checksums),
        integer("max_rate", max_rate),
    ];
    call(CommandKind::StartBackup, c"START_BACKUP", Called::of(info), Vec::new(), options);
}

/// SEND_FILE_LIST.
#[pg_extern(sql = false)]
fn parallel_backup_send_file_list(
    backup_id: Option<String>,
    estimate: Option<bool>,
    info: pg_sys::FunctionCallInfo,
) {
    let options = [text("backup_id", backup_id), boolean("estimate", estimate)];
    call(CommandKind::SendFileList, c"SEND_FILE_LIST", Called::of(info), Vec::new(), options);
}

/// SEND_FILES_CONTENT. Offsets and lengths belong to the files at the same place; a NULL, or an
/// array that has ended, means the whole file.
#[pg_extern(sql = false)]
// A procedure's arguments are the command's options.
#[allow(clippy::too_many_arguments)]
fn parallel_backup_send_files_content(
    files: Option<Vec<Option<String>>>,
    backup_id: Option<String>,
    offsets: Option<Vec<Option<i64>>>,
    lengths: Option<Vec<Option<i64>>>,
    verify_checksums: Option<bool>,
    file_checksum: Option<String>,
    compression: Option<String>,
    compression_level: Option<i32>,
    info: pg_sys::FunctionCallInfo,
) {
    let at = |numbers: &Option<Vec<Option<i64>>>, place: usize| {
        numbers.as_ref().and_then(|numbers| numbers.get(place).copied().flatten())
    };
    let files = files
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(place, path)| RawFile {
            path: path.unwrap_or_default().into_bytes(),
            options: [integer("offset", at(&offsets, place)), integer("length", at(&lengths, place))]
                .into_iter()
                .flatten()
                .collect(),
        })
        .collect();
    let options = [
        text("backup_id", backup_id),
        boolean("verify_checksums", verify_checksums),
        text("file_checksum", file_checksum),
        text("compression", compression),
        integer("compression_level", compression_level.map(i64::from)),
    ];
    call(CommandKind::SendFilesContent, c"SEND_FILES_CONTENT", Called::of(info), files, options);
}

/// STOP_BACKUP.
#[pg_extern(sql = false)]
fn parallel_backup_stop_backup(
    backup_id: Option<String>,
    label: Option<String>,
    wait: Option<bool>,
    info: pg_sys::FunctionCallInfo,
) {
    let options = [text("backup_id", backup_id), text("label", label), boolean("wait", wait)];
    call(CommandKind::StopBackup, c"STOP_BACKUP", Called::of(info), Vec::new(), options);
}

/// Carries out a command; an argument that is NULL is an option that was not given.
fn call(
    kind: CommandKind,
    name: &'static CStr,
    called: Called,
    files: Vec<RawFile>,
    options: impl IntoIterator<Item = Option<RawOption>>,
) {
    let options: Vec<RawOption> = options.into_iter().flatten().collect();
    if procedure::log_commands() {
        report::log(describe(kind, files.len(), &options));
    }
    // Only what sends for long must be without a transaction; what enters and leaves backup mode
    // is cleaned up by one.
    let transaction = match kind {
        CommandKind::StartBackup | CommandKind::StopBackup => Transaction::Own,
        CommandKind::SendFileList | CommandKind::SendFilesContent => Transaction::None,
    };
    let work = || super::carry_out(Command::parse(kind, files, options));
    let result = procedure::run(name, called, transaction, || guard::on_failure(work, command::finished));
    match result {
        Ok(()) => command::finished(),
        Err(error) => report::raise(&error),
    }
}

/// The log line: command, backup and number of files, as log_replication_commands asks for.
fn describe(kind: CommandKind, files: usize, options: &[RawOption]) -> String {
    let mut line = format!("received parallel backup command: {kind}");
    let id =
        options.iter().find(|option| option.name == b"backup_id").and_then(|option| option.value.as_ref());
    if let Some(RawValue::Text(id)) = id {
        line += &format!(", backup {}", protocol::path::encode(id));
    }
    if kind == CommandKind::SendFilesContent {
        line += &format!(", {files} files");
    }
    line
}

fn text(name: &str, value: Option<String>) -> Option<RawOption> {
    value.map(|value| option(name, RawValue::Text(value.into_bytes())))
}

fn boolean(name: &str, value: Option<bool>) -> Option<RawOption> {
    integer(name, value.map(i64::from))
}

fn integer(name: &str, value: Option<i64>) -> Option<RawOption> {
    value.map(|value| option(name, RawValue::Integer(value)))
}

fn option(name: &str, value: RawValue) -> RawOption {
    RawOption { name: name.as_bytes().to_vec(), value: Some(value) }
}
