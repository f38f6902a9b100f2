//! Which of the two ways in a server has: the replication grammar of a patched one, or the SQL
//! procedures of any that has loaded the library. The choice is the program's, not the user's: the
//! copy is the same.

use protocol::SqlState;

use crate::connection::{Connector, Route, Session, text};
use crate::error::{Error, Kind, Result};

/// What every server that has loaded the library has; "on" where it has the grammar.
const GRAMMAR_SETTING: &str = "pg_parallel_backup.replication_grammar";

/// What to do where nothing is installed.
const HOW_TO_INSTALL: &str = "Install the extension pg_parallel_backup on the server, add it to \
    shared_preload_libraries, restart the server, and, unless the server is patched, run CREATE EXTENSION \
    pg_parallel_backup in the database to connect to.";

/// What the procedures' privileges are granted with.
const HOW_TO_GRANT: &str = "As a superuser, run GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO \
    the role.";

/// Where a backup can be made without a replication connection.
const HOW_TO_AVOID_REPLICATION: &str = "With -X fetch or -X none no replication connection is needed, if the \
    extension pg_parallel_backup is created in the database to connect to.";

/// The first connection, the coordinator's, by the route that the server has. The connector is
/// pinned to the server.
pub fn find(connector: &mut Connector, streaming: bool) -> Result<Session> {
    let refusal = match connector.connect(Route::Replication) {
        Ok(mut session) => {
            connector.pin(&session);
            if has_grammar(&mut session)? {
                return Ok(session);
            }
            drop(session);
            let mut session = connector.connect(Route::Procedures)?;
            check_procedures(&mut session)?;
            return Ok(session);
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

/// Fails unless the library is loaded, the extension is in this database, and the role may use it.
fn check_procedures(session: &mut Session) -> Result<()> {
    let answer = session.query(&format!(
        "SELECT coalesce(pg_catalog.current_setting('{GRAMMAR_SETTING}', true), '') <> '', \
         pg_catalog.count(*), pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')), \
         pg_catalog.current_database(), current_user \
         FROM pg_catalog.pg_proc p WHERE p.prokind = 'p' AND p.pronamespace = \
         (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'parallel_backup') AND p.proname IN \
         ('start_backup', 'send_file_list', 'send_files_content', 'stop_backup')"
    ))?;
    let (database, role) = (text(&answer, 0, 3)?, text(&answer, 0, 4)?);
    if text(&answer, 0, 0)? != "t" {
        return Err(not_loaded());
    }
    if text(&answer, 0, 1)? != "4" {
        return Err(Error::local(format!(
            "database \"{database}\" does not have the procedures of the extension pg_parallel_backup"
        ))
        .with_hint(
            "Run CREATE EXTENSION pg_parallel_backup (or ALTER EXTENSION pg_parallel_backup UPDATE) there, or \
             name with -d a database that has them.",
        ));
    }
    if text(&answer, 0, 2)? != "t" {
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
    fn what_to_install_is_named() {
        assert!(not_loaded().hint().unwrap().contains("shared_preload_libraries"));
    }
}
