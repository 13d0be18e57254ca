//! What the door of alert feedback asks: which rule and group an alert is of, and what was said about it.

use arrow::array::AsArray;
use datafusion::logical_expr::lit;
use tidegate_events::Dataset;

use super::events::{column, write_with};
use crate::error::QueryError;
use crate::json::{Nulls, RowWriter};
use crate::table::TableReader;
use crate::{Query, Scope, metrics};

/// What an alert is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertOf {
    /// The rule that raised it.
    pub rule_id: String,
    /// The group that it is about.
    pub group_key: String,
}

impl Query {
    /// The rule and the group of a stored alert of a tenant; `None` when the tenant has no such alert.
    ///
    /// # Errors
    /// As any query.
    pub async fn alert_of(&self, org_id: &str, alert_id: &str) -> Result<Option<AlertOf>, QueryError> {
        metrics::query("alert");
        let id = alert_id.to_owned();
        let plan = move |table: TableReader| {
            let rows = table.read(Dataset::Alerts)?.filter(column("alert_id").eq(lit(id)))?;
            rows.select(vec![column("rule_id"), column("group_key")])?.limit(0, Some(1))
        };
        let rows = self.rows(&self.view(&Scope::tenant(org_id)), plan).await?;
        let text = |at: usize| {
            let texts = rows.columns().get(at).and_then(|texts| texts.as_string_opt::<i32>());
            texts.and_then(|texts| texts.iter().next().flatten()).unwrap_or_default().to_owned()
        };
        Ok((rows.num_rows() > 0).then(|| AlertOf { rule_id: text(0), group_key: text(1) }))
    }

    /// What a tenant said last about an alert: a row of `alert_feedback` as a JSON object; `None` for nothing.
    ///
    /// # Errors
    /// As any query.
    pub async fn feedback_on(&self, org_id: &str, alert_id: &str) -> Result<Option<String>, QueryError> {
        metrics::query("feedback");
        let id = alert_id.to_owned();
        let plan = move |table: TableReader| table.read_feedback()?.filter(column("alert_id").eq(lit(id)));
        let rows = self.rows(&self.view(&Scope::tenant(org_id)), plan).await?;
        let mut out = Vec::new();
        write_with(&RowWriter::new(rows.schema_ref(), Nulls::Omit), &rows.slice(0, rows.num_rows().min(1)), &mut out)?;
        Ok((rows.num_rows() > 0).then(|| String::from_utf8_lossy(&out).into_owned()))
    }
}
