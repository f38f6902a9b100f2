//! backup_manifest as it is read: what a backup consists of, and how each file proves that it is the one
//! (PostgreSQL documentation, "Backup Manifest Format"; `src/common/parse_manifest.c`).

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::atomic::{AtomicBool, Ordering};

use memchr::memrchr;
use protocol::id::{from_hex, to_hex};
use protocol::{BackupPath, ChecksumAlgorithm, Lsn};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::manifest::WalRange;
use crate::output::MANIFEST;

/// Where the server has tablespaces. Whoever restores makes the links himself, and then recovery must not make others.
pub const TABLESPACE_MAP: &[u8] = b"tablespace_map";

/// Versions of the format that are known: 2, of PostgreSQL 17, has the system identifier.
const VERSIONS: std::ops::RangeInclusive<u64> = 1..=2;

/// Files that pg_basebackup changes after they were sent, by --write-recovery-conf: pg_verifybackup leaves them alone.
const CHANGED: [&[u8]; 3] = [b"postgresql.auto.conf", b"standby.signal", b"recovery.signal"];

/// A manifest that was read, and whose own checksum is right.
#[derive(Debug)]
pub struct Manifest {
    /// The cluster, if it is said.
    pub system: Option<u64>,
    /// What WAL the backup needs.
    pub ranges: Vec<WalRange>,
    files: HashMap<Box<[u8]>, File>,
}

/// What is known of a file.
#[derive(Debug)]
pub struct File {
    /// In bytes.
    pub size: u64,
    /// How its checksum is made.
    pub algorithm: ChecksumAlgorithm,
    /// Its checksum, as long as the algorithm says.
    pub checksum: Box<[u8]>,
    is_there: AtomicBool,
}

#[derive(Deserialize)]
struct Text<'a> {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u64,
    #[serde(rename = "System-Identifier")]
    system: Option<u64>,
    #[serde(rename = "Files", borrow)]
    files: Vec<FileText<'a>>,
    #[serde(rename = "WAL-Ranges", default)]
    ranges: Vec<RangeText>,
}

#[derive(Deserialize)]
struct FileText<'a> {
    #[serde(rename = "Path", borrow)]
    path: Option<Cow<'a, str>>,
    #[serde(rename = "Encoded-Path", borrow)]
    encoded: Option<Cow<'a, str>>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm", borrow)]
    algorithm: Option<Cow<'a, str>>,
    #[serde(rename = "Checksum", borrow)]
    checksum: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RangeText {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl Manifest {
    /// Reads one. Its checksum is that of all lines but the last.
    pub fn parse(text: &[u8]) -> Result<Self> {
        check_checksum(text)?;
        let text: Text<'_> = serde_json::from_slice(text).map_err(|error| invalid(&error.to_string()))?;
        if !VERSIONS.contains(&text.version) {
            return Err(invalid(&format!("unexpected manifest version {}", text.version)));
        }
        let mut files = HashMap::with_capacity(text.files.len());
        for file in &text.files {
            let (path, file) = file.read()?;
            match files.entry(path) {
                Place::Vacant(place) => place.insert(file),
                Place::Occupied(place) => {
                    let name = String::from_utf8_lossy(place.key()).into_owned();
                    return Err(invalid(&format!("duplicate path name in backup manifest: \"{name}\"")));
                }
            };
        }
        let ranges = text.ranges.iter().map(RangeText::read).collect::<Result<_>>()?;
        Ok(Self { system: text.system, ranges, files })
    }

    /// How many files there are, and their bytes.
    pub fn totals(&self) -> (usize, u64) {
        (self.files.len(), self.files.values().map(|file| file.size).sum())
    }

    /// What is known of a file; none if nothing can be, for it may be changed or is WAL.
    pub fn find(&self, path: &BackupPath) -> Result<Option<&File>> {
        let name = path.as_bytes();
        if CHANGED.contains(&name) {
            if let Some(file) = self.files.get(name) {
                file.take(path)?;
            }
            return Ok(None);
        }
        match self.files.get(name) {
            Some(file) => file.take(path).map(|()| Some(file)),
            None if name.starts_with(b"pg_wal/") => Ok(None),
            None => Err(Error::local(format!(
                "\"{}\" is present in the backup but not in the manifest",
                String::from_utf8_lossy(name)
            ))),
        }
    }

    /// Fails unless every file has come.
    pub fn check_complete(&self) -> Result<()> {
        let mut missing: Vec<&[u8]> = self
            .files
            .iter()
            .filter(|(name, file)| !file.is_there.load(Ordering::Relaxed) && !CHANGED.contains(&&name[..]))
            .map(|(name, _)| &name[..])
            .collect();
        missing.sort_unstable();
        let Some(first) = missing.first() else { return Ok(()) };
        let error = Error::local(format!(
            "\"{}\" is present in the manifest but not in the backup",
            String::from_utf8_lossy(first)
        ));
        Err(if missing.len() > 1 {
            error.with_detail(format!("{} files are missing in all.", missing.len()))
        } else {
            error
        })
    }
}

impl File {
    fn take(&self, path: &BackupPath) -> Result<()> {
        if self.is_there.swap(true, Ordering::Relaxed) {
            return Err(Error::local(format!(
                "file \"{}\" is there twice",
                String::from_utf8_lossy(path.as_bytes())
            )));
        }
        Ok(())
    }
}

impl FileText<'_> {
    fn read(&self) -> Result<(Box<[u8]>, File)> {
        let path = match (&self.path, &self.encoded) {
            (Some(path), None) => path.as_bytes().to_vec(),
            (None, Some(encoded)) => from_hex(encoded)
                .ok_or_else(|| invalid(&format!("could not decode file name \"{encoded}\"")))?,
            (Some(_), Some(_)) => return Err(invalid("both path name and encoded path name")),
            (None, None) => return Err(invalid("missing path name")),
        };
        let path = BackupPath::from_bytes(path)
            .map_err(|error| invalid(&format!("invalid path name: {error}")))?
            .as_bytes()
            .into();
        let algorithm = match &self.algorithm {
            None => ChecksumAlgorithm::None,
            Some(name) => {
                name.parse().map_err(|()| invalid(&format!("unrecognized checksum algorithm: \"{name}\"")))?
            }
        };
        let checksum = match &self.checksum {
            None => Vec::new(),
            Some(text) => from_hex(text).unwrap_or_default(),
        };
        if checksum.len() != algorithm.len() {
            return Err(invalid("invalid checksum of a file"));
        }
        let file =
            File { size: self.size, algorithm, checksum: checksum.into(), is_there: AtomicBool::new(false) };
        Ok((path, file))
    }
}

