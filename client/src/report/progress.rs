//! --progress: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report;

/// How often a plain line is printed.
const LINES_EVERY: Duration = Duration::from_secs(5);

/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(200);

/// What was received so far, counted by all connections.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes received.
    done: AtomicU64,
    /// Bytes to be received.
    total: AtomicU64,
    /// Files finished.
    files_done: AtomicU64,
    /// Files to be fetched.
    files_total: AtomicU64,
}

impl Counters {
    /// More is to come.
    pub fn expect(&self, files: usize, bytes: u64) {
        self.files_total.fetch_add(files as u64, Ordering::Relaxed);
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes came.
    pub fn received(&self, bytes: usize) {
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that came have to come again.
    pub fn lost(&self, bytes: u64) {
        // A file may be given up by two of those that were at it.
        let less = |done: u64| Some(done.saturating_sub(bytes));
        let _ = self.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// A file is finished.
    pub fn file(&self) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes and files so far.
    pub fn done(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.files_done.load(Ordering::Relaxed))
    }

    /// Bytes to be received; unknown while the list is still coming. Files may have grown since they
    /// were listed: the total is never less than what came.
    fn total(&self) -> Option<u64> {
        let total = self.total.load(Ordering::Relaxed).max(self.done.load(Ordering::Relaxed));
        (self.files_total.load(Ordering::Relaxed) > 0).then_some(total)
    }

    fn line(&self) -> String {
        let done = self.done().0 / 1024;
        let Some(total) = self.total().map(|total| total / 1024) else {
            return format!("{done} kB, {}", self.files());
        };
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        let width = total.to_string().len();
        format!("{done:width$}/{total} kB ({percent}%), {}", self.files())
    }

    fn files(&self) -> String {
        let (done, total) = (self.done().1, self.files_total.load(Ordering::Relaxed));
        if total > 0 { format!("{done}/{total} files") } else { format!("{done} files") }
    }
}

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
    fn wait(&self, time: Duration) -> bool {
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

/// Shows progress until told to stop.
pub fn show(counters: &Counters, stop: &Stop) {
    if std::io::stderr().is_terminal() {
        show_bar(counters, stop);
    } else {
        let mut last = Instant::now();
        while !stop.wait(BAR_EVERY) {
            if last.elapsed() >= LINES_EVERY {
                last = Instant::now();
                report::print(&counters.line());
            }
        }
        report::print(&counters.line());
    }
}

fn show_bar(counters: &Counters, stop: &Stop) {
    let bar = ProgressBar::with_draw_target(counters.total(), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(
        "{wide_bar} {percent:>3}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left, {msg}",
    ) {
        bar.set_style(style);
    }
    report::set_bar(Some(bar.clone()));
    loop {
        let stopped = stop.wait(BAR_EVERY);
        if let Some(total) = counters.total() {
            bar.set_length(total);
        }
        bar.set_position(counters.done().0);
        bar.set_message(counters.files());
        if stopped {
            break;
        }
    }
    report::set_bar(None);
    bar.abandon();
    // The bar stays, and what comes next begins below it.
    report::print("");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_showing() {
        let (counters, stop) = (Counters::default(), Stop::default());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                let _stopper = Stopper(&stop);
                scope.spawn(|| show(&counters, &stop));
                panic!("on purpose");
            })
        }));
        assert!(outcome.is_err());
    }

    #[test]
    fn lines() {
        let counters = Counters::default();
        assert_eq!(counters.line(), "0 kB, 0 files");
        counters.received(50 << 10);
        counters.file();
        assert_eq!(counters.line(), "50 kB, 1 files");
        counters.expect(3, 200 << 10);
        assert_eq!(counters.line(), " 50/200 kB (25%), 1/3 files");
        counters.lost(40 << 10);
        assert_eq!(counters.line(), " 10/200 kB (5%), 1/3 files");
        counters.lost(11 << 10);
        assert_eq!(counters.line(), "  0/200 kB (0%), 1/3 files");
        counters.received(410 << 10);
        assert_eq!(counters.line(), "410/410 kB (100%), 1/3 files");
    }
}
