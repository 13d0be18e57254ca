//! Exactly one statement, and only of the kinds that read. Everything else is refused on the syntax tree, before planning.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, ObjectName, Query, Select, SetExpr, Statement as SqlStatement, TableFactor, Visit, Visitor,
};

use super::stepped::Stepped;
use crate::config::QueryConfig;
use crate::error::{QueryError, from_datafusion};

/// How deep the parser may recurse: a level of nesting takes a few calls. Its thread has the stack for it.
const PARSER_DEPTH_MAX: usize = 400;
/// Grouping sets that one statement may ask for, all of its `CUBE`, `ROLLUP` and `GROUPING SETS` multiplied.
const GROUPING_SETS_MAX: u64 = 256;

/// Parses `sql`, which has passed [`super::text::check`], and refuses what does not read.
///
/// # Errors
/// Whose fault: always the client's.
pub(crate) fn parse(sql: &str, config: &QueryConfig) -> Result<Statement, QueryError> {
    let dialect = Stepped::new(sql.len());
    let refuse = |error: DataFusionError| match from_datafusion(&error) {
        _ if dialect.is_spent() => QueryError::TooComplex {
            message: "the statement can be read in too many ways: is there a mistake in it? If not, nest it less"
                .into(),
        },
        QueryError::Internal => QueryError::Syntax("the statement cannot be parsed".into()),
        told => told,
    };
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&dialect)
        .with_recursion_limit(PARSER_DEPTH_MAX)
        .build()
        .map_err(refuse)?
        .parse_statements()
        .map_err(refuse)?;
    let statement = statements.pop_front().ok_or_else(|| QueryError::Syntax("there is no statement".into()))?;
    if !statements.is_empty() {
        return Err(QueryError::not_allowed("one statement at a time"));
    }
    allowed(&statement, config)?;
    Ok(statement)
}

fn allowed(statement: &Statement, config: &QueryConfig) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(sql) => allowed_sql(sql, config),
        Statement::Explain(explain) => match &*explain.statement {
            Statement::Statement(sql) if matches!(**sql, SqlStatement::Query(_)) => allowed_sql(sql, config),
            _ => Err(QueryError::not_allowed("EXPLAIN takes a SELECT")),
        },
        Statement::CreateExternalTable(_) => Err(QueryError::not_allowed("CREATE EXTERNAL TABLE is not allowed")),
        Statement::CopyTo(_) => Err(QueryError::not_allowed("COPY is not allowed")),
        Statement::Reset(_) => Err(QueryError::not_allowed("RESET is not allowed")),
    }
}

fn allowed_sql(statement: &SqlStatement, config: &QueryConfig) -> Result<(), QueryError> {
    match statement {
        SqlStatement::Query(_)
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ExplainTable { .. } => {}
        SqlStatement::Explain { statement, .. } if matches!(**statement, SqlStatement::Query(_)) => {}
        other => {
            let text = other.to_string();
            let word: String = text.split_whitespace().next().unwrap_or_default().chars().take(32).collect();
            return Err(QueryError::not_allowed(format!("{} statements are not allowed", word.to_uppercase())));
        }
    }
    let mut look = Look::new(config);
    if statement.visit(&mut look).is_break()
        && let Some(refused) = look.refused
    {
        return Err(refused);
    }
    let mut seen = HashMap::new();
    let read = look.read.iter().fold(0u64, |sum, name| sum.saturating_add(look.weight(name, &mut seen)));
    let named = look.tables.values().map(|reads| reads.len() as u64).sum::<u64>();
    let tables = read.max(named);
    if tables > config.sql_tables_max as u64 {
        let message = format!("the statement reads more than {} tables", config.sql_tables_max);
        return Err(QueryError::TooComplex { message });
    }
    Ok(())
}

/// What the walk over the syntax tree gathers.
struct Look<'a> {
    config: &'a QueryConfig,
    refused: Option<QueryError>,
    /// What each `WITH` query reads, by its name.
    tables: HashMap<String, Vec<String>>,
    /// Where the bodies of the `WITH` queries are, to know them when the walk comes to them.
    bodies: HashSet<usize>,
    /// How many of these bodies the walk is in.
    inside: usize,
    /// Every table that is named outside of them.
    read: Vec<String>,
    grouping_sets: u64,
}

