//! Stored events for what runs over them once more: the rows of a stretch of time, in order, with the columns that are wanted.
//!
//! A stretch is sorted in memory, so whoever asks for a long one asks for it piece by piece: [`Query::hours`] says how many
//! rows lie where.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::functions::datetime::expr_fn::date_trunc;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{Expr, lit};
use tidegate_events::Dataset;

use crate::error::QueryError;
use crate::http::events::column;
use crate::http::params::time_lit;
use crate::session::Ask;
use crate::stream::QueryStream;
use crate::table::TableReader;
use crate::{Query, Scope, metrics};

/// Most hours with rows that a stretch of time may have: eleven years.
const HOURS_MAX: usize = 100_000;

/// Which rows.
#[derive(Clone)]
pub struct Stretch {
    /// The table: security or cost events.
    pub dataset: Dataset,
    /// From this time on (µs).
    pub from_us: i64,
    /// Before this time (µs).
    pub to_us: i64,
}

/// Says of the name of a column whether it is wanted.
pub type Wanted = Arc<dyn Fn(&str) -> bool + Send + Sync>;

impl Stretch {
    fn filter(&self) -> Expr {
        let time = || column(Dataset::TIME);
        time().gt_eq(time_lit(self.from_us)).and(time().lt(time_lit(self.to_us)))
    }
}

impl Query {
    /// The events of a stretch of time in the order of time, then id, with the wanted columns only. `time` and `event_id` are
    /// always among them.
    ///
    /// # Errors
    /// As any query.
    pub async fn scan(&self, scope: &Scope, stretch: &Stretch, wanted: Wanted) -> Result<QueryStream, QueryError> {
        metrics::query("scan");
        let stretch = stretch.clone();
        let build = move |context: &datafusion::execution::context::SessionContext| {
            let table = TableReader::new(context).read(stretch.dataset)?;
            let names: Vec<String> = table.schema().fields().iter().map(|field| field.name().clone()).collect();
            let is_wanted = |name: &&String| matches!(name.as_str(), Dataset::TIME | Dataset::EVENT_ID) || wanted(name);
            let columns: Vec<Expr> = names.iter().filter(is_wanted).map(|name| column(name)).collect();
            let order = [Dataset::TIME, Dataset::EVENT_ID].map(|name| column(name).sort(true, true)).to_vec();
            let rows = table.filter(stretch.filter())?.select(columns)?.sort(order)?;
            Ok(rows.into_unoptimized_plan())
        };
        self.run(&self.view(scope), Ask::Plan(Box::new(build))).await
    }

    /// How many events there are in each hour of a stretch of time that has any: (start of the hour in µs, events), in order.
    ///
    /// # Errors
    /// As any query; [`QueryError::TooLarge`] when there are too many hours.
    pub async fn hours(&self, scope: &Scope, stretch: &Stretch) -> Result<Vec<(i64, u64)>, QueryError> {
        metrics::query("scan_hours");
        let stretch = stretch.clone();
        let grouped = move |table: TableReader| {
            let rows = table.read(stretch.dataset)?.filter(stretch.filter())?;
            let rows = rows.select(vec![date_trunc(lit("hour"), column(Dataset::TIME)).alias("hour")])?;
            rows.aggregate(vec![column("hour")], vec![count(lit(1)).alias("count")])?
                .sort(vec![column("hour").sort(true, true)])?
                .limit(0, Some(HOURS_MAX + 1))
        };
        let rows = self.rows(&self.view(scope), grouped).await?;
        if rows.num_rows() > HOURS_MAX {
            let message = format!("the stretch of time has more than {HOURS_MAX} hours; ask for a shorter one");
            return Err(QueryError::TooLarge(message));
        }
        let hours = rows.column(0).as_primitive_opt::<TimestampMicrosecondType>();
        let counts = rows.column(1).as_primitive_opt::<Int64Type>();
        let (Some(hours), Some(counts)) = (hours, counts) else { return Ok(Vec::new()) };
        let pairs = hours.iter().zip(counts.iter());
        Ok(pairs.filter_map(|(hour, count)| Some((hour?, u64::try_from(count?).ok()?))).collect())
    }
}
