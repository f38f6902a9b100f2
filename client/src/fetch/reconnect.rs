//! A connection in place of one that was lost in the middle of a backup. It is made without a wait that
//! could hold up the end: no prompt, a deadline for each try, and none once there is nothing left to fetch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::abort::Abort;
use crate::error::{Error, Kind, Result};
use crate::fetch::queue::Queue;
use crate::report;
use crate::server::connection::{Connector, Route, Session, System};
use crate::server::route;

/// How long each try waits before it begins: a server that restarts a failover, or a full table of
/// connections, needs a moment, and must not be besieged.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// How long a try may take, from the first byte to the last look at whom it has reached.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often one worker's connection is made again: somebody means it who ends it more often.
pub const MOST: usize = 20;

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
}

impl Reconnect {
    /// A connection that has passed all that the first ones had to; `None` where there is nothing left
    /// to do for it, or it cannot be had.
    pub fn replace(&self, queue: &Queue) -> Option<Session> {
        let mut last = None;
        for pause in PAUSES {
            if !self.pause(pause, queue) {
                return None;
            }
            match self.attempt() {
                Ok(session) => return Some(session),
                Err(error) if error.kind() == Kind::Aborted => return None,
                Err(error) => {
                    // Another server, or one that has changed: it will not change back.
                    let in_vain = error.kind() != Kind::Connection;
                    last = Some(error);
                    if in_vain {
                        break;
                    }
                }
            }
        }
        if let Some(error) = last {
            report::warning(format_args!("could not replace the connection that was lost: {error}"));
        }
        None
    }

    fn attempt(&self) -> Result<Session> {
        let mut session = route::reconnect(&self.connector, self.route, Instant::now() + DEADLINE)?;
        check_same(&mut session, &self.system)?;
        session.lift_deadline();
        Ok(session)
    }

    /// False if meanwhile the backup has failed or the others have fetched everything.
    fn pause(&self, length: Duration, queue: &Queue) -> bool {
        let end = Instant::now() + length;
        loop {
            if self.abort.check().is_err() || queue.is_complete() {
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
