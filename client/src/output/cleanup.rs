//! The directories of a backup: each must be empty or not there, is claimed and remembered when it is
//! taken, and is given back as it was when the backup fails.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::output::claim::{Claim, FileId, Place, check_free, id_of};
use crate::output::journal::JOURNAL_FILE;
use crate::output::sync::sync_path;
use crate::report;

/// How often a directory is emptied, and how long to wait for what fills it again to cease.
const EMPTYING_TRIES: u32 = 20;
const EMPTYING_PAUSE: Duration = Duration::from_millis(50);

/// What a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The data directory.
    Data,
    /// The one given by --waldir.
    Wal,
    /// A tablespace.
    Tablespace,
}

/// The directories that were taken, in that order. Shared with the thread that hears signals.
#[derive(Debug, Default)]
pub struct Cleanup {
    taken: Mutex<Vec<Claimed>>,
    /// Leave what a failed backup has made.
    no_clean: bool,
    /// How to go on with the backup if it is interrupted, where that can be.
    way_on: Mutex<Option<String>>,
    is_suspended: AtomicBool,
    /// What is written elsewhere.
    outside: Mutex<Option<Arc<dyn Outside>>>,
    /// What another process has left stays, whatever this one fails at; and whether it has.
    leaves: AtomicBool,
    has_left: AtomicBool,
}

#[derive(Debug)]
struct Claimed {
    purpose: Purpose,
    path: PathBuf,
    /// What was made for it, outermost first; the directory itself is the last unless it was there.
    made: Vec<Arc<Place>>,
    /// None where it could not be had: nothing was written there then.
    claim: Option<Claim>,
    /// The directory that it is in, if nobody else had claimed that or one above it.
    above: Option<FileId>,
    /// Whether it was another process's before.
    is_resumed: bool,
}

/// How a failed backup is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// As if it had never been.
    Removed,
    /// All of it, because the user wants it so.
    KeptAsAsked,
    /// All of it, because it is complete but for pages that had wrong checksums before.
    KeptDamaged,
}

/// What a backup writes where no directory is: it takes it away itself.
pub trait Outside: std::fmt::Debug + Send + Sync {
    /// What it is called.
    fn shown(&self) -> String;

    /// Takes all of it away. Nothing is written any more, whoever tries.
    fn remove(&self) -> Result<()>;

    /// Leaves what is complete.
    fn leave(&self) -> Result<()>;
}

impl Cleanup {
    /// Nothing was taken yet.
    pub fn new(no_clean: bool) -> Self {
        Self { no_clean, ..Self::default() }
    }

    /// Claims a directory that is empty, or makes it with this mode, and those above it.
    pub fn claim(&self, purpose: Purpose, path: &Path, mode: u32) -> Result<()> {
        let mut all = self.lock();
        // Remembered before the first mkdir: one that fails half way is cleaned up too.
        all.push(Claimed::new(purpose, path));
        let Some((taken, others)) = all.split_last_mut() else { return Ok(()) };
        if taken.make_beside(others, mode)? {
            return Ok(());
        }
        check_distinct(path, others)?;
        check_free(path, others.iter().filter_map(|taken| taken.claim.as_ref()))?;
        let missing: Vec<&Path> =
            path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
        for directory in missing.into_iter().rev() {
            match Place::make(directory, mode) {
                Ok(place) => taken.made.push(Arc::new(place)),
                // A last component of ".", or another backup was quicker.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create directory", directory, &error)),
            }
        }
        // What was missing may have been a tablespace's way through a link to one that is ours.
        check_distinct(path, others)?;
        let place = open(path)?;
        taken.above = place.above();
        taken.claim = Some(Claim::take(place)?);
        Ok(())
    }

    /// Takes over a directory of a backup whose process has gone.
    pub fn resume(&self, purpose: Purpose, path: &Path) -> Result<()> {
        let mut all = self.lock();
        check_distinct(path, &all)?;
        let claim = Some(Claim::take_over(open(path)?)?);
        all.push(Claimed { claim, is_resumed: true, ..Claimed::new(purpose, path) });
        Ok(())
    }

