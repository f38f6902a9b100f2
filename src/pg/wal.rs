//! WAL: segment size, removal, archiving and timelines.

use std::ffi::CString;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use protocol::Lsn;

use crate::pg::{node, shim};

/// A timeline in the history of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineEntry {
    /// The timeline.
    pub timeline: u32,
    /// Where it began; 0 for the first.
    pub begin: Lsn,
    /// Where it ended, exclusive; 0 where it has not.
    pub end: Lsn,
}

/// Bytes in a WAL segment.
#[allow(unsafe_code)]
pub fn segment_size() -> u64 {
    // SAFETY: read from the control file before any backend starts.
    unsafe { pg_sys::wal_segment_size as u64 }
}

/// Whether a segment has been removed or recycled: CheckXLogRemoved's rule. That function itself
/// takes the SQLSTATE from whatever errno happens to be.
#[allow(unsafe_code)]
pub fn is_removed(segment: u64) -> bool {
    // SAFETY: reads shared memory.
    segment <= unsafe { pg_sys::XLogGetLastRemovedSegno() }
}

/// Whether WAL files have to be waited for: whether an archiver runs here.
#[allow(unsafe_code)]
pub fn archiving(in_recovery: bool) -> bool {
    // SAFETY: reads a setting.
    let mode = unsafe { pg_sys::XLogArchiveMode } as u32;
    if in_recovery {
        mode == pg_sys::ArchiveMode::ARCHIVE_MODE_ALWAYS
    } else {
        mode > pg_sys::ArchiveMode::ARCHIVE_MODE_OFF
    }
}

/// Whether a file of pg_wal is yet to be archived.
#[allow(unsafe_code)]
pub fn archive_is_busy(name: &str) -> bool {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a C string, only read.
    unsafe { guarded(|| shim::ppb_archive_is_busy(name.as_ptr())) }
}

/// The history of a timeline, itself first.
#[allow(unsafe_code)]
pub fn timeline_history(timeline: u32) -> Vec<TimelineEntry> {
    // SAFETY: the answer is a List of TimeLineHistoryEntry in the current memory context.
    unsafe {
        node::pointers(guarded(|| shim::ppb_timeline_history(timeline)))
            .map(|entry| {
                let (mut timeline, mut begin, mut end) = (0, 0, 0);
                shim::ppb_timeline_entry(entry.cast(), &mut timeline, &mut begin, &mut end);
                TimelineEntry { timeline, begin: Lsn(begin), end: Lsn(end) }
            })
            .collect()
    }
}
