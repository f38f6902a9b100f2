//! What the first members of a backup say: where it begins, what it goes on from, and where the server had its
//! tablespaces. backup_label and tablespace_map come before everything else (basebackup.c, perform_base_backup).

use std::collections::BTreeMap;

use protocol::Lsn;

use super::archive::{self, MemberKind, Next, unreadable};
use super::layout::Archive;
use super::manifest::TABLESPACE_MAP;
use super::source::Source;
use crate::catalog::index::Index;
use crate::error::{Error, Result};
use crate::output::MANIFEST;

const LABEL: &[u8] = b"backup_label";

/// The most bytes of a file that is looked at here, but for a manifest.
const MOST: u64 = 1 << 20;

/// What a backup says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Where it begins.
    pub start: Lsn,
    /// Where the backup begins that it goes on from, if it is an increment.
    pub prior: Option<Lsn>,
    /// Where the server had its tablespaces, by their OIDs; a path that does not begin with a slash is one in place.
    pub tablespaces: BTreeMap<u32, Vec<u8>>,
    /// The manifest, where it was looked for.
    pub manifest: Option<Vec<u8>>,
}

impl Head {
    /// What an index says.
    pub fn of_index(index: &Index) -> Self {
        Self {
            start: index.wal.start,
            prior: index.incremental.as_ref().map(|prior| prior.start),
            tablespaces: index
                .tablespaces
                .iter()
                .map(|tablespace| (tablespace.oid, tablespace.location.0.clone()))
                .collect(),
            manifest: None,
        }
    }
}

/// Reads what an archive of the data directory begins with. A manifest that is in it comes last (`-D -`), and is
/// only looked for if there is no other.
pub fn read(source: &dyn Source, base: &Archive, with_manifest: bool) -> Result<Head> {
    let shown = source.shown(&base.name);
    let mut head = Head::default();
    let mut has_label = false;
    archive::read(source.read(&base.name)?, base.compression, "", &shown, |member, bytes| {
        let name = member.path.as_bytes();
        let is_file = matches!(member.kind, MemberKind::File);
        let mut content = |most: u64| -> Result<Vec<u8>> {
            if member.size > most {
                return Err(Error::local(format!(
                    "\"{}\" is too large: {} bytes",
                    String::from_utf8_lossy(name),
                    member.size
                )));
            }
            let mut content = Vec::new();
            bytes.read_to_end(&mut content).map_err(|error| unreadable(&shown, &error))?;
            Ok(content)
        };
        if is_file && name == LABEL {
            let label = content(MOST)?;
            (head.start, head.prior) = parse_label(&label).ok_or_else(|| {
                Error::local(format!("invalid data in \"backup_label\" of archive \"{shown}\""))
            })?;
            has_label = true;
        } else if is_file && name == TABLESPACE_MAP {
            head.tablespaces = parse_map(&content(MOST)?).ok_or_else(|| {
                Error::local(format!("invalid data in \"tablespace_map\" of archive \"{shown}\""))
            })?;
        } else if is_file && name == MANIFEST.as_bytes() && with_manifest {
            head.manifest = Some(content(u64::MAX)?);
        } else if !with_manifest {
            return Ok(Next::Enough);
        }
        Ok(Next::More)
    })?;
    if has_label {
        Ok(head)
    } else {
        Err(Error::local(format!("archive \"{shown}\" does not begin with a \"backup_label\"")))
    }
}

fn parse_label(label: &[u8]) -> Option<(Lsn, Option<Lsn>)> {
    let text = String::from_utf8_lossy(label);
    let find = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        value.split_ascii_whitespace().next().map(str::parse::<Lsn>)
    };
    let start = find("START WAL LOCATION: ")?.ok()?;
    let prior = find("INCREMENTAL FROM LSN: ").transpose().ok()?;
    Some((start, prior))
}

/// Lines of an OID, one space and a path, in which a backslash takes the next byte its meaning
/// (xlogrecovery.c, read_tablespace_map).
fn parse_map(map: &[u8]) -> Option<BTreeMap<u32, Vec<u8>>> {
    let mut tablespaces = BTreeMap::new();
    let mut line = Vec::new();
    let mut bytes = map.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => line.push(*bytes.next()?),
            b'\n' | b'\r' if line.is_empty() => {}
            b'\n' | b'\r' => {
                let space = memchr::memchr(b' ', &line)?;
                let oid: u32 = std::str::from_utf8(&line[..space]).ok()?.parse().ok()?;
                let path = line[space + 1..].to_vec();
                if oid == 0 || path.is_empty() || memchr::memchr(0, &path).is_some() {
                    return None;
                }
                if tablespaces.insert(oid, path).is_some() {
                    return None;
                }
                line.clear();
            }
            _ => line.push(byte),
        }
    }
    line.is_empty().then_some(tablespaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let full = b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nLABEL: x\n";
        assert_eq!(parse_label(full), Some((Lsn(0x200_0028), None)));
        let increment = [&full[..], b"INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n"].concat();
        assert_eq!(parse_label(&increment), Some((Lsn(0x200_0028), Some(Lsn(0x100_0028)))));
        for bad in [&b""[..], b"LABEL: x\n", b"START WAL LOCATION: x\n", b"START WAL LOCATION: \n"] {
            assert_eq!(parse_label(bad), None);
        }
        assert_eq!(parse_label(&[&full[..], b"INCREMENTAL FROM LSN: y\n"].concat()), None);
    }

    #[test]
    fn maps() {
        let map = parse_map(b"16384 /a b\n16385 /x\\\ny\\\\z\n16386 pg_tblspc/16386\n").unwrap();
        let found: Vec<_> = map.iter().map(|(oid, path)| (*oid, &path[..])).collect();
        assert_eq!(found, [(16384, &b"/a b"[..]), (16385, b"/x\ny\\z"), (16386, b"pg_tblspc/16386")]);
        assert!(parse_map(b"").unwrap().is_empty());
        for bad in [
            &b"16384 /a"[..],
            b"16384\n",
            b"x /a\n",
            b"1 /a\n1 /b\n",
            b"0 /a\n",
            b"1 \n",
            b"1 /a\\",
            b"1 /\0\n",
        ] {
            assert!(parse_map(bad).is_none(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
