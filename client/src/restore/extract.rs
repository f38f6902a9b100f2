//! Files of a backup as they get to their places, each held against the manifest before it counts.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pages::checksum::Checksum;
use pages::relation;
use protocol::{BackupPath, ChecksumAlgorithm};

use super::archive::{CHUNK, Member, MemberKind, unreadable};
use super::manifest::{Manifest, TABLESPACE_MAP};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::os;
use crate::output::claim::is_claim;
use crate::output::cleanup::make_directory;
use crate::output::directory::target::Target;
use crate::report::progress::Counters;

/// What makes a cluster of a directory: it is written when everything else is there.
pub const CONTROL_FILE: &str = "global/pg_control";

/// What a cluster cannot recover from a backup without.
const LABEL: &[u8] = b"backup_label";

/// The most bytes of a file that is kept in memory: all of them have less.
const HELD: u64 = 1 << 20;

/// How much is written before the kernel is told to begin with the disk.
const WRITEBACK: u64 = 8 << 20;

/// A directory that is being restored, by several threads at once.
#[derive(Debug)]
pub struct Extract<'a> {
    /// Where it goes.
    pub target: &'a Target,
    /// What it must be, if that is known.
    pub manifest: Option<&'a Manifest>,
    /// Where the server had its tablespaces, but for those in place.
    pub tablespaces: &'a BTreeMap<u32, Vec<u8>>,
    /// Whose progress it is.
    pub counters: &'a Counters,
    /// Whether it goes on.
    pub abort: &'a Abort,
    state: State,
}

#[derive(Debug, Default)]
struct State {
    control_file: Mutex<Option<(Vec<u8>, u32)>>,
    has_label: AtomicBool,
    has_group_access: AtomicBool,
    /// Directories that are there.
    directories: Mutex<HashSet<Vec<u8>>>,
    /// Files that no manifest has, so that none comes twice.
    others: Mutex<HashSet<Vec<u8>>>,
}

impl<'a> Extract<'a> {
    /// Nothing is there yet but the links to tablespaces.
    pub fn new(
        target: &'a Target,
        manifest: Option<&'a Manifest>,
        tablespaces: &'a BTreeMap<u32, Vec<u8>>,
        counters: &'a Counters,
        abort: &'a Abort,
    ) -> Self {
        Self { target, manifest, tablespaces, counters, abort, state: State::default() }
    }

    /// A member of the archive `shown`.
    pub fn member(&self, member: &Member, bytes: &mut dyn Read, shown: &str) -> Result<()> {
        match &member.kind {
            MemberKind::Directory => self.directory(member),
            MemberKind::Link(place) => self.link(&member.path, place, shown),
            MemberKind::File => self.file(member, bytes, shown),
        }
    }

    /// pg_control as it came, and its mode; everything else is there.
    pub fn finish(&self) -> Result<(Vec<u8>, u32)> {
        if let Some(manifest) = self.manifest {
            manifest.check_complete()?;
        }
        if !self.state.has_label.load(Ordering::Relaxed) {
            return Err(Error::local("the backup has no backup_label"));
        }
        lock(&self.state.control_file)
            .take()
            .ok_or_else(|| Error::local(format!("the backup has no \"{CONTROL_FILE}\"")))
    }

    /// Whether the cluster lets its group in.
    pub fn has_group_access(&self) -> bool {
        self.state.has_group_access.load(Ordering::Relaxed)
    }

    fn directory(&self, member: &Member) -> Result<()> {
        self.parent(&member.path)?;
        self.target.make_listed(&member.path, member.mode)?;
        // The data directory itself is in no archive, and has the mode of all others (GetDataDirectoryCreatePerm).
        if member.path.as_bytes() == b"base" && member.mode & 0o050 == 0o050 {
            self.state.has_group_access.store(true, Ordering::Relaxed);
        }
        lock(&self.state.directories).insert(member.path.as_bytes().to_vec());
        Ok(())
    }

