//! The init forks of large directories, as a walk has found them, for those who open the files after it: to ask the
//! directory for each of very many files whether its relation has an init fork costs as much as half of opening it.
//!
//! What was found holds as long as the directory has not changed, which its times tell. In this process alone, and
//! until the next walk.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::fstat;

/// Entries of a directory that is worth it.
const LARGE: usize = 512;

/// Directories and, of each, init forks that are kept: a few MB at most.
const MOST_DIRECTORIES: usize = 64;
const MOST_FORKS: usize = 1024;

/// A look at the directory holds for so many files, or for so long, whichever is over first.
const HOLDS_FOR: Duration = Duration::from_millis(100);
const HOLDS_FILES: u32 = 32;

/// What changes when a directory does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    /// As it is now.
    pub fn of(directory: impl AsFd) -> rustix::io::Result<Self> {
        let stat = fstat(directory)?;
        // Their types differ between platforms.
        #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap)]
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        })
    }

    /// Whether a file that is made from now on shows: the clock of a file system is no finer than some milliseconds,
    /// and what happens within one of its ticks leaves the same time.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        i64::try_from(now).is_ok_and(|now| self.modified.0 < now - 1)
    }

    fn is_of_same(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

#[derive(Debug)]
struct Found {
    state: State,
    forks: Rc<HashSet<Vec<u8>>>,
}

thread_local! {
    static FOUND: RefCell<Vec<Found>> = const { RefCell::new(Vec::new()) };
}

/// A walk begins.
pub fn forget() {
    FOUND.with_borrow_mut(Vec::clear);
}

/// A walk has read a directory, which was in this state before that.
pub fn remember(before: State, entries: usize, forks: &HashSet<Vec<u8>>) {
    if entries < LARGE || forks.len() > MOST_FORKS || !before.is_settled() {
        return;
    }
    FOUND.with_borrow_mut(|found| {
        found.retain(|found| !found.state.is_of_same(&before));
        if found.len() < MOST_DIRECTORIES {
            found.push(Found { state: before, forks: Rc::new(forks.clone()) });
        }
    });
}

/// What is known of a directory.
#[derive(Debug)]
pub struct Known {
    state: State,
    forks: Rc<HashSet<Vec<u8>>>,
    files: u32,
    since: Instant,
}

impl Known {
    /// Of this one, if a walk has found out and it is as it was.
    pub fn of(directory: &OwnedFd) -> Option<Self> {
        FOUND.with_borrow(|found| {
            if found.is_empty() {
                return None;
            }
            let state = State::of(directory).ok()?;
            let found = found.iter().find(|found| found.state == state)?;
            Some(Self { state, forks: Rc::clone(&found.forks), files: 0, since: Instant::now() })
        })
    }

    /// Whether the directory, which is the same, has an init fork of this name; `None` if it has changed: then nothing is
    /// known any more.
    pub fn has(&mut self, directory: &OwnedFd, name: &[u8]) -> Option<bool> {
        self.files += 1;
        if self.files > HOLDS_FILES || self.since.elapsed() > HOLDS_FOR {
            if State::of(directory) != Ok(self.state) {
                return None;
            }
            self.files = 0;
            self.since = Instant::now();
        }
        Some(self.forks.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    use rustix::fs::{Timespec, Timestamps, futimens};

    #[test]
    fn what_was_found_holds_until_the_directory_changes() {
        let place =
            std::env::temp_dir().join(format!("pg_parallel_backup_init_forks_{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let directory = OwnedFd::from(File::open(&place).unwrap());
        let forks = HashSet::from([b"1_init".to_vec()]);
        let result = std::panic::catch_unwind(|| {
            // It has changed just now.
            remember(State::of(&directory).unwrap(), LARGE, &forks);
            assert!(Known::of(&directory).is_none());

            let past = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
            futimens(&directory, &Timestamps { last_access: past, last_modification: past }).unwrap();
            let state = State::of(&directory).unwrap();
            remember(state, LARGE - 1, &forks);
            assert!(Known::of(&directory).is_none(), "too small to be worth it");
            remember(state, LARGE, &forks);
            let mut known = Known::of(&directory).unwrap();
            let mut later = Known::of(&directory).unwrap();
            for _ in 0..3 * HOLDS_FILES {
                assert_eq!(known.has(&directory, b"1_init"), Some(true));
                assert_eq!(known.has(&directory, b"2_init"), Some(false));
            }

            File::create(place.join("2_init")).unwrap();
            assert!(Known::of(&directory).is_none());
            let answers: Vec<_> = (0..=HOLDS_FILES).map(|_| known.has(&directory, b"2_init")).collect();
            assert!(answers.contains(&None), "by the number of files");
            std::thread::sleep(2 * HOLDS_FOR);
            assert_eq!(later.has(&directory, b"2_init"), None, "by the time");

            forget();
            assert!(FOUND.with_borrow(Vec::is_empty));
        });
        fs::remove_dir_all(&place).unwrap();
        result.unwrap();
    }
}
