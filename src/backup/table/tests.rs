//! Backups without a lease, and what is refused.

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
        let mut table = Table { backups: &mut self.backups, transfers: &mut self.transfers, wake: vec![] };
        match step {
            Reserve(id) => {
                assert_eq!(table.reserve(id, member, b"label", 1, None).is_none(), full, "{step:?}");
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
                table.release(id, pid);
                model(&mut self.models, id).release();
            }
            Gone => {
                assert_eq!(table.gone(pid, 1), None);
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
    let mut table = Table { backups: &mut backups, transfers: &mut transfers, wake: vec![] };
    assert!(matches!(table.enter(A, member), Err(Error::UnknownBackup(A))));
    table.reserve(A, member, &[b'x'; 2 * MAX_PATH], 1, None).unwrap();
    assert_eq!(table.backups[0].label(), [b'x'; MAX_PATH]);
    assert!(matches!(table.enter(A, member), Err(Error::UnknownBackup(A))));
    table.run(A, FACTS).unwrap();
    table.enter(A, member).unwrap();
    assert!(matches!(table.begin_stop(A), Err(Error::TransfersRunning { transfers: 1 })));
    table.leave(1);
    table.begin_stop(A).unwrap();
    assert!(matches!(table.enter(A, member), Err(Error::Stopping(A))));
    assert!(matches!(table.attach(A, Process { pid: 1, waker: Waker::NOBODY }), Err(Error::NoLease(A))));
    table.abort(A);
    assert!(matches!(table.begin_stop(A), Err(Error::Aborted(A))));
    assert!(matches!(table.run(A, FACTS), Err(Error::Aborted(A))));
}
