//! Connections: how they are made, all alike and to the same server, and commands over them with
//! waits that a signal or another thread's failure ends.

use std::ffi::{CString, OsStr};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use protocol::Command;
use protocol::reply::Column;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::abort::Abort;
use crate::cancel;
use crate::error::{Error, Kind, Result};
use crate::options::{ConnectionOptions, PasswordPrompt};
use crate::pq::{self, Answer, CopyData, CopyRead, Keyword, Pg, Status};
use crate::report::{self, PROGRAM};
use crate::tls::Step;
use crate::wire::{CopySink, Event, Wire};

/// Oldest server: its BASE_BACKUP has the option syntax and the rules that the protocol builds on.
const OLDEST_SERVER: i32 = 150_000;

/// Server settings of our own connections: a spread checkpoint, or a turn of work that others do,
/// may last longer than an administrator's limits on idle sessions and statements.
const SERVER_SETTINGS: &str = "-c idle_session_timeout=0 -c statement_timeout=0";

/// What CALLs are written for.
const CALL_SETTINGS: &str = " -c standard_conforming_strings=on";

/// A connection whose other side went away without a word is noticed after two minutes, not after
/// the two hours that operating systems take. What the user sets counts more.
const KEEPALIVES: [(&str, &str); 3] =
    [("keepalives_idle", "60"), ("keepalives_interval", "10"), ("keepalives_count", "6")];

/// What every connection of a backup is made from.
#[derive(Debug)]
pub struct Connector {
    options: ConnectionOptions,
    /// What the connection string says.
    given: Vec<Keyword>,
    /// The `options` keyword as the user has it, from wherever.
    server_options: Option<CString>,
    /// The `dbname` keyword, likewise.
    database: Option<CString>,
    /// Set once the first connection is made.
    pinned: Option<Vec<Keyword>>,
    password: Option<CString>,
    abort: Arc<Abort>,
}

/// How commands reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// As commands of a replication connection.
    Replication,
    /// As calls of SQL procedures, on an ordinary connection.
    Procedures,
}

/// A connection.
pub struct Session {
    pg: Pg,
    route: Route,
    abort: Arc<Abort>,
    /// A command was sent and not all of its results were read.
    running: bool,
    /// Set once bytes are read without libpq: whatever comes unasked is read by it from then on.
    wire: Option<Wire>,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The cluster's identifier.
    pub identifier: u64,
    /// Its current timeline; ordinary connections have nothing that says it at every moment.
    pub timeline: Option<u32>,
}

impl Connector {
    /// Reads the connection string.
    pub fn new(options: ConnectionOptions, abort: Arc<Abort>) -> Result<Self> {
        let given = match &options.conninfo {
            Some(conninfo) => pq::parse_conninfo(&c_string(conninfo)?).map_err(Error::local)?,
            None => Vec::new(),
        };
        // A service that the connection string names is read only when a connection is begun.
        let known = if lookup(&given, "service").is_some() {
            Pg::start(&given).map(|pg| pg.options()).unwrap_or_default()
        } else {
            pq::default_options()
        };
        let server_options = lookup(&given, "options").or_else(|| lookup(&known, "options"));
        let database = lookup(&given, "dbname").or_else(|| lookup(&known, "dbname"));
        Ok(Self { options, given, server_options, database, pinned: None, password: None, abort })
    }

