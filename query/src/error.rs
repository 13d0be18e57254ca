//! What can go wrong with a query, whose fault it is, and what the client is told.
//!
//! A message holds what the client wrote or may see: its own SQL, its own tables and columns. What the store or the
//! machine says (paths, other files) goes to the log of the program and never into a message.

use arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use thiserror::Error;
use tidegate_events::Dataset;
use tidegate_pipeline::Problem;

/// Why a query was refused or stopped.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum QueryError {
    /// The client: the request itself (body, parameter, content type) is not valid.
    #[error("{message}")]
    BadRequest {
        /// HTTP status, 4xx.
        status: u16,
        /// A stable word.
        code: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The client: the text is larger, deeper or longer than the gate lets pass. It was not planned.
    #[error("{message}")]
    TooComplex {
        /// What is over its bound, and the bound.
        message: String,
    },
    /// The client: the text is not SQL.
    #[error("{0}")]
    Syntax(String),
    /// The client: a statement or function that this door never runs.
    #[error("{message}")]
    NotAllowed {
        /// What is not allowed.
        message: String,
        /// What is allowed.
        hint: String,
    },
    /// The client: a table, column or function that does not exist, a type that does not fit, a value that overflows.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// The nearest thing that exists. May be empty.
        hint: String,
    },
    /// The client: no such event or alert, for this tenant.
    #[error("{0}")]
    NotFound(String),
    /// Load: as many queries run as may. The client should retry after a second.
    #[error("{0}")]
    Busy(String),
    /// The query or load: it needs more memory than it may have.
    #[error("the query needs more memory than it may have ({bytes_max} bytes)")]
    Memory {
        /// The bound that was met.
        bytes_max: u64,
    },
    /// The query or load: it did not end in time.
    #[error("the query did not end within {ms_max} ms")]
    Timeout {
        /// The bound that was met.
        ms_max: u64,
    },
    /// The query: the answer is larger than an answer may be.
    #[error("{0}")]
    TooLarge(String),
    /// The client left, or the program is stopping.
    #[error("the query was cancelled")]
    Cancelled,
    /// The disk: a stored file is damaged, and has been set aside. The client should retry, and then gets what is left.
    #[error("a stored file is damaged and has been set aside; its rows are lost")]
    Damaged,
    /// The store moved under the query three times in a row. The client should retry.
    #[error("the store is moving; try again")]
    Moved,
    /// The database or the object store of history: it cannot be reached, or does not answer as it should. The client should retry.
    #[error("stored history cannot be read now")]
    HistoryUnavailable,
    /// A bug or a damaged store. The log of the program says more.
    #[error("the query failed inside the server")]
    Internal,
}

impl QueryError {
    /// A bad parameter.
    pub(crate) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::BadRequest { status: 400, code, message: message.into() }
    }

    /// A statement or function that is refused.
    pub(crate) fn not_allowed(message: impl Into<String>) -> Self {
        let hint = "SELECT, WITH, VALUES, UNION, EXPLAIN, DESCRIBE, SHOW TABLES and SHOW COLUMNS are allowed";
        Self::NotAllowed { message: message.into(), hint: hint.into() }
    }

    /// The stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest { code, .. } => code,
            Self::TooComplex { .. } => "query_too_complex",
            Self::Syntax(_) => "sql_syntax",
            Self::NotAllowed { .. } => "statement_not_allowed",
            Self::Invalid { .. } => "query_invalid",
            Self::NotFound(_) => "not_found",
            Self::Busy(_) => "too_many_queries",
            Self::Memory { .. } => "query_memory",
            Self::Timeout { .. } => "query_timeout",
            Self::TooLarge(_) => "result_too_large",
            Self::Cancelled => "query_cancelled",
            Self::Damaged => "store_damaged",
            Self::Moved => "store_moved",
            Self::HistoryUnavailable => "history_unavailable",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::BadRequest { status, .. } => *status,
            Self::NotFound(_) => 404,
            Self::Timeout { .. } => 408,
            Self::Busy(_) => 429,
            Self::Damaged => 503,
            Self::Internal => 500,
            Self::Cancelled | Self::Moved | Self::HistoryUnavailable => 503,
            _ => 400,
        }
    }

    /// What to do about it. May be empty.
    pub fn hint(&self) -> String {
        match self {
            Self::NotAllowed { hint, .. } | Self::Invalid { hint, .. } => hint.clone(),
            Self::TooComplex { .. } => "split the query, or use IN (…) instead of a chain of OR".into(),
            Self::Busy(_) => "retry after a second, or raise query.queries_max".into(),
            Self::Memory { .. } => {
                "filter on time, group by fewer columns, add a LIMIT, or raise query.query_memory_bytes_max".into()
            }
            Self::Timeout { .. } => "filter on time or add a LIMIT, or raise query.query_ms_max".into(),
            Self::TooLarge(_) => "add a LIMIT or page through the rows by time".into(),
            Self::Damaged => "retry: what is left is served; the log of the server names the file and its rows".into(),
            Self::Moved => "retry".into(),
            Self::HistoryUnavailable => {
                "retry; the database or the object store of history is down or refuses: /readyz and the log of the server say more".into()
            }
            Self::Internal => "the log of the server names the cause under this request id".into(),
            _ => String::new(),
        }
    }

    /// The answer at an HTTP door.
    pub fn to_problem(&self) -> Problem {
        Problem::new(self.status(), self.code(), self.to_string()).hint(self.hint())
    }
}

