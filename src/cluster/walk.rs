//! Walks a cluster, a backup's files and directories one by one, holding no more of it in memory
//! than the path it is at.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::cluster::contents::{Verdict, WAL_DIR, init_fork, join, verdict};
use crate::cluster::{Layout, Tablespace};
use crate::error::{Error, Result};

/// Directories held open at once. The server keeps ten descriptors (NUM_RESERVED_FDS, fd.c) for
/// what does not go through its own accounting.
const MAX_OPEN: usize = 4;

/// A file or directory of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Relative to the data directory, raw.
    pub path: &'a [u8],
    /// Whether it is a directory.
    pub directory: bool,
    /// Bytes, 0 for a directory.
    pub size: u64,
    /// Modification time, seconds since the Unix epoch.
    pub mtime: i64,
    /// Permission bits.
    pub mode: u32,
}

/// What a walk reports to.
pub trait Visitor {
    /// Called before each name that is looked at, whether or not it is part of the backup: the
    /// place to check for interrupts.
    fn poll(&mut self) -> Result<()>;
    /// A file or directory; a directory comes before what is in it.
    fn entry(&mut self, entry: Entry<'_>) -> Result<()>;
    /// Neither file nor directory nor known link: left out, as BASE_BACKUP leaves it out.
    fn special(&mut self, path: &[u8]) -> Result<()>;
}

/// How to walk a cluster.
#[derive(Debug)]
pub struct Walk<'a> {
    /// The data directory.
    pub root: &'a Path,
    /// Its tablespaces.
    pub layout: &'a Layout,
    /// The mode of a directory that stands in for a link (pg_dir_create_mode).
    pub directory_mode: u32,
    /// The directories that BASE_BACKUP puts into pg_wal, which differ between versions.
    pub wal_directories: &'a [&'a [u8]],
}

