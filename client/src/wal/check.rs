//! Whether WAL is what it should be: page headers, and the CRC of every record.
//!
//! A segment is not in the manifest, and the stream of WAL carries no checksum of its own. What WAL
//! says of itself must do: where a page belongs, in its header; the CRC-32C of each record
//! (`access/xlog_internal.h`, `access/xlogrecord.h`, `xlogreader.c`). A segment that was recycled
//! while it was read has pages of another address.

use pages::checksum::{Checksum, to_crc};
use protocol::wal::Segment;
use protocol::{ChecksumAlgorithm, Lsn};

use crate::error::{Error, Result};
use crate::manifest::WalRange;
use crate::wal::SegmentSize;

/// Bytes in a page header, and in that of a segment's first page.
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;

/// The page begins with the rest of a record (XLP_FIRST_IS_CONTRECORD).
const CONTINUES: u16 = 0x0001;
/// The header is a long one (XLP_LONG_HEADER).
const LONG: u16 = 0x0002;
/// The record that the page before ends in was given up (XLP_FIRST_IS_OVERWRITE_CONTRECORD).
const OVERWRITES: u16 = 0x0008;
/// All there are, up to 18 (XLP_ALL_FLAGS).
const ALL_FLAGS: u16 = 0x000F;

/// Bytes in a record's header; xl_crc is the last of its fields, and not in the CRC.
const RECORD_HEADER: usize = 24;
const CRC_OFFSET: usize = 20;
const RMID_OFFSET: usize = 17;
const INFO_OFFSET: usize = 16;
/// RM_XLOG_ID and XLOG_SWITCH: what follows to the end of the segment is not WAL. The low bits of
/// xl_info are not the resource manager's.
const XLOG: u8 = 0;
const SWITCH: u8 = 0x40;
const INFO_MASK: u8 = 0xF0;

/// Records begin at multiples of that (MAXALIGN).
const ALIGNMENT: u64 = 8;

/// The cluster that WAL must be of.
#[derive(Debug, Clone, Copy)]
pub struct Cluster {
    /// Its system identifier.
    pub system: u64,
    /// The size of its segments.
    pub segment_size: SegmentSize,
}

/// The WAL that a backup needs.
#[derive(Debug, Clone)]
pub struct Needed {
    /// Whose it is.
    pub cluster: Cluster,
    /// What of which timeline.
    pub ranges: Vec<WalRange>,
}

impl Needed {
    /// The check of a segment that is to come.
    pub fn check(&self, segment: Segment) -> SegmentPages {
        // Behind the end of its timeline, a segment may have whatever was in its file before.
        let range = self.ranges.iter().find(|range| range.timeline == segment.timeline);
        SegmentPages::new(self.cluster, segment, range.map_or(Lsn(0), |range| range.end))
    }
}

/// A page header.
struct Header {
    info: u16,
    /// Bytes of a record that began on a page before.
    remaining: u32,
}

/// The pages of a segment, or of a stream from a segment's beginning on.
#[derive(Debug)]
struct Pages {
    cluster: Cluster,
    /// No page is of a later timeline.
    timeline: u32,
    /// Of the first page; all have the same.
    magic: Option<u16>,
    block_size: u64,
}

impl Pages {
    fn new(cluster: Cluster, timeline: u32) -> Self {
        // Until the first page says otherwise: the least.
        Self { cluster, timeline, magic: None, block_size: 1024 }
    }

    /// The length of the header of the page at an address.
    fn header_length(&self, address: Lsn) -> usize {
        if self.cluster.segment_size.offset(address) == 0 { LONG_HEADER } else { SHORT_HEADER }
    }

