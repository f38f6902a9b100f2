//! Reading of one file into several places at once.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;

/// Reads what is at `offset` into the places, one after the other, by one system call: fewer bytes
/// than they take at the end of the file, and wherever else the kernel stops.
#[allow(unsafe_code)]
pub fn read_at(file: &File, places: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
    let most = i32::try_from(places.len()).unwrap_or(i32::MAX);
    let offset = libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
    // SAFETY: an IoSliceMut is an iovec by its documentation, writable for its length.
    let count = unsafe { libc::preadv(file.as_raw_fd(), places.as_mut_ptr().cast(), most, offset) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
