//! The claim on a directory: as long as it lasts, one backup alone writes there.
//!
//! It is a file in the directory, created with O_EXCL, which is atomic on every file system, NFS from
//! version 3 on included. A lock would end with the process that holds it, which is pleasant, but flock on
//! a directory does not reach other clients of NFS, locks of files are local to a host on some mounts and
//! missing on others, and what a killed process leaves is half a backup anyway, which somebody has to look
//! at. And as a file *in* the directory it is the same one by every name that leads there.
//!
//! The claim goes when the directory is complete. It is not empty then, so that nobody can claim it from
//! that moment on either: there is no gap between the claim and what it has protected.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::output::journal::JOURNAL_FILE;

/// The file. No server lists names that begin so, those of temporary files (PG_TEMP_FILE_PREFIX): a backup
/// has no such file of its own, and a copy that is started with one never hands it on.
pub const CLAIM_FILE: &str = "pgsql_tmp.pg_parallel_basebackup";

const CLAIM_FILE_C: &CStr = c"pgsql_tmp.pg_parallel_basebackup";

/// A claim that is about to take the place of another.
const NEXT_CLAIM_FILE: &CStr = c"pgsql_tmp.pg_parallel_basebackup.next";

/// Most of a claim that is read, whoever wrote it.
const CLAIM_LENGTH: u64 = 1024;

/// What is read at once of a directory that ought to have nothing in it: more than its longest name takes.
const FEW_NAMES: usize = 4096;

/// What tells a file or a directory from every other as long as it is open: device and inode.
pub type FileId = (u64, u64);

/// A directory that is ours.
#[derive(Debug)]
pub struct Claim {
    place: Arc<Place>,
    /// The claim, open so that no other file can have its inode; none once it was given up.
    file: Option<(File, FileId)>,
}

/// A directory that is remembered by more than its name.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Open, so that no other directory can have its inode.
    directory: OwnedFd,
    identity: FileId,
}

