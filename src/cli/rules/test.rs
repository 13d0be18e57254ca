//! `tidegate rules test`: cases as folders. The rules and events of a case go through the decoder and the operator of the
//! server, and the alerts are compared with those that the case expects.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use serde_json::json;
use tidegate_rules::testcase::{Difference, Expected, ExpectedAlert, Raised};
use tidegate_rules::{RuleFile, pack};

use super::events::{self, Events, Wanted};
use super::files;
use crate::cli::Ending;
use crate::cli::style::{Style, cut};
use crate::config::Config;

/// Folders in folders that are looked into.
const DEPTH_MAX: usize = 16;
/// The most cases.
const CASES_MAX: usize = 100_000;
/// The most events of one case.
const EVENTS_MAX: usize = 1_000_000;
/// How much of an event is shown.
const EVENT_CHARS_MAX: usize = 160;

/// The file of what a case expects.
const EXPECTED: &str = "expected.json";

/// Runs the command.
///
/// # Errors
/// When folders cannot be read, when there is no case, or nothing can be printed. A case that fails is a result.
pub fn run(config: &Config, paths: &[PathBuf], style: Style, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let begun = Instant::now();
    let mut cases = Vec::new();
    for path in paths {
        find(path, 0, &mut cases)?;
    }
    let found = cases.len();
    let filter = config.rule_tools.filter.as_deref().unwrap_or_default();
    cases.retain(|case| case.to_string_lossy().contains(filter));
    if cases.is_empty() {
        bail!(
            "there is no case among the {found} found in {}: a case is a folder with rules, events.ndjson and {EXPECTED}",
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    let (mut failed, mut updated) = (0, 0);
    for case in &cases {
        let outcome = outcome(case, config);
        failed += usize::from(!outcome.passed());
        updated += usize::from(outcome.updated);
        if config.rule_tools.json {
            writeln!(out, "{}", outcome.as_json(case))?;
        } else {
            outcome.print(case, style, out)?;
        }
    }
    if !config.rule_tools.json {
        let passed = cases.len() - failed;
        let failed = if failed > 0 { style.error(&format!("{failed} failed")) } else { style.good("0 failed") };
        let updated = if updated > 0 { format!(", {updated} written anew") } else { String::new() };
        let s = if cases.len() == 1 { "" } else { "s" };
        writeln!(
            out,
            "{} case{s}: {passed} passed, {failed}{updated}; {:.1} s",
            cases.len(),
            begun.elapsed().as_secs_f64()
        )?;
    }
    Ok(if failed == 0 { Ending::Good } else { Ending::Bad })
}

/// Adds the cases in a folder, in the order of their names. A folder below a case is part of it.
fn find(folder: &Path, depth: usize, cases: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let names = names(folder)?;
    if names.iter().any(|name| name == EXPECTED || is_events(name)) {
        if cases.len() >= CASES_MAX {
            bail!("there are more than {CASES_MAX} cases; test them in parts");
        }
        cases.push(folder.to_owned());
        return Ok(());
    }
    for name in names {
        let path = folder.join(&name);
        if depth < DEPTH_MAX && !name.starts_with('.') && path.is_dir() {
            find(&path, depth + 1, cases)?;
        }
    }
    Ok(())
}

/// The names of what is in a folder, sorted.
fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let failed = || format!("cannot read the folder {}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        names.extend(entry.with_context(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// `events.ndjson`, `events.json`, `events.csv`; also `events.2.ndjson`, and compressed.
fn is_events(name: &str) -> bool {
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    name.starts_with("events") && [".ndjson", ".json", ".jsonl", ".csv"].into_iter().any(|end| name.ends_with(end))
}

/// What came of a case.
#[derive(Debug, Default)]
struct Outcome {
    raised: Raised,
    events: Events,
    differences: Vec<Difference>,
    /// What kept the case from being run, or from being right whatever it raises.
    problems: Vec<String>,
    /// Whether what it expects was written anew.
    updated: bool,
}

fn outcome(case: &Path, config: &Config) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = outcome.run(case, config) {
        outcome.problems.push(format!("{error:#}"));
    }
    outcome
}

impl Outcome {
    fn passed(&self) -> bool {
        self.problems.is_empty() && (self.differences.is_empty() || self.updated)
    }

    fn run(&mut self, case: &Path, config: &Config) -> anyhow::Result<()> {
        let path = case.join(EXPECTED);
        let expected = match fs::read_to_string(&path) {
            Ok(text) => Some(Expected::parse(&text).map_err(|error| anyhow!("{EXPECTED}: {error}"))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let known = expected.clone().unwrap_or_default();
        let rules = rules(case, config)?;
        let files: Vec<PathBuf> =
            names(case)?.into_iter().filter(|name| is_events(name)).map(|name| case.join(name)).collect();
        if files.is_empty() {
            bail!("there are no events: write them into events.ndjson, one JSON object a line");
        }
        let wanted = Wanted {
            files,
            source: known.source.clone(),
            dataset: known.dataset().map_err(|error| anyhow!("{EXPECTED}: {error}"))?,
            events_max: EVENTS_MAX,
            excerpts: true,
        };
        self.events = events::read(&wanted, config)?;
        self.raised = Raised::run(&rules, &self.events.batches, &self.events.of_id, &config.sigma)?;
        self.look();
        match &expected {
            Some(expected) => self.differences = self.raised.differences(expected),
            None if !config.rule_tools.update => {
                self.problems.push(format!("there is no {EXPECTED}: run with --update to write what is raised now"));
            }
            None => {}
        }
        let outdated = expected.is_none() || !self.differences.is_empty();
        if config.rule_tools.update && outdated && self.problems.is_empty() {
            let text = known.rewritten(&self.raised);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            self.updated = true;
        }
        Ok(())
    }

    /// What is wrong with rules and events themselves.
    fn look(&mut self) {
        let problems = self.raised.problems.iter().map(|problem| format!("rule: {problem}"));
        let parked = self.raised.parked.iter().map(|rule| format!("rule {} was parked: {}", rule.rule_id, rule.reason));
        let refused = self.events.refused.iter();
        let refused = refused.map(|(event, reason)| format!("event {event} would be refused: {reason}"));
        let repeated = self.events.duplicates.iter();
        let repeated =
            repeated.map(|event| format!("event {event} has the id of an earlier one: it would not be stored"));
        self.problems.extend(problems.chain(parked).chain(refused).chain(repeated));
        if self.events.cut {
            self.problems.push(format!("there are more than {EVENTS_MAX} events"));
        }
    }

    fn as_json(&self, case: &Path) -> serde_json::Value {
        json!({
            "case": case.to_string_lossy(),
            "passed": self.passed(),
            "updated": self.updated,
            "events": self.events.count,
            "alerts": self.raised.alerts,
            "differences": self.differences,
            "problems": self.problems,
        })
    }

    fn print(&self, case: &Path, style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
        let word = match (self.updated, self.passed()) {
            (true, _) => style.warning("written"),
            (_, true) => style.good("ok     "),
            (_, false) => style.error("FAILED "),
        };
        let (events, alerts) = (self.events.count, self.raised.alerts.len());
        writeln!(out, "{word} {}  {}", case.display(), style.faint(&format!("{events} events, {alerts} alerts")))?;
        for problem in &self.problems {
            writeln!(out, "        {}", cut(problem, 400))?;
        }
        for difference in &self.differences {
            self.print_difference(difference, style, out)?;
        }
        Ok(())
    }

    fn print_difference(&self, difference: &Difference, style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
        let event = |event: usize, out: &mut dyn Write| -> anyhow::Result<()> {
            let text = self.events.excerpts.get(event).map(String::as_str).unwrap_or_default();
            writeln!(out, "            {}", style.faint(&cut(text, EVENT_CHARS_MAX)))?;
            Ok(())
        };
        let (minus, plus) = (style.error("-"), style.good("+"));
        match difference {
            Difference::MissedEvent { event: at } => {
                writeln!(out, "        {minus} event {at} must match, and no rule matches it")?;
                event(*at, out)
            }
            Difference::UnexpectedEvent { event: at, rules } => {
                writeln!(out, "        {plus} event {at} must not match, and does: {}", cut(&rules.join(", "), 200))?;
                event(*at, out)
            }
            Difference::MissedAlert { wanted } => {
                writeln!(out, "        {minus} {}", text(wanted, None)?)?;
                Ok(())
            }
            Difference::UnexpectedAlert { raised } => {
                writeln!(out, "        {plus} {}", text(raised, None)?)?;
                Ok(())
            }
            Difference::OtherAlert { wanted, raised } => {
                writeln!(out, "        {minus} {}", text(wanted, None)?)?;
                writeln!(out, "        {plus} {}", text(raised, Some(wanted))?)?;
                Ok(())
            }
        }
    }
}

/// An alert as JSON; beside another one only what that one says too.
fn text(alert: &ExpectedAlert, beside: Option<&ExpectedAlert>) -> anyhow::Result<String> {
    let serde_json::Value::Object(mut members) = serde_json::to_value(alert)? else { return Ok(String::new()) };
    if let Some(serde_json::Value::Object(said)) = beside.map(serde_json::to_value).transpose()? {
        members.retain(|name, _| said.contains_key(name));
    }
    Ok(cut(&serde_json::Value::Object(members).to_string(), 600))
}

/// The rules of a case: its own files, and those that its file `rule` names.
fn rules(case: &Path, config: &Config) -> anyhow::Result<Vec<RuleFile>> {
    let mut rules = Vec::new();
    for name in names(case)? {
        if name.ends_with(".yml") || name.ends_with(".yaml") {
            let text = fs::read_to_string(case.join(&name)).with_context(|| format!("cannot read {name}"))?;
            rules.push(RuleFile::new(name, text));
        }
    }
    let list = match fs::read_to_string(case.join("rule")) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).context("cannot read the file rule"),
    };
    for line in list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        rules.extend(listed(case, line, config)?);
    }
    if rules.is_empty() {
        bail!("there is no rule: add rule.yml, or a file `rule` with paths of rules, one a line");
    }
    Ok(rules)
}

/// The rules at a path of the file `rule`: looked for from the case's folder, from each folder above it, and in the pack.
fn listed(case: &Path, line: &str, config: &Config) -> anyhow::Result<Vec<RuleFile>> {
    let case = case.canonicalize().with_context(|| format!("cannot find {}", case.display()))?;
    for folder in case.ancestors() {
        let path = folder.join(line);
        if path.exists() {
            let given = files::read(&[path], &config.sigma)?;
            if let Some(problem) = given.skipped.first() {
                bail!("{problem}");
            }
            return Ok(given.files);
        }
    }
    let shipped = pack::files().into_iter().find(|file| file.name == line);
    shipped.map(|file| vec![file]).ok_or_else(|| {
        anyhow!(
            "the file `rule` names {line}, which is neither below the case's folder or one above it, nor in the pack"
        )
    })
}
