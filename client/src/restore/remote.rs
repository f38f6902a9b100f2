//! Backups in an object store: each object is read in ranges, the next of which is on its way while one is used.

use std::io::{self, Read};
use std::sync::Arc;

use super::places::Place;
use super::source::{Object, Source};
use crate::abort::Abort;
use crate::catalog::index::INDEX;
use crate::error::{Error, Result};
use crate::objects::location::Location;
use crate::objects::remote::{Pending, Remote};

/// Bytes of a range: large beside what a request takes, small beside memory. There are two for each object that is read.
const RANGE: u64 = 8 << 20;

/// A prefix that has a backup.
#[derive(Debug, Clone)]
pub struct Objects(Arc<Remote>);

impl Objects {
    /// The prefix; nothing is sent yet.
    pub fn open(location: &Location, abort: &Arc<Abort>) -> Result<Self> {
        Remote::open(location, abort).map(|remote| Self(Arc::new(remote)))
    }
}

impl Source for Objects {
    fn list(&self) -> Result<Vec<Object>> {
        let objects = self.0.list()?.into_iter();
        // What is further below is none of this backup's.
        let own = objects.filter(|object| !object.name.contains('/'));
        Ok(own.map(|object| Object { name: object.name, size: object.size }).collect())
    }

    fn read(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        let Some(size) = self.0.size(name)? else {
            return Err(Error::local(format!("object \"{}\" does not exist", self.shown(name))));
        };
        let remote = Arc::clone(&self.0);
        Ok(Box::new(Ranges {
            remote,
            name: name.to_owned(),
            size,
            asked: 0,
            next: None,
            bytes: Vec::new(),
            at: 0,
        }))
    }

    fn file(&self, _: &str) -> Result<Option<std::fs::File>> {
        Ok(None)
    }

    fn shown(&self, name: &str) -> String {
        self.0.shown(name)
    }

    fn name(&self) -> String {
        self.0.location().to_string()
    }
}

/// An object as it is read.
struct Ranges {
    remote: Arc<Remote>,
    name: String,
    size: u64,
    /// How far it was asked for.
    asked: u64,
    /// What is on its way, and how many bytes that must be.
    next: Option<(Pending<Vec<u8>>, u64)>,
    bytes: Vec<u8>,
    at: usize,
}

impl Ranges {
    fn ask(&mut self) -> Result<()> {
        let end = (self.asked + RANGE).min(self.size);
        if self.asked < end {
            let pending = self.remote.range(&self.name, self.asked..end)?;
            self.next = Some((pending, end - self.asked));
            self.asked = end;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        if self.next.is_none() {
            self.ask()?;
        }
        let Some((pending, length)) = self.next.take() else { return Ok(()) };
        self.bytes = self.remote.ranged(&self.name, pending)?;
        self.at = 0;
        if self.bytes.len() as u64 != length {
            return Err(Error::local(format!("object \"{}\" has changed", self.remote.shown(&self.name))));
        }
        self.ask()
    }
}

impl Read for Ranges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes.len() && !buffer.is_empty() {
            self.bytes.clear();
            self.at = 0;
            self.fill().map_err(io::Error::other)?;
        }
        let count = buffer.len().min(self.bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// A prefix below which there are backups.
#[derive(Debug)]
pub struct Prefix {
    location: Location,
    remote: Remote,
    abort: Arc<Abort>,
}

impl Prefix {
    /// The prefix; nothing is sent yet.
    pub fn open(location: &Location, abort: &Arc<Abort>) -> Result<Self> {
        let remote = Remote::open(location, abort)?;
        Ok(Self { location: location.clone(), remote, abort: Arc::clone(abort) })
    }
}

impl Place for Prefix {
    fn backups(&self) -> Result<Vec<String>> {
        let names = self.remote.list()?.into_iter().filter_map(|object| {
            let name = object.name.strip_suffix(INDEX)?;
            if name.is_empty() { Some(String::new()) } else { name.strip_suffix('/').map(str::to_owned) }
        });
        Ok(names.collect())
    }

    fn source(&self, name: &str) -> Result<Box<dyn Source>> {
        Ok(Box::new(Objects::open(&self.location.below(name), &self.abort)?))
    }

    fn remove(&self, name: &str, object: &str) -> Result<()> {
        let path = if name.is_empty() { object.to_owned() } else { format!("{name}/{object}") };
        self.remote.delete(&path)
    }

    fn remove_empty(&self, _: &str) -> Result<()> {
        // A prefix is nothing without objects.
        Ok(())
    }
}
