//! START_BACKUP.

use protocol::command::StartBackup;
use protocol::{BackupId, Command, Lsn, PROTOCOL_VERSION, SqlState, reply};

use super::lease::Held;
use super::{Backup, lsn};
use crate::catalog::index::{Digest, Prior};
use crate::error::{Error, Result};
use crate::options::{Lease, Progress, Wal};
use crate::output::Tablespace;
use crate::report;
use crate::report::progress::Phase;
use crate::server::connection::{Session, bytes, number};
use crate::server::reply::Reply;
use crate::server::result::QueryResult;
use crate::wal::SegmentSize;

/// What START_BACKUP said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) position: Lsn,
    pub(super) timeline: u32,
    pub(super) id: BackupId,
    pub(super) system: u64,
    pub(super) segment_size: SegmentSize,
    /// Whether the cluster has page checksums.
    pub(super) data_checksums: bool,
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) label_file: Vec<u8>,
    /// None where no tablespace is a link.
    pub(super) tablespace_map: Option<Vec<u8>>,
}

impl Backup<'_> {
    /// With this lease, if it can be had. A name is given by whoever might lose the answer.
    pub(super) fn start(
        &self,
        coordinator: &mut Session,
        lease: Lease,
        id: Option<BackupId>,
    ) -> Result<Start> {
        self.counters.enter(Phase::Checkpoint);
        if self.options.verbose {
            self.say("initiating base backup, waiting for checkpoint to complete");
        } else if self.options.progress == Some(Progress::Text) {
            report::print("waiting for checkpoint");
        }
        let command = Command::StartBackup(StartBackup {
            label: self.options.label.clone(),
            checkpoint: self.options.checkpoint,
            // The list says it all, with no walk of its own.
            progress: false,
            verify_checksums: self.options.verify_checksums,
            max_rate: self.options.max_rate,
            incremental: self.options.incremental.is_some(),
            lease: lease.seconds(),
            light_lease: lease == Lease::Light,
            new_backup_id: id,
        });
        coordinator.send_command(&command)?;
        let mut reply = Reply::new(coordinator);
        let first = reply
            .result_set(coordinator, reply::START)
            .map_err(|error| explain_start(error, self.options.incremental.is_some()))?;
        self.say("checkpoint completed");
        let (start, granted) = read(coordinator, reply, &first)?;
        self.started(&start, granted, lease);
        Ok(start)
    }

    /// The backup has started, and the server keeps it for so long.
    pub(super) fn started(&self, start: &Start, granted: Option<u32>, lease: Lease) {
        if self.options.wal != Wal::None {
            self.say(format_args!(
                "write-ahead log start point: {} on timeline {}",
                start.position, start.timeline
            ));
        }
        let none = "the server grants no leases (pg_parallel_backup.max_lease): a connection that is lost ends the backup";
        match (granted, lease) {
            (Some(seconds @ 1..), _) => {
                self.say(format_args!("backup {} has a lease of {seconds} s", start.id));
                // Once: START_BACKUP is sent again only if the first one has said nothing.
                let _ = self.held.set(Held::new(start, seconds, lease));
                self.prepare_farewell();
            }
            (_, Lease::Seconds(_)) => report::warning(none),
            (_, Lease::Light) => self.say(none),
            (_, Lease::Never) => {}
        }
        self.learn(|facts| facts.start = Some((start.position, start.timeline)));
    }
}

/// START_BACKUP of a backup that is there: this session coordinates it from now on. What it is, and its lease in
/// seconds.
pub(super) fn attach(session: &mut Session, id: BackupId) -> Result<(Start, Option<u32>)> {
    session.send_command(&Command::Attach(id))?;
    let mut reply = Reply::new(session);
    let first = reply.result_set(session, reply::START)?;
    read(session, reply, &first)
}

