//! The bounds of the query layer. Each one is an error with a code of its own when it bites.

/// Bounds on SQL text, plans, memory, time and output.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueryConfig {
    /// Longest SQL text, in bytes.
    pub sql_bytes_max: usize,
    /// Most tokens in a statement.
    pub sql_tokens_max: usize,
    /// Most operators in a statement: a chain of them is a tree as deep as it is long.
    pub sql_operators_max: usize,
    /// Deepest nesting of parentheses, brackets and `CASE`.
    pub sql_depth_max: usize,
    /// Longest literal or name in a statement, in bytes.
    pub sql_literal_bytes_max: usize,
    /// Most columns in one `SELECT` list or `VALUES` row.
    pub sql_columns_max: usize,
    /// Most tables that a statement reads, each use of a `WITH` query counted with all that it reads.
    pub sql_tables_max: usize,
    /// Queries that run at the same time; the next one is answered with 429.
    pub queries_max: usize,
    /// Queries of one tenant that run at the same time; the next one is answered with 429.
    pub tenant_queries_max: usize,
    /// Longest life of a query in milliseconds, from its arrival to its last byte.
    pub query_ms_max: u64,
    /// Memory that the operators of one query may hold, in bytes. Nothing is spilled to disk.
    pub query_memory_bytes_max: usize,
    /// Memory that the operators of all queries may hold together, in bytes.
    pub memory_bytes_max: usize,
    /// How far the resident memory of the process may grow over what it was before queries ran, in bytes. Beyond it the
    /// query that holds most is stopped. 0 turns this off.
    pub rss_growth_bytes_max: u64,
    /// Most rows in one answer.
    pub rows_max: u64,
    /// Most bytes of column memory in one answer.
    pub output_bytes_max: u64,
    /// Most bytes that one function may produce for one batch of rows, and most bytes of a computed constant.
    pub function_bytes_max: usize,
    /// Most rows of `generate_series` and `range`.
    pub series_rows_max: u64,
    /// How much of the log is read at once, in bytes of memory.
    pub tail_chunk_bytes_max: usize,
    /// Parquet footers kept in memory, in bytes.
    pub metadata_cache_bytes_max: usize,
    /// Threads that parse and plan.
    pub planner_threads: usize,
    /// Stack of each of these threads, in bytes of address space.
    pub planner_stack_bytes: usize,
    /// Stack of each thread that runs plans, in bytes of address space: expressions are evaluated as deep as they are nested.
    pub run_stack_bytes: usize,
    /// Threads that run plans, and partitions of each plan. 0 means one per core.
    pub partitions: usize,
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self {
            sql_bytes_max: 64 << 10,
            sql_tokens_max: 32_768,
            sql_operators_max: 512,
            sql_depth_max: 48,
            sql_literal_bytes_max: 8 << 10,
            sql_columns_max: 1024,
            sql_tables_max: 64,
            queries_max: 32,
            tenant_queries_max: 16,
            query_ms_max: 30_000,
            query_memory_bytes_max: 256 << 20,
            memory_bytes_max: 1 << 30,
            rss_growth_bytes_max: 2 << 30,
            rows_max: 1_000_000,
            output_bytes_max: 512 << 20,
            function_bytes_max: 16 << 20,
            series_rows_max: 1_000_000,
            tail_chunk_bytes_max: 8 << 20,
            metadata_cache_bytes_max: 64 << 20,
            planner_threads: 2,
            planner_stack_bytes: 128 << 20,
            run_stack_bytes: 32 << 20,
            partitions: 0,
        }
    }
}

impl QueryConfig {
    /// The number of partitions of a plan, and of threads that run plans.
    pub(crate) fn partitions(&self) -> usize {
        match self.partitions {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            given => given,
        }
    }
}
