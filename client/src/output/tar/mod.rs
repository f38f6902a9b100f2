//! Archives as pg_basebackup writes them: `--format=tar`. `base.tar` has the data directory, `<oid>.tar` a
//! tablespace each, `pg_wal.tar` what was streamed; the manifest lies beside them.
//!
//! An archive in a file is written by all connections at once. Nothing can be taken back from it, so that a file gets its
//! place when its size can change no more: a large relation file has the size that it was listed with, and
//! keeps its place when it is fetched again; every other file is collected first, until it is whole and
//! known to be right. The headers are written last.
//!
//! What is compressed, or goes to standard output, is written from beginning to end: files are collected by all
//! connections, and come one after the other.

mod archive;
pub mod encode;
pub mod header;
pub mod kept;
mod placed;
pub mod streamed;
mod wal;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use protocol::BackupPath;

use self::archive::Archive;
use self::encode::Encoding;
use self::header::check_name;
use self::kept::Kept;
use self::placed::{Place, Placed};
use self::streamed::Streamed;
use self::wal::WalArchive;
use super::cleanup::{Cleanup, Purpose};
use super::collected::Collected;
use super::directory::target::Target;
use super::space::{Need, Sizes};
use super::{
    Attributes, Intake, Layout, MANIFEST, MANIFEST_UNDER_WAY, Modes, Output, OutputFile, Piece, Remains,
    Tablespace, WalOutput, claim, say, sync,
};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::options::{Options, Sync, Wal};
use crate::report;

/// Where the links to tablespaces are.
const LINKS: &[u8] = b"pg_tblspc/";

/// Zeroes for what is not there.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A backup in archives.
pub struct Tar<'a> {
    options: &'a Options,
    abort: &'a Abort,
    cleanup: &'a Cleanup,
    target: Target,
    encoding: Encoding,
    /// Where the manifest is until it goes into the archive, if it has no other place.
    manifest: Option<File>,
    archives: Option<Archives>,
    /// Large files under way, and what the server says of them.
    places: Mutex<HashMap<BackupPath, (Arc<Place>, Attributes)>>,
    /// What -R writes on.
    kept: Kept,
}

/// What is written to.
struct Archives {
    base: Archive,
    /// By what their files' paths begin with, without the slash behind it.
    tablespaces: HashMap<Vec<u8>, Archive>,
    wal: Option<WalArchive>,
}

impl Archives {
    /// The archive that a path is in, and its name there; none for a tablespace itself, which is a link in
    /// the data directory. Recovery makes that by tablespace_map; what is in place has its directory from whoever
    /// extracts the archive.
    fn locate<'p>(&self, path: &'p [u8]) -> Option<(&Archive, &'p [u8])> {
        locate(path, &self.base, &self.tablespaces)
    }

    fn all(&self) -> impl Iterator<Item = &Archive> {
        std::iter::once(&self.base).chain(self.tablespaces.values())
    }
}

impl<'a> Tar<'a> {
    /// As the options say.
    pub fn new(options: &'a Options, abort: &'a Abort, cleanup: &'a Cleanup) -> Self {
        // The modes are known, and used, from the claim on.
        let target = Target::new(options.target.clone(), Modes::STRICT);
        Self {
            options,
            abort,
            cleanup,
            target,
            encoding: Encoding::of(options),
            manifest: None,
            archives: None,
            places: Mutex::default(),
            kept: Kept::default(),
        }
    }

    /// An archive of this name, less what compression adds.
    fn create(&self, name: &str, encoding: Encoding) -> Result<Archive> {
        let path = self.own_path(&format!("{name}{}", encoding.suffix()));
        let file = self.target.create_read_write(&path, self.target.modes().file)?;
        if encoding == Encoding::Plain {
            return Ok(Archive::Placed(Placed::new(path, file, self.syncs())));
        }
        let out = encoding.encode(file).map_err(|error| Error::io("compress file", &path, &error))?;
        Ok(Archive::Streamed(Streamed::new(path, out)))
    }

    /// The one archive that there is on standard output.
    fn on_stdout(&self) -> Result<Archive> {
        let path = PathBuf::from("standard output");
        let out = self.encoding.encode(io::stdout());
        let out = out.map_err(|error| Error::io("write to file", &path, &error))?;
        Ok(Archive::Streamed(Streamed::new(path, out)))
    }

    fn is_streamed(&self) -> bool {
        self.options.is_stdout() || self.encoding != Encoding::Plain
    }

    fn syncs(&self) -> bool {
        self.options.sync != Sync::None
    }

    fn own_path(&self, name: &str) -> PathBuf {
        self.target.root().join(name)
    }

