//! The sink that hands what a transfer brings to the output.

use std::io::{self, IoSlice};
use std::sync::Arc;

use pages::checksum::{Checksum, combine_crcs, from_crc, to_crc};
use protocol::frame::Compression;
use protocol::{BackupPath, ChecksumAlgorithm, FileBegin, FileRequest};

use crate::chunk::{Chunk, Kept};
use crate::error::{Error, Result};
use crate::fetch::increment::Place;
use crate::fetch::queue::{Item, Part};
use crate::fetch::receive::{Received, Sink};
use crate::fetch::reverify::reread;
use crate::fetch::transfer::{Work, wal_file_name};
use crate::output::collected::{Collected, Stream};
use crate::output::{Attributes, Intake, OutputFile, Piece};
use crate::wal::check::SegmentPages;

/// After so many bytes of a file the operating system is told to begin writing them to disk.
const WRITEBACK: u64 = 8 << 20;

/// Files below that are left to the fsync at the end.
const WRITEBACK_MINIMUM: u64 = 128 << 10;

/// Zeroes for where a file has shrunk.
pub static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Writes one batch.
pub struct Writer<'a> {
    work: &'a Work<'a>,
    items: &'a [Item],
    places: &'a [Option<Place>],
    wanted: &'a [FileRequest],
    open: Option<Open>,
    /// Files with pages whose checksum does not fit.
    pub mismatched: Vec<Mismatched>,
}

/// A file with pages whose checksum does not fit.
pub struct Mismatched {
    /// Its place in the request.
    pub file: usize,
    /// What came.
    pub received: Received,
    /// Where that is, if it is not the output's yet.
    pub content: Option<Arc<Collected>>,
}

/// A file that is being written.
struct Open {
    /// Its place in the request.
    file: usize,
    /// None if nothing is kept of it.
    output: Option<Arc<dyn OutputFile>>,
    /// The same, if it is not the output's yet.
    collected: Option<Arc<Collected>>,
    /// Where the next byte goes.
    position: u64,
    received: u64,
    /// Up to here the operating system was told to write to disk.
    told: u64,
    /// What its pages say, if it is a WAL segment.
    wal: Option<SegmentPages>,
}

impl<'a> Writer<'a> {
    /// For these items, which were asked for so.
    pub fn new(
        work: &'a Work<'a>,
        items: &'a [Item],
        places: &'a [Option<Place>],
        wanted: &'a [FileRequest],
    ) -> Self {
        Self { work, items, places, wanted, open: None, mismatched: Vec::new() }
    }

    /// What was received of a file that is not complete does not count.
    pub fn forget(&mut self) {
        if let Some(open) = self.open.take() {
            self.work.counters.lost(open.received);
        }
    }

    /// Whether a file goes to the output only when it is whole and known to be right.
    fn is_collected(&self, item: Item, is_segment: bool) -> bool {
        match self.work.output.intake() {
            Intake::Any => false,
            // A segment that has another size than all have is an error, and cannot come again.
            Intake::Sized => item.part.is_none() && !is_segment,
            Intake::Ordered | Intake::InOrderEach => true,
        }
    }

    fn check_of_wal(&self, path: &BackupPath, size: u64) -> Result<Option<SegmentPages>> {
        let (Some(needed), Some(name)) = (self.work.wal, wal_file_name(path)) else { return Ok(None) };
        let segment_size = needed.cluster.segment_size;
        // Otherwise a timeline history file.
        let Some(segment) = std::str::from_utf8(name).ok().and_then(|name| segment_size.parse(name)) else {
            return Ok(None);
        };
        if size != segment_size.bytes() {
            return Err(Error::local(format!("unexpected WAL file size \"{path}\"")));
        }
        Ok(Some(needed.check(segment)))
    }

    fn io(&self, what: &str, file: usize, error: &io::Error) -> Error {
        Error::io(what, &self.work.output.shown(&self.work.name(self.items[file])), error)
    }