    /// Takes the header of the page at an address.
    fn begin(&mut self, address: Lsn, header: &[u8]) -> Result<Header> {
        let wrong = |what: String| Err(damaged(address, &what));
        let magic = u16_at(header, 0);
        let info = u16_at(header, 2);
        let timeline = u32_at(header, 4);
        if magic == 0 || self.magic.is_some_and(|first| first != magic) {
            return wrong(format!("invalid magic number {magic:04X}"));
        }
        if u64_at(header, 8) != address.0 {
            return wrong(format!("unexpected page address {}", Lsn(u64_at(header, 8))));
        }
        if timeline == 0 || timeline > self.timeline {
            return wrong(format!("unexpected timeline {timeline}"));
        }
        if info & !ALL_FLAGS != 0 || (header.len() == LONG_HEADER) != (info & LONG != 0) {
            return wrong(format!("invalid info bits {info:04X}"));
        }
        if header.len() == LONG_HEADER {
            let (system, segment, block) = (u64_at(header, 24), u32_at(header, 32), u32_at(header, 36));
            if system != self.cluster.system {
                return wrong(format!("system identifier {system}"));
            }
            if u64::from(segment) != self.cluster.segment_size.bytes() {
                return wrong(format!("segment size {segment}"));
            }
            if !block.is_power_of_two() || !(1024..=65_536).contains(&block) {
                return wrong(format!("block size {block}"));
            }
            self.block_size = u64::from(block);
        }
        self.magic = Some(magic);
        Ok(Header { info, remaining: u32_at(header, 16) })
    }
}

/// The page headers of a segment that comes as a file, whose bytes a checksum covers.
#[derive(Debug)]
pub struct SegmentPages {
    pages: Pages,
    /// Pages from here on need not be WAL.
    stop: Lsn,
    /// Where the next byte is.
    position: Lsn,
    header: Vec<u8>,
    outcome: Result<()>,
}

impl SegmentPages {
    /// Those of this segment, up to an LSN.
    fn new(cluster: Cluster, segment: Segment, stop: Lsn) -> Self {
        let position = Lsn(segment.number * cluster.segment_size.bytes());
        let pages = Pages::new(cluster, segment.timeline);
        Self { pages, stop, position, header: Vec::new(), outcome: Ok(()) }
    }

    /// The segment's next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.position < self.stop && self.outcome.is_ok() {
            let offset = self.position.0 % self.pages.block_size;
            let address = Lsn(self.position.0 - offset);
            let length = self.pages.header_length(address) as u64;
            let part = if offset < length { length - offset } else { self.pages.block_size - offset };
            let (now, rest) =
                bytes.split_at(usize::try_from(part).map_or(bytes.len(), |n| n.min(bytes.len())));
            if offset < length {
                self.header.extend_from_slice(now);
                if self.header.len() as u64 == length {
                    // What follows a switch of segments is zeroes, headers too.
                    let header = std::mem::take(&mut self.header);
                    let unused = length < LONG_HEADER as u64 && header.iter().all(|byte| *byte == 0);
                    if !unused {
                        self.outcome = self.pages.begin(address, &header).map(|_| ());
                    }
                }
            }
            self.position.0 += now.len() as u64;
            bytes = rest;
        }
    }

    /// Whether all pages were of this segment.
    pub fn finish(self) -> Result<()> {
        self.outcome
    }
}

/// The records of a stream of WAL.
#[derive(Debug)]
pub struct Records {
    pages: Pages,
    /// Where the next byte is.
    position: Lsn,
    /// The header of a page, as far as it has come.
    header: Vec<u8>,
    state: State,
}

// There is one of it, and a box for each record would cost more than room.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum State {
    /// Before the first page.
    Begin,
    /// The rest of a record that began before the stream did.
    Continued(u64),
    /// Between two records.
    Between,
    Record(Record),
    /// Behind a switch of segments.
    Switched,
}

#[derive(Debug)]
struct Record {
    begin: Lsn,
    header: [u8; RECORD_HEADER],
    /// In the whole record; known from its first four bytes, until then the least.
    length: u64,
    received: u64,
    crc: Checksum,
}

impl Record {
    fn new(begin: Lsn) -> Self {
        let crc = Checksum::new(ChecksumAlgorithm::Crc32c);
        Self { begin, header: [0; RECORD_HEADER], length: RECORD_HEADER as u64, received: 0, crc }
    }

