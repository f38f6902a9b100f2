//! What a running backup is: its entry in shared memory, the coordinator's session, and how a
//! command gets hold of it.

pub mod archive;
pub mod begin;
pub mod end;
pub mod handle;
pub mod keeper;
pub mod kept;
pub mod lease;
pub mod prior;
pub mod registry;
pub mod results;
pub mod session;
pub mod sizes;
pub mod table;
pub mod wal_ranges;
