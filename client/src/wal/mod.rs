//! The size of WAL segments, and whether a set of them has a gap.

pub mod check;
pub mod stream;

use protocol::Lsn;
use protocol::wal::Segment;

use crate::error::{Error, Result};

/// The size of this cluster's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// A power of two between 1 MB and 1 GB.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(Error::local(format!("remote server reported invalid WAL segment size ({bytes} bytes)"))
                .with_detail("The WAL segment size must be a power of two between 1 MB and 1 GB."))
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// How far into its segment a position is.
    pub fn offset(self, position: Lsn) -> u64 {
        position.0 % self.0
    }

    /// The beginning of a position's segment.
    pub fn start_of(self, position: Lsn) -> Lsn {
        Lsn(position.0 - self.offset(position))
    }

    /// The number of the segment that a position is in.
    pub fn number(self, position: Lsn) -> u64 {
        position.0 / self.0
    }

    /// A segment's file name.
    pub fn file_name(self, segment: Segment) -> String {
        segment.name(self.0)
    }

    /// The segment of a file name, if it is one.
    pub fn parse(self, name: &str) -> Option<Segment> {
        Segment::parse(name.as_bytes(), self.0)
    }

    /// Fails unless these files have all segments from a start position to an end position, of
    /// whatever timelines: BASE_BACKUP's own check, made again on what arrived.
    pub fn check_coverage(
        self,
        names: &[String],
        (start_timeline, start): (u32, Lsn),
        (end_timeline, end): (u32, Lsn),
    ) -> Result<()> {
        let missing = |timeline: u32, number: u64| {
            let name = self.file_name(Segment { timeline, number });
            Err(Error::local(format!("could not find WAL file \"{name}\"")))
        };
        let mut segments: Vec<Segment> = names.iter().filter_map(|name| self.parse(name)).collect();
        segments.sort_by_key(|segment| segment.number);
        // The end is the byte behind the last record: at a boundary, the segment before has it.
        let last = end.0.saturating_sub(1) / self.0;
        let mut next = self.number(start);
        match segments.first() {
            Some(first) if first.number == next => {}
            _ => return missing(start_timeline, next),
        }
        for segment in segments {
            // The same segment may be there once for each timeline.
            if segment.number > next {
                return missing(segment.timeline, next);
            }
            next = segment.number + 1;
        }
        if next <= last { missing(end_timeline, next) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB16: SegmentSize = SegmentSize(16 << 20);

    #[test]
    fn sizes() {
        for bytes in [0, 1 << 19, 3 << 20, 1 << 31] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
        assert_eq!(MB16.start_of(Lsn(0x0200_0028)), Lsn(0x0200_0000));
        assert_eq!(MB16.offset(Lsn(0x0200_0028)), 0x28);
    }

    fn coverage(names: &[&str], start: u64, end: u64) -> Result<()> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        MB16.check_coverage(&names, (1, Lsn(start)), (2, Lsn(end)))
    }

    #[test]
    fn gaps() {
        let two = "000000010000000000000002";
        let three = "000000010000000000000003";
        let other_three = "000000020000000000000003";
        let four = "000000020000000000000004";
        let all = [four, two, other_three, "00000002.history", three];
        coverage(&all, 0x0200_0028, 0x0400_0100).unwrap();
        // An end at a boundary belongs to the segment before.
        coverage(&[two, three], 0x0200_0028, 0x0400_0000).unwrap();
        for (names, missing) in [
            (&[][..], "000000010000000000000002"),
            (&[three, four], "000000010000000000000002"),
            (&[two, four], "000000020000000000000003"),
            (&[two, three], "000000020000000000000004"),
        ] {
            assert_eq!(
                coverage(names, 0x0200_0028, 0x0400_0100).unwrap_err().message(),
                format!("could not find WAL file \"{missing}\"")
            );
        }
    }
}