/// What comes after the first result set, and all of it.
fn read(session: &mut Session, mut reply: Reply, first: &QueryResult) -> Result<(Start, Option<u32>)> {
    let version: u32 = number(first, 0, 3)?;
    if version != PROTOCOL_VERSION {
        return Err(Error::local(format!(
            "server speaks version {version} of the parallel backup protocol, this program version \
             {PROTOCOL_VERSION}"
        )));
    }
    let lease = reply::START.len();
    let lease = if first.columns() > lease && first.column_name(lease) == reply::LEASE.name {
        Some(number(first, 0, lease)?)
    } else {
        None
    };
    let doing = |error: Error| error.context("could not get backup header");
    let second = reply.result_set(session, reply::TABLESPACES).map_err(doing)?;
    let mut tablespaces = Vec::new();
    for row in 0..second.rows() {
        if second.value(row, 0).is_some() {
            tablespaces.push(Tablespace {
                oid: number(&second, row, 0)?,
                location: bytes(&second, row, 1)?.to_vec(),
            });
        }
    }
    let third = reply.result_set(session, reply::LABELS).map_err(doing)?;
    let start = Start {
        position: lsn(first, 0, 0)?,
        timeline: number(first, 0, 1)?,
        id: number(first, 0, 2)?,
        system: number(first, 0, 4)?,
        segment_size: SegmentSize::new(number(first, 0, 5)?)?,
        data_checksums: number::<i32>(first, 0, 7)? != 0,
        tablespaces,
        label_file: bytes(&third, 0, 0)?.to_vec(),
        tablespace_map: third.value(0, 1).map(<[u8]>::to_vec),
    };
    session.finish().map_err(doing)?;
    Ok((start, lease))
}

/// The backup that an increment goes on from, as its label has it (`build_backup_content` in
/// PostgreSQL's `xlogbackup.c`).
pub(super) fn prior(label: &[u8], manifest_sha256: Digest) -> Result<Prior> {
    let label = String::from_utf8_lossy(label);
    let value = |name: &str| label.lines().find_map(|line| line.strip_prefix(name));
    let start = value("INCREMENTAL FROM LSN: ").and_then(|text| text.parse().ok());
    let timeline = value("INCREMENTAL FROM TLI: ").and_then(|text| text.parse().ok());
    match (start, timeline) {
        (Some(start), Some(timeline)) => Ok(Prior { start, timeline, manifest_sha256 }),
        _ => Err(Error::local("server sent a label that does not say what the increment goes on from")),
    }
}

/// What may be missing on a server that refuses START_BACKUP.
fn explain_start(error: Error, incremental: bool) -> Error {
    // A walsender without a database takes what it cannot parse for SQL, and refuses that.
    let unknown = [SqlState::SYNTAX_ERROR, SqlState::FEATURE_NOT_SUPPORTED];
    let error = if error.message().contains("HINT") {
        // The server knows better.
        error
    } else if error.is_server(SqlState::SYNTAX_ERROR) && error.message().contains("incremental") {
        error.with_hint(
            "The extension pg_parallel_backup on the server is older than 0.3.0, which has incremental backups.",
        )
    } else if unknown.iter().any(|state| error.is_server(*state)) {
        error.with_hint(
            "The server does not know the parallel backup commands: it must be built with the patch of \
             pg_parallel_backup, and load that library by shared_preload_libraries.",
        )
    } else if error.is_server(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) && !incremental {
        error.with_hint("Check that shared_preload_libraries on the server has pg_parallel_backup.")
    } else {
        error
    };
    error.context("could not initiate base backup")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn what_an_increment_goes_on_from() {
        let label = b"START WAL LOCATION: 0/4000028 (file 000000030000000000000004)\nLABEL: INCREMENTAL FROM LSN: 1/1\n\
            START TIMELINE: 3\nINCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 2\n";
        let prior = prior(label, [1; 32]).unwrap();
        assert_eq!((prior.start, prior.timeline), (Lsn(0x2000028), 2));
        assert!(super::prior(b"START TIMELINE: 3\n", [1; 32]).is_err());
    }

    #[test]
    fn hints_for_a_server_that_refuses() {
        let unknown = Error::new(Kind::Server(*b"42601"), "ERROR:  syntax error");
        assert!(explain_start(unknown, false).hint().unwrap().contains("patch"));
        let unloaded = Error::new(Kind::Server(*b"55000"), "ERROR:  not loaded");
        let error = explain_start(unloaded, false);
        assert!(error.hint().unwrap().contains("shared_preload_libraries"));
        assert_eq!(error.message(), "could not initiate base backup: ERROR:  not loaded");
        // What is missing of an increment is not the library.
        let summaries = Error::new(Kind::Server(*b"55000"), "ERROR:  WAL summaries are required");
        assert!(explain_start(summaries, true).hint().is_none());
        let old =
            Error::new(Kind::Server(*b"42601"), "ERROR:  unrecognized START_BACKUP option: \"incremental\"");
        assert!(explain_start(old, true).hint().unwrap().contains("0.3.0"));
        let patch = Error::new(Kind::Server(*b"0A000"), "ERROR:  the patch\nHINT:  Build");
        assert!(explain_start(patch, true).hint().is_none());
    }
}
