//! Which columns of a batch rules read, and as what: found out once for each schema.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use hashbrown::{HashMap, HashSet};
use rustc_hash::FxHashMap;
use tidegate_events::REST_COLUMN;

use crate::compile::interner::{View, WITHIN};
use crate::compile::program::ViewId;
use crate::eval::column::Column;
use crate::eval::memo::{KeyHash, Keys};

/// Core columns that say how an event was stored, not what it says: keywords are not searched in them.
const NOT_SEARCHED: [&str; 10] =
    ["time", "received_time", "event_id", "org_id", "source", "category", "class", "activity", "severity", "outcome"];

/// Schemas whose plans are kept; past it all are made anew.
const PLANS_MAX: usize = 1024;
/// Texts of [`REST_COLUMN`] that are known to hold nothing that rules name.
const RESTS_MAX: usize = 65_536;

/// Whether keywords are searched in the column.
pub(crate) fn is_searched(column: &str) -> bool {
    !NOT_SEARCHED.contains(&column)
}

/// All predicates on the columns of one name, whatever view they belong to; or all keywords of one log source. Index into
/// `Evaluator::classes`.
pub(crate) type ClassId = u32;

/// The columns that rules name, and which views each is in with which rank.
#[derive(Debug, Default)]
pub(crate) struct ColumnIndex {
    by_name: FxHashMap<String, (ClassId, Vec<(ViewId, usize)>)>,
    /// Whether one of the names is that of an object.
    has_objects: bool,
    pub keys: Keys,
    /// By log source.
    keywords: FxHashMap<usize, (ClassId, ViewId)>,
    plans: HashMap<u128, Arc<Plan>, KeyHash>,
    /// Texts of [`REST_COLUMN`] without anything that rules name.
    idle_rests: HashSet<u128, KeyHash>,
}

/// The columns of a batch that rules read.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// A column of the batch is here once for each class that it is in; or not at all.
    pub columns: Vec<Planned>,
    /// The columns of each view, best first: indices into `columns`. A view that is not here has none.
    pub views: FxHashMap<ViewId, Vec<u32>>,
    /// For each log source, the columns that its rules read.
    pub sources: Vec<Vec<u32>>,
}

/// A column that rules read.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub place: Place,
    /// What is asked of its values; `None` if it is only searched for keywords.
    pub class: Option<ClassId>,
    /// Whether keywords are searched in it.
    pub searched: bool,
}

/// Where a column is: its number in the batch, or in [`RestFields`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Batch(usize),
    Rest(usize),
}

impl ColumnIndex {
    /// The index, and for each class its views.
    pub fn new(views: &[View]) -> (Self, Vec<Vec<ViewId>>) {
        let mut index = Self::default();
        let mut classes: Vec<Vec<ViewId>> = Vec::new();
        for (view, kind) in views.iter().enumerate() {
            let view = view as ViewId;
            match kind {
                View::Keywords { log_source } => {
                    index.keywords.insert(*log_source, (classes.len() as ClassId, view));
                    classes.push(vec![view]);
                }
                View::Field(names) => {
                    for (rank, name) in names.iter().enumerate() {
                        index.has_objects |= name.ends_with(WITHIN);
                        let next = classes.len() as ClassId;
                        let (class, own) = index.by_name.entry(name.clone()).or_insert_with(|| (next, Vec::new()));
                        own.push((view, rank));
                        match classes.get_mut(*class as usize) {
                            Some(class) => class.push(view),
                            None => classes.push(vec![view]),
                        }
                    }
                }
            }
        }
        (index, classes)
    }

