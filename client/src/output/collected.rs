//! A file, or a part of one, that is kept until all of it is there and known to be right: for outputs where
//! nothing can be taken back. What comes compressed may be kept so, as a stream.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use compression::Decoder;
use protocol::frame::Compression;

use super::OutputFile;
use super::positioned::write_pieces;
use crate::chunk::{Chunk, Kept};

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
    /// What the content is a stream of, if it is one.
    stream: Option<Stream>,
    /// How many zeroes are behind the content.
    zeroes: AtomicU64,
}

/// What a stream is, and holds.
#[derive(Debug)]
pub struct Stream {
    /// How it is compressed.
    pub algorithm: Compression,
    /// How many bytes of the file it has.
    pub length: u64,
    /// Bytes of the file that come before them.
    pub head: Vec<u8>,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    Spool(File, u64),
    /// Of a stream: it is only added to.
    Pieces(Vec<Piece>),
}

/// Some bytes of a stream.
#[derive(Debug)]
enum Piece {
    /// In the memory that they were received in.
    Kept(Kept),
    Copied(Vec<u8>),
}

impl Collected {
    /// For so many bytes from `offset` on; `spool` makes a file that nobody else sees.
    pub fn new(offset: u64, length: u64, spool: impl FnOnce() -> io::Result<File>) -> io::Result<Self> {
        let content = match usize::try_from(length) {
            Ok(size) if length <= IN_MEMORY => Content::Memory(Vec::with_capacity(size)),
            _ => Content::Spool(spool()?, 0),
        };
        Ok(Self { offset, content: Mutex::new(content), stream: None, zeroes: AtomicU64::new(0) })
    }

