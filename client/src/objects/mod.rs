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
#[cfg(not(feature = "object-store"))]
use crate::error::Error;
use crate::error::Result;

/// An object by its own URL, to be read from its beginning. What fails then is an [`Error`] inside of the `io::Error`.
#[cfg(feature = "object-store")]
pub fn read(object: &Location, abort: &Arc<Abort>) -> Result<Box<dyn Read + Send>> {
    let bucket = Location { prefix: String::new(), ..object.clone() };
    let remote = Arc::new(remote::Remote::open(&bucket, abort)?);
    Ok(Box::new(ranges::Ranges::open(&remote, &object.prefix)?))
}

/// An object by its own URL, which cannot be read.
#[cfg(not(feature = "object-store"))]
pub fn read(object: &Location, _: &Arc<Abort>) -> Result<Box<dyn Read + Send>> {
    Err(Error::local(format!("could not access \"{object}\": this program was built without object storage")))
}
