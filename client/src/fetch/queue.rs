//! The files that are still to be fetched, shared by all connections.
//!
//! Largest first, so that no connection is left alone with a big one at the end; small ones in
//! batches, directory by directory, so that a database of a million of them is not a million round trips; a file that is
//! more than a connection's share of what is left, in parts. Who began a file goes on with its parts;
//! others join in only when nothing else is left, since file systems let one process at a time write
//! to a file. Connections are spread over the tablespaces, since these are often disks of their own.
//!
//! While the list of files is still coming nobody knows which is the largest: until then only small
//! ones are given out, so that the other connections need not wait for the one that lists.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};

use pages::page::BLOCK_SIZE;
use pages::relation;
use protocol::{BackupPath, MAX_FILES_PER_COMMAND};

use crate::error::{Error, Result};
use crate::fetch::ordered::{PART, PARTS_PER_JOB};
use crate::output::Intake;
use crate::output::collected::IN_MEMORY;

/// Most bytes in a batch of more than one file: a lost connection should not cost more work.
const MAX_BATCH: u64 = 64 << 20;

/// Fewest bytes in a batch, as long as there are files: below that, round trips cost more than an
/// uneven end.
const MIN_BATCH: u64 = 1 << 20;

/// Files from here on wait until the list is complete.
const EARLY_LIMIT: u64 = 1 << 20;

/// Files below that are fetched in the order in which they are listed.
const SMALL: u64 = 64 << 10;

/// What a file costs beside its bytes: opening, a frame or two, an fsync.
const FILE_COST: u64 = 16 << 10;

/// In how many batches a connection takes its share of what is left: the more, the evener the end.
const SHARES: u64 = 4;

/// Fewest bytes in a part of a file: below that, it is not worth a command of its own.
const MIN_PART: u64 = 32 << 20;

/// Relation files below that have whatever size they turn out to have, whatever the output. Those are not
/// looked at page by page here (BY_CLIENT_MINIMUM in `transfer`), so that they come right or not at all.
pub const SIZED_MINIMUM: u64 = 64 << 10;

/// Most files in a batch of those that came back.
const RETURNED_BATCH: usize = 64;

/// How often a file is tried.
pub const TRIES: u8 = 3;

/// How often a file is tried that connections are lost at, where others are to be had for a long time: somebody
/// else may end them, but a file that ends each is found out.
const TRIES_OVER_LOST: u8 = 20;

/// The files of a backup: names in one buffer and records of 24 bytes, because there may be
/// millions.
#[derive(Debug, Default)]
struct FileList {
    names: Vec<u8>,
    files: Vec<File>,
    bytes: u64,
    /// Where files lie: the data directory, or an entry of pg_tblspc.
    tablespaces: Vec<Vec<u8>>,
    /// The files by their names, until the list is complete.
    known: HashTable<FileNumber>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug, Clone, Copy)]
struct File {
    name: usize,
    size: u64,
    length: u16,
    tablespace: u16,
}

impl FileList {
    /// Adds a file; `None` where it is listed already: a directory that changes while it is read can
    /// show a name again.
    fn push(&mut self, path: &BackupPath, size: u64) -> Result<Option<FileNumber>> {
        let name = path.as_bytes();
        // Far beyond what a path can be, PATH_MAX.
        let length = u16::try_from(name.len()).map_err(|_| {
            Error::local(format!("server listed a file name that is too long, of {} bytes", name.len()))
        })?;
        let Self { names, files, known, hasher, .. } = self;
        let hash = hasher.hash_one(name);
        if known.find(hash, |file| names[files[*file].range()] == *name).is_some() {
            return Ok(None);
        }
        let number = files.len();
        known.insert_unique(hash, number, |file| hasher.hash_one(&names[files[*file].range()]));
        let tablespace = self.tablespace_of(name);
        self.files.push(File { name: self.names.len(), size, length, tablespace });
        self.names.extend_from_slice(name);
        self.bytes += size;
        Ok(Some(number))
    }

    /// Nothing more will be added.
    fn complete(&mut self) {
        self.known = HashTable::new();
    }

    fn path(&self, file: FileNumber) -> BackupPath {
        let name = &self.names[self.files[file].range()];
        BackupPath::from_bytes(name).unwrap_or_else(|_| unreachable!("names in the list were paths"))
    }

