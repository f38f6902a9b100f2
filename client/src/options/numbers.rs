//! Numbers on the command line.

use std::ffi::OsStr;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// --max-rate: kB/s as a decimal number, with "k" or "M" behind it.
pub fn parse_max_rate(source: &str) -> Result<u32> {
    let text = source.trim_start();
    let digits = number_prefix(text);
    let invalid = || Error::local(format!("transfer rate \"{source}\" is not a valid value"));
    if digits == 0 {
        return Err(invalid());
    }
    let mut rate: f64 = text[..digits].parse().map_err(|_| invalid())?;
    if rate <= 0.0 {
        return Err(Error::local("transfer rate must be greater than zero"));
    }
    let suffix = text[digits..].trim();
    match suffix {
        "" | "k" => {}
        "M" => rate *= 1024.0,
        other => return Err(Error::local(format!("invalid --max-rate unit: \"{other}\""))),
    }
    if rate > f64::from(u32::MAX) {
        return Err(Error::local(format!("transfer rate \"{source}\" exceeds integer range")));
    }
    // Positive and in range: what is behind the point is cut off, as pg_basebackup does.
    let rate = rate as u32;
    if protocol::command::MAX_RATE_RANGE.contains(&i64::from(rate)) {
        Ok(rate)
    } else {
        Err(Error::local(format!("transfer rate \"{source}\" is out of range")))
    }
}

/// The size of volumes if none is given.
pub const VOLUME_SIZE: u64 = 1 << 30;

/// Sizes that volumes can have, in bytes. No store takes an upload in more than 10,000 parts.
const VOLUME_SIZES: RangeInclusive<u64> = 1 << 20..=64 << 30;

/// --volumes: a whole number with "MB" or "GB" behind it, as PostgreSQL's settings have them.
pub fn parse_volume_size(source: &str) -> Result<u64> {
    let invalid = || {
        Error::local(format!("invalid volume size \"{source}\""))
            .with_hint("It is a whole number of \"MB\" or \"GB\", from 1MB to 64GB.")
    };
    let text = source.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
    let unit = match text[digits..].trim_start() {
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return Err(invalid()),
    };
    number.checked_mul(unit).filter(|size| VOLUME_SIZES.contains(size)).ok_or_else(invalid)
}

/// A whole number in a range.
pub fn parse_int(text: &OsStr, option: &str, least: i64, most: i64) -> Result<i64> {
    let value: i64 = text.to_string_lossy().trim().parse().map_err(|_| {
        Error::local(format!("invalid value \"{}\" for option {option}", text.to_string_lossy()))
    })?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Error::local(format!("{option} must be in range {least}..{most}")))
    }
}

/// Length of the decimal number that a text begins with: sign, digits, point, exponent.
fn number_prefix(text: &str) -> usize {
    (1..=text.len())
        .rev()
        .filter(|end| text.is_char_boundary(*end))
        .find(|end| {
            let prefix = &text[..*end];
            prefix.ends_with(|c: char| c.is_ascii_digit() || c == '.')
                && !prefix.contains(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E')
                && prefix.parse::<f64>().is_ok()
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_volumes() {
        for (text, size) in [
            ("1GB", 1 << 30),
            (" 512 MB ", 512 << 20),
            ("1MB", 1 << 20),
            ("64GB", 64 << 30),
            ("65536MB", 64 << 30),
        ] {
            assert_eq!(parse_volume_size(text).unwrap(), size, "{text}");
        }
        for text in ["", "GB", "1", "1gb", "0GB", "-1GB", "1.5GB", "65GB", "99999999999999999999GB", "1 G B"]
        {
            let error = parse_volume_size(text).unwrap_err();
            assert_eq!(error.message(), format!("invalid volume size \"{text}\""));
        }
    }

    #[test]
    fn rates() {
        for (text, rate) in
            [("32", 32), ("100k", 100), (" 64 k ", 64), ("1M", 1024), ("1.5M", 1536), ("1024M", 1_048_576)]
        {
            assert_eq!(parse_max_rate(text).unwrap(), rate, "{text}");
        }
        for (text, message) in [
            ("", "transfer rate \"\" is not a valid value"),
            ("fast", "transfer rate \"fast\" is not a valid value"),
            ("0", "transfer rate must be greater than zero"),
            ("-1", "transfer rate must be greater than zero"),
            ("31", "transfer rate \"31\" is out of range"),
            ("1025M", "transfer rate \"1025M\" is out of range"),
            ("10G", "invalid --max-rate unit: \"G\""),
            ("10kB", "invalid --max-rate unit: \"kB\""),
            ("99999999999", "transfer rate \"99999999999\" exceeds integer range"),
        ] {
            assert_eq!(parse_max_rate(text).unwrap_err().message(), message);
        }
    }
}
