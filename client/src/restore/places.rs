//! Places that have several backups in volumes, each with its index: what there is, what goes on from what, and which of
//! them may go.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use walkdir::WalkDir;

use super::source::{Directory, Source, read_all};
use crate::catalog::index::{Digest, INDEX, Index, WalMethod};
use crate::error::{Error, Result};

/// How large an index may be.
pub const MOST_OF_AN_INDEX: u64 = 16 << 30;

/// Where backups lie below one another.
pub trait Place {
    /// The names of all that have an index, relative to the place, in no order; nothing for the place itself.
    fn backups(&self) -> Result<Vec<String>>;

    /// One of them.
    fn source(&self, name: &str) -> Result<Box<dyn Source>>;

    /// Removes an object of one of them. One that is not there is as good as removed.
    fn remove(&self, name: &str, object: &str) -> Result<()>;

    /// Removes what is left of one that has no objects any more, where that is anything.
    fn remove_empty(&self, name: &str) -> Result<()>;
}

/// A directory, and those below it.
#[derive(Debug)]
pub struct Directories(PathBuf);

impl Directories {
    /// One that must be there.
    pub fn open(path: &Path) -> Result<Self> {
        Directory::open(path).map(|_| Self(path.to_owned()))
    }
}

impl Place for Directories {
    fn backups(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut directories = WalkDir::new(&self.0).into_iter();
        while let Some(entry) = directories.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Of others, in a place that is theirs as well.
                Err(error) if error.depth() > 0 => continue,
                Err(error) => {
                    let cause = error.into_io_error().unwrap_or(ErrorKind::Other.into());
                    return Err(Error::io("read directory", &self.0, &cause));
                }
            };
            if !entry.file_type().is_dir() || !entry.path().join(INDEX).is_file() {
                continue;
            }
            let Some(name) = entry.path().strip_prefix(&self.0).ok().and_then(Path::to_str) else { continue };
            found.push(name.to_owned());
            // A backup has no other in it.
            directories.skip_current_dir();
        }
        Ok(found)
    }

    fn source(&self, name: &str) -> Result<Box<dyn Source>> {
        Ok(Box::new(Directory::open(&self.0.join(name))?))
    }

    fn remove(&self, name: &str, object: &str) -> Result<()> {
        let path = self.0.join(name).join(object);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove file", &path, &error)),
            _ => Ok(()),
        }
    }

    fn remove_empty(&self, name: &str) -> Result<()> {
        if name.is_empty() {
            return Ok(());
        }
        // Somebody else may have put something there.
        let path = self.0.join(name);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) => Err(Error::io("remove directory", &path, &error)),
            Ok(()) => Ok(()),
        }
    }
}

/// What an index says of a backup as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Relative to the place.
    pub name: String,
    /// "full" or "incremental".
    pub kind: &'static str,
    /// The name of the backup that it goes on from, if that is in the same place.
    pub prior: Option<String>,
    /// Its label.
    pub label: String,
    /// RFC 3339.
    pub began: String,
    /// RFC 3339.
    pub ended: String,
    /// Such as 180001.
    pub server_version: u32,
    /// The cluster.
    pub system_identifier: String,
    /// Where its WAL begins,
    pub start: String,
    /// and ends.
    pub stop: String,
    /// "none", "fetch" or "stream".
    pub wal: &'static str,
    /// Archives.
    pub volumes: usize,
    /// Bytes as they are stored.
    pub size: u64,
    #[serde(skip)]
    prior_manifest: Option<Digest>,
    #[serde(skip)]
    manifest: Option<Digest>,
    #[serde(skip)]
    objects: Vec<String>,
}

impl Summary {
    fn new(name: String, index: &Index) -> Self {
        let objects = index.manifest.iter().chain(index.volumes.iter().map(|volume| &volume.stored));
        Self {
            name,
            kind: if index.incremental.is_some() { "incremental" } else { "full" },
            prior: None,
            label: index.label.clone(),
            began: index.began.clone(),
            ended: index.ended.clone(),
            server_version: index.server_version,
            system_identifier: index.system_identifier.to_string(),
            start: index.wal.start.to_string(),
            stop: index.wal.stop.to_string(),
            wal: match index.wal.method {
                WalMethod::None => "none",
                WalMethod::Fetch => "fetch",
                WalMethod::Stream => "stream",
            },
            volumes: index.volumes.len(),
            size: objects.clone().map(|stored| stored.size).sum(),
            prior_manifest: index.incremental.as_ref().map(|prior| prior.manifest_sha256),
            manifest: index.manifest.as_ref().map(|stored| stored.sha256),
            objects: objects.map(|stored| stored.name.clone()).collect(),
        }
    }

    /// Whether it needs another.
    pub fn is_incremental(&self) -> bool {
        self.prior_manifest.is_some()
    }
}

/// All backups of a place, the oldest first.
pub fn list(place: &dyn Place) -> Result<Vec<Summary>> {
    let mut found = Vec::new();
    for name in place.backups()? {
        let source = place.source(&name)?;
        let index = read_all(&*source, INDEX, MOST_OF_AN_INDEX).and_then(|json| Index::parse(&json));
        let index = index.map_err(|error| error.context(format!("backup at \"{}\"", source.name())))?;
        found.push(Summary::new(name, &index));
    }
    link(&mut found);
    Ok(found)
}

/// Puts them in order, and finds out what goes on from what.
fn link(found: &mut [Summary]) {
    // All in UTC, and of one form.
    found.sort_by(|one, other| (&one.ended, &one.name).cmp(&(&other.ended, &other.name)));
    let names: HashMap<Digest, String> =
        found.iter().filter_map(|backup| Some((backup.manifest?, backup.name.clone()))).collect();
    for backup in found {
        backup.prior = backup.prior_manifest.and_then(|manifest| names.get(&manifest).cloned());
    }
}

