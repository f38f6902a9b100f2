//! The kernel's page cache: what of a file is in it, and hints about the rest.
//!
//! A backup reads everything once. What it brings into the cache would push out what the server
//! works with, so it is let go again; what was there before stays.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::fs::{Advice, fadvise};

/// To ask about a gap of so many bytes between two parts costs less than to ask twice.
const GAP: u64 = 64 * 1024;

/// The byte ranges of a part of a file that are not in the page cache. `offset` is a multiple of
/// the page size. Nothing is known, and nothing returned, where the kernel does not say.
#[allow(clippy::single_range_in_vec_init)]
pub fn absent(file: &File, offset: u64, length: usize) -> Vec<Range<u64>> {
    absent_of(file, &[offset..offset + length as u64])
}

/// The same of several parts, which ascend and do not overlap; what lies between two that are close to each other
/// may be among it. To ask about all pages from the first to the last would cost more than to read some of them.
#[allow(unsafe_code)]
pub fn absent_of(file: &File, parts: &[Range<u64>]) -> Vec<Range<u64>> {
    let page = rustix::param::page_size();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Vec::new() };
    let floor = |at: u64| at / page as u64 * page as u64;
    let (offset, end) = (floor(first.start), last.end);
    let Ok(start) = libc::off_t::try_from(offset) else { return Vec::new() };
    let Some(length) = end.checked_sub(offset).and_then(|length| usize::try_from(length).ok()) else {
        return Vec::new();
    };
    if length == 0 {
        return Vec::new();
    }
    // SAFETY: a new mapping, of a length that is not zero; it is never read through.
    let address = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), start)
    };
    if address == libc::MAP_FAILED {
        return Vec::new();
    }
    let mut absent = Vec::new();
    let mut resident = Vec::new();
    let known = groups(parts).all(|group| {
        let start = floor(group.start);
        let (begin, length) = ((start - offset) as usize, (group.end - start) as usize);
        resident.clear();
        resident.resize(length.div_ceil(page), 0u8);
        // SAFETY: the group lies in the mapping, from the beginning of a page on; the vector has a byte for each page
        // of it.
        let answer =
            unsafe { libc::mincore(address.cast::<u8>().add(begin).cast(), length, resident.as_mut_ptr()) };
        absent.extend(ranges(&resident, start, page as u64));
        answer == 0
    });
    // SAFETY: the mapping made above, which nobody else knows of.
    unsafe { libc::munmap(address, length) };
    if known { absent } else { Vec::new() }
}

/// Parts, those that are close to each other as one.
fn groups(parts: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    let close = |one: &Range<u64>, next: &Range<u64>| next.start - one.end <= GAP;
    parts.chunk_by(close).map(|group| group[0].start..group[group.len() - 1].end)
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
    fn what_is_close_is_asked_for_at_once() {
        let parts = [0..8192, 8192 + GAP..16384 + GAP, 1 << 20..(1 << 20) + 8192];
        assert_eq!(groups(&parts).collect::<Vec<_>>(), [0..16384 + GAP, 1 << 20..(1 << 20) + 8192]);
        assert_eq!(groups(&[]).count(), 0);
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
        assert_eq!(absent_of(&file, &[0..8192, 40_960..65_536]), []);
        // A hole is in no cache.
        file.set_len(4 << 20).unwrap();
        let parts = [0..8192, 1 << 20..(1 << 20) + 8192, 3 << 20..(3 << 20) + 16384];
        assert_eq!(absent_of(&file, &parts), parts[1..]);
    }
}
