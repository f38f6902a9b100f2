//! --progress=json: a line a second, for a program. The backup goes on whether that listens or not.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::counters::{Counters, Outcome, Phase};
use super::progress::Stop;
use crate::error::os_message;
use crate::report;

/// How often a line is written.
const EVERY: Duration = Duration::from_secs(1);

/// Over how many lines the rate is taken.
const WINDOW: usize = 10;

/// How long the last line waits for somebody to take it.
const LAST_WAITS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long any other line does.
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// One line: a JSON object. docs/options.md has the fields.
#[derive(Debug, Serialize)]
struct Line {
    time: String,
    outcome: Outcome,
    phase: Phase,
    elapsed_seconds: f64,
    bytes_done: u64,
    bytes_total: Option<u64>,
    files_done: u64,
    files_total: Option<u64>,
    bytes_per_second: u64,
    seconds_left: Option<u64>,
    retries: u64,
    connections_lost: u64,
}

/// Writes lines until told to stop, and then a last one.
pub fn show(stdout_is_taken: bool, counters: &Counters, stop: &Stop) {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let output: &dyn AsFd = if stdout_is_taken { &stderr } else { &stdout };
    let mut rate = Rate::default();
    rate.see(Instant::now(), 0);
    loop {
        let stopped = stop.wait(EVERY);
        let line = line(counters, &mut rate);
        if let Err(error) = write(output, &line, if stopped { LAST_WAITS } else { NO_TIME }) {
            report::warning(format_args!("could not write progress: {}", os_message(&error)));
            return;
        }
        if stopped {
            return;
        }
    }
}

fn line(counters: &Counters, rate: &mut Rate) -> String {
    let (bytes_done, files_done) = counters.done();
    let bytes_total = counters.total();
    if counters.phase() < Phase::Files {
        rate.0.clear();
    }
    let bytes_per_second = rate.see(Instant::now(), bytes_done);
    let left = |total: u64| total.saturating_sub(bytes_done).checked_div(bytes_per_second);
    let outcome = counters.outcome();
    let line = Line {
        time: now(),
        outcome,
        phase: counters.phase(),
        elapsed_seconds: seconds(counters.elapsed()),
        bytes_done,
        bytes_total,
        files_done,
        files_total: counters.files_total(),
        bytes_per_second,
        seconds_left: bytes_total.and_then(left).filter(|_| outcome == Outcome::Running),
        retries: counters.retries(),
        connections_lost: counters.lost_connections().0,
    };
    // Nothing in it that JSON would not take.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// Writes a line if somebody takes it within the time. A line is shorter than what a pipe that can be written
/// to takes at once (PIPE_BUF), so that nobody who has ceased to read holds the backup up.
fn write(output: &dyn AsFd, line: &str, patience: Timespec) -> io::Result<()> {
    let mut descriptors = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::OUT)];
    match poll(&mut descriptors, Some(&patience)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(output.as_fd(), rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Not ours to make it wait.
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The moment, in UTC, as RFC 3339 writes it.
pub fn now() -> String {
    rfc3339(Timestamp::now())
}

/// A moment to the millisecond.
pub(super) fn rfc3339(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// To the millisecond.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Bytes a second over the last lines.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    fn see(&mut self, now: Instant, bytes: u64) -> u64 {
        if self.0.len() > WINDOW {
            self.0.pop_front();
        }
        self.0.push_back((now, bytes));
        let (began, before) = self.0[0];
        let elapsed = now.saturating_duration_since(began).as_secs_f64();
        if elapsed == 0.0 {
            return 0;
        }
        // Bytes that had to come again may have been more than came.
        (bytes.saturating_sub(before) as f64 / elapsed) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let counters = Counters::default();
        counters.enter(Phase::Files);
        counters.expect(2, 4096);
        counters.received(1024);
        let text = line(&counters, &mut Rate::default());
        assert!(text.len() < 4096 && text.ends_with("}\n") && text.matches('\n').count() == 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["phase"], "files");
        assert_eq!(value["outcome"], "running");
        assert_eq!(value["bytes_done"], 1024);
        assert_eq!(value["bytes_total"], 4096);
        assert_eq!(value["files_total"], 2);
        assert!(value["seconds_left"].is_null());
        let time = value["time"].as_str().unwrap();
        assert!(time.len() == "2026-01-02T03:04:05.678Z".len() && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn the_rate_is_that_of_the_last_lines() {
        let mut rate = Rate::default();
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        assert_eq!(rate.see(at(0), 0), 0);
        assert_eq!(rate.see(at(1), 100), 100);
        for second in 2..=20 {
            rate.see(at(second), 100);
        }
        assert_eq!(rate.see(at(21), 1100), 100);
        assert_eq!(rate.see(at(22), 50), 0);
    }

    #[test]
    fn who_does_not_read_holds_nobody_up() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let line = "x".repeat(500);
        // Far more than a pipe takes.
        for _ in 0..1000 {
            write(&writer, &line, NO_TIME).unwrap();
        }
        drop(reader);
        assert_eq!(write(&writer, &line, NO_TIME).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
