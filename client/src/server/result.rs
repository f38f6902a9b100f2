//! A result of a command, whoever has read it: libpq, or this program past it.

use crate::error::{Error, Result};
use crate::server::pq::{PgResult, Status};

/// Most bytes of a result set that is read past libpq. Commands that may have more rows, a list of files, are libpq's.
const MOST_BYTES: usize = 64 << 20;

/// A result of a command.
#[derive(Debug)]
pub enum QueryResult {
    /// Read by libpq.
    Libpq(PgResult),
    /// Read past it.
    Past(ResultSet),
}

/// A result set that was read past libpq, or a command's tag alone.
#[derive(Debug, Default)]
pub struct ResultSet {
    /// Without a RowDescription there is nothing but the tag.
    columns: Option<Vec<String>>,
    rows: Vec<Vec<Option<Vec<u8>>>>,
    bytes: usize,
    tag: String,
}

impl QueryResult {
    /// How the command went.
    pub fn status(&self) -> Status {
        match self {
            Self::Libpq(result) => result.status(),
            Self::Past(ResultSet { columns: Some(_), .. }) => Status::PGRES_TUPLES_OK,
            Self::Past(_) => Status::PGRES_COMMAND_OK,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Libpq(result) => result.rows(),
            Self::Past(set) => set.rows.len(),
        }
    }

    /// The number of rows that the command tag has, if it has one.
    pub fn affected_rows(&self) -> Option<u64> {
        match self {
            Self::Libpq(result) => result.affected_rows(),
            Self::Past(set) => set.tag.strip_prefix("SELECT ")?.parse().ok(),
        }
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        match self {
            Self::Libpq(result) => result.columns(),
            Self::Past(set) => set.columns.as_ref().map_or(0, Vec::len),
        }
    }

    /// A column's name; empty for one that is not there.
    pub fn column_name(&self, column: usize) -> String {
        match self {
            Self::Libpq(result) => result.column_name(column),
            Self::Past(set) => {
                set.columns.as_ref().and_then(|names| names.get(column)).cloned().unwrap_or_default()
            }
        }
    }

    /// A value's bytes, `None` for NULL and where there is no such value.
    pub fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
        match self {
            Self::Libpq(result) => result.value(row, column),
            Self::Past(set) => set.rows.get(row)?.get(column)?.as_deref(),
        }
    }
}

impl ResultSet {
    /// A RowDescription: the rows of this set come next.
    pub fn describe(&mut self, body: &[u8]) -> Result<()> {
        let mut rest = body;
        let mut names = Vec::new();
        for _ in 0..take_count(&mut rest)? {
            let end = memchr::memchr(0, rest).ok_or_else(lost_track)?;
            names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
            // Of which table and type it is.
            rest = rest.get(end + 1 + 18..).ok_or_else(lost_track)?;
        }
        if !rest.is_empty() || self.columns.replace(names).is_some() {
            return Err(lost_track());
        }
        Ok(())
    }

    /// A DataRow.
    pub fn add(&mut self, body: &[u8]) -> Result<()> {
        let mut rest = body;
        let count = take_count(&mut rest)?;
        if self.columns.as_ref().is_none_or(|names| names.len() != count) {
            return Err(lost_track());
        }
        let mut row = Vec::with_capacity(count);
        for _ in 0..count {
            let (length, others) = rest.split_first_chunk().ok_or_else(lost_track)?;
            rest = others;
            row.push(match i32::from_be_bytes(*length) {
                -1 => None,
                length => {
                    let length = usize::try_from(length).map_err(|_| lost_track())?;
                    let (value, others) = rest.split_at_checked(length).ok_or_else(lost_track)?;
                    rest = others;
                    Some(value.to_vec())
                }
            });
        }
        // What a row takes that has no values counts as well.
        self.bytes += body.len() + size_of::<Vec<Option<Vec<u8>>>>() + count * size_of::<Option<Vec<u8>>>();
        if !rest.is_empty() {
            return Err(lost_track());
        }
        if self.bytes > MOST_BYTES {
            return Err(Error::connection("server sent more rows than there can be"));
        }
        self.rows.push(row);
        Ok(())
    }

