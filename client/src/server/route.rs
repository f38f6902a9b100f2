//! Which of the two ways in a server has: the replication grammar of a patched one, or the SQL
//! procedures of any that has loaded the library. The choice is the program's, not the user's: the
//! copy is the same.

use std::collections::HashSet;
use std::time::Instant;

use protocol::SqlState;
use protocol::features::{self, Features};

use crate::error::{Error, Kind, Result};
use crate::server::connection::{Connector, IDENTIFY_SYSTEM, Route, Session, number, show, text};

/// What every server that has loaded the library has; "on" where it has the grammar.
const GRAMMAR_SETTING: &str = "pg_parallel_backup.replication_grammar";

/// The mode of the data directory, `0700` or `0750`.
pub const MODE_SETTING: &str = "data_directory_mode";

/// How long WAL segments are: a number and its unit.
pub const SEGMENT_SIZE_SETTING: &str = "wal_segment_size";

/// What to do where nothing is installed.
const HOW_TO_INSTALL: &str = "Install the extension pg_parallel_backup on the server, add it to \
    shared_preload_libraries, restart the server, and, unless the server is patched, run CREATE EXTENSION \
    pg_parallel_backup in the database to connect to.";

/// What the procedures' privileges are granted with.
const HOW_TO_GRANT: &str = "As a superuser, run GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO \
    the role, and GRANT pg_read_server_files TO the role unless it has the REPLICATION attribute.";

/// Where a backup can be made without a replication connection.
const HOW_TO_AVOID_REPLICATION: &str = "With -X fetch or -X none no replication connection is needed, if the \
    extension pg_parallel_backup is created in the database to connect to.";

/// The first connection, the coordinator's, by the route that the server has. The connector is
/// pinned to the server.
pub fn find(connector: &mut Connector, streaming: bool) -> Result<Session> {
    let refusal = match connector.connect(Route::Replication) {
        Ok(mut session) => {
            connector.pin(&session);
            // What the backup asks for before it starts: over a long way one answer takes as long as all of them.
            let settings = [GRAMMAR_SETTING, features::SETTING, MODE_SETTING, SEGMENT_SIZE_SETTING];
            let questions = settings.map(show).into_iter().chain([IDENTIFY_SYSTEM.to_owned()]);
            session.ask_together(&questions.collect::<Vec<_>>())?;
            if has_grammar(&mut session)? {
                return Ok(session);
            }
            drop(session);
            return connect(connector, Route::Procedures);
        }
        Err(error) if error.kind() != Kind::Connection => return Err(error),
        Err(error) => error,
    };
    if streaming {
        return Err(explain_refusal(refusal));
    }
    // Perhaps pg_hba.conf has no line for replication, or the role not the attribute.
    let Ok(mut session) = connector.connect(Route::Procedures) else { return Err(refusal) };
    match check_procedures(&mut session) {
        Ok(()) => {
            connector.pin(&session);
            Ok(session)
        }
        Err(error) => Err(refusal.with_hint(format!(
            "Nor can the backup be made over ordinary connections: {}. {}",
            error.message(),
            error.hint().unwrap_or_default()
        ))),
    }
}

/// One more connection. What an ordinary one has come to is looked at anew: databases can be renamed.
pub fn connect(connector: &mut Connector, route: Route) -> Result<Session> {
    looked_at(connector.connect(route)?)
}

/// The same by a route that there is a connection of: whatever had to be asked for was asked for then.
pub fn another(connector: &Connector, route: Route) -> Result<Session> {
    looked_at(connector.another(route)?)
}

/// The same in the middle of a backup, within a time.
pub fn reconnect(connector: &Connector, route: Route, deadline: Instant) -> Result<Session> {
    looked_at(connector.reconnect(route, deadline)?)
}

fn looked_at(mut session: Session) -> Result<Session> {
    if session.route() == Route::Procedures {
        check_procedures(&mut session)?;
    }
    Ok(session)
}

/// A replication connection was refused: names the way around it if that is what was missing. The
/// names of settings and files stand in the server's message in every language.
pub fn explain_refusal(error: Error) -> Error {
    // Before 16: "must be superuser or replication role to start walsender".
    let about_replication = ["pg_hba.conf", "WAL sender", "walsender", "max_wal_senders"];
    if error.hint().is_none() && about_replication.iter().any(|word| error.message().contains(word)) {
        error.with_hint(HOW_TO_AVOID_REPLICATION)
    } else {
        error
    }
}

