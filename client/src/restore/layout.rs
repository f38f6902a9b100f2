//! What lies where a backup is: which archives, of which tablespaces, and how they are compressed.

use std::collections::HashMap;

use super::source::{Object, Source};
use crate::catalog::index::{self, Content, Index, Stored};
use crate::error::{Error, Result};
use crate::output::MANIFEST;

/// The archives of a backup.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// All of them, the largest first.
    pub archives: Vec<Archive>,
    /// Whether there is a manifest.
    pub has_manifest: bool,
    /// What is known of it, if there is an index that says so.
    pub manifest: Option<Stored>,
}

/// An archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Its name.
    pub name: String,
    /// Its bytes as they are stored.
    pub size: u64,
    /// What is in it.
    pub part: Part,
    /// How it is compressed.
    pub compression: Compression,
    /// The SHA-256 digest of these bytes, where an index says it.
    pub sha256: Option<index::Digest>,
}

/// What an archive is of: names in it are below there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The data directory.
    Base,
    /// A tablespace, by its OID.
    Tablespace(u32),
    /// pg_wal.
    Wal,
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one member or several.
    Gzip,
    /// lz4, of one frame or several.
    Lz4,
    /// zstd, of one frame or several.
    Zstd,
}

/// What comes behind a name, and what it says.
const SUFFIXES: [(&str, Compression); 4] = [
    (".tar", Compression::None),
    (".tar.gz", Compression::Gzip),
    (".tar.lz4", Compression::Lz4),
    (".tar.zst", Compression::Zstd),
];

impl Part {
    /// The directory that names in the archive are below, with a slash behind it, or nothing.
    pub fn prefix(self) -> String {
        match self {
            Self::Base => String::new(),
            Self::Tablespace(oid) => format!("pg_tblspc/{oid}/"),
            Self::Wal => "pg_wal/".to_owned(),
        }
    }
}

impl Layout {
    /// That of archives by their names, as pg_basebackup gives them.
    pub fn of(source: &dyn Source) -> Result<Self> {
        Self::from_objects(source.list()?, &source.name())
    }

    fn from_objects(objects: Vec<Object>, place: &str) -> Result<Self> {
        let has_manifest = objects.iter().any(|object| object.name == MANIFEST);
        let mut archives: Vec<Archive> = Vec::new();
        for object in objects {
            let Some((part, compression)) = recognize(&object.name) else { continue };
            if let Some(other) = archives.iter().find(|archive| archive.part == part) {
                let mut names = [&other.name[..], &object.name];
                names.sort_unstable();
                return Err(Error::local(format!("\"{place}\" has more than one backup"))
                    .with_detail(format!("There are \"{}\" and \"{}\".", names[0], names[1])));
            }
            archives.push(Archive { name: object.name, size: object.size, part, compression, sha256: None });
        }
        if !archives.iter().any(|archive| archive.part == Part::Base) {
            return Err(Error::local(format!("\"{place}\" has no backup"))
                .with_detail("There is no archive \"base.tar\", compressed or not."));
        }
        archives.sort_by(|one, other| other.size.cmp(&one.size).then_with(|| one.name.cmp(&other.name)));
        Ok(Self { archives, has_manifest, manifest: None })
    }

    /// That of volumes, as their index has them; all of them must be there.
    pub fn from_index(source: &dyn Source, index: &Index) -> Result<Self> {
        let sizes: HashMap<String, u64> =
            source.list()?.into_iter().map(|object| (object.name, object.size)).collect();
        let compression = match index.compression {
            index::Compression::None => Compression::None,
            index::Compression::Gzip => Compression::Gzip,
            index::Compression::Lz4 => Compression::Lz4,
            index::Compression::Zstd => Compression::Zstd,
        };
        for stored in index.manifest.iter().chain(index.volumes.iter().map(|volume| &volume.stored)) {
            let shown = source.shown(&stored.name);
            match sizes.get(&stored.name) {
                None => {
                    return Err(Error::local(format!("\"{shown}\" is missing"))
                        .with_detail("The index of the backup says that it is part of it."));
                }
                Some(size) if *size != stored.size => {
                    return Err(Error::local(format!(
                        "\"{shown}\" has size {size}, but size {} in the index of the backup",
                        stored.size
                    )));
                }
                Some(_) => {}
            }
        }
        let mut archives: Vec<Archive> = index
            .volumes
            .iter()
            .map(|volume| Archive {
                name: volume.stored.name.clone(),
                size: volume.stored.size,
                part: match volume.content {
                    Content::Base => Part::Base,
                    Content::Tablespace(oid) => Part::Tablespace(oid),
                    Content::Wal => Part::Wal,
                },
                compression,
                sha256: Some(volume.stored.sha256),
            })
            .collect();
        archives.sort_by(|one, other| other.size.cmp(&one.size).then_with(|| one.name.cmp(&other.name)));
        Ok(Self { archives, has_manifest: index.manifest.is_some(), manifest: index.manifest.clone() })
    }

    /// The archive of the data directory.
    pub fn base(&self) -> Result<&Archive> {
        self.archives
            .iter()
            .find(|archive| archive.part == Part::Base)
            .ok_or_else(|| Error::local("the backup has no archive of the data directory"))
    }

    /// The tablespaces that have an archive.
    pub fn tablespaces(&self) -> impl Iterator<Item = u32> {
        self.archives.iter().filter_map(|archive| match archive.part {
            Part::Tablespace(oid) => Some(oid),
            _ => None,
        })
    }
}

fn recognize(name: &str) -> Option<(Part, Compression)> {
    let (stem, compression) =
        SUFFIXES.iter().find_map(|(suffix, compression)| Some((name.strip_suffix(suffix)?, *compression)))?;
    let part = match stem {
        "base" => Part::Base,
        "pg_wal" => Part::Wal,
        // As a number is printed, so that no two names mean one.
        oid => Part::Tablespace(
            oid.parse().ok().filter(|number: &u32| *number > 0 && number.to_string() == oid)?,
        ),
    };
    Some((part, compression))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(names: &[&str]) -> Result<Layout> {
        let objects = names.iter().map(|name| Object { name: (*name).to_owned(), size: name.len() as u64 });
        Layout::from_objects(objects.collect(), "/b")
    }

    #[test]
    fn archives_by_their_names() {
        let found = layout(&[
            "base.tar.gz",
            "16384.tar",
            "016384.tar",
            "0.tar",
            "pg_wal.tar.zst",
            "x.tar",
            "backup_manifest",
        ])
        .unwrap();
        let parts: Vec<_> =
            found.archives.iter().map(|archive| (archive.part, archive.compression)).collect();
        assert_eq!(
            parts,
            [
                (Part::Wal, Compression::Zstd),
                (Part::Base, Compression::Gzip),
                (Part::Tablespace(16384), Compression::None)
            ]
        );
        assert!(found.has_manifest && found.base().unwrap().name == "base.tar.gz");
        assert_eq!(found.tablespaces().collect::<Vec<_>>(), [16384]);
        assert_eq!(Part::Tablespace(5).prefix(), "pg_tblspc/5/");
    }

    #[test]
    fn nothing_and_too_much() {
        assert_eq!(layout(&["16384.tar"]).unwrap_err().message(), "\"/b\" has no backup");
        let error = layout(&["base.tar.zst", "base.tar"]).unwrap_err();
        assert_eq!(error.message(), "\"/b\" has more than one backup");
        assert_eq!(error.detail(), Some("There are \"base.tar\" and \"base.tar.zst\"."));
    }
}