    /// From now on the backup writes there too.
    #[cfg_attr(not(feature = "object-store"), allow(dead_code, reason = "nothing else is outside"))]
    pub fn outside(&self, outside: Arc<dyn Outside>) {
        *self.lock_outside() = Some(outside);
    }

    /// All of that is complete, and stays.
    #[cfg_attr(not(feature = "object-store"), allow(dead_code, reason = "nothing else is outside"))]
    pub fn outside_is_complete(&self) {
        *self.lock_outside() = None;
    }

    /// From now on the backup is left as it is if it is interrupted, so that it can be gone on with, and how.
    pub fn allow_suspension(&self, way_on: String) {
        *self.way_on.lock().unwrap_or_else(PoisonError::into_inner) = Some(way_on);
    }

    /// Whether the backup was left so.
    pub fn is_suspended(&self) -> bool {
        self.is_suspended.load(Ordering::SeqCst)
    }

    /// Whether what another process has left is to stay as it is if the backup fails now.
    pub fn leave(&self, leave: bool) {
        self.leaves.store(leave, Ordering::SeqCst);
    }

    /// Whether the backup was left for another process to go on with, also on the server.
    pub fn has_left(&self) -> bool {
        self.is_suspended() || self.has_left.load(Ordering::SeqCst)
    }

