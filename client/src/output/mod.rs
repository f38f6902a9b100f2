//! Where a backup goes. No connection is known here.

pub mod claim;
pub mod cleanup;
pub mod sync;
pub mod target;
