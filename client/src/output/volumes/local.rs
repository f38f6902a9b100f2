//! Volumes in a directory.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use super::store::{Store, StoredFile};
use crate::abort::Abort;
use crate::catalog::index::INDEX;
use crate::error::{Error, Result};
use crate::options::{Options, Sync, Wal};
use crate::output::cleanup::{Cleanup, Purpose};
use crate::output::directory::target::Target;
use crate::output::space::{Need, Sizes};
use crate::output::{MANIFEST, MANIFEST_UNDER_WAY, Modes, claim, say, sync};

/// The index, as long as all of it is not there.
const INDEX_UNDER_WAY: &str = "backup_index.json.tmp";

/// The directory.
pub struct Local<'a> {
    options: &'a Options,
    abort: &'a Abort,
    cleanup: &'a Cleanup,
    target: Target,
}

/// A file in it.
struct LocalFile {
    path: PathBuf,
    file: File,
}

impl<'a> Local<'a> {
    /// As the options say.
    pub fn new(options: &'a Options, abort: &'a Abort, cleanup: &'a Cleanup) -> Self {
        // The modes are known, and used, from the claim on.
        Self { options, abort, cleanup, target: Target::new(options.target.clone(), Modes::STRICT) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.target.root().join(name)
    }

    fn make(&self, name: &str) -> Result<LocalFile> {
        let path = self.path(name);
        let file = self.target.create(&path, self.target.modes().file)?;
        Ok(LocalFile { path, file })
    }

    fn syncs(&self) -> bool {
        self.options.sync != Sync::None
    }
}

impl Store for Local<'_> {
    fn check(&self) -> Result<()> {
        claim::check_free(&self.options.target, std::iter::empty()).map(drop)
    }

    fn needs(&self, sizes: &Sizes, is_compressed: bool) -> Vec<Need> {
        let wal = if self.options.wal == Wal::None { 0 } else { sizes.wal };
        // How small it gets nobody knows before.
        let bytes = (!is_compressed).then(|| sizes.total().saturating_add(wal));
        vec![Need { directory: self.options.target.clone(), bytes }]
    }

    fn claim(&mut self, modes: Modes) -> Result<()> {
        self.cleanup.claim(Purpose::Data, &self.options.target, modes.directory)?;
        self.target = Target::new(self.options.target.clone(), modes);
        Ok(())
    }

    fn modes(&self) -> Modes {
        self.target.modes()
    }

    fn create(&self, name: &str, _: u64) -> Result<Box<dyn StoredFile>> {
        Ok(Box::new(self.make(name)?))
    }

    fn spool(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.target.root())
    }

    fn shown(&self, name: &str) -> PathBuf {
        self.path(name)
    }

    fn manifest(&self) -> Result<Box<dyn StoredFile>> {
        Ok(Box::new(self.make(MANIFEST_UNDER_WAY)?))
    }

    fn sync(&self) -> Result<()> {
        if !self.syncs() {
            return Ok(());
        }
        say(self.options, "syncing data to disk ...");
        sync::sync_directory(self.target.root(), self.options.sync, self.options.jobs, self.abort)?;
        self.cleanup.made().iter().try_for_each(|path| sync::sync_parent(path))
    }

    fn finish(&self, has_manifest: bool, index: &[u8]) -> Result<()> {
        if has_manifest {
            say(self.options, format_args!("renaming {MANIFEST_UNDER_WAY} to {MANIFEST}"));
            sync::rename(&self.path(MANIFEST_UNDER_WAY), &self.path(MANIFEST), self.options.sync)?;
        }
        let mut file = self.make(INDEX_UNDER_WAY)?;
        file.write_all(index).map_err(|error| Error::io("write to file", &file.path, &error))?;
        if self.syncs() {
            file.file.sync_all().map_err(|error| Error::io("fsync file", &file.path, &error))?;
        }
        sync::rename(&file.path, &self.path(INDEX), self.options.sync)?;
        self.cleanup.finish(self.syncs())
    }
}

impl Write for LocalFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl StoredFile for LocalFile {
    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