    /// For a stream, whose bytes are written as if they were the file's from `offset` on.
    pub fn of_stream(
        offset: u64,
        stream: Stream,
        spool: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<Self> {
        let content = if stream.length <= IN_MEMORY {
            Content::Pieces(Vec::new())
        } else {
            Content::Spool(spool()?, 0)
        };
        let content = Mutex::new(content);
        Ok(Self { offset, content, stream: Some(stream), zeroes: AtomicU64::new(0) })
    }

    /// What is in a file already.
    pub fn of(file: File, length: u64) -> Self {
        let content = Mutex::new(Content::Spool(file, length));
        Self { offset: 0, content, stream: None, zeroes: AtomicU64::new(0) }
    }

    /// The next bytes, which begin at `at`.
    pub fn push(&self, chunk: Chunk<'_>, at: u64) -> io::Result<()> {
        if chunk.is_worth_keeping()
            && let Content::Pieces(pieces) = &mut *self.lock()
        {
            pieces.push(Piece::Kept(chunk.keep()));
            return Ok(());
        }
        self.write(&chunk, at)
    }

    /// The same.
    pub fn push_kept(&self, piece: &Kept, at: u64) -> io::Result<()> {
        if piece.is_worth_keeping()
            && let Content::Pieces(pieces) = &mut *self.lock()
        {
            pieces.push(Piece::Kept(piece.clone()));
            return Ok(());
        }
        self.write(piece, at)
    }

    /// What it is a stream of, if it is one.
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Zeroes follow the stream.
    pub fn fill_up(&self, zeroes: u64) {
        self.zeroes.fetch_add(zeroes, Ordering::Relaxed);
    }

    /// How many zeroes follow the stream.
    pub fn zeroes(&self) -> u64 {
        self.zeroes.load(Ordering::Relaxed)
    }

    /// How many bytes of the file there are.
    pub fn len(&self) -> u64 {
        match &self.stream {
            Some(stream) => stream.head.len() as u64 + stream.length + self.zeroes(),
            None => self.kept(),
        }
    }

    fn kept(&self) -> u64 {
        match &*self.lock() {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Spool(_, length) => *length,
            Content::Pieces(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
        }
    }

    /// All of them, in pieces, one after the other.
    pub fn read_out(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let Some(stream) = &self.stream else { return self.read_kept(write) };
        write(&stream.head)?;
        self.decompress(stream, &mut write)?;
        each_zeroes(self.zeroes(), write)
    }

    /// The same before it is decompressed, without what is before and behind the stream.
    pub fn read_kept(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match &*self.lock() {
            Content::Memory(bytes) => write(bytes),
            Content::Pieces(pieces) => pieces.iter().try_for_each(|piece| write(piece)),
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

    fn decompress(&self, stream: &Stream, write: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        // The widest windows: whoever asked for less than these does not get more.
        let mut decoder = Decoder::new(true);
        decoder.begin(stream.algorithm, stream.length).map_err(io::Error::other)?;
        let mut room = vec![0; STEP];
        self.read_kept(|mut bytes| {
            loop {
                let done = decoder.decode(bytes, &mut room).map_err(io::Error::other)?;
                bytes = &bytes[done.taken..];
                write(&room[..done.filled])?;
                if done.filled < room.len() {
                    return Ok(());
                }
            }
        })?;
        decoder.end().map_err(io::Error::other)
    }

    /// Hands all of it to `take` if it is in memory, as it is in the file.
    pub fn in_memory<T>(&self, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        match &*self.lock() {
            _ if self.stream.is_some() => None,
            Content::Memory(bytes) => Some(take(bytes)),
            Content::Spool(..) | Content::Pieces(_) => None,
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
            Content::Pieces(pieces) => {
                let there: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
                if place != there {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                match pieces.last_mut() {
                    Some(Piece::Copied(last)) => last.extend_from_slice(bytes),
                    _ => pieces.push(Piece::Copied(bytes.to_vec())),
                }
                Ok(())
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
        if self.stream.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let place = self.place(at)?;
        match &*self.lock() {
            Content::Memory(memory) => {
                let from = usize::try_from(place).map_or(memory.len(), |place| place.min(memory.len()));
                let count = buffer.len().min(memory.len() - from);
                buffer[..count].copy_from_slice(&memory[from..from + count]);
                Ok(count)
            }
            Content::Spool(file, _) => file.read_at(buffer, place),
            Content::Pieces(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn start_writeback(&self, _: u64, _: u64) {}
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Kept(kept) => kept,
            Self::Copied(copied) => copied,
        }
    }
}

/// So many zeroes, in pieces.
pub fn each_zeroes(count: u64, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = count;
    while left > 0 {
        let count = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        write(&ZEROES[..count])?;
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use compression::{Encoder, Step};
    use protocol::compression::WireCompression;

    use super::*;

    #[test]
    fn a_stream_is_kept_as_it_came() {
        let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).collect();
        for algorithm in [Compression::Lz4, Compression::Zstd] {
            for length in [10_000, 5_000_000, content.len()] {
                let bytes = &content[..length];
                let asked = WireCompression { algorithm, ..WireCompression::default() };
                let mut encoder = Encoder::new(&asked).unwrap().unwrap();
                encoder.begin(length as u64).unwrap();
                let compressed = encoder.encode(bytes, Step::End).unwrap();
                let stream = Stream { algorithm, length: length as u64, head: b"head".to_vec() };
                let collected = Collected::of_stream(8192, stream, tempfile::tempfile).unwrap();
                for (number, piece) in compressed.chunks(8192).enumerate() {
                    collected.write(piece, 8192 * (number as u64 + 1)).unwrap();
                }
                collected.fill_up(100_000);
                assert_eq!(collected.len(), length as u64 + 100_004);
                let (mut kept, mut all) = (Vec::new(), Vec::new());
                collected.read_kept(|bytes| kept.write_all(bytes)).unwrap();
                assert!(kept == compressed, "{algorithm:?} {length}");
                collected.read_out(|bytes| all.write_all(bytes)).unwrap();
                assert!(all == [b"head", bytes, &[0; 100_000]].concat(), "{algorithm:?} {length}");
                assert!(collected.in_memory(<[u8]>::len).is_none());
                assert!(collected.read(&mut [0], 8192).is_err());
            }
        }
    }

    #[test]
    fn pieces_of_a_stream_are_kept_where_they_lie() {
        let memory = Arc::new((0..100_000_u32).map(|at| (at % 251) as u8).collect::<Vec<u8>>());
        let algorithm = Compression::Zstd;
        for length in [memory.len() as u64, IN_MEMORY + 1] {
            let stream = Stream { algorithm, length, head: Vec::new() };
            let collected = Collected::of_stream(0, stream, tempfile::tempfile).unwrap();
            let mut at = 0;
            for (number, next) in [30_000, 30_100, 30_200, 70_000, 100_000].into_iter().enumerate() {
                let chunk = Chunk::of(&memory, at..next);
                if number % 2 == 0 {
                    collected.push(chunk, at as u64).unwrap();
                } else {
                    collected.push_kept(&chunk.keep(), at as u64).unwrap();
                }
                at = next;
            }
            // Three are worth it, in memory; two are copied, as one.
            let (count, pieces) = if length <= IN_MEMORY { (4, 4) } else { (1, 1) };
            assert_eq!(Arc::strong_count(&memory), count);
            let (mut kept, mut calls) = (Vec::new(), 0);
            collected
                .read_kept(|bytes| {
                    calls += 1;
                    kept.write_all(bytes)
                })
                .unwrap();
            assert_eq!((kept == *memory, calls), (true, pieces));
            if length <= IN_MEMORY {
                assert!(collected.write(b"x", 7).is_err(), "nothing is written over");
            }
        }
    }

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
