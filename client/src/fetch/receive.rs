//! What SEND_FILES_CONTENT answers, checked message by message: every file that was asked for, in
//! that order, with as many bytes as announced. Where the server verifies, with a checksum that fits
//! them; where this side does, page by page, with a checksum made here that says nothing about the way.
//! Where the bytes go is for a `Sink` to say.

use compression::DecodeError;
use pages::names::{self, NameRules};
use pages::page::{self, BLOCK_SIZE};
use protocol::blocks::Run;
use protocol::command::{Extent, FileRequest};
use protocol::compression::WireCompression;
use protocol::frame::Compression;
use protocol::{ChecksumAlgorithm, FileBegin, FileEnd, Frame, Lsn};

use crate::compress::{Failure, Inflater};
use crate::error::{Error, Result};
use crate::fetch::increment::Place;
use crate::output::Attributes;
use crate::server::chunk::{Chunk, Kept};
use pages::checksum::Checksum;

/// What is verified and checksummed at a time: in the first-level cache between the two.
const STEP: usize = 4 * BLOCK_SIZE;

/// Takes the files. `file` is the place in the request.
pub trait Sink {
    /// A file begins; what an earlier try left of it goes.
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
    /// As a stream that was given up, and why. What else comes of it means nothing.
    Damaged(DecodeError),
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

    /// Takes one CopyData message.
    pub fn message(&mut self, message: &[u8], sink: &mut impl Sink) -> Result<()> {
        let frame = Frame::decode(message).map_err(|error| self.violation(&error.to_string()))?;
        match frame {
            Frame::FileBegin(begin) => self.begin(&begin, sink),
            Frame::Data(bytes) => self.data(Chunk::from(bytes), sink),
            Frame::FileEnd(end) => self.end(&end, sink),
            Frame::Vanished(path) => {
                if self.open.is_some() {
                    return Err(self.violation("vanished file in the middle of another"));
                }
                self.expect(path)?;
                sink.vanished(self.position)?;
                self.position += 1;
                Ok(())
            }
            // The content has a checksum of its own.
            Frame::StreamEnd(_) => Ok(()),
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
        sink.begin(self.position, begin)?;
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
        let inflater = self.inflater.get_or_insert_with(|| Inflater::new(&asked));
        match inflater.begin(begin.compression, begin.length) {
            Ok(()) => Ok(Coming::Compressed),
            Err(Failure::Stream(error)) => Ok(Coming::Damaged(error)),
            Err(Failure::Here(error)) => Err(error),
        }
    }

    /// Takes some bytes of a data frame.
    pub fn data(&mut self, chunk: Chunk<'_>, sink: &mut impl Sink) -> Result<()> {
        match self.open.as_ref().map(|open| &open.coming) {
            None | Some(Coming::AsTheyAre) => self.bytes(chunk, sink),
            Some(Coming::Damaged(_)) => Ok(()),
            Some(Coming::Compressed) => self.decompress(|inflater, receiver| {
                inflater.inflate(&chunk, |chunk| receiver.bytes(chunk, sink))
            }),
        }
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
                    open.coming = Coming::Damaged(error);
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
        let damage = match open.coming {
            Coming::Damaged(error) => Some(error),
            Coming::AsTheyAre | Coming::Compressed => None,
        };
        if open.received != open.length && damage.is_none() || end.bytes != open.length {
            let Open { length, received, .. } = open;
            return Err(self.violation(&format!(
                "file of {length} bytes ends after {received}, and the server counted {}",
                end.bytes
            )));
        }
        let expected = if self.checks.by_server { self.checks.algorithm } else { ChecksumAlgorithm::None };
        if end.algorithm != expected {
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
        let Digests { sent, made } = open.digests;
        let sent = sent.finish();
        let file = self.position;
        self.position += 1;
        if let Some(error) = damage {
            let path = &self.wanted[file].path;
            return sink.damaged(
                file,
                Error::connection(format!("file \"{path}\" was damaged in transit: {error}")),
            );
        }
        if !self.checks.by_server || sent == end.checksum {
            let Open { size, offset, length, mtime, mode, .. } = open;
            let checksum = made.map_or(sent, Checksum::finish);
            let (size, offset, length) = match self.places.get(file).and_then(Option::as_ref) {
                Some(place) => (place.size, place.start, length + place.header.len() as u64),
                None => (size, offset, length),
            };
            sink.end(file, Received { size, offset, length, mtime, mode, checksum, mismatches })
        } else {
            let path = &self.wanted[file].path;
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
