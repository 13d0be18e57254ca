//! One batch while it is evaluated: which columns each view has, which rows satisfy which predicate.

use arrow::array::RecordBatch;
use rustc_hash::FxHashMap;
use tidegate_events::REST_COLUMN;

use crate::bitmap::Bitmap;
use crate::compile::interner::View;
use crate::compile::matcher::Place;
use crate::compile::program::{Node, PredicateId, ViewId};
use crate::eval::column::Column;
use crate::fold::fold;

/// Core columns that say how an event was stored, not what it says: keywords are not searched in them.
const NOT_SEARCHED: [&str; 10] =
    ["time", "received_time", "event_id", "org_id", "source", "category", "class", "activity", "severity", "outcome"];

/// Whether keywords are searched in the column.
pub(crate) fn is_searched(column: &str) -> bool {
    !NOT_SEARCHED.contains(&column)
}

/// The columns that rules name, and which views each is in with which rank.
#[derive(Debug, Default)]
pub(crate) struct ColumnIndex {
    by_name: FxHashMap<String, Vec<(ViewId, usize)>>,
    keywords: Vec<ViewId>,
}

impl ColumnIndex {
    pub fn new(views: &[View]) -> Self {
        let mut index = Self::default();
        for (view, kind) in views.iter().enumerate() {
            match kind {
                View::Keywords { .. } => index.keywords.push(view as ViewId),
                View::Field(names) => {
                    for (rank, name) in names.iter().enumerate() {
                        index.by_name.entry(name.clone()).or_default().push((view as ViewId, rank));
                    }
                }
            }
        }
        index
    }

    /// The views that a column is in. Names of fields may have spaces that rules leave out ("Threat Name").
    fn views_of(&self, name: &str) -> impl Iterator<Item = (ViewId, usize)> + '_ {
        let direct = self.by_name.get(name);
        let squeezed = name.contains(' ').then(|| self.by_name.get(&name.replace(' ', ""))).flatten();
        direct.into_iter().chain(squeezed).flatten().copied()
    }

    /// The columns of each view in a batch, best first.
    pub fn resolve<'a>(&self, rows: &'a RecordBatch, rest: &'a RestFields, views: usize) -> Vec<Vec<Column<'a>>> {
        let mut ranked: Vec<Vec<(usize, Column<'a>)>> = vec![Vec::new(); views];
        let mut searched = Vec::new();
        for (field, array) in rows.schema_ref().fields().iter().zip(rows.columns()) {
            let Some(column) = Column::new(array) else { continue };
            for (view, rank) in self.views_of(field.name()) {
                if let Some(columns) = ranked.get_mut(view as usize) {
                    columns.push((rank, column));
                }
            }
            if is_searched(field.name()) {
                searched.push(column);
            }
        }
        for (name, values) in &rest.by_name {
            for (view, rank) in self.views_of(name) {
                if let Some(columns) = ranked.get_mut(view as usize) {
                    columns.push((rank, Column::Rest(values)));
                }
            }
        }
        let best_first = |mut columns: Vec<(usize, Column<'a>)>| {
            columns.sort_by_key(|(rank, _)| *rank);
            columns.into_iter().map(|(_, column)| column).collect()
        };
        let mut columns: Vec<Vec<Column<'a>>> = ranked.into_iter().map(best_first).collect();
        for view in &self.keywords {
            if let Some(columns) = columns.get_mut(*view as usize) {
                columns.clone_from(&searched);
            }
        }
        columns
    }
}

/// Fields that rules name and that have no column of their own in a batch, from the JSON of [`REST_COLUMN`].
#[derive(Debug, Default)]
pub(crate) struct RestFields {
    by_name: FxHashMap<String, Vec<(u32, String)>>,
}

impl RestFields {
    pub fn read(rows: &RecordBatch, index: &ColumnIndex) -> Self {
        let mut fields = Self::default();
        let Some(Column::Text(array)) = rows.column_by_name(REST_COLUMN).and_then(Column::new) else { return fields };
        for (row, text) in array.iter().enumerate() {
            // The column is written by our own decoders; a row that is not JSON has no fields.
            if let Some(Ok(value)) = text.map(serde_json::from_str::<serde_json::Value>) {
                fields.add(row as u32, &mut String::new(), &value, index);
            }
        }
        fields
    }

    fn add(&mut self, row: u32, path: &mut String, value: &serde_json::Value, index: &ColumnIndex) {
        match value {
            serde_json::Value::Null => {}
            serde_json::Value::Array(items) => items.iter().for_each(|item| self.add(row, path, item, index)),
            serde_json::Value::Object(members) => {
                for (name, member) in members {
                    let length = path.len();
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(name);
                    self.add(row, path, member, index);
                    path.truncate(length);
                }
            }
            scalar => {
                if index.views_of(path).next().is_some() {
                    let text = scalar.as_str().map_or_else(|| scalar.to_string(), str::to_owned);
                    self.by_name.entry(path.clone()).or_default().push((row, text));
                }
            }
        }
    }
}

