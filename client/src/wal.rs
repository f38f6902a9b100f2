//! WAL files by name: segments, history files, and whether a set of segments has a gap.

use protocol::Lsn;

use crate::error::{Error, Result};

/// The size of this cluster's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSize(u64);

/// A segment's timeline and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Timeline.
    pub timeline: u32,
    /// Number, counted from the beginning of WAL.
    pub number: u64,
}

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
        let per_id = (1u64 << 32) / self.0;
        format!("{:08X}{:08X}{:08X}", segment.timeline, segment.number / per_id, segment.number % per_id)
    }

    /// The segment of a file name, if it is one.
    pub fn parse(self, name: &str) -> Option<Segment> {
        if !is_segment(name.as_bytes()) {
            return None;
        }
        let part = |from: usize| u32::from_str_radix(&name[from..from + 8], 16).ok();
        let per_id = (1u64 << 32) / self.0;
        let low = u64::from(part(16)?);
        (low < per_id).then_some(Segment { timeline: part(0)?, number: u64::from(part(8)?) * per_id + low })
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

/// Whether a file name is a segment's: 24 upper-case hex digits.
pub fn is_segment(name: &[u8]) -> bool {
    name.len() == 24 && name.iter().all(is_upper_hex)
}

/// Whether a file name is a timeline history file's.
pub fn is_history(name: &[u8]) -> bool {
    name.strip_suffix(b".history").is_some_and(|stem| stem.len() == 8 && stem.iter().all(is_upper_hex))
}

/// A timeline's history file.
pub fn history_file_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

fn is_upper_hex(digit: &u8) -> bool {
    matches!(digit, b'0'..=b'9' | b'A'..=b'F')
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB16: SegmentSize = SegmentSize(16 << 20);

    #[test]
    fn names() {
        for (size, timeline, number, name) in [
            (16 << 20, 1, 1, "000000010000000000000001"),
            (16 << 20, 2, 256, "000000020000000100000000"),
            (1 << 30, 0x1f, 7, "0000001F0000000100000003"),
            (1 << 20, 1, 4095, "000000010000000000000FFF"),
        ] {
            let size = SegmentSize::new(size).unwrap();
            let segment = Segment { timeline, number };
            assert_eq!(size.file_name(segment), name);
            assert_eq!(size.parse(name), Some(segment));
        }
        for name in ["00000001.history", "00000001000000000000000", "000000010000000000000001.partial"] {
            assert_eq!(MB16.parse(name), None);
        }
        // No segment of 16 MB has a last part above FF.
        assert_eq!(MB16.parse("000000010000000000000100"), None);
        assert!(is_history(b"00000002.history") && !is_history(b"0000000g.history"));
        assert_eq!(history_file_name(26), "0000001A.history");
    }

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
