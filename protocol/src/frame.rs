//! The frames of SEND_FILES_CONTENT, one in each CopyData message.
//!
//! A type byte, then fields in network byte order; strings end with NUL. The golden bytes in the
//! tests are the contract.

use bytes::{Buf, BufMut};

use crate::checksum::ChecksumAlgorithm;

/// Most bytes in a frame, its type byte included.
pub const MAX_FRAME: usize = 1 << 20;

/// Most file bytes in a data frame.
pub const MAX_DATA: usize = MAX_FRAME - 1;

/// The type byte of a data frame.
pub const DATA_TAG: u8 = b'd';
const FILE_BEGIN_TAG: u8 = b'f';
const FILE_END_TAG: u8 = b'e';
const STREAM_END_TAG: u8 = b'c';
const VANISHED_TAG: u8 = b'v';

/// A frame, borrowed from the message that carried it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `f`: a file begins.
    FileBegin(FileBegin<'a>),
    /// `d`: some of its bytes.
    Data(&'a [u8]),
    /// `c`: its stream ends, if it came as one.
    StreamEnd(StreamEnd),
    /// `e`: the file ends.
    FileEnd(FileEnd<'a>),
    /// `v`: the file was gone before its first byte, or is no longer part of a backup. The path,
    /// raw.
    Vanished(&'a [u8]),
    /// A type that this version does not know, to be skipped.
    Unknown(u8),
}

/// A file begins; what follows is exactly `length` bytes in data frames, then an end frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBegin<'a> {
    /// The file's size in bytes, by fstat of the descriptor that is read.
    pub size: u64,
    /// Where in the file the data begins.
    pub offset: u64,
    /// How many bytes of it follow, before compression.
    pub length: u64,
    /// Modification time in seconds since the Unix epoch.
    pub mtime: i64,
    /// Permission bits.
    pub mode: u32,
    /// How the data frames are compressed.
    pub compression: Compression,
    /// The path, raw.
    pub path: &'a [u8],
}

/// A stream ends: compressed bytes, for who does not decompress them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEnd {
    /// How many, in all data frames of the file.
    pub bytes: u64,
    /// CRC-32C of the frame by which the file begins, of these bytes, and of the frame that follows, by which
    /// it ends. As manifests have it, the least significant byte first.
    pub checksum: [u8; 4],
}

/// A file ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEnd<'a> {
    /// Bytes sent, before compression.
    pub bytes: u64,
    /// Pages that failed verification.
    pub checksum_failures: u32,
    /// What made the checksum.
    pub algorithm: ChecksumAlgorithm,
    /// The checksum of the bytes sent, empty without an algorithm.
    pub checksum: &'a [u8],
}

/// How data frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// LZ4.
    Lz4 = 1,
    /// Zstandard.
    Zstd = 2,
}

/// A message that is no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The message ends before the frame does.
    #[error("frame of type \"{}\" is too short", char::from(*.0))]
    Short(u8),
    /// The message goes on after the frame.
    #[error("frame of type \"{}\" has trailing bytes", char::from(*.0))]
    Trailing(u8),
    /// An empty message.
    #[error("frame is empty")]
    Empty,
    /// A number that the field cannot have.
    #[error("frame of type \"{}\" has an invalid {field}", char::from(*.tag))]
    Value {
        /// The frame's type.
        tag: u8,
        /// The field.
        field: &'static str,
    },
}

impl<'a> Frame<'a> {
    /// Reads the payload of one CopyData message.
    pub fn decode(message: &'a [u8]) -> Result<Self, FrameError> {
        let (&tag, rest) = message.split_first().ok_or(FrameError::Empty)?;
        let mut fields = Fields { tag, rest };
        let frame = match tag {
            DATA_TAG => return Ok(Self::Data(rest)),
            FILE_BEGIN_TAG => Self::FileBegin(FileBegin {
                size: fields.unsigned("file size")?,
                offset: fields.unsigned("offset")?,
                length: fields.unsigned("length")?,
                mtime: fields.int64()?,
                mode: fields.unsigned32("mode")?,
                compression: match fields.byte()? {
                    0 => Compression::None,
                    1 => Compression::Lz4,
                    2 => Compression::Zstd,
                    _ => return Err(FrameError::Value { tag, field: "compression" }),
                },
                path: fields.string()?,
            }),
            STREAM_END_TAG => {
                let bytes = fields.unsigned("number of bytes")?;
                let mut checksum = [0; 4];
                checksum.copy_from_slice(fields.take(4)?);
                Self::StreamEnd(StreamEnd { bytes, checksum })
            }
            FILE_END_TAG => {
                let bytes = fields.unsigned("number of bytes")?;
                let checksum_failures = fields.unsigned32("number of checksum failures")?;
                let algorithm = ChecksumAlgorithm::from_byte(fields.byte()?)
                    .ok_or(FrameError::Value { tag, field: "checksum algorithm" })?;
                let length = usize::from(fields.int16()?);
                if length != algorithm.len() {
                    return Err(FrameError::Value { tag, field: "checksum length" });
                }
                Self::FileEnd(FileEnd { bytes, checksum_failures, algorithm, checksum: fields.take(length)? })
            }
            VANISHED_TAG => Self::Vanished(fields.string()?),
            _ => return Ok(Self::Unknown(tag)),
        };
        if fields.rest.is_empty() { Ok(frame) } else { Err(FrameError::Trailing(tag)) }
    }

