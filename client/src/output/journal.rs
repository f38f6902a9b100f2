//! What of a backup is done, in one file in its directory: for whoever goes on with it after this process has died.
//!
//! A line for each directory and for each file that is complete, with its checksum; each line has a checksum of its own,
//! and what comes behind the first that is not whole does not count. Lines go to the operating system at once and to disk
//! within a second or so, the files themselves by and by: so nothing that is said here of a file is believed before that was read again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pages::checksum::{Checksum, from_crc, to_crc};
use protocol::id::{from_hex, to_hex};
use protocol::{BackupId, BackupPath, ChecksumAlgorithm, Lsn};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::output::Attributes;

/// The file. As with the claim's, no server lists such a name.
pub const JOURNAL_FILE: &str = "pgsql_tmp.pg_parallel_basebackup.resume";

/// The first line's word, and the version of what follows.
const MAGIC: &str = "pg_parallel_basebackup 1";

/// How long lines may wait for the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Which backup it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name on the server.
    pub id: BackupId,
    /// The cluster's system identifier.
    pub system: u64,
    /// Where it starts.
    pub timeline: u32,
    /// Likewise.
    pub start: Lsn,
    /// That of the files' checksums.
    pub algorithm: ChecksumAlgorithm,
}

/// A file that was complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its size in bytes.
    pub size: u64,
    /// Its mode and modification time, as the server had them.
    pub attributes: Attributes,
    /// Of all its bytes.
    pub checksum: Vec<u8>,
}

/// What a journal says.
#[derive(Debug)]
pub struct Record {
    /// Of which backup.
    pub identity: Identity,
    /// Directories with their modes, in the order they were made in.
    pub directories: Vec<(BackupPath, u32)>,
    /// Files that were complete.
    pub files: HashMap<BackupPath, Entry>,
    /// Server processes that files were fetched from.
    pub processes: Vec<u32>,
    /// Whether these were all.
    pub is_complete: bool,
}

/// A journal that is being written. As long as it is there no other process has it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    sync: bool,
    /// When it went to disk last; whoever writes a line has this.
    synced: Mutex<Instant>,
}

impl Journal {
    /// Begins one.
    pub fn create(path: PathBuf, identity: &Identity, sync: bool) -> Result<Self> {
        let file = open(&path, true).map_err(|error| Error::io("create file", &path, &error))?;
        lock(&file, &path)?;
        let journal = Self::of(file, path, sync);
        journal.line(MAGIC)?;
        let Identity { id, system, timeline, start, algorithm } = identity;
        journal.line(&format!("backup {id} {system} {timeline} {start} {}", algorithm.name()))?;
        journal.to_disk()?;
        Ok(journal)
    }

    /// Goes on with one that somebody has left, and what it says.
    pub fn resume(path: PathBuf, sync: bool) -> Result<(Self, Record)> {
        let file = open(&path, false).map_err(|error| match error.kind() {
            ErrorKind::NotFound => nothing_to_resume(&path),
            _ => Error::io("open file", &path, &error),
        })?;
        lock(&file, &path)?;
        let failed = |error: io::Error| Error::io("read file", &path, &error);
        let (record, length) = read(BufReader::new(&file)).map_err(failed)?;
        let record = record.ok_or_else(|| nothing_to_resume(&path))?;
        // What is not whole is written over.
        file.set_len(length).map_err(|error| Error::io("truncate file", &path, &error))?;
        Ok((Self::of(file, path, sync), record))
    }

    fn of(file: File, path: PathBuf, sync: bool) -> Self {
        Self { path, file, sync, synced: Mutex::new(Instant::now()) }
    }

    /// A connection was made that fetches files.
    pub fn process(&self, pid: i32) -> Result<()> {
        self.line(&format!("p {pid}"))
    }

    /// A directory was made.
    pub fn directory(&self, path: &BackupPath, mode: u32) -> Result<()> {
        self.line(&format!("d {mode:o} {path}"))
    }

