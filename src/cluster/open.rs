//! Opens a file of a backup, and nothing else: component by component, no symbolic link followed
//! but those of the tablespaces and of pg_wal, and no waiting on what is no regular file.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use protocol::BackupPath;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::cluster::Tablespace;
use crate::cluster::contents::{Member, WAL_DIR};
use crate::cluster::relation::split;
use crate::error::{Error, Result};

/// How every descriptor here is opened.
const COMMON: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// A regular file, opened, with fstat's answer; or it is not there, or no longer part of a backup.
#[derive(Debug)]
pub enum Opened {
    /// The file.
    File(File, Metadata),
    /// It has gone, or its relation has become unlogged.
    Vanished,
}

/// Directories on the way to a file that are kept open, from the data directory's own on: a database's in a tablespace is the
/// fifth. The server keeps ten descriptors (NUM_RESERVED_FDS, fd.c) for what does not go through its own accounting.
const KEPT: usize = 5;

/// Opens members of a backup, one after the other. Keeps the directories that led to the last one: files come
/// in the order of a list, many of a directory together, and directories beside each other.
#[derive(Debug)]
pub struct Opener<'a> {
    /// The data directory.
    root: &'a Path,
    /// The way to the last file by the names of directories, the first of which is the data directory, without one.
    way: Vec<(Vec<u8>, OwnedFd)>,
    /// Where it led to, if that is further than what is kept of it.
    beyond: Option<OwnedFd>,
    /// The path of that directory; none after a way that came to no end.
    parent: Option<Vec<u8>>,
}

impl<'a> Opener<'a> {
    /// For one command: what is kept is not looked at again, and a directory may be replaced.
    pub fn new(root: &'a Path) -> Self {
        Self { root, way: Vec::new(), beyond: None, parent: None }
    }

    /// Opens a member.
    pub fn open(&mut self, path: &BackupPath, member: &Member<'_>) -> Result<Opened> {
        let (parent, name) = split(path.as_bytes());
        let Some(directory) = self.directory(path, parent, member)? else { return Ok(Opened::Vanished) };
        if let Some(init_fork) = &member.init_fork
            && statat(directory, OsStr::from_bytes(init_fork), AtFlags::SYMLINK_NOFOLLOW).is_ok()
        {
            return Ok(Opened::Vanished);
        }
        open_file(directory, name, path.as_bytes())
    }

    /// Opens the directory that a member is in; `None` if it has gone.
    fn directory(
        &mut self,
        path: &BackupPath,
        parent: &[u8],
        member: &Member<'_>,
    ) -> Result<Option<&OwnedFd>> {
        if self.parent.as_deref() != Some(parent) {
            self.parent = None;
            if !self.go(path, parent, member)? {
                return Ok(None);
            }
            self.parent = Some(parent.to_vec());
        }
        Ok(self.last())
    }

    fn last(&self) -> Option<&OwnedFd> {
        self.beyond.as_ref().or(self.way.last().map(|(_, directory)| directory))
    }

    /// Goes to the directory that a member is in, from where the way to the last one turns off; false if it has gone.
    fn go(&mut self, path: &BackupPath, parent: &[u8], member: &Member<'_>) -> Result<bool> {
        let names = || protocol::path::components(parent).filter(|name| !name.is_empty());
        let known =
            self.way.iter().skip(1).zip(names()).take_while(|((known, _), name)| known == name).count();
        self.way.truncate(known + 1);
        self.beyond = None;
        if self.way.is_empty() {
            let root = self.root.as_os_str().as_bytes();
            let directory = open_directory(CWD, root, OFlags::empty())
                .map_err(|errno| Error::io("open directory", root, errno.into()))?;
            self.way.push((Vec::new(), directory));
        }
        for (depth, name) in names().enumerate().skip(known) {
            let Some(directory) = self.last() else { return Ok(false) };
            // The second component is the tablespace's entry in pg_tblspc.
            let next = match member.tablespace.filter(|space| depth == 1 && !space.in_place()) {
                Some(space) => follow_tablespace(self.root, directory, name, space).transpose(),
                None => Some(open_directory(directory, name, OFlags::NOFOLLOW)),
            };
            let next = match next {
                Some(Ok(next)) => next,
                None | Some(Err(Errno::NOENT)) => return Ok(false),
                // A link, or no directory: a list would not have gone into it.
                Some(Err(Errno::LOOP | Errno::NOTDIR)) => {
                    return Err(Error::NotInBackup { path: path.as_bytes().to_vec() });
                }
                Some(Err(errno)) => {
                    return Err(Error::io("open directory", path.as_bytes(), errno.into()));
                }
            };
            if self.way.len() < KEPT {
                self.way.push((name.to_vec(), next));
            } else {
                self.beyond = Some(next);
            }
        }
        Ok(true)
    }
}

