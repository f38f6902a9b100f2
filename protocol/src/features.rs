//! What a server can beyond the first version of the protocol: the words of the setting [`SETTING`].
//!
//! A client that wants one of these asks before START_BACKUP, so that no checkpoint is paid for a backup that
//! the server refuses later. Words are only ever added.

/// The setting, to be read with SHOW on any connection. A server that does not know it has none of the features.
pub const SETTING: &str = "pg_parallel_backup.features";

/// A feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// COMPRESSION 'lz4'.
    Lz4,
    /// COMPRESSION 'zstd', with COMPRESSION_DETAIL 'long'.
    Zstd,
    /// START_BACKUP's LEASE and BACKUP_ID, STOP_BACKUP's RELEASE.
    Lease,
    /// UPLOAD_MANIFEST and START_BACKUP's INCREMENTAL, BLOCKS of SEND_FILES_CONTENT: PostgreSQL from 17 on.
    Incremental,
    /// A frame with the checksum of each stream of a file that comes compressed.
    StreamChecksum,
    /// SEND_FILE_LIST's TOTALS.
    Totals,
}

impl Feature {
    /// Every feature that this version of the protocol's crate knows, in the order of [`SETTING`].
    pub const ALL: [Self; 6] =
        [Self::Lz4, Self::Zstd, Self::Lease, Self::Incremental, Self::StreamChecksum, Self::Totals];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Lease => "lease",
            Self::Incremental => "incremental",
            Self::StreamChecksum => "stream_checksum",
            Self::Totals => "totals",
        }
    }
}

/// What a server says that it can.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Features(Vec<Feature>);

impl Features {
    /// Reads the setting; words that are not known here are skipped.
    pub fn parse(setting: &str) -> Self {
        let words: Vec<_> = setting.split(',').map(str::trim).collect();
        Self(Feature::ALL.into_iter().filter(|feature| words.contains(&feature.name())).collect())
    }

    /// Whether it is among them.
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }
}

/// The setting of a server that has these features.
pub fn setting(features: impl IntoIterator<Item = Feature>) -> String {
    features.into_iter().map(Feature::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_says_the_other_reads() {
        assert_eq!(setting(Feature::ALL), "lz4, zstd, lease, incremental, stream_checksum, totals");
        assert_eq!(Features::parse(&setting(Feature::ALL)), Features(Feature::ALL.to_vec()));
        assert_eq!(Features::parse(""), Features::default());
        let later = Features::parse("zstd,telepathy, zstd-but-better");
        assert!(later.has(Feature::Zstd) && !later.has(Feature::Lz4));
    }
}