    /// The tag: that is all of it.
    pub fn complete(mut self, tag: &[u8]) -> QueryResult {
        self.tag = String::from_utf8_lossy(tag).into_owned();
        QueryResult::Past(self)
    }
}

fn take_count(body: &mut &[u8]) -> Result<usize> {
    let (count, rest) = body.split_first_chunk().ok_or_else(lost_track)?;
    *body = rest;
    Ok(usize::from(u16::from_be_bytes(*count)))
}

fn lost_track() -> Error {
    Error::connection("lost synchronization with server")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(names: &[&str]) -> Vec<u8> {
        let count = u16::try_from(names.len()).unwrap().to_be_bytes();
        let columns = names.iter().flat_map(|name| [name.as_bytes(), &[0; 19]].concat());
        count.into_iter().chain(columns).collect()
    }

    fn row(values: &[Option<&[u8]>]) -> Vec<u8> {
        let count = u16::try_from(values.len()).unwrap().to_be_bytes();
        let values = values.iter().flat_map(|value| match value {
            None => (-1i32).to_be_bytes().to_vec(),
            Some(value) => [&i32::try_from(value.len()).unwrap().to_be_bytes()[..], value].concat(),
        });
        count.into_iter().chain(values).collect()
    }

    #[test]
    fn rows_as_they_came() {
        let mut set = ResultSet::default();
        set.describe(&described(&["name", "value"])).unwrap();
        set.add(&row(&[Some(b"a"), None])).unwrap();
        set.add(&row(&[Some(b""), Some(b"\0\xff")])).unwrap();
        let result = set.complete(b"SELECT 2");
        assert_eq!(result.status(), Status::PGRES_TUPLES_OK);
        assert_eq!((result.rows(), result.columns(), result.affected_rows()), (2, 2, Some(2)));
        assert_eq!((result.column_name(1), result.column_name(2)), ("value".to_owned(), String::new()));
        let values = [result.value(0, 0), result.value(0, 1), result.value(1, 0), result.value(1, 1)];
        assert_eq!(values, [Some(&b"a"[..]), None, Some(b""), Some(b"\0\xff")]);
        assert_eq!((result.value(2, 0), result.value(0, 2)), (None, None));

        let tag = ResultSet::default().complete(b"STOP_BACKUP");
        assert_eq!((tag.status(), tag.columns(), tag.affected_rows()), (Status::PGRES_COMMAND_OK, 0, None));
    }

    #[test]
    fn what_is_no_row_is_noticed() {
        let whole = row(&[Some(b"abc"), None]);
        for length in 0..whole.len() {
            let mut set = ResultSet::default();
            set.describe(&described(&["a", "b"])).unwrap();
            assert!(set.add(&whole[..length]).is_err(), "{length}");
        }
        let columns = described(&["a", "b"]);
        for length in 0..columns.len() {
            assert!(ResultSet::default().describe(&columns[..length]).is_err(), "{length}");
        }
        let mut set = ResultSet::default();
        assert!(set.add(&row(&[])).is_err());
        set.describe(&columns).unwrap();
        assert!(set.describe(&columns).is_err());
        assert!(set.add(&row(&[None])).is_err());
        assert!(set.add(&[whole, vec![0]].concat()).is_err());
        assert!(set.add(&[0, 2, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_set_without_an_end_is_given_up() {
        let mut set = ResultSet::default();
        set.describe(&described(&["a"])).unwrap();
        let long = vec![b'x'; 100_000];
        let added = (0..1000).map(|_| set.add(&row(&[Some(&long)]))).take_while(Result::is_ok).count();
        assert!((600..700).contains(&added), "{added}");
        let mut set = ResultSet::default();
        set.describe(&described(&[])).unwrap();
        assert!((0..10_000_000).any(|_| set.add(&row(&[])).is_err()));
    }
}
