//! The manifest of a prior backup, between its upload and the start of the increment to it.

use std::cell::RefCell;

use crate::error::{Error, Result};
use crate::pg::guard;
use crate::pg::incremental::{self, Increment, Manifest, Uploaded};

/// What the procedure upload_manifest has taken in this session so far.
#[derive(Debug)]
struct Upload {
    manifest: Manifest,
    bytes: u64,
    complete: bool,
}

thread_local! {
    static UPLOAD: RefCell<Option<Upload>> = const { RefCell::new(None) };
}

/// Takes a piece of a manifest: from byte 0 on it is a new one, otherwise it must follow the one before. With
/// the last its checksum is verified. Any failure ends the upload.
pub fn upload(bytes: &[u8], offset: i64, is_last: bool) -> Result<()> {
    let mut before = UPLOAD.take();
    let upload = match before.take_if(|upload| upload.continues_at(offset)) {
        Some(upload) => upload,
        None => {
            let expected = before.map_or(0, Upload::end);
            if offset != 0 {
                return Err(Error::ManifestPiece { offset, expected });
            }
            Upload { manifest: Manifest::begin()?, bytes: 0, complete: false }
        }
    };
    // Nowhere else, so that an ERROR leaves no half of it behind.
    let upload = RefCell::new(Some(upload));
    guard::on_failure(
        || upload.borrow_mut().as_mut().map_or(Ok(()), |upload| upload.take(bytes, is_last)),
        || {
            upload.take().map(Upload::end);
        },
    )?;
    UPLOAD.set(upload.take());
    Ok(())
}

/// The prior backup that an increment is to go by: the one that was uploaded by the procedure, which is then used up,
/// or else by UPLOAD_MANIFEST.
pub fn take() -> Result<Increment> {
    incremental::check_summaries()?;
    if let Some(upload) = UPLOAD.take() {
        if upload.complete {
            return Ok(upload.manifest.into_increment());
        }
        upload.end();
        return Err(Error::NoManifest);
    }
    match incremental::uploaded() {
        Uploaded::Manifest(increment) => Ok(increment),
        Uploaded::Nothing => Err(Error::NoManifest),
        Uploaded::NotHandedOver => Err(Error::ManifestNotHandedOver),
    }
}

impl Upload {
    fn continues_at(&self, offset: i64) -> bool {
        offset != 0 && !self.complete && u64::try_from(offset) == Ok(self.bytes)
    }

    fn take(&mut self, bytes: &[u8], is_last: bool) -> Result<()> {
        self.manifest.append(bytes)?;
        self.bytes += bytes.len() as u64;
        if is_last {
            self.manifest.finish()?;
            self.complete = true;
        }
        Ok(())
    }

    /// Gives it back, and says how far it had come.
    fn end(self) -> u64 {
        self.manifest.release();
        if self.complete { 0 } else { self.bytes }
    }
}
