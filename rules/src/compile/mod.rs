//! Rules compiled: files in, [`RuleSet`] and problems out.

mod alone;
mod attribute;
mod detection;
mod encoding;
pub(crate) mod filter;
pub(crate) mod glob;
pub(crate) mod interner;
pub(crate) mod matcher;
mod modifiers;
pub(crate) mod program;
pub(crate) mod required;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rsigma_parser::{LogSource, SigmaRule};
use tidegate_events::Dataset;

use crate::config::RulesConfig;
use crate::correlation::{Correlation, CorrelationSet, set as correlation_set};
use crate::document::{Parsed, parse_file};
use crate::error::RulesError;
use crate::head::{Head, called, level};
use crate::logsource::{Cover, LogSources, Resolved, Wanted};
use crate::panicked::attempt;
use crate::problem::{Fault, RuleFile, RuleProblem};
pub use attribute::span_us;
use detection::DetectionCompiler;
use filter::{Filter, Filters, Pending};
use interner::{Interner, Predicate, View};
use matcher::Matcher;
use modifiers::{Test, apply};
use program::{Leaf, Node, PredicateId, ViewId};

/// One rule, ready to run.
#[derive(Debug)]
pub struct Rule {
    /// What it says of itself.
    pub head: Head,
    /// The fields that the rule names, and the view of each.
    pub(crate) fields: Vec<(String, ViewId)>,
    /// The fields that the rule asks to be shown (Sigma `fields`), and the view of each.
    pub(crate) shown: Vec<(String, ViewId)>,
    pub(crate) program: Node,
    pub(crate) log_source: usize,
    /// The fields of its group key, and the view of each; `None` for actor, asset and resource.
    pub(crate) group_by: Option<Vec<(String, ViewId)>>,
    /// How long further matches are counted before the next alert (µs); `None` for what the configuration says.
    pub(crate) suppress_us: Option<i64>,
    /// The filters on it alone; those on all rules of its log source are there.
    pub(crate) filters: Filters,
}

/// A log source that rules use, compiled.
#[derive(Debug)]
pub(crate) struct Routed {
    pub dataset: Dataset,
    /// Which rows it covers.
    pub program: Node,
    /// The views that its rules read.
    pub views: Vec<ViewId>,
    pub resolved: Resolved,
    /// What rules call it, for reports.
    pub name: String,
    /// The product, category and service that rules name, in lower case; empty where they name none.
    pub parts: [String; 3],
    /// The filters on all its rules.
    pub filters: Filters,
}

/// Rules compiled together: predicates that are the same are one. Immutable; an
/// [`Evaluator`](crate::Evaluator) runs it.
#[derive(Debug)]
pub struct RuleSet {
    pub(crate) rules: Vec<Rule>,
    pub(crate) log_sources: Vec<Routed>,
    pub(crate) views: Vec<View>,
    pub(crate) predicates: Vec<Predicate>,
    /// For each predicate, the rules that it is in; filters are numbered after the rules.
    pub(crate) users: Vec<Vec<u32>>,
    /// Filters, each for the rules of one log source.
    pub(crate) filters: Vec<Filter>,
    pub(crate) correlations: CorrelationSet,
    /// The view of `source`.
    pub(crate) source_view: ViewId,
}

/// What is said of a rule that meets a bug.
const PANICKED: &str = "the program panicked as it read this, which is a bug of it: its log says where";

