//! What the user calls a place: a directory.

use std::ffi::OsStr;
use std::path::Path;

use super::places::{Directories, Place};
use super::source::{Directory, Source};
use crate::error::{Error, Result};

/// Where a backup is.
pub fn source(name: &OsStr) -> Result<Box<dyn Source>> {
    Ok(Box::new(Directory::open(Path::new(name))?))
}

/// Where backups are.
pub fn place(name: &OsStr) -> Result<Box<dyn Place>> {
    Ok(Box::new(Directories::open(Path::new(name))?))
}

/// Where a backup is among others, and its name there.
pub fn split(backup: &OsStr) -> Result<(Box<dyn Place>, String)> {
    let path = Path::new(backup);
    let path = std::fs::canonicalize(path).map_err(|error| Error::io("open directory", path, &error))?;
    let name = path.file_name().and_then(OsStr::to_str);
    match (path.parent(), name) {
        (Some(parent), Some(name)) => Ok((Box::new(Directories::open(parent)?), name.to_owned())),
        _ => Err(Error::local(format!("\"{}\" is among no others", path.display()))),
    }
}
