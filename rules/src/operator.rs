//! The run loop's detection stage: rule changes in, alerts out.
//!
//! The rules themselves are state: rows of `changes` with kind `rule` create, update and delete rule files by name
//! (`target_id`), with `{"text": "<yaml>"}` as body, and take effect for the rows after them. A change of the tenant
//! [`DEFAULT_ORG`], to whom the program's own rule folder belongs, is for the events of every tenant; a change of any other
//! tenant is for its own events only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use tidegate_events::Dataset;
use tidegate_pipeline::keys::DEFAULT_ORG;
use tidegate_pipeline::{Emitter, LogBatch, Operator, PipelineError};

use crate::ahead::{Ahead, FilesKey, Made};
use crate::alerting::{Alerting, Dear};
use crate::apart::Evaluators;
use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::correlation::Correlations;
use crate::error::RulesError;
use crate::eval::{Counts, Evaluator, Parked};
use crate::feedback;
use crate::metrics;
use crate::off::{OFF_KIND, Off};
use crate::problem::{RuleFile, RuleProblem};
use crate::sections;
use crate::status::StatusBoard;

/// The value of `kind` in rows of `changes` that concern rules.
pub const CHANGE_KIND: &str = "rule";

/// Evaluates the Sigma rules that the log says are in force.
#[derive(Debug)]
pub struct SigmaOperator {
    config: RulesConfig,
    /// By tenant (`None`: every tenant) and name.
    files: BTreeMap<(Option<String>, String), String>,
    /// The bytes of their texts.
    files_bytes: usize,
    /// Whether files changed since the evaluator was made.
    stale: bool,
    /// What tells the files apart from others.
    files_key: FilesKey,
    ahead: Ahead,
    evaluators: Evaluators,
    problems: Vec<RuleProblem>,
    reported: Counts,
    /// How often rules matched, but for those that are off.
    matched: u64,
    correlations: Correlations,
    alerting: Alerting,
    /// Rules that tenants turned off.
    off: Arc<Off>,
    /// What no longer runs because it took too much time or panicked.
    parked: Vec<Parked>,
    status: StatusBoard,
}

/// The parts of the saved state.
mod part {
    /// The rule files, as JSON.
    pub const FILES: u8 = 1;
    /// The open windows of suppression.
    pub const WINDOWS: u8 = 2;
    /// The silences.
    pub const SILENCES: u8 = 3;
    /// The groups of correlations.
    pub const CORRELATIONS: u8 = 4;
}

/// The saved rule files.
#[derive(serde::Serialize, serde::Deserialize)]
struct Saved {
    version: u32,
    files: Vec<SavedFile>,
    #[serde(default)]
    off: Off,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SavedFile {
    org_id: Option<String>,
    name: String,
    text: String,
}

impl SigmaOperator {
    /// An operator without rules.
    ///
    /// # Errors
    /// [`RulesError::Table`] when a shipped log source table is broken, which is a bug.
    pub fn new(config: RulesConfig) -> Result<Self, RulesError> {
        let (rules, problems) = RuleSet::compile(&[], &config)?;
        let evaluators = Evaluators::new(Evaluator::new(Arc::new(rules), &config), &config);
        let alerting = Alerting::new(&config);
        let correlations = Correlations::new(&config);
        Ok(Self {
            config,
            files: BTreeMap::new(),
            files_bytes: 0,
            stale: false,
            files_key: FilesKey::default(),
            ahead: Ahead::default(),
            evaluators,
            problems,
            reported: Counts::default(),
            matched: 0,
            correlations,
            alerting,
            off: Arc::default(),
            parked: Vec::new(),
            status: StatusBoard::default(),
        })
    }

    /// The same, which takes up rules that others compile ahead.
    #[must_use]
    pub fn with_ahead(mut self, ahead: Ahead) -> Self {
        self.ahead = ahead;
        self
    }

    /// The rules in force. Compiles them first if they changed.
    pub fn rules(&mut self) -> &Arc<RuleSet> {
        self.refresh();
        self.evaluators.rules()
    }

