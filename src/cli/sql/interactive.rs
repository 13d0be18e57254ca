//! The interactive session: lines with history, statements over several lines, a few commands with a backslash.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::{History, MemHistory, SearchDirection};

use super::{ask, statements};
use crate::cli::http::Client;
use crate::config::{Config, RowFormat, env};

const HELP: &str = "\
A statement ends with a semicolon and may span lines.
  \\d              the tables
  \\d TABLE        the columns of a table
  \\format FORMAT  table, json or csv
  \\q              leave (or Ctrl-D); Ctrl-C drops what was begun
Own fields of events are quoted: SELECT \"userIdentity.userName\" FROM security_events LIMIT 3;";

/// What `\d` asks: the tables of events, not those of the catalog.
const TABLES: &str =
    "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY table_name";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A statement for the server.
    Ask(String),
    /// `\format`.
    Format(&'a str),
    /// `\?` and everything unknown.
    Help,
    /// `\q`.
    Leave,
}

/// Reads a line that starts with a backslash.
pub fn command(line: &str) -> Line<'_> {
    let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let rest = rest.trim().trim_end_matches(';');
    match (word, rest) {
        ("\\q", _) => Line::Leave,
        ("\\d", "") => Line::Ask(TABLES.to_owned()),
        ("\\d", table) => Line::Ask(format!("DESCRIBE {table}")),
        ("\\format", format) => Line::Format(format),
        _ => Line::Help,
    }
}

pub(super) async fn run(config: &Config, mut client: Client, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut lines = Lines::open(config)?;
    let mut format = config.sql.format;
    let mut begun = String::new();
    writeln!(out, "{} · \\? for help", client.url().authority())?;
    loop {
        let line = match lines.read(if begun.is_empty() { "tidegate> " } else { "     ...> " }) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                begun.clear();
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("read from the terminal"),
        };
        if begun.is_empty() && line.trim_start().starts_with('\\') {
            match command(&line) {
                Line::Leave => return Ok(()),
                Line::Help => writeln!(out, "{HELP}")?,
                Line::Format(word) => match serde_json::from_value::<RowFormat>(word.into()) {
                    Ok(chosen) => format = chosen,
                    Err(_) => writeln!(out, "formats: table, json, csv")?,
                },
                Line::Ask(statement) => show(ask(&mut client, &statement, format, out).await, out)?,
            }
            continue;
        }
        begun.push_str(&line);
        begun.push('\n');
        while let Some(end) = statements::first_end(&begun) {
            let rest = begun.split_off(end + 1);
            let statement = std::mem::replace(&mut begun, rest);
            let statement = statement.trim_end_matches(';').trim();
            if !statement.is_empty() {
                show(ask(&mut client, statement, format, out).await, out)?;
            }
        }
        if begun.trim().is_empty() {
            begun.clear();
        }
    }
}

/// An error ends a statement, not the session.
fn show(result: anyhow::Result<usize>, out: &mut dyn Write) -> std::io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => writeln!(out, "{error:#}"),
    }
}

/// The terminal, with the history of earlier sessions.
struct Lines {
    editor: Editor<(), MemHistory>,
    history: PathBuf,
    lines_max: usize,
}

impl Lines {
    fn open(config: &Config) -> anyhow::Result<Self> {
        let lines_max = config.sql.history_lines_max;
        let settings =
            rustyline::Config::builder().max_history_size(lines_max).context("sql.history_lines_max")?.build();
        let mut editor = Editor::with_history(settings, MemHistory::new()).context("open the terminal")?;
        let history = env::state_dir().join("sql_history");
        // No history yet, or none that can be read, is only a convenience less.
        for line in fs::read_to_string(&history).unwrap_or_default().lines() {
            let _ = editor.add_history_entry(line);
        }
        Ok(Self { editor, history, lines_max })
    }

    fn read(&mut self, prompt: &str) -> Result<String, ReadlineError> {
        let line = self.editor.readline(prompt)?;
        if !line.trim().is_empty() {
            self.editor.add_history_entry(line.as_str())?;
        }
        Ok(line)
    }

    fn save(&self) -> std::io::Result<()> {
        let history = self.editor.history();
        let entry = |at| history.get(at, SearchDirection::Forward).ok().flatten().map(|found| found.entry.into_owned());
        let lines: Vec<String> =
            (history.len().saturating_sub(self.lines_max)..history.len()).filter_map(entry).collect();
        if let Some(folder) = self.history.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.history, lines.join("\n") + "\n")
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // A history that cannot be kept is no reason to end with an error.
        let _ = self.save();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslash_commands() {
        for (line, wanted) in [
            ("\\q", Line::Leave),
            ("\\d", Line::Ask(TABLES.to_owned())),
            ("\\d alerts;", Line::Ask("DESCRIBE alerts".to_owned())),
            ("\\format json", Line::Format("json")),
            ("\\?", Line::Help),
            ("\\nonsense", Line::Help),
        ] {
            assert_eq!(command(line), wanted, "{line}");
        }
    }
}
