//! Files of which an incremental backup has some blocks only: which, and the file that is made of them.
//!
//! That is `INCREMENTAL.<name>`: a header with the numbers of the blocks, filled up to a block if there are any,
//! and then the blocks (`sendFile` and `GetIncrementalHeaderSize` of PostgreSQL's backup/). Sizes, parts and
//! offsets are those of this file everywhere but in what the server is asked for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pages::page::BLOCK_SIZE;
use pages::relation::split;
use protocol::{BackupPath, BlockList, ChecksumAlgorithm};

use crate::fetch::queue::{FileNumber, Part};
use crate::output::Attributes;

/// INCREMENTAL_MAGIC of backup/basebackup_incremental.h.
const MAGIC: u32 = 0xd3ae_1f0d;

/// What the names of such files begin with.
const PREFIX: &[u8] = b"INCREMENTAL.";

/// Bytes in one of the header's numbers.
const NUMBER: u64 = size_of::<u32>() as u64;

/// Most bytes that a run of blocks takes in a list: two numbers of six digits, a hyphen and a comma.
const RUN_TEXT: usize = 14;

/// A file with a list of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    /// Blocks that have changed, by their numbers in the file.
    pub blocks: BlockList,
    /// The least that the file has once it is put together, in blocks.
    pub truncation_block_length: u32,
    /// As the file was listed with.
    pub attributes: Attributes,
}

impl Increment {
    /// The size of the file that is made of it.
    pub fn size(&self) -> u64 {
        self.header_size() + self.blocks.len() * BLOCK_SIZE as u64
    }

    fn header_size(&self) -> u64 {
        let size = NUMBER * (3 + self.blocks.len());
        if self.blocks.is_empty() { size } else { size.next_multiple_of(BLOCK_SIZE as u64) }
    }

    /// What it begins with, in this machine's byte order, which is the server's: pages could not be verified otherwise, nor the copy be
    /// started here.
    pub fn header(&self) -> Vec<u8> {
        // Of a segment's blocks: it fits.
        let count = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let numbers = [MAGIC, count, self.truncation_block_length].into_iter().chain(self.blocks.numbers());
        let mut header: Vec<u8> = numbers.flat_map(u32::to_ne_bytes).collect();
        header.resize(usize::try_from(self.header_size()).unwrap_or(0), 0);
        header
    }

    /// What one part of that file is made of, or all of it.
    pub fn place(&self, part: Option<Part>, algorithm: ChecksumAlgorithm) -> Place {
        let header = self.header();
        let header_size = header.len() as u64;
        let (start, end) = part.map_or((0, self.size()), |part| (part.offset, part.offset + part.length));
        let in_header = |offset: u64| usize::try_from(offset.min(header_size)).unwrap_or(0);
        let block = |offset: u64| offset.saturating_sub(header_size) / BLOCK_SIZE as u64;
        Place {
            blocks: self.blocks.slice(block(start), block(end) - block(start)),
            header: header[in_header(start)..in_header(end)].to_vec(),
            start,
            size: self.size(),
            algorithm,
        }
    }
}

/// What a part of an increment's file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The blocks that the server is asked for.
    pub blocks: BlockList,
    /// The bytes before them, if the part begins with the header.
    pub header: Vec<u8>,
    /// Where the part begins.
    pub start: u64,
    /// The size of the whole file.
    pub size: u64,
    /// The checksum that the part gets, header and all.
    pub algorithm: ChecksumAlgorithm,
}

impl Place {
    /// Where the first of its blocks goes.
    pub fn blocks_start(&self) -> u64 {
        self.start + self.header.len() as u64
    }

    /// How long the list of its blocks can be in a command.
    pub fn list_length(&self) -> usize {
        self.blocks.runs().len() * RUN_TEXT
    }

    /// The blocks from one to another of its list, and where they go: in one piece, as they are in the list.
    pub fn between(&self, first: u32, last: u32) -> (BlockList, u64) {
        let before = |number: u32| self.blocks.numbers().take_while(|block| *block < number).count() as u64;
        let (skipped, count) = (before(first), before(last) + 1 - before(first));
        (self.blocks.slice(skipped, count), self.blocks_start() + skipped * BLOCK_SIZE as u64)
    }
}

