//! What comes over the connections but for the WAL stream: the list of files, and the files.

use std::sync::PoisonError;

use pages::page::SEGMENT_BLOCKS;
use pages::relation;
use protocol::command::SendFileList;
use protocol::reply::Column;
use protocol::{BackupPath, BlockList, Command, reply};

use super::Backup;
use super::own_files::{BACKUP_LABEL, CONTROL_FILE, TABLESPACE_MAP};
use super::resume::Resumed;
use super::start::Start;
use super::stop::Stop;
use crate::abort::{Abort, PanicGuard};
use crate::error::{Error, Kind, Result};
use crate::fetch::increment::{self, Increment};
use crate::fetch::reconnect::Losses;
use crate::fetch::transfer::Work;
use crate::options::Wal;
use crate::output::journal::Journal;
use crate::output::space::{Room, Sizes};
use crate::output::{Attributes, MANIFEST, MANIFEST_UNDER_WAY, claim};
use crate::report;
use crate::report::progress::Phase;
use crate::server::connection::{Session, bytes, check_columns, number};
use crate::server::pq::Status;
use crate::server::reply::Reply;
use crate::server::result::QueryResult;

/// What the server never lists, because it does not belong into a copy as it lies on its disk.
const NEVER_LISTED: [&str; 5] = [BACKUP_LABEL, TABLESPACE_MAP, MANIFEST, MANIFEST_UNDER_WAY, CONTROL_FILE];

impl Backup<'_> {
    /// Everything that comes over the connections but for the WAL stream.
    pub(super) fn receive(
        &self,
        coordinator: &mut Session,
        workers: &mut Vec<Session>,
        start: &Start,
        work: &Work<'_>,
        resumed: Option<&Resumed>,
        room: Option<&Room>,
    ) -> Result<Stop> {
        let list = |coordinator: &mut Session| {
            let sizes = self.list(coordinator, work, start.segment_size.bytes())?;
            room.map_or(Ok(()), |room| room.check(&work.output.needs(&sizes, Some(&start.tablespaces))))
        };
        self.fetch(work, coordinator, workers, |coordinator| match resumed {
            // The server may have stopped the backup by now, and have no list any more.
            Some(resumed) if resumed.is_whole() => Ok(()),
            Some(resumed) => list(coordinator).map_err(|error| resumed.explain(error, &self.options.target)),
            None => list(coordinator),
        })?;
        work.journal.map_or(Ok(()), Journal::complete)?;

        self.counters.enter(Phase::Stop);
        let stop = self.coordinated(coordinator, |coordinator| {
            let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.stop(coordinator, start.id, &lost)
        })?;
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
        self.learn(|facts| {
            facts.stop = Some((stop.position, stop.timeline));
            facts.wal_ranges.clone_from(&stop.wal_ranges);
            facts.checksum_failures = stop.checksum_failures;
        });
        if self.options.incremental.is_some() {
            let (sent, cluster) = (stop.totals.1, work.increments.cluster_size());
            let percent = sent as f64 * 100.0 / cluster.max(1) as f64;
            self.say(format_args!("that is {percent:.1} % of the {cluster} bytes of a full backup"));
            self.learn(|facts| facts.increment = Some((sent, cluster)));
        }
        if self.options.wal == Wal::Fetch {
            self.fetch_wal(work, coordinator, workers, start, &stop)?;
        }
        Ok(stop)
    }

    /// The file list: directories are made as they come, files are remembered. How much is to come, with so many
    /// bytes of WAL if there is any.
    fn list(&self, coordinator: &mut Session, work: &Work<'_>, segment: u64) -> Result<Sizes> {
        let command =
            Command::SendFileList(SendFileList { backup_id: Some(work.backup), ..SendFileList::default() });
        let incremental = self.options.incremental.is_some();
        let columns = if incremental { reply::INCREMENTAL_FILE_LIST } else { reply::FILE_LIST };
        let wal = if self.options.wal == Wal::None { 0 } else { segment };
        let mut sizes = Sizes { wal, ..Sizes::default() };
        each_listed(coordinator, &command, columns, self.abort, |answer, row| {
            add_listed(answer, row, work, incremental, &mut sizes)
        })?;
        Ok(sizes)
    }

    /// Fills a queue by `list`, and empties it over all connections, the workers' from the beginning;
    /// those that were lost are gone from `workers`.
    pub(super) fn fetch(
        &self,
        work: &Work<'_>,
        coordinator: &mut Session,
        workers: &mut Vec<Session>,
        list: impl FnMut(&mut Session) -> Result<()>,
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
            // What is listed twice is fetched once.
            let outcome = self.coordinated(coordinator, list).and_then(|()| {
                work.queue.complete();
                work.counters.expect(work.queue.len(), work.queue.bytes());
                self.coordinated(coordinator, |coordinator| work.run(coordinator)).map_err(
                    |error| match error.kind() {
                        // With the coordinator the backup itself is gone.
                        Kind::Connection => {
                            error.context("lost the connection that coordinates the backup").fatal()
                        }
                        Kind::Server(_) => error.context("could not fetch files").fatal(),
                        _ => error.fatal(),
                    },
                )
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
        let mut losses = Losses::new(self.lease());
        loop {
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
            self.counters.connection_lost();
            report::warning(format_args!(
                "lost a connection, the others fetch what it had not finished: {error}"
            ));
            // The server has no place for another before this one is gone.
            drop(session);
            // The backup is no more, on any connection.
            if error.kind() != Kind::Connection || !losses.another() {
                return None;
            }
            session = self.reconnect.get()?.replace(work.queue, self.lease())?;
            if let Err(error) = work.output.journal().map_or(Ok(()), |j| j.process(session.backend_pid())) {
                self.abort.fail(error);
                return None;
            }
            self.counters.connection_replaced();
            self.say("replaced the connection that was lost");
        }
    }
}

/// Asks for a list, and takes its rows one by one as they come.
pub(super) fn each_listed(
    coordinator: &mut Session,
    command: &Command,
    columns: &[Column],
    abort: &Abort,
    mut take: impl FnMut(&QueryResult, usize) -> Result<()>,
) -> Result<()> {
    let doing = |error: Error| error.context("could not get file list");
    coordinator.send_command(command).map_err(doing)?;
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
            check_columns(&answer, columns)?;
            checked = true;
        }
        reply.check(&answer).map_err(doing)?;
        for row in 0..answer.rows() {
            take(&answer, row)?;
        }
        abort.check()?;
    }
    // A list that was cut short would be a backup with something missing.
    if !ended {
        return Err(Error::local("server sent an incomplete file list"));
    }
    Ok(())
}

