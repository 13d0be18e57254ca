//! Log sources: which events a rule's `logsource` covers, and how those events name the fields that rules use.
//!
//! The tables are data (`rules/logsources/*.toml`), one file per product:
//!
//! ```toml
//! product = "windows"
//! sources = ["windows"]                       # values of the core column `source`
//! prefixes = ["winlog.event_data."]           # a field X may also be called winlog.event_data.X
//! [fields]
//! EventID = ["winlog.event_id"]               # other names, tried in order after the field's own
//!
//! [[log_source]]
//! category = "process_creation"
//! any = [{ Channel = "Security", EventID = 4688 }]   # one of these, all fields of it
//! [log_source.fields]
//! Image = ["NewProcessName"]
//! ```

mod table;

use std::collections::BTreeMap;

use rsigma_parser::LogSource;
use tidegate_events::Dataset;

use crate::error::RulesError;
use table::{Entry, Table};

/// A value that a field must have: a text (any case, wildcards allowed) or a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(untagged)]
pub(crate) enum Wanted {
    Number(i64),
    Truth(bool),
    Text(String),
    AnyOf(Vec<Wanted>),
}

/// Fields that must all have their values.
pub(crate) type Wants = BTreeMap<String, Wanted>;

/// The events of one source that a log source covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cover {
    /// Values of `source`; empty means any.
    pub sources: Vec<String>,
    /// For each list: one of its members, all fields of that.
    pub all: Vec<Vec<Wants>>,
}

/// What a rule's `logsource` comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub dataset: Dataset,
    /// The events are covered by any of these.
    pub covers: Vec<Cover>,
    /// Whether the tables know it.
    pub known: bool,
    naming: Naming,
}

/// How the events of a log source name fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Naming {
    prefixes: Vec<String>,
    fields: BTreeMap<String, Vec<String>>,
}

impl Resolved {
    /// The columns that may hold the field, the first that has a value in a row wins: its own name, as the event had it
    /// when a core column took the name (`raw.`), the product's prefixes, other names.
    pub fn columns(&self, field: &str) -> Vec<String> {
        let mut names = Vec::new();
        let mut add = |name: String| {
            if !names.contains(&name) {
                names.push(name);
            }
        };
        // Sigma leaves the spaces of a name out; whoever writes them means the same field.
        let squeezed = field.replace(' ', "");
        let spelt = if squeezed == field { vec![field] } else { vec![field, &squeezed] };
        let others = spelt.iter().filter_map(|name| self.naming.fields.get(*name)).flatten().map(String::as_str);
        for name in spelt.iter().copied().chain(others) {
            add(format!("{}{name}", tidegate_events::RAW_PREFIX));
            add(name.to_owned());
            self.naming.prefixes.iter().for_each(|prefix| add(format!("{prefix}{name}")));
        }
        names
    }
}

/// All tables.
#[derive(Debug)]
pub(crate) struct LogSources {
    tables: Vec<Table>,
}

impl LogSources {
    /// Reads the tables that are shipped with the program.
    pub fn shipped() -> Result<Self, RulesError> {
        Ok(Self { tables: table::shipped()? })
    }

    /// The (product, category, service) of every entry, lower case; what an entry does not name is empty.
    pub fn names(&self) -> impl Iterator<Item = [&str; 3]> {
        let entries = self.tables.iter().flat_map(|table| table.log_source.iter().map(move |entry| (table, entry)));
        entries.map(|(table, entry)| {
            let product = entry.product.as_deref().or(table.product.as_deref());
            [product, entry.category.as_deref(), entry.service.as_deref()].map(Option::unwrap_or_default)
        })
    }