/// A view of one batch, encoded: which rows have which of the values that satisfy anything.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    /// Rows with any value.
    pub present: Bitmap,
    /// (predicate, value), ascending.
    pub hits: Vec<(PredicateId, u32)>,
    /// Where the rows of each value start in `rows`; one more at the end.
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Encoded {
    /// From (value, row) pairs in row order, of `values` values.
    pub fn new(present: Bitmap, mut hits: Vec<(PredicateId, u32)>, pairs: &[(u32, u32)], values: usize) -> Self {
        hits.sort_unstable();
        let mut starts = vec![0u32; values + 1];
        for (value, _) in pairs {
            if let Some(count) = starts.get_mut(*value as usize + 1) {
                *count += 1;
            }
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut rows = vec![0u32; pairs.len()];
        for (value, row) in pairs {
            if let Some(at) = next.get_mut(*value as usize)
                && let Some(place) = rows.get_mut(*at as usize)
            {
                *place = *row;
                *at += 1;
            }
        }
        Self { present, hits, starts, rows }
    }

    /// The rows that satisfy a predicate of this view.
    fn rows_of(&self, predicate: PredicateId, rows: usize) -> Bitmap {
        let mut bitmap = Bitmap::empty(rows);
        let from = self.hits.partition_point(|(own, _)| *own < predicate);
        for (_, value) in self.hits.get(from..).into_iter().flatten().take_while(|(own, _)| *own == predicate) {
            let bounds = (self.starts.get(*value as usize), self.starts.get(*value as usize + 1));
            if let (Some(start), Some(end)) = bounds {
                let rows = self.rows.get(*start as usize..*end as usize);
                rows.into_iter().flatten().for_each(|row| bitmap.insert(*row as usize));
            }
        }
        bitmap
    }
}

/// A batch under evaluation.
pub(crate) struct Frame<'a> {
    pub rows: usize,
    pub columns: &'a [Vec<Column<'a>>],
    pub encoded: Vec<Option<Encoded>>,
    bitmaps: FxHashMap<PredicateId, Bitmap>,
}

impl<'a> Frame<'a> {
    pub fn new(rows: usize, columns: &'a [Vec<Column<'a>>]) -> Self {
        let encoded = std::iter::repeat_with(|| None).take(columns.len()).collect();
        Self { rows, columns, encoded, bitmaps: FxHashMap::default() }
    }

    /// The rows of `mask` for which the program is true.
    pub fn run(&mut self, program: &Node, mask: &Bitmap, view_of: &impl Fn(PredicateId) -> ViewId) -> Bitmap {
        match program {
            Node::Predicate(id) => {
                let mut rows = mask.clone();
                rows.and(self.satisfied(*id, view_of(*id)));
                rows
            }
            Node::Present(view) => match self.encoded.get(*view as usize) {
                Some(Some(encoded)) => {
                    let mut rows = mask.clone();
                    rows.and(&encoded.present);
                    rows
                }
                _ => Bitmap::empty(self.rows),
            },
            Node::Fields { left, right, place, cased } => self.related(*left, *right, *place, *cased, mask),
            Node::And(nodes) => {
                let mut rows = mask.clone();
                for node in nodes {
                    if rows.is_empty() {
                        break;
                    }
                    rows = self.run(node, &rows, view_of);
                }
                rows
            }
            Node::Or(nodes) => {
                let mut rows = Bitmap::empty(self.rows);
                for node in nodes {
                    rows.or(&self.run(node, mask, view_of));
                }
                rows
            }
            Node::Not(node) => {
                let mut rows = mask.clone();
                rows.and_not(&self.run(node, mask, view_of));
                rows
            }
            Node::AtLeast(least, nodes) => {
                let mut counts = vec![0usize; self.rows];
                for node in nodes {
                    for row in self.run(node, mask, view_of).iter() {
                        counts[row] += 1;
                    }
                }
                let mut rows = Bitmap::empty(self.rows);
                mask.iter().filter(|row| counts[*row] >= *least).for_each(|row| rows.insert(row));
                rows
            }
        }
    }

    fn satisfied(&mut self, predicate: PredicateId, view: ViewId) -> &Bitmap {
        let rows = self.rows;
        let encoded = self.encoded.get(view as usize).and_then(Option::as_ref);
        self.bitmaps
            .entry(predicate)
            .or_insert_with(|| encoded.map_or_else(|| Bitmap::empty(rows), |encoded| encoded.rows_of(predicate, rows)))
    }

    fn related(&self, left: ViewId, right: ViewId, place: Place, cased: bool, mask: &Bitmap) -> Bitmap {
        let mut rows = Bitmap::empty(self.rows);
        let mut buffer = String::new();
        let mut read = |view: ViewId, row: usize| {
            let mut values = Vec::new();
            for column in self.columns.get(view as usize).into_iter().flatten() {
                let mut take =
                    |value: &str| values.push(if cased { value.to_owned() } else { fold(value).into_owned() });
                if column.read(row, &mut buffer, &mut take) {
                    break;
                }
            }
            values
        };
        for row in mask.iter() {
            let (lefts, rights) = (read(left, row), read(right, row));
            let holds = |left: &String, right: &String| match place {
                Place::Whole => left == right,
                Place::Anywhere => left.contains(right.as_str()),
                Place::Start => left.starts_with(right.as_str()),
                Place::End => left.ends_with(right.as_str()),
            };
            if lefts.iter().any(|left| rights.iter().any(|right| holds(left, right))) {
                rows.insert(row);
            }
        }
        rows
    }
}
