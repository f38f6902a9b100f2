//! Two programs. `pg_parallel_basebackup` makes a base backup of a running PostgreSQL server over several connections
//! at once, as `docs/protocol.md` describes it; `pg_parallel_restore` makes a data directory of what it has written.
//!
//! `backup` and `restore` say in which order things happen, the rooms below them how:
//! - `options`: the command line;
//! - `server`: connections, commands and their results, what comes read past libpq;
//! - `fetch`: files and who fetches them, until they are known to be right;
//! - `compress`: what comes compressed;
//! - `wal`: segments, the WAL stream, and what WAL says of itself;
//! - `output`: where all of it goes;
//! - `objects`: object storage, for those who write there and those who read;
//! - `catalog`: what a backup in volumes says of itself;
//! - `report`: what the user hears.
//!
//! All of them use `abort`, `signals` and `error` (how it ends), `manifest`, `chunk` (bytes in memory that is shared), and `os`
//! and `limits` (the operating system). Unsafe code is in `server::pq`, `server::tls` and `os`.

mod abort;
#[cfg(test)]
mod allocations;
mod backup;
mod catalog;
mod chunk;
mod compress;
mod error;
mod fetch;
#[cfg(fuzzing)]
pub mod fuzzing;
mod limits;
mod manifest;
mod objects;
mod options;
mod os;
mod output;
mod report;
mod restore;
mod server;
mod signals;
mod wal;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use abort::Abort;
use error::{Error, Kind};
use options::Invocation;
use output::cleanup::Cleanup;

/// The program `pg_parallel_basebackup`.
pub fn basebackup() -> ExitCode {
    run_program(run_backup)
}

/// The program `pg_parallel_restore`.
pub fn restore() -> ExitCode {
    run_program(run_restore)
}

fn run_program(run: fn() -> std::result::Result<(), Failed>) -> ExitCode {
    os::use_language();
    if let Some(called) = std::env::args_os().next() {
        report::set_program(&called);
    }
    signals::report_panics();
    let code = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => 0,
        Ok(Err(Failed { error, code })) => {
            // What was aborted has been reported where it was.
            if error.kind() != Kind::Aborted {
                report::error(&error);
            }
            code
        }
        // Reported too.
        Err(_) => FAILED,
    };
    if !server::cancel::wait() {
        os::exit(i32::from(code));
    }
    ExitCode::from(code)
}

/// Exit code of a backup that is not made, or not as it should be: pg_basebackup's only one.
const FAILED: u8 = 1;

/// Exit code of one with a lease, for a script: the same again may succeed.
const MAY_PASS: u8 = 2;

/// Exit code of one that was interrupted, and can be gone on with.
const SUSPENDED: u8 = 3;

/// How the program ends if not well.
struct Failed {
    error: Error,
    code: u8,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, code: FAILED }
    }
}

fn run_restore() -> std::result::Result<(), Failed> {
    match restore::options::parse(std::env::args_os())? {
        restore::options::Invocation::Print(text) => print(&text),
        restore::options::Invocation::List { place, json } => print(&restore::listing::list(&place, json)?),
        restore::options::Invocation::Prune { place, keep_full, dry_run } => {
            restore::listing::prune(&place, keep_full, dry_run)?;
        }
        restore::options::Invocation::Restore(options) => {
            let (abort, cleanup) = prepare(options.no_clean, "restore was interrupted")?;
            restore::run(&options, &abort, &cleanup)?;
        }
    }
    Ok(())
}

/// What every run needs that may be interrupted, and leave something.
fn prepare(no_clean: bool, interrupted: &'static str) -> error::Result<(Arc<Abort>, Arc<Cleanup>)> {
    let abort = Abort::new().map_err(|error| Error::local(format!("could not create pipe: {error}")))?;
    let abort = Arc::new(abort);
    let cleanup = Arc::new(Cleanup::new(no_clean));
    signals::watch(&abort, &cleanup, interrupted)?;
    Ok((abort, cleanup))
}

fn print(text: &str) {
    // A reader that has gone away has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn run_backup() -> std::result::Result<(), Failed> {
    match options::parse(std::env::args_os())? {
        Invocation::Print(text) => {
            print(&text);
            Ok(())
        }
        Invocation::RemoveLeftovers(location) => Ok(remove_leftovers(&location)?),
        Invocation::Backup(options) => {
            let (abort, cleanup) = prepare(options.no_clean, "backup was interrupted")?;
            // Nobody else may look into a file before it has the mode that the server says.
            let mask = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            backup::run(&options, &abort, &cleanup, 0o666 & !mask.as_raw_mode()).map_err(|error| {
                // Without --lease nobody has asked for more than pg_basebackup says.
                let code = if cleanup.is_suspended() {
                    SUSPENDED
                } else if options.lease.is_asked_for() && error.may_pass() {
                    MAY_PASS
                } else {
                    FAILED
                };
                Failed { error, code }
            })
        }
    }
}

#[cfg(feature = "object-store")]
fn remove_leftovers(location: &objects::location::Location) -> error::Result<()> {
    let abort = Abort::new().map_err(|error| Error::local(format!("could not create pipe: {error}")))?;
    objects::leftovers::remove_all(&objects::remote::Remote::open(location, &Arc::new(abort))?)
}

#[cfg(not(feature = "object-store"))]
fn remove_leftovers(_: &objects::location::Location) -> error::Result<()> {
    Err(Error::local("this program was built without object storage"))
}
