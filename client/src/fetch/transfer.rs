//! One connection's work: take files from the queue, fetch them, have them verified and written. The
//! coordinator does the same as every worker. `batch` says what one command asks for, and what is asked for next; `writer`
//! makes the files, `reverify` fetches again what came wrong; what is made of some blocks of a file is for `increment` to
//! say.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pages::checksum::{from_crc, to_crc};
use pages::names::NameRules;
use protocol::compression::WireCompression;
use protocol::wal::is_segment;
use protocol::{BackupId, BackupPath, ChecksumAlgorithm, Lsn, SqlState};

use crate::error::{Error, Kind, Result};
use crate::fetch::batch::{Batch, Feed, Hand};
use crate::fetch::increment::{self, Increments};
use crate::fetch::ordered::{Delivery, Sequencer};
use crate::fetch::pipeline;
use crate::fetch::queue::{Claimed, Item, Part, Queue};
use crate::fetch::receive::{Received, Receiver, Sink};
use crate::fetch::split::{Outcome, Splits};
use crate::fetch::writer::{Mismatched, Writer, checksum_filled_up, piece};
use crate::manifest::Manifest;
use crate::options::Side;
use crate::output::collected::Collected;
use crate::output::journal::{Entry, Journal};
use crate::output::{Attributes, Output, Remains};
use crate::report;
use crate::report::meter::Meter;
use crate::report::progress::Counters;
use crate::server::connection::Session;
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
        let mut hand = Hand::of(session, self.verifies(session));
        let outcome = self.play(session, &mut hand, idle);
        // The connection is no more: others fetch them anew.
        for (batch, came) in hand.mismatched.drain(..) {
            self.give_back(&batch, came);
        }
        for batch in hand.batches.drain(..) {
            batch.items.iter().for_each(|item| self.queue.release(*item));
        }
        outcome
    }

    fn play(&self, session: &mut Session, hand: &mut Hand, idle: &mut Duration) -> Result<()> {
        loop {
            if let Some(batch) = hand.batches.pop_front() {
                self.counters.activity(session.backend_pid(), Some(self.describe(&batch.items)));
                self.fetch(session, batch, hand)?;
                continue;
            }
            let asked = Instant::now();
            let claimed = self.queue.claim(&mut hand.turn, PATIENCE);
            *idle += asked.elapsed();
            match claimed {
                Claimed::Done => return Ok(()),
                Claimed::Wait => {
                    self.counters.activity(session.backend_pid(), None);
                    session.check_alive()?;
                }
                Claimed::Batch(items) => self.deal(&items, hand)?,
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

    fn fetch(&self, session: &mut Session, batch: Batch, hand: &mut Hand) -> Result<()> {
        let Batch { checks, ref items, ref places, ref wanted, .. } = batch;
        let mut receiver = Receiver::new(wanted, checks).with_places(places);
        let mut writer = Writer::new(self, items, places, wanted);
        let bytes: u64 = items.iter().map(|item| self.queue.size(*item)).sum();
        let left = batch.bytes_on_the_wire(bytes);
        let outcome = if self.pipelined.is_some_and(|least| bytes >= least * items.len() as u64) {
            pipeline::run(
                &mut writer,
                |shares| self.counters.spent(shares),
                |front| {
                    let next = &mut || self.next_command(hand);
                    self.transfer(session, &batch.text, Feed::new(&mut receiver, front).then(left, next))
                },
            )
        } else {
            let next = &mut || self.next_command(hand);
            self.transfer(session, &batch.text, Feed::new(&mut receiver, &mut writer).then(left, next))
        };
        writer.forget();
        let (mismatched, position) = (writer.mismatched, receiver.position());
        match outcome.or_else(|error| self.failed_at(&error, items, position)) {
            Ok(()) if mismatched.is_empty() => {}
            Ok(()) => hand.mismatched.push((batch, mismatched)),
            Err(error) => {
                self.give_back(&batch, mismatched);
                return Err(error);
            }
        }
        // What was asked for comes before what would be asked for now.
        while !session.is_ahead()
            && let Some((batch, came)) = hand.mismatched.pop()
        {
            self.reverify_all(session, &batch, came)?;
        }
        Ok(())
    }

    /// The text of the next command, for a connection that can be told before it has answered the last.
    fn next_command(&self, hand: &mut Hand) -> Result<Option<Vec<u8>>> {
        // Pages that wait to be looked at again need not wait for ever.
        if !hand.mismatched.is_empty() {
            return Ok(None);
        }
        if hand.batches.is_empty()
            && let Claimed::Batch(items) = self.queue.claim(&mut hand.turn, Duration::ZERO)
        {
            self.deal(&items, hand)?;
        }
        Ok(hand.batches.front().map(|batch| batch.text.clone()))
    }

    fn reverify_all(&self, session: &mut Session, batch: &Batch, came: Vec<Mismatched>) -> Result<()> {
        let mut came = came.into_iter();
        let outcome = came.by_ref().try_for_each(|came| {
            let place = batch.places[came.file].as_ref();
            self.reverify(session, batch.items[came.file], place, came.received, came.content)
        });
        self.give_back(batch, came.collect());
        outcome
    }

    /// Files with pages that nobody has looked at again: others fetch them anew.
    fn give_back(&self, batch: &Batch, came: Vec<Mismatched>) {
        for came in came {
            self.counters.lost(came.received.length);
            self.queue.release(batch.items[came.file]);
        }
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

    /// What a file is called in the backup.
    pub fn name(&self, item: Item) -> BackupPath {
        let path = self.queue.path(item.file);
        if self.increments.contains(item.file) { increment::name_of(&path) } else { path }
    }

    /// One SEND_FILES_CONTENT.
    pub fn transfer<S: Sink>(
        &self,
        session: &mut Session,
        text: &[u8],
        mut feed: Feed<'_, '_, S>,
    ) -> Result<()> {
        session.copy_out(text, self.past_libpq, &mut feed)?;
        feed.receiver.finish()
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

/// Whether files of a backup with such checksums may be fetched in parts: those of CRC-32C can be put
/// together. Others would have to be made over the whole file once it is there, and reading it all
/// again costs more than an uneven end.
pub fn may_split(algorithm: ChecksumAlgorithm) -> bool {
    algorithm == ChecksumAlgorithm::Crc32c
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
    use crate::fetch::increment::Increment;
    use crate::options::ManifestOptions;
    use crate::options::{self, Invocation};
    use crate::output;
    use crate::output::cleanup::Cleanup;
    use crate::server::fake_server::{
        FakeServer, compressed, copy, file, file_with, frame, message, ready, report,
    };
    use compression::{Encoder, Step};
    use pages::checksum::Checksum;
    use pages::page::BLOCK_SIZE as BLOCK;
    use protocol::frame::Compression;
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
        /// Others of the same size.
        others: &'static [&'static str],
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
        others: &[],
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
        for other in case.others {
            queue.push(&BackupPath::from_bytes(*other).unwrap(), case.size as u64).unwrap();
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

    /// Two batches: what is wrong in the first is asked for again when the second, asked for before, has come.
    #[test]
    fn the_next_batch_is_asked_for_before_the_last_has_come() {
        const OTHER: &str = "base/5/16385";
        let (good, bad) = good_and_bad();
        let (first, other) = (
            copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]),
            copy(&[file(OTHER, 3 * BLOCK as u64, 0, &good)]),
        );
        // A single connection would ask for both at once.
        let case = Case { size: 3 << 20, others: &[OTHER], jobs: 2, ..CASE };
        for pipelined in [false, true] {
            // The server says the rest of the first once it has read the second command.
            let half = first.len() / 2;
            let rest = [&first[half..], &other].concat();
            let answers = vec![first[..half].to_vec(), rest, checksummed(&good[..BLOCK], 0)];
            let fetched = fetch(&Case { pipelined, ..case }, answers);
            fetched.outcome.unwrap();
            assert!(fetched.complete);
            assert_eq!(fetched.content.unwrap(), good);
            let asked = ["('base/5/16384')", "('base/5/16385')", "('base/5/16384' (OFFSET"];
            for (command, asked) in fetched.commands.iter().zip(asked) {
                assert!(command.contains(asked), "{command}");
            }
            assert_eq!(fetched.commands.len(), 3);
        }

        // Where the server refuses the first, or is gone, the second is not lost.
        let refused = [report(b'E', "ERROR", "58030", "could not read"), ready()].concat();
        let again = vec![refused, other, copy(&[file(PATH, 3 * BLOCK as u64, 0, &good)])];
        let fetched = fetch(&case, again);
        fetched.outcome.unwrap();
        assert!(fetched.complete && fetched.content.unwrap() == good);
        let gone = fetch(&case, vec![first[..first.len() / 2].to_vec(), Vec::new()]);
        assert_eq!(gone.outcome.unwrap_err().kind(), Kind::Connection);
        assert_eq!((gone.complete, gone.counters.done()), (false, (0, 0)));
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
