//! A set of column builders that events of similar layouts share; each flush makes it one batch.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use rustc_hash::FxHashMap;
use tidegate_events::Dataset;
use tidegate_pipeline::EventBatch;

use super::names::{FieldId, Names};
use super::{IngestError, RowRef};
use crate::column::{Atom, Column, CoreColumn};

/// The places of the columns with which every dataset starts.
pub(super) const TIME: usize = 0;
pub(super) const RECEIVED_TIME: usize = 1;
pub(super) const EVENT_ID: usize = 2;
pub(super) const ORG_ID: usize = 3;
pub(super) const SOURCE: usize = 4;

/// The builders of one batch.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) dataset: Dataset,
    pub(super) core: Vec<CoreColumn>,
    own: Vec<Own>,
    by_field: FxHashMap<FieldId, usize>,
    rows: Vec<RowRef>,
    keys: Vec<u128>,
    /// That of the last batch: the next one is likely to have the same columns.
    schema: SchemaRef,
}

/// The builder of an own field.
#[derive(Debug)]
struct Own {
    id: FieldId,
    column: Column,
    /// As it was in the last batch that had it.
    field: Option<FieldRef>,
}

impl Family {
    pub(super) fn new(dataset: Dataset) -> Self {
        let core = dataset.core_schema().fields().iter().map(|field| CoreColumn::new(field.data_type(), 0)).collect();
        Self {
            dataset,
            core,
            own: Vec::new(),
            by_field: FxHashMap::default(),
            rows: Vec::new(),
            keys: Vec::new(),
            schema: Arc::new(Schema::empty()),
        }
    }

    /// Rows so far.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Columns of own fields.
    pub(super) fn width(&self) -> usize {
        self.own.len()
    }

    /// Whether it has a column for `field`.
    pub(super) fn has(&self, field: FieldId) -> bool {
        self.by_field.contains_key(&field)
    }

    /// The number of the column of `field`, which is made when it is new.
    pub(super) fn column_of(&mut self, field: FieldId) -> usize {
        let next = self.own.len();
        let column = *self.by_field.entry(field).or_insert(next);
        if column == next {
            self.own.push(Own { id: field, column: Column::with_capacity(0), field: None });
        }
        column
    }

    /// Sets a core column of text in the row that is open.
    #[inline]
    pub(super) fn core_text(&mut self, core: usize, text: &str) {
        let row = self.rows.len();
        if let Some(column) = self.core.get_mut(core) {
            column.append_text(row, text);
        }
    }

    /// Sets a core column of text in the row that is open, with text that is known to be ASCII.
    #[inline]
    pub(super) fn core_ascii(&mut self, core: usize, text: &[u8]) {
        let row = self.rows.len();
        if let Some(column) = self.core.get_mut(core) {
            column.append_bytes(row, text);
        }
    }

    /// Sets a core column of numbers in the row that is open.
    #[inline]
    pub(super) fn core_number(&mut self, core: usize, number: i128) {
        let row = self.rows.len();
        if let Some(column) = self.core.get_mut(core) {
            column.append_number(row, number);
        }
    }

    /// Sets an own field in the row that is open.
    #[inline]
    pub(super) fn own_atom(&mut self, column: usize, atom: Atom<'_>) {
        let row = self.rows.len();
        if let Some(own) = self.own.get_mut(column) {
            own.column.append(row, atom);
        }
    }

    /// Sets an own field in the row that is open to a text.
    #[inline]
    pub(super) fn own_text(&mut self, column: usize, text: &str) {
        let row = self.rows.len();
        if let Some(own) = self.own.get_mut(column) {
            own.column.append_text(row, text);
        }
    }

    /// Sets an own field in the row that is open to a list.
    pub(super) fn own_list(&mut self, column: usize, items: &[Atom<'_>]) {
        let row = self.rows.len();
        if let Some(own) = self.own.get_mut(column) {
            own.column.append_list(row, items);
        }
    }

    /// Ends the row that is open.
    pub(super) fn end_row(&mut self, row: RowRef, key: u128) {
        self.rows.push(row);
        if key != 0 || !self.keys.is_empty() {
            self.keys.resize(self.rows.len() - 1, 0);
            self.keys.push(key);
        }
    }

    /// The rows as a batch, and the builders empty again; `None` when there are none.
    pub(super) fn flush(&mut self, names: &Names) -> Result<Option<(EventBatch, Vec<RowRef>)>, IngestError> {
        let count = self.rows.len();
        if count == 0 {
            return Ok(None);
        }
        let rows = std::mem::take(&mut self.rows);
        let keys = std::mem::take(&mut self.keys);
        let mut fields = Vec::with_capacity(self.core.len() + self.own.len());
        let mut arrays = Vec::with_capacity(self.core.len() + self.own.len());
        let schema = self.dataset.core_schema();
        let mut failed = None;
        // All builders are emptied even if one fails, so that the next flush starts clean.
        for (field, column) in schema.fields().iter().zip(&mut self.core) {
            match column.finish(field.data_type(), count) {
                Ok(Some(array)) => {
                    fields.push(field.clone());
                    arrays.push(array);
                }
                Ok(None) => {}
                Err(error) => failed = Some((field.name().clone(), error)),
            }
        }
        for own in &mut self.own {
            match own.column.finish(count) {
                Ok(Some(array)) => {
                    fields.push(own.field(&array, names));
                    arrays.push(array);
                }
                Ok(None) => {}
                Err(error) => failed = Some((names.name(own.id).to_string(), error)),
            }
        }
        if let Some((name, error)) = failed {
            return Err(match error {
                ArrowError::OffsetOverflowError(_) => IngestError::ColumnFull(name),
                error => IngestError::Arrow(error),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let same = |(one, other): (&FieldRef, &FieldRef)| Arc::ptr_eq(one, other);
        if self.schema.fields().len() != fields.len() || !self.schema.fields().iter().zip(&fields).all(same) {
            self.schema = Arc::new(Schema::new(fields));
        }
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)?;
        let batch = EventBatch { dataset: self.dataset, rows: batch, keys };
        Ok(Some((batch, rows)))
    }
}

impl Own {
    /// The field of this array, which is as a rule that of the last one.
    fn field(&mut self, array: &ArrayRef, names: &Names) -> FieldRef {
        match &self.field {
            Some(field) if field.data_type() == array.data_type() => field.clone(),
            _ => {
                let field = Field::new(&**names.name(self.id), array.data_type().clone(), true);
                self.field.insert(Arc::new(field)).clone()
            }
        }
    }
}