    /// Links to tablespaces were made where they are to be; any other is nothing that a backup has.
    fn link(&self, path: &BackupPath, place: &[u8], shown: &str) -> Result<()> {
        let name = path.as_bytes();
        let oid =
            name.strip_prefix(b"pg_tblspc/").and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok());
        match oid.and_then(|oid: u32| self.tablespaces.get(&oid)) {
            Some(known) if known == place => Ok(()),
            _ => Err(Error::local(format!(
                "archive \"{shown}\" has a symbolic link that no backup has: \"{}\"",
                String::from_utf8_lossy(name)
            ))),
        }
    }

    fn file(&self, member: &Member, bytes: &mut dyn Read, shown: &str) -> Result<()> {
        if is_claim(member.path.as_bytes()) {
            return Err(Error::local(format!(
                "archive \"{shown}\" has a file by whose name this program marks a directory as its own: \"{}\"",
                String::from_utf8_lossy(member.path.as_bytes())
            )));
        }
        let known = match self.manifest {
            Some(manifest) => manifest.find(&member.path)?,
            None => None,
        };
        let name = String::from_utf8_lossy(member.path.as_bytes());
        if let Some(file) = known.filter(|file| file.size != member.size) {
            return Err(Error::local(format!(
                "\"{name}\" has size {} in archive \"{shown}\" but size {} in the manifest",
                member.size, file.size
            )));
        }
        if known.is_none() && !lock(&self.state.others).insert(member.path.as_bytes().to_vec()) {
            return Err(Error::local(format!("file \"{name}\" is there twice")));
        }
        let algorithm = known.map_or(ChecksumAlgorithm::None, |file| file.algorithm);
        let mut checksum = Checksum::new(algorithm);
        let path = member.path.as_bytes();
        if path == CONTROL_FILE.as_bytes() || path == TABLESPACE_MAP {
            if member.size > HELD {
                return Err(Error::local(format!("\"{name}\" is too large: {} bytes", member.size)));
            }
            let mut content = Vec::new();
            self.copy(member, bytes, shown, &mut checksum, |bytes, _| {
                content.extend_from_slice(bytes);
                Ok(())
            })?;
            if path == CONTROL_FILE.as_bytes() {
                *lock(&self.state.control_file) = Some((content, member.mode));
            }
        } else {
            self.parent(&member.path)?;
            let file = self.target.create_listed(&member.path)?;
            let failed = |error| Error::io("write to file", &self.target.path(&member.path), &error);
            self.copy(member, bytes, shown, &mut checksum, |bytes, at| {
                file.write_all_at(bytes, at).map_err(failed)?;
                start_writeback(&file, at + bytes.len() as u64);
                Ok(())
            })?;
            self.target.set_mode(&member.path, member.mode)?;
        }
        if known.is_some_and(|file| file.checksum[..] != checksum.finish()[..]) {
            return Err(Error::local(format!(
                "checksum mismatch for file \"{name}\" in archive \"{shown}\""
            )));
        }
        if path == LABEL {
            self.state.has_label.store(true, Ordering::Relaxed);
        }
        if self.counts(member) {
            self.counters.file();
        }
        Ok(())
    }

    /// Whether a file is one of those that progress is measured by: WAL is in no manifest.
    fn counts(&self, member: &Member) -> bool {
        self.manifest.is_none() || !member.path.as_bytes().starts_with(b"pg_wal/")
    }

    fn copy(
        &self,
        member: &Member,
        bytes: &mut dyn Read,
        shown: &str,
        checksum: &mut Checksum,
        mut write: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; usize::try_from(member.size).map_or(CHUNK, |size| size.clamp(1, CHUNK))];
        let counts = self.counts(member);
        let mut at = 0;
        while at < member.size {
            self.abort.check()?;
            let most = usize::try_from(member.size - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = match bytes.read(&mut buffer[..most]) {
                Ok(0) => return Err(unreadable(shown, &ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(shown, &error)),
            };
            checksum.update(&buffer[..count]);
            write(&buffer[..count], at)?;
            at += count as u64;
            if counts {
                self.counters.received(count);
            }
        }
        Ok(())
    }

    /// Makes the directories above, if they are to come later, or in another archive.
    fn parent(&self, path: &BackupPath) -> Result<()> {
        let (parent, _) = relation::split(path.as_bytes());
        if parent.is_empty() || lock(&self.state.directories).contains(parent) {
            return Ok(());
        }
        for end in memchr::memchr_iter(b'/', parent).chain([parent.len()]) {
            let name = &parent[..end];
            let listed = BackupPath::from_bytes(name)
                .map_err(|error| Error::local(format!("invalid path: {error}")))?;
            let place = self.target.path(&listed);
            match make_directory(&place, self.target.modes().directory) {
                Ok(()) => {}
                // Nothing is a link here but what was made to be one.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && self.is_directory(&place) => {}
                Err(error) => return Err(Error::io("create directory", &place, &error)),
            }
            lock(&self.state.directories).insert(name.to_vec());
        }
        Ok(())
    }

    fn is_directory(&self, place: &Path) -> bool {
        let is_own_link = place.strip_prefix(self.target.root()).is_ok_and(|name| self.target.is_link(name));
        std::fs::symlink_metadata(place).is_ok_and(|found| found.is_dir() || is_own_link)
    }
}

/// Writes a file of the restored cluster that came otherwise, and has it on disk before it returns if that is wanted.
pub fn write_file(target: &Target, name: &str, content: &[u8], mode: u32, sync: bool) -> Result<()> {
    let path = target.root().join(name);
    let mut file = target.create(&path, mode)?;
    file.write_all(content)
        .and_then(|()| if sync { file.sync_all() } else { Ok(()) })
        .map_err(|error| Error::io("write to file", &path, &error))
}

fn start_writeback(file: &File, end: u64) {
    if end.is_multiple_of(WRITEBACK) {
        os::start_writeback(file, end - WRITEBACK, WRITEBACK);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