    /// Makes a connection, and asks for a password once if it takes one.
    pub fn connect(&mut self, route: Route) -> Result<Session> {
        if self.options.password == PasswordPrompt::Always && self.password.is_none() {
            self.prompt()?;
        }
        let pg = loop {
            let pg = Pg::connect(&self.keywords(route)?)
                .ok_or_else(|| Error::local("could not connect to server"))?;
            if pg.is_ok() {
                break pg;
            }
            // A signal has priority over what it made of the connection attempt.
            self.abort.check()?;
            if !pg.needs_password() || self.options.password == PasswordPrompt::Never {
                return Err(Error::connection(pg.error_message()));
            }
            drop(pg);
            self.prompt()?;
        };
        if pg.server_version() < OLDEST_SERVER {
            let version = pg.parameter_status(c"server_version").unwrap_or_else(|| "'unknown'".to_owned());
            return Err(Error::local(format!("incompatible server version {version}"))
                .with_detail("Parallel backups need PostgreSQL 15 or later."));
        }
        match pg.parameter_status(c"integer_datetimes").as_deref() {
            Some("on") => {}
            Some(_) => {
                return Err(Error::local("\"integer_datetimes\" compile flag does not match server"));
            }
            None => {
                return Err(Error::local("could not determine server setting for \"integer_datetimes\""));
            }
        }
        Ok(Session { pg, route, abort: Arc::clone(&self.abort), running: false, wire: None })
    }

    /// From now on connections go to the very host, address and port that this one reached: with
    /// several hosts, or a name that has several addresses, the next would be anyone's guess.
    pub fn pin(&mut self, session: &Session) {
        let reached = [
            (c"host", session.pg.host()),
            (c"hostaddr", session.pg.host_address()),
            (c"port", session.pg.port()),
        ];
        self.pinned = Some(
            reached
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        );
    }

    /// The options of a connection as the user wants them for other purposes: without those that
    /// only this program sets.
    pub fn user_options(&self, session: &Session) -> Vec<Keyword> {
        session
            .pg
            .options()
            .into_iter()
            .filter_map(|(name, value)| match name.to_str() {
                Ok("options") => self.server_options.clone().map(|value| (name, value)),
                Ok(keepalive) if KEEPALIVES.iter().any(|(ours, _)| *ours == keepalive) => {
                    lookup(&self.given, keepalive).map(|value| (name, value))
                }
                _ => Some((name, value)),
            })
            .collect()
    }

    /// The database that the user named: in the connection string, else in the environment.
    pub fn user_database(&self) -> Option<CString> {
        lookup(&self.given, "dbname").or_else(|| lookup(&pq::default_options(), "dbname"))
    }

    fn keywords(&self, route: Route) -> Result<Vec<Keyword>> {
        let mut keywords = Keywords(Vec::new());
        // What the connection string has overrides these.
        match (route, &self.database) {
            (Route::Replication, _) => keywords.add("dbname", "replication")?,
            (Route::Procedures, Some(database)) => keywords.0.push((c"dbname".to_owned(), database.clone())),
            // As other programs that are not about one database: it is nearly always there.
            (Route::Procedures, None) => keywords.add("dbname", "postgres")?,
        }
        for (name, value) in KEEPALIVES {
            keywords.add(name, value)?;
        }
        // What stands in the way of the pinned place is left out: an empty value would not do.
        let placed = |name: &CString| {
            self.pinned.is_some() && matches!(name.to_bytes(), b"host" | b"hostaddr" | b"port")
        };
        keywords.0.extend(self.given.iter().filter(|(name, _)| !placed(name)).cloned());
        keywords.add("replication", if route == Route::Replication { "true" } else { "false" })?;
        keywords.add("fallback_application_name", PROGRAM)?;
        if let Some(pinned) = &self.pinned {
            keywords.0.extend_from_slice(pinned);
        } else {
            keywords.add_given("host", self.options.host.as_deref())?;
            keywords.add_given("port", self.options.port.as_deref())?;
        }
        keywords.add_given("user", self.options.user.as_deref())?;
        if let Some(password) = &self.password {
            keywords.0.push((c"password".to_owned(), password.clone()));
        }
        // Later settings win on the server, so ours come after the user's.
        let mut options = self.server_options.as_ref().map_or_else(Vec::new, |o| o.as_bytes().to_vec());
        if !options.is_empty() {
            options.push(b' ');
        }
        options.extend_from_slice(SERVER_SETTINGS.as_bytes());
        if route == Route::Procedures {
            options.extend_from_slice(CALL_SETTINGS.as_bytes());
        }
        keywords.add_given("options", Some(OsStr::from_bytes(&options)))?;
        Ok(keywords.0)
    }

