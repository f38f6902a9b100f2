//! `pg_parallel_basebackup`: a base backup of a running PostgreSQL server over several replication
//! connections at once, as `docs/protocol.md` describes it.
//!
//! `backup` says in which order things happen, the modules below it how:
//! - `options`, `tablespace`: the command line;
//! - `route`, `connection`, `reconnect`, `pq` (libpq), `tls` (OpenSSL), `prompt`, `cancel`: the server, and
//!   commands;
//! - `wire`, `receive`, `reply`, `chunk`: what comes, read past libpq where that can be;
//! - `queue`, `split`, `transfer`, `reverify`, `pipeline`, `writer`: files and who fetches them;
//! - `target`, `claim`, `cleanup`, `sync`: the directories that are written;
//! - `wal`, `wal_check`, `walstream`, `manifest`, `recovery`: what makes it a backup;
//! - `abort`, `signals`, `error`, `report`, `progress`: how it ends, and what the user hears;
//! - `os`, `limits`: the operating system.
//!
//! Unsafe code is in `pq`, `tls` and `os`.

mod abort;
#[cfg(test)]
mod allocations;
mod backup;
mod cancel;
mod chunk;
mod claim;
mod cleanup;
mod connection;
mod error;
#[cfg(test)]
mod fake_server;
mod limits;
mod manifest;
mod options;
mod os;
mod pipeline;
mod pq;
mod progress;
mod prompt;
mod queue;
mod receive;
mod reconnect;
mod recovery;
mod reply;
mod report;
mod reverify;
mod route;
mod signals;
mod split;
mod sync;
mod tablespace;
mod target;
mod tls;
mod transfer;
mod wal;
mod wal_check;
mod walstream;
mod wire;
mod writer;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use abort::Abort;
use cleanup::Cleanup;
use error::{Error, Kind, Result};
use options::Invocation;

fn main() -> ExitCode {
    os::use_language();
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
    if !cancel::wait() {
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
            rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            backup::run(&options, &abort, &cleanup)
        }
    }
}
