//! -X stream: WAL as it is written, over a connection of its own, from the segment that the backup
//! starts in to the position that it ends at, across timelines.
//!
//! What pg_basebackup does with `receivelog.c`, down to the names and sizes of the files.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use protocol::wal::{Segment, history_name};
use protocol::{Lsn, SqlState};

use crate::abort::Latch;
use crate::error::{Error, Kind, Result};
use crate::output::{Output, WalOutput};
use crate::server::connection::{Message, Session, bytes, number, text};
use crate::server::pq::Status;
use crate::wal::SegmentSize;
use crate::wal::check::{Cluster, Records};

/// The position at which the stream ends, known only when the backup has ended.
#[derive(Debug)]
pub struct End {
    position: Mutex<Option<Lsn>>,
    known: Latch,
}

/// What to stream.
#[derive(Debug)]
pub struct Plan {
    /// The timeline that the backup starts on.
    pub timeline: u32,
    /// Where it starts; the stream starts at the beginning of that segment.
    pub start: Lsn,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The cluster's system identifier.
    pub system: u64,
    /// The slot to stream from.
    pub slot: Option<String>,
    /// Whether it goes away with the connection.
    pub slot_is_temporary: bool,
    /// How often the server is told how far we are; never for zero.
    pub status_interval: Duration,
}

impl End {
    /// Not known yet.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { position: Mutex::new(None), known: Latch::new()? })
    }

    /// Ends the stream once it has come this far.
    pub fn set(&self, position: Lsn) {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
        self.known.set();
    }

    fn reached(&self, position: Lsn) -> bool {
        self.position.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|end| position >= end)
    }

    fn is_known(&self) -> bool {
        self.known.is_set()
    }
}

/// A replication slot's name as the replication grammar reads it.
pub fn quoted_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Streams until the end is reached, to `wal`, which is `output`'s. `again` makes another connection in place of one
/// that is lost, if that can be; the stream goes on where it was.
pub fn stream(
    session: &mut Session,
    plan: &Plan,
    wal: &mut dyn WalOutput,
    output: &dyn Output,
    end: &End,
    again: &mut dyn FnMut(Error) -> Result<Session>,
) -> Result<()> {
    let writer =
        SegmentWriter { output: wal, size: plan.segment_size, timeline: plan.timeline, offset: None };
    let start = plan.segment_size.start_of(plan.start);
    let mut streamer = Streamer { plan, end, output, writer, start, copy: None, slot: plan.slot.clone() };
    let mut was_lost = false;
    loop {
        match streamer.run(session) {
            // The server may not have noticed yet that the one before is gone.
            Err(error) if error.kind() == Kind::Connection || was_lost && error.is_server(OBJECT_IN_USE) => {
                session.abandon();
                *session = again(error)?;
                was_lost = true;
                if plan.slot_is_temporary {
                    // It went with the connection. What keeps the WAL now is whoever keeps the backup.
                    streamer.slot = None;
                }
            }
            outcome => return outcome,
        }
    }
}

/// 55006: another connection is using the slot.
const OBJECT_IN_USE: SqlState = SqlState::from_bytes(*b"55006");

/// A stream, over one connection after the other.
struct Streamer<'a> {
    plan: &'a Plan,
    end: &'a End,
    output: &'a dyn Output,
    writer: SegmentWriter<'a>,
    /// Where the timeline begins that is next.
    start: Lsn,
    /// The timeline that is being streamed, as far as it has come.
    copy: Option<Copy<'a>>,
    slot: Option<String>,
}

impl Streamer<'_> {
    fn run(&mut self, session: &mut Session) -> Result<()> {
        loop {
            fetch_history(session, &mut self.writer, self.output)?;
            let from = self.copy.as_ref().map_or(self.start, |copy| copy.position);
            if self.end.reached(from) {
                return self.writer.close();
            }
            let slot = self
                .slot
                .as_deref()
                .map_or_else(String::new, |slot| format!("SLOT {} ", quoted_identifier(slot)));
            let command = format!("START_REPLICATION {slot}{from} TIMELINE {}", self.writer.timeline);
            session.send(command.as_bytes())?;
            let doing =
                |error: Error| error.context("could not send replication command \"START_REPLICATION\"");
            match session.result().map_err(doing)? {
                Some(answer) if answer.status() == Status::PGRES_COPY_BOTH => {}
                _ => return Err(Error::connection("server did not start to stream write-ahead log")),
            }
            session.entered_copy_both();
            let (plan, end, timeline) = (self.plan, self.end, self.writer.timeline);
            let copy = self.copy.get_or_insert_with(|| Copy::new(plan, end, from, timeline));
            copy.begin(self.slot.is_some());
            let next = copy.run(session, &mut self.writer)?;
            let position = copy.position;
            match next {
                None if self.end.reached(position) => return self.writer.close(),
                None => {
                    return Err(Error::connection("replication stream was terminated before stop point"));
                }
                Some((next, switch)) => {
                    if next <= timeline {
                        return Err(Error::connection(format!(
                            "server reported unexpected next timeline {next}, following timeline {timeline}"
                        ))
                        .fatal());
                    }
                    if switch > position {
                        return Err(Error::connection(format!(
                            "server stopped streaming timeline {timeline} at {position}, but reported next \
                             timeline {next} to begin at {switch}"
                        ))
                        .fatal());
                    }
                    self.writer.close()?;
                    self.writer.timeline = next;
                    self.start = plan.segment_size.start_of(switch);
                    self.copy = None;
                }
            }
        }
    }
}

