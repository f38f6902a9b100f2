//! The server side of pg_parallel_backup: START_BACKUP, SEND_FILE_LIST, SEND_FILES_CONTENT and
//! STOP_BACKUP as docs/protocol.md defines them.
//!
//! Imports run one way: `route`, then `command`, then `backup`, `cluster` and `stream`, then `pg`.

pub mod backup;
pub mod cluster;
pub mod command;
pub mod error;
pub mod pg;
pub mod route;
pub mod stream;

pgrx::pg_module_magic!(name, version);

/// Called by PostgreSQL when it loads the library.
#[pgrx::pg_guard]
#[allow(unsafe_code)]
pub extern "C-unwind" fn _PG_init() {
    route::load();
}
