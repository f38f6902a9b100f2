//! The files that are still to be fetched, shared by all connections.
//!
//! Largest first, so that no connection is left alone with a big one at the end; small ones in
//! batches, so that a database of a million of them is not a million round trips.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::{BackupPath, MAX_FILES_PER_COMMAND};

use crate::error::{Error, Result};

/// Most bytes in a batch of more than one file: a lost connection should not cost more work.
const MAX_BATCH: u64 = 64 << 20;

/// Fewest bytes in a batch, as long as there are files: below that, round trips cost more than an
/// uneven end.
const MIN_BATCH: u64 = 1 << 20;

/// What a file costs beside its bytes: opening, a frame or two, an fsync.
const FILE_COST: u64 = 16 << 10;

/// In how many batches a connection takes its share of what is left: the more, the evener the end.
const SHARES: u64 = 4;

/// Most files in a batch of those that came back.
const RETURNED_BATCH: usize = 64;

/// How often a file is tried.
pub const TRIES: u8 = 3;

/// The files of a backup: names in one buffer, because there may be millions.
#[derive(Debug, Default)]
pub struct FileList {
    names: Vec<u8>,
    files: Vec<File>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct File {
    name: usize,
    length: u32,
    size: u64,
}

impl FileList {
    /// Adds a file.
    pub fn push(&mut self, path: &BackupPath, size: u64) {
        let name = path.as_bytes();
        // No name is longer than a path can be.
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        self.files.push(File { name: self.names.len(), length, size });
        self.names.extend_from_slice(name);
        self.bytes += size;
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Size of all of them, as listed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Drops what was listed twice: a directory that changes while it is read can show a name again.
    fn dedup(&mut self) {
        let names = &self.names;
        let mut seen = HashSet::with_capacity(self.files.len());
        let mut bytes = 0;
        self.files.retain(|file| {
            let new = seen.insert(&names[file.range()]);
            if new {
                bytes += file.size;
            }
            new
        });
        self.bytes = bytes;
    }
}

impl File {
    fn range(&self) -> Range<usize> {
        self.name..self.name + self.length as usize
    }

