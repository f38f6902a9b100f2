//! The backups of this server, in shared memory: one slot each.
//!
//! No lock: a slot is atomics only, so that whatever ends a process leaves nothing held. Two
//! rules keep it sound. A slot's fields are written by its owner between [`State::Starting`] and
//! [`State::Running`]; others read them while it is in a later state. And whoever enters a
//! transfer counts itself first and looks at the state after, whoever stops a backup changes the
//! state first and looks at the count after: one of the two sees the other.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use protocol::{BackupId, Lsn};

use crate::error::{Error, Result};
use crate::pg::exit;
use crate::pg::server::MAX_PATH;
use crate::pg::shmem::Array;
use crate::shared_struct;

static SLOTS: Array<Slot> = Array::new(c"pg_parallel_backup");

/// No estimate was asked for.
const UNKNOWN_TOTAL: u64 = u64::MAX;

shared_struct! {
    /// One backup.
    #[derive(Debug)]
    pub struct Slot {
        state: AtomicU32,
        /// The coordinator's process, 0 once it is gone.
        owner_pid: AtomicU32,
        owner_role: AtomicU32,
        /// Connections that are sending the list or files.
        transfers: AtomicU32,
        id: [AtomicU64; 2],
        start_lsn: AtomicU64,
        start_timeline: AtomicU32,
        stop_timeline: AtomicU32,
        stop_lsn: AtomicU64,
        /// When it started, microseconds since PostgreSQL's epoch.
        started_at: AtomicI64,
        in_recovery: AtomicU32,
        verify_checksums: AtomicU32,
        /// kB/s, 0 for none.
        max_rate: AtomicU32,
        /// The segment with the encoded layout.
        layout_handle: AtomicU32,
        /// When the next byte may be sent, microseconds since PostgreSQL's epoch.
        throttle_next: AtomicI64,
        /// Bytes, [`UNKNOWN_TOTAL`] where not estimated.
        total: AtomicU64,
        /// Bytes on the wire, of files that have not ended too.
        sent: AtomicU64,
        /// Counted at each end frame.
        files: AtomicU64,
        bytes: AtomicU64,
        checksum_failures: AtomicU64,
        label_length: AtomicU32,
        label: [AtomicU8; MAX_PATH],
    }
}

/// Where a backup is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// No backup.
    Free = 0,
    /// START_BACKUP is under way.
    Starting = 1,
    /// Files may be fetched.
    Running = 2,
    /// STOP_BACKUP is under way.
    Stopping = 3,
    /// Over; the WAL it needs may be fetched.
    Stopped = 4,
    /// Over before it was stopped.
    Aborted = 5,
}

/// What START_BACKUP settles.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The start LSN.
    pub start_lsn: Lsn,
    /// Its timeline.
    pub start_timeline: u32,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Whether the server verifies pages by default.
    pub verify_checksums: bool,
    /// kB/s over all connections.
    pub max_rate: Option<u32>,
    /// The segment with the encoded layout.
    pub layout_handle: u32,
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
    pub id: BackupId,
    /// The coordinator's process; `None` if it is gone and transfers are still ending.
    pub pid: Option<u32>,
    /// The coordinator's role.
    pub role: u32,
    /// The label's bytes.
    pub label: Vec<u8>,
    /// Its state.
    pub state: State,
    /// Start LSN and timeline; `None` while starting.
    pub start: Option<(Lsn, u32)>,
    /// Microseconds since PostgreSQL's epoch.
    pub started_at: i64,
    /// Connections that are sending.
    pub workers: u32,
    /// Files sent.
    pub files: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Estimated bytes.
    pub total: Option<u64>,
    /// Pages that failed verification.
    pub checksum_failures: u64,
    /// kB/s.
    pub max_rate: Option<u32>,
}

/// Reserves the shared memory.
pub fn request(backups: usize) {
    SLOTS.request(backups);
}

/// Lays out the shared memory.
pub fn initialize() {
    SLOTS.initialize();
}

/// Takes a free slot for a backup that this session starts.
pub fn reserve(id: BackupId, pid: u32, role: u32, label: &[u8], now: i64) -> Result<&'static Slot> {
    let slots = SLOTS.get();
    let slot = slots.iter().find(|slot| slot.claim()).ok_or(Error::TooManyBackups { limit: slots.len() })?;
    slot.fill(id, pid, role, label, now);
    OWNED.set(Some(slot));
    exit::on_exit(release_on_exit);
    Ok(slot)
}

/// The backup with this name, in whatever state but free.
pub fn find(id: BackupId) -> Option<&'static Slot> {
    SLOTS.get().iter().find(|slot| slot.is_live() && slot.id() == id)
}

