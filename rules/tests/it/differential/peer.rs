//! RSigma beside us: one of its evaluators for each log source, since it knows none by itself, and events with the field
//! names that our log source tables give them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rsigma_eval::{Engine, JsonEvent};
use rsigma_parser::{LogSource, SigmaRule};
use serde_json::{Map, Value};

use crate::flatten::{Cell, flatten};

/// The log source tables, read as data.
pub struct Tables(Vec<Table>);

#[derive(serde::Deserialize)]
struct Table {
    product: Option<String>,
    #[serde(default)]
    sources: Vec<String>,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    fields: BTreeMap<String, Vec<String>>,
    log_source: Vec<Entry>,
}

#[derive(serde::Deserialize)]
struct Entry {
    product: Option<String>,
    category: Option<String>,
    service: Option<String>,
    #[serde(default)]
    sources: Vec<String>,
    #[serde(default)]
    any: Vec<BTreeMap<String, Value>>,
    #[serde(default)]
    fields: BTreeMap<String, Vec<String>>,
}

/// What is to know of one log source.
#[derive(Default)]
pub struct Source {
    /// A value of the core column `source`.
    pub source: String,
    /// Fields that put an event into it: any of these.
    pub any: Vec<BTreeMap<String, Value>>,
    prefixes: Vec<String>,
    names: Vec<(String, Vec<String>)>,
}

impl Tables {
    pub fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("logsources");
        let mut paths: Vec<_> =
            fs::read_dir(folder).expect("the tables").map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        let table = |path| toml::from_str(&fs::read_to_string(path).expect("text")).expect("a table");
        Self(paths.iter().map(table).collect())
    }

    pub fn source(&self, wanted: &LogSource) -> Source {
        let lower = |text: &Option<String>| text.as_deref().map(|text| text.trim().to_lowercase());
        let asked = [lower(&wanted.product), lower(&wanted.category), lower(&wanted.service)];
        let parts = |table: &Table, entry: &Entry| {
            [entry.product.clone().or_else(|| table.product.clone()), entry.category.clone(), entry.service.clone()]
        };
        let all = || self.0.iter().flat_map(|table| table.log_source.iter().map(move |entry| (table, entry)));
        let within = |asked: &[Option<String>; 3]| -> Vec<(&Table, &Entry)> {
            let same: Vec<_> = all().filter(|(table, entry)| parts(table, entry) == *asked).collect();
            let holds = |(own, asked): (&Option<String>, &Option<String>)| asked.is_none() || own == asked;
            let more = || all().filter(|(table, entry)| parts(table, entry).iter().zip(asked).all(holds)).collect();
            if same.is_empty() { more() } else { same }
        };
        let mut found = within(&asked);
        if found.is_empty() && asked[1].is_some() && asked[2].is_some() {
            found = within(&[asked[0].clone(), asked[1].clone(), None]);
            found.extend(within(&[asked[0].clone(), None, asked[2].clone()]));
        }
        let mut source = Source::default();
        for (table, entry) in &found {
            source.names.extend(entry.fields.clone());
            source.names.extend(table.fields.clone());
            source.prefixes.extend(table.prefixes.clone());
            source.any.extend(entry.any.clone());
            let sources = if entry.sources.is_empty() { &table.sources } else { &entry.sources };
            if let (true, Some(first)) = (source.source.is_empty(), sources.first()) {
                source.source.clone_from(first);
            }
        }
        if source.source.is_empty() {
            let [product, category, service] = asked;
            source.source = service.or(product).or(category).unwrap_or_default();
        }
        source
    }
}

/// The event with dotted names, as both sides compare it: what is null or empty has no value.
pub fn flat(event: &Value) -> Map<String, Value> {
    let mut cells = BTreeMap::new();
    flatten("", event, false, 0, &mut cells);
    let value = |cell| match cell {
        Cell::One(value) => Some(value),
        Cell::Many(values) if values.iter().all(Option::is_none) => None,
        Cell::Many(values) => Some(Value::Array(values.into_iter().flatten().collect())),
    };
    let mut flat: Map<String, Value> =
        cells.into_iter().filter_map(|(name, cell)| Some((name, value(cell)?))).collect();
    // The objects under their names, for who asks whether they are there.
    let names: Vec<String> = flat.keys().cloned().collect();
    for name in &names {
        for (at, _) in name.match_indices('.') {
            flat.entry(&name[..at]).or_insert_with(|| serde_json::json!({"object": true}));
        }
    }
    flat
}

impl Source {
    /// The event with the names that rules of the log source use.
    pub fn named(&self, flat: &Map<String, Value>) -> Value {
        let mut named = flat.clone();
        for (name, value) in flat {
            let stripped = self.prefixes.iter().filter_map(|prefix| name.strip_prefix(prefix.as_str()));
            let squeezed = name.replace(' ', "");
            for other in stripped.map(str::to_owned).chain([squeezed]) {
                named.entry(other).or_insert_with(|| value.clone());
            }
        }
        for (name, others) in &self.names {
            if named.get(name).is_none_or(Value::is_object)
                && let Some(value) = others.iter().find_map(|other| named.get(other)).cloned()
            {
                named.insert(name.clone(), value);
            }
        }
        Value::Object(named)
    }
}

/// The peer's rules of one log source.
pub struct Peer {
    engine: Engine,
    pub source: Source,
    /// The ids of its rules.
    pub rules: BTreeSet<String>,
}

impl Peer {
    pub fn new(source: Source) -> Self {
        Self { engine: Engine::new(), source, rules: BTreeSet::new() }
    }

    pub fn add(&mut self, rule: &SigmaRule) {
        self.engine.add_rule(rule).unwrap_or_else(|error| panic!("{:?}: {error}", rule.id));
        self.rules.insert(rule.id.clone().expect("an id"));
    }

    /// The ids of the rules that match.
    pub fn matches(&self, flat: &Map<String, Value>) -> BTreeSet<String> {
        let event = self.source.named(flat);
        let found = self.engine.evaluate(&JsonEvent::borrow(&event));
        found.into_iter().filter_map(|result| result.header.rule_id).collect()
    }
}