    /// Why rules in force were not loaded. Compiles them first if they changed.
    pub fn problems(&mut self) -> &[RuleProblem] {
        self.refresh();
        &self.problems
    }

    /// Rules, filters and correlations that are parked.
    pub fn parked(&self) -> &[Parked] {
        &self.parked
    }

    /// Where the operator says how its rules are, for other threads.
    pub fn status(&self) -> StatusBoard {
        self.status.clone()
    }

    /// How often rules matched since the start.
    pub fn matched(&self) -> u64 {
        self.matched
    }

    /// How many groups correlations remember, and about how many bytes these take.
    pub fn correlation_groups(&self) -> (usize, usize) {
        (self.correlations.groups(), self.correlations.bytes())
    }

    /// Whether windows of correlations that are over wait to be decided: they are with the rows that come next.
    pub(crate) fn is_behind(&self) -> bool {
        self.correlations.is_behind()
    }

    /// How many timers of correlations there are, and how many events and steps of indexes were looked at so far to judge their
    /// windows.
    pub fn correlation_work(&self) -> (usize, u64) {
        self.correlations.work()
    }

    /// The matches of a batch: see [`Evaluator::matches`].
    pub fn matches(&mut self, batch: &LogBatch) -> Vec<(usize, usize)> {
        self.refresh();
        self.find(batch)
    }

    fn find(&mut self, batch: &LogBatch) -> Vec<(usize, usize)> {
        self.evaluators.matches(batch)
    }

    /// Compiles, if files changed. Lazily: a folder of thousands of rules arrives as many changes.
    fn refresh(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let started = Instant::now();
        if let Some(Made { evaluator, problems, .. }) = self.ahead.take(self.files_key) {
            let done_with = self.put_in_force(evaluator, problems);
            self.ahead.leave(done_with.into_iter());
            ::metrics::histogram!(metrics::COMPILE_SECONDS).record(started.elapsed().as_secs_f64());
            return;
        }
        let file = |((org_id, name), text): (&(Option<String>, String), &String)| RuleFile {
            name: name.clone(),
            text: text.clone(),
            org_id: org_id.clone(),
        };
        let files: Vec<RuleFile> = self.files.iter().map(file).collect();
        match RuleSet::compile(&files, &self.config) {
            Ok((rules, problems)) => {
                drop(self.put_in_force(Evaluator::new(Arc::new(rules), &self.config), problems));
            }
            Err(error) => tracing::error!(%error, "rules not compiled; the old ones stay in force"),
        }
        ::metrics::histogram!(metrics::COMPILE_SECONDS).record(started.elapsed().as_secs_f64());
    }

    /// Goes over to other rules; what is done with is handed back.
    fn put_in_force(&mut self, new: Evaluator, problems: Vec<RuleProblem>) -> Vec<Evaluator> {
        for problem in problems.iter().take(20) {
            tracing::warn!(file = problem.file, rule = problem.rule, "rule not loaded: {problem}");
        }
        let rules = new.rules();
        tracing::info!(rules = rules.rules().len(), problems = problems.len(), "rules compiled");
        ::metrics::gauge!(metrics::LOADED).set(rules.rules().len() as f64);
        ::metrics::gauge!(metrics::PROBLEMS).set(problems.len() as f64);
        ::metrics::gauge!(metrics::PREDICATES).set(rules.predicates() as f64);
        self.reported = Counts::default();
        self.problems = problems;
        self.evaluators.replace(new)
    }

