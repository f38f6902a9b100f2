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
pub struct Room(BTreeMap<u64, u64>);

impl Room {
    /// What is free now in the directories that are needed.
    pub fn now(needs: &[Need]) -> Self {
        Self(
            on_devices(needs)
                .into_iter()
                .filter_map(|(device, on)| Some((device, free(&on.place)?)))
                .collect(),
        )
    }

    /// Fails where that was too little for all that goes there.
    pub fn check(&self, needs: &[Need]) -> Result<()> {
        on_devices(needs).into_iter().try_for_each(|(device, OnDevice { need, .. })| {
            match need.bytes.zip(self.0.get(&device)) {
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
            }
        })
    }
}

/// What goes to one file system: all of it under the first directory's name, and a place that is there.
struct OnDevice {
    need: Need,
    place: PathBuf,
}

fn on_devices(needs: &[Need]) -> BTreeMap<u64, OnDevice> {
    let mut devices: BTreeMap<u64, OnDevice> = BTreeMap::new();
    for need in needs {
        let Some(place) = existing(&need.directory) else { continue };
        let Ok(found) = fs::metadata(&place) else { continue };
        match devices.get_mut(&found.dev()) {
            Some(all) => all.need.add(need.bytes),
            None => {
                devices.insert(found.dev(), OnDevice { need: need.clone(), place });
            }
        }
    }
    devices
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
        room.0.values_mut().for_each(|free| *free = 10);
        room.check(&there(10)).unwrap();
        assert!(room.check(&there(11)).is_err());
        // Nothing is known of another file system.
        Room(BTreeMap::new()).check(&there(u64::MAX)).unwrap();
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
