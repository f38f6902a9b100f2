//! Headers of archive members: ustar, as PostgreSQL's `src/port/tar.c` writes them, so that whatever reads
//! pg_basebackup's archives reads these. No pax headers: PostgreSQL's own reader refuses them.

use rustix::process::{getegid, geteuid};

use crate::error::{Error, Result};
use crate::output::Attributes;

/// What an archive is made of.
pub const BLOCK: usize = 512;

/// A member's header.
pub type Header = [u8; BLOCK];

/// An archive ends with two blocks of zeroes.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Longest name.
const NAME: usize = 99;

/// Fields: where they begin and how long they are.
const MODE: (usize, usize) = (100, 8);
const USER: (usize, usize) = (108, 8);
const GROUP: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const MTIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const TYPE: usize = 156;
const MAGIC: usize = 257;
const USER_NAME: usize = 265;
const GROUP_NAME: usize = 297;
const MAJOR: (usize, usize) = (329, 8);
const MINOR: (usize, usize) = (337, 8);

/// Whom files belong to when somebody extracts them who may choose.
const OWNER: &[u8] = b"postgres";

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file of so many bytes.
    File(u64),
    /// A directory.
    Directory,
}

/// A member's header. `name` is as the archive has it.
pub fn header(name: &[u8], kind: Kind, attributes: &Attributes) -> Result<Header> {
    // Whoever extracts it and may choose takes the name. The server's numbers are not known.
    header_of(name, kind, attributes, (geteuid().as_raw(), getegid().as_raw()))
}

fn header_of(name: &[u8], kind: Kind, attributes: &Attributes, (user, group): (u32, u32)) -> Result<Header> {
    check_name(name)?;
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name);
    let (size, type_flag) = match kind {
        Kind::File(size) => (size, b'0'),
        Kind::Directory => {
            header[name.len()] = b'/';
            (0, b'5')
        }
    };
    put_number(&mut header, MODE, u64::from(attributes.mode & 0o7777));
    put_number(&mut header, USER, u64::from(user));
    put_number(&mut header, GROUP, u64::from(group));
    put_number(&mut header, SIZE, size);
    // Before 1970 there is no number for it that all readers know.
    put_number(&mut header, MTIME, u64::try_from(attributes.mtime).unwrap_or(0));
    header[TYPE] = type_flag;
    header[MAGIC..MAGIC + 8].copy_from_slice(b"ustar\x0000");
    header[USER_NAME..USER_NAME + OWNER.len()].copy_from_slice(OWNER);
    header[GROUP_NAME..GROUP_NAME + OWNER.len()].copy_from_slice(OWNER);
    put_number(&mut header, MAJOR, 0);
    put_number(&mut header, MINOR, 0);
    // As if it were made of spaces itself.
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    put_number(&mut header, CHECKSUM, sum + CHECKSUM.1 as u64 * u64::from(b' '));
    Ok(header)
}

/// Fails unless a name fits into a header.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() <= NAME {
        return Ok(());
    }
    Err(Error::local(format!("file name too long for tar format: \"{}\"", String::from_utf8_lossy(name))))
}

/// How many bytes follow a file of this size up to the next block.
pub fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    // Less than a block.
    usize::try_from(size.next_multiple_of(block) - size).unwrap_or(0)
}

/// Octal digits and a space, or, where these do not suffice, GNU's 0x80 and the number in base 256.
fn put_number(header: &mut Header, (at, length): (usize, usize), number: u64) {
    let field = &mut header[at..at + length];
    let mut rest = number;
    if number < 1 << ((length - 1) * 3) {
        field[length - 1] = b' ';
        for digit in field[..length - 1].iter_mut().rev() {
            *digit = b'0' + (rest & 7) as u8;
            rest >>= 3;
        }
    } else {
        field[0] = 0x80;
        for digit in field[1..].iter_mut().rev() {
            *digit = (rest & 255) as u8;
            rest >>= 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: Attributes = Attributes { mode: 0o100_600, mtime: 1_700_000_000 };

    fn field(header: &Header, (at, length): (usize, usize)) -> &[u8] {
        &header[at..at + length]
    }

    /// What `tarCreateHeader` of PostgreSQL 18 makes, for user and group 0.
    fn golden(name: &[u8], mode: &[u8], size: &[u8], checksum: &[u8], type_flag: u8) -> Header {
        let mut golden = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| golden[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name);
        put(100, mode);
        put(108, b"0000000 0000000 ");
        put(124, size);
        put(136, b"14524770400 ");
        put(148, checksum);
        put(156, &[type_flag]);
        put(257, b"ustar\x0000postgres");
        put(297, b"postgres");
        put(329, b"0000000 0000000 ");
        golden
    }

    #[test]
    fn golden_headers() {
        let file = header_of(b"base/5/16384", Kind::File(8192), &ATTRIBUTES, (0, 0)).unwrap();
        assert_eq!(file, golden(b"base/5/16384", b"0000600 ", b"00000020000 ", b"0014633 ", b'0'));
        let attributes = Attributes { mode: 0o40_700, ..ATTRIBUTES };
        let directory = header_of(b"base", Kind::Directory, &attributes, (0, 0)).unwrap();
        assert_eq!(directory, golden(b"base/", b"0000700 ", b"00000000000 ", b"0014065 ", b'5'));
    }

    #[test]
    fn sizes_from_8_gb_on() {
        let size = |size| field(&header(b"f", Kind::File(size), &ATTRIBUTES).unwrap(), SIZE).to_vec();
        assert_eq!(size((8 << 30) - 1), b"77777777777 ");
        assert_eq!(size(8 << 30), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(size(u64::MAX), [0x80, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    }

    #[test]
    fn names_that_are_too_long() {
        assert!(header(&[b'x'; 99], Kind::File(0), &ATTRIBUTES).is_ok());
        assert_eq!(header(&[b'x'; 99], Kind::Directory, &ATTRIBUTES).unwrap()[99], b'/');
        let error = header(&[b'x'; 100], Kind::File(0), &ATTRIBUTES).unwrap_err();
        let name = "x".repeat(100);
        assert_eq!(error.message(), format!("file name too long for tar format: \"{name}\""));
    }

    #[test]
    fn padding_to_the_next_block() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}
