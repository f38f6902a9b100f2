//! The server's limits.

/// Bytes of a path. Shorter than PostgreSQL's: a label is copied a million times.
pub const MAX_PATH: usize = 16;

/// Backends that there can be.
pub fn max_backends() -> usize {
    4
}

/// This process.
pub fn pid() -> u32 {
    super::process::pid()
}