/// Every backup.
pub fn reports() -> Vec<Report> {
    SLOTS.get().iter().filter_map(Slot::report).collect()
}

impl Slot {
    fn claim(&self) -> bool {
        let from = match self.state() {
            State::Free => State::Free,
            State::Aborted if !self.is_live() => State::Aborted,
            _ => return false,
        };
        self.change(from, State::Starting)
    }

    fn fill(&self, id: BackupId, pid: u32, role: u32, label: &[u8], now: i64) {
        let (high, low) = id_words(id);
        self.id[0].store(high, Ordering::Relaxed);
        self.id[1].store(low, Ordering::Relaxed);
        self.owner_role.store(role, Ordering::Relaxed);
        self.started_at.store(now, Ordering::Relaxed);
        self.total.store(UNKNOWN_TOTAL, Ordering::Relaxed);
        self.stop_lsn.store(0, Ordering::Relaxed);
        for counter in [&self.start_lsn, &self.sent, &self.files, &self.bytes, &self.checksum_failures] {
            counter.store(0, Ordering::Relaxed);
        }
        self.max_rate.store(0, Ordering::Relaxed);
        for (shared, byte) in self.label.iter().zip(label) {
            shared.store(*byte, Ordering::Relaxed);
        }
        let length = label.len().min(MAX_PATH);
        self.label_length.store(u32::try_from(length).unwrap_or(0), Ordering::Relaxed);
        self.owner_pid.store(pid, Ordering::SeqCst);
    }

    /// The state at this moment.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            1 => State::Starting,
            2 => State::Running,
            3 => State::Stopping,
            4 => State::Stopped,
            5 => State::Aborted,
            _ => State::Free,
        }
    }

    /// Goes from one state to another; false if it was in a third.
    fn change(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u32, to as u32, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// An aborted slot without owner and transfers is free in all but name.
    fn is_live(&self) -> bool {
        match self.state() {
            State::Free => false,
            State::Aborted => {
                self.owner_pid.load(Ordering::SeqCst) != 0 || self.transfers.load(Ordering::SeqCst) != 0
            }
            State::Starting | State::Running | State::Stopping | State::Stopped => true,
        }
    }

    /// The backup's name.
    pub fn id(&self) -> BackupId {
        let word = |at: usize| self.id[at].load(Ordering::Relaxed).to_be_bytes();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&word(0));
        bytes[8..].copy_from_slice(&word(1));
        BackupId::from_bytes(bytes)
    }

    /// The coordinator's role.
    pub fn owner_role(&self) -> u32 {
        self.owner_role.load(Ordering::Relaxed)
    }

    /// The coordinator's process, 0 once it is gone.
    pub fn owner_pid(&self) -> u32 {
        self.owner_pid.load(Ordering::SeqCst)
    }

    /// Opens the backup to transfers; fails if it was cancelled meanwhile.
    pub fn run(&self, facts: &Facts) -> Result<()> {
        self.start_lsn.store(facts.start_lsn.0, Ordering::Relaxed);
        self.start_timeline.store(facts.start_timeline, Ordering::Relaxed);
        self.in_recovery.store(u32::from(facts.in_recovery), Ordering::Relaxed);
        self.verify_checksums.store(u32::from(facts.verify_checksums), Ordering::Relaxed);
        self.max_rate.store(facts.max_rate.unwrap_or(0), Ordering::Relaxed);
        self.layout_handle.store(facts.layout_handle, Ordering::Relaxed);
        self.throttle_next.store(0, Ordering::Relaxed);
        if self.change(State::Starting, State::Running) { Ok(()) } else { Err(Error::Aborted(self.id())) }
    }

    /// What START_BACKUP settled.
    pub fn facts(&self) -> Facts {
        Facts {
            start_lsn: Lsn(self.start_lsn.load(Ordering::Relaxed)),
            start_timeline: self.start_timeline.load(Ordering::Relaxed),
            in_recovery: self.in_recovery.load(Ordering::Relaxed) != 0,
            verify_checksums: self.verify_checksums.load(Ordering::Relaxed) != 0,
            max_rate: Some(self.max_rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0),
            layout_handle: self.layout_handle.load(Ordering::Relaxed),
        }
    }

    /// Closes the backup to transfers; fails, and leaves it open, while one runs.
    pub fn begin_stop(&self) -> Result<()> {
        if !self.change(State::Running, State::Stopping) {
            return Err(Error::Aborted(self.id()));
        }
        match self.transfers.load(Ordering::SeqCst) {
            0 => Ok(()),
            transfers => {
                self.resume();
                Err(Error::TransfersRunning { transfers })
            }
        }
    }

    /// Opens it again after a stop that did not get as far as leaving backup mode.
    pub fn resume(&self) {
        self.change(State::Stopping, State::Running);
    }

    /// Marks it stopped; its WAL may be fetched.
    pub fn stop(&self, lsn: Lsn, timeline: u32) {
        self.stop_timeline.store(timeline, Ordering::Relaxed);
        self.stop_lsn.store(lsn.0, Ordering::SeqCst);
        self.change(State::Stopping, State::Stopped);
    }

    /// Where it was stopped: LSN and timeline.
    pub fn stopped_at(&self) -> (Lsn, u32) {
        (Lsn(self.stop_lsn.load(Ordering::SeqCst)), self.stop_timeline.load(Ordering::Relaxed))
    }

    /// Marks it aborted: every transfer of it ends at its next step. False if it was over already.
    pub fn abort(&self) -> bool {
        [State::Starting, State::Running, State::Stopping, State::Stopped]
            .into_iter()
            .any(|state| self.change(state, State::Aborted))
    }

    /// Ends the owner's part in it; the slot is free once the last transfer has ended too.
    pub fn release(&self) {
        self.abort();
        self.owner_pid.store(0, Ordering::SeqCst);
        OWNED.set(None);
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

    /// The totals so far.
    pub fn totals(&self) -> Totals {
        Totals {
            files: self.files.load(Ordering::SeqCst),
            bytes: self.bytes.load(Ordering::SeqCst),
            checksum_failures: self.checksum_failures.load(Ordering::SeqCst),
        }
    }

    /// When the next byte may be sent, shared by all connections of the backup.
    pub fn throttle(&self) -> &AtomicI64 {
        &self.throttle_next
    }

    fn report(&self) -> Option<Report> {
        let id = self.id();
        let facts = self.facts();
        let length = usize::try_from(self.label_length.load(Ordering::Relaxed)).unwrap_or(0);
        let state = self.state();
        let report = Report {
            id,
            pid: Some(self.owner_pid()).filter(|pid| *pid != 0),
            role: self.owner_role(),
            label: self.label.iter().take(length).map(|byte| byte.load(Ordering::Relaxed)).collect(),
            state,
            start: (facts.start_lsn.0 != 0).then_some((facts.start_lsn, facts.start_timeline)),
            started_at: self.started_at.load(Ordering::Relaxed),
            workers: self.transfers.load(Ordering::SeqCst),
            files: self.files.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            total: self.total(),
            checksum_failures: self.checksum_failures.load(Ordering::Relaxed),
            max_rate: facts.max_rate,
        };
        // Another backup may have taken the slot while it was read.
        (self.is_live() && self.id() == id).then_some(report)
    }
}

