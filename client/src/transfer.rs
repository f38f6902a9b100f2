//! One connection's work: take files from the queue, fetch them, verify them, write them. The
//! coordinator does the same as every worker.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pages::names::{Names, Pages};
use pages::page::BLOCK_SIZE;
use pages::relation;
use protocol::command::{Range, SendFilesContent};
use protocol::{
    BackupId, BackupPath, Command, DigestAlgorithm, FileBegin, FileRequest, Lsn, MAX_FILES_PER_COMMAND,
    SqlState,
};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::behind;
use crate::chunk::{Chunk, Kept};
use crate::connection::Session;
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::options::Side;
use crate::os;
use crate::progress::Counters;
use crate::queue::{Item, Part, Queue, Take, Turn};
use crate::receive::{Checks, Received, Receiver, Sink};
use crate::report;
use crate::split::{Outcome, Splits};
use crate::target::Target;
use crate::wal;
use crate::wire::CopySink;
use pages::digest::{Digest, combine_crcs, from_crc, to_crc};

/// How long a connection without work sleeps before it looks whether it is still alive.
const PATIENCE: Duration = Duration::from_millis(250);

/// Answers after which no other file would fare better on this connection: the backup is gone, or
/// never was ours.
const HOPELESS: [SqlState; 5] = [
    SqlState::UNDEFINED_OBJECT,
    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    SqlState::SYNTAX_ERROR,
    SqlState::INSUFFICIENT_PRIVILEGE,
    SqlState::FEATURE_NOT_SUPPORTED,
];

/// Files from here on get their place on disk before their bytes come, so that several that are
/// written at once do not lie in pieces between each other.
const PREALLOCATED: u64 = 1 << 20;

/// After so many bytes of a file the operating system is told to begin writing them to disk.
const WRITEBACK: u64 = 8 << 20;

/// Files below that are left to the fsync at the end.
const WRITEBACK_MINIMUM: u64 = 128 << 10;

/// Fewest bytes of a file, on average in a batch, that is worth a thread of its own to write it: to hand
/// a small one over takes longer than that.
pub const BEHIND: u64 = 1 << 20;

/// Zeroes for where a file has shrunk.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What is read at once to digest a file anew.
const REREAD: usize = 256 << 10;

/// The manifest, as all connections write it.
pub type SharedManifest = Mutex<Manifest<std::io::BufWriter<File>>>;

/// What all connections work on.
pub struct Work<'a> {
    /// The files.
    pub queue: &'a Queue,
    /// Those of them that are fetched in parts.
    pub splits: &'a Splits,
    /// Where they go.
    pub target: &'a Target,
    /// Write nothing at all.
    pub discard: bool,
    /// From so many bytes a file on they are written on a thread of its own.
    pub behind: Option<u64>,
    /// The backup.
    pub backup: BackupId,
    /// The manifest's digests.
    pub algorithm: DigestAlgorithm,
    /// Pages older than this are to be verified; none at all without it.
    pub pages: Option<Lsn>,
    /// How the server reads the names of files.
    pub names: Names,
    /// Who verifies and digests, if the user has a wish.
    pub verify: Option<Side>,
    /// Read the socket without libpq where that can be.
    pub past_libpq: bool,
    /// Files are synced in the end.
    pub sync: bool,
    /// Takes files that are complete.
    pub manifest: Option<&'a SharedManifest>,
    /// The size that a WAL segment must have.
    pub segment_size: u64,
    /// Progress.
    pub counters: &'a Counters,
}

