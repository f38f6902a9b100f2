//! What goes out by way of user space: whole messages, gathered into few large writes.
//!
//! A file of one page is three messages, and on an encrypted connection a large one is very many:
//! PostgreSQL's own send buffer would make a system call for each 8 kB of them.

use protocol::frame::{DATA_TAG, Frame};

use crate::cluster::page::BLOCK_SIZE;
use crate::pg::socket::{self, ConnectionLost, Socket};
use crate::pg::wire::tag;

/// File bytes that are read, looked at and sent at once: they stay in cache meanwhile.
pub const CHUNK: usize = 256 * 1024;

/// File bytes in a data frame. libpq (`pqReadData`) gathers messages that do not fit what one TLS
/// record or GSSAPI packet adds to 16 kB as long as more comes, doubles its buffer each time that
/// fills, and never makes it smaller: a client's memory would grow with the data.
pub const PIECE: usize = BLOCK_SIZE;

/// Message type, length, frame type: what comes before the bytes of a data frame.
const HEAD: usize = 6;

/// Bytes of a stream in a data frame, at most, where nothing is encrypted. Few large messages are cheaper to take
/// than many small ones, and what the client reads at once has room for one as a whole, and for what is around it.
const STREAM_FRAME: usize = CHUNK - 8192;

/// Room for a chunk, and for the frames that may come before it.
const ROOM: usize = CHUNK + CHUNK / PIECE * HEAD + 8192;

/// Messages that have not gone out yet.
#[derive(Debug)]
pub struct Outbox {
    memory: Vec<u8>,
    end: usize,
    /// Where the last message begins, if it is a data frame that more of the same stream can be added to.
    stream: Option<usize>,
    /// Where nothing is encrypted: bytes may go past libpq.
    socket: Option<Socket>,
}

impl Outbox {
    /// Takes this memory, or gets some, and looks at the connection.
    pub fn of_session(mut memory: Vec<u8>) -> Self {
        memory.resize(ROOM, 0);
        let socket = Socket::plain();
        if let Some(socket) = &socket {
            socket.widen();
        }
        Self { memory, end: 0, stream: None, socket }
    }

    /// Its memory, once nothing is in it any more.
    pub fn into_memory(self) -> Vec<u8> {
        self.memory
    }

    /// Whether bytes can go from the page cache to the client.
    pub fn has_socket(&self) -> bool {
        self.socket.is_some()
    }

    /// Takes a frame that is no data frame.
    pub fn frame(&mut self, frame: &Frame<'_>) {
        let mut bytes = Vec::with_capacity(128);
        frame.encode(&mut bytes);
        self.make_room(HEAD + bytes.len());
        self.head(bytes.len(), bytes[0]);
        self.take(&bytes[1..]);
    }

    /// Takes some bytes of a stream: in the data frame of those before, if that has not gone out yet.
    pub fn stream(&mut self, mut bytes: &[u8]) {
        if self.socket.is_none() {
            for piece in bytes.chunks(PIECE) {
                self.make_room(HEAD + piece.len());
                self.head(1 + piece.len(), DATA_TAG);
                self.take(piece);
            }
            return;
        }
        while !bytes.is_empty() {
            let begin = match self.stream {
                Some(begin) => begin,
                None => {
                    self.make_room(HEAD + PIECE.min(bytes.len()));
                    let begin = self.end;
                    self.head(1, DATA_TAG);
                    begin
                }
            };
            let there = self.end - begin - HEAD;
            let room = (STREAM_FRAME - there).min(self.memory.len() - self.end);
            let (here, rest) = bytes.split_at(bytes.len().min(room));
            self.take(here);
            self.memory[begin..begin + HEAD].copy_from_slice(&data_head(DATA_TAG, 1 + there + here.len()));
            self.stream = Some(begin);
            bytes = rest;
            if !bytes.is_empty() {
                self.flush();
            }
        }
    }

    /// The places of `length` file bytes, at most [`CHUNK`], each in a data frame of its own. They
    /// are part of the outbox after [`Self::filled`].
    pub fn places(&mut self, length: usize) -> impl Iterator<Item = &mut [u8]> {
        let whole = length + length.div_ceil(PIECE) * HEAD;
        self.make_room(whole);
        self.stream = None;
        self.memory[self.end..self.end + whole].chunks_mut(HEAD + PIECE).map(|message| {
            let (head, place) = message.split_at_mut(HEAD);
            head.copy_from_slice(&data_head(DATA_TAG, 1 + place.len()));
            place
        })
    }

    /// The places were filled.
    pub fn filled(&mut self, length: usize) {
        self.end += length + length.div_ceil(PIECE) * HEAD;
    }

    /// Sends everything, and the beginning of a data frame whose `length` bytes must now be written
    /// to the socket. Lends the memory for them.
    pub fn begin_direct(&mut self, length: usize) -> Result<(&Socket, &mut [u8]), ConnectionLost> {
        self.make_room(HEAD);
        self.head(1 + length, DATA_TAG);
        let end = std::mem::take(&mut self.end);
        self.stream = None;
        let socket = self.socket.as_ref().ok_or(ConnectionLost)?;
        socket.send(&self.memory[..end], true)?;
        Ok((socket, &mut self.memory))
    }

    /// Sends everything. A lost connection ends the process at the next look at interrupts.
    pub fn flush(&mut self) {
        self.stream = None;
        let bytes = &self.memory[..std::mem::take(&mut self.end)];
        if bytes.is_empty() {
            return;
        }
        let _: Result<(), ConnectionLost> = match &self.socket {
            Some(socket) => socket.send(bytes, false),
            None => socket::send_encrypted(bytes),
        };
    }

    fn make_room(&mut self, length: usize) {
        if self.memory.len() - self.end < length {
            self.flush();
        }
    }

    fn head(&mut self, frame: usize, kind: u8) {
        self.memory[self.end..self.end + HEAD].copy_from_slice(&data_head(kind, frame));
        self.end += HEAD;
        self.stream = None;
    }

    fn take(&mut self, bytes: &[u8]) {
        self.memory[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }
}

/// A CopyData message's head and the type of its frame, which has `length` bytes with the type.
fn data_head(kind: u8, length: usize) -> [u8; HEAD] {
    // The message's length counts itself.
    let [a, b, c, d] = u32::try_from(length + 4).unwrap_or(u32::MAX).to_be_bytes();
    [tag::COPY_DATA, a, b, c, d, kind]
}