    fn take_changes(&mut self, rows: &RecordBatch) {
        let text = |name: &str| rows.column_by_name(name).and_then(|array| array.as_string_opt::<i32>());
        let (Some(kinds), Some(names), Some(actions)) = (text("kind"), text("target_id"), text("action")) else {
            return;
        };
        let (bodies, orgs) = (text("body"), text(Dataset::ORG_ID));
        let value = |column: Option<&StringArray>, row: usize| -> Option<String> {
            column.filter(|column| column.is_valid(row)).map(|column| column.value(row).to_owned())
        };
        for row in 0..rows.num_rows() {
            let kind = value(Some(kinds), row).unwrap_or_default();
            if kind == feedback::KIND {
                let gone = value(Some(actions), row).as_deref() == Some("delete");
                let body = value(bodies, row).filter(|_| !gone);
                let (org_id, alert_id) = (value(orgs, row).unwrap_or_default(), value(Some(names), row));
                self.alerting.take_feedback(&org_id, &alert_id.unwrap_or_default(), body.as_deref());
            }
            let Some(name) = value(Some(names), row) else { continue };
            let action = value(Some(actions), row).unwrap_or_default();
            if kind == OFF_KIND {
                Arc::make_mut(&mut self.off).take_change(&value(orgs, row).unwrap_or_default(), &name, &action);
            }
            if kind != CHANGE_KIND {
                continue;
            }
            let org_id = value(orgs, row).filter(|org_id| org_id != DEFAULT_ORG);
            let body = value(bodies, row);
            self.take_change((org_id, name), &action, body.as_deref());
        }
    }

    fn take_change(&mut self, key: (Option<String>, String), action: &str, body: Option<&str>) {
        match action {
            "delete" => self.put_file(key, None),
            "create" | "update" => {
                let body = body.and_then(|body| serde_json::from_str::<serde_json::Value>(body).ok());
                let Some(text) = body.as_ref().and_then(|body| body.get("text")?.as_str()) else {
                    tracing::warn!(file = key.1, "rule change ignored: its body is not {{\"text\": \"…\"}}");
                    return;
                };
                if self.files.get(&key).is_none_or(|known| known != text) {
                    if !self.has_room(&key, text) {
                        ::metrics::counter!(metrics::REFUSED_CHANGES).increment(1);
                        tracing::warn!(
                            file = key.1,
                            "rule change not taken: the rule files have too many bytes; raise sigma.files_bytes_max or tenant_files_bytes_max"
                        );
                        return;
                    }
                    self.put_file(key, Some(text));
                }
            }
            // Parking, feedback and whatever else is said of a rule: not about its text.
            _ => {}
        }
    }

    /// Whether the texts of all files, and of those of the tenant, stay within their bounds with this one.
    fn has_room(&self, key: &(Option<String>, String), text: &str) -> bool {
        let before = self.files.get(key).map_or(0, String::len);
        if self.files_bytes - before + text.len() > self.config.files_bytes_max {
            return false;
        }
        let first = (key.0.clone(), String::new());
        let own = || self.files.range(first..).take_while(|(known, _)| known.0 == key.0).map(|(_, text)| text.len());
        key.0.is_none() || own().sum::<usize>() + text.len() <= self.config.tenant_files_bytes_max + before
    }

    /// Puts a text in the place of what a file was; `None` for a file that goes.
    fn put_file(&mut self, key: (Option<String>, String), text: Option<&str>) {
        let before = match text {
            Some(text) => {
                self.files_bytes += text.len();
                self.files_key.add(key.0.as_deref(), &key.1, text);
                self.files.insert(key.clone(), text.to_owned())
            }
            None => self.files.remove(&key),
        };
        self.stale |= text.is_some() || before.is_some();
        if let Some(before) = before {
            self.files_bytes -= before.len();
            self.files_key.remove(key.0.as_deref(), &key.1, &before);
        }
    }

    fn report(&mut self, seconds: f64) {
        let (now, before) = (self.evaluators.counts(), self.reported);
        ::metrics::counter!(metrics::ROWS).increment(now.rows - before.rows);
        ::metrics::counter!(metrics::VALUES).increment(now.values - before.values);
        ::metrics::counter!(metrics::DECIDED).increment(now.decided - before.decided);
        ::metrics::counter!(metrics::CANDIDATES).increment(now.candidates - before.candidates);
        ::metrics::counter!(metrics::FILTERED).increment(now.filtered - before.filtered);
        ::metrics::gauge!(metrics::REMEMBERED).set(self.evaluators.remembered() as f64);
        ::metrics::histogram!(metrics::BATCH_SECONDS).record(seconds);
        self.reported = now;
        let (rules, correlations) = (self.evaluators.parked(), self.correlations.parked());
        if self.parked.iter().ne(rules.iter().chain(correlations)) {
            self.parked = rules.iter().chain(correlations).cloned().collect();
            ::metrics::gauge!(metrics::PARKED).set(self.parked.len() as f64);
        }
        self.status.tell(&self.parked);
    }
}

impl Operator for SigmaOperator {
    fn name(&self) -> &str {
        "sigma"
    }