    /// What the file that is open comes as, if it comes as a stream and stays one.
    fn stream(&self) -> Option<Arc<Collected>> {
        self.open.as_ref().and_then(Open::stream).cloned()
    }

    fn look_at_wal(&mut self, bytes: &[u8]) {
        if let Some(open) = &mut self.open
            && !open.is_stream()
            && let Some(pages) = &mut open.wal
        {
            pages.push(bytes);
        }
    }

    /// The next bytes of the file that is open, by `write`.
    fn write(
        &mut self,
        length: usize,
        write: impl FnOnce(&dyn OutputFile, u64) -> io::Result<()>,
    ) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if let Some(output) = &open.output {
            write(&**output, open.position).map_err(|error| {
                let name = self.work.name(self.items[open.file]);
                Error::io("write to file", &self.work.output.shown(&name), &error)
            })?;
        }
        open.position += length as u64;
        if open.is_stream() {
            // What is counted are bytes of files: how many these are is known when all are there.
            return Ok(());
        }
        open.received += length as u64;
        if self.work.sync && open.position - open.told >= WRITEBACK {
            if let Some(output) = &open.output {
                output.start_writeback(open.told, open.position - open.told);
            }
            open.told = open.position;
        }
        self.work.counters.received(length);
        Ok(())
    }

    /// A part of a file that has shrunk since it was listed is filled up.
    fn fill(&self, file: usize, part: &Part, received: &mut Received) -> Result<()> {
        let mut at = part.offset + received.length;
        let begin = at;
        let end = part.offset + part.length;
        let stream = self.open.as_ref().and_then(Open::stream);
        if let Some(stream) = stream {
            stream.fill_up(end.saturating_sub(at));
            at = end;
        }
        while at < end {
            let zeroes =
                &ZEROES[..usize::try_from(end - at).map_or(ZEROES.len(), |left| left.min(ZEROES.len()))];
            if let Some(open) = &self.open
                && let Some(output) = &open.output
            {
                output.write(zeroes, at).map_err(|error| self.io("write to file", file, &error))?;
            }
            at += zeroes.len() as u64;
        }
        received.length = part.length;
        if begin == end {
            return Ok(());
        }
        let zeroed = checksum_filled_up(self.work.algorithm, &[], end - begin);
        if self.work.algorithm == ChecksumAlgorithm::Crc32c {
            let zeroed = combine_crcs(to_crc(&received.checksum), to_crc(&zeroed), end - begin);
            received.checksum = from_crc(zeroed);
        } else if let Some(stream) = stream {
            let mut checksum = Checksum::new(self.work.algorithm);
            let read = stream.read_out(|bytes| {
                checksum.update(bytes);
                Ok(())
            });
            read.map_err(|error| self.io("decompress file", file, &error))?;
            received.checksum = checksum.finish();
        } else if let Some(output) = self.open.as_ref().and_then(|open| open.output.as_ref()) {
            received.checksum = reread(&**output, received, self.work.algorithm)
                .map_err(|error| self.io("read file", file, &error))?;
        }
        Ok(())
    }
}

impl Open {
    /// What comes as a stream, and stays one.
    fn stream(&self) -> Option<&Arc<Collected>> {
        self.collected.as_ref().filter(|collected| collected.stream().is_some())
    }

    fn is_stream(&self) -> bool {
        self.stream().is_some()
    }
}

