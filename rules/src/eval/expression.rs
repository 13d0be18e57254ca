//! A regular expression of a rule, ready to be searched for.

use std::time::Instant;

use regex::Regex;

use crate::eval::stepwise::{Outcome, Stepwise};
use crate::eval::watch::Meter;

/// What takes more steps than this, and can only be searched at one stretch, is not searched at all: some tenths of a second at worst.
const BLIND_STEPS_MAX: u64 = 60_000_000;

/// An expression.
#[derive(Debug)]
pub(crate) struct Expression {
    regex: Regex,
    pattern: Box<str>,
    /// The number of its predicate in the class.
    pub number: u32,
    /// Steps that a byte may take.
    steps: u64,
    /// Made when it is needed for the first time; then `None` if it cannot be made.
    stepwise: Option<Option<Box<Stepwise>>>,
}

impl Expression {
    pub fn new(regex: Regex, pattern: &str, steps: u64, number: u32) -> Self {
        Self { regex, pattern: pattern.into(), number, steps, stepwise: None }
    }

    /// How many steps a search in a text may take.
    pub fn steps_of(&self, text: &str) -> u64 {
        self.steps.saturating_mul(text.len() as u64)
    }

    /// Whether it is found in a text; `None` when a meter said that it took too long.
    pub fn is_found(&mut self, text: &str, meter: Option<&mut Meter>) -> Option<bool> {
        #[cfg(test)]
        crate::fuse::blow(&self.pattern, text);
        let Some(meter) = meter else { return Some(self.regex.is_match(text)) };
        let stepwise = self.stepwise.get_or_insert_with(|| Stepwise::new(&self.pattern).map(Box::new));
        let outcome = stepwise.as_mut().map(|stepwise| stepwise.search(text, self.steps, meter));
        match outcome.unwrap_or(Outcome::Unknown) {
            Outcome::Found(found) => Some(found),
            Outcome::GivenUp => None,
            Outcome::Unknown if self.steps_of(text) > BLIND_STEPS_MAX => None,
            Outcome::Unknown => {
                let started = Instant::now();
                let found = self.regex.is_match(text);
                meter.allows(started.elapsed()).then_some(found)
            }
        }
    }
}