    fn process(&mut self, batch: &LogBatch, out: &mut Emitter) {
        match batch.dataset {
            Dataset::Changes => self.take_changes(&batch.rows),
            Dataset::SecurityEvents | Dataset::CostEvents => {
                self.refresh();
                let started = Instant::now();
                let mut matches = self.find(batch);
                self.off.retain(self.evaluators.rules(), &batch.rows, &mut matches);
                self.matched += matches.len() as u64;
                let rules = self.evaluators.rules();
                let found = (matches.as_slice(), &mut self.correlations);
                let raised = self.alerting.raise((rules, &self.off), &batch.rows, found, &self.config);
                raised.into_iter().for_each(|alert| out.alert(alert));
                for Dear { org_id, rule, ns } in self.alerting.take_dear() {
                    self.evaluators.charge(&org_id, rule, ns);
                }
                for (org_id, rule) in self.alerting.take_panicked() {
                    self.evaluators.park_for(&org_id, rule);
                }
                self.report(started.elapsed().as_secs_f64());
            }
            Dataset::Alerts | Dataset::DeadLetters => {}
        }
    }

    fn save(&self) -> Vec<u8> {
        let file = |((org_id, name), text): (&(Option<String>, String), &String)| SavedFile {
            org_id: org_id.clone(),
            name: name.clone(),
            text: text.clone(),
        };
        let saved = Saved { version: 1, files: self.files.iter().map(file).collect(), off: Off::clone(&self.off) };
        // Strings always serialize.
        let files = serde_json::to_vec(&saved).unwrap_or_default();
        let (windows, silences) = self.alerting.save();
        let others = files.len() + windows.len() + silences.len() + sections::OVERHEAD;
        let (correlations, left_out) = self.correlations.save(self.config.state_bytes_max.saturating_sub(others));
        if left_out > 0 {
            ::metrics::counter!(metrics::CORRELATION_UNSAVED).increment(left_out);
            tracing::warn!(
                left_out,
                "groups of correlations do not fit into the checkpoint: after a restart they begin anew; raise sigma.state_bytes_max"
            );
        }
        sections::join(&[
            (part::FILES, files),
            (part::WINDOWS, windows),
            (part::SILENCES, silences),
            (part::CORRELATIONS, correlations),
        ])
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PipelineError> {
        let invalid = |reason: String| PipelineError::Invalid(format!("the saved state of the rules: {reason}"));
        let parts = sections::split(state).map_err(invalid)?;
        let bytes = |tag: u8| parts.iter().find(|(own, _)| *own == tag).map_or(&b""[..], |(_, bytes)| bytes);
        let saved: Saved = serde_json::from_slice(bytes(part::FILES)).map_err(|error| invalid(error.to_string()))?;
        if saved.version != 1 {
            return Err(invalid(format!("version {} is not known, only 1", saved.version)));
        }
        let (windows, silences) = (bytes(part::WINDOWS), bytes(part::SILENCES));
        let correlations = Correlations::restore(&self.config, bytes(part::CORRELATIONS)).map_err(invalid)?;
        self.alerting = Alerting::restore(&self.config, windows, silences).map_err(invalid)?;
        self.correlations = correlations;
        self.files = saved.files.into_iter().map(|file| ((file.org_id, file.name), file.text)).collect();
        self.files_bytes = self.files.values().map(String::len).sum();
        self.files_key = FilesKey::default();
        for ((org_id, name), text) in &self.files {
            self.files_key.add(org_id.as_deref(), name, text);
        }
        self.off = Arc::new(saved.off);
        self.stale = true;
        Ok(())
    }
}
