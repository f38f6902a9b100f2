//! --dry-run: everything that comes before START_BACKUP, and what would come after it in words. Nothing is
//! changed, here or on the server.

use std::io::Write;
use std::sync::Arc;

use super::connections::{Connections, least_wal};
use super::estimate::estimate;
use super::prior_manifest;
use crate::abort::Abort;
use crate::error::{Error, Kind, Result};
use crate::options::{Options, Slot, Wal};
use crate::output::space::{Need, Sizes, check, check_writable, free, megabytes};
use crate::output::{Output, Tablespace, claim};
use crate::report;
use crate::server::connection::{Route, Session, bytes, number};
use crate::wal::stream::quoted_identifier;

/// Says what would happen. Everything that would go wrong has been reported where it fails.
pub(super) fn dry_run(
    options: &Options,
    abort: &Arc<Abort>,
    connections: Connections,
    output: &dyn Output,
) -> Result<()> {
    let Connections { mut coordinator, mut wal, system, .. } = connections;
    let mut trial = Trial { lines: Vec::new(), problems: Vec::new() };
    let version = coordinator.show("server_version")?;
    trial.say(format!(
        "server: PostgreSQL {version}, system identifier {}, by {}",
        system.identifier,
        coordinator.route().name()
    ));
    trial.say(format!(
        "connections: {} for files, {} for write-ahead log",
        options.jobs,
        usize::from(wal.is_some())
    ));
    let level = coordinator.show("wal_level")?;
    if level == "minimal" {
        trial.problem(
            Error::local("WAL level not sufficient for making an online backup")
                .with_hint("Set wal_level to \"replica\" or \"logical\" on the server."),
        );
    }
    if let Some(session) = &mut wal {
        trial.slot(session, &options.wal)?;
    }
    let tablespaces = match coordinator.route() {
        Route::Procedures => Some(locations(&mut coordinator)?),
        // Only START_BACKUP says where they are.
        Route::Replication => None,
    };
    if let Some(manifest) = &options.incremental {
        match prior_manifest::upload(&mut coordinator, manifest, abort) {
            Ok(_) => trial.say("incremental: the server has taken the prior backup's manifest".to_owned()),
            Err(error) if error.kind() == Kind::Connection => return Err(error),
            Err(error) => trial.problem(error),
        }
    }
    let sizes = if options.estimate && options.incremental.is_none() {
        let wal = least_wal(options, &mut coordinator)?;
        Some(estimate(&mut coordinator, abort, wal)?)
    } else {
        None
    };
    if let Some(sizes) = &sizes {
        trial.say(format!("files: {}, {}", sizes.files, megabytes(sizes.total())));
    }
    let needs = output.needs(&sizes.clone().unwrap_or_default(), tablespaces.as_deref());
    trial.directories(&needs, sizes.is_some());
    if let (Some(sizes), None) = (&sizes, &tablespaces) {
        trial.unknown_tablespaces(sizes, output.has_tablespaces_apart());
    }
    let count = tablespaces.map(|tablespaces| tablespaces.len());
    let count = count.or(sizes.map(|sizes| sizes.tablespaces.len())).unwrap_or_default();
    if let Err(error) = output.check_tablespaces(count) {
        trial.problem(error);
    }
    trial.end()
}

struct Trial {
    lines: Vec<String>,
    problems: Vec<Error>,
}

impl Trial {
    fn say(&mut self, line: String) {
        self.lines.push(line);
    }

    fn problem(&mut self, error: Error) {
        self.problems.push(error);
    }

    /// The slot that the WAL stream would use.
    fn slot(&mut self, session: &mut Session, wal: &Wal) -> Result<()> {
        let Wal::Stream { slot, .. } = wal else { return Ok(()) };
        let makes_one = match slot {
            Slot::None => return Ok(()),
            Slot::Temporary => {
                self.say("replication slot: a temporary one would be created".to_owned());
                true
            }
            Slot::Named { name, create } => {
                let answer = session.query(&format!("READ_REPLICATION_SLOT {}", quoted_identifier(name)))?;
                let exists = answer.value(0, 0).is_some();
                match (exists, *create) {
                    (true, true) => {
                        self.problem(Error::local(format!("replication slot \"{name}\" already exists")));
                    }
                    (false, false) => {
                        self.problem(Error::local(format!("replication slot \"{name}\" does not exist")));
                    }
                    (true, false) => self.say(format!("replication slot: \"{name}\" would be used")),
                    (false, true) => self.say(format!("replication slot: \"{name}\" would be created")),
                }
                *create
            }
        };
        if makes_one && session.show("max_replication_slots")? == "0" {
            self.problem(
                Error::local("replication slots can only be used if \"max_replication_slots\" > 0")
                    .with_hint("Set max_replication_slots on the server, or use --no-slot."),
            );
        }
        Ok(())
    }

    fn directories(&mut self, needs: &[Need], with_sizes: bool) {
        for need in needs {
            let directory = need.directory.display();
            let exists = match claim::check_free(&need.directory, std::iter::empty()) {
                Ok(exists) => exists,
                Err(error) => {
                    self.problem(error);
                    continue;
                }
            };
            if let Err(error) = check_writable(&need.directory) {
                self.problem(error);
            }
            let made = if exists { "is empty" } else { "would be created" };
            let mut line = format!("directory \"{directory}\": {made}");
            if let Some(bytes) = need.bytes.filter(|_| with_sizes) {
                line += &format!(", needs {}", megabytes(bytes));
            }
            if let Some(free) = free(&need.directory) {
                line += &format!(", {} are free", megabytes(free));
            }
            self.say(line);
        }
        if let Err(error) = check(needs) {
            self.problem(error);
        }
    }

    fn unknown_tablespaces(&mut self, sizes: &Sizes, are_apart: bool) {
        if !are_apart {
            return;
        }
        for (oid, bytes) in &sizes.tablespaces {
            self.say(format!(
                "tablespace {oid}: needs {}, in a directory that is known once the backup has started",
                megabytes(*bytes)
            ));
        }
    }

    fn end(self) -> Result<()> {
        let verdict =
            if self.problems.is_empty() { "the backup can be made" } else { "the backup would fail" };
        let mut text = self.lines.join("\n");
        text.push_str(&format!("\ndry run: {verdict}, nothing was changed\n"));
        // A reader that has gone away has read enough: the exit code says the rest.
        let _ = std::io::stdout().write_all(text.as_bytes());
        self.problems.iter().for_each(report::error);
        if self.problems.is_empty() { Ok(()) } else { Err(Error::aborted()) }
    }
}

/// The tablespaces of a server that can be asked.
fn locations(session: &mut Session) -> Result<Vec<Tablespace>> {
    let answer = session.rows(
        "SELECT t.oid, pg_catalog.pg_tablespace_location(t.oid) FROM pg_catalog.pg_tablespace t \
         WHERE t.spcname NOT IN ('pg_default', 'pg_global')",
    )?;
    (0..answer.rows())
        .map(|row| {
            Ok(Tablespace { oid: number(&answer, row, 0)?, location: bytes(&answer, row, 1)?.to_vec() })
        })
        .collect()
}
