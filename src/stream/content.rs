//! A file's bytes, in frames.
//!
//! Most go by way of the outbox: read into memory of this process, verified, checksummed, checked once
//! more, and then sent. What the client gets are the bytes that were looked at.
//!
//! What is to be compressed is so on its way into the outbox (`compress`).
//!
//! Relation files may go the direct way, from page cache to socket without a copy, where nobody wants them
//! looked at. There the kernel keeps references to pages of the cache until the client has received them,
//! seconds or hours after `sendfile` returned: the client gets what the pages have *then*. For relation files
//! that is no worse than a read that comes late:
//!
//! - Their file is never used for something else. A dropped or rewritten relation's file is unlinked, and a
//!   truncated one's pages leave the cache; references keep what was in them.
//! - A block that is changed during the backup is in WAL as a whole, since a backup forces full page writes:
//!   replay replaces it, torn or not. That goes for the visibility map too; a database that CREATE DATABASE
//!   copies as files is copied again by replay. Changes without WAL (hint bits, the free space map) may be
//!   lost or half there in any case, as after a crash; where pages have checksums, those of hint bits are in
//!   WAL too.
//! - Forks of unlogged relations are not in a backup but for the init fork, which is written once.
//! - What must not be newer than the backup's end is the client's to see to: it reads each transfer to its end
//!   before STOP_BACKUP (docs/protocol.md).
//!
//! None of this holds for WAL: a segment's file gets the name of another and is overwritten as soon as nobody
//! needs it, and no replay puts that right. Nor for files that are rewritten in place (pg_xact and other
//! SLRUs, replication origins). All of these take the outbox.

use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;

use pages::checksum::Checksum;
use protocol::compression::WireCompression;
use protocol::frame::{Compression, FileBegin, FileEnd, Frame, MAX_FRAME};
use protocol::{ChecksumAlgorithm, Lsn};

use crate::cluster::page::{self, BLOCK_SIZE};
use crate::error::{Error, Result};
use crate::pg::interrupt::{self, while_reading};
use crate::pg::read::read_at;
use crate::pg::report;
use crate::pg::socket::ConnectionLost;
use crate::stream::cache::{AHEAD, CacheKeeper};
use crate::stream::compress::Compressor;
use crate::stream::kept::{self, Kept};
use crate::stream::outbox::{CHUNK, Outbox, PIECE};
use crate::stream::parts::{Parts, Wanted};

/// File bytes in a data frame that goes straight from page cache to socket: whole blocks, as many
/// as the protocol allows in a frame.
const DIRECT_CHUNK: usize = MAX_FRAME - BLOCK_SIZE;

/// Files shorter than this, and parts of files, take the outbox all the same: it saves more system calls than
/// it copies.
const DIRECT_MINIMUM: u64 = 64 * 1024;

/// Failures of a file that are reported one by one, as in basebackup.c.
const REPORTED_FAILURES: u32 = 5;

/// What the sending of a file needs from the backup it belongs to.
pub trait TransferControl {
    /// Before each step: serves interrupts, ends a transfer that must end.
    fn poll(&self) -> Result<()>;
    /// Before bytes go out: waits for their turn.
    fn throttle(&self, bytes: u64) -> Result<()>;
    /// The most bytes to send at once, at most `most`.
    fn chunk(&self, most: usize) -> usize;
    /// Whether bytes may have to wait for their turn.
    fn is_limited(&self) -> bool;
    /// Bytes have gone out.
    fn sent(&self, bytes: u64);
}

/// How to verify a file's pages.
#[derive(Debug, Clone, Copy)]
pub struct PageCheck {
    /// Pages from here on are replaced by WAL replay.
    pub start_lsn: Lsn,
    /// The number of the file's first block in its fork.
    pub first_block: u32,
}

/// A file to send.
#[derive(Debug)]
pub struct Content<'a> {
    /// Its path, raw.
    pub path: &'a [u8],
    /// The file, opened.
    pub file: Rc<File>,
    /// fstat's answer.
    pub metadata: &'a Metadata,
    /// What of it to send.
    pub wanted: Wanted<'a>,
    /// Whether it is a relation file: no other may go the direct way.
    pub is_relation: bool,
    /// Whether and how to verify pages.
    pub pages: Option<PageCheck>,
    /// The checksum to make.
    pub checksum: ChecksumAlgorithm,
}

/// What became of a file.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Bytes.
    pub bytes: u64,
    /// Pages that failed verification.
    pub checksum_failures: u32,
}

/// Sends files; keeps its memory from one to the next.
#[derive(Debug)]
pub struct Sender {
    outbox: Outbox,
    compressor: Option<Compressor>,
    cache: CacheKeeper,
}

