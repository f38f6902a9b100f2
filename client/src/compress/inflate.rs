//! What the server's streams hold, in memory that can be handed on without a copy.

use std::sync::Arc;

use compression::{DecodeError, Decoder};
use protocol::compression::WireCompression;
use protocol::frame::Compression;

use crate::chunk::Chunk;
use crate::error::{Error, Result};

/// Bytes that are decompressed before they are handed on: still in the second-level cache when they are
/// checksummed and written.
const ROOM: usize = 256 << 10;

/// Reads one stream after the other.
#[derive(Debug)]
pub struct Inflater {
    decoder: Decoder,
    room: Arc<Vec<u8>>,
    filled: usize,
    /// Others that somebody kept bytes of, to be used again.
    others: Vec<Arc<Vec<u8>>>,
}

/// Why a stream came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// The stream is to blame: it was damaged, or is not what was announced.
    Stream(DecodeError),
    /// Something at this end.
    Here(Error),
}

impl Inflater {
    /// For streams of a server that was asked for this.
    pub fn new(asked: &WireCompression) -> Self {
        Self { decoder: Decoder::new(asked.long), room: room(), filled: 0, others: Vec::new() }
    }

    /// Begins with the stream of a file of `length` bytes.
    pub fn begin(&mut self, algorithm: Compression, length: u64) -> std::result::Result<(), Failure> {
        self.filled = 0;
        Ok(self.decoder.begin(algorithm, length)?)
    }

    /// Decompresses some of the stream, and hands on what is worth it.
    pub fn inflate(
        &mut self,
        mut stream: &[u8],
        mut hand_on: impl FnMut(Chunk<'_>) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        loop {
            // Never a copy: nobody keeps any of it.
            let done = self.decoder.decode(stream, &mut Arc::make_mut(&mut self.room)[self.filled..])?;
            self.filled += done.filled;
            stream = &stream[done.taken..];
            if self.filled < ROOM {
                return Ok(());
            }
            self.hand_on(&mut hand_on)?;
        }
    }

    /// The file ends here, and so must the stream.
    pub fn end(
        &mut self,
        mut hand_on: impl FnMut(Chunk<'_>) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        self.hand_on(&mut hand_on)?;
        Ok(self.decoder.end()?)
    }

    fn hand_on(
        &mut self,
        hand_on: &mut impl FnMut(Chunk<'_>) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        let filled = std::mem::take(&mut self.filled);
        if filled > 0 {
            hand_on(Chunk::of(&self.room, 0..filled)).map_err(Failure::Here)?;
        }
        if Arc::get_mut(&mut self.room).is_none() {
            let free = self.others.iter_mut().position(|other| Arc::get_mut(other).is_some());
            let next = free.map_or_else(room, |place| self.others.swap_remove(place));
            self.others.push(std::mem::replace(&mut self.room, next));
        }
        Ok(())
    }
}

fn room() -> Arc<Vec<u8>> {
    Arc::new(vec![0; ROOM])
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::OutOfMemory => Self::Here(Error::local("out of memory")),
            error => Self::Stream(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Kept;
    use compression::{Encoder, Step};

    fn stream(asked: &WireCompression, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(asked).unwrap().unwrap();
        encoder.begin(bytes.len() as u64).unwrap();
        encoder.encode(bytes, Step::End).unwrap().to_vec()
    }

    #[test]
    fn bytes_are_handed_on_in_full_rooms_and_can_be_kept() {
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).take(5 * ROOM + 1234).collect();
        for algorithm in [Compression::Lz4, Compression::Zstd] {
            let asked = WireCompression { algorithm, ..WireCompression::default() };
            let stream = stream(&asked, &bytes);
            let mut inflater = Inflater::new(&asked);
            for _ in 0..2 {
                inflater.begin(algorithm, bytes.len() as u64).unwrap();
                let mut kept: Vec<Kept> = Vec::new();
                let mut keep = |chunk: Chunk<'_>| {
                    kept.push(chunk.keep());
                    Ok(())
                };
                for piece in stream.chunks(8192) {
                    inflater.inflate(piece, &mut keep).unwrap();
                }
                inflater.end(&mut keep).unwrap();
                let lengths: Vec<_> = kept.iter().map(|kept| kept.len()).collect();
                assert_eq!(lengths, [ROOM, ROOM, ROOM, ROOM, ROOM, 1234]);
                assert!(kept.iter().flat_map(|kept| kept.iter()).eq(&bytes));
            }
            // The second time in the memory of the first.
            assert!(inflater.others.len() <= 6);
        }
    }

    #[test]
    fn whose_fault_it_is() {
        let asked = WireCompression { algorithm: Compression::Zstd, ..WireCompression::default() };
        let stream = stream(&asked, &[7; 2 * ROOM]);
        let mut inflater = Inflater::new(&asked);
        inflater.begin(Compression::Zstd, 2 * ROOM as u64).unwrap();
        let full = |_: Chunk<'_>| Err(Error::local("disk full"));
        assert!(matches!(inflater.inflate(&stream, full), Err(Failure::Here(_))));
        inflater.begin(Compression::Zstd, 100).unwrap();
        let failure = inflater.inflate(&stream, |_| Ok(())).unwrap_err();
        assert!(matches!(failure, Failure::Stream(DecodeError::TooLong)));
        inflater.begin(Compression::Zstd, 2 * ROOM as u64).unwrap();
        inflater.inflate(&stream[..10], |_| Ok(())).unwrap();
        assert!(matches!(inflater.end(|_| Ok(())), Err(Failure::Stream(DecodeError::Short))));
    }
}
