//! How bytes are to be compressed, in the words of PostgreSQL: `zstd`, `level=5,long` (its
//! `src/common/compression.c`; the wording of errors is that of 18).

use std::fmt;

use crate::frame::Compression;

/// A compression method that PostgreSQL has a name for. Of these SEND_FILES_CONTENT has
/// [`crate::frame::Compression`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// None at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 4] = [Self::None, Self::Gzip, Self::Lz4, Self::Zstd];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The method of that name, in lower case as PostgreSQL wants it.
    pub fn parse(name: &str) -> Result<Self, SpecificationError> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| SpecificationError::UnknownMethod(name.to_owned()))
    }

    /// The lowest level, the highest, and the one that stands for the default, which may lie outside. zstd's
    /// are those of its library (`ZSTD_minCLevel`, `ZSTD_maxCLevel`, `ZSTD_CLEVEL_DEFAULT`).
    const fn levels(self) -> (i32, i32, i32) {
        match self {
            Self::None => (0, 0, 0),
            Self::Gzip => (1, 9, -1),
            Self::Lz4 => (1, 12, 0),
            Self::Zstd => (-131_072, 22, 3),
        }
    }

    /// The level where none is given.
    pub const fn default_level(self) -> i32 {
        self.levels().2
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A compression specification, checked: the method takes everything that is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Specification {
    /// With what.
    pub method: Method,
    /// At which level, in the method's own scale.
    pub level: Option<i32>,
    /// By how many threads beside the first; zstd only.
    pub workers: Option<i32>,
    /// Whether to look for matches at a long distance; zstd only.
    pub long: Option<bool>,
}

/// Why a specification is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecificationError {
    /// A method that PostgreSQL does not know.
    #[error("unrecognized compression algorithm: \"{0}\"")]
    UnknownMethod(String),
    /// Two commas, or one at an end.
    #[error("found empty string where a compression option was expected")]
    EmptyOption,
    /// An option that PostgreSQL does not know.
    #[error("unrecognized compression option: \"{0}\"")]
    UnknownOption(String),
    /// An option without its value.
    #[error("compression option \"{0}\" requires a value")]
    NoValue(&'static str),
    /// A value that is no integer.
    #[error("value for compression option \"{0}\" must be an integer")]
    NoInteger(&'static str),
    /// A value that is no Boolean.
    #[error("value for compression option \"{0}\" must be a Boolean value")]
    NoBoolean(&'static str),
    /// A level for `none`.
    #[error("compression algorithm \"{0}\" does not accept a compression level")]
    NoLevels(Method),
    /// A level that the method does not have.
    #[error(
        "compression algorithm \"{method}\" expects a compression level between {} and {} (default at {})",
        .method.levels().0, .method.levels().1, .method.levels().2
    )]
    Level {
        /// The method.
        method: Method,
    },
    /// Threads for a method other than zstd.
    #[error("compression algorithm \"{0}\" does not accept a worker count")]
    NoWorkers(Method),
    /// Long distances for a method other than zstd.
    #[error("compression algorithm \"{0}\" does not support long-distance mode")]
    NoLong(Method),
    /// Threads of the server: each connection of a backup is one.
    #[error("a transfer is not compressed by several workers")]
    Workers,
}

impl Specification {
    /// A method with what is said of it: nothing, a level, or `keyword[=value]` with commas between them,
    /// where the last of a keyword counts.
    pub fn parse(method: Method, detail: Option<&str>) -> Result<Self, SpecificationError> {
        let mut specification = Self { method, ..Self::default() };
        match detail {
            None => {}
            Some(detail) => match integer(detail) {
                Some(level) => specification.level = Some(level),
                None => specification.read(detail)?,
            },
        }
        specification.check()
    }

    fn read(&mut self, detail: &str) -> Result<(), SpecificationError> {
        // Behind a comma that comes last PostgreSQL expects one more option.
        for item in detail.split(',') {
            let (keyword, value) = match item.split_once('=') {
                Some((keyword, value)) => (keyword, Some(value)),
                None => (item, None),
            };
            match keyword {
                "" => return Err(SpecificationError::EmptyOption),
                "level" => self.level = Some(required_integer("level", value)?),
                "workers" => self.workers = Some(required_integer("workers", value)?),
                "long" => self.long = Some(boolean("long", value)?),
                _ => return Err(SpecificationError::UnknownOption(keyword.to_owned())),
            }
        }
        Ok(())
    }

    /// Whether the method takes all of it.
    fn check(self) -> Result<Self, SpecificationError> {
        let method = self.method;
        let (lowest, highest, default) = method.levels();
        if let Some(level) = self.level.filter(|level| *level != default) {
            if method == Method::None {
                return Err(SpecificationError::NoLevels(method));
            }
            if level < lowest || level > highest {
                return Err(SpecificationError::Level { method });
            }
        }
        if self.workers.is_some() && method != Method::Zstd {
            return Err(SpecificationError::NoWorkers(method));
        }
        if self.long.is_some() && method != Method::Zstd {
            return Err(SpecificationError::NoLong(method));
        }
        Ok(self)
    }

    /// At which level, the method's default where none was given.
    pub fn level(&self) -> i32 {
        self.level.unwrap_or(self.method.default_level())
    }
}

/// How a transfer's data frames are to be compressed: what of a [`Specification`] SEND_FILES_CONTENT takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WireCompression {
    /// With what.
    pub algorithm: Compression,
    /// At which level; the algorithm's default if none is given.
    pub level: Option<i32>,
    /// Whether zstd looks for matches at a long distance, in a window of 128 MiB.
    pub long: bool,
}