    /// A file is complete.
    pub fn file(&self, path: &BackupPath, entry: &Entry) -> Result<()> {
        let Entry { size, attributes: Attributes { mode, mtime }, checksum } = entry;
        self.line(&format!("f {mode:o} {size} {mtime} {} {path}", to_hex(checksum)))
    }

    /// A file that was complete is not what it was, and gone: it does not have to be there.
    pub fn forget(&self, path: &BackupPath) -> Result<()> {
        self.line(&format!("x {path}"))
    }

    /// All files are there. On disk when this returns: from now on the server may have stopped the backup.
    pub fn complete(&self) -> Result<()> {
        self.line("complete")?;
        self.to_disk()
    }

    fn line(&self, text: &str) -> Result<()> {
        let checksum = to_hex(&Checksum::of(ChecksumAlgorithm::Crc32c, text.as_bytes()));
        let line = format!("{text} {checksum}\n");
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.file)
            .write_all(line.as_bytes())
            .map_err(|error| Error::io("write to file", &self.path, &error))?;
        if synced.elapsed() < SYNC_INTERVAL {
            return Ok(());
        }
        *synced = Instant::now();
        // Others write on meanwhile.
        drop(synced);
        self.to_disk()
    }

    fn to_disk(&self) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| Error::io("fsync file", &self.path, &error))
    }
}

/// There is no backup that could be gone on with.
pub fn nothing_to_resume(path: &Path) -> Error {
    let directory = path.parent().unwrap_or(Path::new("."));
    Error::local(format!("there is no backup to resume in directory \"{}\"", directory.display()))
        .with_hint("Leave out --resume to begin one, in a directory that is empty or does not exist.")
}

fn open(path: &Path, is_new: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(is_new)
        .mode(0o600)
        .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
        .open(path)
}

/// A process that is alive has its journal locked.
fn lock(file: &File, path: &Path) -> Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            let directory = path.parent().unwrap_or(Path::new("."));
            Err(Error::local(format!("the backup in directory \"{}\" is still running", directory.display())))
        }
        // Where there are no locks the server lets in only one coordinator all the same, and the claims tell the one
        // before that it has lost the directories.
        _ => Ok(()),
    }
}

/// What a journal says, and how many bytes of it say so.
fn read(mut from: impl BufRead) -> io::Result<(Option<Record>, u64)> {
    let (mut record, mut length, mut number) = (None, 0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = from.read_until(b'\n', &mut line)?;
        let Some(text) = checked(&line) else { return Ok((record, length)) };
        let fits = match (number, &mut record) {
            (0, _) => text == MAGIC,
            (1, _) => {
                record = identity(text).map(|identity| Record {
                    identity,
                    directories: Vec::new(),
                    files: HashMap::new(),
                    processes: Vec::new(),
                    is_complete: false,
                });
                record.is_some()
            }
            (_, Some(record)) => take(text, record).is_some(),
            (_, None) => false,
        };
        if !fits {
            return Ok((record, length));
        }
        number += 1;
        length += count as u64;
    }
}

/// The text of a line that is whole.
fn checked(line: &[u8]) -> Option<&str> {
    let (text, checksum) = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?.rsplit_once(' ')?;
    let found = Checksum::of(ChecksumAlgorithm::Crc32c, text.as_bytes());
    (from_hex(checksum).is_some_and(|checksum| checksum == from_crc(to_crc(&found)))).then_some(text)
}

fn identity(text: &str) -> Option<Identity> {
    let fields: Vec<&str> = text.split(' ').collect();
    let ["backup", id, system, timeline, start, algorithm] = fields[..] else { return None };
    Some(Identity {
        id: id.parse().ok()?,
        system: system.parse().ok()?,
        timeline: timeline.parse().ok()?,
        start: start.parse().ok()?,
        algorithm: algorithm.parse().ok()?,
    })
}

