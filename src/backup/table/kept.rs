//! The steps of a backup that has a lease: what its keeper, and sessions that attach, do beside.

use protocol::BackupId;

use super::{Backup, State, Table};
use crate::backup::lease::{End, Lease, Process, Told};
use crate::error::{Error, Result};

impl Table<'_> {
    /// Makes a process the keeper of a backup that starts; fails if there is nothing to keep any more.
    pub fn adopt(&mut self, id: BackupId, keeper: Process) -> Result<usize> {
        let place = self.place(id).ok_or(Error::UnknownBackup(id))?;
        let backup = &mut self.backups[place];
        match &mut backup.lease {
            Some(lease) if backup.state == State::Starting && lease.keeper.is_none() => {
                lease.keeper = Some(keeper);
                backup.abandoned = false;
                self.changed(id);
                Ok(place)
            }
            _ => Err(Error::Aborted(id)),
        }
    }

    /// Ends the keeper's part in a backup, and with it the backup.
    pub fn dismiss(&mut self, id: BackupId, end: End) {
        let Some(place) = self.place(id) else { return };
        self.end(id, end);
        self.backups[place].abandoned = true;
        if let Some(lease) = &mut self.backups[place].lease {
            lease.keeper = None;
        }
        self.sweep();
    }

    /// Aborts a backup that has a lease, and says why, unless something else has ended it before.
    pub fn end(&mut self, id: BackupId, end: End) {
        let Some(place) = self.place(id) else { return };
        if let Some(lease) = &mut self.backups[place].lease
            && lease.end == End::None
        {
            lease.end = end;
        }
        self.abort(id);
    }

    /// Makes a process the coordinator of a backup that has a lease, in place of whoever was.
    pub fn attach(&mut self, id: BackupId, process: Process) -> Result<usize> {
        let place = self.place(id).ok_or(Error::LeaseGone(id))?;
        let backup = &mut self.backups[place];
        match backup.state {
            State::Running | State::Stopping | State::Stopped => {}
            State::Free | State::Starting | State::Aborted => return Err(Error::LeaseGone(id)),
        }
        let Some(lease) = &mut backup.lease else { return Err(Error::NoLease(id)) };
        // Whoever was attached hears of it.
        self.wake.extend(lease.attached.map(|process| process.waker));
        lease.attached = Some(process);
        lease.attachments = lease.attachments.wrapping_add(1);
        backup.owner.pid = process.pid;
        self.changed(id);
        Ok(place)
    }

    /// Ends a backup whose lease has run out by now, of the monotonic clock; otherwise says how much of it is
    /// left, in microseconds, if it is running.
    pub fn expire(&mut self, id: BackupId, now: i64) -> Option<i64> {
        let place = self.place(id)?;
        let left = self.backups[place].lease?.left(now)?;
        if left <= 0 {
            self.end(id, End::LeaseOver);
        }
        Some(left)
    }

    /// Closes a backup that has a lease to transfers, and so asks its keeper to stop it. Nothing happens if that is
    /// so already. Fails if this process is not its coordinator any more.
    pub fn ask_to_stop(&mut self, id: BackupId, pid: u32) -> Result<()> {
        let backup = self.kept(id, pid)?;
        if matches!(backup.state, State::Stopping | State::Stopped) {
            return Ok(());
        }
        self.begin_stop(id)?;
        if let Some(place) = self.place(id)
            && let Some(lease) = &mut self.backups[place].lease
        {
            lease.told = Told::NOTHING;
        }
        self.changed(id);
        Ok(())
    }

    /// A backup that has a lease, as its coordinator sees it; fails if this process is not that, or the backup has
    /// ended.
    pub fn kept(&self, id: BackupId, pid: u32) -> Result<Backup> {
        let backup = self.place(id).map(|place| self.backups[place]).ok_or(Error::Aborted(id))?;
        let lease = backup.lease.ok_or(Error::UnknownBackup(id))?;
        if !lease.is_attached(pid) {
            return Err(Error::TakenOver(id));
        }
        if backup.state == State::Aborted { Err(backup.ended()) } else { Ok(backup) }
    }

    /// Notes what its keeper has to say to the coordinator.
    pub fn note(&mut self, id: BackupId, note: impl FnOnce(&mut Lease)) {
        if let Some(lease) = self.place(id).and_then(|place| self.backups[place].lease.as_mut()) {
            note(lease);
            self.changed(id);
        }
    }

    /// Who is still sending something of a backup as its coordinator, and is not that any more.
    pub fn left_behind(&self, id: BackupId) -> impl Iterator<Item = u32> + '_ {
        let attachments =
            self.place(id).and_then(|place| self.backups[place].lease).map(|lease| lease.attachments);
        let transfers = self.transfers.iter().flatten().filter(move |transfer| transfer.id == id);
        let left = transfers
            .filter(move |transfer| transfer.attachment.is_some() && transfer.attachment != attachments);
        left.map(|transfer| transfer.member.pid)
    }
}
