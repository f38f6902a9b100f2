//! What server and client must see alike: which files have pages, when a page's checksum is wrong,
//! and the checksums of files and of rows. Names no PostgreSQL function and does no I/O.

pub mod checksum;
pub mod names;
pub mod page;
pub mod relation;
pub mod rows;