impl WireCompression {
    /// At which level, the algorithm's default where none was given.
    pub fn level(&self) -> i32 {
        self.level.unwrap_or(Method::from(self.algorithm).default_level())
    }

    /// What [`Specification::parse`] reads of it besides the level.
    pub(crate) const fn detail(&self) -> Option<&'static str> {
        if self.long { Some("long") } else { None }
    }
}

impl TryFrom<Specification> for WireCompression {
    type Error = SpecificationError;

    /// One that has gzip, or threads, is none.
    fn try_from(specification: Specification) -> Result<Self, SpecificationError> {
        let algorithm = match specification.method {
            Method::None => Compression::None,
            Method::Lz4 => Compression::Lz4,
            Method::Zstd => Compression::Zstd,
            Method::Gzip => return Err(SpecificationError::UnknownMethod(Method::Gzip.name().to_owned())),
        };
        if specification.workers.is_some_and(|workers| workers != 0) {
            return Err(SpecificationError::Workers);
        }
        Ok(Self { algorithm, level: specification.level, long: specification.long.unwrap_or(false) })
    }
}

impl From<Compression> for Method {
    fn from(algorithm: Compression) -> Self {
        match algorithm {
            Compression::None => Self::None,
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
        }
    }
}

fn required_integer(option: &'static str, value: Option<&str>) -> Result<i32, SpecificationError> {
    let value = value.ok_or(SpecificationError::NoValue(option))?;
    integer(value).ok_or(SpecificationError::NoInteger(option))
}

/// A keyword alone means yes.
fn boolean(option: &'static str, value: Option<&str>) -> Result<bool, SpecificationError> {
    let Some(value) = value else { return Ok(true) };
    let is = |words: [&str; 3]| words.iter().any(|word| value.eq_ignore_ascii_case(word));
    if is(["yes", "on", "1"]) {
        Ok(true)
    } else if is(["no", "off", "0"]) {
        Ok(false)
    } else {
        Err(SpecificationError::NoBoolean(option))
    }
}