impl Place {
    /// The directory that has this name now.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&directory)?;
        Ok(Self { path: path.to_owned(), directory, identity: id(&found) })
    }

    /// Makes the directory, with exactly this mode, whatever the umask.
    pub fn make(path: &Path, mode: u32) -> io::Result<Self> {
        rustix::fs::mkdir(path, Mode::from_raw_mode(mode))?;
        let open = || -> io::Result<Self> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::open(path, flags, Mode::empty())?;
            let found = rustix::fs::fstat(&directory)?;
            if found.st_mode & 0o7777 != mode {
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?;
            }
            Ok(Self { path: path.to_owned(), directory, identity: id(&found) })
        };
        open().inspect_err(|_| {
            // It cannot be remembered, and there is nothing in it.
            let _ = rustix::fs::rmdir(path);
        })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still leads to it.
    pub fn is_there(&self) -> bool {
        id_of(&self.path) == Some(self.identity)
    }

    /// The directory that it is in.
    pub fn above(&self) -> Option<FileId> {
        rustix::fs::statat(&self.directory, c"..", AtFlags::empty()).ok().map(|found| id(&found))
    }

    /// Whether both are one directory.
    pub fn is(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Claim {
    /// Claims a directory that is there, and empty.
    pub fn take(place: Arc<Place>) -> Result<Self> {
        // Before the attempt, for the usual case to leave no trace in a directory that is in use.
        check_empty(&place.directory, &place.path, None)?;
        Self::take_made(place)
    }

    /// Claims a directory that was just made, so that nothing can be in it but what came since.
    pub fn take_made(place: Arc<Place>) -> Result<Self> {
        let path = place.path.join(CLAIM_FILE);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = match rustix::fs::openat(&place.directory, CLAIM_FILE_C, flags, mode) {
            Ok(file) => File::from(file),
            Err(Errno::EXIST) => return Err(in_use(&place.path)),
            Err(error) => return Err(Error::io("create file", &path, &error.into())),
        };
        let mut claim = Self::of(place, file)?;
        // Another backup may have come and gone since the look at it.
        let is_empty = check_empty(&claim.place.directory, claim.path(), Some(CLAIM_FILE));
        let claimed = is_empty.and_then(|()| {
            let written = claim.file.as_mut().map_or(Ok(()), |(file, _)| file.write_all(holder().as_bytes()));
            written.map_err(|error| Error::io("write to file", &path, &error))
        });
        match claimed {
            Ok(()) => Ok(claim),
            Err(error) => {
                // The first error says more than that of a second try to leave no trace.
                let _ = claim.release();
                Err(error)
            }
        }
    }

    /// Claims a directory that another process has claimed, and left. Whoever looks at its claim then finds that it
    /// has lost it.
    pub fn take_over(place: Arc<Place>) -> Result<Self> {
        let path = place.path.join(CLAIM_FILE);
        if !rustix::fs::statat(&place.directory, CLAIM_FILE_C, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
        {
            return Err(Error::local(format!(
                "directory \"{}\" does not belong to a backup under way",
                place.path.display()
            ))
            .with_detail(format!("There is no file \"{}\".", path.display())));
        }
        let failed = |error: io::Error| Error::io("create file", &path, &error);
        // Left by one that was killed at this very place.
        let _ = rustix::fs::unlinkat(&place.directory, NEXT_CLAIM_FILE, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&place.directory, NEXT_CLAIM_FILE, flags, mode);
        let mut file = File::from(file.map_err(|error| failed(error.into()))?);
        file.write_all(holder().as_bytes()).map_err(failed)?;
        rustix::fs::renameat(&place.directory, NEXT_CLAIM_FILE, &place.directory, CLAIM_FILE_C)
            .map_err(|error| failed(error.into()))?;
        Self::of(place, file)
    }

    fn of(place: Arc<Place>, file: File) -> Result<Self> {
        let found = rustix::fs::fstat(&file);
        let id = found.map(|found| id(&found));
        let id = id.map_err(|error| Error::io("stat file", &place.path.join(CLAIM_FILE), &error.into()))?;
        Ok(Self { place, file: Some((file, id)) })
    }

    /// The directory's name.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// The directory.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether the directory is where it was and nobody else's: who replaced it, or removed the claim, has
    /// taken it over.
    pub fn is_ours(&self) -> bool {
        let found = rustix::fs::statat(&self.place.directory, CLAIM_FILE_C, AtFlags::SYMLINK_NOFOLLOW);
        self.place.is_there()
            && match &self.file {
                Some((_, known)) => found.is_ok_and(|found| id(&found) == *known),
                None => found.is_err_and(|error| error == Errno::NOENT),
            }
    }

    /// Fails unless it is.
    pub fn check(&self) -> Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(Error::local(format!(
            "directory \"{}\" was replaced or taken over by somebody else while the backup ran",
            self.path().display()
        )))
    }

    /// Gives the directory up with what is in it.
    pub fn release(&mut self) -> Result<()> {
        self.check()?;
        self.remove_claim()
            .map_err(|error| Error::io("remove file", &self.place.path.join(CLAIM_FILE), &error.into()))
    }

    /// Removes what is in the directory, the claim last. Links are removed and never followed.
    /// Only for a directory that is ours.
    pub fn empty(&mut self) -> io::Result<()> {
        remove_entries(&self.place.directory, Some(CLAIM_FILE_C))?;
        Ok(self.remove_claim()?)
    }

    fn remove_claim(&mut self) -> std::result::Result<(), Errno> {
        // Closed first: NFS would keep an open file, under another name.
        if self.file.take().is_none() {
            return Ok(());
        }
        rustix::fs::unlinkat(&self.place.directory, CLAIM_FILE_C, AtFlags::empty())
    }
}

/// Fails unless a directory is empty, or does not exist, and is in no directory that others have claimed;
/// true if it exists. `ours` are claims that do not count.
pub fn check_free<'a>(path: &Path, ours: impl Iterator<Item = &'a Claim> + Clone) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| no_access(path, error));
    let exists = match directory.and_then(|directory| check_empty(&directory, path, None)) {
        Ok(()) => true,
        Err(error) => match fs::symlink_metadata(path) {
            Err(missing) if missing.kind() == ErrorKind::NotFound => false,
            _ => return Err(error),
        },
    };
    // What lies in another backup is removed with it, should that one fail.
    let above = path.ancestors().find_map(|ancestor| {
        let named = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        fs::canonicalize(named).ok()
    });
    for directory in above.iter().flat_map(|above| above.ancestors()) {
        if fs::symlink_metadata(directory.join(CLAIM_FILE)).is_ok()
            && !Place::open(directory).is_ok_and(|place| ours.clone().any(|claim| claim.place.is(&place)))
        {
            return Err(in_use(directory));
        }
    }
    Ok(exists)
}

