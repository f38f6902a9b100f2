//! A data directory from a backup in archives: the order of things, and what happens when one fails.
//!
//! - `options`: the command line;
//! - `source` and `layout`: where a backup is, and what lies there; `remote`: in an object store;
//! - `archive`: members out of archives; `head`: the first of them; `manifest`: what all of them must be;
//! - `extract`: files to their places; `member`: all of a backup, by several threads; `wal`: what recovery needs;
//! - `places`: where several backups are, and what goes on from what; `location`: what the user calls them; `listing`: the
//!   commands `list` and `prune`;
//! - `chain`: a full backup and its increments, which pg_combinebackup makes one of.

mod archive;
mod chain;
mod extract;
mod head;
mod layout;
pub mod listing;
mod location;
pub mod manifest;
mod member;
pub mod options;
mod places;
#[cfg(feature = "object-store")]
mod remote;
mod source;
mod wal;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use self::location::{source, split};
use self::member::{Backup, Places, Way};
use self::options::Options;
use crate::abort::{Abort, panicked};
use crate::error::{Error, Kind, Result};
use crate::options::Sync;
use crate::output::claim::check_free;
use crate::output::cleanup::Cleanup;
use crate::report;
use crate::report::progress::{self, Counters, Outcome, Style};

/// Reads all of an archive, for `fuzz/`.
#[cfg(fuzzing)]
pub fn read_archive(compression: u8, stored: std::io::Cursor<Vec<u8>>) {
    use layout::Compression;
    let compressions = [Compression::None, Compression::Gzip, Compression::Lz4, Compression::Zstd];
    let compression = compressions[usize::from(compression) % compressions.len()];
    let _ = archive::read(Box::new(stored), compression, "p/", "archive", |member, bytes| {
        assert!(member.path.as_bytes().starts_with(b"p/"));
        // Little can become much.
        let mut content = std::io::Read::take(bytes, 1 << 20);
        let _ = std::io::copy(&mut content, &mut std::io::sink());
        Ok(archive::Next::More)
    });
}

/// Restores a backup. All errors but the one returned have been reported.
pub fn run(options: &Options, abort: &Arc<Abort>, cleanup: &Cleanup) -> Result<()> {
    let backups = open(options, abort)?;
    abort.expect_cleanup();
    let counters = Counters::default();
    for (files, bytes) in backups.iter().filter_map(Backup::totals) {
        counters.expect(files, bytes);
    }
    let style = Style { progress: options.progress, verbose: options.verbose, stdout_is_taken: false };
    progress::shown(style, &counters, || {
        let restored =
            catch_unwind(AssertUnwindSafe(|| restore(options, &backups, &counters, abort, cleanup)))
                .unwrap_or_else(|_| Err(panicked()));
        counters.end(if restored.is_ok() { Outcome::Complete } else { Outcome::Failed });
        let Err(error) = restored else { return Ok(()) };
        let error = match error.kind() {
            Kind::Aborted => abort.cause().unwrap_or(error),
            _ => error,
        };
        // First the reason, then what is done about it.
        abort.report(&error);
        cleanup.end(&error);
        Err(Error::aborted())
    })
}

/// Everything that can be found wrong before anything is written.
fn open(options: &Options, abort: &Arc<Abort>) -> Result<Vec<Backup>> {
    for directory in std::iter::once(&options.target).chain(&options.waldir) {
        check_free(directory, std::iter::empty())?;
    }
    let mut backups: Vec<Backup> = options
        .backups
        .iter()
        .map(|place| Backup::open(source(place, abort)?, way(options)))
        .collect::<Result<_>>()?;
    let is_increment =
        |backup: &Backup| backup.index.as_ref().is_some_and(|index| index.incremental.is_some());
    match (&options.backups[..], &backups[..]) {
        ([place], [backup]) if is_increment(backup) => backups = whole_chain(place, options, abort)?,
        _ => {}
    }
    check_chain(&backups)?;
    if let Some(last) = backups.last() {
        for old in options.tablespaces.unmatched(last.tablespaces().map(|(_, place)| place)) {
            report::warning(format_args!("the backup has no tablespace of directory \"{}\"", old.display()));
        }
        for place in tablespaces(options, last).values() {
            check_free(place, std::iter::empty())?;
        }
    }
    Ok(backups)
}

/// What an increment in volumes needs, from where it is itself.
fn whole_chain(backup: &OsStr, options: &Options, abort: &Arc<Abort>) -> Result<Vec<Backup>> {
    let (place, name) = split(backup, abort)?;
    let all = places::list(&*place)?;
    let chain = places::chain(&all, &name)?;
    chain.iter().map(|name| Backup::open(place.source(name)?, way(options))).collect()
}

fn way(options: &Options) -> Way {
    Way {
        jobs: options.jobs,
        sync: options.sync,
        verbose: options.verbose,
        may_lack_manifest: options.may_lack_manifest,
    }
}

/// Where the tablespaces of a backup are to be in the end.
fn tablespaces(options: &Options, backup: &Backup) -> BTreeMap<u32, PathBuf> {
    backup.tablespaces().map(|(oid, place)| (oid, options.tablespaces.locate(place))).collect()
}

/// Each backup must go on from the one before; only then have they all that there was.
fn check_chain(backups: &[Backup]) -> Result<()> {
    let mut before: Option<&Backup> = None;
    for backup in backups {
        match (before, backup.head.prior) {
            (None, Some(_)) => {
                return Err(Error::local(format!(
                    "backup at \"{}\" is an incremental backup",
                    backup.name()
                ))
                .with_hint("Name the backups that it needs before it, the full one first."));
            }
            (Some(_), None) => {
                return Err(Error::local(format!(
                    "backup at \"{}\" is a full backup, but only the first backup should be a full backup",
                    backup.name()
                )));
            }
            (Some(before), Some(prior)) if before.head.start != prior => {
                return Err(Error::local(format!(
                    "backup at \"{}\" starts at LSN {}, but expected {prior}",
                    before.name(),
                    before.head.start
                ))
                .with_detail(format!("The backup at \"{}\" goes on from another.", backup.name())));
            }
            _ => {}
        }
        before = Some(backup);
    }
    Ok(())
}

fn restore(
    options: &Options,
    backups: &[Backup],
    counters: &Counters,
    abort: &Abort,
    cleanup: &Cleanup,
) -> Result<()> {
    let [backup] = backups else { return chain::restore(options, backups, counters, abort, cleanup) };
    let places = Places {
        root: options.target.clone(),
        waldir: options.waldir.clone(),
        tablespaces: tablespaces(options, backup),
    };
    backup.restore(&places, way(options), counters, abort, cleanup)?;
    abort.check()?;
    cleanup.finish(options.sync != Sync::None)
}