    /// The classes of a column and the views that it is in: by its name, and by those of the objects that it is in. Names of
    /// fields may have spaces that rules leave out ("Threat Name").
    fn entries(&self, name: &str) -> impl Iterator<Item = &(ClassId, Vec<(ViewId, usize)>)> {
        let direct = self.by_name.get(name);
        let squeezed = name.contains(' ').then(|| self.by_name.get(&name.replace(' ', ""))).flatten();
        let dots = name.match_indices('.').take_while(|_| self.has_objects);
        let objects = dots.filter_map(|(at, _)| self.by_name.get(&format!("{}{WITHIN}", name.get(..at)?)));
        direct.into_iter().chain(squeezed).chain(objects)
    }

    /// The classes of the columns that both name: own, other.
    pub fn shared(&self, other: &Self) -> Vec<(ClassId, ClassId)> {
        let of_name = |(name, (class, _)): (&String, &(ClassId, _))| Some((*class, other.by_name.get(name)?.0));
        self.by_name.iter().filter_map(of_name).collect()
    }

    /// The keywords of the rules of a log source.
    pub fn keywords_of(&self, log_source: usize) -> Option<(ClassId, ViewId)> {
        self.keywords.get(&log_source).copied()
    }

    /// The columns that a batch of this shape has for rules. `sources` are the views that the rules of each log source read.
    pub fn plan(&mut self, rows: &RecordBatch, rest: &RestFields, sources: &[Vec<ViewId>]) -> Arc<Plan> {
        if !rest.is_empty() {
            return Arc::new(self.make(rows, rest, sources));
        }
        let mut names = String::with_capacity(1024);
        for field in rows.schema_ref().fields() {
            names.push_str(field.name());
            names.push('\0');
        }
        let key = self.keys.key_of(&names);
        if let Some(known) = self.plans.get(&key) {
            return known.clone();
        }
        let plan = Arc::new(self.make(rows, rest, sources));
        if self.plans.len() >= PLANS_MAX {
            self.plans.clear();
        }
        self.plans.insert(key, plan.clone());
        plan
    }

    fn make(&self, rows: &RecordBatch, rest: &RestFields, sources: &[Vec<ViewId>]) -> Plan {
        let mut plan = Plan::default();
        let mut ranked: FxHashMap<ViewId, Vec<(usize, u32)>> = FxHashMap::default();
        let mut add = |name: &str, place: Place, searched: bool| {
            let before = plan.columns.len();
            for (class, views) in self.entries(name) {
                let number = plan.columns.len() as u32;
                plan.columns.push(Planned {
                    place,
                    class: Some(*class),
                    searched: searched && number as usize == before,
                });
                for (view, rank) in views {
                    ranked.entry(*view).or_default().push((*rank, number));
                }
            }
            if searched && plan.columns.len() == before {
                plan.columns.push(Planned { place, class: None, searched });
            }
        };
        for (at, field) in rows.schema_ref().fields().iter().enumerate() {
            add(field.name(), Place::Batch(at), is_searched(field.name()));
        }
        for (at, (name, _)) in rest.fields.iter().enumerate() {
            add(name, Place::Rest(at), false);
        }
        for (view, mut columns) in ranked {
            columns.sort_by_key(|(rank, _)| *rank);
            plan.views.insert(view, columns.into_iter().map(|(_, number)| number).collect());
        }
        let columns = |views: &Vec<ViewId>| {
            let own = views.iter().filter_map(|view| plan.views.get(view)).flatten();
            let mut columns: Vec<u32> = own.copied().collect();
            columns.sort_unstable();
            columns.dedup();
            columns
        };
        plan.sources = sources.iter().map(columns).collect();
        plan
    }

    /// The columns of each view in a batch, best first, for who reads rows one by one.
    pub fn resolve<'a>(&self, rows: &'a RecordBatch, rest: &'a RestFields, views: &[View]) -> Vec<Vec<Column<'a>>> {
        let plan = self.make(rows, rest, &[]);
        let columns = columns(&plan, rows, rest);
        let of_view = |(at, view): (usize, &View)| match view {
            View::Keywords { .. } => {
                let searched = plan.columns.iter().zip(&columns).filter(|(planned, _)| planned.searched);
                searched.filter_map(|(_, column)| *column).collect()
            }
            View::Field(_) => {
                let own = plan.views.get(&(at as ViewId)).into_iter().flatten();
                own.filter_map(|at| columns.get(*at as usize).copied().flatten()).collect()
            }
        };
        views.iter().enumerate().map(of_view).collect()
    }

