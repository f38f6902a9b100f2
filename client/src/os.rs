//! What the operating system offers and no safe crate has.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

/// Has a part of a file written to disk soon, without waiting for it: the fsync at the end then has
/// little left to do. No promise, so that failure does not matter.
pub fn start_writeback(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (libc::off64_t::try_from(offset), libc::off64_t::try_from(length)) else {
        return;
    };
    // SAFETY: the descriptor is open, and the call reads and writes no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}
