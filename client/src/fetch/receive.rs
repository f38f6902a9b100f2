//! What SEND_FILES_CONTENT answers, checked message by message: every file that was asked for, in
//! that order, with as many bytes as announced. Where the server verifies, with a checksum that fits
//! them; where this side does, page by page, with a checksum made here that says nothing about the way.
//! Where the bytes go is for a `Sink` to say.

use compression::{DecodeError, Outline};
use pages::names::{self, NameRules};
use pages::page::{self, BLOCK_SIZE};
use protocol::blocks::Run;
use protocol::command::{Extent, FileRequest};
use protocol::compression::WireCompression;
use protocol::frame::Compression;
use protocol::frame::StreamEnd;
use protocol::{ChecksumAlgorithm, FileBegin, FileEnd, Frame, Lsn};

use crate::chunk::{Chunk, Kept};
use crate::compress::{Failure, Inflater};
use crate::error::{Error, Result};
use crate::fetch::increment::Place;
use crate::output::Attributes;
use pages::checksum::{Checksum, combine_crcs, from_crc, to_crc};

/// What is verified and checksummed at a time: in the first-level cache between the two.
const STEP: usize = 4 * BLOCK_SIZE;

/// Takes the files. `file` is the place in the request.
pub trait Sink {
    /// A file begins; what an earlier try left of it goes. It is compressed where its next bytes are those of its
    /// stream.
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()>;
    /// Its next bytes.
    fn data(&mut self, chunk: Chunk<'_>) -> Result<()>;
    /// Its next bytes, in pieces.
    fn pieces(&mut self, pieces: &[Kept]) -> Result<()> {
        pieces.iter().try_for_each(|piece| self.data(Chunk::from(&**piece)))
    }
    /// It is complete, and its checksum fits if the server made one.
    fn end(&mut self, file: usize, received: Received) -> Result<()>;
    /// It no longer exists on the server.
    fn vanished(&mut self, file: usize) -> Result<()>;
    /// It came whole, but not as it was sent. The transfer goes on.
    fn damaged(&mut self, file: usize, error: Error) -> Result<()>;
}

/// A file, or a range of one, that was received; or the file that is made of some blocks of it, or a part of that,
/// with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The file's size in bytes.
    pub size: u64,
    /// Where the range begins.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
    /// Modification time in seconds since the Unix epoch.
    pub mtime: i64,
    /// The file's mode.
    pub mode: u32,
    /// The checksum of these bytes.
    pub checksum: Vec<u8>,
    /// Pages whose checksum does not fit, by their number in the file on the server: to be asked for again.
    pub mismatches: Vec<u32>,
}

impl Received {
    /// What the server said of it beside its bytes.
    pub fn attributes(&self) -> Attributes {
        Attributes { mode: self.mode, mtime: self.mtime }
    }
}

/// What is checked, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// The checksum that is wanted.
    pub algorithm: ChecksumAlgorithm,
    /// Whether the server makes it too, and verifies pages, if they are to be verified at all.
    pub by_server: bool,
    /// Which pages must have a checksum that fits, if they are looked at here.
    pub pages: Option<PageRule>,
    /// How the server reads the names of files, and so which have pages.
    pub names: NameRules,
    /// How files may come compressed.
    pub compression: WireCompression,
    /// Whether those that do are handed on so. Only where the server makes the checksums: nobody looks at the
    /// content here.
    pub passes: bool,
}

/// Which pages must have a checksum that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageRule {
    /// All but those of zeroes. For bytes that no file checksum covers: an LSN that is new, or a header that
    /// says that the page is, may be what was damaged on the way.
    Always,
    /// Those that WAL replay does not replace: older than the start LSN. For bytes that a file checksum covers.
    Before(Lsn),
}

/// The state between messages.
#[derive(Debug)]
pub struct Receiver<'a> {
    wanted: &'a [FileRequest],
    /// What those of them are a part of that are blocks of an increment; none of any other, nor behind the last.
    places: &'a [Option<Place>],
    checks: Checks,
    /// The file that is being received, or is next.
    position: usize,
    open: Option<Open>,
    /// The beginning of a page whose end is in the next message.
    torn: Vec<u8>,
    /// What decompresses, once there was something to decompress.
    inflater: Option<Inflater>,
}

#[derive(Debug)]
struct Open {
    coming: Coming,
    size: u64,
    offset: u64,
    length: u64,
    mtime: i64,
    mode: u32,
    received: u64,
    digests: Digests,
    pages: Option<Pages>,
}

/// How a file's bytes come.
#[derive(Debug)]
enum Coming {
    AsTheyAre,
    /// As a stream.
    Compressed,
    /// As a stream that is handed on as it is.
    Passed(Box<Passed>),
    /// As a stream that was given up, and why. What else comes of it means nothing.
    Damaged(Damage),
}

