//! Shows how far a file is: a bar with rate and time to go on a terminal, a plain line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress is shown.
#[derive(Debug)]
pub enum Progress {
    /// Nowhere.
    Silent,
    /// As a bar on the terminal.
    Bar(ProgressBar),
    /// As lines on standard error.
    Lines(Mutex<Instant>),
}

const LINE_PERIOD: Duration = Duration::from_secs(5);

impl Progress {
    /// On standard error, as it allows. `bytes` is the size of the input, if it has one.
    pub fn on_stderr(bytes: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Mutex::new(Instant::now()));
        }
        let (bar, template) = match bytes {
            Some(bytes) => (ProgressBar::new(bytes), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}"),
            None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec} {elapsed} {msg}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self::Bar(bar)
    }

    /// Says where the input starts when it is resumed.
    pub fn start_at(&self, bytes: u64) {
        if let Self::Bar(bar) = self {
            bar.set_position(bytes);
            bar.reset_eta();
        }
    }

    /// Says how much of the input is acknowledged.
    pub fn update(&self, bytes: u64, events: u64, elapsed: Duration) {
        let rate = events as f64 / elapsed.as_secs_f64().max(1e-3);
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_position(bytes);
                bar.set_message(format!("{events} events, {rate:.0}/s"));
            }
            Self::Lines(last) => {
                let Ok(mut last) = last.lock() else { return };
                if last.elapsed() >= LINE_PERIOD {
                    *last = Instant::now();
                    say(&format!("{:.1} MB read, {events} events acknowledged, {rate:.0}/s", bytes as f64 / 1e6));
                }
            }
        }
    }

    /// Says why nothing moves.
    pub fn waiting(&self, why: &str, wait: Duration) {
        let line = format!("{why}; trying again in {:.1} s", wait.as_secs_f32());
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.set_message(line),
            Self::Lines(_) => say(&line),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn say(line: &str) {
    // Standard error may be closed; that must not stop what is being sent.
    let _ = writeln!(std::io::stderr(), "{line}");
}
