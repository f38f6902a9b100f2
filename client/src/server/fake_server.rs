//! A server for tests: it takes a connection over a Unix socket and answers each command with the
//! bytes that the test has for it, so that what a real server does once in a million pages can be
//! had at will.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use protocol::ChecksumAlgorithm;
use protocol::frame::{Compression, FileBegin, FileEnd, Frame};

use crate::abort::Abort;
use crate::error::Result;
use crate::options::ConnectionOptions;
use crate::server::connection::{Connector, Route, Session};

/// A server, until its connection ends.
pub struct FakeServer {
    place: tempfile::TempDir,
    commands: Arc<Mutex<Vec<String>>>,
}

impl FakeServer {
    /// Answers commands in this order, then hangs up.
    pub fn start(answers: Vec<Vec<u8>>) -> Self {
        Self::of_version("18.6", answers)
    }

    /// The same as a server of another version.
    pub fn of_version(version: &'static str, answers: Vec<Vec<u8>>) -> Self {
        let place = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(place.path().join(".s.PGSQL.1")).unwrap();
        let commands = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&commands);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let length = read_length(&mut stream).unwrap();
            read(&mut stream, length - 4).unwrap();
            let parameter = |name: &str, value: &str| message(b'S', format!("{name}\0{value}\0").as_bytes());
            let hello = [
                message(b'R', &[0; 4]),
                parameter("server_version", version),
                parameter("integer_datetimes", "on"),
                message(b'K', &[0; 8]),
                message(b'Z', b"I"),
            ];
            stream.write_all(&hello.concat()).unwrap();
            for answer in answers {
                let Some(command) = read_command(&mut stream) else { return };
                log.lock().unwrap().push(command);
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        Self { place, commands }
    }

    /// A connection to it.
    pub fn connect(&self) -> Session {
        self.try_connect().unwrap()
    }

    /// The same where it may be refused.
    pub fn try_connect(&self) -> Result<Session> {
        self.connect_of(&Arc::new(Abort::new().unwrap()))
    }

    /// A connection of a backup that this ends.
    pub fn connect_of(&self, abort: &Arc<Abort>) -> Result<Session> {
        let conninfo = format!(
            "host={} port=1 user=x sslmode=disable gssencmode=disable",
            Path::display(self.place.path())
        );
        let options = ConnectionOptions { conninfo: Some(conninfo.into()), ..ConnectionOptions::default() };
        Connector::new(options, Arc::clone(abort)).unwrap().connect(Route::Replication)
    }

    /// What it was sent.
    pub fn commands(&self) -> Vec<String> {
        self.commands.lock().unwrap().clone()
    }
}

/// A message of the server.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
}

/// A frame in its message.
pub fn frame(frame: &Frame<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    frame.encode(&mut body);
    message(b'd', &body)
}

/// A file, or a range of one, that is `size` bytes long.
pub fn file(path: &str, size: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    file_with(path, size, offset, bytes, 0, ChecksumAlgorithm::None, &[])
}

/// The same with all that the end frame can say.
pub fn file_with(
    path: &str,
    size: u64,
    offset: u64,
    bytes: &[u8],
    checksum_failures: u32,
    algorithm: ChecksumAlgorithm,
    checksum: &[u8],
) -> Vec<u8> {
    let length = bytes.len() as u64;
    let begin = Frame::FileBegin(FileBegin {
        size,
        offset,
        length,
        mtime: 1_700_000_000,
        mode: 0o600,
        compression: Compression::None,
        path: path.as_bytes(),
    });
    let end = Frame::FileEnd(FileEnd { bytes: length, checksum_failures, algorithm, checksum });
    [frame(&begin), frame(&Frame::Data(bytes)), frame(&end)].concat()
}

/// A file that comes compressed, in pieces as a server makes them, if it is one.
pub fn compressed(
    path: &str,
    bytes: &[u8],
    algorithm: Compression,
    stream: &[u8],
    checksum: (ChecksumAlgorithm, &[u8]),
) -> Vec<u8> {
    let length = bytes.len() as u64;
    let begin = Frame::FileBegin(FileBegin {
        size: length,
        offset: 0,
        length,
        mtime: 1_700_000_000,
        mode: 0o600,
        compression: algorithm,
        path: path.as_bytes(),
    });
    let end = Frame::FileEnd(FileEnd {
        bytes: length,
        checksum_failures: 0,
        algorithm: checksum.0,
        checksum: checksum.1,
    });
    let data: Vec<_> = stream.chunks(8192).map(|piece| frame(&Frame::Data(piece))).collect();
    [frame(&begin), data.concat(), frame(&end)].concat()
}

/// A COPY that carries these messages.
pub fn copy(messages: &[Vec<u8>]) -> Vec<u8> {
    let end = [message(b'c', b""), message(b'C', b"SEND_FILES_CONTENT\0"), ready()].concat();
    [message(b'H', &[0, 0, 0]), messages.concat(), end].concat()
}

/// An error or a notice.
pub fn report(kind: u8, severity: &str, state: &str, text: &str) -> Vec<u8> {
    message(kind, format!("S{severity}\0V{severity}\0C{state}\0M{text}\0\0").as_bytes())
}

/// The command is over.
pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn read_length(stream: &mut UnixStream) -> Option<usize> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

fn read(stream: &mut UnixStream, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn read_command(stream: &mut UnixStream) -> Option<String> {
    let mut kind = [0];
    stream.read_exact(&mut kind).ok()?;
    let length = read_length(stream)?;
    let mut text = read(stream, length - 4)?;
    text.pop();
    (kind[0] == b'Q').then(|| String::from_utf8(text).unwrap())
}
