//! The kernel's page cache: what of a file is in it, and hints about the rest.
//!
//! A backup reads everything once. What it brings into the cache would push out what the server
//! works with, so it is let go again; what was there before stays.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::fs::{Advice, fadvise};

/// The byte ranges of a part of a file that are not in the page cache. `offset` is a multiple of
/// the page size. Nothing is known, and nothing returned, where the kernel does not say.
#[allow(unsafe_code)]
pub fn absent(file: &File, offset: u64, length: usize) -> Vec<Range<u64>> {
    let page = rustix::param::page_size();
    let Ok(start) = libc::off_t::try_from(offset) else { return Vec::new() };
    let mut resident = vec![0u8; length.div_ceil(page)];
    // SAFETY: the mapping is made for a length that is not zero, never read through, and unmapped
    // here; the vector has a byte for each page of it.
    let known = length > 0
        && unsafe {
            let address = libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                start,
            );
            address != libc::MAP_FAILED && {
                let answer = libc::mincore(address, length, resident.as_mut_ptr());
                libc::munmap(address, length);
                answer == 0
            }
        };
    if known { ranges(&resident, offset, page as u64) } else { Vec::new() }
}

/// Lets pages go that nobody else has taken up. Pages that are still on their way through a socket
/// stay.
pub fn let_go(file: &File, ranges: &[Range<u64>]) {
    for range in ranges {
        // A hint: where it is not taken, the cache holds what it holds.
        let _ = fadvise(file, range.start, NonZeroU64::new(range.end - range.start), Advice::DontNeed);
    }
}

/// Has the kernel read a part of a file in the background.
pub fn will_need(file: &File, offset: u64, length: u64) {
    let _ = fadvise(file, offset, NonZeroU64::new(length), Advice::WillNeed);
}

/// Runs of pages whose lowest bit is not set, as byte ranges.
fn ranges(resident: &[u8], offset: u64, page: u64) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (at, _) in (0u64..).zip(resident).filter(|(_, flags)| **flags & 1 == 0) {
        let start = offset + at * page;
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end += page,
            _ => ranges.push(start..start + page),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn runs_of_absent_pages() {
        assert_eq!(ranges(&[1, 0, 0, 1, 0], 8192, 4096), [12288..20480, 24576..28672]);
        assert_eq!(ranges(&[1, 1], 0, 4096), []);
    }

    #[test]
    fn a_file_that_was_just_written_is_in_the_cache() {
        let path = std::env::temp_dir().join(format!("pg_parallel_backup_cache_{}", std::process::id()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(&[7; 64 * 1024]).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(absent(&file, 0, 64 * 1024), []);
        assert_eq!(absent(&file, 0, 0), []);
    }
}