    fn archives(&self) -> Result<&Archives> {
        self.archives.as_ref().ok_or_else(|| Error::local("archives are not there yet"))
    }

    fn locate<'p>(&self, path: &'p BackupPath) -> Result<(&Archive, &'p [u8])> {
        let located = self.archives()?.locate(path.as_bytes());
        located.ok_or_else(|| Error::local(format!("server sent a file \"{path}\" in place of a tablespace")))
    }

    fn places(&self) -> MutexGuard<'_, HashMap<BackupPath, (Arc<Place>, Attributes)>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> Attributes {
        Attributes { mode: self.target.modes().file, mtime: now() }
    }

    /// Whether a file does not go into an archive as it came, but is kept for something else.
    fn keep(&self, path: &BackupPath, attributes: &Attributes, content: &Collected) -> Result<bool> {
        if let (Some(wal), Some(name)) = (&self.archives()?.wal, path.as_bytes().strip_prefix(b"pg_wal/")) {
            return wal.replace_history(name, || kept::bytes(content));
        }
        if !self.options.write_recovery_conf {
            return Ok(false);
        }
        let kept = self.kept.keep(path.as_bytes(), attributes, content);
        kept.map_err(|error| Error::io("read file", &self.shown(path), &error))
    }
}

impl Output for Tar<'_> {
    fn check(&self) -> Result<()> {
        if self.options.is_stdout() {
            return Ok(());
        }
        claim::check_free(&self.options.target, std::iter::empty()).map(drop)
    }

    fn needs(&self, sizes: &Sizes, _: Option<&[Tablespace]>) -> Vec<Need> {
        if self.options.is_stdout() {
            return Vec::new();
        }
        let wal = if self.options.wal == Wal::None { 0 } else { sizes.wal };
        // How small it gets nobody knows before.
        let bytes = (self.encoding == Encoding::Plain).then(|| sizes.total().saturating_add(wal));
        vec![Need { directory: self.options.target.clone(), bytes }]
    }

    fn check_tablespaces(&self, count: usize) -> Result<()> {
        // The data directory counts as one.
        let count = 1 + count;
        if self.options.is_stdout() && count > 1 {
            return Err(Error::local(format!(
                "can only write single tablespace to stdout, database has {count}"
            )));
        }
        Ok(())
    }

    fn claim(&mut self, modes: Modes) -> Result<()> {
        if self.options.is_stdout() {
            self.target = Target::new(std::env::temp_dir(), modes);
            return Ok(());
        }
        self.cleanup.claim(Purpose::Data, &self.options.target, modes.directory)?;
        self.target = Target::new(self.options.target.clone(), modes);
        Ok(())
    }

    fn prepare(&mut self, layout: &Layout<'_>) -> Result<()> {
        if !self.options.tablespaces.is_empty() {
            // As in pg_basebackup, where nobody hears of it: the links are made when the copy is started, to
            // where the server has its tablespaces.
            report::warning("tablespace mappings have no effect in tar format");
        }
        self.check_tablespaces(layout.tablespaces.len())?;
        if self.options.is_stdout() {
            let manifest =
                self.spool().map_err(|error| Error::io("create file", Path::new(MANIFEST), &error))?;
            self.manifest = Some(manifest);
            let (base, tablespaces) = (self.on_stdout()?, HashMap::new());
            self.archives = Some(Archives { base, tablespaces, wal: None });
            return Ok(());
        }
        // Also those that are in place, though nothing but their archive's name says where that belongs.
        let mut tablespaces = HashMap::new();
        for tablespace in layout.tablespaces {
            let archive = self.create(&format!("{}.tar", tablespace.oid), self.encoding)?;
            tablespaces.insert(tablespace.name().into_bytes(), archive);
        }
        let wal = match self.options.wal {
            Wal::Stream { .. } => {
                let archive = self.create("pg_wal.tar", Encoding::of_wal(self.options))?;
                Some(WalArchive::new(archive, self.target.modes()))
            }
            Wal::None | Wal::Fetch => None,
        };
        self.archives = Some(Archives { base: self.create("base.tar", self.encoding)?, tablespaces, wal });
        Ok(())
    }

    fn intake(&self) -> Intake {
        if self.is_streamed() { Intake::Ordered } else { Intake::Sized }
    }

    fn takes_streams(&self) -> bool {
        matches!(self.encoding, Encoding::ByServer(_))
    }

    fn has_labels_first(&self) -> bool {
        true
    }

    fn check_path(&self, path: &BackupPath) -> Result<()> {
        match self.archives()?.locate(path.as_bytes()) {
            Some((_, name)) => check_name(name),
            None => Ok(()),
        }
    }

    fn directory(&self, path: &BackupPath, attributes: &Attributes) -> Result<()> {
        match self.archives()?.locate(path.as_bytes()) {
            Some((archive, name)) => archive.directory(name, attributes),
            None => Ok(()),
        }
    }

    fn begin(&self, piece: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        let (archive, _) = self.locate(piece.path)?;
        // Under the lock: one of its parts makes the place, and all others write to that.
        let mut places = self.places();
        if let Some((place, _)) = places.get(piece.path) {
            return if place.size() == piece.size {
                Ok(Some(Arc::<Place>::clone(place)))
            } else {
                Err(Error::local(format!("file \"{}\" has another size than before", piece.path)))
            };
        }
        let place = Arc::new(archive.placed()?.reserve(piece.size)?);
        places.insert(piece.path.clone(), (Arc::clone(&place), piece.attributes));
        Ok(Some(place))
    }

    fn reopen(&self, piece: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        self.begin(piece)
    }

    fn complete(&self, path: &BackupPath, attributes: &Attributes) -> Result<()> {
        let Some((place, _)) = self.places().remove(path) else { return Ok(()) };
        let (archive, name) = self.locate(path)?;
        archive.placed()?.complete(&place, name, attributes)
    }

    fn put(&self, piece: &Piece<'_>, content: &Collected) -> Result<()> {
        if self.keep(piece.path, &piece.attributes, content)? {
            return Ok(());
        }
        let (archive, name) = self.locate(piece.path)?;
        archive.put(name, piece, content)
    }

    fn spool(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.target.root())
    }

    /// A file that has a place cannot be left out any more. All zeroes, if nothing else is wished for, it is what a serial backup may find
    /// that opens it before it goes: replay removes it, as it removes what was in it.
    fn vanished(&self, path: &BackupPath, head: &[u8]) -> Result<Option<Remains>> {
        let Some((place, attributes)) = self.places().remove(path) else { return Ok(None) };
        let (archive, name) = self.locate(path)?;
        let archive = archive.placed()?;
        archive.clear(&place)?;
        place.write(head, 0).map_err(|error| Error::io("write to file", archive.path(), &error))?;
        archive.complete(&place, name, &attributes)?;
        Ok(Some(Remains { size: place.size(), attributes }))
    }

    fn shown(&self, path: &BackupPath) -> PathBuf {
        match self.archives.as_ref().and_then(|archives| archives.locate(path.as_bytes())) {
            Some((archive, _)) => archive.path().to_owned(),
            None => self.target.path(path),
        }
    }

    fn own_file(&self, name: &str, content: &[u8]) -> Result<()> {
        self.archives()?.base.file(name.as_bytes(), &self.own(), content)
    }

    fn append(&self, name: &str, content: &[u8]) -> Result<()> {
        let (attributes, content) = self.kept.with(self.own(), content);
        self.archives()?.base.file(name.as_bytes(), &attributes, &content)
    }

    fn manifest(&self) -> Result<Option<Box<dyn Write + Send>>> {
        if let Some(spool) = &self.manifest {
            let spool = spool.try_clone();
            let spool = spool.map_err(|error| Error::io("open file", Path::new(MANIFEST), &error))?;
            return Ok(Some(Box::new(BufWriter::new(spool))));
        }
        let path = self.own_path(MANIFEST_UNDER_WAY);
        Ok(Some(Box::new(BufWriter::new(self.target.create(&path, self.target.modes().file)?))))
    }

    fn wal(&self) -> Result<Box<dyn WalOutput + '_>> {
        let wal = self.archives()?.wal.as_ref();
        let wal = wal.ok_or_else(|| Error::local("archives have no place for a WAL stream"))?;
        Ok(Box::new(wal.writer(self.syncs())))
    }

    fn has_history(&self, name: &str) -> bool {
        let wal = self.archives.as_ref().and_then(|archives| archives.wal.as_ref());
        wal.is_some_and(|wal| wal.has_history(name))
    }

    fn close(&self) -> Result<()> {
        let archives = self.archives()?;
        if let Some((path, _)) = self.places().iter().next() {
            return Err(Error::local(format!("file \"{path}\" is incomplete in its archive")));
        }
        if let (Some(spool), Some(_)) = (&self.manifest, self.options.manifest) {
            archives.base.copy(MANIFEST.as_bytes(), &self.own(), spool)?;
        }
        archives.all().try_for_each(Archive::close)?;
        archives.wal.iter().try_for_each(WalArchive::close)?;
        if !self.syncs() || self.options.is_stdout() {
            return Ok(());
        }
        say(self.options, "syncing data to disk ...");
        sync::sync_directory(self.target.root(), self.options.sync, self.options.jobs, self.abort)?;
        self.cleanup.made().iter().try_for_each(|path| sync::sync_parent(path))
    }

    fn finish(&self) -> Result<()> {
        if self.options.manifest.is_some() && !self.options.is_stdout() {
            say(self.options, format_args!("renaming {MANIFEST_UNDER_WAY} to {MANIFEST}"));
            let (from, to) = (self.own_path(MANIFEST_UNDER_WAY), self.own_path(MANIFEST));
            sync::rename(&from, &to, self.options.sync)?;
        }
        self.cleanup.finish(self.syncs())
    }
}

