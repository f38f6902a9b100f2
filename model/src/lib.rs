//! The registry of backups, as the extension has it, on a shared memory that loom watches: it runs a model again and
//! again, until each order of steps and each value that an atomic may be seen to have has come up.
//!
//! The sources are the extension's own files, not copies. What is here in place of PostgreSQL is the least that they ask
//! of it: [`pg`]. A thread is a process.

#[path = "../../src/backup"]
pub mod backup {
    //! The extension's `backup`, as far as it is modelled.
    pub mod lease;
    pub mod registry;
    pub mod table;
}
#[path = "../../src/error.rs"]
pub mod error;
pub mod pg;
#[path = "../../src/stream"]
pub mod stream {
    //! The extension's `stream`, as far as it is modelled.
    pub mod throttle;
}
