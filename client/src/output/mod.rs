//! Where a backup goes. No connection is known here, and no file system anywhere else but here: a backup
//! speaks to an [`Output`].
//!
//! Outputs so far: [`directory`], a data directory as the server has it, [`tar`], archives as pg_basebackup
//! writes them, [`volumes`], many archives, and [`discard`], nothing at all.

pub mod claim;
pub mod cleanup;
pub mod collected;
pub mod directory;
pub mod discard;
pub mod journal;
pub mod positioned;
pub mod space;
pub mod sync;
pub mod tar;
pub mod volumes;

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::path::PathBuf;
use std::sync::Arc;

use protocol::{BackupId, BackupPath, ChecksumAlgorithm, Lsn};

use self::cleanup::Cleanup;
use self::collected::Collected;
use self::directory::Directory;
use self::discard::Discard;
use self::journal::{Entry, Identity, Journal, Record};
use self::space::{Need, Sizes};
use self::tar::Tar;
use self::volumes::Volumes;
use crate::abort::Abort;
use crate::catalog::index::Prior;
use crate::error::{Error, Result};
use crate::options::{Format, Options};
use crate::report;

/// The manifest's name.
pub const MANIFEST: &str = "backup_manifest";

/// Its name as long as the backup is not complete.
pub const MANIFEST_UNDER_WAY: &str = "backup_manifest.tmp";

/// What makes a backup of what is received. First `check`, then `claim`, `prepare`, and from there on files
/// over all connections at once; in the end own files, `sync` and `finish`. What is left of a backup that
/// failed is for [`Cleanup`] to remove.
///
/// How files come is for [`Output::intake`] to say. Each file comes in one or several pieces ([`Piece`]): `begin` for each of them, and its bytes; when the
/// file is whole and known to be right, `complete`, or else `vanished`. Before it
/// is known to be right it may be opened once more by `reopen`, to be corrected. A piece that failed is begun
/// again: what an earlier try left of it goes. Or a file is collected elsewhere, and comes by `put` when
/// it is whole and known to be right.
pub trait Output: Send + Sync {
    /// Fails where a backup could not go, as far as that can be told before the server is bothered.
    fn check(&self) -> Result<()>;

    /// What a cluster of these sizes needs, where it is going to be written to file systems. Before the backup
    /// has started nobody may know yet where tablespaces are.
    fn needs(&self, _sizes: &Sizes, _tablespaces: Option<&[Tablespace]>) -> Vec<Need> {
        Vec::new()
    }

    /// Whether tablespaces go to directories of their own, which may not be known yet.
    fn has_tablespaces_apart(&self) -> bool {
        false
    }

    /// Fails if a cluster of so many tablespaces, beside the two that every cluster has, cannot go there.
    fn check_tablespaces(&self, _count: usize) -> Result<()> {
        Ok(())
    }

    /// Takes what it needs for itself alone: nobody else can have it from now on.
    fn claim(&mut self, modes: Modes) -> Result<()>;

    /// What a process that has gone has left of a backup, and nobody else goes on with from now on. None where a backup is
    /// to begin. Before `claim`, which takes over then.
    fn resume(&mut self) -> Result<Option<Record>> {
        Ok(None)
    }

    /// From now on it is noted what is done, for another process to go on with; nothing where that cannot be.
    fn begin_journal(&mut self, _identity: &Identity) -> Result<()> {
        Ok(())
    }

    /// Where it is noted, if it is.
    fn journal(&self) -> Option<&Journal> {
        None
    }

    /// Removes what a process that has gone has left and not recorded. After `prepare`.
    fn keep_only(&self, _record: &Record) -> Result<()> {
        Ok(())
    }

    /// Whether a file is there as it was recorded; if not, what is there of it goes.
    fn is_there(&self, _path: &BackupPath, _entry: &Entry, _algorithm: ChecksumAlgorithm) -> Result<bool> {
        Ok(false)
    }

