//! What server and client must see alike: which files have pages, and when a page's checksum is
//! wrong. Names no PostgreSQL function and does no I/O.

pub mod names;
pub mod page;
pub mod relation;
