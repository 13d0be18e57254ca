//! Column builders for an event's own fields: they take values in row order, pad the rows in between with nulls only when
//! a value comes, and widen their type within the batch as [`tidegate_events::FieldType::join`] says. Arrays are
//! made from the buffers without a copy.

mod atoms;
mod dataset_column;

pub use atoms::{Atom, Atoms};
pub use dataset_column::CoreColumn;

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, NullBufferBuilder};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Field;
use arrow::error::ArrowError;

/// The builder of one own field. Rows are given by number, each at most once, ascending; rows that are skipped are null.
#[derive(Debug)]
pub struct Column {
    atoms: Atoms,
    lists: Option<Lists>,
}

/// The row level of a column of lists.
#[derive(Debug)]
struct Lists {
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl Lists {
    fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    fn pad_to(&mut self, row: usize) {
        let missing = row.saturating_sub(self.rows());
        if missing > 0 {
            let last = self.offsets.last().copied().unwrap_or(0);
            self.offsets.resize(row + 1, last);
            self.nulls.append_n_nulls(missing);
        }
    }
}

impl Column {
    /// A builder that expects about `rows` rows.
    pub fn with_capacity(rows: usize) -> Self {
        Self { atoms: Atoms::with_capacity(rows), lists: None }
    }

    /// Whether no value came yet.
    pub fn is_empty(&self) -> bool {
        self.lists.is_none() && self.atoms.len() == 0
    }

    /// Whether `row` has its value: a second one would shift all rows after it.
    fn has(&self, row: usize) -> bool {
        let has = row < self.lists.as_ref().map_or(self.atoms.len(), Lists::rows);
        debug_assert!(!has, "row {row} is set twice");
        has
    }

    /// Sets the value of `row`. A scalar in a column of lists becomes a list of one; [`Atom::Null`] leaves the row null.
    pub fn append(&mut self, row: usize, atom: Atom<'_>) {
        if atom == Atom::Null || self.has(row) {
            return;
        }
        match &mut self.lists {
            None => {
                self.atoms.pad_to(row);
                self.atoms.push(atom);
            }
            Some(lists) => {
                lists.pad_to(row);
                self.atoms.push(atom);
                close_list(lists, &self.atoms);
            }
        }
    }

    /// Sets the value of `row` to a text.
    #[inline]
    pub fn append_text(&mut self, row: usize, text: &str) {
        // By far most values: the next one of a column of texts.
        if self.lists.is_some() || !self.atoms.push_text(row, text) {
            self.append(row, Atom::Text(text));
        }
    }

