//! What a backup has done so far, counted by all connections, for progress and for the report.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::meter::Shares;

/// What a backup is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Phase {
    /// Connections are made, and sizes looked at.
    Prepare,
    /// START_BACKUP waits for its checkpoint.
    Checkpoint,
    /// Files come.
    Files,
    /// STOP_BACKUP, and the WAL that comes after it.
    Stop,
    /// What came gets to disk.
    Sync,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [Self::Prepare, Self::Checkpoint, Self::Files, Self::Stop, Self::Sync];
}

/// How a backup stands, and how it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is not over.
    Running,
    /// It is there, and good.
    Complete,
    /// It is there, but for pages that had wrong checksums on the server.
    Damaged,
    /// It is not there.
    Failed,
}

/// What was received so far, counted by all connections.
#[derive(Debug)]
pub struct Counters {
    /// Bytes received.
    done: AtomicU64,
    /// Bytes to be received.
    total: AtomicU64,
    /// Bytes of the cluster before the backup began, zero if unknown.
    estimated: AtomicU64,
    /// Files finished.
    files_done: AtomicU64,
    /// Files to be fetched.
    files_total: AtomicU64,
    /// Files that were fetched again.
    retries: AtomicU64,
    /// Connections that were lost, and those of them that were made again.
    lost: AtomicU64,
    replaced: AtomicU64,
    phase: AtomicU8,
    outcome: Mutex<Outcome>,
    times: Mutex<Times>,
    shares: Mutex<Shares>,
    /// What connections are at, by the number of their server process.
    activities: Mutex<BTreeMap<i32, String>>,
}

/// When each phase began.
#[derive(Debug)]
struct Times {
    began: [Option<Instant>; Phase::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        let mut began = [None; Phase::ALL.len()];
        began[Phase::Prepare as usize] = Some(Instant::now());
        Self {
            done: AtomicU64::default(),
            total: AtomicU64::default(),
            estimated: AtomicU64::default(),
            files_done: AtomicU64::default(),
            files_total: AtomicU64::default(),
            retries: AtomicU64::default(),
            lost: AtomicU64::default(),
            replaced: AtomicU64::default(),
            phase: AtomicU8::new(Phase::Prepare as u8),
            outcome: Mutex::new(Outcome::Running),
            times: Mutex::new(Times { began }),
            shares: Mutex::default(),
            activities: Mutex::default(),
        }
    }
}

impl Counters {
    /// The cluster had about so many bytes before the backup began.
    pub fn estimate(&self, bytes: u64) {
        self.estimated.store(bytes, Ordering::Relaxed);
    }

    /// More is to come.
    pub fn expect(&self, files: usize, bytes: u64) {
        self.files_total.fetch_add(files as u64, Ordering::Relaxed);
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes came.
    pub fn received(&self, bytes: usize) {
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that came have to come again.
    pub fn lost(&self, bytes: u64) {
        // A file may be given up by two of those that were at it.
        let less = |done: u64| Some(done.saturating_sub(bytes));
        let _ = self.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// A file is finished.
    pub fn file(&self) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
    }

    /// A file has to be fetched again.
    pub fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was lost.
    pub fn connection_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection that was lost was made again.
    pub fn connection_replaced(&self) {
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    /// The next phase begins. One that was left does not come again.
    pub fn enter(&self, phase: Phase) {
        lock(&self.times).began[phase as usize].get_or_insert_with(Instant::now);
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// It is over.
    pub fn end(&self, outcome: Outcome) {
        *lock(&self.outcome) = outcome;
    }

    /// How it stands.
    pub fn outcome(&self) -> Outcome {
        *lock(&self.outcome)
    }

    /// What a connection is at, or `None` if it is at nothing any more.
    pub fn activity(&self, process: i32, activity: Option<String>) {
        let mut activities = lock(&self.activities);
        match activity {
            Some(activity) => activities.insert(process, activity),
            None => activities.remove(&process),
        };
    }

    /// Where the time of a connection has gone.
    pub fn spent(&self, shares: &Shares) {
        lock(&self.shares).add(shares);
    }

    /// Bytes and files so far.
    pub fn done(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.files_done.load(Ordering::Relaxed))
    }

    /// Bytes to be received: as estimated while the list is still coming, or unknown. Files may have grown
    /// since they were listed: the total is never less than what came.
    pub fn total(&self) -> Option<u64> {
        let listed = self.files_total.load(Ordering::Relaxed) > 0;
        let total = if listed { &self.total } else { &self.estimated }.load(Ordering::Relaxed);
        (total > 0 || listed).then(|| total.max(self.done().0))
    }

    /// Files to be received, once the list is there.
    pub fn files_total(&self) -> Option<u64> {
        Some(self.files_total.load(Ordering::Relaxed)).filter(|files| *files > 0)
    }

    /// Files that were fetched again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Connections that were lost, and those of them that were made again.
    pub fn lost_connections(&self) -> (u64, u64) {
        (self.lost.load(Ordering::Relaxed), self.replaced.load(Ordering::Relaxed))
    }

    /// What the backup is at.
    pub fn phase(&self) -> Phase {
        let phase = self.phase.load(Ordering::Relaxed);
        Phase::ALL.into_iter().find(|known| *known as u8 == phase).unwrap_or(Phase::Prepare)
    }

    /// How long a phase lasted, or has lasted so far.
    pub fn lasted(&self, phase: Phase) -> Duration {
        let times = lock(&self.times);
        let Some(began) = times.began[phase as usize] else { return Duration::ZERO };
        let next = times.began[phase as usize + 1..].iter().flatten().next();
        next.map_or_else(|| began.elapsed(), |next| next.saturating_duration_since(began))
    }

    /// How long it has lasted so far.
    pub fn elapsed(&self) -> Duration {
        lock(&self.times).began[Phase::Prepare as usize].map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Where the time of all connections together has gone.
    pub fn shares(&self) -> Shares {
        *lock(&self.shares)
    }

    /// What connections are at, in the order of their server processes.
    pub fn activities(&self) -> Vec<(i32, String)> {
        lock(&self.activities).iter().map(|(process, activity)| (*process, activity.clone())).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_estimated_until_they_are_known() {
        let counters = Counters::default();
        assert_eq!((counters.total(), counters.files_total()), (None, None));
        counters.estimate(100);
        assert_eq!(counters.total(), Some(100));
        counters.received(150);
        assert_eq!(counters.total(), Some(150));
        counters.expect(2, 200);
        assert_eq!((counters.total(), counters.files_total()), (Some(200), Some(2)));
        counters.lost(200);
        assert_eq!(counters.done(), (0, 0));
    }

    #[test]
    fn phases_follow_each_other() {
        let counters = Counters::default();
        assert_eq!(counters.phase(), Phase::Prepare);
        counters.enter(Phase::Files);
        counters.enter(Phase::Sync);
        counters.enter(Phase::Files);
        assert_eq!(counters.phase(), Phase::Sync);
        assert_eq!(counters.lasted(Phase::Checkpoint), Duration::ZERO);
        let sum: Duration = Phase::ALL.map(|phase| counters.lasted(phase)).iter().sum();
        assert!(sum <= counters.elapsed());
    }

    #[test]
    fn what_connections_are_at() {
        let counters = Counters::default();
        counters.activity(7, Some("base/5/1".to_owned()));
        counters.activity(3, Some("base/5/2".to_owned()));
        counters.activity(7, None);
        assert_eq!(counters.activities(), [(3, "base/5/2".to_owned())]);
    }
}
