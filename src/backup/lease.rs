//! What a backup has that outlives its coordinator: who keeps it, who is attached, and what the keeper
//! has to say. Plain values, that lie in shared memory beside the backup's.

use protocol::{BackupId, SqlState};

use crate::error::Error;
use crate::pg::latch::Waker;

/// Bytes of a message or a hint that are handed over; what is longer is cut.
const MAX_TEXT: usize = 512;

/// A process that takes part, and how it is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// The process.
    pub pid: u32,
    /// Its latch.
    pub waker: Waker,
}

/// Why a backup has ended before it was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has not, or was cancelled.
    None,
    /// The keeper's process has ended, by a signal.
    KeeperGone,
    /// The keeper has failed at what [`Told`] says.
    Failed,
    /// Nobody has attached in time.
    LeaseOver,
    /// It was light, and another backup had no place.
    GivenUp,
    /// Its WAL was more than `max_slot_wal_keep_size`.
    WalRemoved,
    /// The standby has become a primary.
    Promoted,
}

/// What is asked of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// As in [`Lease`].
    pub seconds: u32,
    /// Likewise.
    pub light: bool,
}

/// A lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// How long the backup outlives its coordinator.
    pub seconds: u32,
    /// Whether it takes no replication slot, and is given up when its place is needed.
    pub light: bool,
    /// The process that holds it, from when it has begun until it ends.
    pub keeper: Option<Process>,
    /// The coordinator, while there is one.
    pub attached: Option<Process>,
    /// How often a session has attached: what makes two attachments of one process differ.
    pub attachments: u32,
    /// When the last coordinator went, by the monotonic clock, in microseconds.
    pub detached_at: i64,
    /// Whether the keeper is past the checkpoint, and estimates sizes.
    pub estimating: bool,
    /// The segment with what START_BACKUP returns, once it has.
    pub started: Option<u32>,
    /// The segment with what STOP_BACKUP returns, once it has.
    pub stopped: Option<u32>,
    /// Whether all WAL of a stopped backup is archived, or nothing archives here.
    pub archived: bool,
    /// Why it has ended.
    pub end: End,
    /// What the keeper has failed at.
    pub told: Told,
}

/// An error, as it is handed from one process to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    sqlstate: [u8; 5],
    message: Text,
    hint: Text,
}

/// Some bytes of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Text {
    length: usize,
    bytes: [u8; MAX_TEXT],
}

impl Lease {
    /// A lease on these terms, of a backup that `attached` starts.
    pub fn new(terms: Terms, attached: Process) -> Self {
        Self {
            seconds: terms.seconds,
            light: terms.light,
            keeper: None,
            attached: Some(attached),
            attachments: 0,
            detached_at: 0,
            estimating: false,
            started: None,
            stopped: None,
            archived: false,
            end: End::None,
            told: Told::NOTHING,
        }
    }

    /// Whether this process is the coordinator.
    pub fn is_attached(&self, pid: u32) -> bool {
        self.attached.is_some_and(|process| process.pid == pid)
    }

    /// Microseconds until it is over, negative when it is; `None` while it does not run. `now` is of the
    /// monotonic clock.
    pub fn left(&self, now: i64) -> Option<i64> {
        let over = self.detached_at.saturating_add(i64::from(self.seconds) * 1_000_000);
        self.attached.is_none().then(|| over.saturating_sub(now))
    }
}

impl End {
    /// What the coordinator and transfers of the backup are told.
    pub fn error(self, id: BackupId, told: &Told) -> Error {
        match self {
            Self::None | Self::KeeperGone => Error::Aborted(id),
            Self::Failed => told.error().unwrap_or(Error::Aborted(id)),
            Self::LeaseOver => Error::LeaseOver(id),
            Self::GivenUp => Error::GivenUp(id),
            Self::WalRemoved => Error::SlotLost(id),
            Self::Promoted => Error::Promoted,
        }
    }
}

impl Told {
    /// That nothing has failed.
    pub const NOTHING: Self = Self { sqlstate: *b"00000", message: Text::EMPTY, hint: Text::EMPTY };

