//! Files that several connections fetch in parts, each into its place in one file.
//!
//! The file has the size that it was listed with. What it has grown by since is cut off, and where a
//! part finds it shorter, zeroes take the place: what a serial copy would have made that looked at
//! the size when the list was made. WAL replay does the rest in either case.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fetch::queue::{FileNumber, Part};
use pages::checksum::combine_crcs;

/// Files in parts, while some part of them is under way.
#[derive(Debug, Default)]
pub struct Splits(Mutex<HashMap<FileNumber, Split>>);

#[derive(Debug, Default)]
struct Split {
    vanished: bool,
    /// Parts that are complete: offset, length, CRC.
    done: Vec<(u64, u64, u32)>,
    /// Of the part that came first.
    mtime: Option<i64>,
}

/// What became of a file after one more of its parts was dealt with.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Other parts are missing.
    Unfinished,
    /// All of it is there.
    Complete {
        /// Of all its bytes.
        crc: u32,
        /// Of the part that came first.
        mtime: i64,
    },
    /// It vanished, and all parts know.
    Vanished,
}

impl Splits {
    /// A part begins to come; false once another has found that the file is no more.
    pub fn begin(&self, number: FileNumber, mtime: i64) -> bool {
        let mut splits = self.lock();
        let split = splits.entry(number).or_default();
        split.mtime.get_or_insert(mtime);
        !split.vanished
    }

    /// A part is complete.
    pub fn complete(&self, number: FileNumber, part: &Part, crc: u32) -> Outcome {
        self.done(number, part, crc, false)
    }

    /// A part was asked for and the file is no more. WAL replay removes it, so that what other parts
    /// have brought is of no use.
    pub fn vanished(&self, number: FileNumber, part: &Part) -> Outcome {
        self.done(number, part, 0, true)
    }

    fn done(&self, number: FileNumber, part: &Part, crc: u32, vanished: bool) -> Outcome {
        let mut splits = self.lock();
        let split = splits.entry(number).or_default();
        split.vanished |= vanished;
        split.done.push((part.offset, part.length, crc));
        if split.done.len() < part.of {
            return Outcome::Unfinished;
        }
        let Some(mut split) = splits.remove(&number) else { return Outcome::Unfinished };
        if split.vanished {
            return Outcome::Vanished;
        }
        split.done.sort_unstable();
        Outcome::Complete { crc: combine(&split.done), mtime: split.mtime.unwrap_or_default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileNumber, Split>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The CRC of parts that follow each other.
fn combine(parts: &[(u64, u64, u32)]) -> u32 {
    parts.iter().fold(0, |crc, (_, length, part)| combine_crcs(crc, *part, *length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pages::checksum::{Checksum, to_crc};
    use protocol::ChecksumAlgorithm;

    fn parts() -> [Part; 3] {
        [(0, 100), (100, 50), (150, 7)].map(|(offset, length)| Part { offset, length, size: 157, of: 3 })
    }

    #[test]
    fn the_parts_crcs_give_the_files() {
        let bytes: Vec<u8> = (0..157u8).collect();
        let crc = |bytes: &[u8]| to_crc(&Checksum::of(ChecksumAlgorithm::Crc32c, bytes));
        let crc_of = |part: &Part| {
            let begin = usize::try_from(part.offset).unwrap();
            crc(&bytes[begin..begin + usize::try_from(part.length).unwrap()])
        };
        let splits = Splits::default();
        let parts = parts();
        assert!(splits.begin(4, 77));
        assert!(splits.begin(4, 78));
        // In any order.
        for part in [&parts[2], &parts[0]] {
            assert_eq!(splits.complete(4, part, crc_of(part)), Outcome::Unfinished);
        }
        assert_eq!(
            splits.complete(4, &parts[1], crc_of(&parts[1])),
            Outcome::Complete { crc: crc(&bytes), mtime: 77 }
        );
        assert!(splits.lock().is_empty());
    }

    #[test]
    fn vanished_for_one_part_is_vanished_for_all() {
        let splits = Splits::default();
        let parts = parts();
        assert_eq!(splits.complete(4, &parts[0], 1), Outcome::Unfinished);
        assert_eq!(splits.vanished(4, &parts[1]), Outcome::Unfinished);
        assert!(!splits.begin(4, 0));
        assert_eq!(splits.complete(4, &parts[2], 1), Outcome::Vanished);
    }
}
