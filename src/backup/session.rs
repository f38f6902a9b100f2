//! The coordinator's side of a backup: what this session has started or attached to, and what STOP_BACKUP
//! found.

use std::cell::RefCell;
use std::rc::Rc;

use protocol::BackupId;

use crate::backup::registry::{self, Counters};
use crate::backup::results::Stopped;
use crate::cluster::Layout;
use crate::pg;
use crate::pg::backup::BackupState;
use crate::pg::incremental::Increment;
use crate::pg::segment::Segment;

/// A backup that this session is the coordinator of.
#[derive(Debug)]
pub struct Session {
    /// Its name.
    pub id: BackupId,
    /// Who is in backup mode.
    pub holder: Holder,
    /// What decides which files it has.
    pub layout: Rc<Layout>,
    /// What has changed since the prior backup, if only that is in this one.
    pub increment: Option<Rc<Increment>>,
    /// The content of backup_label.
    pub label_file: Vec<u8>,
    /// What STOP_BACKUP found, once it has ended the backup.
    pub stopped: Option<Rc<Stopped>>,
}

/// Who is in backup mode.
#[derive(Debug)]
pub enum Holder {
    /// This session.
    Session {
        /// What its connections count.
        counters: &'static Counters,
        /// PostgreSQL's state of it, until STOP_BACKUP takes it.
        state: Option<BackupState>,
        /// Where workers read the layout.
        segment: Segment,
    },
    /// A keeper: the backup has a lease.
    Keeper,
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

/// The session's backup, if a keeper holds it.
pub fn kept() -> Option<BackupId> {
    with(|session| matches!(session.holder, Holder::Keeper).then_some(session.id)).flatten()
}

/// Forgets the session's backup and gives back what it holds. Does not leave backup mode; a keeper does, by
/// itself.
pub fn release() {
    if let Some(session) = take() {
        session.give_back();
    }
}

/// Leaves backup mode, if this session is in it, and gives back what the backup holds, whether it has
/// come as far as being the session's or not.
pub fn abort(id: BackupId) {
    pg::backup::abort();
    release();
    registry::release(id);
}

impl Session {
    fn give_back(self) {
        registry::release(self.id);
        if let Holder::Session { segment, .. } = self.holder {
            segment.release();
        }
        if let Some(increment) = self.increment {
            increment.release();
        }
    }
}
