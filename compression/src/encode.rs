//! Files into frames.

use std::fmt;

use protocol::compression::WireCompression;
use protocol::frame::Compression;
use zstd_safe::zstd_sys::{ZSTD_EndDirective, ZSTD_ErrorCode};
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective};

use crate::lz4f::{self, Compressor};
use crate::{LONG_WINDOW_LOG, WINDOW_LOG};

/// The first level of zstd whose own window is larger than [`WINDOW_LOG`]'s.
const FIRST_WIDE_LEVEL: i32 = 20;

/// Most bytes of a block of a zstd frame, which may be held back until it is full.
const ZSTD_BLOCK: usize = 128 * 1024;

/// Why nothing could be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The library did not get the memory that the level takes.
    #[error("out of memory")]
    OutOfMemory,
    /// What should not happen.
    #[error("could not compress data: {0}")]
    Library(&'static str),
}

/// What is to become of the bytes that are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// More come; some of the output may come with these.
    Continue,
    /// More come, but all of the output is wanted now.
    Flush,
    /// They are the frame's last.
    End,
}

/// Makes one frame after the other, in memory that is used for all of them.
pub struct Encoder {
    library: Library,
    output: Vec<u8>,
    /// The output begins with the header of a frame that was not handed out yet.
    has_header: bool,
}

enum Library {
    Zstd(CCtx<'static>),
    Lz4(Compressor),
}

impl Encoder {
    /// Contexts for what was asked for; `None` if that is no compression.
    pub fn new(compression: &WireCompression) -> Result<Option<Self>, EncodeError> {
        let level = compression.level();
        let library = match compression.algorithm {
            Compression::None => return Ok(None),
            Compression::Lz4 => Library::Lz4(Compressor::new(u32::try_from(level).unwrap_or(0))?),
            Compression::Zstd => Library::Zstd(zstd_context(level, compression.long)?),
        };
        Ok(Some(Self { library, output: Vec::new(), has_header: false }))
    }

    /// Begins a frame of exactly `length` bytes, which its header says. One that was begun before and not ended
    /// is forgotten.
    pub fn begin(&mut self, length: u64) -> Result<(), EncodeError> {
        self.output.clear();
        match &mut self.library {
            Library::Zstd(context) => {
                context.reset(ResetDirective::SessionOnly).map_err(zstd_error)?;
                context.set_pledged_src_size(Some(length)).map_err(zstd_error)?;
            }
            Library::Lz4(compressor) => compressor.begin(length, &mut self.output)?,
        }
        self.has_header = true;
        Ok(())
    }

    /// Compresses the frame's next bytes and returns what has come of it; more than went in, at worst, by little
    /// and by a block that was held back.
    pub fn encode(&mut self, bytes: &[u8], step: Step) -> Result<&[u8], EncodeError> {
        if !std::mem::take(&mut self.has_header) {
            self.output.clear();
        }
        match &mut self.library {
            Library::Zstd(context) => zstd_encode(context, bytes, step, &mut self.output)?,
            Library::Lz4(compressor) => {
                compressor.update(bytes, &mut self.output)?;
                match step {
                    Step::Continue => {}
                    Step::Flush => compressor.flush(&mut self.output)?,
                    Step::End => compressor.end(&mut self.output)?,
                }
            }
        }
        Ok(&self.output)
    }

    /// Bytes of its memory, where the library tells: lz4's has about a megabyte at any level.
    pub fn memory(&self) -> Option<usize> {
        match &self.library {
            Library::Zstd(context) => Some(context.sizeof() + self.output.capacity()),
            Library::Lz4(_) => None,
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("output", &self.output.len()).finish_non_exhaustive()
    }
}

fn zstd_context(level: i32, long: bool) -> Result<CCtx<'static>, EncodeError> {
    let mut context = CCtx::try_create().ok_or(EncodeError::OutOfMemory)?;
    let mut set = |parameter| context.set_parameter(parameter).map_err(zstd_error);
    set(CParameter::CompressionLevel(level))?;
    if long {
        set(CParameter::EnableLongDistanceMatching(true))?;
        set(CParameter::WindowLog(LONG_WINDOW_LOG))?;
    } else if level >= FIRST_WIDE_LEVEL {
        set(CParameter::WindowLog(WINDOW_LOG))?;
    }
    Ok(context)
}

fn zstd_encode(
    context: &mut CCtx<'static>,
    bytes: &[u8],
    step: Step,
    output: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let directive = match step {
        Step::Continue => ZSTD_EndDirective::ZSTD_e_continue,
        Step::Flush => ZSTD_EndDirective::ZSTD_e_flush,
        Step::End => ZSTD_EndDirective::ZSTD_e_end,
    };
    // All at once, as a rule: with as much room zstd needs no copy of a frame that it gets in one piece.
    output.reserve(zstd_safe::compress_bound(bytes.len() + ZSTD_BLOCK));
    let mut input = InBuffer::around(bytes);
    loop {
        let filled = output.len();
        let mut room = OutBuffer::around_pos(output, filled);
        let held_back = context.compress_stream2(&mut room, &mut input, directive).map_err(zstd_error)?;
        let done = match step {
            Step::Continue => input.pos() == bytes.len(),
            Step::Flush | Step::End => held_back == 0,
        };
        if done {
            return Ok(());
        }
        output.reserve(ZSTD_BLOCK);
    }
}

fn zstd_error(code: usize) -> EncodeError {
    if zstd_safe::is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
        EncodeError::OutOfMemory
    } else {
        EncodeError::Library(zstd_safe::get_error_name(code))
    }
}

impl From<lz4f::Failure> for EncodeError {
    fn from(failure: lz4f::Failure) -> Self {
        if failure.is_out_of_memory() { Self::OutOfMemory } else { Self::Library(failure.0) }
    }
}