impl<'a> Look<'a> {
    fn new(config: &'a QueryConfig) -> Self {
        Self {
            config,
            refused: None,
            tables: HashMap::new(),
            bodies: HashSet::new(),
            inside: 0,
            read: Vec::new(),
            grouping_sets: 1,
        }
    }

    fn refuse(&mut self, error: QueryError) -> ControlFlow<()> {
        self.refused = Some(error);
        ControlFlow::Break(())
    }

    /// How many tables are read through `name`: a `WITH` query is planned anew at each use, so that a chain of them that
    /// read each other twice doubles at each step.
    fn weight(&self, name: &str, seen: &mut HashMap<String, u64>) -> u64 {
        if let Some(known) = seen.get(name) {
            return *known;
        }
        let Some(reads) = self.tables.get(name) else { return 1 };
        seen.insert(name.to_owned(), 1);
        let weight = reads.iter().fold(0u64, |sum, read| sum.saturating_add(self.weight(read, seen))).max(1);
        seen.insert(name.to_owned(), weight);
        weight
    }

    fn sets(&mut self, factor: u64) -> ControlFlow<()> {
        self.grouping_sets = self.grouping_sets.saturating_mul(factor.max(1));
        if self.grouping_sets > GROUPING_SETS_MAX {
            let message = format!("the statement has more than {GROUPING_SETS_MAX} grouping sets");
            return self.refuse(QueryError::TooComplex { message });
        }
        ControlFlow::Continue(())
    }
}

/// The name under which a `WITH` query or a table is found, as the planner normalises it.
fn plain(name: &ObjectName) -> String {
    name.to_string().to_lowercase()
}

/// Which query of the tree this is.
fn address(query: &Query) -> usize {
    std::ptr::from_ref(query).addr()
}

/// The names of the tables in a part of the tree.
struct Names(Vec<String>);

impl Visitor for Names {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        self.0.push(plain(relation));
        ControlFlow::Continue(())
    }
}

