//! Rules compiled ahead: whoever is about to change rules compiles what there will be, on a thread of its own, so that the stream
//! only has to take it up at the offset of the change.
//!
//! What was made is known by the content of all rule files, so it does not matter who made it, when, or whether at all: the
//! operator that finds nothing compiles by itself and comes to the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_128;

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::error::RulesError;
use crate::eval::Evaluator;
use crate::problem::{RuleFile, RuleProblem};

/// The most sets that wait to be taken up; the oldest goes first.
const MADE_MAX: usize = 2;

/// What a set of rule files is told from others by: the sum over its files, so that it can be kept up file by file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FilesKey(u128);

impl FilesKey {
    fn of_file(org_id: Option<&str>, name: &str, text: &str) -> u128 {
        let mut all = Vec::with_capacity(name.len() + text.len() + 64);
        for part in [org_id.map_or("0", |_| "1"), org_id.unwrap_or_default(), name, text] {
            all.extend_from_slice(&(part.len() as u64).to_le_bytes());
            all.extend_from_slice(part.as_bytes());
        }
        xxh3_128(&all)
    }

    /// With a file more.
    pub fn add(&mut self, org_id: Option<&str>, name: &str, text: &str) {
        self.0 = self.0.wrapping_add(Self::of_file(org_id, name, text));
    }

    /// With a file less.
    pub fn remove(&mut self, org_id: Option<&str>, name: &str, text: &str) {
        self.0 = self.0.wrapping_sub(Self::of_file(org_id, name, text));
    }
}

/// Rules that are ready to run.
#[derive(Debug)]
pub(crate) struct Made {
    key: FilesKey,
    pub evaluator: Evaluator,
    pub problems: Vec<RuleProblem>,
}

/// Rules that are ready to run, and rules that are done with. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Ahead {
    made: Arc<Mutex<VecDeque<Made>>>,
    done_with: Arc<Mutex<Vec<Evaluator>>>,
}

impl Ahead {
    /// Compiles rule files as the operator would, and makes ready what values are decided with. Blocks for as long as that takes.
    ///
    /// # Errors
    /// As [`RuleSet::compile`].
    pub fn prepare(&self, files: &[RuleFile], config: &RulesConfig) -> Result<(), RulesError> {
        let mut key = FilesKey::default();
        files.iter().for_each(|file| key.add(file.org_id.as_deref(), &file.name, &file.text));
        let mut ordered: Vec<RuleFile> = files.to_vec();
        ordered.sort_by(|left, right| (&left.org_id, &left.name).cmp(&(&right.org_id, &right.name)));
        let (rules, problems) = RuleSet::compile(&ordered, config)?;
        let mut evaluator = Evaluator::new(Arc::new(rules), config);
        evaluator.make_ready();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|other| other.key != key);
        if made.len() >= MADE_MAX {
            made.pop_front();
        }
        made.push_back(Made { key, evaluator, problems });
        drop(made);
        self.clear();
        Ok(())
    }

    /// Drops rules that are done with: there may be many of them, so not on the stream's thread.
    pub fn clear(&self) {
        let done_with = std::mem::take(&mut *self.done_with.lock().unwrap_or_else(PoisonError::into_inner));
        drop(done_with);
    }

    /// The rules that these files are, if they were made.
    pub(crate) fn take(&self, key: FilesKey) -> Option<Made> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let at = made.iter().position(|made| made.key == key)?;
        made.remove(at)
    }

    /// Leaves rules that are done with to whoever clears.
    pub(crate) fn leave(&self, evaluators: impl Iterator<Item = Evaluator>) {
        self.done_with.lock().unwrap_or_else(PoisonError::into_inner).extend(evaluators);
    }
}
