//! The server's messages past libpq, those of a COPY above all, taken apart in the buffer that the socket was read into.
//!
//! libpq gathers every message whole, in one buffer, and copies it into another: for file bytes that
//! costs more than all that is done with them here. So `connection` reads the socket, or TLS, itself
//! while a transfer runs, and this module says what came. File bytes are handed over as they arrive,
//! in whole pages as far as the frames have them, and those of several frames together; all else whole.

use std::sync::Arc;

use protocol::frame::DATA_TAG;

use crate::chunk::Chunk;
use crate::error::{Error, Kind, Result};

/// Bytes read at once: several times what a Unix socket takes in one piece, and still in the
/// second-level cache when they are verified, checksummed and written.
const READ: usize = 256 << 10;

/// File bytes are handed over in multiples of this, so that pages stay whole.
const PIECE: usize = 8192;

/// Where the buffer is aligned, so that the bytes of a data frame are: cache lines and pages.
const ALIGNMENT: usize = 4096;

/// Message type, length, frame type: what comes before a data frame's bytes.
const DATA_HEAD: usize = 6;

/// Takes what a COPY carries.
pub trait CopySink {
    /// One CopyData message, whole.
    fn message(&mut self, payload: &[u8]) -> Result<()>;
    /// Some bytes of a data frame; a frame may come in several pieces.
    fn data(&mut self, chunk: Chunk<'_>) -> Result<()>;
    /// Whether what comes next is kept for a while: then it had better come in few large pieces.
    fn keeps(&self) -> bool {
        false
    }
    /// The text of the next command, if it is time to send that, though this one's answer has not come to its end. Asked
    /// for again and again, until there is one.
    fn next_command(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// CopyOutResponse.
    CopyBegins,
    /// A CopyData message, whole.
    Message(&'a [u8]),
    /// Some bytes of a CopyData message that is a data frame.
    Data(Chunk<'a>),
    /// CopyDone.
    CopyDone,
    /// RowDescription, as it came.
    Columns(&'a [u8]),
    /// DataRow, as it came.
    Row(&'a [u8]),
    /// CommandComplete, with its tag.
    Complete(&'a [u8]),
    /// ErrorResponse.
    Error(Report),
    /// NoticeResponse.
    Notice(Report),
    /// ReadyForQuery.
    Ready,
    /// What may come at any time and says nothing to us.
    Other,
}

/// An error or a notice, as libpq would put it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The text, with detail and hint.
    pub text: String,
    /// The SQLSTATE.
    pub state: Option<[u8; 5]>,
    /// The server process ends with it.
    pub is_fatal: bool,
}

/// The buffer and where in it, and in the stream, we are.
#[derive(Debug)]
pub struct Wire {
    buffer: Buffer,
    /// Those that somebody kept bytes of, to be used again.
    others: Vec<Buffer>,
    /// What was read and not taken yet.
    start: usize,
    end: usize,
    rest: Rest,
    /// File bytes are handed over once a frame is there as a whole, or the buffer is full.
    gathers: bool,
}

/// What is read into.
#[derive(Debug)]
struct Buffer {
    memory: Arc<Vec<u8>>,
    /// The first aligned byte.
    base: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; READ + 3 * ALIGNMENT];
        // Room before it for the head of a frame whose bytes are then aligned.
        let base = memory.as_ptr().align_offset(ALIGNMENT) % ALIGNMENT + ALIGNMENT;
        Self { memory: Arc::new(memory), base }
    }

    /// Whether somebody keeps bytes of it.
    fn is_kept(&mut self) -> bool {
        Arc::get_mut(&mut self.memory).is_none()
    }

    /// Never a copy: it is asked for where nobody keeps any of it.
    fn bytes(&mut self) -> &mut Vec<u8> {
        Arc::make_mut(&mut self.memory)
    }
}

/// What is left of a message that is not gathered whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    /// File bytes, to be handed over.
    Data(usize),
    /// A frame of a type that nobody here knows.
    Skip(usize),
}

impl Wire {
    /// Nothing was read yet.
    pub fn new() -> Self {
        let buffer = Buffer::new();
        let base = buffer.base;
        Self { buffer, others: Vec::new(), start: base, end: base, rest: Rest::Nothing, gathers: false }
    }

    /// Whether file bytes are to be handed over in few large pieces from now on, rather than as they come.
    pub fn gather(&mut self, gathers: bool) {
        self.gathers = gathers;
    }

    /// Whether everything that was read has been taken.
    pub fn is_empty(&self) -> bool {
        self.start == self.end && self.rest == Rest::Nothing
    }

    /// Where to read to, never empty once `next` has found nothing more.
    pub fn space(&mut self) -> &mut [u8] {
        let left = self.end - self.start;
        let head = if self.rest == Rest::Nothing { DATA_HEAD } else { 0 };
        if self.buffer.is_kept() {
            // The last one first: it is still in the processor's cache, if any is.
            let free = self.others.iter_mut().rposition(|other| !other.is_kept());
            let mut next = free.map_or_else(Buffer::new, |place| self.others.remove(place));
            let begin = next.base - head;
            next.bytes()[begin..begin + left].copy_from_slice(&self.buffer.memory[self.start..self.end]);
            self.others.push(std::mem::replace(&mut self.buffer, next));
            self.start = begin;
            self.end = begin + left;
        } else if left == 0 || self.is_full() || (self.end > self.buffer.base + READ / 2 && left < READ / 8) {
            let begin = self.buffer.base - head;
            if self.start > begin {
                self.buffer.bytes().copy_within(self.start..self.end, begin);
                self.start = begin;
                self.end = begin + left;
            }
        }
        let limit = self.buffer.base + READ;
        &mut self.buffer.bytes()[self.end..limit]
    }

    /// Whether there is better use for the time than to read more.
    pub fn is_full(&self) -> bool {
        self.buffer.base + READ - self.end < READ / 8
    }

    /// Whether more of a frame's bytes could be read behind those that are there: at once, or once they are moved to
    /// the beginning.
    fn has_room(&self) -> bool {
        self.end < self.buffer.base + READ || self.start > self.buffer.base
    }

    /// So many bytes were read.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// The next thing that was said; `None` until more was read.
    pub fn next(&mut self) -> Result<Option<Event<'_>>> {
        loop {
            match self.rest {
                Rest::Nothing => {}
                Rest::Skip(left) => {
                    let count = left.min(self.end - self.start);
                    self.start += count;
                    if count < left {
                        self.rest = Rest::Skip(left - count);
                        return Ok(None);
                    }
                    self.rest = Rest::Nothing;
                }
                Rest::Data(left) => {
                    let there = self.end - self.start;
                    let count = if there >= left { left } else { there / PIECE * PIECE };
                    if count == 0 || (self.gathers && count < left && self.has_room()) {
                        return Ok(None);
                    }
                    let begin = self.start;
                    self.start += count;
                    if count < left {
                        self.rest = Rest::Data(left - count);
                        return Ok(Some(Event::Data(Chunk::of(&self.buffer.memory, begin..self.start))));
                    }
                    self.rest = Rest::Nothing;
                    let end = self.join(self.start);
                    return Ok(Some(Event::Data(Chunk::of(&self.buffer.memory, begin..end))));
                }
            }
            let there = &self.buffer.memory[self.start..self.end];
            let Some((&[tag, a, b, c, d], body)) = there.split_first_chunk::<5>() else { return Ok(None) };
            let announced = u32::from_be_bytes([a, b, c, d]) as usize;
            let Some(length) = announced.checked_sub(4) else { return Err(lost_track()) };
            if tag == b'd' && length > 0 {
                let Some(&kind) = body.first() else { return Ok(None) };
                if kind == DATA_TAG {
                    self.start += DATA_HEAD;
                    if length == 1 {
                        return Ok(Some(Event::Data(Chunk::from(&[][..]))));
                    }
                    self.rest = Rest::Data(length - 1);
                    continue;
                }
                // A later version's; the ones we know are never so long.
                if 5 + length > READ {
                    self.start += 5;
                    self.rest = Rest::Skip(length);
                    continue;
                }
            }
            if 5 + length > READ {
                return Err(lost_track());
            }
            if body.len() < length {
                return Ok(None);
            }
            let begin = self.start + 5;
            self.start = begin + length;
            let body = &self.buffer.memory[begin..self.start];
            return Ok(Some(match tag {
                b'd' => Event::Message(body),
                b'H' => Event::CopyBegins,
                b'c' => Event::CopyDone,
                b'T' => Event::Columns(body),
                b'D' => Event::Row(body),
                b'C' => Event::Complete(body.strip_suffix(&[0]).unwrap_or(body)),
                b'E' => Event::Error(Report::read(body, true)),
                b'N' => Event::Notice(Report::read(body, false)),
                b'Z' => Event::Ready,
                b'S' | b'A' => Event::Other,
                _ => return Err(lost_track()),
            }));
        }
    }

    /// Moves the bytes of data frames that have come whole to `end`, where those of the one before
    /// them end; returns where they end then. It is cheaper than to write each frame's alone. Where
    /// somebody keeps bytes of this buffer, nothing is moved.
    fn join(&mut self, mut end: usize) -> usize {
        let Some(memory) = Arc::get_mut(&mut self.buffer.memory) else { return end };
        while let Some((&[b'd', a, b, c, d, DATA_TAG], _)) =
            memory[self.start..self.end].split_first_chunk::<DATA_HEAD>()
        {
            let begin = self.start + DATA_HEAD;
            // The length counts itself and the frame's type; nonsense is left to `next` to find.
            let Some(length) = (u32::from_be_bytes([a, b, c, d]) as usize).checked_sub(5) else { break };
            if length > self.end - begin {
                break;
            }
            memory.copy_within(begin..begin + length, end);
            end += length;
            self.start = begin + length;
        }
        end
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Report> for Error {
    fn from(report: Report) -> Self {
        match report.state {
            Some(state) if !report.is_fatal => Self::new(Kind::Server(state), report.text),
            _ => Self::connection(report.text),
        }
    }
}

impl Report {
    /// Fields of ErrorResponse and NoticeResponse, put together as `pqBuildErrorMessage3` does with
    /// libpq's default verbosity.
    fn read(mut fields: &[u8], is_error: bool) -> Self {
        let mut values: [Option<&[u8]>; 128] = [None; 128];
        while let Some((&code, rest)) = fields.split_first()
            && code != 0
        {
            let end = memchr::memchr(0, rest).unwrap_or(rest.len());
            if let Some(value) = values.get_mut(usize::from(code)) {
                *value = Some(&rest[..end]);
            }
            fields = rest.get(end + 1..).unwrap_or_default();
        }
        let value = |code: u8| values[usize::from(code)];
        let mut text = String::new();
        let mut line = |intro: &str, code: u8| {
            if let Some(value) = value(code) {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(intro);
                text.push_str(&String::from_utf8_lossy(value));
            }
        };
        let severity = value(b'S')
            .map(|severity| format!("{}:  ", String::from_utf8_lossy(severity)))
            .unwrap_or_default();
        line(&severity, b'M');
        line("DETAIL:  ", b'D');
        line("HINT:  ", b'H');
        if is_error {
            line("CONTEXT:  ", b'W');
        }
        let is_fatal = is_error && matches!(value(b'V').or(value(b'S')), Some(b"FATAL" | b"PANIC"));
        Self { text, state: value(b'C').and_then(|state| state.try_into().ok()), is_fatal }
    }
}

fn lost_track() -> Error {
    Error::connection("lost synchronization with server")
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ChecksumAlgorithm;
    use protocol::frame::{Compression, FileBegin, FileEnd, Frame};

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
    }

    fn frame(frame: &Frame<'_>) -> Vec<u8> {
        let mut body = Vec::new();
        frame.encode(&mut body);
        message(b'd', &body)
    }

    fn fields(fields: &[(u8, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (code, value) in fields {
            body.push(*code);
            body.extend_from_slice(value.as_bytes());
            body.push(0);
        }
        body.push(0);
        body
    }

    /// What a transfer looks like, with everything that may come between.
    fn stream() -> Vec<u8> {
        let content: Vec<u8> = (0..3 * PIECE + 100).map(|at| (at % 251) as u8).collect();
        [
            message(b'S', b"TimeZone\0UTC\0"),
            message(b'H', &[0, 0, 0]),
            frame(&Frame::FileBegin(FileBegin {
                size: content.len() as u64,
                offset: 0,
                length: content.len() as u64,
                mtime: 1,
                mode: 0o600,
                compression: Compression::None,
                path: b"base/5/1",
            })),
            frame(&Frame::Data(&content)),
            frame(&Frame::Data(b"")),
            message(
                b'N',
                &fields(&[
                    (b'S', "WARNING"),
                    (b'V', "WARNING"),
                    (b'C', "01000"),
                    (b'M', "odd"),
                    (b'W', "here"),
                ]),
            ),
            frame(&Frame::FileEnd(FileEnd {
                bytes: content.len() as u64,
                checksum_failures: 0,
                algorithm: ChecksumAlgorithm::None,
                checksum: &[],
            })),
            message(b'd', b"zlater"),
            frame(&Frame::Vanished(b"base/5/2")),
            message(b'A', b"\0\0\0\x01channel\0\0"),
            message(b'c', b""),
            message(b'C', b"SEND_FILES_CONTENT\0"),
            message(b'Z', b"I"),
        ]
        .concat()
    }

    /// Events as text, the pieces of a data frame joined; read `step` bytes at a time.
    fn read(stream: &[u8], step: usize) -> Result<Vec<String>> {
        let mut wire = Wire::new();
        let mut log: Vec<String> = Vec::new();
        let mut data = 0;
        let mut rest = stream;
        loop {
            while let Some(event) = wire.next()? {
                if let Event::Data(bytes) = event {
                    for byte in bytes.iter() {
                        assert_eq!(*byte, (data % 251) as u8, "at {data}");
                        data += 1;
                    }
                    match log.last_mut() {
                        Some(last) if last.starts_with("data") => {
                            *last = format!("data to {data}");
                        }
                        _ => log.push(format!("data to {data}")),
                    }
                    continue;
                }
                log.push(format!("{event:?}"));
            }
            if rest.is_empty() {
                assert!(wire.is_empty());
                return Ok(log);
            }
            let space = wire.space();
            let count = step.min(rest.len()).min(space.len());
            assert!(count > 0, "no space");
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            wire.filled(count);
        }
    }

    #[test]
    fn the_same_in_pieces_of_every_size() {
        let stream = stream();
        let whole = read(&stream, usize::MAX).unwrap();
        assert_eq!(whole.len(), 12, "{whole:#?}");
        assert_eq!(whole[3], "data to 24676");
        assert!(whole[4].contains("WARNING:  odd") && !whole[4].contains("here"), "{}", whole[4]);
        for step in (1..300).chain([4096, PIECE - 1, PIECE, PIECE + 1, PIECE + 6, 20_000]) {
            assert_eq!(read(&stream, step).unwrap(), whole, "{step} at a time");
        }
    }

    #[test]
    fn frames_longer_than_the_buffer() {
        let content: Vec<u8> = (0..(1 << 20) - 1).map(|at| (at % 251) as u8).collect();
        let stream =
            [frame(&Frame::Data(&content)), message(b'd', &[b'z'; 1 << 20]), message(b'Z', b"I")].concat();
        for step in [7777, 100_000, usize::MAX] {
            assert_eq!(read(&stream, step).unwrap(), ["data to 1048575", "Ready"]);
        }
    }

    #[test]
    fn file_bytes_come_aligned_and_in_whole_pages() {
        let stream =
            [frame(&Frame::Data(&[7; 127 * PIECE])), frame(&Frame::Data(&[7; 127 * PIECE]))].concat();
        let mut wire = Wire::new();
        let mut rest = &stream[..];
        let mut pieces = 0;
        while !rest.is_empty() {
            let space = wire.space();
            // As a socket does it: odd amounts.
            let count = (space.len() / 3 + 1).min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            wire.filled(count);
            while let Some(event) = wire.next().unwrap() {
                let Event::Data(bytes) = event else { panic!("{event:?}") };
                assert!(bytes.len().is_multiple_of(PIECE));
                pieces += 1;
            }
        }
        assert!(pieces < 60, "{pieces}");
    }

    #[test]
    fn frames_of_a_block_come_together() {
        let content: Vec<u8> = (0..20 * PIECE).map(|at| (at % 251) as u8).collect();
        let mut stream: Vec<u8> = content.chunks(PIECE).flat_map(|page| frame(&Frame::Data(page))).collect();
        // The head of one more.
        stream.extend(&frame(&Frame::Data(&[0; PIECE]))[..DATA_HEAD - 1]);
        let mut wire = Wire::new();
        wire.space()[..stream.len()].copy_from_slice(&stream);
        wire.filled(stream.len());
        assert_eq!(wire.next().unwrap(), Some(Event::Data(Chunk::from(&content[..]))));
        assert_eq!(wire.next().unwrap(), None);

        let mut stream = frame(&Frame::Data(b"abc"));
        stream.extend(b"d\0\0\0\x02d");
        wire = Wire::new();
        wire.space()[..stream.len()].copy_from_slice(&stream);
        wire.filled(stream.len());
        assert_eq!(wire.next().unwrap(), Some(Event::Data(Chunk::from(&b"abc"[..]))));
        assert_eq!(wire.next().unwrap_err().message(), "lost synchronization with server");
    }

    #[test]
    fn bytes_that_are_kept_stay() {
        let content: Vec<u8> = (0..100 * PIECE + 50).map(|at| (at % 251) as u8).collect();
        let mut stream = Vec::new();
        for length in [PIECE, 40 * PIECE] {
            stream.extend(content.chunks(length).flat_map(|bytes| frame(&Frame::Data(bytes))));
        }
        for step in [1000, 50_000, usize::MAX] {
            let mut wire = Wire::new();
            let mut kept = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let space = wire.space();
                let count = space.len().min(rest.len()).min(step);
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                wire.filled(count);
                while let Some(event) = wire.next().unwrap() {
                    let Event::Data(chunk) = event else { panic!("{event:?}") };
                    kept.push(chunk.keep());
                }
            }
            let all: Vec<u8> = kept.iter().flat_map(|bytes| bytes.to_vec()).collect();
            assert!(all == [&content[..], &content[..]].concat(), "{step} at a time");
            // And what is kept no longer is used again.
            let buffers = wire.others.len();
            kept.clear();
            wire.space();
            assert!(wire.others.len() <= buffers);
        }
    }

    #[test]
    fn gathered_frames_come_whole_whatever_they_come_in() {
        const FRAME: usize = READ - 8192;
        let content: Vec<u8> = (0..4 * FRAME + 300 * PIECE + 77).map(|at| (at % 251) as u8).collect();
        let (large, larger) = content.split_at(4 * FRAME);
        let frames = large.chunks(FRAME).chain(larger.chunks(127 * PIECE));
        let mut stream: Vec<u8> = frames.flat_map(|bytes| frame(&Frame::Data(bytes))).collect();
        stream.extend(frame(&Frame::Vanished(b"gone")));
        for step in [1000, 30_000, 100_000, usize::MAX] {
            let mut wire = Wire::new();
            wire.gather(true);
            let (mut kept, mut ended, mut rest) = (Vec::new(), false, &stream[..]);
            while !rest.is_empty() {
                let space = wire.space();
                let count = space.len().min(rest.len()).min(step);
                assert!(count > 0, "no space");
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                wire.filled(count);
                while let Some(event) = wire.next().unwrap() {
                    match event {
                        Event::Data(chunk) => kept.push(chunk.keep()),
                        Event::Message(_) => ended = true,
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert!(ended && wire.is_empty());
            let lengths: Vec<_> = kept.iter().map(|kept| kept.len()).collect();
            assert_eq!(lengths[..4], [FRAME; 4], "{step} at a time");
            // Longer ones than the buffer in as many pieces as it takes.
            assert!(lengths.len() < 4 + 20, "{lengths:?}");
            let all: Vec<u8> = kept.iter().flat_map(|bytes| bytes.to_vec()).collect();
            assert!(all == content, "{step} at a time");
        }
    }

    #[test]
    fn errors_as_libpq_puts_them() {
        let error = message(
            b'E',
            &fields(&[
                (b'S', "FATAL"),
                (b'V', "FATAL"),
                (b'C', "57P01"),
                (b'M', "terminating"),
                (b'D', "a detail"),
                (b'H', "a hint"),
                (b'W', "a context"),
                (b'F', "file.c"),
            ]),
        );
        let mut wire = Wire::new();
        wire.space()[..error.len()].copy_from_slice(&error);
        wire.filled(error.len());
        assert_eq!(
            wire.next().unwrap(),
            Some(Event::Error(Report {
                text: "FATAL:  terminating\nDETAIL:  a detail\nHINT:  a hint\nCONTEXT:  a context".to_owned(),
                state: Some(*b"57P01"),
                is_fatal: true,
            }))
        );
    }

    #[test]
    fn what_is_no_message_is_noticed() {
        for stream in [&b"X\0\0\0\x04"[..], b"d\0\0\0\x03", b"E\x7f\0\0\0"] {
            let error = read(stream, 1).unwrap_err();
            assert_eq!(error.message(), "lost synchronization with server");
        }
    }
}
