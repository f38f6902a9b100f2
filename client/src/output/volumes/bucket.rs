//! Volumes below a prefix of an object store: each is uploaded in parts while it is made.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::MultipartId;
use object_store::multipart::PartId;

use super::store::{Store, StoredFile};
use crate::abort::Abort;
use crate::catalog::index::INDEX;
use crate::error::{Error, Result};
use crate::objects::claim::{CLAIM, Claim};
use crate::objects::leftovers::{self, Found, marker};
use crate::objects::location::Location;
use crate::objects::remote::{Pending, Remote};
use crate::options::Options;
use crate::output::cleanup::{Cleanup, Outside};
use crate::output::{MANIFEST, Modes, say};
use crate::report;

/// How large parts are, unless there would be too many. No store takes smaller ones than 5 MB, and some want all of
/// one size.
const PART: u64 = 8 << 20;

/// How many parts an object may have. 10,000, with room for what compression adds.
const PARTS: u64 = 9500;

/// How many parts of a volume are under way, beside the one that is being filled.
const UNDER_WAY: usize = 2;

/// The prefix.
pub struct Bucket<'a> {
    options: &'a Options,
    cleanup: &'a Cleanup,
    modes: Modes,
    shared: Arc<Shared>,
    /// Where the manifest is until it is stored.
    manifest: Mutex<Option<File>>,
}

/// What volumes under way know.
#[derive(Debug)]
struct Shared {
    remote: Remote,
    /// From the claim on.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    claim: Option<Claim>,
    /// What was stored, or is about to be.
    objects: Vec<String>,
    /// What is being uploaded, by its name.
    uploads: HashMap<String, MultipartId>,
}

/// An object that is being written.
struct Upload {
    shared: Arc<Shared>,
    name: String,
    /// How large parts are.
    part: usize,
    buffer: Vec<u8>,
    /// Once there was more than one part.
    id: Option<MultipartId>,
    sent: usize,
    pending: VecDeque<Pending<PartId>>,
    parts: Vec<PartId>,
    size: u64,
}

/// A file without a name.
struct Spool(File);

impl<'a> Bucket<'a> {
    /// As the options say.
    pub fn new(
        options: &'a Options,
        location: &Location,
        abort: &Arc<Abort>,
        cleanup: &'a Cleanup,
    ) -> Result<Self> {
        Ok(Self::of(options, Remote::open(location, abort)?, cleanup))
    }

    fn of(options: &'a Options, remote: Remote, cleanup: &'a Cleanup) -> Self {
        let shared = Arc::new(Shared { remote, state: Mutex::default() });
        Self { options, cleanup, modes: Modes::STRICT, shared, manifest: Mutex::default() }
    }

    fn upload(&self, name: &str, expected: u64) -> Upload {
        Upload::new(&self.shared, name, part_size(expected))
    }

    /// Fails if somebody has taken the prefix over, or removed the claim.
    fn check_claim(&self) -> Result<()> {
        let there = Claim::of(&self.shared.remote)?;
        let state = self.shared.lock();
        match (&state.claim, there) {
            (Some(own), Some(there)) if own.run == there.run => Ok(()),
            _ => Err(Error::local(format!(
                "\"{}\" was taken over by somebody else while the backup ran",
                self.shared.remote.location()
            ))),
        }
    }
}

