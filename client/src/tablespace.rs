//! --tablespace-mapping: where tablespaces go instead of where the server has them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Longest directory name, PostgreSQL's MAXPGPATH.
const MAX_PATH: usize = 1024;

/// Pairs of directories, in the order they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablespaceMap(Vec<(PathBuf, PathBuf)>);

impl TablespaceMap {
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
        self.0.push((canonical(old), canonical(new)));
        Ok(())
    }

    /// Where a tablespace of the server goes: the first mapping of its directory, or the same place.
    pub fn locate(&self, directory: &[u8]) -> PathBuf {
        let directory = canonical(directory);
        self.0.iter().find(|(old, _)| *old == directory).map_or(directory, |(_, new)| new.clone())
    }
}

/// Without doubled or trailing slashes and `.` components, so that spellings can be compared.
fn canonical(path: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(path)).components().collect()
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
