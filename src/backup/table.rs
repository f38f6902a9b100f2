//! The life of the backups of this server, and who is sending something of them.
//!
//! Nothing here calls PostgreSQL or waits. The registry holds its lock around each call, so that a
//! call is one step to everybody else. A backup is named by its identifier and never by its place:
//! what is late finds that its backup is gone, and not another that has its place by now.

mod kept;

use protocol::{BackupId, Lsn};

use crate::backup::lease::{End, Lease, Process};
use crate::error::{Error, Result};
use crate::pg::latch::Waker;
use crate::pg::server::MAX_PATH;

/// Where a backup is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No backup.
    Free,
    /// START_BACKUP is under way.
    Starting,
    /// Files may be fetched.
    Running,
    /// STOP_BACKUP is under way.
    Stopping,
    /// Over; the WAL it needs may be fetched.
    Stopped,
    /// Over before it was stopped.
    Aborted,
}

/// What START_BACKUP settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Whether it has only what has changed since a prior backup: its list is the coordinator's to send.
    pub incremental: bool,
}

/// A backend that takes part in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The process.
    pub pid: u32,
    /// The role that it acted as when it joined.
    pub role: u32,
    /// The role that it logged in as, by which the rights to signal it go.
    pub login_role: u32,
}

/// One backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backup {
    /// Its state; nothing else means anything while it is [`State::Free`].
    pub state: State,
    /// Its name.
    pub id: BackupId,
    /// The coordinator. With a lease its process is whoever was attached last, its roles those of whom it
    /// was started by: it stays their backup.
    pub owner: Member,
    /// Whether the coordinator is gone, or has given the backup up. With a lease, whether its keeper is.
    pub abandoned: bool,
    /// What a backup has that outlives its coordinator.
    pub lease: Option<Lease>,
    /// When it started, microseconds since PostgreSQL's epoch.
    pub started_at: i64,
    /// What START_BACKUP settles, once it has.
    pub facts: Option<Facts>,
    /// Where it was stopped, LSN and timeline, once it was.
    pub stopped_at: Option<(Lsn, u32)>,
    label_length: usize,
    label: [u8; MAX_PATH],
}

/// A backend that is sending something of a backup; a backend sends one thing at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The backup.
    pub id: BackupId,
    /// Who sends it.
    pub member: Member,
    /// Which attachment it belongs to, where the coordinator of a backup with a lease sends it.
    pub attachment: Option<u32>,
}

/// The backups and transfers of the server.
#[derive(Debug)]
pub struct Table<'a> {
    /// A place each.
    pub backups: &'a mut [Backup],
    /// As many places as the server has backends.
    pub transfers: &'a mut [Option<Transfer>],
    /// Who has to look at what has changed, once the step is done.
    pub wake: Vec<Waker>,
}

impl Backup {
    /// A free place.
    pub const FREE: Self = Self {
        state: State::Free,
        id: BackupId::from_bytes([0; 16]),
        owner: Member { pid: 0, role: 0, login_role: 0 },
        abandoned: true,
        lease: None,
        started_at: 0,
        facts: None,
        stopped_at: None,
        label_length: 0,
        label: [0; MAX_PATH],
    };

    /// The label's bytes.
    pub fn label(&self) -> &[u8] {
        &self.label[..self.label_length]
    }

    /// The coordinator's process, if it has one.
    pub fn coordinator(&self) -> Option<u32> {
        match &self.lease {
            Some(lease) => lease.attached.map(|process| process.pid),
            None => (!self.abandoned).then_some(self.owner.pid),
        }
    }

    /// Which attachment this process has, if it is the coordinator of a backup with a lease.
    pub fn attachment(&self, pid: u32) -> Option<u32> {
        self.lease.filter(|lease| lease.is_attached(pid)).map(|lease| lease.attachments)
    }

    /// What those are told who take part in a backup that was aborted.
    pub fn ended(&self) -> Error {
        self.lease.map_or(Error::Aborted(self.id), |lease| lease.end.error(self.id, &lease.told))
    }

