//! backup_manifest, in the form that pg_verifybackup reads (PostgreSQL documentation, "Backup
//! Manifest Format"; `src/common/parse_manifest.c`). Files are written as they are completed, so
//! that memory does not grow with them; their order means nothing.

use std::fmt::Write as _;
use std::io::{self, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use protocol::Lsn;
use protocol::id::to_hex;
use sha2::{Digest as _, Sha256};

use crate::options::ManifestOptions;

/// First server version whose manifests are of version 2 and name the system.
const SYSTEM_IDENTIFIER_SINCE: i32 = 170_000;

/// WAL that the backup needs, on one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: u32,
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
}

/// A manifest under way.
#[derive(Debug)]
pub struct Manifest<W> {
    out: W,
    hash: Sha256,
    options: ManifestOptions,
    first: bool,
}

impl<W: Write> Manifest<W> {
    /// Begins one.
    pub fn new(out: W, options: ManifestOptions, server_version: i32, system: u64) -> io::Result<Self> {
        let mut manifest = Self { out, hash: Sha256::new(), options, first: true };
        let version = if server_version >= SYSTEM_IDENTIFIER_SINCE { 2 } else { 1 };
        manifest.put(&format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n"))?;
        if version >= 2 {
            manifest.put(&format!("\"System-Identifier\": {system},\n"))?;
        }
        manifest.put("\"Files\": [")?;
        Ok(manifest)
    }

    /// Adds a file.
    pub fn file(&mut self, path: &[u8], size: u64, mtime: i64, checksum: &[u8]) -> io::Result<()> {
        let mut entry = String::from(if self.first { "\n{ " } else { ",\n{ " });
        self.first = false;
        match std::str::from_utf8(path) {
            Ok(path) if !self.options.force_encode => {
                entry.push_str("\"Path\": ");
                push_json(&mut entry, path);
            }
            _ => {
                entry.push_str("\"Encoded-Path\": \"");
                entry.push_str(&to_hex(path));
                entry.push('"');
            }
        }
        // Writing to a String cannot fail.
        let _ = write!(entry, ", \"Size\": {size}, \"Last-Modified\": \"{}\"", gmt(mtime));
        if !self.options.checksums.is_empty() {
            let _ = write!(
                entry,
                ", \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"{}\"",
                self.options.checksums.name(),
                to_hex(checksum)
            );
        }
        entry.push_str(" }");
        self.put(&entry)
    }

    /// Ends it: the WAL that is needed, and the checksum of everything before.
    pub fn finish(mut self, ranges: &[WalRange]) -> io::Result<W> {
        self.put("\n],\n\"WAL-Ranges\": [\n")?;
        let ranges: Vec<String> = ranges
            .iter()
            .map(|range| {
                format!(
                    "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                    range.timeline, range.start, range.end
                )
            })
            .collect();
        self.put(&ranges.join(",\n"))?;
        self.put("\n],\n")?;
        let checksum = to_hex(&self.hash.finalize());
        writeln!(self.out, "\"Manifest-Checksum\": \"{checksum}\"}}")?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.hash.update(text.as_bytes());
        self.out.write_all(text.as_bytes())
    }
}

/// A JSON string as PostgreSQL writes them: what must be escaped is, all else stays as it is.
fn push_json(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// A modification time as manifests have it.
fn gmt(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default().to_zoned(TimeZone::UTC);
    time.strftime("%Y-%m-%d %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use protocol::ChecksumAlgorithm;

    use super::*;

    fn options(checksums: ChecksumAlgorithm, force_encode: bool) -> ManifestOptions {
        ManifestOptions { checksums, force_encode }
    }

    fn range(timeline: u32, start: &str, end: &str) -> WalRange {
        WalRange { timeline, start: start.parse().unwrap(), end: end.parse().unwrap() }
    }

    /// Checks the last line as pg_verifybackup does: SHA-256 of all bytes up to it.
    fn check_checksum(text: &str) {
        let start = text.find("\"Manifest-Checksum\"").unwrap();
        assert_eq!(
            &text[start..],
            format!("\"Manifest-Checksum\": \"{}\"}}\n", to_hex(&Sha256::digest(&text[..start])))
        );
    }

    #[test]
    fn golden_text() {
        let mut manifest =
            Manifest::new(Vec::new(), options(ChecksumAlgorithm::Crc32c, false), 180_006, 7_000_000_000_000)
                .unwrap();
        manifest.file(b"PG_VERSION", 3, 1_700_000_000, &[0x83, 0x92, 0x06, 0xe3]).unwrap();
        manifest.file(b"a \"b\"\\\n\x01\xc3\xa9", 0, 0, &[0; 4]).unwrap();
        manifest.file(b"base/\xff", 1, -1, &[1, 2, 3, 4]).unwrap();
        let text = manifest
            .finish(&[range(3, "0/5000000", "0/50000D8"), range(2, "0/4000028", "0/5000000")])
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(
            text,
            r#"{ "PostgreSQL-Backup-Manifest-Version": 2,
"System-Identifier": 7000000000000,
"Files": [
{ "Path": "PG_VERSION", "Size": 3, "Last-Modified": "2023-11-14 22:13:20 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "839206e3" },
{ "Path": "a \"b\"\\\n\u0001é", "Size": 0, "Last-Modified": "1970-01-01 00:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "00000000" },
{ "Encoded-Path": "626173652fff", "Size": 1, "Last-Modified": "1969-12-31 23:59:59 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "01020304" }
],
"WAL-Ranges": [
{ "Timeline": 3, "Start-LSN": "0/5000000", "End-LSN": "0/50000D8" },
{ "Timeline": 2, "Start-LSN": "0/4000028", "End-LSN": "0/5000000" }
],
"Manifest-Checksum": "CHECKSUM"}
"#
            .replace("CHECKSUM\"}", &text[text.len() - 67..text.len() - 1])
        );
        check_checksum(&text);
    }

    #[test]
    fn version_1_forced_encoding_and_no_checksums() {
        let mut manifest =
            Manifest::new(Vec::new(), options(ChecksumAlgorithm::None, true), 160_000, 1).unwrap();
        manifest.file(b"a", 1, 0, &[]).unwrap();
        let text = String::from_utf8(manifest.finish(&[range(1, "0/1", "0/2")]).unwrap()).unwrap();
        assert!(text.starts_with(
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
             { \"Encoded-Path\": \"61\", \"Size\": 1, \"Last-Modified\": \"1970-01-01 00:00:00 GMT\" }\n],"
        ));
        check_checksum(&text);
    }

    #[test]
    fn no_files() {
        let manifest =
            Manifest::new(Vec::new(), options(ChecksumAlgorithm::Sha256, false), 150_000, 1).unwrap();
        let text = String::from_utf8(manifest.finish(&[]).unwrap()).unwrap();
        assert!(text.contains("\"Files\": [\n],"));
        check_checksum(&text);
    }
}