    /// The backup has started: makes what must be there before anything is listed.
    fn prepare(&mut self, layout: &Layout<'_>) -> Result<()>;

    /// Whether anything is kept. If not, everything is received and verified all the same.
    fn keeps(&self) -> bool {
        true
    }

    /// How files come.
    fn intake(&self) -> Intake {
        Intake::Any
    }

    /// Whether what is collected may be streams as the server has sent them.
    fn takes_streams(&self) -> bool {
        false
    }

    /// Whether backup_label comes before everything else, and tablespace_map with it: where the links to
    /// tablespaces are left to recovery. Otherwise the label comes late, and makes a cluster of what is
    /// there already.
    fn has_labels_first(&self) -> bool {
        false
    }

    /// Fails if nothing can have this name, of a file that the server listed.
    fn check_path(&self, _path: &BackupPath) -> Result<()> {
        Ok(())
    }

    /// A directory that the server listed.
    fn directory(&self, path: &BackupPath, attributes: &Attributes) -> Result<()>;

    /// A piece begins to come. `None` if nothing is written of it.
    fn begin(&self, piece: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>>;

    /// A piece that came, to be corrected. `None` if nothing is kept of it.
    fn reopen(&self, piece: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>>;

    /// All of a file is there, as it should be.
    fn complete(&self, path: &BackupPath, attributes: &Attributes) -> Result<()>;

    /// A file that was collected is whole, and as it should be; or, where files come in order, the next part
    /// of it.
    fn put(&self, _piece: &Piece<'_>, _content: &Collected) -> Result<()> {
        Err(Error::local("files are not collected for this output"))
    }

    /// A file for what is too long to be collected in memory. Nobody else sees it.
    fn spool(&self) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A file is no more on the server, whatever of it came before. What has to stay of it, if something
    /// has to, is `head` and zeroes behind it.
    fn vanished(&self, path: &BackupPath, head: &[u8]) -> Result<Option<Remains>>;

    /// What a file is called in a message about it.
    fn shown(&self, path: &BackupPath) -> PathBuf;

    /// Writes a file of the client's own.
    fn own_file(&self, name: &str, content: &[u8]) -> Result<()>;

    /// Writes on at the end of a file, which need not be there.
    fn append(&self, name: &str, content: &[u8]) -> Result<()>;

    /// Where the manifest is to be written, under a name that says that the backup is not complete.
    fn manifest(&self) -> Result<Option<Box<dyn Write + Send>>>;

    /// Where the WAL stream is to be written.
    fn wal(&self) -> Result<Box<dyn WalOutput + '_>>;

    /// Whether the WAL stream has brought this timeline history file.
    fn has_history(&self, name: &str) -> bool;

    /// What the backup is, once STOP_BACKUP has said it. Before `close`.
    fn about(&self, _about: About) {}

    /// Everything was handed over: it gets to disk.
    fn close(&self) -> Result<()>;

    /// The backup is good: it gets its final names, and is left to whom it is for.
    fn finish(&self) -> Result<()>;
}

/// A file that is being written, over several connections if it comes in parts. Offsets are those of the
/// file.
pub trait OutputFile: Send + Sync {
    /// Writes bytes.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Writes pieces that follow each other, by as few system calls as it takes.
    fn write_pieces(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<()>;

    /// Reads what was written.
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// These bytes may go to disk by and by.
    fn start_writeback(&self, at: u64, length: u64);
}

/// Takes the WAL stream, segment by segment.
pub trait WalOutput: Send {
    /// Begins a segment. It has its full size from the beginning, and what is not written of it is zero.
    fn begin(&mut self, name: &str, size: u64) -> Result<()>;

    /// Its next bytes.
    fn write(&mut self, wal: &[u8]) -> Result<()>;

    /// What was written of it gets to disk, unless the user does not want that.
    fn flush(&mut self) -> Result<()>;

    /// Ends the segment. One that is full is marked as archived: it must not be archived again when the
    /// copy is promoted.
    fn end(&mut self, is_full: bool) -> Result<()>;

    /// Writes a timeline history file.
    fn history(&mut self, name: &str, content: &[u8]) -> Result<()>;
}

/// A file that comes, or a part of one.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Which file.
    pub path: &'a BackupPath,
    /// The size of all of the file.
    pub size: u64,
    /// Where the part begins and how long it is, if it is not the whole file.
    pub part: Option<(u64, u64)>,
    /// As the file has them while this comes.
    pub attributes: Attributes,
}

/// How files come to an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    /// Whole or in parts, in any order, of whatever size they turn out to have at each try.
    Any,
    /// In any order too, but each of a size that is known before its first byte: a large relation file as it
    /// was listed, in one part or several, a WAL segment, or else a file that was collected.
    Sized,
    /// One after the other, all of them collected: a large relation file in parts that follow each other, of the
    /// size that it was listed with, every other file whole.
    Ordered,
    /// As if in order, but only within each file: several come at once, a large relation file from its beginning to its end.
    InOrderEach,
}

/// What stays of a file that has vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remains {
    /// How many bytes.
    pub size: u64,
    /// Of the file when it was there.
    pub attributes: Attributes,
}

/// What the server says of a file or directory beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Its mode, of which only the lowest twelve bits count.
    pub mode: u32,
    /// When it was modified, in seconds since the Unix epoch.
    pub mtime: i64,
}

