//! One Parquet file, from sorted batches to its line in the manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use tidegate_events::Dataset;
use tidegate_pipeline::clock::now_us;

use super::columns::{Joined, Pick, Picked, SortKeys};
use super::config::ParquetConfig;
use super::encoding::for_values;
use super::file_io::{FileWriter, Trouble};
use super::manifest::{FileMeta, TenantRows};
use super::place::Place;
use super::sparse::{Places, SparseEncoder, is_sparse};
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
    pub(super) path: PathBuf,
    pub(super) trouble: Trouble,
    id: u64,
    dataset: Dataset,
    pub(super) properties: WriterPropertiesPtr,
    pub(super) writer: SerializedFileWriter<FileWriter>,
    /// Made when the first sparse column comes.
    sparse: Option<SparseEncoder>,
    zstd_level: i32,
    /// Rows of the row groups so far.
    rows: usize,
}

/// The rows of a file that is made of batches.
#[derive(Debug)]
pub(crate) struct FileRows {
    /// How many batches there are.
    pub(crate) batches: usize,
    pub(crate) columns: Vec<Joined>,
    pub(crate) places: Places,
    /// Rows of the file.
    pub(crate) rows: usize,
}

/// How a file is encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageEncoding {
    /// zstd level of the pages.
    pub(crate) zstd_level: i32,
    /// Rows of a row group.
    pub(crate) row_group_rows: usize,
}

/// The writer's properties for a file of this schema.
pub(crate) fn properties(
    config: &ParquetConfig,
    encoding: PageEncoding,
    schema: &Schema,
) -> Result<WriterProperties, SinksError> {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(encoding.zstd_level)?))
        .set_max_row_group_row_count(Some(encoding.row_group_rows))
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
fn leaf_index(schema: &Schema, name: &str) -> Option<i32> {
    i32::try_from(schema.index_of(name).ok()?).ok()
}

impl FileBuild {
    /// Creates the file in the folder of its dataset.
    pub(crate) fn create(
        place: &Place,
        name: (&Path, u64, Dataset),
        config: &ParquetConfig,
        encoding: PageEncoding,
        schema: SchemaRef,
    ) -> Result<Self, SinksError> {
        let (dir, id, dataset) = name;
        let path = file_path(dir, dataset, id);
        let properties = properties(config, encoding, &schema)?;
        let trouble = Trouble::default();
        let file = FileWriter::create(place, &path, trouble.clone())?;
        // By way of `ArrowWriter`, which puts the Arrow schema into the footer.
        let writer = ArrowWriter::try_new(file, schema, Some(properties)).and_then(ArrowWriter::into_serialized_writer);
        let (writer, _) = writer.map_err(|error| trouble.blame(&path, error.into()))?;
        let properties = writer.properties().clone();
        let zstd_level = encoding.zstd_level;
        Ok(Self { path, trouble, id, dataset, properties, writer, sparse: None, zstd_level, rows: 0 })
    }

    /// Adds a row group of the next rows, one column after the other: at no time is more than one column of it copied.
    pub(crate) fn push_group(
        &mut self,
        rows: &FileRows,
        picks: &[Pick],
        tenants: &mut TenantCount,
    ) -> Result<(), SinksError> {
        let pushed = self.encode_group(rows, picks, tenants);
        pushed.map_err(|error| self.trouble.blame(&self.path, error))
    }

    fn encode_group(&mut self, rows: &FileRows, picks: &[Pick], tenants: &mut TenantCount) -> Result<(), SinksError> {
        let picked = Picked::new(picks);
        let descriptors = self.writer.schema_descr().columns().to_vec();
        let mut group = self.writer.next_row_group()?;
        let (mut orgs, mut times) = (None, None);
        for (column, descriptor) in rows.columns.iter().zip(descriptors) {
            if is_sparse(column, rows.rows) && self.properties.bloom_filter_properties(descriptor.path()).is_none() {
                let encoder = match &mut self.sparse {
                    Some(encoder) => encoder,
                    none => none.insert(SparseEncoder::new(self.zstd_level)?),
                };
                let span = (self.rows, self.rows + picks.len());
                let chunk = encoder.encode(column, &rows.places, span, descriptor)?;
                group.append_column(&chunk.bytes, chunk.close)?;
                continue;
            }
            let array = picked.gather(&column.by_batch(rows.batches))?;
            let properties = for_values(&self.properties, &column.field, &array);
            let mut writer = column_writer(&column.field, &properties)?;
            write_column(&mut writer, &column.field, &array)?;
            writer.close()?.append_to_row_group(&mut group)?;
            match column.field.name().as_str() {
                Dataset::ORG_ID => orgs = Some(array),
                Dataset::TIME => times = Some(array),
                _ => {}
            }
        }
        group.close()?;
        self.rows += picks.len();
        tenants.add_keys(&SortKeys::from_columns(self.dataset, orgs, times, picked.rows())?);
        Ok(())
    }

