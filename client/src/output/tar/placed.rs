//! An archive in a file that all connections write at once: each member gets its place, and is written there.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::ZEROES;
use super::header::{BLOCK, END, Header, Kind, header, padding};
use crate::error::{Error, Result};
use crate::os;
use crate::output::collected::Collected;
use crate::output::positioned::write_pieces;
use crate::output::{Attributes, OutputFile};

/// Places from here on are taken on disk before their bytes come, so that a full disk is heard of early.
const PREALLOCATED: u64 = 1 << 20;

/// An archive under way.
#[derive(Debug)]
pub struct Placed {
    path: PathBuf,
    file: Arc<File>,
    /// Where the next member goes.
    end: AtomicU64,
    sync: bool,
}

/// Where a file is in an archive: after its header, which is written when the file is complete.
#[derive(Debug)]
pub struct Place {
    file: Arc<File>,
    /// Where its bytes begin.
    offset: u64,
    size: u64,
}

impl Placed {
    /// An empty one, in a file that was just made.
    pub fn new(path: PathBuf, file: File, sync: bool) -> Self {
        Self { path, file: Arc::new(file), end: AtomicU64::new(0), sync }
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A place for a file of this size, which stays its own.
    pub fn reserve(&self, size: u64) -> Result<Place> {
        let block = BLOCK as u64;
        let length = size.checked_next_multiple_of(block).and_then(|length| length.checked_add(block));
        let overflow = || self.io(&io::ErrorKind::FileTooLarge.into());
        let length = length.ok_or_else(overflow)?;
        let begin = self
            .end
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |end| end.checked_add(length))
            .map_err(|_| overflow())?;
        if size >= PREALLOCATED && self.sync {
            // Not every file system can do it.
            if let Err(error @ Errno::NOSPC) =
                fallocate(&*self.file, FallocateFlags::KEEP_SIZE, begin, length)
            {
                return Err(self.io(&error.into()));
            }
        }
        Ok(Place { file: Arc::clone(&self.file), offset: begin + block, size })
    }

    /// Ends a member that was written to its place.
    pub fn complete(&self, place: &Place, name: &[u8], attributes: &Attributes) -> Result<()> {
        let header = header(name, Kind::File(place.size), attributes)?;
        // What pads it is zero because nobody has written there.
        self.write_header(place, &header)
    }

    /// Adds a directory.
    pub fn directory(&self, name: &[u8], attributes: &Attributes) -> Result<()> {
        let header = header(name, Kind::Directory, attributes)?;
        self.write_header(&self.reserve(0)?, &header)
    }

    /// Adds a file.
    pub fn file(&self, name: &[u8], attributes: &Attributes, content: &[u8]) -> Result<()> {
        let size = content.len() as u64;
        let header = header(name, Kind::File(size), attributes)?;
        let place = self.reserve(size)?;
        let padding = &ZEROES[..padding(size)];
        let slices = [&header[..], content, padding].map(IoSlice::new);
        write_pieces(&self.file, &slices, place.offset - BLOCK as u64).map_err(|error| self.io(&error))
    }

    /// Adds a file that was collected.
    pub fn collected(&self, name: &[u8], attributes: &Attributes, content: &Collected) -> Result<()> {
        if let Some(written) = content.in_memory(|bytes| self.file(name, attributes, bytes)) {
            return written;
        }
        let place = self.reserve(content.len())?;
        let mut at = 0;
        let copied = content.read_out(|bytes| {
            place.write(bytes, at)?;
            at += bytes.len() as u64;
            Ok(())
        });
        copied.map_err(|error| self.io(&error))?;
        self.complete(&place, name, attributes)
    }

    /// Makes a place all zeroes.
    pub fn clear(&self, place: &Place) -> Result<()> {
        let mut at = 0;
        while at < place.size {
            let count = usize::try_from(place.size - at).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            place.write(&ZEROES[..count], at).map_err(|error| self.io(&error))?;
            at += count as u64;
        }
        Ok(())
    }

    /// Takes a place's room on disk, all zeroes, so that what is written there later finds room.
    pub fn allocate(&self, place: &Place) -> Result<()> {
        match fallocate(&*self.file, FallocateFlags::empty(), place.offset, place.size) {
            Ok(()) => Ok(()),
            Err(error @ Errno::NOSPC) => Err(self.io(&error.into())),
            // Not every file system can do it.
            Err(_) => self.clear(place),
        }
    }

    /// Ends the archive: nothing is added any more.
    pub fn close(&self) -> Result<()> {
        self.file.write_all_at(&END, self.end.load(Ordering::Relaxed)).map_err(|error| self.io(&error))
    }

    /// What was written so far gets to disk.
    pub fn flush(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("fsync file", &self.path, &error))
    }

    fn write_header(&self, place: &Place, header: &Header) -> Result<()> {
        self.file.write_all_at(header, place.offset - BLOCK as u64).map_err(|error| self.io(&error))
    }

    fn io(&self, error: &io::Error) -> Error {
        Error::io("write to file", &self.path, error)
    }
}

impl Place {
    /// The size of the file that it is for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fails where bytes would not be in it: they would be in another's.
    fn check(&self, at: u64, length: usize) -> io::Result<u64> {
        match at.checked_add(length as u64) {
            Some(end) if end <= self.size => Ok(self.offset + at),
            _ => Err(io::Error::other("write beyond the end of an archive member")),
        }
    }
}

impl OutputFile for Place {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = self.check(at, bytes.len())?;
        self.file.write_all_at(bytes, at)
    }

    fn write_pieces(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        let at = self.check(at, pieces.iter().map(|piece| piece.len()).sum())?;
        write_pieces(&self.file, pieces, at)
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        self.file.read_at(&mut buffer[..most], self.offset + at)
    }

    fn start_writeback(&self, at: u64, length: u64) {
        os::start_writeback(&self.file, self.offset + at, length);
    }
}
