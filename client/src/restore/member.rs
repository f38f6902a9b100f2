//! A backup whose members are known, and its way into a directory: all archives at once, each file checked as it is
//! written.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::archive::{self, Member, MemberKind, Next};
use super::extract::{CONTROL_FILE, Extract, write_file};
use super::head::{self, Head};
use super::layout::{Archive, Compression, Layout, Part};
use super::manifest::{Manifest, TABLESPACE_MAP, without};
use super::places::MOST_OF_AN_INDEX;
use super::source::{Digested, Source, read_all};
use super::wal;
use crate::abort::{Abort, PanicGuard};
use crate::catalog::index::{INDEX, Index, Stored};
use crate::error::{Error, Result};
use crate::options::Sync;
use crate::output::cleanup::{Cleanup, Purpose};
use crate::output::directory::target::Target;
use crate::output::{MANIFEST, Modes, sync};
use crate::report;
use crate::report::progress::{Counters, Phase};

/// Bytes that one thread takes at a time, in files that are smaller.
const BATCH: u64 = 8 << 20;

/// How large a manifest may be: a hundred million files.
const MOST_OF_A_MANIFEST: u64 = 16 << 30;

/// A backup, as far as it can be known before its files are read.
pub struct Backup {
    source: Box<dyn Source>,
    layout: Layout,
    manifest: Option<(Manifest, Vec<u8>)>,
    /// What it says of itself.
    pub head: Head,
    /// Its index, if it is one in volumes.
    pub index: Option<Index>,
}

/// Where a backup goes.
#[derive(Debug)]
pub struct Places {
    /// The data directory.
    pub root: PathBuf,
    /// Where pg_wal is, if not there.
    pub waldir: Option<PathBuf>,
    /// Tablespaces, by their OIDs, but for those in place.
    pub tablespaces: BTreeMap<u32, PathBuf>,
}

/// What is to be done with a backup beside writing it.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Threads.
    pub jobs: usize,
    /// How it gets to disk.
    pub sync: Sync,
    /// Say more.
    pub verbose: bool,
    /// Whether a backup without a manifest is taken as it is.
    pub may_lack_manifest: bool,
}

impl Backup {
    /// Looks at what is there.
    pub fn open(source: Box<dyn Source>, way: Way) -> Result<Self> {
        let index = if source.list()?.iter().any(|object| object.name == INDEX) {
            Some(Index::parse(&read_all(&*source, INDEX, MOST_OF_AN_INDEX)?)?)
        } else {
            None
        };
        let layout = match &index {
            Some(index) => Layout::from_index(&*source, index)?,
            None => Layout::of(&*source)?,
        };
        let mut head = match &index {
            Some(index) => Head::of_index(index),
            None => {
                let looks_within = !layout.has_manifest && !way.may_lack_manifest;
                head::read(&*source, layout.base()?, looks_within)?
            }
        };
        let text = if layout.has_manifest {
            let text = read_all(&*source, MANIFEST, MOST_OF_A_MANIFEST)?;
            let is_wrong = |stored: &Stored| Sha256::digest(&text)[..] != stored.sha256[..];
            if layout.manifest.as_ref().is_some_and(is_wrong) {
                return Err(Error::local(format!("\"{}\" is not that of the index", source.shown(MANIFEST))));
            }
            Some(text)
        } else {
            head.manifest.take()
        };
        let manifest =
            text.map(|text| Manifest::parse(&text).map(|manifest| (manifest, text))).transpose()?;
        if manifest.is_none() && !way.may_lack_manifest {
            return Err(Error::local(format!("\"{}\" has no \"{MANIFEST}\"", source.name()))
                .with_detail("Without it nobody can tell whether the files are those of the server.")
                .with_hint("To restore the backup all the same, use --no-manifest."));
        }
        Ok(Self { source, layout, manifest, head, index })
    }

    /// Where it is.
    pub fn name(&self) -> String {
        self.source.name()
    }

    /// The files of the backup, and their bytes, if that is known.
    pub fn totals(&self) -> Option<(usize, u64)> {
        self.manifest.as_ref().map(|(manifest, _)| manifest.totals())
    }

    /// The tablespaces that had a place of their own on the server, and where.
    pub fn tablespaces(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let elsewhere = self.head.tablespaces.iter().filter(|(_, place)| place.starts_with(b"/"));
        elsewhere.map(|(oid, place)| (*oid, &place[..]))
    }