/// Fails unless a directory, of which this is the path, has nothing in it but for this.
fn check_empty(directory: &OwnedFd, path: &Path, but: Option<&str>) -> Result<()> {
    // Others may have come since it was read last.
    rustix::fs::seek(directory, SeekFrom::Start(0)).map_err(|error| no_access(path, error))?;
    let mut is_empty = true;
    let mut buffer = Vec::with_capacity(FEW_NAMES);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|error| no_access(path, error))?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") || but.is_some_and(|but| name == but.as_bytes()) {
            continue;
        }
        if name == CLAIM_FILE.as_bytes() {
            return Err(in_use(path));
        }
        is_empty = false;
    }
    if is_empty {
        return Ok(());
    }
    Err(Error::local(format!("directory \"{}\" exists but is not empty", path.display())))
}

fn no_access(path: &Path, error: Errno) -> Error {
    Error::io("access directory", path, &error.into())
}

/// Another's claim, and what to do if nobody stands behind it any more.
fn in_use(directory: &Path) -> Error {
    let path = directory.join(CLAIM_FILE);
    let holder = read_holder(&path).map_or_else(String::new, |(process, host)| {
        format!(", made by process {process} on host \"{host}\"")
    });
    Error::local(format!("directory \"{}\" is in use by another backup", directory.display()))
        .with_detail(format!("The claim on it is the file \"{}\"{holder}.", path.display()))
        .with_hint(if directory.join(JOURNAL_FILE).exists() {
            "If that backup is no longer running, for instance because it was killed, go on with it by the same \
             command with --resume, or remove everything in the directory, this file included, and try again."
        } else {
            "If that backup is no longer running, for instance because it was killed, remove everything in \
             the directory, this file included, and try again."
        })
}

/// Who made a claim, if it has the form that `take` gives it.
fn read_holder(path: &Path) -> Option<(u32, String)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let mut text = String::new();
    file.take(CLAIM_LENGTH).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let process = lines.next()?.parse().ok()?;
    let host = lines.next().filter(|host| !host.contains(char::is_control))?;
    Some((process, host.to_owned()))
}

/// What is in a claim of ours, of which there may be thousands.
fn holder() -> &'static str {
    static HOLDER: OnceLock<String> = OnceLock::new();
    HOLDER.get_or_init(|| format!("{}\n{}\n", std::process::id(), host()))
}

/// The name of this host, for messages.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What a path leads to, if that is there.
pub fn id_of(path: &Path) -> Option<FileId> {
    rustix::fs::stat(path).ok().map(|found| id(&found))
}

fn id(found: &Stat) -> FileId {
    (found.st_dev, found.st_ino)
}

