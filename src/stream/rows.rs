//! Result sets in text format, a message a row: nothing is kept.
//!
//! Written by hand and not through a DestReceiver, since `printsimple` of version 15 has no oid.

use bytes::BufMut;
use pages::rows::RowChecksum;
use pgrx::pg_sys;
use protocol::reply::{CHECKSUM, Column, ColumnType};

use crate::pg::wire::{put_message, tag};

/// The result sets of a command, one after the other, under one checksum.
#[derive(Debug, Default)]
pub struct Reply {
    checksum: RowChecksum,
}

/// A result set on its way out.
#[derive(Debug)]
pub struct ResultSet<'a> {
    columns: usize,
    rows: u64,
    buffer: Vec<u8>,
    checksum: &'a mut RowChecksum,
}

impl Reply {
    /// Sends the description of the rows to come.
    pub fn begin(&mut self, columns: &[Column]) -> ResultSet<'_> {
        let mut buffer = Vec::new();
        put_count(&mut buffer, columns.len() + 1);
        for column in columns.iter().chain([&CHECKSUM]) {
            let (kind, size) = match column.kind {
                ColumnType::Text => (pg_sys::TEXTOID, -1),
                ColumnType::Int4 => (pg_sys::INT4OID, 4),
                ColumnType::Int8 => (pg_sys::INT8OID, 8),
                ColumnType::Oid => (pg_sys::OIDOID, 4),
            };
            buffer.put_slice(column.name.as_bytes());
            buffer.put_u8(0);
            // Neither table nor column behind it.
            buffer.put_u32(0);
            buffer.put_i16(0);
            buffer.put_u32(kind.to_u32());
            buffer.put_i16(size);
            // No type modifier; text format.
            buffer.put_i32(-1);
            buffer.put_i16(0);
        }
        put_message(tag::ROW_DESCRIPTION, &buffer);
        ResultSet { columns: columns.len(), rows: 0, buffer, checksum: &mut self.checksum }
    }

    /// A result set of one row.
    pub fn row(&mut self, columns: &[Column], values: &[Option<impl AsRef<[u8]>>]) {
        let mut set = self.begin(columns);
        set.row(values);
        set.end();
    }
}

impl ResultSet<'_> {
    /// Sends a row; `None` is NULL. The checksum is added here.
    pub fn row(&mut self, values: &[Option<impl AsRef<[u8]>>]) {
        debug_assert_eq!(values.len(), self.columns);
        self.buffer.clear();
        put_count(&mut self.buffer, values.len() + 1);
        let values = || values.iter().map(|value| value.as_ref().map(AsRef::as_ref));
        values().for_each(|value| put_value(&mut self.buffer, value));
        put_value(&mut self.buffer, Some(self.checksum.add(values()).as_bytes()));
        put_message(tag::DATA_ROW, &self.buffer);
        self.rows += 1;
    }

    /// Ends the result set, with the number of its rows, as SELECT does: no checksum tells that the last is
    /// missing.
    pub fn end(self) {
        put_message(tag::COMMAND_COMPLETE, format!("SELECT {}\0", self.rows).as_bytes());
    }
}

fn put_value(buffer: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(bytes) => {
            buffer.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
            buffer.put_slice(bytes);
        }
        None => buffer.put_i32(-1),
    }
}

fn put_count(buffer: &mut Vec<u8>, count: usize) {
    buffer.put_i16(i16::try_from(count).unwrap_or(0));
}