impl Sender {
    /// Gets its memory, that of the transfer before if there was one, and looks at the connection.
    pub fn new(compression: &WireCompression) -> Result<Self> {
        let Kept { outbox, compressor } = kept::take();
        let compressor = match compressor {
            Some(compressor) if compressor.is_for(compression) => Some(compressor),
            _ => Compressor::new(compression)?,
        };
        Ok(Self { outbox: Outbox::of_session(outbox), compressor, cache: CacheKeeper::default() })
    }

    /// All is sent: leaves its memory to the next transfer.
    pub fn finish(mut self) {
        self.flush();
        kept::leave(Kept { outbox: self.outbox.into_memory(), compressor: self.compressor });
    }

    /// Says that a file is not there.
    pub fn vanished(&mut self, path: &[u8]) {
        self.outbox.frame(&Frame::Vanished(path));
    }

    /// Serves interrupts between two files.
    pub fn poll(&mut self, pace: &impl TransferControl) -> Result<()> {
        poll(&mut self.outbox, pace)
    }

    /// Sends what has not gone out yet: at the end, and before an error is reported.
    pub fn flush(&mut self) {
        self.outbox.flush();
    }

    /// Sends one file, all frames of it whole. `after_read` is called after each chunk was read, and
    /// at the end before the file is said to have ended.
    pub fn send(
        &mut self,
        content: &Content<'_>,
        pace: &impl TransferControl,
        after_read: impl Fn() -> Result<()>,
    ) -> Result<Sent> {
        let outbox = &mut self.outbox;
        let head = |compression| {
            Frame::FileBegin(FileBegin {
                size: content.metadata.len(),
                offset: content.wanted.offset(),
                length: content.wanted.length(),
                mtime: content.metadata.mtime(),
                mode: content.metadata.mode() & 0o7777,
                compression,
                path: content.path,
            })
        };
        let mut checksum = Checksum::new(content.checksum);
        let mut reader = Reader::new(content, &mut self.cache);
        let direct = content.is_relation
            && outbox.has_socket()
            && content.pages.is_none()
            && content.checksum.is_empty();
        let mut parts = content.wanted.parts();
        let (mut done, mut stream) = (0, None);
        match &mut self.compressor {
            Some(compressor) if content.wanted.length() > 0 => {
                (done, stream) = compressor.send(content.wanted.length(), head, outbox, pace, |bytes| {
                    let taken = parts.gather(bytes.len() as u64, |_| true);
                    let mut places: Vec<_> = bytes.chunks_mut(PIECE).map(IoSliceMut::new).collect();
                    reader.fill_parts(&taken, &mut places, &mut checksum)?;
                    after_read()
                })?;
            }
            _ => outbox.frame(&head(Compression::None)),
        }
        while let Some(next) = parts.peek() {
            done += if direct && is_direct(&next) {
                send_direct(&mut reader, outbox, &mut parts, pace, &after_read)?
            } else {
                send_gathered(&mut reader, outbox, &mut parts, direct, &mut checksum, pace, &after_read)?
            };
        }
        if pace.is_limited() {
            outbox.flush();
        }
        after_read()?;
        let failures = reader.failures;
        reader.report_total();
        let checksum = checksum.finish();
        let end = Frame::FileEnd(FileEnd {
            bytes: done,
            checksum_failures: failures,
            algorithm: content.checksum,
            checksum: &checksum,
        });
        if let Some(stream) = stream {
            outbox.frame(&Frame::StreamEnd(stream.end(&end)));
        }
        outbox.frame(&end);
        Ok(Sent { bytes: done, checksum_failures: failures })
    }
}

/// Serves interrupts. What was said before one that ends the transfer goes out first: by it the
/// client knows how far the transfer came.
pub(super) fn poll(outbox: &mut Outbox, pace: &impl TransferControl) -> Result<()> {
    if interrupt::is_pending() {
        outbox.flush();
    }
    pace.poll()
}

/// Whether a part is worth a frame of its own, straight from the page cache.
fn is_direct(part: &Range<u64>) -> bool {
    part.end - part.start >= DIRECT_MINIMUM
}

