//! The functions behind the extension's SQL: the view of backups, and their cancellation. What
//! declares them is sql/pg_parallel_backup--*.sql.

// The wrappers that pgrx generates are unsafe functions, the one exception to the address of
// unsafe code: they cannot be generated elsewhere.
#![allow(unsafe_code)]

use pgrx::iter::TableIterator;
use pgrx::prelude::*;
use protocol::path::encode;
use protocol::{BackupId, CommandError};

use crate::backup::lease::Lease;
use crate::backup::registry::{self, State};
use crate::error::{Error, Result};
use crate::pg::arguments::Arguments;
use crate::pg::{backend, interrupt, report};

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
        name!(lease, Option<i32>),
        name!(lease_left, Option<i32>),
        name!(keeper, Option<i32>),
    ),
> {
    let now = interrupt::monotonic();
    TableIterator::new(registry::reports().into_iter().map(move |report| {
        let backup = report.backup;
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let pid = |pid: u32| i32::try_from(pid).unwrap_or_default();
        let left = |lease: Lease| lease.left(now).map(|left| left.max(0) / 1_000_000);
        (
            backup.id.to_string(),
            backup.coordinator().map(pid),
            pg_sys::Oid::from(backup.owner.role),
            backend::text_in_server_encoding(backup.label()),
            backup.facts.map(|facts| facts.start_lsn.to_string()),
            backup.facts.map(|facts| i64::from(facts.start_timeline)),
            state_name(backup.state),
            backup.started_at,
            i32::try_from(report.workers).unwrap_or(i32::MAX),
            count(report.totals.files),
            count(report.sent),
            report.total.map(count),
            count(report.totals.checksum_failures),
            backup.facts.and_then(|facts| facts.max_rate).and_then(|rate| i32::try_from(rate).ok()),
            backup.lease.and_then(|lease| i32::try_from(lease.seconds).ok()),
            backup.lease.and_then(left).and_then(|seconds| i32::try_from(seconds).ok()),
            backup.lease.and_then(|lease| lease.keeper).map(|keeper| pid(keeper.pid)),
        )
    }))
}

/// Aborts a backup: its coordinator is terminated, and who is sending something of it. With
/// pg_terminate_backend's rights; 42704 where there is no such backup.
#[pg_extern(sql = false)]
fn parallel_backup_cancel_backup(info: pg_sys::FunctionCallInfo) -> bool {
    // STRICT: never NULL.
    match cancel(&Arguments::of(info).text(0).unwrap_or_default()) {
        Ok(done) => done,
        Err(error) => report::raise(&error),
    }
}

/// Rights are looked up first, which reads the catalog; what they are then used on is looked at once
/// more, under the registry's lock.
fn cancel(text: &[u8]) -> Result<bool> {
    let id: BackupId = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| CommandError::UnknownBackup(encode(text)))?;
    let (backup, transfers) = registry::members(id).ok_or(Error::UnknownBackup(id))?;
    if !backend::may_execute_terminate() {
        return Err(Error::CannotTerminate);
    }
    // Those of a coordinator that is gone, too: its role's backup is not for others to abort.
    if !backend::may_terminate(backup.owner.login_role) {
        return Err(Error::CannotCancel(id));
    }
    // A transfer of a role that this one may not terminate ends by itself, at its next step.
    let transfers: Vec<_> =
        transfers.into_iter().filter(|member| backend::may_terminate(member.login_role)).collect();
    Ok(registry::cancel(id, &transfers))
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
