//! The functions behind the extension's SQL: the view of backups, and their cancellation. What
//! declares them is sql/pg_parallel_backup--*.sql.

// The wrappers that pgrx generates are unsafe functions, the one exception to the address of
// unsafe code: they cannot be generated elsewhere.
#![allow(unsafe_code)]

use pgrx::iter::TableIterator;
use pgrx::prelude::*;
use protocol::path::encode;
use protocol::{BackupId, CommandError};

use crate::backup::registry::{self, State};
use crate::error::{Error, Result};
use crate::pg::{backend, report};

/// A row a backup. Times are microseconds since PostgreSQL's epoch, sizes bytes, the rate kB/s.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn parallel_backup_get_backups() -> TableIterator<
    'static,
    (
        name!(backup_id, String),
        name!(pid, Option<i32>),
        name!(role, pg_sys::Oid),
        name!(label, String),
        name!(start_lsn, Option<String>),
        name!(start_tli, Option<i64>),
        name!(state, &'static str),
        name!(started, i64),
        name!(workers, i32),
        name!(files, i64),
        name!(bytes, i64),
        name!(total, Option<i64>),
        name!(checksum_failures, i64),
        name!(max_rate, Option<i32>),
    ),
> {
    TableIterator::new(registry::reports().into_iter().map(|backup| {
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        (
            backup.id.to_string(),
            backup.pid.and_then(|pid| i32::try_from(pid).ok()),
            pg_sys::Oid::from(backup.role),
            backend::text_in_server_encoding(&backup.label),
            backup.start.map(|(lsn, _)| lsn.to_string()),
            backup.start.map(|(_, timeline)| i64::from(timeline)),
            state_name(backup.state),
            backup.started_at,
            i32::try_from(backup.workers).unwrap_or(i32::MAX),
            count(backup.files),
            count(backup.sent),
            backup.total.map(count),
            count(backup.checksum_failures),
            backup.max_rate.and_then(|rate| i32::try_from(rate).ok()),
        )
    }))
}

/// Aborts a backup: its transfers end with 57014, its coordinator is terminated. With
/// pg_terminate_backend's rights; 42704 where there is no such backup.
#[pg_extern(sql = false)]
fn parallel_backup_cancel_backup(id: &str) -> bool {
    match cancel(id) {
        Ok(done) => done,
        Err(error) => report::raise(&error),
    }
}

fn cancel(text: &str) -> Result<bool> {
    let id: BackupId = text.parse().map_err(|_| CommandError::UnknownBackup(encode(text.as_bytes())))?;
    let slot = registry::find(id).ok_or(Error::UnknownBackup(id))?;
    // Its rights are checked before anything is marked. Only the coordinator can leave backup
    // mode, and it does so when it ends.
    let terminated = match slot.owner_pid() {
        0 => false,
        pid => backend::terminate(pid),
    };
    let aborted = slot.id() == id && slot.abort();
    Ok(terminated || aborted)
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Free => "free",
        State::Starting => "starting",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Stopped => "stopped",
        State::Aborted => "aborted",
    }
}
