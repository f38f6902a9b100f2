//! One connection's work: take files from the queue, fetch them, have them verified and written. The
//! coordinator does the same as every worker. `writer` makes the files, `reverify` fetches again what
//! came wrong; what is made of some blocks of a file is for `increment` to say.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pages::checksum::{Checksum, from_crc, to_crc};
use pages::names::NameRules;
use pages::relation;
use protocol::command::{Extent, Range, SendFilesContent};
use protocol::compression::WireCompression;
use protocol::frame::Compression;
use protocol::wal::is_segment;
use protocol::{
    BackupId, BackupPath, ChecksumAlgorithm, Command, FileRequest, Lsn, MAX_BLOCK_LISTS, SqlState,
};

use crate::chunk::Chunk;
use crate::error::{Error, Kind, Result};
use crate::fetch::increment::{self, Increment, Increments, Place};
use crate::fetch::ordered::{Delivery, Sequencer};
use crate::fetch::pipeline;
use crate::fetch::queue::{Claimed, Item, Part, Queue, SIZED_MINIMUM, Turn};
use crate::fetch::receive::{Checks, PageRule, Received, Receiver, Sink};
use crate::fetch::split::{Outcome, Splits};
use crate::fetch::writer::{Writer, checksum_filled_up, piece};
use crate::manifest::Manifest;
use crate::options::Side;
use crate::output::collected::Collected;
use crate::output::journal::{Entry, Journal};
use crate::output::{Attributes, Intake, Output, OutputFile, Remains};
use crate::report;
use crate::report::meter::Meter;
use crate::report::progress::Counters;
use crate::server::connection::Session;
use crate::server::wire::CopySink;
use crate::wal::check::Needed;

/// How long a connection without work sleeps before it looks whether it is still alive.
const PATIENCE: Duration = Duration::from_millis(250);

/// Answers after which no other file would fare better on this connection: the backup is gone, or
/// never was ours.
const HOPELESS: [SqlState; 5] = [
    SqlState::UNDEFINED_OBJECT,
    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    SqlState::SYNTAX_ERROR,
    SqlState::FEATURE_NOT_SUPPORTED,
    // A procedure of an extension that was not updated lacks an argument.
    SqlState::UNDEFINED_FUNCTION,
];

/// Fewest bytes of a file, on average in a batch, that is worth a thread of its own to write it: to hand
/// a small one over takes longer than that.
pub const PIPELINED_MINIMUM: u64 = 1 << 20;

/// Relation files below that are verified by the server: it sends them by way of its own memory in any
/// case, and small files of all kinds then come in one command.
const BY_CLIENT_MINIMUM: u64 = SIZED_MINIMUM;

/// The manifest, as all connections write it.
pub type SharedManifest = Mutex<Manifest<Box<dyn Write + Send>>>;

/// What all connections work on.
pub struct Work<'a> {
    /// The files.
    pub queue: &'a Queue,
    /// Those of them that are fetched in parts.
    pub splits: &'a Splits,
    /// Those of them of which some blocks come only.
    pub increments: &'a Increments,
    /// Where they go.
    pub output: &'a dyn Output,
    /// From so many bytes a file on they are written on a thread of its own.
    pub pipelined: Option<u64>,
    /// The backup.
    pub backup: BackupId,
    /// The checksums that say whether a file came as it was sent, and that the manifest gets. Never none.
    pub algorithm: ChecksumAlgorithm,
    /// The start LSN, if page checksums are to be verified and the cluster has them.
    pub pages: Option<Lsn>,
    /// How the server reads the names of files.
    pub names: NameRules,
    /// How the server compresses.
    pub compression: WireCompression,
    /// What it has compressed goes to the output so.
    pub passes: bool,
    /// Who verifies the pages of relation files, if the user has a wish.
    pub verify: Option<Side>,
    /// Read the socket without libpq where that can be.
    pub past_libpq: bool,
    /// Files are synced in the end.
    pub sync: bool,
    /// Takes files that are complete.
    pub manifest: Option<&'a SharedManifest>,
    /// What waits for its turn, where files are written in order.
    pub sequencer: Option<&'a Sequencer>,
    /// What WAL segments must be, while these are fetched.
    pub wal: Option<&'a Needed>,
    /// Where it is noted which files are complete, if it is.
    pub journal: Option<&'a Journal>,
    /// Files that are there already.
    pub done: Option<&'a HashMap<BackupPath, Entry>>,
    /// Progress.
    pub counters: &'a Counters,
}

