//! What references of correlations mean, and in which order correlations can run.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::correlation::definition::Definition;
use crate::correlation::set::{Candidate, Pending};
use crate::nearest::nearest;
use crate::problem::Fault;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reference {
    Rule(usize),
    Pending(usize),
}

pub(super) struct Resolved {
    pub definition: Definition,
    /// For each slot.
    pub slots: Vec<Vec<Reference>>,
}

/// Who is called what: (tenant, id or name) → rules, in order.
pub(super) type Names<'a> = BTreeMap<(Option<&'a str>, &'a str), Vec<(Reference, &'a str)>>;

pub(super) fn names<'a>(pending: &'a [Pending<'_>], rules: &'a [Candidate<'_>]) -> Names<'a> {
    let mut names = Names::new();
    let mut add = |org_id: Option<&'a Arc<str>>, called: &'a str, reference, file: &'a str| {
        let known = names.entry((org_id.map(|org_id| &**org_id), called)).or_default();
        // Its id may be its name.
        if known.last() != Some(&(reference, file)) {
            known.push((reference, file));
        }
    };
    for (at, rule) in rules.iter().enumerate() {
        for called in [Some(rule.id), rule.name].into_iter().flatten() {
            add(rule.org_id, called, Reference::Rule(at), rule.file);
        }
    }
    for (at, own) in pending.iter().enumerate() {
        for called in [Some(own.id.as_str()), own.rule.name.as_deref()].into_iter().flatten() {
            add(own.org_id.as_ref(), called, Reference::Pending(at), &own.file.0);
        }
    }
    names
}

pub(super) fn resolve(
    name: &str,
    (at, own): (usize, &Pending<'_>),
    names: &Names<'_>,
    hints_left: &Cell<usize>,
) -> Result<Vec<Reference>, Fault> {
    let mut scopes = vec![own.org_id.as_deref()];
    if own.org_id.is_some() {
        scopes.push(None);
    }
    let all: Vec<_> = scopes.iter().filter_map(|scope| names.get(&(*scope, name))).flatten().collect();
    let same_file: Vec<_> = all.iter().filter(|(_, file)| *file == own.file.0).collect();
    let found: Vec<Reference> = if same_file.is_empty() {
        all.iter().map(|(reference, _)| *reference).collect()
    } else {
        same_file.iter().map(|(reference, _)| *reference).collect()
    };
    if !found.is_empty() {
        // A rule of the same name is meant rather than the correlation itself.
        let others: Vec<Reference> = found.iter().copied().filter(|other| *other != Reference::Pending(at)).collect();
        return Ok(if others.is_empty() { found } else { others });
    }
    let known = names.keys().filter(|(scope, _)| scopes.contains(scope)).map(|(_, known)| *known);
    let left = hints_left.get();
    hints_left.set(left.saturating_sub(1));
    let hint = match (left > 0).then(|| nearest(name, known)).flatten() {
        Some(near) => format!("did you mean {near}?"),
        None => "was it loaded? its file may have a problem of its own".to_owned(),
    };
    Err(Fault::new(format!("no rule has the id or name {name}")).hint(hint).near(name))
}

/// The correlations in an order in which each comes after those it refers to, without those for which there is none.
pub(super) fn order(resolved: &[Option<Resolved>]) -> Vec<usize> {
    let mut waits: Vec<BTreeSet<usize>> = Vec::with_capacity(resolved.len());
    let mut waited_for: Vec<Vec<usize>> = vec![Vec::new(); resolved.len()];
    for (at, own) in resolved.iter().enumerate() {
        let on: BTreeSet<usize> =
            own.iter().flat_map(|own| own.slots.iter().flatten()).filter_map(pending_of).collect();
        for other in &on {
            if let Some(waiting) = waited_for.get_mut(*other) {
                waiting.push(at);
            }
        }
        waits.push(on);
    }
    let is_ready =
        |at: &usize| resolved.get(*at).is_some_and(Option::is_some) && waits.get(*at).is_some_and(BTreeSet::is_empty);
    let mut ready: BTreeSet<usize> = (0..resolved.len()).filter(is_ready).collect();
    let mut order = Vec::new();
    while let Some(at) = ready.pop_first() {
        order.push(at);
        for other in waited_for.get(at).into_iter().flatten() {
            let Some(on) = waits.get_mut(*other) else { continue };
            on.remove(&at);
            if on.is_empty() && resolved.get(*other).is_some_and(Option::is_some) {
                ready.insert(*other);
            }
        }
    }
    order
}

fn pending_of(reference: &Reference) -> Option<usize> {
    match reference {
        Reference::Pending(at) => Some(*at),
        Reference::Rule(_) => None,
    }
}

/// Why a correlation is in no order: it is on a circle, or refers to one that did not load.
pub(super) fn unordered(at: usize, resolved: &[Option<Resolved>], pending: &[Pending<'_>]) -> Fault {
    let name = |at: usize| pending.get(at).map_or("", |own| own.id.as_str());
    let next = |at: usize| {
        let own = resolved.get(at).and_then(Option::as_ref);
        own.into_iter().flat_map(|own| own.slots.iter().flatten()).filter_map(pending_of).collect::<Vec<_>>()
    };
    let (mut open, mut seen, mut broken) = (next(at), BTreeSet::new(), None);
    while let Some(other) = open.pop() {
        if other == at {
            return Fault::new("the correlation refers to itself, by way of those it refers to")
                .hint("a circle of correlations can never begin: take one of the references out")
                .near("rules:");
        }
        if seen.insert(other) {
            broken = broken.or_else(|| resolved.get(other).is_some_and(Option::is_none).then_some(other));
            open.extend(next(other));
        }
    }
    let other = broken.or_else(|| seen.first().copied()).map_or("", name);
    Fault::new(format!("it rests on the correlation {other}, which was not loaded"))
        .hint("see the problem of that one")
        .near("rules:")
}
