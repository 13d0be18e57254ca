//! SQL and reading: tables over history and the log tail, one gate before them, HTTP doors in front.
//!
//! ```text
//! door ──▶ gate (text, statement) ──▶ plan ──▶ gate (plan, functions, guard) ──▶ run ──▶ rows
//!                                      ▲
//!                  view: snapshot of history + range of each log + tenant
//! ```
//!
//! [`Query`] takes a text and a [`Scope`] and gives a [`QueryStream`]. Each query has a view of its own: one snapshot of
//! history and the rows of the logs after its cursors, so that an event is seen as soon as it is acknowledged, and exactly
//! once. The tenant filter sits inside the table providers, below the optimizer. Planning happens on threads with a big
//! stack, running on a runtime of its own, and one more thread stops what takes too long.

mod config;
mod conform;
mod error;
mod feedback;
mod gate;
mod history;
mod http;
pub mod json;
mod leaf;
mod meter;
pub mod metrics;
mod planner;
mod rows;
pub mod scan;
mod session;
mod stream;
mod suspect;
mod table;
mod tail;
mod view;
mod watch;
mod workers;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

pub use config::QueryConfig;
pub use error::QueryError;
pub use http::AlertOf;
pub use stream::QueryStream;
use tidegate_events::Dataset;
use tidegate_pipeline::{FieldCatalog, History, LogReader};
pub use view::Scope;

use crate::gate::functions::Bounds;
use crate::history::Store;
use crate::meter::{Meter, QueryPool};
use crate::planner::Planners;
use crate::session::{Ask, plan_of, session};
use crate::table::Tables;
use crate::view::{Sources, View};
use crate::watch::Watch;
use crate::workers::Workers;

/// What a query layer is made of.
pub struct QueryParts {
    /// The ingest log: security and cost events, changes, dead letters of ingest.
    pub log: Arc<dyn LogReader>,
    /// What the ingest log may hold: other datasets are not looked for there. All of them, but on a node of many machines that
    /// has the changes alone beside history.
    pub log_datasets: &'static [Dataset],
    /// The output log: alerts, dead letters of delivery.
    pub output: Arc<dyn LogReader>,
    /// The store of history: Parquet files, or a database.
    pub history: Arc<dyn History>,
    /// Where the files of history lie, when it is not the local disk.
    pub files: Option<Arc<dyn object_store::ObjectStore>>,
    /// The own fields of the rows in the ingest log. Must know a row's fields once the row is visible.
    pub log_fields: Arc<dyn Fn() -> Arc<FieldCatalog> + Send + Sync>,
    /// The bounds.
    pub config: QueryConfig,
    /// Where rows are rendered as JSON, CSV or Arrow. Plans run on threads of the query layer's own.
    pub cpu: tokio::runtime::Handle,
}

/// The query layer. Cheap to clone.
#[derive(Clone)]
pub struct Query {
    shared: Arc<Shared>,
}

struct Shared {
    sources: Sources,
    config: QueryConfig,
    cpu: tokio::runtime::Handle,
    workers: Workers,
    store: Arc<Store>,
    planners: Planners,
    watch: Arc<Watch>,
    memory: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").field("running", &self.running()).finish_non_exhaustive()
    }
}

impl Query {
    /// A query layer over its parts. Starts the threads that plan and run queries, and the watch.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn new(parts: QueryParts) -> Result<Self, QueryError> {
        let QueryParts { log, log_datasets, output, history, files, log_fields, config, cpu } = parts;
        let store = Store::new(&config, files).map_err(|error| error::internal(&error))?;
        let workers = Workers::start(&config).map_err(|error| error::internal(&error))?;
        let planners = Planners::start(&config).map_err(|error| error::internal(&error))?;
        let watch = Watch::start(config.rss_growth_bytes_max).map_err(|error| error::internal(&error))?;
        let shared = Shared {
            sources: Sources { log, log_datasets, output, history, log_fields },
            config,
            cpu,
            workers,
            store: Arc::new(store),
            planners,
            watch,
            memory: Arc::new(AtomicUsize::new(0)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// How many queries run now.
    pub fn running(&self) -> usize {
        self.shared.watch.running()
    }

    /// Runs one SQL statement through the gate, on the rows that `scope` may see.
    ///
    /// # Errors
    /// Whatever refuses the statement before its first row; later errors come out of the stream.
    pub async fn sql(&self, scope: &Scope, text: &str) -> Result<QueryStream, QueryError> {
        if text.len() > self.shared.config.sql_bytes_max {
            let message = format!("the statement has more than {} bytes", self.shared.config.sql_bytes_max);
            return Err(QueryError::TooComplex { message });
        }
        metrics::query("sql");
        self.run(&self.view(scope), Ask::Sql(text.to_owned())).await
    }

    /// What `scope` sees now. Queries that share a view agree with each other.
    pub(crate) fn view(&self, scope: &Scope) -> Arc<View> {
        Arc::new(View::take(&self.shared.sources, scope.clone()))
    }

    pub(crate) async fn run(&self, view: &Arc<View>, ask: Ask) -> Result<QueryStream, QueryError> {
        let started = Instant::now();
        let config = &self.shared.config;
        let deadline = started + Duration::from_millis(config.query_ms_max);
        let meter = Arc::new(Meter::new(deadline, config.query_ms_max));
        let entered =
            self.shared.watch.enter(view.scope.org_id(), &meter, config.queries_max, config.tenant_queries_max);
        let place = entered.inspect_err(metrics::error)?;
        // Whoever waits for the plan may leave: the job then ends at its next look at the meter.
        let waiting = StopOnDrop(Some(meter.clone()));
        let (shared, view, planned) = (self.shared.clone(), view.clone(), meter.clone());
        let kept = view.clone();
        let job = move || {
            let config = &shared.config;
            let memory = QueryPool::new(
                planned.clone(),
                config.query_memory_bytes_max,
                shared.memory.clone(),
                config.memory_bytes_max,
            );
            let bounds = Bounds::new(planned, config.function_bytes_max);
            let tables = Tables::new(&view, &shared.store, config.tail_chunk_bytes_max);
            let state = session(config, &shared.store, tables, Arc::new(memory), &bounds, view.snapshot.rows.is_some());
            let state = state.map_err(|error| error::from_datafusion(&error))?;
            let (plan, state) = plan_of(ask, state, config, &bounds)?;
            Ok((plan, state.task_ctx(), place))
        };
        let answer = tokio::select! {
            answer = self.shared.planners.run(job) => answer,
            () = meter.notify.notified() => Err(meter.reason().unwrap_or(QueryError::Cancelled)),
        };
        let (plan, context, place) = answer.inspect_err(metrics::error)?;
        metrics::seconds(metrics::PLAN_SECONDS, started);
        waiting.keep();
        let Some(workers) = self.shared.workers.handle() else { return Err(QueryError::Cancelled) };
        Ok(QueryStream::start(plan, context, workers, config, (place, kept), (meter, started)))
    }
}

/// Says whether a text would pass the part of the gate that comes before planning: size, depth, one statement that reads.
/// The parser recurses: call it on a thread with a stack of 8 MiB or more.
///
/// # Errors
/// What the gate refuses it for.
pub fn check_sql(text: &str, config: &QueryConfig) -> Result<(), QueryError> {
    gate::text::check(text, config)?;
    gate::statement::parse(text, config).map(drop)
}

/// Stops a query whose caller went away while it was planned.
struct StopOnDrop(Option<Arc<Meter>>);

impl StopOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(meter) = self.0.take() {
            meter.stop(QueryError::Cancelled);
        }
    }
}
