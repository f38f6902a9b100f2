//! --generate: the manual page, and completions for shells, from the definition that --help is made from.

use std::io::Write;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::arguments::{Arguments, USAGE};
use crate::error::{Error, Result};
use crate::report::PROGRAM;

/// What a manual page has that no option says.
const MORE: &str = include_str!("manual.roff");

/// Words that options take, for shells to offer; what is refused is said in `check`.
const WORDS: [(&str, &[&str]); 9] = [
    ("checkpoint", &["fast", "spread"]),
    (
        "compress",
        &[
            "none",
            "gzip",
            "lz4",
            "zstd",
            "client-gzip",
            "client-lz4",
            "client-zstd",
            "server-lz4",
            "server-zstd",
        ],
    ),
    ("format", &["plain", "tar"]),
    ("manifest_checksums", &["CRC32C", "NONE", "SHA224", "SHA256", "SHA384", "SHA512"]),
    ("progress", &["json"]),
    ("sync_method", &["fsync", "syncfs"]),
    ("target", &["client", "blackhole"]),
    ("verify", &["client", "server"]),
    ("wal_method", &["none", "fetch", "stream"]),
];

/// A program as its manual page and completions have it.
pub struct Described {
    /// Its name.
    pub program: &'static str,
    /// What comes behind the name.
    pub usage: &'static str,
    /// Its options.
    pub command: Command,
    /// The same with the words that they take, and without what shells would take for their own.
    pub for_shells: Command,
    /// What the manual page has that no option says.
    pub more: &'static str,
}

/// The text of what `what` names.
pub fn generate(what: &str) -> Result<String> {
    let for_shells = with_words(Arguments::command(), &WORDS)
        // A colon in a description ends it for zsh.
        .mut_arg("compress", |argument| argument.value_name("METHOD"));
    let described =
        Described { program: PROGRAM, usage: USAGE, command: Arguments::command(), for_shells, more: MORE };
    described.generate(what)
}

impl Described {
    /// The text of what `what` names.
    pub fn generate(mut self, what: &str) -> Result<String> {
        let shell = match what {
            "man" => {
                return self
                    .manual()
                    .map_err(|error| Error::local(format!("could not make a manual page: {error}")));
            }
            "bash" => Shell::Bash,
            "zsh" => Shell::Zsh,
            "fish" => Shell::Fish,
            _ => {
                return Err(Error::local(format!(
                    "invalid generate argument \"{what}\", must be \"man\", \"bash\", \"zsh\", or \"fish\""
                )));
            }
        };
        let mut completions = Vec::new();
        clap_complete::generate(shell, &mut self.for_shells, self.program, &mut completions);
        Ok(String::from_utf8_lossy(&completions).into_owned())
    }

    fn manual(self) -> std::io::Result<String> {
        let version = env!("CARGO_PKG_VERSION");
        let man = Man::new(self.command.override_usage(format!("{} {}", self.program, self.usage)))
            .title(self.program.to_uppercase())
            .source(format!("pg_parallel_backup {version}"))
            .manual("PostgreSQL Client Applications");
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        page.write_all(self.more.as_bytes())?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }
}

/// A command with the words that its options take.
pub fn with_words(command: Command, words: &'static [(&str, &[&str])]) -> Command {
    let command = words.iter().fold(command, |command, (option, words)| {
        command.mut_arg(*option, |argument| argument.value_parser(words.to_vec()))
    });
    // fish before 4.0 takes the letter for a pattern.
    command.mut_arg("help", |argument| argument.short(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_in_all_of_them() {
        let texts = ["man", "bash", "zsh", "fish"].map(|what| generate(what).unwrap());
        let plain = texts.map(|text| text.replace('\\', ""));
        for option in Arguments::command().get_opts().filter(|option| !option.is_hide_set()) {
            let name = option.get_long().unwrap();
            assert!(plain[0].contains(&format!("--{name}")), "man: {name}");
            assert!(plain[1].contains(&format!("--{name}")), "bash: {name}");
            assert!(plain[2].contains(&format!("--{name}")), "zsh: {name}");
            assert!(plain[3].contains(&format!("-l {name}")), "fish: {name}");
        }
        assert!(plain[0].contains(".SH \"EXIT STATUS\""));
        assert_eq!(
            generate("csh").unwrap_err().message(),
            "invalid generate argument \"csh\", must be \"man\", \"bash\", \"zsh\", or \"fish\""
        );
    }

    #[test]
    fn words_are_those_that_are_taken() {
        for (option, words) in WORDS {
            for word in words {
                let name = option.replace('_', "-");
                let line = [PROGRAM, "-D", "x", &format!("--{name}={word}")].map(std::ffi::OsString::from);
                if let Err(error) = crate::options::parse(line) {
                    let text = error.message();
                    assert!(!text.contains("invalid") && !text.contains("unrecognized"), "{word}: {text}");
                }
            }
        }
    }
}
