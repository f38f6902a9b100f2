//! What the client writes itself: manifest, backup_label, control file, recovery settings.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use pages::checksum::Checksum;
use protocol::ChecksumAlgorithm;

use super::start::Start;
use super::stop::Stop;
use super::{Backup, recovery};
use crate::error::{Error, Result};
use crate::fetch::transfer::{SharedManifest, manifest_error};
use crate::manifest::Manifest;
use crate::options::Sync;
use crate::output::sync;
use crate::output::target::Target;

pub(super) const MANIFEST: &str = "backup_manifest";
pub(super) const MANIFEST_UNDER_WAY: &str = "backup_manifest.tmp";
pub(super) const CONTROL_FILE: &str = "global/pg_control";

impl Backup<'_> {
    pub(super) fn begin_manifest(
        &self,
        target: &Target,
        server_version: i32,
        system: u64,
    ) -> Result<Option<SharedManifest>> {
        let Some(options) = self.options.manifest.filter(|_| !self.options.discard) else { return Ok(None) };
        let path = target.root().join(MANIFEST_UNDER_WAY);
        let file = BufWriter::new(target.create(&path, target.modes().file)?);
        Manifest::new(file, options, server_version, system)
            .map(|manifest| Some(Mutex::new(manifest)))
            .map_err(|error| manifest_error(&error))
    }

    /// backup_label is written; the control file is the last thing that makes this a cluster.
    pub(super) fn finish_files(
        &self,
        target: &Target,
        manifest: Option<SharedManifest>,
        algorithm: ChecksumAlgorithm,
        start: &Start,
        stop: &Stop,
    ) -> Result<()> {
        add_own_file(manifest.as_ref(), algorithm, "backup_label", &start.label_file)?;
        target.write(CONTROL_FILE, &stop.control_file)?;
        add_own_file(manifest.as_ref(), algorithm, CONTROL_FILE, &stop.control_file)?;
        if let Some(manifest) = manifest {
            let manifest = manifest.into_inner().unwrap_or_else(PoisonError::into_inner);
            let out = manifest.finish(&stop.wal_ranges).map_err(|error| manifest_error(&error))?;
            out.into_inner().map_err(|error| manifest_error(error.error()))?;
        }
        Ok(())
    }

    pub(super) fn make_durable(&self, target: &Target) -> Result<()> {
        if self.options.sync == Sync::None {
            return Ok(());
        }
        self.say("syncing data to disk ...");
        sync::sync_directory(target.root(), self.options.sync, self.options.jobs, self.abort)?;
        // Names of directories that are new, in directories that are not ours.
        self.cleanup.made().iter().try_for_each(|path| sync::sync_parent(path))
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

pub(super) fn write_recovery_conf(target: &Target, settings: &[u8]) -> Result<()> {
    let path = target.root().join(recovery::SETTINGS_FILE);
    let is_new = !path.exists();
    let mut file: File = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(target.modes().file)
        .open(&path)
        .map_err(|error| Error::io("open file", &path, &error))?;
    if is_new {
        file.set_permissions(fs::Permissions::from_mode(target.modes().file))
            .map_err(|error| Error::io("set permissions on file", &path, &error))?;
    }
    file.write_all(settings).map_err(|error| Error::io("write to file", &path, &error))?;
    target.write(recovery::SIGNAL_FILE, b"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::target::Modes;

    #[test]
    fn recovery_conf_is_appended() {
        let place = tempfile::tempdir().unwrap();
        let target = Target::new(place.path().to_owned(), Modes { directory: 0o700, file: 0o600 });
        target.write(recovery::SETTINGS_FILE, b"a = 1\n").unwrap();
        write_recovery_conf(&target, b"b = 2\n").unwrap();
        assert_eq!(fs::read(place.path().join("postgresql.auto.conf")).unwrap(), b"a = 1\nb = 2\n");
        assert_eq!(fs::read(place.path().join("standby.signal")).unwrap(), b"");
    }
}