impl Store for Bucket<'_> {
    fn check(&self) -> Result<()> {
        match leftovers::look(&self.shared.remote)? {
            Found::Claimed(claim, _) if !claim.is_over() => Err(claim.refusal(&self.shared.remote)),
            _ => Ok(()),
        }
    }

    fn claim(&mut self, modes: Modes) -> Result<()> {
        let remote = &self.shared.remote;
        if let Found::Claimed(claim, objects) = leftovers::look(remote)? {
            leftovers::take_over(remote, &claim, &objects)?;
        }
        let claim = Claim::new()?;
        // Known before it is written: whatever becomes of the request.
        self.shared.lock().claim = Some(claim.clone());
        self.cleanup.outside(Arc::clone(&self.shared) as Arc<dyn Outside>);
        // A first request may have succeeded without an answer, so that it is looked at in any case.
        remote.create(CLAIM, claim.to_json())?;
        match Claim::of(remote)? {
            Some(there) if there.run == claim.run => {}
            Some(there) => {
                self.shared.lock().claim = None;
                return Err(there.refusal(remote));
            }
            None => return Err(Error::local(format!("\"{}\" is not there", remote.shown(CLAIM)))),
        }
        // Another backup may have come and gone since the look at it.
        if let Some(object) = remote.list()?.iter().find(|object| object.name != CLAIM) {
            return Err(Error::local(format!("\"{}\" exists", remote.shown(&object.name))));
        }
        self.modes = modes;
        Ok(())
    }

    fn modes(&self) -> Modes {
        self.modes
    }

    fn create(&self, name: &str, expected: u64) -> Result<Box<dyn StoredFile>> {
        Ok(Box::new(self.upload(name, expected)))
    }

    fn spool(&self) -> io::Result<File> {
        tempfile::tempfile()
    }

    fn shown(&self, name: &str) -> PathBuf {
        PathBuf::from(self.shared.remote.shown(name))
    }

    fn manifest(&self) -> Result<Box<dyn StoredFile>> {
        let failed = |error| Error::io("create file", &std::env::temp_dir(), &error);
        let file = self.spool().map_err(failed)?;
        *self.manifest.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(file.try_clone().map_err(failed)?);
        Ok(Box::new(Spool(file)))
    }

    fn sync(&self) -> Result<()> {
        // What a store has taken it keeps.
        Ok(())
    }

    fn finish(&self, has_manifest: bool, index: &[u8]) -> Result<()> {
        self.check_claim()?;
        if has_manifest {
            let file = self.manifest.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut file = file.ok_or_else(|| Error::local("there is no manifest"))?;
            let failed = |error| Error::io("read file", std::path::Path::new(MANIFEST), &error);
            file.rewind().map_err(failed)?;
            let size = file.metadata().map_err(failed)?.len();
            say(self.options, format_args!("storing {MANIFEST}"));
            let mut upload = self.upload(MANIFEST, size);
            let mut buffer = vec![0; 256 << 10];
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    count => upload.add(&buffer[..count])?,
                }
            }
            Box::new(upload).finish()?;
            self.check_claim()?;
        }
        // From here on there is a backup, whatever becomes of this process.
        self.shared.lock().objects.push(INDEX.to_owned());
        self.shared.remote.put(INDEX, index.to_vec())?;
        self.cleanup.outside_is_complete();
        if let Err(error) = self.shared.remote.delete(CLAIM) {
            report::warning(error);
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uploads leave nothing that can be seen, so that they never stay.
    fn give_up_uploads(&self) -> Result<()> {
        self.remote.end();
        let uploads = std::mem::take(&mut self.lock().uploads);
        for (name, id) in &uploads {
            self.remote.give_up(name, id)?;
            self.remote.delete(&marker(name))?;
        }
        Ok(())
    }
}

impl Outside for Shared {
    fn shown(&self) -> String {
        self.remote.location().to_string()
    }

    fn remove(&self) -> Result<()> {
        self.give_up_uploads()?;
        let State { claim, objects, .. } = std::mem::take(&mut *self.lock());
        let Some(claim) = claim else { return Ok(()) };
        // Somebody who has taken the prefix over has what is there now.
        match Claim::of(&self.remote)? {
            Some(there) if there.run != claim.run => return Ok(()),
            _ => {}
        }
        // The index first: without it the rest is no backup.
        objects.iter().rev().try_for_each(|name| self.remote.delete(name))?;
        self.remote.delete(CLAIM)
    }

