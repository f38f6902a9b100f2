//! Frames into files, from a server that need not be a friend: bounded memory, and not a byte more than the
//! file was announced with.

use std::fmt;

use protocol::frame::Compression;
use zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use crate::lz4f::{self, Decompressor};
use crate::{LONG_WINDOW_LOG, LZ4_256_KB, LZ4_BLOCK_SIZE, LZ4_MAGIC, WINDOW_LOG, most};

/// Why bytes are no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The library did not get its memory.
    #[error("out of memory")]
    OutOfMemory,
    /// It is no frame of the announced kind, or a damaged one.
    #[error("could not decompress data: {0}")]
    Damaged(&'static str),
    /// The frame wants more memory than the server's frames do.
    #[error("compressed data needs a larger window than the server was asked to use")]
    Window,
    /// It does not end where the file does.
    #[error("compressed data has more bytes than were announced")]
    TooLong,
    /// Something comes after the frame.
    #[error("compressed data goes on after its end")]
    Trailing,
    /// The frame ends early, or is not there to its end.
    #[error("compressed data ends early")]
    Short,
}

/// What became of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// So many of the input are used up.
    pub taken: usize,
    /// So many of the output are filled.
    pub filled: usize,
}

/// Reads one frame after the other, in memory that is used for all of them.
#[derive(Default)]
pub struct Decoder {
    zstd: Option<DCtx<'static>>,
    lz4: Option<Decompressor>,
    long: bool,
    frame: Option<Frame>,
}

/// A frame that is being read.
#[derive(Debug)]
struct Frame {
    algorithm: Compression,
    /// Bytes of the file that are still to come.
    left: u64,
    /// Compressed bytes that the library has taken.
    taken: u64,
    /// The most that it may take.
    most: u64,
    /// The output was filled, so that there may be more of what was taken.
    has_more: bool,
    ended: bool,
}

impl Decoder {
    /// For frames of servers that were or were not asked for matches at a long distance, which have larger
    /// windows.
    pub fn new(long: bool) -> Self {
        Self { long, ..Self::default() }
    }

    /// Begins with the frame of a file of `length` bytes. One that was begun before and not ended is forgotten.
    pub fn begin(&mut self, algorithm: Compression, length: u64) -> Result<(), DecodeError> {
        match algorithm {
            Compression::None => return Err(DecodeError::Damaged("not compressed")),
            Compression::Zstd => {
                let limit = if self.long { LONG_WINDOW_LOG } else { WINDOW_LOG };
                let context = match &mut self.zstd {
                    Some(context) => context,
                    none => none.insert(DCtx::try_create().ok_or(DecodeError::OutOfMemory)?),
                };
                context.reset(ResetDirective::SessionOnly).map_err(zstd_error)?;
                context.set_parameter(DParameter::WindowLogMax(limit)).map_err(zstd_error)?;
            }
            Compression::Lz4 => match &mut self.lz4 {
                Some(context) => context.reset(),
                none => *none = Some(Decompressor::new()?),
            },
        }
        self.frame = Some(Frame {
            algorithm,
            left: length,
            taken: 0,
            // A frame can go on for ever without a byte for the file.
            most: most(length),
            has_more: false,
            ended: false,
        });
        Ok(())
    }

    /// Decompresses `input` until all of it is taken or the output is full. As long as that is full there may
    /// be more, with the rest of the input or with none.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Decoded, DecodeError> {
        let frame = self.frame.as_mut().ok_or(DecodeError::Trailing)?;
        let mut done = Decoded { taken: 0, filled: 0 };
        while !frame.ended && done.filled < output.len() && (done.taken < input.len() || frame.has_more) {
            let rest = &input[done.taken..];
            let room = &mut output[done.filled..];
            let length = room.len();
            let (taken, filled, ended) = match (frame.algorithm, &mut self.zstd, &mut self.lz4) {
                (Compression::Zstd, Some(context), _) => zstd_decode(context, rest, room)?,
                (Compression::Lz4, _, Some(context)) => {
                    frame.look_at_lz4_head(rest)?;
                    context.decompress(rest, room)?
                }
                _ => return Err(DecodeError::Damaged("not compressed")),
            };
            if taken == 0 && filled == 0 && !rest.is_empty() && !ended {
                return Err(DecodeError::Damaged("no progress"));
            }
            frame.count(taken, filled)?;
            frame.has_more = filled == length;
            frame.ended = ended;
            done.taken += taken;
            done.filled += filled;
        }
        if frame.ended && done.taken < input.len() { Err(DecodeError::Trailing) } else { Ok(done) }
    }

    /// The file ends here.
    pub fn end(&mut self) -> Result<(), DecodeError> {
        match self.frame.take() {
            Some(frame) if frame.ended && frame.left == 0 => Ok(()),
            _ => Err(DecodeError::Short),
        }
    }
}

impl Frame {
    fn count(&mut self, taken: usize, filled: usize) -> Result<(), DecodeError> {
        self.taken += taken as u64;
        self.left = self.left.checked_sub(filled as u64).ok_or(DecodeError::TooLong)?;
        if self.taken > self.most { Err(DecodeError::TooLong) } else { Ok(()) }
    }

    /// Before the library sees them: it would get memory for blocks as large as the frame says.
    fn look_at_lz4_head(&self, input: &[u8]) -> Result<(), DecodeError> {
        let seen = usize::try_from(self.taken).unwrap_or(usize::MAX);
        for (at, byte) in (seen..=LZ4_BLOCK_SIZE).zip(input) {
            match LZ4_MAGIC.get(at) {
                Some(magic) if magic != byte => return Err(DecodeError::Damaged("not an lz4 frame")),
                None if at == LZ4_BLOCK_SIZE && byte >> 4 & 7 > LZ4_256_KB => {
                    return Err(DecodeError::Window);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn zstd_decode(
    context: &mut DCtx<'static>,
    input: &[u8],
    output: &mut [u8],
) -> Result<(usize, usize, bool), DecodeError> {
    let mut input = InBuffer::around(input);
    let mut output = OutBuffer::around(output);
    let wanted = context.decompress_stream(&mut output, &mut input).map_err(zstd_error)?;
    Ok((input.pos(), output.pos(), wanted == 0))
}

fn zstd_error(code: usize) -> DecodeError {
    let is = |kind| zstd_safe::is_error_kind(code, kind);
    if is(ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
        DecodeError::OutOfMemory
    } else if is(ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge) {
        DecodeError::Window
    } else {
        DecodeError::Damaged(zstd_safe::get_error_name(code))
    }
}

impl From<lz4f::Failure> for DecodeError {
    fn from(failure: lz4f::Failure) -> Self {
        if failure.is_out_of_memory() { Self::OutOfMemory } else { Self::Damaged(failure.0) }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("long", &self.long)
            .field("frame", &self.frame)
            .finish_non_exhaustive()
    }
}