/// The name of the file that is made of a file's blocks.
pub fn name_of(path: &BackupPath) -> BackupPath {
    let (directory, name) = split(path.as_bytes());
    let name = [PREFIX, name].concat();
    let name = if directory.is_empty() { name } else { [directory, b"/", &name].concat() };
    BackupPath::from_bytes(name).unwrap_or_else(|_| unreachable!("a path with a longer name is a path"))
}

/// Whether pg_combinebackup would take a file for one that is made of another's blocks: it does so in the directories
/// that have relations, whatever follows the prefix.
pub fn is_name(path: &BackupPath) -> bool {
    let (directory, name) = split(path.as_bytes());
    let places = [&b"base/"[..], b"pg_tblspc/"];
    name.starts_with(PREFIX)
        && (directory == b"global" || places.iter().any(|place| directory.starts_with(place)))
}

/// The increments of a backup that are still to be written, in some bytes each.
#[derive(Debug, Default)]
pub struct Increments {
    files: Mutex<HashMap<FileNumber, Packed>>,
    /// Bytes in all files as they were listed, whole.
    cluster: AtomicU64,
}

/// A list's runs as how many blocks lie before each and how many it has but one, seven bits a byte.
#[derive(Debug)]
struct Packed {
    runs: Box<[u8]>,
    truncation_block_length: u32,
    attributes: Attributes,
}

impl Increments {
    /// A file that is to be made of some blocks.
    pub fn insert(&self, file: FileNumber, increment: &Increment) {
        self.lock().insert(file, Packed::of(increment));
    }

    /// What it is to be made of; `None` for a file that comes whole.
    pub fn get(&self, file: FileNumber) -> Option<Increment> {
        self.lock().get(&file).map(Packed::unpack)
    }

    /// Whether it is to be made of some blocks.
    pub fn contains(&self, file: FileNumber) -> bool {
        self.lock().contains_key(&file)
    }

    /// A file was listed, whatever of it is to come.
    pub fn listed(&self, size: u64) {
        self.cluster.fetch_add(size, Ordering::Relaxed);
    }

    /// How large a full backup would be.
    pub fn cluster_size(&self) -> u64 {
        self.cluster.load(Ordering::Relaxed)
    }

