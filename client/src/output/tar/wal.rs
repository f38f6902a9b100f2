//! The WAL stream in an archive of its own, `pg_wal.tar`: what is in pg_wal, to be extracted there. A segment is a
//! member of its full size, whatever is written of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::archive::Archive;
use super::now;
use super::placed::Place;
use crate::error::{Error, Result};
use crate::output::{Attributes, Modes, OutputFile, WalOutput};

/// The archive, and what goes into it only when the stream is over.
pub struct WalArchive {
    archive: Archive,
    mode: u32,
    /// Timeline history files: what comes of them later, and with a checksum, replaces what the stream has
    /// brought.
    histories: Mutex<BTreeMap<String, Vec<u8>>>,
}

/// Writes segments to the archive.
pub struct WalTar<'a> {
    wal: &'a WalArchive,
    sync: bool,
    open: Option<Segment>,
}

struct Segment {
    name: String,
    /// Where it is, if the archive has places.
    place: Option<Place>,
    /// How much of it is written.
    written: u64,
}

impl WalArchive {
    /// Nothing is in it.
    pub fn new(archive: Archive, modes: Modes) -> Self {
        Self { archive, mode: modes.file, histories: Mutex::default() }
    }

    /// Where the stream writes.
    pub fn writer(&self, sync: bool) -> WalTar<'_> {
        WalTar { wal: self, sync, open: None }
    }

    /// Whether the stream has brought this file.
    pub fn has_history(&self, name: &str) -> bool {
        self.histories().contains_key(name)
    }

    /// Replaces a file that the stream has brought; false if it has not.
    pub fn replace_history(
        &self,
        name: &[u8],
        content: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<bool> {
        let Ok(name) = std::str::from_utf8(name) else { return Ok(false) };
        match self.histories().get_mut(name) {
            Some(history) => {
                *history = content().map_err(|error| self.failed(&error))?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Ends the archive.
    pub fn close(&self) -> Result<()> {
        for (name, content) in &*self.histories() {
            self.archive.file(name.as_bytes(), &self.attributes(), content)?;
            self.mark_done(name)?;
        }
        self.archive.close()
    }

    /// A full segment must not be archived again when the copy is promoted.
    fn mark_done(&self, name: &str) -> Result<()> {
        self.archive.file(format!("archive_status/{name}.done").as_bytes(), &self.attributes(), b"")
    }

    fn attributes(&self) -> Attributes {
        Attributes { mode: self.mode, mtime: now() }
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::io("write to file", self.archive.path(), error)
    }

    fn histories(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WalOutput for WalTar<'_> {
    fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        let place = match &self.wal.archive {
            Archive::Placed(archive) => {
                let place = archive.reserve(size)?;
                // The space is really taken, so that a full disk shows here and not when the copy recovers.
                archive.allocate(&place)?;
                Some(place)
            }
            Archive::Streamed(archive) => {
                archive.begin(name.as_bytes(), size, &self.wal.attributes())?;
                None
            }
        };
        self.open = Some(Segment { name: name.to_owned(), place, written: 0 });
        Ok(())
    }

    fn write(&mut self, wal: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        match (&self.wal.archive, &open.place) {
            (Archive::Streamed(archive), _) => archive.write(wal)?,
            (Archive::Placed(_), Some(place)) => place.write(wal, open.written).map_err(|error| {
                let what = format!("write {} bytes to WAL file", wal.len());
                Error::io(&what, self.wal.archive.path(), &error)
            })?,
            (Archive::Placed(_), None) => {}
        }
        open.written += wal.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        match &self.wal.archive {
            Archive::Placed(archive) if self.sync => archive.flush(),
            // What is on its way through a compressor cannot be had on disk, as in pg_basebackup.
            _ => Ok(()),
        }
    }

    fn end(&mut self, is_full: bool) -> Result<()> {
        if let Some(open) = self.open.take() {
            match (&self.wal.archive, &open.place) {
                (Archive::Streamed(archive), _) => archive.end_with_zeroes()?,
                (Archive::Placed(archive), Some(place)) => {
                    archive.complete(place, open.name.as_bytes(), &self.wal.attributes())?;
                }
                (Archive::Placed(_), None) => {}
            }
            if is_full {
                self.wal.mark_done(&open.name)?;
            }
        }
        self.flush()
    }

    fn history(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.wal.histories().insert(name.to_owned(), content.to_vec());
        Ok(())
    }
}
