//! The upload of the prior backup's manifest, where that is a procedure and no replication command.

use super::grammar::parenthesized;
use crate::id::to_hex;

/// Bytes of a manifest in one CALL: each is two digits of a literal, which the server holds several times
/// while it parses the statement.
pub const MANIFEST_PIECE: usize = 1 << 20;

/// A piece of a manifest, for `parallel_backup.upload_manifest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestPiece<'a> {
    /// Where in the manifest it begins.
    pub offset: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Whether nothing follows.
    pub is_last: bool,
}

impl ManifestPiece<'_> {
    /// The CALL, for a session with standard_conforming_strings on.
    pub fn to_call(&self) -> Vec<u8> {
        let piece = format!("piece => '\\x{}'", to_hex(self.bytes));
        let offset = (self.offset > 0).then(|| format!("piece_offset => {}", self.offset));
        let is_last = self.is_last.then(|| "is_last => true".to_owned());
        let arguments = [Some(piece), offset, is_last].into_iter().flatten().map(String::into_bytes);
        [&b"CALL parallel_backup.upload_manifest"[..], &parenthesized(arguments)].concat()
    }
}