impl Work<'_> {
    /// Works until the queue is empty. An error of kind `Connection` or `Server` ends this
    /// connection's part only: what it had not finished is back in the queue. Any other error ends
    /// the backup.
    pub fn run(&self, session: &mut Session) -> Result<()> {
        let mut turn = Turn::default();
        loop {
            match self.queue.take(&mut turn, PATIENCE) {
                Take::Done => return Ok(()),
                Take::Wait => session.check_alive()?,
                Take::Batch(items) => self.fetch(session, &items)?,
            }
        }
    }

    fn fetch(&self, session: &mut Session, items: &[Item]) -> Result<()> {
        let checks = self.checks(session);
        let (for_server, items): (Vec<Item>, Vec<Item>) =
            items.iter().partition(|item| checks.pages.is_some() && self.is_for_server(**item));
        let mut outcome = Ok(());
        if !items.is_empty() {
            outcome = self.fetch_checked(session, &items, checks);
        }
        if outcome.is_ok() && !for_server.is_empty() {
            outcome = self.fetch_checked(session, &for_server, self.checks_by_server());
        } else {
            for_server.iter().for_each(|item| self.queue.give_back(*item));
        }
        outcome
    }

    /// Whether a file has pages that this side cannot verify alone, because the server sends pages
    /// again, by range, of relation files only: before 17 every file beside them counts as one of
    /// pages. A cluster has hardly any.
    fn is_for_server(&self, item: Item) -> bool {
        self.names == Names::Loose && {
            let path = self.queue.path(item.file);
            relation::of_listed(&path).is_none() && self.names.pages_of(&path) != Pages::None
        }
    }

    fn fetch_checked(&self, session: &mut Session, items: &[Item], checks: Checks) -> Result<()> {
        let wanted: Vec<FileRequest> = items.iter().map(|item| self.request(*item)).collect();
        let mut receiver = Receiver::new(&wanted, checks);
        let mut writer = Writer { work: self, items, wanted: &wanted, open: None, suspects: Vec::new() };
        let bytes: u64 = items.iter().map(|item| self.queue.size(*item)).sum();
        let outcome = if self.behind.is_some_and(|least| bytes >= least * items.len() as u64) {
            behind::run(&mut writer, |front| {
                self.transfer(session, &wanted, checks, None, &mut receiver, front)
            })
        } else {
            self.transfer(session, &wanted, checks, None, &mut receiver, &mut writer)
        };
        writer.forget();
        let mut suspects = writer.suspects.into_iter();
        let position = receiver.position();
        let outcome = outcome.or_else(|error| self.failed_at(&error, items, position));
        let outcome = outcome.and_then(|()| {
            suspects.by_ref().try_for_each(|suspect| self.look_again(session, items[suspect.0], suspect.1))
        });
        // The connection is no more: others fetch them anew.
        for (place, received) in suspects {
            self.counters.lost(received.length);
            self.queue.give_back(items[place]);
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
        // The file whose turn it was is to blame; those behind it were not even looked at.
        if !hopeless && let Some(item) = left.next() {
            verdict = match error.kind() {
                // Reported as what it is, the end of the connection.
                Kind::Connection => self.queue.failed(*item, error),
                _ => self.failed(*item, error),
            };
        }
        left.for_each(|item| self.queue.give_back(*item));
        verdict?;
        if hopeless || error.kind() == Kind::Connection { Err(error.clone()) } else { Ok(()) }
    }

    fn failed(&self, item: Item, error: &Error) -> Result<()> {
        self.queue.failed(item, error)?;
        let path = self.queue.path(item.file);
        report::warning(format_args!("could not fetch file \"{path}\", will try again: {error}"));
        Ok(())
    }

    /// Who checks what on a connection. On one that is encrypted the bytes go through the server's
    /// hands anyway; on a plain one it would have to copy them only to look at them.
    fn checks(&self, session: &Session) -> Checks {
        let by_server = match self.verify {
            Some(side) => side == Side::Server,
            None => !session.is_plain(),
        };
        if by_server { self.checks_by_server() } else { self.checks_by_client(self.algorithm) }
    }

    fn checks_by_server(&self) -> Checks {
        Checks { algorithm: self.algorithm, by_server: true, pages: None, names: self.names }
    }

    fn checks_by_client(&self, algorithm: DigestAlgorithm) -> Checks {
        Checks { algorithm, by_server: false, pages: self.pages, names: self.names }
    }

    fn request(&self, item: Item) -> FileRequest {
        FileRequest {
            path: self.queue.path(item.file),
            range: item.part.map(|part| Range { offset: part.offset, length: Some(part.length) }),
        }
    }

    /// One SEND_FILES_CONTENT. `verify` overrides what follows from `checks`.
    fn transfer(
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
            file_checksum: if checks.by_server { self.algorithm } else { DigestAlgorithm::None },
            ..SendFilesContent::default()
        });
        let text = session.text_of(&command);
        session.copy_out(&text, self.past_libpq, &mut Feed { receiver, sink })?;
        receiver.finish()
    }

    /// A file came whole, but for pages that did not verify. They may have been caught while they
    /// were being written, so they are asked for again; and what is still wrong then is left to the
    /// server to verify, to report and to count. The bytes that come replace those that came.
    fn look_again(&self, session: &mut Session, item: Item, received: Received) -> Result<()> {
        match self.repair(session, item, &received) {
            Ok(Some(digest)) => self.complete(item, &Received { digest, ..received }),
            Ok(None) => self.vanished(item),
            Err(error) => {
                self.counters.lost(received.length);
                if is_hopeless(&error) {
                    self.queue.give_back(item);
                    return Err(error);
                }
                match error.kind() {
                    Kind::Server(_) => self.failed(item, &error),
                    Kind::Connection => self.queue.failed(item, &error).and(Err(error)),
                    _ => Err(error),
                }
            }
        }
    }

    /// The digest of what is there in the end; `None` if the file has vanished meanwhile.
    fn repair(&self, session: &mut Session, item: Item, received: &Received) -> Result<Option<Vec<u8>>> {
        let path = self.queue.path(item.file);
        let file = if self.discard { None } else { Some(self.target.open_listed(&path)?) };
        let by_client = self.checks_by_client(DigestAlgorithm::None);
        let mut patch = Patch {
            work: self,
            path: &path,
            file: file.as_ref(),
            end: received.offset + received.length,
            ranges: Vec::new(),
            position: 0,
            suspects: Vec::new(),
            vanished: false,
        };
        for ranges in runs(&received.suspects).chunks(MAX_FILES_PER_COMMAND) {
            patch.fetch(session, ranges, by_client, None)?;
        }
        // From the first that is wrong to the last in one piece: the server then reports a file's
        // failures as it does for all of a file.
        let wrong = std::mem::take(&mut patch.suspects);
        if let (Some(first), Some(last)) = (wrong.first(), wrong.last()) {
            patch.fetch(session, &[pages(*first, *last)], self.checks_by_server(), Some(true))?;
        }
        if patch.vanished {
            return Ok(None);
        }
        match file {
            Some(file) if !self.algorithm.is_empty() => reread(&file, received, self.algorithm)
                .map(Some)
                .map_err(|error| Error::io("read file", &self.target.path(&path), &error)),
            _ => Ok(Some(received.digest.clone())),
        }
    }

    /// A file, or a part of one, is there and right.
    fn complete(&self, item: Item, received: &Received) -> Result<()> {
        let Some(part) = item.part else {
            return self.file_complete(item, received.size, received.mtime, &received.digest);
        };
        // Only these digests are made of files in parts.
        let crc = to_crc(&received.digest);
        self.part_done(item, &part, self.splits.complete(item.file, &part, crc))
    }

    fn file_complete(&self, item: Item, size: u64, mtime: i64, digest: &[u8]) -> Result<()> {
        let path = self.queue.path(item.file);
        // As in BASE_BACKUP, WAL segments are not in the manifest, all else is.
        if let Some(manifest) = self.manifest
            && !wal_file_name(&path).is_some_and(wal::is_segment)
        {
            let mut manifest = manifest.lock().unwrap_or_else(PoisonError::into_inner);
            manifest.file(path.as_bytes(), size, mtime, digest).map_err(|error| manifest_error(&error))?;
        }
        self.counters.file();
        self.queue.finish(true);
        Ok(())
    }

    fn vanished(&self, item: Item) -> Result<()> {
        let path = self.queue.path(item.file);
        if let Some(name) = wal_file_name(&path) {
            return Err(Error::local(format!(
                "could not find WAL file \"{}\"",
                String::from_utf8_lossy(name)
            )));
        }
        if let Some(part) = item.part {
            return self.part_done(item, &part, self.splits.vanished(item.file, &part));
        }
        // An earlier try may have written some of it.
        self.file_vanished(&path)
    }

    fn file_vanished(&self, path: &BackupPath) -> Result<()> {
        if !self.discard {
            self.target.remove(path)?;
        }
        self.counters.file();
        self.queue.finish(true);
        Ok(())
    }

    fn part_done(&self, item: Item, part: &Part, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Unfinished => {
                self.queue.finish(false);
                Ok(())
            }
            Outcome::Complete { crc, mtime } => {
                let digest = if self.algorithm.is_empty() { Vec::new() } else { crc.to_le_bytes().to_vec() };
                self.file_complete(item, part.size, mtime, &digest)
            }
            Outcome::Vanished => self.file_vanished(&self.queue.path(item.file)),
        }
    }
}