    /// Writes it. What is made is claimed, and left claimed.
    pub fn restore(
        &self,
        places: &Places,
        way: Way,
        counters: &Counters,
        abort: &Abort,
        cleanup: &Cleanup,
    ) -> Result<()> {
        let mut target = self.prepare(places, cleanup)?;
        let elsewhere: BTreeMap<u32, Vec<u8>> =
            self.tablespaces().map(|(oid, place)| (oid, place.to_vec())).collect();
        let manifest = self.manifest.as_ref().map(|(manifest, _)| manifest);
        let extract = Extract::new(&target, manifest, &elsewhere, counters, abort);
        counters.enter(Phase::Files);
        self.extract(&extract, way.jobs, abort)?;
        let (control_file, mode) = extract.finish()?;
        self.check_system(&control_file)?;
        self.check_wal(&target, &control_file, abort)?;
        if extract.has_group_access() {
            let modes = Modes { directory: 0o750, file: 0o640 };
            open_to_group(places, modes)?;
            target = Target::new(places.root.clone(), modes);
        }
        if let Some((_, text)) = &self.manifest {
            // The links are there: a map would have recovery make them again, to where the server had its own.
            let shortened = without(text, TABLESPACE_MAP)?;
            let text = shortened.as_ref().unwrap_or(text);
            write_file(&target, MANIFEST, text, target.modes().file, false)?;
        }
        counters.enter(Phase::Sync);
        if way.sync != Sync::None {
            if way.verbose {
                report::info("syncing data to disk ...");
            }
            sync::sync_directory(target.root(), way.sync, way.jobs, abort)?;
            cleanup.made().iter().try_for_each(|path| sync::sync_parent(path))?;
        }
        abort.check()?;
        cleanup.check()?;
        // Everything else is there, and on disk.
        write_file(&target, CONTROL_FILE, &control_file, mode, way.sync != Sync::None)?;
        if way.sync != Sync::None {
            sync::sync_path(&target.root().join("global"))?;
        }
        Ok(())
    }

    /// Claims the directories, and makes the links.
    fn prepare(&self, places: &Places, cleanup: &Cleanup) -> Result<Target> {
        let modes = Modes::STRICT;
        cleanup.claim(Purpose::Data, &places.root, modes.directory)?;
        let mut target = Target::new(places.root.clone(), modes);
        if let Some(waldir) = &places.waldir {
            cleanup.claim(Purpose::Wal, waldir, modes.directory)?;
            target.link("pg_wal", waldir)?;
        } else {
            target.make("pg_wal")?;
        }
        target.make("pg_tblspc")?;
        for (oid, place) in &places.tablespaces {
            cleanup.claim(Purpose::Tablespace, place, modes.directory)?;
            target.link(&format!("pg_tblspc/{oid}"), place)?;
        }
        // In place; an archive may have nothing in it.
        for oid in self.layout.tablespaces().chain(self.head.tablespaces.keys().copied()) {
            if !places.tablespaces.contains_key(&oid) {
                target.make(&format!("pg_tblspc/{oid}"))?;
            }
        }
        Ok(target)
    }

