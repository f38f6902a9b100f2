//! The WAL stream in volumes of its own, to be extracted into pg_wal. A segment is a member of its full size, whatever
//! is written of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::pool::{Lane, Making};
use crate::catalog::index::{Content, Volume};
use crate::error::{Error, Result};
use crate::output::tar::now;
use crate::output::{Attributes, WalOutput};

/// What has come so far.
#[derive(Default)]
pub struct WalVolumes(Mutex<State>);

#[derive(Default)]
struct State {
    lane: Option<Lane>,
    begun: u32,
    complete: Vec<Volume>,
    /// Timeline history files: what comes of them later, and with a checksum, replaces what the stream has brought.
    histories: BTreeMap<String, Vec<u8>>,
}

/// Writes segments.
pub struct WalWriter<'a> {
    volumes: &'a WalVolumes,
    making: Making<'a>,
    open: Option<String>,
}

impl WalVolumes {
    /// Where the stream writes.
    pub fn writer<'a>(&'a self, making: Making<'a>) -> WalWriter<'a> {
        WalWriter { volumes: self, making, open: None }
    }

    /// Whether the stream has brought this file.
    pub fn has_history(&self, name: &str) -> bool {
        self.lock().histories.contains_key(name)
    }

    /// Replaces a file that the stream has brought; false if it has not.
    pub fn replace_history(&self, name: &[u8], content: impl FnOnce() -> Result<Vec<u8>>) -> Result<bool> {
        let Ok(name) = std::str::from_utf8(name) else { return Ok(false) };
        match self.lock().histories.get_mut(name) {
            Some(history) => {
                *history = content()?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Nothing is added any more.
    pub fn close(&self, making: Making<'_>) -> Result<()> {
        let histories = std::mem::take(&mut self.lock().histories);
        let mut state = self.lock();
        for (name, content) in &histories {
            state.file(making, name, content)?;
            state.file(making, &done(name), b"")?;
        }
        state.end()
    }

    /// The volumes, once they are all complete.
    pub fn volumes(&self) -> Vec<Volume> {
        std::mem::take(&mut self.lock().complete)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A volume for a file of this size, which is noted.
    fn lane(&mut self, making: Making<'_>, name: &str, size: u64) -> Result<&mut Lane> {
        if self.lane.as_ref().is_some_and(|lane| lane.is_too_full(making, size)) {
            self.end()?;
        }
        let lane = match self.lane.take() {
            Some(lane) => lane,
            None => {
                self.begun += 1;
                Lane::new(making, Content::Wal, self.begun, size)?
            }
        };
        let lane = self.lane.insert(lane);
        lane.note(format!("pg_wal/{name}").as_bytes());
        Ok(lane)
    }

    fn file(&mut self, making: Making<'_>, name: &str, content: &[u8]) -> Result<()> {
        let lane = self.lane(making, name, content.len() as u64)?;
        lane.archive.file(name.as_bytes(), &attributes(making), content)
    }

    fn end(&mut self) -> Result<()> {
        if let Some(lane) = self.lane.take() {
            self.complete.push(lane.end(Content::Wal)?);
        }
        Ok(())
    }
}

impl WalOutput for WalWriter<'_> {
    fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        let mut state = self.volumes.lock();
        let lane = state.lane(self.making, name, size)?;
        lane.archive.begin(name.as_bytes(), size, &attributes(self.making))?;
        self.open = Some(name.to_owned());
        Ok(())
    }

    fn write(&mut self, wal: &[u8]) -> Result<()> {
        match (&self.open, &self.volumes.lock().lane) {
            (Some(_), Some(lane)) => lane.archive.write(wal),
            _ => Err(Error::local("WAL was streamed outside of a segment")),
        }
    }

    fn flush(&mut self) -> Result<()> {
        // What is on its way through a compressor, or to a store, cannot be had on disk.
        Ok(())
    }

    fn end(&mut self, is_full: bool) -> Result<()> {
        let Some(name) = self.open.take() else { return Ok(()) };
        let mut state = self.volumes.lock();
        if let Some(lane) = &state.lane {
            lane.archive.end_with_zeroes()?;
        }
        // A full segment must not be archived again when the copy is promoted.
        if is_full { state.file(self.making, &done(&name), b"") } else { Ok(()) }
    }

    fn history(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.volumes.lock().histories.insert(name.to_owned(), content.to_vec());
        Ok(())
    }
}

fn done(name: &str) -> String {
    format!("archive_status/{name}.done")
}

fn attributes(making: Making<'_>) -> Attributes {
    Attributes { mode: making.store.modes().file, mtime: now() }
}
