//! An archive that is written from beginning to end, because it is compressed or goes into a pipe.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ZEROES;
use super::encode::Encode;
use super::header::{END, Header, Kind, header, padding};
use crate::error::{Error, Result};
use crate::output::collected::{Collected, each_zeroes};
use crate::output::{Attributes, Piece};

/// An archive under way.
pub struct Streamed {
    path: PathBuf,
    state: Mutex<State>,
    /// Directories that were listed and are not written yet: between files is where they go, and who lists
    /// does not wait until a file ends.
    directories: Mutex<Vec<Header>>,
}

struct State {
    /// Nothing once the archive was closed.
    out: Option<Box<dyn Encode>>,
    /// How many bytes of a member are missing, while it is written.
    member: Option<Member>,
    /// How long the archive is so far, before it is compressed.
    length: u64,
}

struct Member {
    left: u64,
    padding: usize,
}

impl Streamed {
    /// An empty one; `path` is what it is called.
    pub fn new(path: PathBuf, out: Box<dyn Encode>) -> Self {
        let state = State { out: Some(out), member: None, length: 0 };
        Self { path, state: Mutex::new(state), directories: Mutex::default() }
    }

    /// What it is called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long it is so far, before it is compressed.
    pub fn len(&self) -> u64 {
        self.lock().length
    }

    /// Adds a directory.
    pub fn directory(&self, name: &[u8], attributes: &Attributes) -> Result<()> {
        let header = header(name, Kind::Directory, attributes)?;
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).push(header);
        Ok(())
    }

    /// Adds a file.
    pub fn file(&self, name: &[u8], attributes: &Attributes, content: &[u8]) -> Result<()> {
        self.begin(name, content.len() as u64, attributes)?;
        self.write(content)?;
        self.end()
    }

    /// Adds a file that was collected, or the next part of it.
    pub fn put(&self, name: &[u8], piece: &Piece<'_>, content: &Collected) -> Result<()> {
        let (offset, length) = piece.part.unwrap_or((0, piece.size));
        if offset == 0 {
            self.begin(name, piece.size, &piece.attributes)?;
        }
        {
            let mut state = self.lock();
            let written = match content.stream() {
                None => content.read_out(|bytes| state.write(bytes)),
                Some(stream) => state.write(&stream.head).and_then(|()| {
                    state.count(stream.length)?;
                    content.read_kept(|bytes| state.out()?.pass(bytes))?;
                    each_zeroes(content.zeroes(), |zeroes| state.write(zeroes))
                }),
            };
            written.map_err(|error| self.failed(&error))?;
        }
        if offset + length == piece.size { self.end() } else { Ok(()) }
    }

    /// Begins a file of this size.
    pub fn begin(&self, name: &[u8], size: u64, attributes: &Attributes) -> Result<()> {
        let header = header(name, Kind::File(size), attributes)?;
        let mut state = self.lock();
        let begun = self.write_directories(&mut state).and_then(|()| {
            state.write_whole(&header)?;
            state.member = Some(Member { left: size, padding: padding(size) });
            Ok(())
        });
        begun.map_err(|error| self.failed(&error))
    }

    /// The next bytes of it.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.lock().write(bytes).map_err(|error| self.failed(&error))
    }

    /// Ends it: all of it must be there.
    pub fn end(&self) -> Result<()> {
        let mut state = self.lock();
        let ended = match state.member.take() {
            Some(Member { left: 0, padding }) => state.write_whole(&END[..padding]),
            _ => Err(incomplete()),
        };
        ended.map_err(|error| self.failed(&error))
    }

    /// Ends it, with zeroes for what is missing.
    pub fn end_with_zeroes(&self) -> Result<()> {
        let left = |state: &State| state.member.as_ref().map_or(0, |member| member.left);
        let mut state = self.lock();
        while left(&state) > 0 {
            let count = usize::try_from(left(&state)).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            state.write(&ZEROES[..count]).map_err(|error| self.failed(&error))?;
        }
        drop(state);
        self.end()
    }

    /// Ends the archive: nothing is added any more.
    pub fn close(&self) -> Result<()> {
        let mut state = self.lock();
        let closed = self
            .write_directories(&mut state)
            .and_then(|()| state.write_whole(&END))
            .and_then(|()| state.out.take().map_or(Ok(()), |out| out.finish()));
        closed.map_err(|error| self.failed(&error))
    }

    fn write_directories(&self, state: &mut State) -> io::Result<()> {
        let directories =
            std::mem::take(&mut *self.directories.lock().unwrap_or_else(PoisonError::into_inner));
        directories.iter().try_for_each(|header| state.write_whole(header))
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::io("write to file", &self.path, error)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Bytes of the member that is being written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.count(bytes.len() as u64)?;
        self.out()?.write_all(bytes)
    }

    /// So many bytes of it are, or will be, written.
    fn count(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.member {
            Some(member) if member.left >= bytes => member.left -= bytes,
            _ => return Err(io::Error::other("write beyond the end of an archive member")),
        }
        self.length += bytes;
        Ok(())
    }

    /// What stands between members.
    fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.member.is_some() {
            return Err(incomplete());
        }
        self.length += bytes.len() as u64;
        self.out()?.write_all(bytes)
    }

    fn out(&mut self) -> io::Result<&mut Box<dyn Encode>> {
        self.out.as_mut().ok_or_else(|| io::Error::other("archive was closed"))
    }
}

fn incomplete() -> io::Error {
    io::Error::other("archive member is incomplete")
}