    /// That this has failed.
    pub fn new(sqlstate: SqlState, message: &str, hint: Option<&str>) -> Self {
        Self {
            sqlstate: *sqlstate.as_bytes(),
            message: Text::new(message),
            hint: Text::new(hint.unwrap_or_default()),
        }
    }

    /// The error, if there was one.
    pub fn error(&self) -> Option<Error> {
        let sqlstate = SqlState::from_bytes(self.sqlstate);
        let hint = Some(self.hint.to_string()).filter(|hint| !hint.is_empty());
        (*self != Self::NOTHING).then(|| Error::Keeper { sqlstate, message: self.message.to_string(), hint })
    }
}

impl From<&Error> for Told {
    fn from(error: &Error) -> Self {
        Self::new(error.sqlstate(), &error.to_string(), error.hint().as_deref())
    }
}

impl Text {
    const EMPTY: Self = Self { length: 0, bytes: [0; MAX_TEXT] };

    fn new(text: &str) -> Self {
        let most = MAX_TEXT.min(text.len());
        let length = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let mut bytes = [0; MAX_TEXT];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self { length, bytes }
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes[..self.length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BackupId = BackupId::from_bytes([0xA; 16]);

    #[test]
    fn an_error_comes_as_it_went() {
        let error = Error::TooManyBackups { limit: 3 };
        let told = Told::from(&error).error().unwrap();
        assert_eq!(told.sqlstate(), error.sqlstate());
        assert_eq!(told.to_string(), error.to_string());
        assert_eq!(told.hint(), error.hint());
        assert!(Told::NOTHING.error().is_none());
        assert!(Told::from(&Error::NoRandom).error().unwrap().hint().is_none());
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        let told =
            Told::new(SqlState::INTERNAL_ERROR, &"ä".repeat(MAX_TEXT), Some(&"x".repeat(2 * MAX_TEXT)));
        let error = told.error().unwrap();
        assert_eq!(error.to_string(), "ä".repeat(MAX_TEXT / 2));
        assert_eq!(error.hint().unwrap().len(), MAX_TEXT);
        let odd = Told::new(SqlState::INTERNAL_ERROR, &format!("x{}", "ä".repeat(MAX_TEXT)), None);
        assert_eq!(odd.error().unwrap().to_string(), format!("x{}", "ä".repeat(MAX_TEXT / 2 - 1)));
    }

    #[test]
    fn it_runs_while_nobody_is_attached() {
        let process = Process { pid: 7, waker: Waker::NOBODY };
        let mut lease = Lease::new(Terms { seconds: 10, light: false }, process);
        assert!(lease.is_attached(7) && !lease.is_attached(8));
        assert_eq!(lease.left(i64::MAX), None);
        (lease.attached, lease.detached_at) = (None, 5_000_000);
        assert_eq!(lease.left(5_000_000), Some(10_000_000));
        assert_eq!(lease.left(16_000_000), Some(-1_000_000));
    }

    #[test]
    fn every_end_has_its_words() {
        let told = Told::from(&Error::ControlFileCrc);
        let said = |end: End| {
            let error = end.error(A, &told);
            (error.sqlstate().to_string(), error.to_string())
        };
        let name = "parallel backup \"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\"";
        let cases = [
            (End::None, "57014", format!("{name} was aborted")),
            (End::KeeperGone, "57014", format!("{name} was aborted")),
            (End::LeaseOver, "57014", format!("{name} was aborted because its lease ran out")),
            (
                End::WalRemoved,
                "57014",
                format!("{name} was aborted because the WAL it needs exceeds \"max_slot_wal_keep_size\""),
            ),
            (End::Promoted, "55000", "the standby was promoted during online backup".to_owned()),
            (
                End::Failed,
                "XX001",
                "calculated CRC checksum does not match value stored in file \"global/pg_control\""
                    .to_owned(),
            ),
        ];
        for (end, code, words) in cases {
            assert_eq!(said(end), (code.to_owned(), words));
        }
    }
}
