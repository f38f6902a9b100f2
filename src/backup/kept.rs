//! The coordinator's side of a backup that a keeper holds: it asks, and waits. Every wait can be cancelled, and
//! ends when another session attaches.

use std::rc::Rc;
use std::time::Duration;

use protocol::BackupId;

use crate::backup::begin::Wanted;
use crate::backup::handle;
use crate::backup::keeper::{Order, process_name};
use crate::backup::lease::Terms;
use crate::backup::registry::{self, Backup, Counters, Facts, Reserved, State};
use crate::backup::results::{Started, Stopped};
use crate::backup::session;
use crate::cluster::Layout;
use crate::error::{Error, Result};
use crate::pg::interrupt::{self, WaitEvent};
use crate::pg::{segment, worker};

/// How long it waits at most before it looks by itself: it is woken when something has changed.
const LOOK: Duration = Duration::from_secs(1);

/// How often it looks where nobody wakes it.
const SHORT_LOOK: Duration = Duration::from_millis(10);

/// A backup that a keeper holds, as START_BACKUP returns it.
#[derive(Debug)]
pub struct Kept {
    /// What START_BACKUP has settled.
    pub facts: Facts,
    /// What decides which files it has.
    pub layout: Layout,
    /// What it has found out.
    pub started: Started,
    /// Seconds of its lease.
    pub lease: u32,
}

/// Takes a place for a backup that this session starts, if need be that of a light lease which nobody is attached to.
pub fn reserve(id: BackupId, label: &[u8], lease: Option<Terms>) -> Result<&'static Counters> {
    loop {
        match registry::reserve(id, label, interrupt::now(), lease)? {
            Reserved::Here(counters) => return Ok(counters),
            Reserved::InPlaceOf(other) => {
                // Whoever is quicker has the place then, and this one looks for another.
                while registry::find(other).is_some() {
                    interrupt::sleep(SHORT_LOOK, WaitEvent::Keeper);
                }
            }
        }
    }
}

/// Has a keeper start a backup, whose place this session has reserved. `estimating` is called when the
/// checkpoint is over and sizes are looked for.
pub fn start(id: BackupId, wanted: Wanted, estimating: impl FnOnce()) -> Result<Kept> {
    let order = Order { id, wanted }.encode();
    let worker = worker::start(&process_name(id), &order).ok_or(Error::NoProcess)?;
    let mut estimating = Some(estimating);
    loop {
        let ended = worker.has_ended();
        let backup = registry::kept(id)?;
        if backup.state != State::Starting {
            return read(&backup);
        }
        if ended {
            return Err(Error::KeeperNotStarted);
        }
        if backup.lease.is_some_and(|lease| lease.estimating)
            && let Some(estimating) = estimating.take()
        {
            estimating();
        }
        interrupt::sleep(LOOK, WaitEvent::Keeper);
    }
}

/// Makes this session the coordinator of a backup that has a lease.
pub fn attach(id: BackupId) -> Result<Kept> {
    let attach = || {
        handle::check_role(&registry::find(id).ok_or(Error::LeaseGone(id))?)?;
        read(&registry::attach(id)?)
    };
    let attached = attach();
    if attached.is_err() {
        if session::kept() == Some(id) {
            // What this session had is over.
            session::release();
        }
        registry::release(id);
    }
    attached
}

/// Asks for the backup to be stopped, and waits until it is.
pub fn stop(id: BackupId) -> Result<Rc<Stopped>> {
    registry::ask_to_stop(id)?;
    loop {
        let backup = registry::kept(id)?;
        let lease = backup.lease.ok_or(Error::UnknownBackup(id))?;
        match backup.state {
            State::Stopped => {
                let stopped = lease.stopped.and_then(segment::read);
                let stopped = stopped.and_then(|bytes| Stopped::decode(&bytes));
                return stopped.map(Rc::new).ok_or(Error::Aborted(id));
            }
            State::Running => return Err(lease.told.error().unwrap_or(Error::Aborted(id))),
            State::Free | State::Starting | State::Stopping | State::Aborted => {}
        }
        interrupt::sleep(LOOK, WaitEvent::Keeper);
    }
}

/// Whether the keeper still waits for the archive.
pub fn is_archiving(id: BackupId) -> Result<bool> {
    registry::kept(id).map(|backup| backup.lease.is_some_and(|lease| !lease.archived))
}

/// Gives this session's backup up, and waits until its keeper has nothing of it any more.
pub fn release(id: BackupId) {
    session::release();
    while registry::find(id).is_some_and(|backup| !backup.abandoned) {
        interrupt::sleep(SHORT_LOOK, WaitEvent::Keeper);
    }
}

/// Fails if this session has lost its backup since it last heard of it, and forgets it then.
pub fn confirm() -> Result<()> {
    match session::kept().map(registry::kept) {
        Some(Err(error)) => {
            session::release();
            Err(error)
        }
        Some(Ok(_)) | None => Ok(()),
    }
}

fn read(backup: &Backup) -> Result<Kept> {
    let read = || {
        let (facts, lease) = (backup.facts?, backup.lease?);
        let layout = Layout::decode(&segment::read(facts.layout_handle)?)?;
        let started = Started::decode(&segment::read(lease.started?)?)?;
        Some(Kept { facts, layout, started, lease: lease.seconds })
    };
    // Its keeper has ended meanwhile.
    read().ok_or(Error::Aborted(backup.id))
}
