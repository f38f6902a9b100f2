//! Frames that are not decompressed, followed from block to block: whether they are one frame of the announced kind,
//! of as many bytes as were announced, and nothing else.
//!
//! What is in the blocks is not looked at. That it is as long as the frame says, whoever decompresses it checks.

use protocol::frame::Compression;

use crate::{DecodeError, LONG_WINDOW_LOG, LZ4_256_KB, LZ4_BLOCK_SIZE, LZ4_MAGIC, WINDOW_LOG};

/// RFC 8878, 3.1.1.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// The magic number and the byte that says what else the head has: in lz4's frames as in zstd's.
const DESCRIPTOR: usize = 4;

/// Bytes of the checksums that a frame may have.
const CHECKSUM: u64 = 4;

/// Follows one frame.
#[derive(Debug)]
pub struct Outline {
    algorithm: Compression,
    /// The bytes that its head must announce.
    length: u64,
    window_log: u32,
    next: Next,
    /// What has come of the head, or of the head of a block,
    head: Vec<u8>,
    /// and how many bytes it has.
    needed: usize,
    /// Bytes that come before anything that has to be looked at.
    skip: u64,
    has_block_checksums: bool,
    has_checksum: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Head,
    Block,
    Nothing,
}

impl Outline {
    /// Of the frame of a file of `length` bytes, by a server that was or was not asked for matches at a long
    /// distance.
    pub fn new(algorithm: Compression, length: u64, long: bool) -> Self {
        Self {
            algorithm,
            length,
            window_log: if long { LONG_WINDOW_LOG } else { WINDOW_LOG },
            next: Next::Head,
            head: Vec::new(),
            needed: DESCRIPTOR + 1,
            skip: 0,
            has_block_checksums: false,
            has_checksum: false,
        }
    }

    /// The frame's next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), DecodeError> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
                self.skip -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            if self.next == Next::Nothing {
                return Err(DecodeError::Trailing);
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(self.needed - self.head.len()));
            self.head.extend_from_slice(taken);
            bytes = rest;
            if self.head.len() == self.needed {
                self.step()?;
            }
        }
        Ok(())
    }

    /// No more of it comes.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.next == Next::Nothing && self.skip == 0 { Ok(()) } else { Err(DecodeError::Short) }
    }

    fn step(&mut self) -> Result<(), DecodeError> {
        let block = match (self.next, self.algorithm) {
            (Next::Head, Compression::Zstd) => return self.zstd_head(),
            (Next::Head, Compression::Lz4) => return self.lz4_head(),
            (Next::Block, Compression::Zstd) => self.zstd_block()?,
            (Next::Block, Compression::Lz4) => self.lz4_block(),
            _ => return Err(DecodeError::Damaged("not compressed")),
        };
        self.head.clear();
        match block {
            Some((length, is_last)) => {
                self.skip = length;
                if is_last {
                    self.ended();
                }
            }
            None => self.ended(),
        }
        Ok(())
    }

    fn ended(&mut self) {
        self.next = Next::Nothing;
        if self.has_checksum {
            self.skip += CHECKSUM;
        }
    }

    /// From here on there are blocks, with heads of so many bytes.
    fn blocks(&mut self, head: usize) {
        self.next = Next::Block;
        self.head.clear();
        self.needed = head;
    }

    /// RFC 8878, 3.1.1.1.
    fn zstd_head(&mut self) -> Result<(), DecodeError> {
        let descriptor = self.head[DESCRIPTOR];
        if self.head[..DESCRIPTOR] != ZSTD_MAGIC {
            return Err(DecodeError::Damaged("not a zstd frame"));
        }
        if descriptor & 0b0000_1011 != 0 {
            return Err(DecodeError::Damaged("a dictionary, or what is reserved"));
        }
        let is_single = descriptor & 0b0010_0000 != 0;
        let (window, length) =
            (usize::from(!is_single), [usize::from(is_single), 2, 4, 8][usize::from(descriptor >> 6)]);
        if length == 0 {
            return Err(DecodeError::Damaged("no length"));
        }
        let needed = DESCRIPTOR + 1 + window + length;
        if self.needed < needed {
            self.needed = needed;
            return Ok(());
        }
        let announced = little_endian(&self.head[needed - length..]) + if length == 2 { 256 } else { 0 };
        self.check_length(announced)?;
        let size = if is_single {
            announced
        } else {
            let byte = u64::from(self.head[DESCRIPTOR + 1]);
            let base = 1 << (10 + (byte >> 3));
            base + base / 8 * (byte & 7)
        };
        if size > 1 << self.window_log {
            return Err(DecodeError::Window);
        }
        self.has_checksum = descriptor & 0b0000_0100 != 0;
        self.blocks(3);
        Ok(())
    }

    /// How much follows a block's head, and whether it is the last (RFC 8878, 3.1.1.2).
    fn zstd_block(&self) -> Result<Option<(u64, bool)>, DecodeError> {
        let head = little_endian(&self.head);
        let (is_last, size) = (head & 1 != 0, head >> 3);
        match head >> 1 & 3 {
            0 | 2 => Ok(Some((size, is_last))),
            1 => Ok(Some((1, is_last))),
            _ => Err(DecodeError::Damaged("a block of a reserved type")),
        }
    }

    /// The format's own description, lz4_Frame_format.md.
    fn lz4_head(&mut self) -> Result<(), DecodeError> {
        let descriptor = self.head[DESCRIPTOR];
        if self.head[..DESCRIPTOR] != LZ4_MAGIC {
            return Err(DecodeError::Damaged("not an lz4 frame"));
        }
        if descriptor & 0b1100_0011 != 0b0100_0000 {
            return Err(DecodeError::Damaged("a dictionary, or what is reserved"));
        }
        if descriptor & 0b0000_1000 == 0 {
            return Err(DecodeError::Damaged("no length"));
        }
        // The size of blocks, the length, the head's own checksum.
        let needed = LZ4_BLOCK_SIZE + 1 + 8 + 1;
        if self.needed < needed {
            self.needed = needed;
            return Ok(());
        }
        if self.head[LZ4_BLOCK_SIZE] >> 4 & 7 > LZ4_256_KB {
            return Err(DecodeError::Window);
        }
        self.check_length(little_endian(&self.head[LZ4_BLOCK_SIZE + 1..needed - 1]))?;
        self.has_block_checksums = descriptor & 0b0001_0000 != 0;
        self.has_checksum = descriptor & 0b0000_0100 != 0;
        self.blocks(4);
        Ok(())
    }

    /// Nothing where the frame ends.
    fn lz4_block(&self) -> Option<(u64, bool)> {
        match little_endian(&self.head) {
            0 => None,
            // The highest bit says whether it is compressed.
            head => {
                let checksum = if self.has_block_checksums { CHECKSUM } else { 0 };
                Some(((head & 0x7FFF_FFFF) + checksum, false))
            }
        }
    }

    fn check_length(&self, announced: u64) -> Result<(), DecodeError> {
        if announced == self.length { Ok(()) } else { Err(DecodeError::Damaged("another length")) }
    }
}