    fn cost(&self) -> u64 {
        self.size.saturating_add(FILE_COST)
    }
}

/// A file's number in the queue.
pub type FileNumber = usize;

/// What a connection is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Take {
    /// Fetch these.
    Batch(Vec<FileNumber>),
    /// Nothing now, but another's work may come back.
    Wait,
    /// Everything was fetched.
    Done,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    list: FileList,
    jobs: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The first file that nobody has taken yet.
    next: FileNumber,
    /// What is left from there on.
    cost_left: u64,
    /// Files to be tried again, before anything else.
    again: VecDeque<FileNumber>,
    /// Files that came back for no fault of their own.
    returned: VecDeque<FileNumber>,
    /// Failures so far.
    failures: HashMap<FileNumber, u8>,
    /// Files that some connection is at.
    under_way: usize,
    /// Files that were fetched or had vanished.
    finished: usize,
}

impl Queue {
    /// Sorts the files for this many connections. Files of one size stay in the order they came in.
    pub fn new(mut list: FileList, jobs: usize) -> Self {
        list.dedup();
        list.files.sort_by_key(|file| Reverse(file.size));
        let cost_left = list.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.cost()));
        Self {
            list,
            jobs: u64::try_from(jobs).unwrap_or(1).max(1),
            state: Mutex::new(State {
                next: 0,
                cost_left,
                again: VecDeque::new(),
                returned: VecDeque::new(),
                failures: HashMap::new(),
                under_way: 0,
                finished: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Size of all files, as listed.
    pub fn bytes(&self) -> u64 {
        self.list.bytes()
    }

    /// A file's path.
    pub fn path(&self, file: FileNumber) -> BackupPath {
        let name = &self.list.names[self.list.files[file].range()];
        BackupPath::from_bytes(name).unwrap_or_else(|_| unreachable!("names in the list were paths"))
    }

    /// The next batch; waits for one up to `patience` if others' work may still come back.
    pub fn take(&self, patience: Duration) -> Take {
        let mut state = self.lock();
        for last_look in [false, true] {
            let batch = self.batch(&mut state);
            if !batch.is_empty() {
                state.under_way += batch.len();
                return Take::Batch(batch);
            }
            if state.under_way == 0 {
                return Take::Done;
            }
            if !last_look {
                (state, _) =
                    self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            }
        }
        Take::Wait
    }

    /// A file is dealt with.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.under_way -= 1;
        state.finished += 1;
        if state.under_way == 0 {
            self.changed.notify_all();
        }
    }

    /// A file was not fetched, for no fault of its own: somebody else's turn.
    pub fn give_back(&self, file: FileNumber) {
        let mut state = self.lock();
        state.under_way -= 1;
        state.returned.push_back(file);
        self.changed.notify_all();
    }

    /// A file could not be fetched. Fails if that was its last try.
    pub fn failed(&self, file: FileNumber, cause: &Error) -> Result<()> {
        {
            let mut state = self.lock();
            let failures = state.failures.entry(file).or_default();
            *failures += 1;
            if *failures < TRIES {
                state.under_way -= 1;
                state.again.push_back(file);
                self.changed.notify_all();
                return Ok(());
            }
        }
        Err(Error::local(format!(
            "could not fetch file \"{}\" in {TRIES} tries: {}",
            self.path(file),
            cause.message()
        )))
    }

    /// Whether every file was dealt with.
    pub fn is_complete(&self) -> bool {
        self.lock().finished == self.list.len()
    }

    fn batch(&self, state: &mut State) -> Vec<FileNumber> {
        // One by one, so that a file that breaks a connection takes no other down with it.
        if let Some(file) = state.again.pop_front() {
            return vec![file];
        }
        if !state.returned.is_empty() {
            let few = state.returned.len().min(RETURNED_BATCH);
            return state.returned.drain(..few).collect();
        }
        let parts = self.jobs * SHARES;
        let most_bytes = (state.cost_left / parts).clamp(MIN_BATCH, MAX_BATCH);
        let mut batch = Vec::new();
        let mut bytes = 0u64;
        while let Some(file) = self.list.files.get(state.next) {
            let cost = file.cost();
            let fits = bytes.saturating_add(cost) <= most_bytes && batch.len() < MAX_FILES_PER_COMMAND;
            if !batch.is_empty() && !fits {
                break;
            }
            batch.push(state.next);
            bytes = bytes.saturating_add(cost);
            state.next += 1;
            state.cost_left = state.cost_left.saturating_sub(cost);
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(sizes: &[u64]) -> FileList {
        let mut list = FileList::default();
        for (number, size) in sizes.iter().enumerate() {
            list.push(&BackupPath::from_bytes(format!("base/{number}")).unwrap(), *size);
        }
        list
    }

    fn take(queue: &Queue) -> Vec<FileNumber> {
        match queue.take(Duration::ZERO) {
            Take::Batch(batch) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn largest_first_and_small_ones_together() {
        const MB: u64 = 1 << 20;
        let queue = Queue::new(list(&[10, 200 * MB, 20, 1024 * MB, 0]), 2);
        let paths = |batch: Vec<FileNumber>| -> Vec<String> {
            batch.into_iter().map(|file| queue.path(file).to_string()).collect()
        };
        assert_eq!(paths(take(&queue)), ["base/3"]);
        assert_eq!(paths(take(&queue)), ["base/1"]);
        assert_eq!(paths(take(&queue)), ["base/2", "base/0", "base/4"]);
        assert_eq!(queue.take(Duration::ZERO), Take::Wait);
        (0..5).for_each(|_| queue.finish());
        assert_eq!(queue.take(Duration::ZERO), Take::Done);
        assert!(queue.is_complete());
    }

    #[test]
    fn batches_are_bounded_and_get_smaller_towards_the_end() {
        let queue = Queue::new(list(&vec![8192; 50_000]), 4);
        let mut batches = Vec::new();
        while let Take::Batch(batch) = queue.take(Duration::ZERO) {
            batches.push(batch.len());
            batch.iter().for_each(|_| queue.finish());
        }
        assert_eq!(batches.iter().sum::<usize>(), 50_000);
        assert!(batches.iter().all(|files| *files <= MAX_FILES_PER_COMMAND));
        assert!(batches[0] > batches[batches.len() - 2], "{batches:?}");
        assert!(batches.iter().rev().take(8).all(|files| *files <= 64), "{batches:?}");
        assert!(queue.is_complete());
    }

    #[test]
    fn nothing_to_do() {
        let queue = Queue::new(FileList::default(), 4);
        assert_eq!(queue.take(Duration::ZERO), Take::Done);
        assert!(queue.is_complete());
    }

    #[test]
    fn a_file_is_tried_three_times() {
        let queue = Queue::new(list(&[1, 2]), 1);
        assert_eq!(take(&queue), [0, 1]);
        queue.finish();
        let cause = Error::connection("it broke");
        queue.failed(1, &cause).unwrap();
        assert_eq!(take(&queue), [1]);
        // Coming back for another's fault does not count.
        queue.give_back(1);
        assert_eq!(take(&queue), [1]);
        queue.failed(1, &cause).unwrap();
        assert_eq!(take(&queue), [1]);
        let error = queue.failed(1, &cause).unwrap_err();
        assert_eq!(error.message(), "could not fetch file \"base/0\" in 3 tries: it broke");
        assert!(!queue.is_complete());
    }

    #[test]
    fn who_waits_gets_what_comes_back() {
        let queue = Queue::new(list(&[1]), 2);
        assert_eq!(take(&queue), [0]);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| queue.take(Duration::from_secs(60)));
            queue.give_back(0);
            assert_eq!(other.join().unwrap(), Take::Batch(vec![0]));
        });
    }

    #[test]
    fn what_is_listed_twice_is_fetched_once() {
        let mut list = list(&[5, 6]);
        list.push(&BackupPath::from_bytes("base/0").unwrap(), 7);
        let queue = Queue::new(list, 1);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.bytes(), 11);
    }
}
