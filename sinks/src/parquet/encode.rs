//! One Parquet file, from sorted batches to its line in the manifest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use tidegate_events::Dataset;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::fs::{DirChange, Fs};

use super::columns::{Column, Picked, SortKeys};
use super::config::ParquetConfig;
use super::file_io::FileWriter;
use super::manifest::{FileMeta, TenantRows};
use crate::error::SinksError;

/// The key of the footer under which all tenants of a file stand, when they are too many for the manifest.
pub(crate) const TENANTS_KEY: &str = "tidegate.tenants";
/// So many tenants of a file stand in the manifest.
const MANIFEST_TENANTS_MAX: usize = 64;
/// Rows that are gathered and encoded at a time.
pub(crate) const CHUNK_ROWS: usize = 8192;

/// The core columns with a bloom filter: what people look up.
const BLOOM_COLUMNS: [&str; 5] = ["event_id", "actor", "src_ip", "asset", "resource"];
/// Columns whose values hardly repeat: a dictionary costs time and gains nothing.
const UNIQUE_COLUMNS: [&str; 3] = ["event_id", "time", "received_time"];

/// Rows of a page, for the page index to prune by.
const PAGE_ROWS: usize = 20_000;

/// A file while it is written.
pub(crate) struct FileBuild {
    id: u64,
    dataset: Dataset,
    encoding: PageEncoding,
    schema: SchemaRef,
    writer: SerializedFileWriter<FileWriter>,
    factory: ArrowRowGroupWriterFactory,
    /// The columns of the row group that is being filled, and its rows.
    group: Option<(Vec<ArrowColumnWriter>, usize)>,
    groups: usize,
    rows: u64,
    tenants: BTreeMap<String, TenantRows>,
    open_tenant: Option<TenantRows>,
}

/// How a file is encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageEncoding {
    /// zstd level of the pages.
    pub(crate) zstd_level: i32,
    /// Rows of a row group.
    pub(crate) row_group_rows: usize,
    /// Encoded bytes after which a row group ends early.
    pub(crate) row_group_bytes: usize,
}

/// The writer's properties for a file of this schema.
fn properties(
    config: &ParquetConfig,
    encoding: PageEncoding,
    schema: &SchemaRef,
) -> Result<WriterProperties, SinksError> {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(encoding.zstd_level)?))
        .set_max_row_group_row_count(Some(encoding.row_group_rows))
        .set_max_row_group_bytes(Some(encoding.row_group_bytes))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_created_by(concat!("tidegate ", env!("CARGO_PKG_VERSION")).to_owned());
    for field in schema.fields() {
        let name = field.name().as_str();
        let path = || ColumnPath::new(vec![name.to_owned()]);
        if UNIQUE_COLUMNS.contains(&name) {
            builder = builder.set_column_dictionary_enabled(path(), false);
        }
        if matches!(field.data_type(), DataType::Timestamp(..)) {
            builder = builder.set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED);
        }
        let listed = config.bloom_columns.iter().any(|column| column == name);
        if (listed || BLOOM_COLUMNS.contains(&name)) && *field.data_type() == DataType::Utf8 {
            builder = builder
                .set_column_bloom_filter_fpp(path(), config.bloom_false_hits)
                .set_column_bloom_filter_max_ndv(path(), encoding.row_group_rows as u64);
        }
    }
    let sorting = [Dataset::ORG_ID, Dataset::TIME].map(|name| leaf_index(schema, name));
    if let [Some(org), Some(time)] = sorting {
        let sorted = |column_idx| SortingColumn { column_idx, descending: false, nulls_first: true };
        builder = builder.set_sorting_columns(Some(vec![sorted(org), sorted(time)]));
    }
    Ok(builder.build())
}

/// The number of a column among the leaves; every column of ours has exactly one.
fn leaf_index(schema: &SchemaRef, name: &str) -> Option<i32> {
    i32::try_from(schema.index_of(name).ok()?).ok()
}

impl FileBuild {
    /// Creates the file in the folder of its dataset.
    pub(crate) fn create(
        fs: &dyn Fs,
        place: (&Path, u64, Dataset),
        config: &ParquetConfig,
        encoding: PageEncoding,
        schema: SchemaRef,
    ) -> Result<Self, SinksError> {
        let (dir, id, dataset) = place;
        let path = file_path(dir, dataset, id);
        let properties = properties(config, encoding, &schema)?;
        let file = FileWriter::create(fs, &path)?;
        // By way of `ArrowWriter`, which puts the Arrow schema into the footer.
        let (writer, factory) =
            ArrowWriter::try_new(file, schema.clone(), Some(properties))?.into_serialized_writer()?;
        let (group, tenants, open_tenant) = (None, BTreeMap::new(), None);
        Ok(Self { id, dataset, encoding, schema, writer, factory, group, groups: 0, rows: 0, tenants, open_tenant })
    }

