//! The keeper: a process of the server's own that holds a backup with a lease, from the start of its checkpoint until
//! it is released, or nobody has come back for it in time.
//!
//! It is in backup mode, has the replication slot that keeps the backup's WAL, unless its lease is light, and publishes what START_BACKUP and
//! STOP_BACKUP return, for whoever is attached. What it is to do it reads from the table: it is woken when
//! something has changed. All that it has goes with its process, however that ends.

use std::cell::Cell;
use std::ffi::CString;
use std::time::Duration;

use protocol::{BackupId, Checkpoint};

use crate::backup::archive;
use crate::backup::begin::{self, Wanted};
use crate::backup::end;
use crate::backup::lease::{End, Lease, Told};
use crate::backup::registry::{self, Backup, Counters, State};
use crate::backup::results::Started;
use crate::backup::sizes;
use crate::error::Result;
use crate::pg::backup::BackupState;
use crate::pg::interrupt::{self, WaitEvent};
use crate::pg::segment::Segment;
use crate::pg::worker::{self, Activity};
use crate::pg::{backup, control_file, guard, report, server, slot};

/// How often it looks at what nobody wakes it for: the archive, and whether a standby was promoted.
const LOOK: Duration = Duration::from_secs(1);

/// How long it sleeps at most.
const LONG: Duration = Duration::from_secs(60);

/// What a keeper is started with. The label is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The backup.
    pub id: BackupId,
    /// What is asked of it.
    pub wanted: Wanted,
}

thread_local! {
    /// The backup that this process keeps.
    static KEPT: Cell<Option<BackupId>> = const { Cell::new(None) };
}

impl Order {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Wanted { checkpoint, progress, verify_checksums, max_rate } = self.wanted;
        let flags = [checkpoint == Checkpoint::Fast, progress, verify_checksums].map(u8::from);
        // A rate is never 0.
        [&self.id.as_bytes()[..], &flags, &max_rate.unwrap_or(0).to_be_bytes()].concat()
    }

    /// The reverse of [`encode`](Self::encode); `None` where the bytes are not from there.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (&[fast, progress, verify_checksums], rest) = rest.split_first_chunk::<3>()?;
        let rate = u32::from_be_bytes(rest.try_into().ok()?);
        let wanted = Wanted {
            checkpoint: if fast != 0 { Checkpoint::Fast } else { Checkpoint::Spread },
            progress: progress != 0,
            verify_checksums: verify_checksums != 0,
            max_rate: Some(rate).filter(|rate| *rate != 0),
        };
        Some(Self { id: BackupId::from_bytes(*id), wanted })
    }
}

/// What the process is called: in the process list, and in the log where it cannot be started.
pub fn process_name(id: BackupId) -> CString {
    CString::new(format!("parallel backup keeper {id}")).unwrap_or_default()
}

/// The name of its slot.
fn slot_name(id: BackupId) -> CString {
    CString::new(format!("pg_parallel_backup_{id}")).unwrap_or_default()
}

/// Carries out an order, from the beginning of the process to its end.
pub fn run(order: &[u8]) {
    let Some(order) = Order::decode(order) else { return };
    let id = order.id;
    KEPT.set(Some(id));
    // The session that wanted it may have gone before this process has begun.
    let Ok((backup, counters)) = registry::adopt(id, gone) else { return };
    let kept = guard::on_failure_told(
        || keep(&order, &backup, counters),
        |sqlstate, message, hint| {
            registry::note(id, |lease| lease.told = Told::new(sqlstate, message, hint));
            registry::end(id, End::Failed);
        },
    );
    if let Err(error) = kept {
        // The end of the process does what is left to do.
        report::raise(&error);
    }
    // In this order, so that who finds the place free finds the rest of it free too.
    backup::abort();
    slot::drop_own();
    registry::dismiss(id, End::KeeperGone);
}

/// When the process ends, in whatever way.
fn gone() {
    let Some(id) = KEPT.take() else { return };
    let lost = slot::is_lost();
    registry::dismiss(id, if lost { End::WalRemoved } else { End::KeeperGone });
    if lost {
        report::log(End::WalRemoved.error(id, &Told::NOTHING).to_string());
    }
}

fn keep(order: &Order, backup: &Backup, counters: &'static Counters) -> Result<()> {
    let Order { id, wanted } = *order;
    worker::report(Activity::Active, &format!("starting parallel backup {id}"));
    if !backup.lease.is_some_and(|lease| lease.light) {
        slot::create(&slot_name(id));
    }
    let begun = begin::enter(backup.label(), &wanted, None)?;
    // Up to here it was the checkpoint before. With a light lease there is none.
    slot::advance(begun.state.start_lsn());
    if wanted.progress {
        registry::note(id, |lease| lease.estimating = true);
    }
    let started = Started {
        label_file: begun.state.label_file(),
        tablespace_map: begun.tablespace_map.clone(),
        sizes: wanted.progress.then(|| sizes::bytes(&begun.layout)).transpose()?,
    };
    if let Some(total) = started.total() {
        counters.set_total(total);
    }
    // They stay as long as this process does.
    let layout = Segment::publish(&begun.layout.encode()).handle();
    let published = Segment::publish(&started.encode()).handle();
    registry::note(id, |lease| lease.started = Some(published));
    if registry::run(id, begun.facts(&wanted, layout, false)).is_err() {
        // It was cancelled, or the session that wanted it has gone.
        return Ok(());
    }
    hold(id, begun.state, counters)
}