/// Fetches the history of the timeline that is about to be streamed; the first has none.
fn fetch_history(session: &mut Session, writer: &mut SegmentWriter<'_>, output: &dyn Output) -> Result<()> {
    let name = history_name(writer.timeline);
    if writer.timeline == 1 || output.has_history(&name) {
        return Ok(());
    }
    let answer = session.query(&format!("TIMELINE_HISTORY {}", writer.timeline))?;
    let reported = text(&answer, 0, 0)?;
    if reported != name {
        return Err(Error::connection(format!(
            "server reported unexpected history file name for timeline {}: {reported}",
            writer.timeline
        )));
    }
    writer.output.history(&name, bytes(&answer, 0, 1)?)
}

/// One stream: a timeline, or the rest of it.
struct Copy<'a> {
    plan: &'a Plan,
    end: &'a End,
    /// Nothing else says that WAL came as it was sent.
    records: Records,
    /// Up to here everything is written.
    position: Lsn,
    /// Up to here everything is synced, or as good as that is with --no-sync.
    flushed: Lsn,
    /// Whether there is a slot that has to know how far we are.
    has_slot: bool,
    /// We have not ended our side.
    sending: bool,
    last_status: Option<Instant>,
}

/// A timeline that follows, and where it begins.
type NextTimeline = Option<(u32, Lsn)>;

impl<'a> Copy<'a> {
    fn new(plan: &'a Plan, end: &'a End, start: Lsn, timeline: u32) -> Self {
        let cluster = Cluster { system: plan.system, segment_size: plan.segment_size };
        let records = Records::new(cluster, timeline, start);
        let (position, flushed) = (start, start);
        Self { plan, end, records, position, flushed, has_slot: false, sending: true, last_status: None }
    }

    /// The server begins to send from here on.
    fn begin(&mut self, has_slot: bool) {
        (self.has_slot, self.sending, self.last_status) = (has_slot, true, None);
    }

    fn run(&mut self, session: &mut Session, writer: &mut SegmentWriter<'_>) -> Result<NextTimeline> {
        loop {
            self.stop_if_reached(session, writer)?;
            self.status_if_due(session)?;
            match session.try_copy_data()? {
                Message::Data(data) => self.message(&data, session, writer)?,
                Message::Done => return self.after_copy(session),
                Message::None => {
                    // The latch stays thrown: to wait for it again would be not to wait.
                    let known = (!self.end.is_known()).then(|| self.end.known.as_fd());
                    session.wait_for_data(self.time_to_status(), known)?;
                }
            }
        }
    }

    fn message(&mut self, data: &[u8], session: &mut Session, writer: &mut SegmentWriter<'_>) -> Result<()> {
        let short = || Error::connection(format!("streaming header too small: {}", data.len()));
        match data.first() {
            Some(b'k') => {
                // Type, position and time come before it.
                let wants_reply = *data.get(17).ok_or_else(short)? != 0;
                if wants_reply && self.sending {
                    if self.has_slot && self.flushed < self.position {
                        writer.output.flush()?;
                        self.flushed = self.position;
                    }
                    self.send_status(session)?;
                }
                Ok(())
            }
            // What comes after we have ended our side is not wanted.
            Some(b'w') if !self.sending => Ok(()),
            Some(b'w') => {
                let position = data.get(1..9).and_then(|bytes| bytes.try_into().ok()).ok_or_else(short)?;
                let wal = data.get(25..).ok_or_else(short)?;
                self.write(Lsn(u64::from_be_bytes(position)), wal, session, writer)
            }
            Some(other) => {
                Err(Error::connection(format!("unrecognized streaming header: \"{}\"", char::from(*other))))
            }
            None => Err(short()),
        }
    }

