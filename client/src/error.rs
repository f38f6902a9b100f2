//! What goes wrong, in the words that the user will read. Printing is left to `report`.

use std::fmt;
use std::io;
use std::path::Path;

use protocol::SqlState;

/// A failure: its message, what may help, and what kind it is.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    may_pass: bool,
}

/// Kinds of failure that somebody has to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// On this side: a file, a directory, an option. Trying again would not help.
    Local,
    /// The server answered with an error; the connection is still usable.
    Server([u8; 5]),
    /// The connection is lost, or what came over it makes no sense.
    Connection,
    /// Somebody else failed first, or a signal came: not to be reported.
    Aborted,
    /// A signal came.
    Interrupted,
    /// The server found pages with wrong checksums; the copy is kept.
    ChecksumFailure,
    /// The options make no sense: a hint at --help follows.
    Usage,
}

/// Nearly everything here returns one.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure on this side.
    pub fn local(message: impl Into<String>) -> Self {
        Self::new(Kind::Local, message)
    }

    /// A failure of the given kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, may_pass: false }
    }

    /// A connection that is lost or talks nonsense.
    pub fn connection(message: impl Into<String>) -> Self {
        Self::new(Kind::Connection, message)
    }

    /// Options that make no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Another thread's failure, already recorded.
    pub fn aborted() -> Self {
        Self::new(Kind::Aborted, "backup aborted")
    }

    /// "could not VERB WHAT "path": reason".
    pub fn io(what: &str, path: &Path, error: &io::Error) -> Self {
        // A failure of this kind that came through somebody else's hands says it all.
        if let Some(told) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return told.clone();
        }
        Self::local(format!("could not {what} \"{}\": {}", path.display(), os_message(error)))
    }

    /// Adds a hint line.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a detail line.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Puts what was being done in front.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The same failure as one that ends the backup, whatever kind it was.
    #[must_use]
    pub fn fatal(mut self) -> Self {
        if self.kind != Kind::Aborted {
            self.may_pass = self.may_pass();
            self.kind = Kind::Local;
        }
        self
    }

    /// The same failure as one that another backup may be spared.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.may_pass = true;
        self
    }

    /// Whether another try, begun anew, may succeed with nothing changed: what failed is the connection, or the
    /// server had too little of something or was about to end (classes 53 and 57).
    pub fn may_pass(&self) -> bool {
        self.may_pass
            || match self.kind {
                Kind::Connection => true,
                Kind::Server(state) => {
                    (state.starts_with(b"53") || state.starts_with(b"57")) && !self.is_taken_over()
                }
                _ => false,
            }
    }

    /// Whether the server has too little of something (class 53).
    pub fn is_lack(&self) -> bool {
        matches!(self.kind, Kind::Server(state) if state.starts_with(b"53"))
    }

    /// Whether it says that another session coordinates the backup now, or in what follows from that. The server has
    /// no SQLSTATE for it; the words are the extension's, which has no other language.
    pub fn is_taken_over(&self) -> bool {
        ["was taken over by another session", "was not started in this session"]
            .iter()
            .any(|words| self.message.contains(words))
    }

    /// Which kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it is the server's answer with this SQLSTATE.
    pub fn is_server(&self, state: SqlState) -> bool {
        matches!(self.kind, Kind::Server(code) if &code == state.as_bytes())
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The detail line, if any.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The hint line, if any.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The operating system's words, as `%m` prints them: without Rust's "(os error 2)".
pub fn os_message(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_another_stays_what_it_is() {
        let error = Error::io("write to file", Path::new("/a"), &io::Error::other(Error::aborted()));
        assert_eq!(error.kind(), Kind::Aborted);
    }

    #[test]
    fn words_of_the_operating_system() {
        let error = Error::io("open file", Path::new("/a/b"), &io::Error::from_raw_os_error(2));
        assert_eq!(error.message(), "could not open file \"/a/b\": No such file or directory");
    }
}