    /// The number of the tablespace that a file is in; beyond 65,535 they share one.
    fn tablespace_of(&mut self, name: &[u8]) -> u16 {
        let tablespace = match name.strip_prefix(b"pg_tblspc/") {
            Some(rest) => memchr::memchr(b'/', rest).map_or(rest, |end| &rest[..end]),
            None => b"",
        };
        // A tablespace's files are listed together: look at the last first.
        let known = self.tablespaces.iter().rposition(|known| known == tablespace);
        let number = known.unwrap_or_else(|| {
            self.tablespaces.push(tablespace.to_vec());
            self.tablespaces.len() - 1
        });
        u16::try_from(number).unwrap_or(u16::MAX)
    }
}

impl File {
    fn range(&self) -> Range<usize> {
        self.name..self.name + usize::from(self.length)
    }

    fn cost(&self) -> u64 {
        cost(self.size)
    }
}

/// What it costs to fetch so many bytes in a file of their own.
fn cost(size: u64) -> u64 {
    size.saturating_add(FILE_COST)
}

/// A file's number in the queue.
pub type FileNumber = usize;

/// A file to be fetched, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Which.
    pub file: FileNumber,
    /// Which part, if not all of it.
    pub part: Option<Part>,
    /// When its turn is to be written, where that happens in order.
    pub ticket: u64,
}

/// A part of a file, whose size is the one that it was listed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, at a block.
    pub offset: u64,
    /// How long it is: blocks, but for the last.
    pub length: u64,
    /// The size of the file, as listed.
    pub size: u64,
    /// How many parts the file has.
    pub of: usize,
}

impl Part {
    /// Whether it is the whole file.
    pub fn is_all(&self) -> bool {
        self.of == 1
    }
}

/// What a connection is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Fetch these.
    Batch(Vec<Item>),
    /// Nothing now, but another's work may come back.
    Wait,
    /// Everything was fetched.
    Done,
}

/// Where a connection took its last batch from.
#[derive(Debug, Default)]
pub struct Turn {
    tablespace: Option<usize>,
    /// A file in parts.
    split: Option<FileNumber>,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    /// Locked, where both are, after the state.
    list: RwLock<FileList>,
    jobs: u64,
    may_split: bool,
    intake: Intake,
    /// How many bytes may be claimed and not written, where files are written in order.
    window: u64,
    /// Whether a connection that is lost says little about the file that came over it.
    is_patient: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// While the list is still coming.
    listing: Option<Listing>,
    /// The list will never be complete.
    abandoned: bool,
    /// Files in the order in which they are to be taken, tablespace by tablespace.
    order: Vec<FileNumber>,
    tablespaces: Vec<TablespaceQueue>,
    /// What is left in all of them.
    cost_left: u64,
    /// Files that were begun in parts, with parts that nobody has taken yet.
    splits: Vec<Split>,
    /// Files to be tried again, before anything else.
    again: VecDeque<Item>,
    /// Files that came back for no fault of their own.
    returned: VecDeque<Item>,
    /// Failures so far.
    failures: HashMap<FileNumber, u8>,
    /// Connections that were lost so far, if they are counted apart.
    losses: HashMap<FileNumber, u8>,
    /// Items that some connection is at.
    under_way: usize,
    /// Files that were fetched or had vanished.
    finished: usize,
    /// The ticket of what is claimed next, and bytes that were claimed and are not written yet, as they count
    /// in the window.
    tickets: u64,
    unwritten: u64,
}

/// Files that were listed and that nobody has taken yet.
#[derive(Debug, Default)]
struct Listing {
    /// Small ones, and what they cost.
    early: VecDeque<FileNumber>,
    early_cost: u64,
    later: Vec<FileNumber>,
}

/// A file in parts.
#[derive(Debug)]
struct Split {
    file: FileNumber,
    /// In order.
    left: VecDeque<Item>,
    /// Its tablespace's place.
    tablespace: usize,
    /// Connections whose last part was one of it.
    busy: usize,
}

/// A tablespace's files that nobody has taken yet.
#[derive(Debug)]
struct TablespaceQueue {
    /// Their places in the order.
    left: Range<usize>,
    cost_left: u64,
    /// Connections that are at files of it.
    busy: usize,
}

impl Queue {
    /// A queue for so many connections, whose files are still to be listed. Whether files may be split
    /// depends on the checksum: those of parts must give that of the whole.
    pub fn new(jobs: usize, may_split: bool) -> Self {
        Self {
            list: RwLock::default(),
            jobs: u64::try_from(jobs).unwrap_or(1).max(1),
            may_split: may_split && jobs > 1,
            intake: Intake::Any,
            window: u64::MAX,
            is_patient: false,
            state: Mutex::new(State { listing: Some(Listing::default()), ..State::default() }),
            changed: Condvar::new(),
        }
    }

