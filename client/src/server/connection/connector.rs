//! How connections are made: all alike, and to the same server.

use std::cell::Cell;
use std::ffi::{CString, OsStr};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::together::Together;
use super::{Route, Session};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::options::{ConnectionOptions, PasswordPrompt};
use crate::report::PROGRAM;
use crate::server::pq::{self, Keyword, Pg, Progress};
use crate::server::prompt;

/// Oldest server: its BASE_BACKUP has the option syntax and the rules that the protocol builds on.
const OLDEST_SERVER: i32 = 150_000;

/// Major versions from here on are not known: what a backup consists of may be something else there.
const UNKNOWN_SERVER: i32 = 190_000;

/// Server settings of our own connections: a spread checkpoint, or a turn of work that others do,
/// may last longer than an administrator's limits on idle sessions and statements.
const SERVER_SETTINGS: &str = "-c idle_session_timeout=0 -c statement_timeout=0";

/// What CALLs are written for.
const CALL_SETTINGS: &str = " -c standard_conforming_strings=on";

/// A connection whose other side went away without a word is noticed after two minutes, not after
/// the two hours that operating systems take. What the user sets counts more.
const KEEPALIVES: [(&str, &str); 3] =
    [("keepalives_idle", "60"), ("keepalives_interval", "10"), ("keepalives_count", "6")];

/// How long it is looked whether somebody listens. A refusal comes at once, wherever from.
const LOOK: Duration = Duration::from_secs(1);

/// What every connection of a backup is made from.
#[derive(Debug, Clone)]
pub struct Connector {
    options: ConnectionOptions,
    /// What the connection string says.
    given: Vec<Keyword>,
    /// The `options` keyword as the user has it, from wherever.
    server_options: Option<CString>,
    /// The `dbname` keyword, likewise.
    database: Option<CString>,
    /// Of our own keepalives those that the user sets nowhere.
    keepalives: Vec<(&'static str, &'static str)>,
    /// Where the first connection has come to, once it is made.
    pinned: Option<Vec<Keyword>>,
    /// All its options: those of later ones have only one place to go to.
    first: Vec<Keyword>,
    password: Option<CString>,
    abort: Arc<Abort>,
}

