//! A backup from beginning to end: the order of things, and what happens when one fails.

mod recovery;
mod wal_files;

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use pages::names::NameRules;
use protocol::command::{SendFileList, StartBackup, StopBackup};
use protocol::{BackupId, BackupPath, ChecksumAlgorithm, Command, Lsn, PROTOCOL_VERSION, SqlState, reply};

use crate::abort::{Abort, PanicGuard, panicked};
use crate::error::{Error, Kind, Result};
use crate::fetch::queue::Queue;
use crate::fetch::reconnect::{self, Reconnect, check_same};
use crate::fetch::split::Splits;
use crate::fetch::transfer::{PIPELINED_MINIMUM, SharedManifest, Work, manifest_error, may_split};
use crate::limits;
use crate::manifest::{Manifest, WalRange};
use crate::options::{Options, Slot, Sync, Wal};
use crate::output::claim::{self, check_free};
use crate::output::cleanup::{Cleanup, Purpose};
use crate::output::sync;
use crate::output::target::{Modes, Target};
use crate::report;
use crate::report::progress::{self, Counters, Stopper};
use crate::server::connection::{Connector, Route, Session, System, bytes, check_columns, number, text};
use crate::server::pq::{QueryResult, Status};
use crate::server::reply::Reply;
use crate::server::route;
use crate::wal::SegmentSize;
use crate::wal::stream::{self, End, Plan, quoted_identifier};
use pages::checksum::Checksum;

/// First server version whose standbys synchronize slots, for which primary_conninfo names a
/// database.
const SLOT_SYNC_SINCE: i32 = 170_000;

/// First server version that has pg_wal/summaries.
const WAL_SUMMARIES_SINCE: i32 = 170_000;

/// How long STOP_BACKUP is tried again while the server still ends transfers that we lost.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

const MANIFEST: &str = "backup_manifest";
const MANIFEST_UNDER_WAY: &str = "backup_manifest.tmp";
const CONTROL_FILE: &str = "global/pg_control";

/// What the server never lists, because it does not belong into a copy as it lies on its disk.
const NEVER_LISTED: [&str; 5] =
    ["backup_label", "tablespace_map", MANIFEST, MANIFEST_UNDER_WAY, CONTROL_FILE];

