//! The Parquet side of a table: which files, how they are read, and the tenant filter that nothing can take away.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use datafusion::common::config::{ConfigOptions, TableParquetOptions};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, DataFusionError, Result, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column as ColumnExpr, DynamicFilterPhysicalExpr};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::filter_pushdown::{ChildPushdownResult, FilterPushdownPhase};
use datafusion::physical_plan::metrics::BaselineMetrics;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::{ObjectMeta, ObjectStore};
use tidegate_events::Dataset;
use tidegate_pipeline::{History, HistoryFile};

use crate::config::QueryConfig;
use crate::conform::ConformFactory;
use crate::leaf::{Leaf, LeafExec};
use crate::metrics;
use crate::suspect::Suspects;
use crate::tail::own_rows;

/// The only scheme that plans can read from. SQL has no way to write it down.
const STORE: &str = "tidegate-history://files";

/// The object store behind history, and the cache of footers.
#[derive(Debug)]
pub(crate) struct Store {
    files: Arc<dyn ObjectStore>,
    url: ObjectStoreUrl,
    runtime: Arc<RuntimeEnv>,
}

impl Store {
    /// A store with an empty cache, over the object store that holds the files, or else the local disk.
    pub(crate) fn new(config: &QueryConfig, files: Option<Arc<dyn ObjectStore>>) -> Result<Self> {
        let files = files.unwrap_or_else(|| Arc::new(LocalFileSystem::new()));
        let url = ObjectStoreUrl::parse(STORE)?;
        let runtime = RuntimeEnvBuilder::new()
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .with_metadata_cache_limit(config.metadata_cache_bytes_max)
            .build_arc()?;
        // The default registry knows the whole file system; here only the private scheme stays.
        runtime.deregister_object_store(ObjectStoreUrl::local_filesystem().as_ref())?;
        runtime.register_object_store(url.as_ref(), files.clone());
        Ok(Self { files, url, runtime })
    }

    /// The environment of a query: this store and cache, no temporary files, and the query's own memory pool.
    pub(crate) fn runtime(
        &self,
        pool: Arc<dyn datafusion::execution::memory_pool::MemoryPool>,
    ) -> Result<Arc<RuntimeEnv>> {
        RuntimeEnvBuilder::from_runtime_env(&self.runtime).with_memory_pool(pool).build_arc()
    }
}

/// What a scan asks of history.
pub(crate) struct HistoryScan<'a> {
    pub(crate) dataset: Dataset,
    pub(crate) files: Vec<Arc<HistoryFile>>,
    /// Where they are from.
    pub(crate) history: Arc<dyn History>,
    pub(crate) orgs: Arc<[Arc<str>]>,
    /// The whole table.
    pub(crate) schema: SchemaRef,
    pub(crate) projection: &'a [usize],
    /// The query's filters and the tenant's, on the whole table.
    pub(crate) predicate: Arc<dyn PhysicalExpr>,
    pub(crate) limit: Option<usize>,
    pub(crate) partitions: usize,
}

/// The files of `dataset` that can hold rows of `orgs` and match the predicate by their time range.
pub(crate) fn prune(
    files: &[Arc<HistoryFile>],
    dataset: Dataset,
    orgs: &[Arc<str>],
    schema: &SchemaRef,
    predicate: &Arc<dyn PhysicalExpr>,
) -> Vec<Arc<HistoryFile>> {
    let all: Vec<_> = files.iter().filter(|file| file.dataset == dataset).cloned().collect();
    let holds = |file: &Arc<HistoryFile>| orgs.iter().any(|org| *file.org_min <= **org && **org <= *file.org_max);
    let mut kept: Vec<_> = all.iter().filter(|file| file.rows > 0 && holds(file)).cloned().collect();
    if let Some(pruning) = PruningPredicateBuilder::new().with_file_schema(schema.clone()).build(predicate.clone())
        && let Ok(keep) = pruning.prune(&FileTimes(&kept))
        && keep.len() == kept.len()
    {
        let mut keep = keep.into_iter();
        kept.retain(|_| keep.next().unwrap_or(true));
    }
    metrics::counter(metrics::FILES, kept.len() as u64);
    metrics::counter(metrics::FILES_PRUNED, (all.len() - kept.len()) as u64);
    kept
}

/// The time range of each file, for pruning.
struct FileTimes<'a>(&'a [Arc<HistoryFile>]);

impl FileTimes<'_> {
    fn times(&self, column: &Column, of: fn(&HistoryFile) -> i64) -> Option<ArrayRef> {
        let times = TimestampMicrosecondArray::from_iter_values(self.0.iter().map(|file| of(file)));
        (column.name == Dataset::TIME).then(|| Arc::new(times.with_timezone("UTC")) as ArrayRef)
    }
}

impl PruningStatistics for FileTimes<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |file| file.time_min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |file| file.time_max)
    }

    fn num_containers(&self) -> usize {
        self.0.len()
    }

    fn null_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(self.0.iter().map(|file| file.rows))))
    }

    fn contained(
        &self,
        _column: &Column,
        _values: &std::collections::HashSet<datafusion::common::ScalarValue>,
    ) -> Option<BooleanArray> {
        None
    }
}

