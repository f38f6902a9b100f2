//! An archive, however it is written.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use protocol::BackupPath;

use super::placed::Placed;
use super::streamed::Streamed;
use crate::error::{Error, Result};
use crate::output::collected::Collected;
use crate::output::{Attributes, Piece};

/// An archive under way.
pub enum Archive {
    /// At all its places at once.
    Placed(Placed),
    /// From beginning to end.
    Streamed(Streamed),
}

impl Archive {
    /// The file's name.
    pub fn path(&self) -> &Path {
        match self {
            Self::Placed(archive) => archive.path(),
            Self::Streamed(archive) => archive.path(),
        }
    }

    /// Adds a directory.
    pub fn directory(&self, name: &[u8], attributes: &Attributes) -> Result<()> {
        match self {
            Self::Placed(archive) => archive.directory(name, attributes),
            Self::Streamed(archive) => archive.directory(name, attributes),
        }
    }

    /// Adds a file.
    pub fn file(&self, name: &[u8], attributes: &Attributes, content: &[u8]) -> Result<()> {
        match self {
            Self::Placed(archive) => archive.file(name, attributes, content),
            Self::Streamed(archive) => archive.file(name, attributes, content),
        }
    }

    /// Adds a file that was collected, or the next part of it.
    pub fn put(&self, name: &[u8], piece: &Piece<'_>, content: &Collected) -> Result<()> {
        match self {
            Self::Placed(archive) => archive.collected(name, &piece.attributes, content),
            Self::Streamed(archive) => archive.put(name, piece, content),
        }
    }

    /// Adds what is in a file of ours.
    pub fn copy(&self, name: &[u8], attributes: &Attributes, file: &File) -> Result<()> {
        let failed = |error: io::Error| Error::io("read file", Path::new(OsStr::from_bytes(name)), &error);
        let size = file.metadata().map_err(failed)?.len();
        let path = BackupPath::from_bytes(name).map_err(|error| Error::local(error.to_string()))?;
        let content = Collected::of(file.try_clone().map_err(failed)?, size);
        self.put(name, &Piece { path: &path, size, part: None, attributes: *attributes }, &content)
    }

    /// Ends the archive: nothing is added any more.
    pub fn close(&self) -> Result<()> {
        match self {
            Self::Placed(archive) => archive.close(),
            Self::Streamed(archive) => archive.close(),
        }
    }

    /// The archive as one that has places.
    pub fn placed(&self) -> Result<&Placed> {
        match self {
            Self::Placed(archive) => Ok(archive),
            Self::Streamed(_) => Err(Error::local("archives that are streamed have no places")),
        }
    }
}
