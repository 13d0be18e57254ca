//! The tables: one for each dataset, with its core columns by name and type, then
//!
//! - `attributes jsonb`: the row's own fields by their dotted names (`{"userIdentity.type": "Root", "tags": ["a", null]}`),
//!   `raw.*` among them; what had no column of its own stands parsed under `_rest`; SQL null when there is none,
//! - `log_id smallint`, `log_offset bigint`: where the row stands in which log. The pair is unique; nothing enforces it but
//!   the cursors.
//!
//! Rows whose time is far away, past the bound of partitions, stand in `<table>_default`. On plain PostgreSQL that is a
//! partition of the table; a hypertable has no such thing, so there it is a table beside it with the same columns, which who
//! wants all rows reads as well.
//!
//! Beside them are three small tables: `migrations` (what was run); `logs`: which log (`ingest`, `output`) of which server
//! (`origin`, an id of its data folder) has which `log_id`, 1 and 2 for the first server; and `cursors`: a row for each lane
//! (connection) of each log, `next_offset` being the offset below which that lane's rows are
//! in the tables. A log is complete below the smallest `next_offset` of its lanes. Above it there may be rows of lanes that
//! are ahead: a reader that wants a clean cut reads `log_offset < min(next_offset)` of each `log_id`.

use std::fmt::Write as _;

use arrow::datatypes::DataType;
use tidegate_events::Dataset;

use super::config::TimescaleConfig;

/// The own fields of a row.
pub const ATTRIBUTES: &str = "attributes";
/// Which log the row is from: a row of the table `logs`.
pub const LOG_ID: &str = "log_id";
/// The row's offset there.
pub const LOG_OFFSET: &str = "log_offset";

/// The columns that each row has.
pub const REQUIRED: [&str; 4] = [Dataset::TIME, Dataset::ORG_ID, LOG_ID, LOG_OFFSET];

/// How the tables are laid out by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Native range partitions: plain PostgreSQL.
    Partitions,
    /// Hypertables of the TimescaleDB extension.
    Hypertables,
}

/// The PostgreSQL type of a core column.
pub fn column_type(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Timestamp(..) => "timestamptz",
        DataType::Int32 => "int4",
        DataType::Int64 => "int8",
        DataType::Decimal128(..) => "numeric",
        DataType::Float64 => "float8",
        DataType::Boolean => "bool",
        DataType::List(_) => "text[]",
        _ => "text",
    }
}

/// A name as SQL writes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"schema"."table"`.
pub fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(table))
}

/// Hours of event time in one partition or chunk of a dataset's table.
pub fn chunk_hours(config: &TimescaleConfig, dataset: Dataset) -> u32 {
    if dataset == Dataset::SecurityEvents { config.security_chunk_hours } else { config.other_chunk_hours }
}

/// What must be there before anything else: the schema and the record of migrations.
pub fn bootstrap(schema: &str) -> Vec<String> {
    vec![
        format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(schema)),
        format!(
            "CREATE TABLE IF NOT EXISTS {} (version int4 PRIMARY KEY, name text NOT NULL, \
             applied timestamptz NOT NULL DEFAULT now(), server text NOT NULL, timescaledb text)",
            qualified(schema, "migrations")
        ),
    ]
}

/// The first migration: the tables of the datasets, the logs and the cursors.
pub fn tables(config: &TimescaleConfig, layout: Layout) -> Vec<String> {
    let schema = config.schema.as_str();
    let mut statements = vec![
        format!(
            "CREATE TABLE {} (log_id int2 PRIMARY KEY, origin uuid NOT NULL, log text NOT NULL, \
             since timestamptz NOT NULL DEFAULT now(), UNIQUE (origin, log))",
            qualified(schema, "logs")
        ),
        format!(
            "CREATE TABLE {} (log_id int2 NOT NULL REFERENCES {}, lane int4 NOT NULL, next_offset int8 NOT NULL, \
             updated timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (log_id, lane)) WITH (fillfactor = 50)",
            qualified(schema, "cursors"),
            qualified(schema, "logs")
        ),
    ];
    for dataset in Dataset::ALL {
        statements.extend(table(config, dataset, layout));
    }
    statements
}

fn table(config: &TimescaleConfig, dataset: Dataset, layout: Layout) -> Vec<String> {
    let (schema, name) = (config.schema.as_str(), dataset.table_name());
    let table = qualified(schema, name);
    let mut columns = String::new();
    for field in dataset.core_schema().fields() {
        let suffix = if REQUIRED.contains(&field.name().as_str()) { " NOT NULL" } else { "" };
        let _ = write!(columns, "\n  {} {}{suffix},", quoted(field.name()), column_type(field.data_type()));
    }
    let partitioned = if layout == Layout::Partitions { " PARTITION BY RANGE (\"time\")" } else { "" };
    let mut statements = vec![format!(
        "CREATE TABLE {table} ({columns}\n  {ATTRIBUTES} jsonb,\n  {LOG_ID} int2 NOT NULL,\n  {LOG_OFFSET} int8 NOT NULL\n){partitioned}"
    )];
    let default = qualified(schema, &format!("{name}_default"));
    match layout {
        Layout::Partitions => statements.push(format!("CREATE TABLE {default} PARTITION OF {table} DEFAULT")),
        Layout::Hypertables => statements.extend([
            format!("CREATE TABLE {default} (LIKE {table} INCLUDING DEFAULTS)"),
            format!(
                "SELECT create_hypertable('{table}', 'time', chunk_time_interval => INTERVAL '{} hours', \
                 create_default_indexes => false)",
                chunk_hours(config, dataset)
            ),
        ]),
    }
    statements
        .push(format!("CREATE INDEX {} ON {table} (org_id, \"time\" DESC)", quoted(&format!("{name}_org_id_time"))));
    if config.attributes_index {
        let index = quoted(&format!("{name}_attributes"));
        statements.push(format!("CREATE INDEX {index} ON {table} USING gin ({ATTRIBUTES} jsonb_path_ops)"));
    }
    statements
}