impl RuleSet {
    /// Compiles files. What cannot be loaded is reported, in the order of files and documents; the rest is in the set, in the
    /// same order.
    ///
    /// # Errors
    /// [`RulesError::Table`] when a shipped log source table is broken, which is a bug.
    pub fn compile(files: &[RuleFile], config: &RulesConfig) -> Result<(Self, Vec<RuleProblem>), RulesError> {
        let mut compiler = Compiler::new(config)?;
        let (mut filters, mut correlations) = (Vec::new(), Vec::new());
        let mut problems = vec![Vec::new(); files.len()];
        let mut ordered: Vec<&RuleFile> = files.iter().collect();
        // Rules for everyone come before those of single tenants, so that a tenant cannot take away an id.
        ordered.sort_by_key(|file| (&file.org_id, &file.name));
        let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        for ((at, file), problems) in ordered.into_iter().enumerate().zip(&mut problems) {
            let count = counts.entry(file.org_id.as_deref()).or_default();
            *count += 1;
            let problem = too_many(file, *count, config);
            if problem.is_some() {
                problems.extend(problem);
                continue;
            }
            let parsed = attempt(|| parse_file(file, config, problems));
            for (part, parsed) in parsed.unwrap_or_else(|_| panicked(file, problems)) {
                match parsed {
                    Parsed::Filter(filter) => {
                        let org_id = file.org_id.as_deref().map(Arc::from);
                        filters.push(Pending { part, filter: *filter, org_id, file: at });
                    }
                    Parsed::Correlation(rule) => {
                        let id = called(rule.id.as_ref(), rule.name.as_ref(), &rule.title);
                        let checked = compiler.check(file, rule.sigma_version, &id);
                        compiler.ids.entry((file.org_id.clone(), id.clone())).or_insert_with(|| file.name.clone());
                        match checked {
                            Ok(()) => correlations.push(correlation_set::Pending {
                                part,
                                rule: *rule,
                                id,
                                org_id: file.org_id.as_deref().map(Arc::from),
                                file: (file.name.clone(), at),
                            }),
                            Err(fault) => problems.push(part.problem(&id, fault)),
                        }
                    }
                    Parsed::Rule(rule) => {
                        let name = rule.id.as_ref().unwrap_or(&rule.title).clone();
                        let compiled = attempt(|| compiler.rule(file, *rule));
                        if let Err(fault) = compiled.unwrap_or_else(|_| Err(Fault::new(PANICKED))) {
                            problems.push(part.problem(&name, fault));
                        }
                    }
                }
            }
        }
        filter::attach(&mut compiler, filters, &mut problems);
        let correlations = compiler.correlations(correlations, &mut problems);
        problems.iter_mut().for_each(|problems| problems.sort_by_key(|problem| (problem.line, problem.column)));
        Ok((compiler.finish(correlations), problems.concat()))
    }

    /// The rules, in order. The index of a rule is what [`Evaluator::matches`](crate::Evaluator::matches) names it by.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The correlation rules, those that others refer to first.
    pub fn correlations(&self) -> &[Correlation] {
        &self.correlations.correlations
    }

    /// How many filters there are.
    pub fn filters(&self) -> usize {
        self.filters.len()
    }

    /// How many distinct predicates all rules together have.
    pub fn predicates(&self) -> usize {
        self.predicates.len()
    }

    /// The predicates of each view.
    pub(crate) fn by_view(&self) -> Vec<Vec<PredicateId>> {
        let mut by_view = vec![Vec::new(); self.views.len()];
        for (id, predicate) in self.predicates.iter().enumerate() {
            if let Some(own) = by_view.get_mut(predicate.view as usize) {
                own.push(id as PredicateId);
            }
        }
        by_view
    }

    /// How many rules and filters there are.
    pub(crate) fn units(&self) -> usize {
        self.rules.len() + self.filters.len()
    }

    /// The program of a rule, or of a filter: they are numbered after the rules.
    pub(crate) fn program(&self, unit: usize) -> Option<&Node> {
        let filter = || self.filters.get(unit.checked_sub(self.rules.len())?).map(|filter| &filter.keeps);
        self.rules.get(unit).map(|rule| &rule.program).or_else(filter)
    }

    /// The id of a rule, or of a filter: they are numbered after the rules.
    pub(crate) fn unit_id(&self, unit: usize) -> &str {
        let filter = || Some(self.filters.get(unit.checked_sub(self.rules.len())?)?.id.as_str());
        self.rules.get(unit).map(|rule| rule.head.id.as_str()).or_else(filter).unwrap_or_default()
    }

    /// The tenant whose rule or filter it is: filters are numbered after the rules.
    pub(crate) fn unit_org(&self, unit: usize) -> Option<&Arc<str>> {
        match unit.checked_sub(self.rules.len()) {
            None => self.rules.get(unit)?.head.org_id.as_ref(),
            Some(filter) => self.filters.get(filter)?.org_id.as_ref(),
        }
    }

    /// The log sources of rules that no table describes: those rules see only events whose `source` has that name.
    pub fn unknown_log_sources(&self) -> Vec<&str> {
        let unknown = |routed: &&Routed| !routed.resolved.known;
        self.log_sources.iter().filter(unknown).map(|routed| routed.name.as_str()).collect()
    }
}

/// Says of a file that to read it panicked.
fn panicked<T>(file: &RuleFile, problems: &mut Vec<RuleProblem>) -> Vec<T> {
    problems.push(RuleProblem {
        file: file.name.clone(),
        line: 1,
        column: 1,
        rule: String::new(),
        reason: PANICKED.to_owned(),
        hint: String::new(),
    });
    Vec::new()
}

/// Why the file that is this many-th of its tenant, or of everyone, is not looked at.
fn too_many(file: &RuleFile, count: usize, config: &RulesConfig) -> Option<RuleProblem> {
    let (bound, max) = match file.org_id {
        None => ("files_max", config.files_max),
        Some(_) => ("tenant_files_max", config.tenant_files_max),
    };
    let problem = || RuleProblem {
        file: file.name.clone(),
        line: 1,
        column: 1,
        rule: String::new(),
        reason: format!("there are more than {max} rule files"),
        hint: format!("remove some, or raise sigma.{bound}"),
    };
    (count > max).then(problem)
}

