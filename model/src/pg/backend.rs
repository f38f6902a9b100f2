//! Signals.

use std::cell::RefCell;

use protocol::BackupId;

// loom's threads take turns on one of the system's.
thread_local! {
    static SIGNALLED: RefCell<Vec<(u32, Option<BackupId>)>> = const { RefCell::new(Vec::new()) };
}

/// Notes that the process was terminated, and what it was doing.
pub fn terminate(pid: u32) {
    SIGNALLED.with_borrow_mut(|signalled| signalled.push((pid, super::process::engaged(pid))));
}

/// Who was terminated since this was asked last, and for which backup each was at work then.
pub fn signalled() -> Vec<(u32, Option<BackupId>)> {
    SIGNALLED.take()
}
