//! What a grammar or a CALL yields, into a command: whatever is taken can be written again, both ways.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use protocol::Command;
use protocol::command::{CommandKind, RawFile, RawOption, RawValue};

/// Names that there are, so that it need not guess them.
const NAMES: &[&str] = &[
    "label", "checkpoint", "progress", "verify_checksums", "max_rate", "incremental", "lease", "backup_id", "estimate",
    "file_checksum", "compression", "compression_level", "compression_detail", "offset", "length", "blocks", "wait",
    "release", "terminate_transfers", "totals", "light_lease", "new_backup_id", "no_such",
];

#[derive(Arbitrary, Debug)]
struct Input {
    kind: u8,
    files: Vec<(Vec<u8>, Vec<Opt>)>,
    options: Vec<Opt>,
}

#[derive(Arbitrary, Debug)]
struct Opt {
    name: Result<u8, Vec<u8>>,
    value: Option<Result<Vec<u8>, i64>>,
}

fn options(options: Vec<Opt>) -> Vec<RawOption> {
    options
        .into_iter()
        .map(|option| RawOption {
            name: match option.name {
                Ok(number) => NAMES[usize::from(number) % NAMES.len()].into(),
                Err(name) => name,
            },
            value: option.value.map(|value| match value {
                Ok(text) => RawValue::Text(text),
                Err(number) => RawValue::Integer(number),
            }),
        })
        .collect()
}

fuzz_target!(|input: Input| {
    let kinds =
        [CommandKind::StartBackup, CommandKind::SendFileList, CommandKind::SendFilesContent, CommandKind::StopBackup];
    let files =
        input.files.into_iter().map(|(path, opts)| RawFile { path, options: options(opts) }).collect();
    match Command::parse(kinds[usize::from(input.kind) % 4], files, options(input.options)) {
        Ok(command) => {
            let _ = command.to_bytes();
            let _ = command.to_call();
        }
        Err(error) => {
            let _ = (error.to_string(), error.sqlstate());
        }
    }
});
