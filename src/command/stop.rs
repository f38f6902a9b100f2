//! STOP_BACKUP, and with RELEASE the end of a backup that has been stopped, or need not be.

use std::rc::Rc;
use std::time::Duration;

use protocol::command::StopBackup;
use protocol::id::to_hex;
use protocol::{BackupId, CommandKind, reply};

use crate::backup::registry::{self, Counters};
use crate::backup::results::Stopped;
use crate::backup::session::{self, Holder};
use crate::backup::{archive, end, kept};
use crate::error::{Error, Result};
use crate::pg::backup::BackupState;
use crate::pg::interrupt::{self, WaitEvent};
use crate::pg::progress::{self, Phase};
use crate::pg::{control_file, guard, report, role, walsender};
use crate::stream::rows::Reply;

/// How long terminated transfers may take to end; one that waits for its client does so at once.
const ENDING: Duration = Duration::from_secs(5);

/// How often they are looked at.
const ENDING_LOOK: Duration = Duration::from_millis(10);

/// Ends this session's backup, waits for the archive, and returns what the copy needs. Sent again,
/// it waits and returns the same again.
pub fn run(command: &StopBackup) -> Result<()> {
    let id = find(command.backup_id)?;
    let own = session::with(|session| {
        let label_fits = command.label.as_ref().is_none_or(|label| *label == session.label_file);
        let counters = match &session.holder {
            Holder::Session { counters, .. } => Some(*counters),
            Holder::Keeper => None,
        };
        (counters, label_fits, session.stopped.clone(), session.label_file.clone())
    });
    let Some((counters, label_fits, stopped, label_file)) = own else { return Err(no_backup()) };
    if !label_fits {
        return Err(Error::LabelMismatch);
    }
    walsender::set_state_backup();
    let stopped = match (stopped, counters) {
        (Some(stopped), _) => stopped,
        (None, Some(counters)) => {
            end_transfers(id, &command.terminate_transfers);
            stop(id, counters)?
        }
        (None, None) => {
            let left_behind = registry::left_behind(id);
            end_transfers(id, &[&command.terminate_transfers[..], &left_behind].concat());
            told(kept::stop(id))?
        }
    };
    let increment = session::with(|session| {
        session.stopped = Some(Rc::clone(&stopped));
        session.increment.take()
    });
    // Nothing more is listed.
    if let Some(increment) = increment.flatten() {
        increment.release();
    }
    if command.wait {
        progress::start(Phase::WaitWalArchive, None, 0);
        let look = counters.is_none().then_some(|| kept::is_archiving(id).map(|busy| !busy));
        told(archive::wait(&stopped, look))?;
    }
    send(&stopped, &label_file);
    let failures = stopped.totals.checksum_failures;
    if failures > 1 {
        report::warning(format!("{failures} total checksum verification failures"));
    }
    if failures > 0 { Err(Error::ChecksumFailures) } else { Ok(()) }
}

/// Gives this session's backup up.
pub fn release(id: Option<BackupId>) -> Result<()> {
    let id = find(id)?;
    if session::kept().is_some() {
        kept::release(id);
    } else {
        session::abort(id);
    }
    Ok(())
}

/// This session's backup, which has to be the one that is named, if one is.
fn find(named: Option<BackupId>) -> Result<BackupId> {
    kept::confirm()?;
    match (session::with(|session| session.id), named) {
        (Some(own), None) => Ok(own),
        (Some(own), Some(id)) if own == id => Ok(own),
        (_, Some(id)) => Err(not_here(id)),
        (None, None) => Err(no_backup()),
    }
}

fn no_backup() -> Error {
    Error::NoBackup { command: CommandKind::StopBackup }
}

/// Why a backup that was named cannot be stopped here: another session's, or none at all.
fn not_here(id: BackupId) -> Error {
    match registry::find(id) {
        Some(_) => Error::NotCoordinator(id),
        None => Error::UnknownBackup(id),
    }
}

/// A session that hears while it waits that it has lost its backup has been told.
fn told<T>(waited: Result<T>) -> Result<T> {
    if waited.is_err() && kept::confirm().is_err() {
        session::release();
    }
    waited
}

/// Ends transfers of connections that the client has lost, which would otherwise refuse the stop until the
/// server found that out by itself. They need a moment; what takes longer is reported as any transfer.
fn end_transfers(id: BackupId, pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    let ending = registry::terminate_transfers(id, pids, role::is_superuser());
    let mut looks = ENDING.as_millis() / ENDING_LOOK.as_millis();
    while looks > 0 && registry::is_sending(id, &ending) {
        interrupt::sleep(ENDING_LOOK, WaitEvent::Transfers);
        looks -= 1;
    }
}

/// Leaves backup mode. Until that is tried, a failure leaves the backup running; after, it is over.
fn stop(id: BackupId, counters: &Counters) -> Result<Rc<Stopped>> {
    registry::begin_stop(id)?;
    // The last file that is read, and before the backup ends: on a standby its minimum recovery
    // point is what says that every other file is older.
    let control_file = guard::on_failure(control_file::read, || registry::resume(id))?;
    let Some(mut state) = session::with(|session| match &mut session.holder {
        Holder::Session { state, .. } => state.take(),
        Holder::Keeper => None,
    })
    .flatten() else {
        return Err(no_backup());
    };
    let finish = |state: &mut BackupState| {
        let stopped = end::leave(state, control_file, counters)?;
        registry::stop(id, stopped.wal.stop, stopped.wal.stop_timeline);
        Ok(Rc::new(stopped))
    };
    guard::on_failure(|| finish(&mut state), || session::abort(id))
}

fn send(stopped: &Stopped, label_file: &[u8]) {
    let wal = &stopped.wal;
    let mut sets = Reply::default();
    sets.row(reply::STOP, &[wal.stop.to_string(), wal.stop_timeline.to_string()].map(Some));
    sets.row(reply::CONTROL_FILE, &[Some(to_hex(&stopped.control_file))]);
    let mut set = sets.begin(reply::WAL_RANGES);
    for span in &stopped.spans {
        set.row(&[span.timeline.to_string(), span.start.to_string(), span.end.to_string()].map(Some));
    }
    set.end();
    let mut set = sets.begin(reply::WAL_FILES);
    for file in &stopped.wal_files {
        set.row(&[Some(file)]);
    }
    set.end();
    let totals = stopped.totals;
    let counts = [totals.files, totals.bytes, totals.checksum_failures].map(|count| count.to_string());
    let [files, bytes, failures] = counts.each_ref().map(|count| Some(count.as_bytes()));
    sets.row(reply::TOTALS, &[Some(label_file), files, bytes, failures]);
}
