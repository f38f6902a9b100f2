//! Archives in volumes (docs/volumes.md): every connection writes archives of its own, of about one size, which are
//! compressed and stored beside each other. An index says in the end what there is.
//!
//! A volume is written from beginning to end, into a file or an object, and nothing of it can be taken back. So files
//! are collected, as for other archives that are streamed: small ones until they are whole and known to be right, a large relation file in
//! parts that follow each other. The volume that has its first part takes all of them, and no other file meanwhile.

#[cfg(feature = "object-store")]
mod bucket;
mod local;
mod pool;
mod store;
mod wal;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use protocol::BackupPath;

use self::local::Local;
use self::pool::{Making, Pool};
use self::store::{Metered, Store};
use self::wal::WalVolumes;
use super::cleanup::Cleanup;
use super::collected::Collected;
use super::space::{Need, Sizes};
use super::tar::encode::Encoding;
use super::tar::header::check_name;
use super::tar::kept::{self, Kept};
use super::tar::{locate, now};
use super::{
    About, Attributes, Intake, Layout, MANIFEST, Modes, Output, OutputFile, Piece, Remains, Tablespace,
    WalOutput,
};
use crate::abort::Abort;
use crate::catalog::index::{self, Compression, Content, Index, Name, Stored, VERSION, WalMethod};
use crate::error::{Error, Result};
use crate::options::{Options, Wal};
use crate::report;

/// A backup in volumes.
pub struct Volumes<'a> {
    options: &'a Options,
    store: Box<dyn Store + 'a>,
    encoding: Encoding,
    size: u64,
    groups: Option<Groups>,
    /// What -R writes on.
    kept: Kept,
    manifest: Mutex<Option<Metered>>,
    about: OnceLock<About>,
    /// Once everything but the manifest's final name and the index is there.
    index: Mutex<Option<Index>>,
}

/// What is written to.
struct Groups {
    base: Pool,
    /// By what their files' paths begin with, without the slash behind it.
    tablespaces: HashMap<Vec<u8>, Pool>,
    /// Where WAL is streamed.
    wal: Option<WalVolumes>,
}

impl<'a> Volumes<'a> {
    /// As the options say, of volumes of this size.
    pub fn new(options: &'a Options, size: u64, abort: &'a Arc<Abort>, cleanup: &'a Cleanup) -> Result<Self> {
        let store = store(options, abort, cleanup)?;
        Ok(Self::of(options, size, store))
    }

    fn of(options: &'a Options, size: u64, store: Box<dyn Store + 'a>) -> Self {
        Self {
            options,
            store,
            encoding: Encoding::of_volumes(options),
            size,
            groups: None,
            kept: Kept::default(),
            manifest: Mutex::default(),
            about: OnceLock::new(),
            index: Mutex::default(),
        }
    }

