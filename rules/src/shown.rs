//! Reads values back from a batch, for alerts and their groups.

use std::cell::OnceCell;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use rustc_hash::FxHashMap;
use tidegate_events::REST_COLUMN;

use crate::compile::interner::{View, WITHIN, is_name_of};
use crate::compile::program::ViewId;
use crate::eval::{Column, is_searched};
use crate::fold::fold_char;

/// The most values of one field shown in an alert.
const VALUES_MAX: usize = 16;
/// What is shown before a keyword in a value that is too long to be shown whole.
const BEFORE_BYTES: usize = 64;

/// A batch whose values are looked up by field. What a field's columns are is found out once.
pub(crate) struct ShownRows<'a> {
    rows: &'a RecordBatch,
    views: &'a [View],
    rest: Option<&'a StringArray>,
    /// By name; a name with spaces is also there without them, as rules may write it.
    by_name: OnceCell<FxHashMap<String, Column<'a>>>,
    /// With the place of its name among those of the field.
    columns: FxHashMap<ViewId, Vec<(usize, Column<'a>)>>,
}

impl<'a> ShownRows<'a> {
    pub fn new(rows: &'a RecordBatch, views: &'a [View]) -> Self {
        let rest = rows.column_by_name(REST_COLUMN).and_then(|array| array.as_string_opt::<i32>());
        Self { rows, views, rest, by_name: OnceCell::new(), columns: FxHashMap::default() }
    }

    /// Calls `visit` with each value of a field in a row: those of the first of its columns that has any, whether it is one or was
    /// left in [`REST_COLUMN`].
    pub fn visit(&mut self, view: ViewId, row: usize, buffer: &mut String, visit: &mut impl FnMut(&str)) {
        let Some(View::Field(names)) = self.views.get(view as usize) else { return };
        let by_name = self.by_name.get_or_init(|| by_name(self.rows));
        let columns = self.columns.entry(view).or_insert_with(|| {
            let mut columns: Vec<(usize, Column<'a>)> = Vec::new();
            for (rank, name) in names.iter().enumerate() {
                columns.extend(by_name.get(name.as_str()).map(|column| (rank, *column)));
                if name.ends_with(WITHIN) {
                    let within = self.rows.schema_ref().fields().iter().zip(self.rows.columns());
                    let within = within.filter(|(field, _)| is_name_of(name, field.name()));
                    columns.extend(within.filter_map(|(_, array)| Some((rank, Column::new(array)?))));
                }
            }
            columns
        });
        let rest = self.rest.filter(|rest| rest.is_valid(row)).map(|rest| rest.value(row));
        let mut rest = rest.map(|text| rest_values(text, names));
        for (rank, column) in columns.iter() {
            if let Some((_, values)) = rest.take_if(|(of_rest, values)| *of_rest < *rank && !values.is_empty()) {
                return values.iter().for_each(|value| visit(value));
            }
            if column.read(row, buffer, visit) {
                return;
            }
        }
        rest.iter().flat_map(|(_, values)| values).for_each(|value| visit(value));
    }

    /// The values of a field in a row: so many, each shortened to `bytes_max`.
    pub fn values(&mut self, view: ViewId, row: usize, bytes_max: usize) -> Vec<String> {
        let mut values = Vec::new();
        self.visit(view, row, &mut String::new(), &mut |value| {
            if values.len() < VALUES_MAX {
                values.push(shortened(value, bytes_max));
            }
        });
        values
    }

    /// Calls `visit` with each value of a row that keywords are searched in.
    pub fn visit_searched(&self, row: usize, visit: &mut impl FnMut(&str)) {
        self.searched(row, |value| {
            visit(value);
            None
        });
    }

    /// What `show` makes of the values of a row that keywords are searched in, by column.
    pub fn searched(&self, row: usize, mut show: impl FnMut(&str) -> Option<String>) -> Vec<(&'a str, Vec<String>)> {
        let mut found = Vec::new();
        let mut buffer = String::new();
        for (field, array) in self.rows.schema_ref().fields().iter().zip(self.rows.columns()) {
            let Some(column) = Column::new(array).filter(|_| is_searched(field.name())) else { continue };
            let mut values = Vec::new();
            column.read(row, &mut buffer, &mut |value| {
                if values.len() < VALUES_MAX {
                    values.extend(show(value));
                }
            });
            if !values.is_empty() {
                found.push((field.name().as_str(), values));
            }
        }
        found
    }
}

fn by_name(rows: &RecordBatch) -> FxHashMap<String, Column<'_>> {
    let mut by_name = FxHashMap::default();
    let columns = || rows.schema_ref().fields().iter().zip(rows.columns());
    for (field, array) in columns().filter(|(field, _)| field.name().contains(' ')) {
        by_name.extend(Column::new(array).map(|column| (field.name().replace(' ', ""), column)));
    }
    for (field, array) in columns() {
        by_name.extend(Column::new(array).map(|column| (field.name().clone(), column)));
    }
    by_name
}

