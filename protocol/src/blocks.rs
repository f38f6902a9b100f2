//! Lists of blocks of a file, as SEND_FILE_LIST says them and SEND_FILES_CONTENT takes them.

use std::fmt;

/// Most bytes in the lists of one SEND_FILES_CONTENT together. The longest list of one file, runs of two
/// blocks with one between them over a segment of 131,072 blocks, has some 540 kB.
pub const MAX_BLOCK_LISTS: usize = 1 << 20;

/// Numbers of blocks within a file, ascending. Neighbours are one run, so that each set has one text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockList {
    runs: Vec<Run>,
}

/// Blocks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: u32,
    /// How many, at least one. The last one's number fits too.
    pub count: u32,
}

/// A text that is no list of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid list of blocks")]
pub struct BlockListError;

impl Run {
    /// The number of the last block.
    pub fn last(&self) -> u32 {
        self.first + (self.count - 1)
    }
}

impl BlockList {
    /// Reads the text of a list: `0-3,7,9-12`, or nothing.
    pub fn parse(text: &[u8]) -> Result<Self, BlockListError> {
        let mut list = Self::default();
        if text.is_empty() {
            return Ok(list);
        }
        for item in text.split(|byte| *byte == b',') {
            let mut ends = item.splitn(2, |byte| *byte == b'-');
            let first = ends.next().and_then(number).ok_or(BlockListError)?;
            let last = match ends.next() {
                None => first,
                Some(end) => number(end).filter(|last| *last > first).ok_or(BlockListError)?,
            };
            let follows = list.last().is_none_or(|before| before < first);
            // The largest number of all has none after it, and is no block's (InvalidBlockNumber).
            if !follows || last == u32::MAX {
                return Err(BlockListError);
            }
            list.push_run(Run { first, count: last - first + 1 });
        }
        Ok(list)
    }

    /// The list of these numbers, which must ascend; `None` where they do not.
    pub fn of(blocks: &[u32]) -> Option<Self> {
        let mut list = Self::default();
        for &block in blocks {
            if list.last().is_some_and(|before| before >= block) || block == u32::MAX {
                return None;
            }
            list.push_run(Run { first: block, count: 1 });
        }
        list.runs.shrink_to_fit();
        Some(list)
    }

    /// The runs, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Every number, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.iter().flat_map(|run| run.first..=run.last())
    }

    /// How many blocks.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The largest number.
    pub fn last(&self) -> Option<u32> {
        self.runs.last().map(Run::last)
    }

    /// The `count` blocks after the first `skipped`, or as many as there are.
    pub fn slice(&self, mut skipped: u64, mut count: u64) -> Self {
        let mut list = Self::default();
        for run in &self.runs {
            let size = u64::from(run.count);
            let skip = skipped.min(size);
            skipped -= skip;
            let take = count.min(size - skip);
            count -= take;
            if take > 0 {
                // Both are at most the run's own count.
                let (skip, take) = (skip as u32, take as u32);
                list.push_run(Run { first: run.first + skip, count: take });
            }
        }
        list
    }

    /// Adds `count` blocks from `first` on, which must lie behind all others.
    pub fn push(&mut self, first: u32, count: u32) {
        debug_assert!(
            count > 0 && self.last().is_none_or(|last| last < first) && first.checked_add(count).is_some()
        );
        self.push_run(Run { first, count });
    }

    /// Adds a run behind all others.
    fn push_run(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(before) if before.last() + 1 == run.first => before.count += run.count,
            _ => self.runs.push(run),
        }
    }
}

impl fmt::Display for BlockList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, run) in self.runs.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match run.count {
                1 => write!(f, "{comma}{}", run.first)?,
                _ => write!(f, "{comma}{}-{}", run.first, run.last())?,
            }
        }
        Ok(())
    }
}

/// A number in the one spelling that it has.
fn number(text: &[u8]) -> Option<u32> {
    let plain = text.iter().all(u8::is_ascii_digit) && (text.len() == 1 || !text.starts_with(b"0"));
    if plain { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> BlockList {
        BlockList::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn texts_and_numbers() {
        for (text, numbers) in [
            ("", &[][..]),
            ("0", &[0]),
            ("0-3,7,9-12", &[0, 1, 2, 3, 7, 9, 10, 11, 12]),
            ("131071", &[131_071]),
            ("4294967294", &[u32::MAX - 1]),
        ] {
            let parsed = list(text);
            assert_eq!(parsed.numbers().collect::<Vec<_>>(), numbers);
            assert_eq!(BlockList::of(numbers).as_ref(), Some(&parsed));
            assert_eq!(parsed.to_string(), text);
            assert_eq!((parsed.len(), parsed.is_empty()), (numbers.len() as u64, numbers.is_empty()));
            assert_eq!(parsed.last(), numbers.last().copied());
        }
        // Another text of the same list.
        assert_eq!(list("0,1,2-3").to_string(), "0-3");
    }

    #[test]
    fn what_is_no_list() {
        for text in [
            ",",
            "0,",
            ",0",
            "0,,1",
            " 0",
            "0 ",
            "0, 1",
            "-",
            "-1",
            "1-",
            "1-1",
            "2-1",
            "1-2-3",
            "1,1",
            "2,1",
            "0-3,3",
            "00",
            "01",
            "1-02",
            "+1",
            "1-+2",
            "0x1",
            "1.5",
            "a",
            "\u{663}",
            "4294967295",
            "0-4294967295",
            "4294967296",
            "99999999999999999999",
        ] {
            assert_eq!(BlockList::parse(text.as_bytes()), Err(BlockListError), "{text}");
        }
        assert_eq!(BlockList::parse(b"\xff"), Err(BlockListError));
        assert_eq!(BlockList::parse(b"1\0"), Err(BlockListError));
        for numbers in [&[1, 1][..], &[2, 1], &[u32::MAX]] {
            assert_eq!(BlockList::of(numbers), None);
        }
    }

    #[test]
    fn slices_put_together_are_the_list() {
        let whole = list("0-3,7,9-12,20");
        assert_eq!(whole.slice(2, 4).to_string(), "2-3,7,9");
        assert_eq!(whole.slice(9, 5).to_string(), "20");
        assert_eq!(whole.slice(10, 5).to_string(), "");
        assert_eq!(whole.slice(0, 0).to_string(), "");
        assert_eq!(whole.slice(0, u64::MAX), whole);
        for size in 1..=10 {
            let parts = (0..10)
                .step_by(size)
                .flat_map(|at| whole.slice(at, size as u64).numbers().collect::<Vec<_>>());
            assert!(parts.eq(whole.numbers()), "{size}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "volume alone: some minutes")]
    fn the_longest_list_of_a_segment_fits_a_command() {
        let blocks: Vec<u32> = (0..131_072).filter(|block| block % 3 != 2).collect();
        let text = BlockList::of(&blocks).unwrap().to_string();
        assert!(text.len() < MAX_BLOCK_LISTS, "{}", text.len());
    }
}
