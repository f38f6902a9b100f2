//! Latches.

/// A process's latch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waker(u32);

impl Waker {
    /// Of no process.
    pub const NOBODY: Self = Self(0);

    /// This process's own.
    pub fn own() -> Self {
        Self(super::process::pid())
    }

    /// Nobody waits here.
    pub fn wake(self) {}
}
