//! Words that options of both programs take.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{Progress, Sync};
use crate::error::{Error, Result};

/// --sync-method.
pub fn sync_method(text: Option<&OsStr>) -> Result<Sync> {
    match text.map(OsStr::as_bytes) {
        None | Some(b"fsync") => Ok(Sync::Fsync),
        Some(b"syncfs") => Ok(Sync::Syncfs),
        Some(_) => Err(Error::local(format!("unrecognized sync method: {}", shown(text)))),
    }
}

/// --progress, empty if nothing is said of the form.
pub fn progress(text: Option<&OsStr>) -> Result<Option<Progress>> {
    match text.map(OsStr::as_bytes) {
        None => Ok(None),
        Some(b"") => Ok(Some(Progress::Text)),
        Some(b"json") => Ok(Some(Progress::Json)),
        Some(_) => {
            Err(Error::local(format!("invalid progress argument \"{}\", must be \"json\"", shown(text))))
        }
    }
}

/// What was typed, in a message.
pub fn shown(text: Option<&OsStr>) -> String {
    text.unwrap_or_default().to_string_lossy().into_owned()
}
