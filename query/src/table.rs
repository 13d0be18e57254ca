//! The tables of a tenant as DataFusion sees them.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, Session, TableProvider};
use datafusion::common::{DFSchema, DataFusionError, Result, TableReference};
use datafusion::dataframe::DataFrame;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType, col, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::union::UnionExec;
use tidegate_events::Dataset;
use tidegate_pipeline::history_rows::{HistoryRows, Output, RowsAsk};

use crate::feedback::{self, ALERT_FEEDBACK};
use crate::history::{HistoryExec, HistoryFiles, HistoryScan, Store, prune};
use crate::rows::exec::{HistoryAnswer, HistoryRowsExec, told};
use crate::rows::filter::{Asked, asked};
use crate::tail::TailPart;
use crate::view::View;

/// The name of the only catalog.
pub(crate) const CATALOG: &str = "tidegate";
/// The name of the only schema beside `information_schema`.
pub(crate) const SCHEMA: &str = "public";
/// How many rows of the tail one partition should have to be worth a thread.
const TAIL_PART_ROWS: u64 = 250_000;

/// One dataset of one tenant, for one query.
#[derive(Debug)]
pub(crate) struct EventTable {
    dataset: Dataset,
    schema: SchemaRef,
    view: Arc<View>,
    store: Arc<Store>,
    chunk_bytes_max: usize,
}

impl EventTable {
    fn new(dataset: Dataset, view: &Arc<View>, store: &Arc<Store>, chunk_bytes_max: usize) -> Self {
        Self { dataset, schema: view.schema(dataset), view: view.clone(), store: store.clone(), chunk_bytes_max }
    }

    /// The table, once it is known which columns it has.
    fn known(self: &Arc<Self>) -> Result<Arc<Self>> {
        let known = self.view.snapshot.rows.as_ref().map_or(Ok(()), |rows| rows.known());
        known.map_err(|error| DataFusionError::External(Box::new(told(error))))?;
        Ok(self.clone())
    }

    fn tail(&self, orgs: &Arc<[Arc<str>]>, projected: &SchemaRef, partitions: usize) -> Vec<Arc<dyn PartitionStream>> {
        let mut parts: Vec<Arc<dyn PartitionStream>> = Vec::new();
        for tail in self.view.tails(self.dataset) {
            let rows = tail.rows.end - tail.rows.start;
            let pieces = (rows / TAIL_PART_ROWS).clamp(1, partitions.max(1) as u64);
            for piece in 0..pieces {
                let at = |piece: u64| tail.rows.start + rows * piece / pieces;
                let range = at(piece)..at(piece + 1);
                if !range.is_empty() {
                    parts.push(Arc::new(TailPart {
                        log: tail.log.clone(),
                        rows: range,
                        dataset: self.dataset,
                        orgs: orgs.clone(),
                        schema: projected.clone(),
                        chunk_bytes_max: self.chunk_bytes_max,
                    }));
                }
            }
        }
        parts
    }

    /// A scan whose history is asked in words. A filter that history meets exactly is met by the tail here, as nobody above
    /// looks again.
    fn scan_rows(
        &self,
        rows: &Arc<dyn HistoryRows>,
        state: &dyn Session,
        projected: SchemaRef,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let orgs: Arc<[Arc<str>]> = self.view.scope.orgs(self.dataset).into();
        let of_store = |filter: &Expr| asked(filter, self.dataset, &self.schema);
        let ask = RowsAsk {
            dataset: self.dataset,
            orgs: orgs.clone(),
            log_cursor: self.view.snapshot.log_cursor,
            output_cursor: self.view.snapshot.output_cursor,
            others: self.view.others,
            outputs: projected.fields().iter().map(|field| Output::Column(field.name().as_str().into())).collect(),
            schema: projected.clone(),
            grouped: false,
            filters: filters.iter().filter_map(of_store).map(|asked| asked.filter).collect(),
            order: Vec::new(),
            limit: limit.map(|limit| limit as u64),
        };
        let history: Arc<dyn ExecutionPlan> = Arc::new(HistoryRowsExec::new(HistoryAnswer::new(rows.clone(), ask)));
        let exact = filters.iter().filter(|filter| of_store(filter).is_some_and(|asked| asked.exact)).cloned();
        let Some(wanted) = conjunction(exact) else {
            let tail = self.tail(&orgs, &projected, state.config().target_partitions());
            if tail.is_empty() {
                return Ok(history);
            }
            let tail = StreamingTableExec::try_new(projected, tail, None, [], false, limit)?;
            return UnionExec::try_new(vec![history, Arc::new(tail)]);
        };
        let asked_for = projected.fields().len();
        let mut wide: Vec<_> = projected.fields().iter().cloned().collect();
        for column in wanted.column_refs() {
            if projected.column_with_name(&column.name).is_none() {
                wide.push(Arc::new(self.schema.field_with_name(&column.name)?.clone()));
            }
        }
        let wide: SchemaRef = Arc::new(Schema::new(wide));
        let tail = self.tail(&orgs, &wide, state.config().target_partitions());
        if tail.is_empty() {
            return Ok(history);
        }
        let tail = StreamingTableExec::try_new(wide.clone(), tail, None, [], false, None)?;
        let predicate = state.create_physical_expr(wanted, &DFSchema::try_from(wide)?)?;
        let tail = FilterExecBuilder::new(predicate, Arc::new(tail))
            .apply_projection(Some((0..asked_for).collect()))?
            .with_fetch(limit)
            .build()?;
        UnionExec::try_new(vec![history, Arc::new(tail)])
    }
}

