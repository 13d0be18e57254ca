//! Correlations compiled: definitions and what they refer to in, [`CorrelationSet`] and problems out.
//!
//! A reference is an id or a `name`. It is looked for in the same file first, then among the rules of the same tenant and
//! those for everyone; all that it fits are meant, so that several rules of one name count as one. A tenant's rules are never
//! seen by another tenant's correlation, nor by one for everyone.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rsigma_parser::CorrelationRule;
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::compile::interner::View;
use crate::correlation::definition::Definition;
use crate::correlation::references::{Reference, Resolved, names, order, resolve, unordered};
use crate::correlation::targets::{ByTenant, Feed, Referred, Target, Views};
use crate::document::Part;
use crate::head::{Head, level};
use crate::off::Off;
use crate::problem::{Fault, RuleProblem};

/// The most correlations of one tenant, and of everyone: an event may concern all of them.
const CORRELATIONS_MAX: usize = 2_000;
/// The most fields that all correlations of one tenant read of the rules that they refer to, each of each.
const READS_MAX: usize = 200_000;
/// How many names that nobody has are compared with those there are, to say what was meant.
const HINTS_MAX: usize = 100;

/// A correlation rule, ready to run.
#[derive(Debug)]
pub struct Correlation {
    /// What it says of itself.
    pub head: Head,
    pub(crate) definition: Definition,
    /// Whether a window may be judged before it is over.
    pub(crate) eager: bool,
    /// The smallest count that can satisfy the condition.
    pub(crate) needed: u64,
    /// The same for the same definition over the same rules: its state can be kept.
    pub(crate) fingerprint: u64,
    /// The correlations that refer to it.
    pub(crate) feeds: ByTenant<Feed>,
}

impl Correlation {
    /// The kind, as Sigma calls it.
    pub fn kind(&self) -> &'static str {
        self.definition.kind.as_str()
    }

    /// The ids or names of the rules that it refers to, as written.
    pub fn rules(&self) -> &[String] {
        &self.definition.rules
    }
}

impl CorrelationSet {
    /// Whether a detection rule raises alerts of its own for the events of a tenant.
    pub fn raises(&self, rule: usize, org_id: &str, off: &Off) -> bool {
        self.referred_rules.is_empty()
            || self.referred_rules.get(&(rule as u32)).is_none_or(|referred| referred.raises(org_id, off))
    }
}

/// All correlations, those that others refer to first.
#[derive(Debug, Default)]
pub(crate) struct CorrelationSet {
    pub correlations: Vec<Correlation>,
    /// For each detection rule.
    pub targets: FxHashMap<u32, ByTenant<Target>>,
    pub views: Vec<View>,
    /// Detection rules that correlations refer to.
    pub referred_rules: FxHashMap<u32, Referred>,
    /// For each correlation.
    pub referred: Vec<Referred>,
}

/// A detection rule, as far as references to it go.
pub(crate) struct Candidate<'a> {
    pub id: &'a str,
    pub name: Option<&'a str>,
    pub file: &'a str,
    pub org_id: Option<&'a Arc<str>>,
}

/// The columns that may hold a field of the events of a detection rule.
type Columns<'a> = &'a dyn Fn(usize, &str) -> Vec<String>;

/// A correlation that waits until every rule is there.
pub(crate) struct Pending<'a> {
    pub part: Part<'a>,
    pub rule: CorrelationRule,
    pub id: String,
    pub org_id: Option<Arc<str>>,
    /// The file's name, and its place among the files.
    pub file: (String, usize),
}

