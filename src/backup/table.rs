//! The life of the backups of this server, and who is sending something of them.
//!
//! Nothing here calls PostgreSQL or waits. The registry holds its lock around each call, so that a
//! call is one step to everybody else. A backup is named by its identifier and never by its place:
//! what is late finds that its backup is gone, and not another that has its place by now.

use protocol::{BackupId, Lsn};

use crate::error::{Error, Result};
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
    /// The coordinator.
    pub owner: Member,
    /// Whether the coordinator is gone, or has given the backup up.
    pub abandoned: bool,
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
}

/// The backups and transfers of the server.
#[derive(Debug)]
pub struct Table<'a> {
    /// A place each.
    pub backups: &'a mut [Backup],
    /// As many places as the server has backends.
    pub transfers: &'a mut [Option<Transfer>],
}

impl Backup {
    /// A free place.
    pub const FREE: Self = Self {
        state: State::Free,
        id: BackupId::from_bytes([0; 16]),
        owner: Member { pid: 0, role: 0, login_role: 0 },
        abandoned: true,
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

    /// Takes a free place for a backup that starts; `None` where there is none.
    pub fn reserve(&mut self, id: BackupId, owner: Member, label: &[u8], now: i64) -> Option<usize> {
        let place = self.backups.iter().position(|backup| backup.state == State::Free)?;
        let length = label.len().min(MAX_PATH);
        let backup = &mut self.backups[place];
        *backup = Backup {
            state: State::Starting,
            id,
            owner,
            abandoned: false,
            started_at: now,
            label_length: length,
            ..Backup::FREE
        };
        backup.label[..length].copy_from_slice(&label[..length]);
        Some(place)
    }

    /// Opens a backup to transfers; fails if it was aborted meanwhile.
    pub fn run(&mut self, id: BackupId, facts: Facts) -> Result<()> {
        let backup = self.change(id, State::Starting, State::Running).ok_or(Error::Aborted(id))?;
        backup.facts = Some(facts);
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
        // There is a place for every backend of the server.
        let free = self.transfers.iter_mut().find(|transfer| transfer.is_none());
        *free.ok_or(Error::UnknownBackup(id))? = Some(Transfer { id, member });
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
    }

    /// Marks it stopped; its WAL may be fetched.
    pub fn stop(&mut self, id: BackupId, lsn: Lsn, timeline: u32) {
        if let Some(backup) = self.change(id, State::Stopping, State::Stopped) {
            backup.stopped_at = Some((lsn, timeline));
        }
    }

    /// Marks it aborted: every transfer of it ends at its next step. False if it was over already.
    pub fn abort(&mut self, id: BackupId) -> bool {
        [State::Starting, State::Running, State::Stopping, State::Stopped]
            .into_iter()
            .any(|state| self.change(id, state, State::Aborted).is_some())
    }

    /// Ends the coordinator's part in it; its place is free once the last transfer has ended too.
    pub fn release(&mut self, id: BackupId) {
        if let Some(place) = self.place(id) {
            self.abort(id);
            self.backups[place].abandoned = true;
            self.sweep();
        }
    }

    /// Ends every part that a process has, in whatever backup: it ends.
    pub fn gone(&mut self, pid: u32) {
        for place in 0..self.backups.len() {
            let backup = &self.backups[place];
            if backup.state != State::Free && !backup.abandoned && backup.owner.pid == pid {
                self.release(backup.id);
            }
        }
        self.leave(pid);
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

    /// Frees the places of what has neither coordinator nor transfers.
    fn sweep(&mut self) {
        for place in 0..self.backups.len() {
            let backup = &self.backups[place];
            if backup.state != State::Free && backup.abandoned && self.transfers(backup.id).next().is_none() {
                self.backups[place] = Backup::FREE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const A: BackupId = BackupId::from_bytes([0xA; 16]);
    const B: BackupId = BackupId::from_bytes([0xB; 16]);
    const FACTS: Facts = Facts {
        start_lsn: Lsn(0x0100_0028),
        start_timeline: 1,
        in_recovery: false,
        verify_checksums: true,
        max_rate: None,
        layout_handle: 7,
        incremental: false,
    };

    /// A step of a process, about a backup.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Step {
        Reserve(BackupId),
        Run(BackupId),
        Enter(BackupId),
        Leave,
        BeginStop(BackupId),
        Resume(BackupId),
        Stop(BackupId),
        Abort(BackupId),
        Release(BackupId),
        Gone,
    }
    use Step::*;

    /// What is true of a backup by the steps that named it, with nothing else of the server known.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Model {
        state: State,
        owned: bool,
        workers: Vec<u32>,
    }

    impl Model {
        const NONE: Self = Self { state: State::Free, owned: false, workers: Vec::new() };

        fn sweep(&mut self) {
            if !self.owned && self.workers.is_empty() {
                *self = Self::NONE;
            }
        }

        fn change(&mut self, from: State, to: State) -> bool {
            let fits = self.state == from;
            if fits {
                self.state = to;
            }
            fits
        }

        fn release(&mut self) {
            if self.state != State::Free {
                self.state = State::Aborted;
                self.owned = false;
                self.sweep();
            }
        }

        fn leave(&mut self, pid: u32) {
            self.workers.retain(|worker| *worker != pid);
            self.sweep();
        }
    }

    /// The same steps on the table and on a model of each backup by itself.
    #[derive(Clone)]
    struct World {
        backups: Vec<Backup>,
        transfers: Vec<Option<Transfer>>,
        models: BTreeMap<BackupIdBytes, Model>,
        /// Who started what.
        owners: BTreeMap<BackupIdBytes, u32>,
    }

    type BackupIdBytes = [u8; 16];

    fn model(models: &mut BTreeMap<BackupIdBytes, Model>, id: BackupId) -> &mut Model {
        models.get_mut(id.as_bytes()).unwrap()
    }

    impl World {
        fn new(places: usize) -> Self {
            Self {
                backups: vec![Backup::FREE; places],
                transfers: vec![None; 4],
                models: [A, B].map(|id| (*id.as_bytes(), Model::NONE)).into(),
                owners: BTreeMap::new(),
            }
        }

        /// Carries out a step of process `pid`, and compares what table and model say.
        fn step(&mut self, pid: u32, step: Step) {
            let member = Member { pid, role: 10, login_role: 10 };
            let full = self.backups.iter().all(|backup| backup.state != State::Free);
            let mut table = Table { backups: &mut self.backups, transfers: &mut self.transfers };
            match step {
                Reserve(id) => {
                    assert_eq!(table.reserve(id, member, b"label", 1).is_none(), full, "{step:?}");
                    if !full {
                        *model(&mut self.models, id) =
                            Model { state: State::Starting, owned: true, workers: Vec::new() };
                        self.owners.insert(*id.as_bytes(), pid);
                    }
                }
                Run(id) => {
                    let done = table.run(id, FACTS).is_ok();
                    assert_eq!(
                        done,
                        model(&mut self.models, id).change(State::Starting, State::Running),
                        "{step:?}"
                    );
                }
                Enter(id) => {
                    let done = table.enter(id, member).is_ok();
                    let model = model(&mut self.models, id);
                    assert_eq!(done, matches!(model.state, State::Running | State::Stopped), "{step:?}");
                    if done {
                        model.workers.push(pid);
                    }
                }
                Leave => {
                    table.leave(pid);
                    self.models.values_mut().for_each(|model| model.leave(pid));
                }
                BeginStop(id) => {
                    let done = table.begin_stop(id).is_ok();
                    let model = model(&mut self.models, id);
                    let may = model.workers.is_empty() && model.change(State::Running, State::Stopping);
                    assert_eq!(done, may, "{step:?}");
                }
                Resume(id) => {
                    table.resume(id);
                    model(&mut self.models, id).change(State::Stopping, State::Running);
                }
                Stop(id) => {
                    table.stop(id, Lsn(9), 1);
                    model(&mut self.models, id).change(State::Stopping, State::Stopped);
                }
                Abort(id) => {
                    let done = table.abort(id);
                    let model = model(&mut self.models, id);
                    assert_eq!(done, !matches!(model.state, State::Free | State::Aborted), "{step:?}");
                    if done {
                        model.state = State::Aborted;
                    }
                }
                Release(id) => {
                    table.release(id);
                    model(&mut self.models, id).release();
                }
                Gone => {
                    table.gone(pid);
                    for (id, model) in &mut self.models {
                        if self.owners.get(id) == Some(&pid) && model.owned {
                            model.release();
                        }
                        model.leave(pid);
                    }
                }
            }
            for (id, model) in &self.models {
                let id = BackupId::from_bytes(*id);
                let state = table.place(id).map_or(State::Free, |place| table.backups[place].state);
                assert_eq!(state, model.state, "{id:?} after {step:?} of {pid}");
                let workers: Vec<u32> = table.transfers(id).map(|member| member.pid).collect();
                let mut expected = model.workers.clone();
                expected.sort_unstable();
                let mut workers = workers;
                workers.sort_unstable();
                assert_eq!(workers, expected, "{id:?} after {step:?} of {pid}");
            }
        }
    }

    /// Every order in which the processes' steps can come, each process in its own order. Returns how
    /// many there are.
    fn every_order(world: &World, processes: &[&[Step]]) -> usize {
        if processes.iter().all(|steps| steps.is_empty()) {
            return 1;
        }
        let mut orders = 0;
        for at in 0..processes.len() {
            let Some((first, rest)) = processes[at].split_first() else { continue };
            let mut world = world.clone();
            world.step(u32::try_from(at).unwrap() + 1, *first);
            let mut processes = processes.to_vec();
            processes[at] = rest;
            orders += every_order(&world, &processes);
        }
        orders
    }

    /// One place for two backups, so that it is used again: nothing that comes late for the first, twice
    /// or from whomever, touches the second.
    #[test]
    fn every_order_on_one_place() {
        let first = [Reserve(A), Run(A), BeginStop(A), Abort(A), Release(A), Release(A)];
        let second = [Reserve(B), Run(B), BeginStop(B), Stop(B), Release(B)];
        let canceller = [Abort(A), Abort(A)];
        assert_eq!(every_order(&World::new(1), &[&first, &second, &canceller]), 36_036);
        let worker = [Enter(A), Leave, Enter(B)];
        assert_eq!(every_order(&World::new(1), &[&first, &second, &worker]), 168_168);
    }

    /// Stops that are taken back, processes that end anywhere, with room for both.
    #[test]
    fn every_order_on_two_places() {
        let first = [Reserve(A), Run(A), BeginStop(A), Resume(A), BeginStop(A), Stop(A), Gone];
        let second = [Reserve(B), Run(B), Gone];
        let worker = [Enter(A), Leave, Enter(A), Gone];
        assert_eq!(every_order(&World::new(2), &[&first, &second, &worker]), 120_120);
        let canceller = [Abort(B), Abort(A)];
        assert_eq!(every_order(&World::new(2), &[&first, &worker, &canceller]), 25_740);
    }

    /// The order by which one backup was stopped on another's place.
    #[test]
    fn a_place_is_not_released_twice() {
        let mut world = World::new(1);
        for (pid, step) in [(1, Reserve(A)), (1, Abort(A)), (1, Release(A))] {
            world.step(pid, step);
        }
        for (pid, step) in [(2, Reserve(B)), (2, Run(B)), (1, Release(A)), (3, Abort(A)), (1, Gone)] {
            world.step(pid, step);
        }
        assert_eq!(world.backups[0].state, State::Running);
        world.step(2, BeginStop(B));
        world.step(2, Stop(B));
        assert_eq!((world.backups[0].id, world.backups[0].stopped_at), (B, Some((Lsn(9), 1))));
    }

    #[test]
    fn what_is_refused_says_why() {
        let member = Member { pid: 1, role: 10, login_role: 10 };
        let (mut backups, mut transfers) = ([Backup::FREE; 1], [None; 2]);
        let mut table = Table { backups: &mut backups, transfers: &mut transfers };
        assert!(matches!(table.enter(A, member), Err(Error::UnknownBackup(A))));
        table.reserve(A, member, &[b'x'; 2 * MAX_PATH], 1).unwrap();
        assert_eq!(table.backups[0].label(), [b'x'; MAX_PATH]);
        assert!(matches!(table.enter(A, member), Err(Error::UnknownBackup(A))));
        table.run(A, FACTS).unwrap();
        table.enter(A, member).unwrap();
        assert!(matches!(table.begin_stop(A), Err(Error::TransfersRunning { transfers: 1 })));
        table.leave(1);
        table.begin_stop(A).unwrap();
        assert!(matches!(table.enter(A, member), Err(Error::Stopping(A))));
        table.abort(A);
        assert!(matches!(table.begin_stop(A), Err(Error::Aborted(A))));
        assert!(matches!(table.run(A, FACTS), Err(Error::Aborted(A))));
    }
}