/// The operator that reads Parquet files.
pub(crate) type HistoryExec = LeafExec<HistoryFiles>;

/// Parquet files, of which only the rows of some tenants come out.
#[derive(Debug, Clone)]
pub(crate) struct HistoryFiles {
    dataset: Dataset,
    /// Reads the asked columns and, last, `org_id`.
    inner: Arc<dyn ExecutionPlan>,
    suspects: Arc<Suspects>,
    orgs: Arc<[Arc<str>]>,
    schema: SchemaRef,
    limit: Option<usize>,
}

impl HistoryFiles {
    /// What `scan` asks for.
    ///
    /// # Errors
    /// When a path is not UTF-8, or DataFusion refuses the projection.
    pub(crate) fn new(store: &Store, scan: HistoryScan<'_>, config: &ConfigOptions) -> Result<Self> {
        let schema = Arc::new(scan.schema.project(scan.projection)?);
        let mut columns = scan.projection.to_vec();
        columns.push(scan.schema.index_of(Dataset::ORG_ID)?);
        let options =
            TableParquetOptions { global: config.execution.parquet.clone(), ..TableParquetOptions::default() };
        let cache = store.runtime.cache_manager.get_file_metadata_cache();
        let factory = CachedParquetFileReaderFactory::new(store.files.clone(), cache);
        let files = scan.files.iter().map(|file| partitioned(file)).collect::<Result<Vec<_>>>()?;
        let places = files.iter().map(|file| file.object_meta.location.clone()).zip(scan.files);
        let suspects = Arc::new(Suspects::new(factory, scan.history, places.collect()));
        let source = ParquetSource::new(scan.schema.clone())
            .with_table_parquet_options(options)
            .with_pushdown_filters(true)
            .with_parquet_file_reader_factory(suspects.clone())
            .with_predicate(scan.predicate);
        let groups = FileGroup::new(files).split_files(scan.partitions.max(1));
        let config_of_scan = FileScanConfigBuilder::new(store.url.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(Some(columns))?
            .with_expr_adapter(Some(Arc::new(ConformFactory)))
            .build();
        let inner: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config_of_scan);
        let inner = inner.repartitioned(scan.partitions, config)?.unwrap_or(inner);
        Ok(Self { dataset: scan.dataset, inner, suspects, orgs: scan.orgs, schema, limit: scan.limit })
    }
}

fn partitioned(file: &HistoryFile) -> Result<PartitionedFile> {
    let location = object_store::path::Path::from_absolute_path(&file.path)
        .map_err(|error| DataFusionError::External(Box::new(error)))?;
    // Files never change once they are in a snapshot: the name and the size are identity enough for the cache.
    let last_modified = chrono::DateTime::UNIX_EPOCH;
    Ok(PartitionedFile::new_from_meta(ObjectMeta {
        location,
        last_modified,
        size: file.bytes,
        e_tag: None,
        version: None,
    }))
}

impl Leaf for HistoryFiles {
    const NAME: &'static str = "HistoryExec";

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "table={}, columns=[{}]", self.dataset.table_name(), columns.join(", "))
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn partitions(&self) -> usize {
        self.inner.output_partitioning().partition_count()
    }

    fn read(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
        measured: BaselineMetrics,
    ) -> Result<SendableRecordBatchStream> {
        let (orgs, schema) = (self.orgs.clone(), self.schema.clone());
        let asked: Vec<usize> = (0..schema.fields().len()).collect();
        let limit = self.limit.unwrap_or(usize::MAX);
        let suspects = self.suspects.clone();
        let read =
            AssertUnwindSafe(self.inner.execute(partition, context)?).catch_unwind().map(unless_panicked).boxed();
        let read = read.then(move |batch| {
            let suspects = suspects.clone();
            async move {
                match batch {
                    Ok(batch) => Ok(batch),
                    Err(error) => Err(suspects.explain(error).await),
                }
            }
        });
        let rows = read.map(move |batch| own(&batch?, &orgs, &asked));
        let rows = rows.try_filter(|batch| std::future::ready(batch.num_rows() > 0));
        let limited = stream::try_unfold((Box::pin(rows), 0usize), move |(mut rows, seen)| {
            let measured = measured.clone();
            async move {
                if seen >= limit {
                    return Ok(None);
                }
                let Some(batch) = rows.try_next().await? else { return Ok(None) };
                measured.record_output(batch.num_rows());
                let seen = seen + batch.num_rows();
                Ok(Some((batch, (rows, seen))))
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, limited)))
    }

    fn anew(&self) -> Result<Self> {
        Ok(Self { inner: self.inner.clone().reset_state()?, ..self.clone() })
    }

    fn with_filters(
        &self,
        phase: FilterPushdownPhase,
        mut filters: ChildPushdownResult,
        config: &ConfigOptions,
    ) -> Result<Option<Self>> {
        // What the query says came with the scan. What comes later are bounds that joins and LIMIT learn while they run.
        filters.parent_filters.retain(|filter| bound_of_columns(&filter.filter));
        if phase == FilterPushdownPhase::Pre || filters.parent_filters.is_empty() {
            return Ok(None);
        }
        let updated = self.inner.handle_child_pushdown_result(phase, filters, config)?.updated_node;
        Ok(updated.map(|inner| Self { inner, ..self.clone() }))
    }
}

