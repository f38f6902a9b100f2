//! The directories of a backup: each must be empty or not there, is remembered when it is taken,
//! and is given back as it was when the backup fails.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::report;

/// What a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The data directory.
    Data,
    /// The one given by --waldir.
    Wal,
    /// A tablespace.
    Tablespace,
}

/// The directories that were taken, in that order.
#[derive(Debug, Default)]
pub struct Cleanup {
    taken: Vec<Taken>,
}

#[derive(Debug)]
struct Taken {
    purpose: Purpose,
    path: PathBuf,
    /// What was made for it, outermost first; the directory itself is the last unless it was there.
    made: Vec<PathBuf>,
    existed: bool,
}

/// How a failed backup is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// As if it had never been.
    Nothing,
    /// All of it, because the user wants it so.
    AsAsked,
    /// All of it, because it is complete but for pages that had wrong checksums before.
    Damaged,
}

/// Fails unless a directory is empty or does not exist; true if it exists.
pub fn check_empty(path: &Path) -> Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(Ok(_)) => {
                Err(Error::local(format!("directory \"{}\" exists but is not empty", path.display())))
            }
            Some(Err(error)) => Err(Error::io("access directory", path, &error)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("access directory", path, &error)),
    }
}

impl Cleanup {
    /// Takes a directory that is empty, or makes it with this mode, and those above it.
    pub fn take(&mut self, purpose: Purpose, path: &Path, mode: u32) -> Result<()> {
        let existed = check_empty(path)?;
        // Remembered before the first mkdir: one that fails half way is cleaned up too.
        self.taken.push(Taken { purpose, path: path.to_owned(), made: Vec::new(), existed });
        if existed {
            return Ok(());
        }
        let missing: Vec<&Path> =
            path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
        for directory in missing.into_iter().rev() {
            match make_directory(directory, mode) {
                Ok(()) => {}
                // A last component of "." or "..".
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io("create directory", directory, &error)),
            }
            if let Some(taken) = self.taken.last_mut() {
                taken.made.push(directory.to_owned());
            }
        }
        Ok(())
    }

    /// The directories that were made, for their parents to be synced.
    pub fn made(&self) -> impl Iterator<Item = &Path> {
        self.taken.iter().flat_map(|taken| taken.made.iter().map(PathBuf::as_path))
    }

    /// Gives everything back.
    pub fn undo(&self, leave: Leave) {
        if leave != Leave::Nothing {
            self.explain(leave);
            return;
        }
        for taken in &self.taken {
            let what = taken.purpose.name();
            let path = taken.path.display();
            let removed = if taken.existed {
                report::info(format!("removing contents of {what} \"{path}\""));
                remove_contents(&taken.path)
            } else if taken.made.is_empty() {
                continue;
            } else {
                report::info(format!("removing {what} \"{path}\""));
                remove_made(taken)
            };
            if let Err(error) = removed {
                let contents = if taken.existed { "contents of " } else { "" };
                report::error(&Error::local(format!(
                    "failed to remove {contents}{what}: {}",
                    crate::error::os_message(&error)
                )));
            }
        }
    }

    fn explain(&self, leave: Leave) {
        for taken in &self.taken {
            let path = taken.path.display();
            match (taken.purpose, leave) {
                (Purpose::Data, Leave::AsAsked) => {
                    report::info(format!("data directory \"{path}\" not removed at user's request"));
                }
                (Purpose::Wal, Leave::AsAsked) => {
                    report::info(format!("WAL directory \"{path}\" not removed at user's request"));
                }
                _ => {}
            }
        }
        if leave == Leave::AsAsked && self.taken.iter().any(|taken| taken.purpose == Purpose::Tablespace) {
            report::info("changes to tablespace directories will not be undone");
        }
    }
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "data directory",
            Self::Wal => "WAL directory",
            Self::Tablespace => "tablespace directory",
        }
    }
}

/// Makes a directory with exactly this mode, whatever the umask.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn remove_contents(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Of the entry itself: links to tablespaces are removed, not followed.
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_made(taken: &Taken) -> io::Result<()> {
    let mut made = taken.made.iter().rev();
    if let Some(directory) = made.next() {
        match fs::remove_dir_all(directory) {
            // In an in-place tablespace's case the data directory was removed before.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
    }
    for parent in made {
        // Somebody else may have put something there.
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn made_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("a/b/data");
        let mut cleanup = Cleanup::default();
        cleanup.take(Purpose::Data, &target, 0o750).unwrap();
        assert_eq!(mode(&target), 0o750);
        assert_eq!(cleanup.made().count(), 3);
        fs::create_dir(target.join("base")).unwrap();
        fs::write(target.join("base/1"), "x").unwrap();
        cleanup.undo(Leave::Nothing);
        assert!(!place.path().join("a").exists());
        assert!(place.path().exists());
    }

    #[test]
    fn emptied_but_kept_if_it_was_there() {
        let place = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let mut cleanup = Cleanup::default();
        cleanup.take(Purpose::Tablespace, place.path(), 0o700).unwrap();
        fs::write(place.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), place.path().join("link")).unwrap();
        cleanup.undo(Leave::Nothing);
        assert!(place.path().exists());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn left_if_asked() {
        for leave in [Leave::AsAsked, Leave::Damaged] {
            let place = tempfile::tempdir().unwrap();
            let mut cleanup = Cleanup::default();
            cleanup.take(Purpose::Data, &place.path().join("data"), 0o700).unwrap();
            cleanup.undo(leave);
            assert!(place.path().join("data").exists());
        }
    }

    #[test]
    fn what_is_not_empty_is_refused_and_left_alone() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(".hidden"), "x").unwrap();
        let mut cleanup = Cleanup::default();
        let error = cleanup.take(Purpose::Data, place.path(), 0o700).unwrap_err();
        assert_eq!(
            error.message(),
            format!("directory \"{}\" exists but is not empty", place.path().display())
        );
        cleanup.undo(Leave::Nothing);
        assert!(place.path().join(".hidden").exists());
        let file = place.path().join(".hidden");
        assert!(check_empty(&file).unwrap_err().message().starts_with("could not access directory"));
    }
}