    fn prompt(&mut self) -> Result<()> {
        let password = rpassword::prompt_password("Password: ").map_err(|error| {
            Error::local(format!("could not read password: {}", crate::error::os_message(&error)))
        })?;
        self.password = Some(CString::new(password).map_err(|_| Error::local("password contains a NUL"))?);
        Ok(())
    }
}

impl Session {
    /// The server's version number.
    pub fn server_version(&self) -> i32 {
        self.pg.server_version()
    }

    /// How this connection's commands travel.
    pub fn route(&self) -> Route {
        self.route
    }

    /// The text of a command on this connection.
    pub fn text_of(&self, command: &Command) -> Vec<u8> {
        match self.route {
            Route::Replication => command.to_bytes(),
            Route::Procedures => command.to_call(),
        }
    }

    /// Sends one of the backup's commands.
    pub fn send_command(&mut self, command: &Command) -> Result<()> {
        let text = self.text_of(command);
        self.send(&text)
    }

    /// The server process at the other end.
    pub fn backend_pid(&self) -> i32 {
        self.pg.backend_pid()
    }

    /// Whether what the server sends travels as it is: a local socket, or TCP without encryption.
    pub fn is_plain(&self) -> bool {
        !self.pg.is_encrypted()
    }

    /// Sends a command that answers with a COPY and nothing else, and reads all of that. `past_libpq`
    /// asks for the bytes to be read without libpq, where that can be.
    pub fn copy_out(&mut self, command: &[u8], past_libpq: bool, sink: &mut impl CopySink) -> Result<()> {
        if past_libpq && self.pg.has_wire() {
            // libpq is idle and its buffer empty: the answer to the last command was read to its end.
            let mut wire = self.wire.take().unwrap_or_default();
            let outcome = self.copy_out_of_wire(command, &mut wire, sink);
            self.wire = Some(wire);
            return outcome;
        }
        let nothing = || Error::connection("server sent no COPY data stream");
        self.send(command)?;
        if self.result()?.ok_or_else(nothing)?.status() != Status::PGRES_COPY_OUT {
            return Err(nothing());
        }
        while let Some(message) = self.copy_data()? {
            sink.message(&message)?;
        }
        // An error that ended the copy comes first: it says why something is missing.
        self.finish()
    }

    fn copy_out_of_wire(&mut self, command: &[u8], wire: &mut Wire, sink: &mut impl CopySink) -> Result<()> {
        self.send_message(b'Q', command)?;
        self.running = true;
        let mut copying = false;
        let mut complete = false;
        let mut failure = None;
        loop {
            while let Some(event) = wire.next()? {
                match event {
                    Event::CopyBegins => copying = true,
                    Event::Data(chunk) if copying => sink.data(chunk)?,
                    Event::Message(payload) if copying => sink.message(payload)?,
                    Event::CopyDone if copying => copying = false,
                    Event::Complete if !copying => complete = true,
                    Event::Error(error) => {
                        copying = false;
                        let kind = match error.state {
                            Some(state) if !error.is_fatal => Kind::Server(state),
                            _ => Kind::Connection,
                        };
                        failure.get_or_insert(Error::new(kind, error.text));
                    }
                    Event::Notice(notice) => report::print(&notice.text),
                    Event::Ready => {
                        self.running = false;
                        return match failure {
                            Some(error) => Err(error),
                            None if complete => Ok(()),
                            None => Err(unexpected("no command tag")),
                        };
                    }
                    Event::Other => {}
                    other => return Err(unexpected(&format!("{other:?}"))),
                }
            }
            if let Err(error) = self.read_wire(wire) {
                // What the server said before it went says more.
                return Err(match failure {
                    Some(last_words) if error.kind() == Kind::Connection => {
                        Error::connection(last_words.message())
                    }
                    _ => error,
                });
            }
        }
    }

