//! Reading files of the store: a column at a time, their sort keys, or only their footers.

use std::path::Path;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;
use tidegate_events::Dataset;

use super::columns::{SortKeys, range_fits_float};
use super::encode::TENANTS_KEY;
use super::file_io::FileSource;
use super::manifest::TenantRows;
use super::place::Place;
use crate::error::SinksError;

/// A file with its footer read.
pub(crate) struct FileReader {
    source: FileSource,
    metadata: ArrowReaderMetadata,
}

impl FileReader {
    /// Opens a file of this size for a look at its footer.
    pub(crate) fn open(place: &Place, path: &Path, bytes: u64) -> Result<Self, SinksError> {
        Self::over(FileSource::open(place, path, Some(bytes))?)
    }

    /// Opens it for reading all of it.
    pub(crate) fn fetch(place: &Place, path: &Path, bytes: u64) -> Result<Self, SinksError> {
        let source = FileSource::open(place, path, Some(bytes))?;
        Self::over(source.fetched().map_err(SinksError::io("read", path))?)
    }

    fn over(source: FileSource) -> Result<Self, SinksError> {
        let metadata = ArrowReaderMetadata::load(&source, ArrowReaderOptions::default())?;
        Ok(Self { source, metadata })
    }

    /// The columns of the file.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// Whether all integers of a column are floats too, as the statistics of its row groups say.
    pub(crate) fn fits_float(&self, column: usize) -> bool {
        row_groups_fit(self.metadata.metadata(), column)
    }

    /// All values of one column, in order.
    pub(crate) fn column(&self, column: usize, batch_rows: usize) -> Result<ParquetRecordBatchReader, SinksError> {
        self.read(ProjectionMask::roots(self.metadata.parquet_schema(), [column]), batch_rows)
    }

    /// The sort keys of all rows, in order.
    pub(crate) fn keys(
        &self,
        dataset: Dataset,
        batch_rows: usize,
    ) -> Result<impl Iterator<Item = Result<SortKeys, SinksError>> + use<>, SinksError> {
        let mask = ProjectionMask::columns(self.metadata.parquet_schema(), [Dataset::ORG_ID, Dataset::TIME]);
        Ok(self.read(mask, batch_rows)?.map(move |batch| SortKeys::of(dataset, &batch?)))
    }

    fn read(&self, mask: ProjectionMask, batch_rows: usize) -> Result<ParquetRecordBatchReader, SinksError> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.source.clone(), self.metadata.clone());
        Ok(builder.with_projection(mask).with_batch_size(batch_rows).build()?)
    }

    /// Rows of a row group on average.
    pub(crate) fn group_rows(&self) -> u64 {
        let groups = self.metadata.metadata().row_groups();
        let rows: i64 = groups.iter().map(|group| group.num_rows()).sum();
        u64::try_from(rows).unwrap_or(0) / (groups.len() as u64).max(1)
    }

    /// All bytes of the file, if they are what was written.
    ///
    /// # Errors
    /// Also when they are not: the file is damaged.
    pub(crate) fn checked_bytes(&self, crc: u32) -> Result<Bytes, SinksError> {
        let length =
            usize::try_from(self.source.len()).map_err(|_| SinksError::Stopped("a file is too large".into()))?;
        let bytes = self.source.exact(0, length).map_err(ParquetError::from)?;
        if crc32c::crc32c(&bytes) != crc {
            return Err(SinksError::Stopped("the checksum of a file is not that of the manifest".into()));
        }
        Ok(bytes)
    }

    /// The tenants that the footer names, if it does.
    pub(crate) fn tenants(&self) -> Option<Vec<TenantRows>> {
        let pairs = self.metadata.metadata().file_metadata().key_value_metadata()?;
        let text = pairs.iter().find(|pair| pair.key == TENANTS_KEY)?.value.as_deref()?;
        serde_json::from_str(text).ok()
    }
}

fn row_groups_fit(metadata: &ParquetMetaData, column: usize) -> bool {
    metadata.row_groups().iter().all(|group| {
        let Some(chunk) = group.columns().get(column) else { return false };
        match chunk.statistics() {
            Some(Statistics::Int64(ints)) => match (ints.min_opt(), ints.max_opt()) {
                (Some(min), Some(max)) => range_fits_float(*min, *max),
                _ => ints.null_count_opt() == u64::try_from(chunk.num_values()).ok(),
            },
            Some(_) => true,
            None => false,
        }
    })
}
