//! Commands over a connection, with waits that a signal or another thread's failure ends.

mod connector;
mod copy;
mod copy_in;
mod together;

use std::cell::Cell;
use std::ffi::CString;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::Command;
use protocol::features::Features;
use protocol::reply::Column;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::copy::Ahead;
use self::together::Together;
use crate::abort::Abort;
use crate::error::{Error, Kind, Result};
use crate::server::cancel;
use crate::server::pq::{Canceller, CopyData, CopyRead, Pg, Status};
use crate::server::result::QueryResult;
use crate::server::wire::Wire;

pub use connector::Connector;

/// The command that asks which cluster it is.
pub const IDENTIFY_SYSTEM: &str = "IDENTIFY_SYSTEM";

/// How commands reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// As commands of a replication connection.
    Replication,
    /// As calls of SQL procedures, on an ordinary connection.
    Procedures,
}

impl Route {
    /// The text of a command.
    pub fn text_of(self, command: &Command) -> Vec<u8> {
        match self {
            Self::Replication => command.to_bytes(),
            Self::Procedures => command.to_call(),
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Replication => "replication commands",
            Self::Procedures => "SQL procedures",
        }
    }
}

/// A connection.
pub struct Session {
    pg: Pg,
    route: Route,
    abort: Arc<Abort>,
    /// A command was sent and not all of its results were read.
    running: bool,
    /// When waiting is given up, for a connection that nobody may have to wait for.
    deadline: Option<Instant>,
    /// Set once bytes are read without libpq: whatever comes unasked is read by it from then on.
    wire: Option<Wire>,
    /// The command that was sent before the last one's answer has come to its end.
    ahead: Option<Ahead>,
    /// Commands that were sent at once.
    together: Together,
    /// What was asked for before somebody wanted to know it, by the question.
    answered: Vec<(String, Result<QueryResult>)>,
    /// What the server can, once it was asked.
    features: Option<Features>,
    /// How long it was waited for the server.
    waited: Cell<Duration>,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The cluster's identifier.
    pub identifier: u64,
    /// Its current timeline; ordinary connections have nothing that says it at every moment.
    pub timeline: Option<u32>,
}

impl Session {
    /// The server's version number.
    pub fn server_version(&self) -> i32 {
        self.pg.server_version()
    }

    /// What the server has said that it can.
    pub fn features(&self) -> Option<&Features> {
        self.features.as_ref()
    }

    /// Keeps what the server has said that it can.
    pub fn remember_features(&mut self, features: Features) {
        self.features = Some(features);
    }

    /// How this connection's commands travel.
    pub fn route(&self) -> Route {
        self.route
    }

    /// Sends one of the backup's commands.
    pub fn send_command(&mut self, command: &Command) -> Result<()> {
        let text = self.route.text_of(command);
        self.send(&text)
    }

    /// Sends several of the backup's commands, as [`send_together`](Self::send_together) does.
    pub fn send_commands(&mut self, commands: &[&Command]) -> Result<()> {
        let texts: Vec<_> = commands.iter().map(|command| self.route.text_of(command)).collect();
        self.send_together(&texts)
    }

    /// From now on waits last as long as they have to.
    pub fn lift_deadline(&mut self) {
        self.deadline = None;
    }

    /// From now on waits last until then at most.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// What cancels a command of this connection, even if that is lost by then.
    pub fn canceller(&self) -> Option<Canceller> {
        self.pg.canceller()
    }

    /// Nothing more is wanted of this connection: the server process ends, if it hears of that.
    pub fn abandon(&mut self) {
        if self.running
            && self.pg.is_ok()
            && let Some(canceller) = self.pg.canceller()
        {
            cancel::start(canceller);
        }
        self.running = false;
        self.pg.hang_up();
    }

    /// The server process at the other end.
    pub fn backend_pid(&self) -> i32 {
        self.pg.backend_pid()
    }

    /// Whether what the server sends travels as it is: a local socket, or TCP without encryption.
    pub fn is_plain(&self) -> bool {
        !self.pg.is_encrypted()
    }

    /// Whether the server is on this host, as far as the address tells.
    pub fn is_local(&self) -> bool {
        let address = self.pg.host_address();
        match address.to_str().ok().map(str::parse::<IpAddr>) {
            Some(Ok(address)) => address.is_loopback(),
            _ => self.pg.host().as_bytes().starts_with(b"/"),
        }
    }

    /// How long it was waited, in all, until the server had sent something, or had taken it.
    pub fn waited(&self) -> Duration {
        self.waited.get()
    }

    /// Whether a command was sent whose answer nobody has asked for yet: it is what comes next.
    pub fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Sends a command.
    pub fn send(&mut self, command: &[u8]) -> Result<()> {
        if self.is_ahead() || self.together.answers > 0 {
            return Err(Error::local("a command was sent whose answer is still to come"));
        }
        let command =
            CString::new(command).map_err(|_| Error::local("replication command contains a NUL byte"))?;
        self.consume_unsolicited()?;
        if !self.pg.send_query(&command) {
            return Err(self.lost("could not send replication command"));
        }
        self.running = true;
        Ok(())
    }

