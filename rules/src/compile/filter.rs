//! Sigma filter files: conditions that are added to rules from outside, to suppress matches that are known to be harmless.
//!
//! A filter never changes the program of a rule. It is compiled once for each log source whose rules it is for, and is only run
//! on rows that a rule has matched. So a tenant can have filters on rules that everyone shares, at no cost to the others.
//!
//! Sources: Sigma filters specification 2.1.0 and 2.2.0 (`rules: any`); where that is silent, `SigmaFilter` of pySigma.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rsigma_parser::{ConditionExpr, FilterRule, FilterRuleTarget, LogSource, Quantifier};

use crate::compile::detection::DetectionCompiler;
use crate::compile::interner::Predicate;
use crate::compile::program::{Leaf, Node};
use crate::compile::{Compiler, Routed};
use crate::document::Part;
use crate::head::called;
use crate::problem::{Fault, RuleProblem};

/// A filter, compiled for the rules of one log source.
#[derive(Debug)]
pub(crate) struct Filter {
    /// The Sigma `id`, or else the `name` or the title.
    pub id: String,
    /// The file it came from.
    pub file: String,
    /// The tenant for whose events it is; `None` for everyone.
    pub org_id: Option<Arc<str>>,
    /// The log source whose rules it is for.
    pub log_source: usize,
    /// A match stays where this is true.
    pub keeps: Node,
}

/// The filters on something: indices into `RuleSet::filters`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filters {
    /// On the events of every tenant.
    pub everyone: Vec<u32>,
    /// On the events of one tenant.
    pub tenants: BTreeMap<Arc<str>, Vec<u32>>,
}

impl Filters {
    pub fn is_empty(&self) -> bool {
        self.everyone.is_empty() && self.tenants.is_empty()
    }

    /// Whether a filter is among them, for whomever.
    pub fn has(&self, filter: u32) -> bool {
        self.everyone.contains(&filter) || self.tenants.values().any(|own| own.contains(&filter))
    }

    fn add(&mut self, org_id: Option<&Arc<str>>, filter: u32) {
        let filters = match org_id {
            None => &mut self.everyone,
            Some(org_id) => self.tenants.entry(org_id.clone()).or_default(),
        };
        if !filters.contains(&filter) {
            filters.push(filter);
        }
    }
}

/// A filter that was read; its rules may come later.
pub(crate) struct Pending<'a> {
    pub part: Part<'a>,
    pub filter: FilterRule,
    /// The tenant whose events it is for.
    pub org_id: Option<Arc<str>>,
    /// Where its problems go.
    pub file: usize,
}

/// Whether every part that the filter names is that of the rule (specification: a filter of `product: windows` is for all rules
/// of Windows, whatever their category or service).
fn contains(filter: &LogSource, rule: &[String; 3]) -> bool {
    let parts = [&filter.product, &filter.category, &filter.service];
    parts.iter().zip(rule).all(|(own, rule)| own.as_deref().is_none_or(|own| own.trim().to_lowercase() == *rule))
}

/// Whether the condition is true of an event in which none of its selections is found.
fn holds_of_nothing(condition: &ConditionExpr) -> bool {
    match condition {
        ConditionExpr::And(parts) => parts.iter().all(holds_of_nothing),
        ConditionExpr::Or(parts) => parts.iter().any(holds_of_nothing),
        ConditionExpr::Not(part) => !holds_of_nothing(part),
        ConditionExpr::Identifier(_) => false,
        ConditionExpr::Selector { quantifier, .. } => matches!(quantifier, Quantifier::Count(0)),
    }
}

/// The rules by what filters may call them: the id, and the name.
type Names = HashMap<String, Vec<usize>>;