    /// Whether nobody but transfers is in it.
    fn is_left(&self) -> bool {
        self.abandoned && self.lease.is_none_or(|lease| lease.attached.is_none())
    }
}

impl Table<'_> {
    /// The place of a backup, in whatever state it is.
    pub fn place(&self, id: BackupId) -> Option<usize> {
        self.backups.iter().position(|backup| backup.state != State::Free && backup.id == id)
    }

    /// Who is sending something of a backup.
    pub fn transfers(&self, id: BackupId) -> impl Iterator<Item = Member> + '_ {
        self.transfers.iter().flatten().filter(move |transfer| transfer.id == id).map(|t| t.member)
    }

    /// Takes a free place for a backup that starts; `None` where there is none. With a lease it is the
    /// keeper's from [`adopt`](Self::adopt) on.
    pub fn reserve(
        &mut self,
        id: BackupId,
        owner: Member,
        label: &[u8],
        now: i64,
        lease: Option<Lease>,
    ) -> Option<usize> {
        let place = self.backups.iter().position(|backup| backup.state == State::Free)?;
        let length = label.len().min(MAX_PATH);
        let backup = &mut self.backups[place];
        *backup = Backup {
            state: State::Starting,
            id,
            owner,
            abandoned: lease.is_some(),
            lease,
            started_at: now,
            label_length: length,
            ..Backup::FREE
        };
        backup.label[..length].copy_from_slice(&label[..length]);
        Some(place)
    }

    /// Ends the backup that gives its place to another, if there is one: its lease is light, nobody has been attached to it
    /// for the longest time, and nothing of it is being sent. Its place is free when its keeper has gone.
    pub fn give_up_light(&mut self) -> Option<BackupId> {
        let detached_at = |backup: &Backup| {
            let lease = backup.lease.filter(|lease| lease.light && lease.attached.is_none())?;
            let lasts = matches!(backup.state, State::Running | State::Stopping | State::Stopped);
            (lasts && self.transfers(backup.id).next().is_none()).then_some((lease.detached_at, backup.id))
        };
        let id = self.backups.iter().filter_map(detached_at).min_by_key(|(at, _)| *at)?.1;
        self.end(id, End::GivenUp);
        Some(id)
    }

    /// Opens a backup to transfers; fails if it was aborted meanwhile.
    pub fn run(&mut self, id: BackupId, facts: Facts) -> Result<()> {
        let backup = self.change(id, State::Starting, State::Running).ok_or(Error::Aborted(id))?;
        backup.facts = Some(facts);
        self.changed(id);
        Ok(())
    }

    /// Joins a backup that is running, or stopped with its WAL to be fetched. Returns its place, which
    /// no other backup has before [`leave`](Self::leave).
    pub fn enter(&mut self, id: BackupId, member: Member) -> Result<usize> {
        let place = self.place(id).ok_or(Error::UnknownBackup(id))?;
        match self.backups[place].state {
            State::Running | State::Stopped => {}
            State::Stopping => return Err(Error::Stopping(id)),
            State::Free | State::Starting | State::Aborted => return Err(Error::UnknownBackup(id)),
        }
        let attachment = self.backups[place].attachment(member.pid);
        // There is a place for every backend of the server.
        let free = self.transfers.iter_mut().find(|transfer| transfer.is_none());
        *free.ok_or(Error::UnknownBackup(id))? = Some(Transfer { id, member, attachment });
        Ok(place)
    }

    /// Ends what this process is sending.
    pub fn leave(&mut self, pid: u32) {
        for transfer in self.transfers.iter_mut() {
            if transfer.is_some_and(|transfer| transfer.member.pid == pid) {
                *transfer = None;
            }
        }
        self.sweep();
    }

    /// Closes a backup to transfers; fails, and leaves it open, while one runs.
    pub fn begin_stop(&mut self, id: BackupId) -> Result<()> {
        let transfers = self.transfers(id).count();
        if transfers > 0 && self.place(id).is_some_and(|place| self.backups[place].state == State::Running) {
            return Err(Error::TransfersRunning { transfers });
        }
        self.change(id, State::Running, State::Stopping).map(drop).ok_or(Error::Aborted(id))
    }

    /// Opens it again after a stop that did not get as far as leaving backup mode.
    pub fn resume(&mut self, id: BackupId) {
        self.change(id, State::Stopping, State::Running);
        self.changed(id);
    }

    /// Marks it stopped; its WAL may be fetched.
    pub fn stop(&mut self, id: BackupId, lsn: Lsn, timeline: u32) {
        if let Some(backup) = self.change(id, State::Stopping, State::Stopped) {
            backup.stopped_at = Some((lsn, timeline));
        }
        self.changed(id);
    }

    /// Marks it aborted: every transfer of it ends at its next step. False if it was over already.
    pub fn abort(&mut self, id: BackupId) -> bool {
        let aborted = [State::Starting, State::Running, State::Stopping, State::Stopped]
            .into_iter()
            .any(|state| self.change(id, state, State::Aborted).is_some());
        self.changed(id);
        aborted
    }

    /// Ends this process's part in it as its coordinator, if it is that; its place is free once the last transfer has
    /// ended too. With a lease its keeper has yet to end it, and is returned.
    pub fn release(&mut self, id: BackupId, pid: u32) -> Option<Process> {
        let place = self.place(id)?;
        let backup = &self.backups[place];
        let keeper = match backup.lease {
            None if backup.owner.pid == pid => None,
            Some(lease) if lease.is_attached(pid) => lease.keeper,
            None | Some(_) => return None,
        };
        self.abort(id);
        match &mut self.backups[place].lease {
            Some(lease) => lease.attached = None,
            None => self.backups[place].abandoned = true,
        }
        self.sweep();
        keeper
    }

    /// Ends every part that a process has, in whatever backup: it ends. `now` is when by the monotonic clock,
    /// in microseconds. Returns the keeper of a backup that was still starting, which has to be told.
    pub fn gone(&mut self, pid: u32, now: i64) -> Option<Process> {
        let mut keeper = None;
        for place in 0..self.backups.len() {
            let backup = &self.backups[place];
            let (id, state) = (backup.id, backup.state);
            if state == State::Free {
                continue;
            }
            match backup.lease {
                None if !backup.abandoned && backup.owner.pid == pid => {
                    self.release(id, pid);
                }
                Some(lease) if lease.is_attached(pid) => {
                    if state == State::Starting {
                        // Nobody else knows its name.
                        keeper = self.release(id, pid);
                    } else if let Some(lease) = &mut self.backups[place].lease {
                        lease.attached = None;
                        lease.detached_at = now;
                        self.changed(id);
                    }
                }
                _ => {}
            }
        }
        self.leave(pid);
        keeper
    }

    /// Keeper and coordinator of a backup have to look at it.
    fn changed(&mut self, id: BackupId) {
        if let Some(lease) = self.place(id).and_then(|place| self.backups[place].lease) {
            self.wake
                .extend([lease.keeper, lease.attached].into_iter().flatten().map(|process| process.waker));
        }
    }

    /// Goes from one state to another; `None` if it was in a third.
    fn change(&mut self, id: BackupId, from: State, to: State) -> Option<&mut Backup> {
        let place = self.place(id)?;
        let backup = &mut self.backups[place];
        if backup.state != from {
            return None;
        }
        backup.state = to;
        Some(backup)
    }

    /// Frees the places of what has neither coordinator, keeper nor transfers.
    fn sweep(&mut self) {
        for place in 0..self.backups.len() {
            let backup = &self.backups[place];
            if backup.state != State::Free && backup.is_left() && self.transfers(backup.id).next().is_none() {
                self.backups[place] = Backup::FREE;
            }
        }
    }
}

#[cfg(test)]
mod kept_tests;
#[cfg(test)]
mod tests;
