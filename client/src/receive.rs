//! What SEND_FILES_CONTENT answers, checked message by message: every file that was asked for, in
//! that order, with as many bytes as announced and a digest that fits them. Where the bytes go is
//! for a `Sink` to say.

use protocol::frame::Compression;
use protocol::{BackupPath, DigestAlgorithm, FileBegin, FileEnd, Frame};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Takes the files. `file` is the place in the request.
pub trait Sink {
    /// A file begins; what an earlier try left of it goes.
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()>;
    /// Its next bytes.
    fn data(&mut self, bytes: &[u8]) -> Result<()>;
    /// It is complete and its digest fits.
    fn end(&mut self, file: usize, received: &Received) -> Result<()>;
    /// It no longer exists on the server.
    fn vanished(&mut self, file: usize) -> Result<()>;
    /// It came whole, but not as it was sent. The transfer goes on.
    fn damaged(&mut self, file: usize, error: Error) -> Result<()>;
}

/// A file that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its size in bytes.
    pub size: u64,
    /// Modification time in seconds since the Unix epoch.
    pub mtime: i64,
    /// The digest of its bytes.
    pub digest: Vec<u8>,
    /// Pages that the server could not verify.
    pub checksum_failures: u32,
}

/// The state between messages.
#[derive(Debug)]
pub struct Receiver<'a> {
    wanted: &'a [BackupPath],
    algorithm: DigestAlgorithm,
    /// The file that is being received, or is next.
    position: usize,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    size: u64,
    mtime: i64,
    received: u64,
    digest: Digest,
}

impl<'a> Receiver<'a> {
    /// Whole files in this order, with digests of this algorithm.
    pub fn new(wanted: &'a [BackupPath], algorithm: DigestAlgorithm) -> Self {
        Self { wanted, algorithm, position: 0, open: None }
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
            Frame::Data(bytes) => self.data(bytes, sink),
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
            // A later version's.
            Frame::Unknown(_) => Ok(()),
        }
    }

    /// The copy is over: everything must be there.
    pub fn finish(&self) -> Result<()> {
        match (&self.open, self.wanted.get(self.position)) {
            (None, None) => Ok(()),
            (Some(_), Some(path)) => Err(self.violation(&format!("file \"{path}\" is incomplete"))),
            (_, Some(path)) => Err(self.violation(&format!("file \"{path}\" was not sent"))),
            (Some(_), None) => Err(self.violation("file that was not asked for")),
        }
    }

    fn begin(&mut self, begin: &FileBegin<'_>, sink: &mut impl Sink) -> Result<()> {
        if self.open.is_some() {
            return Err(self.violation("file begins in the middle of another"));
        }
        self.expect(begin.path)?;
        if begin.offset != 0 || begin.length != begin.size {
            return Err(self.violation("part of a file instead of all of it"));
        }
        if begin.compression != Compression::None {
            return Err(self.violation("compression that was not asked for"));
        }
        sink.begin(self.position, begin)?;
        self.open = Some(Open {
            size: begin.size,
            mtime: begin.mtime,
            received: 0,
            digest: Digest::new(self.algorithm),
        });
        Ok(())
    }

    fn data(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<()> {
        let length = bytes.len() as u64;
        match &mut self.open {
            Some(open) if open.size - open.received >= length => {
                open.received += length;
                open.digest.update(bytes);
                sink.data(bytes)
            }
            Some(_) => Err(self.violation("more data than announced")),
            None => Err(self.violation("data outside of a file")),
        }
    }

    fn end(&mut self, end: &FileEnd<'_>, sink: &mut impl Sink) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Err(self.violation("file ends that did not begin"));
        };
        if open.received != open.size || end.bytes != open.size {
            let Open { size, received, .. } = open;
            return Err(self.violation(&format!(
                "file of {size} bytes ends after {received}, and the server counted {}",
                end.bytes
            )));
        }
        if end.algorithm != self.algorithm {
            return Err(self.violation("digest of another algorithm than asked for"));
        }
        let digest = open.digest.finish();
        let file = self.position;
        self.position += 1;
        if digest == end.digest {
            sink.end(
                file,
                &Received {
                    size: open.size,
                    mtime: open.mtime,
                    digest,
                    checksum_failures: end.checksum_failures,
                },
            )
        } else {
            let path = &self.wanted[file];
            sink.damaged(
                file,
                Error::connection(format!(
                    "file \"{path}\" was damaged in transit: its {} checksum does not match",
                    self.algorithm.name()
                )),
            )
        }
    }

    /// Fails unless this is the file whose turn it is: nothing but what was asked for is ever
    /// written, whatever the server says.
    fn expect(&self, path: &[u8]) -> Result<()> {
        match self.wanted.get(self.position) {
            Some(wanted) if wanted.as_bytes() == path => Ok(()),
            Some(wanted) => Err(self.violation(&format!(
                "file \"{}\" where \"{wanted}\" was expected",
                protocol::path::encode(path)
            ))),
            None => Err(self.violation("file that was not asked for")),
        }
    }

    fn violation(&self, what: &str) -> Error {
        Error::connection(format!("server sent an invalid file transfer: {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[derive(Debug, Default)]
    struct Log(Vec<String>);

    impl Sink for Log {
        fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
            self.0.push(format!("begin {file} {:o}", begin.mode));
            Ok(())
        }
        fn data(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.push(format!("data {}", bytes.len()));
            Ok(())
        }
        fn end(&mut self, file: usize, received: &Received) -> Result<()> {
            self.0.push(format!("end {file} {} {}", received.size, received.mtime));
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

    fn paths(names: &[&str]) -> Vec<BackupPath> {
        names.iter().map(|name| BackupPath::from_bytes(*name).unwrap()).collect()
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
            algorithm: DigestAlgorithm::Crc32c,
            digest: &Digest::of(DigestAlgorithm::Crc32c, content),
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
        let mut receiver = Receiver::new(&wanted, DigestAlgorithm::Crc32c);
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
    fn a_wrong_digest_is_that_files_trouble_alone() {
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
            (vec![ranged], "part of a file instead of all of it"),
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
    fn another_digest_algorithm_is_refused() {
        let wanted = paths(&["a"]);
        let mut receiver = Receiver::new(&wanted, DigestAlgorithm::Sha256);
        let mut log = Log::default();
        receiver.message(&begin("a", 0), &mut log).unwrap();
        assert!(receiver.message(&end(0, b""), &mut log).is_err());
    }
}
