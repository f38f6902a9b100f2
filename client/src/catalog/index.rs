//! The index of a backup in volumes, `backup_index.json` (docs/volumes.md): what volumes there are, what is in them, and
//! what the backup is. It is written last: without it there is no backup.
//!
//! What is read of one comes from a store that others may write to, so that every name is checked: nothing leads out of
//! the backup's place, or out of the data directory.

use std::collections::HashSet;
use std::fmt;

use protocol::id::{from_hex, to_hex};
use protocol::{BackupId, BackupPath, Lsn};
use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// The object's, or file's, name.
pub const INDEX: &str = "backup_index.json";

/// The form that this is, and the only one that is read.
pub const VERSION: u32 = 1;

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`VERSION`].
    pub version: u32,
    /// Which program wrote it, for people.
    pub program: String,
    /// The backup, as the server knew it.
    #[serde(with = "text")]
    pub backup_id: BackupId,
    /// Its label; where it was no UTF-8, with what stands for that.
    pub label: String,
    /// When it began, RFC 3339 in UTC.
    pub began: String,
    /// When it was complete.
    pub ended: String,
    /// The server's version number, such as 180001.
    pub server_version: u32,
    /// The cluster. Text, for it has more digits than all programs read of a number.
    #[serde(with = "text")]
    pub system_identifier: u64,
    /// What it goes on from, if it is an incremental backup.
    pub incremental: Option<Prior>,
    /// The WAL that it needs.
    pub wal: Wal,
    /// How volumes are compressed.
    pub compression: Compression,
    /// Tablespaces but for the two that every cluster has.
    pub tablespaces: Vec<Tablespace>,
    /// Its backup_manifest, if it has one.
    pub manifest: Option<Stored>,
    /// In the order in which they were begun.
    pub volumes: Vec<Volume>,
}

/// The backup that an increment goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prior {
    /// Its start LSN,
    #[serde(with = "text")]
    pub start: Lsn,
    /// on this timeline.
    pub timeline: u32,
    /// Of its backup_manifest: what the prior's index has as `manifest.sha256`.
    #[serde(with = "digest")]
    pub manifest_sha256: Digest,
}

/// WAL from `start` to `stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wal {
    /// How it got into the backup, if it did.
    pub method: WalMethod,
    /// The timeline of the start,
    pub timeline: u32,
    /// where replay begins,
    #[serde(with = "text")]
    pub start: Lsn,
    /// that of the end,
    pub stop_timeline: u32,
    /// and up to where it must come for the copy to be consistent.
    #[serde(with = "text")]
    pub stop: Lsn,
    /// In bytes.
    pub segment_size: u64,
}

/// Where a backup's WAL is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalMethod {
    /// Elsewhere.
    None,
    /// In volumes of the data directory, below pg_wal.
    Fetch,
    /// In volumes of its own, to be extracted into pg_wal.
    Stream,
}

/// How volumes are compressed, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all: `.tar`.
    None,
    /// `.tar.gz`, one member.
    Gzip,
    /// `.tar.lz4`, of one or more frames.
    Lz4,
    /// `.tar.zst`, of one or more frames.
    Zstd,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its name in pg_tblspc.
    pub oid: u32,
    /// Where the server has it; relative to the data directory if it is in place.
    pub location: Name,
}

/// An object, or file, beside the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its name: one component.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Of these bytes.
    #[serde(with = "digest")]
    pub sha256: Digest,
}

/// An archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// As it is stored.
    #[serde(flatten)]
    pub stored: Stored,
    /// Before it was compressed.
    pub tar_size: u64,
    /// Where it is to be extracted.
    pub content: Content,
    /// The files in it, in their order, by their paths in the data directory.
    pub files: Paths,
}

/// Whose files a volume has, and so where it is to be extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The data directory.
    Base,
    /// A tablespace, by its OID: where pg_tblspc/OID leads.
    Tablespace(u32),
    /// WAL that was streamed: pg_wal.
    Wal,
}

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// Bytes that are mostly UTF-8: a string, or `{"hex": "..."}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(pub Vec<u8>);

