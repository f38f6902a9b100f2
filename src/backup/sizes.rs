//! How large a cluster is: what START_BACKUP's PROGRESS and SEND_FILE_LIST's TOTALS say.

use crate::cluster::Layout;
use crate::cluster::walk::{Entry, Visitor};
use crate::error::Result;
use crate::pg::{interrupt, server};

/// The files that a backup has of a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Those of each tablespace, in the layout's order, the data directory's last.
pub fn sizes(layout: &Layout) -> Result<Vec<Size>> {
    let walk = server::walk(layout);
    let mut sizes = Vec::with_capacity(layout.tablespaces.len() + 1);
    for space in &layout.tablespaces {
        let mut size = Size::default();
        walk.tablespace(space, &mut size)?;
        sizes.push(size);
    }
    let mut size = Size::default();
    walk.data_directory(&mut size)?;
    sizes.push(size);
    Ok(sizes)
}

/// The bytes alone.
pub fn bytes(layout: &Layout) -> Result<Vec<u64>> {
    Ok(sizes(layout)?.iter().map(|size| size.bytes).collect())
}

impl Visitor for Size {
    fn poll(&mut self) -> Result<()> {
        interrupt::check();
        Ok(())
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<()> {
        self.files += u64::from(!entry.directory);
        self.bytes += entry.size;
        Ok(())
    }

    // The list will say so.
    fn special(&mut self, _path: &[u8]) -> Result<()> {
        Ok(())
    }
}