/// Compiles filters and puts them on their rules and log sources. Every rule is compiled before.
pub(crate) fn attach(compiler: &mut Compiler<'_>, pending: Vec<Pending<'_>>, problems: &mut [Vec<RuleProblem>]) {
    let mut names = Names::new();
    for (at, rule) in compiler.rules.iter().enumerate() {
        for name in [Some(&rule.head.id), rule.head.name.as_ref()].into_iter().flatten() {
            let rules = names.entry(name.clone()).or_default();
            if rules.last() != Some(&at) {
                rules.push(at);
            }
        }
    }
    for Pending { part, filter, org_id, file } in pending {
        let id = called(filter.id.as_ref(), filter.name.as_ref(), &filter.title);
        let mut faults = Vec::new();
        let attached = compiler.filter((&id, part.file), &filter, org_id.as_ref(), &names, &mut faults);
        faults.extend(attached.err());
        if let Some(problems) = problems.get_mut(file) {
            problems.extend(faults.into_iter().map(|fault| part.problem(&id, fault)));
        }
    }
}

/// Adds what filters read to the views of their log sources, and filters to the users of their predicates, after the rules.
pub(crate) fn register(
    filters: &[Filter],
    rules: usize,
    log_sources: &mut [Routed],
    predicates: &[Predicate],
    users: &mut [Vec<u32>],
) {
    for (at, filter) in filters.iter().enumerate() {
        let Some(routed) = log_sources.get_mut(filter.log_source) else { continue };
        filter.keeps.visit(&mut |leaf| match leaf {
            Leaf::Predicate(id) => {
                routed.views.extend(predicates.get(id as usize).map(|predicate| predicate.view));
                if let Some(users) = users.get_mut(id as usize) {
                    users.push((rules + at) as u32);
                }
            }
            Leaf::View(view) => routed.views.push(view),
        });
    }
}

