//! A backup from beginning to end: the order of things, and what happens when one fails.

mod compression;
mod connections;
mod dry_run;
mod estimate;
mod files;
mod lease;
mod own_files;
mod prior_manifest;
mod recovery;
mod resume;
mod start;
mod stop;
mod wal_files;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pages::names::NameRules;
use protocol::{ChecksumAlgorithm, Lsn, SqlState};

use self::connections::{Connections, least_wal};
use self::estimate::estimate;
use self::lease::Held;
use self::own_files::{BACKUP_LABEL, TABLESPACE_MAP, add_own_file, write_recovery_conf};
use crate::abort::{Abort, PanicGuard, panicked};
use crate::error::{Error, Kind, Result};
use crate::fetch::increment::Increments;
use crate::fetch::ordered::Sequencer;
use crate::fetch::queue::Queue;
use crate::fetch::reconnect::{Losses, Reconnect};
use crate::fetch::split::Splits;
use crate::fetch::transfer::{PIPELINED_MINIMUM, Work, may_split};
use crate::limits;
use crate::options::{Options, Resume, Slot, Sync, Wal};
use crate::output::cleanup::Cleanup;
use crate::output::space::{self, Room, Sizes};
use crate::output::{self, About, Layout, Output};
use crate::report;
use crate::report::progress::{self, Counters, Outcome, Phase, Style};
use crate::report::summary::{Destination, Facts};
use crate::server::connection::{Session, number};
use crate::server::result::QueryResult;
use crate::wal::stream::{self, End, Plan, quoted_identifier};

/// 42710: there is a slot of that name.
const DUPLICATE_OBJECT: SqlState = SqlState::from_bytes(*b"42710");

/// First server version that has pg_wal/summaries.
const WAL_SUMMARIES_SINCE: i32 = 170_000;

/// Takes the backup. All errors but the one returned have been reported.
///
/// `public` is the mode of a file that is not the backup's.
pub fn run(options: &Options, abort: &Arc<Abort>, cleanup: &Cleanup, public: u32) -> Result<()> {
    let report = options.report.as_deref().map(|path| Destination::new(path, public)).transpose()?;
    let (counters, facts) = (Counters::default(), Mutex::new(Facts::default()));
    let outcome = attempt(options, abort, cleanup, &counters, &facts);
    let Some(report) = report else { return outcome.map_err(|failure| failure.left_to_say()) };
    let error = outcome.as_ref().err().map(|failure| &failure.error);
    let facts = facts.into_inner().unwrap_or_else(PoisonError::into_inner);
    let written = report.write(options, &counters, &facts, error);
    match (outcome, written) {
        (Ok(()), Err(error)) => Err(error.with_detail("The backup itself is complete.")),
        (Err(failure), Err(error)) => {
            report::error(&error);
            Err(failure.left_to_say())
        }
        (outcome, Ok(())) => outcome.map_err(|failure| failure.left_to_say()),
    }
}

/// Why there is no backup, and whether the user has heard of it.
struct Failure {
    error: Error,
    is_reported: bool,
}