/// Compiles what waited.
pub(crate) fn compile(
    pending: Vec<Pending<'_>>,
    (rules, columns): (&[Candidate<'_>], Columns<'_>),
    events_max: usize,
    problems: &mut [Vec<RuleProblem>],
) -> CorrelationSet {
    let names = names(&pending, rules);
    let mut resolved: Vec<Option<Resolved>> = Vec::with_capacity(pending.len());
    let mut report = |at: usize, fault: Fault| {
        let Some(own) = pending.get(at) else { return };
        if let Some(problems) = problems.get_mut(own.file.1) {
            problems.push(own.part.problem(&own.id, fault));
        }
    };
    let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    let hints_left = Cell::new(HINTS_MAX);
    for (at, own) in pending.iter().enumerate() {
        let count = counts.entry(own.org_id.as_deref()).or_default();
        *count += 1;
        let read = if *count > CORRELATIONS_MAX {
            Err(Fault::new(format!("there are more than {CORRELATIONS_MAX} correlations")).hint("delete some"))
        } else {
            no_attribute(&own.rule).and_then(|()| Definition::read(&own.rule, own.part.text(), events_max))
        };
        let found = read.and_then(|definition| {
            let slots = definition
                .rules
                .iter()
                .map(|name| resolve(name, (at, own), &names, &hints_left))
                .collect::<Result<_, Fault>>()?;
            Ok(Resolved { definition, slots })
        });
        resolved.push(found.map_err(|fault| report(at, fault)).ok());
    }
    let order = order(&resolved);
    let ordered: BTreeSet<usize> = order.iter().copied().collect();
    for at in 0..pending.len() {
        if resolved.get(at).is_some_and(Option::is_some) && !ordered.contains(&at) {
            report(at, unordered(at, &resolved, &pending));
        }
    }
    let mut builder = Builder {
        events_max,
        rules,
        columns,
        pending: &pending,
        set: CorrelationSet::default(),
        view_ids: FxHashMap::default(),
        numbers: BTreeMap::new(),
        completers: Vec::new(),
        reads: BTreeMap::new(),
    };
    for at in order {
        let Some(Some(own)) = resolved.get_mut(at).map(Option::take) else { continue };
        if let Err(fault) = builder.add(at, own) {
            report(at, fault);
        }
    }
    builder.set
}

/// What a correlation refers to, by number.
#[derive(Default)]
struct Links {
    targets: Vec<(usize, Target)>,
    feeds: Vec<(usize, Feed)>,
    /// The detection rules whose events may complete a firing.
    completers: BTreeSet<usize>,
}

struct Builder<'a> {
    rules: &'a [Candidate<'a>],
    columns: Columns<'a>,
    events_max: usize,
    pending: &'a [Pending<'a>],
    set: CorrelationSet,
    view_ids: FxHashMap<View, u32>,
    /// From pending to loaded.
    numbers: BTreeMap<usize, usize>,
    /// For each loaded correlation, the detection rules whose events may complete a firing of it.
    completers: Vec<BTreeSet<usize>>,
    /// By tenant: how many fields of rules are read.
    reads: BTreeMap<Option<Arc<str>>, usize>,
}