    /// The next result of the command that runs; `None` after the last. An error that the server
    /// reports is an `Err`; the rest of the command's results are gone then.
    pub fn result(&mut self) -> Result<Option<QueryResult>> {
        if self.together.answers > 0 {
            return self.result_past_libpq();
        }
        while self.pg.is_busy() {
            self.wait_and_consume()?;
        }
        let Some(answer) = self.pg.result() else {
            self.running = false;
            return self.send_later().map(|()| None);
        };
        if matches!(answer.status(), Status::PGRES_FATAL_ERROR | Status::PGRES_BAD_RESPONSE) {
            let error = match answer.sqlstate() {
                Some(state) if self.pg.is_ok() => Error::new(Kind::Server(state), answer.error_message()),
                _ => Error::connection(answer.error_message()),
            };
            self.drain()?;
            return Err(error);
        }
        Ok(Some(QueryResult::Libpq(answer)))
    }

    /// The next result, which must be a result set that begins with these columns.
    pub fn result_set(&mut self, columns: &[Column]) -> Result<QueryResult> {
        let answer = self.result()?.ok_or_else(|| unexpected("the end of the results"))?;
        if answer.status() != Status::PGRES_TUPLES_OK {
            return Err(unexpected(&format!("a result of status {:?}", answer.status())));
        }
        check_columns(&answer, columns)?;
        Ok(answer)
    }

    /// The end of the command: its tag, and no more rows.
    pub fn finish(&mut self) -> Result<()> {
        let mut tagged = false;
        while let Some(answer) = self.result()? {
            if answer.status() != Status::PGRES_COMMAND_OK {
                return Err(unexpected(&format!("a result of status {:?}", answer.status())));
            }
            tagged = true;
        }
        if tagged { Ok(()) } else { Err(unexpected("no command tag")) }
    }

    /// Runs a command of the replication grammar, or a query, that has one row.
    pub fn query(&mut self, command: &str) -> Result<QueryResult> {
        let rows = self.rows(command)?;
        if rows.rows() == 1 {
            return Ok(rows);
        }
        Err(unexpected("no row").context(format!("command \"{command}\"")))
    }

    /// The same with any number of rows.
    pub fn rows(&mut self, command: &str) -> Result<QueryResult> {
        if let Some(place) = self.answered.iter().position(|(question, _)| question == command) {
            return self.answered.swap_remove(place).1;
        }
        self.send(command.as_bytes()).map_err(|error| error.context(self.doing(command)))?;
        self.rows_of(command)
    }

    fn doing(&self, command: &str) -> String {
        let kind = if self.route == Route::Replication { "replication command" } else { "query" };
        format!("could not send {kind} \"{command}\"")
    }

    /// The rows of what was sent.
    fn rows_of(&mut self, command: &str) -> Result<QueryResult> {
        let doing = self.doing(command);
        let mut set = None;
        while let Some(answer) = self.result().map_err(|error| error.context(&doing))? {
            if answer.status() == Status::PGRES_TUPLES_OK {
                set.get_or_insert(answer);
            }
        }
        set.ok_or_else(|| unexpected("no result set").context(format!("command \"{command}\"")))
    }

    /// Asks for rows one by one: the result of the command just sent is never held whole.
    pub fn row_by_row(&mut self) -> Result<()> {
        if self.pg.set_single_row_mode() { Ok(()) } else { Err(self.lost("could not set single-row mode")) }
    }

    /// The next CopyData message; `None` when the copy is over.
    pub fn copy_data(&mut self) -> Result<Option<CopyData>> {
        loop {
            match self.try_copy_data()? {
                Message::Data(data) => return Ok(Some(data)),
                Message::Done => return Ok(None),
                Message::None => self.wait_and_consume()?,
            }
        }
    }

    /// A CopyData message, if one is there.
    pub fn try_copy_data(&mut self) -> Result<Message> {
        match self.pg.copy_data() {
            CopyRead::Data(data) => Ok(Message::Data(data)),
            CopyRead::Done => Ok(Message::Done),
            CopyRead::WouldBlock => Ok(Message::None),
            CopyRead::Error => Err(self.lost("could not read COPY data")),
        }
    }

