//! Whether there is room for a backup, where the file system can say.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use protocol::BackupPath;
use rustix::fs::{Access, AtFlags, CWD, accessat, statfs, statvfs};
use rustix::process::geteuid;

use crate::error::{Error, Result};

/// File systems that may need less than a file is long, because they compress: what is free there says nothing.
/// btrfs, ZFS, bcachefs, F2FS (`linux/magic.h`, and the file systems' own).
const COMPRESSING: [u32; 4] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e, 0xf2f5_2010];

const MEGABYTE: u64 = 1 << 20;

/// How large a cluster is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// How many files it has.
    pub files: u64,
    /// Bytes in the data directory.
    pub data: u64,
    /// Bytes of WAL that a backup has at least.
    pub wal: u64,
    /// Bytes of each tablespace, by its OID.
    pub tablespaces: BTreeMap<u32, u64>,
}

impl Sizes {
    /// One file more, or a directory, which has no bytes: a tablespace may have no files.
    pub fn add(&mut self, path: &BackupPath, is_file: bool, bytes: u64) {
        self.files += u64::from(is_file);
        let sum = match tablespace_of(path.as_bytes()) {
            Some(oid) => self.tablespaces.entry(oid).or_default(),
            None => &mut self.data,
        };
        *sum = sum.saturating_add(bytes);
    }

    /// Of all files.
    pub fn total(&self) -> u64 {
        self.tablespaces.values().fold(self.data, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// What is going to be written to a directory, which need not be there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The directory.
    pub directory: PathBuf,
    /// At least so many bytes, if that is known before they are there.
    pub bytes: Option<u64>,
}

impl Need {
    /// So many bytes more.
    fn add(&mut self, more: Option<u64>) {
        let sum = self.bytes.zip(more).map(|(bytes, more)| bytes.saturating_add(more));
        self.bytes = sum.or(self.bytes).or(more);
    }
}

/// One need for each directory.
pub fn merged(needs: Vec<Need>) -> Vec<Need> {
    let mut merged: Vec<Need> = Vec::new();
    let mut known: HashMap<PathBuf, usize> = HashMap::new();
    for need in needs {
        match known.get(&need.directory) {
            Some(place) => merged[*place].add(need.bytes),
            None => {
                known.insert(need.directory.clone(), merged.len());
                merged.push(need);
            }
        }
    }
    merged
}

/// Fails where a file system has too little room for all that goes there.
pub fn check(needs: &[Need]) -> Result<()> {
    Room::now(needs).check(needs)
}

/// What was free where a backup goes, by file system.
#[derive(Debug)]
pub struct Room {
    free: BTreeMap<u64, u64>,
    /// On which of them each directory is, or will be.
    devices: HashMap<PathBuf, u64>,
}

impl Room {
    /// What is free now in the directories that are needed.
    pub fn now(needs: &[Need]) -> Self {
        let (mut room, mut above) = (BTreeMap::new(), HashMap::new());
        let mut devices = HashMap::new();
        for Need { directory, .. } in needs {
            let Some((device, place)) = device_of(directory, &mut above) else { continue };
            devices.insert(directory.clone(), device);
            room.entry(device).or_insert(place);
        }
        let free = room.into_iter().filter_map(|(device, place)| Some((device, free(&place)?))).collect();
        Self { free, devices }
    }

    /// Fails where that was too little for all that goes there, to the directories that were looked at then.
    pub fn check(&self, needs: &[Need]) -> Result<()> {
        let mut all: BTreeMap<u64, Need> = BTreeMap::new();
        for need in needs {
            let Some(device) = self.devices.get(&need.directory) else { continue };
            all.entry(*device).and_modify(|all| all.add(need.bytes)).or_insert_with(|| need.clone());
        }
        all.into_iter().try_for_each(|(device, need)| match need.bytes.zip(self.free.get(&device)) {
            Some((bytes, free)) if *free < bytes => {
                let directory = need.directory.display();
                Err(Error::local(format!("not enough space for the backup in \"{directory}\""))
                    .with_detail(format!(
                        "The backup needs {} on this file system, and {} are free.",
                        megabytes(bytes),
                        megabytes(*free)
                    ))
                    .with_hint("With --no-estimate-size nobody looks."))
            }
            _ => Ok(()),
        })
    }
}

/// A directory's file system, and the directory or the one above it that is there. Those `above` were looked at before:
/// there may be thousands of tablespaces beside each other.
fn device_of<'a>(directory: &'a Path, above: &mut HashMap<&'a Path, Option<u64>>) -> Option<(u64, PathBuf)> {
    directory.ancestors().enumerate().find_map(|(number, ancestor)| {
        let named = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        let look = || fs::metadata(named).ok().map(|found| found.dev());
        let device = if number == 0 { look() } else { *above.entry(ancestor).or_insert_with(look) };
        device.map(|device| (device, named.to_owned()))
    })
}

/// Fails where a directory cannot be made, or nothing in it.
pub fn check_writable(directory: &Path) -> Result<()> {
    let Some(place) = existing(directory) else { return Ok(()) };
    accessat(CWD, &place, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(|error| {
        let what = if place == directory { "write to directory" } else { "create directory" };
        Error::io(what, directory, &error.into())
    })
}

/// What is free for us where something is, if the file system can say.
pub fn free(place: &Path) -> Option<u64> {
    let place = existing(place)?;
    let kind = statfs(&place).ok()?.f_type;
    // Of whatever width the platform has it.
    if COMPRESSING.iter().any(|known| i64::from(*known) == kind as i64 & 0xffff_ffff) {
        return None;
    }
    let state = statvfs(&place).ok()?;
    let blocks = if geteuid().is_root() { state.f_bfree } else { state.f_bavail };
    // Some have no limit, and say so by having nothing.
    (state.f_blocks > 0).then(|| blocks.saturating_mul(state.f_frsize))
}

/// For people, who want to see what is missing, too.
pub fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(MEGABYTE))
}

