//! Waiting until the WAL that a backup needs is archived.

use std::time::Duration;

use protocol::wal::Segment;

use crate::backup::session::Stopped;
use crate::cluster::wal::WalRange;
use crate::pg::interrupt::{self, WaitEvent};
use crate::pg::{report, wal};

/// Seconds of silence before the first notice, as in do_pg_backup_stop.
const FIRST_NOTICE: u32 = 5;
/// Seconds before the first warning; doubled with each.
const FIRST_WARNING: u32 = 60;

/// Waits as do_pg_backup_stop does, with its messages. It can be cancelled: the backup is over by
/// now and stays stopped.
pub fn wait(stopped: &Stopped) {
    if !wal::archiving(stopped.in_recovery) {
        report::notice(
            "WAL archiving is not enabled; you must ensure that all required WAL segments are copied \
             through other means to complete the backup",
        );
        return;
    }
    let files = required_files(&stopped.wal);
    let mut seconds = 0;
    let mut next_warning = FIRST_WARNING;
    let mut noticed = false;
    while files.iter().any(|file| wal::archive_is_busy(file)) {
        if !noticed && seconds > FIRST_NOTICE {
            report::notice("base backup done, waiting for required WAL segments to be archived");
            noticed = true;
        }
        interrupt::sleep(Duration::from_secs(1), WaitEvent::WalArchive);
        seconds += 1;
        if seconds >= next_warning {
            next_warning *= 2;
            report::warning_with_hint(
                format!(
                    "still waiting for all required WAL segments to be archived ({seconds} seconds elapsed)"
                ),
                "Check that your \"archive_command\" is executing properly.  You can safely cancel this \
                 backup, but the database backup will not be usable without all the WAL segments.",
            );
        }
    }
    report::notice("all required WAL segments have been archived");
}

/// The last segment and the backup history file: files are archived in the order of their names,
/// so that all others are when these two are.
fn required_files(range: &WalRange) -> [String; 2] {
    let segment = |number| Segment { timeline: range.stop_timeline, number }.name(range.segment_size);
    let first = range.start.0 / range.segment_size;
    let offset = range.start.0 % range.segment_size;
    [segment(*range.segments().end()), format!("{}.{offset:08X}.backup", segment(first))]
}
