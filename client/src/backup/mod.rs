//! A backup from beginning to end: the order of things, and what happens when one fails.

mod connections;
mod files;
mod own_files;
mod recovery;
mod start;
mod stop;
mod wal_files;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use pages::names::NameRules;
use protocol::{ChecksumAlgorithm, Lsn};

use self::connections::Connections;
use self::own_files::write_recovery_conf;
use crate::abort::{Abort, PanicGuard, panicked};
use crate::error::{Error, Kind, Result};
use crate::fetch::queue::Queue;
use crate::fetch::reconnect::Reconnect;
use crate::fetch::split::Splits;
use crate::fetch::transfer::{PIPELINED_MINIMUM, Work, may_split};
use crate::limits;
use crate::options::{Options, Slot, Sync, Wal};
use crate::output::cleanup::Cleanup;
use crate::output::{self, Layout, Output};
use crate::report;
use crate::report::progress::{self, Counters, Stopper};
use crate::server::connection::{Session, number};
use crate::server::pq::QueryResult;
use crate::wal::stream::{self, End, Plan, quoted_identifier};

/// First server version that has pg_wal/summaries.
const WAL_SUMMARIES_SINCE: i32 = 170_000;

/// Takes the backup. All errors but the one returned have been reported.
pub fn run(options: &Options, abort: &Arc<Abort>, cleanup: &Cleanup) -> Result<()> {
    // Before the server is bothered: nobody has to wait for a checkpoint to hear of a typing error.
    let mut output = output::of(options, abort, cleanup);
    output.check()?;
    limits::allow_files(options.jobs + usize::from(matches!(options.wal, Wal::Stream { .. })))?;
    let connections = Connections::open(options, abort)?;
    abort.expect_cleanup();
    abort.check()?;
    or_undone(abort, cleanup, || Backup::new(options, abort, cleanup).run(connections, &mut *output))
}

/// Reports a failure, or a panic's, and cleans up after it.
fn or_undone(abort: &Abort, cleanup: &Cleanup, run: impl FnOnce() -> Result<()>) -> Result<()> {
    // Nothing of what a panic leaves half done is looked at again, but for the directories taken.
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked()));
    let Err(error) = outcome else { return Ok(()) };
    let error = match error.kind() {
        Kind::Aborted => abort.cause().unwrap_or(error),
        _ => error,
    };
    // First the reason, then what is done about it.
    abort.report(&error);
    cleanup.undo(error.kind() == Kind::ChecksumFailure);
    Err(Error::aborted())
}

struct Backup<'a> {
    options: &'a Options,
    abort: &'a Abort,
    cleanup: &'a Cleanup,
    /// What lost connections are made anew from, once the first are there.
    reconnect: Option<Reconnect>,
    /// Backends whose connection was lost: the server may not have noticed yet.
    lost: Mutex<Vec<u32>>,
}

impl<'a> Backup<'a> {
    fn new(options: &'a Options, abort: &'a Abort, cleanup: &'a Cleanup) -> Self {
        Self { options, abort, cleanup, reconnect: None, lost: Mutex::default() }
    }