impl Work<'_> {
    /// Works until the queue is empty. An error of kind `Connection` or `Server` ends this
    /// connection's part only: what it had not finished is back in the queue. Any other error ends
    /// the backup.
    pub fn run(&self, session: &mut Session) -> Result<()> {
        let (meter, waited) = (Meter::start(), session.waited());
        let mut idle = Duration::ZERO;
        let outcome = self.work_off(session, &mut idle);
        self.counters.spent(&meter.stop(session.waited().saturating_sub(waited), idle));
        self.counters.activity(session.backend_pid(), None);
        outcome
    }

    fn work_off(&self, session: &mut Session, idle: &mut Duration) -> Result<()> {
        let mut turn = Turn::default();
        loop {
            let asked = Instant::now();
            let claimed = self.queue.claim(&mut turn, PATIENCE);
            *idle += asked.elapsed();
            match claimed {
                Claimed::Done => return Ok(()),
                Claimed::Wait => {
                    self.counters.activity(session.backend_pid(), None);
                    session.check_alive()?;
                }
                Claimed::Batch(items) => {
                    self.counters.activity(session.backend_pid(), Some(self.describe(&items)));
                    self.fetch(session, &items)?;
                }
            }
        }
    }

    /// What a batch is, for people.
    fn describe(&self, items: &[Item]) -> String {
        let Some(first) = items.first() else { return String::new() };
        let path = self.queue.path(first.file);
        let bytes: u64 = items.iter().map(|item| self.queue.size(*item)).sum();
        let size =
            if bytes < 1 << 20 { format!("{} kB", bytes >> 10) } else { format!("{} MB", bytes >> 20) };
        match (first.part, items.len()) {
            (Some(part), 1) => format!("{path} from {} MB on, {size}", part.offset >> 20),
            (None, 1) => format!("{path}, {size}"),
            (_, files) => format!("{path} and {} more, {size}", files - 1),
        }
    }

    fn fetch(&self, session: &mut Session, items: &[Item]) -> Result<()> {
        let by_client = self.verifies(session);
        let mut batches: Vec<Batch> = Vec::new();
        for &item in items {
            let increment = self.increments.get(item.file);
            if let Some(increment) = increment.as_ref().filter(|increment| increment.blocks.is_empty()) {
                self.make_of_nothing(item, increment)?;
                continue;
            }
            let place = increment.map(|increment| increment.place(item.part, self.algorithm));
            let checks = match place {
                _ if by_client && self.has_page_checksums(item) => self.checks_by_client(),
                // The server's checksum is of the blocks alone, the manifest's of what is made of them: it need
                // not be as costly.
                Some(_) => Checks { algorithm: ChecksumAlgorithm::Crc32c, ..self.checks_by_server() },
                None => self.checks_by_server(),
            };
            // Of a header and blocks that nobody has looked at there is no other checksum.
            let has_checksum = place.is_none() || self.algorithm == ChecksumAlgorithm::Crc32c;
            let checks = Checks { passes: self.passes && checks.by_server && has_checksum, ..checks };
            let length = place.as_ref().map_or(0, Place::list_length);
            let fits = |batch: &&mut Batch| batch.checks == checks && batch.lists + length <= MAX_BLOCK_LISTS;
            match batches.iter_mut().rev().find(fits) {
                Some(batch) => batch.push(item, place, length),
                None => {
                    let mut batch = Batch { checks, items: Vec::new(), places: Vec::new(), lists: 0 };
                    batch.push(item, place, length);
                    batches.push(batch);
                }
            }
        }
        // First those that are looked at here, as they are the large ones.
        batches.sort_by_key(|batch| batch.checks.by_server);
        let mut batches = batches.into_iter();
        let outcome = batches.by_ref().try_for_each(|batch| self.fetch_batch(session, &batch));
        batches.for_each(|batch| batch.items.iter().for_each(|item| self.queue.release(*item)));
        outcome
    }

    /// Whether page checksums tell all that came wrong: relation files are nothing but pages, and only of
    /// them the server sends pages again by range.
    fn has_page_checksums(&self, item: Item) -> bool {
        self.queue.size(item) >= BY_CLIENT_MINIMUM
            && relation::of_listed(&self.queue.path(item.file)).is_some()
    }

    fn fetch_batch(&self, session: &mut Session, batch: &Batch) -> Result<()> {
        let Batch { checks, ref items, ref places, .. } = *batch;
        let requests = items.iter().zip(places).map(|(item, place)| self.request(*item, place.as_ref()));
        let wanted: Vec<FileRequest> = requests.collect();
        let mut receiver = Receiver::new(&wanted, checks).with_places(places);
        let mut writer = Writer::new(self, items, places, &wanted);
        let bytes: u64 = items.iter().map(|item| self.queue.size(*item)).sum();
        let outcome = if self.pipelined.is_some_and(|least| bytes >= least * items.len() as u64) {
            pipeline::run(
                &mut writer,
                |shares| self.counters.spent(shares),
                |front| self.transfer(session, &wanted, checks, None, &mut receiver, front),
            )
        } else {
            self.transfer(session, &wanted, checks, None, &mut receiver, &mut writer)
        };
        writer.forget();
        let mut mismatched = writer.mismatched.into_iter();
        let position = receiver.position();
        let outcome = outcome.or_else(|error| self.failed_at(&error, items, position));
        let outcome = outcome.and_then(|()| {
            mismatched.by_ref().try_for_each(|came| {
                let place = places[came.file].as_ref();
                self.reverify(session, items[came.file], place, came.received, came.content)
            })
        });
        // The connection is no more: others fetch them anew.
        for came in mismatched {
            self.counters.lost(came.received.length);
            self.queue.release(items[came.file]);
        }
        outcome
    }

    /// A transfer failed: fails in turn if the connection, or the backup, has failed with it.
    fn failed_at(&self, error: &Error, items: &[Item], position: usize) -> Result<()> {
        let hopeless = is_hopeless(error);
        if !hopeless && !matches!(error.kind(), Kind::Connection | Kind::Server(_)) {
            // Our own trouble, such as a full disk: nobody else would fare better.
            return Err(error.clone());
        }
        let mut left = items[position..].iter();
        let mut verdict = Ok(());
        // The file whose turn it was is to blame; those after it were not even looked at.
        if !hopeless && let Some(item) = left.next() {
            verdict = match error.kind() {
                // Reported as what it is, the end of the connection.
                Kind::Connection => {
                    self.counters.retry();
                    self.queue.lost(*item, error)
                }
                _ => self.failed(*item, error),
            };
        }
        left.for_each(|item| self.queue.release(*item));
        verdict?;
        if hopeless || error.kind() == Kind::Connection { Err(error.clone()) } else { Ok(()) }
    }

    /// A file could not be fetched: it is tried again, unless that was the last time, or the server may not
    /// read it, over whatever connection.
    pub fn failed(&self, item: Item, error: &Error) -> Result<()> {
        let path = self.queue.path(item.file);
        if error.is_server(SqlState::INSUFFICIENT_PRIVILEGE) {
            return Err(error.clone().context(format!("could not fetch file \"{path}\"")).fatal());
        }
        self.counters.retry();
        self.queue.failed(item, error)?;
        report::warning(format_args!("could not fetch file \"{path}\", will try again: {error}"));
        Ok(())
    }

    /// Whether this side verifies relation files on a connection. On one that is encrypted, or where it
    /// compresses them, the bytes go through the server's hands anyway; on a plain one it would have to copy them only to look at
    /// them. Without page checksums nothing but a file checksum of the server says that they came as they were.
    fn verifies(&self, session: &Session) -> bool {
        self.pages.is_some()
            && match self.verify {
                Some(side) => side == Side::Client,
                None => session.is_plain() && self.compression.algorithm == Compression::None,
            }
    }

    /// The server verifies, and makes the checksums.
    pub fn checks_by_server(&self) -> Checks {
        Checks {
            algorithm: self.algorithm,
            by_server: true,
            pages: None,
            names: self.names,
            compression: self.compression,
            passes: false,
        }
    }

    fn checks_by_client(&self) -> Checks {
        Checks { by_server: false, pages: Some(PageRule::Always), ..self.checks_by_server() }
    }

    fn request(&self, item: Item, place: Option<&Place>) -> FileRequest {
        let extent = match (place, item.part) {
            (Some(place), _) => Extent::Blocks(place.blocks.clone()),
            (None, Some(part)) => Extent::Range(Range { offset: part.offset, length: Some(part.length) }),
            (None, None) => Extent::Whole,
        };
        FileRequest { path: self.queue.path(item.file), extent }
    }

    /// What a file is called in the backup.
    pub fn name(&self, item: Item) -> BackupPath {
        let path = self.queue.path(item.file);
        if self.increments.contains(item.file) { increment::name_of(&path) } else { path }
    }

    /// A file of which no block has changed: there is nothing to ask the server for.
    fn make_of_nothing(&self, item: Item, increment: &Increment) -> Result<()> {
        let path = self.name(item);
        let Place { header, size, .. } = increment.place(None, self.algorithm);
        let failed = |error: io::Error| Error::io("write to file", &self.output.shown(&path), &error);
        let mut collected = None;
        if self.output.intake() == Intake::Any {
            let begun = self.output.begin(&piece(&path, None, size, increment.attributes))?;
            begun.map_or(Ok(()), |output| output.write(&header, 0)).map_err(failed)?;
        } else {
            let content = Collected::new(0, size, || self.output.spool()).map_err(failed)?;
            content.write(&header, 0).map_err(failed)?;
            collected = Some(Arc::new(content));
        }
        self.counters.received(header.len());
        let Attributes { mode, mtime } = increment.attributes;
        let checksum = Checksum::of(self.algorithm, &header);
        let received =
            Received { size, offset: 0, length: size, mtime, mode, checksum, mismatches: Vec::new() };
        self.complete(item, &received, collected)
    }

    /// One SEND_FILES_CONTENT. `verify` overrides what follows from `checks`.
    pub fn transfer(
        &self,
        session: &mut Session,
        wanted: &[FileRequest],
        checks: Checks,
        verify: Option<bool>,
        receiver: &mut Receiver<'_>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let command = Command::SendFilesContent(SendFilesContent {
            files: wanted.to_vec(),
            backup_id: Some(self.backup),
            // As START_BACKUP has it if it is the server that verifies.
            verify_checksums: verify.or(if checks.by_server { None } else { Some(false) }),
            file_checksum: if checks.by_server { checks.algorithm } else { ChecksumAlgorithm::None },
            compression: checks.compression,
        });
        let text = session.text_of(&command);
        session.copy_out(&text, self.past_libpq, &mut Feed { receiver, sink })?;
        receiver.finish()
    }

    /// A file, or a part of one, is there and right.
    pub fn complete(&self, item: Item, received: &Received, content: Option<Arc<Collected>>) -> Result<()> {
        match (self.sequencer, content) {
            (Some(sequencer), Some(content)) => {
                let came = Some((received.clone(), content));
                return sequencer.deliver(self, Delivery { item, came });
            }
            (None, Some(content)) => return self.collected(item, received, &content),
            (_, None) => {}
        }
        let attributes = received.attributes();
        match item.part {
            None => self.file_complete(item, received.size, &attributes, &received.checksum),
            Some(part) if part.is_all() => {
                self.file_complete(item, part.size, &attributes, &received.checksum)
            }
            Some(part) => {
                // Only these checksums are made of files in parts.
                let crc = to_crc(&received.checksum);
                self.part_done(item, &part, self.splits.complete(item.file, &part, crc), received.mode)
            }
        }
    }

    /// A file was collected, and is right.
    pub fn collected(&self, item: Item, received: &Received, content: &Collected) -> Result<()> {
        let attributes = received.attributes();
        self.output.put(&piece(&self.name(item), item.part, received.size, attributes), content)?;
        self.recorded(item, received.size, attributes.mtime, &received.checksum)
    }

    fn file_complete(&self, item: Item, size: u64, attributes: &Attributes, checksum: &[u8]) -> Result<()> {
        let path = self.name(item);
        self.output.complete(&path, attributes)?;
        if let Some(journal) = self.journal {
            journal.file(&path, &Entry { size, attributes: *attributes, checksum: checksum.to_vec() })?;
        }
        self.recorded(item, size, attributes.mtime, checksum)
    }

    /// A file is where it belongs.
    pub fn recorded(&self, item: Item, size: u64, mtime: i64, checksum: &[u8]) -> Result<()> {
        let path = self.name(item);
        // As in BASE_BACKUP, WAL segments are not in the manifest, all else is.
        if let Some(manifest) = self.manifest
            && !wal_file_name(&path).is_some_and(is_segment)
        {
            let mut manifest = manifest.lock().unwrap_or_else(PoisonError::into_inner);
            manifest.file(path.as_bytes(), size, mtime, checksum).map_err(|error| manifest_error(&error))?;
        }
        self.finished(item)
    }

    fn finished(&self, item: Item) -> Result<()> {
        self.increments.remove(item.file);
        self.counters.file();
        self.queue.finish(true);
        Ok(())
    }

    /// A file is gone on the server.
    pub fn vanished(&self, item: Item) -> Result<()> {
        let path = self.queue.path(item.file);
        if let Some(name) = wal_file_name(&path) {
            return Err(Error::local(format!(
                "could not find WAL file \"{}\"",
                String::from_utf8_lossy(name)
            )));
        }
        if let Some(sequencer) = self.sequencer {
            return sequencer.deliver(self, Delivery { item, came: None });
        }
        match item.part {
            Some(part) if !part.is_all() => {
                self.part_done(item, &part, self.splits.vanished(item.file, &part), 0)
            }
            _ => self.file_vanished(item),
        }
    }

    /// No part of a file is there any more. An increment that has to stay must be one that can be combined, though
    /// replay removes what is made of it.
    pub fn file_vanished(&self, item: Item) -> Result<()> {
        let header = self.increments.get(item.file).map(|increment| increment.header()).unwrap_or_default();
        match self.output.vanished(&self.name(item), &header)? {
            Some(Remains { size, attributes }) => {
                let checksum = checksum_filled_up(self.algorithm, &header, size);
                self.recorded(item, size, attributes.mtime, &checksum)
            }
            None => self.finished(item),
        }
    }

    /// `mode` is that of a file which is complete now.
    fn part_done(&self, item: Item, part: &Part, outcome: Outcome, mode: u32) -> Result<()> {
        match outcome {
            Outcome::Unfinished => {
                self.queue.finish(false);
                Ok(())
            }
            Outcome::Complete { crc, mtime } => {
                self.file_complete(item, part.size, &Attributes { mode, mtime }, &from_crc(crc))
            }
            Outcome::Vanished => self.file_vanished(item),
        }
    }
}

