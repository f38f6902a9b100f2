//! A file, or a part of one, that is kept until all of it is there and known to be right: for outputs where
//! nothing can be taken back.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::OutputFile;
use super::positioned::write_pieces;

/// What is longer goes to a spool file.
pub const IN_MEMORY: u64 = 16 << 20;

/// What is read from a spool file at a time.
const STEP: usize = 256 << 10;

/// Some bytes of a file that follow each other.
#[derive(Debug)]
pub struct Collected {
    /// Where in the file they begin.
    offset: u64,
    content: Mutex<Content>,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    Spool(File, u64),
}

impl Collected {
    /// For so many bytes from `offset` on; `spool` makes a file that nobody else sees.
    pub fn new(offset: u64, length: u64, spool: impl FnOnce() -> io::Result<File>) -> io::Result<Self> {
        let content = match usize::try_from(length) {
            Ok(size) if length <= IN_MEMORY => Content::Memory(Vec::with_capacity(size)),
            _ => Content::Spool(spool()?, 0),
        };
        Ok(Self { offset, content: Mutex::new(content) })
    }

    /// What is in a file already.
    pub fn of(file: File, length: u64) -> Self {
        Self { offset: 0, content: Mutex::new(Content::Spool(file, length)) }
    }

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        match &*self.lock() {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Spool(_, length) => *length,
        }
    }

    /// All of them, in pieces, one after the other.
    pub fn read_out(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match &*self.lock() {
            Content::Memory(bytes) => write(bytes),
            Content::Spool(file, length) => {
                let mut buffer = vec![0; STEP];
                let mut at = 0;
                while at < *length {
                    let most = usize::try_from(*length - at).map_or(STEP, |left| left.min(STEP));
                    file.read_exact_at(&mut buffer[..most], at)?;
                    write(&buffer[..most])?;
                    at += most as u64;
                }
                Ok(())
            }
        }
    }

    /// Hands all of it to `take` if it is in memory.
    pub fn in_memory<T>(&self, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        match &*self.lock() {
            Content::Memory(bytes) => Some(take(bytes)),
            Content::Spool(..) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, at: u64) -> io::Result<u64> {
        at.checked_sub(self.offset).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl OutputFile for Collected {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let place = self.place(at)?;
        match &mut *self.lock() {
            Content::Memory(memory) => {
                let place = usize::try_from(place).map_err(|_| io::ErrorKind::InvalidInput)?;
                if memory.len() < place {
                    memory.resize(place, 0);
                }
                let (over, behind) = bytes.split_at(bytes.len().min(memory.len() - place));
                memory[place..place + over.len()].copy_from_slice(over);
                memory.extend_from_slice(behind);
                Ok(())
            }
            Content::Spool(file, length) => {
                *length = (*length).max(place + bytes.len() as u64);
                file.write_all_at(bytes, place)
            }
        }
    }

    fn write_pieces(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        if let Content::Spool(file, length) = &mut *self.lock() {
            let place = self.place(at)?;
            let all: usize = pieces.iter().map(|piece| piece.len()).sum();
            *length = (*length).max(place + all as u64);
            return write_pieces(file, pieces, place);
        }
        let mut at = at;
        for piece in pieces {
            self.write(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let place = self.place(at)?;
        match &*self.lock() {
            Content::Memory(memory) => {
                let from = usize::try_from(place).map_or(memory.len(), |place| place.min(memory.len()));
                let count = buffer.len().min(memory.len() - from);
                buffer[..count].copy_from_slice(&memory[from..from + count]);
                Ok(count)
            }
            Content::Spool(file, _) => file.read_at(buffer, place),
        }
    }

    fn start_writeback(&self, _: u64, _: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_from_memory_and_from_a_spool() {
        for length in [10, IN_MEMORY + 1] {
            let collected = Collected::new(100, length, tempfile::tempfile).unwrap();
            collected.write(b"hello", 100).unwrap();
            collected.write_pieces(&[IoSlice::new(b" wo"), IoSlice::new(b"rlds")], 105).unwrap();
            collected.write(b"W", 106).unwrap();
            assert_eq!(collected.len(), 12);
            let mut all = Vec::new();
            collected
                .read_out(|bytes| {
                    all.extend_from_slice(bytes);
                    Ok(())
                })
                .unwrap();
            assert_eq!(all, b"hello Worlds");
            let mut some = [0; 20];
            assert_eq!(collected.read(&mut some, 106).unwrap(), 6);
            assert_eq!(&some[..6], b"Worlds");
            assert!(collected.write(b"x", 99).is_err());
            assert_eq!(collected.in_memory(<[u8]>::len).is_some(), length == 10);
        }
    }
}