impl Compiler<'_> {
    /// Compiles one filter. What it names and cannot be found goes to `faults`; the rest of it is in force.
    fn filter(
        &mut self,
        (id, file): (&str, &str),
        filter: &FilterRule,
        org_id: Option<&Arc<str>>,
        names: &Names,
        faults: &mut Vec<Fault>,
    ) -> Result<(), Fault> {
        let log_source = self.check_filter(id, filter, org_id)?;
        let (rules, sources) = match &filter.rules {
            FilterRuleTarget::Any => (Vec::new(), self.sources_within(log_source)),
            FilterRuleTarget::Specific(references) => {
                let rules = self.rules_within(references, log_source, org_id, names, faults);
                let mut sources: Vec<usize> =
                    rules.iter().filter_map(|at| Some(self.rules.get(*at)?.log_source)).collect();
                sources.sort_unstable();
                sources.dedup();
                (rules, sources)
            }
        };
        if sources.is_empty() && faults.is_empty() {
            // Nothing to filter yet; a mistake in it is found all the same.
            self.log_source(log_source).and_then(|at| self.keeps(filter, at))?;
        }
        let mut compiled = BTreeMap::new();
        for at in sources {
            let keeps = self.keeps(filter, at)?;
            compiled.insert(at, self.filters.len() as u32);
            self.filters.push(Filter {
                id: id.to_owned(),
                file: file.to_owned(),
                org_id: org_id.cloned(),
                log_source: at,
                keeps,
            });
        }
        self.filter_ids.insert((org_id.map(|org_id| org_id.to_string()), id.to_owned()));
        if filter.rules == FilterRuleTarget::Any {
            for (at, number) in compiled {
                if let Some(routed) = self.log_sources.get_mut(at) {
                    routed.filters.add(org_id, number);
                }
            }
            return Ok(());
        }
        for at in rules {
            if let Some(rule) = self.rules.get_mut(at)
                && let Some(number) = compiled.get(&rule.log_source)
            {
                rule.filters.add(org_id, *number);
            }
        }
        Ok(())
    }

    fn check_filter<'f>(
        &self,
        id: &str,
        filter: &'f FilterRule,
        org_id: Option<&Arc<str>>,
    ) -> Result<&'f LogSource, Fault> {
        for scope in [None, org_id.map(|org_id| org_id.to_string())] {
            let key = (scope, id.to_owned());
            if let Some(other) = self.ids.get(&key) {
                let fault = Fault::new(format!("the id {id} is that of a rule in {other}"));
                return Err(fault.hint("give the filter a new UUID").near("id:"));
            }
            if self.filter_ids.contains(&key) {
                let fault = Fault::new(format!("the id {id} is that of another filter"));
                return Err(fault.hint("give it a new UUID").near("id:"));
            }
        }
        if rsigma_parser::is_unsupported(filter.sigma_version) {
            let fault = Fault::new("the filter is for a later version of Sigma");
            return Err(fault.hint("versions 2 and 3 are known").near("sigma-version:"));
        }
        let conditions = filter.detection.conditions.len();
        if conditions != 1 {
            let fault = Fault::new(format!("a filter has one condition, not {conditions}"));
            return Err(fault.hint("join them with `or`").near("condition:"));
        }
        let log_source = filter.logsource.as_ref().filter(|source| {
            [&source.product, &source.category, &source.service]
                .iter()
                .any(|part| part.as_deref().is_some_and(|part| !part.trim().is_empty()))
        });
        log_source.ok_or_else(|| {
            Fault::new("the filter names no log source")
                .hint("give logsource what its rules have in common: product, category, service")
                .near("logsource:")
        })
    }

    /// The log sources that a filter for `any` rule is for.
    fn sources_within(&self, log_source: &LogSource) -> Vec<usize> {
        let routed = self.log_sources.iter().enumerate();
        routed.filter(|(_, routed)| contains(log_source, &routed.parts)).map(|(at, _)| at).collect()
    }

    /// The rules that a filter names.
    fn rules_within(
        &self,
        references: &[String],
        log_source: &LogSource,
        org_id: Option<&Arc<str>>,
        names: &Names,
        faults: &mut Vec<Fault>,
    ) -> Vec<usize> {
        let mut found = Vec::new();
        for reference in references {
            // Rules of other tenants are nobody's business.
            let visible = |at: &&usize| {
                let own = self.rules.get(**at).and_then(|rule| rule.head.org_id.as_ref());
                org_id.is_none() || own.is_none() || own == org_id
            };
            let named: Vec<usize> = names.get(reference).into_iter().flatten().filter(visible).copied().collect();
            let parts = |at: &usize| self.rules.get(*at).and_then(|rule| self.log_sources.get(rule.log_source));
            let within = |at: &usize| parts(at).is_some_and(|routed| contains(log_source, &routed.parts));
            let before = found.len();
            found.extend(named.iter().copied().filter(within));
            if found.len() > before {
                continue;
            }
            faults.push(match named.first().and_then(parts) {
                None => {
                    Fault::new(format!("no rule has the id or name {reference:?}, so the filter does nothing to it"))
                        .hint("names are those of `id:` or `name:`; filters apply to detections, not to correlations")
                        .near(reference)
                }
                Some(routed) => Fault::new(format!(
                    "the rule {reference:?} is for another log source than the filter: {}",
                    routed.name
                ))
                .hint("leave out of the filter's logsource what the rule's does not say")
                .near(reference),
            });
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The rows of a log source whose matches stay.
    ///
    /// Conditions are written in two ways. pySigma adds the condition to the rule's as it is: `not selection` names what stays.
    /// The specification says that filters suppress, and its first examples name what goes: `condition: selection`. What
    /// tells them apart is an event that the filter says nothing about, with none of its selections: its matches must stay.
    fn keeps(&mut self, filter: &FilterRule, log_source: usize) -> Result<Node, Fault> {
        let resolved = self.resolved(log_source)?;
        let mut detection = DetectionCompiler::new(&mut self.interner, (&resolved, log_source), self.config);
        let condition = detection.compile(&filter.detection).map_err(|fault| fault.within("filter:"))?;
        let stays = filter.detection.conditions.first().is_some_and(holds_of_nothing);
        Ok(if stays { condition } else { condition.negate() })
    }
}
