//! Commands as CALLs of the SQL procedures.

use std::fmt;

use super::grammar::{parenthesized, pid_list, quote};
use super::{Checkpoint, Command, Extent, FileRequest, Range};
use crate::compression::Method;
use crate::frame::Compression;
use crate::id::BackupId;

impl Command {
    /// The command as a CALL of its SQL procedure, for a session with standard_conforming_strings
    /// on. The procedures' arguments are in sql/pg_parallel_backup--*.sql.
    pub fn to_call(&self) -> Vec<u8> {
        let mut arguments = ArgumentList::default();
        match self {
            Self::StartBackup(start) => {
                arguments.quoted("label", &start.label);
                arguments.quoted(
                    "checkpoint",
                    match start.checkpoint {
                        Checkpoint::Fast => b"fast",
                        Checkpoint::Spread => b"spread",
                    },
                );
                arguments.bare("progress", start.progress.then_some(true));
                arguments.bare("verify_checksums", (!start.verify_checksums).then_some(false));
                arguments.bare("max_rate", start.max_rate);
                arguments.bare("incremental", start.incremental.then_some(true));
                arguments.bare("lease", start.lease);
                arguments.bare("light_lease", start.light_lease.then_some(true));
                if let Some(id) = start.new_backup_id {
                    arguments.quoted("new_backup_id", id.to_string().as_bytes());
                }
            }
            Self::SendFileList(list) => {
                arguments.backup_id(list.backup_id);
                arguments.bare("estimate", list.estimate.then_some(true));
                arguments.bare("totals", list.totals.then_some(true));
            }
            Self::SendFilesContent(content) => {
                arguments.files(&content.files);
                arguments.backup_id(content.backup_id);
                arguments.bare("verify_checksums", content.verify_checksums);
                if !content.file_checksum.is_empty() {
                    arguments.quoted("file_checksum", content.file_checksum.name().as_bytes());
                }
                if content.compression.algorithm != Compression::None {
                    let method = Method::from(content.compression.algorithm);
                    arguments.quoted("compression", method.name().as_bytes());
                    arguments.bare("compression_level", content.compression.level);
                    if let Some(detail) = content.compression.detail() {
                        arguments.quoted("compression_detail", detail.as_bytes());
                    }
                }
            }
            Self::StopBackup(stop) => {
                arguments.backup_id(stop.backup_id);
                if let Some(label) = &stop.label {
                    arguments.quoted("label", label);
                }
                arguments.bare("wait", (!stop.wait).then_some(false));
                if !stop.terminate_transfers.is_empty() {
                    arguments.quoted("terminate_transfers", pid_list(&stop.terminate_transfers).as_bytes());
                }
            }
            Self::Attach(id) => arguments.backup_id(Some(*id)),
            Self::Release(id) => {
                arguments.backup_id(*id);
                arguments.bare("release", Some(true));
            }
        }
        let procedure = format!("CALL parallel_backup.{}", self.kind().name().to_ascii_lowercase());
        [procedure.into_bytes(), parenthesized(arguments.0.into_iter())].concat()
    }
}

/// Named arguments of a procedure on their way out.
#[derive(Default)]
struct ArgumentList(Vec<Vec<u8>>);

impl ArgumentList {
    fn add(&mut self, name: &str, value: &[u8]) {
        self.0.push([name.as_bytes(), b" => ", value].concat());
    }

    fn bare(&mut self, name: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.add(name, value.to_string().as_bytes());
        }
    }

    fn quoted(&mut self, name: &str, value: &[u8]) {
        self.add(name, &quote(value));
    }

    fn backup_id(&mut self, id: Option<BackupId>) {
        if let Some(id) = id {
            self.quoted("backup_id", id.to_string().as_bytes());
        }
    }

    fn files(&mut self, files: &[FileRequest]) {
        let paths: Vec<_> = files.iter().map(|file| quote(file.path.encoded().as_bytes())).collect();
        // With its type even an empty array means what it should: that no file was asked for.
        self.add("files", &[b"ARRAY[", &paths.join(&b", "[..])[..], b"]::pg_catalog.text[]"].concat());
        self.numbers("offsets", files, |range| Some(range.offset));
        self.numbers("lengths", files, |range| range.length);
        self.list("blocks", files, |extent| match extent {
            // In quotes: the text of an array has none of its own for what is empty or has commas.
            Extent::Blocks(blocks) => Some(format!("\"{blocks}\"")),
            Extent::Whole | Extent::Range(_) => None,
        });
    }

    /// A number for each file, NULL where there is none; nothing at all where no file has one.
    fn numbers(&mut self, name: &str, files: &[FileRequest], number: impl Fn(Range) -> Option<u64>) {
        self.list(name, files, |extent| match extent {
            Extent::Range(range) => number(*range).map(|number| number.to_string()),
            Extent::Whole | Extent::Blocks(_) => None,
        });
    }

    /// The same for any element of an array.
    fn list(&mut self, name: &str, files: &[FileRequest], element: impl Fn(&Extent) -> Option<String>) {
        let elements: Vec<_> = files.iter().map(|file| element(&file.extent)).collect();
        if elements.iter().any(Option::is_some) {
            let list: Vec<_> = elements.iter().map(|element| element.as_deref().unwrap_or("NULL")).collect();
            self.add(name, format!("'{{{}}}'", list.join(",")).as_bytes());
        }
    }
}