    /// The events and names for a rule's log source.
    ///
    /// An entry of the tables that has the very same product, category and service is taken alone. Else every entry that
    /// has all of what the rule names, and more: a rule for `category: process_creation` of no product covers those of every
    /// product. Else, when the rule names both a category and a service, the events that are in both. What the tables do not
    /// know covers the events whose `source` is the rule's service, or its product, or its category.
    pub fn resolve(&self, wanted: &LogSource) -> Resolved {
        let lower = |text: &Option<String>| text.as_deref().map(|text| text.trim().to_lowercase());
        let key =
            Key { product: lower(&wanted.product), category: lower(&wanted.category), service: lower(&wanted.service) };
        if let Some(resolved) = self.find(&key) {
            return resolved;
        }
        if key.category.is_some() && key.service.is_some() {
            let category = self.find(&Key { service: None, ..key.clone() });
            let service = self.find(&Key { category: None, ..key.clone() });
            if let Some(both) = category.zip(service).and_then(|(left, right)| both(left, &right)) {
                return both;
            }
        }
        let dataset =
            if key.category.as_deref() == Some("cost") { Dataset::CostEvents } else { Dataset::SecurityEvents };
        // The most telling name first: events of a known product are not those of a service of it that nobody described.
        let product_known = self.tables.iter().any(|table| table.product.is_some() && table.product == key.product);
        let named = [key.service.clone(), key.product.filter(|_| !product_known || key.service.is_none()), None];
        let mut sources: Vec<String> = named.into_iter().flatten().collect();
        if sources.is_empty() || product_known {
            sources.extend(key.category.filter(|_| key.service.is_none()));
            sources.retain(|source| !product_known || wanted.product.as_deref() != Some(source.as_str()));
        }
        let covers = vec![Cover { sources, all: Vec::new() }];
        Resolved { dataset, covers, known: false, naming: Naming::default() }
    }

    fn find(&self, key: &Key) -> Option<Resolved> {
        let entries = || self.tables.iter().flat_map(|table| table.log_source.iter().map(move |entry| (table, entry)));
        let same: Vec<_> = entries().filter(|(table, entry)| Key::of(table, entry) == *key).collect();
        let found = if same.is_empty() {
            let more = |own: &Option<String>, asked: &Option<String>| asked.is_none() || own == asked;
            let holds = |own: Key| {
                more(&own.product, &key.product)
                    && more(&own.category, &key.category)
                    && more(&own.service, &key.service)
            };
            entries().filter(|(table, entry)| holds(Key::of(table, entry))).collect()
        } else {
            same
        };
        let (_, first) = *found.first()?;
        let mut naming = Naming::default();
        let mut covers = Vec::new();
        for (table, entry) in &found {
            naming.add(table, entry);
            let sources = if entry.sources.is_empty() { &table.sources } else { &entry.sources };
            let all = if entry.any.is_empty() { Vec::new() } else { vec![entry.any.clone()] };
            covers.push(Cover { sources: sources.clone(), all });
        }
        Some(Resolved { dataset: first.dataset(), covers, known: true, naming })
    }
}

/// The events that are in both.
fn both(left: Resolved, right: &Resolved) -> Option<Resolved> {
    if left.dataset != right.dataset {
        return None;
    }
    let mut covers = Vec::new();
    for a in &left.covers {
        for b in &right.covers {
            let sources: Vec<String> = match (a.sources.as_slice(), b.sources.as_slice()) {
                ([], other) | (other, []) => other.to_vec(),
                (a, b) => a.iter().filter(|source| b.contains(source)).cloned().collect(),
            };
            if sources.is_empty() && !(a.sources.is_empty() && b.sources.is_empty()) {
                continue;
            }
            covers.push(Cover { sources, all: a.all.iter().chain(&b.all).cloned().collect() });
        }
    }
    let mut naming = left.naming;
    naming.merge(&right.naming);
    Some(Resolved { dataset: left.dataset, covers, known: true, naming })
}

impl Naming {
    fn add(&mut self, table: &Table, entry: &Entry) {
        // The names of one log source come before those of the whole product.
        self.merge(&Self { prefixes: table.prefixes.clone(), fields: entry.fields.clone() });
        self.merge(&Self { prefixes: Vec::new(), fields: table.fields.clone() });
    }

    fn merge(&mut self, other: &Self) {
        let add = |list: &mut Vec<String>, names: &[String]| {
            for name in names {
                if !list.contains(name) {
                    list.push(name.clone());
                }
            }
        };
        add(&mut self.prefixes, &other.prefixes);
        for (field, names) in &other.fields {
            add(self.fields.entry(field.clone()).or_default(), names);
        }
    }
}

/// Product, category and service, lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    product: Option<String>,
    category: Option<String>,
    service: Option<String>,
}

impl Key {
    fn of(table: &Table, entry: &Entry) -> Self {
        let product = entry.product.clone().or_else(|| table.product.clone());
        Self { product, category: entry.category.clone(), service: entry.service.clone() }
    }
}
