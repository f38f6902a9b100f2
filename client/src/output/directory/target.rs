//! The directory that is being written: where each file of the backup goes and with which mode.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pages::relation;
use protocol::BackupPath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::resume::is_same_place;
use crate::error::{Error, Result};
use crate::output::Modes;
use crate::output::cleanup::make_directory;

/// Most directories that are kept open: a cluster may have thousands, a process not.
pub const OPEN_DIRECTORIES: usize = 128;

/// What the files of a backup are made with; any other mode takes a call more, once a file is complete.
const USUAL_MODE: u32 = 0o600;

/// The target directory.
#[derive(Debug)]
pub struct Target {
    root: PathBuf,
    modes: Modes,
    /// Directories that are links, relative to the root: their place was prepared elsewhere.
    links: HashSet<PathBuf>,
    /// Directories that files were made in, so that their paths are not looked up for each.
    directories: Mutex<Directories>,
}

/// Directories that are open, by their names.
#[derive(Debug, Default)]
struct Directories {
    open: HashMap<Vec<u8>, Arc<OwnedFd>>,
    /// The one that was opened first is the first to go: files come directory by directory.
    order: VecDeque<Vec<u8>>,
}

impl Directories {
    fn keep(&mut self, name: &[u8], directory: &Arc<OwnedFd>) {
        if self.open.len() >= OPEN_DIRECTORIES
            && let Some(first) = self.order.pop_front()
        {
            self.open.remove(&first);
        }
        // Another thread may have been quicker.
        if self.open.insert(name.to_vec(), Arc::clone(directory)).is_none() {
            self.order.push_back(name.to_vec());
        }
    }
}

