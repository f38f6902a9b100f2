//! What of a file is to be sent, as the parts of the file that follow each other on the wire.

use std::ops::Range;

use protocol::BlockList;
use protocol::blocks::Run;

use crate::cluster::page::BLOCK_SIZE;

/// How far apart, at most, the parts of a window begin. To ask the kernel about that many pages takes it some
/// hundred microseconds.
const MAX_SPAN: u64 = 64 * 1024 * 1024;

/// What of a file is to be sent.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// A range, or all of it.
    Range {
        /// Where it begins.
        offset: u64,
        /// How many bytes it has.
        length: u64,
    },
    /// Some blocks.
    Blocks(&'a BlockList),
}

impl<'a> Wanted<'a> {
    /// What the file's first frame says of where its bytes begin.
    pub fn offset(&self) -> u64 {
        match self {
            Self::Range { offset, .. } => *offset,
            Self::Blocks(_) => 0,
        }
    }

    /// How many bytes are to be sent, whatever the file has by now.
    pub fn length(&self) -> u64 {
        match self {
            Self::Range { length, .. } => *length,
            Self::Blocks(blocks) => blocks.len() * BLOCK_SIZE as u64,
        }
    }

    /// The parts, in order.
    pub fn parts(&self) -> Parts<'a> {
        match *self {
            Self::Range { offset, length } => Parts { current: offset..offset + length, runs: [].iter() },
            Self::Blocks(blocks) => Parts { current: 0..0, runs: blocks.runs().iter() },
        }
    }
}

/// The parts of a file that are still to be dealt with, as byte ranges that ascend.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    current: Range<u64>,
    runs: std::slice::Iter<'a, Run>,
}

impl Parts<'_> {
    /// The next part, none where nothing is left.
    pub fn peek(&mut self) -> Option<Range<u64>> {
        if self.current.is_empty()
            && let Some(run) = self.runs.next()
        {
            let block_size = BLOCK_SIZE as u64;
            let start = u64::from(run.first) * block_size;
            self.current = start..start + u64::from(run.count) * block_size;
        }
        Some(self.current.clone()).filter(|part| !part.is_empty())
    }

    /// Takes parts of up to `most` bytes together that do not lie too far from each other to be looked at in one.
    pub fn window(&mut self, most: u64) -> Vec<Range<u64>> {
        let Some(first) = self.peek() else { return Vec::new() };
        self.gather(most, |next| next.start - first.start < MAX_SPAN)
    }

    /// Takes parts of up to `most` bytes together, up to one that is not accepted.
    pub fn gather(&mut self, most: u64, accepts: impl Fn(&Range<u64>) -> bool) -> Vec<Range<u64>> {
        let mut gathered = Vec::new();
        let mut left = most;
        while left > 0
            && let Some(next) = self.peek()
            && accepts(&next)
            && let Some(part) = self.take(left)
        {
            left -= part.end - part.start;
            gathered.push(part);
        }
        gathered
    }

    /// Takes up to `most` bytes of the next part.
    pub fn take(&mut self, most: u64) -> Option<Range<u64>> {
        let part = self.peek()?;
        let taken = part.start..part.end.min(part.start.saturating_add(most));
        self.current.start = taken.end;
        Some(taken)
    }
}

#[cfg(test)]
// A list of one range is meant.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn all(wanted: Wanted<'_>, most: u64) -> Vec<Range<u64>> {
        let mut parts = wanted.parts();
        std::iter::from_fn(|| parts.take(most)).collect()
    }

    #[test]
    fn a_range_is_one_part() {
        let wanted = Wanted::Range { offset: 100, length: 50 };
        assert_eq!((wanted.offset(), wanted.length()), (100, 50));
        assert_eq!(all(wanted, u64::MAX), [100..150]);
        assert_eq!(all(wanted, 20), [100..120, 120..140, 140..150]);
        assert_eq!(all(Wanted::Range { offset: 100, length: 0 }, 20), []);
    }

    #[test]
    fn blocks_are_a_part_for_each_run() {
        let block = BLOCK_SIZE as u64;
        let list = BlockList::parse(b"0-1,5,131071").unwrap();
        let wanted = Wanted::Blocks(&list);
        assert_eq!((wanted.offset(), wanted.length()), (0, 4 * block));
        assert_eq!(
            all(wanted, u64::MAX),
            [0..2 * block, 5 * block..6 * block, 131_071 * block..131_072 * block]
        );
        assert_eq!(all(wanted, block).len(), 4);
        assert_eq!(all(Wanted::Blocks(&BlockList::default()), block), []);
    }

    #[test]
    fn windows_are_bounded_in_bytes_and_in_span() {
        let block = BLOCK_SIZE as u64;
        let list = BlockList::parse(b"0,2-9,8192,131071").unwrap();
        let mut parts = Wanted::Blocks(&list).parts();
        assert_eq!(parts.window(3 * block), [0..block, 2 * block..4 * block]);
        assert_eq!(parts.window(100 * block), [4 * block..10 * block, 8192 * block..8193 * block]);
        assert_eq!(parts.window(100 * block), [131_071 * block..131_072 * block]);
        assert_eq!(parts.window(100 * block), []);
    }

    #[test]
    fn parts_are_gathered_up_to_one_that_is_not_accepted() {
        let block = BLOCK_SIZE as u64;
        let list = BlockList::parse(b"0,2-3,5-9").unwrap();
        let mut parts = Wanted::Blocks(&list).parts();
        let is_short = |part: &Range<u64>| part.end - part.start < 3 * block;
        assert_eq!(parts.gather(2 * block, is_short), [0..block, 2 * block..3 * block]);
        assert_eq!(parts.gather(9 * block, is_short), [3 * block..4 * block]);
        assert_eq!(parts.gather(9 * block, is_short), []);
        assert_eq!(parts.gather(9 * block, |_| true), [5 * block..10 * block]);
    }

    #[test]
    fn a_look_takes_nothing() {
        let list = BlockList::parse(b"3").unwrap();
        let mut parts = Wanted::Blocks(&list).parts();
        assert_eq!(parts.peek(), parts.peek());
        assert_eq!(parts.take(u64::MAX), Some(24_576..32_768));
        assert_eq!((parts.peek(), parts.take(1)), (None, None));
    }
}
