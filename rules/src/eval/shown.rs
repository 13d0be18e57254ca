//! Reads values back from a batch, for alerts.

use arrow::array::RecordBatch;

use crate::compile::interner::View;
use crate::eval::column::Column;
use crate::eval::frame::is_searched;

/// The most elements of a list shown in an alert.
const VALUES_MAX: usize = 16;

/// The values of a view in one row: each shortened to `bytes_max`.
pub(crate) fn values_of(rows: &RecordBatch, view: &View, row: usize, bytes_max: usize) -> Vec<String> {
    let View::Field(names) = view else { return Vec::new() };
    let mut values = Vec::new();
    let mut buffer = String::new();
    for name in names {
        let Some(column) = rows.column_by_name(name).and_then(Column::new) else { continue };
        let mut take = |value: &str| {
            if values.len() < VALUES_MAX {
                values.push(shortened(value, bytes_max));
            }
        };
        if column.read(row, &mut buffer, &mut take) {
            break;
        }
    }
    values
}

/// The values of a row that keywords are searched in and that `holds`, by column: each shortened to `bytes_max`.
pub(crate) fn searched_values(
    rows: &RecordBatch,
    row: usize,
    bytes_max: usize,
    holds: impl Fn(&str) -> bool,
) -> Vec<(&str, Vec<String>)> {
    let mut found = Vec::new();
    let mut buffer = String::new();
    for (field, array) in rows.schema_ref().fields().iter().zip(rows.columns()) {
        let Some(column) = Column::new(array).filter(|_| is_searched(field.name())) else { continue };
        let mut values = Vec::new();
        let mut take = |value: &str| {
            if values.len() < VALUES_MAX && holds(value) {
                values.push(shortened(value, bytes_max));
            }
        };
        column.read(row, &mut buffer, &mut take);
        if !values.is_empty() {
            found.push((field.name().as_str(), values));
        }
    }
    found
}

fn shortened(value: &str, bytes_max: usize) -> String {
    value.get(..value.floor_char_boundary(bytes_max)).unwrap_or_default().to_owned()
}
