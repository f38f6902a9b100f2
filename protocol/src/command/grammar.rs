//! Commands as text of the replication grammar.

use super::{Checkpoint, Command, Extent, FileRequest};
use crate::compression::Method;
use crate::frame::Compression;
use crate::id::BackupId;

impl Command {
    /// The command as the replication grammar reads it. Bytes, because a label may be in any
    /// encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut options = OptionList::default();
        let mut text = self.kind().name().as_bytes().to_vec();
        match self {
            Self::StartBackup(start) => {
                options.quoted("LABEL", &start.label);
                options.bare(match start.checkpoint {
                    Checkpoint::Fast => "CHECKPOINT 'fast'",
                    Checkpoint::Spread => "CHECKPOINT 'spread'",
                });
                if start.progress {
                    options.bare("PROGRESS");
                }
                if !start.verify_checksums {
                    options.bare("VERIFY_CHECKSUMS false");
                }
                if let Some(rate) = start.max_rate {
                    options.bare(&format!("MAX_RATE {rate}"));
                }
                if start.incremental {
                    options.bare("INCREMENTAL");
                }
                if let Some(lease) = start.lease {
                    options.bare(&format!("LEASE {lease}"));
                }
                if start.light_lease {
                    options.bare("LIGHT_LEASE");
                }
                if let Some(id) = start.new_backup_id {
                    options.bare(&format!("NEW_BACKUP_ID '{id}'"));
                }
            }
            Self::SendFileList(list) => {
                options.backup_id(list.backup_id);
                if list.estimate {
                    options.bare("ESTIMATE");
                }
                if list.totals {
                    options.bare("TOTALS");
                }
            }
            Self::SendFilesContent(content) => {
                text.push(b' ');
                text.extend(parenthesized(content.files.iter().map(|file| file.to_bytes())));
                options.backup_id(content.backup_id);
                if let Some(verify) = content.verify_checksums {
                    options.bare(if verify { "VERIFY_CHECKSUMS true" } else { "VERIFY_CHECKSUMS false" });
                }
                if !content.file_checksum.is_empty() {
                    options.bare(&format!("FILE_CHECKSUM '{}'", content.file_checksum.name()));
                }
                if content.compression.algorithm != Compression::None {
                    options.bare(&format!("COMPRESSION '{}'", Method::from(content.compression.algorithm)));
                    if let Some(level) = content.compression.level {
                        options.bare(&format!("COMPRESSION_LEVEL '{level}'"));
                    }
                    if let Some(detail) = content.compression.detail() {
                        options.bare(&format!("COMPRESSION_DETAIL '{detail}'"));
                    }
                }
                if !options.0.is_empty() {
                    text.extend_from_slice(b" WITH");
                }
            }
            Self::StopBackup(stop) => {
                options.backup_id(stop.backup_id);
                if let Some(label) = &stop.label {
                    options.quoted("LABEL", label);
                }
                if !stop.wait {
                    options.bare("WAIT false");
                }
                if !stop.terminate_transfers.is_empty() {
                    options.bare(&format!("TERMINATE_TRANSFERS '{}'", pid_list(&stop.terminate_transfers)));
                }
            }
            Self::Attach(id) => options.backup_id(Some(*id)),
            Self::Release(id) => {
                options.backup_id(*id);
                options.bare("RELEASE");
            }
        }
        if !options.0.is_empty() {
            text.push(b' ');
            text.extend(parenthesized(options.0.into_iter()));
        }
        text
    }
}

impl FileRequest {
    fn to_bytes(&self) -> Vec<u8> {
        let mut text = quote(self.path.encoded().as_bytes());
        let clause = match &self.extent {
            Extent::Whole => String::new(),
            Extent::Range(range) => match range.length {
                None => format!(" (OFFSET '{}')", range.offset),
                Some(length) => format!(" (OFFSET '{}', LENGTH '{length}')", range.offset),
            },
            Extent::Blocks(blocks) => format!(" (BLOCKS '{blocks}')"),
        };
        text.extend_from_slice(clause.as_bytes());
        text
    }
}

pub(super) fn pid_list(pids: &[u32]) -> String {
    pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Options on their way out.
#[derive(Default)]
struct OptionList(Vec<Vec<u8>>);

impl OptionList {
    fn bare(&mut self, option: &str) {
        self.0.push(option.as_bytes().to_vec());
    }

    fn quoted(&mut self, name: &str, value: &[u8]) {
        self.0.push([name.as_bytes(), b" ", &quote(value)].concat());
    }

    fn backup_id(&mut self, id: Option<BackupId>) {
        if let Some(id) = id {
            self.bare(&format!("BACKUP_ID '{id}'"));
        }
    }
}

/// A literal of the replication grammar, or of SQL with standard_conforming_strings: quotes
/// doubled, nothing else is special.
pub(super) fn quote(value: &[u8]) -> Vec<u8> {
    let mut text = vec![b'\''];
    for &byte in value {
        if byte == b'\'' {
            text.push(byte);
        }
        text.push(byte);
    }
    text.push(b'\'');
    text
}

pub(super) fn parenthesized(items: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    [&b"("[..], &items.collect::<Vec<_>>().join(&b", "[..]), b")"].concat()
}