impl Target {
    /// In a directory that exists.
    pub fn new(root: PathBuf, modes: Modes) -> Self {
        Self { root, modes, links: HashSet::new(), directories: Mutex::default() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Modes of what is made here.
    pub fn modes(&self) -> Modes {
        self.modes
    }

    /// A path below the directory.
    pub fn path(&self, path: &BackupPath) -> PathBuf {
        // Relative and without "..": it cannot lead out.
        self.root.join(OsStr::from_bytes(path.as_bytes()))
    }

    /// Makes a link to a directory elsewhere.
    pub fn link(&mut self, name: &str, place: &Path) -> Result<()> {
        let link = self.root.join(name);
        symlink(place, &link).map_err(|error| Error::io("create symbolic link", &link, &error))?;
        self.links.insert(PathBuf::from(name));
        Ok(())
    }

    /// Whether the link that would be made is there; then it is one of ours.
    pub fn has_link(&mut self, name: &str, place: &Path) -> bool {
        let is_there = is_same_place(&self.root.join(name), place);
        if is_there {
            self.links.insert(PathBuf::from(name));
        }
        is_there
    }

    /// Whether this is a link of ours.
    pub fn is_link(&self, name: &Path) -> bool {
        self.links.contains(name)
    }

    /// The links of ours, relative to the directory.
    pub fn links(&self) -> impl Iterator<Item = &Path> {
        self.links.iter().map(PathBuf::as_path)
    }

    /// Makes a directory of the client's own choice, unless it is there.
    pub fn make(&self, name: &str) -> Result<()> {
        self.make_with_mode(Path::new(name), self.modes.directory)
    }

    /// Makes a directory that the server listed. One that this program made before, or a link of
    /// its own, only gets the mode.
    pub fn make_listed(&self, path: &BackupPath, mode: u32) -> Result<()> {
        self.make_with_mode(Path::new(OsStr::from_bytes(path.as_bytes())), mode & 0o7777)
    }

    /// Opens a file to write all of it, with this mode. Never through a link.
    pub fn create(&self, path: &Path, mode: u32) -> Result<File> {
        self.create_by(OpenOptions::new().write(true), path, mode)
    }

    /// The same, for one that is to be read as well.
    pub fn create_read_write(&self, path: &Path, mode: u32) -> Result<File> {
        self.create_by(OpenOptions::new().read(true).write(true), path, mode)
    }

    fn create_by(&self, options: &mut OpenOptions, path: &Path, mode: u32) -> Result<File> {
        let file = options
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(path)
            .map_err(|error| Error::io("create file", path, &error))?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
            .map_err(|error| Error::io("set permissions on file", path, &error))?;
        Ok(file)
    }

    /// Opens a file that the server listed to write all of it, with a mode that lets nobody else in. Never
    /// through a link.
    pub fn create_listed(&self, path: &BackupPath) -> Result<File> {
        let (directory, name) = relation::split(path.as_bytes());
        let failed = |error: Errno| Error::io("create file", &self.path(path), &error.into());
        let directory = self.directory(directory)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let usual = Mode::from_raw_mode(USUAL_MODE);
        match rustix::fs::openat(&directory, name, flags | OFlags::EXCL, usual) {
            // An earlier try left it, or the server has two names for one file here.
            Err(Errno::EXIST) => rustix::fs::openat(&directory, name, flags | OFlags::TRUNC, usual),
            result => result,
        }
        .map(File::from)
        .map_err(failed)
    }

    /// Makes a file that the server listed and that has nothing in it: it need not be opened for that. Never through a
    /// link.
    pub fn create_empty(&self, path: &BackupPath) -> Result<()> {
        let (directory, name) = relation::split(path.as_bytes());
        let directory = self.directory(directory)?;
        match rustix::fs::mknodat(&directory, name, FileType::RegularFile, Mode::from_raw_mode(USUAL_MODE), 0)
        {
            Ok(()) => Ok(()),
            // Something is there, or cannot be made so on this file system: opening it says what is wrong, if anything.
            Err(_) => self.create_listed(path).map(drop),
        }
    }

    /// Gives a listed file that is complete the mode that the server has it with.
    pub fn set_mode(&self, path: &BackupPath, mode: u32) -> Result<()> {
        if mode & 0o7777 == USUAL_MODE { Ok(()) } else { self.set_mode_of(path, mode) }
    }

    /// Gives a listed file a mode, whatever it has.
    pub fn set_mode_of(&self, path: &BackupPath, mode: u32) -> Result<()> {
        let mode = mode & 0o7777;
        let (directory, name) = relation::split(path.as_bytes());
        rustix::fs::chmodat(self.directory(directory)?, name, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|error| Error::io("set permissions on file", &self.path(path), &error.into()))
    }

    /// Opens a file that was made before, to change parts of it.
    pub fn open_listed(&self, path: &BackupPath) -> Result<File> {
        let path = self.path(path);
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&path)
            .map_err(|error| Error::io("open file", &path, &error))
    }

    fn directory(&self, name: &[u8]) -> Result<Arc<OwnedFd>> {
        let lock = || self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = lock().open.get(name) {
            return Ok(Arc::clone(directory));
        }
        let path = self.root.join(OsStr::from_bytes(name));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|error| Error::io("open directory", &path, &error.into()))?;
        let directory = Arc::new(directory);
        lock().keep(name, &directory);
        Ok(directory)
    }

