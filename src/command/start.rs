//! START_BACKUP: a backup that this session or, with a lease, a keeper is in backup mode for; and with BACKUP_ID, one
//! that another session has started.

use std::rc::Rc;

use protocol::command::StartBackup;
use protocol::{BackupId, PROTOCOL_VERSION, reply};

use crate::backup::begin::{self, Wanted};
use crate::backup::kept::{self, Kept};
use crate::backup::lease::Terms;
use crate::backup::prior;
use crate::backup::registry::{self, Counters, Facts};
use crate::backup::results::Started;
use crate::backup::session::{self, Holder, Session};
use crate::backup::sizes;
use crate::cluster::Layout;
use crate::cluster::page::BLOCK_SIZE;
use crate::error::{Error, Result};
use crate::pg::incremental::Increment;
use crate::pg::progress::{self, Phase};
use crate::pg::segment::Segment;
use crate::pg::{backup, guard, server, settings, wal, walsender};
use crate::stream::rows::Reply;

/// Starts a backup that this session is the coordinator of.
pub fn run(command: &StartBackup) -> Result<()> {
    let granted = command.lease.map(|seconds| seconds.min(settings::max_lease()));
    let lease =
        granted.filter(|seconds| *seconds > 0).map(|seconds| Terms { seconds, light: command.light_lease });
    // What is refused costs neither a stopped backup, which may be asked for again, nor an uploaded manifest, which
    // serves the next START_BACKUP.
    if lease.is_some() && command.incremental {
        return Err(Error::LeaseOfIncrement);
    }
    if lease.is_some() && command.label.len() > server::MAX_PATH {
        // The keeper finds no more of it in shared memory.
        return Err(Error::LabelTooLong { limit: server::MAX_PATH });
    }
    make_room()?;
    let id = match command.new_backup_id {
        Some(id) => id,
        None => server::random_bytes().map(BackupId::from_bytes).ok_or(Error::NoRandom)?,
    };
    let increment = if command.incremental { Some(Rc::new(prior::take()?)) } else { None };
    let wanted = Wanted {
        checkpoint: command.checkpoint,
        progress: command.progress,
        verify_checksums: command.verify_checksums,
        max_rate: command.max_rate,
    };
    let begin = || {
        let counters = kept::reserve(id, &command.label, lease)?;
        let start = || {
            walsender::set_state_backup();
            progress::start(Phase::WaitCheckpoint, None, 0);
            match lease {
                None => start(&command.label, &wanted, counters, id, granted, increment.clone()),
                Some(_) => {
                    let kept = kept::start(id, wanted, || progress::set_phase(Phase::EstimateSize))?;
                    attached(id, kept, granted);
                    Ok(())
                }
            }
        };
        guard::on_failure(start, || session::abort(id))
    };
    guard::on_failure(begin, || {
        if let Some(increment) = &increment {
            increment.release();
        }
    })
}

/// Makes this session the coordinator of a backup that has a lease.
pub fn attach(id: BackupId) -> Result<()> {
    // It may attach once more to what it has: that it had it before does not matter.
    if session::kept() != Some(id) {
        make_room()?;
    }
    let kept = kept::attach(id)?;
    walsender::set_state_backup();
    let lease = Some(kept.lease);
    attached(id, kept, lease);
    Ok(())
}

/// Ends what this session has to do with another backup, unless that runs.
fn make_room() -> Result<()> {
    if kept::confirm().is_ok() && (backup::session_in_backup() || session::is_running()) {
        return Err(Error::BackupInProgress);
    }
    // A stopped backup, whose WAL nobody will ask for any more.
    match session::kept() {
        Some(id) => kept::release(id),
        None => session::release(),
    }
    Ok(())
}

