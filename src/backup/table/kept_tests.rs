//! Backups with a lease.

use super::*;
use protocol::SqlState;

use crate::backup::lease::{End, Terms, Told};

const A: BackupId = BackupId::from_bytes([0xA; 16]);
const FACTS: Facts = Facts {
    start_lsn: Lsn(0x0100_0028),
    start_timeline: 1,
    in_recovery: false,
    verify_checksums: true,
    max_rate: None,
    layout_handle: 7,
    incremental: false,
};
const KEEPER: u32 = 1;

/// A step of a process about a backup with a lease of 10 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Reserve,
    Adopt,
    Open,
    Attach,
    Send,
    Sent,
    AskToStop,
    Stopped,
    Expire,
    Cancel,
    Release,
    Dismiss,
    End,
}

fn process(pid: u32) -> Process {
    Process { pid, waker: Waker::NOBODY }
}

const TERMS: Terms = Terms { seconds: 10, light: false };

/// A place, and what is true of the backup by the steps that have succeeded.
#[derive(Clone)]
struct Place {
    backups: Vec<Backup>,
    transfers: Vec<Option<Transfer>>,
    attached: Option<u32>,
    keeper: bool,
    sending: Vec<u32>,
    /// It can only go forward.
    state: u8,
    /// Of the monotonic clock, in microseconds: a second for each step.
    now: i64,
}

impl Place {
    fn new() -> Self {
        Self {
            backups: vec![Backup::FREE; 1],
            transfers: vec![None; 5],
            attached: None,
            keeper: false,
            sending: vec![],
            state: 0,
            now: 0,
        }
    }

    fn step(&mut self, pid: u32, step: Kept) {
        self.now += 1_000_000;
        let now = self.now;
        let before = self.backups[0].state;
        let mut table = Table { backups: &mut self.backups, transfers: &mut self.transfers, wake: vec![] };
        let member = Member { pid, role: 10, login_role: 10 };
        match step {
            Kept::Reserve => {
                let lease = Some(Lease::new(TERMS, process(pid)));
                assert!(table.reserve(A, member, b"label", 1, lease).is_some());
                self.attached = Some(pid);
            }
            Kept::Adopt => {
                self.keeper = table.adopt(A, process(pid)).is_ok();
                assert_eq!(self.keeper, before == State::Starting, "nothing to adopt but what starts");
            }
            Kept::Open => {
                if self.keeper {
                    assert_eq!(table.run(A, FACTS).is_ok(), before == State::Starting);
                }
            }
            Kept::Attach => match table.attach(A, process(pid)) {
                Ok(place) => {
                    assert_eq!((place, table.backups[0].owner.pid), (0, pid));
                    self.attached = Some(pid);
                }
                Err(error) => {
                    assert!(matches!(error, Error::LeaseGone(A)), "{error}");
                    assert!(!matches!(before, State::Running | State::Stopping | State::Stopped));
                }
            },
            Kept::Send => {
                if table.enter(A, member).is_ok() {
                    self.sending.push(pid);
                }
            }
            Kept::Sent => {
                table.leave(pid);
                self.sending.retain(|sender| *sender != pid);
            }
            Kept::AskToStop => {
                let asked = table.ask_to_stop(A, pid);
                let ended = matches!(before, State::Free | State::Aborted | State::Starting);
                match asked {
                    Ok(()) => assert!(!ended && self.attached == Some(pid)),
                    Err(Error::TakenOver(_)) => assert_ne!(self.attached, Some(pid)),
                    Err(Error::TransfersRunning { transfers }) => {
                        assert_eq!(transfers, self.sending.len())
                    }
                    Err(_) => assert!(ended),
                }
            }
            Kept::Stopped => {
                if self.keeper {
                    table.stop(A, Lsn(9), 1);
                }
            }
            Kept::Expire => {
                if self.keeper {
                    let left = table.expire(A, now + 20_000_000);
                    assert_eq!(left.is_some(), self.attached.is_none(), "it runs while nobody is attached");
                }
            }
            Kept::Cancel => {
                table.abort(A);
            }
            Kept::Release => {
                let was = self.attached == Some(pid);
                assert_eq!(table.release(A, pid).is_some(), was && self.keeper);
                if was {
                    self.attached = None;
                }
            }
            Kept::Dismiss => {
                if self.keeper {
                    table.dismiss(A, End::KeeperGone);
                    self.keeper = false;
                }
            }
            Kept::End => {
                let told = table.gone(pid, now).is_some();
                assert_eq!(told, self.attached == Some(pid) && self.keeper && before == State::Starting);
                self.sending.retain(|sender| *sender != pid);
                if self.attached == Some(pid) {
                    self.attached = None;
                }
            }
        }
        // The place is somebody's as long as there is somebody.
        let somebody = self.keeper || self.attached.is_some() || !self.sending.is_empty();
        let state = table.backups[0].state;
        assert_eq!(state != State::Free, somebody, "{step:?} of {pid} in {before:?}");
        let coordinator = table.place(A).and_then(|place| table.backups[place].coordinator());
        assert_eq!(coordinator, self.attached, "{step:?} of {pid}");
        let rank = match state {
            State::Starting => 0,
            State::Running => 1,
            State::Stopping => 2,
            State::Stopped => 3,
            State::Aborted | State::Free => 4,
        };
        if step != Kept::Reserve {
            assert!(rank >= self.state, "{before:?} became {state:?} by {step:?}");
            self.state = rank;
        }
    }
}

