//! The WAL ranges of a backup, for backup_manifest.

use protocol::Lsn;

use crate::error::{Error, Result};
use crate::pg::wal::TimelineEntry;

/// WAL of one timeline that must be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalSpan {
    /// The timeline.
    pub timeline: u32,
    /// From here,
    pub start: Lsn,
    /// up to here, exclusive.
    pub end: Lsn,
}

/// The spans between a backup's start and its stop, newest timeline first, from the history of
/// the timeline on which it stopped. The rule of AddWALInfoToBackupManifest (backup_manifest.c).
pub fn wal_spans(history: &[TimelineEntry], start: (Lsn, u32), stop: (Lsn, u32)) -> Result<Vec<WalSpan>> {
    let broken = || Error::TimelineHistory { start: start.1, end: stop.1 };
    let mut spans = Vec::new();
    let mut end = stop.0;
    for entry in history {
        // Ended before the backup began.
        if entry.end != Lsn(0) && entry.end < start.0 {
            continue;
        }
        if spans.is_empty() && entry.timeline != stop.1 {
            return Err(broken());
        }
        if entry.timeline == start.1 {
            spans.push(WalSpan { timeline: entry.timeline, start: start.0, end });
            return Ok(spans);
        }
        // The first of all timelines has no beginning, and is not the one the backup began on.
        if entry.begin == Lsn(0) {
            return Err(broken());
        }
        spans.push(WalSpan { timeline: entry.timeline, start: entry.begin, end });
        end = entry.begin;
    }
    Err(broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(timeline: u32, begin: u64, end: u64) -> TimelineEntry {
        TimelineEntry { timeline, begin: Lsn(begin), end: Lsn(end) }
    }

    fn span(timeline: u32, start: u64, end: u64) -> WalSpan {
        WalSpan { timeline, start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn one_timeline() {
        let history = [entry(2, 100, 0), entry(1, 0, 100)];
        assert_eq!(wal_spans(&history, (Lsn(150), 2), (Lsn(300), 2)).unwrap(), [span(2, 150, 300)]);
    }

    #[test]
    fn across_timelines() {
        let history = [entry(3, 200, 0), entry(2, 100, 200), entry(1, 0, 100)];
        assert_eq!(
            wal_spans(&history, (Lsn(50), 1), (Lsn(300), 3)).unwrap(),
            [span(3, 200, 300), span(2, 100, 200), span(1, 50, 100)]
        );
    }

    #[test]
    fn a_history_that_does_not_fit() {
        let history = [entry(3, 200, 0), entry(1, 0, 200)];
        assert!(wal_spans(&history, (Lsn(50), 2), (Lsn(300), 3)).is_err());
        assert!(wal_spans(&history, (Lsn(50), 1), (Lsn(300), 4)).is_err());
        assert!(wal_spans(&[], (Lsn(50), 1), (Lsn(300), 1)).is_err());
    }
}
