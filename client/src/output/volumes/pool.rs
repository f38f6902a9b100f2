//! The volumes under way, of one directory to extract them into: each is written by one connection at a time, and waits
//! for the next one in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::BackupPath;

use super::store::{Metered, Store};
use crate::catalog::index::{Content, Paths, Volume};
use crate::error::{Error, Result};
use crate::output::Attributes;
use crate::output::tar::encode::Encoding;
use crate::output::tar::header::{BLOCK, END};
use crate::output::tar::streamed::Streamed;

/// Volumes of one content.
pub struct Pool {
    content: Content,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many were begun.
    begun: u32,
    /// Those that nobody writes.
    free: Vec<Lane>,
    /// Those in the middle of a file.
    bound: HashMap<BackupPath, Lane>,
    /// Those that are complete, by their numbers.
    complete: BTreeMap<u32, Volume>,
    /// Directories by their names in the archives, and whether a volume has them.
    directories: BTreeMap<Vec<u8>, (Attributes, bool)>,
}

/// A volume under way.
pub struct Lane {
    number: u32,
    name: String,
    /// The archive.
    pub archive: Streamed,
    metered: Metered,
    files: Paths,
    /// The directories that it has.
    directories: HashSet<Vec<u8>>,
}

/// How volumes are made.
#[derive(Clone, Copy)]
pub struct Making<'a> {
    /// Where they go.
    pub store: &'a dyn Store,
    /// How they are compressed.
    pub encoding: Encoding,
    /// How long one gets before it is compressed, unless a file is longer.
    pub size: u64,
}

impl Pool {
    /// None yet.
    pub fn new(content: Content) -> Self {
        Self { content, state: Mutex::default() }
    }

    /// A directory that was listed; where it goes is decided later.
    pub fn directory(&self, name: &[u8], attributes: &Attributes) {
        self.lock().directories.insert(name.to_vec(), (*attributes, false));
    }

    /// A volume to begin a file of this size in.
    pub fn take(&self, making: Making<'_>, size: u64) -> Result<Lane> {
        let number = {
            let mut state = self.lock();
            let fits = |lane: &Lane| lane.archive.len().saturating_add(taken(size)) <= making.size;
            if let Some(place) = state.free.iter().position(fits) {
                return Ok(state.free.swap_remove(place));
            }
            state.begun += 1;
            // The fullest makes room for a new one.
            let fullest = (0..state.free.len()).max_by_key(|place| state.free[*place].archive.len());
            let full = fullest.map(|place| state.free.swap_remove(place));
            let number = state.begun;
            drop(state);
            full.map_or(Ok(()), |full| self.complete(full))?;
            number
        };
        Lane::new(making, self.content, number, size)
    }

    /// Begins a file in it: directories that it lies in go first, and it is noted.
    pub fn begin(&self, lane: &mut Lane, name: &[u8], path: &[u8]) -> Result<()> {
        let mut missing = Vec::new();
        {
            let mut state = self.lock();
            for (end, _) in name.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                let parent = &name[..end];
                if !lane.directories.contains(parent)
                    && let Some((attributes, has_volume)) = state.directories.get_mut(parent)
                {
                    *has_volume = true;
                    missing.push((parent, *attributes));
                }
            }
        }
        for (parent, attributes) in missing {
            lane.archive.directory(parent, &attributes)?;
            lane.directories.insert(parent.to_vec());
        }
        lane.files.push(path);
        Ok(())
    }

    /// It waits for who goes on with the file that it is in the middle of.
    pub fn bind(&self, path: &BackupPath, lane: Lane) {
        self.lock().bound.insert(path.clone(), lane);
    }

    /// The one in the middle of a file.
    pub fn unbind(&self, path: &BackupPath) -> Result<Lane> {
        let lane = self.lock().bound.remove(path);
        lane.ok_or_else(|| Error::local(format!("parts of file \"{path}\" are out of order")))
    }

    /// It waits for the next file.
    pub fn release(&self, lane: Lane) {
        self.lock().free.push(lane);
    }

    /// Nothing is added any more: what is left goes into a volume, and those that are left are complete.
    pub fn close(&self, making: Making<'_>) -> Result<()> {
        let left: Vec<_> = {
            let mut state = self.lock();
            if let Some(path) = state.bound.keys().next() {
                return Err(Error::local(format!("file \"{path}\" is incomplete in its archive")));
            }
            let left = state.directories.iter_mut().filter(|(_, (_, has_volume))| !*has_volume);
            left.map(|(name, directory)| {
                directory.1 = true;
                (name.clone(), directory.0)
            })
            .collect()
        };
        if !left.is_empty() {
            let lane = self.take(making, left.len() as u64 * BLOCK as u64)?;
            left.iter().try_for_each(|(name, attributes)| lane.archive.directory(name, attributes))?;
            self.release(lane);
        }
        let lanes = std::mem::take(&mut self.lock().free);
        // Each may have to wait for its store.
        std::thread::scope(|scope| {
            let ends: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(|| self.complete(lane))).collect();
            ends.into_iter().try_for_each(|end| end.join().unwrap_or_else(|_| Err(crate::abort::panicked())))
        })
    }

    /// The volumes, once they are all complete.
    pub fn volumes(&self) -> Vec<Volume> {
        std::mem::take(&mut self.lock().complete).into_values().collect()
    }

    fn complete(&self, lane: Lane) -> Result<()> {
        let number = lane.number;
        let volume = lane.end(self.content)?;
        self.lock().complete.insert(number, volume);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// An empty one, for a file of this size and others.
    pub fn new(making: Making<'_>, content: Content, number: u32, size: u64) -> Result<Self> {
        let name = content.volume(number, making.encoding.suffix());
        let path = making.store.shown(&name);
        let metered = Metered::new(making.store.create(&name, making.size.max(size))?);
        let out = making.encoding.encode(metered.clone());
        let out = out.map_err(|error| Error::io("compress file", &path, &error))?;
        let archive = Streamed::new(path, out);
        Ok(Self { number, name, archive, metered, files: Paths::default(), directories: HashSet::new() })
    }

    /// Whether a file of this size would make it longer than volumes are to be.
    pub fn is_too_full(&self, making: Making<'_>, size: u64) -> bool {
        self.archive.len() > 0 && self.archive.len().saturating_add(taken(size)) > making.size
    }

    /// Notes a file.
    pub fn note(&mut self, path: &[u8]) {
        self.files.push(path);
    }

    /// Nothing is added any more.
    pub fn end(self, content: Content) -> Result<Volume> {
        self.archive.close()?;
        let stored = self.metered.finish(&self.name)?;
        Ok(Volume { stored, tar_size: self.archive.len(), content, files: self.files })
    }
}

/// What a file takes in an archive, with the archive's end.
fn taken(size: u64) -> u64 {
    size.saturating_add(2 * BLOCK as u64).saturating_add(END.len() as u64)
}
