//! Whether there is room for a backup, where the file system can say.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    // Directories by the file system that they are on.
    let mut devices: BTreeMap<u64, (Need, PathBuf)> = BTreeMap::new();
    for need in needs {
        let Some(place) = existing(&need.directory) else { continue };
        let Ok(found) = fs::metadata(&place) else { continue };
        match devices.get_mut(&found.dev()) {
            Some((all, _)) => all.add(need.bytes),
            None => {
                devices.insert(found.dev(), (need.clone(), place));
            }
        }
    }
    devices.values().try_for_each(|(need, place)| match need.bytes.zip(free(place)) {
        Some((bytes, free)) if free < bytes => {
            Err(Error::local(format!("not enough space for the backup in \"{}\"", need.directory.display()))
                .with_detail(format!(
                    "The backup needs {} on this file system, and {} are free.",
                    megabytes(bytes),
                    megabytes(free)
                ))
                .with_hint("With --no-estimate-size nobody looks."))
        }
        _ => Ok(()),
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