/// A stream that is handed on.
#[derive(Debug)]
struct Passed {
    algorithm: Compression,
    bytes: u64,
    /// The most that it may have.
    most: u64,
    /// Of its bytes, and of the frames around them.
    checksum: Checksum,
    /// That it is one stream of as many bytes as were announced, and does not bring more into an archive.
    outline: Outline,
    /// What the server says of it.
    announced: Option<StreamEnd>,
}

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Damage {
    #[error(transparent)]
    Content(#[from] DecodeError),
    #[error("the CRC32C checksum of its compressed data does not match")]
    Checksum,
    #[error("it has {0} bytes of compressed data and the server counted {1}")]
    Length(u64, u64),
}

/// What is made of the bytes of a file.
#[derive(Debug)]
struct Digests {
    /// Of what is sent.
    sent: Checksum,
    /// Of what is made of it, if that is something else.
    made: Option<Checksum>,
}

/// The pages of a file that is being received.
#[derive(Debug)]
struct Pages {
    rule: PageRule,
    /// The number of the file's first page in its fork.
    first_block: u32,
    /// The numbers of the next pages in the file.
    numbers: Numbers,
    mismatches: Vec<u32>,
}

/// Numbers of pages, in runs.
#[derive(Debug)]
struct Numbers {
    next: u32,
    /// How many are left of this run,
    left: u32,
    /// and what follows it.
    runs: std::vec::IntoIter<Run>,
}

impl<'a> Receiver<'a> {
    /// These files or ranges, in this order.
    pub fn new(wanted: &'a [FileRequest], checks: Checks) -> Self {
        let (open, torn, inflater) = (None, Vec::new(), None);
        Self { wanted, places: &[], checks, position: 0, open, torn, inflater }
    }

    /// Some of them are blocks of increments, which get checksums with their headers. What the server is asked
    /// for is [`Checks::algorithm`] all the same.
    pub fn with_places(self, places: &'a [Option<Place>]) -> Self {
        Self { places, ..self }
    }

    /// The first file that has not been answered for.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether what comes is a stream that is handed on as one.
    pub fn passes(&self) -> bool {
        matches!(self.open, Some(Open { coming: Coming::Passed(_), .. }))
    }

    /// Takes one CopyData message.
    pub fn message(&mut self, message: &[u8], sink: &mut impl Sink) -> Result<()> {
        let frame = Frame::decode(message).map_err(|error| self.violation(&error.to_string()))?;
        match frame {
            Frame::FileBegin(begin) => {
                self.begin(&begin, sink)?;
                self.cover(message);
                Ok(())
            }
            Frame::Data(bytes) => self.data(Chunk::from(bytes), sink),
            Frame::StreamEnd(end) => self.stream_end(end),
            Frame::FileEnd(end) => {
                self.cover(message);
                self.end(&end, sink)
            }
            Frame::Vanished(path) => {
                if self.open.is_some() {
                    return Err(self.violation("vanished file in the middle of another"));
                }
                self.expect(path)?;
                sink.vanished(self.position)?;
                self.position += 1;
                Ok(())
            }
            // A later version's.
            Frame::Unknown(_) => Ok(()),
        }
    }

    /// The copy is over: everything must be there.
    pub fn finish(&self) -> Result<()> {
        match (&self.open, self.wanted.get(self.position)) {
            (None, None) => Ok(()),
            (Some(_), Some(FileRequest { path, .. })) => {
                Err(self.violation(&format!("file \"{path}\" is incomplete")))
            }
            (_, Some(FileRequest { path, .. })) => {
                Err(self.violation(&format!("file \"{path}\" was not sent")))
            }
            (Some(_), None) => Err(self.violation("file that was not asked for")),
        }
    }

    fn begin(&mut self, begin: &FileBegin<'_>, sink: &mut impl Sink) -> Result<()> {
        if self.open.is_some() {
            return Err(self.violation("file begins in the middle of another"));
        }
        self.expect(begin.path)?;
        let wanted = &self.wanted[self.position];
        if (begin.offset, begin.length) != clamp(&wanted.extent, begin.size) {
            return Err(self.violation("another part of a file than was asked for"));
        }
        let coming = self.begin_stream(begin)?;
        let pages = self.checks.pages.and_then(|rule| {
            let names::Pages::From(first_block) = self.checks.names.pages_of(&wanted.path) else {
                return None;
            };
            let numbers = match &wanted.extent {
                Extent::Blocks(blocks) => Numbers::of(blocks.runs().to_vec()),
                // Ranges begin at a block, and a file of pages has no more than fit a number.
                Extent::Whole | Extent::Range(_) => {
                    let first = u32::try_from(begin.offset / BLOCK_SIZE as u64).unwrap_or(u32::MAX);
                    Numbers::of(vec![Run { first, count: u32::MAX }])
                }
            };
            Some(Pages { rule, first_block, numbers, mismatches: Vec::new() })
        });
        let place = self.places.get(self.position).and_then(Option::as_ref);
        let digests = Digests::new(self.checks, place);
        let compression =
            if let Coming::Passed(passed) = &coming { passed.algorithm } else { Compression::None };
        sink.begin(self.position, &FileBegin { compression, ..begin.clone() })?;
        self.torn.clear();
        self.open = Some(Open {
            coming,
            size: begin.size,
            offset: begin.offset,
            length: begin.length,
            mtime: begin.mtime,
            mode: begin.mode,
            received: 0,
            digests,
            pages,
        });
        Ok(())
    }

    fn begin_stream(&mut self, begin: &FileBegin<'_>) -> Result<Coming> {
        let asked = self.checks.compression;
        if begin.compression == Compression::None {
            return Ok(Coming::AsTheyAre);
        }
        if begin.compression != asked.algorithm {
            return Err(self.violation("compression that was not asked for"));
        }
        if self.checks.passes {
            return Ok(Coming::Passed(Box::new(Passed {
                algorithm: begin.compression,
                bytes: 0,
                most: compression::most(begin.length),
                checksum: Checksum::new(ChecksumAlgorithm::Crc32c),
                outline: Outline::new(begin.compression, begin.length, asked.long),
                announced: None,
            })));
        }
        let inflater = self.inflater.get_or_insert_with(|| Inflater::new(&asked));
        match inflater.begin(begin.compression, begin.length) {
            Ok(()) => Ok(Coming::Compressed),
            Err(Failure::Stream(error)) => Ok(Coming::Damaged(error.into())),
            Err(Failure::Here(error)) => Err(error),
        }
    }

    /// Takes some bytes of a data frame.
    pub fn data(&mut self, chunk: Chunk<'_>, sink: &mut impl Sink) -> Result<()> {
        match self.open.as_mut().map(|open| &mut open.coming) {
            Some(Coming::Passed(passed)) => {
                passed.bytes += chunk.len() as u64;
                if passed.bytes > passed.most {
                    return Err(self.violation("more compressed data than a stream can have"));
                }
                passed.checksum.update(&chunk);
                if let Err(error) = passed.outline.push(&chunk)
                    && let Some(open) = &mut self.open
                {
                    open.coming = Coming::Damaged(error.into());
                    return Ok(());
                }
                sink.data(chunk)
            }
            None | Some(Coming::AsTheyAre) => self.bytes(chunk, sink),
            Some(Coming::Damaged(_)) => Ok(()),
            Some(Coming::Compressed) => self.decompress(|inflater, receiver| {
                inflater.inflate(&chunk, |chunk| receiver.bytes(chunk, sink))
            }),
        }
    }

    /// A frame that the checksum of a stream is of, beside its bytes.
    fn cover(&mut self, message: &[u8]) {
        if let Some(Open { coming: Coming::Passed(passed), .. }) = &mut self.open {
            passed.checksum.update(message);
        }
    }

    fn stream_end(&mut self, end: StreamEnd) -> Result<()> {
        match self.open.as_mut().map(|open| &mut open.coming) {
            Some(Coming::Passed(passed)) if passed.announced.is_none() => passed.announced = Some(end),
            // The content has a checksum of its own, and that it fits says as much.
            Some(Coming::Compressed | Coming::Damaged(_)) => {}
            _ => return Err(self.violation("end of a stream where there is none")),
        }
        Ok(())
    }

    /// A step of decompression, by which a file may turn out to be damaged.
    fn decompress(
        &mut self,
        step: impl FnOnce(&mut Inflater, &mut Self) -> std::result::Result<(), Failure>,
    ) -> Result<()> {
        let Some(mut inflater) = self.inflater.take() else { return Ok(()) };
        let outcome = step(&mut inflater, self);
        self.inflater = Some(inflater);
        match outcome {
            Ok(()) => Ok(()),
            Err(Failure::Stream(error)) => {
                if let Some(open) = &mut self.open {
                    open.coming = Coming::Damaged(error.into());
                }
                Ok(())
            }
            Err(Failure::Here(error)) => Err(error),
        }
    }

    /// Takes some of a file's bytes.
    fn bytes(&mut self, chunk: Chunk<'_>, sink: &mut impl Sink) -> Result<()> {
        let length = chunk.len() as u64;
        match &mut self.open {
            Some(open) if open.length - open.received >= length => open.received += length,
            Some(_) => return Err(self.violation("more data than announced")),
            None => return Err(self.violation("data outside of a file")),
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let Some(pages) = &mut open.pages else {
            open.digests.update(&chunk);
            return sink.data(chunk);
        };
        // The server's frames are of whole pages; nothing says that they must be.
        let mut chunk = chunk;
        if !self.torn.is_empty() {
            let (missing, rest) = chunk.split_at(chunk.len().min(BLOCK_SIZE - self.torn.len()));
            self.torn.extend_from_slice(&missing);
            chunk = rest;
            if self.torn.len() < BLOCK_SIZE {
                return Ok(());
            }
            pages.verify(&self.torn);
            open.digests.update(&self.torn);
            sink.data(Chunk::from(&self.torn[..]))?;
            self.torn.clear();
        }
        let (whole, torn) = chunk.split_at(chunk.len() / BLOCK_SIZE * BLOCK_SIZE);
        for step in whole.chunks(STEP) {
            pages.verify(step);
            open.digests.update(step);
        }
        self.torn.extend_from_slice(&torn);
        if whole.is_empty() { Ok(()) } else { sink.data(whole) }
    }

    fn end(&mut self, end: &FileEnd<'_>, sink: &mut impl Sink) -> Result<()> {
        if matches!(self.open, Some(Open { coming: Coming::Compressed, .. })) {
            self.decompress(|inflater, receiver| inflater.end(|chunk| receiver.bytes(chunk, sink)))?;
        }
        let Some(mut open) = self.open.take() else {
            return Err(self.violation("file ends that did not begin"));
        };
        let is_passed = matches!(open.coming, Coming::Passed(_));
        let damage = match open.coming {
            Coming::Damaged(damage) => Some(damage),
            Coming::AsTheyAre | Coming::Compressed => None,
            Coming::Passed(passed) => {
                let Some(announced) = passed.announced else {
                    return Err(self.violation("a stream without its checksum"));
                };
                // All of them, if the stream is the server's. What it says of them is covered by the checksum, too.
                open.received = open.length;
                passed.check(announced).err()
            }
        };
        // Of a stream that was changed on the way, the words about it may have been changed.
        if damage.is_none() && (open.received != open.length || end.bytes != open.length) {
            let Open { length, received, .. } = open;
            return Err(self.violation(&format!(
                "file of {length} bytes ends after {received}, and the server counted {}",
                end.bytes
            )));
        }
        let expected = if self.checks.by_server { self.checks.algorithm } else { ChecksumAlgorithm::None };
        if damage.is_none() && end.algorithm != expected {
            return Err(self.violation("checksum of another algorithm than asked for"));
        }
        let mut mismatches = Vec::new();
        if let Some(mut pages) = open.pages {
            mismatches = pages.mismatches;
            if !self.torn.is_empty() {
                // What is no whole page cannot be right: the server shall say so.
                mismatches.push(pages.numbers.next());
                open.digests.update(&self.torn);
                sink.data(Chunk::from(&self.torn[..]))?;
            }
        }
        let file = self.position;
        self.position += 1;
        let path = &self.wanted[file].path;
        if let Some(damage) = damage {
            return sink.damaged(
                file,
                Error::connection(format!("file \"{path}\" was damaged in transit: {damage}")),
            );
        }
        let Digests { sent, made } = open.digests;
        let (sent, made) = if is_passed {
            // Believed: the checksum of the stream is of this one, too.
            let sent = end.checksum.to_vec();
            let made = made.map(|header| combined(&header.finish(), &sent, open.length));
            (sent, made)
        } else {
            (sent.finish(), made.map(Checksum::finish))
        };
        if !self.checks.by_server || sent == end.checksum {
            let Open { size, offset, length, mtime, mode, .. } = open;
            let checksum = made.unwrap_or(sent);
            let (size, offset, length) = match self.places.get(file).and_then(Option::as_ref) {
                Some(place) => (place.size, place.start, length + place.header.len() as u64),
                None => (size, offset, length),
            };
            sink.end(file, Received { size, offset, length, mtime, mode, checksum, mismatches })
        } else {
            sink.damaged(
                file,
                Error::connection(format!(
                    "file \"{path}\" was damaged in transit: its {} checksum does not match",
                    self.checks.algorithm.name()
                )),
            )
        }
    }

    /// Fails unless this is the file whose turn it is: nothing but what was asked for is ever
    /// written, whatever the server says.
    fn expect(&self, path: &[u8]) -> Result<()> {
        match self.wanted.get(self.position) {
            Some(wanted) if wanted.path.as_bytes() == path => Ok(()),
            Some(wanted) => Err(self.violation(&format!(
                "file \"{}\" where \"{}\" was expected",
                protocol::path::encode(path),
                wanted.path
            ))),
            None => Err(self.violation("file that was not asked for")),
        }
    }

    fn violation(&self, what: &str) -> Error {
        Error::connection(format!("server sent an invalid file transfer: {what}"))
    }
}

impl Passed {
    fn check(self, announced: StreamEnd) -> std::result::Result<(), Damage> {
        if self.bytes != announced.bytes {
            return Err(Damage::Length(self.bytes, announced.bytes));
        }
        if self.checksum.finish() != announced.checksum {
            return Err(Damage::Checksum);
        }
        Ok(self.outline.end()?)
    }
}

impl Pages {
    /// Looks at whole pages; what does not verify is asked for again later.
    fn verify(&mut self, bytes: &[u8]) {
        for page in bytes.chunks_exact(BLOCK_SIZE) {
            let number = self.numbers.next();
            let block = self.first_block.wrapping_add(number);
            let verified = match self.rule {
                PageRule::Always => page::verify_any(page, block),
                PageRule::Before(start_lsn) => page::verify(page, start_lsn, block),
            };
            if verified.is_err() {
                self.mismatches.push(number);
            }
        }
    }
}

impl Numbers {
    fn of(runs: Vec<Run>) -> Self {
        Self { next: 0, left: 0, runs: runs.into_iter() }
    }

    /// The next number; goes on counting behind the last.
    fn next(&mut self) -> u32 {
        if self.left == 0
            && let Some(run) = self.runs.next()
        {
            (self.next, self.left) = (run.first, run.count);
        }
        self.left = self.left.saturating_sub(1);
        let number = self.next;
        self.next = number.wrapping_add(1);
        number
    }
}

impl Digests {
    /// An increment's file has a header, and may have another checksum than the server is asked for.
    fn new(checks: Checks, place: Option<&Place>) -> Self {
        let Some(place) = place else {
            return Self { sent: Checksum::new(checks.algorithm), made: None };
        };
        let sent = if checks.by_server { checks.algorithm } else { ChecksumAlgorithm::None };
        let mut made = Checksum::new(place.algorithm);
        made.update(&place.header);
        Self { sent: Checksum::new(sent), made: Some(made) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sent.update(bytes);
        if let Some(made) = &mut self.made {
            made.update(bytes);
        }
    }
}

/// The CRC-32C of a header and of what follows it.
fn combined(header: &[u8], next: &[u8], next_length: u64) -> Vec<u8> {
    from_crc(combine_crcs(to_crc(header), to_crc(next), next_length))
}

/// Where the bytes of a request begin and how many they are, as the server says it of a file of this size.
fn clamp(extent: &Extent, size: u64) -> (u64, u64) {
    match extent {
        Extent::Whole => (0, size),
        Extent::Range(range) => {
            let left = size.saturating_sub(range.offset);
            (range.offset, range.length.map_or(left, |length| length.min(left)))
        }
        Extent::Blocks(blocks) => (0, blocks.len() * BLOCK_SIZE as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use protocol::{BackupPath, Range};

    #[derive(Debug, Default)]
    struct Log(Vec<String>);

    impl Sink for Log {
        fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
            self.0.push(format!("begin {file} {:o}", begin.mode));
            Ok(())
        }
        fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
            self.0.push(format!("data {}", chunk.len()));
            Ok(())
        }
        fn end(&mut self, file: usize, received: Received) -> Result<()> {
            let mismatches = match &received.mismatches[..] {
                [] => String::new(),
                some => format!(" but {some:?}"),
            };
            self.0.push(format!("end {file} {} {}{mismatches}", received.size, received.mtime));
            Ok(())
        }
        fn vanished(&mut self, file: usize) -> Result<()> {
            self.0.push(format!("vanished {file}"));
            Ok(())
        }
        fn damaged(&mut self, file: usize, error: Error) -> Result<()> {
            self.0.push(format!("damaged {file}: {error}"));
            Ok(())
        }
    }

    const BY_SERVER: Checks = Checks {
        algorithm: ChecksumAlgorithm::Crc32c,
        by_server: true,
        pages: None,
        names: NameRules::Since17,
        compression: WireCompression { algorithm: Compression::None, level: None, long: false },
        passes: false,
    };

    fn paths(names: &[&str]) -> Vec<FileRequest> {
        names.iter().map(|name| FileRequest::whole(BackupPath::from_bytes(*name).unwrap())).collect()
    }

    fn frame(frame: &Frame<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    }

    fn begin(path: &str, size: u64) -> Vec<u8> {
        frame(&Frame::FileBegin(FileBegin {
            size,
            offset: 0,
            length: size,
            mtime: 1_700_000_000,
            mode: 0o600,
            compression: Compression::None,
            path: path.as_bytes(),
        }))
    }

    fn end(bytes: u64, content: &[u8]) -> Vec<u8> {
        frame(&Frame::FileEnd(FileEnd {
            bytes,
            checksum_failures: 0,
            algorithm: ChecksumAlgorithm::Crc32c,
            checksum: &Checksum::of(ChecksumAlgorithm::Crc32c, content),
        }))
    }

    fn data(bytes: &[u8]) -> Vec<u8> {
        frame(&Frame::Data(bytes))
    }

    fn vanished(path: &str) -> Vec<u8> {
        frame(&Frame::Vanished(path.as_bytes()))
    }

    fn receive(names: &[&str], messages: &[Vec<u8>]) -> (Vec<String>, Result<()>) {
        let wanted = paths(names);
        let mut receiver = Receiver::new(&wanted, BY_SERVER);
        let mut log = Log::default();
        let result = messages
            .iter()
            .try_for_each(|message| receiver.message(message, &mut log))
            .and_then(|()| receiver.finish());
        (log.0, result)
    }

    #[test]
    fn files_in_order_and_one_that_vanished() {
        let (log, result) = receive(
            &["a", "b", "c"],
            &[
                begin("a", 5),
                data(b"he"),
                data(b"llo"),
                b"zunknown".to_vec(),
                end(5, b"hello"),
                vanished("b"),
                begin("c", 0),
                end(0, b""),
            ],
        );
        result.unwrap();
        assert_eq!(
            log,
            [
                "begin 0 600",
                "data 2",
                "data 3",
                "end 0 5 1700000000",
                "vanished 1",
                "begin 2 600",
                "end 2 0 1700000000"
            ]
        );
    }

    #[test]
    fn a_wrong_checksum_is_that_files_trouble_alone() {
        let (log, result) = receive(
            &["a", "b"],
            &[begin("a", 1), data(b"x"), end(1, b"y"), begin("b", 1), data(b"x"), end(1, b"x")],
        );
        result.unwrap();
        assert!(log[2].starts_with("damaged 0: file \"a\" was damaged in transit"), "{log:?}");
        assert_eq!(log[5], "end 1 1 1700000000");
    }

    #[test]
    fn violations() {
        let ranged = frame(&Frame::FileBegin(FileBegin {
            size: 10,
            offset: 0,
            length: 5,
            mtime: 0,
            mode: 0,
            compression: Compression::None,
            path: b"a",
        }));
        for (messages, words) in [
            (vec![], "file \"a\" was not sent"),
            (vec![begin("a", 1)], "file \"a\" is incomplete"),
            (vec![begin("a", 2), data(b"x"), end(2, b"x")], "ends after 1"),
            (vec![begin("a", 1), data(b"x"), end(2, b"x")], "the server counted 2"),
            (vec![begin("a", 1), data(b"xy")], "more data than announced"),
            (vec![begin("b", 1)], "file \"b\" where \"a\" was expected"),
            (vec![begin("../a", 1)], "file \"../a\" where \"a\" was expected"),
            (vec![begin("/etc/passwd", 1)], "file \"/etc/passwd\" where \"a\" was expected"),
            (vec![vanished("b")], "file \"b\" where \"a\" was expected"),
            (vec![begin("a", 1), begin("a", 1)], "file begins in the middle of another"),
            (vec![begin("a", 1), vanished("a")], "vanished file in the middle of another"),
            (vec![data(b"x")], "data outside of a file"),
            (vec![end(0, b"")], "file ends that did not begin"),
            (vec![vanished("a"), begin("a", 0)], "file that was not asked for"),
            (vec![ranged], "another part of a file than was asked for"),
            (vec![b"f\0\0".to_vec()], "is too short"),
            (vec![vec![]], "frame is empty"),
        ] {
            let (_, result) = receive(&["a"], &messages);
            let error = result.unwrap_err();
            assert!(error.message().contains(words), "{error} should contain {words}");
            assert_eq!(error.kind(), Kind::Connection);
        }
    }

    const PASSED: Checks = Checks {
        passes: true,
        compression: WireCompression { algorithm: Compression::Zstd, level: None, long: false },
        ..BY_SERVER
    };

    fn compressed(content: &[u8]) -> Vec<u8> {
        let mut encoder = compression::Encoder::new(&PASSED.compression).unwrap().unwrap();
        encoder.begin(content.len() as u64).unwrap();
        encoder.encode(content, compression::Step::End).unwrap().to_vec()
    }

    /// What a server sends of a stream.
    fn stream(path: &str, length: u64, stream: &[u8], content: &[u8]) -> Vec<Vec<u8>> {
        let begin = frame(&Frame::FileBegin(FileBegin {
            size: length,
            offset: 0,
            length,
            mtime: 1_700_000_000,
            mode: 0o600,
            compression: Compression::Zstd,
            path: path.as_bytes(),
        }));
        let end = end(length, content);
        let covered = [&begin, stream, &end].concat();
        let checksum = Checksum::of(ChecksumAlgorithm::Crc32c, &covered).try_into().unwrap();
        let stream_end = frame(&Frame::StreamEnd(StreamEnd { bytes: stream.len() as u64, checksum }));
        let (one, two) = stream.split_at(stream.len() / 2);
        vec![begin, data(one), data(two), stream_end, end]
    }

    fn receive_passed(messages: &[Vec<u8>]) -> (Vec<String>, Result<()>) {
        let wanted = paths(&["a"]);
        let mut receiver = Receiver::new(&wanted, PASSED);
        let mut log = Log::default();
        let result = messages
            .iter()
            .try_for_each(|message| receiver.message(message, &mut log))
            .and_then(|()| receiver.finish());
        (log.0, result)
    }

    #[test]
    fn a_stream_is_handed_on_as_it_is() {
        let bytes = compressed(&[7; 1000]);
        let (log, result) = receive_passed(&stream("a", 1000, &bytes, &[7; 1000]));
        result.unwrap();
        let (one, two) = (bytes.len() / 2, bytes.len() - bytes.len() / 2);
        let pieces = [format!("data {one}"), format!("data {two}")];
        assert_eq!(log, ["begin 0 600", &pieces[0], &pieces[1], "end 0 1000 1700000000"]);
        // What does not get smaller comes as it is, and is checked by its own checksum.
        let (log, result) = receive_passed(&[begin("a", 5), data(b"hello"), end(5, b"hello")]);
        result.unwrap();
        assert_eq!(log.last().unwrap(), "end 0 5 1700000000");
        let (log, _) = receive_passed(&[begin("a", 5), data(b"hellp"), end(5, b"hello")]);
        assert!(log.last().unwrap().starts_with("damaged 0:"), "{log:?}");
    }

    #[test]
    fn every_bit_of_a_stream_and_of_what_is_said_of_it() {
        let bytes = compressed(&[7; 1000]);
        let good = stream("a", 1000, &bytes, &[7; 1000]);
        for (number, message) in good.iter().enumerate() {
            for bit in 0..message.len() * 8 {
                let mut bad = good.clone();
                bad[number][bit / 8] ^= 1 << (bit % 8);
                let (log, result) = receive_passed(&bad);
                let is_good = log.iter().any(|line| line.starts_with("end"));
                assert!(!is_good, "message {number}, bit {bit}: {log:?}, {result:?}");
            }
        }
    }

    #[test]
    fn streams_that_no_server_sends() {
        let bytes = compressed(&[7; 1000]);
        let good = stream("a", 1000, &bytes, &[7; 1000]);
        let without = |left_out: usize| {
            let messages = good.iter().enumerate().filter(|(number, _)| *number != left_out);
            messages.map(|(_, message)| message.clone()).collect::<Vec<_>>()
        };
        let mut twice = good.clone();
        twice.insert(3, good[3].clone());
        // The head of a frame of 1000 bytes, and of a block of 5000.
        let head = [0x28, 0xB5, 0x2F, 0xFD, 0b0110_0000, 0xE8, 0x02, 0x40, 0x9C, 0];
        let long = stream("a", 1000, &[&head[..], &[0; 3000]].concat(), b"content");
        let as_it_is = vec![begin("a", 5), data(b"hello"), good[3].clone(), end(5, b"hello")];
        for (messages, words) in [
            (without(3), "a stream without its checksum"),
            (twice, "end of a stream where there is none"),
            (as_it_is, "end of a stream where there is none"),
            (vec![good[3].clone()], "end of a stream where there is none"),
            (long, "more compressed data than a stream can have"),
        ] {
            let error = receive_passed(&messages).1.unwrap_err();
            assert!(error.message().contains(words), "{error} should contain {words}");
        }
        let (log, _) = receive_passed(&without(2));
        let words = format!("it has {} bytes of compressed data and the server counted", bytes.len() / 2);
        assert!(log[2].contains(&words), "{log:?}");
        // What an archive would get more, or less, of than its header says, whatever the checksums.
        let twice = bytes.repeat(2);
        for (length, stream_bytes, words) in [
            (1000, &twice[..], "compressed data goes on after its end"),
            (999, &bytes, "could not decompress data: another length"),
            (1000, &bytes[..bytes.len() - 1], "compressed data ends early"),
            (1000, b"not compressed", "could not decompress data: not a zstd frame"),
        ] {
            let (log, _) = receive_passed(&stream("a", length, stream_bytes, &[7; 1000]));
            assert!(log.last().unwrap().contains(words), "{log:?} should contain {words}");
        }
    }

    #[test]
    fn truncation_anywhere_is_noticed() {
        let messages = [begin("a", 5), data(b"hello"), end(5, b"hello"), vanished("b")];
        for length in 0..messages.len() {
            assert!(receive(&["a", "b"], &messages[..length]).1.is_err(), "{length} messages");
        }
    }

    #[test]
    fn another_checksum_algorithm_is_refused() {
        let wanted = paths(&["a"]);
        let mut receiver =
            Receiver::new(&wanted, Checks { algorithm: ChecksumAlgorithm::Sha256, ..BY_SERVER });
        let mut log = Log::default();
        receiver.message(&begin("a", 0), &mut log).unwrap();
        assert!(receiver.message(&end(0, b""), &mut log).is_err());
    }

    /// Pages that a server wrote: blocks 0 and 3 of two relations, and new ones between.
    fn relation() -> Vec<u8> {
        let new = [0; BLOCK_SIZE];
        let heap = include_bytes!("../../../tests/data/page_heap_block_0");
        let btree = include_bytes!("../../../tests/data/page_btree_block_3");
        [&heap[..], &new, &new, &btree[..], &new].concat()
    }

    fn by_client(path: &str, extent: Extent, content: &[u8], step: usize) -> (Vec<String>, Vec<u8>) {
        #[derive(Default)]
        struct Keep(Log, Vec<u8>, Vec<u8>);
        impl Sink for Keep {
            fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
                self.0.begin(file, begin)
            }
            fn data(&mut self, bytes: Chunk<'_>) -> Result<()> {
                self.1.extend_from_slice(&bytes);
                Ok(())
            }
            fn end(&mut self, file: usize, received: Received) -> Result<()> {
                self.2.clone_from(&received.checksum);
                self.0.end(file, received)
            }
            fn vanished(&mut self, file: usize) -> Result<()> {
                self.0.vanished(file)
            }
            fn damaged(&mut self, file: usize, error: Error) -> Result<()> {
                self.0.damaged(file, error)
            }
        }
        let path = BackupPath::from_bytes(path).unwrap();
        let offset = if let Extent::Range(range) = &extent { range.offset } else { 0 };
        let wanted = [FileRequest { path: path.clone(), extent }];
        let checks = Checks { by_server: false, pages: Some(PageRule::Always), ..BY_SERVER };
        let mut receiver = Receiver::new(&wanted, checks);
        let mut keep = Keep::default();
        let length = content.len() as u64;
        let begin = frame(&Frame::FileBegin(FileBegin {
            size: offset + length,
            offset,
            length,
            mtime: 0,
            mode: 0o600,
            compression: Compression::None,
            path: path.as_bytes(),
        }));
        receiver.message(&begin, &mut keep).unwrap();
        for piece in content.chunks(step) {
            receiver.data(Chunk::from(piece), &mut keep).unwrap();
        }
        let end = FileEnd {
            bytes: length,
            checksum_failures: 0,
            algorithm: ChecksumAlgorithm::None,
            checksum: &[],
        };
        receiver.message(&frame(&Frame::FileEnd(end)), &mut keep).unwrap();
        receiver.finish().unwrap();
        assert_eq!(keep.1, content);
        (keep.0.0, keep.2)
    }

    #[test]
    fn pages_are_verified_whatever_they_come_in() {
        let good = relation();
        let mut bad = good.clone();
        bad[100] ^= 1;
        bad[3 * BLOCK_SIZE + 4000] ^= 1;
        for step in [1000, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE, good.len()] {
            let (log, checksum) = by_client("base/5/16384", Extent::Whole, &good, step);
            assert_eq!(log[1], "end 0 40960 0", "{step} at a time");
            assert_eq!(checksum, Checksum::of(ChecksumAlgorithm::Crc32c, &good));
            let (log, checksum) = by_client("base/5/16384", Extent::Whole, &bad, step);
            assert_eq!(log[1], "end 0 40960 0 but [0, 3]", "{step} at a time");
            assert_eq!(checksum, Checksum::of(ChecksumAlgorithm::Crc32c, &bad));
        }
        // Block numbers go on from one segment to the next, and from the beginning of a range.
        assert_eq!(by_client("base/5/16384.1", Extent::Whole, &good, 8192).0[1], "end 0 40960 0 but [0, 3]");
        let range = Extent::Range(Range { offset: 3 * BLOCK_SIZE as u64, length: Some(1 << 20) });
        let (log, _) = by_client("base/5/16384", range, &good[3 * BLOCK_SIZE..], 8192);
        assert_eq!(log[1], "end 0 40960 0");
        // What has no pages is not looked at, and half a page cannot be one.
        assert_eq!(by_client("base/5/PG_VERSION", Extent::Whole, &bad, 8192).0[1], "end 0 40960 0");
        assert_eq!(
            by_client("base/5/16384", Extent::Whole, &good[..BLOCK_SIZE + 5], 8192).0[1],
            "end 0 8197 0 but [1]"
        );
    }

    #[test]
    fn a_range_that_was_not_asked_for() {
        let path = BackupPath::from_bytes("a").unwrap();
        let range = Range { offset: 8192, length: Some(16384) };
        for (size, offset, length, fits) in [
            (100_000, 8192, 16384, true),
            (100_000, 8192, 16383, false),
            (100_000, 0, 16384, false),
            (100_000, 0, 100_000, false),
            // The file has shrunk.
            (10_000, 8192, 10_000 - 8192, true),
            (100, 8192, 0, true),
        ] {
            let wanted = [FileRequest { path: path.clone(), extent: Extent::Range(range) }];
            let begin = FileBegin {
                size,
                offset,
                length,
                mtime: 0,
                mode: 0,
                compression: Compression::None,
                path: b"a",
            };
            let result = Receiver::new(&wanted, BY_SERVER)
                .message(&frame(&Frame::FileBegin(begin)), &mut Log::default());
            assert_eq!(result.is_ok(), fits, "{offset} {length} of {size}");
        }
    }
}
