//! Where matches and firings go, and who is silent for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::correlation::set::Correlation;
use crate::off::Off;

/// What is for everyone, and what is for one tenant: a tenant pays for no other's.
#[derive(Debug, Clone)]
pub(crate) struct ByTenant<T> {
    everyone: Vec<T>,
    tenants: FxHashMap<Arc<str>, Vec<T>>,
}

impl<T> Default for ByTenant<T> {
    fn default() -> Self {
        Self { everyone: Vec::new(), tenants: FxHashMap::default() }
    }
}

impl<T> ByTenant<T> {
    pub fn push(&mut self, org_id: Option<&Arc<str>>, one: T) {
        match org_id {
            None => self.everyone.push(one),
            Some(org_id) => self.tenants.entry(org_id.clone()).or_default().push(one),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.everyone.is_empty() && self.tenants.is_empty()
    }

    /// All of them, of whatever tenant.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.everyone.iter().chain(self.tenants.values().flatten())
    }

    /// All that is for a tenant.
    pub fn of(&self, org_id: &str) -> impl Iterator<Item = &T> {
        let own = if self.tenants.is_empty() { None } else { self.tenants.get(org_id) };
        self.everyone.iter().chain(own.into_iter().flatten())
    }
}

/// Where the matches of a detection rule go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub correlation: u32,
    pub slot: u16,
    /// The view of each field that the correlation groups by, and of each that it measures.
    pub views: Views,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Views {
    pub group: Box<[u32]>,
    pub measured: Box<[u32]>,
}

/// Where the firings of a correlation go.
#[derive(Debug)]
pub(crate) struct Feed {
    pub correlation: u32,
    pub slot: u16,
    /// For each field of the other: which group field of this one it is.
    pub group: Box<[Option<usize>]>,
    pub measured: Box<[Option<usize>]>,
    /// For fields that are none: their views in the events of each detection rule that may complete a firing.
    pub through: FxHashMap<u32, Views>,
}

/// Who raises no alerts of its own, since correlations refer to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Referred {
    /// By correlations for everyone: whether one of them says `generate`.
    everyone: Option<bool>,
    tenants: BTreeMap<Arc<str>, bool>,
    /// Each of them: its tenant, its id, whether it says `generate`.
    by: Vec<(Option<Arc<str>>, Arc<str>, bool)>,
}

impl Referred {
    pub fn add(&mut self, by: &Correlation) {
        let known = match &by.head.org_id {
            None => self.everyone.get_or_insert(false),
            Some(org_id) => self.tenants.entry(org_id.clone()).or_default(),
        };
        *known |= by.definition.generate;
        self.by.push((by.head.org_id.clone(), by.head.id.as_str().into(), by.definition.generate));
    }

    /// Whether the rule raises alerts of its own where nothing is off: for a tenant, or for one that has no rules of its own.
    pub fn raises_by_default(&self, org_id: Option<&str>) -> bool {
        self.raises(org_id.unwrap_or_default(), &Off::default())
    }

    /// Whether the rule raises alerts of its own for the events of a tenant, for whom some rules may be off.
    pub fn raises(&self, org_id: &str, off: &Off) -> bool {
        if let Some(off) = off.of(org_id) {
            let counts = |(scope, id, _): &&(Option<Arc<str>>, Arc<str>, bool)| {
                scope.as_deref().is_none_or(|scope| scope == org_id) && !off.contains(&**id)
            };
            let mut by = self.by.iter().filter(counts).peekable();
            return by.peek().is_none() || by.any(|(.., generate)| *generate);
        }
        let by = [self.everyone, self.tenants.get(org_id).copied()];
        by.iter().all(Option::is_none) || by.contains(&Some(true))
    }
}
