//! Nowhere: everything is received and verified, and nothing is kept. To measure what it costs to get here.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use protocol::BackupPath;

use super::{Attributes, Layout, Modes, Output, OutputFile, Piece, Remains, WalOutput};
use crate::error::Result;

/// Keeps nothing.
#[derive(Debug)]
pub struct Discard;

impl Output for Discard {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn claim(&mut self, _: Modes) -> Result<()> {
        Ok(())
    }

    fn prepare(&mut self, _: &Layout<'_>) -> Result<()> {
        Ok(())
    }

    fn keeps(&self) -> bool {
        false
    }

    fn directory(&self, _: &BackupPath, _: &Attributes) -> Result<()> {
        Ok(())
    }

    fn begin(&self, _: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        Ok(None)
    }

    fn reopen(&self, _: &Piece<'_>) -> Result<Option<Arc<dyn OutputFile>>> {
        Ok(None)
    }

    fn complete(&self, _: &BackupPath, _: &Attributes) -> Result<()> {
        Ok(())
    }

    fn vanished(&self, _: &BackupPath, _: &[u8]) -> Result<Option<Remains>> {
        Ok(None)
    }

    fn shown(&self, path: &BackupPath) -> PathBuf {
        PathBuf::from(path.to_string())
    }

    fn own_file(&self, _: &str, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn append(&self, _: &str, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn manifest(&self) -> Result<Option<Box<dyn Write + Send>>> {
        Ok(None)
    }

    fn wal(&self) -> Result<Box<dyn WalOutput + '_>> {
        Ok(Box::new(Self))
    }

    fn has_history(&self, _: &str) -> bool {
        false
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

impl WalOutput for Discard {
    fn begin(&mut self, _: &str, _: u64) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _: bool) -> Result<()> {
        Ok(())
    }

    fn history(&mut self, _: &str, _: &[u8]) -> Result<()> {
        Ok(())
    }
}
