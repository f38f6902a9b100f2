//! Backups in an object store.

use std::io::Read;
use std::sync::Arc;

use super::places::Place;
use super::source::{Object, Source};
use crate::abort::Abort;
use crate::catalog::index::INDEX;
use crate::error::Result;
use crate::objects::location::Location;
use crate::objects::ranges::Ranges;
use crate::objects::remote::Remote;

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
        Ok(Box::new(Ranges::open(&self.0, name)?))
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