fn take(text: &str, record: &mut Record) -> Option<()> {
    let fields: Vec<&str> = text.split(' ').collect();
    match fields[..] {
        ["complete"] => record.is_complete = true,
        ["p", pid] => record.processes.push(pid.parse().ok()?),
        ["d", mode, path] => {
            let path = BackupPath::parse(path.as_bytes()).ok()?;
            record.directories.push((path, u32::from_str_radix(mode, 8).ok()?));
        }
        ["x", path] => {
            record.files.remove(&BackupPath::parse(path.as_bytes()).ok()?);
        }
        ["f", mode, size, mtime, checksum, path] => {
            let attributes =
                Attributes { mode: u32::from_str_radix(mode, 8).ok()?, mtime: mtime.parse().ok()? };
            let entry = Entry { size: size.parse().ok()?, attributes, checksum: from_hex(checksum)? };
            record.files.insert(BackupPath::parse(path.as_bytes()).ok()?, entry);
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity_of_test() -> Identity {
        Identity {
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            system: 7_000_000_000_000_000_001,
            timeline: 3,
            start: Lsn(0x1_0000_0028),
            algorithm: ChecksumAlgorithm::Sha256,
        }
    }

    fn entry(size: u64) -> Entry {
        Entry { size, attributes: Attributes { mode: 0o640, mtime: -5 }, checksum: vec![0xab; 32] }
    }

    fn path(name: &[u8]) -> BackupPath {
        BackupPath::from_bytes(name).unwrap()
    }

    #[test]
    fn what_is_written_is_read_up_to_where_it_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let name = place.path().join(JOURNAL_FILE);
        let journal = Journal::create(name.clone(), &identity_of_test(), true).unwrap();
        journal.process(77).unwrap();
        journal.directory(&path(b"base"), 0o700).unwrap();
        journal.file(&path(b"base/a b\xff\n"), &entry(1)).unwrap();
        journal.file(&path(b"base/1"), &entry(2)).unwrap();
        journal.file(&path(b"base/1"), &entry(3)).unwrap();
        journal.complete().unwrap();
        let error = Journal::resume(name.clone(), true).unwrap_err();
        assert!(error.message().ends_with("is still running"), "{error}");
        drop(journal);

        let whole = std::fs::read(&name).unwrap();
        let mut lines = 0;
        for length in 0..=whole.len() {
            std::fs::write(&name, &whole[..length]).unwrap();
            lines += usize::from(length > 0 && whole[length - 1] == b'\n');
            match Journal::resume(name.clone(), true) {
                Err(error) => {
                    assert!(lines < 2, "{length}: {error}");
                    assert!(error.message().starts_with("there is no backup to resume"), "{error}");
                }
                Ok((journal, record)) => {
                    assert_eq!(record.identity, identity_of_test());
                    assert_eq!(record.directories.len(), usize::from(lines > 3));
                    assert_eq!(record.processes, [77][..usize::from(lines > 2)]);
                    assert_eq!(record.files.len(), lines.saturating_sub(4).min(2));
                    assert_eq!(record.is_complete, lines == 8);
                    // And goes on behind it.
                    journal.file(&path(b"more"), &entry(9)).unwrap();
                    drop(journal);
                    let (_, again) = Journal::resume(name.clone(), false).unwrap();
                    assert_eq!(again.files.len(), record.files.len() + 1);
                    assert_eq!(again.files[&path(b"more")], entry(9));
                    let (journal, _) = Journal::resume(name.clone(), false).unwrap();
                    journal.forget(&path(b"more")).unwrap();
                    drop(journal);
                    let (_, again) = Journal::resume(name.clone(), false).unwrap();
                    assert_eq!(again.files, record.files);
                }
            }
        }
        assert_eq!(lines, 8);
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            let (record, length) = read(&changed[..]).unwrap();
            assert!(length <= at as u64 && record.is_none_or(|record| !record.is_complete), "{at}");
        }
    }
}