/// Sends the next of a file's bytes by way of the outbox, where they are verified and checksummed while they
/// are in cache: as many parts as fit a chunk, up to one that goes the direct way.
fn send_gathered(
    reader: &mut Reader<'_>,
    outbox: &mut Outbox,
    parts: &mut Parts<'_>,
    direct: bool,
    checksum: &mut Checksum,
    pace: &impl TransferControl,
    after_read: &impl Fn() -> Result<()>,
) -> Result<u64> {
    poll(outbox, pace)?;
    // Nothing that has had its turn waits for the next.
    if pace.is_limited() {
        outbox.flush();
    }
    let most = pace.chunk(CHUNK).min(CHUNK) as u64;
    let taken = parts.gather(most, |part| !(direct && is_direct(part)));
    let length = taken.iter().map(|part| (part.end - part.start) as usize).sum();
    let mut places: Vec<_> = outbox.places(length).map(IoSliceMut::new).collect();
    reader.fill_parts(&taken, &mut places, checksum)?;
    after_read()?;
    pace.throttle(length as u64)?;
    outbox.filled(length);
    pace.sent(length as u64);
    Ok(length as u64)
}

/// Sends the next part from page cache to socket. A frame that has begun is completed, with zeroes where the
/// file has ended or cannot be read; the error comes after.
fn send_direct(
    reader: &mut Reader<'_>,
    outbox: &mut Outbox,
    parts: &mut Parts<'_>,
    pace: &impl TransferControl,
    after_read: &impl Fn() -> Result<()>,
) -> Result<u64> {
    let most = pace.chunk(DIRECT_CHUNK).min(DIRECT_CHUNK) as u64;
    let end = parts.peek().map_or(0, |part| part.end);
    let mut done = 0;
    while let Some(piece) = parts.take(most) {
        poll(outbox, pace)?;
        if pace.is_limited() {
            outbox.flush();
        }
        let length = piece.end - piece.start;
        pace.throttle(length)?;
        reader.prepare(std::slice::from_ref(&piece));
        match direct_frame(reader, outbox, piece.start, length as usize) {
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            // Nothing more can be said to the client: the process ends in here.
            Err(ConnectionLost) => pace.poll()?,
        }
        after_read()?;
        pace.sent(length);
        done += length;
        if piece.end == end {
            break;
        }
    }
    Ok(done)
}

