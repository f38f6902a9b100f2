//! All connections of a backup, made before it starts.

use std::sync::Arc;

use protocol::compression::WireCompression;
use protocol::features::Feature;

use super::{compression, recovery};
use crate::abort::Abort;
use crate::error::{Error, Kind, Result};
use crate::fetch::reconnect::{Reconnect, check_same};
use crate::options::{Lease, Options, Slot, Wal};
use crate::output::Modes;
use crate::report;
use crate::server::connection::{Connector, Route, Session, System};
use crate::server::route;
use crate::wal::SegmentSize;

/// First server version whose standbys synchronize slots, for which primary_conninfo names a
/// database.
const SLOT_SYNC_SINCE: i32 = 170_000;

/// All connections of a backup, made before it starts: a checkpoint is not paid for in vain.
pub(super) struct Connections {
    pub(super) coordinator: Session,
    pub(super) workers: Vec<Session>,
    pub(super) wal: Option<Session>,
    pub(super) reconnect: Reconnect,
    pub(super) system: System,
    pub(super) modes: Modes,
    pub(super) segment_size: u64,
    pub(super) recovery_settings: Option<Vec<u8>>,
    /// What all transfers ask for.
    pub(super) compression: WireCompression,
    /// What can be asked of this server.
    pub(super) lease: Lease,
}

impl Connections {
    pub(super) fn open(options: &Options, abort: &Arc<Abort>) -> Result<Self> {
        let mut connector = Connector::new(options.connection.clone(), Arc::clone(abort))?;
        let streaming = matches!(options.wal, Wal::Stream { .. });
        let mut coordinator = route::find(&mut connector, streaming)?;
        let route = coordinator.route();
        if options.verbose {
            report::info(match route {
                Route::Replication => "using replication commands",
                Route::Procedures => "using the SQL procedures of the extension over ordinary connections",
            });
        }
        let lease = match options.lease {
            Lease::Never => Lease::Never,
            lease if route::features(&mut coordinator)?.has(Feature::Lease) => lease,
            Lease::Seconds(_) => {
                return Err(Error::local("server does not support leases").with_hint(
                    "The extension pg_parallel_backup of the server is older than 0.3.0. Leave out --lease.",
                ));
            }
            Lease::Light => {
                if options.verbose {
                    report::info("server does not support leases: a connection that is lost ends the backup");
                }
                Lease::Never
            }
        };
        let modes = Modes::of_data_directory(&coordinator.show("data_directory_mode")?)?;
        let system = coordinator.identify_system()?;
        let compression = compression::of_server(options, &mut coordinator)?;
        let recovery_settings = options.write_recovery_conf.then(|| {
            let slot = match &options.wal {
                Wal::Stream { slot: Slot::Named { name, .. }, .. } => Some(name.as_str()),
                _ => None,
            };
            let database =
                connector.user_database().filter(|_| coordinator.server_version() >= SLOT_SYNC_SINCE);
            recovery::settings(&connector.user_options(), database.as_ref().map(|name| name.as_bytes()), slot)
        });
        let mut another = |system: &System, way: Route| -> Result<Session> {
            let explain = |error: Error| {
                // A WAL stream needs what the other connections could do without.
                let error = if way == route { error } else { route::explain_refusal(error) };
                if error.hint().is_some() { error } else { explain_limits(error, options.jobs, streaming) }
            };
            let mut session = route::connect(&mut connector, way).map_err(explain)?;
            check_same(&mut session, system)?;
            Ok(session)
        };
        let wal = if streaming { Some(another(&system, Route::Replication)?) } else { None };
        let workers = (1..options.jobs).map(|_| another(&system, route)).collect::<Result<Vec<_>>>()?;
        let segment_size = parse_size(&coordinator.show("wal_segment_size")?)?;
        let reconnect = Reconnect {
            connector,
            route,
            system: system.clone(),
            abort: Arc::clone(abort),
            waits_for_server: lease.is_asked_for(),
        };
        Ok(Self {
            coordinator,
            workers,
            wal,
            reconnect,
            system,
            modes,
            segment_size,
            recovery_settings,
            compression,
            lease,
        })
    }
}

/// `SHOW wal_segment_size`: a number and its unit.
fn parse_size(setting: &str) -> Result<u64> {
    let digits = setting.find(|c: char| !c.is_ascii_digit()).unwrap_or(setting.len());
    let unit = match &setting[digits..] {
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => 0u64,
    };
    match setting[..digits].parse::<u64>() {
        Ok(number) if unit > 0 => SegmentSize::new(number.saturating_mul(unit)).map(SegmentSize::bytes),
        _ => Err(Error::local("WAL segment size could not be parsed")),
    }
}

/// A connection after the first that cannot be made is most often one too many.
fn explain_limits(error: Error, jobs: usize, streaming: bool) -> Error {
    if error.kind() != Kind::Connection {
        return error;
    }
    let streams = usize::from(streaming);
    let needed = format!(
        "This backup needs {} connections: {jobs} for files{}.",
        jobs + streams,
        if streaming { " and 1 for write-ahead log" } else { "" }
    );
    // The setting's name stands in the message in every language.
    let limit = if error.message().contains("max_wal_senders") {
        "Increase max_wal_senders on the server, or use fewer jobs (-j)."
    } else {
        "Increase max_connections on the server, or use fewer jobs (-j), if no connection is left there, or \
         none for the role or the database."
    };
    error.with_hint(format!("{needed} {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_size_as_shown() {
        assert_eq!(parse_size("16MB").unwrap(), 16 << 20);
        assert_eq!(parse_size("1GB").unwrap(), 1 << 30);
        for setting in ["", "16", "16kB", "3MB", "2GB", "MB"] {
            assert!(parse_size(setting).is_err(), "{setting}");
        }
    }

    #[test]
    fn hints_for_what_is_missing_on_the_server() {
        let full = Error::connection(
            "FATAL:  number of requested standby connections exceeds \"max_wal_senders\" (currently 3)",
        );
        let hint = explain_limits(full, 4, true).hint().unwrap().to_owned();
        assert!(hint.contains("5 connections: 4 for files and 1 for write-ahead log"), "{hint}");
        assert!(hint.contains("Increase max_wal_senders"), "{hint}");
        assert!(explain_limits(Error::local("x"), 4, true).hint().is_none());
    }
}