impl Visitor for Look<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let extras = !query.locks.is_empty()
            || query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty();
        if extras {
            return self.refuse(QueryError::not_allowed("FOR, SETTINGS, FORMAT and pipe operators are not allowed"));
        }
        if self.bodies.contains(&address(query)) {
            self.inside += 1;
        }
        let Some(with) = &query.with else { return ControlFlow::Continue(()) };
        if with.recursive {
            return self.refuse(QueryError::not_allowed("WITH RECURSIVE is not allowed"));
        }
        for cte in &with.cte_tables {
            self.bodies.insert(address(&cte.query));
            let mut names = Names(Vec::new());
            let _ = cte.query.visit(&mut names);
            if self.tables.insert(cte.alias.name.value.to_lowercase(), names.0).is_some() {
                let message = format!("two WITH queries are named {}", cte.alias.name.value);
                return self
                    .refuse(QueryError::Invalid { message, hint: "give each WITH query a name of its own".into() });
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.bodies.contains(&address(query)) {
            self.inside = self.inside.saturating_sub(1);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if select.into.is_some() {
            return self.refuse(QueryError::not_allowed("SELECT INTO is not allowed"));
        }
        if !select.connect_by.is_empty() || !select.lateral_views.is_empty() {
            return self.refuse(QueryError::not_allowed("CONNECT BY and LATERAL VIEW are not allowed"));
        }
        if select.projection.len() > self.config.sql_columns_max {
            let message = format!("a SELECT list has more than {} columns", self.config.sql_columns_max);
            return self.refuse(QueryError::TooComplex { message });
        }
        let modifiers = match &select.group_by {
            GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers) => modifiers,
        };
        if !modifiers.is_empty() {
            return self.refuse(QueryError::not_allowed("GROUP BY … WITH is not allowed"));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if self.inside == 0 {
            self.read.push(plain(relation));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::NestedJoin { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::Function { .. } => ControlFlow::Continue(()),
            _ => self.refuse(QueryError::not_allowed("this kind of table expression is not allowed")),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Cube(sets) => self.sets(1u64.checked_shl(sets.len() as u32).unwrap_or(u64::MAX)),
            Expr::Rollup(sets) => self.sets(sets.len() as u64 + 1),
            Expr::GroupingSets(sets) => self.sets(sets.len() as u64),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_statement(&mut self, statement: &SqlStatement) -> ControlFlow<()> {
        let inner_write = match statement {
            SqlStatement::Query(query) => {
                matches!(*query.body, SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_))
            }
            SqlStatement::Explain { .. }
            | SqlStatement::ExplainTable { .. }
            | SqlStatement::ShowTables { .. }
            | SqlStatement::ShowColumns { .. } => false,
            _ => true,
        };
        if inner_write {
            self.refuse(QueryError::not_allowed("statements that write are not allowed"))
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(sql: &str) -> &'static str {
        match parse(sql, &QueryConfig::default()) {
            Ok(_) => "ok",
            Err(error) => error.code(),
        }
    }

    #[test]
    fn only_statements_that_read_pass() {
        for (sql, wanted) in [
            ("SELECT 1", "ok"),
            ("select 1;", "ok"),
            ("WITH a AS (SELECT 1) SELECT * FROM a", "ok"),
            ("VALUES (1), (2)", "ok"),
            ("EXPLAIN SELECT 1", "ok"),
            ("EXPLAIN ANALYZE VERBOSE SELECT 1", "ok"),
            ("SHOW TABLES", "ok"),
            ("SHOW COLUMNS FROM alerts", "ok"),
            ("DESCRIBE alerts", "ok"),
            ("SELECT 1; SELECT 2", "statement_not_allowed"),
            ("", "sql_syntax"),
            ("SHOW ALL", "statement_not_allowed"),
            ("SET a = 1", "statement_not_allowed"),
            ("COPY alerts TO '/tmp/x.csv'", "statement_not_allowed"),
            ("EXPLAIN COPY alerts TO '/tmp/x.csv'", "statement_not_allowed"),
            ("EXPLAIN INSERT INTO alerts VALUES (1)", "statement_not_allowed"),
            ("WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t) SELECT * FROM t", "statement_not_allowed"),
            ("SELECT * INTO x FROM alerts", "statement_not_allowed"),
            ("SELECT 1 GROUP BY CUBE (1,2,3,4,5,6,7,8,9)", "query_too_complex"),
            ("WITH a AS (INSERT INTO alerts VALUES (1)) SELECT 1", "statement_not_allowed"),
        ] {
            assert_eq!(verdict(sql), wanted, "{sql}");
        }
    }

    #[test]
    fn with_queries_that_double_are_counted_as_what_they_read() {
        let chain = |steps: usize| {
            let steps: Vec<_> =
                (1..=steps).map(|at| format!("t{at} AS (SELECT 1 FROM t{0} x, t{0} y)", at - 1)).collect();
            format!("WITH t0 AS (SELECT 1), {} SELECT * FROM t{}", steps.join(", "), steps.len())
        };
        assert_eq!(verdict(&chain(5)), "ok");
        assert_eq!(verdict(&chain(7)), "query_too_complex");
        assert_eq!(verdict(&chain(40)), "query_too_complex");
        let line: Vec<_> = (1..40).map(|at| format!("t{at} AS (SELECT 1 FROM t{})", at - 1)).collect();
        assert_eq!(verdict(&format!("WITH t0 AS (SELECT 1), {} SELECT * FROM t39", line.join(", "))), "ok");
        assert_eq!(
            verdict("WITH a AS (SELECT 1) SELECT * FROM (WITH a AS (SELECT * FROM a) SELECT * FROM a)"),
            "query_invalid"
        );
    }

    #[test]
    fn what_changes_a_query_beyond_reading_is_refused() {
        for (sql, wanted) in [
            ("SELECT 1 FROM alerts FOR UPDATE", "statement_not_allowed"),
            ("SELECT 1 FROM alerts FOR XML AUTO", "statement_not_allowed"),
            ("SELECT 1 FROM alerts SETTINGS max_threads = 1", "statement_not_allowed"),
            ("SELECT 1 FROM alerts FORMAT JSON", "statement_not_allowed"),
            ("SELECT 1 FROM alerts START WITH a = 1 CONNECT BY PRIOR b = c", "statement_not_allowed"),
            ("SELECT 1 FROM alerts LATERAL VIEW explode(a) t AS b", "statement_not_allowed"),
            ("SELECT a FROM alerts GROUP BY a WITH ROLLUP", "statement_not_allowed"),
            ("SELECT 1 FROM TABLE(f(1))", "statement_not_allowed"),
            ("SELECT 1 FROM alerts PIVOT(sum(a) FOR b IN ('c'))", "statement_not_allowed"),
            ("WITH a AS (SELECT 1) INSERT INTO alerts SELECT 1", "statement_not_allowed"),
            ("EXPLAIN SHOW TABLES", "statement_not_allowed"),
            ("EXPLAIN DELETE FROM alerts", "statement_not_allowed"),
            ("SELECT 1 FROM (SELECT 2 FROM alerts FOR UPDATE)", "statement_not_allowed"),
            ("SELECT 1 FROM a, (b JOIN c ON true), UNNEST([1]), generate_series(1, 2), (SELECT 3)", "ok"),
        ] {
            assert_eq!(verdict(sql), wanted, "{sql}");
        }
    }

    #[test]
    fn each_bound_is_exact() {
        let numbers = |count: usize| (1..=count).map(|at| at.to_string()).collect::<Vec<_>>().join(",");
        let sets = |count: usize| vec!["(1)"; count].join(",");
        let tables = |count: usize| (0..count).map(|at| format!("t{at}")).collect::<Vec<_>>().join(",");
        let cases = [
            (format!("SELECT 1 GROUP BY CUBE ({})", numbers(8)), "ok"),
            (format!("SELECT 1 GROUP BY CUBE ({0}), CUBE ({0})", numbers(4)), "ok"),
            (format!("SELECT 1 GROUP BY CUBE ({0}), CUBE ({0}), ROLLUP (1)", numbers(4)), "query_too_complex"),
            (format!("SELECT 1 GROUP BY CUBE ({})", numbers(70)), "query_too_complex"),
            (format!("SELECT 1 GROUP BY ROLLUP ({})", numbers(255)), "ok"),
            (format!("SELECT 1 GROUP BY ROLLUP ({})", numbers(256)), "query_too_complex"),
            (format!("SELECT 1 GROUP BY GROUPING SETS ({})", sets(256)), "ok"),
            (format!("SELECT 1 GROUP BY GROUPING SETS ({})", sets(257)), "query_too_complex"),
            (format!("SELECT {}", numbers(1024)), "ok"),
            (format!("SELECT {}", numbers(1025)), "query_too_complex"),
            (format!("SELECT 1 FROM {}", tables(64)), "ok"),
            (format!("SELECT 1 FROM {}", tables(65)), "query_too_complex"),
            (format!("SELECT 1 FROM a WHERE x IN (SELECT 1 FROM {})", tables(64)), "query_too_complex"),
            (format!("WITH w AS (SELECT 1 FROM {}) SELECT 1 FROM W", tables(64)), "ok"),
            // A subquery beside a WITH query is not one.
            (format!("WITH w AS (SELECT 1) SELECT 1 FROM (SELECT 1 FROM {}) AS s", tables(64)), "ok"),
            (format!("WITH w AS (SELECT 1) SELECT 1 FROM (SELECT 1 FROM {}) AS s", tables(65)), "query_too_complex"),
            (format!("WITH w AS (SELECT 1 FROM {}) SELECT 1 FROM w, x", tables(64)), "query_too_complex"),
            // Also what is named and not read costs: it is planned.
            (format!("WITH w AS (SELECT 1 FROM {}) SELECT 1", tables(65)), "query_too_complex"),
        ];
        for (sql, wanted) in cases {
            assert_eq!(verdict(&sql), wanted, "{}", &sql[..80.min(sql.len())]);
        }
    }
}
