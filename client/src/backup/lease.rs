//! A backup that the server keeps when the connection that coordinates it is lost (`docs/protocol.md`, Leases):
//! coming back to it, and giving it up in the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::{BackupId, Command, SqlState};

use super::Backup;
use super::start::Start;
use crate::error::{Error, Kind, Result};
use crate::fetch::reconnect::{Losses, Reconnect};
use crate::options::{Lease, Wal};
use crate::report;
use crate::server::connection::Session;
use crate::server::farewell;

/// How long it is tried to tell the server that a backup is over. It finds out by itself when the lease has run
/// out. With a lease that nobody has asked for nobody expects to wait.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
const LIGHT_RELEASE_PATIENCE: Duration = Duration::from_secs(2);
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);

/// How often a connection is looked at that has nothing to do.
const LOOK: Duration = Duration::from_millis(250);

/// A backup that the server keeps.
#[derive(Debug)]
pub(super) struct Held {
    id: BackupId,
    lease: Duration,
    is_light: bool,
    /// What it must be, whoever comes back to it.
    start: Start,
    losses: Mutex<Losses>,
    /// Whether the server has let it go.
    is_released: AtomicBool,
}

impl Held {
    /// Nothing was lost so far.
    pub(super) fn new(start: &Start, seconds: u32, lease: Lease) -> Self {
        let is_light = lease == Lease::Light;
        let lease = Duration::from_secs(u64::from(seconds));
        let losses = Mutex::new(Losses::new(Some(lease)));
        let is_released = AtomicBool::new(false);
        Self { id: start.id, lease, is_light, start: start.clone(), losses, is_released }
    }

    /// Its name.
    pub(super) fn id(&self) -> BackupId {
        self.id
    }

    /// For how long.
    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// One try to become the backup's coordinator.
    fn attach(&self, reconnect: &Reconnect, deadline: Instant) -> Result<Session> {
        let mut session = reconnect.session(deadline)?;
        let (found, _) = super::start::attach(&mut session, self.id)?;
        if found != self.start {
            return Err(Error::local("the backup on the server is not the one that was begun"));
        }
        session.lift_deadline();
        Ok(session)
    }
}

