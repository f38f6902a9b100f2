//! What one command asks for: files that are checked alike. And what a connection has claimed: some such batches, the
//! next of which it asks for before the last has come to its end, so that the server goes from one to the
//! other without waiting for the way there and back.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use pages::checksum::Checksum;
use pages::relation;
use protocol::command::{Extent, Range, SendFilesContent};
use protocol::frame::Compression;
use protocol::{BackupId, BackupPath, ChecksumAlgorithm, Command, FileRequest, MAX_BLOCK_LISTS};

use crate::chunk::Chunk;
use crate::error::{Error, Result};
use crate::fetch::increment::{Increment, Place};
use crate::fetch::queue::{Item, SIZED_MINIMUM, Turn};
use crate::fetch::receive::{Checks, PageRule, Received, Receiver, Sink};
use crate::fetch::transfer::Work;
use crate::fetch::writer::{Mismatched, piece};
use crate::options::Side;
use crate::output::collected::Collected;
use crate::output::{Attributes, Intake, OutputFile};
use crate::server::connection::{Route, Session};
use crate::server::wire::CopySink;

/// Relation files below that are verified by the server: it sends them by way of its own memory in any
/// case, and small files of all kinds then come in one command.
const BY_CLIENT_MINIMUM: u64 = SIZED_MINIMUM;

/// The next command is sent when so many bytes of the last answer are still to come: what 50 MB/s bring in the
/// 40 ms that a command takes to a server far away and back, twice. The less, the evener the end, since what is
/// claimed by one connection is not done by another.
const AHEAD: u64 = 4 << 20;

/// What a file takes on the wire beside its content.
const FRAMES: u64 = 100;

/// What one connection has claimed.
pub struct Hand {
    /// Where it took its last batch from.
    pub turn: Turn,
    /// How commands reach the server.
    pub route: Route,
    /// Whether this side verifies relation files.
    pub by_client: bool,
    /// What is to be asked for; the first may have been.
    pub batches: VecDeque<Batch>,
    /// Files with pages that are to be looked at again, once nothing else was asked for.
    pub mismatched: Vec<(Batch, Vec<Mismatched>)>,
}

impl Hand {
    /// Nothing yet.
    pub fn of(session: &Session, by_client: bool) -> Self {
        let (turn, route) = (Turn::default(), session.route());
        Self { turn, route, by_client, batches: VecDeque::new(), mismatched: Vec::new() }
    }
}

/// What one command asks for.
pub struct Batch {
    /// What is checked of all of it.
    pub checks: Checks,
    /// Files, or parts of them, in the order in which they come.
    pub items: Vec<Item>,
    /// What each of them is made of, if it is of blocks.
    pub places: Vec<Option<Place>>,
    /// What the server is asked for, for each of them.
    pub wanted: Vec<FileRequest>,
    /// SEND_FILES_CONTENT of it.
    pub text: Vec<u8>,
    /// How long the lists of blocks are together.
    lists: usize,
}

impl Batch {
    fn new(checks: Checks) -> Self {
        Self { checks, items: Vec::new(), places: Vec::new(), wanted: Vec::new(), text: Vec::new(), lists: 0 }
    }

    fn push(&mut self, item: Item, place: Option<Place>, request: FileRequest, list: usize) {
        self.items.push(item);
        self.places.push(place);
        self.wanted.push(request);
        self.lists += list;
    }

    /// About how much comes, of files of so many bytes.
    pub fn bytes_on_the_wire(&self, bytes: u64) -> u64 {
        // What is compressed is half as much at most, or nobody gains much by it.
        let bytes = if self.checks.compression.algorithm == Compression::None { bytes } else { bytes / 2 };
        bytes.saturating_add(FRAMES * self.items.len() as u64)
    }
}

/// SEND_FILES_CONTENT. `verify` overrides what follows from `checks`.
pub fn send_files_content(
    files: Vec<FileRequest>,
    backup: BackupId,
    checks: Checks,
    verify: Option<bool>,
) -> Command {
    Command::SendFilesContent(SendFilesContent {
        files,
        backup_id: Some(backup),
        // As START_BACKUP has it if it is the server that verifies.
        verify_checksums: verify.or(if checks.by_server { None } else { Some(false) }),
        file_checksum: if checks.by_server { checks.algorithm } else { ChecksumAlgorithm::None },
        compression: checks.compression,
    })
}

fn request(path: BackupPath, item: Item, place: Option<&Place>) -> FileRequest {
    let extent = match (place, item.part) {
        (Some(place), _) => Extent::Blocks(place.blocks.clone()),
        (None, Some(part)) => Extent::Range(Range { offset: part.offset, length: Some(part.length) }),
        (None, None) => Extent::Whole,
    };
    FileRequest { path, extent }
}

