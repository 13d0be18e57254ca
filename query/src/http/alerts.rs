//! `GET /v2/alerts`, `GET /v2/alerts/{id}`, and stored alerts for the feed.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use datafusion::functions::string::expr_fn::concat;
use datafusion::functions::unicode::expr_fn::strpos;
use datafusion::functions_nested::expr_fn::{array_has, array_to_string};
use datafusion::logical_expr::{Expr, lit};
use hyper::Response;
use tidegate_events::{Dataset, Level};
use tidegate_pipeline::keys::Principal;

use super::events::{Filters, column, time_range, write_with};
use super::params::{Params, cursor_parts, cursor_text};
use super::{Body, answered};
use crate::error::{QueryError, internal};
use crate::json::{Nulls, RowWriter, write_text};
use crate::table::TableReader;
use crate::view::View;
use crate::{Query, Scope, metrics};

/// The position of an alert in the output log, which is the order of the feed.
const SEQ: &str = "seq";
const ALERT_ID: &str = "alert_id";

impl Query {
    /// `GET /v2/alerts?from=&to=&level=&rule=&tag=&entity=&limit=&cursor=`: stored alerts, newest first, as
    /// `{"alerts":[…],"cursor":…}`. `level` is the least one; `rule` an id or title; `tag` a tag or one above it
    /// (`attack.t1003` finds `attack.t1003.001`); `entity` an actor, asset, resource, or a value or pair of the group key.
    /// The feed's filters mean the same.
    pub async fn handle_alerts(&self, query: Option<&str>, principal: &Principal, request_id: &str) -> Response<Body> {
        answered(self.alerts(query, &Scope::of(principal)).await, request_id)
    }

    /// `GET /v2/alerts/{id}`: one alert as `{"alert":{…}}`.
    pub async fn handle_alert(
        &self,
        id: &str,
        query: Option<&str>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        answered(self.alert(id, query, &Scope::of(principal)).await, request_id)
    }

    /// Up to `limit` stored alerts of a tenant with `after_seq < seq < upto`, in order, each as (seq, JSON object): what the
    /// feed sends to a subscriber that resumes.
    ///
    /// # Errors
    /// As any query.
    pub async fn alerts_after(
        &self,
        org_id: &str,
        after_seq: i64,
        upto: i64,
        limit: usize,
    ) -> Result<Vec<(u64, String)>, QueryError> {
        metrics::query("feed");
        let wanted = column(SEQ).gt(lit(after_seq)).and(column(SEQ).lt(lit(upto)));
        let plan = move |table: TableReader| {
            let rows = table.read(Dataset::Alerts)?.filter(wanted)?;
            rows.sort(vec![column(SEQ).sort(true, false)])?.limit(0, Some(limit))
        };
        let view = View::take(&self.shared.sources, Scope::tenant(org_id)).of_own_logs();
        let rows = self.rows(&Arc::new(view), plan).await?;
        let Some(seqs) = rows.column_by_name(SEQ) else { return Ok(Vec::new()) };
        let seqs = seqs.as_primitive::<Int64Type>().clone();
        let mut texts = Vec::with_capacity(rows.num_rows());
        let mut out = Vec::new();
        let (rows, writer) = shown(&rows)?;
        let take = |out: &mut Vec<u8>| texts.push(String::from_utf8_lossy(&std::mem::take(out)).into_owned());
        writer.write(&rows, &mut out, take).map_err(|error| internal(&error))?;
        Ok(seqs.values().iter().map(|seq| u64::try_from(*seq).unwrap_or(0)).zip(texts).collect())
    }

