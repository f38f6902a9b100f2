//! A data directory as the server has it: `--format=plain`.

mod resume;
pub mod target;
mod wal;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IoSlice, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::{BackupPath, ChecksumAlgorithm};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use self::target::Target;
use self::wal::{WalDirectory, pg_wal};
use super::cleanup::{Cleanup, Purpose, remove_journal};
use super::journal::{Entry, Identity, JOURNAL_FILE, Journal, Record, nothing_to_resume};
use super::positioned::write_pieces;
use super::space::{self, Need, Sizes};
use super::{
    Attributes, Layout, MANIFEST, MANIFEST_UNDER_WAY, Modes, Output, OutputFile, Piece, Remains, Tablespace,
    WalOutput, claim, say, sync,
};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::options::{Options, Resume, Sync};
use crate::{os, report};

/// Files from here on get their place on disk before their bytes come, so that several that are
/// written at once do not lie in pieces between each other.
const PREALLOCATED: u64 = 1 << 20;

/// Bytes of the manifest that are written at once: a cluster of a million files has 150 MB of it.
const MANIFEST_BUFFER: usize = 256 << 10;

/// A plain backup.
pub struct Directory<'a> {
    options: &'a Options,
    abort: &'a Abort,
    cleanup: &'a Cleanup,
    target: Target,
    /// Files in parts, from their first part's first byte on until they are complete or gone.
    shared: Mutex<HashMap<BackupPath, Arc<File>>>,
    journal: Option<Journal>,
}

impl<'a> Directory<'a> {
    /// As the options say.
    pub fn new(options: &'a Options, abort: &'a Abort, cleanup: &'a Cleanup) -> Self {
        // The modes are known, and used, from the claim on.
        let target = Target::new(options.target.clone(), Modes::STRICT);
        Self { options, abort, cleanup, target, shared: Mutex::default(), journal: None }
    }

    fn resumes(&self) -> bool {
        self.options.resume == Resume::Now
    }

    fn syncs(&self) -> bool {
        self.options.sync != Sync::None
    }

    fn create(&self, path: &BackupPath, size: u64) -> Result<File> {
        let created = self.target.create_listed(path)?;
        if size >= PREALLOCATED && self.syncs() {
            // A full disk is better heard of now than after the file was sent; and not every file
            // system can do it.
            if let Err(error @ Errno::NOSPC) = fallocate(&created, FallocateFlags::KEEP_SIZE, 0, size) {
                return Err(Error::io("write to file", &self.shown(path), &error.into()));
            }
        }
        Ok(created)
    }

    fn shared(&self) -> MutexGuard<'_, HashMap<BackupPath, Arc<File>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_path(&self, name: &str) -> PathBuf {
        self.target.root().join(name)
    }
}