/// The names of the backups that one needs, itself included, the full one first.
pub fn chain(all: &[Summary], name: &str) -> Result<Vec<String>> {
    let by_name: HashMap<&str, &Summary> = all.iter().map(|backup| (&backup.name[..], backup)).collect();
    let mut chain = Vec::new();
    let mut next = Some(name);
    while let Some(name) = next {
        let Some(backup) = by_name.get(name) else {
            return Err(Error::local(format!("there is no backup \"{name}\"")));
        };
        if chain.contains(&backup.name) {
            return Err(Error::local(format!("backup \"{name}\" goes on from itself")));
        }
        chain.push(backup.name.clone());
        next = backup.prior.as_deref();
        if next.is_none() && backup.is_incremental() {
            return Err(Error::local(format!("the backup that \"{name}\" goes on from is not there"))
                .with_hint("Name all backups that are needed, the full one first."));
        }
    }
    chain.reverse();
    Ok(chain)
}

/// What may go so that of each cluster the newest so many full backups stay, and everything that goes on from them. What
/// needs another comes before it. A full backup stays as well if something goes on from it that is newer than the oldest
/// that is kept.
pub fn superfluous(all: &[Summary], keep_full: usize) -> Vec<&Summary> {
    let root = |backup: &Summary| chain(all, &backup.name).ok().and_then(|chain| chain.into_iter().next());
    let mut kept: HashSet<String> = HashSet::new();
    let systems: HashSet<&str> = all.iter().map(|backup| &backup.system_identifier[..]).collect();
    for system in systems {
        let of_system = || all.iter().filter(|backup| backup.system_identifier == system);
        let full: Vec<&Summary> = of_system().filter(|backup| !backup.is_incremental()).collect();
        let newest = &full[full.len().saturating_sub(keep_full)..];
        kept.extend(newest.iter().map(|backup| backup.name.clone()));
        if let Some(oldest) = newest.first() {
            kept.extend(of_system().filter(|backup| backup.ended > oldest.ended).filter_map(root));
        }
    }
    // One whose beginning is not here is needed by nobody here, but may be needed with what is elsewhere.
    let goes = |backup: &&Summary| root(backup).is_some_and(|root| !kept.contains(&root));
    let mut gone: Vec<&Summary> = all.iter().filter(goes).collect();
    gone.reverse();
    gone
}

/// Removes a backup: its index first, without which there is none.
pub fn remove(place: &dyn Place, backup: &Summary) -> Result<()> {
    place.remove(&backup.name, INDEX)?;
    for object in &backup.objects {
        place.remove(&backup.name, object)?;
    }
    place.remove_empty(&backup.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(name: &str, ended: u32, prior: Option<u8>, system: &str) -> Summary {
        Summary {
            name: name.to_owned(),
            kind: "",
            prior: None,
            label: String::new(),
            began: String::new(),
            ended: format!("2026-01-{ended:02}T00:00:00.000Z"),
            server_version: 180_000,
            system_identifier: system.to_owned(),
            start: String::new(),
            stop: String::new(),
            wal: "none",
            volumes: 1,
            size: 1,
            prior_manifest: prior.map(|number| [number; 32]),
            manifest: Some([u8::try_from(ended).unwrap(); 32]),
            objects: Vec::new(),
        }
    }

    fn linked(mut all: Vec<Summary>) -> Vec<Summary> {
        link(&mut all);
        all
    }

    fn names<'a>(backups: impl IntoIterator<Item = &'a Summary>) -> Vec<&'a str> {
        backups.into_iter().map(|backup| &backup.name[..]).collect()
    }

    #[test]
    fn chains() {
        let all = linked(vec![
            backup("c", 3, Some(2), "1"),
            backup("a", 1, None, "1"),
            backup("b", 2, Some(1), "1"),
            backup("lost", 4, Some(9), "1"),
            backup("self", 5, Some(5), "1"),
        ]);
        assert_eq!(names(&all), ["a", "b", "c", "lost", "self"]);
        assert_eq!(chain(&all, "c").unwrap(), ["a", "b", "c"]);
        assert_eq!(chain(&all, "a").unwrap(), ["a"]);
        assert_eq!(
            chain(&all, "lost").unwrap_err().message(),
            "the backup that \"lost\" goes on from is not there"
        );
        assert!(chain(&all, "self").is_err() && chain(&all, "none").is_err());
    }

    #[test]
    fn what_goes() {
        let all = linked(vec![
            backup("f1", 1, None, "1"),
            backup("i1", 2, Some(1), "1"),
            backup("i2", 3, Some(2), "1"),
            backup("f2", 4, None, "1"),
            backup("i3", 5, Some(4), "1"),
            backup("f3", 6, None, "1"),
            backup("lost", 7, Some(40), "1"),
            backup("other", 8, None, "2"),
        ]);
        assert_eq!(names(superfluous(&all, 1)), ["i3", "f2", "i2", "i1", "f1"]);
        assert_eq!(names(superfluous(&all, 2)), ["i2", "i1", "f1"]);
        assert_eq!(names(superfluous(&all, 3)), [""; 0]);
        assert_eq!(names(superfluous(&all, 30)), [""; 0]);
        // One that is newer than what is kept needs the old one.
        let all = linked(vec![
            backup("f1", 1, None, "1"),
            backup("f2", 2, None, "1"),
            backup("i1", 3, Some(1), "1"),
            backup("f3", 4, None, "1"),
        ]);
        assert_eq!(names(superfluous(&all, 2)), [""; 0]);
        assert_eq!(names(superfluous(&all, 1)), ["i1", "f2", "f1"]);
    }
}
