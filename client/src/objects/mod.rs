//! Objects below a prefix of an object store (docs/volumes.md), for who writes a backup there and for who reads one. No backup
//! is known here, but for what the object that claims a prefix says.

#[cfg(feature = "object-store")]
pub mod claim;
#[cfg(feature = "object-store")]
pub mod leftovers;
pub mod location;
#[cfg(feature = "object-store")]
pub mod ranges;
#[cfg(feature = "object-store")]
pub mod remote;
#[cfg(feature = "object-store")]
mod words;

use std::io::Read;
use std::sync::Arc;

use self::location::Location;
use crate::abort::Abort;
use crate::error::{Error, Result};

/// An object by its own URL, to be read from its beginning. What fails then is an [`Error`] inside of the `io::Error`.
#[cfg(feature = "object-store")]
pub fn read(object: &Location, abort: &Arc<Abort>) -> Result<Box<dyn Read + Send>> {
    let Some((prefix, name)) = object.split() else {
        return Err(Error::local(format!("\"{object}\" is no object")));
    };
    let remote = Arc::new(remote::Remote::open(&prefix, abort)?);
    Ok(Box::new(ranges::Ranges::open(&remote, name)?))
}

/// An object by its own URL, which cannot be read.
#[cfg(not(feature = "object-store"))]
pub fn read(object: &Location, _: &Arc<Abort>) -> Result<Box<dyn Read + Send>> {
    Err(Error::local(format!("could not access \"{object}\": this program was built without object storage")))
}