/// Whether files of a backup with such digests may be fetched in parts: those of CRC-32C can be put
/// together. Others would have to be made over the whole file once it is there, and reading it all
/// again costs more than an uneven end.
pub fn may_split(algorithm: DigestAlgorithm) -> bool {
    matches!(algorithm, DigestAlgorithm::None | DigestAlgorithm::Crc32c)
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
}

/// Writes one batch.
struct Writer<'a> {
    work: &'a Work<'a>,
    items: &'a [Item],
    wanted: &'a [FileRequest],
    open: Option<Open>,
    /// Files with pages that did not verify.
    suspects: Vec<(usize, Received)>,
}

/// A file that is being written.
struct Open {
    /// Its place in the request.
    file: usize,
    output: Output,
    /// Where the next byte goes.
    position: u64,
    received: u64,
    /// Up to here the operating system was told to write to disk.
    told: u64,
}

enum Output {
    Whole(File),
    Part(Arc<File>),
    Nowhere,
}

impl Output {
    fn file(&self) -> Option<&File> {
        match self {
            Self::Whole(file) => Some(file),
            Self::Part(file) => Some(file),
            Self::Nowhere => None,
        }
    }
}

impl Writer<'_> {
    /// What was received of a file that is not complete does not count.
    fn forget(&mut self) {
        if let Some(open) = self.open.take() {
            self.work.counters.lost(open.received);
        }
    }

    fn create(&self, file: usize, size: u64, mode: u32) -> Result<File> {
        let path = &self.wanted[file].path;
        let created = self.work.target.create_listed(path, mode)?;
        if size >= PREALLOCATED && self.work.sync {
            // A full disk is better heard of now than after the file was sent; and not every file
            // system can do it.
            if let Err(error @ Errno::NOSPC) = fallocate(&created, FallocateFlags::KEEP_SIZE, 0, size) {
                return Err(self.io("write to file", file, &error.into()));
            }
        }
        Ok(created)
    }

    fn io(&self, what: &str, file: usize, error: &io::Error) -> Error {
        Error::io(what, &self.path(file), error)
    }

    fn path(&self, file: usize) -> PathBuf {
        self.work.target.path(&self.wanted[file].path)
    }

    /// The next bytes of the file that is open, by `write`.
    fn write(&mut self, length: usize, write: impl FnOnce(&File, u64) -> io::Result<()>) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if let Some(file) = open.output.file() {
            write(file, open.position).map_err(|error| {
                Error::io("write to file", &self.work.target.path(&self.wanted[open.file].path), &error)
            })?;
        }
        open.position += length as u64;
        open.received += length as u64;
        if self.work.sync && open.position - open.told >= WRITEBACK {
            if let Some(file) = open.output.file() {
                os::start_writeback(file, open.told, open.position - open.told);
            }
            open.told = open.position;
        }
        self.work.counters.received(length);
        Ok(())
    }

    /// A part of a file that has shrunk since it was listed is filled up.
    fn fill(&self, file: usize, part: &Part, received: &mut Received) -> Result<()> {
        let mut zeroed = Digest::new(self.work.algorithm);
        let mut at = part.offset + received.length;
        let end = part.offset + part.length;
        while at < end {
            let zeroes =
                &ZEROES[..usize::try_from(end - at).map_or(ZEROES.len(), |left| left.min(ZEROES.len()))];
            if let Some(open) = &self.open
                && let Some(output) = open.output.file()
            {
                output.write_all_at(zeroes, at).map_err(|error| self.io("write to file", file, &error))?;
            }
            zeroed.update(zeroes);
            at += zeroes.len() as u64;
        }
        if !received.digest.is_empty() {
            let zeroed = to_crc(&zeroed.finish());
            let length = part.length - received.length;
            received.digest = from_crc(combine_crcs(to_crc(&received.digest), zeroed, length));
        }
        received.length = part.length;
        Ok(())
    }
}

