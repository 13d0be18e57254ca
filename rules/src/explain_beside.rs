//! What correlations and filters compile to, for people: beside [`explain`](crate::explain), which is about detection rules.

use crate::compile::RuleSet;
use crate::correlation::Correlation;
use crate::correlation::targets::ByTenant;
use crate::explain::{Explanation, Numbers};

/// A correlation as it runs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CorrelationShown {
    /// Its id.
    pub rule_id: String,
    /// Its title.
    pub title: String,
    /// Its level.
    pub level: String,
    /// The file that it is in.
    pub file: String,
    /// `event_count`, `temporal`, …
    pub kind: String,
    /// What it refers to, as written, each with the ids of the rules that are meant.
    pub rules: Vec<(String, Vec<String>)>,
    /// The fields that make a group.
    pub group_by: Vec<String>,
    /// The fields that are counted or added up.
    pub fields: Vec<String>,
    /// The length of its window, as written.
    pub timespan: String,
    /// What must hold of a window.
    pub condition: String,
    /// Whether it is judged with each event; otherwise when a window is over.
    pub with_each_event: bool,
    /// The ids of correlations that its firings are events for.
    pub feeds: Vec<String>,
    /// Whether it raises alerts: one that others refer to does only when one of them says `generate`.
    pub raises: bool,
}

/// What a correlation compiles to; `None` when there is none of that index in [`RuleSet::correlations`].
pub fn explain_correlation(set: &RuleSet, at: usize) -> Option<CorrelationShown> {
    let own = set.correlations().get(at)?;
    let definition = &own.definition;
    let mut rules: Vec<(String, Vec<String>)> =
        definition.rules.iter().map(|name| (name.clone(), Vec::new())).collect();
    let mut meant = |slot: u16, id: &str| {
        if let Some((_, ids)) = rules.get_mut(usize::from(slot)) {
            ids.push(id.to_owned());
        }
    };
    for (number, rule) in set.rules().iter().enumerate() {
        let targets = set.correlations.targets.get(&(number as u32)).into_iter().flat_map(ByTenant::iter);
        targets.filter(|target| target.correlation as usize == at).for_each(|target| meant(target.slot, &rule.head.id));
    }
    for other in set.correlations() {
        let feeds = other.feeds.iter().filter(|feed| feed.correlation as usize == at);
        feeds.for_each(|feed| meant(feed.slot, &other.head.id));
    }
    let id = |other: usize| set.correlations().get(other).map(|other: &Correlation| other.head.id.clone());
    Some(CorrelationShown {
        rule_id: own.head.id.clone(),
        title: own.head.title.clone(),
        level: own.head.level.as_str().to_owned(),
        file: own.head.file.clone(),
        kind: own.kind().to_owned(),
        rules,
        group_by: definition.group_by.clone(),
        fields: definition.fields.clone(),
        timespan: definition.span.1.clone(),
        condition: definition.condition_text.clone(),
        with_each_event: own.eager,
        feeds: own.feeds.iter().filter_map(|feed| id(feed.correlation as usize)).collect(),
        raises: set
            .correlations
            .referred
            .get(at)
            .is_none_or(|referred| referred.raises_by_default(own.head.org_id.as_deref())),
    })
}

/// A filter as it runs, on the rules of one log source.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FilterShown {
    /// Its id.
    pub rule_id: String,
    /// The file that it is in.
    pub file: String,
    /// The log source of the rules, as they name it.
    pub log_source: String,
    /// The ids of the rules that it is on; `None` for every rule of the log source.
    pub rules: Option<Vec<String>>,
    /// When a match stays, one test a line.
    pub keeps: Vec<String>,
}

/// The filters of a file, once for each log source whose rules they are on.
pub fn explain_filters(set: &RuleSet, file: &str) -> Vec<FilterShown> {
    let own = set.filters.iter().enumerate().filter(|(_, filter)| filter.file == file);
    let shown = |(at, filter): (usize, &crate::compile::filter::Filter)| {
        let routed = set.log_sources.get(filter.log_source)?;
        let mut numbers = Numbers::default();
        let program = numbers.expression(set, &filter.keeps);
        let on = |rule: &&crate::compile::Rule| rule.filters.has(at as u32);
        let rules = set.rules().iter().filter(on).map(|rule| rule.head.id.clone()).collect();
        let page = Explanation::of_program(set, &numbers, program);
        Some(FilterShown {
            rule_id: filter.id.clone(),
            file: filter.file.clone(),
            log_source: routed.name.clone(),
            rules: (!routed.filters.has(at as u32)).then_some(rules),
            keeps: page.lines(&page.program),
        })
    };
    own.filter_map(shown).collect()
}
