//! What is odd about rules that load: for `tidegate rules check`. A warning never keeps a rule from running.
//!
//! Three kinds of looks: at one document as the Sigma specification sees it (the linter of `rsigma-parser`), at the logic of
//! one rule ([`logic`]), and at all documents together (references, spellings of fields).

mod logic;
mod metadata;

use std::collections::{BTreeMap, BTreeSet};

use rsigma_parser::{CorrelationRule, FilterRule, SigmaRule};

use crate::attack::{Tactic, tactics};
use crate::config::RulesConfig;
use crate::document::{Parsed, Part, parse_file};
use crate::error::RulesError;
use crate::logsource::LogSources;
use crate::nearest::nearest;
use crate::problem::{Fault, RuleFile, RuleProblem};

/// Something odd in a rule that loads.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RuleWarning {
    /// What was looked for: `unused_selection`, `missing_level`, …
    pub check: String,
    /// Where, what, and what to do about it.
    #[serde(flatten)]
    pub problem: RuleProblem,
}

/// Looks at files together. Documents that do not parse are passed over: [`RuleSet::compile`](crate::RuleSet::compile) tells
/// of them. The warnings come in the order of files and lines.
///
/// # Errors
/// [`RulesError::Table`] when a shipped table is broken, which is a bug.
pub fn lint(files: &[RuleFile], config: &RulesConfig) -> Result<Vec<RuleWarning>, RulesError> {
    let mut linter = Linter { tables: LogSources::shipped()?, tactics: tactics()?, warnings: Vec::new() };
    let mut documents = Vec::new();
    for file in files {
        // Errors are those of the compiler, which tells them.
        documents.extend(parse_file(file, config, &mut Vec::new()));
    }
    let mut last_part = None;
    for (part, parsed) in &documents {
        // Documents that build on each other are one part and several rules.
        if last_part.replace((part.file, part.lines_before)) != Some((part.file, part.lines_before)) {
            metadata::lint_part(part, &mut linter.warnings);
        }
        match parsed {
            Parsed::Rule(rule) => linter.rule(part, rule),
            Parsed::Correlation(rule) => linter.correlation(part, rule),
            Parsed::Filter(filter) => linter.filter(part, filter),
        }
    }
    linter.references(&documents);
    linter.spellings(&documents);
    let mut warnings = linter.warnings;
    warnings.sort_by(|left, right| key(left).cmp(&key(right)));
    Ok(warnings)
}

/// The order of warnings.
fn key(warning: &RuleWarning) -> (&str, usize, usize, &str) {
    (&warning.problem.file, warning.problem.line, warning.problem.column, &warning.check)
}

struct Linter {
    tables: LogSources,
    tactics: Vec<Tactic>,
    warnings: Vec<RuleWarning>,
}

/// What a document is called in reports.
fn name_of<'a>(id: Option<&'a String>, title: &'a String) -> &'a str {
    id.unwrap_or(title)
}

impl Linter {
    fn warn(&mut self, part: &Part<'_>, rule: &str, check: &str, fault: Fault) {
        self.warnings.push(RuleWarning { check: check.to_owned(), problem: part.problem(rule, fault) });
    }

    fn rule(&mut self, part: &Part<'_>, rule: &SigmaRule) {
        let name = name_of(rule.id.as_ref(), &rule.title);
        if rule.id.is_none() {
            let fault =
                Fault::new("the rule has no id; its title stands in, and alerts lose their rule when it changes");
            self.warn(part, name, "missing_id", fault.hint("add `id:` with a new UUID").near("title:"));
        }
        self.tags(part, name, &rule.tags);
        self.log_source(part, name, rule);
        for (check, fault) in logic::lint(&rule.detection) {
            self.warn(part, name, check, fault);
        }
    }

    fn correlation(&mut self, part: &Part<'_>, rule: &CorrelationRule) {
        let name = name_of(rule.id.as_ref(), &rule.title);
        if rule.id.is_none() {
            let fault = Fault::new("the correlation has no id; its title stands in");
            self.warn(part, name, "missing_id", fault.hint("add `id:` with a new UUID").near("title:"));
        }
        self.tags(part, name, &rule.tags);
    }

    fn filter(&mut self, part: &Part<'_>, filter: &FilterRule) {
        let name = name_of(filter.id.as_ref(), &filter.title);
        for (check, fault) in logic::lint(&filter.detection) {
            self.warn(part, name, check, fault);
        }
    }

    fn tags(&mut self, part: &Part<'_>, rule: &str, tags: &[String]) {
        use crate::attack::{AttackTag, attack_tag};
        if tags.is_empty() {
            let fault = Fault::new("the rule has no tags, so it counts for no ATT&CK technique");
            let hint = "add `tags:` such as attack.execution and attack.t1059.001";
            self.warn(part, rule, "missing_tags", fault.hint(hint).near("title:"));
        }
        let retired: Vec<String> =
            self.tactics.iter().filter(|tactic| tactic.retired).map(|tactic| tactic.name.clone()).collect();
        for tag in tags {
            match attack_tag(tag, &self.tactics) {
                Some(AttackTag::Unknown(unknown)) => {
                    let near =
                        nearest(&unknown.replace('_', "-"), self.tactics.iter().map(|tactic| tactic.name.as_str()));
                    let hint = match near {
                        Some(near) => format!("did you mean attack.{near}?"),
                        None => "tactics are written attack.initial-access, techniques attack.t1059.001".to_owned(),
                    };
                    let fault = Fault::new(format!("{tag} is no tactic, technique, group or software of ATT&CK"));
                    self.warn(part, rule, "unknown_attack_tag", fault.hint(hint).near(tag));
                }
                Some(AttackTag::Tactic(tactic)) if retired.contains(&tactic) => {
                    let fault = Fault::new(format!("ATT&CK has no tactic {tactic} any more"));
                    let hint = "since version 19 it is attack.stealth or attack.defense-impairment";
                    self.warn(part, rule, "retired_attack_tag", fault.hint(hint).near(tag));
                }
                _ => {}
            }
        }
    }