    /// Files are to come as an output takes them.
    pub fn for_intake(self, intake: Intake) -> Self {
        let window = match intake {
            Intake::Ordered | Intake::InOrderEach => self.jobs * PARTS_PER_JOB * PART,
            Intake::Any | Intake::Sized => u64::MAX,
        };
        Self { intake, window, ..self }
    }

    /// Connections may be lost more often than usual.
    pub fn patient(self, is_patient: bool) -> Self {
        Self { is_patient, ..self }
    }

    /// Adds a file to the list; nothing where it is there already.
    pub fn push(&self, path: &BackupPath, size: u64) -> Result<()> {
        self.push_noted(path, size, |_| {})
    }

    /// The same, with what is to be noted of a file that is added before somebody may take it.
    pub fn push_noted(&self, path: &BackupPath, size: u64, note: impl FnOnce(FileNumber)) -> Result<()> {
        let number = self.list.write().unwrap_or_else(PoisonError::into_inner).push(path, size)?;
        if let Some(number) = number {
            note(number);
        }
        let mut state = self.lock();
        let (Some(number), Some(listing)) = (number, &mut state.listing) else { return Ok(()) };
        if size >= EARLY_LIMIT {
            listing.later.push(number);
            return Ok(());
        }
        let before = listing.early_cost;
        listing.early.push_back(number);
        listing.early_cost += cost(size);
        // Nobody waits while there is a batch, so that it is enough to say when one has come together.
        if before < MIN_BATCH && listing.early_cost >= MIN_BATCH {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// The list is complete. Files of one size, and small ones, stay in the order they came in.
    pub fn complete(&self) {
        let mut state = self.lock();
        let Some(Listing { early, later, .. }) = state.listing.take() else { return };
        self.list.write().unwrap_or_else(PoisonError::into_inner).complete();
        let list = self.list();
        let mut order = later;
        order.extend(early);
        order.sort_unstable_by_key(|number| {
            let file = &list.files[*number];
            // Small ones as they were listed, a directory's together: to open those again and again is what they cost.
            let size = if file.size < SMALL { 0 } else { file.size };
            (file.tablespace, Reverse(size), *number)
        });
        let mut last = None;
        for (place, number) in order.iter().enumerate() {
            let file = &list.files[*number];
            state.cost_left = state.cost_left.saturating_add(file.cost());
            match state.tablespaces.last_mut() {
                Some(tablespace) if last == Some(file.tablespace) => {
                    tablespace.left.end = place + 1;
                    tablespace.cost_left = tablespace.cost_left.saturating_add(file.cost());
                }
                _ => state.tablespaces.push(TablespaceQueue {
                    left: place..place + 1,
                    cost_left: file.cost(),
                    busy: 0,
                }),
            }
            last = Some(file.tablespace);
        }
        state.order = order;
        self.changed.notify_all();
    }

    /// The list will not be complete: nothing more is to be fetched.
    pub fn abandon(&self) {
        self.lock().abandoned = true;
        self.changed.notify_all();
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.list().files.len()
    }

    /// Size of all files, as listed.
    pub fn bytes(&self) -> u64 {
        self.list().bytes
    }

    /// A file's path.
    pub fn path(&self, file: FileNumber) -> BackupPath {
        self.list().path(file)
    }

    /// How many bytes an item has, as listed.
    pub fn size(&self, item: Item) -> u64 {
        item.part.map_or_else(|| self.list().files[item.file].size, |part| part.length)
    }

    /// The next batch; waits for one up to `patience` if others' work may still come back.
    pub fn claim(&self, turn: &mut Turn, patience: Duration) -> Claimed {
        let mut state = self.lock();
        if let Some(tablespace) = turn.tablespace.take() {
            state.tablespaces[tablespace].busy -= 1;
        }
        let own = turn.split.take();
        if let Some(split) = state.splits.iter_mut().find(|split| Some(split.file) == own) {
            split.busy -= 1;
        }
        for last_look in [false, true] {
            let batch = if state.abandoned { Vec::new() } else { self.batch(&mut state, turn, own) };
            if !batch.is_empty() {
                state.under_way += batch.len();
                return Claimed::Batch(batch);
            }
            if state.abandoned || state.under_way == 0 && state.listing.is_none() {
                return Claimed::Done;
            }
            // Without patience there is no second look, nor a system call for it.
            if last_look || patience.is_zero() {
                break;
            }
            (state, _) = self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        }
        // The window was full: it goes on with what it has begun.
        if let Some(split) = state.splits.iter_mut().find(|split| Some(split.file) == own) {
            split.busy += 1;
            turn.split = own;
        }
        Claimed::Wait
    }

    /// A file is dealt with, or a part of one; `file_done` for a whole one and for the last part.
    pub fn finish(&self, file_done: bool) {
        let mut state = self.lock();
        state.under_way -= 1;
        state.finished += usize::from(file_done);
        if state.under_way == 0 {
            self.changed.notify_all();
        }
    }

    /// A file was not fetched, for no fault of its own: somebody else's turn.
    pub fn release(&self, item: Item) {
        let mut state = self.lock();
        state.under_way -= 1;
        state.returned.push_back(item);
        self.changed.notify_all();
    }

    /// The connection was lost while a file came. Fails if that was its last try.
    pub fn lost(&self, item: Item, cause: &Error) -> Result<()> {
        if !self.is_patient {
            return self.failed(item, cause);
        }
        self.count(item, cause, TRIES_OVER_LOST, |state| &mut state.losses)
    }

    /// A file could not be fetched. Fails if that was its last try.
    pub fn failed(&self, item: Item, cause: &Error) -> Result<()> {
        self.count(item, cause, TRIES, |state| &mut state.failures)
    }

    fn count(
        &self,
        item: Item,
        cause: &Error,
        tries: u8,
        counts: impl FnOnce(&mut State) -> &mut HashMap<FileNumber, u8>,
    ) -> Result<()> {
        {
            let mut state = self.lock();
            let failures = counts(&mut state).entry(item.file).or_default();
            *failures += 1;
            if *failures < tries {
                state.under_way -= 1;
                state.again.push_back(item);
                self.changed.notify_all();
                return Ok(());
            }
        }
        Err(Error::local(format!(
            "could not fetch file \"{}\" in {tries} tries: {}",
            self.path(item.file),
            cause.message()
        )))
    }

    /// An item was written, in its turn: there is room in the window.
    pub fn written(&self, item: Item) {
        let weight = self.weight(self.size(item));
        self.lock().unwritten -= weight;
        self.changed.notify_all();
    }

    /// How much of the window is taken.
    #[cfg(test)]
    pub fn unwritten(&self) -> u64 {
        self.lock().unwritten
    }

    /// Whether every file was dealt with.
    pub fn is_complete(&self) -> bool {
        let state = self.lock();
        state.listing.is_none() && state.finished == self.len()
    }

    fn batch(&self, state: &mut State, turn: &mut Turn, own: Option<FileNumber>) -> Vec<Item> {
        // One by one, so that a file that breaks a connection takes no other down with it.
        if let Some(item) = state.again.pop_front() {
            return vec![item];
        }
        if !state.returned.is_empty() {
            let few = state.returned.len().min(RETURNED_BATCH);
            return state.returned.drain(..few).collect();
        }
        let list = self.list();
        if state.listing.is_some() {
            return self.early_batch(&list, state);
        }
        if self.intake == Intake::Ordered && !state.splits.is_empty() {
            // One file after the other, by all connections.
            return self.next_part(state, 0, turn);
        }
        if let Some(place) = state.splits.iter().position(|split| Some(split.file) == own) {
            if self.intake == Intake::InOrderEach {
                return self.next_part(state, place, turn);
            }
            return state.part(place, turn, VecDeque::pop_front);
        }
        let Some(number) = state.next_tablespace() else {
            // With the fewest others; from the end, so that who began it reads on in one go.
            let fewest = (0..state.splits.len()).min_by_key(|place| state.splits[*place].busy);
            return match fewest {
                None => Vec::new(),
                Some(place) if self.intake == Intake::InOrderEach => self.next_part(state, place, turn),
                Some(place) => state.part(place, turn, VecDeque::pop_back),
            };
        };
        let share = self.share_of(state.cost_left);
        let mut load = Load::of(share);
        let mut batch = Vec::new();
        let mut current = Some(number);
        'full: while let Some(tablespace) = current {
            while let Some(place) = state.tablespaces[tablespace].left.clone().next() {
                let file = state.order[place];
                let cost = list.files[file].cost();
                let parts = self.parts(&list, file, share);
                // One that comes in parts is begun by itself.
                if !parts.is_empty() && !batch.is_empty() {
                    break 'full;
                }
                let size = parts
                    .first()
                    .and_then(|first| first.part)
                    .map_or(list.files[file].size, |part| part.length);
                if !self.has_room(state, size) || !load.takes(cost) {
                    break 'full;
                }
                state.unwritten += self.weight(size);
                let left = &mut state.tablespaces[tablespace];
                left.left.start += 1;
                left.cost_left = left.cost_left.saturating_sub(cost);
                state.cost_left = state.cost_left.saturating_sub(cost);
                if !parts.is_empty() {
                    let left =
                        parts.into_iter().map(|item| Item { ticket: self.ticket(state), ..item }).collect();
                    state.splits.push(Split { file, left, tablespace, busy: 0 });
                    return state.part(state.splits.len() - 1, turn, VecDeque::pop_front);
                }
                batch.push(self.whole(&list, state, file));
            }
            // There may be thousands of tablespaces with a file or two each.
            current = if load.cost < MIN_BATCH { state.next_tablespace() } else { None };
        }
        if batch.is_empty() {
            return batch;
        }
        state.tablespaces[number].busy += 1;
        turn.tablespace = Some(number);
        batch
    }

    /// The next part of a file that is written from its beginning to its end, if there is room for it.
    fn next_part(&self, state: &mut State, place: usize, turn: &mut Turn) -> Vec<Item> {
        match state.splits[place].left.front().and_then(|item| item.part) {
            Some(part) if self.has_room(state, part.length) => {
                state.unwritten += self.weight(part.length);
                state.part(place, turn, VecDeque::pop_front)
            }
            _ => Vec::new(),
        }
    }

    /// What one batch takes of what is left. A single connection has nobody to come to the end with, and over a long way
    /// small batches are commands that it waits for.
    fn share_of(&self, cost_left: u64) -> u64 {
        if self.jobs == 1 { cost_left } else { cost_left / (self.jobs * SHARES) }
    }

    /// Some of the small files that are listed so far, if they are worth a command by now.
    fn early_batch(&self, list: &FileList, state: &mut State) -> Vec<Item> {
        let mut batch = Vec::new();
        let Some(early_cost) = state.listing.as_ref().map(|listing| listing.early_cost) else { return batch };
        if early_cost < MIN_BATCH {
            return batch;
        }
        let mut load = Load::of(self.share_of(early_cost));
        while let Some(file) = state.listing.as_ref().and_then(|listing| listing.early.front().copied()) {
            let File { size, .. } = list.files[file];
            if !self.has_room(state, size) || !load.takes(cost(size)) {
                break;
            }
            if let Some(listing) = &mut state.listing {
                listing.early.pop_front();
                listing.early_cost -= cost(size);
            }
            state.unwritten += self.weight(size);
            batch.push(self.whole(list, state, file));
        }
        batch
    }

    /// All of a file, with the next ticket.
    fn whole(&self, list: &FileList, state: &mut State, file: FileNumber) -> Item {
        let size = list.files[file].size;
        // In one part, if its size is to be as it was listed.
        let is_sized = self.intake == Intake::Sized
            && size >= SIZED_MINIMUM
            && relation::of_listed(&list.path(file)).is_some();
        let ticket = self.ticket(state);
        Item { file, part: is_sized.then_some(Part { offset: 0, length: size, size, of: 1 }), ticket }
    }

    /// The next ticket, where files are written in order.
    fn ticket(&self, state: &mut State) -> u64 {
        let ticket = state.tickets;
        state.tickets += u64::from(self.intake == Intake::Ordered);
        ticket
    }

    /// Whether so many bytes more fit the window. One item always does.
    fn has_room(&self, state: &State, size: u64) -> bool {
        state.unwritten == 0 || state.unwritten.saturating_add(self.weight(size)) <= self.window
    }

    /// What an item counts in the window: what it takes in memory.
    fn weight(&self, size: u64) -> u64 {
        size.min(IN_MEMORY)
    }

    /// The parts of a file that is more than its share of what is left; none where it stays whole.
    fn parts(&self, list: &FileList, file: FileNumber, share: u64) -> Vec<Item> {
        let size = list.files[file].size;
        let most = share.max(MIN_PART);
        let is_large = match self.intake {
            Intake::Ordered | Intake::InOrderEach => size > PART,
            Intake::Any | Intake::Sized => self.may_split && size >= 2 * most,
        };
        // Ranges are for relation files; others can change in other ways than at their end.
        if !is_large || relation::of_listed(&list.path(file)).is_none() {
            return Vec::new();
        }
        let length = match self.intake {
            Intake::Ordered | Intake::InOrderEach => PART,
            _ => size.div_ceil(size.div_ceil(most)).next_multiple_of(BLOCK_SIZE as u64),
        };
        let offsets: Vec<u64> = (0..size).step_by(usize::try_from(length).unwrap_or(usize::MAX)).collect();
        let of = offsets.len();
        offsets
            .into_iter()
            .map(|offset| {
                let length = length.min(size - offset);
                Item { file, part: Some(Part { offset, length, size, of }), ticket: 0 }
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> RwLockReadGuard<'_, FileList> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much is in a batch.
struct Load {
    most: u64,
    cost: u64,
    files: usize,
}

impl Load {
    /// A batch for such a share of what is left.
    fn of(share: u64) -> Self {
        Self { most: share.clamp(MIN_BATCH, MAX_BATCH), cost: 0, files: 0 }
    }

    /// Whether another file goes in: one always does.
    fn takes(&mut self, cost: u64) -> bool {
        self.cost = self.cost.saturating_add(cost);
        self.files += 1;
        self.files == 1 || self.cost <= self.most && self.files <= MAX_FILES_PER_COMMAND
    }
}

impl State {
    /// The tablespace to take files from: where the fewest connections are, and of those where most is left.
    fn next_tablespace(&self) -> Option<usize> {
        let all = self.tablespaces.iter().enumerate();
        let left = all.filter(|(_, tablespace)| !tablespace.left.is_empty());
        left.min_by_key(|(_, tablespace)| (tablespace.busy, Reverse(tablespace.cost_left)))
            .map(|(number, _)| number)
    }

    /// A part of a file that was begun.
    fn part(
        &mut self,
        place: usize,
        turn: &mut Turn,
        take: impl Fn(&mut VecDeque<Item>) -> Option<Item>,
    ) -> Vec<Item> {
        let split = &mut self.splits[place];
        split.busy += 1;
        self.tablespaces[split.tablespace].busy += 1;
        *turn = Turn { tablespace: Some(split.tablespace), split: Some(split.file) };
        let item = take(&mut split.left);
        if split.left.is_empty() {
            self.splits.swap_remove(place);
        }
        item.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn push(queue: &Queue, name: &str, size: u64) {
        queue.push(&BackupPath::from_bytes(name).unwrap(), size).unwrap();
    }

    fn named(names: &[(&str, u64)], jobs: usize, may_split: bool) -> Queue {
        let queue = Queue::new(jobs, may_split);
        names.iter().for_each(|(name, size)| push(&queue, name, *size));
        queue.complete();
        queue
    }

    fn sized(sizes: &[u64], jobs: usize) -> Queue {
        let names: Vec<_> = (0..sizes.len()).map(|number| format!("base/{number}")).collect();
        let pairs: Vec<_> = names.iter().map(String::as_str).zip(sizes.iter().copied()).collect();
        named(&pairs, jobs, true)
    }

    fn take(queue: &Queue) -> Vec<FileNumber> {
        match queue.claim(&mut Turn::default(), Duration::ZERO) {
            Claimed::Batch(batch) => batch.into_iter().map(|item| item.file).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn whole(file: FileNumber) -> Item {
        Item { file, part: None, ticket: 0 }
    }

    #[test]
    fn largest_first_and_small_ones_together() {
        let queue = sized(&[10, 200 * MB, 20, 1024 * MB, 0], 2);
        let paths = |batch: Vec<FileNumber>| -> Vec<String> {
            batch.into_iter().map(|file| queue.path(file).to_string()).collect()
        };
        assert_eq!(paths(take(&queue)), ["base/3"]);
        assert_eq!(paths(take(&queue)), ["base/1"]);
        // As they were listed.
        assert_eq!(paths(take(&queue)), ["base/0", "base/2", "base/4"]);
        assert_eq!(queue.claim(&mut Turn::default(), Duration::ZERO), Claimed::Wait);
        (0..5).for_each(|_| queue.finish(true));
        assert_eq!(queue.claim(&mut Turn::default(), Duration::ZERO), Claimed::Done);
        assert!(queue.is_complete());
    }

    #[test]
    fn batches_are_bounded_and_get_smaller_towards_the_end() {
        let queue = sized(&vec![8192; 50_000], 4);
        let mut batches = Vec::new();
        while let Claimed::Batch(batch) = queue.claim(&mut Turn::default(), Duration::ZERO) {
            batches.push(batch.len());
            batch.iter().for_each(|_| queue.finish(true));
        }
        assert_eq!(batches.iter().sum::<usize>(), 50_000);
        assert!(batches.iter().all(|files| *files <= MAX_FILES_PER_COMMAND));
        assert!(batches[0] > batches[batches.len() - 2], "{batches:?}");
        assert!(batches.iter().rev().take(8).all(|files| *files <= 64), "{batches:?}");
        assert!(queue.is_complete());

        // A single one takes as many as it may.
        let queue = sized(&[8192; MAX_FILES_PER_COMMAND + 5], 1);
        assert_eq!([take(&queue), take(&queue)].map(|batch| batch.len()), [MAX_FILES_PER_COMMAND, 5]);
        let queue = sized(&[MB - 1; 70], 1);
        assert_eq!([take(&queue), take(&queue)].map(|batch| batch.len()), [63, 7]);
    }

    #[test]
    fn nothing_to_do() {
        let queue = named(&[], 4, true);
        assert_eq!(queue.claim(&mut Turn::default(), Duration::ZERO), Claimed::Done);
        assert!(queue.is_complete());
    }

    #[test]
    fn a_file_is_tried_three_times() {
        let queue = sized(&[2, 1], 1);
        assert_eq!(take(&queue), [0, 1]);
        queue.finish(true);
        let cause = Error::connection("it broke");
        queue.failed(whole(1), &cause).unwrap();
        assert_eq!(take(&queue), [1]);
        // Coming back for another's fault does not count.
        queue.release(whole(1));
        assert_eq!(take(&queue), [1]);
        queue.failed(whole(1), &cause).unwrap();
        assert_eq!(take(&queue), [1]);
        let error = queue.failed(whole(1), &cause).unwrap_err();
        assert_eq!(error.message(), "could not fetch file \"base/1\" in 3 tries: it broke");
        assert!(!queue.is_complete());
    }

    #[test]
    fn who_waits_gets_what_comes_back() {
        let queue = sized(&[1], 2);
        assert_eq!(take(&queue), [0]);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| queue.claim(&mut Turn::default(), Duration::from_secs(60)));
            queue.release(whole(0));
            assert_eq!(other.join().unwrap(), Claimed::Batch(vec![whole(0)]));
        });
    }

    #[test]
    fn what_is_listed_twice_is_fetched_once() {
        let queue = Queue::new(1, true);
        for (number, size) in (0..1000).chain(0..500).zip(1..) {
            push(&queue, &format!("base/{number}"), size);
        }
        queue.complete();
        assert_eq!(queue.len(), 1000);
        assert_eq!(queue.bytes(), (1..=1000).sum::<u64>());
    }

    #[test]
    fn a_name_that_is_too_long_is_refused() {
        let queue = Queue::new(1, true);
        let longest = usize::from(u16::MAX);
        push(&queue, &"x".repeat(longest), 1);
        let path = BackupPath::from_bytes("x".repeat(longest + 1)).unwrap();
        assert_eq!(
            queue.push(&path, 1).unwrap_err().message(),
            "server listed a file name that is too long, of 65536 bytes"
        );
        queue.complete();
        assert_eq!((queue.len(), queue.path(0).as_bytes().len()), (1, longest));
    }

    #[test]
    fn small_files_need_not_wait_for_the_list() {
        let queue = Queue::new(2, true);
        push(&queue, "base/1/1", 200 * MB);
        for number in 2..40 {
            push(&queue, &format!("base/1/{number}"), 8192);
        }
        // Not worth a command yet, and not the end either.
        assert_eq!(queue.claim(&mut Turn::default(), Duration::ZERO), Claimed::Wait);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| queue.claim(&mut Turn::default(), Duration::from_secs(60)));
            for number in 40..60 {
                push(&queue, &format!("base/1/{number}"), 8192);
            }
            let Claimed::Batch(batch) = other.join().unwrap() else { panic!("nothing to do") };
            assert_eq!(batch[0], whole(1));
            batch.iter().for_each(|_| queue.finish(true));
            // Again while the list is coming: once.
            push(&queue, "base/1/2", 8192);
            queue.complete();
            let mut files: Vec<_> = batch.into_iter().map(|item| item.file).collect();
            assert!(files.len() < 59, "{files:?}");
            // Now the largest comes first, and of the rest what has not been taken.
            assert_eq!(take(&queue)[0], 0);
            queue.finish(true);
            while let Claimed::Batch(batch) = queue.claim(&mut Turn::default(), Duration::ZERO) {
                files.extend(batch.iter().filter(|item| item.part.is_none()).map(|item| item.file));
                batch.iter().for_each(|item| queue.finish(item.part.is_none()));
            }
            assert_eq!(files, (1..59).collect::<Vec<_>>());
            assert!(queue.is_complete());
        });
    }

    #[test]
    fn a_list_that_never_ends() {
        let queue = Queue::new(2, true);
        push(&queue, "base/1/1", 1);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| queue.claim(&mut Turn::default(), Duration::from_secs(60)));
            queue.abandon();
            assert_eq!(other.join().unwrap(), Claimed::Done);
        });
        assert!(!queue.is_complete());
    }

    #[test]
    fn little_of_many_tablespaces_is_one_batch() {
        let names: Vec<_> = (0..500).map(|oid| format!("pg_tblspc/{oid}/PG_18/5/1")).collect();
        let small: Vec<_> = names.iter().map(|name| (name.as_str(), 8192)).collect();
        let queue = named(&small, 2, true);
        let mut batches = Vec::new();
        while let Claimed::Batch(batch) = queue.claim(&mut Turn::default(), Duration::ZERO) {
            batches.push(batch.len());
            batch.iter().for_each(|_| queue.finish(true));
        }
        assert_eq!(batches.iter().sum::<usize>(), 500);
        assert!(batches.len() <= 20, "{batches:?}");
        // Not where there is enough in one.
        let large: Vec<_> = names.iter().take(3).map(|name| (name.as_str(), 2 * MB)).collect();
        let queue = named(&large, 2, true);
        assert_eq!([take(&queue), take(&queue), take(&queue)], [[0], [1], [2]]);
    }

    #[test]
    fn connections_are_spread_over_tablespaces() {
        let names: Vec<String> =
            (0..6).flat_map(|n| [format!("base/1/{n}"), format!("pg_tblspc/7/PG_18_1/1/{n}")]).collect();
        let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), 100 * MB)).collect();
        let queue = named(&pairs, 2, true);
        let mut turns = [Turn::default(), Turn::default()];
        for _ in 0..6 {
            let taken: Vec<bool> = turns
                .iter_mut()
                .map(|turn| match queue.claim(turn, Duration::ZERO) {
                    Claimed::Batch(batch) => queue.path(batch[0].file).as_bytes().starts_with(b"pg_tblspc"),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_ne!(taken[0], taken[1]);
        }
    }

    #[test]
    fn a_file_that_is_too_much_for_one_is_split() {
        let size = 1000 * MB + 4096;
        let queue = named(&[("base/1/20000", size), ("base/1/20001", 10)], 4, true);
        let mut parts = Vec::new();
        let mut first = Turn::default();
        let mut second = Turn::default();
        let mut next = |turn: &mut Turn| match queue.claim(turn, Duration::ZERO) {
            Claimed::Batch(batch) => parts.extend(batch),
            other => panic!("{other:?}"),
        };
        // Who began the file goes on with it; another joins in when nothing else is left, at its end.
        next(&mut first);
        next(&mut second);
        next(&mut first);
        next(&mut second);
        let last = parts.pop().unwrap().part.unwrap();
        assert_eq!(last.offset + last.length, size);
        assert_eq!(parts.remove(1), whole(1));
        assert_eq!(parts[1].part.unwrap().offset, parts[0].part.unwrap().length);
        while let Claimed::Batch(batch) = queue.claim(&mut first, Duration::ZERO) {
            parts.extend(batch);
        }
        parts.push(Item { file: 0, part: Some(last), ticket: 0 });
        let mut end = 0;
        for item in &parts {
            let part = item.part.unwrap();
            assert_eq!((item.file, part.offset, part.size, part.of), (0, end, size, parts.len()));
            assert!(part.offset.is_multiple_of(8192) && part.length <= 2 * MIN_PART, "{part:?}");
            end += part.length;
        }
        assert_eq!(end, size);
        // All of them count as one file.
        for number in 0..parts.len() {
            queue.finish(number + 1 == parts.len());
        }
        assert!(!queue.is_complete());
        queue.finish(true);
        assert!(queue.is_complete());
        assert_eq!(queue.claim(&mut Turn::default(), Duration::ZERO), Claimed::Done);
    }

    #[test]
    fn what_stays_whole() {
        for (name, size, jobs, may_split) in [
            // No relation's.
            ("base/big", 1000 * MB, 4, true),
            // One connection gains nothing.
            ("base/1/2", 1000 * MB, 1, true),
            // The checksum would not allow it.
            ("base/1/2", 1000 * MB, 4, false),
            ("base/1/2", 2 * MIN_PART - 1, 4, true),
        ] {
            let queue = named(&[(name, size)], jobs, may_split);
            assert_eq!(take(&queue), [0]);
            assert_eq!(
                queue.claim(&mut Turn::default(), Duration::ZERO),
                Claimed::Wait,
                "{name} {size} {jobs}"
            );
        }
    }

    #[test]
    fn a_million_files_fit() {
        const FILES: usize = 1_000_000;
        let before = crate::allocations::peak();
        let queue = Queue::new(8, true);
        for number in 0..FILES {
            let name = format!("pg_tblspc/{}/PG_18_202506291/{}/{number}", 16384 + number % 3, 16385);
            push(&queue, &name, 8192);
        }
        queue.complete();
        let used = crate::allocations::peak() - before;
        // The promise is 200 bytes a file; libpq, buffers and the rest have 64 MB beside.
        assert!(used < 200 * FILES, "{} bytes a file", used / FILES);
        assert_eq!(queue.len(), FILES);
    }
}
