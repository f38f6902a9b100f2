//! SEND_FILES_CONTENT.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use protocol::command::{Extent, FileRequest, Range, SendFilesContent};
use protocol::{BackupPath, BlockList, ChecksumAlgorithm, CommandKind};

use crate::backup::handle::{self, Handle};
use crate::cluster::contents::{Member, WAL_DIR, member};
use crate::cluster::names::Pages;
use crate::cluster::open::{Opened, Opener, open_wal_file};
use crate::cluster::page::{BLOCK_SIZE, SEGMENT_BLOCKS};
use crate::cluster::wal::{WalFile, WalRange};
use crate::error::{Error, Result};
use crate::pg::progress::{self, Phase};
use crate::pg::wire::{put_message, tag};
use crate::pg::{checksum_stats, server, wal, walsender};
use crate::stream::content::{Content, PageCheck, Sender, TransferControl};
use crate::stream::parts::Wanted;
use crate::stream::throttle;

/// The data directory, a backend's working directory.
const ROOT: &str = ".";

/// Sends files, in the order asked, in one CopyOut.
pub fn run(command: &SendFilesContent) -> Result<()> {
    handle::transfer(command.backup_id, CommandKind::SendFilesContent, |handle| send(command, handle))
}

fn send(command: &SendFilesContent, handle: &Handle) -> Result<()> {
    walsender::set_state_backup();
    let phase = if handle.is_stopped() { Phase::TransferWal } else { Phase::StreamFiles };
    progress::start(phase, handle.counters.total(), handle.layout.tablespaces.len() + 1);
    // What can be refused without looking at the disk is refused before the CopyOut begins.
    let sources =
        command.files.iter().map(|request| Source::find(handle, request)).collect::<Result<Vec<_>>>()?;
    let sender = Sender::new(&command.compression)?;
    put_message(tag::COPY_OUT, &[0, 0, 0]);
    let verify =
        command.verify_checksums.unwrap_or(handle.facts.verify_checksums) && server::data_checksums();
    let mut copy = CopyOut {
        pace: HandlePace::new(handle),
        opener: Opener::new(Path::new(ROOT)),
        sender,
        verify,
        checksum: command.file_checksum,
    };
    let outcome = sources.into_iter().zip(&command.files).try_for_each(|(source, request)| {
        copy.sender.poll(&copy.pace)?;
        match source {
            Source::Member(member) => copy.member(request, &member),
            Source::Wal(name, range, kind) => copy.wal(&request.path, &name, &range, kind),
        }
    });
    // Before an error too: by what came before it the client knows which file failed.
    copy.sender.flush();
    outcome?;
    copy.sender.finish();
    put_message(tag::COPY_DONE, &[]);
    Ok(())
}

/// What a path that a client asks for is.
enum Source<'a> {
    /// A file of the running backup.
    Member(Member<'a>),
    /// A file of pg_wal, by its name there, that the stopped backup needs.
    Wal(Vec<u8>, WalRange, WalFile),
}

impl<'a> Source<'a> {
    fn find(handle: &'a Handle, request: &FileRequest) -> Result<Self> {
        let path = &request.path;
        if let Some(stopped_at) = handle.stopped_at {
            let started_at = (handle.facts.start_lsn, handle.facts.start_timeline);
            let range = WalRange::new(started_at, stopped_at, wal::segment_size());
            let mut components = path.components();
            return match (components.next(), components.next(), components.next()) {
                (Some(WAL_DIR), Some(name), None) => {
                    let kind = range.file(name).ok_or(Error::Stopped(handle.id))?;
                    match &request.extent {
                        Extent::Whole => Ok(Self::Wal(name.to_vec(), range, kind)),
                        Extent::Range(_) => Err(Error::RangeOfOther { path: path.as_bytes().to_vec() }),
                        Extent::Blocks(_) => Err(Error::BlocksOfOther { path: path.as_bytes().to_vec() }),
                    }
                }
                _ => Err(Error::Stopped(handle.id)),
            };
        }
        let member = member(&handle.layout, path)
            .ok_or_else(|| Error::NotInBackup { path: path.as_bytes().to_vec() })?;
        match &request.extent {
            Extent::Whole => {}
            Extent::Range(range) => check_range(path, &member, *range)?,
            Extent::Blocks(blocks) => check_blocks(path, &member, blocks)?,
        }
        Ok(Self::Member(member))
    }
}

/// Ranges are for relation files, which are only ever extended and cut in place; another file may
/// be replaced between two ranges.
fn check_range(path: &BackupPath, member: &Member<'_>, range: Range) -> Result<()> {
    let path = || path.as_bytes().to_vec();
    if member.relation.is_none() {
        return Err(Error::RangeOfOther { path: path() });
    }
    let block_size = BLOCK_SIZE as u64;
    let whole_blocks = |bytes: u64| bytes.is_multiple_of(block_size);
    if whole_blocks(range.offset) && range.length.is_none_or(whole_blocks) {
        Ok(())
    } else {
        Err(Error::RangeAlignment { path: path(), block_size: BLOCK_SIZE })
    }
}

