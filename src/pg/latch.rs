//! Waking another process that waits on its latch.

use pgrx::pg_sys;

/// The latch of a process, as a value that can lie in shared memory.
///
/// It is that of the process's PGPROC, in the main segment, which is mapped at the same address
/// everywhere and for good. Once the process has ended another may have the latch: who is woken for
/// nothing looks, and waits again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waker(usize);

impl Waker {
    /// Of no process.
    pub const NOBODY: Self = Self(0);

    /// This process's own.
    #[allow(unsafe_code)]
    pub fn own() -> Self {
        // SAFETY: reads a static, which points to the PGPROC's latch as long as the process has one, and to
        // its own memory before and after, where nobody else may look.
        unsafe {
            let shared = &raw mut (*pg_sys::MyProc).procLatch;
            if std::ptr::eq(pg_sys::MyLatch, shared) { Self(shared as usize) } else { Self::NOBODY }
        }
    }

    /// Wakes the process. Raises no error and takes no lock.
    #[allow(unsafe_code)]
    pub fn wake(self) {
        if self != Self::NOBODY {
            // SAFETY: a latch of the main shared memory segment.
            unsafe { pg_sys::SetLatch(self.0 as *mut pg_sys::Latch) }
        }
    }
}