impl Builder<'_> {
    fn add(&mut self, at: usize, own: Resolved) -> Result<(), Fault> {
        let Some(pending) = self.pending.get(at) else { return Ok(()) };
        let Resolved { definition, slots } = own;
        let number = self.set.correlations.len();
        let slot_names: Vec<Vec<String>> =
            slots.iter().zip(&definition.rules).map(|(slot, name)| self.called(slot, name)).collect();
        check_aliases(&definition, &slot_names)?;
        let fields = (definition.group_by.len() + definition.fields.len()).max(1);
        let through = |reference: &Reference| match reference {
            Reference::Rule(_) => 1,
            Reference::Pending(other) => {
                1 + self.numbers.get(other).and_then(|own| self.completers.get(*own)).map_or(0, BTreeSet::len)
            }
        };
        let reads = slots.iter().flatten().map(through).sum::<usize>() * fields;
        let known = self.reads.entry(pending.org_id.clone()).or_default();
        if *known + reads > READS_MAX {
            let reason = format!("the correlations read more than {READS_MAX} fields of the rules that they refer to");
            return Err(Fault::new(reason).hint("refer to fewer rules").near("rules:"));
        }
        *known += reads;
        let links = self.links(number, &definition, (&slots, &slot_names))?;
        let ids: Vec<Vec<&str>> =
            slots.iter().map(|slot| slot.iter().map(|reference| self.id(reference)).collect()).collect();
        let fingerprint = fingerprint(&definition, &ids);
        let needed = definition.needed(self.events_max);
        let correlation = Correlation { needed, ..loaded(pending, definition, fingerprint) };
        self.completers.push(if correlation.eager { links.completers.clone() } else { BTreeSet::new() });
        self.numbers.insert(at, number);
        self.link(links, correlation);
        Ok(())
    }

    /// What a correlation refers to, as where the matches and firings of these go.
    fn links(
        &mut self,
        number: usize,
        definition: &Definition,
        (slots, slot_names): (&[Vec<Reference>], &[Vec<String>]),
    ) -> Result<Links, Fault> {
        let mut links = Links::default();
        for ((slot, references), names) in slots.iter().enumerate().zip(slot_names) {
            let fields = |of: &[String]| {
                of.iter().map(|field| field_of(field, names, definition)).collect::<Result<Vec<_>, Fault>>()
            };
            let (group, measured) = (fields(&definition.group_by)?, fields(&definition.fields)?);
            for reference in references {
                match reference {
                    Reference::Rule(rule) => {
                        let views = self.views(*rule, &group, &measured);
                        links.targets.push((*rule, Target { correlation: number as u32, slot: slot as u16, views }));
                        links.completers.insert(*rule);
                    }
                    Reference::Pending(other) => {
                        let Some(other) = self.numbers.get(other).copied() else {
                            return Err(unloaded(names));
                        };
                        let feed = self.feed(other, (number, slot), &group, &measured)?;
                        links.feeds.push((other, feed));
                        links.completers.extend(self.completers.get(other).into_iter().flatten());
                    }
                }
            }
        }
        Ok(links)
    }

    /// Puts a correlation into the set, and to what it refers to that it does.
    fn link(&mut self, links: Links, correlation: Correlation) {
        let rules: BTreeSet<usize> = links.targets.iter().map(|(rule, _)| *rule).collect();
        for rule in rules {
            self.set.referred_rules.entry(rule as u32).or_default().add(&correlation);
        }
        let others: BTreeSet<usize> = links.feeds.iter().map(|(other, _)| *other).collect();
        for other in others {
            if let Some(known) = self.set.referred.get_mut(other) {
                known.add(&correlation);
            }
        }
        let org_id = correlation.head.org_id.as_ref();
        for (rule, target) in links.targets {
            self.set.targets.entry(rule as u32).or_default().push(org_id, target);
        }
        for (other, feed) in links.feeds {
            if let Some(other) = self.set.correlations.get_mut(other) {
                other.feeds.push(org_id, feed);
            }
        }
        self.set.correlations.push(correlation);
        self.set.referred.push(Referred::default());
    }

    fn id(&self, reference: &Reference) -> &str {
        match reference {
            Reference::Rule(at) => self.rules.get(*at).map_or("", |rule| rule.id),
            Reference::Pending(at) => self.pending.get(*at).map_or("", |own| own.id.as_str()),
        }
    }

    /// All that aliases may call a slot.
    fn called(&self, slot: &[Reference], name: &str) -> Vec<String> {
        let mut called = vec![name.to_owned()];
        for reference in slot {
            called.push(self.id(reference).to_owned());
            let other = match reference {
                Reference::Rule(at) => self.rules.get(*at).and_then(|rule| rule.name),
                Reference::Pending(at) => self.pending.get(*at).and_then(|own| own.rule.name.as_deref()),
            };
            called.extend(other.map(str::to_owned));
        }
        called
    }

    fn views(&mut self, rule: usize, group: &[String], measured: &[String]) -> Views {
        let mut view = |field: &String| {
            let columns = (self.columns)(rule, field);
            let next = self.set.views.len() as u32;
            *self.view_ids.entry(View::Field(columns)).or_insert_with_key(|view| {
                self.set.views.push(view.clone());
                next
            })
        };
        Views { group: group.iter().map(&mut view).collect(), measured: measured.iter().map(&mut view).collect() }
    }

    fn feed(&mut self, from: usize, to: (usize, usize), group: &[String], measured: &[String]) -> Result<Feed, Fault> {
        let Some(other) = self.set.correlations.get(from) else { return Err(unloaded(&[])) };
        let own = &other.definition.group_by;
        let place = |field: &String| own.iter().position(|known| known == field);
        let places = |fields: &[String]| fields.iter().map(place).collect::<Box<[_]>>();
        let (group_places, measured_places) = (places(group), places(measured));
        if !other.eager
            && let Some(field) = group.iter().chain(measured).find(|field| place(field).is_none())
        {
            let reason = format!(
                "the correlation {} is told when its window is over, so that its firings have only the fields it groups by, and {field} is none",
                other.head.id
            );
            return Err(Fault::new(reason).hint("group that one by the field too").near("group-by:"));
        }
        let completers: Vec<usize> = self.completers.get(from).into_iter().flatten().copied().collect();
        let through = completers.into_iter().map(|rule| (rule as u32, self.views(rule, group, measured))).collect();
        Ok(Feed {
            correlation: to.0 as u32,
            slot: to.1 as u16,
            group: group_places,
            measured: measured_places,
            through,
        })
    }
}