impl Walk<'_> {
    /// Everything in a backup but what STOP_BACKUP returns.
    pub fn run(&self, visitor: &mut impl Visitor) -> Result<()> {
        self.tree(b"", true, true, visitor)
    }

    /// The data directory without its tablespaces.
    pub fn data_directory(&self, visitor: &mut impl Visitor) -> Result<()> {
        self.tree(b"", true, false, visitor)
    }

    /// One tablespace.
    pub fn tablespace(&self, space: &Tablespace, visitor: &mut impl Visitor) -> Result<()> {
        let directory = join(&space.entry(), &self.layout.version_directory);
        self.tree(&directory, false, false, visitor)
    }

    /// Walks `top`, relative to the data directory; its own entry is left out for the data
    /// directory and reported for a tablespace.
    fn tree(
        &self,
        top: &[u8],
        is_root: bool,
        with_tablespaces: bool,
        visitor: &mut impl Visitor,
    ) -> Result<()> {
        let start = self.root.join(OsStr::from_bytes(top));
        let mut walk = WalkDir::new(&start)
            .min_depth(usize::from(is_root))
            .max_open(MAX_OPEN)
            .follow_links(false)
            .follow_root_links(false)
            .into_iter();
        while let Some(entry) = walk.next() {
            visitor.poll()?;
            let entry = match entry {
                Ok(entry) => entry,
                // Gone since its directory was read.
                Err(error) if error.io_error().is_some_and(is_gone) => continue,
                Err(error) => return Err(self.walk_error(top, error)),
            };
            if entry.depth() == 0 {
                self.directory(top, entry.metadata().map_err(Into::into), visitor)?;
                continue;
            }
            let parent = self.relative(&start, top, entry.path().parent().unwrap_or(Path::new("")));
            let name = entry.file_name().as_bytes();
            let path = join(&parent, name);
            let found = verdict(self.layout, &parent, name);
            if found == Verdict::Excluded || self.is_unlogged(&parent, name)? {
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
                continue;
            }
            let metadata = match entry.metadata().map_err(io::Error::from) {
                Ok(metadata) => metadata,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(Error::io("stat file or directory", &path, error)),
            };
            match found {
                Verdict::Excluded => {}
                Verdict::Tablespace(space) => {
                    self.tablespace_entry(space, &path, &metadata, visitor)?;
                    if entry.file_type().is_dir() {
                        walk.skip_current_dir();
                    }
                    if with_tablespaces {
                        self.tablespace(space, visitor)?;
                    }
                }
                Verdict::Emptied | Verdict::Wal => {
                    if metadata.is_dir() {
                        walk.skip_current_dir();
                    } else if !metadata.is_symlink() {
                        visitor.special(&path)?;
                        continue;
                    }
                    let mode = if metadata.is_symlink() { self.directory_mode } else { mode(&metadata) };
                    let mtime = metadata.mtime();
                    visitor.entry(Entry { path: &path, directory: true, size: 0, mtime, mode })?;
                    if found == Verdict::Wal {
                        for name in self.wal_directories {
                            let path = join(WAL_DIR, name);
                            visitor.entry(Entry { path: &path, directory: true, size: 0, mtime, mode })?;
                        }
                    }
                }
                Verdict::Included if metadata.is_dir() => self.directory(&path, Ok(metadata), visitor)?,
                Verdict::Included if metadata.is_file() => visitor.entry(Entry {
                    path: &path,
                    directory: false,
                    size: metadata.len(),
                    mtime: metadata.mtime(),
                    mode: mode(&metadata),
                })?,
                Verdict::Included => visitor.special(&path)?,
            }
        }
        Ok(())
    }

    fn directory(
        &self,
        path: &[u8],
        metadata: io::Result<Metadata>,
        visitor: &mut impl Visitor,
    ) -> Result<()> {
        match metadata {
            Ok(metadata) => visitor.entry(Entry {
                path,
                directory: true,
                size: 0,
                mtime: metadata.mtime(),
                mode: mode(&metadata),
            }),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(Error::io("stat file or directory", path, error)),
        }
    }

    /// The entry of a tablespace in pg_tblspc: a directory, with the permissions of what a link
    /// leads to.
    fn tablespace_entry(
        &self,
        space: &Tablespace,
        path: &[u8],
        metadata: &Metadata,
        visitor: &mut impl Visitor,
    ) -> Result<()> {
        let target = if space.in_place() {
            Ok(metadata.clone())
        } else {
            fs::metadata(self.root.join(OsStr::from_bytes(&space.location)))
        };
        let mode = target.map_or(self.directory_mode, |metadata| mode(&metadata));
        visitor.entry(Entry { path, directory: true, size: 0, mtime: metadata.mtime(), mode })
    }

    /// Whether the name is a fork of an unlogged relation other than the init fork: replay makes
    /// those anew.
    fn is_unlogged(&self, directory: &[u8], name: &[u8]) -> Result<bool> {
        let Some(init_fork) = init_fork(self.layout, directory, name) else {
            return Ok(false);
        };
        let init_fork = join(directory, &init_fork);
        Ok(fs::symlink_metadata(self.root.join(OsStr::from_bytes(&init_fork))).is_ok())
    }

    /// A path under `start`, which is `top` relative to the data directory.
    fn relative(&self, start: &Path, top: &[u8], path: &Path) -> Vec<u8> {
        let rest = path.strip_prefix(start).unwrap_or(path).as_os_str().as_bytes();
        if rest.is_empty() { top.to_vec() } else { join(top, rest) }
    }

    fn walk_error(&self, top: &[u8], error: walkdir::Error) -> Error {
        let path = error.path().map_or_else(
            || PathBuf::from(OsStr::from_bytes(top)),
            |path| path.strip_prefix(self.root).unwrap_or(path).to_path_buf(),
        );
        let path = path.into_os_string().into_vec();
        Error::io("read directory", &path, error.into())
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[derive(Default)]
    struct Collected {
        entries: Vec<(String, bool)>,
        special: Vec<String>,
    }

    impl Visitor for Collected {
        fn poll(&mut self) -> Result<()> {
            Ok(())
        }
        fn entry(&mut self, entry: Entry<'_>) -> Result<()> {
            self.entries.push((String::from_utf8_lossy(entry.path).into_owned(), entry.directory));
            Ok(())
        }
        fn special(&mut self, path: &[u8]) -> Result<()> {
            self.special.push(String::from_utf8_lossy(path).into_owned());
            Ok(())
        }
    }

    /// A directory that goes away with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pg_parallel_backup_{name}_{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn file(&self, path: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_base_backup_would_send() {
        let cluster = Scratch::new("walk");
        let outside = Scratch::new("walk_space");
        for path in [
            "PG_VERSION",
            "postmaster.pid",
            "global/pg_control",
            "global/1262",
            "base/5/1",
            "base/5/2",
            "base/5/2_init",
            "base/5/2_fsm",
            "base/5/t3_7",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "pg_replslot/slot/state",
            "pg_wal/000000010000000000000001",
            "pg_tblspc/16385/PG_18_1/5/9",
            "pg_tblspc/16386/PG_18_1/5/9",
            "odd name%\n'",
        ] {
            cluster.file(path);
        }
        outside.file("PG_18_1/5/8");
        outside.file("PG_17_1/5/8");
        symlink(&outside.0, cluster.0.join("pg_tblspc/16384")).unwrap();
        symlink("/nowhere", cluster.0.join("link")).unwrap();
        let layout = Layout {
            tablespaces: vec![
                Tablespace {
                    oid: 16384,
                    location: outside.0.as_os_str().as_bytes().to_vec(),
                    relative: None,
                },
                Tablespace {
                    oid: 16385,
                    location: b"pg_tblspc/16385".to_vec(),
                    relative: Some(b"pg_tblspc/16385".to_vec()),
                },
            ],
            version_directory: b"PG_18_1".to_vec(),
            names: Default::default(),
        };
        let walk = Walk {
            root: &cluster.0,
            layout: &layout,
            directory_mode: 0o700,
            wal_directories: &[b"archive_status"],
        };
        let mut seen = Collected::default();
        walk.run(&mut seen).unwrap();
        let place =
            |path: &str| seen.entries.iter().position(|(p, _)| p == path).unwrap_or_else(|| panic!("{path}"));
        assert!(place("base") < place("base/5") && place("base/5") < place("base/5/1"));
        assert!(place("pg_tblspc/16384") < place("pg_tblspc/16384/PG_18_1"));
        let mut entries = seen.entries.clone();
        entries.sort();
        let expected = [
            ("PG_VERSION", false),
            ("base", true),
            ("base/5", true),
            ("base/5/1", false),
            ("base/5/2_init", false),
            ("global", true),
            ("global/1262", false),
            ("odd name%\n'", false),
            ("pg_replslot", true),
            ("pg_tblspc", true),
            ("pg_tblspc/16384", true),
            ("pg_tblspc/16384/PG_18_1", true),
            ("pg_tblspc/16384/PG_18_1/5", true),
            ("pg_tblspc/16384/PG_18_1/5/8", false),
            ("pg_tblspc/16385", true),
            ("pg_tblspc/16385/PG_18_1", true),
            ("pg_tblspc/16385/PG_18_1/5", true),
            ("pg_tblspc/16385/PG_18_1/5/9", false),
            ("pg_wal", true),
            ("pg_wal/archive_status", true),
        ];
        assert_eq!(entries, expected.map(|(path, directory)| (path.to_owned(), directory)));
        assert_eq!(seen.special, ["link"]);
    }
}