/// Whether the server has the replication commands; an error where it has not loaded the library.
fn has_grammar(session: &mut Session) -> Result<bool> {
    match session.show(GRAMMAR_SETTING) {
        Ok(value) => Ok(value == "on"),
        Err(error) if error.is_server(SqlState::UNDEFINED_OBJECT) => Err(not_loaded()),
        Err(error) => Err(error),
    }
}

/// What the server can beyond what every server can. A connection is asked once.
pub fn features(session: &mut Session) -> Result<Features> {
    if let Some(features) = session.features() {
        return Ok(features.clone());
    }
    let features = match session.show(features::SETTING) {
        Ok(setting) => Features::parse(&setting),
        Err(error) if error.is_server(SqlState::UNDEFINED_OBJECT) => Features::default(),
        Err(error) => return Err(error),
    };
    session.remember_features(features.clone());
    Ok(features)
}

/// Fails unless the library is loaded, the extension is in this database, its procedures and nobody
/// else's would be called, and the role may use them.
///
/// Until then the database is a stranger's: its owner may have made a schema, procedures, operators and
/// types of any name, and whatever runs has the rights of the role that backs up. Nothing but pg_catalog is
/// looked at, first by qualified names without an operator, then with nothing else in search_path.
fn check_procedures(session: &mut Session) -> Result<()> {
    let answer = session.query(&format!(
        "SELECT pg_catalog.set_config('search_path', '', false), pg_catalog.pg_backend_pid(), \
         pg_catalog.current_setting('{GRAMMAR_SETTING}', true), pg_catalog.current_database(), current_user"
    ))?;
    check_backend(session, number(&answer, 0, 1)?)?;
    if answer.value(0, 2).is_none_or(<[u8]>::is_empty) {
        return Err(not_loaded());
    }
    let (database, role) = (text(&answer, 0, 3)?, text(&answer, 0, 4)?);
    check_schema(session, database)?;
    let rows = session.rows(
        "SELECT p.proname, l.lanname, p.probin, EXISTS (SELECT FROM pg_catalog.pg_depend d \
         JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid WHERE d.deptype = 'e' AND d.objid = p.oid \
         AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass \
         AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass \
         AND e.extname = 'pg_parallel_backup'), pg_catalog.has_function_privilege(p.oid, 'EXECUTE') \
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
         JOIN pg_catalog.pg_language l ON l.oid = p.prolang WHERE n.nspname = 'parallel_backup' \
         AND p.proname IN ('start_backup', 'send_file_list', 'send_files_content', 'stop_backup', \
         'upload_manifest')",
    )?;
    let mut names = HashSet::new();
    let mut allowed = true;
    for row in 0..rows.rows() {
        let procedure = Procedure {
            name: text(&rows, row, 0)?,
            language: text(&rows, row, 1)?,
            library: rows.value(row, 2).unwrap_or_default(),
            is_member: text(&rows, row, 3)? == "t",
        };
        // Each of these names, and not only those that fit: a call would take the one that fits best.
        if !procedure.is_ours() {
            return Err(Error::local(format!(
                "procedure parallel_backup.{} in database \"{database}\" does not belong to the extension \
                 pg_parallel_backup",
                procedure.name
            ))
            .with_hint(
                "Nothing was called. As a superuser, find out who has made it, and drop it, or name with -d a \
                 database that nobody else has made objects in.",
            ));
        }
        // Only incremental backups need it: where it is missing, or must not be called, the server says so.
        if procedure.name != "upload_manifest" {
            names.insert(procedure.name);
            allowed &= text(&rows, row, 4)? == "t";
        }
    }
    if names.len() < 4 {
        return Err(no_procedures(database));
    }
    if !allowed {
        return Err(Error::local(format!(
            "role \"{role}\" may not execute the procedures of the extension pg_parallel_backup in database \
             \"{database}\""
        ))
        .with_hint(HOW_TO_GRANT));
    }
    // A setting of 17; a spread checkpoint may last longer than an administrator's limit.
    if session.server_version() >= 170_000 {
        session.query("SELECT pg_catalog.set_config('transaction_timeout', '0', false)")?;
    }
    Ok(())
}