    fn making(&self) -> Making<'_> {
        Making { store: &*self.store, encoding: self.encoding, size: self.size }
    }

    fn groups(&self) -> Result<&Groups> {
        self.groups.as_ref().ok_or_else(|| Error::local("volumes are not there yet"))
    }

    fn locate<'p>(&self, path: &'p BackupPath) -> Result<(&Pool, &'p [u8])> {
        let located = self.groups()?.locate(path.as_bytes());
        located.ok_or_else(|| Error::local(format!("server sent a file \"{path}\" in place of a tablespace")))
    }

    fn own(&self) -> Attributes {
        Attributes { mode: self.store.modes().file, mtime: now() }
    }

    /// Whether a file does not go into an archive as it came, but is kept for something else.
    fn keep(&self, path: &BackupPath, attributes: &Attributes, content: &Collected) -> Result<bool> {
        let failed = |error: io::Error| Error::io("read file", &self.shown(path), &error);
        if let (Some(wal), Some(name)) = (&self.groups()?.wal, path.as_bytes().strip_prefix(b"pg_wal/")) {
            return wal.replace_history(name, || kept::bytes(content).map_err(failed));
        }
        if !self.options.write_recovery_conf {
            return Ok(false);
        }
        self.kept.keep(path.as_bytes(), attributes, content).map_err(failed)
    }

    fn own_file_with(&self, name: &str, attributes: &Attributes, content: &[u8]) -> Result<()> {
        let pool = &self.groups()?.base;
        let mut lane = pool.take(self.making(), content.len() as u64)?;
        pool.begin(&mut lane, name.as_bytes(), name.as_bytes())?;
        lane.archive.file(name.as_bytes(), attributes, content)?;
        pool.release(lane);
        Ok(())
    }

    fn manifest_file(&self) -> MutexGuard<'_, Option<Metered>> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index, of what is complete.
    fn index_of(&self, manifest: Option<Stored>) -> Result<Index> {
        let about = self.about.get().ok_or_else(|| Error::local("nothing is known of the backup"))?;
        let compression =
            Compression::ALL.into_iter().find(|method| method.suffix() == self.encoding.suffix());
        let compression =
            compression.ok_or_else(|| Error::local("volumes are compressed by no known method"))?;
        let groups = self.groups()?;
        let mut volumes = groups.base.volumes();
        let mut tablespaces: Vec<_> = groups.tablespaces.iter().collect();
        tablespaces.sort_unstable_by_key(|(name, _)| *name);
        volumes.extend(tablespaces.into_iter().flat_map(|(_, pool)| pool.volumes()));
        volumes.extend(groups.wal.iter().flat_map(WalVolumes::volumes));
        Ok(Index {
            version: VERSION,
            program: format!("{} {}", report::PROGRAM, env!("CARGO_PKG_VERSION")),
            backup_id: about.id,
            label: String::from_utf8_lossy(&self.options.label).into_owned(),
            began: about.began.clone(),
            ended: report::json::now(),
            server_version: about.server_version,
            system_identifier: about.system_identifier,
            incremental: about.prior.clone(),
            wal: index::Wal {
                method: match self.options.wal {
                    Wal::None => WalMethod::None,
                    Wal::Fetch => WalMethod::Fetch,
                    Wal::Stream { .. } => WalMethod::Stream,
                },
                timeline: about.start.1,
                start: about.start.0,
                stop_timeline: about.stop.1,
                stop: about.stop.0,
                segment_size: about.segment_size,
            },
            compression,
            tablespaces: about
                .tablespaces
                .iter()
                .map(|Tablespace { oid, location }| index::Tablespace {
                    oid: *oid,
                    location: Name(location.clone()),
                })
                .collect(),
            manifest,
            volumes,
        })
    }
}

/// Where the options say.
fn store<'a>(
    options: &'a Options,
    abort: &'a Arc<Abort>,
    cleanup: &'a Cleanup,
) -> Result<Box<dyn Store + 'a>> {
    match &options.objects {
        None => Ok(Box::new(Local::new(options, abort, cleanup))),
        #[cfg(feature = "object-store")]
        Some(location) => Ok(Box::new(bucket::Bucket::new(options, location, abort, cleanup)?)),
        #[cfg(not(feature = "object-store"))]
        Some(_) => Err(Error::local("this program was built without object storage")),
    }
}

impl Groups {
    /// The volumes that a path is in, and its name there; none for a tablespace itself, which is a link in
    /// the data directory.
    fn locate<'p>(&self, path: &'p [u8]) -> Option<(&Pool, &'p [u8])> {
        locate(path, &self.base, &self.tablespaces)
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        std::iter::once(&self.base).chain(self.tablespaces.values())
    }
}

