//! Every call into PostgreSQL, wrapped safe: the one address of `unsafe` and of what differs
//! between major versions.
//!
//! Each bindgen function is guarded by pgrx: an ERROR that it raises unwinds through Rust as a
//! panic and becomes an ERROR again at the entry that PostgreSQL called.

pub mod arguments;
pub mod backend;
pub mod backup;
pub mod checksum_stats;
pub mod control_file;
pub mod entry;
pub mod exit;
pub mod guard;
pub mod incremental;
pub mod interrupt;
pub mod latch;
pub mod node;
pub mod page_cache;
pub mod procedure;
pub mod progress;
pub mod read;
pub mod report;
pub mod role;
pub mod segment;
pub mod server;
pub mod settings;
mod shim;
pub mod shmem;
pub mod slot;
pub mod socket;
pub mod wal;
pub mod walsender;
pub mod wire;
pub mod worker;
