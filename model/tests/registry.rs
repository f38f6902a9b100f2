//! What has to hold of the registry whatever the order, and whatever an atomic is seen to have.
//!
//! Which orders of whole steps there can be, `src/backup/table/tests.rs` tries; here these steps are those of threads, and
//! beside them are the counters, which are changed without the lock.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicI64, Ordering};
use loom::thread;
use pg_parallel_backup_model::backup::lease::{End, Terms};
use pg_parallel_backup_model::backup::registry::{self, Counters, Facts, Reserved, State, Totals};
use pg_parallel_backup_model::error::Error;
use pg_parallel_backup_model::pg::{backend, process, shmem};
use pg_parallel_backup_model::stream::throttle;
use protocol::{BackupId, Lsn};

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

/// Tries every order in which `body` and the threads that it starts can go on, on a server of one place. A thread is
/// interrupted at most as often as is given: without a limit where there is none.
fn model(interruptions: Option<usize>, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = interruptions;
    builder.max_branches = 10_000;
    builder.check(move || {
        shmem::set_places(1);
        backend::signalled();
        body();
        assert!(registry::reports().is_empty(), "all have ended, and a place is still in use");
    });
}

/// Starts a process.
fn process<T: 'static>(pid: u32, life: impl FnOnce() -> T + 'static) -> thread::JoinHandle<T> {
    thread::spawn(move || process::run(pid, life))
}

/// START_BACKUP, if there is a place.
fn start(id: BackupId) -> Option<&'static Counters> {
    process::engage(id);
    match registry::reserve(id, b"", 0, None) {
        Ok(Reserved::Here(counters)) => {
            assert_eq!(counters.total(), None, "another backup's estimate");
            assert_eq!(counters.totals(), Totals::default(), "another backup's counts");
            assert!(!counters.is_aborted() && counters.attachments() == 0, "another backup's end");
            Some(counters)
        }
        Err(Error::TooManyBackups { limit: 1 }) => {
            process::disengage();
            None
        }
        other => panic!("{other:?}"),
    }
}

/// The end of a backup by its coordinator.
fn release(id: BackupId) {
    registry::release(id);
    process::disengage();
}

/// SEND_FILES_CONTENT: a file of this many bytes, if the backup is there. Whether it was sent to its end; nothing if
/// there was no such backup.
fn send(id: BackupId, bytes: u64) -> Option<bool> {
    process::engage(id);
    let sent = registry::enter(id).ok().map(|(backup, counters)| {
        assert_eq!(backup.id, id);
        let aborted = counters.is_aborted();
        if !aborted {
            counters.count_sent(bytes);
            counters.count_file(bytes, 1);
        }
        registry::leave();
        !aborted
    });
    process::disengage();
    sent
}

/// A place is used again: nothing of the first backup's late transfer, nor its end, is in the second one, and what the
/// second one counts is all there.
#[test]
fn a_place_is_used_again() {
    model(Some(4), || {
        let worker = process(2, || send(A, 1));
        let second = process(3, || {
            let Some(counters) = start(B) else { return };
            registry::run(B, FACTS).expect("nobody aborts it");
            assert_eq!(send(B, 100), Some(true), "nobody aborts it");
            assert_eq!(counters.totals(), Totals { files: 1, bytes: 100, checksum_failures: 1 });
            release(B);
        });
        process::run(1, || {
            if start(A).is_some() {
                registry::run(A, FACTS).expect("nobody aborts it");
                release(A);
            }
        });
        worker.join().unwrap();
        second.join().unwrap();
    });
}

/// The same as somebody sees it who looks at the view.
#[test]
fn a_view_mixes_nothing() {
    model(Some(4), || {
        let viewer = process(2, || {
            for report in registry::reports() {
                let id = report.backup.id;
                let own = if id == A { 1 } else { 100 };
                assert!(report.total.is_none_or(|total| total == own), "{id}: total {:?}", report.total);
                assert!([0, own].contains(&report.sent), "{id}: sent {}", report.sent);
                assert!([0, own].contains(&report.totals.bytes), "{id}: {:?}", report.totals);
            }
            assert!(registry::total(B).is_none_or(|total| total == 100));
        });
        process::run(1, || {
            for (id, bytes) in [(A, 1), (B, 100)] {
                let counters = start(id).expect("the place is free");
                counters.set_total(bytes);
                registry::run(id, FACTS).expect("nobody aborts it");
                assert_eq!(send(id, bytes), Some(true), "nobody aborts it");
                release(id);
            }
        });
        viewer.join().unwrap();
    });
}