    /// All archives, by several threads.
    fn extract(&self, extract: &Extract<'_>, jobs: usize, abort: &Abort) -> Result<()> {
        let work = Mutex::new(VecDeque::new());
        let mut later = Vec::new();
        for archive in &self.layout.archives {
            // A digest is of all of it, from its beginning to its end.
            let file = match (archive.compression, archive.sha256) {
                (Compression::None, None) => self.source.file(&archive.name)?,
                _ => None,
            };
            match file {
                Some(file) => later.extend(self.split(archive, file, extract, abort)?),
                None => lock(&work).push_back(Unit::Archive(archive)),
            }
        }
        lock(&work).extend(later);
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    let _guard = PanicGuard(abort);
                    loop {
                        let Some(unit) = lock(&work).pop_front() else { break };
                        let done = abort.check().and_then(|()| self.take(&unit, extract));
                        if let Err(error) = done {
                            abort.fail(error);
                            break;
                        }
                    }
                });
            }
        });
        abort.check().map_err(|error| abort.cause().unwrap_or(error))
    }

    /// The files of an archive that can be read in any order. Directories are made at once.
    fn split<'a>(
        &self,
        archive: &Archive,
        file: File,
        extract: &Extract<'_>,
        abort: &Abort,
    ) -> Result<Vec<Unit<'a>>> {
        let shown: Arc<str> = self.source.shown(&archive.name).into();
        let members = archive::index(&file, &archive.part.prefix(), &shown)?;
        let file = Arc::new(file);
        let mut units = Vec::new();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for member in members {
            abort.check()?;
            if !matches!(member.kind, MemberKind::File) {
                extract.member(&member, &mut io::empty(), &shown)?;
            } else if is_restored(&member, archive.part) {
                bytes += member.size;
                batch.push(member);
            }
            if bytes >= BATCH {
                let members = std::mem::take(&mut batch);
                units.push(Unit::Members { file: Arc::clone(&file), shown: Arc::clone(&shown), members });
                bytes = 0;
            }
        }
        units.push(Unit::Members { file, shown, members: batch });
        Ok(units)
    }

    fn take(&self, unit: &Unit<'_>, extract: &Extract<'_>) -> Result<()> {
        match unit {
            Unit::Archive(archive) => {
                let mut stored = self.source.read(&archive.name)?;
                if let Some(sha256) = archive.sha256 {
                    stored = Box::new(Digested::new(stored, sha256));
                }
                let shown = self.source.shown(&archive.name);
                let prefix = archive.part.prefix();
                archive::read(stored, archive.compression, &prefix, &shown, |member, bytes| {
                    if is_restored(&member, archive.part) {
                        extract.member(&member, bytes, &shown)?;
                    }
                    Ok(Next::More)
                })
            }
            Unit::Members { file, shown, members } => members.iter().try_for_each(|member| {
                let mut bytes = Range { file, at: member.position, left: member.size };
                extract.member(member, &mut bytes, shown)
            }),
        }
    }

    /// Whether pg_control is that of the manifest's cluster, which manifests of PostgreSQL 17 name.
    fn check_system(&self, control_file: &[u8]) -> Result<()> {
        let found = system_identifier(control_file)?;
        match self.manifest.as_ref().and_then(|(manifest, _)| manifest.system) {
            Some(system) if system != found => Err(Error::local(format!(
                "manifest system identifier is {system}, but control file has {found}"
            ))),
            _ => Ok(()),
        }
    }

    fn check_wal(&self, target: &Target, control_file: &[u8], abort: &Abort) -> Result<()> {
        let Some((manifest, _)) = &self.manifest else { return Ok(()) };
        let system = system_identifier(control_file)?;
        match wal::check(&target.root().join("pg_wal"), system, &manifest.ranges, abort)? {
            wal::Found::All => Ok(()),
            wal::Found::None => {
                for range in &manifest.ranges {
                    report::warning(format_args!(
                        "the backup has no WAL: recovery needs that of timeline {} from {} to {}, from an archive",
                        range.timeline, range.start, range.end
                    ));
                }
                Ok(())
            }
        }
    }
}

/// What a thread takes at a time.
enum Unit<'a> {
    /// An archive, from its beginning to its end.
    Archive(&'a Archive),
    /// Some files of one.
    Members { file: Arc<File>, shown: Arc<str>, members: Vec<Member> },
}

/// A part of a file.
struct Range<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Whether a member belongs into the data directory: a manifest that came with the files is written with it.
fn is_restored(member: &Member, part: Part) -> bool {
    part != Part::Base || member.path.as_bytes() != MANIFEST.as_bytes()
}

/// What pg_control begins with.
fn system_identifier(control_file: &[u8]) -> Result<u64> {
    let first = control_file.first_chunk::<8>();
    first
        .map(|bytes| u64::from_ne_bytes(*bytes))
        .ok_or_else(|| Error::local("\"global/pg_control\" is too short"))
}

/// The directories that are in no archive get the mode of those that are.
fn open_to_group(places: &Places, modes: Modes) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let own = [places.root.clone(), places.root.join("pg_tblspc"), places.root.join("pg_wal")];
    own.iter().chain(&places.waldir).chain(places.tablespaces.values()).try_for_each(|directory| {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(modes.directory))
            .map_err(|error| Error::io("set permissions on directory", directory, &error))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
