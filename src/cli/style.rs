//! How text looks on a terminal: colours where they are wanted, and nothing that an attacker could have put in.

use std::io::IsTerminal;

use crate::config::env;

/// Whether colours are printed.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// For standard output: colours on a terminal, unless `NO_COLOR` is set.
    pub fn of_stdout() -> Self {
        Self { colour: std::io::stdout().is_terminal() && !env::no_color() }
    }

    /// Never a colour.
    pub fn plain() -> Self {
        Self { colour: false }
    }

    /// A level, padded to the width of the longest, in its colour.
    pub fn level(self, level: &str) -> String {
        let code = match level {
            "critical" => "1;97;41",
            "high" => "1;31",
            "medium" => "33",
            "low" => "36",
            _ => "2",
        };
        self.paint(code, &format!("{:13}", clean(level)))
    }

    /// Text that stands out.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Text that stands back.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// What is wrong.
    pub fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// What is odd.
    pub fn warning(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// What is as it should be.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// The text in one line and without control characters: what somebody wrote into an event must not drive the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '␣' } else { letter }).collect()
}

/// [`clean`], cut to so many characters.
pub fn cut(text: &str, chars_max: usize) -> String {
    let text = clean(text);
    if text.chars().count() <= chars_max {
        return text;
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_events_cannot_drive_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a␣[2Jb␣c");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(Style::plain().level("high"), "high         ");
    }
}
