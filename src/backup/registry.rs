//! The backups of this server, in shared memory.
//!
//! Their states and who takes part in them are in a [`Table`] that is changed under one LWLock, in
//! [`change`], and looked at under it. Counters are atomics beside it: only a backup's coordinator and
//! transfers touch them, and while there is one of these its place is no other backup's.

use protocol::{BackupId, Lsn};

use crate::backup::lease::{End, Lease, Process, Terms};
pub use crate::backup::table::{Backup, Facts, Member, State};
use crate::backup::table::{Table, Transfer};
use crate::error::{Error, Result};
use crate::pg::latch::Waker;
use crate::pg::shmem::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use crate::pg::shmem::{Array, Locked};
use crate::pg::{backend, exit, interrupt, role, server};
use crate::shared_struct;

static TABLE: Locked<Backup, Option<Transfer>> = Locked::new(c"pg_parallel_backup");
static COUNTERS: Array<Counters> = Array::new(c"pg_parallel_backup counters");

/// No estimate was asked for.
const UNKNOWN_TOTAL: u64 = u64::MAX;

shared_struct! {
    /// What the connections of a backup count, at its place.
    #[derive(Debug)]
    pub struct Counters {
        /// Whether the backup was aborted: its state, for a look without the lock.
        aborted: AtomicU32,
        /// How often a session has attached: of its lease, for a look without the lock.
        attachments: AtomicU32,
        /// When the next byte may be sent, microseconds of the monotonic clock.
        throttle_next: AtomicI64,
        /// Bytes, [`UNKNOWN_TOTAL`] where not estimated.
        total: AtomicU64,
        /// Bytes on the wire, of files that have not ended too.
        sent: AtomicU64,
        /// Counted at each end frame.
        files: AtomicU64,
        bytes: AtomicU64,
        checksum_failures: AtomicU64,
    }
}

/// The totals that STOP_BACKUP returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Files, or ranges of them, sent to their end.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pages of them that failed verification.
    pub checksum_failures: u64,
}

/// A row of the view.
#[derive(Debug, Clone)]
pub struct Report {
    /// The backup.
    pub backup: Backup,
    /// Connections that are sending.
    pub workers: usize,
    /// Bytes on the wire.
    pub sent: u64,
    /// Estimated bytes.
    pub total: Option<u64>,
    /// What has been sent to its end.
    pub totals: Totals,
}

/// Reserves the shared memory.
pub fn request(backups: usize) {
    TABLE.request(backups, server::max_backends());
    COUNTERS.request(backups);
}

/// Lays out the shared memory.
pub fn initialize() {
    TABLE.initialize(Backup::FREE, None);
    COUNTERS.initialize();
}

