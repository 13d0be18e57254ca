//! The last look at a logical plan before it is optimised: nothing that writes, no table that is not the tenant's.

use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::context::SQLOptions;
use datafusion::functions_table::generate_series::GenerateSeriesTable;
use datafusion::logical_expr::{LogicalPlan, TableScan};

use crate::error::{QueryError, from_datafusion};
use crate::table::EventTable;

/// What of `information_schema` is shown; `df_settings` tells of the server, not of the tenant.
const INFORMATION: [&str; 6] = ["tables", "views", "columns", "schemata", "routines", "parameters"];

/// Refuses a plan that does anything but read.
///
/// # Errors
/// [`QueryError::NotAllowed`].
pub(crate) fn check(plan: &LogicalPlan) -> Result<(), QueryError> {
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(plan).map_err(|error| QueryError::not_allowed(from_datafusion(&error).to_string()))?;
    let mut refused = None;
    let walked = plan.apply_with_subqueries(|node| {
        refused = match node {
            LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_) => {
                Some(QueryError::not_allowed("statements that write are not allowed"))
            }
            LogicalPlan::RecursiveQuery(_) => Some(QueryError::not_allowed("WITH RECURSIVE is not allowed")),
            LogicalPlan::TableScan(scan) => table(scan),
            _ => None,
        };
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.map_err(|error| from_datafusion(&error))?;
    refused.map_or(Ok(()), Err)
}

fn table(scan: &TableScan) -> Option<QueryError> {
    let Ok(provider) = source_as_provider(&scan.source) else {
        return Some(QueryError::not_allowed("this table is not allowed"));
    };
    if provider.is::<EventTable>() || provider.is::<GenerateSeriesTable>() {
        return None;
    }
    let of_information = scan.table_name.schema() == Some("information_schema");
    if of_information && INFORMATION.contains(&scan.table_name.table()) {
        return None;
    }
    Some(QueryError::not_allowed("this table is not allowed"))
}
