//! Writing to a place in a file.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;

/// Writes pieces that follow each other, by as few system calls as it takes.
pub fn write_pieces(file: &File, pieces: &[IoSlice<'_>], at: u64) -> io::Result<()> {
    // What is wrong with it is seen once more, where it is written alone.
    let mut written = rustix::io::pwritev(file, pieces, at).unwrap_or(0);
    let mut at = at;
    for piece in pieces {
        let done = written.min(piece.len());
        written -= done;
        file.write_all_at(&piece[done..], at + done as u64)?;
        at += piece.len() as u64;
    }
    Ok(())
}