/// Of what there is for the data directory and for each tablespace, by what paths in it begin with: that which a path is in,
/// and its name there; none for a tablespace itself.
pub fn locate<'a, 'p, T>(
    path: &'p [u8],
    base: &'a T,
    tablespaces: &'a HashMap<Vec<u8>, T>,
) -> Option<(&'a T, &'p [u8])> {
    if let Some(below) = path.strip_prefix(LINKS) {
        let slash = memchr::memchr(b'/', below).map(|at| LINKS.len() + at);
        let (link, name) = slash.map_or((path, &b""[..]), |at| (&path[..at], &path[at + 1..]));
        if let Some(found) = tablespaces.get(link) {
            return (!name.is_empty()).then_some((found, name));
        }
    }
    Some((base, path))
}

/// The time as headers have it.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(0)
}

/// What is in an archive, in order: names and bytes.
#[cfg(test)]
pub fn members(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut members = Vec::new();
    while archive[0] != 0 {
        let (header, rest) = archive.split_at(header::BLOCK);
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&header[range]).trim_end_matches(['\0', ' ']).to_owned()
        };
        let size = usize::from_str_radix(&text(124..136), 8).unwrap();
        members.push((text(0..100), rest[..size].to_vec()));
        archive = &rest[size.next_multiple_of(header::BLOCK)..];
    }
    assert_eq!(archive, header::END, "the end");
    members
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::io::IoSlice;

    use super::*;
    use crate::options::{self, Invocation};

    const ATTRIBUTES: Attributes = Attributes { mode: 0o600, mtime: 1_700_000_000 };

    /// The archives of a backup, by their names.
    fn archives(arguments: &[&str], work: impl FnOnce(&Tar<'_>)) -> HashMap<String, Vec<(String, Vec<u8>)>> {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("target");
        let arguments = ["pg_parallel_basebackup", "-Ft"].iter().chain(arguments).map(OsString::from);
        let arguments = arguments.chain(["-D".into(), target.clone().into_os_string()]);
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let (abort, cleanup) = (Abort::new().unwrap(), Cleanup::default());
        let mut tar = Tar::new(&options, &abort, &cleanup);
        let tablespaces = [
            Tablespace { oid: 16384, location: b"/ts".to_vec() },
            Tablespace { oid: 16385, location: b"pg_tblspc/16385".to_vec() },
        ];
        tar.claim(Modes::STRICT).unwrap();
        tar.prepare(&Layout { tablespaces: &tablespaces, wal_summaries: true }).unwrap();
        work(&tar);
        tar.close().unwrap();
        let names = ["base", "16384", "16385", "pg_wal"];
        names
            .into_iter()
            .filter_map(|name| {
                let content = std::fs::read(target.join(format!("{name}.tar"))).ok()?;
                Some((name.to_owned(), members(&content)))
            })
            .collect()
    }

    fn path(name: &str) -> BackupPath {
        BackupPath::from_bytes(name).unwrap()
    }

    fn put(tar: &Tar<'_>, name: &str, content: &[u8]) {
        let collected = Collected::new(0, content.len() as u64, tempfile::tempfile).unwrap();
        collected.write(content, 0).unwrap();
        let (path, size) = (path(name), content.len() as u64);
        tar.put(&Piece { path: &path, size, part: None, attributes: ATTRIBUTES }, &collected).unwrap();
    }

    fn names(archive: &[(String, Vec<u8>)]) -> Vec<&str> {
        archive.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn a_file_keeps_its_place_at_every_try() {
        let archives = archives(&["-X", "none"], |tar| {
            let (path, gone, parts) = (path("base/5/1"), path("base/5/2"), path("base/5/3"));
            let piece = |path, part| Piece { path, size: 10_000, part: Some(part), attributes: ATTRIBUTES };
            let whole = piece(&path, (0, 10_000));
            tar.begin(&whole).unwrap().unwrap().write(&[1; 9000], 0).unwrap();
            tar.own_file("between", b"x").unwrap();
            let again = tar.begin(&whole).unwrap().unwrap();
            again.write_pieces(&[IoSlice::new(&[2; 4000]), IoSlice::new(&[3; 6000])], 0).unwrap();
            assert!(again.write(b"x", 10_000).is_err(), "beyond its end is another's place");
            tar.reopen(&whole).unwrap().unwrap().write(&[4], 5000).unwrap();
            tar.complete(&path, &ATTRIBUTES).unwrap();

            tar.begin(&piece(&gone, (0, 10_000))).unwrap().unwrap().write(&[1; 9000], 0).unwrap();
            let remains = tar.vanished(&gone, b"head").unwrap();
            assert_eq!(remains, Some(Remains { size: 10_000, attributes: ATTRIBUTES }));
            assert_eq!(tar.vanished(&BackupPath::from_bytes("never").unwrap(), &[]).unwrap(), None);

            for (offset, byte) in [(8192, 6), (0, 5)] {
                let length = if offset == 0 { 8192 } else { 1808 };
                let part = tar.begin(&piece(&parts, (offset, length))).unwrap().unwrap();
                part.write(&vec![byte; usize::try_from(length).unwrap()], offset).unwrap();
            }
            assert!(tar.close().is_err(), "a file is incomplete");
            tar.complete(&parts, &ATTRIBUTES).unwrap();
        });
        let base: HashMap<_, _> = archives["base"].iter().cloned().collect();
        let mut expected = [vec![2; 4000], vec![3; 6000]].concat();
        expected[5000] = 4;
        assert!(base["base/5/1"] == expected);
        assert!(base["base/5/2"] == [&b"head"[..], &[0; 9996]].concat());
        assert!(base["base/5/3"] == [vec![5; 8192], vec![6; 1808]].concat());
        assert_eq!(base["between"], b"x");
    }

    #[test]
    fn what_is_where() {
        let archives = archives(&["-X", "fetch"], |tar| {
            for name in ["base", "pg_tblspc", "pg_tblspc/16384", "pg_tblspc/16385", "pg_tblspc/16384/PG_18"] {
                tar.directory(&path(name), &ATTRIBUTES).unwrap();
            }
            put(tar, "pg_tblspc/16384/PG_18/5/1", b"one");
            put(tar, "pg_tblspc/16385/PG_18/5/2", b"two");
            put(tar, "pg_wal/00000002.history", b"three");
            assert!(tar.check_path(&path(&format!("pg_tblspc/16384/{}", "x".repeat(99)))).is_ok());
            assert!(tar.check_path(&path(&format!("pg_tblspc/16386/{}", "x".repeat(99)))).is_err());
        });
        assert_eq!(archives.len(), 3);
        assert_eq!(names(&archives["base"]), ["base/", "pg_tblspc/", "pg_wal/00000002.history"]);
        assert_eq!(names(&archives["16384"]), ["PG_18/", "PG_18/5/1"]);
        assert_eq!(names(&archives["16385"]), ["PG_18/5/2"]);
    }

    #[test]
    fn settings_and_the_wal_stream() {
        let archives = archives(&["-R"], |tar| {
            put(tar, "postgresql.auto.conf", b"a = 1\n");
            put(tar, "standby.signal", b"the server's");
            tar.append("postgresql.auto.conf", b"b = 2\n").unwrap();
            tar.own_file("standby.signal", b"").unwrap();
            let mut wal = tar.wal().unwrap();
            wal.history("00000002.history", b"as streamed").unwrap();
            for (name, is_full) in [("000000020000000000000003", true), ("000000020000000000000004", false)] {
                wal.begin(name, 1 << 20).unwrap();
                wal.write(b"begin").unwrap();
                wal.end(is_full).unwrap();
            }
            assert!(tar.has_history("00000002.history") && !tar.has_history("00000003.history"));
            put(tar, "pg_wal/00000002.history", b"with a checksum");
        });
        let base = &archives["base"];
        assert_eq!(names(base), ["postgresql.auto.conf", "standby.signal"]);
        assert_eq!(base[0].1, b"a = 1\nb = 2\n");
        assert!(base[1].1.is_empty());
        let wal = &archives["pg_wal"];
        assert_eq!(
            names(wal),
            [
                "000000020000000000000003",
                "archive_status/000000020000000000000003.done",
                "000000020000000000000004",
                "00000002.history",
                "archive_status/00000002.history.done"
            ]
        );
        assert!(wal[2].1.len() == 1 << 20 && wal[2].1.starts_with(b"begin\0"));
        assert_eq!(wal[3].1, b"with a checksum");
    }
}
