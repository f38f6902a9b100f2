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
use protocol::command::{Extent, Range};
use protocol::{BackupPath, BlockList, ChecksumAlgorithm, FileBegin, FileRequest, MAX_FILES_PER_COMMAND};

use crate::chunk::Chunk;
use crate::error::{Error, Kind, Result};
use crate::fetch::batch::{Feed, send_files_content};
use crate::fetch::increment::Place;
use crate::fetch::queue::Item;
use crate::fetch::receive::{Checks, PageRule, Received, Receiver, Sink};
use crate::fetch::transfer::{Work, is_hopeless};
use crate::fetch::writer::{ZEROES, piece};
use crate::output::OutputFile;
use crate::output::collected::Collected;
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
        place: Option<&Place>,
        received: Received,
        content: Option<Arc<Collected>>,
    ) -> Result<()> {
        match self.repair(session, item, place, &received, content.clone()) {
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
        place: Option<&Place>,
        received: &Received,
        content: Option<Arc<Collected>>,
    ) -> Result<Outcome> {
        let (path, name) = (self.queue.path(item.file), self.name(item));
        let file = match content {
            Some(content) => Some(content as Arc<dyn OutputFile>),
            None => self.output.reopen(&piece(&name, item.part, received.size, received.attributes()))?,
        };
        let mut patch = Patch {
            work: self,
            path: &path,
            name: &name,
            file: file.as_deref(),
            end: received.offset + received.length,
            stretches: Vec::new(),
            position: 0,
            mismatches: Vec::new(),
            vanished: false,
            damaged: None,
        };
        // The server need not verify what mostly was torn: it would count a page that this side finds
        // to be right.
        let checksummed = Checks { pages: self.pages.map(PageRule::Before), ..self.checks_by_server() };
        for stretches in runs(&received.mismatches, place).chunks(MAX_FILES_PER_COMMAND) {
            patch.fetch(session, stretches, checksummed, false)?;
        }
        // From the first that is wrong to the last in one piece: the server then reports a file's
        // failures as it does for all of a file.
        let wrong = std::mem::take(&mut patch.mismatches);
        if let (Some(first), Some(last), None) = (wrong.first(), wrong.last(), &patch.damaged) {
            patch.fetch(session, &[Stretch::of(*first, *last, place)], self.checks_by_server(), true)?;
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
                .map_err(|error| Error::io("read file", &self.output.shown(&name), &error)),
            None => Ok(Outcome::Repaired(received.checksum.clone())),
        }
    }
}

/// Pages that follow each other in what was received.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stretch {
    /// What is asked for.
    extent: Extent,
    /// Where it goes in the file that was written,
    offset: u64,
    /// and how long it is.
    length: u64,
}

impl Stretch {
    /// From one page to another, both included; of the blocks of an increment those that lie between them.
    fn of(first: u32, last: u32, place: Option<&Place>) -> Self {
        let block = BLOCK_SIZE as u64;
        match place {
            None => {
                let offset = u64::from(first) * block;
                let length = (u64::from(last) + 1) * block - offset;
                Self { extent: Extent::Range(Range { offset, length: Some(length) }), offset, length }
            }
            Some(place) => {
                let (blocks, offset) = place.between(first, last);
                let length = blocks.len() * block;
                Self { extent: Extent::Blocks(blocks), offset, length }
            }
        }
    }
}

/// Writes pages over a file that was received before.
struct Patch<'a> {
    work: &'a Work<'a>,
    path: &'a BackupPath,
    /// The file's name in the backup.
    name: &'a BackupPath,
    file: Option<&'a dyn OutputFile>,
    /// Where what was received before ends.
    end: u64,
    /// What was asked for.
    stretches: Vec<Stretch>,
    /// Where the next byte goes.
    position: u64,
    /// Pages that are older than the backup, and wrong as the server read them.
    mismatches: Vec<u32>,
    vanished: bool,
    /// What came differs from its checksum.
    damaged: Option<Error>,
}