/// What one command asks for.
struct Batch {
    checks: Checks,
    items: Vec<Item>,
    /// Of each of them.
    places: Vec<Option<Place>>,
    /// How long the lists of blocks are together.
    lists: usize,
}

impl Batch {
    fn push(&mut self, item: Item, place: Option<Place>, list: usize) {
        self.items.push(item);
        self.places.push(place);
        self.lists += list;
    }
}

/// Whether files of a backup with such checksums may be fetched in parts: those of CRC-32C can be put
/// together. Others would have to be made over the whole file once it is there, and reading it all
/// again costs more than an uneven end.
pub fn may_split(algorithm: ChecksumAlgorithm) -> bool {
    algorithm == ChecksumAlgorithm::Crc32c
}

/// Hands what a COPY carries to whoever knows what it is.
struct Feed<'a, 'b, S> {
    receiver: &'a mut Receiver<'b>,
    sink: &'a mut S,
}

impl<S: Sink> CopySink for Feed<'_, '_, S> {
    fn message(&mut self, payload: &[u8]) -> Result<()> {
        self.receiver.message(payload, self.sink)
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.receiver.data(chunk, self.sink)
    }

    fn keeps(&self) -> bool {
        self.receiver.passes()
    }
}

/// Whether an error says that the backup is gone, or another's by now.
pub fn is_hopeless(error: &Error) -> bool {
    HOPELESS.iter().any(|state| error.is_server(*state)) || error.is_taken_over()
}