/// The values of a field that has no column of its own: those of the first of its names that is in the JSON of
/// [`REST_COLUMN`], with its place among the names.
fn rest_values(text: &str, names: &[String]) -> (usize, Vec<String>) {
    let mut best = (names.len(), Vec::new());
    // The column is written by our own decoders; what is not JSON has no fields.
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
        collect(&value, &mut String::new(), names, &mut best);
    }
    best
}

fn collect(value: &serde_json::Value, path: &mut String, names: &[String], best: &mut (usize, Vec<String>)) {
    match value {
        serde_json::Value::Null => {}
        // It has no field in it, and is there all the same.
        serde_json::Value::Array(items) if items.is_empty() => collected(&format!("{path}{WITHIN}"), "", names, best),
        serde_json::Value::Object(members) if members.is_empty() => {
            collected(&format!("{path}{WITHIN}"), "", names, best);
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, path, names, best)),
        serde_json::Value::Object(members) => {
            for (name, member) in members {
                let length = path.len();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(name);
                collect(member, path, names, best);
                path.truncate(length);
            }
        }
        serde_json::Value::String(text) => collected(path, text, names, best),
        scalar => collected(path, &scalar.to_string(), names, best),
    }
}

fn collected(path: &str, text: &str, names: &[String], best: &mut (usize, Vec<String>)) {
    let Some(rank) = names.iter().position(|name| is_name_of(name, path)).filter(|rank| *rank <= best.0) else {
        return;
    };
    if rank < best.0 {
        *best = (rank, Vec::new());
    }
    best.1.push(text.to_owned());
}

pub(crate) fn shortened(value: &str, bytes_max: usize) -> String {
    value.get(..value.floor_char_boundary(bytes_max)).unwrap_or_default().to_owned()
}

/// The part of a value around the first of the keywords (folded) that is in it; `None` when none is.
pub(crate) fn around(value: &str, keywords: &[String], bytes_max: usize) -> Option<String> {
    let mut folded = String::with_capacity(value.len());
    folded.extend(value.chars().map(fold_char));
    let at = keywords.iter().filter_map(|keyword| folded.find(keyword.as_str())).min()?;
    if value.len() <= bytes_max {
        return Some(value.to_owned());
    }
    // Folding goes character by character, so that the same number of them comes before the keyword.
    let letters = folded.get(..at).map_or(0, |before| before.chars().count());
    let at = value.char_indices().nth(letters).map_or(0, |(at, _)| at);
    let start = value.floor_char_boundary(at.saturating_sub(BEFORE_BYTES.min(bytes_max / 4)));
    value.get(start..).map(|rest| shortened(rest, bytes_max))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::ArrayRef;

    use super::*;

    #[test]
    fn a_long_value_is_cut_around_the_keyword() {
        let keywords = ["mimi".to_owned(), "katz".to_owned()];
        assert_eq!(around("a MIMIkatz", &keywords, 100).as_deref(), Some("a MIMIkatz"));
        assert_eq!(around("nothing", &keywords, 100), None);
        let long = format!("{}İKATZ{}", "ü".repeat(1000), "x".repeat(1000));
        let shown = around(&long, &keywords, 100).expect("a part");
        assert!(shown.contains("KATZ") && shown.len() <= 100, "{shown}");
    }

    #[test]
    fn the_first_name_that_has_a_value_counts_wherever_the_value_is() {
        let texts = |values: [Option<&str>; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let columns = [
            ("second", texts([Some("column"), Some("column"), None])),
            (
                REST_COLUMN,
                texts([Some(r#"{"first":"rest","third":"no"}"#), None, Some(r#"{"third":["rest","more"]}"#)]),
            ),
        ];
        let rows = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true)));
        let rows = rows.expect("a batch");
        let views = [View::Field(["first", "second", "third"].map(str::to_owned).to_vec())];
        let mut shown = ShownRows::new(&rows, &views);
        for (row, wanted) in [(0, &["rest"][..]), (1, &["column"]), (2, &["rest", "more"])] {
            assert_eq!(shown.values(0, row, 100), wanted, "{row}");
        }
    }

    #[test]
    fn fields_past_the_bound_are_read_from_the_rest() {
        let names = ["a.b".to_owned(), "c".to_owned()];
        for (text, wanted) in [
            (r#"{"a":{"b":1},"c":"x"}"#, vec!["1"]),
            (r#"{"c":["x",{"d":1},"y"]}"#, vec!["x", "y"]),
            (r#"{"c":"x","a.b":["y","z"]}"#, vec!["y", "z"]),
            (r#"{"d":1}"#, vec![]),
            ("no JSON", vec![]),
        ] {
            assert_eq!(rest_values(text, &names).1, wanted, "{text}");
        }
    }
}
