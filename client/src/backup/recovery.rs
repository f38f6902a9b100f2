//! --write-recovery-conf: what makes the copy a standby of the server it came from.

use crate::server::pq::Keyword;

/// Where the settings go, behind what the file has already.
pub const SETTINGS_FILE: &str = "postgresql.auto.conf";

/// What tells PostgreSQL to start as a standby.
pub const SIGNAL_FILE: &str = "standby.signal";

/// Options that the WAL receiver sets itself, and the dbname, which goes last.
const LEFT_OUT: [&[u8]; 3] = [b"replication", b"dbname", b"fallback_application_name"];

/// The lines to append to the settings: `primary_conninfo` from the connection's options, and
/// `primary_slot_name`.
pub fn settings(options: &[Keyword], database: Option<&[u8]>, slot: Option<&str>) -> Vec<u8> {
    let mut conninfo: Vec<u8> = Vec::new();
    let kept = options
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .filter(|(name, value)| !LEFT_OUT.contains(name) && !value.is_empty())
        .chain(database.map(|name| (&b"dbname"[..], name)));
    for (name, value) in kept {
        if !conninfo.is_empty() {
            conninfo.push(b' ');
        }
        conninfo.extend_from_slice(name);
        conninfo.push(b'=');
        conninfo.extend(quoted_option(value));
    }
    let mut lines = b"primary_conninfo = '".to_vec();
    lines.extend(escaped_setting(&conninfo));
    lines.extend_from_slice(b"'\n");
    if let Some(slot) = slot {
        lines.extend_from_slice(b"primary_slot_name = '");
        lines.extend(escaped_setting(slot.as_bytes()));
        lines.extend_from_slice(b"'\n");
    }
    lines
}

/// A value in a connection string: quoted unless it is all plain characters.
fn quoted_option(value: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    if !value.is_empty() && value.iter().all(plain) {
        return value.to_vec();
    }
    let mut quoted = vec![b'\''];
    for &byte in value {
        if matches!(byte, b'\'' | b'\\') {
            quoted.push(b'\\');
        }
        quoted.push(byte);
    }
    quoted.push(b'\'');
    quoted
}

/// A value inside the quotes of a configuration file, where quotes and backslashes are doubled.
fn escaped_setting(value: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value {
        if matches!(byte, b'\'' | b'\\') {
            escaped.push(byte);
        }
        escaped.push(byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Vec<Keyword> {
        pairs.iter().map(|(n, v)| (CString::new(*n).unwrap(), CString::new(*v).unwrap())).collect()
    }

    #[test]
    fn both_layers_of_quotes() {
        let options = options(&[
            ("user", "repl"),
            ("password", r"it's\me"),
            ("replication", "true"),
            ("dbname", "replication"),
            ("fallback_application_name", "x"),
            ("host", "/run/postgresql"),
            ("port", ""),
            ("sslmode", "prefer"),
        ]);
        assert_eq!(
            String::from_utf8(settings(&options, None, None)).unwrap(),
            "primary_conninfo = 'user=repl password=''it\\\\''s\\\\\\\\me'' \
             host=''/run/postgresql'' sslmode=prefer'\n"
        );
    }

    #[test]
    fn database_and_slot() {
        assert_eq!(
            String::from_utf8(settings(&options(&[("port", "5433")]), Some(b"my db"), Some("s1"))).unwrap(),
            "primary_conninfo = 'port=5433 dbname=''my db'''\nprimary_slot_name = 's1'\n"
        );
    }
}