    /// Appends the frame, type byte included; an unknown frame cannot be written and appends
    /// nothing.
    pub fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::FileBegin(file) => {
                out.put_u8(FILE_BEGIN_TAG);
                out.put_u64(file.size);
                out.put_u64(file.offset);
                out.put_u64(file.length);
                out.put_i64(file.mtime);
                out.put_u32(file.mode);
                out.put_u8(file.compression as u8);
                out.put_slice(file.path);
                out.put_u8(0);
            }
            Self::Data(bytes) => {
                out.put_u8(DATA_TAG);
                out.put_slice(bytes);
            }
            Self::StreamEnd(end) => {
                out.put_u8(STREAM_END_TAG);
                out.put_u64(end.bytes);
                out.put_slice(&end.checksum);
            }
            Self::FileEnd(end) => {
                debug_assert_eq!(end.checksum.len(), end.algorithm.len());
                out.put_u8(FILE_END_TAG);
                out.put_u64(end.bytes);
                out.put_u32(end.checksum_failures);
                out.put_u8(end.algorithm as u8);
                // No checksum is longer than 64 bytes.
                out.put_u16(end.algorithm.len() as u16);
                out.put_slice(end.checksum);
            }
            Self::Vanished(path) => {
                out.put_u8(VANISHED_TAG);
                out.put_slice(path);
                out.put_u8(0);
            }
            Self::Unknown(_) => {}
        }
    }
}

/// What is left of a frame while its fields are read.
struct Fields<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(FrameError::Short(self.tag))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, FrameError> {
        Ok(self.take(1)?.get_u8())
    }

    fn int16(&mut self) -> Result<u16, FrameError> {
        Ok(self.take(2)?.get_u16())
    }

    fn int64(&mut self) -> Result<i64, FrameError> {
        Ok(self.take(8)?.get_i64())
    }

    /// An int64 that counts something.
    fn unsigned(&mut self, what: &'static str) -> Result<u64, FrameError> {
        u64::try_from(self.int64()?).map_err(|_| FrameError::Value { tag: self.tag, field: what })
    }

    /// An int32 that counts something.
    fn unsigned32(&mut self, what: &'static str) -> Result<u32, FrameError> {
        u32::try_from(self.take(4)?.get_i32()).map_err(|_| FrameError::Value { tag: self.tag, field: what })
    }

    fn string(&mut self) -> Result<&'a [u8], FrameError> {
        let end = memchr::memchr(0, self.rest).ok_or(FrameError::Short(self.tag))?;
        let string = self.take(end)?;
        self.take(1)?;
        Ok(string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Vec<(Frame<'static>, Vec<u8>)> {
        let begin = [
            &b"f"[..],
            &[0, 0, 0, 0, 0x40, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0x20, 0],
            &[0, 0, 0, 0, 0, 1, 0, 0],
            &[0, 0, 0, 0, 0x68, 0x5a, 0x1b, 0x2c],
            &[0, 0, 0x01, 0x80],
            &[2],
            b"base/5/\xff 1\0",
        ]
        .concat();
        let end =
            [&b"e"[..], &[0, 0, 0, 0, 0, 1, 0, 0], &[0, 0, 0, 3], &[1], &[0, 4], &[0xde, 0xad, 0xbe, 0xef]]
                .concat();
        let bare_end = [&b"e"[..], &[0; 8], &[0; 4], &[0], &[0, 0]].concat();
        vec![
            (
                Frame::FileBegin(FileBegin {
                    size: 1 << 30,
                    offset: 8192,
                    length: 65536,
                    mtime: 0x685a_1b2c,
                    mode: 0o600,
                    compression: Compression::Zstd,
                    path: b"base/5/\xff 1",
                }),
                begin,
            ),
            (Frame::Data(b"\0bytes"), b"d\0bytes".to_vec()),
            (Frame::Data(b""), b"d".to_vec()),
            (
                Frame::FileEnd(FileEnd {
                    bytes: 65536,
                    checksum_failures: 3,
                    algorithm: ChecksumAlgorithm::Crc32c,
                    checksum: &[0xde, 0xad, 0xbe, 0xef],
                }),
                end,
            ),
            (
                Frame::FileEnd(FileEnd {
                    bytes: 0,
                    checksum_failures: 0,
                    algorithm: ChecksumAlgorithm::None,
                    checksum: &[],
                }),
                bare_end,
            ),
            (
                Frame::StreamEnd(StreamEnd { bytes: 0x0102_0304, checksum: [0xde, 0xad, 0xbe, 0xef] }),
                [&b"c"[..], &[0, 0, 0, 0, 1, 2, 3, 4], &[0xde, 0xad, 0xbe, 0xef]].concat(),
            ),
            (Frame::Vanished(b"base/5/1"), b"vbase/5/1\0".to_vec()),
        ]
    }

    #[test]
    fn golden_bytes_from_both_sides() {
        for (frame, bytes) in golden() {
            let mut written = Vec::new();
            frame.encode(&mut written);
            assert_eq!(written, bytes, "{frame:?}");
            assert_eq!(Frame::decode(&bytes), Ok(frame));
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        for (frame, bytes) in golden() {
            if matches!(frame, Frame::Data(_)) {
                continue;
            }
            for length in 0..bytes.len() {
                assert!(Frame::decode(&bytes[..length]).is_err(), "{frame:?} cut at {length}");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert_eq!(Frame::decode(&longer), Err(FrameError::Trailing(bytes[0])));
        }
    }

    #[test]
    fn unknown_types_are_told_apart_from_damage() {
        assert_eq!(Frame::decode(b"zanything"), Ok(Frame::Unknown(b'z')));
        assert_eq!(Frame::decode(b""), Err(FrameError::Empty));
        let negative = [&b"e"[..], &[0xff; 8], &[0; 4], &[0], &[0, 0]].concat();
        assert_eq!(Frame::decode(&negative), Err(FrameError::Value { tag: b'e', field: "number of bytes" }));
    }
}