impl Patch<'_> {
    fn fetch(
        &mut self,
        session: &mut Session,
        stretches: &[Stretch],
        checks: Checks,
        verify: bool,
    ) -> Result<()> {
        let wanted: Vec<FileRequest> = stretches
            .iter()
            .map(|stretch| FileRequest { path: self.path.clone(), extent: stretch.extent.clone() })
            .collect();
        self.stretches = stretches.to_vec();
        let work = self.work;
        let command = send_files_content(wanted.clone(), work.backup, checks, Some(verify));
        let text = session.route().text_of(&command);
        work.transfer(session, &text, Feed::new(&mut Receiver::new(&wanted, checks), self))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // What the file has grown by meanwhile is cut off here too.
        let room = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        if let Some(file) = self.file {
            file.write(bytes, self.position)
                .map_err(|error| Error::io("write to file", &self.work.output.shown(self.name), &error))?;
        }
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl Sink for Patch<'_> {
    fn begin(&mut self, file: usize, _: &FileBegin<'_>) -> Result<()> {
        self.position = self.stretches[file].offset;
        Ok(())
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.write(&chunk)
    }

    fn end(&mut self, file: usize, received: Received) -> Result<()> {
        // Where the file has shrunk meanwhile there is nothing to be verified, and nothing to keep.
        let Stretch { offset, length, .. } = self.stretches[file];
        let wanted = (offset + length).min(self.end);
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

/// Pages, in order, as stretches. Those of an increment are all in its list.
fn runs(numbers: &[u32], place: Option<&Place>) -> Vec<Stretch> {
    let block = BLOCK_SIZE as u64;
    // Of an increment: how many blocks lie before the run of its list that is looked at.
    let (mut before, mut listed) = (0, place.map_or(&[][..], |place| place.blocks.runs()));
    let stretch = |run: &[u32]| {
        let (first, last) = (run[0], run[run.len() - 1]);
        let Some(place) = place else { return Stretch::of(first, last, None) };
        while let Some((passed, rest)) = listed.split_first()
            && passed.last() < first
        {
            before += u64::from(passed.count);
            listed = rest;
        }
        let skipped = before + listed.first().map_or(0, |run| u64::from(first.saturating_sub(run.first)));
        let mut blocks = BlockList::default();
        blocks.push(first, last - first + 1);
        let (offset, length) = (place.blocks_start() + skipped * block, blocks.len() * block);
        Stretch { extent: Extent::Blocks(blocks), offset, length }
    };
    numbers.chunk_by(|one, next| one + 1 == *next).map(stretch).collect()
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
        let range = |offset: u64, length: u64| {
            let (offset, length) = (offset * 8192, length * 8192);
            Stretch { extent: Extent::Range(Range { offset, length: Some(length) }), offset, length }
        };
        assert_eq!(runs(&[], None), []);
        assert_eq!(runs(&[3], None), [range(3, 1)]);
        assert_eq!(runs(&[0, 1, 2, 7, 9, 10], None), [range(0, 3), range(7, 1), range(9, 2)]);
    }

    #[test]
    fn pages_of_an_increment() {
        let blocks = |list: &str| BlockList::parse(list.as_bytes()).unwrap();
        let place = Place {
            blocks: blocks("3-6,9,20-29"),
            header: vec![0; BLOCK_SIZE],
            start: 0,
            size: 16 * 8192,
            algorithm: ChecksumAlgorithm::Crc32c,
        };
        let stretch = |list: &str, at: u64, count: u64| Stretch {
            extent: Extent::Blocks(blocks(list)),
            offset: at * 8192,
            length: count * 8192,
        };
        assert_eq!(
            runs(&[3, 5, 6, 9, 21, 22, 29], Some(&place)),
            [
                stretch("3", 1, 1),
                stretch("5-6", 3, 2),
                stretch("9", 5, 1),
                stretch("21-22", 7, 2),
                stretch("29", 15, 1)
            ]
        );
        assert_eq!(Stretch::of(5, 21, Some(&place)), stretch("5-6,9,20-21", 3, 5));
    }
}
