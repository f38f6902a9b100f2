//! Re-verification: pages whose checksum does not fit what was received are asked for again, by
//! range and with the server's checksum, before anything is said of them.
//!
//! Such a page was torn while it was read, or is damaged on the server's disk, or was damaged on the
//! way. What comes with a checksum that fits is what the server read, so that the page's LSN can be
//! believed now: WAL replay replaces a page that is as new as the backup. What is old and still wrong
//! is left to the server to verify, to report and to count.

use std::io;
use std::sync::Arc;

use pages::checksum::Checksum;
use pages::page::BLOCK_SIZE;
use protocol::command::Range;
use protocol::{BackupPath, ChecksumAlgorithm, FileBegin, FileRequest, MAX_FILES_PER_COMMAND};

use crate::error::{Error, Kind, Result};
use crate::fetch::queue::Item;
use crate::fetch::receive::{Checks, PageRule, Received, Receiver, Sink};
use crate::fetch::transfer::{Work, is_hopeless};
use crate::fetch::writer::{ZEROES, piece};
use crate::output::OutputFile;
use crate::output::collected::Collected;
use crate::server::chunk::Chunk;
use crate::server::connection::Session;

/// What is read at once to checksum a file anew.
const REREAD: usize = 256 << 10;

/// What became of a file's pages that did not fit.
enum Outcome {
    /// They are as the server read them; the checksum of all that lies there now.
    Repaired(Vec<u8>),
    /// The file has vanished meanwhile.
    Vanished,
    /// They were damaged on the way once more.
    Damaged(Error),
}

impl Work<'_> {
    /// A file came whole, but for pages whose checksum does not fit. The bytes that come replace those
    /// that came.
    pub fn reverify(
        &self,
        session: &mut Session,
        item: Item,
        received: Received,
        content: Option<Arc<Collected>>,
    ) -> Result<()> {
        match self.repair(session, item, &received, content.clone()) {
            Ok(Outcome::Repaired(checksum)) => {
                self.complete(item, &Received { checksum, ..received }, content)
            }
            Ok(Outcome::Vanished) => self.vanished(item),
            Ok(Outcome::Damaged(error)) => {
                self.counters.lost(received.length);
                self.failed(item, &error)
            }
            Err(error) => {
                self.counters.lost(received.length);
                if is_hopeless(&error) {
                    self.queue.release(item);
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

    fn repair(
        &self,
        session: &mut Session,
        item: Item,
        received: &Received,
        content: Option<Arc<Collected>>,
    ) -> Result<Outcome> {
        let path = self.queue.path(item.file);
        let file = match content {
            Some(content) => Some(content as Arc<dyn OutputFile>),
            None => self.output.reopen(&piece(&path, item.part, received.size, received.attributes()))?,
        };
        let mut patch = Patch {
            work: self,
            path: &path,
            file: file.as_deref(),
            end: received.offset + received.length,
            ranges: Vec::new(),
            position: 0,
            mismatches: Vec::new(),
            vanished: false,
            damaged: None,
        };
        // The server need not verify what mostly was torn: it would count a page that this side finds
        // to be right.
        let checksummed = Checks { pages: self.pages.map(PageRule::Before), ..self.checks_by_server() };
        for ranges in runs(&received.mismatches).chunks(MAX_FILES_PER_COMMAND) {
            patch.fetch(session, ranges, checksummed, false)?;
        }
        // From the first that is wrong to the last in one piece: the server then reports a file's
        // failures as it does for all of a file.
        let wrong = std::mem::take(&mut patch.mismatches);
        if let (Some(first), Some(last), None) = (wrong.first(), wrong.last(), &patch.damaged) {
            patch.fetch(session, &[pages(*first, *last)], self.checks_by_server(), true)?;
        }
        if patch.vanished {
            return Ok(Outcome::Vanished);
        }
        if let Some(error) = patch.damaged {
            return Ok(Outcome::Damaged(error));
        }
        match file {
            Some(file) => reread(&*file, received, self.algorithm)
                .map(Outcome::Repaired)
                .map_err(|error| Error::io("read file", &self.output.shown(&path), &error)),
            None => Ok(Outcome::Repaired(received.checksum.clone())),
        }
    }
}

/// Writes ranges over a file that was received before.
struct Patch<'a> {
    work: &'a Work<'a>,
    path: &'a BackupPath,
    file: Option<&'a dyn OutputFile>,
    /// Where what was received before ends.
    end: u64,
    /// What was asked for.
    ranges: Vec<Range>,
    /// Where the next byte goes.
    position: u64,
    /// Pages that are older than the backup, and wrong as the server read them.
    mismatches: Vec<u32>,
    vanished: bool,
    /// What came differs from its checksum.
    damaged: Option<Error>,
}

impl Patch<'_> {
    fn fetch(&mut self, session: &mut Session, ranges: &[Range], checks: Checks, verify: bool) -> Result<()> {
        let wanted: Vec<FileRequest> =
            ranges.iter().map(|range| FileRequest { path: self.path.clone(), range: Some(*range) }).collect();
        self.ranges = ranges.to_vec();
        let work = self.work;
        work.transfer(session, &wanted, checks, Some(verify), &mut Receiver::new(&wanted, checks), self)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // What the file has grown by meanwhile is cut off here too.
        let room = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        if let Some(file) = self.file {
            file.write(bytes, self.position)
                .map_err(|error| Error::io("write to file", &self.work.output.shown(self.path), &error))?;
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
        self.mismatches.extend(received.mismatches);
        Ok(())
    }

    fn vanished(&mut self, _: usize) -> Result<()> {
        self.vanished = true;
        Ok(())
    }

    fn damaged(&mut self, _: usize, error: Error) -> Result<()> {
        self.damaged.get_or_insert(error);
        Ok(())
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

/// The checksum of what lies where something was received.
pub fn reread(
    file: &dyn OutputFile,
    received: &Received,
    algorithm: ChecksumAlgorithm,
) -> io::Result<Vec<u8>> {
    let mut checksum = Checksum::new(algorithm);
    let mut buffer = vec![0; REREAD];
    let end = received.offset + received.length;
    let mut at = received.offset;
    while at < end {
        let most = usize::try_from(end - at).map_or(REREAD, |left| left.min(REREAD));
        match file.read(&mut buffer[..most], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                checksum.update(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(checksum.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_as_ranges() {
        let range = |offset: u64, length: u64| Range { offset: offset * 8192, length: Some(length * 8192) };
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[3]), [range(3, 1)]);
        assert_eq!(runs(&[0, 1, 2, 7, 9, 10]), [range(0, 3), range(7, 1), range(9, 2)]);
    }
}