    /// Takes as many bytes as are its own; returns how many.
    fn take(&mut self, bytes: &[u8]) -> Result<usize> {
        let have = usize::try_from(self.received).map_or(RECORD_HEADER, |have| have.min(RECORD_HEADER));
        let of_header = (RECORD_HEADER - have).min(bytes.len());
        self.header[have..have + of_header].copy_from_slice(&bytes[..of_header]);
        self.received += of_header as u64;
        if have < 4 && have + of_header >= 4 {
            self.length = u64::from(u32_at(&self.header, 0));
        }
        if self.length < RECORD_HEADER as u64 {
            return Err(damaged(self.begin, &format!("invalid record length {}", self.length)));
        }
        let left = usize::try_from(self.length - self.received).unwrap_or(usize::MAX);
        let of_data = left.min(bytes.len() - of_header);
        self.crc.update(&bytes[of_header..of_header + of_data]);
        self.received += of_data as u64;
        Ok(of_header + of_data)
    }

    fn is_complete(&self) -> bool {
        self.received == self.length
    }

    /// Whether it switches segments; an error where its CRC does not fit.
    fn finish(mut self) -> Result<bool> {
        self.crc.update(&self.header[..CRC_OFFSET]);
        if to_crc(&self.crc.finish()) != u32_at(&self.header, CRC_OFFSET) {
            return Err(damaged(self.begin, "incorrect checksum of a record"));
        }
        Ok(self.header[RMID_OFFSET] == XLOG && self.header[INFO_OFFSET] & INFO_MASK == SWITCH)
    }
}

impl Records {
    /// Those from the beginning of a segment on.
    pub fn new(cluster: Cluster, timeline: u32, start: Lsn) -> Self {
        let pages = Pages::new(cluster, timeline);
        Self { pages, position: start, header: Vec::new(), state: State::Begin }
    }

    /// The next bytes of the stream.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let offset = self.position.0 % self.pages.block_size;
            let address = Lsn(self.position.0 - offset);
            let length = self.pages.header_length(address) as u64;
            let taken = if offset < length {
                let missing = usize::try_from(length - offset).unwrap_or(usize::MAX).min(bytes.len());
                self.header.extend_from_slice(&bytes[..missing]);
                if self.header.len() as u64 == length {
                    let header = std::mem::take(&mut self.header);
                    self.begin_page(address, &header)?;
                }
                missing
            } else {
                let left = usize::try_from(self.pages.block_size - offset).unwrap_or(usize::MAX);
                self.content(&bytes[..left.min(bytes.len())])?
            };
            self.position.0 += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn begin_page(&mut self, address: Lsn, header: &[u8]) -> Result<()> {
        if matches!(self.state, State::Switched) {
            if header.len() == SHORT_HEADER {
                return Ok(());
            }
            self.state = State::Between;
        }
        let header = self.pages.begin(address, header)?;
        let continues = header.info & CONTINUES != 0;
        if !continues && header.remaining != 0 {
            return Err(damaged(address, &format!("invalid contrecord length {}", header.remaining)));
        }
        let expected = match &self.state {
            State::Begin => {
                let remaining = u64::from(header.remaining);
                self.state = if continues { State::Continued(remaining) } else { State::Between };
                return Ok(());
            }
            State::Continued(left) => *left,
            State::Record(record) => record.length - record.received,
            State::Between | State::Switched => 0,
        };
        if expected > 0 && header.info & OVERWRITES != 0 {
            self.state = State::Between;
            return Ok(());
        }
        if continues != (expected > 0) || continues && u64::from(header.remaining) != expected {
            return Err(damaged(address, &format!("invalid contrecord length {}", header.remaining)));
        }
        Ok(())
    }

