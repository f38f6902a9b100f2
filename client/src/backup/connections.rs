//! All connections of a backup, made before it starts.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// How many connections are made at once: each takes some round trips, and a process of the server's.
const AT_ONCE: usize = 16;

/// All connections of a backup, made before it starts: a checkpoint is not paid for in vain.
pub(super) struct Connections {
    pub(super) coordinator: Session,
    pub(super) workers: Vec<Session>,
    pub(super) wal: Option<Session>,
    pub(super) reconnect: Reconnect,
    pub(super) system: System,
    pub(super) modes: Modes,
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
        let modes = Modes::of_data_directory(&coordinator.show(route::MODE_SETTING)?)?;
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
        let explain = |error: Error| {
            if error.hint().is_some() { error } else { explain_limits(error, options.jobs, streaming) }
        };
        let wal = if streaming {
            let way = Route::Replication;
            // It needs what the other connections could do without.
            let refused = |error| if way == route { error } else { route::explain_refusal(error) };
            let connected = route::connect(&mut connector, way);
            let mut session = connected.map_err(|error| explain(refused(error)))?;
            check_same(&mut session, &system)?;
            Some(session)
        } else {
            None
        };
        let workers = several(options.jobs - 1, || {
            let mut session = route::another(&connector, route).map_err(explain)?;
            check_same(&mut session, &system)?;
            Ok(session)
        })?;
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
            recovery_settings,
            compression,
            lease,
        })
    }
}

/// So many of what takes some round trips to make, some of them at once; one error, if there is any.
fn several<T: Send>(count: usize, make: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    let begun = AtomicUsize::new(0);
    let make_some = || {
        let mut made = Vec::new();
        while begun.fetch_add(1, Ordering::Relaxed) < count {
            // After an error nobody begins another.
            made.push(make().inspect_err(|_| begun.store(count, Ordering::Relaxed))?);
        }
        Ok(made)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count.min(AT_ONCE)).map(|_| scope.spawn(make_some)).collect();
        let mut made = Vec::with_capacity(count);
        let mut outcome = Ok(());
        for thread in threads {
            match thread.join().unwrap_or_else(|panic| resume_unwind(panic)) {
                Ok(some) => made.extend(some),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| made)
    })
}

/// How many bytes of WAL a backup has at least, for an estimate: START_BACKUP says itself how long segments are.
pub(super) fn least_wal(options: &Options, coordinator: &mut Session) -> Result<u64> {
    if options.wal == Wal::None { Ok(0) } else { parse_size(&coordinator.show(route::SEGMENT_SIZE_SETTING)?) }
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
    fn several_at_once() {
        assert_eq!(several(0, || Ok(())).unwrap(), []);
        for count in [1, AT_ONCE, 3 * AT_ONCE + 1] {
            assert_eq!(several(count, || Ok(())).unwrap().len(), count);
        }
        // All of them are under way before the first is there.
        let barrier = std::sync::Barrier::new(AT_ONCE);
        several(AT_ONCE, || Ok(barrier.wait())).unwrap();
        let tries = AtomicUsize::new(0);
        let error = several(1000, || {
            let number = tries.fetch_add(1, Ordering::Relaxed);
            if number < 2 * AT_ONCE { Ok(number) } else { Err(Error::connection("one too many")) }
        });
        assert_eq!(error.unwrap_err().message(), "one too many");
        assert!(tries.into_inner() <= 3 * AT_ONCE);
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