/// Takes the backup. All errors but the one returned have been reported.
pub fn run(options: &Options, abort: &Arc<Abort>, cleanup: &Cleanup) -> Result<()> {
    // Before the server is bothered: nobody has to wait for a checkpoint to hear of a typing error.
    for directory in (!options.discard).then_some(&options.target).into_iter().chain(&options.waldir) {
        check_free(directory, std::iter::empty())?;
    }
    limits::allow_files(options.jobs + usize::from(matches!(options.wal, Wal::Stream { .. })))?;
    let connections = Connections::open(options, abort)?;
    abort.expect_cleanup();
    abort.check()?;
    or_undone(abort, cleanup, || Backup::new(options, abort, cleanup).run(connections))
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

/// All connections of a backup, made before it starts: a checkpoint is not paid for in vain.
struct Connections {
    coordinator: Session,
    workers: Vec<Session>,
    wal: Option<Session>,
    reconnect: Reconnect,
    system: System,
    modes: Modes,
    segment_size: u64,
    recovery_settings: Option<Vec<u8>>,
}

impl Connections {
    fn open(options: &Options, abort: &Arc<Abort>) -> Result<Self> {
        let mut connector = Connector::new(options.connection.clone(), Arc::clone(abort))?;
        let streaming = matches!(options.wal, Wal::Stream { .. });
        let mut coordinator = route::find(&mut connector, streaming)?;
        let route = coordinator.route();
        if options.verbose {
            report::info(match route {
                Route::Replication => "using replication commands",
                Route::Procedures => "using the SQL procedures of the extension over ordinary connections",
            });
        }
        let modes = Modes::of_data_directory(&coordinator.show("data_directory_mode")?)?;
        let system = coordinator.identify_system()?;
        let recovery_settings = options.write_recovery_conf.then(|| {
            let slot = match &options.wal {
                Wal::Stream { slot: Slot::Named { name, .. }, .. } => Some(name.as_str()),
                _ => None,
            };
            let database =
                connector.user_database().filter(|_| coordinator.server_version() >= SLOT_SYNC_SINCE);
            recovery::settings(&connector.user_options(), database.as_ref().map(|name| name.as_bytes()), slot)
        });
        let mut another = |system: &System, way: Route| -> Result<Session> {
            let explain = |error: Error| {
                // A WAL stream needs what the other connections could do without.
                let error = if way == route { error } else { route::explain_refusal(error) };
                if error.hint().is_some() { error } else { explain_limits(error, options.jobs, streaming) }
            };
            let mut session = route::connect(&mut connector, way).map_err(explain)?;
            check_same(&mut session, system)?;
            Ok(session)
        };
        let wal = if streaming { Some(another(&system, Route::Replication)?) } else { None };
        let workers = (1..options.jobs).map(|_| another(&system, route)).collect::<Result<Vec<_>>>()?;
        let segment_size = parse_size(&coordinator.show("wal_segment_size")?)?;
        let reconnect = Reconnect { connector, route, system: system.clone(), abort: Arc::clone(abort) };
        Ok(Self { coordinator, workers, wal, reconnect, system, modes, segment_size, recovery_settings })
    }
}

/// What START_BACKUP said.
struct Start {
    position: Lsn,
    timeline: u32,
    id: BackupId,
    system: u64,
    segment_size: SegmentSize,
    /// Whether the cluster has page checksums.
    data_checksums: bool,
    tablespaces: Vec<Tablespace>,
    label_file: Vec<u8>,
}

struct Tablespace {
    oid: u32,
    location: Vec<u8>,
}

/// What STOP_BACKUP said.
struct Stop {
    position: Lsn,
    timeline: u32,
    control_file: Vec<u8>,
    wal_ranges: Vec<WalRange>,
    wal_files: Vec<String>,
    totals: (u64, u64),
    checksum_failures: u64,
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

    fn run(mut self, connections: Connections) -> Result<()> {
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

        if !options.discard {
            self.cleanup.claim(Purpose::Data, &options.target, modes.directory)?;
        }
        let mut target = Target::new(options.target.clone(), modes);
        if let Some(waldir) = &options.waldir {
            self.cleanup.claim(Purpose::Wal, waldir, modes.directory)?;
            target.link("pg_wal", waldir)?;
        }
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
        if !options.discard {
            self.prepare_directories(&mut target, &start, server_version)?;
        }
        // Where the manifest has none they still say whether files came as they were sent.
        let algorithm = match options.manifest {
            Some(manifest) if !manifest.checksums.is_empty() => manifest.checksums,
            _ => ChecksumAlgorithm::Crc32c,
        };
        let manifest = self.begin_manifest(&target, server_version, system.identifier)?;

        let plan = match &options.wal {
            Wal::Stream { status_interval, .. } => Some(Plan {
                timeline: start.timeline,
                start: start.position,
                segment_size: start.segment_size,
                system: start.system,
                slot,
                status_interval: *status_interval,
                sync: options.sync != Sync::None,
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
                let (target, end, abort) = (&target, &end, self.abort);
                scope.spawn(move || {
                    let _guard = PanicGuard(abort);
                    if let Err(error) = stream::stream(&mut session, plan, target, end) {
                        abort.fail(error.context("WAL streaming failed"));
                    }
                })
            });
            if options.progress {
                scope.spawn(|| progress::show(&counters, &shown));
            }
            let work = Work {
                queue: &queue,
                splits: &splits,
                target: &target,
                discard: options.discard,
                pages: (options.verify_checksums && start.data_checksums).then_some(start.position),
                names: NameRules::of_server(u32::try_from(server_version).unwrap_or_default()),
                verify: options.verify,
                pipelined: (!options.discard && has_cores_to_spare(options.jobs))
                    .then_some(PIPELINED_MINIMUM),
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
        if options.discard {
            return if stop.checksum_failures > 0 {
                Err(Error::new(Kind::ChecksumFailure, "checksum error occurred"))
            } else {
                self.say("base backup received and discarded");
                Ok(())
            };
        }

        if let Some(settings) = &recovery_settings {
            write_recovery_conf(&target, settings)?;
        }
        self.abort.check()?;
        self.cleanup.check()?;
        target.write("backup_label", &start.label_file)?;
        self.finish_files(&target, manifest, algorithm, &start, &stop)?;
        self.make_durable(&target)?;
        if stop.checksum_failures > 0 {
            // Without its final name the manifest says that this is no good backup.
            return Err(Error::new(Kind::ChecksumFailure, "checksum error occurred"));
        }
        self.abort.check()?;
        self.cleanup.check()?;
        if options.manifest.is_some() {
            self.say("renaming backup_manifest.tmp to backup_manifest");
            let root = target.root();
            sync::rename(&root.join(MANIFEST_UNDER_WAY), &root.join(MANIFEST), options.sync)?;
        }
        // The last thing that is done to the directories: from here on they keep others out by not being
        // empty.
        self.cleanup.finish(options.sync != Sync::None)?;
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

    fn start(&self, coordinator: &mut Session) -> Result<Start> {
        if self.options.verbose {
            self.say("initiating base backup, waiting for checkpoint to complete");
        } else if self.options.progress {
            report::print("waiting for checkpoint");
        }
        let command = Command::StartBackup(StartBackup {
            label: self.options.label.clone(),
            checkpoint: self.options.checkpoint,
            // The list says it all, with no walk of its own.
            progress: false,
            verify_checksums: self.options.verify_checksums,
            max_rate: self.options.max_rate,
        });
        coordinator.send_command(&command)?;
        let mut reply = Reply::new(coordinator);
        let first = reply.result_set(coordinator, reply::START).map_err(explain_start)?;
        self.say("checkpoint completed");
        let version: u32 = number(&first, 0, 3)?;
        if version != PROTOCOL_VERSION {
            return Err(Error::local(format!(
                "server speaks version {version} of the parallel backup protocol, this program version \
                 {PROTOCOL_VERSION}"
            )));
        }
        let position = lsn(&first, 0, 0)?;
        let timeline = number(&first, 0, 1)?;
        if self.options.wal != Wal::None {
            self.say(format_args!("write-ahead log start point: {position} on timeline {timeline}"));
        }
        let doing = |error: Error| error.context("could not get backup header");
        let second = reply.result_set(coordinator, reply::TABLESPACES).map_err(doing)?;
        let mut tablespaces = Vec::new();
        for row in 0..second.rows() {
            if second.value(row, 0).is_some() {
                tablespaces.push(Tablespace {
                    oid: number(&second, row, 0)?,
                    location: bytes(&second, row, 1)?.to_vec(),
                });
            }
        }
        let third = reply.result_set(coordinator, reply::LABELS).map_err(doing)?;
        let start = Start {
            position,
            timeline,
            id: number(&first, 0, 2)?,
            system: number(&first, 0, 4)?,
            segment_size: SegmentSize::new(number(&first, 0, 5)?)?,
            data_checksums: number::<i32>(&first, 0, 7)? != 0,
            tablespaces,
            label_file: bytes(&third, 0, 0)?.to_vec(),
        };
        coordinator.finish().map_err(doing)?;
        Ok(start)
    }

    fn prepare_directories(&self, target: &mut Target, start: &Start, server_version: i32) -> Result<()> {
        // The WAL stream begins before the list says that these exist.
        if self.options.waldir.is_none() {
            target.make("pg_wal")?;
        }
        target.make("pg_wal/archive_status")?;
        if server_version >= WAL_SUMMARIES_SINCE {
            target.make("pg_wal/summaries")?;
        }
        target.make("pg_tblspc")?;
        let locations = start.tablespaces.iter().map(|tablespace| &tablespace.location[..]);
        for old in self.options.tablespaces.unmatched(locations) {
            report::warning(format_args!("the server has no tablespace in directory \"{}\"", old.display()));
        }
        for tablespace in &start.tablespaces {
            let name = format!("pg_tblspc/{}", tablespace.oid);
            if !tablespace.location.starts_with(b"/") {
                // In place: a directory of the data directory like any other.
                target.make(&name)?;
                continue;
            }
            let place = self.options.tablespaces.locate(&tablespace.location);
            self.cleanup.claim(Purpose::Tablespace, &place, target.modes().directory)?;
            // The client makes the links: with a tablespace_map, recovery would make them again, to
            // where the original has its tablespaces.
            target.link(&name, &place)?;
        }
        Ok(())
    }

    fn begin_manifest(
        &self,
        target: &Target,
        server_version: i32,
        system: u64,
    ) -> Result<Option<SharedManifest>> {
        let Some(options) = self.options.manifest.filter(|_| !self.options.discard) else { return Ok(None) };
        let path = target.root().join(MANIFEST_UNDER_WAY);
        let file = BufWriter::new(target.create(&path, target.modes().file)?);
        Manifest::new(file, options, server_version, system)
            .map(|manifest| Some(Mutex::new(manifest)))
            .map_err(|error| manifest_error(&error))
    }

    /// Everything that comes over the connections but for the WAL stream.
    fn receive(
        &self,
        coordinator: &mut Session,
        workers: &mut Vec<Session>,
        start: &Start,
        work: &Work<'_>,
    ) -> Result<Stop> {
        self.fetch(work, coordinator, workers, |coordinator| self.list(coordinator, work))?;

        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stop = self.stop(coordinator, start.id, &lost)?;
        if self.options.wal != Wal::None {
            self.say(format_args!("write-ahead log end point: {}", stop.position));
        }
        let (bytes, _) = work.counters.done();
        self.say(format_args!(
            "received {bytes} bytes in {} files; the server sent {} bytes in {} files",
            work.queue.len(),
            stop.totals.1,
            stop.totals.0
        ));
        if self.options.wal == Wal::Fetch {
            self.fetch_wal(work, coordinator, workers, start, &stop)?;
        }
        Ok(stop)
    }

    /// The file list: directories are made as they come, files are remembered.
    fn list(&self, coordinator: &mut Session, work: &Work<'_>) -> Result<()> {
        let command =
            Command::SendFileList(SendFileList { backup_id: Some(work.backup), ..SendFileList::default() });
        let doing = |error: Error| error.context("could not get file list");
        coordinator.send_command(&command).map_err(doing)?;
        coordinator.row_by_row().map_err(doing)?;
        let mut reply = Reply::new(coordinator);
        let mut checked = false;
        let mut ended = false;
        while let Some(answer) = coordinator.result().map_err(doing)? {
            match answer.status() {
                Status::PGRES_COMMAND_OK => continue,
                Status::PGRES_TUPLES_OK => ended = true,
                Status::PGRES_SINGLE_TUPLE => {}
                other => return Err(Error::local(format!("unexpected result of SEND_FILE_LIST: {other:?}"))),
            }
            if !checked {
                check_columns(&answer, reply::FILE_LIST)?;
                checked = true;
            }
            reply.check(&answer).map_err(doing)?;
            for row in 0..answer.rows() {
                add_listed(&answer, row, work)?;
            }
            self.abort.check()?;
        }
        // A list that was cut short would be a backup with something missing.
        if !ended {
            return Err(Error::local("server sent an incomplete file list"));
        }
        Ok(())
    }

    /// Fills a queue by `list`, and empties it over all connections, the workers' from the beginning;
    /// those that were lost are gone from `workers`.
    fn fetch(
        &self,
        work: &Work<'_>,
        coordinator: &mut Session,
        workers: &mut Vec<Session>,
        list: impl FnOnce(&mut Session) -> Result<()>,
    ) -> Result<()> {
        let alive = std::thread::scope(|scope| {
            let threads: Vec<_> = workers
                .drain(..)
                .map(|session| {
                    scope.spawn(move || {
                        let _guard = PanicGuard(self.abort);
                        self.fetch_over(session, work)
                    })
                })
                .collect();
            let _guard = PanicGuard(self.abort);
            let outcome = list(coordinator).and_then(|()| {
                work.queue.complete();
                work.counters.expect(work.queue.len(), work.queue.bytes());
                work.run(coordinator).map_err(|error| match error.kind() {
                    // With the coordinator the backup itself is gone.
                    Kind::Connection => {
                        error.context("lost the connection that coordinates the backup").fatal()
                    }
                    Kind::Server(_) => error.context("could not fetch files").fatal(),
                    _ => error.fatal(),
                })
            });
            if let Err(error) = outcome {
                self.abort.fail(error);
                work.queue.abandon();
            }
            threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect::<Vec<_>>()
        });
        self.abort.check()?;
        *workers = alive;
        if work.queue.is_complete() {
            Ok(())
        } else {
            Err(Error::local("not all files of the backup were received"))
        }
    }

    /// Works over one connection, and where that is lost over another, until the queue is empty. The
    /// connection that is left.
    fn fetch_over(&self, mut session: Session, work: &Work<'_>) -> Option<Session> {
        for _ in 0..=reconnect::MOST {
            let error = match work.run(&mut session) {
                Ok(()) => return Some(session),
                Err(error) => error,
            };
            // Whether that is the end of the backup shows on the coordinator.
            if !matches!(error.kind(), Kind::Connection | Kind::Server(_)) {
                self.abort.fail(error);
                return None;
            }
            self.lost
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(u32::try_from(session.backend_pid()));
            report::warning(format_args!(
                "lost a connection, the others fetch what it had not finished: {error}"
            ));
            // The server has no place for another before this one is gone.
            drop(session);
            // The backup is no more, on any connection.
            if error.kind() != Kind::Connection {
                return None;
            }
            session = self.reconnect.as_ref()?.replace(work.queue)?;
            self.say("replaced the connection that was lost");
        }
        None
    }

    fn stop(&self, coordinator: &mut Session, id: BackupId, lost: &[u32]) -> Result<Stop> {
        let mut command = StopBackup {
            backup_id: Some(id),
            label: None,
            // Without WAL in the backup it is of use only once its WAL is in the archive.
            wait: self.options.wal == Wal::None && !self.options.discard,
            ..StopBackup::default()
        };
        let mut may_terminate = true;
        let doing = |error: Error| error.context("backup failed");
        let began = Instant::now();
        let (first, mut reply) = loop {
            coordinator.send_command(&Command::StopBackup(command.clone()))?;
            let mut reply = Reply::new(coordinator);
            match reply.result_set(coordinator, reply::STOP) {
                // The server may not have noticed yet that a transfer has nobody to read it.
                Err(error)
                    if !lost.is_empty()
                        && error.is_server(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
                        && began.elapsed() < STOP_PATIENCE =>
                {
                    self.abort.check()?;
                    if may_terminate && command.terminate_transfers.is_empty() {
                        command.terminate_transfers.extend(lost);
                    } else {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
                // A server, or an extension, before 0.3.0: it finds that out by itself.
                Err(error)
                    if !command.terminate_transfers.is_empty()
                        && (error.is_server(SqlState::SYNTAX_ERROR)
                            || error.is_server(SqlState::UNDEFINED_FUNCTION)) =>
                {
                    may_terminate = false;
                    command.terminate_transfers.clear();
                }
                result => break (result.map_err(doing)?, reply),
            }
        };
        let second = reply.result_set(coordinator, reply::CONTROL_FILE).map_err(doing)?;
        let third = reply.result_set(coordinator, reply::WAL_RANGES).map_err(doing)?;
        let fourth = reply.result_set(coordinator, reply::WAL_FILES).map_err(doing)?;
        let fifth = reply.result_set(coordinator, reply::TOTALS).map_err(doing)?;
        let mut stop = Stop {
            position: lsn(&first, 0, 0)?,
            timeline: number(&first, 0, 1)?,
            control_file: protocol::id::from_hex(text(&second, 0, 0)?)
                .filter(|content| !content.is_empty())
                .ok_or_else(|| Error::local("server sent an invalid control file"))?,
            wal_ranges: (0..third.rows()).map(|row| wal_range(&third, row)).collect::<Result<_>>()?,
            wal_files: (0..fourth.rows())
                .map(|row| text(&fourth, row, 0).map(str::to_owned))
                .collect::<Result<_>>()?,
            totals: (number(&fifth, 0, 1)?, number(&fifth, 0, 2)?),
            checksum_failures: number(&fifth, 0, 3)?,
        };
        match coordinator.finish() {
            // All results are there: a copy of damaged pages is still a copy.
            Err(error) if error.is_server(SqlState::DATA_CORRUPTED) => {
                report::error(&error);
                stop.checksum_failures = stop.checksum_failures.max(1);
            }
            result => result.map_err(|error| error.context("final receive failed"))?,
        }
        Ok(stop)
    }

    /// backup_label is written; the control file is the last thing that makes this a cluster.
    fn finish_files(
        &self,
        target: &Target,
        manifest: Option<SharedManifest>,
        algorithm: ChecksumAlgorithm,
        start: &Start,
        stop: &Stop,
    ) -> Result<()> {
        add_own_file(manifest.as_ref(), algorithm, "backup_label", &start.label_file)?;
        target.write(CONTROL_FILE, &stop.control_file)?;
        add_own_file(manifest.as_ref(), algorithm, CONTROL_FILE, &stop.control_file)?;
        if let Some(manifest) = manifest {
            let manifest = manifest.into_inner().unwrap_or_else(PoisonError::into_inner);
            let out = manifest.finish(&stop.wal_ranges).map_err(|error| manifest_error(&error))?;
            out.into_inner().map_err(|error| manifest_error(error.error()))?;
        }
        Ok(())
    }

    fn make_durable(&self, target: &Target) -> Result<()> {
        if self.options.sync == Sync::None {
            return Ok(());
        }
        self.say("syncing data to disk ...");
        sync::sync_directory(target.root(), self.options.sync, self.options.jobs, self.abort)?;
        // Names of directories that are new, in directories that are not ours.
        self.cleanup.made().iter().try_for_each(|path| sync::sync_parent(path))
    }

    fn say(&self, message: impl std::fmt::Display) {
        if self.options.verbose {
            report::info(message);
        }
    }
}

fn add_listed(answer: &QueryResult, row: usize, work: &Work<'_>) -> Result<()> {
    let name = bytes(answer, row, 0)?;
    let path = BackupPath::parse(name).map_err(|error| {
        Error::local(format!(
            "server listed an invalid file name \"{}\": {error}",
            String::from_utf8_lossy(name)
        ))
    })?;
    match bytes(answer, row, 1)? {
        b"d" if work.discard => Ok(()),
        b"d" => work.target.make_listed(&path, number(answer, row, 4)?),
        b"f" => {
            if NEVER_LISTED.iter().any(|never| never.as_bytes() == path.as_bytes())
                || claim::is_claim(path.as_bytes())
            {
                return Err(Error::local(format!("server listed unexpected file \"{path}\"")));
            }
            work.queue.push(&path, number(answer, row, 2)?)
        }
        other => Err(Error::local(format!(
            "server listed \"{path}\" as of unknown type \"{}\"",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// Adds a file that the client wrote itself to the manifest.
fn add_own_file(
    manifest: Option<&SharedManifest>,
    algorithm: ChecksumAlgorithm,
    name: &str,
    content: &[u8],
) -> Result<()> {
    let Some(manifest) = manifest else { return Ok(()) };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    manifest
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .file(
            name.as_bytes(),
            content.len() as u64,
            i64::try_from(now).unwrap_or(0),
            &Checksum::of(algorithm, content),
        )
        .map_err(|error| manifest_error(&error))
}

fn write_recovery_conf(target: &Target, settings: &[u8]) -> Result<()> {
    let path = target.root().join(recovery::SETTINGS_FILE);
    let is_new = !path.exists();
    let mut file: File = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(target.modes().file)
        .open(&path)
        .map_err(|error| Error::io("open file", &path, &error))?;
    if is_new {
        file.set_permissions(fs::Permissions::from_mode(target.modes().file))
            .map_err(|error| Error::io("set permissions on file", &path, &error))?;
    }
    file.write_all(settings).map_err(|error| Error::io("write to file", &path, &error))?;
    target.write(recovery::SIGNAL_FILE, b"")
}

fn wal_range(answer: &QueryResult, row: usize) -> Result<WalRange> {
    Ok(WalRange { timeline: number(answer, row, 0)?, start: lsn(answer, row, 1)?, end: lsn(answer, row, 2)? })
}

fn lsn(answer: &QueryResult, row: usize, column: usize) -> Result<Lsn> {
    number(answer, row, column)
}

/// `SHOW wal_segment_size`: a number and its unit.
fn parse_size(setting: &str) -> Result<u64> {
    let digits = setting.find(|c: char| !c.is_ascii_digit()).unwrap_or(setting.len());
    let unit = match &setting[digits..] {
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => 0u64,
    };
    match setting[..digits].parse::<u64>() {
        Ok(number) if unit > 0 => SegmentSize::new(number.saturating_mul(unit)).map(SegmentSize::bytes),
        _ => Err(Error::local("WAL segment size could not be parsed")),
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

/// A connection after the first that cannot be made is most often one too many.
fn explain_limits(error: Error, jobs: usize, streaming: bool) -> Error {
    if error.kind() != Kind::Connection {
        return error;
    }
    let streams = usize::from(streaming);
    let needed = format!(
        "This backup needs {} connections: {jobs} for files{}.",
        jobs + streams,
        if streaming { " and 1 for write-ahead log" } else { "" }
    );
    // The setting's name stands in the message in every language.
    let limit = if error.message().contains("max_wal_senders") {
        "Increase max_wal_senders on the server, or use fewer jobs (-j)."
    } else {
        "Increase max_connections on the server, or use fewer jobs (-j), if no connection is left there, or \
         none for the role or the database."
    };
    error.with_hint(format!("{needed} {limit}"))
}

/// What may be missing on a server that refuses START_BACKUP.
fn explain_start(error: Error) -> Error {
    // A walsender without a database takes what it cannot parse for SQL, and refuses that.
    let unknown = [SqlState::SYNTAX_ERROR, SqlState::FEATURE_NOT_SUPPORTED];
    let error = if unknown.iter().any(|state| error.is_server(*state)) {
        error.with_hint(
            "The server does not know the parallel backup commands: it must be built with the patch of \
             pg_parallel_backup, and load that library by shared_preload_libraries.",
        )
    } else if error.is_server(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) && !error.message().contains("HINT")
    {
        error.with_hint("Check that shared_preload_libraries on the server has pg_parallel_backup.")
    } else {
        error
    };
    error.context("could not initiate base backup")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::options::{self, Invocation};
    use crate::server::fake_server::{self, FakeServer};

    #[test]
    fn segment_size_as_shown() {
        assert_eq!(parse_size("16MB").unwrap(), 16 << 20);
        assert_eq!(parse_size("1GB").unwrap(), 1 << 30);
        for setting in ["", "16", "16kB", "3MB", "2GB", "MB"] {
            assert!(parse_size(setting).is_err(), "{setting}");
        }
    }

    /// Lists 64 empty files, enough for a batch, and waits until another connection has fetched them;
    /// only then the list ends, by `end`.
    fn fetched_while_listed(end: Result<()>) -> (Result<()>, bool) {
        const FILES: usize = 64;
        let names: Vec<_> = (0..FILES).map(|number| format!("base/5/{number}")).collect();
        let crc32c = ChecksumAlgorithm::Crc32c;
        let empty = Checksum::of(crc32c, b"");
        let answer: Vec<_> =
            names.iter().map(|name| fake_server::file_with(name, 0, 0, b"", 0, crc32c, &empty)).collect();
        let servers = [FakeServer::start(Vec::new()), FakeServer::start(vec![fake_server::copy(&answer)])];
        let (mut coordinator, worker) = (servers[0].connect(), servers[1].connect());
        let arguments = ["pg_parallel_basebackup", "--discard", "-j", "2"].map(OsString::from);
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let (abort, counters) = (Abort::new().unwrap(), Counters::default());
        let cleanup = Cleanup::default();
        let modes = Modes { directory: 0o700, file: 0o600 };
        let work = Work {
            queue: &Queue::new(2, true),
            splits: &Splits::default(),
            target: &Target::new(options.target.clone(), modes),
            discard: true,
            pipelined: None,
            backup: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            algorithm: ChecksumAlgorithm::Crc32c,
            pages: None,
            names: NameRules::Since17,
            verify: None,
            past_libpq: true,
            sync: false,
            manifest: None,
            wal: None,
            counters: &counters,
        };
        let list = |_: &mut Session| {
            for name in &names {
                work.queue.push(&BackupPath::from_bytes(name.as_str()).unwrap(), 0)?;
            }
            let began = Instant::now();
            while counters.done().1 < FILES as u64 {
                // No panic: the other connection would wait on.
                if began.elapsed() > Duration::from_secs(60) {
                    return Err(Error::local("nobody fetches what is listed"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            end
        };
        let backup = Backup::new(&options, &abort, &cleanup);
        let outcome = backup.fetch(&work, &mut coordinator, &mut vec![worker], list);
        assert_eq!(servers.map(|server| server.commands().len()), [0, 1]);
        (outcome.map_err(|error| abort.cause().unwrap_or(error)), work.queue.is_complete())
    }

    #[test]
    fn files_are_fetched_while_the_list_comes() {
        let (outcome, complete) = fetched_while_listed(Ok(()));
        assert!(outcome.is_ok() && complete);
        let broken = Error::new(Kind::Server(*b"42501"), "ERROR:  could not stat file");
        let (outcome, complete) = fetched_while_listed(Err(broken));
        assert_eq!(outcome.unwrap_err().message(), "ERROR:  could not stat file");
        assert!(!complete);
    }

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

    #[test]
    fn hints_for_what_is_missing_on_the_server() {
        let full = Error::connection(
            "FATAL:  number of requested standby connections exceeds \"max_wal_senders\" (currently 3)",
        );
        let hint = explain_limits(full, 4, true).hint().unwrap().to_owned();
        assert!(hint.contains("5 connections: 4 for files and 1 for write-ahead log"), "{hint}");
        assert!(hint.contains("Increase max_wal_senders"), "{hint}");
        assert!(explain_limits(Error::local("x"), 4, true).hint().is_none());

        let unknown = Error::new(Kind::Server(*b"42601"), "ERROR:  syntax error");
        assert!(explain_start(unknown).hint().unwrap().contains("patch"));
        let unloaded = Error::new(Kind::Server(*b"55000"), "ERROR:  not loaded");
        let error = explain_start(unloaded);
        assert!(error.hint().unwrap().contains("shared_preload_libraries"));
        assert_eq!(error.message(), "could not initiate base backup: ERROR:  not loaded");
    }

    #[test]
    fn recovery_conf_is_appended() {
        let place = tempfile::tempdir().unwrap();
        let target = Target::new(place.path().to_owned(), Modes { directory: 0o700, file: 0o600 });
        target.write(recovery::SETTINGS_FILE, b"a = 1\n").unwrap();
        write_recovery_conf(&target, b"b = 2\n").unwrap();
        assert_eq!(fs::read(place.path().join("postgresql.auto.conf")).unwrap(), b"a = 1\nb = 2\n");
        assert_eq!(fs::read(place.path().join("standby.signal")).unwrap(), b"");
    }
}