/// Whether a filter is a bound on plain columns that another operator learns while it runs. It is evaluated on rows of
/// other tenants too, so that nothing that can fail may be in it (see `leakproof` in `table.rs`).
fn bound_of_columns(filter: &Arc<dyn PhysicalExpr>) -> bool {
    filter.is::<DynamicFilterPhysicalExpr>() && filter.children().iter().all(|child| child.is::<ColumnExpr>())
}

/// Decoders may panic on what no writer writes.
fn unless_panicked(batch: std::thread::Result<Result<RecordBatch>>) -> Result<RecordBatch> {
    batch.unwrap_or_else(|_| internal_err!("a decoder of stored files has panicked"))
}

/// The tenant's rows of a batch, without the column that said so.
pub(crate) fn own(batch: &RecordBatch, orgs: &[Arc<str>], asked: &[usize]) -> Result<RecordBatch> {
    let last = batch.num_columns().saturating_sub(1);
    let org_id = batch.project(&[last])?;
    let mine = own_rows(&org_id, orgs)?.unwrap_or_else(|| BooleanArray::from(vec![false; batch.num_rows()]));
    let asked = batch.project(asked)?;
    if mine.true_count() == batch.num_rows() {
        return Ok(asked);
    }
    Ok(filter_record_batch(&asked, &mine)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::common::{DFSchema, ScalarValue};
    use datafusion::logical_expr::{Expr, col, lit};
    use datafusion::prelude::SessionContext;

    fn file(dataset: Dataset, times: (i64, i64), orgs: (&str, &str)) -> Arc<HistoryFile> {
        Arc::new(HistoryFile {
            path: "/nowhere".into(),
            dataset,
            rows: 1,
            bytes: 1,
            time_min: times.0,
            time_max: times.1,
            org_min: orgs.0.into(),
            org_max: orgs.1.into(),
        })
    }

    #[test]
    fn files_of_other_datasets_tenants_and_times_are_left_out() {
        let events = Dataset::SecurityEvents;
        let files = [
            file(events, (0, 9), ("a", "m")),
            file(events, (10, 19), ("acme", "acme")),
            file(events, (20, 29), ("b", "z")),
            file(events, (30, 39), ("a", "z")),
            file(Dataset::CostEvents, (0, 99), ("a", "z")),
            Arc::new(HistoryFile { rows: 0, ..Arc::into_inner(file(events, (0, 99), ("a", "z"))).expect("a file") }),
        ];
        let time = |us: i64| lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())));
        let schema = events.core_schema();
        let named = DFSchema::try_from(schema.clone()).expect("a schema");
        let kept = |org: &str, filter: Expr| -> Vec<i64> {
            let predicate = SessionContext::new().create_physical_expr(filter, &named).expect("a predicate");
            prune(&files, events, &[org.into()], &schema, &predicate).iter().map(|file| file.time_min).collect()
        };
        let cases: Vec<(&str, Expr, Vec<i64>)> = vec![
            ("acme", lit(true), vec![0, 10, 30]),
            ("zoo", lit(true), vec![]),
            ("c", lit(true), vec![0, 20, 30]),
            ("acme", col("time").gt_eq(time(15)), vec![10, 30]),
            ("acme", col("time").lt(time(10)), vec![0]),
            ("acme", col("time").between(time(12), time(14)), vec![10]),
            ("acme", col("time").eq(time(35)).or(col("time").eq(time(5))), vec![0, 30]),
            ("acme", col("time").gt(time(39)), vec![]),
            ("acme", col("actor").eq(lit("x")), vec![0, 10, 30]),
            ("acme", col("actor").eq(lit("x")).and(col("time").gt(time(29))), vec![30]),
        ];
        for (org, filter, wanted) in cases {
            let shown = filter.to_string();
            assert_eq!(kept(org, filter), wanted, "{org} {shown}");
        }
    }

    #[test]
    fn only_bounds_of_plain_columns_are_looked_at_on_rows_of_others() {
        use datafusion::physical_expr::expressions::{NotExpr, lit};
        let column = |at: usize| Arc::new(ColumnExpr::new("a", at)) as Arc<dyn PhysicalExpr>;
        let computed = || Arc::new(NotExpr::new(column(0))) as Arc<dyn PhysicalExpr>;
        let learned = |children: Vec<Arc<dyn PhysicalExpr>>| {
            Arc::new(DynamicFilterPhysicalExpr::new(children, lit(true))) as Arc<dyn PhysicalExpr>
        };
        for (filter, passes) in [
            (learned(vec![column(0)]), true),
            (learned(vec![column(0), column(1)]), true),
            (learned(vec![computed()]), false),
            (learned(vec![column(0), computed()]), false),
            (column(0), false),
            (computed(), false),
            (lit(true), false),
        ] {
            assert_eq!(bound_of_columns(&filter), passes, "{filter}");
        }
    }
}
