//! Leaves of a plan that read history. No rule of the optimizer sees what is below one, so that none can drop the tenant filter,
//! and no EXPLAIN shows paths, or counts of rows that are not the tenant's.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation, PushedDown,
};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

/// What a leaf reads.
pub(crate) trait Leaf: fmt::Debug + Clone + Send + Sync + 'static {
    /// What EXPLAIN calls it.
    const NAME: &'static str;

    /// What EXPLAIN says of it.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// The columns of its rows.
    fn schema(&self) -> &SchemaRef;

    /// How many partitions it has.
    fn partitions(&self) -> usize;

    /// The rows of a partition.
    fn read(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
        measured: BaselineMetrics,
    ) -> Result<SendableRecordBatchStream>;

    /// The same for another run.
    fn anew(&self) -> Result<Self> {
        Ok(self.clone())
    }

    /// The same with filters that operators above have learnt; `None` when it takes none.
    fn with_filters(
        &self,
        _phase: FilterPushdownPhase,
        _filters: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> Result<Option<Self>> {
        Ok(None)
    }
}

/// A leaf as an operator.
#[derive(Debug, Clone)]
pub(crate) struct LeafExec<L> {
    leaf: L,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl<L: Leaf> LeafExec<L> {
    /// The operator that reads this.
    pub(crate) fn new(leaf: L) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(leaf.schema().clone()),
            Partitioning::UnknownPartitioning(leaf.partitions()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { leaf, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }

    /// What it reads.
    pub(crate) fn leaf(&self) -> &L {
        &self.leaf
    }
}

impl<L: Leaf> DisplayAs for LeafExec<L> {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", L::NAME)?;
        self.leaf.show(f)
    }
}

impl<L: Leaf> ExecutionPlan for LeafExec<L> {
    fn name(&self) -> &str {
        L::NAME
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("{} has no children", L::NAME) }
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(self.leaf.anew()?)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.leaf.read(partition, context, BaselineMetrics::new(&self.metrics, partition))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn handle_child_pushdown_result(
        &self,
        phase: FilterPushdownPhase,
        result: ChildPushdownResult,
        config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        // Whoever has a filter looks at it again.
        let unsupported = vec![PushedDown::No; result.parent_filters.len()];
        let propagation = FilterPushdownPropagation::with_parent_pushdown_result(unsupported);
        Ok(match self.leaf.with_filters(phase, result, config)? {
            None => propagation,
            Some(leaf) => propagation.with_updated_node(Arc::new(Self::new(leaf))),
        })
    }
}
