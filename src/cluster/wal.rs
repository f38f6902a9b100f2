//! Which of pg_wal belongs to a stopped backup.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use protocol::Lsn;
use protocol::wal::{Segment, is_history};

use crate::error::Result;

/// What of pg_wal a stopped backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// Where the backup starts.
    pub start: Lsn,
    /// The LSN up to which WAL must be replayed.
    pub stop: Lsn,
    /// The timeline on which it starts.
    pub start_timeline: u32,
    /// The timeline on which it stops.
    pub stop_timeline: u32,
    /// Bytes in a segment.
    pub segment_size: u64,
}

/// A file of pg_wal that belongs to a stopped backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalFile {
    /// A segment.
    Segment(Segment),
    /// A timeline history file.
    History,
}

impl WalRange {
    /// What a backup needs that was started and stopped there.
    pub fn new(start: (Lsn, u32), stop: (Lsn, u32), segment_size: u64) -> Self {
        Self { start: start.0, stop: stop.0, start_timeline: start.1, stop_timeline: stop.1, segment_size }
    }

    /// The numbers of the segments that hold the range.
    pub fn segments(&self) -> RangeInclusive<u64> {
        // The stop LSN is exclusive: at a segment's very beginning, the one before is the last.
        self.start.0 / self.segment_size..=(self.stop.0.saturating_sub(1)) / self.segment_size
    }

    /// Whether a name in pg_wal belongs to the backup: segments of the range whatever their
    /// timeline, and every history file, as BASE_BACKUP's WAL option sends.
    pub fn file(&self, name: &[u8]) -> Option<WalFile> {
        if is_history(name) {
            return Some(WalFile::History);
        }
        let segment = Segment::parse(name, self.segment_size)?;
        self.segments().contains(&segment.number).then_some(WalFile::Segment(segment))
    }

    /// The list that STOP_BACKUP returns, from the names in pg_wal: segments in the order of their
    /// position, then history files. A segment that is no longer there is listed all the same, so
    /// that whoever wants it gets the error that it was removed, and not a backup with a gap. The first
    /// name that could not be read is the error.
    pub fn list(&self, names: impl Iterator<Item = Result<Vec<u8>>>) -> Result<Vec<String>> {
        let mut segments = Vec::new();
        let mut histories = Vec::new();
        for name in names {
            let name = name?;
            match self.file(&name) {
                Some(WalFile::Segment(segment)) => segments.push(segment),
                Some(WalFile::History) => histories.push(String::from_utf8_lossy(&name).into_owned()),
                None => {}
            }
        }
        let there: HashSet<u64> = segments.iter().map(|segment| segment.number).collect();
        for number in self.segments() {
            if !there.contains(&number) {
                let timeline =
                    if number == *self.segments().start() { self.start_timeline } else { self.stop_timeline };
                segments.push(Segment { timeline, number });
            }
        }
        segments.sort_by_key(|segment| (segment.number, segment.timeline));
        histories.sort();
        Ok(segments.iter().map(|segment| segment.name(self.segment_size)).chain(histories).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const SIZE: u64 = 16 << 20;

    fn range(start: u64, stop: u64) -> WalRange {
        WalRange {
            start: Lsn(start),
            stop: Lsn(stop),
            start_timeline: 1,
            stop_timeline: 2,
            segment_size: SIZE,
        }
    }

    #[test]
    fn the_stop_lsn_is_exclusive() {
        assert_eq!(range(SIZE + 40, 2 * SIZE).segments(), 1..=1);
        assert_eq!(range(SIZE + 40, 2 * SIZE + 1).segments(), 1..=2);
    }

    #[test]
    fn what_a_stopped_backup_needs() {
        let range = range(2 * SIZE + 40, 4 * SIZE + 100);
        assert!(matches!(range.file(b"000000010000000000000002"), Some(WalFile::Segment(_))));
        assert!(matches!(range.file(b"000000070000000000000004"), Some(WalFile::Segment(_))));
        assert_eq!(range.file(b"00000002.history"), Some(WalFile::History));
        for name in [
            &b"000000010000000000000001"[..],
            b"000000010000000000000005",
            b"archive_status",
            b"2.history",
            b"000000010000000000000002.00000028.backup",
        ] {
            assert_eq!(range.file(name), None, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn a_missing_segment_is_listed_too() {
        let names = ["00000002.history", "000000020000000000000004", "000000010000000000000002", "x"];
        let list = range(2 * SIZE + 40, 4 * SIZE + 100).list(names.into_iter().map(|n| Ok(n.into())));
        assert_eq!(
            list.unwrap(),
            [
                "000000010000000000000002",
                "000000020000000000000003",
                "000000020000000000000004",
                "00000002.history"
            ]
        );
    }

    #[test]
    fn a_name_that_cannot_be_read_is_no_shorter_list() {
        let broken = || Error::io("read directory", b"pg_wal", std::io::Error::other("broken"));
        let names = [Ok(b"000000010000000000000002".to_vec()), Err(broken())];
        let error = range(2 * SIZE + 40, 4 * SIZE + 100).list(names.into_iter()).unwrap_err();
        assert!(error.to_string().starts_with("could not read directory \"pg_wal\""), "{error}");
    }
}