    /// Adds a row group of columns that are encoded already, in the order of the schema.
    pub(crate) fn push_chunks(&mut self, chunks: Vec<ArrowColumnChunk>) -> Result<(), SinksError> {
        let pushed = self.append_group(chunks);
        pushed.map_err(|error| self.trouble.blame(&self.path, error))
    }

    fn append_group(&mut self, chunks: Vec<ArrowColumnChunk>) -> Result<(), SinksError> {
        let mut group = self.writer.next_row_group()?;
        for chunk in chunks {
            chunk.append_to_row_group(&mut group)?;
        }
        group.close()?;
        Ok(())
    }

    /// Writes the footer and makes the contents durable. The name is durable after `sync_dir` of its folder.
    pub(crate) fn finish(mut self, tenants: TenantCount) -> Result<FileMeta, SinksError> {
        let tenants = tenants.finish();
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
        let Self { path, trouble, id, dataset, writer, .. } = self;
        let file = writer.into_inner().map_err(|error| trouble.blame(&path, error.into()))?;
        let (bytes, crc) = file.finish()?;
        Ok(FileMeta {
            id,
            dataset,
            rows: tenants.iter().map(|tenant| tenant.rows).sum(),
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

/// The rows of each tenant of a file, counted while they come in order.
#[derive(Debug, Default)]
pub(crate) struct TenantCount {
    done: Vec<TenantRows>,
}

impl TenantCount {
    /// One more row, or several of one tenant with their first and last time.
    pub(crate) fn add(&mut self, org: &str, rows: u64, (time_min, time_max): (i64, i64)) {
        match self.done.last_mut() {
            Some(last) if last.org == org => {
                last.rows += rows;
                last.time_max = time_max;
            }
            _ => self.done.push(TenantRows { org: org.to_owned(), rows, time_min, time_max }),
        }
    }

    fn add_keys(&mut self, keys: &SortKeys) {
        let mut from = 0;
        while from < keys.len() {
            let org = keys.org(from);
            let mut to = from + 1;
            while to < keys.len() && keys.org(to) == org {
                to += 1;
            }
            self.add(org, (to - from) as u64, (keys.time(from), keys.time(to - 1)));
            from = to;
        }
    }

    /// The tenants so far.
    pub(crate) fn orgs(&self) -> impl Iterator<Item = &str> {
        self.done.iter().map(|tenant| tenant.org.as_str())
    }

    fn finish(self) -> Vec<TenantRows> {
        self.done
    }
}

/// A writer for one column of one row group. Made one at a time, because each holds a codec.
pub(crate) fn column_writer(
    field: &FieldRef,
    properties: &WriterPropertiesPtr,
) -> Result<ArrowColumnWriter, SinksError> {
    let schema = Arc::new(Schema::new(vec![field.clone()]));
    let descriptor = ArrowSchemaConverter::new().convert(&schema)?;
    let file = SerializedFileWriter::new(std::io::sink(), descriptor.root_schema_ptr(), properties.clone())?;
    let mut writers = ArrowRowGroupWriterFactory::new(&file, schema).create_column_writers(0)?;
    match (writers.pop(), writers.is_empty()) {
        (Some(writer), true) => Ok(writer),
        _ => Err(SinksError::Invalid(format!("column {:?} is not one Parquet column", field.name()))),
    }
}

/// Encodes values of a column.
pub(crate) fn write_column(writer: &mut ArrowColumnWriter, field: &Field, array: &ArrayRef) -> Result<(), SinksError> {
    for leaf in compute_leaves(field, array)? {
        writer.write(&leaf)?;
    }
    Ok(())
}

/// Where the file with this number is.
pub(crate) fn file_path(dir: &Path, dataset: Dataset, id: u64) -> PathBuf {
    dir.join(dataset.table_name()).join(format!("{id:020}.parquet"))
}