/// What STOP_BACKUP returns is all that transfers have counted, none of which is under way by then; who comes later is
/// refused.
#[test]
fn totals_of_a_stop_are_whole() {
    model(Some(3), || {
        process::run(1, || {
            let counters = start(A).expect("an empty server has a place");
            registry::run(A, FACTS).expect("nobody aborts it");
            let workers = [2, 3].map(|pid| process(pid, move || send(A, u64::from(pid))));
            // Tried again as long as one is sending, as the client does it.
            let stopped = loop {
                match registry::begin_stop(A) {
                    Ok(()) => break counters.totals(),
                    Err(Error::TransfersRunning { .. }) => thread::yield_now(),
                    Err(other) => panic!("{other}"),
                }
            };
            let sent: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
            let bytes =
                [2, 3].iter().zip(&sent).filter(|(_, sent)| sent.is_some()).map(|(bytes, _)| bytes).sum();
            let files = sent.iter().flatten().count() as u64;
            assert_eq!(stopped, Totals { files, bytes, checksum_failures: files });
            registry::stop(A, Lsn(9), 1);
            assert_eq!(counters.totals(), stopped);
            assert_eq!(registry::find(A).map(|backup| backup.state), Some(State::Stopped));
        });
    });
}

/// Who has left by the time that a backup is cancelled is not terminated.
#[test]
fn a_cancel_hits_nobody_who_has_left() {
    model(None, || {
        process::run(1, || {
            start(A).expect("an empty server has a place");
            registry::run(A, FACTS).expect("nobody has aborted it");
            let worker = process(3, || send(A, 1));
            let (_, members) = registry::members(A).expect("it is there");
            assert!(registry::cancel(A, &members));
            for (pid, at) in backend::signalled() {
                assert_eq!(at, Some(A), "{pid} was at work for something else");
            }
            worker.join().unwrap();
        });
    });
}

/// Who is terminated by the cancelling of a backup is at work for that one.
#[test]
fn a_cancel_hits_nobody_else() {
    model(Some(3), || {
        let canceller = process(2, || {
            let Some((_, members)) = registry::members(A) else { return };
            backend::signalled();
            let done = registry::cancel(A, &members);
            for (pid, at) in backend::signalled() {
                assert!(done && at == Some(A), "{pid} was at work for {at:?}");
            }
        });
        let worker = process(3, || {
            send(A, 1);
            send(B, 100)
        });
        process::run(1, || {
            start(A).expect("an empty server has a place");
            // Aborted by then, it may be.
            let _ = registry::run(A, FACTS);
            release(A);
            if let Some(counters) = start(B) {
                registry::run(B, FACTS).expect("nobody cancels this one");
                assert!(!counters.is_aborted());
                release(B);
            }
        });
        canceller.join().unwrap();
        assert_ne!(worker.join().unwrap(), Some(false), "nobody cancels this one");
    });
}

/// A process that ends anywhere: whatever it took part in goes on without it, or ends, and its place is another's.
#[test]
fn whoever_ends_gives_back() {
    const STEPS: [fn(); 4] = [
        || _ = start(A),
        || _ = registry::run(A, FACTS),
        || _ = registry::begin_stop(A),
        || registry::stop(A, Lsn(9), 1),
    ];
    for steps in 0..=STEPS.len() {
        model(Some(3), move || {
            let worker = process(2, || {
                if let Ok((_, counters)) = registry::enter(A) {
                    counters.count_file(1, 0);
                }
            });
            let late = process(3, || {
                if start(B).is_some() {
                    registry::run(B, FACTS).expect("nobody aborts it");
                }
            });
            process::run(1, || STEPS[..steps].iter().for_each(|step| step()));
            worker.join().unwrap();
            late.join().unwrap();
        });
    }
}

