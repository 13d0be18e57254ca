//! Merging without decoding: the row groups of large enough files are put into one file as they are, page for page.
//!
//! A busy tenant's commits are files of a row group each, sorted by time and one after the other in time. Decoding them, sorting
//! what is sorted, and encoding it again was a third of the server's CPU time under load; all that it gained were a few bytes an
//! event by a higher zstd level. So such files are only joined: statistics, page indexes and bloom filters go with their columns.
//! Rows are sorted within each row group, as its `sorting_columns` says, not over the whole file.
//!
//! What is copied is not looked at, so the bytes of each file are compared with the checksum in the manifest first: a damaged page
//! must not get into a file whose checksum is right.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::column_index::ColumnIndexMetaData;

use arrow::array::new_null_array;
use arrow::datatypes::{FieldRef, Schema};
use parquet::bloom_filter::Sbbf;
use tidegate_events::Dataset;

use super::commit::NewFiles;
use super::encode::{FileBuild, PageEncoding, TenantCount, column_writer, write_column};
use super::layout::hour_of;
use super::manifest::FileMeta;
use super::merge::InputError;
use super::read::FileReader;
use super::rewrite::column_numbers;
use super::store::ParquetStore;
use crate::error::SinksError;

/// Whether the files can be joined as they are: row groups that are large enough, of one tenant and one hour, in which a column has
/// the type that it has in all of them together.
pub(crate) fn can_join(
    store: &ParquetStore,
    files: &[Arc<FileMeta>],
    opened: &[FileReader],
    fields: &[FieldRef],
) -> bool {
    let Some(first) = files.first() else { return false };
    let rows_min = (store.config.row_group_rows as u64).div_ceil(2);
    let alike = |file: &Arc<FileMeta>| {
        let of_one = file.org_min == first.org_min && file.org_max == first.org_min;
        let hour = hour_of(first.time_min);
        of_one && hour_of(file.time_min) == hour && hour_of(file.time_max) == hour
    };
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let types: HashMap<&str, &FieldRef> = fields.iter().map(|field| (field.name().as_str(), field)).collect();
    let same_type = |file: &FileReader| {
        let mut columns = file.schema().fields().iter();
        columns.all(|column| types.get(column.name().as_str()) == Some(&column))
    };
    files.iter().all(alike)
        && bytes <= store.config.target_file_bytes
        && opened.iter().all(|file| file.group_rows() >= rows_min && same_type(file))
}

/// Writes one file with the row groups of all files, in their order.
pub(crate) fn join(
    files: &[Arc<FileMeta>],
    opened: &[FileReader],
    (dataset, fields): (Dataset, &[FieldRef]),
    encoding: PageEncoding,
    new: &mut NewFiles<'_>,
) -> Result<(), InputError> {
    let other = |error| InputError { input: usize::MAX, error };
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let mut build = new.create(dataset, encoding, schema).map_err(other)?;
    for (input, (file, reader)) in files.iter().zip(opened).enumerate() {
        let failed = |error| InputError { input, error };
        let bytes = reader.checked_bytes(file.crc).map_err(failed)?;
        let metadata = read_metadata(&bytes).map_err(failed)?;
        let numbers = column_numbers(reader);
        for group in 0..metadata.num_row_groups() {
            let columns = fields.iter().map(|field| numbers.get(field.name().as_str()).copied());
            let source = Group { bytes: &bytes, metadata: &metadata, group };
            build.join_group(fields, columns, &source).map_err(failed)?;
        }
    }
    let mut tenants = TenantCount::default();
    let time_min = files.iter().map(|file| file.time_min).min().unwrap_or(0);
    let time_max = files.iter().map(|file| file.time_max).max().unwrap_or(0);
    let rows = files.iter().map(|file| file.rows).sum();
    let org = files.first().map(|file| file.org_min.as_str()).unwrap_or_default();
    tenants.add(org, rows, (time_min, time_max));
    new.finish(build, tenants).map_err(other)
}

/// The footer with its page indexes.
fn read_metadata(bytes: &Bytes) -> Result<ParquetMetaData, SinksError> {
    let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
    Ok(reader.parse_and_finish(bytes)?)
}

/// A row group of a file.
struct Group<'a> {
    bytes: &'a Bytes,
    metadata: &'a ParquetMetaData,
    group: usize,
}

impl Group<'_> {
    fn rows(&self) -> usize {
        usize::try_from(self.metadata.row_group(self.group).num_rows()).unwrap_or(0)
    }

    /// A column as its writer left it.
    fn column(&self, column: usize) -> Result<ColumnCloseResult, SinksError> {
        let group = self.metadata.row_group(self.group);
        let missing = || SinksError::Stopped("a row group has fewer columns than its schema".into());
        let metadata = group.columns().get(column).cloned().ok_or_else(missing)?;
        let column_index = self.metadata.column_index().and_then(|groups| groups.get(self.group)?.get(column).cloned());
        let offset_index = self.metadata.offset_index().and_then(|groups| groups.get(self.group)?.get(column).cloned());
        Ok(ColumnCloseResult {
            bytes_written: metadata.compressed_size() as u64,
            rows_written: group.num_rows() as u64,
            bloom_filter: Sbbf::read_from_column_chunk(&metadata, self.bytes)?,
            metadata,
            column_index: column_index.filter(|index| !matches!(index, ColumnIndexMetaData::NONE)),
            offset_index,
        })
    }
}

impl FileBuild {
    /// Adds a row group of another file. `columns` says for each field where it is there; where it is not, it is null.
    fn join_group(
        &mut self,
        fields: &[FieldRef],
        columns: impl Iterator<Item = Option<usize>>,
        source: &Group<'_>,
    ) -> Result<(), SinksError> {
        let (path, trouble, properties) = (self.path.clone(), self.trouble.clone(), self.properties.clone());
        let joined = || {
            let mut group = self.writer.next_row_group()?;
            for (field, column) in fields.iter().zip(columns) {
                match column {
                    Some(column) => group.append_column(source.bytes, source.column(column)?)?,
                    None => {
                        let mut writer = column_writer(field, &properties)?;
                        write_column(&mut writer, field, &new_null_array(field.data_type(), source.rows()))?;
                        writer.close()?.append_to_row_group(&mut group)?;
                    }
                }
            }
            group.close()?;
            Ok(())
        };
        joined().map_err(|error| trouble.blame(&path, error))
    }
}
