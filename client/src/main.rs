//! `pg_parallel_basebackup`: a base backup of a running PostgreSQL server over several connections at once,
//! as `docs/protocol.md` describes it.
//!
//! `backup` says in which order things happen, the rooms below it how:
//! - `options`: the command line;
//! - `server`: connections, commands and their results, what comes read past libpq;
//! - `fetch`: files and who fetches them, until they are known to be right;
//! - `compress`: what comes compressed;
//! - `wal`: segments, the WAL stream, and what WAL says of itself;
//! - `output`: where all of it goes;
//! - `report`: what the user hears.
//!
//! All of them use `abort`, `signals` and `error` (how it ends), `manifest`, and `os` and `limits` (the operating
//! system). Unsafe code is in `server::pq`, `server::tls` and `os`.

mod abort;
#[cfg(test)]
mod allocations;
mod backup;
mod compress;
mod error;
mod fetch;
mod limits;
mod manifest;
mod options;
mod os;
mod output;
mod report;
mod server;
mod signals;
mod wal;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use abort::Abort;
use error::{Error, Kind, Result};
use options::Invocation;
use output::cleanup::Cleanup;

fn main() -> ExitCode {
    os::use_language();
    if let Some(called) = std::env::args_os().next() {
        report::set_program(&called);
    }
    signals::report_panics();
    let code = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            // What was aborted has been reported where it was.
            if error.kind() != Kind::Aborted {
                report::error(&error);
            }
            ExitCode::FAILURE
        }
        // Reported too.
        Err(_) => ExitCode::FAILURE,
    };
    if !server::cancel::wait() {
        os::exit(i32::from(code != ExitCode::SUCCESS));
    }
    code
}

fn run() -> Result<()> {
    match options::parse(std::env::args_os())? {
        Invocation::Print(text) => {
            // A reader that has gone away has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        Invocation::Backup(options) => {
            let abort =
                Abort::new().map_err(|error| Error::local(format!("could not create pipe: {error}")))?;
            let abort = Arc::new(abort);
            let cleanup = Arc::new(Cleanup::new(options.no_clean));
            signals::watch(&abort, &cleanup)?;
            // Nobody else may look into a file before it has the mode that the server says.
            let mask = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            backup::run(&options, &abort, &cleanup, 0o666 & !mask.as_raw_mode())
        }
    }
}
