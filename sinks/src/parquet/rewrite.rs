//! Files made anew from the rows of other files, one column after the other.
//!
//! Why by columns: an open Parquet column costs a codec and page buffers on either side, and files of ours have hundreds of
//! columns, so that a merge by rows of some dozen files would hold gigabytes. Here one column of each input is open at a
//! time; what is held is the order of the rows (a few bytes each) and the encoded output, which is about as large as the
//! input files are on disk.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{FieldRef, Schema};
use hashbrown::HashMap;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter};
use parquet::file::properties::WriterPropertiesPtr;
use tidegate_events::Dataset;

use super::columns::{Column, Pick, Picked, widen};
use super::commit::NewFiles;
use super::encode::{CHUNK_ROWS, PageEncoding, TenantCount, column_writer, properties, write_column};
use super::encoding::for_values;
use super::merge::{InputError, NOWHERE, Run};
use super::read::FileReader;
use crate::error::SinksError;

/// Bytes of decoded values of one column that wait to be gathered.
const WINDOW_BYTES: usize = 32 << 20;

/// A file to be written: which of the fields it has, and its rows by tenant.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) wanted: Vec<usize>,
    pub(crate) tenants: TenantCount,
}

/// The files that rows come from, and in which order they follow.
pub(crate) struct Source<'a> {
    pub(crate) dataset: Dataset,
    pub(crate) files: &'a [FileReader],
    pub(crate) fields: &'a [FieldRef],
    pub(crate) runs: &'a [Run],
}

/// An output while its columns are encoded.
struct Target {
    wanted: Vec<usize>,
    /// Whether the column at hand is wanted.
    wants: bool,
    properties: WriterPropertiesPtr,
    /// The encoded columns of each row group.
    groups: Vec<Vec<ArrowColumnChunk>>,
    picks: Vec<Pick>,
    column: Option<ArrowColumnWriter>,
    /// The row group that the column at hand is in, and its rows so far.
    group: usize,
    group_rows: usize,
}

/// Writes the outputs. `outputs[i]` gets the rows of the runs with output `i`, in their order.
pub(crate) fn rewrite(
    source: &Source<'_>,
    outputs: Vec<Output>,
    encoding: PageEncoding,
    files: &mut NewFiles<'_>,
) -> Result<(), InputError> {
    let other = |error| InputError { input: usize::MAX, error };
    let config = &files.store.config;
    let mut targets = Vec::with_capacity(outputs.len());
    for output in &outputs {
        let fields: Vec<FieldRef> = output.wanted.iter().filter_map(|at| source.fields.get(*at).cloned()).collect();
        let properties = Arc::new(properties(config, encoding, &Schema::new(fields)).map_err(other)?);
        targets.push(Target {
            wanted: output.wanted.clone(),
            wants: false,
            properties,
            groups: Vec::new(),
            picks: Vec::new(),
            column: None,
            group: 0,
            group_rows: 0,
        });
    }
    let columns: Vec<HashMap<&str, usize>> = source.files.iter().map(column_numbers).collect();
    for (at, field) in source.fields.iter().enumerate() {
        for target in &mut targets {
            // Ascending, as the fields are.
            target.wants = target.wanted.binary_search(&at).is_ok();
            (target.group, target.group_rows) = (0, 0);
        }
        if targets.iter().any(|target| target.wants) {
            rewrite_column(source, (field, &columns), &mut targets, encoding.row_group_rows)?;
        }
    }
    for (output, target) in outputs.into_iter().zip(targets) {
        let fields: Vec<FieldRef> = target.wanted.iter().filter_map(|at| source.fields.get(*at).cloned()).collect();
        let mut build = files.create(source.dataset, encoding, Arc::new(Schema::new(fields))).map_err(other)?;
        for group in target.groups {
            build.push_chunks(group).map_err(other)?;
        }
        files.finish(build, output.tenants).map_err(other)?;
    }
    Ok(())
}

/// One column of all inputs, on its way into all outputs.
struct Window<'a> {
    field: &'a FieldRef,
    readers: Vec<Option<ParquetRecordBatchReader>>,
    /// For each input the slot of its batch at hand, the next row of it, and its rows.
    at: Vec<(usize, usize, usize)>,
    /// Batches that picks may point to. Slot 0 is none: all null.
    slots: Vec<Option<ArrayRef>>,
    bytes: usize,
}

/// The columns of a file by their names.
pub(crate) fn column_numbers(file: &FileReader) -> HashMap<&str, usize> {
    file.schema().fields().iter().enumerate().map(|(at, field)| (field.name().as_str(), at)).collect()
}

