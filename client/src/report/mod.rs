//! Everything that is printed: to stderr, one message at a time, in the form of PostgreSQL's other
//! programs, and never through the middle of a progress bar.

mod bar;
mod color;
mod counters;
pub mod json;
pub mod meter;
pub mod progress;
pub mod summary;

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use indicatif::ProgressBar;

use self::color::{Part, paint};
use crate::error::{Error, Kind};

/// The program's own name.
pub const PROGRAM: &str = "pg_parallel_basebackup";

static CALLED: OnceLock<String> = OnceLock::new();

/// From now on messages begin with the name by which the program was called, as PostgreSQL's own programs do
/// it: a link `pg_basebackup` that leads here speaks as pg_basebackup.
pub fn set_program(called: &OsStr) {
    if let Some(name) = Path::new(called).file_name() {
        // Once is enough.
        let _ = CALLED.set(name.to_string_lossy().into_owned());
    }
}

/// The name that messages begin with.
pub fn program() -> &'static str {
    CALLED.get().map_or(PROGRAM, String::as_str)
}

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Messages from now on make room for this bar, or for none.
pub fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// An error with its detail and hint.
pub fn error(error: &Error) {
    let mut lines = vec![line(Part::Error, "error: ", error.message())];
    lines.extend(error.detail().map(|detail| line(Part::Note, "detail: ", detail)));
    lines.extend(error.hint().map(|hint| line(Part::Note, "hint: ", hint)));
    if error.kind() == Kind::Usage {
        let help = format!("Try \"{} --help\" for more information.", program());
        lines.push(line(Part::Note, "hint: ", &help));
    }
    print(&lines.join("\n"));
}

/// A panic: nobody has foreseen it.
pub fn bug(what: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let hint = format!(
        "This is a bug in {PROGRAM} {version}. Please report it to the developers of pg_parallel_backup, with \
         these lines and what was being done."
    );
    let error = line(Part::Error, "error: ", &format!("internal error: {what}"));
    let text = format!("{error}\n{}", line(Part::Note, "hint: ", &hint));
    match BAR.try_lock() {
        Ok(bar) => print_beside(bar.as_ref(), &text),
        // Held by this very thread, perhaps.
        Err(_) => print_beside(None, &text),
    }
}

/// A warning.
pub fn warning(message: impl Display) {
    print(&line(Part::Warning, "warning: ", &message.to_string()));
}

/// Information, for --verbose and for what was removed.
pub fn info(message: impl Display) {
    print(&line(Part::Locus, "", &message.to_string()));
}

/// A message as PostgreSQL's programs write it.
fn line(part: Part, kind: &str, message: &str) -> String {
    let program = paint(Part::Locus, &format!("{}: ", program()));
    let kind = if kind.is_empty() { String::new() } else { paint(part, kind) };
    format!("{program}{kind}{message}")
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