    /// Bytes of one page behind its header; returns how many of them were taken.
    fn content(&mut self, bytes: &[u8]) -> Result<usize> {
        match &mut self.state {
            State::Begin | State::Switched => Ok(bytes.len()),
            State::Continued(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                if *left == 0 {
                    self.state = State::Between;
                }
                Ok(taken)
            }
            State::Between => {
                let padding = (self.position.0.next_multiple_of(ALIGNMENT) - self.position.0) as usize;
                if padding == 0 {
                    self.state = State::Record(Record::new(self.position));
                }
                Ok(padding.min(bytes.len()))
            }
            State::Record(record) => {
                let taken = record.take(bytes)?;
                if record.is_complete() {
                    let State::Record(record) = std::mem::replace(&mut self.state, State::Between) else {
                        return Ok(taken);
                    };
                    if record.finish()? {
                        self.state = State::Switched;
                    }
                }
                Ok(taken)
            }
        }
    }
}

fn damaged(at: Lsn, what: &str) -> Error {
    Error::connection(format!("write-ahead log at {at} was damaged: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let half = |at: usize| u64::from(u32_at(bytes, at));
    if cfg!(target_endian = "little") { half(at) | half(at + 4) << 32 } else { half(at) << 32 | half(at + 4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;
    const BLOCK: u64 = 8192;
    const START: u64 = 3 * SEGMENT;

    fn cluster() -> Cluster {
        Cluster { system: 7_000_000_000_000_000_001, segment_size: SegmentSize::new(SEGMENT).unwrap() }
    }

    /// WAL as a server writes it (`CopyXLogRecordToWAL`), from `START` on.
    struct Wal {
        bytes: Vec<u8>,
        /// Bytes that a checksum or a header covers: all but padding.
        covered: Vec<bool>,
    }

    impl Wal {
        fn new() -> Self {
            Self { bytes: Vec::new(), covered: Vec::new() }
        }

        fn put(&mut self, bytes: &[u8], covered: bool) {
            self.bytes.extend_from_slice(bytes);
            self.covered.resize(self.bytes.len(), covered);
        }

        fn address(&self) -> u64 {
            START + self.bytes.len() as u64
        }

        fn page(&mut self, info: u16, remaining: u32) {
            let address = self.address();
            let long = address.is_multiple_of(SEGMENT);
            let info = info | if long { LONG } else { 0 };
            let mut header =
                [&0xD118u16.to_ne_bytes()[..], &info.to_ne_bytes(), &1u32.to_ne_bytes()].concat();
            header.extend(address.to_ne_bytes());
            header.extend(remaining.to_ne_bytes());
            self.put(&header, true);
            self.put(&[0; 4], false);
            if long {
                let cluster = cluster();
                self.put(&cluster.system.to_ne_bytes(), true);
                self.put(&(SEGMENT as u32).to_ne_bytes(), true);
                self.put(&(BLOCK as u32).to_ne_bytes(), true);
            }
        }

        /// The bytes of a record, over pages.
        fn spread(&mut self, mut bytes: &[u8]) {
            while !bytes.is_empty() {
                let left = BLOCK - self.address() % BLOCK;
                if left == BLOCK {
                    self.page(CONTINUES, u32::try_from(bytes.len()).unwrap());
                    continue;
                }
                let now = bytes.len().min(usize::try_from(left).unwrap());
                self.put(&bytes[..now], true);
                bytes = &bytes[now..];
            }
        }

        fn record(&mut self, rmid: u8, info: u8, data: &[u8]) {
            if self.address().is_multiple_of(BLOCK) {
                self.page(0, 0);
            }
            let mut header = (RECORD_HEADER as u32 + data.len() as u32).to_ne_bytes().to_vec();
            header.extend([0; 12]);
            header.extend([info, rmid, 0, 0]);
            let crc = to_crc(&Checksum::of(ChecksumAlgorithm::Crc32c, &[data, &header].concat()));
            header.extend(crc.to_ne_bytes());
            self.spread(&[&header, data].concat());
            let padding = self.address().next_multiple_of(ALIGNMENT) - self.address();
            self.put(&vec![0; padding as usize], false);
        }

        fn switch(&mut self) {
            self.record(XLOG, SWITCH, &[]);
            let left = SEGMENT - self.address() % SEGMENT;
            self.put(&vec![0; left as usize], false);
        }
    }

    fn wal() -> Wal {
        let mut wal = Wal::new();
        for number in 0..50u8 {
            wal.record(10, number, &vec![number; usize::from(number) * 37]);
        }
        // Over several pages, and to the last byte of one.
        wal.record(10, 1, &vec![9; 3 * 8192]);
        let left = BLOCK - wal.address() % BLOCK;
        wal.record(10, 2, &vec![3; left as usize - RECORD_HEADER]);
        // A header that two pages have.
        let left = BLOCK - 24 - 8;
        wal.record(10, 3, &vec![4; left as usize - RECORD_HEADER]);
        wal.record(10, 4, &[5; 100]);
        wal.switch();
        wal.record(10, 5, &[6; 9000]);
        wal
    }

    fn check(bytes: &[u8], step: usize) -> Result<()> {
        let mut records = Records::new(cluster(), 1, Lsn(START));
        bytes.chunks(step).try_for_each(|bytes| records.push(bytes))
    }

    #[test]
    fn wal_in_pieces_of_every_size() {
        let wal = wal();
        for step in [1, 7, 24, 8191, 8192, 100_000, usize::MAX] {
            check(&wal.bytes, step).unwrap();
            // It may end anywhere.
            check(&wal.bytes[..20_001], step).unwrap();
        }
    }

    #[test]
    fn a_stream_that_begins_within_a_record() {
        let mut wal = Wal::new();
        wal.page(CONTINUES, 10_000);
        wal.put(&vec![1; BLOCK as usize - LONG_HEADER], false);
        let left = 10_000 - (BLOCK as usize - LONG_HEADER);
        wal.page(CONTINUES, left as u32);
        wal.put(&vec![1; left.next_multiple_of(8)], false);
        wal.record(10, 1, &[2; 500]);
        check(&wal.bytes, 1000).unwrap();
    }

    #[test]
    fn a_record_that_was_given_up() {
        let mut wal = Wal::new();
        wal.record(10, 1, &[1; 100]);
        let begun = wal.bytes.len();
        wal.record(10, 2, &vec![2; 20_000]);
        wal.bytes.truncate(BLOCK as usize);
        assert!(begun < wal.bytes.len());
        wal.page(OVERWRITES, 0);
        wal.record(XLOG, 0xD0, &[0; 16]);
        wal.record(10, 3, &[3; 500]);
        check(&wal.bytes, 1000).unwrap();
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let wal = wal();
        let mut noticed = 0;
        for at in (0..wal.bytes.len()).filter(|at| wal.covered[*at] && (at % 13 == 0 || at % 8192 < 48)) {
            let mut bytes = wal.bytes.clone();
            bytes[at] ^= 0x10;
            // A length that has grown is only noticed at the record's end.
            let outcome = check(&bytes, 100_000);
            assert!(outcome.is_err(), "byte {at}");
            noticed += 1;
        }
        assert!(noticed > 3000, "{noticed}");
    }

    #[test]
    fn pages_of_a_segment() {
        let wal = wal();
        let number = START / SEGMENT;
        let of = |bytes: &[u8], timeline: u32, number: u64, stop: u64| {
            let mut pages = SegmentPages::new(cluster(), Segment { timeline, number }, Lsn(stop));
            bytes.chunks(5000).for_each(|bytes| pages.push(bytes));
            pages.finish()
        };
        let segment = &wal.bytes[..SEGMENT as usize];
        of(segment, 1, number, START + SEGMENT).unwrap();
        of(segment, 2, number, START + SEGMENT).unwrap();
        // Recycled: what was another segment.
        let error = of(segment, 1, number + 1, START + 2 * SEGMENT).unwrap_err();
        assert!(error.message().contains("unexpected page address 0/300000"), "{error}");
        // From the middle on, while it was read.
        let mut recycled = segment.to_vec();
        recycled[5 * BLOCK as usize + 10] ^= 1;
        of(&recycled, 1, number, START + 5 * BLOCK).unwrap();
        assert!(of(&recycled, 1, number, START + 5 * BLOCK + 1).is_err());
        let mut other = segment.to_vec();
        other[24] ^= 1;
        assert!(of(&other, 1, number, START + SEGMENT).unwrap_err().message().contains("system identifier"));
    }
}