    /// Reads what has come, and waits until something has.
    fn read_wire(&mut self, wire: &mut Wire) -> Result<()> {
        let mut read = false;
        loop {
            match self.pg.read(wire.space()) {
                Ok(Step::Done(0)) if !read => {
                    return Err(Error::connection(
                        "server closed the connection unexpectedly\n\tThis probably means the server \
                         terminated abnormally\n\tbefore or while processing the request.",
                    ));
                }
                Ok(Step::Done(count)) => {
                    wire.filled(count);
                    read = true;
                    // TLS gives no more than a record at a time.
                    if self.is_plain() || count == 0 || wire.is_full() {
                        // A signal is heard even while bytes never cease to come.
                        return self.abort.check();
                    }
                }
                Ok(_) if read => return self.abort.check(),
                Ok(Step::WantRead) => {
                    self.wait(None, None)?;
                }
                Ok(Step::WantWrite) => {
                    self.wait_for(PollFlags::OUT, None, None)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It comes again once what was read is dealt with.
                Err(_) if read => return Ok(()),
                Err(error) => {
                    return Err(Error::connection(format!(
                        "could not receive data from server: {}",
                        crate::error::os_message(&error)
                    )));
                }
            }
        }
    }

    /// Sends a message past libpq.
    fn send_message(&mut self, kind: u8, text: &[u8]) -> Result<()> {
        let length = u32::try_from(text.len() + 5).map_err(|_| Error::local("command is too long"))?;
        let message = [&[kind][..], &length.to_be_bytes(), text, &[0]].concat();
        let mut rest = &message[..];
        while !rest.is_empty() {
            match self.pg.write(rest) {
                Ok(Step::Done(count)) => rest = &rest[count..],
                Ok(Step::WantRead) => {
                    self.wait(None, None)?;
                }
                Ok(Step::WantWrite) => {
                    self.wait_for(PollFlags::OUT, None, None)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Error::connection(format!(
                        "could not send data to server: {}",
                        crate::error::os_message(&error)
                    )));
                }
            }
        }
        Ok(())
    }

    /// Looks at what came unasked since libpq was left out, to the end of a message: libpq can go on.
    fn settle(&mut self) -> Result<()> {
        let Some(mut wire) = self.wire.take() else { return Ok(()) };
        let outcome = self.read_unasked(&mut wire);
        self.wire = Some(wire);
        outcome
    }

    /// Reads what came unasked since libpq was left out: notices, or the end.
    fn read_unasked(&mut self, wire: &mut Wire) -> Result<()> {
        loop {
            while let Some(event) = wire.next()? {
                match event {
                    Event::Notice(notice) => report::print(&notice.text),
                    Event::Error(error) => return Err(Error::connection(error.text)),
                    Event::Other => {}
                    other => return Err(unexpected(&format!("{other:?}"))),
                }
            }
            if wire.is_empty() && !self.wait(Some(Duration::ZERO), None)? {
                return Ok(());
            }
            self.read_wire(wire)?;
        }
    }

    /// Sends a command.
    pub fn send(&mut self, command: &[u8]) -> Result<()> {
        let command =
            CString::new(command).map_err(|_| Error::local("replication command contains a NUL byte"))?;
        self.settle()?;
        if !self.pg.send_query(&command) {
            return Err(self.lost("could not send replication command"));
        }
        self.running = true;
        Ok(())
    }

    /// The next result of the command that runs; `None` after the last. An error that the server
    /// reports is an `Err`; the rest of the command's results are gone then.
    pub fn result(&mut self) -> Result<Option<Answer>> {
        while self.pg.is_busy() {
            self.wait_and_consume()?;
        }
        let Some(answer) = self.pg.result() else {
            self.running = false;
            return Ok(None);
        };
        if matches!(answer.status(), Status::PGRES_FATAL_ERROR | Status::PGRES_BAD_RESPONSE) {
            let error = match answer.sqlstate() {
                Some(state) if self.pg.is_ok() => Error::new(Kind::Server(state), answer.error_message()),
                _ => Error::connection(answer.error_message()),
            };
            self.drain()?;
            return Err(error);
        }
        Ok(Some(answer))
    }

