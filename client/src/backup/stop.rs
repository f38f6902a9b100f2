//! STOP_BACKUP, and what it returns.

use std::time::{Duration, Instant};

use protocol::command::StopBackup;
use protocol::{BackupId, Command, Lsn, SqlState, reply};

use super::{Backup, lsn};
use crate::error::{Error, Result};
use crate::manifest::WalRange;
use crate::options::Wal;
use crate::report;
use crate::server::connection::{Session, number, text};
use crate::server::reply::Reply;
use crate::server::result::QueryResult;

/// How long STOP_BACKUP is tried again while the server still ends transfers that we lost.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of `global/pg_control` (PG_CONTROL_FILE_SIZE, pg_control.h), in all versions that there are.
const CONTROL_FILE_SIZE: usize = 8192;

/// What STOP_BACKUP said.
pub(super) struct Stop {
    pub(super) position: Lsn,
    pub(super) timeline: u32,
    pub(super) control_file: Vec<u8>,
    pub(super) wal_ranges: Vec<WalRange>,
    pub(super) wal_files: Vec<String>,
    pub(super) totals: (u64, u64),
    pub(super) checksum_failures: u64,
}

impl Backup<'_> {
    pub(super) fn stop(&self, coordinator: &mut Session, id: BackupId, lost: &[u32]) -> Result<Stop> {
        let mut command = StopBackup {
            backup_id: Some(id),
            label: None,
            // Without WAL in the backup it is of use only once its WAL is in the archive.
            wait: self.options.wal == Wal::None && !self.options.discard,
            ..StopBackup::default()
        };
        let mut may_terminate = true;
        // A transfer that the server may not have ended yet would have STOP_BACKUP refused, and tried again.
        let released_too = lost.is_empty() && self.is_released_with_stop();
        let release = Command::Release(Some(id));
        let doing = |error: Error| error.context("backup failed");
        let began = Instant::now();
        let (first, mut reply) = loop {
            let stop = Command::StopBackup(command.clone());
            if released_too {
                coordinator.send_commands(&[&stop, &release])?;
            } else {
                coordinator.send_command(&stop)?;
            }
            let mut reply = Reply::new(coordinator);
            match reply.result_set(coordinator, reply::STOP) {
                // The server may not have noticed yet that a transfer has nobody to read it.
                Err(error)
                    if !lost.is_empty()
                        && error.is_server(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
                        && began.elapsed() < STOP_PATIENCE =>
                {
                    self.abort.check()?;
                    if may_terminate && command.terminate_transfers.is_empty() {
                        command.terminate_transfers.extend(lost);
                    } else {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
                // A server, or an extension, before 0.3.0: it finds that out by itself.
                Err(error)
                    if !command.terminate_transfers.is_empty()
                        && (error.is_server(SqlState::SYNTAX_ERROR)
                            || error.is_server(SqlState::UNDEFINED_FUNCTION)) =>
                {
                    may_terminate = false;
                    command.terminate_transfers.clear();
                }
                result => break (result.map_err(doing)?, reply),
            }
        };
        let second = reply.result_set(coordinator, reply::CONTROL_FILE).map_err(doing)?;
        let third = reply.result_set(coordinator, reply::WAL_RANGES).map_err(doing)?;
        let fourth = reply.result_set(coordinator, reply::WAL_FILES).map_err(doing)?;
        let fifth = reply.result_set(coordinator, reply::TOTALS).map_err(doing)?;
        let mut stop = Stop {
            position: lsn(&first, 0, 0)?,
            timeline: number(&first, 0, 1)?,
            control_file: protocol::id::from_hex(text(&second, 0, 0)?)
                .filter(|content| content.len() == CONTROL_FILE_SIZE)
                .ok_or_else(|| Error::local("server sent an invalid control file"))?,
            wal_ranges: (0..third.rows()).map(|row| wal_range(&third, row)).collect::<Result<_>>()?,
            wal_files: (0..fourth.rows())
                .map(|row| text(&fourth, row, 0).map(str::to_owned))
                .collect::<Result<_>>()?,
            totals: (number(&fifth, 0, 1)?, number(&fifth, 0, 2)?),
            checksum_failures: number(&fifth, 0, 3)?,
        };
        match coordinator.finish() {
            // All results are there: a copy of damaged pages is still a copy.
            Err(error) if error.is_server(SqlState::DATA_CORRUPTED) => {
                report::error(&error);
                stop.checksum_failures = stop.checksum_failures.max(1);
            }
            result => result.map_err(|error| error.context("final receive failed"))?,
        }
        // If not it is tried once more in the end, and said.
        if released_too && coordinator.finish().is_ok() {
            self.released();
        }
        Ok(stop)
    }
}

fn wal_range(answer: &QueryResult, row: usize) -> Result<WalRange> {
    Ok(WalRange { timeline: number(answer, row, 0)?, start: lsn(answer, row, 1)?, end: lsn(answer, row, 2)? })
}
