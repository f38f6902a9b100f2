//! Objects below a prefix of an object store (docs/volumes.md), for who writes a backup there and for who reads one. No backup
//! is known here, but for what the object that claims a prefix says.

#[cfg(feature = "object-store")]
pub mod claim;
#[cfg(feature = "object-store")]
pub mod leftovers;
pub mod location;
#[cfg(feature = "object-store")]
pub mod remote;
#[cfg(feature = "object-store")]
mod words;
