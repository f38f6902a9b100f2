//! Where volumes lie side by side, with the manifest and the index: a directory, or a prefix of an object store.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::catalog::index::Stored;
use crate::error::{Error, Result};
use crate::output::Modes;
use crate::output::space::{Need, Sizes};

/// A place for one backup.
pub trait Store: Send + Sync {
    /// Fails where a backup could not go.
    fn check(&self) -> Result<()>;

    /// What it needs, of a place that can be full.
    fn needs(&self, _sizes: &Sizes, _is_compressed: bool) -> Vec<Need> {
        Vec::new()
    }

    /// Takes it for this backup alone.
    fn claim(&mut self, modes: Modes) -> Result<()>;

    /// What files get that are the client's own.
    fn modes(&self) -> Modes;

    /// A volume of this name, which is there once it is finished, and of about this size, or less.
    fn create(&self, name: &str, expected: u64) -> Result<Box<dyn StoredFile>>;

    /// A file that nobody else sees.
    fn spool(&self) -> io::Result<File>;

    /// What something there is called in a message about it.
    fn shown(&self, name: &str) -> PathBuf;

    /// Where the manifest is written while the backup is under way.
    fn manifest(&self) -> Result<Box<dyn StoredFile>>;

    /// All volumes, and the manifest as it is under way, get to where nothing takes them away again.
    fn sync(&self) -> Result<()>;

    /// The manifest gets its name, then the index is there, then the claim goes.
    fn finish(&self, has_manifest: bool, index: &[u8]) -> Result<()>;
}

/// What is being written.
pub trait StoredFile: Write + Send {
    /// All of it was written.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Counts and hashes what goes into a stored file. Several may hold it: the one that writes, and the one that ends it.
#[derive(Clone)]
pub struct Metered(Arc<Mutex<Meter>>);

struct Meter {
    /// Nothing once it was finished.
    file: Option<Box<dyn StoredFile>>,
    size: u64,
    hash: Sha256,
}

impl Metered {
    /// Nothing was written to it yet.
    pub fn new(file: Box<dyn StoredFile>) -> Self {
        Self(Arc::new(Mutex::new(Meter { file: Some(file), size: 0, hash: Sha256::new() })))
    }

    /// Ends it. What was stored, under this name.
    pub fn finish(&self, name: &str) -> Result<Stored> {
        let (file, size, sha256) = {
            let mut meter = self.lock();
            let hash = std::mem::take(&mut meter.hash);
            (meter.file.take(), meter.size, hash.finalize().into())
        };
        file.ok_or_else(|| Error::local(format!("\"{name}\" was finished before")))?.finish()?;
        Ok(Stored { name: name.to_owned(), size, sha256 })
    }

    fn lock(&self) -> MutexGuard<'_, Meter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Metered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut meter = self.lock();
        let file = meter.file.as_mut().ok_or_else(|| io::Error::other("file was closed"))?;
        let count = file.write(bytes)?;
        meter.size += count as u64;
        meter.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().file.as_mut().map_or(Ok(()), |file| file.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Half(Arc<Mutex<Vec<u8>>>);

    impl Write for Half {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(&bytes[..bytes.len().div_ceil(2)])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl StoredFile for Half {
        fn finish(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_taken_is_what_counts() {
        let out = Arc::new(Mutex::new(Vec::new()));
        let mut metered = Metered::new(Box::new(Half(Arc::clone(&out))));
        metered.write_all(b"abc").unwrap();
        let stored = metered.clone().finish("name").unwrap();
        assert_eq!(*out.lock().unwrap(), b"abc");
        assert_eq!((stored.name.as_str(), stored.size), ("name", 3));
        assert_eq!(
            protocol::id::to_hex(&stored.sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(metered.write_all(b"d").is_err() && metered.finish("name").is_err());
    }
}
