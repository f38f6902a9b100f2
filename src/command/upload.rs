//! upload_manifest, UPLOAD_MANIFEST's counterpart on the SQL route.

use crate::backup::prior;
use crate::error::Result;

/// Takes a piece of a prior backup's manifest.
pub fn run(piece: &[u8], offset: i64, is_last: bool) -> Result<()> {
    prior::upload(piece, offset, is_last)
}
