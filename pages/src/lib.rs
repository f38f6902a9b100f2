//! What server and client must see alike: which files have pages, when a page's checksum is wrong,
//! and digests. Names no PostgreSQL function and does no I/O.

pub mod digest;
pub mod names;
pub mod page;
pub mod relation;
