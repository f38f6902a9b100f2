//! Before 17 there are none: all that can be done is to say so.

use std::convert::Infallible;

use crate::cluster::contents::Relation;
use crate::error::{Error, Result};
use crate::pg::incremental::{Method, Uploaded};

/// A manifest that nobody can upload.
#[derive(Debug)]
pub struct Manifest(Infallible);

impl Manifest {
    /// Fails.
    pub fn begin() -> Result<Self> {
        Err(Error::NoIncremental)
    }

    /// Not reached.
    pub fn append(&mut self, _bytes: &[u8]) -> Result<()> {
        match self.0 {}
    }

    /// Not reached.
    pub fn finish(&mut self) -> Result<()> {
        match self.0 {}
    }

    /// Not reached.
    pub fn release(self) {
        match self.0 {}
    }

    /// Not reached.
    pub fn into_increment(self) -> Increment {
        match self.0 {}
    }
}

/// An incremental backup that nobody can begin.
#[derive(Debug)]
pub struct Increment(Infallible);

impl Increment {
    /// Not reached.
    pub fn never(&self) -> ! {
        match self.0 {}
    }

    /// Not reached.
    pub fn methods(&self) -> Methods<'_> {
        match self.0 {}
    }

    /// Not reached.
    pub fn release(&self) {
        match self.0 {}
    }
}

/// Not reached.
#[derive(Debug)]
pub struct Methods<'a>(&'a Infallible);

impl Methods<'_> {
    /// Not reached.
    pub fn of(&mut self, _path: &[u8], _relation: &Relation, _size: u64) -> Result<Method<'_>> {
        match *self.0 {}
    }

    /// Not reached.
    pub fn end(self) {
        match *self.0 {}
    }
}

/// Fails.
pub fn check_summaries() -> Result<()> {
    Err(Error::NoIncremental)
}

/// Nothing.
pub fn uploaded() -> Uploaded {
    Uploaded::Nothing
}
