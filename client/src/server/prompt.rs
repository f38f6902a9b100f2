//! Asking for a password, as PostgreSQL's `simple_prompt`: on the terminal, and where there is none, by
//! standard input and standard error.

use std::fs::OpenOptions;
use std::io::{self, BufRead, Write};

use crate::error::{Error, Result, os_message};

const PROMPT: &str = "Password: ";

/// The password; empty where nothing can be read.
pub fn password() -> Result<String> {
    let has_terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").is_ok();
    let password = if has_terminal {
        rpassword::prompt_password(PROMPT)
    } else {
        read_line(&mut io::stdin().lock(), &mut io::stderr().lock())
    };
    password.map_err(|error| Error::local(format!("could not read password: {}", os_message(&error))))
}

fn read_line(input: &mut impl BufRead, output: &mut impl Write) -> io::Result<String> {
    output.write_all(PROMPT.as_bytes())?;
    output.flush()?;
    let mut line = String::new();
    input.read_line(&mut line)?;
    // Nobody has typed a newline that could be seen.
    output.write_all(b"\n")?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_without_its_end() {
        for (input, password) in [("a b \r\nc\n", "a b "), ("secret", "secret"), ("", ""), ("\n", "")] {
            let mut output = Vec::new();
            assert_eq!(read_line(&mut input.as_bytes(), &mut output).unwrap(), password);
            assert_eq!(output, b"Password: \n");
        }
        assert!(read_line(&mut &b"\xff\n"[..], &mut Vec::new()).is_err());
    }
}
