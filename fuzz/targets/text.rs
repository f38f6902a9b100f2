//! Texts of the protocol: paths, lists of blocks, LSNs, ids, features. What is read has one spelling.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::features::Features;
use protocol::{BackupId, BackupPath, BlockList, Lsn};

fuzz_target!(|data: &[u8]| {
    if let Ok(path) = BackupPath::parse(data) {
        assert_eq!(path.to_string().as_bytes(), data);
        assert!(!path.as_bytes().starts_with(b"/"));
        assert!(path.components().all(|name| !matches!(name, b"" | b"." | b"..")));
    }
    if let Ok(blocks) = BlockList::parse(data) {
        assert_eq!(BlockList::parse(blocks.to_string().as_bytes()).as_ref(), Ok(&blocks));
        assert!(blocks.runs().windows(2).all(|two| two[0].last() < two[1].first));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(lsn) = text.parse::<Lsn>() {
            assert_eq!(lsn.to_string().parse::<Lsn>().map(|lsn| lsn.0), Ok(lsn.0));
        }
        if let Ok(id) = text.parse::<BackupId>() {
            assert_eq!(id.to_string().parse::<BackupId>(), Ok(id));
        }
        let _ = Features::parse(text);
    }
});