    /// An error, with what it leaves to do.
    pub fn explain(&self, error: Error) -> Error {
        match &*self.way_on.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(way_on) if error.kind() == Kind::Interrupted => error.with_hint(way_on),
            _ => error,
        }
    }

    /// The backup has ended before its time, by this: it is left, or given back.
    pub fn end(&self, error: &Error) {
        let can_go_on = self.way_on.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if error.kind() == Kind::Interrupted && can_go_on {
            self.is_suspended.store(true, Ordering::SeqCst);
            return;
        }
        if self.leaves.load(Ordering::SeqCst) {
            self.has_left.store(true, Ordering::SeqCst);
            self.lock().retain(|taken| !taken.is_resumed);
        }
        self.undo(error.kind() == Kind::ChecksumFailure);
    }

    /// Fails if somebody has replaced a directory of ours, or removed the claim on it.
    pub fn check(&self) -> Result<()> {
        self.lock().iter().filter_map(|taken| taken.claim.as_ref()).try_for_each(Claim::check)
    }

    /// The directories that were made, for their parents to be synced.
    pub fn made(&self) -> Vec<PathBuf> {
        let all = self.lock();
        let made = all.iter().flat_map(|taken| taken.made.iter().map(|place| place.path().to_owned()));
        // Those of a process that has gone may have been made by it.
        let resumed = all.iter().filter(|taken| taken.is_resumed).map(|taken| taken.path.clone());
        made.chain(resumed).collect()
    }

    /// Gives the claims up, and remembers the directories: another program is to write there, which wants to find
    /// nothing, and what it leaves if it fails is removed.
    pub fn lend(&self) -> Result<()> {
        self.lock().iter_mut().filter_map(|taken| taken.claim.as_mut()).try_for_each(Claim::release)
    }

    /// Removes what was taken below a directory, and is needed no more.
    pub fn remove_within(&self, directory: &Path) {
        let mut all = self.lock();
        let (mut within, others): (Vec<_>, Vec<_>) =
            all.drain(..).partition(|taken| taken.path.starts_with(directory));
        *all = others;
        drop(all);
        while let Some(mut taken) = within.pop() {
            if let Err(error) = taken.remove(false) {
                report::error(&error);
            }
        }
    }

    /// The backup is complete: its directories are left as they are, without the claims.
    pub fn finish(&self, sync: bool) -> Result<()> {
        let mut all = self.lock();
        for taken in all.iter_mut() {
            if let Some(claim) = &mut taken.claim {
                claim.release()?;
                if sync {
                    sync_path(claim.path())?;
                }
            }
        }
        all.clear();
        Ok(())
    }

    /// Gives everything back, the last first: one may be in another. Only what is still ours is touched.
    pub fn undo(&self, is_damaged: bool) {
        let fate = match (is_damaged, self.no_clean) {
            (true, _) => Fate::KeptDamaged,
            (_, true) => Fate::KeptAsAsked,
            _ => Fate::Removed,
        };
        // Whoever comes second waits for the first.
        let mut outside = self.lock_outside();
        if let Some(outside) = outside.take() {
            undo_outside(&*outside, fate);
        }
        drop(outside);
        let mut all = self.lock();
        if fate != Fate::Removed {
            explain(&all, fate);
        }
        while let Some(mut taken) = all.pop() {
            let outcome = if fate == Fate::Removed { taken.remove(true) } else { taken.release() };
            if let Err(error) = outcome {
                report::error(&error);
            }
        }
    }

    fn lock_outside(&self) -> MutexGuard<'_, Option<Arc<dyn Outside>>> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Claimed>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claimed {
    fn new(purpose: Purpose, path: &Path) -> Self {
        let path = path.to_owned();
        Self { purpose, path, made: Vec::new(), claim: None, above: None, is_resumed: false }
    }

    /// Makes and claims a directory in one where another of ours is; false if there is none, or the directory is there.
    ///
    /// Nobody else can have claimed the one above since ours is in it, nor any above that: a directory is claimed when
    /// nothing is in it. So there is nothing to be looked for there again, nor in what is made here, be there thousands
    /// of tablespaces beside each other.
    fn make_beside(&mut self, others: &[Self], mode: u32) -> Result<bool> {
        let (Some(above), Some(_)) = (self.path.parent(), self.path.file_name()) else { return Ok(false) };
        let above = id_of(if above.as_os_str().is_empty() { Path::new(".") } else { above });
        // The last one is there as a rule.
        let is_ours = |other: &Self| other.above == above && other.claim.is_some();
        if above.is_none() || !others.iter().rev().any(is_ours) {
            return Ok(false);
        }
        // What is wrong, if it is not there already, is seen on the long way.
        let Ok(place) = Place::make(&self.path, mode).map(Arc::new) else { return Ok(false) };
        self.made.push(Arc::clone(&place));
        self.above = above;
        self.claim = Some(Claim::take_made(place)?);
        Ok(true)
    }

    fn release(&mut self) -> Result<()> {
        let Some(claim) = &mut self.claim else { return Ok(()) };
        if self.purpose == Purpose::Data && claim.is_ours() {
            // Nothing of it is left on the server.
            remove_journal(&self.path)?;
        }
        claim.release()
    }

    fn remove(&mut self, says: bool) -> Result<()> {
        let what = self.purpose.name();
        let is_own = self.made.last().is_some_and(|made| made.path() == self.path);
        if let Some(claim) = &mut self.claim {
            claim.check().map_err(|error| error.with_detail("What is there now is left alone."))?;
            let contents = if is_own { "" } else { "contents of " };
            if says {
                report::info(format_args!("removing {contents}{what} \"{}\"", self.path.display()));
            }
            empty(claim).map_err(|error| {
                Error::local(format!(
                    "failed to remove {contents}{what}: {}",
                    crate::error::os_message(&error)
                ))
            })?;
        }
        for made in self.made.iter().rev() {
            // Somebody else may have put something there, or another directory.
            if !made.is_there() || fs::remove_dir(made.path()).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn undo_outside(outside: &dyn Outside, fate: Fate) {
    let shown = outside.shown();
    let outcome = match fate {
        Fate::Removed => {
            report::info(format_args!("removing objects below \"{shown}\""));
            outside.remove()
        }
        Fate::KeptAsAsked => {
            report::info(format_args!("objects below \"{shown}\" not removed at user's request"));
            outside.leave()
        }
        Fate::KeptDamaged => {
            report::info(format_args!("objects below \"{shown}\" not removed, without an index"));
            outside.leave()
        }
    };
    if let Err(error) = outcome {
        report::error(&error.with_hint(format!(
            "Remove what is left there: {} --remove-leftovers -D {shown}",
            report::program()
        )));
    }
}

/// Removes what a backup could be gone on with.
pub fn remove_journal(directory: &Path) -> Result<()> {
    let path = directory.join(JOURNAL_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove file", &path, &error)),
        _ => Ok(()),
    }
}

/// Empties a directory although files may still be made there: by threads that have not heard of the end
/// yet, and by NFS, in place of removed files that are open.
fn empty(claim: &mut Claim) -> io::Result<()> {
    for _ in 1..EMPTYING_TRIES {
        match claim.empty() {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(EMPTYING_PAUSE);
            }
            result => return result,
        }
    }
    claim.empty()
}

/// Fails if this directory, by whatever name, was taken for something else.
fn check_distinct(path: &Path, others: &[Claimed]) -> Result<()> {
    let Ok(place) = Place::open(path) else { return Ok(()) };
    if !others.iter().filter_map(|taken| taken.claim.as_ref()).any(|claim| claim.place().is(&place)) {
        return Ok(());
    }
    Err(Error::local(format!("directory \"{}\" cannot be used for two purposes", path.display()))
        .with_hint("Use --tablespace-mapping to give each tablespace a place of its own."))
}

fn open(path: &Path) -> Result<Arc<Place>> {
    Place::open(path).map(Arc::new).map_err(|error| Error::io("access directory", path, &error))
}

fn explain(all: &[Claimed], fate: Fate) {
    let ours = || all.iter().filter(|taken| taken.claim.is_some());
    for taken in ours() {
        let path = taken.path.display();
        match (taken.purpose, fate) {
            (Purpose::Data, Fate::KeptAsAsked) => {
                report::info(format!("data directory \"{path}\" not removed at user's request"));
            }
            (Purpose::Wal, Fate::KeptAsAsked) => {
                report::info(format!("WAL directory \"{path}\" not removed at user's request"));
            }
            _ => {}
        }
    }
    if fate == Fate::KeptAsAsked && ours().any(|taken| taken.purpose == Purpose::Tablespace) {
        report::info("changes to tablespace directories will not be undone");
    }
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "data directory",
            Self::Wal => "WAL directory",
            Self::Tablespace => "tablespace directory",
        }
    }
}