fn rewrite_column(
    source: &Source<'_>,
    (field, columns): (&FieldRef, &[HashMap<&str, usize>]),
    targets: &mut [Target],
    row_group_rows: usize,
) -> Result<(), InputError> {
    let other = |error| InputError { input: usize::MAX, error };
    let mut readers = Vec::with_capacity(source.files.len());
    for (input, (file, columns)) in source.files.iter().zip(columns).enumerate() {
        let column = columns.get(field.name().as_str());
        let reader = column.map(|column| file.column(*column, CHUNK_ROWS)).transpose();
        readers.push(reader.map_err(|error| InputError { input, error })?);
    }
    let inputs = readers.len();
    let mut window = Window { field, readers, at: vec![(0, 0, 0); inputs], slots: vec![None], bytes: 0 };
    for run in source.runs {
        let mut left = run.rows as usize;
        while left > 0 {
            let input = run.input as usize;
            if window.needs(input) && window.bytes >= WINDOW_BYTES {
                for target in targets.iter_mut().filter(|target| !target.picks.is_empty()) {
                    target.write(&window).map_err(other)?;
                }
                window.release();
            }
            let (slot, first, rows) = window.take(input, left)?;
            left -= rows;
            let target = match run.output {
                NOWHERE => None,
                output => targets.get_mut(output as usize).filter(|target| target.wants),
            };
            if let Some(target) = target {
                target.add(&window, (slot, first, rows), row_group_rows).map_err(other)?;
            }
        }
    }
    for target in targets.iter_mut().filter(|target| target.wants) {
        target.write(&window).map_err(other)?;
        target.end_group().map_err(other)?;
    }
    Ok(())
}

impl Window<'_> {
    /// Whether the next row of an input is in a batch that is not read yet.
    fn needs(&self, input: usize) -> bool {
        let has_reader = self.readers.get(input).is_some_and(Option::is_some);
        has_reader && self.at.get(input).is_some_and(|(_, next, rows)| next >= rows)
    }

    /// At most `most` next rows of an input: (slot, first row, rows).
    fn take(&mut self, input: usize, most: usize) -> Result<(usize, usize, usize), InputError> {
        let failed = |error| InputError { input, error };
        let (Some(reader), Some(at)) = (self.readers.get_mut(input), self.at.get_mut(input)) else {
            return Err(failed(SinksError::Stopped("the order names an input that is not there".into())));
        };
        let Some(reader) = reader else { return Ok((0, 0, most)) };
        while at.1 >= at.2 {
            let Some(batch) = reader.next() else {
                return Err(failed(SinksError::Stopped("a column has fewer rows than the others".into())));
            };
            let batch = batch.map_err(|error| failed(error.into()))?;
            let Some(array) = batch.columns().first() else { continue };
            let array = widen(array, self.field.data_type()).map_err(|error| failed(error.into()))?;
            self.bytes += array.to_data().get_slice_memory_size().unwrap_or(0);
            *at = (self.slots.len(), 0, array.len());
            self.slots.push(Some(array));
        }
        let rows = most.min(at.2 - at.1);
        let taken = (at.0, at.1, rows);
        at.1 += rows;
        Ok(taken)
    }

    /// Forgets the batches that were read to their end. No pick may be left.
    fn release(&mut self) {
        let mut kept = vec![None];
        self.bytes = 0;
        for at in self.at.iter_mut().filter(|(_, next, rows)| next < rows) {
            if let Some(array) = self.slots.get_mut(at.0).and_then(Option::take) {
                self.bytes += array.to_data().get_slice_memory_size().unwrap_or(0);
                at.0 = kept.len();
                kept.push(Some(array));
            }
        }
        // What is in use counts for nothing: only what comes on top fills the window.
        self.bytes = 0;
        self.slots = kept;
    }
}

impl Target {
    fn add(
        &mut self,
        window: &Window<'_>,
        (slot, mut first, mut rows): (usize, usize, usize),
        row_group_rows: usize,
    ) -> Result<(), SinksError> {
        while rows > 0 {
            let room = (row_group_rows - self.group_rows).min(rows);
            self.picks.extend((first..first + room).map(|row| (slot as u32, row as u32)));
            self.group_rows += room;
            first += room;
            rows -= room;
            if self.group_rows == row_group_rows {
                self.write(window)?;
                self.end_group()?;
            } else if self.picks.len() >= CHUNK_ROWS {
                self.write(window)?;
            }
        }
        Ok(())
    }

    /// Encodes the picked rows.
    fn write(&mut self, window: &Window<'_>) -> Result<(), SinksError> {
        if self.picks.is_empty() {
            return Ok(());
        }
        let column = Column { field: window.field.clone(), arrays: window.slots.clone() };
        let array = Picked::new(&self.picks).gather(&column)?;
        self.picks.clear();
        let writer = match &mut self.column {
            Some(writer) => writer,
            none => {
                let properties = for_values(&self.properties, window.field, &array);
                none.insert(column_writer(window.field, &properties)?)
            }
        };
        write_column(writer, window.field, &array)
    }

    fn end_group(&mut self) -> Result<(), SinksError> {
        let Some(writer) = self.column.take() else { return Ok(()) };
        let chunk = writer.close()?;
        if self.groups.len() <= self.group {
            self.groups.resize_with(self.group + 1, Vec::new);
        }
        if let Some(group) = self.groups.get_mut(self.group) {
            group.push(chunk);
        }
        self.group += 1;
        self.group_rows = 0;
        Ok(())
    }
}