pub(crate) struct Compiler<'a> {
    config: &'a RulesConfig,
    tables: LogSources,
    interner: Interner,
    rules: Vec<Rule>,
    log_sources: Vec<Routed>,
    log_source_ids: BTreeMap<String, usize>,
    ids: BTreeMap<(Option<String>, String), String>,
    filters: Vec<Filter>,
    filter_ids: BTreeSet<(Option<String>, String)>,
    source_view: ViewId,
}

impl<'a> Compiler<'a> {
    fn new(config: &'a RulesConfig) -> Result<Self, RulesError> {
        let mut interner = Interner::new(config.regex_bytes_max);
        let source_view = interner.field_view(vec!["source".into()]);
        Ok(Self {
            config,
            tables: LogSources::shipped()?,
            interner,
            rules: Vec::new(),
            log_sources: Vec::new(),
            log_source_ids: BTreeMap::new(),
            ids: BTreeMap::new(),
            filters: Vec::new(),
            filter_ids: BTreeSet::new(),
            source_view,
        })
    }

    fn rule(&mut self, file: &RuleFile, rule: SigmaRule) -> Result<(), Fault> {
        #[cfg(test)]
        crate::fuse::burst("compile", &rule.title);
        let id = called(rule.id.as_ref(), rule.name.as_ref(), &rule.title);
        self.check(file, rule.sigma_version, &id)?;
        let log_source = self.log_source(&rule.logsource)?;
        let resolved = self.resolved(log_source)?;
        let mut detection = DetectionCompiler::new(&mut self.interner, (&resolved, log_source), self.config);
        let program = detection.compile(&rule.detection).map_err(|fault| fault.within("detection:"))?;
        let fields = detection.fields;
        let wanted = attribute::attribute(&rule.custom_attributes)?;
        let interner = &mut self.interner;
        let mut with_view = |field: String| {
            let view = interner.field_view(resolved.columns(&field));
            (field, view)
        };
        let shown: Vec<_> = rule.fields.iter().take(32).cloned().map(&mut with_view).collect();
        let group_by = wanted.group_by.map(|fields| fields.into_iter().map(&mut with_view).collect());
        self.ids.insert((file.org_id.clone(), id.clone()), file.name.clone());
        let head = Head {
            id,
            name: rule.name,
            title: rule.title,
            description: rule.description.unwrap_or_default(),
            level: level(rule.level),
            tags: rule.tags,
            falsepositives: rule.falsepositives,
            file: file.name.clone(),
            org_id: file.org_id.as_deref().map(Arc::from),
        };
        self.rules.push(Rule {
            head,
            fields,
            shown,
            program,
            log_source,
            group_by,
            suppress_us: wanted.suppress_us,
            filters: Filters::default(),
        });
        Ok(())
    }

    /// What the tables say of a log source that is compiled.
    fn resolved(&self, log_source: usize) -> Result<Resolved, Fault> {
        let resolved = self.log_sources.get(log_source).map(|routed| routed.resolved.clone());
        resolved.ok_or_else(|| Fault::new("the log source is not there"))
    }

    fn check(&self, file: &RuleFile, sigma_version: Option<u32>, id: &str) -> Result<(), Fault> {
        for scope in [None, file.org_id.clone()] {
            if let Some(other) = self.ids.get(&(scope, id.to_owned())) {
                let reason = format!("the id {id} is that of a rule in {other}");
                return Err(Fault::new(reason).hint("give it a new UUID").near("id:"));
            }
        }
        if rsigma_parser::is_unsupported(sigma_version) {
            let fault = Fault::new("the rule is for a later version of Sigma");
            return Err(fault.hint("versions 2 and 3 are known").near("sigma-version:"));
        }
        Ok(())
    }

    /// The number of the rule's log source, compiled if it is new.
    fn log_source(&mut self, source: &LogSource) -> Result<usize, Fault> {
        let parts = [&source.product, &source.category, &source.service]
            .map(|part| part.as_deref().unwrap_or_default().trim().to_lowercase());
        if parts.iter().all(String::is_empty) {
            return Err(Fault::new("the rule names no log source")
                .hint("give logsource a product, a category or a service")
                .near("logsource:"));
        }
        let name = parts.join("/");
        if let Some(known) = self.log_source_ids.get(&name) {
            return Ok(*known);
        }
        let resolved = self.tables.resolve(source);
        let mut covers = Vec::with_capacity(resolved.covers.len());
        for cover in &resolved.covers {
            covers.push(self.cover(&resolved, cover)?);
        }
        let number = self.log_sources.len();
        self.log_sources.push(Routed {
            dataset: resolved.dataset,
            program: Node::any(covers),
            views: Vec::new(),
            resolved,
            name: name.clone(),
            parts,
            filters: Filters::default(),
        });
        self.log_source_ids.insert(name, number);
        Ok(number)
    }

