//! --tablespace-mapping: where tablespaces go instead of where the server has them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// Longest directory name, PostgreSQL's MAXPGPATH.
const MAX_PATH: usize = 1024;

/// Pairs of directories, in the order they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    pairs: Vec<(PathBuf, PathBuf)>,
    /// The first pair of each old directory: there may be thousands of them, and of tablespaces.
    first: HashMap<PathBuf, usize>,
}

impl TablespaceMap {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Adds one `OLDDIR=NEWDIR`; a backslash takes `=` its meaning.
    pub fn add(&mut self, argument: &[u8]) -> Result<()> {
        let mut sides = vec![Vec::new()];
        let mut rest = argument;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            let side = match byte {
                b'\\' if tail.first() == Some(&b'=') => {
                    rest = &tail[1..];
                    Some(b'=')
                }
                b'=' => None,
                other => Some(other),
            };
            match (side, sides.last_mut()) {
                (Some(byte), Some(last)) => last.push(byte),
                _ => sides.push(Vec::new()),
            }
        }
        let shown = String::from_utf8_lossy(argument);
        if sides.len() > 2 {
            return Err(Error::local("multiple \"=\" signs in tablespace mapping"));
        }
        if sides.iter().any(|side| side.len() >= MAX_PATH) {
            return Err(Error::local("directory name too long"));
        }
        let (old, new) = match &sides[..] {
            [old, new] if !old.is_empty() && !new.is_empty() => (old, new),
            _ => {
                return Err(Error::local(format!(
                    "invalid tablespace mapping format \"{shown}\", must be \"OLDDIR=NEWDIR\""
                )));
            }
        };
        // The server has tablespaces at absolute places only: another would never match.
        if old[0] != b'/' {
            return Err(Error::local(format!(
                "old directory is not an absolute path in tablespace mapping: {}",
                String::from_utf8_lossy(old)
            )));
        }
        if new[0] != b'/' {
            return Err(Error::local(format!(
                "new directory is not an absolute path in tablespace mapping: {}",
                String::from_utf8_lossy(new)
            )));
        }
        let (old, new) = (canonical_bytes(old), canonical_bytes(new));
        self.first.entry(old.clone()).or_insert(self.pairs.len());
        self.pairs.push((old, new));
        Ok(())
    }

    /// The directories that are mapped and in which the server has no tablespace.
    pub fn unmatched<'a>(&self, locations: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &Path> {
        let known: HashSet<PathBuf> = locations.map(canonical_bytes).collect();
        self.pairs.iter().map(|(old, _)| old.as_path()).filter(move |old| !known.contains(*old))
    }

    /// Where a tablespace of the server goes: the first mapping of its directory, or the same place.
    pub fn locate(&self, directory: &[u8]) -> PathBuf {
        let directory = canonical_bytes(directory);
        self.first.get(&directory).map_or(directory, |pair| self.pairs[*pair].1.clone())
    }
}

/// As PostgreSQL's `canonicalize_path`: without doubled or trailing slashes, `.` and what `..` takes back,
/// so that spellings can be compared. Links are not looked at.
pub fn canonical(path: &Path) -> PathBuf {
    let mut canonical = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match canonical.components().next_back() {
                Some(Component::Normal(_)) => {
                    canonical.pop();
                }
                // Nothing is above the root.
                Some(Component::RootDir) => {}
                _ => canonical.push(component),
            },
            _ => canonical.push(component),
        }
    }
    if canonical.as_os_str().is_empty() && !path.as_os_str().is_empty() {
        canonical.push(Component::CurDir);
    }
    canonical
}

fn canonical_bytes(path: &[u8]) -> PathBuf {
    canonical(Path::new(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(arguments: &[&str]) -> Result<TablespaceMap> {
        let mut map = TablespaceMap::default();
        for argument in arguments {
            map.add(argument.as_bytes())?;
        }
        Ok(map)
    }

    #[test]
    fn mapped_and_not() {
        let map = map(&["/a=/b", r"/x\=y=/p\=q", "/slash//es/=/t/"]).unwrap();
        assert_eq!(map.locate(b"/a").as_os_str(), "/b");
        assert_eq!(map.locate(b"/a/").as_os_str(), "/b");
        assert_eq!(map.locate(b"/a/b").as_os_str(), "/a/b");
        assert_eq!(map.locate(b"/x=y").as_os_str(), "/p=q");
        assert_eq!(map.locate(b"/slash/es").as_os_str(), "/t");
        assert_eq!(map.locate(b"/\xff").as_os_str(), OsStr::from_bytes(b"/\xff"));
    }

    #[test]
    fn spellings() {
        for (path, expected) in [
            ("", ""),
            ("/", "/"),
            ("/..", "/"),
            ("/a/./b//c/", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("/a/b/../..", "/"),
            ("new/.", "new"),
            ("./new", "new"),
            ("a/..", "."),
            ("../a/..", ".."),
            ("../../a/b/..", "../../a"),
            (".", "."),
        ] {
            assert_eq!(canonical(Path::new(path)).as_os_str(), expected, "{path}");
        }
        let map = map(&["/x/../old/=/new/./a/.."]).unwrap();
        assert_eq!(map.locate(b"/old").as_os_str(), "/new");
    }

    #[test]
    fn mappings_without_a_tablespace() {
        let map = map(&["/a=/b", "/c/=/d"]).unwrap();
        let unmatched =
            |known: &[&[u8]]| map.unmatched(known.iter().copied()).map(Path::to_owned).collect::<Vec<_>>();
        assert_eq!(unmatched(&[b"/a", b"/c"]), [""; 0].map(PathBuf::from));
        assert_eq!(unmatched(&[b"/b", b"/a/"]), ["/c"].map(PathBuf::from));
    }

    #[test]
    fn refused() {
        for (argument, message) in [
            ("/a", "invalid tablespace mapping format \"/a\", must be \"OLDDIR=NEWDIR\""),
            ("=/b", "invalid tablespace mapping format \"=/b\", must be \"OLDDIR=NEWDIR\""),
            ("/a=", "invalid tablespace mapping format \"/a=\", must be \"OLDDIR=NEWDIR\""),
            ("/a=/b=/c", "multiple \"=\" signs in tablespace mapping"),
            ("a=/b", "old directory is not an absolute path in tablespace mapping: a"),
            ("/a=b", "new directory is not an absolute path in tablespace mapping: b"),
        ] {
            assert_eq!(map(&[argument]).unwrap_err().message(), message);
        }
        assert_eq!(
            map(&[&format!("/{}=/b", "x".repeat(1024))]).unwrap_err().message(),
            "directory name too long"
        );
    }
}