/// The words a message may use: the tables and columns that the tenant sees.
pub(crate) fn from_datafusion(error: &DataFusionError) -> QueryError {
    if let Some(cause) = away(error) {
        tracing::warn!(%cause, "a query could not read the object store");
        return QueryError::HistoryUnavailable;
    }
    // Where arrow stands between, only the text of the error is left. What is not on the local disk is read through the cache.
    let told = error.to_string();
    if told.contains("Generic cache error") {
        tracing::warn!(cause = told, "a query could not read the object store");
        return QueryError::HistoryUnavailable;
    }
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => from_datafusion(inner),
        DataFusionError::Shared(inner) => from_datafusion(inner),
        DataFusionError::Collection(all) => all.first().map_or(QueryError::Internal, from_datafusion),
        DataFusionError::External(inner) => {
            if let Some(ours) = inner.downcast_ref::<QueryError>() {
                return ours.clone();
            }
            if let Some(inner) = inner.downcast_ref::<DataFusionError>() {
                return from_datafusion(inner);
            }
            from_other(&inner.to_string()).unwrap_or_else(|| internal(error))
        }
        DataFusionError::SQL(parser, _) => QueryError::Syntax(clean(&parser.to_string())),
        DataFusionError::SchemaError(schema, _) => from_schema(schema),
        DataFusionError::Plan(message) => from_plan(message),
        DataFusionError::NotImplemented(message) => {
            QueryError::Invalid { message: clean(message), hint: String::new() }
        }
        DataFusionError::Execution(message) | DataFusionError::Configuration(message) => {
            QueryError::Invalid { message: clean(message), hint: String::new() }
        }
        DataFusionError::Internal(message) => from_other(message).unwrap_or_else(|| internal(error)),
        DataFusionError::ArrowError(arrow, _) => from_arrow(arrow, error),
        DataFusionError::ResourcesExhausted(_) => QueryError::Memory { bytes_max: 0 },
        _ => internal(error),
    }
}