/// One data frame of a file. Whatever becomes of the file, the frame is whole.
fn direct_frame(
    reader: &mut Reader<'_>,
    outbox: &mut Outbox,
    offset: u64,
    length: usize,
) -> std::result::Result<Option<Error>, ConnectionLost> {
    let content = reader.content;
    let (socket, buffer) = outbox.begin_direct(length)?;
    let mut sent = 0;
    let mut failure = None;
    if !reader.at_end {
        let (count, error) = socket.send_file(&content.file, offset, length)?;
        sent = count;
        // Some file systems cannot do it, and some errors pass: reading says which.
        if error.is_some() {
            while sent < length && !reader.at_end {
                let part = (length - sent).min(buffer.len());
                match reader.read(&mut buffer[..part], offset + sent as u64) {
                    Ok(valid) => {
                        socket.continue_with(&buffer[..valid])?;
                        sent += valid;
                        reader.at_end = valid < part;
                    }
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        }
    }
    if sent < length {
        reader.at_end = true;
        socket.send_zeroes(length - sent)?;
    }
    Ok(failure)
}

/// Reads a file that may change meanwhile.
struct Reader<'a> {
    content: &'a Content<'a>,
    cache: &'a mut CacheKeeper,
    verify: Option<PageCheck>,
    /// The file ended before its announced length; the rest is zeroes.
    at_end: bool,
    failures: u32,
    /// Of a list of blocks: what was not looked at in the page cache yet,
    ahead: Parts<'a>,
    /// how many bytes were,
    looked: u64,
    /// and how many are read by now.
    reading: u64,
}

impl<'a> Reader<'a> {
    fn new(content: &'a Content<'a>, cache: &'a mut CacheKeeper) -> Self {
        let (verify, ahead) = (content.pages, content.wanted.parts());
        Self { content, cache, verify, at_end: false, failures: 0, ahead, looked: 0, reading: 0 }
    }

    /// Before a chunk is read, by whatever way. What a small file takes of the cache is not worth the
    /// system calls.
    fn prepare(&mut self, parts: &[Range<u64>]) {
        if self.content.wanted.length() < DIRECT_MINIMUM {
            return;
        }
        let file = &self.content.file;
        match self.content.wanted {
            Wanted::Range { offset, length } => {
                parts.iter().for_each(|part| self.cache.before(file, part.clone(), offset + length));
            }
            Wanted::Blocks(_) => {
                self.reading += parts.iter().map(|part| part.end - part.start).sum::<u64>();
                while self.looked < self.reading + AHEAD {
                    let window = self.ahead.window(AHEAD);
                    if window.is_empty() {
                        break;
                    }
                    self.looked += window.iter().map(|part| part.end - part.start).sum::<u64>();
                    self.cache.before_scattered(file, &window);
                }
            }
        }
    }

    /// Fills the places, of a piece each, with the parts, of which each but the file's last is of whole pieces.
    fn fill_parts(
        &mut self,
        parts: &[Range<u64>],
        mut places: &mut [IoSliceMut<'_>],
        checksum: &mut Checksum,
    ) -> Result<()> {
        self.prepare(parts);
        for part in parts {
            let pieces = ((part.end - part.start) as usize).div_ceil(PIECE);
            let (here, others) = places.split_at_mut(pieces);
            self.fill(here, part.start, checksum)?;
            places = others;
        }
        Ok(())
    }

    /// Fills the places with what follows `offset`, with zeroes from where the file ends, and
    /// verifies the pages in them. Each place but the last is of whole pages.
    fn fill(&mut self, places: &mut [IoSliceMut<'_>], offset: u64, checksum: &mut Checksum) -> Result<()> {
        let mut valid = if self.at_end { 0 } else { self.read_all(places, offset)? };
        let mut offset = offset;
        for place in places {
            let mut here = valid.min(place.len());
            valid -= here;
            if let Some(check) = self.verify {
                let still = self.verify_pages(place, here, offset, check)?;
                if still < here {
                    (here, valid) = (still, 0);
                }
            }
            if here < place.len() {
                self.at_end = true;
                place[here..].fill(0);
            }
            checksum.update(place);
            offset += place.len() as u64;
        }
        Ok(())
    }

    /// Reads until all places are full or the file ends.
    fn read_all(&self, places: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        // In one system call, as a rule.
        let mut valid = while_reading(|| read_at(&self.content.file, places, offset)).unwrap_or(0);
        let mut begin = 0;
        for place in places {
            let end = begin + place.len();
            if valid < end {
                // An error comes again here, where it is reported.
                valid += self.read(&mut place[valid - begin..], offset + valid as u64)?;
                if valid < end {
                    break;
                }
            }
            begin = end;
        }
        Ok(valid)
    }

    /// Reads until the buffer is full or the file ends.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut valid = 0;
        while valid < buffer.len() {
            let at = offset + valid as u64;
            match while_reading(|| self.content.file.read_at(&mut buffer[valid..], at)) {
                Ok(0) => break,
                Ok(count) => valid += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read file", self.content.path, error)),
            }
        }
        Ok(valid)
    }

    /// Verifies each whole page among the `valid` bytes, and returns how many bytes are still
    /// valid after pages were read again.
    fn verify_pages(
        &mut self,
        buffer: &mut [u8],
        valid: usize,
        offset: u64,
        check: PageCheck,
    ) -> Result<usize> {
        let first = u32::try_from(offset / BLOCK_SIZE as u64).unwrap_or(u32::MAX);
        let blocks = check.first_block.wrapping_add(first)..;
        for (at, block) in (0..valid / BLOCK_SIZE).map(|page| page * BLOCK_SIZE).zip(blocks) {
            let page = &mut buffer[at..at + BLOCK_SIZE];
            if page::verify(page, check.start_lsn, block).is_ok() {
                continue;
            }
            // It may have been read while it was being written. Once more, and if the writer has
            // finished, the page's LSN says that WAL replay will replace it.
            if self.read(page, offset + at as u64)? < BLOCK_SIZE {
                return Ok(at);
            }
            if let Err(mismatch) = page::verify(page, check.start_lsn, block) {
                self.failed(block, mismatch);
            }
        }
        if !valid.is_multiple_of(BLOCK_SIZE) {
            let block = check.first_block.wrapping_add(first) as usize + valid / BLOCK_SIZE;
            report::warning(format!(
                "could not verify checksum in file \"{}\", block {block}: read buffer size {valid} and page \
                 size {BLOCK_SIZE} differ",
                self.name()
            ));
            self.verify = None;
        }
        Ok(valid)
    }

    fn failed(&mut self, block: u32, mismatch: page::Mismatch) {
        self.failures += 1;
        if self.failures <= REPORTED_FAILURES {
            report::warning(format!(
                "checksum verification failed in file \"{}\", block {block}: calculated {:X} but expected {:X}",
                self.name(),
                mismatch.calculated,
                mismatch.stored
            ));
        }
        if self.failures == REPORTED_FAILURES {
            report::warning(format!(
                "further checksum verification failures in file \"{}\" will not be reported",
                self.name()
            ));
        }
    }

    fn report_total(&self) {
        if self.failures > 1 {
            report::warning(format!(
                "file \"{}\" has a total of {} checksum verification failures",
                self.name(),
                self.failures
            ));
        }
    }

    fn name(&self) -> String {
        protocol::path::encode(self.content.path)
    }
}
