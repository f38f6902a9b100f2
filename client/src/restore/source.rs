//! Where a backup is: a place with names, each of which can be read from its beginning.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::catalog::index::Digest;
use crate::error::{Error, Result};

/// A place that has a backup.
pub trait Source: Send + Sync {
    /// What there is, in no order.
    fn list(&self) -> Result<Vec<Object>>;

    /// All of an object, from its beginning.
    fn read(&self, name: &str) -> Result<Box<dyn Read + Send>>;

    /// The same as a file whose parts can be read in any order, where it is one.
    fn file(&self, name: &str) -> Result<Option<File>>;

    /// What an object is called in a message about it.
    fn shown(&self, name: &str) -> String;

    /// What the place is called.
    fn name(&self) -> String;
}

/// All of a small object, which has at most so many bytes.
pub fn read_all(source: &dyn Source, name: &str, most: u64) -> Result<Vec<u8>> {
    let shown = source.shown(name);
    let failed = |error| Error::io("read file", Path::new(&shown), &error);
    let mut content = Vec::new();
    source.read(name)?.take(most).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// Holds what is read against a digest, of which nobody hears before the end: what was read until then is not yet good.
pub struct Digested {
    reader: Box<dyn Read + Send>,
    hash: Option<Sha256>,
    expected: Digest,
}

impl Digested {
    /// From the beginning on.
    pub fn new(reader: Box<dyn Read + Send>, expected: Digest) -> Self {
        Self { reader, hash: Some(Sha256::new()), expected }
    }
}

impl Read for Digested {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if count > 0 {
            if let Some(hash) = &mut self.hash {
                hash.update(&buffer[..count]);
            }
        } else if !buffer.is_empty()
            && self.hash.take().is_some_and(|hash| hash.finalize()[..] != self.expected[..])
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its SHA-256 digest is not that of the index",
            ));
        }
        Ok(count)
    }
}

/// Something with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name, without a slash.
    pub name: String,
    /// Its bytes.
    pub size: u64,
}

/// A directory.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// One that must be there.
    pub fn open(path: &Path) -> Result<Self> {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => Ok(Self(path.to_owned())),
            Ok(_) => Err(Error::local(format!("\"{}\" is not a directory", path.display()))),
            Err(error) => Err(Error::io("open directory", path, &error)),
        }
    }

    fn open_file(&self, name: &str) -> Result<File> {
        let path = self.0.join(name);
        File::open(&path).map_err(|error| Error::io("open file", &path, &error))
    }
}

impl Source for Directory {
    fn list(&self) -> Result<Vec<Object>> {
        let failed = |error| Error::io("read directory", &self.0, &error);
        let mut objects = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // What has another name is none of ours. A link may lead to where an archive is.
            let Ok(name) = entry.file_name().into_string() else { continue };
            match fs::metadata(entry.path()) {
                Ok(found) if found.is_file() => objects.push(Object { name, size: found.len() }),
                _ => {}
            }
        }
        Ok(objects)
    }

    fn read(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.open_file(name)?))
    }

    fn file(&self, name: &str) -> Result<Option<File>> {
        self.open_file(name).map(Some)
    }

    fn shown(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}