/// Refuses what a detection rule may say of its alerts, so that nobody believes it is heeded.
fn no_attribute(rule: &CorrelationRule) -> Result<(), Fault> {
    if !rule.custom_attributes.contains_key("tidegate") {
        return Ok(());
    }
    Err(Fault::new("a correlation has no attribute `tidegate`")
        .hint(
            "its alerts are about the fields of `group-by`, and a group that fired is quiet for `timespan`: set those",
        )
        .near("tidegate:"))
}

/// The correlation, without what it feeds.
fn loaded(pending: &Pending<'_>, definition: Definition, fingerprint: u64) -> Correlation {
    let rule = &pending.rule;
    let head = Head {
        id: pending.id.clone(),
        name: rule.name.clone(),
        title: rule.title.clone(),
        description: rule.description.clone().unwrap_or_default(),
        level: level(rule.level),
        tags: rule.tags.clone(),
        falsepositives: rule.falsepositives.clone(),
        file: pending.file.0.clone(),
        org_id: pending.org_id.clone(),
    };
    Correlation { head, eager: definition.is_eager(), needed: 1, definition, fingerprint, feeds: ByTenant::default() }
}

fn unloaded(names: &[String]) -> Fault {
    let name = names.first().map_or("", String::as_str);
    Fault::new(format!("it refers to {name}, which was not loaded")).hint("see the problem of that one").near(name)
}

fn check_aliases(definition: &Definition, slots: &[Vec<String>]) -> Result<(), Fault> {
    for (alias, rule, _) in &definition.aliases {
        if !slots.iter().any(|names| names.contains(rule)) {
            let reason = format!("the alias {alias} speaks of {rule}, which the correlation does not refer to");
            return Err(Fault::new(reason).hint("use the id or name that is under `rules`").near(rule));
        }
        if !definition.group_by.contains(alias) && !definition.fields.contains(alias) {
            let reason = format!("the alias {alias} is not used");
            return Err(Fault::new(reason).hint("put it into `group-by`, or take it out").near(alias));
        }
    }
    Ok(())
}

/// What a field of a correlation is called in the events of a slot.
fn field_of(field: &str, names: &[String], definition: &Definition) -> Result<String, Fault> {
    let mut of_field = definition.aliases.iter().filter(|(alias, ..)| alias == field).peekable();
    if of_field.peek().is_none() {
        return Ok(field.to_owned());
    }
    match of_field.find(|(_, rule, _)| names.contains(rule)) {
        Some((.., own)) => Ok(own.clone()),
        None => {
            let rule = names.first().map_or("", String::as_str);
            let reason = format!("the alias {field} says nothing of {rule}");
            Err(Fault::new(reason).hint("name the field that the events of that rule have").near(field))
        }
    }
}

/// Of everything that decides what a correlation keeps and fires on. `generate` does not.
fn fingerprint(definition: &Definition, ids: &[Vec<&str>]) -> u64 {
    let of_state = Definition { generate: false, ..definition.clone() };
    xxh3_64(format!("{of_state:?} {ids:?}").as_bytes())
}