impl Work<'_> {
    /// Divides what was claimed into batches that are checked alike, and makes what the server need not be asked
    /// for.
    pub(super) fn deal(&self, items: &[Item], hand: &mut Hand) -> Result<()> {
        let mut batches: Vec<Batch> = Vec::new();
        for &item in items {
            let increment = self.increments.get(item.file);
            if let Some(increment) = increment.as_ref().filter(|increment| increment.blocks.is_empty()) {
                self.make_of_nothing(item, increment)?;
                continue;
            }
            let place = increment.map(|increment| increment.place(item.part, self.algorithm));
            let checks = match place {
                _ if hand.by_client && self.has_page_checksums(item) => self.checks_by_client(),
                // The server's checksum is of the blocks alone, the manifest's of what is made of them: it need
                // not be as costly.
                Some(_) => Checks { algorithm: ChecksumAlgorithm::Crc32c, ..self.checks_by_server() },
                None => self.checks_by_server(),
            };
            // Of a header and blocks that nobody has looked at there is no other checksum.
            let has_checksum = place.is_none() || self.algorithm == ChecksumAlgorithm::Crc32c;
            let checks = Checks { passes: self.passes && checks.by_server && has_checksum, ..checks };
            let request = request(self.queue.path(item.file), item, place.as_ref());
            let length = place.as_ref().map_or(0, Place::list_length);
            let fits = |batch: &&mut Batch| batch.checks == checks && batch.lists + length <= MAX_BLOCK_LISTS;
            match batches.iter_mut().rev().find(fits) {
                Some(batch) => batch.push(item, place, request, length),
                None => {
                    let mut batch = Batch::new(checks);
                    batch.push(item, place, request, length);
                    batches.push(batch);
                }
            }
        }
        // First those that are looked at here, as they are the large ones.
        batches.sort_by_key(|batch| batch.checks.by_server);
        for batch in &mut batches {
            let command = send_files_content(batch.wanted.clone(), self.backup, batch.checks, None);
            batch.text = hand.route.text_of(&command);
        }
        hand.batches.extend(batches);
        Ok(())
    }

    /// Whether page checksums tell all that came wrong: relation files are nothing but pages, and only of
    /// them the server sends pages again by range.
    fn has_page_checksums(&self, item: Item) -> bool {
        self.queue.size(item) >= BY_CLIENT_MINIMUM
            && relation::of_listed(&self.queue.path(item.file)).is_some()
    }

    /// Whether this side verifies relation files on a connection. On one that is encrypted, or where it
    /// compresses them, the bytes go through the server's hands anyway; on a plain one it would have to copy them only to look at
    /// them. Without page checksums nothing but a file checksum of the server says that they came as they were.
    pub(super) fn verifies(&self, session: &Session) -> bool {
        self.pages.is_some()
            && match self.verify {
                Some(side) => side == Side::Client,
                None => session.is_plain() && self.compression.algorithm == Compression::None,
            }
    }

    /// The server verifies, and makes the checksums.
    pub fn checks_by_server(&self) -> Checks {
        Checks {
            algorithm: self.algorithm,
            by_server: true,
            pages: None,
            names: self.names,
            compression: self.compression,
            passes: false,
        }
    }

    fn checks_by_client(&self) -> Checks {
        Checks { by_server: false, pages: Some(PageRule::Always), ..self.checks_by_server() }
    }

    /// A file of which no block has changed: there is nothing to ask the server for.
    fn make_of_nothing(&self, item: Item, increment: &Increment) -> Result<()> {
        let path = self.name(item);
        let Place { header, size, .. } = increment.place(None, self.algorithm);
        let failed = |error: io::Error| Error::io("write to file", &self.output.shown(&path), &error);
        let mut collected = None;
        if self.output.intake() == Intake::Any {
            let begun = self.output.begin(&piece(&path, None, size, increment.attributes))?;
            begun.map_or(Ok(()), |output| output.write(&header, 0)).map_err(failed)?;
        } else {
            let content = Collected::new(0, size, || self.output.spool()).map_err(failed)?;
            content.write(&header, 0).map_err(failed)?;
            collected = Some(Arc::new(content));
        }
        self.counters.received(header.len());
        let Attributes { mode, mtime } = increment.attributes;
        let checksum = Checksum::of(self.algorithm, &header);
        let received =
            Received { size, offset: 0, length: size, mtime, mode, checksum, mismatches: Vec::new() };
        self.complete(item, &received, collected)
    }
}

/// Hands what a COPY carries to whoever knows what it is.
pub struct Feed<'a, 'b, S> {
    /// Checks it.
    pub receiver: &'a mut Receiver<'b>,
    sink: &'a mut S,
    /// How much is still to come, and what is asked for next, if that is to be known before the end.
    left: u64,
    next: Option<&'a mut dyn FnMut() -> Result<Option<Vec<u8>>>>,
}

impl<'a, 'b, S: Sink> Feed<'a, 'b, S> {
    /// One command, and nothing after it.
    pub fn new(receiver: &'a mut Receiver<'b>, sink: &'a mut S) -> Self {
        Self { receiver, sink, left: 0, next: None }
    }

    /// When of about so many bytes most have come, `next` has the text of another command.
    pub fn then(self, left: u64, next: &'a mut dyn FnMut() -> Result<Option<Vec<u8>>>) -> Self {
        Self { left, next: Some(next), ..self }
    }
}

impl<S: Sink> CopySink for Feed<'_, '_, S> {
    fn message(&mut self, payload: &[u8]) -> Result<()> {
        self.left = self.left.saturating_sub(payload.len() as u64);
        self.receiver.message(payload, self.sink)
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.left = self.left.saturating_sub(chunk.len() as u64);
        self.receiver.data(chunk, self.sink)
    }

    fn keeps(&self) -> bool {
        self.receiver.passes()
    }

    fn next_command(&mut self) -> Result<Option<Vec<u8>>> {
        match self.next.take_if(|_| self.left <= AHEAD) {
            Some(next) => next(),
            None => Ok(None),
        }
    }
}