impl RangeText {
    fn read(&self) -> Result<WalRange> {
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|_| invalid("could not parse a WAL location"));
        Ok(WalRange { timeline: self.timeline, start: lsn(&self.start)?, end: lsn(&self.end)? })
    }
}

/// The same manifest without a file that is in it; none if it is not. Each file has a line of its own there.
pub fn without(text: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>> {
    let plain = format!("\"Path\": \"{}\"", String::from_utf8_lossy(name)).into_bytes();
    let encoded = format!("\"Encoded-Path\": \"{}\"", to_hex(name)).into_bytes();
    let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let Some(at) = lines.iter().position(|line| {
        memchr::memmem::find(line, &plain).is_some() || memchr::memmem::find(line, &encoded).is_some()
    }) else {
        return Ok(None);
    };
    // The last of several has no comma behind it, and then the one before must have none.
    let removed = lines.remove(at);
    let mut shortened = Vec::with_capacity(text.len());
    let is_last = !removed.ends_with(b",\n");
    for (number, line) in lines.iter().enumerate().take(lines.len().saturating_sub(1)) {
        match line.strip_suffix(b",\n") {
            Some(line) if is_last && number + 1 == at => shortened.extend([line, &b"\n"[..]].concat()),
            _ => shortened.extend_from_slice(line),
        }
    }
    let checksum = to_hex(&Sha256::digest(&shortened));
    shortened.extend(format!("\"Manifest-Checksum\": \"{checksum}\"}}\n").into_bytes());
    // Not every JSON has its lines so.
    let (before, after) = (Manifest::parse(text)?, Manifest::parse(&shortened)?);
    if after.files.len() + 1 == before.files.len() && !after.files.contains_key(name) {
        Ok(Some(shortened))
    } else {
        Err(invalid("it does not have a line for each file"))
    }
}

fn check_checksum(text: &[u8]) -> Result<()> {
    let body = text.strip_suffix(b"\n").ok_or_else(|| invalid("last line not newline-terminated"))?;
    let last = memrchr(b'\n', body).map(|at| at + 1).ok_or_else(|| invalid("expected at least 2 lines"))?;
    let line = &text[last..];
    let stated = line
        .strip_prefix(b"\"Manifest-Checksum\": \"")
        .and_then(|rest| rest.get(..64))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(from_hex)
        .ok_or_else(|| invalid("manifest has no checksum"))?;
    if stated[..] == Sha256::digest(&text[..last])[..] {
        Ok(())
    } else {
        Err(invalid("manifest checksum mismatch"))
    }
}

fn invalid(what: &str) -> Error {
    Error::local(format!("could not parse \"{MANIFEST}\": {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest as Written;
    use crate::options::ManifestOptions;

    fn text(files: &[(&[u8], u64)], force_encode: bool) -> Vec<u8> {
        let options = ManifestOptions { checksums: ChecksumAlgorithm::Crc32c, force_encode };
        let mut manifest = Written::new(Vec::new(), options, 180_000, 7).unwrap();
        for (path, size) in files {
            manifest.file(path, *size, 0, &[1, 2, 3, 4]).unwrap();
        }
        let range = WalRange { timeline: 1, start: Lsn(0x28), end: Lsn(0x100) };
        manifest.finish(&[range]).unwrap()
    }

    fn path(name: &[u8]) -> BackupPath {
        BackupPath::from_bytes(name).unwrap()
    }

    fn words(text: &[u8]) -> String {
        Manifest::parse(text).unwrap_err().message().to_owned()
    }

    #[test]
    fn what_is_written_is_read() {
        for force_encode in [false, true] {
            let text = text(&[(b"backup_label", 10), (b"base/\xff", 20)], force_encode);
            let manifest = Manifest::parse(&text).unwrap();
            assert_eq!((manifest.system, manifest.totals()), (Some(7), (2, 30)));
            assert_eq!(manifest.ranges[0].end, Lsn(0x100));
            let file = manifest.find(&path(b"base/\xff")).unwrap().unwrap();
            assert_eq!((file.size, &file.checksum[..]), (20, &[1, 2, 3, 4][..]));
            assert_eq!(
                manifest.find(&path(b"base/\xff")).unwrap_err().message(),
                "file \"base/\u{fffd}\" is there twice"
            );
            assert!(manifest.find(&path(b"pg_wal/1")).unwrap().is_none());
            assert!(manifest.find(&path(b"standby.signal")).unwrap().is_none());
            assert_eq!(
                manifest.find(&path(b"other")).unwrap_err().message(),
                "\"other\" is present in the backup but not in the manifest"
            );
            let missing = manifest.check_complete().unwrap_err();
            assert_eq!(
                missing.message(),
                "\"backup_label\" is present in the manifest but not in the backup"
            );
        }
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let good = text(&[(b"a", 1)], false);
        for (from, to, expected) in [
            ("\"Size\": 1", "\"Size\": 2", "manifest checksum mismatch"),
            ("}\n\x00", "", "last line not newline-terminated"),
            ("Manifest-Checksum", "Manifest-Checksums", "manifest has no checksum"),
        ] {
            let mut bad = String::from_utf8(good.clone()).unwrap().replace(from, to);
            if to.is_empty() {
                bad.pop();
            }
            assert_eq!(words(bad.as_bytes()), format!("could not parse \"backup_manifest\": {expected}"));
        }
        let of = |body: &str| {
            let checksum = to_hex(&Sha256::digest(body.as_bytes()));
            words(format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n").as_bytes())
        };
        let file = |file: &str| {
            of(&format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [ {file} ],\n"))
        };
        for (words, expected) in [
            (
                of("{ \"PostgreSQL-Backup-Manifest-Version\": 3,\n\"Files\": [],\n"),
                "unexpected manifest version 3",
            ),
            (file(r#"{ "Path": "../a", "Size": 1 }"#), "invalid path name: path has an empty"),
            (file(r#"{ "Path": "/a", "Size": 1 }"#), "invalid path name: path is absolute"),
            (file(r#"{ "Encoded-Path": "6", "Size": 1 }"#), "could not decode file name \"6\""),
            (file(r#"{ "Size": 1 }"#), "missing path name"),
            (file(r#"{ "Path": "a", "Size": -1 }"#), "invalid value"),
            (file(r#"{ "Path": "a", "Size": 1 }, { "Path": "a", "Size": 1 }"#), "duplicate path name"),
            (
                file(r#"{ "Path": "a", "Size": 1, "Checksum-Algorithm": "MD5" }"#),
                "unrecognized checksum algorithm",
            ),
            (
                file(r#"{ "Path": "a", "Size": 1, "Checksum-Algorithm": "CRC32C", "Checksum": "0102" }"#),
                "invalid checksum of a file",
            ),
        ] {
            assert!(words.contains(expected), "{words}");
        }
    }

    #[test]
    fn a_file_is_taken_out() {
        let map = (TABLESPACE_MAP, 5);
        for force_encode in [false, true] {
            for files in [&[map, (b"a", 1)][..], &[(b"a", 1), map], &[(b"a", 1), map, (b"b", 2)], &[map]] {
                let text = text(files, force_encode);
                let shortened = without(&text, TABLESPACE_MAP).unwrap().unwrap();
                let manifest = Manifest::parse(&shortened).unwrap();
                assert_eq!(manifest.totals().0, files.len() - 1);
                assert!(without(&shortened, TABLESPACE_MAP).unwrap().is_none());
            }
        }
    }
}
