//! The checksum that each row of a command's result sets carries in its last column.
//!
//! CRC-32C over the values of all rows of the reply so far, this row's included. It covers what no
//! checksum of a file does: names, LSNs, the label, the control file. On a connection without
//! encryption nothing else would notice a byte that was changed on the way; TCP's 16 bits let
//! through what a faulty switch or memory module makes.

use protocol::ChecksumAlgorithm;
use protocol::id::to_hex;

use crate::checksum::Checksum;

/// The checksum of a command's rows so far.
#[derive(Debug, Clone)]
pub struct RowChecksum(Checksum);

impl RowChecksum {
    /// Of no row.
    pub fn new() -> Self {
        Self(Checksum::new(ChecksumAlgorithm::Crc32c))
    }

    /// Adds a row's values, in the order of the columns and without the checksum itself; `None` is
    /// NULL. Returns what the row's checksum column must have: eight hex digits, in the order in
    /// which a manifest has those of a CRC-32C.
    pub fn add<'a>(&mut self, values: impl IntoIterator<Item = Option<&'a [u8]>>) -> String {
        for value in values {
            // As in a DataRow message: with its length a value cannot lend bytes to its neighbour.
            let length = value.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap_or(i32::MAX));
            self.0.update(&length.to_be_bytes());
            self.0.update(value.unwrap_or_default());
        }
        to_hex(&self.0.clone().finish())
    }
}

impl Default for RowChecksum {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[&[Option<&[u8]>]]) -> String {
        let mut checksum = RowChecksum::new();
        rows.iter().fold(String::new(), |_, row| checksum.add(row.iter().copied()))
    }

    #[test]
    fn covers_every_row_so_far() {
        let (a, b): (Option<&[u8]>, Option<&[u8]>) = (Some(b"a"), Some(b"b"));
        // CRC-32C of 00000001 61.
        assert_eq!(of(&[&[a]]), to_hex(&Checksum::of(ChecksumAlgorithm::Crc32c, b"\0\0\0\x01a")));
        assert_ne!(of(&[&[a], &[b]]), of(&[&[b], &[b]]));
        // Where a row ends is in the protocol itself; where a value ends is in the checksum.
        assert_ne!(of(&[&[Some(b"ab"), Some(b"")]]), of(&[&[a, b]]));
        assert_ne!(of(&[&[None]]), of(&[&[Some(b"")]]));
    }
}