fn tablespace_of(path: &[u8]) -> Option<u32> {
    let rest = path.strip_prefix(b"pg_tblspc/")?;
    let end = memchr::memchr(b'/', rest)?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// The directory, or the one above it that is there.
fn existing(directory: &Path) -> Option<PathBuf> {
    directory.ancestors().find_map(|ancestor| {
        let named = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        named.exists().then(|| named.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(directory: PathBuf, bytes: u64) -> Need {
        Need { directory, bytes: Some(bytes) }
    }

    #[test]
    fn one_file_system_for_all_that_is_on_it() {
        let place = tempfile::tempdir().unwrap();
        // Nothing to test where the file system cannot say.
        let Some(free) = free(place.path()) else { return };
        let (one, other) = (place.path().join("a/b"), place.path().join("c"));
        check(&[need(one.clone(), 0), need(other.clone(), 0)]).unwrap();
        let half = free / 2 + free / 4;
        check(&[need(one.clone(), half / 8)]).unwrap();
        let error = check(&[need(one.clone(), half), need(other, half)]).unwrap_err();
        assert_eq!(error.message(), format!("not enough space for the backup in \"{}\"", one.display()));
        assert!(error.detail().unwrap().starts_with(&format!("The backup needs {}", megabytes(half * 2))));
        assert!(check(&[need(one, u64::MAX)]).is_err());
    }

    #[test]
    fn what_was_free_before_counts() {
        let place = tempfile::tempdir().unwrap();
        let Some(free) = free(place.path()) else { return };
        let there = |bytes| [need(place.path().join("a"), bytes)];
        let mut room = Room::now(&there(0));
        room.check(&there(free / 2)).unwrap();
        // Files of the backup have come meanwhile.
        room.free.values_mut().for_each(|free| *free = 10);
        fs::create_dir(place.path().join("a")).unwrap();
        room.check(&there(10)).unwrap();
        assert!(room.check(&there(11)).is_err());
        // Nothing is known of another file system.
        Room::now(&[]).check(&there(u64::MAX)).unwrap();
    }

    #[test]
    fn what_nobody_knows_adds_nothing() {
        let directory = PathBuf::from("/");
        let unknown = Need { directory: directory.clone(), bytes: None };
        check(std::slice::from_ref(&unknown)).unwrap();
        assert!(check(&[unknown.clone(), need(directory.clone(), u64::MAX)]).is_err());
        let all =
            merged(vec![unknown.clone(), need(directory.clone(), 1), unknown.clone(), need(directory, 2)]);
        assert_eq!(all.iter().map(|need| need.bytes).collect::<Vec<_>>(), [Some(3)]);
        assert_eq!(merged(vec![unknown.clone(), unknown.clone()]), [unknown]);
    }

    #[test]
    fn files_belong_to_tablespaces_by_their_paths() {
        let mut sizes = Sizes::default();
        let mut add =
            |name: &str, bytes| sizes.add(&BackupPath::parse(name.as_bytes()).unwrap(), true, bytes);
        for (name, bytes) in [
            ("base/5/1", 1),
            ("pg_tblspc/16385/PG_18_202506291/5/2", 10),
            ("pg_tblspc/16385/PG_18_202506291/5/3", 10),
            ("pg_tblspc/notes", 100),
            ("pg_tblspc/x/y", 1000),
            ("pg_tblspc/16386/PG_18_202506291", 0),
        ] {
            add(name, bytes);
        }
        assert_eq!((sizes.data, sizes.total(), sizes.files), (1101, 1121, 6));
        assert_eq!(sizes.tablespaces, [(16385, 20), (16386, 0)].into());
        sizes.add(&BackupPath::parse(b"base/5").unwrap(), false, 0);
        sizes.add(&BackupPath::parse(b"base/5/4").unwrap(), true, u64::MAX);
        assert_eq!((sizes.total(), sizes.files), (u64::MAX, 7));
    }

    #[test]
    fn sizes_of_all() {
        let sizes = Sizes { data: 3, tablespaces: [(1, 4), (2, 5)].into(), ..Sizes::default() };
        assert_eq!(sizes.total(), 12);
        assert_eq!(megabytes(MEGABYTE + 1), "2 MB");
    }

    #[test]
    fn what_is_not_there_yet() {
        assert_eq!(existing(Path::new("/nowhere/at/all")), Some(PathBuf::from("/")));
        assert_eq!(existing(Path::new("nowhere")), Some(PathBuf::from(".")));
        check_writable(&std::env::temp_dir().join("new")).unwrap();
    }
}