/// Fails where something stands between this connection and the server that may hand each command to
/// another server process. A pooler makes up the process id that it gives to its clients.
fn check_backend(session: &Session, pid: i32) -> Result<()> {
    if pid == session.backend_pid() {
        return Ok(());
    }
    Err(Error::local(
        "the connection goes to a connection pooler, which may give each command to another server process",
    )
    .with_hint("Connect to the server itself: a backup lives in the session that has started it."))
}

/// Fails where a role that is no superuser could put procedures into the schema, or another schema in
/// its place, between this look and a call.
fn check_schema(session: &mut Session, database: &str) -> Result<()> {
    let answer = session.rows(
        "SELECT o.rolsuper AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(n.nspacl) a \
         LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee WHERE a.privilege_type = 'CREATE' \
         AND g.rolsuper IS NOT TRUE) FROM pg_catalog.pg_namespace n \
         JOIN pg_catalog.pg_roles o ON o.oid = n.nspowner WHERE n.nspname = 'parallel_backup'",
    )?;
    if answer.rows() == 0 {
        return Err(no_procedures(database));
    }
    if text(&answer, 0, 0)? == "t" {
        return Ok(());
    }
    Err(Error::local(format!(
        "schema \"parallel_backup\" in database \"{database}\" can be changed by roles that are not superusers"
    ))
    .with_hint(
        "Nothing of it was called. As a superuser, look for what does not belong to the extension \
         pg_parallel_backup, run ALTER SCHEMA parallel_backup OWNER TO a superuser, and REVOKE CREATE ON \
         SCHEMA parallel_backup from all others.",
    ))
}

/// A procedure, as the catalogs have it.
struct Procedure<'a> {
    name: &'a str,
    language: &'a str,
    library: &'a [u8],
    is_member: bool,
}

impl Procedure<'_> {
    /// Whether it is the extension's, and still as the extension made it: a member can be replaced.
    fn is_ours(&self) -> bool {
        let file = self.library.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.is_member
            && self.language == "c"
            && file.strip_suffix(b".so").unwrap_or(file) == b"pg_parallel_backup"
    }
}

fn no_procedures(database: &str) -> Error {
    Error::local(format!(
        "database \"{database}\" does not have the procedures of the extension pg_parallel_backup"
    ))
    .with_hint(
        "Run CREATE EXTENSION pg_parallel_backup (or ALTER EXTENSION pg_parallel_backup UPDATE) there, or \
         name with -d a database that has them.",
    )
}

fn not_loaded() -> Error {
    Error::local("the server has not loaded the library pg_parallel_backup").with_hint(HOW_TO_INSTALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_around_replication_is_named_where_that_is_missing() {
        for words in [
            "FATAL:  no pg_hba.conf entry for replication connection",
            "FATAL:  permission denied to start WAL sender",
            "FATAL:  must be superuser or replication role to start walsender",
        ] {
            assert!(
                explain_refusal(Error::connection(words)).hint().unwrap().contains("-X fetch"),
                "{words}"
            );
        }
        assert!(explain_refusal(Error::connection("Connection refused")).hint().is_none());
    }

    #[test]
    fn whose_procedure_it_is() {
        let is_ours = |language, library: &str, is_member| {
            Procedure { name: "start_backup", language, library: library.as_bytes(), is_member }.is_ours()
        };
        assert!(is_ours("c", "$libdir/pg_parallel_backup", true));
        assert!(is_ours("c", "/usr/lib/pg_parallel_backup.so", true));
        assert!(is_ours("c", "pg_parallel_backup", true));
        assert!(!is_ours("c", "$libdir/pg_parallel_backup", false));
        assert!(!is_ours("c", "$libdir/not_pg_parallel_backup", true));
        assert!(!is_ours("c", "$libdir/pg_parallel_backup/other", true));
        assert!(!is_ours("plpgsql", "", true));
        assert!(!is_ours("sql", "$libdir/pg_parallel_backup", true));
    }

    #[test]
    fn what_to_install_is_named() {
        assert!(not_loaded().hint().unwrap().contains("shared_preload_libraries"));
    }
}
