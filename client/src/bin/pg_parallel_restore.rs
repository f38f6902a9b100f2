//! The program of that name, which the library is made of.

use std::process::ExitCode;

fn main() -> ExitCode {
    pg_parallel_backup_client::restore()
}
