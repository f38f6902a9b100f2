//! What the client writes itself: manifest, backup_label, control file, recovery settings.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use pages::checksum::Checksum;
use protocol::ChecksumAlgorithm;

use super::stop::Stop;
use super::{Backup, recovery};
use crate::error::Result;
use crate::fetch::transfer::{SharedManifest, manifest_error};
use crate::manifest::Manifest;
use crate::output::Output;

pub(super) const BACKUP_LABEL: &str = "backup_label";
pub(super) const TABLESPACE_MAP: &str = "tablespace_map";
pub(super) const CONTROL_FILE: &str = "global/pg_control";

impl Backup<'_> {
    pub(super) fn begin_manifest(
        &self,
        output: &dyn Output,
        server_version: i32,
        system: u64,
    ) -> Result<Option<SharedManifest>> {
        let Some(options) = self.options.manifest else { return Ok(None) };
        let Some(out) = output.manifest()? else { return Ok(None) };
        Manifest::new(out, options, server_version, system)
            .map(|manifest| Some(Mutex::new(manifest)))
            .map_err(|error| manifest_error(&error))
    }

    /// The control file is the last thing that makes this a cluster.
    pub(super) fn finish_files(
        &self,
        output: &dyn Output,
        manifest: Option<SharedManifest>,
        algorithm: ChecksumAlgorithm,
        stop: &Stop,
    ) -> Result<()> {
        output.own_file(CONTROL_FILE, &stop.control_file)?;
        add_own_file(manifest.as_ref(), algorithm, CONTROL_FILE, &stop.control_file)?;
        if let Some(manifest) = manifest {
            let manifest = manifest.into_inner().unwrap_or_else(PoisonError::into_inner);
            manifest.finish(&stop.wal_ranges).map_err(|error| manifest_error(&error))?;
        }
        Ok(())
    }
}

/// Adds a file that the client wrote itself to the manifest.
pub(super) fn add_own_file(
    manifest: Option<&SharedManifest>,
    algorithm: ChecksumAlgorithm,
    name: &str,
    content: &[u8],
) -> Result<()> {
    let Some(manifest) = manifest else { return Ok(()) };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    manifest
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .file(
            name.as_bytes(),
            content.len() as u64,
            i64::try_from(now).unwrap_or(0),
            &Checksum::of(algorithm, content),
        )
        .map_err(|error| manifest_error(&error))
}

pub(super) fn write_recovery_conf(output: &dyn Output, settings: &[u8]) -> Result<()> {
    output.append(recovery::SETTINGS_FILE, settings)?;
    output.own_file(recovery::SIGNAL_FILE, b"")
}
