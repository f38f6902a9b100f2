//! A bar on a terminal, as wide as that is, and below it, with --verbose, what each connection does.

use std::io;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::counters::{Counters, Phase};
use super::progress::{Stop, files};
use crate::report;

/// How often the bar moves.
const EVERY: Duration = Duration::from_millis(250);

/// What is assumed of a terminal that does not say its size.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// Lines of the terminal that are left for other things.
const LEFT_ALONE: usize = 3;

/// Templates by the width that they take. Of plain ASCII: not every terminal has more.
const TEMPLATES: [(usize, &str); 4] = [
    (
        96,
        "[{wide_bar}] {percent:>3}%  {bytes:>10} of {total_bytes:<10} {binary_bytes_per_sec:>12}  {eta_precise} left  {prefix}{msg}",
    ),
    (64, "[{wide_bar}] {percent:>3}%  {bytes:>10} {binary_bytes_per_sec:>12}  {eta_precise} left{msg}"),
    (36, "[{wide_bar}] {percent:>3}% {binary_bytes_per_sec:>12}{msg}"),
    (0, "{percent:>3}%{msg}"),
];

/// Shows a bar until told to stop.
pub fn show(verbose: bool, counters: &Counters, stop: &Stop) {
    // Before files come there is nothing to see.
    while counters.phase() < Phase::Files {
        if stop.wait(EVERY) {
            return;
        }
    }
    let bar = ProgressBar::with_draw_target(counters.total(), ProgressDrawTarget::stderr());
    report::set_bar(Some(bar.clone()));
    let mut template = "";
    loop {
        let stopped = stop.wait(EVERY);
        let (columns, rows) = size();
        let fitting = fitting(columns);
        if template != fitting {
            template = fitting;
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
        }
        if let Some(total) = counters.total() {
            bar.set_length(total);
        }
        bar.set_prefix(files(counters));
        let below = if stopped || !verbose { Vec::new() } else { counters.activities() };
        bar.set_message(lines(&below, counters.phase(), columns, rows));
        bar.set_position(counters.done().0);
        if stopped {
            break;
        }
    }
    report::set_bar(None);
    bar.abandon();
    // The bar stays, and what comes next begins below it.
    report::print("");
}

/// What stands below the bar, no line wider than the terminal.
fn lines(activities: &[(i32, String)], phase: Phase, columns: usize, rows: usize) -> String {
    let mut lines: Vec<String> = activities
        .iter()
        .take(rows.saturating_sub(LEFT_ALONE))
        .map(|(process, activity)| format!("  {process}: {activity}"))
        .collect();
    if phase == Phase::Sync {
        lines = vec!["  waiting until everything is on disk".to_owned()];
    }
    let mut text = String::new();
    for line in lines {
        text.push('\n');
        text.extend(line.chars().take(columns.saturating_sub(1)));
    }
    text
}

fn fitting(columns: usize) -> &'static str {
    TEMPLATES.iter().find(|(width, _)| columns >= *width).map_or("", |(_, template)| template)
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => USUAL_SIZE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_sound() {
        for columns in [0, 20, 36, 50, 64, 80, 96, 300] {
            assert!(ProgressStyle::with_template(fitting(columns)).is_ok(), "{columns}");
        }
        assert_eq!(fitting(20), "{percent:>3}%{msg}");
    }

    #[test]
    fn lines_fit_the_terminal() {
        let activities: Vec<_> = (1..=9).map(|process| (process, "base/5/16384".to_owned())).collect();
        assert_eq!(lines(&activities, Phase::Files, 10, 5), "\n  1: base\n  2: base");
        assert_eq!(lines(&[], Phase::Files, 80, 24), "");
        assert_eq!(lines(&activities, Phase::Sync, 20, 2), "\n  waiting until eve");
    }
}