#[async_trait]
impl TableProvider for EventTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        if self.view.snapshot.rows.is_some() {
            let asked = |filter: &&Expr| match asked(filter, self.dataset, &self.schema) {
                Some(Asked { exact: true, .. }) => TableProviderFilterPushDown::Exact,
                Some(Asked { exact: false, .. }) => TableProviderFilterPushDown::Inexact,
                None => TableProviderFilterPushDown::Unsupported,
            };
            return Ok(filters.iter().map(asked).collect());
        }
        // Inexact: history skips what it can, the tail does not look, and the filter above decides.
        let usable = |filter: &&Expr| match leakproof(filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(usable).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize>;
        let projection = match projection {
            Some(projection) => projection.as_slice(),
            None => {
                all = (0..self.schema.fields().len()).collect();
                &all
            }
        };
        let projected: SchemaRef = Arc::new(self.schema.project(projection)?);
        let partitions = state.config().target_partitions();
        let orgs: Arc<[Arc<str>]> = self.view.scope.orgs(self.dataset).into();
        if let Some(rows) = &self.view.snapshot.rows {
            return self.scan_rows(rows, state, projected, filters, limit);
        }
        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();

        let tenant = col(Dataset::ORG_ID).in_list(orgs.iter().map(|org| lit(&**org)).collect(), false);
        let filters = filters.iter().filter(|filter| leakproof(filter)).cloned();
        let wanted = conjunction([tenant].into_iter().chain(filters)).unwrap_or_else(|| lit(true));
        let named = DFSchema::try_from(self.schema.clone())?;
        let predicate = state.create_physical_expr(wanted, &named)?;
        let files = prune(&self.view.snapshot.files, self.dataset, &orgs, &self.schema, &predicate);
        if !files.is_empty() {
            let scan = HistoryScan {
                dataset: self.dataset,
                files,
                history: self.view.history.clone(),
                orgs: orgs.clone(),
                schema: self.schema.clone(),
                projection,
                predicate,
                limit,
                partitions,
            };
            let files = HistoryFiles::new(&self.store, scan, state.config_options())?;
            plans.push(Arc::new(HistoryExec::new(files)));
        }
        let tail = self.tail(&orgs, &projected, partitions);
        if !tail.is_empty() {
            plans.push(Arc::new(StreamingTableExec::try_new(projected.clone(), tail, None, [], false, limit)?));
        }
        match plans.len() {
            0 => Ok(Arc::new(EmptyExec::new(projected))),
            1 => Ok(plans.swap_remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }
}

/// Whether a filter can be evaluated on rows of other tenants, which share files with this one's: it must never be an
/// error for any value, or the error would tell what those rows hold. Comparisons of columns with constants are safe; casts,
/// arithmetic and functions are not.
fn leakproof(filter: &Expr) -> bool {
    let plain = |expr: &Expr| matches!(expr, Expr::Column(_) | Expr::Literal(..));
    match filter {
        Expr::Column(_) | Expr::Literal(..) => true,
        Expr::BinaryExpr(binary) if matches!(binary.op, Operator::And | Operator::Or) => {
            leakproof(&binary.left) && leakproof(&binary.right)
        }
        Expr::BinaryExpr(binary) => compares(binary.op) && plain(&binary.left) && plain(&binary.right),
        Expr::Not(inner) => leakproof(inner),
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => plain(inner),
        Expr::Between(between) => [&between.expr, &between.low, &between.high].into_iter().all(|expr| plain(expr)),
        Expr::InList(list) => plain(&list.expr) && list.list.iter().all(plain),
        Expr::Like(like) => plain(&like.expr) && matches!(*like.pattern, Expr::Literal(..)),
        _ => false,
    }
}

fn compares(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// All tables of one view: catalog list, catalog and schema at once. Nothing can be registered.
#[derive(Debug)]
pub(crate) struct Tables(Vec<(Dataset, Arc<EventTable>)>);

impl Tables {
    /// The tables of `view`.
    pub(crate) fn new(view: &Arc<View>, store: &Arc<Store>, chunk_bytes_max: usize) -> Self {
        let table = |dataset| (dataset, Arc::new(EventTable::new(dataset, view, store, chunk_bytes_max)));
        Self(Dataset::ALL.into_iter().map(table).collect())
    }

    fn find(&self, name: &str) -> Option<&Arc<EventTable>> {
        self.0.iter().find(|(dataset, _)| dataset.table_name() == name).map(|(_, table)| table)
    }
}

/// The list of the one catalog.
#[derive(Debug)]
pub(crate) struct TenantCatalogs(pub(crate) Arc<Tables>);

impl CatalogProviderList for TenantCatalogs {
    fn register_catalog(&self, _name: String, _catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(TenantCatalog(self.0.clone())) as _)
    }
}

#[derive(Debug)]
struct TenantCatalog(Arc<Tables>);

impl CatalogProvider for TenantCatalog {
    fn schema_names(&self) -> Vec<String> {
        vec![SCHEMA.to_owned()]
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        (name == SCHEMA).then(|| self.0.clone() as _)
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        let tables = self.0.iter().map(|(dataset, _)| dataset.table_name());
        tables.chain([ALERT_FEEDBACK]).map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if name == ALERT_FEEDBACK
            && let Some(changes) = self.find(Dataset::Changes.table_name())
        {
            return Ok(Some(Arc::new(feedback::view(changes.known()?)?)));
        }
        Ok(self.find(name).map(EventTable::known).transpose()?.map(|table| table as _))
    }

    fn table_exist(&self, name: &str) -> bool {
        name == ALERT_FEEDBACK || self.find(name).is_some()
    }
}

/// Reads the tables of a session by dataset, for plans that this crate builds itself.
pub(crate) struct TableReader(SessionContext);

impl TableReader {
    pub(crate) fn new(context: &SessionContext) -> Self {
        Self(context.clone())
    }

    /// All rows of a dataset.
    pub(crate) fn read(&self, dataset: Dataset) -> Result<DataFrame> {
        self.named(dataset.table_name())
    }

    /// What was said last about each alert.
    pub(crate) fn read_feedback(&self) -> Result<DataFrame> {
        self.named(ALERT_FEEDBACK)
    }

    fn named(&self, name: &'static str) -> Result<DataFrame> {
        futures::executor::block_on(self.0.table(TableReference::full(CATALOG, SCHEMA, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::logical_expr::{cast, not};

    #[test]
    fn only_filters_that_never_fail_see_rows_of_others() {
        let (a, b) = (|| col("a"), || col("b"));
        // An error on another tenant's row would tell what it holds.
        let leak = || cast(a(), arrow::datatypes::DataType::Int64);
        let fails = || (a() / lit(0i64)).eq(lit(1i64));
        let like = |expr: Expr, pattern: Expr| expr.like(pattern);
        let cases: Vec<(Expr, bool)> = vec![
            (a(), true),
            (lit(true), true),
            (a().eq(lit(1i64)), true),
            (lit(1i64).lt(a()), true),
            (a().not_eq(b()), true),
            (a().gt_eq(lit(1i64)).and(b().lt_eq(lit(2i64))), true),
            (a().gt(lit(1i64)).or(b().lt(lit(2i64))), true),
            (not(a().eq(lit(1i64))), true),
            (a().is_null(), true),
            (a().is_not_null(), true),
            (a().between(lit(1i64), lit(2i64)), true),
            (a().in_list(vec![lit(1i64), b()], false), true),
            (like(a(), lit("x%")), true),
            (leak(), false),
            (leak().eq(lit(1i64)), false),
            (lit(1i64).eq(leak()), false),
            (a() + lit(1i64), false),
            (a().eq(lit(1i64)).and(fails()), false),
            (fails().or(a().eq(lit(1i64))), false),
            (a().and(leak()), false),
            (not(fails()), false),
            (leak().is_null(), false),
            (leak().is_not_null(), false),
            (leak().between(lit(1i64), lit(2i64)), false),
            (a().between(leak(), lit(2i64)), false),
            (a().between(lit(1i64), leak()), false),
            (leak().in_list(vec![lit(1i64)], false), false),
            (a().in_list(vec![lit(1i64), leak()], false), false),
            (like(leak(), lit("x%")), false),
            (like(a(), b()), false),
            (-a(), false),
        ];
        for (filter, safe) in cases {
            assert_eq!(leakproof(&filter), safe, "{filter}");
        }
    }
}