    /// Forgets plans: log sources read other views now.
    pub fn forget_plans(&mut self) {
        self.plans.clear();
    }

    /// The fields that rules name and that have no column of their own in a batch, from the JSON of [`REST_COLUMN`].
    pub fn rest(&mut self, rows: &RecordBatch) -> RestFields {
        let mut fields = RestFields::default();
        let Some(Column::Text(array)) = rows.column_by_name(REST_COLUMN).and_then(Column::new) else { return fields };
        let mut last = "";
        for (row, text) in array.iter().enumerate() {
            let Some(text) = text else { continue };
            if text == last {
                continue;
            }
            let key = self.keys.key_of(text);
            if self.idle_rests.contains(&key) {
                last = text;
                continue;
            }
            // The column is written by our own decoders; a row that is not JSON has no fields.
            let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { continue };
            if !fields.add(row as u32, &mut String::new(), &value, self) {
                last = text;
                if self.idle_rests.len() >= RESTS_MAX {
                    self.idle_rests.clear();
                }
                self.idle_rests.insert(key);
            }
        }
        fields
    }
}

/// Values of fields that have no column of their own in a batch.
#[derive(Debug, Default)]
pub(crate) struct RestFields {
    by_name: FxHashMap<String, usize>,
    /// By name: (row, value), by row.
    fields: Vec<(String, Vec<(u32, String)>)>,
}

impl RestFields {
    fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Adds the values that rules name. Whether there are any.
    fn add(&mut self, row: u32, path: &mut String, value: &serde_json::Value, index: &ColumnIndex) -> bool {
        match value {
            serde_json::Value::Null => false,
            // It has no field in it, and is there all the same.
            serde_json::Value::Array(items) if items.is_empty() => {
                self.add_text(row, &format!("{path}{WITHIN}"), "", index)
            }
            serde_json::Value::Object(members) if members.is_empty() => {
                self.add_text(row, &format!("{path}{WITHIN}"), "", index)
            }
            serde_json::Value::Array(items) => {
                items.iter().fold(false, |any, item| self.add(row, path, item, index) | any)
            }
            serde_json::Value::Object(members) => {
                let mut any = false;
                for (name, member) in members {
                    let length = path.len();
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(name);
                    any |= self.add(row, path, member, index);
                    path.truncate(length);
                }
                any
            }
            serde_json::Value::String(text) => self.add_text(row, path, text, index),
            scalar => self.add_text(row, path, &scalar.to_string(), index),
        }
    }

    fn add_text(&mut self, row: u32, path: &str, text: &str, index: &ColumnIndex) -> bool {
        if index.entries(path).next().is_none() {
            return false;
        }
        let next = self.fields.len();
        let at = *self.by_name.entry(path.to_owned()).or_insert(next);
        match self.fields.get_mut(at) {
            Some((_, values)) => values.push((row, text.to_owned())),
            None => self.fields.push((path.to_owned(), vec![(row, text.to_owned())])),
        }
        true
    }
}

/// The columns of a batch in the order of its plan; `None` for those of types that events never have.
pub(crate) fn columns<'a>(plan: &Plan, rows: &'a RecordBatch, rest: &'a RestFields) -> Vec<Option<Column<'a>>> {
    let column = |planned: &Planned| match planned.place {
        Place::Batch(at) => rows.columns().get(at).filter(|array: &&ArrayRef| !array.is_empty()).and_then(Column::new),
        Place::Rest(at) => rest.fields.get(at).map(|(_, values)| Column::Rest(values)),
    };
    plan.columns.iter().map(column).collect()
}