/// Holds the backup, until it has ended.
fn hold(id: BackupId, state: BackupState, counters: &'static Counters) -> Result<()> {
    let started_in_recovery = state.started_in_recovery();
    let mut state = Some(state);
    let mut archive = None;
    let mut shown = String::new();
    loop {
        worker::reload_settings();
        let Some((backup, lease)) = look(id) else { return Ok(()) };
        let mut sleep = LONG;
        match backup.state {
            State::Free | State::Aborted => {
                if lease.end != End::None {
                    report::log(lease.end.error(id, &lease.told).to_string());
                }
                return Ok(());
            }
            State::Stopping if state.is_some() => {
                worker::report(Activity::Active, &format!("stopping parallel backup {id}"));
                shown.clear();
                archive = stop(id, &mut state, counters)?;
                continue;
            }
            State::Starting | State::Running | State::Stopping => {
                // It cannot be stopped any more (do_pg_backup_stop).
                if started_in_recovery && !server::in_recovery() {
                    registry::end(id, End::Promoted);
                    continue;
                }
                if started_in_recovery {
                    sleep = LOOK;
                }
            }
            State::Stopped => {
                if let Some(waiting) = &mut archive {
                    sleep = LOOK;
                    if waiting.is_over() {
                        archive = None;
                        registry::note(id, |lease| lease.archived = true);
                        continue;
                    }
                    if let Some(seconds) = waiting.warning_is_due() {
                        archive::warn(seconds);
                    }
                }
            }
        }
        if let Some(left) = registry::expire(id) {
            let Ok(left @ 1..) = u64::try_from(left) else { continue };
            sleep = sleep.min(Duration::from_micros(left));
        }
        let text = describe(id, &backup, &lease);
        if text != shown {
            worker::report(Activity::Idle, &text);
            shown = text;
        }
        interrupt::sleep(sleep, WaitEvent::Keeper);
    }
}

fn look(id: BackupId) -> Option<(Backup, Lease)> {
    let backup = registry::find(id)?;
    backup.lease.map(|lease| (backup, lease))
}

/// Stops the backup. Where it fails before backup mode is left, the coordinator is told, and the backup runs on.
/// Returns what is to be waited for then.
fn stop(
    id: BackupId,
    state: &mut Option<BackupState>,
    counters: &Counters,
) -> Result<Option<archive::Waiting>> {
    // As in a session that stops its own backup: the last file that is read.
    let control_file = match control_file::read() {
        Ok(content) => content,
        Err(error) => {
            registry::note(id, |lease| lease.told = Told::from(&error));
            registry::resume(id);
            return Ok(None);
        }
    };
    let Some(mut state) = state.take() else { return Ok(None) };
    let stopped = end::leave(&mut state, control_file, counters)?;
    let published = Segment::publish(&stopped.encode()).handle();
    let archive = archive::Waiting::new(&stopped);
    registry::note(id, |lease| {
        lease.stopped = Some(published);
        lease.archived = archive.is_none();
    });
    registry::stop(id, stopped.wal.stop, stopped.wal.stop_timeline);
    Ok(archive)
}

/// For pg_stat_activity.
fn describe(id: BackupId, backup: &Backup, lease: &Lease) -> String {
    let state = if backup.state == State::Stopped { "stopped" } else { "running" };
    match lease.attached {
        Some(process) => format!("parallel backup {id} {state}, attached to process {}", process.pid),
        None => format!("parallel backup {id} {state}, detached with a lease of {} s", lease.seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_comes_as_it_went() {
        let id = BackupId::from_bytes([0x5A; 16]);
        let plain = Wanted {
            checkpoint: Checkpoint::Spread,
            progress: false,
            verify_checksums: false,
            max_rate: None,
        };
        for wanted in [
            plain,
            Wanted { checkpoint: Checkpoint::Fast, ..plain },
            Wanted { progress: true, ..plain },
            Wanted { verify_checksums: true, max_rate: Some(1_048_576), ..plain },
        ] {
            let order = Order { id, wanted };
            let bytes = order.encode();
            assert!(bytes.len() <= worker::MAX_ORDER);
            assert_eq!(Order::decode(&bytes), Some(order));
            assert_eq!(Order::decode(&bytes[1..]), None);
        }
    }

    #[test]
    fn names_fit() {
        let id = BackupId::from_bytes([0xFF; 16]);
        // NAMEDATALEN and BGW_MAXLEN.
        assert!(slot_name(id).as_bytes().len() < 64 && process_name(id).as_bytes().len() < 96);
    }
}
