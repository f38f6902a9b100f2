//! Going on with a backup whose process has gone: what it has left in the target is held against what it has noted, and
//! the server has the backup still.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use protocol::{BackupPath, ChecksumAlgorithm, SqlState};

use super::Backup;
use super::lease::Held;
use super::start::{self, Start};
use crate::abort::panicked;
use crate::error::{Error, Result};
use crate::fetch::transfer::{SharedManifest, manifest_error};
use crate::output::Output;
use crate::output::journal::{Entry, Identity, Record};
use crate::report;
use crate::server::connection::Session;

/// What is there of a backup that is gone on with.
#[derive(Debug)]
pub(super) struct Resumed {
    /// Files that were read, and are right.
    pub(super) files: HashMap<BackupPath, Entry>,
    /// How many were not.
    wrong: usize,
    /// Whether these were all.
    is_complete: bool,
}

impl Resumed {
    /// Whether no file is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.is_complete && self.wrong == 0
    }

    /// An error of the list.
    pub(super) fn explain(&self, error: Error, target: &Path) -> Error {
        if !self.is_complete || !error.is_server(SqlState::UNDEFINED_OBJECT) {
            return error;
        }
        Error::local(format!(
            "files in directory \"{}\" are not as they were received, and cannot be fetched again: {}",
            target.display(),
            self.wrong
        ))
        .with_detail("The server has stopped the backup already. They had not got to disk when their host went down, or were changed since.")
        .with_hint("Begin a new backup.")
    }
}

impl Backup<'_> {
    /// What is noted of the backup, for another process to go on with.
    pub(super) fn identity(start: &Start, algorithm: ChecksumAlgorithm) -> Identity {
        Identity {
            id: start.id,
            system: start.system,
            timeline: start.timeline,
            start: start.position,
            algorithm,
        }
    }

    /// From now on the backup can be gone on with, if this process does not bring it to its end.
    pub(super) fn allow_suspension(&self) {
        let Some(held) = self.held.get() else { return };
        self.cleanup.allow_suspension(format!(
            "To go on with it, run the same command with --resume within {} seconds. To give it up, run SELECT \
             parallel_backup.cancel_backup('{}') on the server, and remove everything in directory \"{}\".",
            held.lease().as_secs(),
            held.id(),
            self.options.target.display()
        ));
    }

    /// Attaches to the backup that was begun. Nothing here is touched before that has succeeded.
    pub(super) fn start_again(
        &self,
        coordinator: &mut Session,
        record: &Record,
        system: u64,
        algorithm: ChecksumAlgorithm,
    ) -> Result<Start> {
        let Identity { id, system: begun, algorithm: first, .. } = record.identity;
        if system != begun {
            // It is not looked for here: that it does not exist would be no reason to remove anything.
            return Err(Error::local(format!(
                "the backup in directory \"{}\" was begun of another cluster",
                self.options.target.display()
            ))
            .with_detail(format!("Its system identifier is {begun}, that of this server {system}."))
            .with_hint("Run the same command as the first time, with --resume."));
        }
        if algorithm != first {
            return Err(Error::local(format!(
                "the backup in directory \"{}\" was begun with checksums of algorithm {}",
                self.options.target.display(),
                first.name()
            ))
            .with_hint("Run the same command as the first time, with --resume."));
        }
        self.say(format_args!("going on with backup {id}"));
        // If it fails nothing was touched: it can be tried again.
        let outcome = start::attach(coordinator, id);
        let (start, lease) = outcome.map_err(|error| self.explain_attach(error))?;
        if Self::identity(&start, algorithm) != record.identity {
            return Err(Error::local("the backup on the server is not the one that was begun"));
        }
        let _ = self.held.set(Held::new(&start, lease.unwrap_or_default(), self.options.lease));
        self.learn(|facts| facts.start = Some((start.position, start.timeline)));
        // Those that went with the process: the server may not have noticed yet.
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(&record.processes);
        self.allow_suspension();
        Ok(start)
    }

    fn explain_attach(&self, error: Error) -> Error {
        let target = self.options.target.display();
        if error.is_server(SqlState::UNDEFINED_OBJECT) {
            return Error::local(format!(
                "the backup that was begun in directory \"{target}\" does not exist on the server any more"
            ))
            .with_detail(error.message().to_owned())
            .with_hint(
                "It cannot be gone on with. Remove everything in the directory, and begin a new backup without \
                 --resume.",
            );
        }
        error.context("could not go on with the backup on the server")
    }

    /// Reads all that is recorded, over as many threads as there are connections.
    pub(super) fn look_at_recorded(
        &self,
        coordinator: &mut Session,
        output: &dyn Output,
        record: Record,
        manifest: Option<&SharedManifest>,
    ) -> Result<Resumed> {
        let Record { identity: Identity { algorithm, .. }, files, is_complete, .. } = record;
        let entries: Vec<(&BackupPath, &Entry)> = files.iter().collect();
        let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let look = || -> Result<()> {
            while let Some((path, entry)) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.abort.check()?;
                if !output.is_there(path, entry, algorithm)? {
                    output.journal().map_or(Ok(()), |journal| journal.forget(path))?;
                    wrong.lock().unwrap_or_else(PoisonError::into_inner).push((*path).clone());
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.options.jobs).map(|_| scope.spawn(look)).collect();
            let attended = self
                .attend(coordinator, || threads.iter().all(std::thread::ScopedJoinHandle::is_finished))
                .inspect_err(|error| self.abort.fail(error.clone()));
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(panicked())))
                .and(attended)
        })?;
        self.abort.check()?;
        let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut files = files;
        wrong.iter().for_each(|path| {
            files.remove(path);
        });
        if !wrong.is_empty() {
            report::warning(format_args!(
                "files that are not as they were received, and are fetched again: {}",
                wrong.len()
            ));
        }
        self.say(format_args!("files that are there already: {}", files.len()));
        if let Some(manifest) = manifest {
            let mut manifest = manifest.lock().unwrap_or_else(PoisonError::into_inner);
            for (path, Entry { size, attributes, checksum }) in &files {
                manifest
                    .file(path.as_bytes(), *size, attributes.mtime, checksum)
                    .map_err(|error| manifest_error(&error))?;
            }
        }
        Ok(Resumed { files, wrong: wrong.len(), is_complete })
    }
}
