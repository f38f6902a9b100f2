//! The commands `list` and `prune`: what backups in volumes there are, and which of them go.

use std::ffi::OsStr;
use std::sync::Arc;

use super::location::place;
use super::places::{self, Summary};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::report;

/// Prints what backups a place has.
pub fn list(name: &OsStr, json: bool) -> Result<String> {
    let all = places::list(&*place(name, &abort()?)?)?;
    if json {
        let text = serde_json::to_string_pretty(&all)
            .map_err(|error| Error::local(format!("could not write JSON: {error}")))?;
        return Ok(text + "\n");
    }
    Ok(table(&all))
}

/// Removes what is more than so many full backups with what goes on from them.
pub fn prune(name: &OsStr, keep_full: usize, dry_run: bool) -> Result<()> {
    let place = place(name, &abort()?)?;
    let all = places::list(&*place)?;
    for backup in places::superfluous(&all, keep_full) {
        let shown = place.source(&backup.name)?.name();
        if dry_run {
            report::info(format_args!("would remove {} backup \"{shown}\"", backup.kind));
        } else {
            report::info(format_args!("removing {} backup \"{shown}\"", backup.kind));
            places::remove(&*place, backup)?;
        }
    }
    Ok(())
}

/// Nothing is there to be cleaned up: a signal ends the program.
fn abort() -> Result<Arc<Abort>> {
    let abort = Abort::new().map_err(|error| Error::local(format!("could not create pipe: {error}")))?;
    Ok(Arc::new(abort))
}

/// A line for each backup, below a line that says what is what.
fn table(all: &[Summary]) -> String {
    let head = ["name", "kind", "ended", "version", "system identifier", "size", "goes on from", "label"];
    let rows = all.iter().map(|backup| {
        [
            if backup.name.is_empty() { ".".to_owned() } else { backup.name.clone() },
            backup.kind.to_owned(),
            backup.ended.clone(),
            format!("{}.{}", backup.server_version / 10_000, backup.server_version % 10_000),
            backup.system_identifier.clone(),
            indicatif::BinaryBytes(backup.size).to_string(),
            match (&backup.prior, backup.is_incremental()) {
                (Some(prior), _) => prior.clone(),
                (None, true) => "(elsewhere)".to_owned(),
                (None, false) => String::new(),
            },
            // As a label it may have anything.
            backup.label.chars().filter(|character| !character.is_control()).collect(),
        ]
    });
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(value, width)| format!("{value:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}