/// A backup with a lease, up to where sessions may attach. Its coordinator is the process that calls.
fn start_kept() {
    let terms = Terms { seconds: 60, light: false };
    assert!(matches!(registry::reserve(A, b"", 0, Some(terms)), Ok(Reserved::Here(_))));
    let keeper = process(9, || {
        // Its end does not end the backup here: that is a step of the models.
        registry::adopt(A, || ()).expect("somebody waits for it");
        registry::run(A, FACTS).expect("nobody aborts it");
    });
    keeper.join().unwrap();
}

/// A transfer of a coordinator, as `backup/handle.rs` has it. Whether it was taken over on the way.
fn send_attached() -> Option<bool> {
    let (backup, counters) = registry::enter(A).ok()?;
    let taken_over = backup.attachment(process::pid()).is_some_and(|own| counters.attachments() != own);
    registry::leave();
    Some(taken_over)
}

/// Two sessions attach to a backup while its first coordinator sends something and ends: one of them has it in the end, the
/// others hear that they have not, and the end of those does not touch it.
#[test]
fn one_session_is_attached() {
    model(Some(2), || {
        process::run(1, || {
            start_kept();
            let heirs = [2, 3].map(|pid| {
                thread::spawn(move || {
                    process::be(pid);
                    registry::attach(A).expect("its keeper holds it");
                    let taken_over = send_attached().expect("its keeper holds it");
                    let kept = registry::kept(A);
                    assert!(!taken_over || matches!(kept, Err(Error::TakenOver(A))), "{kept:?}");
                    kept.is_ok()
                })
            });
            // No transfer under way is one of an attachment that has not been.
            send_attached();
            let kept: Vec<bool> = heirs.into_iter().map(|heir| heir.join().unwrap()).collect();
            assert!(kept.contains(&true), "nobody has it");
            assert!(matches!(registry::kept(A), Err(Error::TakenOver(A))));
            // As it does when it hears of that.
            registry::release(A);
        });
        // The first has ended; whoever attached last has not.
        let backup = registry::find(A).expect("its keeper holds it");
        let lease = backup.lease.expect("it has one");
        assert_eq!((backup.state, lease.attachments), (State::Running, 2));
        assert!(lease.attached.is_some(), "the end of another has detached it");
        for pid in [2, 3] {
            process::be(pid);
            registry::release(A);
        }
        registry::dismiss(A, End::None);
    });
}

/// A keeper ends while a session attaches and another sends: the place is free in the end.
#[test]
fn a_keeper_ends() {
    model(Some(3), || {
        process::run(1, || {
            start_kept();
            let keeper = process(9, || registry::dismiss(A, End::KeeperGone));
            let heir = process(2, || match registry::attach(A) {
                Ok(backup) => assert_ne!(backup.state, State::Aborted),
                Err(error) => assert!(matches!(error, Error::LeaseGone(A)), "{error}"),
            });
            send_attached();
            keeper.join().unwrap();
            assert!(matches!(registry::enter(A), Err(Error::UnknownBackup(A))));
            heir.join().unwrap();
        });
    });
}

/// Connections that share a rate: each gets a time of its own, and all of it together takes as long as it has to.
#[test]
fn a_rate_is_shared() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = None;
    builder.check(|| {
        // A kilobyte takes a second.
        let next = Arc::new(AtomicI64::new(0));
        let senders = [1, 2, 3].map(|kilobytes: u64| {
            let next = Arc::clone(&next);
            thread::spawn(move || (throttle::reserve(&next, 5, kilobytes * 1024, 1), kilobytes))
        });
        let mut turns = senders.map(|sender| sender.join().unwrap());
        turns.sort_unstable();
        let mut free = 5;
        for (at, kilobytes) in turns {
            assert_eq!(at, free);
            free += i64::try_from(kilobytes).unwrap() * 1_000_000;
        }
        assert_eq!(next.load(Ordering::Relaxed), free);
    });
}
