//! What a data directory is: which files a backup has, how to walk and to open them. Names no
//! PostgreSQL function, so that it is tested without a server. What the client must see in the same
//! way, how names are read and pages verified, is in a crate of its own.

pub mod contents;
pub mod open;
pub mod wal;
pub mod walk;

use std::collections::{HashMap, HashSet};

use bytes::{Buf, BufMut};
use names::NameRules;
pub use pages::{names, page, relation};

/// A tablespace as START_BACKUP found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, also the name of its entry in pg_tblspc.
    pub oid: u32,
    /// The target of the link in pg_tblspc, or `pg_tblspc/<oid>` where it is a directory there
    /// (allow_in_place_tablespaces).
    pub location: Vec<u8>,
    /// Where it lies in the data directory, if it does: relative to it.
    pub relative: Option<Vec<u8>>,
}

impl Tablespace {
    /// Whether its entry in pg_tblspc is a directory and no link.
    pub fn in_place(&self) -> bool {
        self.location == self.entry()
    }

    /// `pg_tblspc/<oid>`.
    pub fn entry(&self) -> Vec<u8> {
        [contents::TABLESPACE_DIR, b"/", self.oid.to_string().as_bytes()].concat()
    }
}

/// What of a cluster decides which files its backup has: fixed when the backup starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The tablespaces; one made later is not part of the backup.
    pub tablespaces: Vec<Tablespace>,
    /// The directory in each tablespace that belongs to this server
    /// (TABLESPACE_VERSION_DIRECTORY).
    pub version_directory: Vec<u8>,
    /// How this server reads the names of files.
    pub names: NameRules,
    /// Places among the tablespaces by the names of their entries in pg_tblspc: it is asked for at each
    /// component of each path.
    entries: HashMap<Vec<u8>, usize>,
    /// Where tablespaces lie in the data directory.
    inside: HashSet<Vec<u8>>,
}

impl Layout {
    /// That of a cluster with these tablespaces.
    pub fn new(tablespaces: Vec<Tablespace>, version_directory: Vec<u8>, names: NameRules) -> Self {
        let entries = tablespaces.iter().enumerate();
        let entries = entries.map(|(place, space)| (space.oid.to_string().into_bytes(), place)).collect();
        let inside = tablespaces.iter().filter_map(|space| space.relative.clone()).collect();
        Self { tablespaces, version_directory, names, entries, inside }
    }

    /// The layout as bytes, for another process of the same server.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, &self.version_directory);
        out.put_u8(u8::from(self.names == NameRules::Before17));
        for space in &self.tablespaces {
            out.put_u32(space.oid);
            put_bytes(&mut out, &space.location);
            // A relative location is never empty.
            put_bytes(&mut out, space.relative.as_deref().unwrap_or_default());
        }
        out
    }

    /// The reverse of [`Layout::encode`]; `None` where the bytes are not from there.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let version_directory = take_bytes(&mut bytes)?;
        let names = if bytes.try_get_u8().ok()? == 0 { NameRules::Since17 } else { NameRules::Before17 };
        let mut tablespaces = Vec::new();
        while bytes.has_remaining() {
            let oid = bytes.try_get_u32().ok()?;
            let location = take_bytes(&mut bytes)?;
            let relative = Some(take_bytes(&mut bytes)?).filter(|path| !path.is_empty());
            tablespaces.push(Tablespace { oid, location, relative });
        }
        Some(Self::new(tablespaces, version_directory, names))
    }

    /// The tablespace with the entry `name` in pg_tblspc.
    pub fn tablespace(&self, name: &[u8]) -> Option<&Tablespace> {
        self.entries.get(name).map(|place| &self.tablespaces[*place])
    }

    /// Whether a path, relative to the data directory, is a tablespace's.
    pub fn is_tablespace(&self, path: &[u8]) -> bool {
        self.inside.contains(path)
    }
}

/// Writes bytes with their length, for another process.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(0));
    out.put_slice(bytes);
}

/// Takes what [`put_bytes`] wrote; `None` where there is less.
pub fn take_bytes(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_survives_the_way_to_another_process() {
        let tablespaces = vec![
            Tablespace { oid: 16384, location: b"/srv/\xff space".to_vec(), relative: None },
            Tablespace { oid: 16385, location: b"/data/x".to_vec(), relative: Some(b"x".to_vec()) },
        ];
        let layout = Layout::new(tablespaces, b"PG_15_1".to_vec(), NameRules::Before17);
        assert_eq!(layout.tablespace(b"16385").map(|space| space.oid), Some(16385));
        assert!(layout.tablespace(b"016385").is_none() && layout.is_tablespace(b"x"));
        let bytes = layout.encode();
        assert_eq!(Layout::decode(&bytes), Some(layout));
        assert_eq!(Layout::decode(&bytes[..bytes.len() - 1]), None);
    }
}