    /// Waits until the server has sent something, or `also` has become readable, or the time is
    /// over; then reads what is there.
    pub fn wait_for_data(
        &mut self,
        timeout: Option<Duration>,
        also: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<()> {
        if self.wait(timeout, also)? && !self.pg.consume_input() {
            return Err(self.lost("could not receive data"));
        }
        Ok(())
    }

    /// Sends a CopyData message.
    pub fn put_copy_data(&mut self, data: &[u8]) -> Result<()> {
        if self.pg.put_copy_data(data) { Ok(()) } else { Err(self.lost("could not send COPY data")) }
    }

    /// Ends our side of a copy.
    pub fn put_copy_end(&mut self) -> Result<()> {
        if self.pg.put_copy_end() { Ok(()) } else { Err(self.lost("could not send copy-end packet")) }
    }

    /// Notices a connection that was lost while nothing was asked of it.
    pub fn check_alive(&mut self) -> Result<()> {
        if self.wire.is_some() {
            return self.consume_unsolicited();
        }
        if self.wait(Some(Duration::ZERO), None)? && !self.pg.consume_input() || !self.pg.is_ok() {
            return Err(self.lost("connection to server was lost"));
        }
        Ok(())
    }

    /// IDENTIFY_SYSTEM, or what SQL has of it.
    pub fn identify_system(&mut self) -> Result<System> {
        match self.route {
            Route::Replication => {
                let answer = self.query(IDENTIFY_SYSTEM)?;
                Ok(System { identifier: number(&answer, 0, 0)?, timeline: Some(number(&answer, 0, 1)?) })
            }
            Route::Procedures => {
                let answer = self.query("SELECT system_identifier FROM pg_catalog.pg_control_system()")?;
                Ok(System { identifier: number(&answer, 0, 0)?, timeline: None })
            }
        }
    }

    /// SHOW.
    pub fn show(&mut self, setting: &str) -> Result<String> {
        let answer = self.query(&show(setting))?;
        Ok(text(&answer, 0, 0)?.to_owned())
    }

    /// The stream now goes both ways: it is ended by ending it, not by cancelling a command.
    pub fn entered_copy_both(&mut self) {
        self.running = false;
    }

    /// Reads what is left of a command that failed, so that the next can be sent.
    fn drain(&mut self) -> Result<()> {
        loop {
            while self.pg.is_ok() && self.pg.is_busy() {
                self.wait_and_consume()?;
            }
            if self.pg.result().is_none() {
                self.running = false;
                return self.send_later();
            }
        }
    }

    fn wait_and_consume(&mut self) -> Result<()> {
        self.wait_for_data(None, None)
    }

    /// Waits for the socket, the end of the backup or `also`. True if the socket has something.
    fn wait(&self, timeout: Option<Duration>, also: Option<std::os::fd::BorrowedFd<'_>>) -> Result<bool> {
        self.wait_for(PollFlags::IN, timeout, also)
    }

    fn wait_for(
        &self,
        what: PollFlags,
        timeout: Option<Duration>,
        also: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<bool> {
        let Some(socket) = self.pg.socket() else {
            return Err(self.lost("connection to server was lost"));
        };
        let mut descriptors = vec![
            PollFd::from_borrowed_fd(self.abort.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(socket, what),
        ];
        if let Some(also) = also {
            descriptors.push(PollFd::from_borrowed_fd(also, PollFlags::IN));
        }
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(Error::connection("server did not answer in time"));
        }
        let timeout = timeout.min(left).or(timeout).or(left).map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let began = Instant::now();
        let polled = poll(&mut descriptors, timeout.as_ref());
        self.waited.set(self.waited.get() + began.elapsed());
        match polled {
            // With no time to pass an interrupted wait is as good as one that ended.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::local(format!("poll() failed: {error}"))),
        }
        self.abort.check()?;
        Ok(!descriptors[1].revents().is_empty())
    }

    fn lost(&self, doing: &str) -> Error {
        Error::connection(format!("{doing}: {}", self.pg.error_message()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A server process that waits for a checkpoint or for its turn under a rate limit does not
        // notice that its client is gone.
        if self.running
            && self.pg.is_ok()
            && let Some(canceller) = self.pg.canceller()
        {
            cancel::start(canceller);
            // What was said in farewell would have to wait for that too.
            self.pg.hang_up();
        }
    }
}

/// What `try_copy_data` found.
pub enum Message {
    /// A message.
    Data(CopyData),
    /// Nothing yet.
    None,
    /// The copy is over.
    Done,
}

/// Fails unless a result begins with these columns; a later version may add some.
pub fn check_columns(answer: &QueryResult, columns: &[Column]) -> Result<()> {
    let expected = columns.iter().enumerate();
    match expected.into_iter().find(|(number, column)| answer.column_name(*number) != column.name) {
        None => Ok(()),
        Some((_, column)) => Err(unexpected(&format!("a result set without column \"{}\"", column.name))),
    }
}

/// The command that asks for a setting.
pub fn show(setting: &str) -> String {
    format!("SHOW {setting}")
}

/// A value that must be there, as text.
pub fn text(answer: &QueryResult, row: usize, column: usize) -> Result<&str> {
    std::str::from_utf8(bytes(answer, row, column)?)
        .map_err(|_| unexpected(&format!("no text in column \"{}\"", answer.column_name(column))))
}

/// A value that must be there, as it came.
pub fn bytes(answer: &QueryResult, row: usize, column: usize) -> Result<&[u8]> {
    answer
        .value(row, column)
        .ok_or_else(|| unexpected(&format!("no value in column \"{}\"", answer.column_name(column))))
}

/// A value that must be there and have this form.
pub fn number<T: FromStr>(answer: &QueryResult, row: usize, column: usize) -> Result<T> {
    let value = text(answer, row, column)?;
    value
        .parse()
        .map_err(|_| unexpected(&format!("value \"{value}\" in column \"{}\"", answer.column_name(column))))
}

fn unexpected(what: &str) -> Error {
    Error::connection(format!("unexpected response from server: {what}"))
}
