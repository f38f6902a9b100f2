//! Result sets in text format, a message a row: nothing is kept.
//!
//! Written by hand and not through a DestReceiver, since `printsimple` of version 15 has no oid.

use bytes::BufMut;
use pgrx::pg_sys;
use protocol::reply::{Column, ColumnType};

use crate::pg::wire::{put_message, tag};

/// A result set on its way out.
#[derive(Debug)]
pub struct ResultSet {
    columns: usize,
    buffer: Vec<u8>,
}

impl ResultSet {
    /// Sends the description of the rows to come.
    pub fn begin(columns: &[Column]) -> Self {
        let mut buffer = Vec::new();
        put_count(&mut buffer, columns.len());
        for column in columns {
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
        Self { columns: columns.len(), buffer }
    }

    /// Sends a row; `None` is NULL.
    pub fn row(&mut self, values: &[Option<impl AsRef<[u8]>>]) {
        debug_assert_eq!(values.len(), self.columns);
        self.buffer.clear();
        put_count(&mut self.buffer, values.len());
        for value in values {
            match value {
                Some(bytes) => {
                    let bytes = bytes.as_ref();
                    self.buffer.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
                    self.buffer.put_slice(bytes);
                }
                None => self.buffer.put_i32(-1),
            }
        }
        put_message(tag::DATA_ROW, &self.buffer);
    }

    /// Ends the result set, as BASE_BACKUP ends each of its own.
    pub fn end(self) {
        put_message(tag::COMMAND_COMPLETE, b"SELECT\0");
    }
}

/// A result set of one row.
pub fn send_row(columns: &[Column], values: &[Option<impl AsRef<[u8]>>]) {
    let mut set = ResultSet::begin(columns);
    set.row(values);
    set.end();
}

fn put_count(buffer: &mut Vec<u8>, count: usize) {
    buffer.put_i16(i16::try_from(count).unwrap_or(0));
}
