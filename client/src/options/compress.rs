//! --compress and --gzip: with what, how, and at which end.

use protocol::compression::{Method, Specification, SpecificationError};

use super::Side;
use crate::error::{Error, Result};

/// Compression as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compress {
    /// The end that compresses, if it was said.
    pub side: Option<Side>,
    /// With what, and how.
    pub specification: Specification,
}

impl Compress {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// --gzip.
    pub fn gzip() -> Self {
        Self {
            specification: Specification { method: Method::Gzip, ..Specification::default() },
            ..Self::none()
        }
    }

    /// `[{client|server}-]METHOD[:DETAIL]`. A number alone is a level of gzip, and 0 means none, as
    /// PostgreSQL's `parse_compress_options` has it.
    pub fn parse(text: &str) -> Result<Self> {
        let (side, text) = match (text.strip_prefix("server-"), text.strip_prefix("client-")) {
            (Some(rest), _) => (Some(Side::Server), rest),
            (_, Some(rest)) => (Some(Side::Client), rest),
            _ => (None, text),
        };
        let (method, detail) = match (text.trim_ascii_start().parse::<i64>(), text.split_once(':')) {
            // It takes nothing at all for a number.
            (Ok(0), _) => ("none", None),
            _ if text.is_empty() => ("none", None),
            (Ok(_), _) => ("gzip", Some(text)),
            (_, Some((method, detail))) => (method, Some(detail)),
            (_, None) => (text, None),
        };
        let specification = Method::parse(method)
            .and_then(|method| Specification::parse(method, detail))
            .map_err(|error| refusal(side, &error))?;
        Ok(Self { side, specification })
    }

    /// Whether nothing is to be compressed.
    pub fn is_none(&self) -> bool {
        self.specification.method == Method::None
    }

    /// What the server is to do, if it is to compress.
    pub fn of_server(&self) -> Option<Specification> {
        (self.side == Some(Side::Server) && !self.is_none()).then_some(self.specification)
    }
}

/// The words of whoever would refuse it: pg_basebackup leaves to the server what is the server's to do. This server
/// reads a specification by the same code, but only once the backup runs.
fn refusal(side: Option<Side>, error: &SpecificationError) -> Error {
    let words = match error {
        SpecificationError::UnknownMethod(_) => error.to_string(),
        _ => format!("invalid compression specification: {error}"),
    };
    Error::local(match side {
        Some(Side::Server) => format!("could not initiate base backup: ERROR:  {words}"),
        _ => words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_methods_and_details() {
        let gzip = |level| Specification { method: Method::Gzip, level, ..Specification::default() };
        let none = Specification::default();
        let zstd = Specification { method: Method::Zstd, ..none };
        for (text, side, specification) in [
            ("none", None, none),
            ("0", None, none),
            ("", None, none),
            ("6", None, gzip(Some(6))),
            ("client-9", Some(Side::Client), gzip(Some(9))),
            ("zstd", None, zstd),
            (
                "server-zstd:level=1,long",
                Some(Side::Server),
                Specification { level: Some(1), long: Some(true), ..zstd },
            ),
            ("server-zstd:-5", Some(Side::Server), Specification { level: Some(-5), ..zstd }),
            (
                "client-lz4:9",
                Some(Side::Client),
                Specification { method: Method::Lz4, level: Some(9), ..none },
            ),
        ] {
            assert_eq!(Compress::parse(text).unwrap(), Compress { side, specification }, "{text}");
        }
    }

    #[test]
    fn refusals_in_pg_basebackups_words() {
        for (text, words) in [
            ("none+", "unrecognized compression algorithm: \"none+\""),
            (
                "server-extrasquishy",
                "could not initiate base backup: ERROR:  unrecognized compression algorithm: \"extrasquishy\"",
            ),
            (
                "none:1",
                "invalid compression specification: compression algorithm \"none\" does not accept a compression \
                 level",
            ),
            (
                "client-lz4:",
                "invalid compression specification: found empty string where a compression option was expected",
            ),
            (
                "server-gzip:level=236",
                "could not initiate base backup: ERROR:  invalid compression specification: compression algorithm \"gzip\" expects a compression level \
                 between 1 and 9 (default at -1)",
            ),
        ] {
            assert_eq!(Compress::parse(text).unwrap_err().message(), words, "{text}");
        }
    }
}
