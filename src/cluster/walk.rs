//! Walks a cluster, a backup's files and directories one by one, holding no more of it in memory
//! than the path it is at.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use walkdir::{DirEntry, WalkDir};

use crate::cluster::contents::{Verdict, WAL_DIR, init_fork, join, verdict};
use crate::cluster::{Layout, Tablespace};
use crate::error::{Error, Result};

/// Directories held open at once by walkdir, and to look at what is in them. The server keeps ten descriptors
/// (NUM_RESERVED_FDS, fd.c) for what does not go through its own accounting; the walk of a tablespace comes on top of two of
/// each of the data directory's.
const MAX_OPEN: usize = 3;
const MAX_HELD: usize = 2;

/// How the names of init forks end.
const INIT_FORK_SUFFIX: &[u8] = b"_init";

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
    /// Called before each name that is looked at, and may be once more before each of a directory's: the
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
        let mut way = Way { start: &start, top, held: VecDeque::with_capacity(MAX_HELD + 1) };
        while let Some(entry) = walk.next() {
            visitor.poll()?;
            let entry = match entry {
                Ok(entry) => entry,
                // Gone since its directory was read, or something else has taken its place: then that was looked at already.
                Err(error) if error.io_error().is_some_and(is_gone) => continue,
                Err(error) if error.depth() > 0 && error.io_error().is_some_and(is_no_directory) => continue,
                Err(error) => return Err(self.walk_error(top, error)),
            };
            if entry.depth() == 0 {
                let metadata = entry.metadata().map(|metadata| Status::of(&metadata));
                self.directory(top, metadata.map_err(Into::into), visitor)?;
                continue;
            }
            let Some(here) = way.to(&entry)? else {
                // Behind a link there may be all of a disk.
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
                continue;
            };
            let name = entry.file_name().as_bytes();
            let path = join(&here.relative, name);
            let found = verdict(self.layout, &here.relative, name, &path);
            if found == Verdict::Excluded || self.is_unlogged(here, name, visitor)? {
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
                continue;
            }
            let status = match here.status(name) {
                Ok(status) => status,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(Error::io("stat file or directory", &path, error)),
            };
            match found {
                Verdict::Excluded => {}
                Verdict::Tablespace(space) => {
                    self.tablespace_entry(space, &path, &status, visitor)?;
                    if entry.file_type().is_dir() {
                        walk.skip_current_dir();
                    }
                    if with_tablespaces {
                        self.tablespace(space, visitor)?;
                    }
                }
                Verdict::Emptied | Verdict::Wal => {
                    let is_link = status.kind == FileType::Symlink;
                    if status.kind == FileType::Directory {
                        walk.skip_current_dir();
                    } else if !is_link {
                        visitor.special(&path)?;
                        continue;
                    }
                    let mode = if is_link { self.directory_mode } else { status.mode };
                    let mtime = status.mtime;
                    visitor.entry(Entry { path: &path, directory: true, size: 0, mtime, mode })?;
                    if found == Verdict::Wal {
                        for name in self.wal_directories {
                            let path = join(WAL_DIR, name);
                            visitor.entry(Entry { path: &path, directory: true, size: 0, mtime, mode })?;
                        }
                    }
                }
                Verdict::Included => match status.kind {
                    FileType::Directory => self.directory(&path, Ok(status), visitor)?,
                    FileType::RegularFile => {
                        let Status { size, mtime, mode, .. } = status;
                        visitor.entry(Entry { path: &path, directory: false, size, mtime, mode })?;
                    }
                    _ => visitor.special(&path)?,
                },
            }
        }
        Ok(())
    }

    fn directory(&self, path: &[u8], status: io::Result<Status>, visitor: &mut impl Visitor) -> Result<()> {
        match status {
            Ok(Status { mtime, mode, .. }) => {
                visitor.entry(Entry { path, directory: true, size: 0, mtime, mode })
            }
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
        status: &Status,
        visitor: &mut impl Visitor,
    ) -> Result<()> {
        let mode = if space.in_place() {
            status.mode
        } else {
            fs::metadata(self.root.join(OsStr::from_bytes(&space.location)))
                .map_or(self.directory_mode, |metadata| Status::of(&metadata).mode)
        };
        visitor.entry(Entry { path, directory: true, size: 0, mtime: status.mtime, mode })
    }

    /// Whether the name is a fork of an unlogged relation other than the init fork: replay makes
    /// those anew.
    fn is_unlogged(&self, here: &mut OpenDirectory, name: &[u8], visitor: &mut impl Visitor) -> Result<bool> {
        // As most directories are: names need not be taken apart.
        if here.init_forks.as_ref().is_some_and(HashSet::is_empty) {
            return Ok(false);
        }
        match init_fork(self.layout, &here.relative, name) {
            Some(init_fork) => Ok(here.init_forks(visitor)?.contains(&init_fork)),
            None => Ok(false),
        }
    }

    fn walk_error(&self, top: &[u8], error: walkdir::Error) -> Error {
        let path = error.path().map_or_else(
            || PathBuf::from(OsStr::from_bytes(top)),
            |path| path.strip_prefix(self.root).unwrap_or(path).to_path_buf(),
        );
        let path = path.into_os_string().into_vec();
        // The system's own words: walkdir's have the path again.
        let said = error.to_string();
        Error::io("read directory", &path, error.into_io_error().unwrap_or_else(|| io::Error::other(said)))
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Of something that was to be read as a directory: a file is there, or a link that leads to itself.
fn is_no_directory(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTDIR | Errno::LOOP))
}

