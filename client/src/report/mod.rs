//! Everything that is printed: to stderr, one message at a time, in the form of PostgreSQL's other
//! programs, and never through the middle of a progress bar.

pub mod progress;

use std::fmt::Display;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

use crate::error::{Error, Kind};

/// The program's name, as every message begins.
pub const PROGRAM: &str = "pg_parallel_basebackup";

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Messages from now on make room for this bar, or for none.
pub fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// An error with its detail and hint.
pub fn error(error: &Error) {
    let mut lines = vec![format!("{PROGRAM}: error: {}", error.message())];
    if let Some(detail) = error.detail() {
        lines.push(format!("{PROGRAM}: detail: {detail}"));
    }
    if let Some(hint) = error.hint() {
        lines.push(format!("{PROGRAM}: hint: {hint}"));
    }
    if error.kind() == Kind::Usage {
        lines.push(format!("{PROGRAM}: hint: Try \"{PROGRAM} --help\" for more information."));
    }
    print(&lines.join("\n"));
}

/// A panic: nobody has foreseen it.
pub fn bug(what: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "{PROGRAM}: error: internal error: {what}\n{PROGRAM}: hint: This is a bug in {PROGRAM} {version}. Please \
         report it to the developers of pg_parallel_backup, with these lines and what was being done."
    );
    match BAR.try_lock() {
        Ok(bar) => print_beside(bar.as_ref(), &text),
        // Held by this very thread, perhaps.
        Err(_) => print_beside(None, &text),
    }
}

/// A warning.
pub fn warning(message: impl Display) {
    print(&format!("{PROGRAM}: warning: {message}"));
}

/// Information, for --verbose and for what was removed.
pub fn info(message: impl Display) {
    print(&format!("{PROGRAM}: {message}"));
}

/// A line that has its form already: the server's notices, progress.
pub fn print(line: &str) {
    print_beside(BAR.lock().unwrap_or_else(PoisonError::into_inner).as_ref(), line);
}

fn print_beside(bar: Option<&ProgressBar>, line: &str) {
    let write = || {
        let mut stderr = std::io::stderr().lock();
        // Nobody is left to tell when stderr is gone.
        let _ = stderr.write_all(line.trim_end_matches('\n').as_bytes());
        let _ = stderr.write_all(b"\n");
        let _ = stderr.flush();
    };
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}