impl Failure {
    fn left_to_say(self) -> Error {
        match self {
            Self { error, is_reported: false } => error,
            Self { error, .. } if error.may_pass() => Error::aborted().passing(),
            _ => Error::aborted(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, is_reported: false }
    }
}

fn attempt(
    options: &Options,
    abort: &Arc<Abort>,
    cleanup: &Cleanup,
    counters: &Counters,
    facts: &Mutex<Facts>,
) -> std::result::Result<(), Failure> {
    let prepare = || -> Result<_> {
        // Before the server is bothered: nobody has to wait for a checkpoint to hear of a typing error.
        let output = output::of(options, abort, cleanup)?;
        output.check()?;
        limits::allow_files(options.jobs + usize::from(matches!(options.wal, Wal::Stream { .. })))?;
        let connections = Connections::open(options, abort)?;
        // On standard output there is nothing to be cleaned up, and whoever reads may keep this program waiting
        // for longer than a signal should: it ends as it does where nobody has begun.
        if !options.dry_run && !options.is_stdout() {
            abort.expect_cleanup();
        }
        abort.check()?;
        Ok((output, connections))
    };
    let (mut output, connections) =
        prepare().inspect_err(|_| counters.end(Outcome::Failed)).map_err(Failure::from)?;
    if options.dry_run {
        return dry_run::dry_run(options, abort, connections, &*output).map_err(Failure::from);
    }
    let style =
        Style { progress: options.progress, verbose: options.verbose, stdout_is_taken: options.is_stdout() };
    progress::shown(style, counters, || {
        let backup = Backup::new(options, abort, cleanup, counters, facts);
        let outcome = or_undone(
            abort,
            cleanup,
            |error| backup.explain(error),
            |error| backup.give_up(error),
            || backup.run(connections, &mut *output),
        );
        counters.end(match &outcome {
            Ok(()) => Outcome::Complete,
            Err(failure) if failure.error.kind() == Kind::ChecksumFailure => Outcome::Damaged,
            Err(_) => Outcome::Failed,
        });
        outcome
    })
}

/// Reports a failure, or a panic's, and cleans up after it.
fn or_undone(
    abort: &Abort,
    cleanup: &Cleanup,
    explain: impl FnOnce(Error) -> Error,
    give_up: impl FnOnce(&Error),
    run: impl FnOnce() -> Result<()>,
) -> std::result::Result<(), Failure> {
    // Nothing of what a panic leaves half done is looked at again, but for the directories taken.
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked()));
    let Err(error) = outcome else { return Ok(()) };
    let error = match error.kind() {
        Kind::Aborted => abort.cause().unwrap_or(error),
        _ => error,
    };
    let error = explain(error);
    // First the reason, then what is done about it.
    abort.report(&error);
    cleanup.end(&error);
    give_up(&error);
    Err(Failure { error, is_reported: true })
}

struct Backup<'a> {
    options: &'a Options,
    abort: &'a Arc<Abort>,
    cleanup: &'a Cleanup,
    /// What lost connections are made anew from, once the first are there.
    reconnect: OnceLock<Reconnect>,
    /// Once the server has said that it keeps the backup.
    held: OnceLock<Held>,
    /// Backends whose connection was lost: the server may not have noticed yet.
    lost: Mutex<Vec<u32>>,
    counters: &'a Counters,
    /// For the report.
    facts: &'a Mutex<Facts>,
}

impl<'a> Backup<'a> {
    fn new(
        options: &'a Options,
        abort: &'a Arc<Abort>,
        cleanup: &'a Cleanup,
        counters: &'a Counters,
        facts: &'a Mutex<Facts>,
    ) -> Self {
        Self {
            options,
            abort,
            cleanup,
            reconnect: OnceLock::new(),
            held: OnceLock::new(),
            lost: Mutex::default(),
            counters,
            facts,
        }
    }

