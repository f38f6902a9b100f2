//! The coordinator's side of a backup: what this session has started, and what STOP_BACKUP found.

use std::cell::RefCell;
use std::rc::Rc;

use protocol::BackupId;

use crate::backup::registry::{self, Counters, Totals};
use crate::backup::wal_ranges::WalSpan;
use crate::cluster::Layout;
use crate::cluster::wal::WalRange;
use crate::pg;
use crate::pg::backup::BackupState;
use crate::pg::incremental::Increment;
use crate::pg::segment::Segment;

/// A backup that this session has started.
#[derive(Debug)]
pub struct Session {
    /// What its connections count.
    pub counters: &'static Counters,
    /// Its name.
    pub id: BackupId,
    /// PostgreSQL's state of it, until STOP_BACKUP takes it.
    pub state: Option<BackupState>,
    /// What decides which files it has.
    pub layout: Rc<Layout>,
    /// Where workers read that.
    pub segment: Segment,
    /// What has changed since the prior backup, if only that is in this one.
    pub increment: Option<Rc<Increment>>,
    /// The content of backup_label.
    pub label_file: Vec<u8>,
    /// What STOP_BACKUP found, once it has ended the backup.
    pub stopped: Option<Rc<Stopped>>,
}

/// A stopped backup: what STOP_BACKUP returns however often it is sent.
#[derive(Debug)]
pub struct Stopped {
    /// What of pg_wal it needs.
    pub wal: WalRange,
    /// Whether the server was a standby when it was stopped.
    pub in_recovery: bool,
    /// pg_control's bytes.
    pub control_file: Vec<u8>,
    /// The manifest's WAL ranges.
    pub spans: Vec<WalSpan>,
    /// The WAL files that BASE_BACKUP's WAL option would send.
    pub wal_files: Vec<String>,
    /// The totals over all connections.
    pub totals: Totals,
}

thread_local! {
    static SESSION: RefCell<Option<Session>> = const { RefCell::new(None) };
}

/// Looks at this session's backup, if it has one. `look` must not raise an error.
pub fn with<T>(look: impl FnOnce(&mut Session) -> T) -> Option<T> {
    SESSION.with_borrow_mut(|session| session.as_mut().map(look))
}

/// Takes the session's backup out, for what may raise an error; to be put back by [`set`].
pub fn take() -> Option<Session> {
    SESSION.take()
}

/// Makes this the session's backup.
pub fn set(session: Session) {
    SESSION.set(Some(session));
}

/// Whether this session is between START_BACKUP and the end of its backup.
pub fn is_running() -> bool {
    with(|session| session.stopped.is_none()).unwrap_or(false)
}

/// Forgets the session's backup and gives back what it holds. Does not leave backup mode.
pub fn release() {
    if let Some(session) = take() {
        session.give_back();
    }
}

/// Leaves backup mode, if this session is in it, and gives back what the backup holds, whether it has
/// come as far as being the session's or not.
pub fn abort(id: BackupId) {
    pg::backup::abort();
    match take() {
        Some(session) => session.give_back(),
        None => registry::release(id),
    }
}

impl Session {
    fn give_back(self) {
        registry::release(self.id);
        self.segment.release();
        if let Some(increment) = self.increment {
            increment.release();
        }
    }
}
