//! START_BACKUP.

use std::rc::Rc;

use protocol::command::StartBackup;
use protocol::{BackupId, Checkpoint, PROTOCOL_VERSION, reply};

use crate::backup::prior;
use crate::backup::registry::{self, Counters, Facts};
use crate::backup::session::{self, Session};
use crate::cluster::Layout;
use crate::cluster::page::BLOCK_SIZE;
use crate::cluster::walk::{Entry, Visitor};
use crate::error::{Error, Result};
use crate::pg::incremental::Increment;
use crate::pg::progress::{self, Phase};
use crate::pg::segment::Segment;
use crate::pg::{backup, guard, interrupt, server, wal, walsender};
use crate::stream::rows::Reply;

/// Starts a backup that this session owns.
pub fn run(command: &StartBackup) -> Result<()> {
    if backup::session_in_backup() {
        return Err(Error::BackupInProgress);
    }
    // A stopped backup, whose WAL nobody will ask for any more.
    session::release();
    let id = server::random_bytes().map(BackupId::from_bytes).ok_or(Error::NoRandom)?;
    let increment = if command.incremental { Some(Rc::new(prior::take()?)) } else { None };
    let begin = || {
        let counters = registry::reserve(id, &command.label, interrupt::now())?;
        guard::on_failure(|| start(command, counters, id, increment.clone()), || session::abort(id))
    };
    guard::on_failure(begin, || {
        if let Some(increment) = &increment {
            increment.release();
        }
    })
}

fn start(
    command: &StartBackup,
    counters: &'static Counters,
    id: BackupId,
    increment: Option<Rc<Increment>>,
) -> Result<()> {
    walsender::set_state_backup();
    progress::start(Phase::WaitCheckpoint, None, 0);
    let fast = command.checkpoint == Checkpoint::Fast;
    let started = backup::start(&backup::label(&command.label), fast, increment.as_deref())?;
    let state = started.state;
    let label_file = state.label_file();
    let layout = server::layout(started.tablespaces);
    let segment = Segment::publish(&layout.encode());
    let facts = Facts {
        start_lsn: state.start_lsn(),
        start_timeline: state.start_timeline(),
        in_recovery: state.started_in_recovery(),
        verify_checksums: command.verify_checksums,
        max_rate: command.max_rate,
        layout_handle: segment.handle(),
        incremental: increment.is_some(),
    };
    let layout = Rc::new(layout);
    session::set(Session {
        counters,
        id,
        state: Some(state),
        layout: Rc::clone(&layout),
        segment,
        increment,
        label_file: label_file.clone(),
        stopped: None,
    });
    let sizes = if command.progress { Some(estimate(&layout)?) } else { None };
    if let Some(sizes) = &sizes {
        counters.set_total(sizes.iter().sum());
    }
    begin_progress();
    progress::on_loss(begin_progress);
    registry::run(id, facts)?;
    let mut sets = Reply::default();
    send_start(&mut sets, &facts, id);
    send_tablespaces(&mut sets, &layout, sizes.as_deref());
    let map = Some(&*started.tablespace_map).filter(|map| !map.is_empty());
    sets.row(reply::LABELS, &[Some(&*label_file), map]);
    Ok(())
}

/// The coordinator's row in pg_stat_progress_basebackup, as long as its backup runs.
fn begin_progress() {
    let running = session::with(|session| {
        let total = session.counters.total();
        (session.stopped.is_none(), total, session.layout.tablespaces.len() + 1)
    });
    if let Some((true, total, tablespaces)) = running {
        progress::start(Phase::StreamFiles, total, tablespaces);
    }
}

fn send_start(sets: &mut Reply, facts: &Facts, id: BackupId) {
    let number = |flag: bool| u8::from(flag).to_string();
    let values = [
        facts.start_lsn.to_string(),
        facts.start_timeline.to_string(),
        id.to_string(),
        PROTOCOL_VERSION.to_string(),
        server::system_identifier().to_string(),
        wal::segment_size().to_string(),
        BLOCK_SIZE.to_string(),
        number(server::data_checksums()),
        number(facts.in_recovery),
    ]
    .map(Some);
    sets.row(reply::START, &values);
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

/// Bytes in each tablespace, the data directory last.
fn estimate(layout: &Layout) -> Result<Vec<u64>> {
    progress::set_phase(Phase::EstimateSize);
    let walk = server::walk(layout);
    let mut sizes = Vec::with_capacity(layout.tablespaces.len() + 1);
    for space in &layout.tablespaces {
        let mut size = Size(0);
        walk.tablespace(space, &mut size)?;
        sizes.push(size.0);
    }
    let mut size = Size(0);
    walk.data_directory(&mut size)?;
    sizes.push(size.0);
    Ok(sizes)
}

/// Adds up file sizes.
struct Size(u64);

impl Visitor for Size {
    fn poll(&mut self) -> Result<()> {
        interrupt::check();
        Ok(())
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<()> {
        self.0 += entry.size;
        Ok(())
    }

    // The list will say so.
    fn special(&mut self, _path: &[u8]) -> Result<()> {
        Ok(())
    }
}
