//! The ways in. Each turns what it gets into a [`protocol::Command`], has it carried out and
//! reports an error once.

pub mod procedures;
pub mod replication;
mod schema;
pub mod sql;

use protocol::Command;

use crate::backup::keeper;
use crate::command;
use crate::error::{Error, Result};
use crate::pg::entry::{self, Patch};
use crate::pg::{procedure, report, settings, worker};

/// Sets everything up while the postmaster loads the library.
pub fn load() {
    if !entry::preloading() {
        report::raise(&Error::NotPreloaded);
    }
    entry::without_backtraces();
    settings::define();
    procedure::install();
    worker::install(keeper::run);
    match entry::install(replication::HANDLERS) {
        Patch::Fits => settings::show_replication_grammar(),
        Patch::Missing => report::log(
            "this server does not have the patch of pg_parallel_backup: backups are taken by way of its SQL procedures",
        ),
        Patch::Other(found) => report::raise(&Error::HookVersion { found, expected: entry::HOOK_VERSION }),
    }
}

/// Carries out a parsed command, if it could be parsed.
fn carry_out(command: std::result::Result<Command, protocol::CommandError>) -> Result<()> {
    command::run(&command?)
}
