//! --progress: for people a bar on a terminal and plain lines elsewhere, for programs lines of JSON.

use std::io::IsTerminal;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use super::counters::{Counters, Outcome, Phase};
use super::{bar, json};
use crate::options::Progress;
use crate::report;

/// How often a plain line is printed.
const LINES_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked whether it is time for one.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Says when to stop showing.
#[derive(Debug, Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Stop.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// True if it is time to stop; false once the time is over.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        *self
            .changed
            .wait_timeout_while(stopped, time, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

/// Stops the showing when it goes out of scope, by a panic too: the scope of the thread that shows would
/// never end.
#[derive(Debug)]
pub struct Stopper<'a>(pub &'a Stop);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// How progress is shown.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// To whom; to nobody if that is none.
    pub progress: Option<Progress>,
    /// What each connection does is shown too.
    pub verbose: bool,
    /// Standard output has the backup itself.
    pub stdout_is_taken: bool,
}

/// Runs `work`, and shows progress meanwhile on a thread of its own.
pub fn shown<T>(style: Style, counters: &Counters, work: impl FnOnce() -> T) -> T {
    let stop = Stop::default();
    std::thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        if style.progress.is_some() {
            scope.spawn(|| show(style, counters, &stop));
        }
        work()
    })
}

/// Shows progress until told to stop.
fn show(style: Style, counters: &Counters, stop: &Stop) {
    if style.progress == Some(Progress::Json) {
        json::show(style.stdout_is_taken, counters, stop);
    } else if std::io::stderr().is_terminal() {
        bar::show(style.verbose, counters, stop);
    } else {
        let mut last = Instant::now();
        while !stop.wait(LOOK_EVERY) {
            if last.elapsed() >= LINES_EVERY && counters.phase() >= Phase::Files {
                last = Instant::now();
                report::print(&line(counters));
            }
        }
        // Of a backup that has not begun there is nothing to say.
        if counters.phase() >= Phase::Files {
            report::print(&line(counters));
        }
    }
}

fn line(counters: &Counters) -> String {
    let done = counters.done().0 / 1024;
    let files = files(counters);
    let Some(total) = counters.total().map(|total| total / 1024) else {
        return format!("{done} kB, {files}");
    };
    let percent = percent(done, total);
    let width = total.to_string().len();
    format!("{done:width$}/{total} kB ({percent}%), {files}")
}

/// How much of all that is; all of nothing is everything.
pub(super) fn percent(done: u64, total: u64) -> u64 {
    u64::try_from(u128::from(done) * 100 / u128::from(total.max(1)))
        .map_or(100, |percent| if total == 0 { 100 } else { percent.min(100) })
}

/// Files so far, and of how many.
pub(super) fn files(counters: &Counters) -> String {
    let done = counters.done().1;
    match counters.files_total() {
        Some(total) => format!("{done}/{total} files"),
        None => format!("{done} files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_showing() {
        let counters = Counters::default();
        let style = Style { progress: Some(Progress::Text), verbose: false, stdout_is_taken: false };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            shown(style, &counters, || panic!("on purpose"))
        }));
        assert!(outcome.is_err());
    }

    #[test]
    fn lines() {
        let counters = Counters::default();
        let line = || line(&counters);
        assert_eq!(line(), "0 kB, 0 files");
        counters.received(50 << 10);
        counters.file();
        assert_eq!(line(), "50 kB, 1 files");
        counters.expect(3, 200 << 10);
        assert_eq!(line(), " 50/200 kB (25%), 1/3 files");
        counters.lost(40 << 10);
        assert_eq!(line(), " 10/200 kB (5%), 1/3 files");
        counters.lost(11 << 10);
        assert_eq!(line(), "  0/200 kB (0%), 1/3 files");
        counters.received(410 << 10);
        assert_eq!(line(), "410/410 kB (100%), 1/3 files");
    }

    #[test]
    fn percentages() {
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(2, 1), 100);
    }
}
