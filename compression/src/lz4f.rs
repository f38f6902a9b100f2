//! The frame functions of lz4's C library, made safe.

// The bindings are all that there is; a context cannot be used without them.
#![allow(unsafe_code)]

use std::ffi::CStr;

use lz4_sys::{
    BlockChecksum, BlockMode, BlockSize, ContentChecksum, FrameType, LZ4F_VERSION, LZ4F_compressBegin,
    LZ4F_compressBound, LZ4F_compressEnd, LZ4F_compressUpdate, LZ4F_createCompressionContext,
    LZ4F_createDecompressionContext, LZ4F_decompress, LZ4F_flush, LZ4F_freeCompressionContext,
    LZ4F_freeDecompressionContext, LZ4F_getErrorName, LZ4F_isError, LZ4F_resetDecompressionContext,
    LZ4FCompressionContext, LZ4FDecompressionContext, LZ4FFrameInfo, LZ4FPreferences,
};

/// Most bytes of a frame's header (LZ4F_HEADER_SIZE_MAX).
const HEADER: usize = 19;

/// What the library says of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure(pub &'static str);

impl Failure {
    /// Whether it is that memory could not be had.
    pub fn is_out_of_memory(self) -> bool {
        self.0 == "ERROR_allocation_failed"
    }
}

fn check(code: usize) -> Result<usize, Failure> {
    // SAFETY: both only look at the number; the names are static and ASCII.
    unsafe {
        if LZ4F_isError(code) == 0 {
            Ok(code)
        } else {
            Err(Failure(CStr::from_ptr(LZ4F_getErrorName(code)).to_str().unwrap_or("unknown error")))
        }
    }
}

/// Makes frames, one after the other.
pub struct Compressor {
    context: LZ4FCompressionContext,
    level: u32,
    preferences: LZ4FPreferences,
}

// SAFETY: a context is memory that only its owner refers to.
unsafe impl Send for Compressor {}

impl Compressor {
    /// A context for frames of this level, 0 to 12.
    pub fn new(level: u32) -> Result<Self, Failure> {
        let mut context = LZ4FCompressionContext(std::ptr::null_mut());
        // SAFETY: makes a context, or fails.
        check(unsafe { LZ4F_createCompressionContext(&mut context, LZ4F_VERSION) })?;
        Ok(Self { context, level, preferences: preferences(level, 0) })
    }

    /// Begins a frame of `length` bytes, and forgets one that was not ended: appends its header.
    pub fn begin(&mut self, length: u64, output: &mut Vec<u8>) -> Result<(), Failure> {
        self.preferences = preferences(self.level, length);
        output.reserve(HEADER);
        let spare = output.spare_capacity_mut();
        // SAFETY: the room is writable for its length; the context and the preferences are ours.
        let code = unsafe {
            LZ4F_compressBegin(self.context, spare.as_mut_ptr().cast(), spare.len(), &self.preferences)
        };
        // SAFETY: as many bytes were written.
        check(code).map(|count| unsafe { output.set_len(output.len() + count) })
    }

    /// Appends what comes of more bytes.
    pub fn update(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Result<(), Failure> {
        self.reserve(bytes.len(), output);
        let spare = output.spare_capacity_mut();
        // SAFETY: as above, with as much room as LZ4F_compressBound wants; the bytes are readable.
        let code = unsafe {
            LZ4F_compressUpdate(
                self.context,
                spare.as_mut_ptr().cast(),
                spare.len(),
                bytes.as_ptr(),
                bytes.len(),
                std::ptr::null(),
            )
        };
        // SAFETY: as many bytes were written.
        check(code).map(|count| unsafe { output.set_len(output.len() + count) })
    }

    /// Appends all that is not yet in the output.
    pub fn flush(&mut self, output: &mut Vec<u8>) -> Result<(), Failure> {
        self.reserve(0, output);
        let spare = output.spare_capacity_mut();
        // SAFETY: as above.
        let code =
            unsafe { LZ4F_flush(self.context, spare.as_mut_ptr().cast(), spare.len(), std::ptr::null()) };
        // SAFETY: as many bytes were written.
        check(code).map(|count| unsafe { output.set_len(output.len() + count) })
    }

    /// Ends the frame.
    pub fn end(&mut self, output: &mut Vec<u8>) -> Result<(), Failure> {
        self.reserve(0, output);
        let spare = output.spare_capacity_mut();
        // SAFETY: as above.
        let code = unsafe {
            LZ4F_compressEnd(self.context, spare.as_mut_ptr().cast(), spare.len(), std::ptr::null())
        };
        // SAFETY: as many bytes were written.
        check(code).map(|count| unsafe { output.set_len(output.len() + count) })
    }

    fn reserve(&self, length: usize, output: &mut Vec<u8>) {
        // SAFETY: arithmetic.
        output.reserve(unsafe { LZ4F_compressBound(length, &self.preferences) });
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used no more.
        unsafe { LZ4F_freeCompressionContext(self.context) };
    }
}

/// Linked blocks of 256 kB, as in basebackup_lz4.c, compressed as soon as they are given.
fn preferences(level: u32, length: u64) -> LZ4FPreferences {
    LZ4FPreferences {
        frame_info: LZ4FFrameInfo {
            block_size_id: BlockSize::Max256KB,
            block_mode: BlockMode::Linked,
            content_checksum_flag: ContentChecksum::NoChecksum,
            frame_type: FrameType::Frame,
            content_size: length,
            dict_id: 0,
            block_checksum_flag: BlockChecksum::NoBlockChecksum,
        },
        compression_level: level,
        auto_flush: 1,
        favor_dec_speed: 0,
        reserved: [0; 3],
    }
}

/// Reads frames, one after the other.
pub struct Decompressor(LZ4FDecompressionContext);

// SAFETY: a context is memory that only its owner refers to.
unsafe impl Send for Decompressor {}

impl Decompressor {
    /// A context.
    pub fn new() -> Result<Self, Failure> {
        let mut context = LZ4FDecompressionContext(std::ptr::null_mut());
        // SAFETY: makes a context, or fails.
        check(unsafe { LZ4F_createDecompressionContext(&mut context, LZ4F_VERSION) })?;
        Ok(Self(context))
    }

    /// Forgets a frame that was not read to its end.
    pub fn reset(&mut self) {
        // SAFETY: the context is ours.
        unsafe { LZ4F_resetDecompressionContext(self.0) };
    }

    /// Takes some of `input` and fills some of `output`: how much of each, and whether the frame has ended.
    pub fn decompress(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize, bool), Failure> {
        let (mut taken, mut filled) = (input.len(), output.len());
        // SAFETY: the context is ours, the input readable, the output writable, each for its length.
        let code = unsafe {
            LZ4F_decompress(
                self.0,
                output.as_mut_ptr(),
                &mut filled,
                input.as_ptr(),
                &mut taken,
                std::ptr::null(),
            )
        };
        check(code).map(|hint| (taken, filled, hint == 0))
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used no more.
        unsafe { LZ4F_freeDecompressionContext(self.0) };
    }
}