/// Every order in which the processes' steps can come: at the end everybody has gone, and nothing is left.
fn every_order_kept(place: &Place, processes: &[(u32, &[Kept])]) -> usize {
    if processes.iter().all(|(_, steps)| steps.is_empty()) {
        assert_eq!((place.backups[0], &*place.transfers), (Backup::FREE, &[None; 5][..]));
        return 1;
    }
    let mut orders = 0;
    for at in 0..processes.len() {
        let (pid, steps) = processes[at];
        let Some((first, rest)) = steps.split_first() else { continue };
        let mut place = place.clone();
        place.step(pid, *first);
        let mut processes = processes.to_vec();
        processes[at].1 = rest;
        orders += every_order_kept(&place, &processes);
    }
    orders
}

/// A coordinator that is lost, one that comes after, and a keeper, in whatever order: with a worker, and with somebody
/// who cancels it.
#[test]
fn every_order_of_a_lease() {
    use Kept::*;
    let mut place = Place::new();
    place.step(2, Reserve);
    let keeper = (KEEPER, &[Adopt, Open, Stopped, Expire, Dismiss][..]);
    let first = (2, &[AskToStop, End][..]);
    let worker = (4, &[Send, End][..]);
    let heir = (3, &[Attach, AskToStop, End][..]);
    assert_eq!(every_order_kept(&place, &[keeper, first, heir, worker]), 166_320);
    let sender = (2, &[Send, Sent, End][..]);
    let giver = (3, &[Attach, Release, End][..]);
    assert_eq!(every_order_kept(&place, &[keeper, sender, giver, (5, &[Cancel])]), 110_880);
}

/// What is true of one that goes as it should.
#[test]
fn a_lease_that_is_taken_over() {
    let mut place = Place::new();
    for (pid, step) in [(2, Kept::Reserve), (1, Kept::Adopt), (1, Kept::Open), (2, Kept::Send)] {
        place.step(pid, step);
    }
    let left_behind = |place: &mut Place| {
        let table = Table { backups: &mut place.backups, transfers: &mut place.transfers, wake: vec![] };
        table.left_behind(A).collect::<Vec<_>>()
    };
    assert!(left_behind(&mut place).is_empty());
    place.step(4, Kept::Send);
    place.step(3, Kept::Attach);
    assert_eq!(left_behind(&mut place), [2], "a worker is not left behind");
    place.step(2, Kept::Attach);
    assert_eq!(left_behind(&mut place), [2], "what it began before is not what it has now");
    for pid in [2, 4] {
        place.step(pid, Kept::Sent);
    }
    place.step(2, Kept::AskToStop);
    place.step(2, Kept::AskToStop);
    assert_eq!(place.backups[0].state, State::Stopping);
    place.step(1, Kept::Stopped);
    place.step(2, Kept::End);
    let mut table = Table { backups: &mut place.backups, transfers: &mut place.transfers, wake: vec![] };
    assert_eq!(table.expire(A, place.now + 9_000_000), Some(1_000_000));
    assert_eq!(table.backups[0].state, State::Stopped);
    assert_eq!(table.expire(A, place.now + 10_000_000), Some(0));
    assert_eq!(table.backups[0].state, State::Aborted);
    assert!(matches!(table.kept(A, 2), Err(Error::TakenOver(A))));
    assert!(matches!(table.backups[0].ended(), Error::LeaseOver(A)));
    table.dismiss(A, End::KeeperGone);
    assert!(matches!(table.attach(A, process(2)), Err(Error::LeaseGone(A))));
}

#[test]
fn who_gives_a_place_up() {
    let id = |number: u8| BackupId::from_bytes([number; 16]);
    let mut backups = vec![Backup::FREE; 5];
    let mut transfers = vec![None; 5];
    let mut table = Table { backups: &mut backups, transfers: &mut transfers, wake: vec![] };
    // All have gone but the last: of 4 something is being sent, and 1 has a lease that was asked for.
    for (number, light) in [(1, false), (2, true), (3, true), (4, true), (5, true)] {
        let pid = u32::from(number);
        let member = Member { pid, role: 10, login_role: 10 };
        let lease = Lease::new(Terms { seconds: 10, light }, process(pid));
        assert!(table.reserve(id(number), member, b"label", 1, Some(lease)).is_some());
        table.adopt(id(number), process(pid + 100)).unwrap();
        assert_eq!(table.give_up_light(), None, "{number} is starting");
        table.run(id(number), FACTS).unwrap();
    }
    assert_eq!(table.give_up_light(), None, "all are attached");
    table.enter(id(4), Member { pid: 40, role: 10, login_role: 10 }).unwrap();
    for (pid, now) in [(4, 1), (1, 2), (3, 3), (2, 4)] {
        table.gone(pid, now);
    }
    let member = Member { pid: 9, role: 10, login_role: 10 };
    assert!(table.reserve(id(9), member, b"label", 1, None).is_none());
    assert_eq!(table.give_up_light(), Some(id(3)));
    assert!(table.reserve(id(9), member, b"label", 1, None).is_none(), "its keeper is still there");
    // Whose place is free when the keeper has gone.
    table.dismiss(id(3), End::KeeperGone);
    let place = table.reserve(id(9), member, b"label", 1, None).unwrap();
    assert_eq!(place, 2);
    assert_eq!(table.give_up_light(), Some(id(2)));
    let end = table.backups[1].lease.unwrap().end;
    assert_eq!(end, End::GivenUp);
    assert_eq!(end.error(id(2), &Told::NOTHING).sqlstate(), SqlState::QUERY_CANCELED);
    assert_eq!(table.give_up_light(), None, "it has given up already");
    table.leave(40);
    assert_eq!(table.give_up_light(), Some(id(4)));
    assert_eq!(table.give_up_light(), None, "one was asked for, and somebody is attached to the other");
}