impl Backup<'_> {
    /// For how long the server keeps the backup, if it does.
    pub(super) fn lease(&self) -> Option<Duration> {
        self.held.get().map(Held::lease)
    }

    /// Does something over the coordinator's connection; again, over another, if that is lost and the server keeps the
    /// backup. An error of kind `Connection` is left only where there is no lease.
    pub(super) fn coordinated<T>(
        &self,
        coordinator: &mut Session,
        mut step: impl FnMut(&mut Session) -> Result<T>,
    ) -> Result<T> {
        loop {
            match step(coordinator) {
                Err(error) if error.kind() == Kind::Connection && self.held.get().is_some() => {
                    self.come_back(coordinator, &error)?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Looks after the coordinator's connection until something else is over: with nobody attached the lease
    /// would run out.
    pub(super) fn attend(&self, coordinator: &mut Session, is_over: impl Fn() -> bool) -> Result<()> {
        while self.held.get().is_some() && !is_over() && self.abort.check().is_ok() {
            self.coordinated(coordinator, Session::check_alive)?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Puts another connection into the place of the coordinator's, which is lost.
    fn come_back(&self, coordinator: &mut Session, lost: &Error) -> Result<()> {
        let (Some(held), Some(reconnect)) = (self.held.get(), self.reconnect.get()) else {
            return Err(lost.clone());
        };
        let again = || lost.clone().context("lost the connection that coordinates the backup").fatal();
        self.lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(u32::try_from(coordinator.backend_pid()));
        self.counters.connection_lost();
        coordinator.abandon();
        if !held.losses.lock().unwrap_or_else(PoisonError::into_inner).another() {
            return Err(again());
        }
        report::warning(format_args!(
            "lost the connection that coordinates the backup, trying to come back within {} s: {lost}",
            held.lease.as_secs()
        ));
        let end = Instant::now() + held.lease;
        match reconnect.persist(Some(end), || true, |deadline| held.attach(reconnect, deadline)) {
            Ok(Some(session)) => {
                *coordinator = session;
                self.counters.connection_replaced();
                self.say("came back to the backup");
                Ok(())
            }
            Ok(None) => Err(Error::aborted()),
            Err(error) if error.is_server(SqlState::UNDEFINED_OBJECT) => {
                Err(error.context("the server does not have the backup any more").passing().fatal())
            }
            Err(error) => Err(error.context("could not come back to the backup").fatal()),
        }
    }

    /// START_BACKUP. With a lease it may take more than one connection.
    pub(super) fn start_held(&self, coordinator: &mut Session, lease: Lease) -> Result<Start> {
        let Some(seconds) = lease.seconds() else { return self.start(coordinator, lease, None) };
        let refused = match self.start_named(coordinator, lease, Duration::from_secs(u64::from(seconds))) {
            Err(error) if lease == Lease::Light && error.is_lack() => error.message().to_owned(),
            // By the procedures of a database whose extension was not updated along with the library.
            Err(error) if lease == Lease::Light && error.is_server(SqlState::UNDEFINED_FUNCTION) => {
                "the database needs ALTER EXTENSION pg_parallel_backup UPDATE".to_owned()
            }
            outcome => return outcome,
        };
        // Nobody has asked for one. If what is missing is not the lease alone it is said now.
        let start = self.start(coordinator, Lease::Never, None)?;
        report::warning(format_args!(
            "the backup has no lease, a connection that is lost ends it: {refused}"
        ));
        Ok(start)
    }

    /// START_BACKUP by a name that is known here; over another connection, if that is lost. What the first one has started
    /// is found by its name, if its answer alone is what was lost, and cancelled, if it is still at its checkpoint.
    fn start_named(&self, coordinator: &mut Session, lease: Lease, patience: Duration) -> Result<Start> {
        let mut losses = Losses::new(Some(patience));
        loop {
            let id = random_id()?;
            let canceller = coordinator.canceller();
            let error = match self.start(coordinator, lease, Some(id)) {
                Err(error) if error.kind() == Kind::Connection && losses.another() => error,
                outcome => return outcome,
            };
            let Some(reconnect) = self.reconnect.get() else { return Err(error) };
            // The server does not look at a client that waits for a checkpoint.
            canceller.into_iter().for_each(crate::server::cancel::start);
            coordinator.abandon();
            self.counters.connection_lost();
            report::warning(format_args!("lost a connection, will start the backup again: {error}"));
            let end = Instant::now() + patience;
            let made = reconnect.persist(
                Some(end),
                || true,
                |deadline| {
                    let mut session = reconnect.session(deadline)?;
                    match super::start::attach(&mut session, id) {
                        Ok(found) => Ok((session, Some(found))),
                        Err(error) if error.is_server(SqlState::UNDEFINED_OBJECT) => Ok((session, None)),
                        Err(error) => Err(error),
                    }
                },
            )?;
            let (session, found) = made.ok_or_else(Error::aborted)?;
            *coordinator = session;
            coordinator.lift_deadline();
            self.counters.connection_replaced();
            if let Some((start, granted)) = found {
                self.say("the backup has started already");
                self.started(&start, granted, lease);
                return Ok(start);
            }
        }
    }

    /// Another connection for the WAL stream, whose own was lost. The server keeps what it needs.
    pub(super) fn come_back_to_wal(&self, losses: &mut Losses, lost: Error) -> Result<Session> {
        let (Some(held), Some(reconnect)) = (self.held.get(), self.reconnect.get()) else { return Err(lost) };
        self.counters.connection_lost();
        if !losses.another() {
            return Err(lost);
        }
        report::warning(format_args!("lost the connection of the WAL stream, trying to go on: {lost}"));
        let end = Instant::now() + held.lease;
        let made = reconnect.persist(Some(end), || true, |deadline| reconnect.wal_session(deadline))?;
        self.counters.connection_replaced();
        made.ok_or_else(Error::aborted).inspect(|_| self.say("going on with the WAL stream"))
    }

    /// An error of a backup with a lease, and what is left to do.
    pub(super) fn explain(&self, error: Error) -> Error {
        let error = self.cleanup.explain(error);
        if self.options.lease.is_asked_for() && error.may_pass() && error.hint().is_none() {
            error.with_hint("What was in the way may pass: the backup can be begun anew by the same command.")
        } else {
            error
        }
    }

    /// Everything is there: the server need not keep the backup any longer.
    pub(super) fn release(&self, coordinator: Session) {
        let (Some(held), Some(reconnect)) = (self.held.get(), self.reconnect.get()) else { return };
        self.let_go(held, reconnect, Some(coordinator));
    }

    /// The backup has failed: nothing of it stays on the server, if that can be reached.
    pub(super) fn give_up(&self, error: &Error) {
        let (Some(held), Some(reconnect)) = (self.held.get(), self.reconnect.get()) else { return };
        // Whoever has come after us has it, and goes on. That it does not exist any more is not looked at: what does not
        // exist may be something else.
        if self.cleanup.has_left() || error.is_taken_over() {
            farewell::forget();
            return;
        }
        // With signals and failures behind us: of these nobody would hear in a wait any more.
        let Ok(reconnect) = reconnect.after_failure() else { return };
        self.let_go(held, &reconnect, None);
    }

    /// A second signal ends this program before it comes to [`give_up`](Self::give_up): then the server is told all the same,
    /// in one short try.
    pub(super) fn prepare_farewell(&self) {
        let (Some(held), Some(reconnect)) = (self.held.get(), self.reconnect.get()) else { return };
        let Ok(reconnect) = reconnect.after_failure() else { return };
        let id = held.id;
        farewell::prepare(move || {
            let deadline = Instant::now() + FAREWELL_PATIENCE;
            let release = || -> Result<()> {
                let mut session = reconnect.session(deadline)?;
                super::start::attach(&mut session, id)?;
                session.send_command(&Command::Release(Some(id)))?;
                session.finish()
            };
            // It ends with its lease otherwise, and nobody waits to hear of that.
            let _ = release();
        });
    }

    /// Whether the backup can be released as soon as it is stopped, in the same round trip: where nothing is kept of it, and nothing
    /// is to come, nobody would go on with it then. Who has asked for a lease has it until the answer is there.
    pub(super) fn is_released_with_stop(&self) -> bool {
        self.options.discard
            && self.options.wal == Wal::None
            && self.held.get().is_some_and(|held| held.is_light)
    }

    /// The server has released it.
    pub(super) fn released(&self) {
        if let Some(held) = self.held.get() {
            held.is_released.store(true, Ordering::Relaxed);
            farewell::forget();
            self.say("released the backup on the server");
        }
    }

    fn let_go(&self, held: &Held, reconnect: &Reconnect, mut coordinator: Option<Session>) {
        if held.is_released.load(Ordering::Relaxed) {
            return;
        }
        let patience = if held.is_light { LIGHT_RELEASE_PATIENCE } else { RELEASE_PATIENCE };
        let end = Instant::now() + patience.min(held.lease);
        let mut attempt = |deadline: Instant| -> Result<()> {
            let mut session = match coordinator.take() {
                Some(session) => session,
                None => held.attach(reconnect, deadline)?,
            };
            session.set_deadline(deadline);
            session.send_command(&Command::Release(Some(held.id)))?;
            session.finish()
        };
        // Usually the connection is there, and there is nothing to wait for.
        let released = match attempt(end) {
            Err(error) if error.kind() == Kind::Connection => {
                reconnect.persist(Some(end), || true, &mut attempt)
            }
            outcome => outcome.map(Some),
        };
        match released {
            Ok(Some(())) => self.released(),
            // The answer was lost, or the lease is over.
            Err(error) if error.is_server(SqlState::UNDEFINED_OBJECT) => {}
            Ok(None) => {}
            Err(error) => report::warning(format_args!(
                "could not release the backup on the server, which keeps it for {} s: {error}",
                held.lease.as_secs()
            )),
        }
    }
}

/// A name for a backup, which no other has.
fn random_id() -> Result<BackupId> {
    let mut bytes = [0; 16];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(16) => Ok(BackupId::from_bytes(bytes)),
        _ => Err(Error::local("could not generate random backup identifier")),
    }
}