    fn leave(&self) -> Result<()> {
        self.give_up_uploads()?;
        let own = self.lock().claim.clone();
        // Not that of somebody who has taken the prefix over.
        match (own, Claim::of(&self.remote)?) {
            (Some(own), Some(there)) if own.run == there.run => self.remote.delete(CLAIM),
            _ => Ok(()),
        }
    }
}

impl Upload {
    fn new(shared: &Arc<Shared>, name: &str, part: usize) -> Self {
        Self {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            part,
            buffer: Vec::new(),
            id: None,
            sent: 0,
            pending: VecDeque::new(),
            parts: Vec::new(),
            size: 0,
        }
    }

    fn add(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.len() == self.part {
                self.send()?;
            }
            let taken = bytes.len().min(self.part - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..taken]);
            self.size += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Sends what is in the buffer as the next part; waits while enough of them are under way.
    fn send(&mut self) -> Result<()> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.begin()?,
        };
        while self.pending.len() >= UNDER_WAY {
            self.wait()?;
        }
        let bytes = std::mem::take(&mut self.buffer);
        self.pending.push_back(self.shared.remote.put_part(&self.name, &id, self.sent, bytes)?);
        self.sent += 1;
        Ok(())
    }

    fn begin(&mut self) -> Result<MultipartId> {
        let remote = &self.shared.remote;
        let id = remote.begin(&self.name, |id| {
            self.shared.lock().uploads.insert(self.name.clone(), id.clone());
        })?;
        // For whoever removes it if this process dies.
        remote.put(&marker(&self.name), id.clone().into_bytes())?;
        self.id = Some(id.clone());
        Ok(id)
    }

    fn wait(&mut self) -> Result<()> {
        if let Some(pending) = self.pending.pop_front() {
            self.parts.push(self.shared.remote.part(&self.name, pending)?);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.shared.lock().objects.push(self.name.clone());
        if self.id.is_none() {
            // In one piece.
            return self.shared.remote.put(&self.name, std::mem::take(&mut self.buffer));
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        while !self.pending.is_empty() {
            self.wait()?;
        }
        if let Some(id) = &self.id {
            let remote = &self.shared.remote;
            remote.complete(&self.name, id, std::mem::take(&mut self.parts), self.size)?;
            self.shared.lock().uploads.remove(&self.name);
            remote.delete(&marker(&self.name))?;
        }
        Ok(())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes).map_err(|error| {
            // A compressor's threads may forget why they ended.
            self.shared.remote.fail(&error);
            io::Error::other(error)
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StoredFile for Upload {
    fn finish(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl StoredFile for Spool {
    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// How large parts of an object are that may become so large.
fn part_size(expected: u64) -> usize {
    let least = expected.div_ceil(PARTS).next_multiple_of(1 << 20);
    usize::try_from(least.max(PART)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::objects::location::Place;
    use crate::options::{self, Invocation};

    const URL: &str = "s3://b/one";

    fn options() -> Options {
        let arguments = ["pg_parallel_basebackup", "-D", URL].map(OsString::from);
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        *options
    }

    /// A prefix in memory that is claimed.
    fn claimed<T>(work: impl FnOnce(&Bucket<'_>, &Remote, &Cleanup, &Abort) -> T) -> T {
        let (options, cleanup) = (options(), Cleanup::default());
        assert_eq!(options.volumes, Some(1 << 30));
        let Place::Objects(location) = Place::parse(URL).unwrap() else { panic!("no URL") };
        let abort = Arc::new(Abort::new().unwrap());
        let mut bucket = Bucket::of(&options, Remote::in_memory(&location, &abort), &cleanup);
        bucket.check().unwrap();
        bucket.claim(Modes::STRICT).unwrap();
        let error = bucket.check().unwrap_err();
        assert_eq!(error.message(), "\"s3://b/one\" is in use by another backup");
        work(&bucket, &bucket.shared.remote, &cleanup, &abort)
    }

    fn names(remote: &Remote) -> Vec<String> {
        let mut names: Vec<_> = remote.list().unwrap().into_iter().map(|object| object.name).collect();
        names.sort_unstable();
        names
    }

    /// Of two parts and a bit.
    fn content() -> Vec<u8> {
        (0..17_000_000u32).map(|number| (number % 251) as u8).collect()
    }

    #[test]
    fn parts_are_not_too_many() {
        assert_eq!(part_size(0), 8 << 20);
        assert_eq!(part_size(64 << 30), 8 << 20);
        let large = 1 << 40;
        assert!(large / part_size(large) as u64 <= PARTS && part_size(large) < 128 << 20);
        assert_eq!(part_size(large) % (1 << 20), 0);
    }

    #[test]
    fn a_backup_is_there_with_its_index() {
        claimed(|bucket, remote, cleanup, _| {
            let content = content();
            let mut volume = bucket.create("base.00001.tar", 1 << 30).unwrap();
            content.chunks(1_000_001).for_each(|piece| volume.write_all(piece).unwrap());
            assert_eq!(names(remote), [CLAIM, "base.00001.tar.upload"]);
            volume.finish().unwrap();
            assert!(remote.get("base.00001.tar").unwrap().unwrap() == content);
            let mut small = bucket.create("base.00002.tar", 1 << 30).unwrap();
            small.write_all(b"small").unwrap();
            small.finish().unwrap();
            let mut manifest = bucket.manifest().unwrap();
            manifest.write_all(b"manifest").unwrap();
            manifest.finish().unwrap();
            assert_eq!(names(remote), [CLAIM, "base.00001.tar", "base.00002.tar"]);
            bucket.finish(true, b"index").unwrap();
            let all = [INDEX, MANIFEST, "base.00001.tar", "base.00002.tar"];
            assert_eq!(names(remote), all);
            assert_eq!(remote.get(MANIFEST).unwrap().unwrap(), b"manifest");
            // Whatever comes after that.
            cleanup.undo(false);
            assert_eq!(names(remote), all);
            assert_eq!(bucket.check().unwrap_err().message(), "\"s3://b/one\" has a backup already");
        });
    }

    #[test]
    fn a_failed_one_leaves_nothing_and_writes_nothing_more() {
        claimed(|bucket, remote, cleanup, abort| {
            let mut stored = bucket.create("base.00001.tar", 1 << 30).unwrap();
            stored.write_all(b"x").unwrap();
            stored.finish().unwrap();
            let mut volume = bucket.create("base.00002.tar", 1 << 30).unwrap();
            volume.write_all(&content()).unwrap();
            assert_eq!(names(remote).len(), 3);
            abort.fail(Error::local("on purpose"));
            cleanup.undo(false);
            assert_eq!(names(remote), [""; 0]);
            // Threads that have not heard of it.
            assert!(volume.write_all(&content()).is_err() && volume.finish().is_err());
            let late = bucket.create("base.00003.tar", 1 << 30).unwrap();
            assert!(late.finish().is_err());
            assert_eq!(names(remote), [""; 0]);
        });
    }

    #[test]
    fn what_stays_has_no_uploads() {
        claimed(|bucket, remote, cleanup, _| {
            bucket.create("base.00001.tar", 1 << 30).unwrap().finish().unwrap();
            let mut volume = bucket.create("base.00002.tar", 1 << 30).unwrap();
            volume.write_all(&content()).unwrap();
            cleanup.undo(true);
            assert_eq!(names(remote), ["base.00001.tar"]);
        });
    }

    #[test]
    fn what_somebody_has_taken_over_is_left_alone() {
        claimed(|bucket, remote, cleanup, _| {
            bucket.create("base.00001.tar", 1 << 30).unwrap().finish().unwrap();
            let other = Claim::new().unwrap();
            remote.put(CLAIM, other.to_json()).unwrap();
            let error = bucket.finish(false, b"index").unwrap_err();
            assert_eq!(
                error.message(),
                "\"s3://b/one\" was taken over by somebody else while the backup ran"
            );
            cleanup.undo(false);
            assert_eq!(names(remote), [CLAIM, "base.00001.tar"]);
        });
    }
}