    /// Writes a file of the client's own.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        use std::io::Write;
        let path = self.root.join(name);
        let mut file = self.create(&path, self.modes.file)?;
        file.write_all(content).map_err(|error| Error::io("write to file", &path, &error))
    }

    /// Removes what an earlier try left of a file.
    pub fn remove(&self, path: &BackupPath) -> Result<()> {
        let path = self.path(path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove file", &path, &error)),
            _ => Ok(()),
        }
    }

    fn make_with_mode(&self, name: &Path, mode: u32) -> Result<()> {
        let path = self.root.join(name);
        let set_mode = || {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(|error| Error::io("set permissions on directory", &path, &error))
        };
        // What it leads to was made, or found, when it was claimed.
        if self.links.contains(name) {
            return set_mode();
        }
        match make_directory(&path, mode) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => set_mode(),
                Ok(_) => Err(Error::io("create directory", &path, &error)),
                Err(error) => Err(Error::io("stat file", &path, &error)),
            },
            result => result.map_err(|error| Error::io("create directory", &path, &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_files_and_links() {
        let place = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let modes = Modes { directory: 0o700, file: 0o600 };
        let mut target = Target::new(place.path().to_owned(), modes);
        target.make("pg_tblspc").unwrap();
        target.link("pg_tblspc/16384", elsewhere.path()).unwrap();
        for (path, mode) in [(&b"pg_tblspc"[..], 0o750), (b"pg_tblspc/16384", 0o750), (b"x\xff", 0o700)] {
            let path = BackupPath::from_bytes(path).unwrap();
            target.make_listed(&path, mode).unwrap();
            target.make_listed(&path, mode).unwrap();
            let found = fs::metadata(target.path(&path)).unwrap();
            assert!(found.is_dir());
            assert_eq!(found.permissions().mode() & 0o7777, mode);
        }
        assert!(target.root().join("pg_tblspc/16384").is_symlink());

        let file = BackupPath::from_bytes("pg_tblspc/16384/a").unwrap();
        for mode in [0o600, 0o640] {
            drop(target.create_listed(&file).unwrap());
            target.set_mode(&file, mode).unwrap();
            let found = fs::metadata(elsewhere.path().join("a")).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, mode);
        }
        fs::write(elsewhere.path().join("a"), "of an earlier try").unwrap();
        for _ in 0..2 {
            target.create_empty(&file).unwrap();
            let found = fs::metadata(elsewhere.path().join("a")).unwrap();
            assert!(found.is_file() && found.len() == 0);
            target.remove(&file).unwrap();
        }
        target.create_empty(&file).unwrap();
        assert_eq!(fs::metadata(elsewhere.path().join("a")).unwrap().permissions().mode() & 0o7777, 0o600);
        drop(target.open_listed(&file).unwrap());
        drop(target.create(&target.path(&file), 0o640).unwrap());
        let found = fs::metadata(elsewhere.path().join("a")).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o640);
        target.remove(&file).unwrap();
        target.remove(&file).unwrap();
        assert!(!elsewhere.path().join("a").exists());
    }

    #[test]
    fn the_directories_used_last_are_open() {
        let place = tempfile::tempdir().unwrap();
        let target = Target::new(place.path().to_owned(), Modes::STRICT);
        let count = 3 * OPEN_DIRECTORIES;
        for directory in 0..count {
            target.make(&directory.to_string()).unwrap();
            for file in ["a", "b"] {
                let path = BackupPath::from_bytes(format!("{directory}/{file}")).unwrap();
                target.create_empty(&path).unwrap();
                assert!(place.path().join(format!("{directory}/{file}")).exists());
            }
        }
        let kept = target.directories.lock().unwrap();
        assert_eq!((kept.open.len(), kept.order.len()), (OPEN_DIRECTORIES, OPEN_DIRECTORIES));
        assert!(
            (count - OPEN_DIRECTORIES..count).all(|name| kept.open.contains_key(name.to_string().as_bytes()))
        );
    }

    #[test]
    fn links_of_others_are_not_written_through() {
        let place = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let target = Target::new(place.path().to_owned(), Modes { directory: 0o700, file: 0o600 });
        symlink(elsewhere.path(), place.path().join("base")).unwrap();
        symlink(elsewhere.path().join("f"), place.path().join("f")).unwrap();
        assert!(target.make_listed(&BackupPath::from_bytes("base").unwrap(), 0o700).is_err());
        assert!(target.create(&place.path().join("f"), 0o600).is_err());
        assert!(target.create_listed(&BackupPath::from_bytes("f").unwrap()).is_err());
        assert!(target.create_empty(&BackupPath::from_bytes("f").unwrap()).is_err());
        assert!(!elsewhere.path().join("f").exists());
    }
}
