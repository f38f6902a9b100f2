//! Leaves the page cache as the server's work has filled it.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::rc::Rc;

use crate::pg::page_cache;

/// How far ahead of a transfer, at least, a file is looked at, and read in the background where it
/// is cold. Farther than the kernel reads ahead by itself, so that what that brings in is not taken
/// for the server's. Windows end at multiples of it: the kernel lets go whole folios only, which
/// must not lie across two windows.
pub const AHEAD: u64 = 2 * 1024 * 1024;

/// Windows of files that are kept for a while after they went out: a page that is still on its way
/// through a socket cannot be let go. Together they are more than a socket's buffer holds.
const KEPT: usize = 4;

/// Looks at what a transfer is about to bring into the page cache, and lets it go afterwards.
#[derive(Debug, Default)]
pub struct CacheKeeper {
    /// Up to where the file that is being sent was looked at.
    looked: Option<(Rc<File>, u64)>,
    behind: VecDeque<(Rc<File>, Vec<Range<u64>>)>,
}

impl CacheKeeper {
    /// Before a part of a file is read, of which as much as up to `end` will be. Parts of a file
    /// come in order.
    pub fn before(&mut self, file: &Rc<File>, part: Range<u64>, end: u64) {
        let from = match &self.looked {
            Some((known, looked)) if Rc::ptr_eq(known, file) => *looked,
            _ => part.start,
        };
        if from >= part.end {
            return;
        }
        let to = (part.end + AHEAD).next_multiple_of(AHEAD).min(end);
        self.looked = Some((Rc::clone(file), to));
        let absent = page_cache::absent(file, from, usize::try_from(to - from).unwrap_or(0));
        if absent.is_empty() {
            return;
        }
        if to > part.end {
            page_cache::will_need(file, part.end, to - part.end);
        }
        self.behind.push_back((Rc::clone(file), absent));
        while self.behind.len() > KEPT {
            self.let_one_go();
        }
    }

    /// The same before parts of a file that lie scattered, and ascend. The kernel does not know which comes next,
    /// so it is told of each: a disk that can read many at a time then does.
    pub fn before_scattered(&mut self, file: &Rc<File>, parts: &[Range<u64>]) {
        let absent = intersect(&page_cache::absent_of(file, parts), parts);
        if absent.is_empty() {
            return;
        }
        for part in &absent {
            page_cache::will_need(file, part.start, part.end - part.start);
        }
        self.behind.push_back((Rc::clone(file), absent));
        while self.behind.len() > KEPT {
            self.let_one_go();
        }
    }

    fn let_one_go(&mut self) {
        if let Some((file, ranges)) = self.behind.pop_front() {
            page_cache::let_go(&file, &ranges);
        }
    }
}

impl Drop for CacheKeeper {
    fn drop(&mut self) {
        while !self.behind.is_empty() {
            self.let_one_go();
        }
    }
}

/// What is in both. The ranges of each ascend and do not overlap.
fn intersect(some: &[Range<u64>], others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut both = Vec::new();
    let mut some = some.iter().peekable();
    for other in others {
        while let Some(one) = some.peek() {
            let common = one.start.max(other.start)..one.end.min(other.end);
            if !common.is_empty() {
                both.push(common);
            }
            if one.end > other.end {
                break;
            }
            some.next();
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn intersections() {
        assert_eq!(intersect(&[0..100], &[10..20, 30..40]), [10..20, 30..40]);
        assert_eq!(intersect(&[10..20, 30..40], &[0..100]), [10..20, 30..40]);
        assert_eq!(intersect(&[0..15, 18..35], &[10..20, 30..40]), [10..15, 18..20, 30..35]);
        assert_eq!(intersect(&[0..10, 20..30], &[10..20]), []);
        assert_eq!(intersect(&[], &[10..20]), []);
        assert_eq!(intersect(&[10..20], &[]), []);
    }
}