    /// Encoded bytes so far, also of the row group that is being filled.
    pub(crate) fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.group_bytes()) as u64
    }

    fn group_bytes(&self) -> usize {
        let columns = self.group.iter().flat_map(|(columns, _)| columns);
        columns.map(ArrowColumnWriter::get_estimated_total_bytes).sum()
    }

    /// Adds rows, which must follow the ones before in order.
    pub(crate) fn push(&mut self, batch: &RecordBatch) -> Result<(), SinksError> {
        let (mut columns, rows) = match self.group.take() {
            Some(group) => group,
            None => (self.factory.create_column_writers(self.groups)?, 0),
        };
        for ((field, array), column) in self.schema.fields().iter().zip(batch.columns()).zip(&mut columns) {
            write_column(column, field, array)?;
        }
        self.group = Some((columns, rows + batch.num_rows()));
        if rows + batch.num_rows() >= self.encoding.row_group_rows
            || self.group_bytes() >= self.encoding.row_group_bytes
        {
            self.end_group()?;
        }
        self.count(&SortKeys::of(self.dataset, batch)?);
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), SinksError> {
        let Some((columns, _)) = self.group.take() else { return Ok(()) };
        let mut group = self.writer.next_row_group()?;
        for column in columns {
            column.close()?.append_to_row_group(&mut group)?;
        }
        group.close()?;
        self.groups += 1;
        Ok(())
    }

    /// Adds a row group, one column after the other: at no time is more than one column of it copied.
    pub(crate) fn push_group(&mut self, columns: &[Column], picked: &Picked) -> Result<(), SinksError> {
        self.end_group()?;
        let writers = self.factory.create_column_writers(self.groups)?;
        let mut group = self.writer.next_row_group()?;
        let (mut orgs, mut times) = (None, None);
        for (column, mut writer) in columns.iter().zip(writers) {
            let array = picked.gather(column)?;
            write_column(&mut writer, &column.field, &array)?;
            writer.close()?.append_to_row_group(&mut group)?;
            match column.field.name().as_str() {
                Dataset::ORG_ID => orgs = Some(array),
                Dataset::TIME => times = Some(array),
                _ => {}
            }
        }
        group.close()?;
        self.groups += 1;
        self.count(&SortKeys::from_columns(self.dataset, orgs, times, picked.rows())?);
        Ok(())
    }

    /// Counts the rows of each tenant.
    fn count(&mut self, keys: &SortKeys) {
        self.rows += keys.len() as u64;
        let mut from = 0;
        while from < keys.len() {
            let org = keys.org(from);
            let mut to = from + 1;
            while to < keys.len() && keys.org(to) == org {
                to += 1;
            }
            let (time_min, time_max) = (keys.time(from), keys.time(to - 1));
            let rows = (to - from) as u64;
            match &mut self.open_tenant {
                Some(open) if open.org == org => {
                    open.rows += rows;
                    open.time_max = time_max;
                }
                open => {
                    let next = TenantRows { org: org.to_owned(), rows, time_min, time_max };
                    if let Some(done) = open.replace(next) {
                        self.tenants.insert(done.org.clone(), done);
                    }
                }
            }
            from = to;
        }
    }

    /// Writes the footer and makes the contents durable. The name is durable after `sync_dir` of its folder.
    pub(crate) fn finish(mut self) -> Result<FileMeta, SinksError> {
        self.end_group()?;
        if let Some(done) = self.open_tenant.take() {
            self.tenants.insert(done.org.clone(), done);
        }
        let tenants: Vec<TenantRows> = self.tenants.into_values().collect();
        let (Some(first), Some(last)) = (tenants.first(), tenants.last()) else {
            return Err(SinksError::Invalid("a file without rows".into()));
        };
        let (org_min, org_max) = (first.org.clone(), last.org.clone());
        let time_min = tenants.iter().map(|tenant| tenant.time_min).min().unwrap_or(0);
        let time_max = tenants.iter().map(|tenant| tenant.time_max).max().unwrap_or(0);
        let few = tenants.len() <= MANIFEST_TENANTS_MAX;
        if !few {
            let text = serde_json::to_string(&tenants).map_err(|error| SinksError::Invalid(error.to_string()))?;
            self.writer.append_key_value_metadata(KeyValue::new(TENANTS_KEY.to_owned(), text));
        }
        let (bytes, crc) = self.writer.into_inner()?.finish()?;
        Ok(FileMeta {
            id: self.id,
            dataset: self.dataset,
            rows: self.rows,
            bytes,
            crc,
            time_min,
            time_max,
            org_min,
            org_max,
            created_us: now_us(),
            tenants: few.then_some(tenants),
        })
    }
}

fn write_column(writer: &mut ArrowColumnWriter, field: &Field, array: &ArrayRef) -> Result<(), SinksError> {
    for leaf in compute_leaves(field, array)? {
        writer.write(&leaf)?;
    }
    Ok(())
}

/// Where the file with this number is.
pub(crate) fn file_path(dir: &Path, dataset: Dataset, id: u64) -> PathBuf {
    dir.join(dataset.table_name()).join(format!("{id:020}.parquet"))
}

/// Removes a file that no edit names. A failure is only worth a word: the next start removes it.
pub(crate) fn discard(fs: &dyn Fs, path: &Path) {
    if let Err(error) = fs.change(DirChange::Remove(path)) {
        tracing::warn!(path = %path.display(), %error, "a Parquet file that nothing refers to could not be removed");
    }
}