/// Starts a backup in this session.
fn start(
    label: &[u8],
    wanted: &Wanted,
    counters: &'static Counters,
    id: BackupId,
    lease: Option<u32>,
    increment: Option<Rc<Increment>>,
) -> Result<()> {
    let begun = begin::enter(label, wanted, increment.as_deref())?;
    let label_file = begun.state.label_file();
    let segment = Segment::publish(&begun.layout.encode());
    let facts = begun.facts(wanted, segment.handle(), increment.is_some());
    let layout = Rc::new(begun.layout);
    session::set(Session {
        id,
        holder: Holder::Session { counters, state: Some(begun.state), segment },
        layout: Rc::clone(&layout),
        increment,
        label_file: label_file.clone(),
        stopped: None,
    });
    let sizes = if wanted.progress {
        progress::set_phase(Phase::EstimateSize);
        Some(sizes::bytes(&layout)?)
    } else {
        None
    };
    let started = Started { label_file, tablespace_map: begun.tablespace_map, sizes };
    if let Some(total) = started.total() {
        counters.set_total(total);
    }
    show_progress();
    registry::run(id, facts)?;
    send(&facts, id, &layout, &started, lease);
    Ok(())
}

/// Goes on with a backup that a keeper holds.
fn attached(id: BackupId, kept: Kept, lease: Option<u32>) {
    let Kept { facts, layout, started, .. } = kept;
    let layout = Rc::new(layout);
    session::set(Session {
        id,
        holder: Holder::Keeper,
        layout: Rc::clone(&layout),
        increment: None,
        label_file: started.label_file.clone(),
        stopped: None,
    });
    show_progress();
    send(&facts, id, &layout, &started, lease);
}

/// Begins the coordinator's row in pg_stat_progress_basebackup, for as long as its backup runs.
fn show_progress() {
    begin_progress();
    progress::on_loss(begin_progress);
}

fn begin_progress() {
    let running = session::with(|session| {
        let total = registry::total(session.id);
        (session.stopped.is_none(), total, session.layout.tablespaces.len() + 1)
    });
    if let Some((true, total, tablespaces)) = running {
        progress::start(Phase::StreamFiles, total, tablespaces);
    }
}

/// `lease` are the seconds that were granted, if any were asked for.
fn send(facts: &Facts, id: BackupId, layout: &Layout, started: &Started, lease: Option<u32>) {
    let mut sets = Reply::default();
    send_start(&mut sets, facts, id, lease);
    send_tablespaces(&mut sets, layout, started.sizes.as_deref());
    let map = Some(&*started.tablespace_map).filter(|map| !map.is_empty());
    sets.row(reply::LABELS, &[Some(&*started.label_file), map]);
}

fn send_start(sets: &mut Reply, facts: &Facts, id: BackupId, lease: Option<u32>) {
    let number = |flag: bool| u8::from(flag).to_string();
    let mut columns = reply::START.to_vec();
    let mut values = vec![
        facts.start_lsn.to_string(),
        facts.start_timeline.to_string(),
        id.to_string(),
        PROTOCOL_VERSION.to_string(),
        server::system_identifier().to_string(),
        wal::segment_size().to_string(),
        BLOCK_SIZE.to_string(),
        number(server::data_checksums()),
        number(facts.in_recovery),
    ];
    if let Some(seconds) = lease {
        columns.push(reply::LEASE);
        values.push(seconds.to_string());
    }
    sets.row(&columns, &values.into_iter().map(Some).collect::<Vec<_>>());
}

/// The tablespace header: the data directory last, as BASE_BACKUP has it.
fn send_tablespaces(sets: &mut Reply, layout: &Layout, sizes: Option<&[u64]>) {
    let kilobytes = |at: usize| sizes.and_then(|sizes| sizes.get(at)).map(|size| (size / 1024).to_string());
    let mut set = sets.begin(reply::TABLESPACES);
    for (at, space) in layout.tablespaces.iter().enumerate() {
        let size = kilobytes(at);
        set.row(&[
            Some(space.oid.to_string().as_bytes()),
            Some(&*space.location),
            size.as_ref().map(String::as_bytes),
        ]);
    }
    let size = kilobytes(layout.tablespaces.len());
    set.row(&[None, None, size.as_ref().map(String::as_bytes)]);
    set.end();
}
