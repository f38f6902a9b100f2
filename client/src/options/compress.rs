//! --compress and --gzip: with what, how, and at which end.

use super::Side;

/// Compression as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compress {
    /// The end that compresses, if it was said.
    pub side: Option<Side>,
    /// The method's name.
    pub method: String,
    /// What is said of it: a level, or options.
    pub detail: Option<String>,
}

impl Compress {
    /// None.
    pub fn none() -> Self {
        Self { side: None, method: "none".to_owned(), detail: None }
    }

    /// --gzip.
    pub fn gzip() -> Self {
        Self { method: "gzip".to_owned(), ..Self::none() }
    }

    /// `[{client|server}-]METHOD[:DETAIL]`. A number alone is a level of gzip, and 0 means none, as
    /// PostgreSQL's `parse_compress_options` has it.
    pub fn parse(text: &str) -> Self {
        let (side, text) = match (text.strip_prefix("server-"), text.strip_prefix("client-")) {
            (Some(rest), _) => (Some(Side::Server), rest),
            (_, Some(rest)) => (Some(Side::Client), rest),
            _ => (None, text),
        };
        let (method, detail) = match (text.trim_ascii_start().parse::<i64>(), text.split_once(':')) {
            (Ok(0), _) => ("none", None),
            (Ok(_), _) => ("gzip", Some(text)),
            (_, Some((method, detail))) => (method, Some(detail)),
            (_, None) => (text, None),
        };
        Self { side, method: method.to_owned(), detail: detail.map(str::to_owned) }
    }

    /// Whether nothing is to be compressed.
    pub fn is_none(&self) -> bool {
        self.method == "none"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_methods_and_details() {
        for (text, side, method, detail) in [
            ("none", None, "none", None),
            ("0", None, "none", None),
            ("6", None, "gzip", Some("6")),
            ("client-9", Some(Side::Client), "gzip", Some("9")),
            ("zstd", None, "zstd", None),
            ("server-zstd:level=1,long", Some(Side::Server), "zstd", Some("level=1,long")),
            ("client-lz4:", Some(Side::Client), "lz4", Some("")),
            ("none+", None, "none+", None),
        ] {
            let detail = detail.map(str::to_owned);
            assert_eq!(Compress::parse(text), Compress { side, method: method.to_owned(), detail }, "{text}");
        }
    }
}