/// The directories that lead to the one that the walk is in, the last of them.
struct Way<'a> {
    /// Where it begins, by this path, the one part in which links are followed.
    start: &'a Path,
    /// The same relative to the data directory.
    top: &'a [u8],
    held: VecDeque<OpenDirectory>,
}

impl Way<'_> {
    /// The directory that an entry is in. `None` if it has gone, or a link has taken the place of a directory on the way:
    /// what was read by way of that is of another place.
    fn to(&mut self, entry: &DirEntry) -> Result<Option<&mut OpenDirectory>> {
        if !self.held.back().is_some_and(|here| here.has(entry))
            && !self.open(entry.path().parent().unwrap_or(Path::new("")))?
        {
            return Ok(None);
        }
        Ok(self.held.back_mut())
    }

    /// Goes to a directory, from one above it that is open, component by component, so that the kernel follows no link below
    /// the start. False if there is no way.
    fn open(&mut self, path: &Path) -> Result<bool> {
        while self.held.back().is_some_and(|here| !path.starts_with(&here.path)) {
            self.held.pop_back();
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if self.held.is_empty() {
            let opened = rustix::fs::open(self.start, flags, Mode::empty());
            if !self.hold(opened, self.start.to_owned(), self.top.to_owned())? {
                return Ok(false);
            }
        }
        let from = self.held.back().map_or(self.start, |here| &here.path);
        let names = path.strip_prefix(from).unwrap_or(Path::new("")).to_owned();
        for name in &names {
            let Some(here) = self.held.back() else { return Ok(false) };
            let opened = openat(&here.directory, name, flags | OFlags::NOFOLLOW, Mode::empty());
            let relative = here.relative_of(name.as_bytes());
            if !self.hold(opened, here.path.join(name), relative)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn hold(
        &mut self,
        opened: rustix::io::Result<OwnedFd>,
        path: PathBuf,
        relative: Vec<u8>,
    ) -> Result<bool> {
        match opened {
            Ok(directory) => {
                self.held.push_back(OpenDirectory { path, relative, directory, init_forks: None });
                if self.held.len() > MAX_HELD {
                    self.held.pop_front();
                }
                Ok(true)
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(error) => Err(Error::io("open directory", &relative, error.into())),
        }
    }
}

/// A directory that the walk is in, or below. Its files are looked at by their names in it: the kernel has
/// no path to follow for each.
struct OpenDirectory {
    /// As the walk has it.
    path: PathBuf,
    /// Relative to the data directory.
    relative: Vec<u8>,
    directory: OwnedFd,
    init_forks: Option<HashSet<Vec<u8>>>,
}

impl OpenDirectory {
    /// Whether it is the directory of an entry. Bytes are compared, not components: this is asked for each file.
    fn has(&self, entry: &DirEntry) -> bool {
        let path = entry.path().as_os_str().as_bytes();
        let directory =
            path.strip_suffix(entry.file_name().as_bytes()).and_then(|path| path.strip_suffix(b"/"));
        directory == Some(self.path.as_os_str().as_bytes())
    }

    fn relative_of(&self, name: &[u8]) -> Vec<u8> {
        if self.relative.is_empty() { name.to_vec() } else { join(&self.relative, name) }
    }

    fn status(&self, name: &[u8]) -> io::Result<Status> {
        let stat = statat(&self.directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Status {
            kind: FileType::from_raw_mode(stat.st_mode),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: stat.st_mtime,
            mode: stat.st_mode & 0o7777,
        })
    }

    /// The init forks in it. They are few, and to read the directory once more costs less than to ask
    /// for each file whether it has one. One that appears later is seen when the file is opened.
    fn init_forks(&mut self, visitor: &mut impl Visitor) -> Result<&HashSet<Vec<u8>>> {
        if self.init_forks.is_none() {
            let mut found = HashSet::new();
            let read = |error: Errno| Error::io("read directory", &self.relative, error.into());
            // A directory that was removed since has no entries, and that is no error.
            for entry in Dir::read_from(&self.directory).map_err(read)? {
                visitor.poll()?;
                let entry = entry.map_err(read)?;
                let name = entry.file_name().to_bytes();
                if name.ends_with(INIT_FORK_SUFFIX) {
                    found.insert(name.to_owned());
                }
            }
            self.init_forks = Some(found);
        }
        Ok(self.init_forks.get_or_insert_default())
    }
}

/// What lstat says.
struct Status {
    kind: FileType,
    size: u64,
    mtime: i64,
    mode: u32,
}

impl Status {
    fn of(metadata: &Metadata) -> Self {
        Self {
            kind: FileType::from_raw_mode(metadata.mode()),
            size: metadata.len(),
            mtime: metadata.mtime(),
            mode: metadata.mode() & 0o7777,
        }
    }
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

    /// Has something else take the place of each directory that was read as one, once the first is there.
    struct Swapping {
        root: PathBuf,
        outside: PathBuf,
        seen: Vec<(String, bool)>,
        special: usize,
        polls: usize,
    }

    impl Visitor for Swapping {
        fn poll(&mut self) -> Result<()> {
            self.polls += 1;
            Ok(())
        }
        fn entry(&mut self, entry: Entry<'_>) -> Result<()> {
            let path = String::from_utf8_lossy(entry.path).into_owned();
            if self.seen.is_empty() {
                for number in (0..9).filter(|number| path != number.to_string()) {
                    let other = self.root.join(number.to_string());
                    fs::remove_dir(&other).unwrap();
                    match number % 3 {
                        0 => fs::write(&other, b"x").unwrap(),
                        1 => symlink(number.to_string(), &other).unwrap(),
                        _ => symlink(&self.outside, &other).unwrap(),
                    }
                }
            }
            self.seen.push((path, entry.directory));
            Ok(())
        }
        fn special(&mut self, _: &[u8]) -> Result<()> {
            self.special += 1;
            Ok(())
        }
    }

    #[test]
    fn what_was_read_as_a_directory_and_is_none() {
        let scratch = Scratch::new("swapped");
        let root = scratch.0.clone();
        for number in 0..9 {
            fs::create_dir(root.join(number.to_string())).unwrap();
        }
        let outside = Scratch::new("outside");
        for number in 0..100 {
            outside.file(&format!("below/{number}"));
        }
        let layout = Layout::new(Vec::new(), b"PG_18_1".to_vec(), Default::default());
        let walk = Walk { root: &root, layout: &layout, directory_mode: 0o700, wal_directories: &[] };
        let mut swapping = Swapping {
            root: root.clone(),
            outside: outside.0.clone(),
            seen: Vec::new(),
            special: 0,
            polls: 0,
        };
        walk.run(&mut swapping).unwrap();
        let (directories, files): (Vec<_>, Vec<_>) =
            swapping.seen.into_iter().partition(|(_, directory)| *directory);
        assert_eq!(directories.len(), 1);
        // Nothing is named that is behind a link.
        assert!(files.iter().all(|(path, _)| path.len() == 1), "{files:?}");
        assert_eq!(files.len() + swapping.special, 8);
        assert!(swapping.special >= 5);
        // Nor is anything looked for further down there.
        assert!(swapping.polls < 50, "{}", swapping.polls);
        // Where the walk begins it is an error.
        let space = Tablespace { oid: 16384, location: b"0/file".to_vec(), relative: None };
        fs::create_dir(root.join("pg_tblspc")).unwrap();
        fs::write(root.join("pg_tblspc/16384"), b"x").unwrap();
        assert!(walk.tablespace(&space, &mut Collected::default()).is_err());
    }

    #[test]
    fn a_directory_that_goes_while_it_is_walked() {
        let path = std::env::temp_dir().join(format!("pg_parallel_backup_gone_{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("16384_init"), b"").unwrap();
        let open = || {
            let mut way = Way { start: &path, top: b"base/5", held: VecDeque::new() };
            way.open(&path).unwrap().then(|| way.held.pop_back().unwrap())
        };
        struct Interrupted;
        impl Visitor for Interrupted {
            fn poll(&mut self) -> Result<()> {
                Err(Error::NoRandom)
            }
            fn entry(&mut self, _: Entry<'_>) -> Result<()> {
                Ok(())
            }
            fn special(&mut self, _: &[u8]) -> Result<()> {
                Ok(())
            }
        }
        assert!(open().unwrap().init_forks(&mut Interrupted).is_err());
        assert_eq!(open().unwrap().init_forks(&mut Collected::default()).unwrap().len(), 1);
        let mut here = open().unwrap();
        fs::remove_dir_all(&path).unwrap();
        assert!(here.init_forks(&mut Collected::default()).unwrap().is_empty());
        assert!(here.status(b"16384").is_err_and(|error| is_gone(&error)));
        assert!(open().is_none());
    }

    #[test]
    fn a_link_in_the_place_of_a_directory() {
        let cluster = Scratch::new("swapped");
        cluster.file("base/5/1");
        cluster.file("outside/5/2");
        let mut held = Way { start: &cluster.0, top: b"", held: VecDeque::new() };
        let base = cluster.0.join("base");
        assert!(held.open(&base).unwrap() && held.open(&base.join("5")).unwrap());
        let open = |path: &str| {
            Way { start: &cluster.0, top: b"", held: VecDeque::new() }.open(&cluster.0.join(path)).unwrap()
        };
        assert!(open("base/5") && open(""));
        fs::rename(cluster.0.join("base"), cluster.0.join("before")).unwrap();
        symlink(cluster.0.join("outside"), cluster.0.join("base")).unwrap();
        assert!(!open("base") && !open("base/5"));
        fs::write(cluster.0.join("file"), b"").unwrap();
        assert!(!open("file") && !open("gone/5"));
        // What is open stays what it was; a new way does not lead by the link.
        assert!(held.open(&base.join("5")).unwrap());
        assert_eq!(held.held.back().unwrap().relative, b"base/5");
        assert!(held.open(&cluster.0.join("before")).unwrap());
        assert!(!held.open(&base).unwrap());
    }

    /// All that a walk finds of a cluster without tablespaces, sorted.
    fn found_in(cluster: &Scratch) -> Vec<(String, bool)> {
        let layout = Layout::new(Vec::new(), b"PG_18_1".to_vec(), Default::default());
        let walk = Walk { root: &cluster.0, layout: &layout, directory_mode: 0o700, wal_directories: &[] };
        let mut seen = Collected::default();
        walk.run(&mut seen).unwrap();
        seen.entries.sort();
        seen.entries
    }

    #[test]
    fn init_forks_of_small_directories_and_large_ones() {
        for (count, within) in [(10, false), (1000, false), (10, true), (1000, true)] {
            let cluster = Scratch::new(&format!("forks_{count}_{within}"));
            for database in ["4", "5", "6"] {
                for number in 0..count {
                    cluster.file(&format!("base/{database}/file{}{number}", "0".repeat(100)));
                }
                for name in ["7", "7_vm", "7_init", "8", "8_fsm", "t3_8"] {
                    cluster.file(&format!("base/{database}/{name}"));
                    cluster.file(&format!("other{database}/{name}"));
                }
                if within {
                    cluster.file(&format!("base/{database}/within/7"));
                    cluster.file(&format!("base/{database}/pgsql_tmp1/7"));
                }
            }
            let all = found_in(&cluster);
            let mut expected = vec!["base".to_owned()];
            for database in ["4", "5", "6"] {
                expected.extend(["", "/7_init", "/8", "/8_fsm"].map(|name| format!("base/{database}{name}")));
                if within {
                    expected.extend(["", "/7"].map(|name| format!("base/{database}/within{name}")));
                }
                let others = ["", "/7", "/7_init", "/7_vm", "/8", "/8_fsm", "/t3_8"];
                expected.extend(others.map(|name| format!("other{database}{name}")));
            }
            expected.sort();
            let (files, found): (Vec<_>, Vec<_>) =
                all.into_iter().map(|(path, _)| path).partition(|path| path.contains("file0"));
            assert_eq!(found, expected);
            assert_eq!(files.len(), 3 * count);
        }
    }

    #[test]
    fn deeper_than_directories_may_be_open() {
        let cluster = Scratch::new("deep");
        let mut expected = Vec::new();
        let mut directory = "top".to_owned();
        for depth in 0..4 * MAX_OPEN {
            // Some come before the directory and some after it, in whatever order that is.
            for name in ["a", "b", "c", "d"] {
                expected.push(format!("{directory}/{name}{depth}"));
            }
            directory.push_str(&format!("/{depth}"));
        }
        expected.iter().for_each(|path| cluster.file(path));
        let found = found_in(&cluster).into_iter().filter(|(_, is_directory)| !is_directory);
        expected.sort();
        assert_eq!(found.map(|(path, _)| path).collect::<Vec<_>>(), expected);
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
        let tablespaces = vec![
            Tablespace { oid: 16384, location: outside.0.as_os_str().as_bytes().to_vec(), relative: None },
            Tablespace {
                oid: 16385,
                location: b"pg_tblspc/16385".to_vec(),
                relative: Some(b"pg_tblspc/16385".to_vec()),
            },
        ];
        let layout = Layout::new(tablespaces, b"PG_18_1".to_vec(), Default::default());
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