/// Makes a directory with exactly this mode, whatever the umask.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::claim::CLAIM_FILE;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn made_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("a/b/data");
        let cleanup = Cleanup::default();
        cleanup.claim(Purpose::Data, &target, 0o750).unwrap();
        assert_eq!(mode(&target), 0o750);
        assert_eq!(cleanup.made().len(), 3);
        // One in the way of the other, which goes first.
        cleanup.claim(Purpose::Wal, &place.path().join("a/wal"), 0o750).unwrap();
        fs::create_dir(target.join("base")).unwrap();
        fs::write(target.join("base/1"), "x").unwrap();
        cleanup.undo(false);
        assert!(!place.path().join("a").exists());
        assert!(place.path().exists());
    }

    #[test]
    fn emptied_but_kept_if_it_was_there() {
        let place = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let cleanup = Cleanup::default();
        cleanup.claim(Purpose::Tablespace, place.path(), 0o700).unwrap();
        fs::write(place.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), place.path().join("link")).unwrap();
        cleanup.undo(false);
        assert!(place.path().exists());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn left_without_the_claim_if_asked_or_damaged_or_complete() {
        for (no_clean, end) in [
            (true, (|cleanup| cleanup.undo(false)) as fn(&Cleanup)),
            (false, |cleanup| cleanup.undo(true)),
            (false, |cleanup| cleanup.finish(true).unwrap()),
        ] {
            let place = tempfile::tempdir().unwrap();
            let target = place.path().join("data");
            let cleanup = Cleanup::new(no_clean);
            cleanup.claim(Purpose::Data, &target, 0o700).unwrap();
            assert!(target.join(CLAIM_FILE).exists());
            end(&cleanup);
            assert!(target.exists() && !target.join(CLAIM_FILE).exists());
            // Whatever comes after that.
            cleanup.undo(false);
            assert!(target.exists());
        }
    }

    #[test]
    fn what_is_not_empty_is_refused_and_left_alone() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(".hidden"), "x").unwrap();
        let cleanup = Cleanup::default();
        let error = cleanup.claim(Purpose::Data, place.path(), 0o700).unwrap_err();
        assert_eq!(
            error.message(),
            format!("directory \"{}\" exists but is not empty", place.path().display())
        );
        cleanup.undo(false);
        assert!(place.path().join(".hidden").exists());
        let file = place.path().join(".hidden");
        let error = cleanup.claim(Purpose::Data, &file, 0o700).unwrap_err();
        assert!(error.message().starts_with("could not access directory"), "{error}");
    }

    #[test]
    fn anothers_is_refused_and_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("data");
        let (first, second) = (Cleanup::default(), Cleanup::default());
        first.claim(Purpose::Data, &target, 0o700).unwrap();
        fs::write(target.join("file"), "x").unwrap();
        for path in [&target, &target.join("below/it")] {
            let error = second.claim(Purpose::Data, path, 0o700).unwrap_err();
            assert_eq!(
                error.message(),
                format!("directory \"{}\" is in use by another backup", target.display())
            );
        }
        second.undo(false);
        assert!(target.join("file").exists() && !target.join("below").exists());
        first.check().unwrap();
    }

    #[test]
    fn many_beside_each_other() {
        let place = tempfile::tempdir().unwrap();
        let spaces = place.path().join("spaces");
        let (first, second) = (Cleanup::default(), Cleanup::default());
        let claim = |cleanup: &Cleanup, path: &Path| cleanup.claim(Purpose::Tablespace, path, 0o750);
        for number in 0..5 {
            let path = spaces.join(number.to_string());
            claim(&first, &path).unwrap();
            assert!(path.join(CLAIM_FILE).exists());
            assert_eq!(mode(&path), 0o750);
        }
        // One of them again, or by another name, and what is another's, not empty, no directory.
        for name in ["1", "../spaces/2", "3/."] {
            let error = claim(&first, &spaces.join(name)).unwrap_err();
            assert!(error.message().ends_with("cannot be used for two purposes"), "{error}");
        }
        claim(&second, &spaces.join("second")).unwrap();
        let error = claim(&first, &spaces.join("second")).unwrap_err();
        assert!(error.message().ends_with("is in use by another backup"), "{error}");
        fs::create_dir(spaces.join("there")).unwrap();
        fs::write(spaces.join("there/file"), "x").unwrap();
        let error = claim(&first, &spaces.join("there")).unwrap_err();
        assert!(error.message().ends_with("exists but is not empty"), "{error}");
        let error = claim(&first, &spaces.join("there/file")).unwrap_err();
        assert!(error.message().starts_with("could not access directory"), "{error}");
        // Nor can the one that they are in be had.
        let error = claim(&second, &spaces).unwrap_err();
        assert!(error.message().ends_with("exists but is not empty"), "{error}");
        // One that is there and empty is taken as before.
        fs::create_dir(spaces.join("empty")).unwrap();
        claim(&first, &spaces.join("empty")).unwrap();
        // In another's directory nothing is made, and what was known of a place goes with it.
        let other = place.path().join("other");
        claim(&first, &other.join("1")).unwrap();
        first.remove_within(&other);
        assert!(!other.exists());
        claim(&second, &other).unwrap();
        let error = claim(&first, &other.join("2")).unwrap_err();
        assert!(error.message().ends_with("other\" is in use by another backup"), "{error}");
        second.undo(false);
        first.undo(false);
        let mut left: Vec<_> =
            fs::read_dir(&spaces).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["empty", "there"]);
    }

    #[test]
    fn one_directory_by_two_names() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("data");
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let cleanup = Cleanup::default();
        cleanup.claim(Purpose::Data, &target, 0o700).unwrap();
        for path in [&target, &link] {
            let error = cleanup.claim(Purpose::Wal, path, 0o700).unwrap_err();
            assert_eq!(
                error.message(),
                format!("directory \"{}\" cannot be used for two purposes", path.display())
            );
        }
        // One in the other is another's directory, but this backup's.
        cleanup.claim(Purpose::Wal, &link.join("wal"), 0o700).unwrap();
        cleanup.undo(false);
        assert!(!target.exists());
    }

    #[test]
    fn what_somebody_has_replaced_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("data");
        let cleanup = Cleanup::default();
        cleanup.claim(Purpose::Data, &target, 0o700).unwrap();
        fs::write(target.join("file"), "x").unwrap();
        fs::rename(&target, place.path().join("old")).unwrap();
        fs::create_dir(&target).unwrap();
        assert!(cleanup.check().unwrap_err().message().contains("was replaced or taken over"));
        assert!(cleanup.finish(false).is_err());
        cleanup.undo(false);
        assert!(target.exists() && place.path().join("old/file").exists());
    }
}
