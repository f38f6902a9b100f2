//! One place that says whether the backup goes on: the first failure or a signal ends it for every
//! thread, wherever it waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::report;

/// A switch that can be thrown once and that poll(2) sees.
#[derive(Debug)]
pub struct Latch {
    set: AtomicBool,
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Latch {
    /// Not thrown yet.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { set: AtomicBool::new(false), reader, writer })
    }

    /// Throws it.
    pub fn set(&self) {
        if !self.set.swap(true, Ordering::SeqCst) {
            // The byte is never read, so that every waiter sees it. A pipe takes one byte.
            let _ = rustix::io::write(&self.writer, b"!");
        }
    }

    /// Whether it was thrown.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Readable once it was thrown.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// The end of the backup before its time.
#[derive(Debug)]
pub struct Abort {
    latch: Latch,
    cause: Mutex<Option<Error>>,
    cleanup_follows: AtomicBool,
    reported: AtomicBool,
}

/// Ends the backup if the thread that holds it panics: others may wait for what it will not do.
#[derive(Debug)]
pub struct PanicGuard<'a>(pub &'a Abort);

/// What is left to say of a panic, which has been reported where it happened.
pub fn panicked() -> Error {
    Error::local("backup failed because of an internal error")
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(panicked());
        }
    }
}

impl Abort {
    /// All is well so far.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            latch: Latch::new()?,
            cause: Mutex::new(None),
            cleanup_follows: AtomicBool::new(false),
            reported: AtomicBool::new(false),
        })
    }

    /// Ends the backup; the first cause is the one that will be reported.
    pub fn fail(&self, error: Error) {
        if error.kind() != Kind::Aborted {
            self.cause.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        self.latch.set();
    }

    /// Fails if the backup was ended.
    pub fn check(&self) -> Result<()> {
        if self.latch.is_set() { Err(Error::aborted()) } else { Ok(()) }
    }

    /// From now on there is something to clean up, and somebody who looks for the end of the backup.
    pub fn expect_cleanup(&self) {
        self.cleanup_follows.store(true, Ordering::SeqCst);
    }

    /// Whether it is enough to end the backup: before, the process can only exit.
    pub fn expects_cleanup(&self) -> bool {
        self.cleanup_follows.load(Ordering::SeqCst)
    }

    /// What ended it.
    pub fn cause(&self) -> Option<Error> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says why the backup ended, unless that was said.
    pub fn report(&self, error: &Error) {
        if !self.reported.swap(true, Ordering::SeqCst) {
            report::error(error);
        }
    }

    /// Readable once the backup was ended.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.latch.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_counts() {
        let abort = Abort::new().unwrap();
        assert!(abort.check().is_ok());
        abort.fail(Error::local("first"));
        abort.fail(Error::aborted());
        abort.fail(Error::local("second"));
        assert_eq!(abort.check().unwrap_err().kind(), Kind::Aborted);
        assert_eq!(abort.cause().unwrap().message(), "first");
    }
}