    async fn alerts(&self, query: Option<&str>, scope: &Scope) -> Result<Vec<u8>, QueryError> {
        metrics::query("alerts");
        let params = Params::parse(query, &["from", "to", "level", "rule", "tag", "entity", "limit", "cursor"])?;
        let mut filters = alert_filters(&params)?;
        let limit = params.limit()?;
        if let Some(cursor) = params.get("cursor") {
            let foreign = || QueryError::bad("invalid_parameter", "the cursor is not one that this endpoint gave");
            let [seq, id] = <[String; 2]>::try_from(cursor_parts(cursor)?).map_err(|_| foreign())?;
            let seq: i64 = seq.parse().map_err(|_| foreign())?;
            // Servers that share a database count their alerts each for itself.
            let same = column(SEQ).eq(lit(seq)).and(column(ALERT_ID).lt(lit(id)));
            filters.push(column(SEQ).lt(lit(seq)).or(same));
        }
        let page = move |table: TableReader| {
            let mut rows = table.read(Dataset::Alerts)?;
            for filter in filters {
                rows = rows.filter(filter)?;
            }
            let newest = [SEQ, ALERT_ID].map(|name| column(name).sort(false, false));
            rows.sort(newest.to_vec())?.limit(0, Some(limit + 1))
        };
        let rows = self.rows(&self.view(scope), page).await?;
        let more = rows.num_rows() > limit;
        let rows = rows.slice(0, limit.min(rows.num_rows()));
        let mut out = b"{\"alerts\":[".to_vec();
        write_alerts(&rows, &mut out)?;
        out.extend_from_slice(b"],\"cursor\":");
        match last(&rows).filter(|_| more) {
            Some((seq, id)) => write_text(&cursor_text(&[&seq.to_string(), &id]), &mut out),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
        Ok(out)
    }

    async fn alert(&self, id: &str, query: Option<&str>, scope: &Scope) -> Result<Vec<u8>, QueryError> {
        metrics::query("alert");
        Params::parse(query, &[])?;
        let id = id.to_owned();
        let plan = move |table: TableReader| {
            let rows = table.read(Dataset::Alerts)?.filter(column(ALERT_ID).eq(lit(id)))?;
            rows.limit(0, Some(1))
        };
        let rows = self.rows(&self.view(scope), plan).await?;
        if rows.num_rows() == 0 {
            return Err(QueryError::NotFound("there is no alert with this id".into()));
        }
        let mut out = b"{\"alert\":".to_vec();
        write_alerts(&rows, &mut out)?;
        out.push(b'}');
        Ok(out)
    }
}

/// Where a page of alerts ends.
fn last(rows: &RecordBatch) -> Option<(i64, String)> {
    let at = rows.num_rows().checked_sub(1)?;
    let seq = rows.column_by_name(SEQ)?.as_primitive_opt::<Int64Type>()?.value(at);
    let id = rows.column_by_name(ALERT_ID)?.as_string_opt::<i32>()?.value(at);
    Some((seq, id.to_owned()))
}

/// The alerts as clients see them, with their writer: without the tenant, of which there is only one, and with `matched`
/// as the object that it is. The feed shows alerts the same way.
fn shown(rows: &RecordBatch) -> Result<(RecordBatch, RowWriter), QueryError> {
    let schema = rows.schema();
    let kept: Vec<usize> = (0..rows.num_columns()).filter(|at| schema.field(*at).name() != Dataset::ORG_ID).collect();
    let rows = rows.project(&kept).map_err(|error| internal(&error))?;
    let writer = RowWriter::new(rows.schema_ref(), Nulls::Omit).embed(rows.schema_ref().index_of("matched").ok());
    Ok((rows, writer))
}

fn write_alerts(rows: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
    let (rows, writer) = shown(rows)?;
    write_with(&writer, &rows, out)
}

fn alert_filters(params: &Params) -> Result<Filters, QueryError> {
    let mut filters = time_range(params)?;
    if let Some(level) = params.read::<Level>("level", "informational, low, medium, high or critical")? {
        filters.push(column("severity").gt_eq(lit(level as i32)));
    }
    if let Some(rule) = params.get("rule") {
        filters.push(column("rule_id").eq(lit(rule)).or(column("title").eq(lit(rule))));
    }
    if let Some(tag) = params.get("tag") {
        // No tag holds this character, so a tag begins where it stands.
        let begins = concat(vec![lit("\u{1}"), array_to_string(column("tags"), lit("\u{1}"))]);
        let below = strpos(begins, lit(format!("\u{1}{tag}."))).gt(lit(0));
        filters.push(array_has(column("tags"), lit(tag)).or(below));
    }
    if let Some(entity) = params.get("entity") {
        let is = |name: &str| column(name).eq(lit(entity));
        let pairs = || concat(vec![lit(", "), column("group_key"), lit(", ")]);
        let grouped = |text: String| strpos(pairs(), lit(text)).gt(lit(0));
        let any: Expr = is("actor").or(is("asset")).or(is("resource"));
        filters.push(any.or(grouped(format!(", {entity}, "))).or(grouped(format!("={entity}, "))));
    }
    Ok(filters)
}
