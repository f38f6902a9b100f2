//! Memory that one transfer of a session leaves to the next. Otherwise each command would have its buffers, and the tables of
//! its compressor, as fresh pages from the kernel: with an archive that is fetched in parts of 8 MB they were most of what the
//! kernel did for the server.

use std::cell::Cell;

use crate::stream::compress::Compressor;

/// Most bytes of a compressor that is kept: those of the levels up to 9 or so. A session that has nothing to do should not hold
/// what the highest levels take.
const MOST: usize = 16 << 20;

thread_local! {
    static LEFT: Cell<Kept> = const { Cell::new(Kept { outbox: Vec::new(), compressor: None }) };
}

/// What is kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// The outbox's.
    pub outbox: Vec<u8>,
    /// As it was asked for last.
    pub compressor: Option<Compressor>,
}

/// What the last transfer has left, if there was one.
pub fn take() -> Kept {
    LEFT.take()
}

/// Leaves it to the next one.
pub fn leave(kept: Kept) {
    let compressor = kept.compressor.filter(|compressor| compressor.memory() <= MOST);
    LEFT.set(Kept { compressor, ..kept });
}