/// Paths, one behind the other in one buffer: there may be millions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Each ends with a zero byte, which no path has.
    bytes: Vec<u8>,
    count: usize,
}

impl Index {
    /// Reads one, and checks it.
    #[allow(dead_code, reason = "for who restores; no backup reads one")]
    pub fn parse(json: &[u8]) -> Result<Self> {
        /// What every form has.
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let invalid =
            |error: serde_json::Error| Error::local(format!("could not parse backup index: {error}"));
        let Form { version } = serde_json::from_slice(json).map_err(invalid)?;
        if version != VERSION {
            return Err(Error::local(format!(
                "backup index has version {version}, this program reads version {VERSION}"
            )));
        }
        let index: Self = serde_json::from_slice(json).map_err(invalid)?;
        index.check()?;
        Ok(index)
    }

    /// As it is written.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::local(format!("could not write backup index: {error}")))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Its own file and all others must have names of their own, and all paths must be where they belong.
    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::local(format!("invalid backup index: {what}")));
        let mut names = HashSet::from([INDEX]);
        for stored in self.manifest.iter().chain(self.volumes.iter().map(|volume| &volume.stored)) {
            let name = stored.name.as_str();
            if !is_plain(name) {
                return refuse(format!("\"{name}\" is no name of a file"));
            }
            if !names.insert(name) {
                return refuse(format!("\"{name}\" is there twice"));
            }
        }
        let mut oids = HashSet::new();
        for tablespace in &self.tablespaces {
            if !oids.insert(tablespace.oid) {
                return refuse(format!("tablespace {} is there twice", tablespace.oid));
            }
            let location = &tablespace.location.0;
            if !location.starts_with(b"/") && BackupPath::from_bytes(location.as_slice()).is_err() {
                return refuse(format!("tablespace {} leads out of the data directory", tablespace.oid));
            }
        }
        let mut paths = HashSet::new();
        for volume in &self.volumes {
            let name = &volume.stored.name;
            let within = match volume.content {
                Content::Base => String::new(),
                Content::Wal => "pg_wal/".to_owned(),
                Content::Tablespace(oid) if oids.contains(&oid) => format!("pg_tblspc/{oid}/"),
                Content::Tablespace(oid) => {
                    return refuse(format!("volume \"{name}\" is of tablespace {oid}, which there is not"));
                }
            };
            for path in volume.files.iter() {
                let shown = String::from_utf8_lossy(path);
                if BackupPath::from_bytes(path).is_err() {
                    return refuse(format!(
                        "\"{shown}\" in volume \"{name}\" is no path in the data directory"
                    ));
                }
                if !path.starts_with(within.as_bytes()) {
                    return refuse(format!("\"{shown}\" does not belong into volume \"{name}\""));
                }
                if !paths.insert(path) {
                    return refuse(format!("file \"{shown}\" is there twice"));
                }
            }
        }
        Ok(())
    }
}

/// Whether it is one component, of a file that can be beside others wherever it is stored.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Gzip, Self::Lz4, Self::Zstd];

    /// What a volume's name ends with, behind `.tar`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Lz4 => ".lz4",
            Self::Zstd => ".zst",
        }
    }
}

impl Content {
    /// What volumes of it are called: this, a number from 1 on with five digits or more, `.tar`, and what the compression adds.
    pub fn stem(self) -> String {
        match self {
            Self::Base => "base".to_owned(),
            Self::Tablespace(oid) => oid.to_string(),
            Self::Wal => "pg_wal".to_owned(),
        }
    }

    /// A volume's name.
    pub fn volume(self, number: u32, suffix: &str) -> String {
        format!("{}.{number:05}.tar{suffix}", self.stem())
    }
}

impl Paths {
    /// Adds one. Nothing with a zero byte is a path.
    pub fn push(&mut self, path: &[u8]) {
        self.bytes.extend_from_slice(path);
        self.bytes.push(0);
        self.count += 1;
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split_inclusive(|byte| *byte == 0).map(|path| &path[..path.len() - 1])
    }
}

