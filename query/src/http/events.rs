//! `GET /v2/events`, `GET /v2/events/{id}`, `GET /v2/events/stats`. Parameters become literals of a plan, never SQL text.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::common::{Column, Result as PlanResult};
use datafusion::dataframe::DataFrame;
use datafusion::functions::datetime::expr_fn::date_trunc;
use datafusion::functions::unicode::expr_fn::strpos;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{Expr, lit};
use hyper::Response;
use tidegate_events::Dataset;
use tidegate_pipeline::keys::Principal;

use super::params::{Params, cursor_parts, cursor_text, time_lit};
use super::{Body, answered};
use crate::error::{QueryError, internal};
use crate::json::{Nulls, RowWriter, write_text};
use crate::session::Ask;
use crate::table::TableReader;
use crate::view::View;
use crate::{Query, Scope, metrics};

/// Most rows that the stats of a range have.
const STATS_ROWS_MAX: usize = 10_000;

/// A column by its exact name: names have dots and capitals.
pub(crate) fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

/// A filter that all rows must meet, kept as a list because most are absent.
pub(crate) type Filters = Vec<Expr>;

/// Where a page starts: after this time and id, going back in time.
struct After {
    time: i64,
    event_id: String,
}

impl Query {
    /// `GET /v2/events?from=&to=&dataset=&source=&severity_min=&actor=&src_ip=&asset=&q=&limit=&cursor=`: events, newest
    /// first, as `{"events":[…],"cursor":…}`. The cursor is there when there may be more; new events do not move a page.
    pub async fn handle_events(&self, query: Option<&str>, principal: &Principal, request_id: &str) -> Response<Body> {
        answered(self.events(query, &Scope::of(principal)).await, request_id)
    }

    /// `GET /v2/events/{id}?dataset=`: one event, whole, as `{"dataset":…,"event":{…}}`.
    pub async fn handle_event(
        &self,
        id: &str,
        query: Option<&str>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        answered(self.event(id, query, &Scope::of(principal)).await, request_id)
    }

    /// `GET /v2/events/stats?from=&to=&dataset=&bucket=minute|hour|day`: how many events per bucket, source and severity, as
    /// `{"total":n,"buckets":[{"time","source","severity","count"},…]}`.
    pub async fn handle_events_stats(
        &self,
        query: Option<&str>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        answered(self.stats(query, &Scope::of(principal)).await, request_id)
    }

