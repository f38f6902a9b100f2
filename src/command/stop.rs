//! STOP_BACKUP.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;
use std::time::Duration;

use protocol::command::StopBackup;
use protocol::id::to_hex;
use protocol::{BackupId, CommandKind, reply};

use crate::backup::archive;
use crate::backup::registry::{self, Counters};
use crate::backup::session::{self, Stopped};
use crate::backup::wal_ranges::wal_spans;
use crate::cluster::wal::WalRange;
use crate::error::{Error, Result};
use crate::pg::backup::BackupState;
use crate::pg::interrupt::{self, WaitEvent};
use crate::pg::progress::{self, Phase};
use crate::pg::{control_file, guard, report, role, server, wal, walsender};
use crate::stream::rows::Reply;

/// How long terminated transfers may take to end; one that waits for its client does so at once.
const ENDING: Duration = Duration::from_secs(5);

/// How often they are looked at.
const ENDING_LOOK: Duration = Duration::from_millis(10);

/// Ends this session's backup, waits for the archive, and returns what the copy needs. Sent again,
/// it waits and returns the same again.
pub fn run(command: &StopBackup) -> Result<()> {
    let own = session::with(|session| {
        let label_fits = command.label.as_ref().is_none_or(|label| *label == session.label_file);
        (session.counters, session.id, label_fits, session.stopped.clone())
    });
    let Some((counters, id, label_fits, stopped)) = own else {
        return Err(command.backup_id.map_or(Error::NoBackup { command: CommandKind::StopBackup }, not_here));
    };
    if let Some(other) = command.backup_id.filter(|other| *other != id) {
        return Err(not_here(other));
    }
    if !label_fits {
        return Err(Error::LabelMismatch);
    }
    walsender::set_state_backup();
    let stopped = match stopped {
        Some(stopped) => stopped,
        None => {
            end_transfers(id, &command.terminate_transfers);
            stop(id, counters)?
        }
    };
    if command.wait {
        progress::start(Phase::WaitWalArchive, None, 0);
        archive::wait(&stopped);
    }
    let label_file = session::with(|session| session.label_file.clone()).unwrap_or_default();
    send(&stopped, &label_file);
    let failures = stopped.totals.checksum_failures;
    if failures > 1 {
        report::warning(format!("{failures} total checksum verification failures"));
    }
    if failures > 0 { Err(Error::ChecksumFailures) } else { Ok(()) }
}

/// Why a backup that was named cannot be stopped here: another session's, or none at all.
fn not_here(id: BackupId) -> Error {
    match registry::find(id) {
        Some(_) => Error::NotCoordinator(id),
        None => Error::UnknownBackup(id),
    }
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
    let Some(mut state) = session::with(|session| session.state.take()).flatten() else {
        return Err(Error::NoBackup { command: CommandKind::StopBackup });
    };
    let stopped =
        guard::on_failure(|| finish(&mut state, control_file, id, counters), || session::abort(id))?;
    let stopped = Rc::new(stopped);
    let increment = session::with(|session| {
        session.stopped = Some(Rc::clone(&stopped));
        session.increment.take()
    });
    // Nothing more is listed.
    if let Some(increment) = increment.flatten() {
        increment.release();
    }
    Ok(stopped)
}

fn finish(
    state: &mut BackupState,
    control_file: Vec<u8>,
    id: BackupId,
    counters: &Counters,
) -> Result<Stopped> {
    state.stop();
    let start = (state.start_lsn(), state.start_timeline());
    let stop = (state.stop_lsn(), state.stop_timeline());
    let wal = WalRange::new(start, stop, wal::segment_size());
    let spans = wal_spans(&wal::timeline_history(stop.1), start, stop)?;
    let names = fs::read_dir("pg_wal").map_err(|error| Error::io("open directory", b"pg_wal", error))?;
    let wal_files = wal.list(names.map(|entry| {
        interrupt::check();
        let entry = entry.map_err(|error| Error::io("read directory", b"pg_wal", error))?;
        Ok(entry.file_name().into_vec())
    }))?;
    registry::stop(id, stop.0, stop.1);
    Ok(Stopped {
        wal,
        in_recovery: server::in_recovery(),
        control_file,
        spans,
        wal_files,
        totals: counters.totals(),
    })
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
