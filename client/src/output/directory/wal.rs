//! The WAL stream in a directory, as pg_basebackup leaves it there, down to the names and sizes of the files.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::target::Target;
use crate::error::{Error, Result};
use crate::output::WalOutput;

/// Writes segments and what belongs to them to the target's pg_wal.
pub struct WalDirectory<'a> {
    target: &'a Target,
    directory: PathBuf,
    sync: bool,
    open: Option<OpenSegment>,
}

struct OpenSegment {
    file: File,
    name: String,
    path: PathBuf,
}

impl<'a> WalDirectory<'a> {
    /// Nothing is open yet.
    pub fn new(target: &'a Target, sync: bool) -> Self {
        Self { target, directory: pg_wal(target), sync, open: None }
    }

    /// Writes `archive_status/<name>.done`.
    fn mark_done(&self, name: &str) -> Result<()> {
        let path = self.directory.join("archive_status").join(format!("{name}.done"));
        self.target.create(&path, self.target.modes().file).map(drop)
    }
}

/// Where WAL is in a target.
pub fn pg_wal(target: &Target) -> PathBuf {
    target.root().join("pg_wal")
}

impl WalOutput for WalDirectory<'_> {
    /// The space is really taken, so that a full disk shows here and not when the copy recovers.
    fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        let path = self.directory.join(name);
        let failed = |error: std::io::Error| Error::io("open write-ahead log file", &path, &error);
        let mut file = self.target.create(&path, self.target.modes().file)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..size >> 20 {
            file.write_all(&zeros).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.open = Some(OpenSegment { file, name: name.to_owned(), path });
        Ok(())
    }

    fn write(&mut self, wal: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.file
            .write_all(wal)
            .map_err(|error| Error::io(&format!("write {} bytes to WAL file", wal.len()), &open.path, &error))
    }

    fn flush(&mut self) -> Result<()> {
        match &self.open {
            Some(open) if self.sync => {
                open.file.sync_all().map_err(|error| Error::io("fsync file", &open.path, &error))
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, is_full: bool) -> Result<()> {
        self.flush()?;
        match self.open.take() {
            Some(open) if is_full => self.mark_done(&open.name),
            _ => Ok(()),
        }
    }

    fn history(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let temporary = self.directory.join(format!("{name}.tmp"));
        let mut file = self.target.create(&temporary, self.target.modes().file)?;
        file.write_all(content)
            .and_then(|()| if self.sync { file.sync_all() } else { Ok(()) })
            .map_err(|error| Error::io("write timeline history file", &temporary, &error))?;
        let path = self.directory.join(name);
        fs::rename(&temporary, &path).map_err(|error| Error::io("rename file", &temporary, &error))?;
        self.mark_done(name)
    }
}