/// All of the text as `strtol` reads it. What an int does not hold is as far out of any range as its ends.
fn integer(text: &str) -> Option<i32> {
    let digits = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(if digits.starts_with('-') { i32::MIN } else { i32::MAX }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zstd(detail: &str) -> Result<Specification, SpecificationError> {
        Specification::parse(Method::Zstd, Some(detail))
    }

    #[test]
    fn a_level_alone_and_options() {
        let level = |level| Specification { method: Method::Zstd, level: Some(level), ..Default::default() };
        assert_eq!(zstd("7"), Ok(level(7)));
        assert_eq!(zstd("-5"), Ok(level(-5)));
        assert_eq!(zstd(" +7"), Ok(level(7)));
        assert_eq!(zstd("level=1,level=9"), Ok(level(9)));
        assert_eq!(
            zstd("level=1,workers=3,long"),
            Ok(Specification { method: Method::Zstd, level: Some(1), workers: Some(3), long: Some(true) })
        );
        assert_eq!(zstd("long=OFF").unwrap().long, Some(false));
        assert_eq!(zstd("long=Yes").unwrap().long, Some(true));
        assert_eq!(Specification::parse(Method::Lz4, None).unwrap().level(), 0);
        assert_eq!(Specification::parse(Method::Zstd, None).unwrap().level(), 3);
        assert_eq!(Specification::parse(Method::Gzip, None).unwrap().level(), -1);
    }

    #[test]
    fn levels_end_where_postgresql_has_them_end() {
        for (method, lowest, highest) in
            [(Method::Gzip, 1, 9), (Method::Lz4, 1, 12), (Method::Zstd, -131_072, 22)]
        {
            let parse = |level: i32| Specification::parse(method, Some(&level.to_string()));
            assert!(parse(lowest).is_ok() && parse(highest).is_ok(), "{method}");
            assert_eq!(parse(highest + 1), Err(SpecificationError::Level { method }));
            assert!(parse(method.default_level()).is_ok(), "{method}");
        }
        assert!(Specification::parse(Method::Gzip, Some("0")).is_err());
        assert!(Specification::parse(Method::Lz4, Some("-1")).is_err());
        assert!(Specification::parse(Method::None, Some("0")).is_ok());
        assert_eq!(zstd("-131073"), Err(SpecificationError::Level { method: Method::Zstd }));
        assert_eq!(zstd("99999999999999999999"), Err(SpecificationError::Level { method: Method::Zstd }));
    }

    #[test]
    fn what_a_transfer_takes() {
        let of = |detail| WireCompression::try_from(zstd(detail).unwrap());
        assert_eq!(
            of("level=5,long,workers=0"),
            Ok(WireCompression { algorithm: Compression::Zstd, level: Some(5), long: true })
        );
        assert_eq!(of("workers=2"), Err(SpecificationError::Workers));
        let gzip = Specification::parse(Method::Gzip, None).unwrap();
        assert_eq!(
            WireCompression::try_from(gzip).unwrap_err().to_string(),
            "unrecognized compression algorithm: \"gzip\""
        );
    }

    #[test]
    fn words_of_refusals() {
        let words = |method, detail| Specification::parse(method, Some(detail)).unwrap_err().to_string();
        let cases = [
            (Method::Gzip, "", "found empty string where a compression option was expected"),
            (Method::Gzip, "level=9,", "found empty string where a compression option was expected"),
            (Method::Gzip, "thunk", "unrecognized compression option: \"thunk\""),
            (Method::Gzip, "level", "compression option \"level\" requires a value"),
            (Method::Gzip, "level=", "value for compression option \"level\" must be an integer"),
            (Method::Gzip, "level=high", "value for compression option \"level\" must be an integer"),
            (
                Method::Gzip,
                "level=236",
                "compression algorithm \"gzip\" expects a compression level between 1 and 9 (default at -1)",
            ),
            (
                Method::Zstd,
                "level=23",
                "compression algorithm \"zstd\" expects a compression level between -131072 and 22 \
                 (default at 3)",
            ),
            (Method::Gzip, "workers=3", "compression algorithm \"gzip\" does not accept a worker count"),
            (Method::Lz4, "long", "compression algorithm \"lz4\" does not support long-distance mode"),
            (Method::Zstd, "long=5", "value for compression option \"long\" must be a Boolean value"),
            (Method::None, "1", "compression algorithm \"none\" does not accept a compression level"),
        ];
        for (method, detail, expected) in cases {
            assert_eq!(words(method, detail), expected, "{method}:{detail}");
        }
        assert_eq!(
            Method::parse("none+").unwrap_err().to_string(),
            "unrecognized compression algorithm: \"none+\""
        );
        assert!(Method::parse("ZSTD").is_err());
    }
}
