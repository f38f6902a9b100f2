//! Commands of the replication grammar, on a patched server.

use protocol::command::{RawFile, RawOption};
use protocol::{Command, CommandKind};

use crate::backup::{registry, session};
use crate::command;
use crate::error::Error;
use crate::pg::entry::Handlers;
use crate::pg::{guard, report, settings};

/// What PostgreSQL's hooks call.
pub const HANDLERS: Handlers = Handlers {
    shmem_request: || registry::request(settings::max_backups()),
    shmem_startup: registry::initialize,
    replication_command,
    backup_function,
};

fn replication_command(kind: CommandKind, files: Vec<RawFile>, options: Vec<RawOption>) {
    let result =
        guard::on_failure(|| super::carry_out(Command::parse(kind, files, options)), command::finished);
    match result {
        Ok(()) => command::finished(),
        Err(error) => report::raise(&error),
    }
}

/// pg_backup_stop trusts a static that only pg_backup_start of the same session sets, and would
/// crash the server if it stopped a backup that it did not start.
fn backup_function() {
    if session::is_running() {
        report::raise(&Error::OwnsBackup);
    }
}