/// Removes what is in a directory, whatever name that has by now.
fn remove_entries(directory: &impl AsFd, but: Option<&CStr>) -> rustix::io::Result<()> {
    let entries: Vec<CString> = Dir::read_from(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<rustix::io::Result<_>>()?;
    for name in entries {
        if matches!(name.as_bytes(), b"." | b"..") || but.is_some_and(|but| *but == *name) {
            continue;
        }
        match rustix::fs::unlinkat(directory, &*name, AtFlags::empty()) {
            // Linux says the one of directories, POSIX the other.
            Err(Errno::ISDIR | Errno::PERM) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = || rustix::fs::openat(directory, &*name, flags, Mode::empty());
                // It has the mode that the server's has, which need not let anybody in.
                let below = match open() {
                    Err(Errno::ACCESS) => {
                        rustix::fs::chmodat(directory, &*name, Mode::RWXU, AtFlags::empty())?;
                        open()?
                    }
                    below => below?,
                };
                rustix::fs::fchmod(&below, Mode::RWXU)?;
                remove_entries(&below, None)?;
                rustix::fs::unlinkat(directory, &*name, AtFlags::REMOVEDIR)?;
            }
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a name in a file list is the claim's, in whatever directory.
pub fn is_claim(path: &[u8]) -> bool {
    let name = Path::new(OsStr::from_bytes(path)).file_name().map(OsStrExt::as_bytes);
    let next = NEXT_CLAIM_FILE.to_bytes();
    name.is_some_and(|name| [CLAIM_FILE.as_bytes(), JOURNAL_FILE.as_bytes(), next].contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn take(path: &Path) -> Result<Claim> {
        Claim::take(Arc::new(Place::open(path).unwrap()))
    }

    #[test]
    fn one_of_many_gets_it() {
        for _ in 0..20 {
            let place = tempfile::tempdir().unwrap();
            let claims: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| take(place.path()))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (claims, refused): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| claim.is_ok());
            assert_eq!(claims.len(), 1);
            for error in refused.into_iter().map(std::result::Result::unwrap_err) {
                assert_eq!(
                    error.message(),
                    format!("directory \"{}\" is in use by another backup", place.path().display())
                );
            }
            assert_eq!(names(place.path()), [CLAIM_FILE]);
        }
    }

    #[test]
    fn the_error_names_the_file_and_who_made_it() {
        let place = tempfile::tempdir().unwrap();
        let claim = take(place.path()).unwrap();
        let detail = |path: &Path| take(path).unwrap_err().detail().unwrap().to_owned();
        let file = place.path().join(CLAIM_FILE);
        let (found, named) = (detail(place.path()), file.display());
        assert_eq!(
            found,
            format!(
                "The claim on it is the file \"{named}\", made by process {} on host \"{}\".",
                std::process::id(),
                host()
            )
        );
        for odd in [&b""[..], b"x\ny\n", b"1\n\x1b[2J\n", b"\xff"] {
            fs::write(&file, odd).unwrap();
            assert_eq!(detail(place.path()), format!("The claim on it is the file \"{named}\"."));
        }
        assert!(claim.is_ours());
    }

    #[test]
    fn released_and_emptied() {
        let place = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let mut claim = take(place.path()).unwrap();
        fs::create_dir_all(place.path().join("a/b")).unwrap();
        fs::write(place.path().join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), place.path().join("a/link")).unwrap();
        assert!(claim.is_ours());
        claim.empty().unwrap();
        assert_eq!(names(place.path()), [""; 0]);
        assert!(claim.is_ours() && outside.path().join("kept").exists());

        let mut claim = take(place.path()).unwrap();
        fs::write(place.path().join("f"), "x").unwrap();
        claim.release().unwrap();
        assert_eq!(names(place.path()), ["f"]);
        // Nobody gets a directory that is complete, and nothing changes in it.
        let error = take(place.path()).unwrap_err();
        assert!(error.message().ends_with("exists but is not empty"), "{error}");
        assert_eq!(names(place.path()), ["f"]);
    }

    #[test]
    fn what_others_took_over_is_not_ours() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        fs::create_dir(&path).unwrap();
        let mut claim = take(&path).unwrap();
        // The claim removed, and another's in its place.
        fs::remove_file(path.join(CLAIM_FILE)).unwrap();
        assert!(!claim.is_ours());
        let other = take(&path).unwrap();
        assert!(!claim.is_ours() && other.is_ours());
        // The directory moved away, and another in its place.
        fs::rename(&path, parent.path().join("old")).unwrap();
        assert!(!other.is_ours());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("f"), "x").unwrap();
        assert!(!other.is_ours());
        assert!(claim.release().is_err());
        assert_eq!(names(&path), ["f"]);
    }

    #[test]
    fn below_a_directory_in_use() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        fs::create_dir(&path).unwrap();
        let claim = take(&path).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for below in [path.join("a/b"), link.join("a")] {
            let error = check_free(&below, std::iter::empty()).unwrap_err();
            assert!(error.message().ends_with("data\" is in use by another backup"), "{error}");
            assert!(!check_free(&below, std::iter::once(&claim)).unwrap());
        }
        assert!(!check_free(&parent.path().join("other"), std::iter::empty()).unwrap());
        assert!(is_claim(b"base/pgsql_tmp.pg_parallel_basebackup") && !is_claim(b"base/pgsql_tmp1"));
    }
}