    async fn events(&self, query: Option<&str>, scope: &Scope) -> Result<Vec<u8>, QueryError> {
        const KNOWN: &[&str] =
            &["from", "to", "dataset", "source", "severity_min", "actor", "src_ip", "asset", "q", "limit", "cursor"];
        metrics::query("events");
        let params = Params::parse(query, KNOWN)?;
        let dataset = dataset_of(&params)?;
        let filters = filters(&params, dataset)?;
        let limit = params.limit()?;
        let after = params.get("cursor").map(|cursor| after(cursor, dataset)).transpose()?;
        let view = self.view(scope);

        let matching = filters.clone();
        // First which events, from two columns; then those events, from all columns. A table may have thousands of columns.
        let page = move |table: TableReader| {
            let mut rows = table.read(dataset)?;
            for filter in filters.into_iter().chain(after.map(before)) {
                rows = rows.filter(filter)?;
            }
            rows.select(vec![column(Dataset::TIME), column(Dataset::EVENT_ID)])?
                .sort(newest_first())?
                .limit(0, Some(limit + 1))
        };
        let found = self.rows(&view, page).await?;
        let more = found.num_rows() > limit;
        let found = found.slice(0, limit.min(found.num_rows()));
        let mut out = b"{\"events\":[".to_vec();
        if found.num_rows() > 0 {
            let rows = self.whole_events(&view, dataset, matching, &found).await?;
            write_list(&rows, &mut out)?;
        }
        out.extend_from_slice(b"],\"cursor\":");
        match last_position(&found).filter(|_| more) {
            Some((time, event_id)) => {
                write_text(&cursor_text(&[dataset.table_name(), &time.to_string(), event_id]), &mut out);
            }
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
        Ok(out)
    }

    /// The rows of `found`, which holds the times and ids of rows that match, with all columns and in the same order.
    async fn whole_events(
        &self,
        view: &Arc<View>,
        dataset: Dataset,
        matching: Filters,
        found: &RecordBatch,
    ) -> Result<RecordBatch, QueryError> {
        let times = found.column(0).as_primitive::<TimestampMicrosecondType>().clone();
        let ids: Vec<Expr> = found.column(1).as_string::<i32>().iter().flatten().map(lit).collect();
        let (newest, oldest) =
            (arrow::compute::max(&times).unwrap_or(i64::MAX), arrow::compute::min(&times).unwrap_or(i64::MIN));
        let limit = found.num_rows();
        let whole = move |table: TableReader| {
            let mut rows = table.read(dataset)?;
            for filter in matching {
                rows = rows.filter(filter)?;
            }
            rows.filter(column(Dataset::TIME).between(time_lit(oldest), time_lit(newest)))?
                .filter(column(Dataset::EVENT_ID).in_list(ids, false))?
                .sort(newest_first())?
                .limit(0, Some(limit))
        };
        self.rows(view, whole).await
    }

    async fn event(&self, id: &str, query: Option<&str>, scope: &Scope) -> Result<Vec<u8>, QueryError> {
        metrics::query("event");
        let params = Params::parse(query, &["dataset"])?;
        let datasets = match params.get("dataset") {
            Some(_) => vec![dataset_of(&params)?],
            None => vec![Dataset::SecurityEvents, Dataset::CostEvents],
        };
        let view = self.view(scope);
        for dataset in datasets {
            let id = id.to_owned();
            let one = move |table: TableReader| {
                table.read(dataset)?.filter(column(Dataset::EVENT_ID).eq(lit(id)))?.limit(0, Some(1))
            };
            let found = self.rows(&view, one).await?;
            if found.num_rows() > 0 {
                let mut out = format!("{{\"dataset\":\"{}\",\"event\":", dataset.table_name()).into_bytes();
                let writer = RowWriter::new(found.schema_ref(), Nulls::Omit);
                writer.write(&found, &mut out, |_| {}).map_err(|error| internal(&error))?;
                out.push(b'}');
                return Ok(out);
            }
        }
        Err(QueryError::NotFound("there is no event with this id".into()))
    }

    async fn stats(&self, query: Option<&str>, scope: &Scope) -> Result<Vec<u8>, QueryError> {
        metrics::query("stats");
        let params = Params::parse(query, &["from", "to", "dataset", "bucket"])?;
        let dataset = dataset_of(&params)?;
        let bucket = params.get("bucket").unwrap_or("hour").to_owned();
        if !["minute", "hour", "day"].contains(&bucket.as_str()) {
            return Err(QueryError::bad("invalid_parameter", "bucket is minute, hour or day"));
        }
        let filters = filters(&params, dataset)?;
        let view = self.view(scope);
        let severity = if dataset == Dataset::SecurityEvents {
            column("severity")
        } else {
            lit(datafusion::common::ScalarValue::Int32(None))
        };
        let grouped = move |table: TableReader| {
            let mut rows = table.read(dataset)?;
            for filter in filters {
                rows = rows.filter(filter)?;
            }
            let groups = vec![
                date_trunc(lit(bucket), column(Dataset::TIME)).alias("bucket_time"),
                column("source").alias("bucket_source"),
                severity.alias("bucket_severity"),
            ];
            let order = ["time", "source", "severity"].map(|name| column(name).sort(true, true)).to_vec();
            rows.select(groups)?
                .aggregate(
                    vec![column("bucket_time"), column("bucket_source"), column("bucket_severity")],
                    vec![count(lit(1)).alias("count")],
                )?
                .select(vec![
                    column("bucket_time").alias("time"),
                    column("bucket_source").alias("source"),
                    column("bucket_severity").alias("severity"),
                    column("count"),
                ])?
                .sort(order)?
                .limit(0, Some(STATS_ROWS_MAX + 1))
        };
        let rows = self.rows(&view, grouped).await?;
        if rows.num_rows() > STATS_ROWS_MAX {
            let message =
                format!("the range has more than {STATS_ROWS_MAX} buckets; ask for a shorter one or a larger bucket");
            return Err(QueryError::TooLarge(message));
        }
        let total: i64 =
            rows.column_by_name("count").map_or(0, |counts| counts.as_primitive::<Int64Type>().iter().flatten().sum());
        let mut out = format!("{{\"total\":{total},\"buckets\":[").into_bytes();
        write_list(&rows, &mut out)?;
        out.extend_from_slice(b"]}");
        Ok(out)
    }

    /// The rows of a small plan as one batch.
    pub(crate) async fn rows(
        &self,
        view: &Arc<View>,
        build: impl FnOnce(TableReader) -> PlanResult<DataFrame> + Send + 'static,
    ) -> Result<RecordBatch, QueryError> {
        let ask = Ask::Plan(Box::new(move |context| Ok(build(TableReader::new(context))?.into_unoptimized_plan())));
        let rows = self.run(view, ask).await?;
        let schema = rows.schema().clone();
        concat_batches(&schema, &rows.collect().await?).map_err(|error| internal(&error))
    }
}

/// Writes the rows of a batch with commas between, nulls left out.
fn write_list(rows: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
    write_with(&RowWriter::new(rows.schema_ref(), Nulls::Omit), rows, out)
}

/// Writes the rows of a batch with commas between.
pub(crate) fn write_with(writer: &RowWriter, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
    let before = out.len();
    writer.write(rows, out, |out| out.push(b',')).map_err(|error| internal(&error))?;
    if out.len() > before {
        out.pop();
    }
    Ok(())
}

fn newest_first() -> Vec<datafusion::logical_expr::SortExpr> {
    vec![column(Dataset::TIME).sort(false, false), column(Dataset::EVENT_ID).sort(true, false)]
}

fn dataset_of(params: &Params) -> Result<Dataset, QueryError> {
    match params.get("dataset") {
        None | Some("security_events") => Ok(Dataset::SecurityEvents),
        Some("cost_events") => Ok(Dataset::CostEvents),
        Some(_) => Err(QueryError::bad("invalid_parameter", "dataset is security_events or cost_events")),
    }
}

fn filters(params: &Params, dataset: Dataset) -> Result<Filters, QueryError> {
    let mut filters = time_range(params)?;
    let known = dataset.core_schema();
    for name in ["source", "actor", "src_ip", "asset"] {
        if let Some(value) = params.get(name) {
            if known.column_with_name(name).is_none() {
                return Err(QueryError::bad("invalid_parameter", format!("{} have no {name}", dataset.table_name())));
            }
            filters.push(column(name).eq(lit(value)));
        }
    }
    if let Some(least) = params.read::<i32>("severity_min", "a number from 0 to 6")? {
        if dataset != Dataset::SecurityEvents {
            return Err(QueryError::bad("invalid_parameter", "only security_events have a severity"));
        }
        filters.push(column("severity").gt_eq(lit(least)));
    }
    if let Some(text) = params.get("q") {
        let searched = if dataset == Dataset::SecurityEvents { "message" } else { "charge_description" };
        filters.push(strpos(column(searched), lit(text)).gt(lit(0)));
    }
    Ok(filters)
}

/// `from` (inclusive) and `to` (exclusive).
pub(crate) fn time_range(params: &Params) -> Result<Filters, QueryError> {
    let (from, to) = (params.time("from")?, params.time("to")?);
    if let (Some(from), Some(to)) = (from, to)
        && from > to
    {
        return Err(QueryError::bad("invalid_parameter", "from is after to"));
    }
    let from = from.map(|from| column(Dataset::TIME).gt_eq(time_lit(from)));
    Ok(from.into_iter().chain(to.map(|to| column(Dataset::TIME).lt(time_lit(to)))).collect())
}

fn after(cursor: &str, dataset: Dataset) -> Result<After, QueryError> {
    let parts = cursor_parts(cursor)?;
    let invalid = || QueryError::bad("invalid_parameter", "the cursor is not one that this endpoint gave");
    let [table, time, event_id] = parts.as_slice() else { return Err(invalid()) };
    if table != dataset.table_name() {
        return Err(QueryError::bad("invalid_parameter", "the cursor is from another dataset"));
    }
    Ok(After { time: time.parse().map_err(|_| invalid())?, event_id: event_id.clone() })
}

/// The rows that come after a position when the newest come first.
fn before(after: After) -> Expr {
    let same = column(Dataset::TIME).eq(time_lit(after.time)).and(column(Dataset::EVENT_ID).gt(lit(after.event_id)));
    // The bound on time alone lets files be left out.
    column(Dataset::TIME).lt_eq(time_lit(after.time)).and(column(Dataset::TIME).lt(time_lit(after.time)).or(same))
}

fn last_position(found: &RecordBatch) -> Option<(i64, &str)> {
    let last = found.num_rows().checked_sub(1)?;
    let times = found.column(0).as_primitive_opt::<TimestampMicrosecondType>()?;
    let ids = found.column(1).as_string_opt::<i32>()?;
    (times.is_valid(last) && ids.is_valid(last)).then(|| (times.value(last), ids.value(last)))
}