    fn cover(&mut self, resolved: &Resolved, cover: &Cover) -> Result<Node, Fault> {
        let mut all = Vec::new();
        if !cover.sources.is_empty() {
            let mut sources = Vec::new();
            for source in &cover.sources {
                sources.push(self.wanted(self.source_view, &Wanted::Text(source.clone()))?);
            }
            all.push(Node::any(sources));
        }
        for alternatives in &cover.all {
            let mut any = Vec::new();
            for wants in alternatives {
                let mut fields = Vec::new();
                for (field, wanted) in wants {
                    let view = self.interner.field_view(resolved.columns(field));
                    fields.push(self.wanted(view, wanted)?);
                }
                any.push(Node::all(fields));
            }
            all.push(Node::any(any));
        }
        Ok(Node::all(all))
    }

    fn wanted(&mut self, view: ViewId, wanted: &Wanted) -> Result<Node, Fault> {
        let value = match wanted {
            Wanted::AnyOf(several) => {
                let nodes: Result<Vec<Node>, Fault> = several.iter().map(|wanted| self.wanted(view, wanted)).collect();
                return nodes.map(Node::any);
            }
            Wanted::Number(number) => rsigma_parser::SigmaValue::Integer(*number),
            Wanted::Truth(truth) => rsigma_parser::SigmaValue::Bool(*truth),
            Wanted::Text(text) => rsigma_parser::SigmaValue::String(rsigma_parser::SigmaString::new(text)),
        };
        let tests = apply(&[], &[value], false, self.config)?;
        let mut nodes = Vec::new();
        for test in tests.values.into_iter().flatten() {
            nodes.push(match test {
                Test::Value(matcher) => Node::Predicate(self.interner.predicate(view, matcher)?),
                _ => Node::Present(view),
            });
        }
        Ok(Node::any(nodes))
    }

    fn correlations(
        &self,
        pending: Vec<correlation_set::Pending<'_>>,
        problems: &mut [Vec<RuleProblem>],
    ) -> CorrelationSet {
        if pending.is_empty() {
            return CorrelationSet::default();
        }
        fn candidate(rule: &Rule) -> correlation_set::Candidate<'_> {
            correlation_set::Candidate {
                id: &rule.head.id,
                name: rule.head.name.as_deref(),
                file: &rule.head.file,
                org_id: rule.head.org_id.as_ref(),
            }
        }
        let rules: Vec<_> = self.rules.iter().map(candidate).collect();
        let columns = |rule: usize, field: &str| {
            let log_source = self.rules.get(rule).and_then(|rule| self.log_sources.get(rule.log_source));
            log_source.map_or_else(Vec::new, |routed| routed.resolved.columns(field))
        };
        correlation_set::compile(pending, (&rules, &columns), self.config.correlation_group_events_max, problems)
    }

    fn finish(mut self, correlations: CorrelationSet) -> RuleSet {
        let predicates = self.interner.predicates;
        let selectivity = |id: PredicateId| {
            predicates.get(id as usize).map_or(0, |predicate: &Predicate| Matcher::selectivity(&predicate.matcher))
        };
        let mut users = vec![Vec::new(); predicates.len()];
        for (at, rule) in self.rules.iter_mut().enumerate() {
            let Some(routed) = self.log_sources.get_mut(rule.log_source) else { continue };
            rule.program.order(&selectivity);
            rule.program.visit(&mut |leaf| match leaf {
                Leaf::Predicate(id) => {
                    routed.views.extend(predicates.get(id as usize).map(|predicate| predicate.view));
                    if let Some(users) = users.get_mut(id as usize) {
                        users.push(at as u32);
                    }
                }
                Leaf::View(view) => routed.views.push(view),
            });
        }
        filter::register(&self.filters, self.rules.len(), &mut self.log_sources, &predicates, &mut users);
        for routed in &mut self.log_sources {
            routed.views.sort_unstable();
            routed.views.dedup();
        }
        for rules in &mut users {
            rules.sort_unstable();
            rules.dedup();
        }
        RuleSet {
            rules: self.rules,
            log_sources: self.log_sources,
            views: self.interner.views,
            predicates,
            users,
            filters: self.filters,
            correlations,
            source_view: self.source_view,
        }
    }
}