impl Sink for Writer<'_> {
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
        let path = &self.wanted[file].path;
        if wal_file_name(path).is_some_and(wal::is_segment) && begin.size != self.work.segment_size {
            return Err(Error::local(format!("unexpected WAL file size \"{path}\"")));
        }
        let output = match self.items[file].part {
            _ if self.work.discard && self.items[file].part.is_none() => Output::Nowhere,
            None => Output::Whole(self.create(file, begin.size, begin.mode)?),
            Some(part) => {
                let create = || {
                    if self.work.discard {
                        return Ok(None);
                    }
                    let created = self.create(file, part.size, begin.mode)?;
                    created.set_len(part.size).map_err(|error| self.io("truncate file", file, &error))?;
                    Ok(Some(created))
                };
                match self.work.splits.open(self.items[file].file, begin.mtime, create)? {
                    Some(shared) => Output::Part(shared),
                    None => Output::Nowhere,
                }
            }
        };
        self.open = Some(Open { file, output, position: begin.offset, received: 0, told: begin.offset });
        Ok(())
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.write(chunk.len(), |file, position| file.write_all_at(&chunk, position))
    }

    fn pieces(&mut self, pieces: &[Kept]) -> Result<()> {
        self.write(pieces.iter().map(|piece| piece.len()).sum(), |file, position| {
            write_pieces(file, pieces, position)
        })
    }

    fn end(&mut self, file: usize, mut received: Received) -> Result<()> {
        let item = self.items[file];
        if let Some(part) = item.part {
            self.fill(file, &part, &mut received)?;
        }
        if let Some(open) = self.open.take()
            && self.work.sync
            && open.received >= WRITEBACK_MINIMUM
            && let Some(file) = open.output.file()
        {
            os::start_writeback(file, open.told, open.position - open.told);
        }
        if received.suspects.is_empty() {
            self.work.complete(item, &received)
        } else {
            self.suspects.push((file, received));
            Ok(())
        }
    }

    fn vanished(&mut self, file: usize) -> Result<()> {
        self.work.vanished(self.items[file])
    }

    fn damaged(&mut self, file: usize, error: Error) -> Result<()> {
        self.forget();
        self.work.failed(self.items[file], &error)
    }
}