    fn run(mut self, connections: Connections, output: &mut dyn Output) -> Result<()> {
        let Connections {
            mut coordinator,
            mut workers,
            mut wal,
            reconnect,
            system,
            modes,
            segment_size,
            recovery_settings,
        } = connections;
        self.reconnect = Some(reconnect);
        let options = self.options;
        let server_version = coordinator.server_version();

        output.claim(modes)?;
        // Before the backup starts, so that no WAL it needs can be removed in between. Only on this
        // connection: an error on any other would drop a temporary slot.
        let slot = match &mut wal {
            Some(session) => self.prepare_slot(session)?,
            None => None,
        };

        let start = self.start(&mut coordinator)?;
        if start.system != system.identifier {
            return Err(Error::local("system identifier does not match between connections"));
        }
        if start.segment_size.bytes() != segment_size {
            return Err(Error::local("WAL segment size does not match between connections"));
        }
        // A checkpoint takes its time, and others have the same directories before them.
        self.cleanup.check()?;
        output.prepare(&Layout {
            tablespaces: &start.tablespaces,
            wal_summaries: server_version >= WAL_SUMMARIES_SINCE,
        })?;
        let output = &*output;
        // Where the manifest has none they still say whether files came as they were sent.
        let algorithm = match options.manifest {
            Some(manifest) if !manifest.checksums.is_empty() => manifest.checksums,
            _ => ChecksumAlgorithm::Crc32c,
        };
        let manifest = self.begin_manifest(output, server_version, system.identifier)?;

        let plan = match &options.wal {
            Wal::Stream { status_interval, .. } => Some(Plan {
                timeline: start.timeline,
                start: start.position,
                segment_size: start.segment_size,
                system: start.system,
                slot,
                status_interval: *status_interval,
            }),
            _ => None,
        };
        let end = End::new().map_err(|error| no_pipe(&error))?;
        let counters = Counters::default();
        let (queue, splits) = (Queue::new(options.jobs, may_split(algorithm)), Splits::default());
        let shown = progress::Stop::default();
        let received = std::thread::scope(|scope| {
            // Or a panic here would wait for the others for ever.
            let _guard = PanicGuard(self.abort);
            let shown_until = Stopper(&shown);
            let streamer = wal.take().zip(plan.as_ref()).map(|(mut session, plan)| {
                self.say("starting background WAL receiver");
                let (end, abort) = (&end, self.abort);
                scope.spawn(move || {
                    let _guard = PanicGuard(abort);
                    let streamed = output
                        .wal()
                        .and_then(|mut wal| stream::stream(&mut session, plan, &mut *wal, output, end));
                    if let Err(error) = streamed {
                        abort.fail(error.context("WAL streaming failed"));
                    }
                })
            });
            if options.progress.is_some() {
                scope.spawn(|| progress::show(&counters, &shown));
            }
            let work = Work {
                queue: &queue,
                splits: &splits,
                output,
                pages: (options.verify_checksums && start.data_checksums).then_some(start.position),
                names: NameRules::of_server(u32::try_from(server_version).unwrap_or_default()),
                verify: options.verify,
                pipelined: (output.keeps() && has_cores_to_spare(options.jobs)).then_some(PIPELINED_MINIMUM),
                past_libpq: options.past_libpq,
                sync: options.sync != Sync::None,
                backup: start.id,
                algorithm,
                manifest: manifest.as_ref(),
                wal: None,
                counters: &counters,
            };
            let received = self.receive(&mut coordinator, &mut workers, &start, &work);
            let received = received.and_then(|stop| {
                if let Some(streamer) = streamer {
                    self.say("waiting for background process to finish streaming ...");
                    end.set(stop.position);
                    // Why it ended, if not well, is known to `abort`.
                    let _ = streamer.join();
                    self.abort.check()?;
                    self.fetch_history(&work, &mut coordinator, &mut workers, &stop)?;
                }
                Ok(stop)
            });
            if let Err(error) = &received {
                // The stream ends too, and this scope with it.
                self.abort.fail(error.clone());
            }
            drop(shown_until);
            received
        });
        let stop = received.map_err(|error| match self.abort.cause() {
            // What failed first is why the rest did.
            Some(cause) => cause,
            None => error,
        })?;
        drop((coordinator, workers));
        if let Some(peak) = peak_memory() {
            self.say(format_args!("used at most {peak} of memory"));
        }
        if !output.keeps() {
            return if stop.checksum_failures > 0 {
                Err(Error::new(Kind::ChecksumFailure, "checksum error occurred"))
            } else {
                self.say("base backup received and discarded");
                Ok(())
            };
        }

        if let Some(settings) = &recovery_settings {
            write_recovery_conf(output, settings)?;
        }
        self.abort.check()?;
        self.cleanup.check()?;
        output.own_file("backup_label", &start.label_file)?;
        self.finish_files(output, manifest, algorithm, &start, &stop)?;
        output.sync()?;
        if stop.checksum_failures > 0 {
            // Without its final name the manifest says that this is no good backup.
            return Err(Error::new(Kind::ChecksumFailure, "checksum error occurred"));
        }
        self.abort.check()?;
        self.cleanup.check()?;
        output.finish()?;
        self.say("base backup completed");
        Ok(())
    }

    fn prepare_slot(&self, session: &mut Session) -> Result<Option<String>> {
        let Wal::Stream { slot, .. } = &self.options.wal else { return Ok(None) };
        match slot {
            Slot::None => Ok(None),
            Slot::Named { name, create: false } => Ok(Some(name.clone())),
            Slot::Named { name, create: true } => {
                session.query(&format!(
                    "CREATE_REPLICATION_SLOT {} PHYSICAL (RESERVE_WAL)",
                    quoted_identifier(name)
                ))?;
                self.say(format_args!("created replication slot \"{name}\""));
                Ok(Some(name.clone()))
            }
            Slot::Temporary => {
                let name = format!("pg_parallel_basebackup_{}", session.backend_pid());
                session.query(&format!(
                    "CREATE_REPLICATION_SLOT {} TEMPORARY PHYSICAL (RESERVE_WAL)",
                    quoted_identifier(&name)
                ))?;
                self.say(format_args!("created temporary replication slot \"{name}\""));
                Ok(Some(name))
            }
        }
    }

    fn say(&self, message: impl std::fmt::Display) {
        if self.options.verbose {
            report::info(message);
        }
    }
}

/// The most memory that this process has had, as Linux counts it.
fn peak_memory() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().to_owned())
}

fn no_pipe(error: &std::io::Error) -> Error {
    Error::local(format!("could not create pipe: {}", crate::error::os_message(error)))
}

/// Whether each of so many connections can have a second thread without taking a core from another.
fn has_cores_to_spare(jobs: usize) -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| jobs * 2 <= cores.get())
}

fn lsn(answer: &QueryResult, row: usize, column: usize) -> Result<Lsn> {
    number(answer, row, column)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::output::cleanup::Purpose;

    #[test]
    fn a_panic_is_a_failure_that_is_cleaned_up_after() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("target");
        let (abort, cleanup) = (Abort::new().unwrap(), Cleanup::default());
        let outcome = or_undone(&abort, &cleanup, || {
            cleanup.claim(Purpose::Data, &target, 0o700)?;
            fs::write(target.join("f"), "x").unwrap();
            panic!("on purpose")
        });
        assert_eq!(outcome.unwrap_err().kind(), Kind::Aborted);
        assert!(!target.exists());
    }
}
