//! Files as frames of zstd and lz4, each complete by itself, as the server writes them and as the client reads
//! them (docs/protocol.md). No I/O and no PostgreSQL.
//!
//! The C libraries allocate by `malloc`, and what they have is freed by `Drop`: nothing here can be jumped over
//! by an error of PostgreSQL's, and no `Drop` calls it.

pub mod decode;
pub mod encode;
mod lz4f;
pub mod outline;

pub use decode::{DecodeError, Decoder};
pub use encode::{EncodeError, Encoder, Step};
pub use lz4f::Decompressor as Lz4Frames;
pub use outline::Outline;

/// The largest window of a zstd frame, as a power of two: 8 MiB, what every decoder is expected to have
/// (RFC 8878, 3.1.1.1.2). The levels from 20 on have larger ones of their own, up to 128 MiB, and then tables to
/// match: a backend's memory would be 700 MB.
pub const WINDOW_LOG: u32 = 23;

/// The same where matches at a long distance were asked for: zstd's own for that, and the most that the
/// program `zstd` decompresses without being told to.
pub const LONG_WINDOW_LOG: u32 = 27;

/// Bytes in a block of an lz4 frame: as many as PostgreSQL has (basebackup_lz4.c).
pub const LZ4_BLOCK: usize = 256 * 1024;

/// The first bytes of an lz4 frame.
const LZ4_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Where a frame of lz4 says how large its blocks are (BD), and the number of 256 kB there.
const LZ4_BLOCK_SIZE: usize = 5;
const LZ4_256_KB: u8 = 5;

/// The most bytes that a frame has which is made here of so many: more than either library makes of what does not
/// get smaller.
pub const fn most(length: u64) -> u64 {
    length.saturating_add(length / 64).saturating_add(1024)
}

#[cfg(test)]
mod tests;