/// Writes pieces that follow each other, by as few system calls as it takes.
fn write_pieces(file: &File, pieces: &[Kept], position: u64) -> io::Result<()> {
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    // What is wrong with it is seen once more, where it is written alone.
    let mut written = rustix::io::pwritev(file, &slices, position).unwrap_or(0);
    let mut at = position;
    for piece in pieces {
        let done = written.min(piece.len());
        written -= done;
        file.write_all_at(&piece[done..], at + done as u64)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Writes ranges over a file that was received before.
struct Patch<'a> {
    work: &'a Work<'a>,
    path: &'a BackupPath,
    file: Option<&'a File>,
    /// Where what was received before ends.
    end: u64,
    /// What was asked for.
    ranges: Vec<Range>,
    /// Where the next byte goes.
    position: u64,
    /// Pages that did not verify this time either.
    suspects: Vec<u32>,
    vanished: bool,
}

impl Patch<'_> {
    fn fetch(
        &mut self,
        session: &mut Session,
        ranges: &[Range],
        checks: Checks,
        verify: Option<bool>,
    ) -> Result<()> {
        let wanted: Vec<FileRequest> =
            ranges.iter().map(|range| FileRequest { path: self.path.clone(), range: Some(*range) }).collect();
        self.ranges = ranges.to_vec();
        let work = self.work;
        work.transfer(session, &wanted, checks, verify, &mut Receiver::new(&wanted, checks), self)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // What the file has grown by meanwhile is cut off here too.
        let room = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        if let Some(file) = self.file {
            file.write_all_at(bytes, self.position)
                .map_err(|error| Error::io("write to file", &self.work.target.path(self.path), &error))?;
        }
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl Sink for Patch<'_> {
    fn begin(&mut self, _: usize, begin: &FileBegin<'_>) -> Result<()> {
        self.position = begin.offset;
        Ok(())
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.write(&chunk)
    }

    fn end(&mut self, file: usize, received: Received) -> Result<()> {
        // Where the file has shrunk meanwhile there is nothing to be verified, and nothing to keep.
        let range = self.ranges[file];
        let wanted = range.length.map_or(self.end, |length| range.offset + length).min(self.end);
        while self.position < wanted {
            let left = usize::try_from(wanted - self.position).unwrap_or(usize::MAX);
            self.write(&ZEROES[..left.min(ZEROES.len())])?;
        }
        self.suspects.extend(received.suspects);
        Ok(())
    }

    fn vanished(&mut self, _: usize) -> Result<()> {
        self.vanished = true;
        Ok(())
    }

    fn damaged(&mut self, _: usize, error: Error) -> Result<()> {
        Err(error)
    }
}

/// The range of pages from one to another, both included.
fn pages(first: u32, last: u32) -> Range {
    let block = BLOCK_SIZE as u64;
    let offset = u64::from(first) * block;
    Range { offset, length: Some((u64::from(last) + 1) * block - offset) }
}

/// Pages, in order, as ranges.
fn runs(numbers: &[u32]) -> Vec<Range> {
    numbers.chunk_by(|one, next| one + 1 == *next).map(|run| pages(run[0], run[run.len() - 1])).collect()
}

/// The digest of what lies where something was received.
fn reread(file: &File, received: &Received, algorithm: DigestAlgorithm) -> io::Result<Vec<u8>> {
    let mut digest = Digest::new(algorithm);
    let mut buffer = vec![0; REREAD];
    let end = received.offset + received.length;
    let mut at = received.offset;
    while at < end {
        let most = usize::try_from(end - at).map_or(REREAD, |left| left.min(REREAD));
        match file.read_at(&mut buffer[..most], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                digest.update(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(digest.finish())
}

fn is_hopeless(error: &Error) -> bool {
    HOPELESS.iter().any(|state| error.is_server(*state))
}

/// The error of a manifest that cannot be written.
pub fn manifest_error(error: &std::io::Error) -> Error {
    Error::local(format!("could not write backup manifest: {}", crate::error::os_message(error)))
}

/// The name of a file that is directly in pg_wal.
fn wal_file_name(path: &BackupPath) -> Option<&[u8]> {
    path.as_bytes().strip_prefix(b"pg_wal/").filter(|name| !name.contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::{FakeServer, copy, file, file_with, frame, message, ready, report};
    use crate::options::ManifestOptions;
    use crate::target::Modes;
    use protocol::Frame;

    const BLOCK: usize = BLOCK_SIZE;
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
        behind: bool,
        past_libpq: bool,
        path: &'static str,
        names: Names,
    }

    const CASE: Case = Case {
        size: 3 * BLOCK,
        jobs: 1,
        discard: false,
        behind: false,
        past_libpq: true,
        path: PATH,
        names: Names::Strict,
    };

    fn fetch(case: &Case, answers: Vec<Vec<u8>>) -> Fetched {
        let place = tempfile::tempdir().unwrap();
        let target = Target::new(place.path().to_owned(), Modes { directory: 0o700, file: 0o600 });
        std::fs::create_dir_all(place.path().join("base/5")).unwrap();
        let queue = Queue::new(case.jobs, true);
        queue.push(&BackupPath::from_bytes(case.path).unwrap(), case.size as u64);
        queue.complete();
        let options = ManifestOptions { checksums: DigestAlgorithm::Crc32c, force_encode: false };
        let out = std::io::BufWriter::new(File::create(place.path().join("manifest")).unwrap());
        let manifest = Mutex::new(Manifest::new(out, options, 180_000, 1).unwrap());
        let server = FakeServer::start(answers);
        let mut session = server.connect();
        let counters = Counters::default();
        let work = Work {
            queue: &queue,
            splits: &Splits::default(),
            target: &target,
            discard: case.discard,
            behind: case.behind.then_some(0),
            backup: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            algorithm: DigestAlgorithm::Crc32c,
            pages: Some(Lsn(u64::MAX)),
            names: case.names,
            verify: None,
            past_libpq: case.past_libpq,
            sync: true,
            manifest: (!case.discard).then_some(&manifest),
            segment_size: 16 << 20,
            counters: &counters,
        };
        let outcome = work.run(&mut session);
        manifest.into_inner().unwrap().finish(&[]).unwrap().into_inner().unwrap();
        Fetched {
            outcome,
            commands: server.commands(),
            content: std::fs::read(place.path().join(case.path)).ok(),
            manifest: std::fs::read_to_string(place.path().join("manifest")).unwrap(),
            counters,
            complete: queue.is_complete(),
        }
    }

    /// Three pages, the first of a real server, and one that is damaged.
    fn good_and_bad() -> (Vec<u8>, Vec<u8>) {
        let mut good = vec![0; 3 * BLOCK];
        good[..BLOCK].copy_from_slice(include_bytes!("../../tests/data/page_heap_block_0"));
        let mut bad = good.clone();
        bad[5000] ^= 1;
        (good, bad)
    }

    fn crc(bytes: &[u8]) -> String {
        protocol::id::to_hex(&Digest::of(DigestAlgorithm::Crc32c, bytes))
    }

    #[test]
    fn a_page_that_was_torn_is_asked_for_again() {
        let (good, bad) = good_and_bad();
        for (past_libpq, behind) in [(true, false), (false, false), (true, true), (false, true)] {
            let fetched = fetch(
                &Case { past_libpq, behind, ..CASE },
                vec![
                    copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]),
                    copy(&[file(PATH, 3 * BLOCK as u64, 0, &good[..BLOCK])]),
                ],
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
        let again = file(PATH, 3 * BLOCK as u64, 0, &bad[..BLOCK]);
        let digest = Digest::of(DigestAlgorithm::Crc32c, &bad[..BLOCK]);
        let verified =
            file_with(PATH, 3 * BLOCK as u64, 0, &bad[..BLOCK], 1, DigestAlgorithm::Crc32c, &digest);
        let warning = report(b'N', "WARNING", "01000", "checksum verification failed");
        let fetched = fetch(
            &CASE,
            vec![copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]), copy(&[again]), copy(&[warning, verified])],
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

        let shrunk = fetch(&CASE, vec![whole(), copy(&[file(PATH, 0, 0, b"")])]);
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
        for (past_libpq, behind) in [(true, false), (false, false), (true, true), (false, true)] {
            let case = Case { past_libpq, behind, ..CASE };
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
        let second = [include_bytes!("../../tests/data/page_heap_block_0").as_slice(), &[0; BLOCK]].concat();
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
        let again = copy(&[file(PATH, now, length as u64, &[0; BLOCK])]);
        let answers =
            || vec![answer(0, &first), answer(length, &second), again.clone(), answer(2 * length, &[])];
        let expected = vec![0; size];
        for behind in [false, true] {
            let fetched = fetch(&Case { size, jobs: 2, behind, ..CASE }, answers());
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
    fn files_of_pages_beside_relations_are_left_to_the_server() {
        let (_, bad) = good_and_bad();
        let size = bad.len() as u64;
        let unlooked = copy(&[file("base/5/notes", size, 0, &bad)]);
        let crc32c = DigestAlgorithm::Crc32c;
        let digest = Digest::of(crc32c, &bad);
        let looked = copy(&[file_with("base/5/notes", size, 0, &bad, 1, crc32c, &digest)]);
        for (names, answer, by_server) in [(Names::Strict, unlooked, false), (Names::Loose, looked, true)] {
            let fetched = fetch(&Case { path: "base/5/notes", names, ..CASE }, vec![answer]);
            fetched.outcome.unwrap();
            assert!(fetched.complete);
            assert_eq!(fetched.commands.len(), 1, "{:?}", fetched.commands);
            let command = &fetched.commands[0];
            assert_eq!(command.contains("FILE_CHECKSUM 'CRC32C'"), by_server, "{command}");
            assert_eq!(command.contains("VERIFY_CHECKSUMS false"), !by_server, "{command}");
            assert_eq!(fetched.content.unwrap(), bad);
        }
    }

    #[test]
    fn discarded_files_are_verified_and_not_written() {
        let (good, bad) = good_and_bad();
        let fetched = fetch(
            &Case { discard: true, ..CASE },
            vec![
                copy(&[file(PATH, 3 * BLOCK as u64, 0, &bad)]),
                copy(&[file(PATH, 3 * BLOCK as u64, 0, &good[..BLOCK])]),
            ],
        );
        fetched.outcome.unwrap();
        assert!(fetched.complete && fetched.content.is_none());
        assert_eq!(fetched.commands.len(), 2);
        assert_eq!(fetched.counters.done(), (3 * BLOCK as u64, 1));
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

    #[test]
    fn pages_as_ranges() {
        let range = |offset: u64, length: u64| Range { offset: offset * 8192, length: Some(length * 8192) };
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[3]), [range(3, 1)]);
        assert_eq!(runs(&[0, 1, 2, 7, 9, 10]), [range(0, 3), range(7, 1), range(9, 2)]);
    }
}