/// A number of up to eight bytes.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use protocol::compression::WireCompression;

    use super::*;
    use crate::{Encoder, Step};

    fn stream(algorithm: Compression, bytes: &[u8]) -> Vec<u8> {
        let asked = WireCompression { algorithm, ..WireCompression::default() };
        let mut encoder = Encoder::new(&asked).unwrap().unwrap();
        encoder.begin(bytes.len() as u64).unwrap();
        let mut stream = Vec::new();
        let mut pieces = bytes.chunks(100_000).peekable();
        while let Some(piece) = pieces.next() {
            let step = if pieces.peek().is_some() { Step::Continue } else { Step::End };
            stream.extend_from_slice(encoder.encode(piece, step).unwrap());
        }
        stream
    }

    fn follow(algorithm: Compression, length: u64, stream: &[u8], step: usize) -> Result<(), DecodeError> {
        let mut outline = Outline::new(algorithm, length, false);
        stream.chunks(step).try_for_each(|piece| outline.push(piece)).and_then(|()| outline.end())
    }

    #[test]
    fn streams_of_all_lengths() {
        let content: Vec<u8> = (0..700_000_u32).flat_map(|number| (number / 3).to_le_bytes()).collect();
        for algorithm in [Compression::Lz4, Compression::Zstd] {
            for length in [1, 200, 255, 256, 300, 65_535, 65_536, 70_000, 131_072, 1_000_000, content.len()] {
                let stream = stream(algorithm, &content[..length]);
                for step in [1, 7, 8192, stream.len()] {
                    follow(algorithm, length as u64, &stream, step).unwrap();
                }
                let length = length as u64;
                assert!(follow(algorithm, length + 1, &stream, 8192).is_err());
                let another = [&stream[..], &stream].concat();
                assert_eq!(follow(algorithm, length, &another, 8192), Err(DecodeError::Trailing));
                for cut in [1, 2, stream.len() / 2, stream.len() - 1] {
                    let cut = &stream[..stream.len() - cut];
                    assert_eq!(follow(algorithm, length, cut, 8192), Err(DecodeError::Short));
                }
            }
        }
    }

    #[test]
    fn heads_that_are_no_frames_of_ours() {
        let zstd = stream(Compression::Zstd, &[7; 10_000]);
        let lz4 = stream(Compression::Lz4, &[7; 10_000]);
        for bit in 0..5 * 8 {
            for (algorithm, stream) in [(Compression::Zstd, &zstd), (Compression::Lz4, &lz4)] {
                let mut bad = stream.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                // That there is a checksum, or that blocks do not depend on each other, may be so or not.
                if bit / 8 < 4 || bit % 8 < 2 {
                    assert!(follow(algorithm, 10_000, &bad, 8192).is_err(), "{algorithm:?}, bit {bit}");
                } else {
                    let _ = follow(algorithm, 10_000, &bad, 8192);
                }
            }
        }
        assert!(follow(Compression::Zstd, 10_000, &lz4, 8192).is_err());
        assert!(follow(Compression::Lz4, 10_000, &zstd, 8192).is_err());
        assert!(follow(Compression::None, 10_000, &zstd, 8192).is_err());
        // A window of 16 MiB, of a length of 8 bytes.
        let wide = [&ZSTD_MAGIC[..], &[0b1100_0000, 14 << 3], &10_000_u64.to_le_bytes(), &[1, 0, 0]].concat();
        assert_eq!(follow(Compression::Zstd, 10_000, &wide, 8192), Err(DecodeError::Window));
        assert_eq!(Outline::new(Compression::Zstd, 10_000, true).push(&wide), Ok(()));
        let mut wide = lz4;
        wide[LZ4_BLOCK_SIZE] = 7 << 4;
        assert_eq!(follow(Compression::Lz4, 10_000, &wide, 8192), Err(DecodeError::Window));
    }
}
