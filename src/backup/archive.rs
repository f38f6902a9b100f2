//! Waiting until the WAL that a backup needs is archived.

use std::time::{Duration, Instant};

use protocol::wal::Segment;

use crate::backup::results::Stopped;
use crate::cluster::wal::WalRange;
use crate::error::Result;
use crate::pg::interrupt::{self, WaitEvent};
use crate::pg::{report, wal};

/// Silence before the first notice, as in do_pg_backup_stop.
const FIRST_NOTICE: Duration = Duration::from_secs(5);
/// Time before the first warning; doubled with each.
const FIRST_WARNING: Duration = Duration::from_secs(60);

/// A wait for the archive, by whoever looks at it.
#[derive(Debug)]
pub struct Waiting {
    files: [String; 2],
    since: Instant,
    next_warning: Duration,
}

impl Waiting {
    /// For this backup; `None` where nothing archives here.
    pub fn new(stopped: &Stopped) -> Option<Self> {
        wal::archiving(stopped.in_recovery).then(|| Self {
            files: required_files(&stopped.wal),
            since: Instant::now(),
            next_warning: FIRST_WARNING,
        })
    }

    /// Whether all is archived.
    pub fn is_over(&self) -> bool {
        !self.files.iter().any(|file| wal::archive_is_busy(file))
    }

    /// The seconds that have passed, if it is time for another warning.
    pub fn warning_is_due(&mut self) -> Option<u64> {
        let elapsed = self.since.elapsed();
        (elapsed >= self.next_warning).then(|| {
            self.next_warning *= 2;
            elapsed.as_secs()
        })
    }
}

/// Waits as do_pg_backup_stop does, with its messages. It can be cancelled: the backup is over by
/// now and stays stopped. `look` says whether all is archived, where another process looks at that.
pub fn wait(stopped: &Stopped, look: Option<impl Fn() -> Result<bool>>) -> Result<()> {
    let Some(mut waiting) = Waiting::new(stopped) else {
        report::notice(
            "WAL archiving is not enabled; you must ensure that all required WAL segments are copied \
             through other means to complete the backup",
        );
        return Ok(());
    };
    let mut noticed = false;
    loop {
        let is_over = match &look {
            Some(look) => look()?,
            None => waiting.is_over(),
        };
        if is_over {
            break;
        }
        if !noticed && waiting.since.elapsed() > FIRST_NOTICE {
            report::notice("base backup done, waiting for required WAL segments to be archived");
            noticed = true;
        }
        interrupt::sleep(Duration::from_secs(1), WaitEvent::WalArchive);
        if let Some(seconds) = waiting.warning_is_due() {
            warn(seconds);
        }
    }
    report::notice("all required WAL segments have been archived");
    Ok(())
}

/// Says that it takes long.
pub fn warn(seconds: u64) {
    report::warning_with_hint(
        format!("still waiting for all required WAL segments to be archived ({seconds} seconds elapsed)"),
        "Check that your \"archive_command\" is executing properly.  You can safely cancel this \
         backup, but the database backup will not be usable without all the WAL segments.",
    );
}

/// The last segment and the backup history file: files are archived in the order of their names,
/// so that all others are when these two are.
fn required_files(range: &WalRange) -> [String; 2] {
    let segment = |number| Segment { timeline: range.stop_timeline, number }.name(range.segment_size);
    let first = range.start.0 / range.segment_size;
    let offset = range.start.0 % range.segment_size;
    [segment(*range.segments().end()), format!("{}.{offset:08X}.backup", segment(first))]
}
