//! `s3://bucket/prefix` and its like, as an option gives them.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// A prefix of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Which kind of store.
    pub scheme: Scheme,
    /// The bucket, or container.
    pub bucket: String,
    /// What all names there begin with, without slashes at the ends; nothing for all of the bucket.
    pub prefix: String,
}

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Amazon S3, and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// What an option names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory by its path.
    Path,
    /// A directory by a URL.
    Directory(PathBuf),
    /// A prefix of a store.
    Objects(Location),
}

impl Place {
    /// Reads it. Messages do not repeat what may be a secret.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Path) };
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
        if !is_scheme {
            return Ok(Self::Path);
        }
        let scheme = match scheme {
            "file" => {
                if !rest.starts_with('/') || rest.contains(['%', '?', '#']) {
                    return Err(Error::usage(
                        "a file URL must be \"file://\" and an absolute path, as it is",
                    ));
                }
                return Ok(Self::Directory(PathBuf::from(rest)));
            }
            "s3" => Scheme::S3,
            "gs" => Scheme::Google,
            "az" => Scheme::Azure,
            other => {
                return Err(Error::usage(format!(
                    "unrecognized storage \"{other}\", must be \"s3\", \"gs\", \"az\", or \"file\""
                )));
            }
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains(['@', ':']) || rest.contains(['?', '#']) {
            return Err(Error::usage("a storage URL must not have a user, a password, a port or a query")
                .with_hint("Credentials and the address of a server come from the environment."));
        }
        let prefix = prefix.trim_end_matches('/');
        let is_name = |name: &str| {
            !name.is_empty()
                && name != "."
                && name != ".."
                && !name.contains(|c: char| c.is_control() || c == '\\')
        };
        if !is_name(bucket) || !prefix.is_empty() && !prefix.split('/').all(is_name) {
            return Err(Error::usage(format!("invalid storage URL \"{text}\"")));
        }
        Ok(Self::Objects(Location { scheme, bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }
}

/// What a name given by a user stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Something on this machine.
    Path(PathBuf),
    /// Something in an object store.
    Objects(Location),
}

impl Named {
    /// Reads it. A name that is no UTF-8 is no URL.
    pub fn parse(name: &OsStr) -> Result<Self> {
        Ok(match name.to_str().map(Place::parse).transpose()? {
            None | Some(Place::Path) => Self::Path(name.into()),
            Some(Place::Directory(path)) => Self::Path(path),
            Some(Place::Objects(location)) => Self::Objects(location),
        })
    }
}

impl Location {
    /// A prefix below this one.
    #[cfg_attr(not(feature = "object-store"), allow(dead_code, reason = "nobody looks there"))]
    pub fn below(&self, name: &str) -> Self {
        let prefix = match (&self.prefix[..], name) {
            (prefix, "") => prefix.to_owned(),
            ("", name) => name.to_owned(),
            (prefix, name) => format!("{prefix}/{name}"),
        };
        Self { prefix, ..self.clone() }
    }

    /// The prefix above this one, and this one's name there; none for all of a bucket.
    pub fn split(&self) -> Option<(Self, &str)> {
        let (above, name) = self.prefix.rsplit_once('/').unwrap_or(("", &self.prefix));
        (!name.is_empty()).then(|| (Self { prefix: above.to_owned(), ..self.clone() }, name))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::S3 => "s3",
            Scheme::Google => "gs",
            Scheme::Azure => "az",
        };
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{scheme}://{}{slash}{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_where() {
        for (text, scheme, bucket, prefix, shown) in [
            ("s3://b", Scheme::S3, "b", "", "s3://b"),
            ("s3://b/", Scheme::S3, "b", "", "s3://b"),
            ("gs://b/a/c/", Scheme::Google, "b", "a/c", "gs://b/a/c"),
            ("az://c/a b", Scheme::Azure, "c", "a b", "az://c/a b"),
        ] {
            let Place::Objects(location) = Place::parse(text).unwrap() else { panic!("{text}") };
            assert_eq!((location.scheme, &*location.bucket, &*location.prefix), (scheme, bucket, prefix));
            assert_eq!(location.to_string(), shown);
        }
        let Place::Objects(location) = Place::parse("s3://b/a/c").unwrap() else { panic!("no objects") };
        let (above, name) = location.split().unwrap();
        assert_eq!((above.to_string(), name), ("s3://b/a".to_owned(), "c"));
        assert_eq!(above.below(name), location);
        let (bucket, name) = above.split().unwrap();
        assert_eq!((bucket.to_string(), name), ("s3://b".to_owned(), "a"));
        assert!(bucket.split().is_none() && bucket.below("") == bucket && bucket.below("a") == above);
        assert_eq!(Place::parse("file:///a/b").unwrap(), Place::Directory("/a/b".into()));
        for path in ["/a", "a", "./s3://x", "-", "", "1://x", "a b://c"] {
            assert_eq!(Place::parse(path).unwrap(), Place::Path, "{path}");
        }
    }

    #[test]
    fn what_is_refused_keeps_secrets() {
        for text in ["s3://key:secret@b/p", "s3://b:9000/p", "az://c/p?sig=secret", "gs://b/p#secret"] {
            let error = Place::parse(text).unwrap_err();
            assert!(!format!("{error} {:?}", error.hint()).contains("secret"), "{error}");
        }
        for text in ["s3://", "s3:///p", "s3://b//p", "s3://b/../p", "s3://b/a/./b", "s3://b/a\nb"] {
            assert_eq!(Place::parse(text).unwrap_err().message(), format!("invalid storage URL \"{text}\""));
        }
        assert!(
            Place::parse("http://b/p").unwrap_err().message().starts_with("unrecognized storage \"http\"")
        );
        assert!(Place::parse("file://host/p").is_err() && Place::parse("file:///a%20b").is_err());
    }
}