/// What an object store that is not the local disk said, when that is why a query failed. A file that is missing is another matter.
fn away<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a object_store::Error> {
    use object_store::Error;
    let causes = std::iter::successors(Some(error), |error| error.source());
    let told = causes.filter_map(|cause| cause.downcast_ref::<Error>()).next()?;
    match told {
        Error::Generic { store: "LocalFileSystem", .. } => None,
        Error::Generic { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Some(told),
        _ => None,
    }
}

fn from_arrow(arrow: &ArrowError, error: &DataFusionError) -> QueryError {
    match arrow {
        ArrowError::CastError(_)
        | ArrowError::ParseError(_)
        | ArrowError::ComputeError(_)
        | ArrowError::DivideByZero
        | ArrowError::ArithmeticOverflow(_)
        | ArrowError::InvalidArgumentError(_)
        | ArrowError::NotYetImplemented(_) => {
            QueryError::Invalid { message: clean(&arrow.to_string()), hint: String::new() }
        }
        ArrowError::ExternalError(inner) => {
            if let Some(ours) = inner.downcast_ref::<QueryError>() {
                return ours.clone();
            }
            let ours = inner.downcast_ref::<DataFusionError>().map(from_datafusion);
            ours.or_else(|| from_other(&inner.to_string())).unwrap_or_else(|| internal(error))
        }
        _ => internal(error),
    }
}

/// Errors of the regex crate, whose type DataFusion hides: they show the pattern and nothing else.
fn from_other(message: &str) -> Option<QueryError> {
    let told = ["regex parse error", "Compiled regex exceeds", "Regular expression did not compile"];
    let of_regex = told.iter().any(|told| message.contains(told));
    of_regex.then(|| QueryError::Invalid { message: clean(message), hint: String::new() })
}

fn from_schema(schema: &SchemaError) -> QueryError {
    match schema {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let hint = nearest(field.name(), valid_fields.iter().map(|valid| valid.name.as_str()))
                .map(|near| format!("did you mean \"{near}\"? Quote names with dots or capitals."))
                .unwrap_or_else(|| "SHOW COLUMNS FROM security_events lists the columns".into());
            QueryError::Invalid { message: format!("there is no column \"{}\"", bounded(field.name())), hint }
        }
        other => QueryError::Invalid { message: clean(&other.to_string()), hint: String::new() },
    }
}

fn from_plan(message: &str) -> QueryError {
    if let Some(rest) = message.strip_prefix("table '") {
        let name = rest.split('\'').next().unwrap_or_default();
        let last = name.rsplit('.').next().unwrap_or_default();
        let hint = nearest(last, Dataset::ALL.iter().map(|dataset| dataset.table_name()))
            .map_or_else(tables, |near| format!("did you mean {near}? {}", tables()));
        return QueryError::Invalid { message: format!("there is no table {}", bounded(last)), hint };
    }
    if message.contains("failed to resolve") {
        return QueryError::Invalid { message: "there is no such schema or catalog".into(), hint: tables() };
    }
    QueryError::Invalid { message: clean(message), hint: String::new() }
}

fn tables() -> String {
    let names: Vec<_> = Dataset::ALL.iter().map(|dataset| dataset.table_name()).collect();
    format!("the tables are {}", names.join(", "))
}

/// Says the cause to the operator, not to the client.
pub(crate) fn internal(error: &dyn std::error::Error) -> QueryError {
    tracing::error!(error = %error, "a query failed inside the server");
    QueryError::Internal
}

fn bounded(text: &str) -> String {
    text.chars().take(128).collect()
}

/// A message of the planner without its decoration, and bounded.
fn clean(message: &str) -> String {
    let message = message.split("\n\nbacktrace").next().unwrap_or_default();
    let message = ["Error during planning: ", "Execution error: ", "sql parser error: "]
        .iter()
        .fold(message, |rest, prefix| rest.strip_prefix(prefix).unwrap_or(rest));
    message.chars().take(1000).collect()
}

/// The candidate nearest to `name` if it is near enough to be meant.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = bounded(name).to_lowercase();
    candidates
        .take(10_000)
        .map(|candidate| (distance(&name, &candidate.to_lowercase()), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= 2.max(name.len() / 3))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance; a candidate whose length is too different is far without being looked at.
fn distance(left: &str, right: &str) -> usize {
    if left.len().abs_diff(right.len()) > left.len() / 2 + 2 || right.len() > 256 {
        return usize::MAX;
    }
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, left) in left.chars().enumerate() {
        let mut diagonal = at;
        row[0] = at + 1;
        for (column, letter) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        let names = ["security_events", "severity", "winlog.event_data.Image"];
        for (asked, near) in [
            ("severty", Some("severity")),
            ("security_event", Some("security_events")),
            ("winlog.event_data.image", Some("winlog.event_data.Image")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(asked, names.into_iter()), near, "{asked}");
        }
    }

    #[test]
    fn what_the_machine_says_is_not_told() {
        let secret = std::io::Error::other("/data/history/other-tenant.parquet: no such file");
        let told = from_datafusion(&DataFusionError::IoError(secret));
        assert_eq!(told, QueryError::Internal);
        assert!(!told.to_problem().to_json("r").contains("parquet"));
    }
}
