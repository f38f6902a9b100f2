//! Getting the copy to disk before success is reported.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use walkdir::WalkDir;

use crate::abort::Abort;
use crate::error::{Error, Kind, Result};
use crate::options::Sync;

/// How many paths wait for a thread to sync them.
const BACKLOG: usize = 256;

/// Syncs everything in a data directory, through the links to tablespaces and WAL and no others.
pub fn sync_directory(root: &Path, method: Sync, threads: usize, abort: &Abort) -> Result<()> {
    match method {
        Sync::None => Ok(()),
        Sync::Syncfs => linked_directories(root)?.iter().try_for_each(|directory| {
            abort.check()?;
            syncfs(directory)
        }),
        Sync::Fsync => {
            let roots = linked_directories(root)?;
            // The file system flushes what several threads ask for together.
            std::thread::scope(|scope| {
                let (sender, receiver) = sync_channel(BACKLOG);
                // Owned by the threads alone: when all have failed, the walk's next send fails too.
                let receiver = Arc::new(Mutex::new(receiver));
                let failed = Arc::new(AtomicBool::new(false));
                let workers: Vec<_> = (0..threads.max(1))
                    .map(|_| {
                        let (receiver, failed) = (Arc::clone(&receiver), Arc::clone(&failed));
                        scope.spawn(move || sync_received(&receiver, &failed, abort))
                    })
                    .collect();
                drop(receiver);
                let walked = walk_all(&roots, &sender);
                drop(sender);
                let synced: Vec<Result<()>> = workers
                    .into_iter()
                    .map(|worker| worker.join().unwrap_or_else(|_| Err(Error::local("sync thread panicked"))))
                    .collect();
                // A failed worker is why the walk stopped.
                synced.into_iter().collect::<Result<()>>().and(walked)
            })
        }
    }
}

/// Syncs one file or directory.
pub fn sync_path(path: &Path) -> Result<()> {
    match File::open(path)
        .and_then(|file| file.sync_all().map_err(|error| (file, error)).or_else(odd_directory))
    {
        Ok(()) => Ok(()),
        // Not ours to open, so we have not written it either.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Error::io("fsync file", path, &error)),
    }
}

/// Renames a file so that after a crash it has either name, and its content in any case.
pub fn rename(from: &Path, to: &Path, method: Sync) -> Result<()> {
    let renamed = |error: io::Error| {
        Error::local(format!(
            "could not rename file \"{}\" to \"{}\": {}",
            from.display(),
            to.display(),
            crate::error::os_message(&error)
        ))
    };
    if method == Sync::None {
        return fs::rename(from, to).map_err(renamed);
    }
    sync_path(from)?;
    fs::rename(from, to).map_err(renamed)?;
    sync_path(to)?;
    sync_parent(to)
}

/// Syncs the directory that has a file's or directory's name.
pub fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_path(parent),
        Some(_) => sync_path(Path::new(".")),
        None => Ok(()),
    }
}

/// Some file systems cannot sync directories.
fn odd_directory((file, error): (File, io::Error)) -> io::Result<()> {
    const EBADF: i32 = rustix::io::Errno::BADF.raw_os_error();
    const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
    match error.raw_os_error() {
        Some(EBADF | EINVAL) if file.metadata()?.is_dir() => Ok(()),
        _ => Err(error),
    }
}

/// The directory itself and the places that pg_wal and the entries of pg_tblspc link to.
fn linked_directories(root: &Path) -> Result<Vec<PathBuf>> {
    let mut directories = vec![root.to_owned()];
    let mut candidates = vec![root.join("pg_wal")];
    let tablespaces = root.join("pg_tblspc");
    match fs::read_dir(&tablespaces) {
        Ok(entries) => {
            for entry in entries {
                candidates
                    .push(entry.map_err(|error| Error::io("read directory", &tablespaces, &error))?.path());
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("open directory", &tablespaces, &error)),
    }
    directories.extend(candidates.into_iter().filter(|path| path.is_symlink()));
    Ok(directories)
}

fn syncfs(directory: &Path) -> Result<()> {
    let file = File::open(directory).map_err(|error| Error::io("open file", directory, &error))?;
    rustix::fs::syncfs(&file)
        .map_err(|error| Error::io("synchronize file system for file", directory, &io::Error::from(error)))
}

fn sync_received(receiver: &Mutex<Receiver<PathBuf>>, failed: &AtomicBool, abort: &Abort) -> Result<()> {
    while !failed.load(Ordering::Relaxed) {
        let received = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(path) = received else { break };
        if let Err(error) = abort.check().and_then(|()| sync_path(&path)) {
            failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
    }
    Ok(())
}

/// Everything in these directories, through the links that they are and no others.
fn walk_all(roots: &[PathBuf], sender: &SyncSender<PathBuf>) -> Result<()> {
    for entry in roots.iter().flat_map(|root| WalkDir::new(root).contents_first(true)) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(Path::new("")).to_owned();
            let cause = error.into_io_error().unwrap_or(ErrorKind::Other.into());
            Error::io("read directory", &path, &cause)
        })?;
        // A root that is a link is said to be one.
        if entry.depth() == 0 || entry.file_type().is_dir() || entry.file_type().is_file() {
            send(sender, entry.into_path())?;
        }
    }
    Ok(())
}

fn send(sender: &SyncSender<PathBuf>, path: PathBuf) -> Result<()> {
    // All receivers gone: they have failed, and say why.
    sender.send(path).map_err(|_| Error::new(Kind::Aborted, "sync stopped"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_visited_through_the_right_links() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.join("base/1")).unwrap();
        fs::create_dir(root.join("pg_tblspc")).unwrap();
        fs::write(root.join("base/1/f"), "x").unwrap();
        fs::write(elsewhere.path().join("g"), "x").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.join("pg_tblspc/1")).unwrap();
        std::os::unix::fs::symlink("/nowhere", root.join("other")).unwrap();
        let (sender, receiver) = sync_channel(100);
        walk_all(&linked_directories(root).unwrap(), &sender).unwrap();
        drop(sender);
        let mut visited: Vec<PathBuf> = receiver.iter().collect();
        visited.sort();
        let mut expected: Vec<PathBuf> =
            ["", "base", "base/1", "base/1/f", "pg_tblspc", "pg_tblspc/1", "pg_tblspc/1/g"]
                .iter()
                .map(|name| if name.is_empty() { root.to_owned() } else { root.join(name) })
                .collect();
        expected.sort();
        assert_eq!(visited, expected);

        let abort = Abort::new().unwrap();
        for method in [Sync::None, Sync::Fsync, Sync::Syncfs] {
            sync_directory(root, method, 2, &abort).unwrap();
        }
        abort.fail(Error::local("stop"));
        assert!(sync_directory(root, Sync::Fsync, 2, &abort).is_err());
    }

    #[test]
    fn durable_rename() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("a"), place.path().join("b"));
        fs::write(&from, "x").unwrap();
        rename(&from, &to, Sync::Fsync).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "x");
        let error = rename(&from, &to, Sync::None).unwrap_err();
        assert!(error.message().ends_with("No such file or directory"), "{error}");
    }
}