/// Looks at the table, and changes it. `step` must neither call PostgreSQL nor come back here.
fn change<T>(step: impl FnOnce(&mut Table<'_>) -> T) -> T {
    let (outcome, wake) = TABLE.with(|backups, transfers| {
        let mut table = Table { backups, transfers, wake: Vec::new() };
        let outcome = step(&mut table);
        for (backup, counters) in table.backups.iter().zip(COUNTERS.get()) {
            let mirror = |copy: &AtomicU32, value: u32| {
                if copy.load(Ordering::Relaxed) != value {
                    copy.store(value, Ordering::Relaxed);
                }
            };
            mirror(&counters.aborted, u32::from(backup.state == State::Aborted));
            mirror(&counters.attachments, backup.lease.map_or(0, |lease| lease.attachments));
        }
        (outcome, table.wake)
    });
    // It calls PostgreSQL: not under the lock.
    wake.into_iter().for_each(Waker::wake);
    outcome
}

/// This process, as one that waits for others.
fn this_process() -> Process {
    Process { pid: server::pid(), waker: Waker::own() }
}

/// This process, as a part of a backup.
fn this_member() -> Member {
    Member { pid: server::pid(), role: role::current(), login_role: role::login() }
}

/// Ends every part of this process, at its end.
fn gone() {
    let now = interrupt::monotonic();
    change(|table| {
        if let Some(keeper) = table.gone(server::pid(), now) {
            backend::terminate(keeper.pid);
        }
    });
}

/// What becomes of a backup that wants a place.
#[derive(Debug)]
pub enum Reserved {
    /// It has one, with these counters.
    Here(&'static Counters),
    /// This one gives up its own, and is about to end.
    InPlaceOf(BackupId),
}

/// Takes a free place for a backup that this session starts, with a lease on these terms; where there is none, one is made.
pub fn reserve(id: BackupId, label: &[u8], now: i64, lease: Option<Terms>) -> Result<Reserved> {
    let owner = this_member();
    let lease = lease.map(|terms| Lease::new(terms, this_process()));
    exit::on_exit(gone);
    let counters = COUNTERS.get();
    change(|table| {
        if table.place(id).is_some() {
            return Err(Error::NameTaken(id));
        }
        match table.reserve(id, owner, label, now, lease) {
            Some(place) => {
                counters[place].clear();
                Ok(Reserved::Here(&counters[place]))
            }
            None => match table.give_up_light() {
                Some(other) => Ok(Reserved::InPlaceOf(other)),
                None => Err(Error::TooManyBackups { limit: counters.len() }),
            },
        }
    })
}

/// The backup with this name, in whatever state, as it is at this moment.
pub fn find(id: BackupId) -> Option<Backup> {
    change(|table| table.place(id).map(|place| table.backups[place]))
}

/// The estimated size in bytes of the backup with this name, if there is one.
pub fn total(id: BackupId) -> Option<u64> {
    change(|table| table.place(id).and_then(|place| COUNTERS.get()[place].total()))
}

/// The backup with this name, and who is sending something of it.
pub fn members(id: BackupId) -> Option<(Backup, Vec<Member>)> {
    let mut transfers = Vec::with_capacity(server::max_backends());
    let backup = change(|table| {
        transfers.extend(table.transfers(id));
        table.place(id).map(|place| table.backups[place])
    });
    backup.map(|backup| (backup, transfers))
}

/// Aborts the backup, and terminates its coordinator, or its keeper, and those of these transfers that are still
/// sending something of it. They cannot leave while the lock is held: whoever is hit is one of them.
/// False if it is gone.
pub fn cancel(id: BackupId, transfers: &[Member]) -> bool {
    change(|table| {
        let Some(place) = table.place(id) else { return false };
        table.abort(id);
        let backup = &table.backups[place];
        // Who can leave backup mode.
        let holder = match backup.lease {
            Some(lease) => lease.keeper.map(|keeper| keeper.pid),
            None => backup.coordinator(),
        };
        holder.into_iter().for_each(backend::terminate);
        table.transfers(id).filter(|member| transfers.contains(member)).for_each(|member| {
            backend::terminate(member.pid);
        });
        true
    })
}

/// Terminates those of these backends that are sending something of the backup, if they are of the
/// coordinator's role, or the coordinator acts as a superuser. A process that is no transfer of it is not
/// touched: by now it may be anybody. Returns whom it has signalled.
pub fn terminate_transfers(id: BackupId, pids: &[u32], superuser: bool) -> Vec<u32> {
    let mut signalled = Vec::with_capacity(pids.len());
    change(|table| {
        let Some(place) = table.place(id) else { return };
        let owner = table.backups[place].owner;
        for member in table.transfers(id).filter(|member| pids.contains(&member.pid)) {
            if superuser || (member.role, member.login_role) == (owner.role, owner.login_role) {
                backend::terminate(member.pid);
                signalled.push(member.pid);
            }
        }
    });
    signalled
}

/// Who is still sending something of a backup as its coordinator, and is not that any more.
pub fn left_behind(id: BackupId) -> Vec<u32> {
    change(|table| table.left_behind(id).collect())
}

/// Whether one of these backends is sending something of the backup.
pub fn is_sending(id: BackupId, pids: &[u32]) -> bool {
    change(|table| table.transfers(id).any(|member| pids.contains(&member.pid)))
}

/// Opens the backup to transfers; fails if it was aborted meanwhile.
pub fn run(id: BackupId, facts: Facts) -> Result<()> {
    change(|table| table.run(id, facts))
}

/// Joins a backup, for one command: [`leave`] must follow. Returns what it is as long as this
/// transfer is part of it, but that it may be aborted.
pub fn enter(id: BackupId) -> Result<(Backup, &'static Counters)> {
    let member = this_member();
    exit::on_exit(gone);
    change(|table| {
        let place = table.enter(id, member)?;
        Ok((table.backups[place], &COUNTERS.get()[place]))
    })
}

/// Ends this process's transfer.
pub fn leave() {
    change(|table| table.leave(server::pid()));
}

/// Closes the backup to transfers; fails, and leaves it open, while one runs.
pub fn begin_stop(id: BackupId) -> Result<()> {
    change(|table| table.begin_stop(id))
}

/// Opens it again after a stop that did not get as far as leaving backup mode.
pub fn resume(id: BackupId) {
    change(|table| table.resume(id));
}

/// Marks it stopped; its WAL may be fetched.
pub fn stop(id: BackupId, lsn: Lsn, timeline: u32) {
    change(|table| table.stop(id, lsn, timeline));
}

/// Ends this session's part in it as its coordinator; its place is free once the last transfer has ended too.
/// Of a backup that has a lease, and is still this session's, the keeper is told. What waits for a checkpoint
/// hears nothing but a signal.
pub fn release(id: BackupId) {
    change(|table| {
        let starting = table.place(id).is_some_and(|place| table.backups[place].state == State::Starting);
        if let Some(keeper) = table.release(id, server::pid()).filter(|_| starting) {
            backend::terminate(keeper.pid);
        }
    });
}

/// Makes this process the keeper of a backup that starts; fails if nobody waits for it any more. `gone` is called when
/// the process ends, and has to [`dismiss`] it.
pub fn adopt(id: BackupId, gone: fn()) -> Result<(Backup, &'static Counters)> {
    let keeper = this_process();
    exit::on_exit(gone);
    change(|table| {
        let place = table.adopt(id, keeper)?;
        Ok((table.backups[place], &COUNTERS.get()[place]))
    })
}

/// Ends the keeper's part in its backup, and the backup, if it has not ended yet, for this reason.
pub fn dismiss(id: BackupId, end: End) {
    change(|table| table.dismiss(id, end));
}

/// Aborts a backup that has a lease, for this reason.
pub fn end(id: BackupId, end: End) {
    change(|table| table.end(id, end));
}

/// Notes what the keeper of a backup has to say, and wakes its coordinator.
pub fn note(id: BackupId, note: impl FnOnce(&mut Lease)) {
    change(|table| table.note(id, note));
}

/// Ends a backup whose lease has run out; otherwise says how much of it is left, in microseconds, if it runs.
pub fn expire(id: BackupId) -> Option<i64> {
    let now = interrupt::monotonic();
    change(|table| table.expire(id, now))
}

/// Makes this session the coordinator of a backup that has a lease, in place of whoever was.
pub fn attach(id: BackupId) -> Result<Backup> {
    let process = this_process();
    exit::on_exit(gone);
    change(|table| table.attach(id, process).map(|place| table.backups[place]))
}

/// The backup with this lease, if this session is its coordinator, and it has not ended; and if not, why.
pub fn kept(id: BackupId) -> Result<Backup> {
    change(|table| table.kept(id, server::pid()))
}

/// Asks the keeper of this session's backup to stop it, if that has not been done.
pub fn ask_to_stop(id: BackupId) -> Result<()> {
    change(|table| table.ask_to_stop(id, server::pid()))
}

/// Every backup.
pub fn reports() -> Vec<Report> {
    // What is copied under the lock is of a known size; rows are made of it after.
    let mut reports = Vec::with_capacity(COUNTERS.get().len());
    change(|table| {
        for (place, backup) in table.backups.iter().enumerate() {
            if backup.state != State::Free {
                let counters = &COUNTERS.get()[place];
                reports.push(Report {
                    backup: *backup,
                    workers: table.transfers(backup.id).count(),
                    sent: counters.sent.load(Ordering::Relaxed),
                    total: counters.total(),
                    totals: counters.totals(),
                });
            }
        }
    });
    reports
}

impl Counters {
    fn clear(&self) {
        self.throttle_next.store(0, Ordering::Relaxed);
        self.total.store(UNKNOWN_TOTAL, Ordering::Relaxed);
        for counter in [&self.sent, &self.files, &self.bytes, &self.checksum_failures] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the backup was aborted.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed) != 0
    }

    /// How often a session has attached.
    pub fn attachments(&self) -> u32 {
        self.attachments.load(Ordering::Relaxed)
    }

    /// The estimated size in bytes.
    pub fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// The estimated size in bytes, if one was asked for.
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|total| *total != UNKNOWN_TOTAL)
    }

    /// Counts bytes on the wire.
    pub fn count_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a file that has ended.
    pub fn count_file(&self, bytes: u64, checksum_failures: u32) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.checksum_failures.fetch_add(u64::from(checksum_failures), Ordering::Relaxed);
    }

    /// The totals so far. Those of a transfer that has left are all in it: the lock orders them.
    pub fn totals(&self) -> Totals {
        Totals {
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            checksum_failures: self.checksum_failures.load(Ordering::Relaxed),
        }
    }

    /// When the next byte may be sent, shared by all connections of the backup.
    pub fn throttle(&self) -> &AtomicI64 {
        &self.throttle_next
    }
}
