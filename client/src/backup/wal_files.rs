//! WAL files that come as files: all of them with -X fetch, the timelines' history with -X stream.

use protocol::BackupPath;
use protocol::wal::{is_history, is_segment};

use super::Backup;
use super::own_files::add_own_file;
use super::start::Start;
use super::stop::Stop;
use crate::error::{Error, Result};
use crate::fetch::increment::Increments;
use crate::fetch::ordered::Sequencer;
use crate::fetch::queue::Queue;
use crate::fetch::transfer::Work;
use crate::server::connection::Session;
use crate::wal::check::{Cluster, Needed};

impl Backup<'_> {
    /// -X fetch: the WAL that the backup needs, as files.
    pub(super) fn fetch_wal(
        &self,
        work: &Work<'_>,
        coordinator: &mut Session,
        workers: &mut Vec<Session>,
        start: &Start,
        stop: &Stop,
    ) -> Result<()> {
        start.segment_size.check_coverage(
            &stop.wal_files,
            (start.timeline, start.position),
            (stop.timeline, stop.position),
        )?;
        let queue = self.queue_of(work, &stop.wal_files, start.segment_size.bytes())?;
        let cluster = Cluster { system: start.system, segment_size: start.segment_size };
        let needed = Needed { cluster, ranges: stop.wal_ranges.clone() };
        let (sequencer, increments) = (work.sequencer.map(Sequencer::another), Increments::default());
        let sequencer = sequencer.as_ref();
        let work = Work {
            queue: &queue,
            increments: &increments,
            wal: Some(&needed),
            sequencer,
            journal: None,
            ..*work
        };
        self.fetch(&work, coordinator, workers, |_| Ok(()))?;
        if !work.output.keeps() {
            return Ok(());
        }
        // Marked as archived, or a copy that is promoted would archive them once more.
        for name in &stop.wal_files {
            let done = format!("pg_wal/archive_status/{name}.done");
            work.output.own_file(&done, b"")?;
            add_own_file(work.manifest, work.algorithm, &done, b"")?;
        }
        Ok(())
    }

    /// -X stream: once more the timeline history files that came by TIMELINE_HISTORY. No checksum covers
    /// them there; as files they have one, as all files have.
    pub(super) fn fetch_history(
        &self,
        work: &Work<'_>,
        coordinator: &mut Session,
        workers: &mut Vec<Session>,
        stop: &Stop,
    ) -> Result<()> {
        let streamed = |name: &&String| is_history(name.as_bytes()) && work.output.has_history(name);
        let names: Vec<String> = stop.wal_files.iter().filter(streamed).cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        // As with pg_basebackup, they are not in the manifest.
        let (sequencer, increments) = (work.sequencer.map(Sequencer::another), Increments::default());
        let sequencer = sequencer.as_ref();
        let queue = self.queue_of(work, &names, 0)?;
        let work = Work {
            queue: &queue,
            increments: &increments,
            manifest: None,
            sequencer,
            journal: None,
            ..*work
        };
        self.fetch(&work, coordinator, workers, |_| Ok(()))
    }

    /// Files of pg_wal that are to be fetched, segments and timeline history files.
    fn queue_of(&self, work: &Work<'_>, names: &[String], segment_size: u64) -> Result<Queue> {
        let queue = Queue::new(self.options.jobs, false)
            .for_intake(work.output.intake())
            .patient(self.lease().is_some());
        for name in names {
            let size = match name.as_bytes() {
                segment if is_segment(segment) => segment_size,
                history if is_history(history) => 0,
                _ => return Err(Error::local(format!("unexpected WAL file name \"{name}\""))),
            };
            let path = BackupPath::from_bytes(format!("pg_wal/{name}"))
                .map_err(|error| Error::local(format!("unexpected WAL file name \"{name}\": {error}")))?;
            queue.push(&path, size)?;
        }
        Ok(queue)
    }
}
