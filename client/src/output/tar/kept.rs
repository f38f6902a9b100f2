//! -R: what the server has of the files that it writes does not go into an archive as it came.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use crate::output::Attributes;
use crate::output::collected::Collected;

/// What -R writes on at the end of.
const SETTINGS_FILE: &[u8] = b"postgresql.auto.conf";

/// What -R replaces.
const SIGNAL_FILE: &[u8] = b"standby.signal";

/// The file that -R writes on, if the server has one.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Option<(Attributes, Vec<u8>)>>);

impl Kept {
    /// Whether a file does not go into an archive as it came.
    pub fn keep(&self, path: &[u8], attributes: &Attributes, content: &Collected) -> io::Result<bool> {
        if path == SETTINGS_FILE {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((*attributes, bytes(content)?));
            return Ok(true);
        }
        Ok(path == SIGNAL_FILE)
    }

    /// The settings with what is added to them, to be written.
    pub fn with(&self, own: Attributes, addition: &[u8]) -> (Attributes, Vec<u8>) {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (attributes, before) = kept.unwrap_or((own, Vec::new()));
        (attributes, [&before, addition].concat())
    }
}

/// All of a file that is small.
pub fn bytes(content: &Collected) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    content.read_out(|piece| bytes.write_all(piece))?;
    Ok(bytes)
}