    fn log_source(&mut self, part: &Part<'_>, rule: &str, sigma: &SigmaRule) {
        let source = &sigma.logsource;
        let named = [&source.product, &source.category, &source.service];
        if named.iter().all(|part| part.is_none()) || self.tables.resolve(source).known {
            return;
        }
        let mut suggestions = Vec::new();
        for (at, (key, value)) in ["product", "category", "service"].into_iter().zip(named).enumerate() {
            let Some(value) = value.as_deref().map(|value| value.trim().to_lowercase()) else { continue };
            let known: BTreeSet<&str> =
                self.tables.names().map(|names| names[at]).filter(|name| !name.is_empty()).collect();
            if !known.contains(value.as_str())
                && let Some(near) = nearest(&value, known)
            {
                suggestions.push(format!("{key}: {near}"));
            }
        }
        let written = ["product", "category", "service"].into_iter().zip(named);
        let written: Vec<String> =
            written.filter_map(|(key, value)| Some(format!("{key}: {}", value.as_deref()?))).collect();
        let mut sources: Vec<String> =
            self.tables.resolve(source).covers.into_iter().flat_map(|cover| cover.sources).collect();
        let mut seen = BTreeSet::new();
        sources.retain(|source| seen.insert(source.clone()));
        let hint = if suggestions.is_empty() {
            // The last name is the most general one: the product, where there is one.
            format!("send its events with ?source={}", sources.last().map_or("…", String::as_str))
        } else {
            format!("did you mean {}?", suggestions.join(", "))
        };
        let fault = Fault::new(format!(
            "no table describes the log source {}; the rule sees only events whose source is {}",
            written.join(", "),
            if sources.is_empty() { "empty".to_owned() } else { sources.join(" or ") },
        ));
        self.warn(part, rule, "unknown_log_source", fault.hint(hint).near("logsource:"));
    }

    /// Correlations and filters that name rules which are not there.
    fn references(&mut self, documents: &[(Part<'_>, Parsed)]) {
        let mut known: BTreeSet<&str> = BTreeSet::new();
        for (_, parsed) in documents {
            let (id, name, title) = match parsed {
                Parsed::Rule(rule) => (&rule.id, &rule.name, &rule.title),
                Parsed::Correlation(rule) => (&rule.id, &rule.name, &rule.title),
                Parsed::Filter(_) => continue,
            };
            known.extend(id.as_deref().into_iter().chain(name.as_deref()).chain([title.as_str()]));
        }
        let mut missing = Vec::new();
        for (part, parsed) in documents {
            let (id, title, rules): (_, _, &[String]) = match parsed {
                Parsed::Correlation(rule) => (&rule.id, &rule.title, &rule.rules),
                Parsed::Filter(filter) => match &filter.rules {
                    rsigma_parser::FilterRuleTarget::Specific(rules) => (&filter.id, &filter.title, rules),
                    rsigma_parser::FilterRuleTarget::Any => continue,
                },
                Parsed::Rule(_) => continue,
            };
            for rule in rules.iter().filter(|rule| !known.contains(rule.as_str())) {
                let hint = match nearest(rule, known.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "check it together with the rules it names, or leave it out".to_owned(),
                };
                let fault = Fault::new(format!("no rule has the id or name {rule}")).hint(hint).near(rule);
                missing.push((part, name_of(id.as_ref(), title), fault));
            }
        }
        for (part, rule, fault) in missing {
            self.warn(part, rule, "unknown_rule", fault);
        }
    }

    /// Field names that differ from those of other rules of the same product only in case: names of fields mind case, so one
    /// of the two never meets a value.
    fn spellings(&mut self, documents: &[(Part<'_>, Parsed)]) {
        type Spellings = BTreeMap<String, BTreeMap<String, usize>>;
        let mut products: BTreeMap<String, Spellings> = BTreeMap::new();
        let product = |rule: &SigmaRule| rule.logsource.product.as_deref().unwrap_or_default().trim().to_lowercase();
        for (_, parsed) in documents {
            let Parsed::Rule(rule) = parsed else { continue };
            let spellings = products.entry(product(rule)).or_default();
            for field in logic::fields(&rule.detection) {
                *spellings.entry(field.to_lowercase()).or_default().entry(field).or_default() += 1;
            }
        }
        for (part, parsed) in documents {
            let Parsed::Rule(rule) = parsed else { continue };
            let Some(spellings) = products.get(&product(rule)) else { continue };
            for field in logic::fields(&rule.detection) {
                let Some(all) = spellings.get(&field.to_lowercase()) else { continue };
                let own = all.get(&field).copied().unwrap_or(0);
                let Some((usual, count)) = all.iter().max_by_key(|(_, count)| **count) else { continue };
                if *usual != field && *count >= own.saturating_mul(SPELLING_RATIO_MIN) {
                    let fault = Fault::new(format!(
                        "{count} rules write the field {field} as {usual}, and names of fields mind case"
                    ));
                    let fault = fault.hint(format!("did you mean {usual}?")).near(&field);
                    self.warn(part, name_of(rule.id.as_ref(), &rule.title), "unusual_field_case", fault);
                }
            }
        }
    }
}

/// How many rules must write a field in another way for each that writes it in this one.
const SPELLING_RATIO_MIN: usize = 5;