/// The error of a manifest that cannot be written.
pub fn manifest_error(error: &std::io::Error) -> Error {
    Error::local(format!("could not write backup manifest: {}", crate::error::os_message(error)))
}

/// The name of a file that is directly in pg_wal.
pub fn wal_file_name(path: &BackupPath) -> Option<&[u8]> {
    path.as_bytes().strip_prefix(b"pg_wal/").filter(|name| memchr::memchr(b'/', name).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abort::Abort;
    use crate::options::ManifestOptions;
    use crate::options::{self, Invocation};
    use crate::output;
    use crate::output::cleanup::Cleanup;
    use crate::server::fake_server::{
        FakeServer, compressed, copy, file, file_with, frame, message, ready, report,
    };
    use compression::{Encoder, Step};
    use pages::page::BLOCK_SIZE as BLOCK;
    use protocol::{BlockList, Frame};

    const PATH: &str = "base/5/16384";

    /// One file of a backup, fetched from a server with these answers.
    struct Fetched {
        outcome: Result<()>,
        commands: Vec<String>,
        content: Option<Vec<u8>>,
        manifest: String,
        counters: Counters,
        complete: bool,
    }

    struct Case {
        size: usize,
        jobs: usize,
        discard: bool,
        pipelined: bool,
        past_libpq: bool,
        path: &'static str,
        names: NameRules,
        /// Whether the cluster has page checksums, and the start LSN.
        pages: bool,
        start: Lsn,
        compression: WireCompression,
        /// The blocks that come, of an increment.
        blocks: Option<&'static str>,
        algorithm: ChecksumAlgorithm,
    }

    const CASE: Case = Case {
        // As listed; what comes has three pages.
        size: 64 << 10,
        jobs: 1,
        discard: false,
        pipelined: false,
        past_libpq: true,
        path: PATH,
        names: NameRules::Since17,
        pages: true,
        start: Lsn(u64::MAX),
        compression: WireCompression { algorithm: Compression::None, level: None, long: false },
        blocks: None,
        algorithm: ChecksumAlgorithm::Crc32c,
    };

    fn fetch(case: &Case, answers: Vec<Vec<u8>>) -> Fetched {
        let place = tempfile::tempdir().unwrap();
        let mut arguments = vec!["pg_parallel_basebackup".into()];
        if case.discard {
            arguments.push("--discard".into());
        } else {
            arguments.extend(["-D".into(), place.path().as_os_str().to_owned()]);
        }
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let (abort, cleanup) = (Arc::new(Abort::new().unwrap()), Cleanup::default());
        let output = output::of(&options, &abort, &cleanup).unwrap();
        for directory in ["base/5", "pg_xact"] {
            std::fs::create_dir_all(place.path().join(directory)).unwrap();
        }
        let queue = Queue::new(case.jobs, may_split(case.algorithm));
        let increments = Increments::default();
        let mut path = BackupPath::from_bytes(case.path).unwrap();
        if let Some(list) = case.blocks {
            let increment = increment(list);
            queue.push_noted(&path, increment.size(), |file| increments.insert(file, &increment)).unwrap();
            path = increment::name_of(&path);
        } else {
            queue.push(&path, case.size as u64).unwrap();
        }
        queue.complete();
        let options = ManifestOptions { checksums: case.algorithm, force_encode: false };
        let out: Box<dyn Write + Send> =
            Box::new(std::fs::File::create(place.path().join("manifest")).unwrap());
        let manifest = Mutex::new(Manifest::new(out, options, 180_000, 1).unwrap());
        let server = FakeServer::start(answers);
        let mut session = server.connect();
        let counters = Counters::default();
        let work = Work {
            queue: &queue,
            splits: &Splits::default(),
            increments: &increments,
            output: &*output,
            pipelined: case.pipelined.then_some(0),
            backup: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            algorithm: case.algorithm,
            pages: case.pages.then_some(case.start),
            names: case.names,
            compression: case.compression,
            passes: false,
            verify: None,
            past_libpq: case.past_libpq,
            sync: true,
            manifest: (!case.discard).then_some(&manifest),
            sequencer: None,
            wal: None,
            journal: None,
            done: None,
            counters: &counters,
        };
        let outcome = work.run(&mut session);
        manifest.into_inner().unwrap().finish(&[]).unwrap();
        Fetched {
            outcome,
            commands: server.commands(),
            content: std::fs::read(place.path().join(std::str::from_utf8(path.as_bytes()).unwrap())).ok(),
            manifest: std::fs::read_to_string(place.path().join("manifest")).unwrap(),
            counters,
            complete: queue.is_complete(),
        }
    }

    fn increment(list: &str) -> Increment {
        Increment {
            blocks: BlockList::parse(list.as_bytes()).unwrap(),
            truncation_block_length: 77,
            attributes: Attributes { mode: 0o640, mtime: 1_600_000_000 },
        }
    }

    /// Some of the file's bytes with the server's checksum.
    fn checksummed(bytes: &[u8], checksum_failures: u32) -> Vec<u8> {
        let checksum = Checksum::of(ChecksumAlgorithm::Crc32c, bytes);
        copy(&[file_with(
            PATH,
            3 * BLOCK as u64,
            0,
            bytes,
            checksum_failures,
            ChecksumAlgorithm::Crc32c,
            &checksum,
        )])
    }

    /// Three pages, the first of a real server, and one that is damaged.
    fn good_and_bad() -> (Vec<u8>, Vec<u8>) {
        let mut good = vec![0; 3 * BLOCK];
        good[..BLOCK].copy_from_slice(include_bytes!("../../../tests/data/page_heap_block_0"));
        let mut bad = good.clone();
        bad[5000] ^= 1;
        (good, bad)
    }

    fn crc(bytes: &[u8]) -> String {
        protocol::id::to_hex(&Checksum::of(ChecksumAlgorithm::Crc32c, bytes))
    }

    #[test]
    fn a_page_that_was_torn_is_asked_for_again() {
        let (good, bad) = good_and_bad();
        for (past_libpq, pipelined) in [(true, false), (false, false), (true, true), (false, true)] {
            let fetched = fetch(
                &Case { past_libpq, pipelined, ..CASE },
                vec![copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]), checksummed(&good[..BLOCK], 0)],
            );
            fetched.outcome.unwrap();
            assert!(fetched.complete);
            assert_eq!(fetched.content.unwrap(), good);
            assert!(fetched.manifest.contains(&crc(&good)), "{}", fetched.manifest);
            assert_eq!(fetched.commands.len(), 2);
            assert!(fetched.commands[1].contains("(OFFSET '0', LENGTH '8192')"), "{:?}", fetched.commands);
            assert!(fetched.commands.iter().all(|command| command.contains("VERIFY_CHECKSUMS false")));
        }
    }

    #[test]
    fn a_page_that_stays_wrong_is_the_servers_to_report() {
        let (_, bad) = good_and_bad();
        let mut reported = checksummed(&bad[..BLOCK], 1);
        reported.splice(8..8, report(b'N', "WARNING", "01000", "checksum verification failed"));
        let fetched = fetch(
            &CASE,
            vec![copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]), checksummed(&bad[..BLOCK], 0), reported],
        );
        fetched.outcome.unwrap();
        assert_eq!(fetched.content.unwrap(), bad);
        assert!(fetched.manifest.contains(&crc(&bad)));
        assert_eq!(fetched.commands.len(), 3);
        assert!(fetched.commands[2].contains("VERIFY_CHECKSUMS true"), "{}", fetched.commands[2]);
        assert!(fetched.commands[2].contains("FILE_CHECKSUM 'CRC32C'"), "{}", fetched.commands[2]);
    }

    #[test]
    fn a_file_that_goes_or_shrinks_before_it_is_asked_for_again() {
        let (_, bad) = good_and_bad();
        let whole = || copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]);
        let gone = fetch(&CASE, vec![whole(), copy(&[frame(&Frame::Vanished(PATH.as_bytes()))])]);
        gone.outcome.unwrap();
        assert!(gone.complete && gone.content.is_none() && !gone.manifest.contains(PATH));

        let empty = Checksum::of(ChecksumAlgorithm::Crc32c, b"");
        let shrunk = copy(&[file_with(PATH, 0, 0, b"", 0, ChecksumAlgorithm::Crc32c, &empty)]);
        let shrunk = fetch(&CASE, vec![whole(), shrunk]);
        shrunk.outcome.unwrap();
        assert_eq!(shrunk.content.unwrap(), vec![0; 3 * BLOCK]);
        assert!(shrunk.manifest.contains(&crc(&vec![0; 3 * BLOCK])));
    }

    #[test]
    fn errors_in_the_middle_of_a_copy() {
        let (good, _) = good_and_bad();
        let begun = file(PATH, 3 * BLOCK as u64, 0, &good);
        // The end frame is 21 bytes in its message; the error takes its place.
        let mut failed = [message(b'H', &[0, 0, 0]), begun[..begun.len() - 21].to_vec()].concat();
        failed.extend(report(b'N', "WARNING", "01000", "trouble"));
        failed.extend(report(b'E', "ERROR", "58030", "could not read file"));
        failed.extend(ready());
        for (past_libpq, pipelined) in [(true, false), (false, false), (true, true), (false, true)] {
            let case = Case { past_libpq, pipelined, ..CASE };
            let fetched = fetch(&case, vec![failed.clone(), copy(&[file(PATH, 3 * BLOCK as u64, 0, &good)])]);
            fetched.outcome.unwrap();
            assert_eq!(fetched.content.unwrap(), good, "libpq: {}", !past_libpq);
            assert_eq!(fetched.counters.done(), (3 * BLOCK as u64, 1));

            let error = fetch(&case, vec![failed.clone(); 3]).outcome.unwrap_err();
            assert!(error.message().ends_with("in 3 tries: ERROR:  could not read file"), "{error}");
            // The connection goes, with a word and without.
            let mut fatal = failed[..50].to_vec();
            fatal.truncate(8);
            fatal.extend(report(b'E', "FATAL", "57P01", "terminating connection"));
            for (answer, words) in
                [(fatal, "terminating connection"), (failed[..1000].to_vec(), "server closed")]
            {
                let error = fetch(&case, vec![answer]).outcome.unwrap_err();
                assert_eq!(error.kind(), Kind::Connection);
                assert!(error.message().contains(words), "{error}");
            }
        }
    }

    #[test]
    fn parts_of_a_file_that_shrinks_meanwhile() {
        const MB: usize = 1 << 20;
        let size = 65 * MB;
        let length = (size / 3).next_multiple_of(BLOCK);
        let first = vec![0; length];
        let second =
            [include_bytes!("../../../tests/data/page_heap_block_0").as_slice(), &[0; BLOCK]].concat();
        let now = (length + second.len()) as u64;
        let answer = |offset: usize, bytes: &[u8]| {
            // In frames, as they may be at most a megabyte.
            let begin = file(PATH, now, offset as u64, b"");
            let mut whole = begin[..begin.len() - 21 - 6].to_vec();
            // The length that was announced.
            whole[5 + 1 + 16..5 + 1 + 24].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
            for piece in bytes.chunks(127 * BLOCK) {
                whole.extend(frame(&Frame::Data(piece)));
            }
            let mut end = begin[begin.len() - 21..].to_vec();
            end[6..14].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
            whole.extend(end);
            copy(&[whole])
        };
        // Its first page is no first page any more.
        let zeroes = Checksum::of(ChecksumAlgorithm::Crc32c, &[0; BLOCK]);
        let crc32c = ChecksumAlgorithm::Crc32c;
        let again = copy(&[file_with(PATH, now, length as u64, &[0; BLOCK], 0, crc32c, &zeroes)]);
        let answers =
            || vec![answer(0, &first), answer(length, &second), again.clone(), answer(2 * length, &[])];
        let expected = vec![0; size];
        for pipelined in [false, true] {
            let fetched = fetch(&Case { size, jobs: 2, pipelined, ..CASE }, answers());
            fetched.outcome.unwrap();
            assert!(fetched.complete);
            assert!(fetched.content.unwrap() == expected);
            assert!(fetched.manifest.contains(&crc(&expected)), "{}", fetched.manifest);
            assert!(fetched.manifest.contains(&format!("\"Size\": {size},")));
            assert_eq!(fetched.counters.done().1, 1);
        }

        let gone = copy(&[frame(&Frame::Vanished(PATH.as_bytes()))]);
        let fetched = fetch(&Case { size, jobs: 2, ..CASE }, vec![answer(0, &first), gone.clone(), gone]);
        fetched.outcome.unwrap();
        assert!(fetched.complete && fetched.content.is_none() && !fetched.manifest.contains(PATH));
    }

    #[test]
    fn what_page_checksums_do_not_cover_has_the_servers_checksum() {
        let (_, bad) = good_and_bad();
        let checksum = Checksum::of(ChecksumAlgorithm::Crc32c, &bad);
        let cluster = Case { pages: false, ..CASE };
        for (case, name) in [
            (Case { path: "base/5/notes", ..CASE }, "no relation"),
            (Case { path: "base/5/notes", names: NameRules::Before17, ..CASE }, "no relation, before 17"),
            (Case { path: "pg_xact/0000", ..CASE }, "commit status"),
            (Case { size: BLOCK, ..CASE }, "too small to be sent without a copy"),
            (cluster, "no page checksums"),
        ] {
            let size = bad.len() as u64;
            let sent = |bytes: &[u8]| {
                copy(&[file_with(case.path, size, 0, bytes, 0, ChecksumAlgorithm::Crc32c, &checksum)])
            };
            let mut damaged = bad.clone();
            damaged[20_000] ^= 4;
            let fetched = fetch(&case, vec![sent(&damaged), sent(&bad)]);
            fetched.outcome.unwrap();
            assert!(fetched.complete, "{name}");
            assert_eq!(fetched.content.unwrap(), bad, "{name}");
            assert_eq!(fetched.commands.len(), 2, "{name}: {:?}", fetched.commands);
            for command in &fetched.commands {
                assert!(command.contains("FILE_CHECKSUM 'CRC32C'"), "{name}: {command}");
                assert!(!command.contains("VERIFY_CHECKSUMS"), "{name}: {command}");
            }
            let error = fetch(&case, vec![sent(&damaged); 3]).outcome.unwrap_err();
            assert!(error.message().contains("damaged in transit"), "{name}: {error}");
        }
    }

    fn stream_of(asked: WireCompression, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(&asked).unwrap().unwrap();
        encoder.begin(bytes.len() as u64).unwrap();
        encoder.encode(bytes, Step::End).unwrap().to_vec()
    }

    #[test]
    fn a_compressed_file_is_what_the_server_read() {
        let (good, _) = good_and_bad();
        let long = good.repeat(200);
        for algorithm in [Compression::Lz4, Compression::Zstd] {
            let compression = WireCompression { algorithm, level: Some(1), long: false };
            for (bytes, past_libpq, pipelined) in
                [(&good, true, false), (&long, true, true), (&long, false, false), (&long, false, true)]
            {
                let crc32c = ChecksumAlgorithm::Crc32c;
                let checksum = Checksum::of(crc32c, bytes);
                let stream = stream_of(compression, bytes);
                let sent =
                    |stream: &[u8], kind| copy(&[compressed(PATH, bytes, kind, stream, (crc32c, &checksum))]);
                let good_answer = sent(&stream, algorithm);
                let case = Case { size: bytes.len(), past_libpq, pipelined, compression, ..CASE };
                let is_right = |fetched: Fetched, tries: usize, name: &str| {
                    fetched.outcome.unwrap();
                    assert!(fetched.complete && fetched.content.as_ref() == Some(bytes), "{name}");
                    assert!(fetched.manifest.contains(&crc(bytes)), "{name}");
                    assert_eq!(fetched.counters.done(), (bytes.len() as u64, 1), "{name}");
                    assert_eq!(fetched.commands.len(), tries, "{name}: {:?}", fetched.commands);
                    for command in &fetched.commands {
                        let asked = if algorithm == Compression::Lz4 { "'lz4'" } else { "'zstd'" };
                        assert!(
                            command.contains(&format!("COMPRESSION {asked}, COMPRESSION_LEVEL '1'"))
                                && command.contains("FILE_CHECKSUM 'CRC32C'")
                                && !command.contains("VERIFY_CHECKSUMS"),
                            "{command}"
                        );
                    }
                };
                is_right(fetch(&case, vec![good_answer.clone()]), 1, "compressed");
                // What the server did not find worth it.
                is_right(fetch(&case, vec![sent(bytes, Compression::None)]), 1, "as it is");

                let mut flipped = stream.clone();
                flipped[stream.len() / 2] ^= 0x10;
                let mut other = bytes.clone();
                other[1000] ^= 1;
                let bomb = stream_of(compression, &vec![0; bytes.len() * 100]);
                let damaged = [
                    ("flipped", flipped),
                    ("cut short", stream[..stream.len() - 1].to_vec()),
                    ("nothing", Vec::new()),
                    ("trailing bytes", [&stream[..], b"\0"].concat()),
                    ("another stream behind it", [&stream[..], &stream].concat()),
                    ("a bomb", bomb),
                    ("less than announced", stream_of(compression, &bytes[1..])),
                    ("a sound stream of other bytes", stream_of(compression, &other)),
                    ("no stream", bytes.clone()),
                ];
                for (name, stream) in damaged {
                    let answer = sent(&stream, algorithm);
                    is_right(fetch(&case, vec![answer.clone(), good_answer.clone()]), 2, name);
                    let fetched = fetch(&case, vec![answer; 3]);
                    let error = fetched.outcome.unwrap_err();
                    assert!(
                        error.message().contains("was damaged in transit")
                            && error.message().contains("in 3 tries"),
                        "{name}: {error}"
                    );
                    assert!(!fetched.complete, "{name}");
                }
            }
        }
    }

    #[test]
    fn only_what_was_asked_for_is_decompressed() {
        let (good, _) = good_and_bad();
        let crc32c = ChecksumAlgorithm::Crc32c;
        let checksum = Checksum::of(crc32c, &good);
        let zstd = WireCompression { algorithm: Compression::Zstd, ..WireCompression::default() };
        let lz4 = WireCompression { algorithm: Compression::Lz4, ..WireCompression::default() };
        for (asked, sent) in [(WireCompression::default(), zstd), (zstd, lz4), (lz4, zstd)] {
            let stream = stream_of(sent, &good);
            let answer = copy(&[compressed(PATH, &good, sent.algorithm, &stream, (crc32c, &checksum))]);
            let error = fetch(&Case { compression: asked, ..CASE }, vec![answer]).outcome.unwrap_err();
            assert_eq!(error.kind(), Kind::Connection);
            assert!(error.message().contains("compression that was not asked for"), "{error}");
        }
        // Nor in a window that was not.
        let long = WireCompression { long: true, ..zstd };
        let large = [vec![1; 9 << 20], good.clone()].concat();
        let checksum = Checksum::of(crc32c, &large);
        let stream = stream_of(long, &large);
        let answer = copy(&[compressed(PATH, &large, Compression::Zstd, &stream, (crc32c, &checksum))]);
        let case = Case { size: large.len(), compression: zstd, ..CASE };
        let error = fetch(&case, vec![answer.clone(); 3]).outcome.unwrap_err();
        assert!(error.message().contains("larger window"), "{error}");
        fetch(&Case { compression: long, ..case }, vec![answer]).outcome.unwrap();
    }

    #[test]
    fn a_page_that_only_looks_new_is_asked_for_again() {
        let (good, _) = good_and_bad();
        let sent = |bytes: &[u8]| copy(&[file(PATH, 3 * BLOCK as u64, 0, bytes)]);
        for (at, mask, name) in
            [(0, 0x40, "its LSN"), (BLOCK + 14, 1, "pd_upper"), (2 * BLOCK + 500, 8, "a new page")]
        {
            let page = at / BLOCK * BLOCK..(at / BLOCK + 1) * BLOCK;
            let mut damaged = good.clone();
            damaged[at] ^= mask;
            let repaired = |bytes: &[u8]| {
                let checksum = Checksum::of(ChecksumAlgorithm::Crc32c, &good[page.clone()]);
                let offset = page.start as u64;
                copy(&[file_with(
                    PATH,
                    3 * BLOCK as u64,
                    offset,
                    bytes,
                    0,
                    ChecksumAlgorithm::Crc32c,
                    &checksum,
                )])
            };
            let fetched =
                fetch(&Case { start: Lsn(1), ..CASE }, vec![sent(&damaged), repaired(&good[page.clone()])]);
            fetched.outcome.unwrap();
            assert_eq!(fetched.content.unwrap(), good, "{name}");
            assert!(fetched.manifest.contains(&crc(&good)), "{name}");
            assert_eq!(fetched.commands.len(), 2, "{name}");

            // And once more on the way: the file is begun anew, on the same connection.
            let fetched = fetch(
                &Case { start: Lsn(1), ..CASE },
                vec![sent(&damaged), repaired(&damaged[page.clone()]), sent(&good)],
            );
            fetched.outcome.unwrap();
            assert_eq!(fetched.content.unwrap(), good, "{name}");
            assert_eq!(fetched.counters.done(), (3 * BLOCK as u64, 1), "{name}");
        }
    }

    #[test]
    fn discarded_files_are_verified_and_not_written() {
        let (good, bad) = good_and_bad();
        let fetched = fetch(
            &Case { discard: true, ..CASE },
            vec![copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]), checksummed(&good[..BLOCK], 0)],
        );
        fetched.outcome.unwrap();
        assert!(fetched.complete && fetched.content.is_none());
        assert_eq!(fetched.commands.len(), 2);
        assert_eq!(fetched.counters.done(), (3 * BLOCK as u64, 1));
    }

    /// An increment's file.
    fn made(list: &str, blocks: &[u8]) -> Vec<u8> {
        [increment(list).place(None, ChecksumAlgorithm::Crc32c).header, blocks.to_vec()].concat()
    }

    #[test]
    fn an_increment_is_made_of_blocks() {
        const LIST: &str = "0,2,7-12";
        let case = Case { blocks: Some(LIST), ..CASE };
        let mut good = vec![0; 8 * BLOCK];
        good[..BLOCK].copy_from_slice(include_bytes!("../../../tests/data/page_heap_block_0"));
        // Of a relation of more blocks than are sent, or of one that has lost them all.
        let sent = |size: usize, bytes: &[u8]| copy(&[file(PATH, size as u64, 0, bytes)]);
        for (past_libpq, pipelined) in [(true, false), (false, true)] {
            for size in [0, 100 * BLOCK] {
                let fetched = fetch(&Case { past_libpq, pipelined, ..case }, vec![sent(size, &good)]);
                fetched.outcome.unwrap();
                assert!(fetched.complete);
                let expected = made(LIST, &good);
                assert!(fetched.content.unwrap() == expected);
                assert_eq!(fetched.commands.len(), 1);
                assert!(fetched.commands[0].contains("('base/5/16384' (BLOCKS '0,2,7-12'))"));
                let entry = format!("\"Path\": \"base/5/INCREMENTAL.16384\", \"Size\": {},", expected.len());
                assert!(fetched.manifest.contains(&entry), "{}", fetched.manifest);
                assert!(fetched.manifest.contains(&crc(&expected)), "{}", fetched.manifest);
                assert_eq!(fetched.counters.done(), (expected.len() as u64, 1));
            }
        }

        // Pages that came wrong: each is looked at by its own number, and goes where it belongs.
        let mut bad = good.clone();
        bad[5000] ^= 1;
        bad[BLOCK + 14] ^= 1;
        bad[4 * BLOCK + 100] ^= 1;
        bad[5 * BLOCK + 100] ^= 1;
        let again = [(0, 1), (1, 1), (4, 2)].map(|(block, count): (usize, usize)| {
            let bytes = &good[block * BLOCK..(block + count) * BLOCK];
            let checksum = Checksum::of(ChecksumAlgorithm::Crc32c, bytes);
            file_with(PATH, 0, 0, bytes, 0, ChecksumAlgorithm::Crc32c, &checksum)
        });
        let fetched = fetch(&case, vec![sent(0, &bad), copy(&again)]);
        fetched.outcome.unwrap();
        assert!(fetched.content.unwrap() == made(LIST, &good));
        assert!(fetched.manifest.contains(&crc(&made(LIST, &good))), "{}", fetched.manifest);
        let wanted =
            "('base/5/16384' (BLOCKS '0'), 'base/5/16384' (BLOCKS '2'), 'base/5/16384' (BLOCKS '9-10'))";
        assert!(fetched.commands[1].contains(wanted), "{}", fetched.commands[1]);

        let gone = fetch(&case, vec![copy(&[frame(&Frame::Vanished(PATH.as_bytes()))])]);
        gone.outcome.unwrap();
        assert!(gone.complete && gone.content.is_none() && !gone.manifest.contains("16384"));
    }

    #[test]
    fn an_increments_checksum_is_of_all_of_its_file() {
        const LIST: &str = "3,5";
        let bytes = [vec![1; BLOCK], vec![2; BLOCK]].concat();
        let expected = made(LIST, &bytes);
        // Without page checksums the server makes one of the blocks: the cheapest, whatever the manifest has.
        let checksum = Checksum::of(ChecksumAlgorithm::Crc32c, &bytes);
        let sent = |bytes: &[u8]| {
            copy(&[file_with(PATH, 1 << 20, 0, bytes, 0, ChecksumAlgorithm::Crc32c, &checksum)])
        };
        let mut damaged = bytes.clone();
        damaged[BLOCK] ^= 1;
        for algorithm in [ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Sha256, ChecksumAlgorithm::Sha512] {
            let case = Case { blocks: Some(LIST), pages: false, algorithm, ..CASE };
            let fetched = fetch(&case, vec![sent(&damaged), sent(&bytes)]);
            fetched.outcome.unwrap();
            assert!(fetched.content.unwrap() == expected);
            let checksum = protocol::id::to_hex(&Checksum::of(algorithm, &expected));
            assert!(fetched.manifest.contains(&checksum), "{}", fetched.manifest);
            assert!(fetched.commands.iter().all(|command| command.contains("FILE_CHECKSUM 'CRC32C'")));
            assert_eq!(fetched.counters.done(), (expected.len() as u64, 1));
        }
    }

    #[test]
    fn an_increment_of_nothing_is_made_without_the_server() {
        for discard in [false, true] {
            let fetched = fetch(&Case { blocks: Some(""), discard, ..CASE }, Vec::new());
            fetched.outcome.unwrap();
            assert!(fetched.complete && fetched.commands.is_empty());
            assert_eq!(fetched.content, (!discard).then(|| made("", b"")));
            assert_eq!(fetched.counters.done(), (12, 1));
            if !discard {
                let entry =
                    "\"Path\": \"base/5/INCREMENTAL.16384\", \"Size\": 12, \"Last-Modified\": \"2020-09-13";
                assert!(fetched.manifest.contains(entry), "{}", fetched.manifest);
            }
        }
    }

    #[test]
    fn a_large_increment_comes_in_parts() {
        // 5 blocks of header and 8,700 others: more than twice what a part has at least.
        const LIST: &str = "0-99,1000-9599";
        let block = |number: usize| vec![u8::try_from(number % 251).unwrap(); BLOCK];
        let answer = |numbers: std::ops::Range<usize>| {
            let bytes: Vec<u8> = numbers.flat_map(block).collect();
            let begin = file(PATH, 1 << 30, 0, b"");
            let mut whole = begin[..begin.len() - 21 - 6].to_vec();
            whole[5 + 1 + 16..5 + 1 + 24].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
            for piece in bytes.chunks(127 * BLOCK) {
                whole.extend(frame(&Frame::Data(piece)));
            }
            let checksum = Checksum::of(ChecksumAlgorithm::Crc32c, &bytes);
            let end = Frame::FileEnd(protocol::FileEnd {
                bytes: bytes.len() as u64,
                checksum_failures: 0,
                algorithm: ChecksumAlgorithm::Crc32c,
                checksum: &checksum,
            });
            whole.extend(frame(&end));
            copy(&[whole])
        };
        let expected = made(LIST, &(0..8700).flat_map(block).collect::<Vec<_>>());
        let case = Case { blocks: Some(LIST), pages: false, jobs: 2, ..CASE };
        // Parts of 2,902 blocks, the header among the first.
        let fetched = fetch(&case, vec![answer(0..2897), answer(2897..5799), answer(5799..8700)]);
        fetched.outcome.unwrap();
        assert!(fetched.complete);
        for (command, list) in fetched.commands.iter().zip(["0-99,1000-3796", "3797-6698", "6699-9599"]) {
            assert!(command.contains(&format!("(BLOCKS '{list}')")), "{command}");
        }
        assert!(fetched.content.unwrap() == expected);
        assert!(fetched.manifest.contains(&crc(&expected)), "{}", fetched.manifest);
        assert!(fetched.manifest.contains(&format!("\"Size\": {},", expected.len())));
        assert_eq!(fetched.counters.done(), (expected.len() as u64, 1));
    }

    #[test]
    fn names_in_pg_wal() {
        let name = |path: &str| {
            wal_file_name(&BackupPath::from_bytes(path).unwrap())
                .map(|n| String::from_utf8_lossy(n).into_owned())
        };
        assert_eq!(name("pg_wal/00000002.history").as_deref(), Some("00000002.history"));
        assert_eq!(name("pg_wal/archive_status/x"), None);
        assert_eq!(name("base/1"), None);
    }
}
