//! PostgreSQL's incremental backups, from 17: the manifest of a prior backup, and which blocks of a file have
//! changed since then, as WAL summaries say.

#[cfg(any(feature = "pg15", feature = "pg16"))]
mod absent;
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
mod native;

#[cfg(any(feature = "pg15", feature = "pg16"))]
pub use absent::{Increment, Manifest, Methods, check_summaries, uploaded};
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub use native::{Increment, Manifest, Methods, check_summaries, uploaded};

/// Whether this server has them.
pub const IS_SUPPORTED: bool = cfg!(not(any(feature = "pg15", feature = "pg16")));

/// How a file goes into an incremental backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method<'a> {
    /// As in a full one.
    Whole,
    /// Some of its blocks.
    Blocks {
        /// Their numbers within the file, ascending.
        blocks: &'a [u32],
        /// The least that the file has once it is put together, in blocks.
        truncation_block_length: u32,
    },
}

/// What UPLOAD_MANIFEST has left behind in this session.
#[derive(Debug)]
pub enum Uploaded {
    /// Nothing.
    Nothing,
    /// It cannot be known: the patch is one that does not hand it over.
    NotHandedOver,
    /// The manifest of a prior backup.
    Manifest(Increment),
}
