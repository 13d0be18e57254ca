//! A session for one query: the tenant's catalog, the query's memory pool, fixed settings.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;

use crate::config::QueryConfig;
use crate::error::{QueryError, from_datafusion};
use crate::gate::functions::{Bounds, ConcatPlanner, bound, table_functions};
use crate::gate::guard::guard;
use crate::gate::{plan, statement, text};
use crate::history::Store;
use crate::rows::push::AskMore;
use crate::table::{CATALOG, SCHEMA, Tables, TenantCatalogs};

/// Rows of a batch between operators.
const BATCH_ROWS: usize = 8192;

/// What a query asks.
pub(crate) enum Ask {
    /// A text, which goes through the whole gate.
    Sql(String),
    /// A plan that this crate builds from parameters; values are literals in it, never text.
    Plan(Build),
}

/// Builds a plan from the tables of a session.
pub(crate) type Build = Box<dyn FnOnce(&SessionContext) -> Result<LogicalPlan> + Send>;

/// Builds the session of one query; `asks` when its history is asked in words.
pub(crate) fn session(
    config: &QueryConfig,
    store: &Store,
    tables: Tables,
    pool: Arc<dyn MemoryPool>,
    bounds: &Bounds,
    asks: bool,
) -> Result<SessionState> {
    let mut settings = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(config.partitions())
        .with_batch_size(BATCH_ROWS);
    let options = settings.options_mut();
    options.execution.enable_recursive_ctes = false;
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    options.execution.parquet.bloom_filter_on_read = true;
    options.execution.parquet.enable_page_index = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.parse_float_as_decimal = false;
    let mut builder = SessionStateBuilder::new()
        .with_config(settings)
        .with_runtime_env(store.runtime(pool)?)
        .with_catalog_list(Arc::new(TenantCatalogs(Arc::new(tables))))
        .with_default_features()
        .with_file_formats(Vec::new())
        .with_table_factories(HashMap::new())
        .with_table_function_list(table_functions(config.series_rows_max));
    if asks {
        let mut rules = PhysicalOptimizer::new().rules;
        rules.insert(0, Arc::new(AskMore));
        builder = builder.with_physical_optimizer_rules(rules);
    }
    // The first planner that takes an operator wins.
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(ConcatPlanner(bounds.clone())));
    let mut state = builder.build();
    state.mark_start_execution();
    Ok(state)
}

/// Takes `ask` through the gate and makes it a physical plan. Runs on a planner thread.
pub(crate) fn plan_of(
    ask: Ask,
    state: SessionState,
    config: &QueryConfig,
    bounds: &Bounds,
) -> Result<(Arc<dyn ExecutionPlan>, SessionState), QueryError> {
    let told = |error| bounds.meter.reason().unwrap_or_else(|| from_datafusion(&error));
    let logical = match ask {
        Ask::Sql(sql) => {
            text::check(&sql, config)?;
            let statement = statement::parse(&sql, config)?;
            futures::executor::block_on(state.statement_to_plan(statement)).map_err(told)?
        }
        Ask::Plan(build) => build(&SessionContext::new_with_state(state.clone())).map_err(told)?,
    };
    plan::check(&logical)?;
    let logical = bound(logical, bounds, 4 * config.query_memory_bytes_max as u64).map_err(told)?;
    let physical = futures::executor::block_on(state.create_physical_plan(&logical)).map_err(told)?;
    let physical = guard(physical, &bounds.meter, BATCH_ROWS, config.query_memory_bytes_max).map_err(told)?;
    if let Some(reason) = bounds.meter.reason() {
        return Err(reason);
    }
    Ok((physical, state))
}