impl Sink for Writer<'_> {
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
        let path = &self.wanted[file].path;
        let wal = self.check_of_wal(path, begin.size)?;
        let item = self.items[file];
        let (name, place) = (self.work.name(item), self.places[file].as_ref());
        // Of an increment, what is made of it.
        let (size, start, length) = match place {
            Some(place) => (place.size, place.start, begin.length + place.header.len() as u64),
            None => (begin.size, begin.offset, begin.length),
        };
        let in_parts = item.part.is_some_and(|part| !part.is_all());
        let mut collected = None;
        let output = if self.is_collected(item, wal.is_some()) {
            let spool = || self.work.output.spool();
            let content = if begin.compression == Compression::None {
                Collected::new(start, length, spool)
            } else {
                let head = place.map(|place| place.header.clone()).unwrap_or_default();
                let stream = Stream { algorithm: begin.compression, length: begin.length, head };
                Collected::of_stream(start, stream, spool)
            };
            let content = content.map_err(|error| self.io("create temporary file for", file, &error))?;
            let content = Arc::new(content);
            collected = Some(Arc::clone(&content));
            Some(content as Arc<dyn OutputFile>)
        } else if in_parts && !self.work.splits.begin(item.file, begin.mtime) {
            None
        } else {
            let attributes = Attributes { mode: begin.mode, mtime: begin.mtime };
            self.work.output.begin(&piece(&name, item.part, size, attributes))?
        };
        self.open = Some(Open { file, output, collected, position: start, received: 0, told: start, wal });
        match place {
            Some(place) if !place.header.is_empty() && begin.compression == Compression::None => {
                self.write(place.header.len(), |output, position| output.write(&place.header, position))
            }
            _ => Ok(()),
        }
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.look_at_wal(&chunk);
        if let Some(stream) = self.stream() {
            return self.write(chunk.len(), |_, position| stream.push(chunk, position));
        }
        self.write(chunk.len(), |output, position| output.write(&chunk, position))
    }

    fn pieces(&mut self, pieces: &[Kept]) -> Result<()> {
        if let Some(stream) = self.stream() {
            return pieces.iter().try_for_each(|piece| {
                self.write(piece.len(), |_, position| stream.push_kept(piece, position))
            });
        }
        pieces.iter().for_each(|piece| self.look_at_wal(piece));
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        self.write(pieces.iter().map(|piece| piece.len()).sum(), |output, position| {
            output.write_pieces(&slices, position)
        })
    }

    fn end(&mut self, file: usize, mut received: Received) -> Result<()> {
        let item = self.items[file];
        if self.open.as_ref().is_some_and(Open::is_stream) {
            self.work.counters.received(usize::try_from(received.length).unwrap_or(usize::MAX));
        }
        if let Some(part) = item.part {
            self.fill(file, &part, &mut received)?;
        }
        let mut collected = None;
        if let Some(open) = self.open.take() {
            collected = open.collected;
            if self.work.sync
                && open.received >= WRITEBACK_MINIMUM
                && let Some(output) = &open.output
            {
                output.start_writeback(open.told, open.position - open.told);
            }
            if let Some(mut pages) = open.wal {
                if let Some(stream) = collected.as_ref().filter(|collected| collected.stream().is_some()) {
                    let looked_at = stream.read_out(|bytes| {
                        pages.push(bytes);
                        Ok(())
                    });
                    looked_at.map_err(|error| self.io("decompress file", file, &error))?;
                }
                // The checksum fits: what is wrong with it is the server's doing, and comes again.
                let path = &self.wanted[file].path;
                pages.finish().map_err(|error| error.context(format!("file \"{path}\"")).fatal())?;
            }
        }
        if received.mismatches.is_empty() {
            self.work.complete(item, &received, collected)
        } else {
            self.mismatched.push(Mismatched { file, received, content: collected });
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

/// What an output is told of a file, or of a part of one.
pub fn piece(path: &BackupPath, part: Option<Part>, size: u64, attributes: Attributes) -> Piece<'_> {
    let (size, part) = match part {
        Some(part) => (part.size, Some((part.offset, part.length))),
        None => (size, None),
    };
    Piece { path, size, part, attributes }
}

/// The checksum of a file that begins so and has zeroes from there to its end.
pub fn checksum_filled_up(algorithm: ChecksumAlgorithm, head: &[u8], size: u64) -> Vec<u8> {
    let mut checksum = Checksum::new(algorithm);
    checksum.update(head);
    let mut left = size - head.len() as u64;
    while left > 0 {
        let count = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        checksum.update(&ZEROES[..count]);
        left -= count as u64;
    }
    checksum.finish()
}