impl Output for Directory<'_> {
    fn check(&self) -> Result<()> {
        if self.resumes() {
            let path = self.own_path(JOURNAL_FILE);
            return if path.exists() { Ok(()) } else { Err(nothing_to_resume(&path)) };
        }
        for directory in std::iter::once(&self.options.target).chain(&self.options.waldir) {
            claim::check_free(directory, std::iter::empty())?;
        }
        Ok(())
    }

    fn needs(&self, sizes: &Sizes, tablespaces: Option<&[Tablespace]>) -> Vec<Need> {
        let options = self.options;
        let need = |directory: &Path, bytes| Need { directory: directory.to_owned(), bytes: Some(bytes) };
        let mut needs = vec![need(&options.target, sizes.data)];
        needs.push(need(options.waldir.as_ref().unwrap_or(&options.target), sizes.wal));
        for tablespace in tablespaces.unwrap_or_default() {
            let bytes = sizes.tablespaces.get(&tablespace.oid).copied().unwrap_or_default();
            needs.push(if tablespace.is_in_place() {
                need(&options.target, bytes)
            } else {
                need(&options.tablespaces.locate(&tablespace.location), bytes)
            });
        }
        space::merged(needs)
    }

    fn has_tablespaces_apart(&self) -> bool {
        true
    }

    fn claim(&mut self, modes: Modes) -> Result<()> {
        if self.resumes() {
            self.cleanup.resume(Purpose::Data, &self.options.target)?;
        } else {
            self.cleanup.claim(Purpose::Data, &self.options.target, modes.directory)?;
        }
        self.target = Target::new(self.options.target.clone(), modes);
        if let Some(waldir) = &self.options.waldir {
            if self.resumes() && self.target.has_link("pg_wal", waldir) {
                return self.cleanup.resume(Purpose::Wal, waldir);
            }
            self.cleanup.claim(Purpose::Wal, waldir, modes.directory)?;
            self.target.link("pg_wal", waldir)?;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<Option<Record>> {
        if !self.resumes() {
            return Ok(None);
        }
        let (journal, record) = Journal::resume(self.own_path(JOURNAL_FILE), self.syncs())?;
        self.journal = Some(journal);
        Ok(Some(record))
    }

    fn begin_journal(&mut self, identity: &Identity) -> Result<()> {
        if self.options.resume == Resume::Possible {
            self.journal = Some(Journal::create(self.own_path(JOURNAL_FILE), identity, self.syncs())?);
        }
        Ok(())
    }

    fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    fn keep_only(&self, record: &Record) -> Result<()> {
        resume::keep_only(&self.target, record)
    }

    fn is_there(&self, path: &BackupPath, entry: &Entry, algorithm: ChecksumAlgorithm) -> Result<bool> {
        resume::is_there(&self.target, path, entry, algorithm, self.abort)
    }

    fn prepare(&mut self, layout: &Layout<'_>) -> Result<()> {
        // The WAL stream begins before the list says that these exist.
        if self.options.waldir.is_none() {
            self.target.make("pg_wal")?;
        }
        self.target.make("pg_wal/archive_status")?;
        if layout.wal_summaries {
            self.target.make("pg_wal/summaries")?;
        }
        self.target.make("pg_tblspc")?;
        let map = &self.options.tablespaces;
        for old in map.unmatched(layout.tablespaces.iter().map(|tablespace| &tablespace.location[..])) {
            report::warning(format_args!("the server has no tablespace in directory \"{}\"", old.display()));
        }
        for tablespace in layout.tablespaces {
            if tablespace.is_in_place() {
                // A directory of the data directory like any other.
                self.target.make(&tablespace.name())?;
                continue;
            }
            let place = map.locate(&tablespace.location);
            if self.resumes() && self.target.has_link(&tablespace.name(), &place) {
                self.cleanup.resume(Purpose::Tablespace, &place)?;
                continue;
            }
            self.cleanup.claim(Purpose::Tablespace, &place, self.target.modes().directory)?;
            // The client makes the links: with a tablespace_map, recovery would make them again, to
            // where the original has its tablespaces.
            self.target.link(&tablespace.name(), &place)?;
        }
        Ok(())
    }

    fn directory(&self, path: &BackupPath, attributes: &Attributes) -> Result<()> {
        self.target.make_listed(path, attributes.mode)
    }

    fn begin(&self, piece: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        if piece.part.is_none() && piece.size == 0 {
            return self.target.create_empty(piece.path).map(|()| None);
        }
        if piece.part.is_none() {
            return Ok(Some(Arc::new(self.create(piece.path, piece.size)?)));
        }
        // Under the lock: one of its parts makes the file, and all others write to that.
        let mut shared = self.shared();
        if let Some(file) = shared.get(piece.path) {
            return Ok(Some(Arc::<File>::clone(file)));
        }
        let file = self.create(piece.path, piece.size)?;
        file.set_len(piece.size)
            .map_err(|error| Error::io("truncate file", &self.shown(piece.path), &error))?;
        let file = Arc::new(file);
        shared.insert(piece.path.clone(), Arc::clone(&file));
        Ok(Some(file))
    }

    fn reopen(&self, piece: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        Ok(Some(Arc::new(self.target.open_listed(piece.path)?)))
    }

    fn complete(&self, path: &BackupPath, attributes: &Attributes) -> Result<()> {
        self.shared().remove(path);
        // Not before: with some modes it could not be opened again, for another try.
        self.target.set_mode(path, attributes.mode)
    }

    fn vanished(&self, path: &BackupPath, _: &[u8]) -> Result<Option<Remains>> {
        self.shared().remove(path);
        // An earlier try may have written some of it.
        self.target.remove(path).map(|()| None)
    }

    fn shown(&self, path: &BackupPath) -> PathBuf {
        self.target.path(path)
    }

    fn own_file(&self, name: &str, content: &[u8]) -> Result<()> {
        self.target.write(name, content)
    }

    fn append(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.own_path(name);
        let mode = self.target.modes().file;
        let is_new = !path.exists();
        let mut file: File = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(mode)
            .open(&path)
            .map_err(|error| Error::io("open file", &path, &error))?;
        if is_new {
            file.set_permissions(fs::Permissions::from_mode(mode))
                .map_err(|error| Error::io("set permissions on file", &path, &error))?;
        }
        file.write_all(content).map_err(|error| Error::io("write to file", &path, &error))
    }

    fn manifest(&self) -> Result<Option<Box<dyn Write + Send>>> {
        let path = self.own_path(MANIFEST_UNDER_WAY);
        let file = self.target.create(&path, self.target.modes().file)?;
        Ok(Some(Box::new(BufWriter::with_capacity(MANIFEST_BUFFER, file))))
    }

    fn wal(&self) -> Result<Box<dyn WalOutput + '_>> {
        Ok(Box::new(WalDirectory::new(&self.target, self.syncs())))
    }

    fn has_history(&self, name: &str) -> bool {
        pg_wal(&self.target).join(name).exists()
    }

    fn close(&self) -> Result<()> {
        if !self.syncs() {
            return Ok(());
        }
        say(self.options, "syncing data to disk ...");
        sync::sync_directory(self.target.root(), self.options.sync, self.options.jobs, self.abort)?;
        // Names of directories that are new, in directories that are not ours.
        self.cleanup.made().iter().try_for_each(|path| sync::sync_parent(path))
    }

    fn finish(&self) -> Result<()> {
        if self.options.manifest.is_some() {
            say(self.options, format_args!("renaming {MANIFEST_UNDER_WAY} to {MANIFEST}"));
            let (from, to) = (self.own_path(MANIFEST_UNDER_WAY), self.own_path(MANIFEST));
            sync::rename(&from, &to, self.options.sync)?;
        }
        remove_journal(self.target.root())?;
        // The last thing that is done to the directories: from here on they keep others out by not being
        // empty.
        self.cleanup.finish(self.syncs())
    }
}