impl Output for Volumes<'_> {
    fn check(&self) -> Result<()> {
        self.store.check()
    }

    fn needs(&self, sizes: &Sizes, _: Option<&[Tablespace]>) -> Vec<Need> {
        self.store.needs(sizes, self.encoding != Encoding::Plain)
    }

    fn claim(&mut self, modes: Modes) -> Result<()> {
        self.store.claim(modes)
    }

    fn prepare(&mut self, layout: &Layout<'_>) -> Result<()> {
        if !self.options.tablespaces.is_empty() {
            // As with other archives: the links are made when the copy is started.
            report::warning("tablespace mappings have no effect in tar format");
        }
        let pool = |tablespace: &Tablespace| {
            (tablespace.name().into_bytes(), Pool::new(Content::Tablespace(tablespace.oid)))
        };
        self.groups = Some(Groups {
            base: Pool::new(Content::Base),
            tablespaces: layout.tablespaces.iter().map(pool).collect(),
            wal: matches!(self.options.wal, Wal::Stream { .. }).then(WalVolumes::default),
        });
        Ok(())
    }

    fn intake(&self) -> Intake {
        Intake::InOrderEach
    }

    fn takes_streams(&self) -> bool {
        matches!(self.encoding, Encoding::ByServer(_))
    }

    fn has_labels_first(&self) -> bool {
        true
    }

    fn check_path(&self, path: &BackupPath) -> Result<()> {
        self.groups()?.locate(path.as_bytes()).map_or(Ok(()), |(_, name)| check_name(name))
    }

    fn directory(&self, path: &BackupPath, attributes: &Attributes) -> Result<()> {
        if let Some((pool, name)) = self.groups()?.locate(path.as_bytes()) {
            check_name(name)?;
            pool.directory(name, attributes);
        }
        Ok(())
    }

    fn begin(&self, _: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        Err(Error::local("files are collected for volumes"))
    }

    fn reopen(&self, piece: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        self.begin(piece)
    }

    fn complete(&self, _: &BackupPath, _: &Attributes) -> Result<()> {
        Ok(())
    }

    fn put(&self, piece: &Piece<'_>, content: &Collected) -> Result<()> {
        if self.keep(piece.path, &piece.attributes, content)? {
            return Ok(());
        }
        let (pool, name) = self.locate(piece.path)?;
        let (offset, length) = piece.part.unwrap_or((0, piece.size));
        let lane = if offset == 0 {
            let mut lane = pool.take(self.making(), piece.size)?;
            pool.begin(&mut lane, name, piece.path.as_bytes())?;
            lane
        } else {
            pool.unbind(piece.path)?
        };
        lane.archive.put(name, piece, content)?;
        if offset + length == piece.size {
            pool.release(lane);
        } else {
            pool.bind(piece.path, lane);
        }
        Ok(())
    }

    fn spool(&self) -> io::Result<File> {
        self.store.spool()
    }

    fn vanished(&self, _: &BackupPath, _: &[u8]) -> Result<Option<Remains>> {
        Ok(None)
    }

    fn shown(&self, path: &BackupPath) -> PathBuf {
        self.store.shown(&path.to_string())
    }

    fn own_file(&self, name: &str, content: &[u8]) -> Result<()> {
        self.own_file_with(name, &self.own(), content)
    }

    fn append(&self, name: &str, content: &[u8]) -> Result<()> {
        let (attributes, content) = self.kept.with(self.own(), content);
        self.own_file_with(name, &attributes, &content)
    }

    fn manifest(&self) -> Result<Option<Box<dyn Write + Send>>> {
        let metered = Metered::new(self.store.manifest()?);
        *self.manifest_file() = Some(metered.clone());
        Ok(Some(Box::new(io::BufWriter::new(metered))))
    }

    fn wal(&self) -> Result<Box<dyn WalOutput + '_>> {
        let wal = self.groups()?.wal.as_ref();
        let wal = wal.ok_or_else(|| Error::local("volumes have no place for a WAL stream"))?;
        Ok(Box::new(wal.writer(self.making())))
    }

    fn has_history(&self, name: &str) -> bool {
        let wal = self.groups.as_ref().and_then(|groups| groups.wal.as_ref());
        wal.is_some_and(|wal| wal.has_history(name))
    }

    fn about(&self, about: About) {
        // It is told once.
        let _ = self.about.set(about);
    }

    fn close(&self) -> Result<()> {
        let groups = self.groups()?;
        groups.pools().try_for_each(|pool| pool.close(self.making()))?;
        groups.wal.as_ref().map_or(Ok(()), |wal| wal.close(self.making()))?;
        let manifest = self.manifest_file().take();
        let manifest = manifest.map(|manifest| manifest.finish(MANIFEST)).transpose()?;
        let index = self.index_of(manifest)?;
        *self.index.lock().unwrap_or_else(PoisonError::into_inner) = Some(index);
        self.store.sync()
    }

    fn finish(&self) -> Result<()> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner).take();
        let index = index.ok_or_else(|| Error::local("volumes are not complete"))?;
        self.store.finish(index.manifest.is_some(), &index.to_json()?)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use protocol::Lsn;

    use super::*;
    use crate::options::{self, Invocation};
    use crate::output::tar::members;

    const ATTRIBUTES: Attributes = Attributes { mode: 0o640, mtime: 1_700_000_000 };
    const MB: usize = 1 << 20;

    fn about(tablespaces: &[Tablespace]) -> About {
        About {
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            began: "2026-11-26T03:00:00Z".to_owned(),
            server_version: 180_001,
            system_identifier: 1,
            start: (Lsn(40), 1),
            stop: (Lsn(400), 1),
            segment_size: 16 << 20,
            tablespaces: tablespaces.to_vec(),
            prior: None,
        }
    }

    fn path(name: &str) -> BackupPath {
        BackupPath::from_bytes(name).unwrap()
    }

    fn put(output: &Volumes<'_>, name: &str, size: usize, part: Option<(usize, usize)>, byte: u8) {
        let (offset, length) = part.unwrap_or((0, size));
        let collected = Collected::new(offset as u64, length as u64, tempfile::tempfile).unwrap();
        collected.write(&vec![byte; length], offset as u64).unwrap();
        let part = part.map(|(offset, length)| (offset as u64, length as u64));
        let path = path(name);
        let piece = Piece { path: &path, size: size as u64, part, attributes: ATTRIBUTES };
        output.put(&piece, &collected).unwrap();
    }

    /// What is in each volume: names and bytes.
    type Contents = HashMap<String, Vec<(String, Vec<u8>)>>;

    /// The index of a backup in volumes of 1 MB, and what is in each.
    fn volumes(arguments: &[&str], work: impl FnOnce(&Volumes<'_>)) -> (Index, Contents) {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("target");
        let arguments = ["pg_parallel_basebackup", "-Ft", "--volumes=1MB"].iter().chain(arguments);
        let arguments = arguments.map(OsString::from).chain(["-D".into(), target.clone().into_os_string()]);
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let (abort, cleanup) = (Abort::new().unwrap(), Cleanup::default());
        let abort = Arc::new(abort);
        let mut output = Volumes::new(&options, options.volumes.unwrap(), &abort, &cleanup).unwrap();
        let tablespaces = [Tablespace { oid: 16384, location: b"/ts".to_vec() }];
        output.claim(Modes::STRICT).unwrap();
        output.prepare(&Layout { tablespaces: &tablespaces, wal_summaries: true }).unwrap();
        let mut manifest = output.manifest().unwrap().unwrap();
        manifest.write_all(b"{}").unwrap();
        manifest.flush().unwrap();
        drop(manifest);
        work(&output);
        output.about(about(&tablespaces));
        output.close().unwrap();
        assert!(!target.join(index::INDEX).exists() && !target.join(MANIFEST).exists());
        output.finish().unwrap();

        let index = Index::parse(&std::fs::read(target.join(index::INDEX)).unwrap()).unwrap();
        let mut all = HashMap::new();
        for volume in &index.volumes {
            let bytes = std::fs::read(target.join(&volume.stored.name)).unwrap();
            use sha2::Digest as _;
            assert_eq!(volume.stored.size, bytes.len() as u64);
            assert_eq!(volume.stored.sha256, <[u8; 32]>::from(sha2::Sha256::digest(&bytes)));
            assert_eq!(volume.tar_size, bytes.len() as u64);
            let members = members(&bytes);
            let files = members.iter().filter(|(name, _)| !name.ends_with('/'));
            assert_eq!(files.count(), volume.files.iter().count(), "{}", volume.stored.name);
            all.insert(volume.stored.name.clone(), members);
        }
        let there = std::fs::read_dir(&target).unwrap().count();
        assert_eq!(there, index.volumes.len() + 2, "nothing but volumes, manifest and index");
        let manifest = index.manifest.as_ref().unwrap();
        assert_eq!((manifest.name.as_str(), manifest.size), (MANIFEST, 2));
        (index, all)
    }

    fn names(members: &[(String, Vec<u8>)]) -> Vec<&str> {
        members.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn files_beside_each_other_lie_whole_in_volumes() {
        let (index, volumes) = volumes(&["-X", "none"], |output| {
            for name in ["base", "base/5", "pg_notify", "pg_tblspc/16384/PG_18", "pg_tblspc/16384/PG_18/5"] {
                output.directory(&path(name), &ATTRIBUTES).unwrap();
            }
            put(output, "PG_VERSION", 3, None, b'1');
            // Two in parts at once, each of which takes a volume; the one with the small file is too full.
            put(output, "base/5/1", MB, Some((0, MB / 2)), 1);
            put(output, "base/5/2", 2 * MB, Some((0, MB)), 3);
            put(output, "base/5/1", MB, Some((MB / 2, MB / 2)), 2);
            put(output, "base/5/2", 2 * MB, Some((MB, MB)), 4);
            put(output, "pg_tblspc/16384/PG_18/5/3", 10, None, 5);
            output.own_file("global/pg_control", b"control").unwrap();
        });
        let found: Vec<_> = index.volumes.iter().map(|volume| volume.stored.name.as_str()).collect();
        assert_eq!(
            found,
            ["base.00001.tar", "base.00002.tar", "base.00003.tar", "base.00004.tar", "16384.00001.tar"]
        );
        assert_eq!(names(&volumes["base.00001.tar"]), ["PG_VERSION"]);
        assert_eq!(names(&volumes["base.00002.tar"]), ["base/", "base/5/", "base/5/1"]);
        assert!(volumes["base.00002.tar"][2].1 == [vec![1; MB / 2], vec![2; MB / 2]].concat());
        assert_eq!(names(&volumes["base.00003.tar"]), ["base/", "base/5/", "base/5/2"]);
        assert!(volumes["base.00003.tar"][2].1 == [vec![3; MB], vec![4; MB]].concat());
        // What is empty is somewhere.
        assert_eq!(names(&volumes["base.00004.tar"]), ["global/pg_control", "pg_notify/"]);
        assert_eq!(names(&volumes["16384.00001.tar"]), ["PG_18/", "PG_18/5/", "PG_18/5/3"]);
        let files: Vec<_> = index.volumes[4].files.iter().collect();
        assert_eq!(files, [b"pg_tblspc/16384/PG_18/5/3"]);
    }

    #[test]
    fn one_that_is_incomplete_is_no_backup() {
        volumes(&["-X", "none"], |output| {
            put(output, "base/5/1", MB, Some((0, MB / 2)), 1);
            let error = output.close().unwrap_err();
            assert_eq!(error.message(), "file \"base/5/1\" is incomplete in its archive");
            assert!(output.finish().is_err());
            put(output, "base/5/1", MB, Some((MB / 2, MB / 2)), 1);
        });
    }

    #[test]
    fn settings_and_the_wal_stream() {
        let (index, volumes) = volumes(&["-R"], |output| {
            put(output, "postgresql.auto.conf", 2, None, b'a');
            put(output, "standby.signal", 2, None, b'a');
            output.append("postgresql.auto.conf", b"b = 2\n").unwrap();
            output.own_file("standby.signal", b"").unwrap();
            let mut wal = output.wal().unwrap();
            wal.history("00000002.history", b"as streamed").unwrap();
            for (name, is_full) in [("000000020000000000000003", true), ("000000020000000000000004", false)] {
                wal.begin(name, 700 << 10).unwrap();
                wal.write(b"begin").unwrap();
                wal.end(is_full).unwrap();
            }
            assert!(output.has_history("00000002.history") && !output.has_history("00000003.history"));
            put(output, "pg_wal/00000002.history", 3, None, b'c');
        });
        let base = &volumes["base.00001.tar"];
        assert_eq!(names(base), ["postgresql.auto.conf", "standby.signal"]);
        assert_eq!((&base[0].1[..], base[1].1.len()), (&b"aab = 2\n"[..], 0));
        let segment = "000000020000000000000003";
        assert_eq!(
            names(&volumes["pg_wal.00001.tar"]),
            [segment.to_owned(), format!("archive_status/{segment}.done")]
        );
        let second = &volumes["pg_wal.00002.tar"];
        assert_eq!(
            names(second),
            ["000000020000000000000004", "00000002.history", "archive_status/00000002.history.done"]
        );
        assert!(second[0].1.len() == 700 << 10 && second[0].1.starts_with(b"begin\0"));
        assert_eq!(second[1].1, b"ccc");
        assert_eq!(index.wal.method, WalMethod::Stream);
        assert!(index.volumes[1].files.iter().all(|file| file.starts_with(b"pg_wal/")));
    }
}