impl<'a> FromIterator<&'a [u8]> for Paths {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(paths: T) -> Self {
        let mut all = Self::default();
        paths.into_iter().for_each(|path| all.push(path));
        all
    }
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut all = serializer.serialize_seq(Some(self.count))?;
        for path in self.iter() {
            all.serialize_element(&Borrowed(path))?;
        }
        all.end()
    }
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Paths;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of paths")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> std::result::Result<Paths, A::Error> {
                let mut paths = Paths::default();
                while let Some(Name(path)) = all.next_element()? {
                    if path.contains(&0) {
                        return Err(de::Error::custom("a path has a zero byte"));
                    }
                    paths.push(&path);
                }
                Ok(paths)
            }
        }
        deserializer.deserialize_seq(All)
    }
}

/// A name where it is.
struct Borrowed<'a>(&'a [u8]);

impl Serialize for Borrowed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Hex { hex: to_hex(self.0) }.serialize(serializer),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Hex {
    hex: String,
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        Borrowed(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Hex(Hex),
        }
        match Either::deserialize(deserializer)? {
            Either::Text(text) => Ok(Self(text.into_bytes())),
            Either::Hex(Hex { hex }) => {
                from_hex(&hex).map(Self).ok_or_else(|| de::Error::custom("a name is no hex"))
            }
        }
    }
}

/// What is text in JSON: LSNs, numbers of 64 bits, the backup's id.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::custom(format_args!("invalid value \"{text}\"")))
    }
}

/// Digests in hex.
mod digest {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{Digest, from_hex, to_hex};

    pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(digest))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = from_hex(&text).and_then(|bytes| Digest::try_from(bytes).ok());
        bytes.ok_or_else(|| de::Error::custom(format_args!("invalid digest \"{text}\"")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str) -> Stored {
        Stored { name: name.to_owned(), size: 10, sha256: [0xab; 32] }
    }

    fn volume(name: &str, content: Content, files: &[&[u8]]) -> Volume {
        Volume { stored: stored(name), tar_size: 10_240, content, files: files.iter().copied().collect() }
    }

    fn index() -> Index {
        Index {
            version: VERSION,
            program: "pg_parallel_basebackup 0.3.0".to_owned(),
            backup_id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            label: "nightly \"one\"".to_owned(),
            began: "2026-11-26T03:00:00Z".to_owned(),
            ended: "2026-11-26T03:10:00Z".to_owned(),
            server_version: 180_001,
            system_identifier: u64::MAX,
            incremental: Some(Prior { start: Lsn(0x2000028), timeline: 1, manifest_sha256: [7; 32] }),
            wal: Wal {
                method: WalMethod::Stream,
                timeline: 1,
                start: Lsn(0x1_0000_0028),
                stop_timeline: 2,
                stop: Lsn(0x1_0000_0160),
                segment_size: 16 << 20,
            },
            compression: Compression::Zstd,
            tablespaces: vec![
                Tablespace { oid: 16384, location: Name(b"/srv/\xff".to_vec()) },
                Tablespace { oid: 16385, location: Name(b"pg_tblspc/16385".to_vec()) },
            ],
            manifest: Some(stored("backup_manifest")),
            volumes: vec![
                volume("base.00001.tar.zst", Content::Base, &[b"PG_VERSION", b"base/\xff\xfe"]),
                volume("16384.00001.tar.zst", Content::Tablespace(16384), &[b"pg_tblspc/16384/PG_18/5/1"]),
                volume("pg_wal.00001.tar.zst", Content::Wal, &[b"pg_wal/000000010000000100000000"]),
            ],
        }
    }

    fn refusal(change: impl FnOnce(&mut Index)) -> String {
        let mut changed = index();
        change(&mut changed);
        assert!(changed.to_json().is_err(), "it is not written either");
        Index::parse(&serde_json::to_vec(&changed).unwrap()).unwrap_err().message().to_owned()
    }

    #[test]
    fn written_and_read() {
        let json = index().to_json().unwrap();
        assert_eq!(Index::parse(&json).unwrap(), index());
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["system_identifier"], "18446744073709551615");
        assert_eq!(value["wal"]["start"], "1/28");
        assert_eq!(value["incremental"]["timeline"], 1);
        assert_eq!(value["tablespaces"][0]["location"]["hex"], "2f7372762fff");
        assert_eq!(value["volumes"][0]["name"], "base.00001.tar.zst");
        assert_eq!(value["volumes"][0]["content"], "base");
        assert_eq!(value["volumes"][0]["files"][1]["hex"], "626173652ffffe");
        assert_eq!(value["volumes"][1]["content"]["tablespace"], 16384);
        assert_eq!(value["manifest"]["sha256"].as_str().unwrap(), "ab".repeat(32));
    }

    #[test]
    fn what_is_not_known_is_left_alone() {
        let mut value: serde_json::Value = serde_json::from_slice(&index().to_json().unwrap()).unwrap();
        value["later"] = "addition".into();
        value["volumes"][0]["later"] = 1.into();
        assert_eq!(Index::parse(&serde_json::to_vec(&value).unwrap()).unwrap(), index());
    }

    #[test]
    fn another_version_is_refused_whatever_it_has() {
        let error = Index::parse(br#"{"version": 2, "all": "else"}"#).unwrap_err();
        assert_eq!(error.message(), "backup index has version 2, this program reads version 1");
        assert!(Index::parse(b"{}").is_err() && Index::parse(b"").is_err());
        let json = index().to_json().unwrap();
        assert!(Index::parse(&json[..json.len() / 2]).is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["../base.00001.tar", "a/b", "/etc/x", "", ".", "..", ".hidden", "a\nb", "a\\b", "a%2fb"]
        {
            let message = refusal(|index| index.volumes[0].stored.name = name.to_owned());
            assert_eq!(message, format!("invalid backup index: \"{name}\" is no name of a file"));
            refusal(|index| index.manifest = Some(stored(name)));
        }
        for path in [&b"../x"[..], b"/etc/passwd", b"base/../../x", b"", b"base//1", b"base/."] {
            let message = refusal(|index| index.volumes[0].files = std::iter::once(path).collect());
            assert!(message.ends_with("in volume \"base.00001.tar.zst\" is no path in the data directory"));
        }
        let message = refusal(|index| index.volumes[1].files = std::iter::once(&b"base/1"[..]).collect());
        assert!(
            message.ends_with("\"base/1\" does not belong into volume \"16384.00001.tar.zst\""),
            "{message}"
        );
        let message = refusal(|index| index.tablespaces[1].location = Name(b"../16385".to_vec()));
        assert!(message.ends_with("tablespace 16385 leads out of the data directory"));
    }

    #[test]
    fn nothing_is_there_twice() {
        for name in ["backup_manifest", INDEX, "pg_wal.00001.tar.zst"] {
            let message = refusal(|index| index.volumes[0].stored.name = name.to_owned());
            assert_eq!(message, format!("invalid backup index: \"{name}\" is there twice"));
        }
        let message = refusal(|index| index.volumes[0].files.push(b"PG_VERSION"));
        assert!(message.ends_with("file \"PG_VERSION\" is there twice"), "{message}");
        let message = refusal(|index| index.tablespaces[1].oid = 16384);
        assert!(message.ends_with("tablespace 16384 is there twice"), "{message}");
        let message = refusal(|index| index.volumes[1].content = Content::Tablespace(9));
        assert!(message.ends_with("is of tablespace 9, which there is not"), "{message}");
    }

    #[test]
    fn names_of_volumes() {
        assert_eq!(Content::Base.volume(1, Compression::Gzip.suffix()), "base.00001.tar.gz");
        assert_eq!(Content::Tablespace(16384).volume(123_456, ""), "16384.123456.tar");
        assert_eq!(Content::Wal.volume(20, ".zst"), "pg_wal.00020.tar.zst");
    }
}