    /// It is written, or gone.
    pub fn remove(&self, file: FileNumber) {
        self.lock().remove(&file);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileNumber, Packed>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Packed {
    fn of(increment: &Increment) -> Self {
        let mut runs = Vec::new();
        let mut end = 0;
        for run in increment.blocks.runs() {
            push_number(&mut runs, run.first - end);
            push_number(&mut runs, run.count - 1);
            end = run.first + run.count;
        }
        let Increment { truncation_block_length, attributes, .. } = *increment;
        Self { runs: runs.into(), truncation_block_length, attributes }
    }

    fn unpack(&self) -> Increment {
        let mut bytes = self.runs.iter();
        let mut blocks = BlockList::default();
        let mut end = 0;
        while let Some(gap) = take_number(&mut bytes) {
            let first = end + gap;
            end = first + take_number(&mut bytes).unwrap_or(0) + 1;
            blocks.push(first, end - first);
        }
        let Self { truncation_block_length, attributes, .. } = *self;
        Increment { blocks, truncation_block_length, attributes }
    }
}

fn push_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> Option<u32> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes.next()?;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_SIZE as u64;

    fn increment(list: &str) -> Increment {
        Increment {
            blocks: BlockList::parse(list.as_bytes()).unwrap(),
            truncation_block_length: 77,
            attributes: Attributes { mode: 0o600, mtime: -1 },
        }
    }

    fn place(list: &str, part: Option<(u64, u64)>) -> Place {
        let increment = increment(list);
        let size = increment.size();
        let part = part.map(|(offset, length)| Part { offset, length, size, of: 2 });
        increment.place(part, ChecksumAlgorithm::Crc32c)
    }

    #[test]
    fn headers() {
        let none = increment("");
        assert_eq!(none.size(), 12);
        assert_eq!(none.header(), [MAGIC, 0, 77].map(u32::to_ne_bytes).concat());
        let some = increment("5-6,9");
        assert_eq!(some.size(), 4 * BLOCK);
        let header = some.header();
        assert_eq!(header[..24], [MAGIC, 3, 77, 5, 6, 9].map(u32::to_ne_bytes).concat());
        assert!(header.len() == BLOCK_SIZE && header[24..].iter().all(|byte| *byte == 0));
        // 3 + 2,045 numbers fill a block.
        assert_eq!(increment("0-2044").size(), (1 + 2045) * BLOCK);
        assert_eq!(increment("0-2045").size(), (2 + 2046) * BLOCK);
    }

    #[test]
    fn parts_are_of_the_file_that_is_made() {
        let whole = place("5-6,9", None);
        assert_eq!((whole.blocks.to_string().as_str(), whole.header.len()), ("5-6,9", BLOCK_SIZE));
        assert_eq!((whole.start, whole.blocks_start(), whole.size), (0, BLOCK, 4 * BLOCK));
        let first = place("5-6,9", Some((0, 2 * BLOCK)));
        assert_eq!((first.blocks.to_string().as_str(), first.header), ("5", whole.header));
        let second = place("5-6,9", Some((2 * BLOCK, 2 * BLOCK)));
        assert_eq!((second.blocks.to_string().as_str(), second.header.len()), ("6,9", 0));
        assert_eq!((second.start, second.blocks_start()), (2 * BLOCK, 2 * BLOCK));
        // Of nothing but a header.
        assert!(place("5-6,9", Some((0, BLOCK))).blocks.is_empty());
        assert_eq!(place("", None).header.len(), 12);
    }

    #[test]
    fn pages_are_found_again() {
        let whole = place("5-6,9,20-29", None);
        let found = |first, last| {
            let (list, offset) = whole.between(first, last);
            (list.to_string(), offset / BLOCK)
        };
        assert_eq!(found(5, 5), ("5".to_owned(), 1));
        assert_eq!(found(6, 20), ("6,9,20".to_owned(), 2));
        assert_eq!(found(29, 29), ("29".to_owned(), 13));
        let part = place("5-6,9", Some((2 * BLOCK, 2 * BLOCK)));
        assert_eq!(part.between(9, 9), (BlockList::parse(b"9").unwrap(), 3 * BLOCK));
    }

    #[test]
    fn names() {
        let path = |text: &str| BackupPath::from_bytes(text).unwrap();
        assert_eq!(name_of(&path("base/5/16384.1")), path("base/5/INCREMENTAL.16384.1"));
        assert_eq!(name_of(&path("1")), path("INCREMENTAL.1"));
        for (name, taken) in [
            ("base/5/INCREMENTAL.1", true),
            ("base/5/INCREMENTAL.config", true),
            ("global/INCREMENTAL.1", true),
            ("pg_tblspc/16384/PG_18_1/5/INCREMENTAL.1", true),
            ("INCREMENTAL.config", false),
            ("base/INCREMENTAL.5", false),
            ("base/INCREMENTAL.5/1", false),
            ("pg_xact/INCREMENTAL.0000", false),
        ] {
            assert_eq!(is_name(&path(name)), taken, "{name}");
        }
    }

    #[test]
    fn lists_are_kept_in_few_bytes() {
        let increments = Increments::default();
        let sparse: Vec<u32> = (0..131_072).step_by(20).collect();
        let lists = ["", "0", "5-6,9", "131071", "0-131071", "127-300,16384-40000,131071"].map(increment);
        let large = Increment { blocks: BlockList::of(&sparse).unwrap(), ..lists[0].clone() };
        for (file, increment) in lists.iter().chain([&large]).enumerate() {
            increments.insert(file, increment);
            assert_eq!(increments.get(file).as_ref(), Some(increment));
        }
        assert_eq!(Packed::of(&large).runs.len(), 2 * sparse.len());
        increments.remove(0);
        assert!(increments.get(0).is_none() && increments.contains(1));
    }
}
