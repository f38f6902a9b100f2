//! Colours of messages, by PG_COLOR and PG_COLORS, as all programs of PostgreSQL have them
//! (`pg_logging_init` in `logging.c`).

use std::io::IsTerminal;
use std::sync::OnceLock;

/// A part of a message that has a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// "error: ".
    Error,
    /// "warning: ".
    Warning,
    /// "detail: " and "hint: ".
    Note,
    /// The program's name.
    Locus,
}

/// SGR parameters of each part, none for a part that has no colour.
#[derive(Debug, Default, PartialEq, Eq)]
struct Colors {
    error: Option<String>,
    warning: Option<String>,
    note: Option<String>,
    locus: Option<String>,
}

static COLORS: OnceLock<Colors> = OnceLock::new();

/// A text in the colour of its part, if the user wants any.
pub fn paint(part: Part, text: &str) -> String {
    let colors = COLORS.get_or_init(|| {
        let variable = |name| std::env::var(name).ok();
        Colors::of(variable("PG_COLOR").as_deref(), variable("PG_COLORS").as_deref(), || {
            std::io::stderr().is_terminal()
        })
    });
    colors.paint(part, text)
}

impl Colors {
    fn of(color: Option<&str>, colors: Option<&str>, is_terminal: impl FnOnce() -> bool) -> Self {
        match color {
            Some("always") => {}
            Some("auto") if is_terminal() => {}
            _ => return Self::default(),
        }
        // What is not in the list has no colour then.
        let list = colors.unwrap_or("error=01;31:warning=01;35:note=01;36:locus=01");
        let mut found = Self::default();
        for (name, value) in list.split(':').filter_map(|item| item.split_once('=')) {
            let place = match name {
                "error" => &mut found.error,
                "warning" => &mut found.warning,
                "note" => &mut found.note,
                "locus" => &mut found.locus,
                _ => continue,
            };
            *place = Some(value.to_owned());
        }
        found
    }

    fn paint(&self, part: Part, text: &str) -> String {
        let color = match part {
            Part::Error => &self.error,
            Part::Warning => &self.warning,
            Part::Note => &self.note,
            Part::Locus => &self.locus,
        };
        match color {
            Some(color) => format!("\x1b[{color}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_colours_gets_them() {
        assert_eq!(Colors::of(None, None, || true), Colors::default());
        assert_eq!(Colors::of(Some("never"), None, || true), Colors::default());
        assert_eq!(Colors::of(Some("auto"), None, || false), Colors::default());
        let usual = Colors::of(Some("auto"), None, || true);
        assert_eq!(usual, Colors::of(Some("always"), None, || false));
        assert_eq!(usual.paint(Part::Error, "error: "), "\x1b[01;31merror: \x1b[0m");
        let own = Colors::of(Some("always"), Some("error=7:odd=1:x"), || false);
        assert_eq!(own.paint(Part::Error, "error: "), "\x1b[7merror: \x1b[0m");
        assert_eq!(own.paint(Part::Locus, "p: "), "p: ");
    }
}
