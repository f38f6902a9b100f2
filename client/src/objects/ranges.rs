//! An object that is read in ranges, the next of which is on its way while one is used.

use std::io::{self, Read};
use std::sync::Arc;

use super::remote::{Pending, Remote};
use crate::error::{Error, Result};

/// Bytes of a range: large beside what a request takes, small beside memory. There are two for each object that is read.
const RANGE: u64 = 8 << 20;

/// An object as it is read.
pub struct Ranges {
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
    /// From its beginning; an error if it is not there.
    pub fn open(remote: &Arc<Remote>, name: &str) -> Result<Self> {
        let Some(size) = remote.size(name)? else {
            return Err(Error::local(format!("object \"{}\" does not exist", remote.shown(name))));
        };
        let (remote, name) = (Arc::clone(remote), name.to_owned());
        Ok(Self { remote, name, size, asked: 0, next: None, bytes: Vec::new(), at: 0 })
    }

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
