//! A backup as the commands that fetch from it see it, on the coordinator and on a worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use protocol::{BackupId, CommandKind};

use crate::backup::registry::{self, Facts, Slot, State, Transfer};
use crate::backup::session;
use crate::cluster::Layout;
use crate::error::{Error, Result};
use crate::pg::{interrupt, role, segment, server};

/// A backup that this connection sends something of.
#[derive(Debug)]
pub struct Handle {
    /// Its slot.
    pub slot: &'static Slot,
    /// Its name.
    pub id: BackupId,
    /// What START_BACKUP settled.
    pub facts: Facts,
    /// What decides which files it has.
    pub layout: Rc<Layout>,
    transfer: Transfer,
}

impl Handle {
    /// Finds the backup that a command is about and joins it. Without a name it is the one that
    /// this session has started.
    pub fn open(id: Option<BackupId>, command: CommandKind) -> Result<Self> {
        let own = session::with(|session| (session.slot, session.id, Rc::clone(&session.layout)));
        let (slot, id, layout) = match (own, id) {
            (Some(own), None) => own,
            (Some(own), Some(id)) if own.1 == id => own,
            (None, None) => return Err(Error::NoBackup { command }),
            (_, Some(id)) => {
                let slot = find(id)?;
                (slot, id, layout(slot, id)?)
            }
        };
        let transfer = Transfer::enter(slot, id)?;
        Ok(Self { slot, id, facts: slot.facts(), layout, transfer })
    }

    /// Whether the backup is stopped, with only its WAL to be fetched.
    pub fn is_stopped(&self) -> bool {
        self.transfer.state() == State::Stopped
    }

    /// Serves interrupts, and ends the transfer if its backup was aborted.
    pub fn poll(&self) -> Result<()> {
        interrupt::check();
        if self.slot.state() == State::Aborted { Err(Error::Aborted(self.id)) } else { Ok(()) }
    }

    /// Fails once the standby has been promoted: the backup is worthless then, and it is better
    /// to say so early than at its end.
    pub fn check_not_promoted(&self) -> Result<()> {
        if self.facts.in_recovery && !server::in_recovery() { Err(Error::Promoted) } else { Ok(()) }
    }

    /// Waits until the backup's rate lets this many bytes go.
    pub fn throttle(&self, bytes: u64) -> Result<()> {
        let Some(rate) = self.facts.max_rate else { return Ok(()) };
        let until = crate::stream::throttle::reserve(self.slot.throttle(), interrupt::now(), bytes, rate);
        loop {
            self.poll()?;
            let Some(wait) = crate::stream::throttle::remaining(until, interrupt::now()) else {
                return Ok(());
            };
            interrupt::sleep(wait, interrupt::WaitEvent::Throttle);
        }
    }
}

/// Another session's backup, if this role may fetch from it.
fn find(id: BackupId) -> Result<&'static Slot> {
    let slot = registry::find(id)
        .filter(|slot| !matches!(slot.state(), State::Starting | State::Aborted))
        .ok_or(Error::UnknownBackup(id))?;
    if slot.owner_role() != role::current() && !role::is_superuser() {
        return Err(Error::OtherRole(id));
    }
    Ok(slot)
}

/// The layout of another session's backup, read once for all commands that name it.
fn layout(slot: &Slot, id: BackupId) -> Result<Rc<Layout>> {
    thread_local! {
        static LAST: RefCell<Option<(BackupId, Rc<Layout>)>> = const { RefCell::new(None) };
    }
    let known = LAST.with_borrow(|last| {
        last.as_ref().filter(|(known, _)| *known == id).map(|(_, layout)| Rc::clone(layout))
    });
    if let Some(layout) = known {
        return Ok(layout);
    }
    std::sync::atomic::fence(Ordering::SeqCst);
    let layout = segment::read(slot.facts().layout_handle)
        .and_then(|bytes| Layout::decode(&bytes))
        .map(Rc::new)
        .ok_or(Error::UnknownBackup(id))?;
    LAST.set(Some((id, Rc::clone(&layout))));
    Ok(layout)
}
