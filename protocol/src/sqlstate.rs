//! The SQLSTATEs that the protocol names.

use std::fmt;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// 0A000, a feature that this version does not have.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// 22003, MAX_RATE out of range.
    pub const NUMERIC_VALUE_OUT_OF_RANGE: Self = Self(*b"22003");
    /// 22023, any other option value out of range.
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    /// 25001, inside a transaction block, a function or a procedure.
    pub const ACTIVE_SQL_TRANSACTION: Self = Self(*b"25001");
    /// 42501, another role's backup or a path outside of what a backup contains.
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    /// 42601, an unknown or repeated option.
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    /// 42602, a malformed path.
    pub const INVALID_NAME: Self = Self(*b"42602");
    /// 42704, an unknown or finished backup.
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    /// 42710, a name that a backup has already.
    pub const DUPLICATE_OBJECT: Self = Self(*b"42710");
    /// 42883, a procedure that this version of the extension does not have.
    pub const UNDEFINED_FUNCTION: Self = Self(*b"42883");
    /// 42809, a directory, or not a regular file.
    pub const WRONG_OBJECT_TYPE: Self = Self(*b"42809");
    /// 53000, a process that could not be started.
    pub const INSUFFICIENT_RESOURCES: Self = Self(*b"53000");
    /// 53200, no memory for a level of compression.
    pub const OUT_OF_MEMORY: Self = Self(*b"53200");
    /// 53400, too many backups at once.
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(*b"53400");
    /// 54000, too many files in one command.
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self(*b"54000");
    /// 55000, wrong order or state.
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    /// 57014, the backup was aborted while a transfer ran.
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// 58030, an operating system call failed.
    pub const IO_ERROR: Self = Self(*b"58030");
    /// 58P01, a file that must be there is not.
    pub const UNDEFINED_FILE: Self = Self(*b"58P01");
    /// XX001, page checksum failures or a control file that fails its CRC.
    pub const DATA_CORRUPTED: Self = Self(*b"XX001");
    /// XX000, what should not happen.
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// One that came from elsewhere.
    pub const fn from_bytes(characters: [u8; 5]) -> Self {
        Self(characters)
    }

    /// The five characters.
    pub const fn as_bytes(&self) -> &[u8; 5] {
        &self.0
    }

    /// The five characters as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}