    /// The next result, which must be a result set that begins with these columns.
    pub fn result_set(&mut self, columns: &[Column]) -> Result<Answer> {
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
    pub fn query(&mut self, command: &str) -> Result<Answer> {
        let kind = if self.route == Route::Replication { "replication command" } else { "query" };
        let doing = || format!("could not send {kind} \"{command}\"");
        self.send(command.as_bytes()).map_err(|error| error.context(doing()))?;
        let mut set = None;
        while let Some(answer) = self.result().map_err(|error| error.context(doing()))? {
            if answer.status() == Status::PGRES_TUPLES_OK {
                set.get_or_insert(answer);
            }
        }
        set.filter(|set| set.rows() == 1)
            .ok_or_else(|| unexpected("no row").context(format!("command \"{command}\"")))
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
            return self.settle();
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
                let answer = self.query("IDENTIFY_SYSTEM")?;
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
        let answer = self.query(&format!("SHOW {setting}"))?;
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
                return Ok(());
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
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match poll(&mut descriptors, timeout.as_ref()) {
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
pub fn check_columns(answer: &Answer, columns: &[Column]) -> Result<()> {
    let expected = columns.iter().enumerate();
    match expected.into_iter().find(|(number, column)| answer.column_name(*number) != column.name) {
        None => Ok(()),
        Some((_, column)) => Err(unexpected(&format!("a result set without column \"{}\"", column.name))),
    }
}

/// A value that must be there, as text.
pub fn text(answer: &Answer, row: usize, column: usize) -> Result<&str> {
    std::str::from_utf8(bytes(answer, row, column)?)
        .map_err(|_| unexpected(&format!("no text in column \"{}\"", answer.column_name(column))))
}

/// A value that must be there, as it came.
pub fn bytes(answer: &Answer, row: usize, column: usize) -> Result<&[u8]> {
    answer
        .value(row, column)
        .ok_or_else(|| unexpected(&format!("no value in column \"{}\"", answer.column_name(column))))
}

/// A value that must be there and have this form.
pub fn number<T: FromStr>(answer: &Answer, row: usize, column: usize) -> Result<T> {
    let value = text(answer, row, column)?;
    value
        .parse()
        .map_err(|_| unexpected(&format!("value \"{value}\" in column \"{}\"", answer.column_name(column))))
}

fn unexpected(what: &str) -> Error {
    Error::connection(format!("unexpected response from server: {what}"))
}

/// Keywords under construction.
struct Keywords(Vec<Keyword>);

impl Keywords {
    fn add(&mut self, name: &str, value: &str) -> Result<()> {
        self.add_given(name, Some(OsStr::new(value)))
    }

    fn add_given(&mut self, name: &str, value: Option<&OsStr>) -> Result<()> {
        if let Some(value) = value {
            self.0.push((c_string(OsStr::new(name))?, c_string(value)?));
        }
        Ok(())
    }
}

fn lookup(options: &[Keyword], name: &str) -> Option<CString> {
    options.iter().find(|(key, _)| key.to_bytes() == name.as_bytes()).map(|(_, value)| value.clone())
}

fn c_string(value: &OsStr) -> Result<CString> {
    CString::new(value.as_bytes()).map_err(|_| Error::local("connection option contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::chunk::Chunk;
    use crate::fake_server::{FakeServer, copy, message, report};

    struct Nobody;

    impl CopySink for Nobody {
        fn message(&mut self, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn data(&mut self, _: Chunk<'_>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_comes_after_a_transfer_is_heard() {
        let parameter = message(b'S', b"TimeZone\0UTC\0");
        let last_words = report(b'E', "FATAL", "57P01", "terminating connection");
        let server = FakeServer::start(vec![[copy(&[]), parameter, last_words].concat()]);
        let mut session = server.connect();
        session.copy_out(b"SEND_FILES_CONTENT", true, &mut Nobody).unwrap();
        let error = session.send(b"STOP_BACKUP").unwrap_err();
        assert_eq!((error.kind(), error.message()), (Kind::Connection, "FATAL:  terminating connection"));
    }

    fn connector(conninfo: &str, host: Option<&str>) -> Connector {
        let options = ConnectionOptions {
            conninfo: Some(OsString::from(conninfo)),
            host: host.map(OsString::from),
            ..ConnectionOptions::default()
        };
        Connector::new(options, Arc::new(Abort::new().unwrap())).unwrap()
    }

    /// The value that libpq would take: the last.
    fn effective(connector: &Connector, name: &str) -> Option<String> {
        effective_by(connector, Route::Replication, name)
    }

    fn effective_by(connector: &Connector, route: Route, name: &str) -> Option<String> {
        let keywords = connector.keywords(route).unwrap();
        keywords
            .iter()
            .rev()
            .find(|(key, _)| key.to_bytes() == name.as_bytes())
            .map(|(_, value)| value.to_string_lossy().into_owned())
    }

    #[test]
    fn the_users_word_counts_more_where_it_may() {
        let connector = connector(
            "host=a,b port=1,2 dbname=d keepalives_idle=5 options='-c work_mem=1MB' replication=false",
            Some("c"),
        );
        assert_eq!(effective(&connector, "host").unwrap(), "c");
        assert_eq!(effective(&connector, "dbname").unwrap(), "d");
        assert_eq!(effective(&connector, "keepalives_idle").unwrap(), "5");
        assert_eq!(effective(&connector, "keepalives_count").unwrap(), "6");
        assert_eq!(effective(&connector, "replication").unwrap(), "true");
        assert_eq!(
            effective(&connector, "options").unwrap(),
            "-c work_mem=1MB -c idle_session_timeout=0 -c statement_timeout=0"
        );
        assert_eq!(effective(&connector, "fallback_application_name").unwrap(), PROGRAM);
    }

    #[test]
    fn ordinary_connections_go_to_a_database() {
        let named = connector("dbname=d replication=true options='-c work_mem=1MB'", None);
        let by = |name| effective_by(&named, Route::Procedures, name).unwrap();
        assert_eq!(by("dbname"), "d");
        assert_eq!(by("replication"), "false");
        assert_eq!(
            by("options"),
            "-c work_mem=1MB -c idle_session_timeout=0 -c statement_timeout=0 -c standard_conforming_strings=on"
        );
        let mut unnamed = connector("host=a", None);
        unnamed.database = None;
        assert_eq!(effective_by(&unnamed, Route::Procedures, "dbname").unwrap(), "postgres");
        unnamed.database = Some(c"from the environment".to_owned());
        assert_eq!(effective_by(&unnamed, Route::Procedures, "dbname").unwrap(), "from the environment");
        assert_eq!(effective(&unnamed, "dbname").unwrap(), "replication");
    }

    #[test]
    fn a_pinned_place_replaces_lists_of_hosts() {
        let mut connector = connector("host=a,b hostaddr=10.0.0.1,10.0.0.2 port=1,2", None);
        connector.pinned =
            Some(vec![(c"host".to_owned(), c"b".to_owned()), (c"port".to_owned(), c"2".to_owned())]);
        assert_eq!(effective(&connector, "host").unwrap(), "b");
        assert_eq!(effective(&connector, "port").unwrap(), "2");
        assert_eq!(effective(&connector, "hostaddr"), None);
    }

    #[test]
    fn a_bad_connection_string_is_libpqs_error() {
        let options = ConnectionOptions { conninfo: Some("postgres".into()), ..ConnectionOptions::default() };
        let error = Connector::new(options, Arc::new(Abort::new().unwrap())).unwrap_err();
        assert!(error.message().contains("missing \"=\" after \"postgres\""), "{error}");
    }
}
