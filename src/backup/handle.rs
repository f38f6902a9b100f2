//! A backup as the commands that fetch from it see it, on the coordinator and on a worker.

use std::cell::RefCell;
use std::rc::Rc;

use protocol::{BackupId, CommandKind, Lsn};

use crate::backup::registry::{self, Backup, Counters, Facts, State};
use crate::backup::{kept, session};
use crate::cluster::Layout;
use crate::error::{Error, Result};
use crate::pg::{guard, interrupt, role, segment, server};
use crate::stream::throttle;

/// A backup that this connection sends something of.
#[derive(Debug)]
pub struct Handle {
    /// What its connections count.
    pub counters: &'static Counters,
    /// Its name.
    pub id: BackupId,
    /// What START_BACKUP settled.
    pub facts: Facts,
    /// What decides which files it has.
    pub layout: Rc<Layout>,
    /// Where it was stopped, LSN and timeline, if only its WAL is to be fetched.
    pub stopped_at: Option<(Lsn, u32)>,
    /// Which attachment it belongs to, on the coordinator of a backup with a lease.
    attachment: Option<u32>,
}

/// Finds the backup that a command is about, joins it, and sends something of it. Without a name it is
/// the one that this session has started.
pub fn transfer<T>(
    id: Option<BackupId>,
    command: CommandKind,
    send: impl FnOnce(&Handle) -> Result<T>,
) -> Result<T> {
    kept::confirm()?;
    let own = session::with(|session| (session.id, Rc::clone(&session.layout)));
    let (id, layout) = match (own, id) {
        (Some(own), None) => own,
        (Some(own), Some(id)) if own.0 == id => own,
        (None, None) => return Err(Error::NoBackup { command }),
        (_, Some(id)) => (id, layout(&find(id)?)?),
    };
    let (backup, counters) = registry::enter(id)?;
    let attachment = backup.attachment(server::pid());
    let sent = guard::with_end(
        || {
            let facts = backup.facts.ok_or(Error::UnknownBackup(id))?;
            send(&Handle { counters, id, facts, layout, stopped_at: backup.stopped_at, attachment })
        },
        registry::leave,
    );
    if let Err(Error::TakenOver(_)) = sent {
        // Now it has been told.
        session::release();
    }
    sent
}

impl Handle {
    /// Whether the backup is stopped, with only its WAL to be fetched.
    pub fn is_stopped(&self) -> bool {
        self.stopped_at.is_some()
    }

    /// Serves interrupts, and ends the transfer if its backup was aborted.
    pub fn poll(&self) -> Result<()> {
        interrupt::check();
        if self.counters.is_aborted() {
            return Err(registry::find(self.id).map_or(Error::Aborted(self.id), |backup| backup.ended()));
        }
        match self.attachment {
            Some(attachment) if self.counters.attachments() != attachment => Err(Error::TakenOver(self.id)),
            _ => Ok(()),
        }
    }

    /// Fails once the standby has been promoted: the backup is worthless then, and it is better
    /// to say so early than at its end.
    pub fn check_not_promoted(&self) -> Result<()> {
        if self.facts.in_recovery && !server::in_recovery() { Err(Error::Promoted) } else { Ok(()) }
    }

    /// Waits until the backup's rate lets this many bytes go.
    pub fn throttle(&self, bytes: u64) -> Result<()> {
        let Some(rate) = self.facts.max_rate else { return Ok(()) };
        let until = throttle::reserve(self.counters.throttle(), interrupt::monotonic(), bytes, rate);
        loop {
            self.poll()?;
            let Some(wait) = throttle::remaining(until, interrupt::monotonic()) else {
                return Ok(());
            };
            interrupt::sleep(wait, interrupt::WaitEvent::Throttle);
        }
    }
}

/// Another session's backup, if this role may fetch from it.
fn find(id: BackupId) -> Result<Backup> {
    let backup = registry::find(id)
        .filter(|backup| !matches!(backup.state, State::Starting | State::Aborted))
        .ok_or(Error::UnknownBackup(id))?;
    check_role(&backup)?;
    Ok(backup)
}

/// Fails if a backup is not this role's to fetch from, nor to attach to.
pub fn check_role(backup: &Backup) -> Result<()> {
    if backup.owner.role != role::current() && !role::is_superuser() {
        return Err(Error::OtherRole(backup.id));
    }
    Ok(())
}

/// The layout of another session's backup, read once for all commands that name it.
fn layout(backup: &Backup) -> Result<Rc<Layout>> {
    thread_local! {
        static LAST: RefCell<Option<(BackupId, Rc<Layout>)>> = const { RefCell::new(None) };
    }
    let id = backup.id;
    let known = LAST.with_borrow(|last| {
        last.as_ref().filter(|(known, _)| *known == id).map(|(_, layout)| Rc::clone(layout))
    });
    if let Some(layout) = known {
        return Ok(layout);
    }
    let layout = backup
        .facts
        .and_then(|facts| segment::read(facts.layout_handle))
        .and_then(|bytes| Layout::decode(&bytes))
        .map(Rc::new)
        .ok_or(Error::UnknownBackup(id))?;
    LAST.set(Some((id, Rc::clone(&layout))));
    Ok(layout)
}
