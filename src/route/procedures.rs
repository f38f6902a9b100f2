//! The SQL procedures: the same commands on any server that has loaded the library, patched or
//! not. What declares them, and who may call them, is sql/pg_parallel_backup--*.sql.

// The wrappers that pgrx generates are unsafe functions, and cannot be generated elsewhere.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::prelude::*;
use protocol::command::{RawFile, RawOption, RawValue};
use protocol::{Command, CommandKind};

use crate::command;
use crate::error::{Error, Result};
use crate::pg::arguments::Arguments;
use crate::pg::procedure::{self, Invocation, Transaction};
use crate::pg::{guard, report, role};

/// START_BACKUP.
#[pg_extern(sql = false)]
fn parallel_backup_start_backup(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let options = [
        text("label", given.text(0)),
        text("checkpoint", given.text(1)),
        boolean("progress", given.boolean(2)),
        boolean("verify_checksums", given.boolean(3)),
        integer("max_rate", given.int8(4)),
        // From 0.3.0.
        boolean("incremental", given.boolean(5)),
        integer("lease", given.int4(6).map(i64::from)),
        text("backup_id", given.text(7)),
    ];
    call(CommandKind::StartBackup, c"START_BACKUP", Invocation::of(info), Vec::new(), options);
}

/// SEND_FILE_LIST.
#[pg_extern(sql = false)]
fn parallel_backup_send_file_list(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let options = [text("backup_id", given.text(0)), boolean("estimate", given.boolean(1))];
    call(CommandKind::SendFileList, c"SEND_FILE_LIST", Invocation::of(info), Vec::new(), options);
}

/// SEND_FILES_CONTENT. Offsets, lengths and lists of blocks belong to the files at the same place; a NULL, or an
/// array that has ended, means the whole file.
#[pg_extern(sql = false)]
fn parallel_backup_send_files_content(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let (offsets, lengths) = (given.int8s(2), given.int8s(3));
    // From 0.3.0.
    let mut blocks = given.texts(9).unwrap_or_default().into_iter();
    let at = |numbers: &Option<Vec<Option<i64>>>, place: usize| {
        numbers.as_ref().and_then(|numbers| numbers.get(place).copied().flatten())
    };
    let files = given
        .texts(0)
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(place, path)| RawFile {
            path: path.unwrap_or_default(),
            options: [
                integer("offset", at(&offsets, place)),
                integer("length", at(&lengths, place)),
                text("blocks", blocks.next().flatten()),
            ]
            .into_iter()
            .flatten()
            .collect(),
        })
        .collect();
    let options = [
        text("backup_id", given.text(1)),
        boolean("verify_checksums", given.boolean(4)),
        text("file_checksum", given.text(5)),
        text("compression", given.text(6)),
        integer("compression_level", given.int4(7).map(i64::from)),
        // From 0.3.0.
        text("compression_detail", given.text(8)),
    ];
    call(CommandKind::SendFilesContent, c"SEND_FILES_CONTENT", Invocation::of(info), files, options);
}

/// STOP_BACKUP.
#[pg_extern(sql = false)]
fn parallel_backup_stop_backup(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let options = [
        text("backup_id", given.text(0)),
        text("label", given.text(1)),
        boolean("wait", given.boolean(2)),
        // From 0.3.0, both.
        text("terminate_transfers", given.text(3)),
        boolean("release", given.boolean(4)),
    ];
    call(CommandKind::StopBackup, c"STOP_BACKUP", Invocation::of(info), Vec::new(), options);
}

/// UPLOAD_MANIFEST, in pieces.
#[pg_extern(sql = false)]
fn parallel_backup_upload_manifest(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let (piece, offset, is_last) = (given.bytes(0), given.int8(1), given.boolean(2));
    let (offset, is_last) = (offset.unwrap_or(0), is_last.unwrap_or(false));
    if procedure::log_commands() && offset == 0 {
        report::log("received parallel backup command: UPLOAD_MANIFEST");
    }
    carry_out(c"UPLOAD_MANIFEST", Invocation::of(info), Transaction::Own, || {
        command::upload::run(&piece.unwrap_or_default(), offset, is_last)
    });
}

/// Carries out a command; an argument that is NULL is an option that was not given.
fn call(
    kind: CommandKind,
    name: &'static CStr,
    invocation: Invocation,
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
    carry_out(name, invocation, transaction, || super::carry_out(Command::parse(kind, files, options)));
}

/// Does a procedure's work and reports its error.
fn carry_out(
    name: &'static CStr,
    invocation: Invocation,
    transaction: Transaction,
    work: impl FnOnce() -> Result<()>,
) {
    let result = check_rights(name).and_then(|()| {
        procedure::run(name, invocation, transaction, || guard::on_failure(work, command::finished))
    });
    match result {
        Ok(()) => command::finished(),
        Err(error) => report::raise(&error),
    }
}

/// EXECUTE alone is no sign that somebody was meant to read the whole cluster: GRANT ... ON ALL ROUTINES
/// gives it away by the dozen.
fn check_rights(name: &'static CStr) -> Result<()> {
    if role::may_read_cluster() {
        return Ok(());
    }
    Err(Error::NotForThisRole { procedure: name.to_str().unwrap_or_default() })
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

fn text(name: &str, value: Option<Vec<u8>>) -> Option<RawOption> {
    value.map(|value| option(name, RawValue::Text(value)))
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