/// Blocks are of relation files too: what is not made of them has no numbers.
fn check_blocks(path: &BackupPath, member: &Member<'_>, blocks: &BlockList) -> Result<()> {
    let path = || path.as_bytes().to_vec();
    if member.relation.is_none() {
        return Err(Error::BlocksOfOther { path: path() });
    }
    match blocks.last() {
        Some(block) if block >= SEGMENT_BLOCKS => {
            Err(Error::BlockNumber { path: path(), block, segment_blocks: SEGMENT_BLOCKS })
        }
        _ => Ok(()),
    }
}

/// The sending of one command's files.
struct CopyOut<'a> {
    pace: HandlePace<'a>,
    opener: Opener<'a>,
    sender: Sender,
    verify: bool,
    checksum: ChecksumAlgorithm,
}

impl CopyOut<'_> {
    fn member(&mut self, request: &FileRequest, member: &Member<'_>) -> Result<()> {
        self.pace.handle.check_not_promoted()?;
        let (file, metadata) = match self.opener.open(&request.path, member)? {
            Opened::File(file, metadata) => (file, metadata),
            Opened::Vanished => {
                self.sender.vanished(request.path.as_bytes());
                return Ok(());
            }
        };
        let pages = match member.pages {
            Pages::From(first_block) if self.verify => {
                Some(PageCheck { start_lsn: self.pace.handle.facts.start_lsn, first_block })
            }
            Pages::InvalidSegment if self.verify => {
                return Err(Error::InvalidSegment { path: request.path.as_bytes().to_vec() });
            }
            Pages::From(_) | Pages::None | Pages::InvalidSegment => None,
        };
        let wanted = match &request.extent {
            Extent::Whole => Wanted::Range { offset: 0, length: metadata.len() },
            Extent::Range(range) => clamp(*range, metadata.len()),
            Extent::Blocks(blocks) => Wanted::Blocks(blocks),
        };
        let content = Content {
            path: request.path.as_bytes(),
            file: Rc::new(file),
            metadata: &metadata,
            wanted,
            is_relation: member.relation.is_some(),
            pages,
            checksum: self.checksum,
        };
        let failures = self.send(&content, || Ok(()))?;
        if failures > 0 {
            checksum_stats::report(member.database(), failures);
        }
        Ok(())
    }

    /// A segment may be removed or recycled while it is read: checked after each read, so that no
    /// end frame follows on bytes of another segment.
    fn wal(&mut self, path: &BackupPath, name: &[u8], range: &WalRange, kind: WalFile) -> Result<()> {
        let text = || String::from_utf8_lossy(name).into_owned();
        let check = || match kind {
            WalFile::Segment(segment) if wal::is_removed(segment.number) => {
                Err(Error::WalRemoved { segment: text() })
            }
            WalFile::Segment(_) | WalFile::History => Ok(()),
        };
        check()?;
        let (file, metadata) = match open_wal_file(Path::new(ROOT), name, path.as_bytes())? {
            Opened::File(file, metadata) => (file, metadata),
            Opened::Vanished => return Err(Error::WalRemoved { segment: text() }),
        };
        check()?;
        if matches!(kind, WalFile::Segment(_)) && metadata.len() != range.segment_size {
            return Err(Error::WalSize { segment: text() });
        }
        let content = Content {
            path: path.as_bytes(),
            file: Rc::new(file),
            metadata: &metadata,
            wanted: Wanted::Range { offset: 0, length: metadata.len() },
            is_relation: false,
            pages: None,
            checksum: self.checksum,
        };
        self.send(&content, check)?;
        Ok(())
    }

    fn send(&mut self, content: &Content<'_>, after_read: impl Fn() -> Result<()>) -> Result<u32> {
        let sent = self.sender.send(content, &self.pace, after_read)?;
        self.pace.handle.counters.count_file(sent.bytes, sent.checksum_failures);
        Ok(sent.checksum_failures)
    }
}

/// A range, cut to the file.
fn clamp(range: Range, size: u64) -> Wanted<'static> {
    let left = size.saturating_sub(range.offset);
    Wanted::Range { offset: range.offset, length: range.length.map_or(left, |length| length.min(left)) }
}

/// Paces a command's files, and counts what has gone out.
struct HandlePace<'a> {
    handle: &'a Handle,
    streamed: Cell<u64>,
}

impl<'a> HandlePace<'a> {
    fn new(handle: &'a Handle) -> Self {
        Self { handle, streamed: Cell::new(0) }
    }
}

impl TransferControl for HandlePace<'_> {
    fn poll(&self) -> Result<()> {
        self.handle.poll()
    }

    fn throttle(&self, bytes: u64) -> Result<()> {
        self.handle.throttle(bytes)
    }

    fn chunk(&self, most: usize) -> usize {
        self.handle.facts.max_rate.map_or(most, |rate| throttle::chunk(rate, BLOCK_SIZE, most))
    }

    fn is_limited(&self) -> bool {
        self.handle.facts.max_rate.is_some()
    }

    fn sent(&self, bytes: u64) {
        self.streamed.set(self.streamed.get() + bytes);
        progress::set_streamed(self.streamed.get());
        self.handle.counters.count_sent(bytes);
    }
}
