//! What START_BACKUP and STOP_BACKUP return, beside the facts of the table: as values, and as bytes for another
//! process of the same server, where a keeper has found it.

use bytes::{Buf, BufMut};
use protocol::Lsn;

use crate::backup::registry::Totals;
use crate::backup::wal_ranges::WalSpan;
use crate::cluster::wal::WalRange;
use crate::cluster::{put_bytes, take_bytes};

/// What START_BACKUP returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The content of backup_label.
    pub label_file: Vec<u8>,
    /// The content of tablespace_map, empty where there is no tablespace.
    pub tablespace_map: Vec<u8>,
    /// Bytes in each tablespace, the data directory last, if they were asked for.
    pub sizes: Option<Vec<u64>>,
}

/// A stopped backup: what STOP_BACKUP returns however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// What of pg_wal it needs.
    pub wal: WalRange,
    /// Whether the server was a standby when it was stopped.
    pub in_recovery: bool,
    /// pg_control's bytes.
    pub control_file: Vec<u8>,
    /// The manifest's WAL ranges.
    pub spans: Vec<WalSpan>,
    /// The WAL files that BASE_BACKUP's WAL option would send.
    pub wal_files: Vec<String>,
    /// The totals over all connections.
    pub totals: Totals,
}

impl Started {
    /// All sizes together.
    pub fn total(&self) -> Option<u64> {
        self.sizes.as_ref().map(|sizes| sizes.iter().sum())
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, &self.label_file);
        put_bytes(&mut out, &self.tablespace_map);
        // There is one for the data directory at least.
        self.sizes.iter().flatten().for_each(|size| out.put_u64(*size));
        out
    }

    /// The reverse of [`encode`](Self::encode); `None` where the bytes are not from there.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let label_file = take_bytes(&mut bytes)?;
        let tablespace_map = take_bytes(&mut bytes)?;
        let mut sizes = Vec::new();
        while bytes.has_remaining() {
            sizes.push(bytes.try_get_u64().ok()?);
        }
        Some(Self { label_file, tablespace_map, sizes: Some(sizes).filter(|sizes| !sizes.is_empty()) })
    }
}

impl Stopped {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let wal = &self.wal;
        [wal.start.0, wal.stop.0, wal.segment_size].into_iter().for_each(|number| out.put_u64(number));
        [wal.start_timeline, wal.stop_timeline].into_iter().for_each(|timeline| out.put_u32(timeline));
        out.put_u8(u8::from(self.in_recovery));
        let totals = &self.totals;
        [totals.files, totals.bytes, totals.checksum_failures]
            .into_iter()
            .for_each(|count| out.put_u64(count));
        put_bytes(&mut out, &self.control_file);
        put_count(&mut out, self.spans.len());
        for span in &self.spans {
            out.put_u32(span.timeline);
            out.put_u64(span.start.0);
            out.put_u64(span.end.0);
        }
        put_count(&mut out, self.wal_files.len());
        self.wal_files.iter().for_each(|name| put_bytes(&mut out, name.as_bytes()));
        out
    }

    /// The reverse of [`encode`](Self::encode); `None` where the bytes are not from there.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let (start, stop) = (take_lsn(bytes)?, take_lsn(bytes)?);
        let segment_size = bytes.try_get_u64().ok()?;
        let wal = WalRange {
            start,
            stop,
            segment_size,
            start_timeline: bytes.try_get_u32().ok()?,
            stop_timeline: bytes.try_get_u32().ok()?,
        };
        let in_recovery = bytes.try_get_u8().ok()? != 0;
        let totals = Totals {
            files: bytes.try_get_u64().ok()?,
            bytes: bytes.try_get_u64().ok()?,
            checksum_failures: bytes.try_get_u64().ok()?,
        };
        let control_file = take_bytes(bytes)?;
        let span = |bytes: &mut &[u8]| {
            let timeline = bytes.try_get_u32().ok()?;
            Some(WalSpan { timeline, start: take_lsn(bytes)?, end: take_lsn(bytes)? })
        };
        let spans = take_list(bytes, span)?;
        let wal_files = take_list(bytes, |bytes| String::from_utf8(take_bytes(bytes)?).ok())?;
        (!bytes.has_remaining()).then_some(Self { wal, in_recovery, control_file, spans, wal_files, totals })
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
}

fn take_list<T>(bytes: &mut &[u8], item: impl Fn(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    let count = bytes.try_get_u32().ok()?;
    (0..count).map(|_| item(bytes)).collect()
}

fn take_lsn(bytes: &mut &[u8]) -> Option<Lsn> {
    bytes.try_get_u64().ok().map(Lsn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_returned_survives_the_way_to_another_process() {
        let mut started = Started {
            label_file: b"START WAL LOCATION: 0/2000028\nLABEL: \xff\n".to_vec(),
            tablespace_map: vec![],
            sizes: None,
        };
        for sizes in [None, Some(vec![0]), Some(vec![u64::MAX / 2, 7])] {
            started.sizes = sizes;
            let bytes = started.encode();
            assert_eq!(Started::decode(&bytes), Some(started.clone()));
            assert_eq!(Started::decode(&bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(started.total(), Some(u64::MAX / 2 + 7));

        let stopped = Stopped {
            wal: WalRange {
                start: Lsn(0x200_0028),
                stop: Lsn(0x400_0100),
                start_timeline: 1,
                stop_timeline: 2,
                segment_size: 1 << 24,
            },
            in_recovery: true,
            control_file: vec![0xA5; 8192],
            spans: vec![
                WalSpan { timeline: 2, start: Lsn(0x300_0000), end: Lsn(0x400_0100) },
                WalSpan { timeline: 1, start: Lsn(0x200_0028), end: Lsn(0x300_0000) },
            ],
            wal_files: vec!["000000020000000000000003".into(), "00000002.history".into()],
            totals: Totals { files: 3, bytes: 1 << 40, checksum_failures: 2 },
        };
        let bytes = stopped.encode();
        assert_eq!(Stopped::decode(&bytes), Some(stopped));
        assert!((0..bytes.len()).all(|length| Stopped::decode(&bytes[..length]).is_none()));
        assert_eq!(Stopped::decode(&[&bytes[..], b"x"].concat()), None);
    }
}