impl OutputFile for File {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn write_pieces(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        write_pieces(self, pieces, at)
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.read_at(buffer, at)
    }

    fn start_writeback(&self, at: u64, length: u64) {
        os::start_writeback(self, at, length);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::options::{self, Invocation};
    use crate::wal::SegmentSize;

    fn with_directory(test: impl FnOnce(&Path, &Directory<'_>)) {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("target");
        let arguments = ["pg_parallel_basebackup".into(), "-D".into(), target.clone().into_os_string()];
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let (abort, cleanup) = (Abort::new().unwrap(), Cleanup::default());
        let mut directory = Directory::new(&options, &abort, &cleanup);
        directory.claim(Modes::STRICT).unwrap();
        directory.prepare(&Layout { tablespaces: &[], wal_summaries: false }).unwrap();
        test(&target, &directory);
    }

    #[test]
    fn settings_are_appended() {
        with_directory(|root, directory| {
            directory.own_file("postgresql.auto.conf", b"a = 1\n").unwrap();
            directory.append("postgresql.auto.conf", b"b = 2\n").unwrap();
            assert_eq!(fs::read(root.join("postgresql.auto.conf")).unwrap(), b"a = 1\nb = 2\n");
            directory.append("new.conf", b"c = 3\n").unwrap();
            assert_eq!(fs::read(root.join("new.conf")).unwrap(), b"c = 3\n");
        });
    }

    #[test]
    fn parts_share_a_file_until_it_is_complete_or_gone() {
        with_directory(|root, directory| {
            let path = BackupPath::from_bytes("f").unwrap();
            let attributes = Attributes { mode: 0o600, mtime: 0 };
            let piece = |offset| Piece { path: &path, size: 10, part: Some((offset, 5)), attributes };
            for (offset, bytes) in [(5, b"world"), (0, b"hello")] {
                let file = directory.begin(&piece(offset)).unwrap().unwrap();
                assert_eq!(fs::metadata(root.join("f")).unwrap().len(), 10);
                file.write(bytes, offset).unwrap();
            }
            let mut read = [0; 5];
            assert_eq!(directory.reopen(&piece(5)).unwrap().unwrap().read(&mut read, 5).unwrap(), 5);
            assert_eq!(&read, b"world");
            directory.complete(&path, &Attributes { mode: 0o640, mtime: 0 }).unwrap();
            assert_eq!(fs::read(root.join("f")).unwrap(), b"helloworld");
            assert_eq!(fs::metadata(root.join("f")).unwrap().permissions().mode() & 0o7777, 0o640);

            directory.begin(&piece(0)).unwrap().unwrap().write_pieces(&[IoSlice::new(b"x")], 0).unwrap();
            directory.vanished(&path, &[]).unwrap();
            assert!(!root.join("f").exists() && directory.shared().is_empty());
        });
    }

    #[test]
    fn segments_have_their_full_size_and_are_done_only_when_full() {
        with_directory(|root, directory| {
            let size = SegmentSize::new(1 << 20).unwrap().bytes();
            let mut wal = directory.wal().unwrap();
            for (name, content, is_full) in [
                ("000000010000000000000003", vec![1; 1 << 20], true),
                ("000000010000000000000004", b"begin".to_vec(), false),
            ] {
                wal.begin(name, size).unwrap();
                wal.write(&content).unwrap();
                wal.end(is_full).unwrap();
            }
            assert!(!directory.has_history("00000002.history"));
            wal.history("00000002.history", b"1\t0/300\n").unwrap();
            assert!(directory.has_history("00000002.history"));
            let pg_wal = root.join("pg_wal");
            let size_of = |name: &str| fs::metadata(pg_wal.join(name)).map(|found| found.len()).ok();
            assert_eq!(size_of("000000010000000000000003"), Some(1 << 20));
            assert_eq!(size_of("archive_status/000000010000000000000003.done"), Some(0));
            assert_eq!(size_of("000000010000000000000004"), Some(1 << 20));
            assert_eq!(size_of("archive_status/000000010000000000000004.done"), None);
            assert_eq!(size_of("archive_status/00000002.history.done"), Some(0));
            let content = fs::read(pg_wal.join("000000010000000000000004")).unwrap();
            assert!(content.starts_with(b"begin\0") && content[5..].iter().all(|byte| *byte == 0));
        });
    }
}
