//! Which process a thread is, and what it does for whom.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use protocol::BackupId;

loom::thread_local! {
    static PID: Cell<u32> = Cell::new(0);
}

// loom's threads take turns on one of the system's.
thread_local! {
    static ENGAGED: RefCell<BTreeMap<u32, BackupId>> = const { RefCell::new(BTreeMap::new()) };
}

/// Runs this thread as a process, to its end: what is registered for that is called.
pub fn run<T>(pid: u32, life: impl FnOnce() -> T) -> T {
    be(pid);
    let outcome = life();
    super::exit::leave();
    disengage();
    outcome
}

/// Makes this thread that process, which goes on after it.
pub fn be(pid: u32) {
    PID.with(|own| own.set(pid));
}

/// The process that this thread is.
pub fn pid() -> u32 {
    PID.with(Cell::get)
}

/// What this process begins to do now is for this backup, and for no other.
pub fn engage(id: BackupId) {
    ENGAGED.with_borrow_mut(|engaged| engaged.insert(pid(), id));
}

/// It does nothing for a backup any more.
pub fn disengage() {
    ENGAGED.with_borrow_mut(|engaged| engaged.remove(&pid()));
}

/// For which backup this process is doing something, as far as it has said so.
pub fn engaged(pid: u32) -> Option<BackupId> {
    ENGAGED.with_borrow(|engaged| engaged.get(&pid).copied())
}
