//! The SQL procedures: the same commands on any server that has loaded the library, patched or
//! not. What declares them, and who may call them, is sql/pg_parallel_backup--*.sql.

// The wrappers that pgrx generates are unsafe functions, and cannot be generated elsewhere.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::prelude::*;
use protocol::CommandKind;
use protocol::command::{
    FileOptions, SendFileListOptions, SendFilesContentOptions, StartBackupOptions, StopBackupOptions,
};

use crate::command;
use crate::error::{Error, Result};
use crate::pg::arguments::Arguments;
use crate::pg::procedure::{self, Invocation, Transaction};
use crate::pg::{guard, report, role};

/// START_BACKUP.
#[pg_extern(sql = false)]
fn parallel_backup_start_backup(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let options = StartBackupOptions {
        label: given.text(0),
        checkpoint: given.text(1),
        progress: given.boolean(2),
        verify_checksums: given.boolean(3),
        max_rate: given.int8(4),
        // From 0.3.0.
        incremental: given.boolean(5),
        lease: given.int4(6).map(i64::from),
        backup_id: given.text(7),
        light_lease: given.boolean(8),
        new_backup_id: given.text(9),
    };
    log(CommandKind::StartBackup, options.backup_id.as_deref(), None);
    carry_out(c"START_BACKUP", Invocation::of(info), Transaction::Own, || super::carry_out(options.check()));
}

/// SEND_FILE_LIST.
#[pg_extern(sql = false)]
fn parallel_backup_send_file_list(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let options = SendFileListOptions {
        backup_id: given.text(0),
        estimate: given.boolean(1),
        // From 0.3.0.
        totals: given.boolean(2),
    };
    log(CommandKind::SendFileList, options.backup_id.as_deref(), None);
    carry_out(c"SEND_FILE_LIST", Invocation::of(info), Transaction::None, || {
        super::carry_out(options.check())
    });
}

/// SEND_FILES_CONTENT. Offsets, lengths and lists of blocks belong to the files at the same place; a NULL, or an
/// array that has ended, means the whole file.
#[pg_extern(sql = false)]
fn parallel_backup_send_files_content(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let mut offsets = given.int8s(2).unwrap_or_default().into_iter();
    let mut lengths = given.int8s(3).unwrap_or_default().into_iter();
    // From 0.3.0.
    let mut blocks = given.texts(9).unwrap_or_default().into_iter();
    let files: Vec<FileOptions> = given
        .texts(0)
        .unwrap_or_default()
        .into_iter()
        .map(|path| FileOptions {
            path: path.unwrap_or_default(),
            offset: offsets.next().flatten(),
            length: lengths.next().flatten(),
            blocks: blocks.next().flatten(),
        })
        .collect();
    let options = SendFilesContentOptions {
        backup_id: given.text(1),
        verify_checksums: given.boolean(4),
        file_checksum: given.text(5),
        compression: given.text(6),
        compression_level: given.int4(7).map(i64::from),
        // From 0.3.0.
        compression_detail: given.text(8),
    };
    log(CommandKind::SendFilesContent, options.backup_id.as_deref(), Some(files.len()));
    carry_out(c"SEND_FILES_CONTENT", Invocation::of(info), Transaction::None, || {
        super::carry_out(options.check(files))
    });
}

/// STOP_BACKUP.
#[pg_extern(sql = false)]
fn parallel_backup_stop_backup(info: pg_sys::FunctionCallInfo) {
    let given = Arguments::of(info);
    let options = StopBackupOptions {
        backup_id: given.text(0),
        label: given.text(1),
        wait: given.boolean(2),
        // From 0.3.0, both.
        terminate_transfers: given.text(3),
        release: given.boolean(4),
    };
    log(CommandKind::StopBackup, options.backup_id.as_deref(), None);
    carry_out(c"STOP_BACKUP", Invocation::of(info), Transaction::Own, || super::carry_out(options.check()));
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

/// Does a procedure's work and reports its error. Only what sends for long must be without a transaction; what
/// enters and leaves backup mode is cleaned up by one.
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

/// Logs command, backup and number of files, as log_replication_commands asks for.
fn log(kind: CommandKind, id: Option<&[u8]>, files: Option<usize>) {
    if !procedure::log_commands() {
        return;
    }
    let mut line = format!("received parallel backup command: {kind}");
    if let Some(id) = id {
        line += &format!(", backup {}", protocol::path::encode(id));
    }
    if let Some(files) = files {
        line += &format!(", {files} files");
    }
    report::log(line);
}
