//! `pg_parallel_basebackup`: a base backup of a running PostgreSQL server over several replication
//! connections at once, as `docs/protocol.md` describes it.
//!
//! `backup` says in which order things happen, the modules below it how:
//! - `options`, `tablespace`: the command line;
//! - `pq` (libpq, unsafe code), `connection`: commands; `wire`: transfers read past libpq;
//! - `queue`, `receive`, `transfer`, `reverify`, `split`, `writer`, `behind`: files and who fetches them;
//! - `reply`: the results of commands, checked row by row;
//! - `target`, `cleanup`, `sync`, `os` (unsafe code): the directory that is written;
//! - `wal`, `walstream`, `manifest`, `recovery`: what makes it a backup;
//! - `abort`, `error`, `report`, `progress`: what the user hears.

mod abort;
#[cfg(test)]
mod allocations;
mod backup;
mod behind;
mod chunk;
mod claim;
mod cleanup;
mod connection;
mod error;
#[cfg(test)]
mod fake_server;
mod manifest;
mod options;
mod os;
mod pq;
mod progress;
mod queue;
mod receive;
mod recovery;
mod reply;
mod report;
mod reverify;
mod route;
mod split;
mod sync;
mod tablespace;
mod target;
mod tls;
mod transfer;
mod wal;
mod walstream;
mod wire;
mod writer;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use abort::Abort;
use cleanup::Cleanup;
use error::{Error, Kind, Result};
use options::Invocation;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What was aborted has been reported where it was.
            if error.kind() != Kind::Aborted {
                report::error(&error);
            }
            ExitCode::FAILURE
        }
    }
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
            watch_signals(&abort)?;
            // Nobody else may look into a file before it has the mode that the server says.
            rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            let cleanup = Cleanup::new(options.no_clean);
            backup::run(&options, &abort, &cleanup)
        }
    }
}

/// Ends the backup on the first signal, so that it is cleaned up, and the process on the second.
fn watch_signals(abort: &Arc<Abort>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Error::local(format!("could not set up signal handlers: {error}")))?;
    let abort = Arc::clone(abort);
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // Nothing is there to be cleaned up, or nobody has the patience.
            if !abort.is_heeded() || abort.check().is_err() {
                std::process::exit(1);
            }
            abort.fail(Error::local("backup was interrupted"));
        }
    });
    Ok(())
}