    fn write(
        &mut self,
        position: Lsn,
        mut wal: &[u8],
        session: &mut Session,
        writer: &mut SegmentWriter<'_>,
    ) -> Result<()> {
        // The server leaves nothing out. Where the next message comes from another place, this one's may be
        // what was damaged, and it must not say how far the stream has come.
        if position != self.position {
            return Err(Error::connection(format!(
                "received write-ahead log of {position}, expected that of {}",
                self.position
            ))
            .fatal());
        }
        // What was damaged may be written already: another connection does not help.
        self.records.push(wal).map_err(Error::fatal)?;
        while !wal.is_empty() {
            let room = writer.size.bytes() - writer.size.offset(self.position);
            let now = wal.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            writer.write(self.position, &wal[..now])?;
            wal = &wal[now..];
            self.position.0 += now as u64;
            if writer.size.offset(self.position) == 0 {
                writer.close()?;
                self.flushed = self.position;
                self.stop_if_reached(session, writer)?;
                if !self.sending {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Ends our side if the stream has come far enough.
    fn stop_if_reached(&mut self, session: &mut Session, writer: &mut SegmentWriter<'_>) -> Result<()> {
        if self.sending && self.end.reached(self.position) {
            writer.close()?;
            self.flushed = self.position;
            session.put_copy_end()?;
            self.sending = false;
        }
        Ok(())
    }

    /// The server has ended its side: because the timeline has ended, or because we have.
    fn after_copy(&mut self, session: &mut Session) -> Result<NextTimeline> {
        let doing = |error: Error| error.context("unexpected termination of replication stream");
        let mut answer = session.result().map_err(doing)?;
        if self.sending {
            if answer.as_ref().is_some_and(|answer| answer.status() == Status::PGRES_COPY_IN) {
                session.put_copy_end()?;
                answer = session.result().map_err(doing)?;
            }
            self.sending = false;
        }
        let mut next = None;
        while let Some(result) = answer {
            if result.status() == Status::PGRES_TUPLES_OK {
                let switch = text(&result, 0, 1)?
                    .parse()
                    .map_err(|error| Error::connection(format!("could not parse next timeline: {error}")))?;
                next = Some((number(&result, 0, 0)?, switch));
            }
            answer = session.result().map_err(doing)?;
        }
        Ok(next)
    }

    fn status_if_due(&mut self, session: &mut Session) -> Result<()> {
        match self.time_to_status() {
            Some(Duration::ZERO) => self.send_status(session),
            _ => Ok(()),
        }
    }

    fn time_to_status(&self) -> Option<Duration> {
        if self.plan.status_interval.is_zero() || !self.sending {
            return None;
        }
        Some(
            self.last_status
                .map_or(Duration::ZERO, |last| self.plan.status_interval.saturating_sub(last.elapsed())),
        )
    }

    fn send_status(&mut self, session: &mut Session) -> Result<()> {
        // A position reported as flushed makes us eligible as a synchronous standby: only with a
        // slot, which needs it.
        let flushed = if self.has_slot { self.flushed } else { Lsn(0) };
        session.put_copy_data(&status_message(self.position, flushed, SystemTime::now()))?;
        self.last_status = Some(Instant::now());
        Ok(())
    }
}

/// A standby status update.
fn status_message(written: Lsn, flushed: Lsn, now: SystemTime) -> Vec<u8> {
    /// From the Unix epoch to PostgreSQL's, 2000-01-01.
    const EPOCH: Duration = Duration::from_secs(946_684_800);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(EPOCH);
    let mut message = vec![b'r'];
    message.extend(written.0.to_be_bytes());
    message.extend(flushed.0.to_be_bytes());
    // Nothing is applied here.
    message.extend(0u64.to_be_bytes());
    message.extend(i64::try_from(now.as_micros()).unwrap_or(0).to_be_bytes());
    // No reply wanted.
    message.push(0);
    message
}

/// The segment that is being written.
struct SegmentWriter<'a> {
    output: &'a mut dyn WalOutput,
    size: SegmentSize,
    timeline: u32,
    /// How far it is written.
    offset: Option<u64>,
}

impl SegmentWriter<'_> {
    fn write(&mut self, position: Lsn, wal: &[u8]) -> Result<()> {
        if self.offset.is_none() {
            let segment = Segment { timeline: self.timeline, number: self.size.number(position) };
            self.output.begin(&self.size.file_name(segment), self.size.bytes())?;
        }
        self.output.write(wal)?;
        self.offset = Some(self.size.offset(position) + wal.len() as u64);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        match self.offset.take() {
            Some(offset) => self.output.end(offset == self.size.bytes()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(946_684_801);
        let message = status_message(Lsn(0x0102), Lsn(3), now);
        let expected = [
            &b"r"[..],
            &[0, 0, 0, 0, 0, 0, 1, 2],
            &[0, 0, 0, 0, 0, 0, 0, 3],
            &[0; 8],
            &1_000_000i64.to_be_bytes(),
            &[0],
        ]
        .concat();
        assert_eq!(message, expected);
    }

    #[test]
    fn the_end() {
        let end = End::new().unwrap();
        assert!(!end.reached(Lsn(u64::MAX)));
        end.set(Lsn(10));
        assert!(!end.reached(Lsn(9)) && end.reached(Lsn(10)));
        assert_eq!(quoted_identifier("a\"b"), "\"a\"\"b\"");
    }
}