impl Connector {
    /// Reads the connection string.
    pub fn new(options: ConnectionOptions, abort: Arc<Abort>) -> Result<Self> {
        let given = match &options.conninfo {
            Some(name) if !is_connection_string(name) => vec![(c"dbname".to_owned(), c_string(name)?)],
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
        // Before a connection is begun a service's settings are weaker than ours would be.
        let is_set = |name| lookup(&given, name).or_else(|| lookup(&known, name)).is_some();
        let keepalives = KEEPALIVES.into_iter().filter(|(name, _)| !is_set(name)).collect();
        Ok(Self {
            options,
            given,
            server_options,
            database,
            keepalives,
            pinned: None,
            first: Vec::new(),
            password: None,
            abort,
        })
    }

    /// The same, whose waits are ended by something else.
    pub fn ended_by(&self, abort: Arc<Abort>) -> Self {
        Self { abort, ..self.clone() }
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
        check_server(&pg)?;
        Ok(self.session(pg, route, None))
    }

    /// Makes one more connection as the first was made, with no prompt.
    pub fn another(&self, route: Route) -> Result<Session> {
        let pg =
            Pg::connect(&self.keywords(route)?).ok_or_else(|| Error::local("could not connect to server"))?;
        if !pg.is_ok() {
            // A signal has priority over what it made of the connection attempt.
            self.abort.check()?;
            return Err(Error::connection(pg.error_message()));
        }
        check_server(&pg)?;
        Ok(self.session(pg, route, None))
    }

    /// Makes one more connection, with no prompt, and gives it up at that moment. The deadline holds until
    /// it is lifted.
    pub fn reconnect(&self, route: Route, deadline: Instant) -> Result<Session> {
        let pg = Pg::start(&self.keywords(route)?)
            .ok_or_else(|| Error::connection("could not connect to server"))?;
        let mut session = self.session(pg, route, Some(deadline));
        let mut awaited = PollFlags::OUT;
        loop {
            while !session.wait_for(awaited, None, None)? {}
            awaited = match session.pg.poll() {
                Progress::Done => break,
                Progress::WantRead => PollFlags::IN,
                Progress::WantWrite => PollFlags::OUT,
                Progress::Failed => return Err(Error::connection(session.pg.error_message())),
            };
        }
        check_server(&session.pg)?;
        Ok(session)
    }

    fn session(&self, pg: Pg, route: Route, deadline: Option<Instant>) -> Session {
        Session {
            pg,
            route,
            abort: Arc::clone(&self.abort),
            running: false,
            deadline,
            wire: None,
            ahead: None,
            together: Together::default(),
            answered: Vec::new(),
            features: None,
            waited: Cell::default(),
        }
    }

    /// From now on connections go to the very host, address and port that this one reached: with
    /// several hosts, or a name that has several addresses, the next would be anyone's guess.
    pub fn pin(&mut self, session: &Session) {
        self.first = session.pg.options();
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

    /// Whether nothing listens where the first connection has come to. libpq says so in the user's language alone, so that it is
    /// looked at here: a connection that says nothing, and which the server does not log.
    pub fn nobody_listens(&self) -> bool {
        let pinned = self.pinned.as_deref().unwrap_or_default();
        let value = |name| lookup(pinned, name).and_then(|value| value.into_string().ok());
        let (Some(host), Some(port)) = (value("host"), value("port")) else { return false };
        let outcome = if host.starts_with('/') {
            UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).map(drop)
        } else {
            let address = value("hostaddr").and_then(|address| address.parse::<IpAddr>().ok());
            let (Some(address), Ok(port)) = (address, port.parse()) else { return false };
            TcpStream::connect_timeout(&SocketAddr::new(address, port), LOOK).map(drop)
        };
        outcome.is_err_and(|error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
    }

    /// The options of the first connection as the user wants them for other purposes: without those that
    /// only this program sets.
    pub fn user_options(&self) -> Vec<Keyword> {
        self.first
            .iter()
            .filter_map(|(name, value)| match name.to_str() {
                Ok("options") => self.server_options.clone().map(|value| (name.clone(), value)),
                Ok(ours) if self.keepalives.iter().any(|(name, _)| *name == ours) => None,
                _ => Some((name.clone(), value.clone())),
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
        for (name, value) in self.keepalives.iter().copied() {
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
        let password = prompt::password()?;
        self.password = Some(CString::new(password).map_err(|_| Error::local("password contains a NUL"))?);
        Ok(())
    }
}

/// Fails where the server cannot be backed up by this program.
fn check_server(pg: &Pg) -> Result<()> {
    if !(OLDEST_SERVER..UNKNOWN_SERVER).contains(&pg.server_version()) {
        let version = pg.parameter_status(c"server_version").unwrap_or_else(|| "'unknown'".to_owned());
        return Err(Error::local(format!("incompatible server version {version}"))
            .with_detail("This program makes backups of PostgreSQL 15 to 18."));
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
    Ok(())
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

/// Whether what -d says is more than a database's name, by libpq's rule (`recognized_connection_string`).
fn is_connection_string(text: &OsStr) -> bool {
    let text = text.as_bytes();
    let is_uri = text.starts_with(b"postgresql://") || text.starts_with(b"postgres://");
    is_uri || text.contains(&b'=') || text.is_empty()
}

fn c_string(value: &OsStr) -> Result<CString> {
    CString::new(value.as_bytes()).map_err(|_| Error::local("connection option contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, OsString};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::server::fake_server::FakeServer;

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
    fn nobody_listens_where_there_was_somebody() {
        let mut connector = connector("", None);
        assert!(!connector.nobody_listens());
        let pinned = |pairs: &[(&CStr, String)]| -> Option<Vec<Keyword>> {
            Some(
                pairs
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), CString::new(&**value).unwrap()))
                    .collect(),
            )
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let at = [(c"host", "h".to_owned()), (c"hostaddr", "127.0.0.1".to_owned()), (c"port", port)];
        connector.pinned = pinned(&at);
        assert!(!connector.nobody_listens());
        drop(listener);
        assert!(connector.nobody_listens());

        let place = tempfile::tempdir().unwrap();
        let directory = place.path().to_str().unwrap().to_owned();
        connector.pinned = pinned(&[(c"host", directory), (c"port", "7".to_owned())]);
        assert!(connector.nobody_listens());
        let socket = place.path().join(".s.PGSQL.7");
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(!connector.nobody_listens());
        // Left by a server that was killed.
        drop(listener);
        assert!(socket.exists() && connector.nobody_listens());
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
    fn versions_that_are_not_known() {
        for (version, fits) in
            [("14.20", false), ("15.0", true), ("18.99", true), ("19beta1", false), ("19.0", false)]
        {
            let outcome = FakeServer::of_version(version, Vec::new()).try_connect();
            let message = outcome.err().map(|error| error.message().to_owned());
            let refusal = format!("incompatible server version {version}");
            assert_eq!(message, (!fits).then_some(refusal), "{version}");
        }
    }

    #[test]
    fn a_server_that_never_answers_holds_nobody_up() {
        let place = tempfile::tempdir().unwrap();
        // Connections are taken by the system, and nobody says a word.
        let _listener = std::os::unix::net::UnixListener::bind(place.path().join(".s.PGSQL.1")).unwrap();
        let conninfo = format!("host={} port=1 user=x", place.path().display());
        let connector = connector(&conninfo, None);
        let soon = Instant::now() + std::time::Duration::from_millis(100);
        let error = connector.reconnect(Route::Replication, soon).err().unwrap();
        assert_eq!(error.message(), "server did not answer in time");

        connector.abort.fail(Error::local("interrupted"));
        let later = Instant::now() + std::time::Duration::from_secs(3600);
        assert!(connector.reconnect(Route::Replication, later).is_err());
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
        let conninfo = Some("postgres host=a".into());
        let options = ConnectionOptions { conninfo, ..ConnectionOptions::default() };
        let error = Connector::new(options, Arc::new(Abort::new().unwrap())).unwrap_err();
        assert!(error.message().contains("missing \"=\" after \"postgres\""), "{error}");
    }

    #[test]
    fn a_bare_name_is_a_database() {
        for name in ["postgres", "my db", "it's", "a:b", "postgresql:/x"] {
            let connector = connector(name, None);
            for route in [Route::Procedures, Route::Replication] {
                assert_eq!(effective_by(&connector, route, "dbname").unwrap(), name);
            }
            assert_eq!(connector.user_database().unwrap().to_str().unwrap(), name);
        }
        let uri = connector("postgres://h/d", None);
        assert_eq!(effective_by(&uri, Route::Procedures, "dbname").unwrap(), "d");
        assert_eq!(effective_by(&uri, Route::Procedures, "host").unwrap(), "h");
    }
}
