//! Several sorted files as one sorted stream, in bounded memory: what compaction writes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use tidegate_events::{Dataset, FieldType, Scalar};

use super::columns::{Column, Pick, Picked, SortKeys, widen};
use super::read::FileReader;
use crate::error::SinksError;

/// The columns of all files together, core columns first, own fields by name with the joined type.
pub(crate) fn joined_fields(dataset: Dataset, files: &[FileReader]) -> Result<Vec<FieldRef>, SinksError> {
    let core = dataset.core_schema();
    let mut core_fields: Vec<bool> = vec![false; core.fields().len()];
    let mut own: BTreeMap<String, (FieldType, bool)> = BTreeMap::new();
    for file in files {
        for (at, field) in file.schema().fields().iter().enumerate() {
            if let Some((at, _)) = core.fields().find(field.name()) {
                if let Some(found) = core_fields.get_mut(at) {
                    *found = true;
                }
                continue;
            }
            let kind = FieldType::from_data_type(field.data_type()).ok_or_else(|| {
                SinksError::Invalid(format!("own field {:?} has the type {}", field.name(), field.data_type()))
            })?;
            let exact = kind.scalar != Scalar::Int || file.fits_float(at);
            let joined = own.entry(field.name().clone()).or_insert((kind, true));
            *joined = (joined.0.join(kind), joined.1 && exact);
        }
    }
    let core = core.fields().iter().zip(core_fields).filter(|(_, found)| *found).map(|(field, _)| field.clone());
    let own = own.into_iter().map(|(name, (mut kind, exact))| {
        if kind.scalar == Scalar::Float && !exact {
            kind.scalar = Scalar::Text;
        }
        Arc::new(Field::new(name, kind.data_type(), true))
    });
    Ok(core.chain(own).collect())
}

/// One sorted file.
struct Input {
    reader: ParquetRecordBatchReader,
    /// The batch of the window that is being read.
    slot: u32,
    at: usize,
}

/// A batch that picked rows may still point to.
struct Held {
    columns: Vec<Option<ArrayRef>>,
    keys: SortKeys,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    org: Arc<str>,
    time: i64,
    input: usize,
}

/// Which input a failure comes from, for setting its file aside.
#[derive(Debug)]
pub(crate) struct InputError {
    pub(crate) input: usize,
    pub(crate) error: SinksError,
}

/// The merge of sorted files.
pub(crate) struct Merge {
    dataset: Dataset,
    fields: Vec<FieldRef>,
    inputs: Vec<Input>,
    window: Vec<Held>,
    heads: BinaryHeap<Reverse<Head>>,
}

impl Merge {
    /// Starts with the first batch of every file.
    pub(crate) fn new(
        dataset: Dataset,
        fields: Vec<FieldRef>,
        readers: Vec<ParquetRecordBatchReader>,
    ) -> Result<Self, InputError> {
        let mut merge = Self { dataset, fields, inputs: Vec::new(), window: Vec::new(), heads: BinaryHeap::new() };
        for (input, reader) in readers.into_iter().enumerate() {
            merge.inputs.push(Input { reader, slot: 0, at: 0 });
            merge.load(input)?;
        }
        Ok(merge)
    }

    /// The next rows of the stream: calls `row(tenant, time)` for each, in order, whose answer says in which of the lists of
    /// `picks` the row goes. Ends after `rows` of them; says whether there may be more.
    pub(crate) fn advance(
        &mut self,
        rows: usize,
        picks: &mut [Vec<Pick>],
        mut row: impl FnMut(&Arc<str>, i64) -> usize,
    ) -> Result<bool, InputError> {
        let mut left = rows;
        while left > 0 {
            let Some(Reverse(head)) = self.heads.pop() else { return Ok(false) };
            let input = head.input;
            let Some(Input { slot, at, .. }) = self.inputs.get_mut(input) else { return Ok(false) };
            let Some(held) = self.window.get(*slot as usize) else { return Ok(false) };
            // On with this input as long as its rows come before the head of every other one.
            let next = self.heads.peek().map(|Reverse(next)| (next.org.clone(), next.time));
            let (mut org, mut time) = (head.org, head.time);
            loop {
                if let Some(list) = picks.get_mut(row(&org, time)) {
                    list.push((*slot, *at as u32));
                }
                *at += 1;
                left -= 1;
                if *at >= held.keys.len() {
                    break;
                }
                if held.keys.org(*at) != &*org {
                    org = held.keys.org(*at).into();
                }
                time = held.keys.time(*at);
                let before = next.as_ref().is_none_or(|next| (&*org, time) <= (&*next.0, next.1));
                if !before || left == 0 {
                    break;
                }
            }
            if *at < held.keys.len() {
                self.heads.push(Reverse(Head { org, time, input }));
            } else {
                self.load(input)?;
            }
        }
        Ok(true)
    }

    /// The picked rows with those columns that `wanted` lists.
    pub(crate) fn gather(
        &self,
        wanted: &[usize],
        schema: &SchemaRef,
        picks: &[Pick],
    ) -> Result<RecordBatch, SinksError> {
        let column = |at: &usize| {
            let arrays = self.window.iter().map(|held| held.columns.get(*at).cloned().flatten()).collect();
            Some(Column { field: self.fields.get(*at)?.clone(), arrays })
        };
        let picked = Picked::new(picks);
        let arrays =
            wanted.iter().filter_map(column).map(|column| picked.gather(&column)).collect::<Result<Vec<_>, _>>()?;
        Ok(RecordBatch::try_new(schema.clone(), arrays)?)
    }

    /// The schema of those columns that `wanted` lists.
    pub(crate) fn schema(&self, wanted: &[usize]) -> SchemaRef {
        let fields: Vec<FieldRef> = wanted.iter().filter_map(|at| self.fields.get(*at).cloned()).collect();
        Arc::new(Schema::new(fields))
    }

    /// Forgets the batches that were read to their end. Rows picked before cannot be gathered any more.
    pub(crate) fn release(&mut self) {
        let mut kept = Vec::with_capacity(self.inputs.len());
        let mut window: Vec<Option<Held>> = std::mem::take(&mut self.window).into_iter().map(Some).collect();
        for Reverse(head) in &self.heads {
            let Some(input) = self.inputs.get_mut(head.input) else { continue };
            if let Some(held) = window.get_mut(input.slot as usize).and_then(Option::take) {
                input.slot = kept.len() as u32;
                kept.push(held);
            }
        }
        self.window = kept;
    }

    /// Takes the next batch of an input into the window, if there is one.
    fn load(&mut self, input: usize) -> Result<(), InputError> {
        let failed = |error: SinksError| InputError { input, error };
        let Some(from) = self.inputs.get_mut(input) else { return Ok(()) };
        let batch = loop {
            match from.reader.next() {
                None => return Ok(()),
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => break batch,
                Some(Err(error)) => return Err(failed(error.into())),
            }
        };
        let keys = SortKeys::of(self.dataset, &batch).map_err(failed)?;
        let mut columns = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let array = batch.column_by_name(field.name());
            let array = array.map(|array| widen(array, field.data_type())).transpose();
            columns.push(array.map_err(|error| failed(error.into()))?);
        }
        from.slot = self.window.len() as u32;
        from.at = 0;
        self.heads.push(Reverse(Head { org: keys.org(0).into(), time: keys.time(0), input }));
        self.window.push(Held { columns, keys });
        Ok(())
    }
}