    fn learn(&self, what: impl FnOnce(&mut Facts)) {
        what(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn run(&self, connections: Connections, output: &mut dyn Output) -> Result<()> {
        let Connections {
            mut coordinator,
            mut workers,
            mut wal,
            reconnect,
            system,
            modes,
            recovery_settings,
            compression,
            lease,
        } = connections;
        // Nobody else sets it.
        let _ = self.reconnect.set(reconnect);
        let options = self.options;
        let server_version = coordinator.server_version();

        self.learn(|facts| {
            facts.server_version = server_version;
            facts.system_identifier = system.identifier;
            facts.way = coordinator.route().name();
            facts.is_local = coordinator.is_local();
        });
        let began = report::json::now();
        let mut prior = None;
        // What is wrong with it should not cost a slot or a checkpoint.
        if let Some(manifest) = &options.incremental {
            self.say("uploading manifest of the prior backup");
            prior = Some(prior_manifest::upload(&mut coordinator, manifest, self.abort)?);
        }
        let record = output.resume()?;
        // Where a process that has gone has left something, there is less to come than the server knows of.
        let looks = options.estimate && record.is_none() && output.keeps();
        // Of an increment nothing but the list says how large it is.
        let sizes = if looks && options.incremental.is_none() {
            let wal = least_wal(options, &mut coordinator)?;
            let sizes = estimate(&mut coordinator, self.abort, wal)?;
            output.check_tablespaces(sizes.tablespaces.len())?;
            space::check(&output.needs(&sizes, None))?;
            self.counters.estimate(sizes.total());
            Some(sizes)
        } else {
            None
        };

        // Where the manifest has none they still say whether files came as they were sent.
        let algorithm = match options.manifest {
            Some(manifest) if !manifest.checksums.is_empty() => manifest.checksums,
            _ => ChecksumAlgorithm::Crc32c,
        };
        let again = match &record {
            Some(record) => Some(self.start_again(&mut coordinator, record, system.identifier, algorithm)?),
            None => None,
        };
        // What a process has left that has gone is not to suffer if this is not the same command.
        self.cleanup.leave(record.is_some());
        output.claim(modes)?;
        // Before the backup starts, so that no WAL it needs can be removed in between. Only on this
        // connection: an error on any other would drop a temporary slot.
        let slot = match &mut wal {
            Some(session) => self.prepare_slot(session)?,
            None => None,
        };

        let start = match again {
            Some(start) => start,
            None => self.start_held(&mut coordinator, lease)?,
        };
        if record.is_none() && self.held.get().is_some() {
            output.begin_journal(&Self::identity(&start, algorithm))?;
        }
        if let Some(journal) = output.journal() {
            for session in workers.iter().chain([&coordinator]) {
                journal.process(session.backend_pid())?;
            }
            self.allow_suspension();
        }
        if start.system != system.identifier {
            return Err(Error::local("system identifier does not match between connections"));
        }
        // A checkpoint takes its time, and others have the same directories before them.
        self.cleanup.check()?;
        // Now it is known where tablespaces go, too.
        let nothing = Sizes::default();
        let known = sizes.as_ref().unwrap_or(&nothing);
        let needs = if looks { output.needs(known, Some(&start.tablespaces)) } else { Vec::new() };
        let room = looks.then(|| Room::now(&needs));
        if let Some(room) = &room {
            room.check(&needs)?;
        }
        output.prepare(&Layout {
            tablespaces: &start.tablespaces,
            wal_summaries: server_version >= WAL_SUMMARIES_SINCE,
        })?;
        self.cleanup.leave(false);
        let output = &*output;
        record.as_ref().map_or(Ok(()), |record| output.keep_only(record))?;
        let manifest = self.begin_manifest(output, server_version, system.identifier)?;

        self.counters.enter(Phase::Files);
        let resumed = match record {
            Some(record) => {
                Some(self.look_at_recorded(&mut coordinator, output, record, manifest.as_ref())?)
            }
            None => None,
        };
        if output.has_labels_first() {
            // Without tablespaces an empty map, as BASE_BACKUP sends it.
            let map = start.tablespace_map.as_deref().unwrap_or_default();
            for (name, content) in [(BACKUP_LABEL, &start.label_file[..]), (TABLESPACE_MAP, map)] {
                output.own_file(name, content)?;
                add_own_file(manifest.as_ref(), algorithm, name, content)?;
            }
        }

        let plan = match &options.wal {
            Wal::Stream { status_interval, .. } => Some(Plan {
                timeline: start.timeline,
                start: start.position,
                segment_size: start.segment_size,
                system: start.system,
                slot,
                slot_is_temporary: matches!(options.wal, Wal::Stream { slot: Slot::Temporary, .. }),
                status_interval: *status_interval,
            }),
            _ => None,
        };
        let end = End::new().map_err(|error| no_pipe(&error))?;
        let (queue, splits) = (Queue::new(options.jobs, may_split(algorithm)), Splits::default());
        let queue = queue.for_intake(output.intake()).patient(self.lease().is_some());
        let sequencer = Sequencer::of(output.intake());
        let increments = Increments::default();
        let received = std::thread::scope(|scope| {
            // Or a panic here would wait for the others for ever.
            let _guard = PanicGuard(self.abort);
            let streamer = wal.take().zip(plan.as_ref()).map(|(mut session, plan)| {
                self.say("starting background WAL receiver");
                let (end, abort) = (&end, self.abort);
                scope.spawn(move || {
                    let _guard = PanicGuard(abort);
                    let mut losses = Losses::new(self.lease());
                    let mut again = |lost| self.come_back_to_wal(&mut losses, lost);
                    let streamed = output.wal().and_then(|mut wal| {
                        stream::stream(&mut session, plan, &mut *wal, output, end, &mut again)
                    });
                    if let Err(error) = streamed {
                        // What pg_basebackup says of its own; here it is a thread.
                        abort.fail(
                            error.context("background process terminated unexpectedly: WAL streaming failed"),
                        );
                    }
                })
            });
            let work = Work {
                queue: &queue,
                splits: &splits,
                increments: &increments,
                output,
                pages: (options.verify_checksums && start.data_checksums).then_some(start.position),
                names: NameRules::of_server(u32::try_from(server_version).unwrap_or_default()),
                compression,
                passes: output.takes_streams(),
                verify: options.verify,
                pipelined: (output.keeps() && has_cores_to_spare(options.jobs)).then_some(PIPELINED_MINIMUM),
                past_libpq: options.past_libpq,
                sync: options.sync != Sync::None,
                backup: start.id,
                algorithm,
                manifest: manifest.as_ref(),
                sequencer: sequencer.as_ref(),
                wal: None,
                journal: output.journal(),
                done: resumed.as_ref().map(|resumed| &resumed.files),
                counters: self.counters,
            };
            let received =
                self.receive(&mut coordinator, &mut workers, &start, &work, resumed.as_ref(), room.as_ref());
            let received = received.and_then(|stop| {
                if let Some(streamer) = streamer {
                    self.say("waiting for background process to finish streaming ...");
                    end.set(stop.position);
                    // Why it ended, if not well, is known to `abort`.
                    self.attend(&mut coordinator, || streamer.is_finished())?;
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
            received
        });
        let stop = received.map_err(|error| match self.abort.cause() {
            // What failed first is why the rest did.
            Some(cause) => cause,
            None => error,
        })?;
        drop(workers);
        // As long as there is a lease it stays until all is safely there.
        let coordinator = self.held.get().is_some().then_some(coordinator);
        if let Some(peak) = peak_memory() {
            self.say(format_args!("used at most {peak} of memory"));
        }
        if !output.keeps() {
            return if stop.checksum_failures > 0 {
                Err(Error::new(Kind::ChecksumFailure, "checksum error occurred"))
            } else {
                self.say("base backup received and discarded");
                coordinator.into_iter().for_each(|coordinator| self.release(coordinator));
                Ok(())
            };
        }

        if let Some(settings) = &recovery_settings {
            write_recovery_conf(output, settings)?;
        }
        self.abort.check()?;
        self.cleanup.check()?;
        if !output.has_labels_first() {
            output.own_file(BACKUP_LABEL, &start.label_file)?;
            add_own_file(manifest.as_ref(), algorithm, BACKUP_LABEL, &start.label_file)?;
        }
        self.finish_files(output, manifest, algorithm, &stop)?;
        output.about(About {
            id: start.id,
            began,
            server_version: u32::try_from(server_version).unwrap_or_default(),
            system_identifier: start.system,
            start: (start.position, start.timeline),
            stop: (stop.position, stop.timeline),
            segment_size: start.segment_size.bytes(),
            tablespaces: start.tablespaces.clone(),
            prior: prior.map(|digest| start::prior(&start.label_file, digest)).transpose()?,
        });
        self.counters.enter(Phase::Sync);
        output.close()?;
        if stop.checksum_failures > 0 {
            // Without its final name the manifest says that this is no good backup.
            return Err(Error::new(Kind::ChecksumFailure, "checksum error occurred"));
        }
        self.abort.check()?;
        self.cleanup.check()?;
        output.finish()?;
        coordinator.into_iter().for_each(|coordinator| self.release(coordinator));
        self.say("base backup completed");
        Ok(())
    }

    fn prepare_slot(&self, session: &mut Session) -> Result<Option<String>> {
        let Wal::Stream { slot, .. } = &self.options.wal else { return Ok(None) };
        match slot {
            Slot::None => Ok(None),
            Slot::Named { name, create: false } => Ok(Some(name.clone())),
            Slot::Named { name, create: true } => {
                match session.query(&format!(
                    "CREATE_REPLICATION_SLOT {} PHYSICAL (RESERVE_WAL)",
                    quoted_identifier(name)
                )) {
                    // The process that has gone has made it.
                    Err(error) if self.options.resume == Resume::Now && error.is_server(DUPLICATE_OBJECT) => {
                    }
                    outcome => {
                        outcome?;
                        self.say(format_args!("created replication slot \"{name}\""));
                    }
                }
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
        let outcome = or_undone(
            &abort,
            &cleanup,
            |error| error,
            |_| (),
            || {
                cleanup.claim(Purpose::Data, &target, 0o700)?;
                fs::write(target.join("f"), "x").unwrap();
                panic!("on purpose")
            },
        );
        let failure = outcome.err().unwrap();
        assert_eq!(failure.error.message(), panicked().message());
        assert_eq!(failure.left_to_say().kind(), Kind::Aborted);
        assert!(!target.exists());
    }
}