    /// Sets the value of `row` to a list. A column of scalars becomes one of lists of one.
    pub fn append_list(&mut self, row: usize, items: &[Atom<'_>]) {
        if self.has(row) {
            return;
        }
        let lists = self.lists.get_or_insert_with(|| into_lists(&mut self.atoms));
        lists.pad_to(row);
        for item in items {
            self.atoms.push(*item);
        }
        close_list(lists, &self.atoms);
    }

    /// The column as an array of `rows` rows, and the builder empty again; `None` when it holds no value.
    ///
    /// # Errors
    /// [`ArrowError`] when the buffers do not fit each other, which would be a bug here, and when a column of text passed
    /// 2 GiB.
    pub fn finish(&mut self, rows: usize) -> Result<Option<ArrayRef>, ArrowError> {
        if self.is_empty() {
            return Ok(None);
        }
        let hint = self.lists.as_ref().map_or(self.atoms.len(), Lists::rows);
        let done = std::mem::replace(self, Self::with_capacity(hint));
        let Self { mut atoms, lists } = done;
        let Some(mut lists) = lists else {
            atoms.pad_to(rows);
            return atoms.into_array().map(Some);
        };
        lists.pad_to(rows);
        let items = atoms.into_array()?;
        let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(lists.offsets));
        Ok(Some(Arc::new(ListArray::try_new(field, offsets, items, lists.nulls.finish())?)))
    }
}

fn close_list(lists: &mut Lists, atoms: &Atoms) {
    lists.offsets.push(i32::try_from(atoms.len()).unwrap_or(i32::MAX));
    lists.nulls.append_non_null();
}

/// Turns scalars into lists of one: the nulls among them become null rows.
fn into_lists(atoms: &mut Atoms) -> Lists {
    let rows = atoms.len();
    let mut lists = Lists { offsets: Vec::with_capacity(rows + 1), nulls: NullBufferBuilder::new(rows) };
    lists.offsets.push(0);
    let mut kept = 0i32;
    for row in 0..rows {
        let present = atoms.is_valid(row);
        kept += i32::from(present);
        lists.offsets.push(kept);
        lists.nulls.append(present);
    }
    atoms.remove_nulls();
    lists
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::DataType;
    use arrow::util::display::array_value_to_string;
    use tidegate_events::Scalar;

    fn shown(array: &ArrayRef) -> Vec<String> {
        (0..array.len())
            .map(
                |row| if array.is_null(row) { "-".into() } else { array_value_to_string(array, row).expect("a value") },
            )
            .collect()
    }

    fn check(values: &[(usize, Atom<'_>)], rows: usize, kind: DataType, want: &[&str]) {
        let mut column = Column::with_capacity(0);
        for (row, atom) in values {
            column.append(*row, *atom);
        }
        let array = column.finish(rows).expect("an array").expect("values");
        assert_eq!(array.data_type(), &kind, "{values:?}");
        assert_eq!(shown(&array), want, "{values:?}");
        assert!(column.is_empty());
    }

    #[test]
    fn types_widen_and_gaps_are_null() {
        use Atom::{Big, Bool, Float, Int, Text};
        let big = 9_007_199_254_740_993;
        check(&[(1, Int(3))], 3, DataType::Int64, &["-", "3", "-"]);
        check(&[(0, Int(3)), (1, Float(0.5))], 2, DataType::Float64, &["3.0", "0.5"]);
        check(&[(0, Float(0.5)), (2, Int(3))], 3, DataType::Float64, &["0.5", "-", "3.0"]);
        check(
            &[(0, Int(3)), (2, Float(4.0)), (3, Int(5)), (4, Bool(true))],
            5,
            DataType::Utf8,
            &["3", "-", "4.0", "5", "true"],
        );
        check(&[(0, Int(big)), (1, Float(0.5))], 2, DataType::Utf8, &["9007199254740993", "0.5"]);
        check(&[(0, Float(0.1)), (1, Int(big))], 2, DataType::Utf8, &["0.1", "9007199254740993"]);
        check(&[(0, Int(-1)), (3, Text("x"))], 4, DataType::Utf8, &["-1", "-", "-", "x"]);
        check(&[(0, Bool(true)), (1, Int(1))], 2, DataType::Utf8, &["true", "1"]);
        check(&[(0, Text("a")), (1, Bool(false)), (2, Float(1e300))], 3, DataType::Utf8, &["a", "false", "1e300"]);
        check(&[(0, Int(1)), (1, Big(u64::MAX))], 2, DataType::Utf8, &["1", "18446744073709551615"]);
        check(&[(0, Bool(true)), (2, Bool(false))], 3, DataType::Boolean, &["true", "-", "false"]);
    }

    #[test]
    fn a_scalar_beside_a_list_is_a_list_of_one() {
        let mut column = Column::with_capacity(0);
        column.append(1, Atom::Int(7));
        column.append_list(3, &[Atom::Int(1), Atom::Null, Atom::Text("x")]);
        column.append(4, Atom::Bool(true));
        let array = column.finish(6).expect("an array").expect("values");
        assert_eq!(array.data_type(), &tidegate_events::FieldType::list_of(Scalar::Text).data_type());
        assert_eq!(shown(&array), ["-", "[7]", "-", "[1, , x]", "[true]", "-"]);
        assert!(array.as_list::<i32>().value(3).is_null(1));
    }
}
