//! What a running backup is: its entry in shared memory, the coordinator's session, and how a
//! command gets hold of it.

pub mod archive;
pub mod handle;
pub mod prior;
pub mod registry;
pub mod session;
pub mod table;
pub mod wal_ranges;
