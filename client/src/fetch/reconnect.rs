//! A connection in place of one that was lost in the middle of a backup. It is made without a wait that
//! could hold up the end: no prompt, a deadline for each try, and none once there is nothing left to fetch.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::abort::Abort;
use crate::error::{Error, Kind, Result};
use crate::fetch::queue::Queue;
use crate::report;
use crate::server::connection::{Connector, Route, Session, System};
use crate::server::route;

/// How long each try waits before it begins: a server that restarts a failover, or a full table of
/// connections, needs a moment, and must not be besieged. Where there is more time, the last is for all that follow.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// By how much a pause may differ, in percent: connections that were lost at one moment, of several clients
/// perhaps, do not all come back at one.
const CHANCE: u64 = 25;

/// How long a try may take, from the first byte to the last look at whom it has reached.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often one connection is made again, at all or, with a lease, within it: somebody means it who ends it more
/// often.
const MOST: usize = 20;

/// The shortest time within which losses count, that of the lease by default. A short lease says what the server
/// keeps, not how much is borne: within a few seconds a connection cannot be lost often enough, and what
/// is damaged at every try would be asked for without an end.
const RECENT: Duration = Duration::from_secs(300);

/// How often nothing may listen where the server was before it is taken for gone: a proxy between is back sooner.
const REFUSALS: usize = 3;

/// How often a pause looks whether it is still worth while.
const LOOK: Duration = Duration::from_millis(100);

/// What lost connections are made anew from.
#[derive(Debug)]
pub struct Reconnect {
    /// It is pinned to the server.
    pub connector: Connector,
    /// The way that the backup takes.
    pub route: Route,
    /// Whom all connections must reach.
    pub system: System,
    /// Ends every wait.
    pub abort: Arc<Abort>,
    /// Whether it is tried for all of a lease where nothing listens any more: who has not asked for a lease is not to
    /// wait for a server that is down, and has lost the backup.
    pub waits_for_server: bool,
}

/// How often a connection was lost.
#[derive(Debug)]
pub struct Losses {
    /// Those before that do not count any more.
    within: Option<Duration>,
    times: VecDeque<Instant>,
}

impl Losses {
    /// None so far. With a lease, those that are longer ago than it and [`RECENT`] do not count.
    pub fn new(lease: Option<Duration>) -> Self {
        Self { within: lease.map(|lease| lease.max(RECENT)), times: VecDeque::new() }
    }

    /// Once more; false if that was too often.
    pub fn another(&mut self) -> bool {
        if let Some(within) = self.within {
            while self.times.front().is_some_and(|time| time.elapsed() > within) {
                self.times.pop_front();
            }
        }
        self.times.push_back(Instant::now());
        self.times.len() <= MOST
    }
}

impl Reconnect {
    /// A connection that has passed all that the first ones had to; `None` where there is nothing left
    /// to do for it, or it cannot be had. Tried for as long as a lease, if there is one.
    pub fn replace(&self, queue: &Queue, lease: Option<Duration>) -> Option<Session> {
        let end = lease.map(|lease| Instant::now() + lease);
        match self.persist(end, || !queue.is_complete(), |deadline| self.session(deadline)) {
            Ok(session) => {
                let mut session = session?;
                session.lift_deadline();
                Some(session)
            }
            Err(error) => {
                report::warning(format_args!("could not replace the connection that was lost: {error}"));
                None
            }
        }
    }

    /// Tries until it succeeds, with growing pauses: a few times, or until a moment. `None` if the backup has
    /// failed meanwhile or nobody wants it any more. Each try has a deadline. One that fails for another reason
    /// than a connection is the last.
    pub fn persist<T>(
        &self,
        end: Option<Instant>,
        is_wanted: impl Fn() -> bool,
        mut attempt: impl FnMut(Instant) -> Result<T>,
    ) -> Result<Option<T>> {
        let (mut number, mut refusals) = (0, 0);
        loop {
            let pause = by_chance(PAUSES[number.min(PAUSES.len() - 1)]);
            let left = end.map_or(pause, |end| end.saturating_duration_since(Instant::now()));
            if !self.pause(pause.min(left), &is_wanted) {
                return Ok(None);
            }
            number += 1;
            let is_last = match end {
                Some(end) => Instant::now() >= end,
                None => number == PAUSES.len(),
            };
            match attempt(Instant::now() + DEADLINE) {
                Ok(made) => return Ok(Some(made)),
                Err(error) if error.kind() == Kind::Aborted => return Ok(None),
                // Another server, or one that has changed: it will not change back.
                Err(error) if is_last || error.kind() != Kind::Connection => return Err(error),
                Err(error) if end.is_some() && !self.waits_for_server => {
                    refusals = if self.connector.nobody_listens() { refusals + 1 } else { 0 };
                    if refusals == REFUSALS {
                        return Err(error);
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// A connection of the backup's, which has the deadline still.
    pub fn session(&self, deadline: Instant) -> Result<Session> {
        let mut session = route::reconnect(&self.connector, self.route, deadline)?;
        check_same(&mut session, &self.system)?;
        Ok(session)
    }

    /// One for the WAL stream. Its timeline may be a later one than that of the first: the stream goes across them.
    pub fn wal_session(&self, deadline: Instant) -> Result<Session> {
        let mut session = route::reconnect(&self.connector, Route::Replication, deadline)?;
        check_same(&mut session, &System { timeline: None, ..self.system.clone() })?;
        session.lift_deadline();
        Ok(session)
    }

    /// The same for what is left to do when the backup has failed.
    pub fn after_failure(&self) -> io::Result<Self> {
        let abort = Arc::new(Abort::new()?);
        Ok(Self {
            connector: self.connector.ended_by(Arc::clone(&abort)),
            route: self.route,
            system: self.system.clone(),
            abort,
            waits_for_server: self.waits_for_server,
        })
    }

    /// False if meanwhile the backup has failed or nobody wants it any more.
    fn pause(&self, length: Duration, is_wanted: impl Fn() -> bool) -> bool {
        let end = Instant::now() + length;
        loop {
            if self.abort.check().is_err() || !is_wanted() {
                return false;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

/// About so long.
fn by_chance(pause: Duration) -> Duration {
    // The keys of a hash are random: nothing more is wanted here.
    let percent = 100 - CHANCE + RandomState::new().hash_one(()) % (2 * CHANCE + 1);
    pause * u32::try_from(percent).unwrap_or(100) / 100
}

/// Fails unless a connection goes to the cluster that the first has reached, on its timeline.
pub fn check_same(session: &mut Session, system: &System) -> Result<()> {
    let found = session.identify_system()?;
    if found.identifier != system.identifier {
        return Err(Error::local("system identifier does not match between connections"));
    }
    if let (Some(first), Some(found)) = (system.timeline, found.timeline)
        && first != found
    {
        return Err(Error::local(format!(
            "timeline does not match between connections: {first} and {found}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_but_not_much() {
        for pause in PAUSES {
            for _ in 0..100 {
                let found = by_chance(pause);
                assert!(found >= pause * 3 / 4 && found <= pause * 5 / 4, "{found:?}");
            }
        }
    }

    #[test]
    fn losses_count_within_a_time() {
        let mut all = Losses::new(None);
        assert!((0..MOST).all(|_| all.another()) && !all.another());
        let mut short = Losses::new(Some(Duration::ZERO));
        assert!((0..MOST).all(|_| short.another()) && !short.another());
        let mut recent = Losses { within: Some(Duration::ZERO), times: VecDeque::new() };
        assert!((0..3 * MOST).all(|_| {
            std::thread::sleep(Duration::from_micros(10));
            recent.another()
        }));
    }
}