/// The path that a row of the list has.
pub(super) fn listed_path(answer: &QueryResult, row: usize) -> Result<BackupPath> {
    let name = bytes(answer, row, 0)?;
    BackupPath::parse(name).map_err(|error| {
        Error::local(format!(
            "server listed an invalid file name \"{}\": {error}",
            String::from_utf8_lossy(name)
        ))
    })
}

/// Takes a row; `sizes` is of all that is to come.
fn add_listed(
    answer: &QueryResult,
    row: usize,
    work: &Work<'_>,
    incremental: bool,
    sizes: &mut Sizes,
) -> Result<()> {
    let path = listed_path(answer, row)?;
    match bytes(answer, row, 1)? {
        b"d" => {
            let attributes = Attributes { mode: number(answer, row, 4)?, mtime: number(answer, row, 3)? };
            sizes.add(&path, false, 0);
            work.output.directory(&path, &attributes)?;
            work.journal.map_or(Ok(()), |journal| journal.directory(&path, attributes.mode))
        }
        b"f" => {
            if NEVER_LISTED.iter().any(|never| never.as_bytes() == path.as_bytes())
                || claim::is_claim(path.as_bytes())
            {
                return Err(Error::local(format!("server listed unexpected file \"{path}\"")));
            }
            if work.done.is_some_and(|done| done.contains_key(&path)) {
                return Ok(());
            }
            let size = number(answer, row, 2)?;
            if !incremental {
                sizes.add(&path, true, size);
                work.output.check_path(&path)?;
                return work.queue.push(&path, size);
            }
            work.increments.listed(size);
            match listed_increment(answer, row, &path)? {
                None => {
                    sizes.add(&path, true, size);
                    work.output.check_path(&path)?;
                    work.queue.push(&path, size)
                }
                Some(increment) => {
                    sizes.add(&path, true, increment.size());
                    work.output.check_path(&increment::name_of(&path))?;
                    work.queue.push_noted(&path, increment.size(), |file| {
                        work.increments.insert(file, &increment);
                    })
                }
            }
        }
        other => Err(Error::local(format!(
            "server listed \"{path}\" as of unknown type \"{}\"",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// The blocks of a file, if it does not come whole.
fn listed_increment(answer: &QueryResult, row: usize, path: &BackupPath) -> Result<Option<Increment>> {
    // pg_combinebackup would take it for one, whatever it is.
    if increment::is_name(path) {
        return Err(Error::local(format!(
            "server listed \"{path}\", which has the name of a file of an incremental backup"
        )));
    }
    let Some(list) = answer.value(row, 5) else { return Ok(None) };
    // What the server does not serve cannot be what it has listed: no file has more blocks than that.
    let blocks = BlockList::parse(list)
        .ok()
        .filter(|blocks| blocks.last().is_none_or(|last| last < SEGMENT_BLOCKS))
        .filter(|_| relation::of_listed(path).is_some());
    let Some(blocks) = blocks else {
        return Err(Error::local(format!("server listed invalid blocks of file \"{path}\"")));
    };
    Ok(Some(Increment {
        blocks,
        truncation_block_length: number(answer, row, 6)?,
        attributes: Attributes { mode: number(answer, row, 4)?, mtime: number(answer, row, 3)? },
    }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::fetch::increment::Increments;
    use crate::fetch::queue::Queue;
    use crate::fetch::split::Splits;
    use crate::options::{self, Invocation};
    use crate::output::cleanup::Cleanup;
    use crate::output::discard::Discard;
    use crate::report::progress::Counters;
    use crate::server::fake_server::{self, FakeServer};
    use pages::checksum::Checksum;
    use pages::names::NameRules;
    use protocol::ChecksumAlgorithm;
    use protocol::compression::WireCompression;

    /// Lists 64 empty files, enough for a batch, and waits until another connection has fetched them;
    /// only then the list ends, by `end`.
    fn fetched_while_listed(end: impl Fn() -> Result<()>) -> (Result<()>, bool) {
        const FILES: usize = 64;
        let names: Vec<_> = (0..FILES).map(|number| format!("base/5/{number}")).collect();
        let crc32c = ChecksumAlgorithm::Crc32c;
        let empty = Checksum::of(crc32c, b"");
        let answer: Vec<_> =
            names.iter().map(|name| fake_server::file_with(name, 0, 0, b"", 0, crc32c, &empty)).collect();
        // It does not hang up while there is an answer left.
        let answers = vec![fake_server::copy(&answer), Vec::new()];
        let servers = [FakeServer::start(Vec::new()), FakeServer::start(answers)];
        let abort = Arc::new(Abort::new().unwrap());
        let [mut coordinator, worker] = servers.each_ref().map(|server| server.connect_of(&abort).unwrap());
        let arguments = ["pg_parallel_basebackup", "--discard", "-j", "2"].map(OsString::from);
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let counters = Counters::default();
        let cleanup = Cleanup::default();
        let work = Work {
            queue: &Queue::new(2, true),
            splits: &Splits::default(),
            increments: &Increments::default(),
            output: &Discard,
            pipelined: None,
            backup: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            algorithm: ChecksumAlgorithm::Crc32c,
            pages: None,
            names: NameRules::Since17,
            compression: WireCompression::default(),
            passes: false,
            verify: None,
            past_libpq: true,
            sync: false,
            manifest: None,
            sequencer: None,
            wal: None,
            journal: None,
            done: None,
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
            end()
        };
        let facts = Mutex::default();
        let backup = Backup::new(&options, &abort, &cleanup, &counters, &facts);
        let outcome = backup.fetch(&work, &mut coordinator, &mut vec![worker], list);
        assert_eq!(servers.map(|server| server.commands().len()), [0, 1]);
        (outcome.map_err(|error| abort.cause().unwrap_or(error)), work.queue.is_complete())
    }

    #[test]
    fn files_are_fetched_while_the_list_comes() {
        let (outcome, complete) = fetched_while_listed(|| Ok(()));
        assert!(outcome.is_ok() && complete);
        let broken = Error::new(Kind::Server(*b"42501"), "ERROR:  could not stat file");
        let (outcome, complete) = fetched_while_listed(|| Err(broken.clone()));
        assert_eq!(outcome.unwrap_err().message(), "ERROR:  could not stat file");
        assert!(!complete);
    }

    #[test]
    fn a_panic_leaves_no_connection_waiting() {
        let ended = std::thread::spawn(|| fetched_while_listed(|| panic!("on purpose")).1);
        let began = Instant::now();
        while !ended.is_finished() {
            assert!(began.elapsed() < Duration::from_secs(60), "the other connection waits on");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(ended.join().is_err());
    }
}
