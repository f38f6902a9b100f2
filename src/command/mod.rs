//! The commands, a file each. They know nothing of each other, nor of the way they came in.

pub mod content;
pub mod list;
pub mod start;
pub mod stop;
pub mod upload;

use protocol::Command;

use crate::backup::session;
use crate::error::Result;
use crate::pg::progress;

/// Carries out a command: result sets or CopyOut, all but the last CommandComplete.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::StartBackup(command) => start::run(command),
        Command::SendFileList(command) => list::run(command),
        Command::SendFilesContent(command) => content::run(command),
        Command::StopBackup(command) => stop::run(command),
        Command::Attach(id) => start::attach(*id),
        Command::Release(id) => stop::release(*id),
    }
}

/// After every command, failed ones too: only a coordinator keeps its row in
/// pg_stat_progress_basebackup between commands.
pub fn finished() {
    if !session::is_running() {
        progress::end();
    }
}