/// Opens a file of pg_wal, which may itself be a link. `name` has been checked to be a WAL file's.
pub fn open_wal_file(root: &Path, name: &[u8], path: &[u8]) -> Result<Opened> {
    let directory =
        open_directory(CWD, root.join(OsStr::from_bytes(WAL_DIR)).as_os_str().as_bytes(), OFlags::empty())
            .map_err(|errno| Error::io("open directory", WAL_DIR, errno.into()))?;
    open_file(&directory, name, path)
}

fn open_file(directory: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Opened> {
    // A FIFO without a writer would block; regular files do not mind the flag.
    let flags = COMMON | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match openat(directory, OsStr::from_bytes(name), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(Opened::Vanished),
        // A link, a socket, a device without driver.
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => {
            return Err(Error::NotRegular { path: path.to_vec() });
        }
        Err(errno) => return Err(Error::io("open file", path, errno.into())),
    };
    let metadata = file.metadata().map_err(|error| Error::io("stat file", path, error))?;
    if metadata.is_file() {
        Ok(Opened::File(file, metadata))
    } else {
        Err(Error::NotRegular { path: path.to_vec() })
    }
}

fn open_directory(
    directory: impl std::os::fd::AsFd,
    name: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    openat(directory, OsStr::from_bytes(name), COMMON | OFlags::DIRECTORY | flags, Mode::empty())
}

/// Follows a tablespace's link, if it still leads where it did when the backup started.
fn follow_tablespace(
    root: &Path,
    directory: &OwnedFd,
    name: &[u8],
    space: &Tablespace,
) -> rustix::io::Result<Option<OwnedFd>> {
    let target = readlinkat(directory, OsStr::from_bytes(name), Vec::new())?;
    if target.as_bytes() != space.location {
        return Ok(None);
    }
    let location = root.join(OsStr::from_bytes(&space.location));
    open_directory(CWD, location.as_os_str().as_bytes(), OFlags::empty()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Layout;
    use crate::cluster::contents::member;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn open(root: &Path, layout: &Layout, path: &str) -> Result<Opened> {
        let path = BackupPath::from_bytes(path).unwrap();
        let member = member(layout, &path).expect("path should pass the check of names");
        Opener::new(root).open(&path, &member)
    }

    #[test]
    fn only_regular_files_and_no_links() {
        let root = std::env::temp_dir().join(format!("pg_parallel_backup_open_{}", std::process::id()));
        let outside = root.join("outside");
        let data = root.join("data");
        fs::create_dir_all(data.join("base/5")).unwrap();
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        fs::create_dir_all(outside.join("PG_18_1/5")).unwrap();
        fs::write(data.join("base/5/1"), b"one").unwrap();
        fs::write(data.join("base/5/2"), b"two").unwrap();
        fs::write(data.join("base/5/2_init"), b"").unwrap();
        fs::write(outside.join("PG_18_1/5/3"), b"three").unwrap();
        symlink(&outside, data.join("pg_tblspc/16384")).unwrap();
        symlink(&outside, data.join("pg_tblspc/16385")).unwrap();
        symlink("/etc", data.join("etc")).unwrap();
        symlink("/etc/passwd", data.join("passwd")).unwrap();
        rustix::fs::mknodat(CWD, data.join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let space = |oid, location: &Path| Tablespace {
            oid,
            location: location.as_os_str().as_bytes().to_vec(),
            relative: None,
        };
        let tablespaces = vec![space(16384, &outside), space(16385, Path::new("/another"))];
        let layout = Layout::new(tablespaces, b"PG_18_1".to_vec(), Default::default());
        let result = std::panic::catch_unwind(|| {
            let is_file = |path| matches!(open(&data, &layout, path), Ok(Opened::File(_, m)) if m.len() > 0);
            let vanished = |path| matches!(open(&data, &layout, path), Ok(Opened::Vanished));
            let code = |path| open(&data, &layout, path).unwrap_err().sqlstate().to_string();
            assert!(is_file("base/5/1"));
            assert!(is_file("pg_tblspc/16384/PG_18_1/5/3"));
            assert!(vanished("base/5/9"));
            assert!(vanished("base/6/1"));
            assert!(vanished("base/5/2"), "its relation is unlogged");
            assert!(vanished("pg_tblspc/16385/PG_18_1/5/3"), "the link was changed");
            assert_eq!(code("etc/passwd"), "42501");
            assert_eq!(code("passwd"), "42809");
            assert_eq!(code("base/5"), "42809");
            assert_eq!(code("fifo"), "42809");
            assert_eq!(code("pg_tblspc/16384"), "42809");
            assert_eq!(code("base/5/1/x"), "42501");
        });
        fs::remove_dir_all(&root).unwrap();
        result.unwrap();
    }

    #[test]
    fn from_one_directory_to_another() {
        let root = std::env::temp_dir().join(format!("pg_parallel_backup_ways_{}", std::process::id()));
        let (outside, data) = (root.join("outside"), root.join("data"));
        let files = [
            "1",
            "base/1",
            "base/5/1",
            "base/5/2",
            "base/51/1",
            "pg_tblspc/16384/PG_18_1/5/1",
            "pg_tblspc/16384/PG_18_1/6/1",
            "a/b/c/d/e/f/1",
            "a/b/c/d/e/f/2",
            "a/b/c/d/e/g/1",
            "a/b/c/d/1",
            "a/b/c/d/e/f/g/h/1",
        ];
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink(&outside, data.join("pg_tblspc/16384")).unwrap();
        for file in files {
            fs::create_dir_all(data.join(file).parent().unwrap()).unwrap();
            fs::write(data.join(file), file).unwrap();
        }
        symlink(data.join("base"), data.join("link")).unwrap();
        let space =
            Tablespace { oid: 16384, location: outside.as_os_str().as_bytes().to_vec(), relative: None };
        let layout = Layout::new(vec![space], b"PG_18_1".to_vec(), Default::default());
        let result = std::panic::catch_unwind(|| {
            let mut opener = Opener::new(&data);
            let mut read = |path: &str| -> Result<_> {
                let path = BackupPath::from_bytes(path).unwrap();
                match opener.open(&path, &member(&layout, &path).unwrap())? {
                    Opened::File(file, _) => Ok(Some(std::io::read_to_string(file).unwrap())),
                    Opened::Vanished => Ok(None),
                }
            };
            // From each to each, and by ways that come to no end.
            for (number, from) in files.iter().enumerate() {
                for to in files {
                    for path in [*from, to] {
                        assert_eq!(read(path).unwrap().as_deref(), Some(path));
                    }
                    match number % 3 {
                        0 => assert!(read(&format!("{to}/x")).is_err()),
                        1 => assert_eq!(read("base/6/1").unwrap(), None),
                        _ => assert!(read("link/5/1").is_err()),
                    }
                    assert_eq!(read(to).unwrap().as_deref(), Some(to));
                }
            }
            let mut opener = Opener::new(&data);
            for file in files {
                let path = BackupPath::from_bytes(file).unwrap();
                opener.open(&path, &member(&layout, &path).unwrap()).unwrap();
                assert!(opener.way.len() <= KEPT);
            }
        });
        fs::remove_dir_all(&root).unwrap();
        result.unwrap();
    }
}
