//! The names of files in pg_wal (`access/xlog_internal.h`).

/// A WAL segment: 24 upper-case hex digits, the timeline, then the segment number in two halves whose
/// split depends on the segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The timeline.
    pub timeline: u32,
    /// The segment's number on any timeline, counted from the beginning of WAL.
    pub number: u64,
}

impl Segment {
    /// Reads a segment's file name; `segment_size` is in bytes.
    pub fn parse(name: &[u8], segment_size: u64) -> Option<Self> {
        if !is_segment(name) {
            return None;
        }
        let digits = std::str::from_utf8(name).ok()?;
        let part = |at: usize| u32::from_str_radix(&digits[at..at + 8], 16).ok();
        let per_id = segments_per_id(segment_size);
        let low = u64::from(part(16)?);
        (low < per_id).then_some(Self { timeline: part(0)?, number: u64::from(part(8)?) * per_id + low })
    }

    /// The segment's file name.
    pub fn name(&self, segment_size: u64) -> String {
        let per_id = segments_per_id(segment_size);
        format!("{:08X}{:08X}{:08X}", self.timeline, self.number / per_id, self.number % per_id)
    }
}

/// Whether a file name is a segment's, of whatever size.
pub fn is_segment(name: &[u8]) -> bool {
    name.len() == 24 && name.iter().all(is_upper_hex)
}

/// Whether a file name is a timeline history file's: `<timeline>.history`.
pub fn is_history(name: &[u8]) -> bool {
    name.strip_suffix(b".history").is_some_and(|stem| stem.len() == 8 && stem.iter().all(is_upper_hex))
}

/// A timeline's history file.
pub fn history_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

fn segments_per_id(segment_size: u64) -> u64 {
    0x1_0000_0000 / segment_size
}

fn is_upper_hex(digit: &u8) -> bool {
    matches!(digit, b'0'..=b'9' | b'A'..=b'F')
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    #[test]
    fn names_lead_back() {
        for (name, segment, size) in [
            ("0000000100000001000000FF", Segment { timeline: 1, number: 0x1FF }, SIZE),
            ("000000010000000000000000", Segment { timeline: 1, number: 0 }, SIZE),
            ("000000020000000100000002", Segment { timeline: 2, number: 4096 + 2 }, 1 << 20),
            ("0000000A0000000300000003", Segment { timeline: 10, number: 15 }, 1 << 30),
        ] {
            assert_eq!(Segment::parse(name.as_bytes(), size), Some(segment), "{name}");
            assert_eq!(segment.name(size), name);
        }
        for name in [
            "0000000100000001000000ff",
            "00000001000000010000000",
            "000000010000000100000001.partial",
            // No such half with this size.
            "000000010000000000000100",
        ] {
            assert_eq!(Segment::parse(name.as_bytes(), SIZE), None, "{name}");
        }
    }

    #[test]
    fn histories() {
        assert!(
            is_history(b"0000000A.history") && !is_history(b"A.history") && !is_history(b"0000000a.history")
        );
        assert_eq!(history_name(10), "0000000A.history");
    }
}
