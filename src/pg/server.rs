//! What a server is: facts that do not change while it runs, and whether it is in recovery.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pgrx::pg_sys;

use crate::cluster::names::NameRules;
use crate::cluster::page::{BLOCK_SIZE, SEGMENT_BLOCKS};
use crate::cluster::walk::Walk;
use crate::cluster::{Layout, Tablespace};

// Pages are verified by these: a server built otherwise needs a build of its own.
const _: () = assert!(BLOCK_SIZE == pg_sys::BLCKSZ as usize);
const _: () = assert!(SEGMENT_BLOCKS == pg_sys::RELSEG_SIZE);

/// The directories that BASE_BACKUP of this version puts into pg_wal (`sendDir`).
pub const WAL_DIRECTORIES: &[&[u8]] = &[
    b"archive_status",
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    b"summaries",
];

/// How BASE_BACKUP of this version reads the names of files (basebackup.c, reinit.c).
const NAMES: NameRules = NameRules::of_server(pg_sys::PG_VERSION_NUM);

/// What decides which files a backup with these tablespaces has.
pub fn layout(tablespaces: Vec<Tablespace>) -> Layout {
    Layout::new(tablespaces, version_directory(), NAMES)
}

/// How to walk the cluster: the data directory is a backend's working directory.
pub fn walk(layout: &Layout) -> Walk<'_> {
    Walk { root: Path::new("."), layout, directory_mode: directory_mode(), wal_directories: WAL_DIRECTORIES }
}

/// The longest path, and the longest label, in bytes.
pub const MAX_PATH: usize = pg_sys::MAXPGPATH as usize;

/// The directory in each tablespace that belongs to this version
/// (TABLESPACE_VERSION_DIRECTORY).
fn version_directory() -> Vec<u8> {
    format!("PG_{}_{}", pg_sys::PG_MAJORVERSION_NUM, pg_sys::CATALOG_VERSION_NO).into_bytes()
}

/// The data directory. It is also a backend's working directory.
#[allow(unsafe_code)]
pub fn data_directory() -> PathBuf {
    // SAFETY: set before any backend starts.
    let path = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    PathBuf::from(OsStr::from_bytes(path.to_bytes()))
}

/// The mode of directories that the server makes: 0700, or 0750 with group access.
#[allow(unsafe_code)]
pub fn directory_mode() -> u32 {
    // SAFETY: set before any backend starts.
    unsafe { pg_sys::data_directory_mode as u32 & 0o7777 }
}

/// The system identifier.
#[allow(unsafe_code)]
pub fn system_identifier() -> u64 {
    // SAFETY: reads the control file's copy in shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// Whether the cluster has page checksums.
#[allow(unsafe_code)]
pub fn data_checksums() -> bool {
    // SAFETY: reads the control file's copy in shared memory.
    unsafe { pg_sys::DataChecksumsEnabled() }
}

/// Whether the server is a standby, or replays WAL for another reason.
#[allow(unsafe_code)]
pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// How many backends there can be at once. Known once libraries may ask for shared memory.
#[allow(unsafe_code)]
pub fn max_backends() -> usize {
    // SAFETY: reads a static of the postmaster.
    usize::try_from(unsafe { pg_sys::MaxBackends }).unwrap_or(0)
}

/// This process.
#[allow(unsafe_code)]
pub fn pid() -> u32 {
    // SAFETY: reads a static.
    unsafe { pg_sys::MyProcPid as u32 }
}

/// Bytes from a strong random source; `None` if that fails.
#[allow(unsafe_code)]
pub fn random_bytes() -> Option<[u8; 16]> {
    let mut bytes = [0u8; 16];
    // SAFETY: fills exactly the buffer.
    let filled = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    filled.then_some(bytes)
}
