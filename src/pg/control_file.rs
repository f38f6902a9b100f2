//! `global/pg_control`, read whole and never torn.

use std::mem::offset_of;

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use crc_fast::checksum;
use pgrx::pg_sys;

use crate::error::{Error, Result};
use crate::pg::shim;

/// Where the server keeps it, relative to the data directory.
const PATH: &str = "global/pg_control";

/// Reads the control file under ControlFileLock, which every writer of it holds, and verifies its
/// CRC.
#[allow(unsafe_code)]
pub fn read() -> Result<Vec<u8>> {
    // SAFETY: the lock is there once shared memory is. Nothing between acquire and release can raise
    // an error or look at interrupts: it is a file read by Rust.
    let content = unsafe {
        let lock = shim::ppb_control_file_lock();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        let content = std::fs::read(PATH);
        pg_sys::LWLockRelease(lock);
        content
    };
    let content = content.map_err(|error| Error::io("read file", PATH.as_bytes(), error))?;
    let crc_at = offset_of!(pg_sys::ControlFileData, crc);
    let stored = content.get(crc_at..crc_at + 4).and_then(|bytes| bytes.try_into().ok());
    match stored.map(u32::from_ne_bytes) {
        Some(stored) if u64::from(stored) == checksum(Crc32Iscsi, &content[..crc_at]) => Ok(content),
        _ => Err(Error::ControlFileCrc),
    }
}
