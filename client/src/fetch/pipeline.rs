//! Writing on a thread of its own, behind the one that receives: a connection then has two cores, one
//! that takes bytes from the socket and looks at them, one that makes files of them.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use protocol::FileBegin;

use crate::chunk::{Chunk, Kept};
use crate::error::{Error, Result};
use crate::fetch::receive::{Received, Sink};
use crate::report::meter::{Meter, Shares};

/// How far the receiving may be ahead, in things to do: some buffers of the socket.
const AHEAD: usize = 4;

/// Pieces of a file are handed over together until they have so many bytes, or so many are they.
const GATHERED_BYTES: usize = 256 << 10;
const GATHERED_PIECES: usize = 64;

/// What is to be done, as [`Sink`] has it.
enum Job {
    Begin(usize, FileBegin<'static>),
    Data(Vec<Kept>),
    End(usize, Received),
    Vanished(usize),
    Damaged(usize, Error),
}

/// A sink whose work another thread does, in the same order and a little later.
pub struct Front {
    jobs: SyncSender<Job>,
    gathered: Vec<Kept>,
    bytes: usize,
}

/// Runs `receive` with a sink that hands everything on to `sink`, on another thread. When this is over
/// all of it is done, or an error of `sink` is returned: it is why the rest went wrong.
/// `spent` hears what the other thread has had of the processor.
pub fn run<S: Sink + Send>(
    sink: &mut S,
    spent: impl FnOnce(&Shares) + Send,
    receive: impl FnOnce(&mut Front) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (jobs, todo) = sync_channel(AHEAD);
        let worker = scope.spawn(move || {
            let meter = Meter::start();
            let outcome = work(sink, &todo);
            spent(&meter.stop_helper());
            outcome
        });
        let mut front = Front { jobs, gathered: Vec::new(), bytes: 0 };
        let received = receive(&mut front);
        drop(front);
        worker.join().unwrap_or_else(|panic| resume_unwind(panic)).and(received)
    })
}

fn work(sink: &mut impl Sink, todo: &Receiver<Job>) -> Result<()> {
    for job in todo {
        match job {
            Job::Begin(file, begin) => sink.begin(file, &begin)?,
            Job::Data(pieces) => sink.pieces(&pieces)?,
            Job::End(file, received) => sink.end(file, received)?,
            Job::Vanished(file) => sink.vanished(file)?,
            Job::Damaged(file, error) => sink.damaged(file, error)?,
        }
    }
    Ok(())
}

impl Front {
    fn hand_over(&mut self, job: Job) -> Result<()> {
        if !self.gathered.is_empty() {
            self.bytes = 0;
            let pieces = std::mem::take(&mut self.gathered);
            self.send(Job::Data(pieces))?;
        }
        self.send(job)
    }

    fn send(&self, job: Job) -> Result<()> {
        // `run` returns what has stopped the other thread.
        self.jobs.send(job).map_err(|_| Error::local("writing has stopped"))
    }
}

impl Sink for Front {
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
        // Which file it is says its number.
        self.hand_over(Job::Begin(file, FileBegin { path: b"", ..begin.clone() }))
    }

    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        self.bytes += chunk.len();
        self.gathered.push(chunk.keep());
        if self.bytes < GATHERED_BYTES / 2 && self.gathered.len() < GATHERED_PIECES {
            return Ok(());
        }
        self.bytes = 0;
        let pieces = std::mem::take(&mut self.gathered);
        self.send(Job::Data(pieces))
    }

    fn end(&mut self, file: usize, received: Received) -> Result<()> {
        self.hand_over(Job::End(file, received))
    }

    fn vanished(&mut self, file: usize) -> Result<()> {
        self.hand_over(Job::Vanished(file))
    }

    fn damaged(&mut self, file: usize, error: Error) -> Result<()> {
        self.hand_over(Job::Damaged(file, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        said: Vec<String>,
        full: bool,
        broken: bool,
    }

    impl Sink for Log {
        fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
            self.said.push(format!("begin {file} {}", begin.size));
            Ok(())
        }
        fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
            if self.full {
                return Err(Error::local("disk full"));
            }
            assert!(!self.broken, "on purpose");
            self.said.push(String::from_utf8_lossy(&chunk).into_owned());
            Ok(())
        }
        fn end(&mut self, file: usize, received: Received) -> Result<()> {
            self.said.push(format!("end {file} {}", received.length));
            Ok(())
        }
        fn vanished(&mut self, file: usize) -> Result<()> {
            self.said.push(format!("vanished {file}"));
            Ok(())
        }
        fn damaged(&mut self, file: usize, error: Error) -> Result<()> {
            self.said.push(format!("damaged {file}: {error}"));
            Ok(())
        }
    }

    fn begin(size: u64) -> FileBegin<'static> {
        let compression = protocol::frame::Compression::None;
        FileBegin { size, offset: 0, length: size, mtime: 0, mode: 0o600, compression, path: b"base/1/2" }
    }

    #[test]
    fn everything_in_order_and_done_in_the_end() {
        let mut log = Log::default();
        let outcome = run(
            &mut log,
            |_| (),
            |front| {
                front.begin(0, &begin(4))?;
                front.data(Chunk::from(&b"ab"[..]))?;
                front.data(Chunk::from(&b"cd"[..]))?;
                let received = Received {
                    size: 4,
                    offset: 0,
                    length: 4,
                    mtime: 0,
                    mode: 0o600,
                    checksum: Vec::new(),
                    mismatches: Vec::new(),
                };
                front.end(0, received)?;
                front.vanished(1)?;
                front.damaged(2, Error::local("torn"))?;
                front.begin(3, &begin(1))?;
                Err(Error::connection("gone"))
            },
        );
        assert_eq!(outcome.unwrap_err().message(), "gone");
        assert_eq!(
            log.said,
            ["begin 0 4", "ab", "cd", "end 0 4", "vanished 1", "damaged 2: torn", "begin 3 1"]
        );
    }

    #[test]
    fn an_error_of_the_writing_ends_the_receiving() {
        let mut log = Log { full: true, ..Log::default() };
        let mut handed_over = 0;
        let outcome = run(
            &mut log,
            |_| (),
            |front| {
                front.begin(0, &begin(u64::MAX))?;
                loop {
                    front.data(Chunk::from(&[0; GATHERED_BYTES][..]))?;
                    handed_over += 1;
                }
            },
        );
        assert_eq!(outcome.unwrap_err().message(), "disk full");
        assert!(handed_over <= AHEAD + 2, "{handed_over}");
    }

    #[test]
    fn a_panic_of_the_writing_ends_the_receiving() {
        let mut log = Log { broken: true, ..Log::default() };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run(
                &mut log,
                |_| (),
                |front| {
                    front.begin(0, &begin(u64::MAX))?;
                    loop {
                        front.data(Chunk::from(&[0; GATHERED_BYTES][..]))?;
                    }
                },
            )
        }));
        assert!(outcome.is_err());
    }
}
