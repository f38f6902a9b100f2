//! The sink that hands what a transfer brings to the output.

use std::io::{self, IoSlice};
use std::sync::Arc;

use pages::checksum::{Checksum, combine_crcs, from_crc, to_crc};
use protocol::{BackupPath, FileBegin, FileRequest};

use crate::error::{Error, Result};
use crate::fetch::queue::{Item, Part};
use crate::fetch::receive::{Received, Sink};
use crate::fetch::transfer::{Work, wal_file_name};
use crate::output::{OutputFile, Piece};
use crate::server::chunk::{Chunk, Kept};
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
    wanted: &'a [FileRequest],
    open: Option<Open>,
    /// Files with pages whose checksum does not fit: their place in the request, and what came.
    pub mismatched: Vec<(usize, Received)>,
}

/// A file that is being written.
struct Open {
    /// Its place in the request.
    file: usize,
    /// None if nothing is kept of it.
    output: Option<Arc<dyn OutputFile>>,
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
    pub fn new(work: &'a Work<'a>, items: &'a [Item], wanted: &'a [FileRequest]) -> Self {
        Self { work, items, wanted, open: None, mismatched: Vec::new() }
    }

    /// What was received of a file that is not complete does not count.
    pub fn forget(&mut self) {
        if let Some(open) = self.open.take() {
            self.work.counters.lost(open.received);
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
        Error::io(what, &self.work.output.shown(&self.wanted[file].path), error)
    }

    fn look_at_wal(&mut self, bytes: &[u8]) {
        if let Some(pages) = self.open.as_mut().and_then(|open| open.wal.as_mut()) {
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
                Error::io("write to file", &self.work.output.shown(&self.wanted[open.file].path), &error)
            })?;
        }
        open.position += length as u64;
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
        let mut zeroed = Checksum::new(self.work.algorithm);
        let mut at = part.offset + received.length;
        let end = part.offset + part.length;
        while at < end {
            let zeroes =
                &ZEROES[..usize::try_from(end - at).map_or(ZEROES.len(), |left| left.min(ZEROES.len()))];
            if let Some(open) = &self.open
                && let Some(output) = &open.output
            {
                output.write(zeroes, at).map_err(|error| self.io("write to file", file, &error))?;
            }
            zeroed.update(zeroes);
            at += zeroes.len() as u64;
        }
        if !received.checksum.is_empty() {
            let zeroed = to_crc(&zeroed.finish());
            let length = part.length - received.length;
            received.checksum = from_crc(combine_crcs(to_crc(&received.checksum), zeroed, length));
        }
        received.length = part.length;
        Ok(())
    }
}

impl Sink for Writer<'_> {
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
        let path = &self.wanted[file].path;
        let wal = self.check_of_wal(path, begin.size)?;
        let item = self.items[file];
        let is_wanted = item.part.is_none() || self.work.splits.begin(item.file, begin.mtime);
        let piece = piece(path, item.part, begin.size);
        let output = if is_wanted { self.work.output.begin(&piece)? } else { None };
        self.open = Some(Open { file, output, position: begin.offset, received: 0, told: begin.offset, wal });
        Ok(())
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.look_at_wal(&chunk);
        self.write(chunk.len(), |output, position| output.write(&chunk, position))
    }

    fn pieces(&mut self, pieces: &[Kept]) -> Result<()> {
        pieces.iter().for_each(|piece| self.look_at_wal(piece));
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        self.write(pieces.iter().map(|piece| piece.len()).sum(), |output, position| {
            output.write_pieces(&slices, position)
        })
    }

    fn end(&mut self, file: usize, mut received: Received) -> Result<()> {
        let item = self.items[file];
        if let Some(part) = item.part {
            self.fill(file, &part, &mut received)?;
        }
        if let Some(open) = self.open.take() {
            if self.work.sync
                && open.received >= WRITEBACK_MINIMUM
                && let Some(output) = &open.output
            {
                output.start_writeback(open.told, open.position - open.told);
            }
            if let Some(pages) = open.wal {
                // The checksum fits: what is wrong with it is the server's doing, and comes again.
                let path = &self.wanted[file].path;
                pages.finish().map_err(|error| error.context(format!("file \"{path}\"")).fatal())?;
            }
        }
        if received.mismatches.is_empty() {
            self.work.complete(item, &received)
        } else {
            self.mismatched.push((file, received));
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
pub fn piece(path: &BackupPath, part: Option<Part>, size: u64) -> Piece<'_> {
    match part {
        Some(part) => Piece { path, size: part.size, part: Some((part.offset, part.length)) },
        None => Piece { path, size, part: None },
    }
}