/// A connection's part in a backup while it sends something of it. Ends with it, however that is
/// unwound; at a FATAL, where nothing unwinds, in the exit handler.
#[derive(Debug)]
pub struct Transfer {
    slot: &'static Slot,
    state: State,
}

impl Transfer {
    /// Joins a backup that is running, or stopped with its WAL to be fetched.
    pub fn enter(slot: &'static Slot, id: BackupId) -> Result<Self> {
        slot.transfers.fetch_add(1, Ordering::SeqCst);
        TRANSFER.set(Some(slot));
        exit::on_exit(release_on_exit);
        // From here on a `Drop` takes the count back, on every path.
        let mut transfer = Self { slot, state: State::Aborted };
        transfer.state = slot.state();
        if slot.id() != id {
            return Err(Error::UnknownBackup(id));
        }
        match transfer.state {
            State::Running | State::Stopped => Ok(transfer),
            State::Stopping => Err(Error::Stopping(id)),
            State::Free | State::Starting | State::Aborted => Err(Error::UnknownBackup(id)),
        }
    }

    /// The state in which it was entered, which stays so until it ends or is aborted.
    pub fn state(&self) -> State {
        self.state
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if TRANSFER.take().is_some() {
            self.slot.transfers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

thread_local! {
    /// What this process holds; cells, since the exit handler may come at any moment.
    static OWNED: std::cell::Cell<Option<&'static Slot>> = const { std::cell::Cell::new(None) };
    static TRANSFER: std::cell::Cell<Option<&'static Slot>> = const { std::cell::Cell::new(None) };
}

fn release_on_exit() {
    if let Some(slot) = TRANSFER.take() {
        slot.transfers.fetch_sub(1, Ordering::SeqCst);
    }
    if let Some(slot) = OWNED.get() {
        slot.release();
    }
}

fn id_words(id: BackupId) -> (u64, u64) {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&id.as_bytes()[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    (word(0), word(8))
}
