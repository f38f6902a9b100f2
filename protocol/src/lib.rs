//! The parallel backup protocol, version 1, as `docs/protocol.md` defines it: commands, frames and
//! result sets, each in both directions, so that server and client cannot disagree.
//!
//! No I/O and no PostgreSQL here: the server hands over what its grammar parsed, the client what
//! it read from the connection.

pub mod blocks;
pub mod checksum;
pub mod command;
pub mod compression;
pub mod features;
pub mod frame;
pub mod id;
pub mod lsn;
pub mod path;
pub mod reply;
pub mod sqlstate;
pub mod wal;

pub use blocks::{BlockList, MAX_BLOCK_LISTS};
pub use checksum::ChecksumAlgorithm;
pub use command::{Checkpoint, Command, CommandError, CommandKind, Extent, FileRequest, Range};
pub use frame::{FileBegin, FileEnd, Frame, FrameError};
pub use id::BackupId;
pub use lsn::Lsn;
pub use path::{BackupPath, PathError};
pub use sqlstate::SqlState;

/// The protocol version that START_BACKUP announces.
pub const PROTOCOL_VERSION: u32 = 1;

/// Most files in one SEND_FILES_CONTENT: each literal costs the server's scanner a kilobyte.
pub const MAX_FILES_PER_COMMAND: usize = 1024;
