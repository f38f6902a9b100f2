//! What the user calls a place: a directory, or the URL of one or of an object store's prefix.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use super::places::{Directories, Place};
#[cfg(feature = "object-store")]
use super::remote::{Objects, Prefix};
use super::source::{Directory, Source};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::objects::location::{Location, Named};

/// Where a backup is.
pub fn source(name: &OsStr, abort: &Arc<Abort>) -> Result<Box<dyn Source>> {
    match Named::parse(name)? {
        Named::Path(path) => Ok(Box::new(Directory::open(&path)?)),
        Named::Objects(location) => objects(&location, abort),
    }
}

/// Where backups are.
pub fn place(name: &OsStr, abort: &Arc<Abort>) -> Result<Box<dyn Place>> {
    match Named::parse(name)? {
        Named::Path(path) => Ok(Box::new(Directories::open(&path)?)),
        Named::Objects(location) => prefix(&location, abort),
    }
}

/// Where a backup is among others, and its name there.
pub fn split(backup: &OsStr, abort: &Arc<Abort>) -> Result<(Box<dyn Place>, String)> {
    match Named::parse(backup)? {
        Named::Path(path) => split_directory(&path),
        Named::Objects(location) => match location.split() {
            Some((above, name)) => Ok((prefix(&above, abort)?, name.to_owned())),
            None => Err(Error::local(format!("\"{location}\" is among no others"))),
        },
    }
}

fn split_directory(path: &Path) -> Result<(Box<dyn Place>, String)> {
    let path = std::fs::canonicalize(path).map_err(|error| Error::io("open directory", path, &error))?;
    let name = path.file_name().and_then(OsStr::to_str);
    match (path.parent(), name) {
        (Some(parent), Some(name)) => Ok((Box::new(Directories::open(parent)?), name.to_owned())),
        _ => Err(Error::local(format!("\"{}\" is among no others", path.display()))),
    }
}

#[cfg(feature = "object-store")]
fn objects(location: &Location, abort: &Arc<Abort>) -> Result<Box<dyn Source>> {
    Ok(Box::new(Objects::open(location, abort)?))
}

#[cfg(feature = "object-store")]
fn prefix(location: &Location, abort: &Arc<Abort>) -> Result<Box<dyn Place>> {
    Ok(Box::new(Prefix::open(location, abort)?))
}

#[cfg(not(feature = "object-store"))]
fn objects(location: &Location, _: &Arc<Abort>) -> Result<Box<dyn Source>> {
    Err(without(location))
}

#[cfg(not(feature = "object-store"))]
fn prefix(location: &Location, _: &Arc<Abort>) -> Result<Box<dyn Place>> {
    Err(without(location))
}

#[cfg(not(feature = "object-store"))]
fn without(location: &Location) -> Error {
    Error::local(format!("could not access \"{location}\": this program was built without object storage"))
}