/// What is known when the backup has started.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// The server's tablespaces but for the two that every cluster has.
    pub tablespaces: &'a [Tablespace],
    /// Whether the server has pg_wal/summaries.
    pub wal_summaries: bool,
}

/// What a backup is, for who describes it.
#[derive(Debug, Clone)]
pub struct About {
    /// The server's name for it.
    pub id: BackupId,
    /// When it began, RFC 3339.
    pub began: String,
    /// The server's version number.
    pub server_version: u32,
    /// The cluster.
    pub system_identifier: u64,
    /// Where WAL that it needs begins, on which timeline,
    pub start: (Lsn, u32),
    /// and where it ends.
    pub stop: (Lsn, u32),
    /// Of WAL segments, in bytes.
    pub segment_size: u64,
    /// The server's tablespaces but for the two that every cluster has.
    pub tablespaces: Vec<Tablespace>,
    /// What it goes on from, if it is an increment.
    pub prior: Option<Prior>,
}

/// A tablespace of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its name in pg_tblspc.
    pub oid: u32,
    /// Its directory, or a path relative to the data directory if it is in place.
    pub location: Vec<u8>,
}

/// Modes of what the client makes on its own, by whether the source's data directory is open to
/// its group (PostgreSQL's `pg_dir_create_mode` and `pg_file_create_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Directories.
    pub directory: u32,
    /// Files.
    pub file: u32,
}

/// The output that the options ask for.
pub fn of<'a>(
    options: &'a Options,
    abort: &'a Arc<Abort>,
    cleanup: &'a Cleanup,
) -> Result<Box<dyn Output + 'a>> {
    Ok(if options.discard {
        Box::new(Discard)
    } else if let Some(size) = options.volumes {
        Box::new(Volumes::new(options, size, abort, cleanup)?)
    } else if options.format == Format::Tar {
        Box::new(Tar::new(options, abort, cleanup))
    } else {
        Box::new(Directory::new(options, abort, cleanup))
    })
}

fn say(options: &Options, message: impl std::fmt::Display) {
    if options.verbose {
        report::info(message);
    }
}

impl Modes {
    /// Before the server has said it: for nobody else.
    pub const STRICT: Self = Self { directory: 0o700, file: 0o600 };

    /// From `SHOW data_directory_mode`, an octal number.
    pub fn of_data_directory(setting: &str) -> Result<Self> {
        let mode = u32::from_str_radix(setting.trim(), 8)
            .map_err(|_| Error::local(format!("group access flag could not be parsed: {setting}")))?;
        Ok(if mode & 0o050 == 0o050 { Self { directory: 0o750, file: 0o640 } } else { Self::STRICT })
    }
}

impl Tablespace {
    /// Whether it is in the data directory, with nothing but a directory in pg_tblspc.
    pub fn is_in_place(&self) -> bool {
        !self.location.starts_with(b"/")
    }

    /// Its path in the data directory.
    pub fn name(&self) -> String {
        format!("pg_tblspc/{}", self.oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_follow_group_access() {
        assert_eq!(Modes::of_data_directory("0700").unwrap(), Modes::STRICT);
        assert_eq!(Modes::of_data_directory("0750").unwrap(), Modes { directory: 0o750, file: 0o640 });
        assert!(Modes::of_data_directory("rwx").is_err());
    }
}
