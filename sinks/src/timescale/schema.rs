//! Makes the schema what this program expects: migrations under an advisory lock, then a look whether the tables have the
//! columns that rows are written to.

use std::fmt::Write as _;

use deadpool_postgres::Object;
use tidegate_events::Dataset;
use tokio_postgres::SimpleQueryMessage;

use super::config::{ExtensionUse, TimescaleConfig};
use super::connect::{self, step};
use super::ddl::{self, Layout, qualified};
use super::policies::{self, Extension};
use super::{fields, leases};
use crate::error::SinksError;

/// What one server (data folder) has in the schema.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) layout: Layout,
    pub(super) extension: Option<Extension>,
    /// The ids of the ingest log and the output log.
    pub(super) log_ids: [i16; 2],
}

/// The oldest PostgreSQL that this was tried on.
const SERVER_VERSION_MIN: u32 = 150_000;
/// What is locked while the schema is changed: any number that no one else uses.
pub(super) const ADVISORY_LOCK: i64 = 0x7469_6465_6761_7465;
/// (version, name) of the migrations, in order.
const MIGRATIONS: &[(i32, &str)] = &[(1, "tables"), (2, "aggregates"), (3, "fields")];

/// All statements of the schema, as the first start runs them: the command `tidegate timescale ddl`.
pub fn script(config: &TimescaleConfig) -> String {
    let extension = Extension { version: (2, 18, 0), community: true };
    let (layout, extension) = match config.extension {
        ExtensionUse::Auto => (Layout::Hypertables, Some(extension)),
        ExtensionUse::Off => (Layout::Partitions, None),
    };
    let mut script = String::from("-- What a server does at its first start, under an advisory lock.\n");
    if extension.is_some() {
        script.push_str("-- Without the extension: sinks.timescale.extension = \"off\".\n");
        script.push_str("CREATE EXTENSION IF NOT EXISTS timescaledb;\n");
    }
    let mut section = |title: &str, statements: Vec<String>| {
        if !statements.is_empty() {
            let _ = write!(script, "\n-- {title}\n{};\n", statements.join(";\n"));
        }
    };
    section("bootstrap", ddl::bootstrap(&config.schema));
    for (version, name) in MIGRATIONS {
        let mut statements = migration(*version, config, layout, extension);
        statements.push(record(config, (*version, name), extension));
        section(&format!("migration {version}: {name}"), statements);
    }
    section("of the role worker", leases::tables(&config.schema));
    let settings = policies::settings(config, layout, extension);
    section("soon after each start", settings.into_iter().flat_map(policies::Setting::statements).collect());
    script
}

/// Notes that a migration was made.
fn record(config: &TimescaleConfig, (version, name): (i32, &str), extension: Option<Extension>) -> String {
    let with = extension.map_or("NULL", |_| "(SELECT extversion FROM pg_extension WHERE extname = 'timescaledb')");
    let migrations = qualified(&config.schema, "migrations");
    format!(
        "INSERT INTO {migrations} (version, name, server, timescaledb) VALUES \
         ({version}, '{name}', current_setting('server_version'), {with})"
    )
}

fn migration(version: i32, config: &TimescaleConfig, layout: Layout, extension: Option<Extension>) -> Vec<String> {
    match version {
        1 => ddl::tables(config, layout),
        2 => policies::aggregates(config, layout, extension),
        _ => fields::table(&config.schema),
    }
}

/// What a server would find, without a change to anything: versions, and whether the tables are there or can be made.
///
/// # Errors
/// [`SinksError::Invalid`] for the configuration, [`SinksError::Database`] with what to do otherwise.
pub async fn survey(config: &TimescaleConfig) -> Result<String, SinksError> {
    config.check()?;
    let client = connect::get(&connect::pool(config, 1)?, config).await?;
    let number = check_version(&client, config).await?;
    let installed = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'";
    let extension = one(&client, config, "look for the extension", installed).await?;
    let with = extension.map_or("without TimescaleDB".to_owned(), |version| format!("TimescaleDB {version}"));
    let schema = &config.schema;
    let exists = format!("SELECT to_regclass('{}')::text", qualified(schema, "migrations"));
    let state = if one(&client, config, "look for the schema", &exists).await?.is_some() {
        verify(&client, config).await?;
        "is in order"
    } else {
        let may = "SELECT 1 WHERE has_database_privilege(current_database(), 'CREATE')";
        if one(&client, config, "ask for rights", may).await?.is_none() {
            let reason = "the user may not make the schema: GRANT CREATE ON DATABASE … for the first start".to_owned();
            return Err(SinksError::Database { reason });
        }
        "will be made"
    };
    Ok(format!("PostgreSQL {}.{}, {with}, the schema {schema:?} {state}", number / 10_000, number % 10_000))
}

/// The number of the server's version, when it is new enough.
async fn check_version(client: &Object, config: &TimescaleConfig) -> Result<u32, SinksError> {
    let version = one(client, config, "ask for the version", "SHOW server_version_num").await?.unwrap_or_default();
    match version.parse() {
        Ok(number) if number >= SERVER_VERSION_MIN => Ok(number),
        _ => Err(SinksError::Database { reason: format!("PostgreSQL 15 or later is needed, found {version}") }),
    }
}

/// Migrates the schema as far as it is not yet, and registers this server's logs.
///
/// # Errors
/// [`SinksError::Database`], with what the server said and what to do.
pub(super) async fn prepare(client: &Object, config: &TimescaleConfig, origin: &str) -> Result<Found, SinksError> {
    check_version(client, config).await?;
    let extension = match config.extension {
        ExtensionUse::Auto => probe(client, config).await?,
        ExtensionUse::Off => None,
    };
    step(config, "begin the migration", client.batch_execute("BEGIN")).await?;
    // Another server that starts may be migrating: it is waited for, not given up after the session's lock timeout.
    // But no longer than this program waits, and not for anything else: whoever comes after a waiting change of a table waits too.
    let lock = format!(
        "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = {}; SELECT pg_advisory_xact_lock({ADVISORY_LOCK}); \
         SET LOCAL lock_timeout = {}",
        config.statement_ms_max,
        connect::lock_ms(config)
    );
    step(config, "wait for another migration", client.batch_execute(&lock)).await?;
    let found = migrate(client, config, origin, extension).await;
    let end = if found.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = step(config, "end the migration", client.batch_execute(end)).await;
    let found = found?;
    ended?;
    verify(client, config).await?;
    Ok(found)
}

async fn migrate(
    client: &Object,
    config: &TimescaleConfig,
    origin: &str,
    extension: Option<Extension>,
) -> Result<Found, SinksError> {
    let schema = config.schema.as_str();
    let migrations = qualified(schema, "migrations");
    let exists = format!("SELECT to_regclass('{migrations}')::text");
    if one(client, config, "look for the schema", &exists).await?.is_none() {
        run(client, config, "make the schema", &ddl::bootstrap(schema)).await?;
    }
    let done = format!("SELECT coalesce(max(version), 0) FROM {migrations}");
    let done = one(client, config, "read the migrations", &done).await?;
    let done: i32 = done.and_then(|text| text.parse().ok()).unwrap_or_default();
    let newest = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    if done > newest {
        let reason =
            format!("the schema {schema:?} is of a newer tidegate (migration {done}, this one knows {newest})");
        return Err(SinksError::Database { reason });
    }
    let layout = layout(client, config, done, extension).await?;
    for (version, name) in MIGRATIONS.iter().filter(|(version, _)| *version > done) {
        let statements = migration(*version, config, layout, extension);
        run(client, config, &format!("migration {version} ({name})"), &statements).await?;
        run(client, config, "record the migration", &[record(config, (*version, name), extension)]).await?;
        tracing::info!(version, name, schema, ?layout, "the schema of the database was migrated");
    }
    let log_ids = register(client, config, origin).await?;
    Ok(Found { layout, extension, log_ids })
}

/// How the tables are laid out: as they were made, or as they will be.
async fn layout(
    client: &Object,
    config: &TimescaleConfig,
    done: i32,
    extension: Option<Extension>,
) -> Result<Layout, SinksError> {
    if done == 0 {
        return Ok(if extension.is_some() { Layout::Hypertables } else { Layout::Partitions });
    }
    let table = qualified(&config.schema, Dataset::SecurityEvents.table_name());
    let kind = format!("SELECT relkind::text FROM pg_class WHERE oid = to_regclass('{table}')");
    match one(client, config, "look at the tables", &kind).await?.as_deref() {
        Some("p") => Ok(Layout::Partitions),
        Some(_) => Ok(Layout::Hypertables),
        None => Err(SinksError::Database {
            reason: format!(
                "the table {table} is gone although the schema was migrated: restore it from a backup; or drop the whole \
                 schema, and it is made anew and empty"
            ),
        }),
    }
}

/// Gives the two logs of this server their ids, once.
async fn register(client: &Object, config: &TimescaleConfig, origin: &str) -> Result<[i16; 2], SinksError> {
    let logs = qualified(&config.schema, "logs");
    let mut ids = [0; 2];
    for (id, log) in ids.iter_mut().zip(["ingest", "output"]) {
        let known = format!("SELECT log_id FROM {logs} WHERE origin = '{origin}' AND log = '{log}'");
        let add = format!(
            "INSERT INTO {logs} (log_id, origin, log) SELECT coalesce(max(log_id), 0) + 1, '{origin}', '{log}' FROM {logs} \
             RETURNING log_id"
        );
        let found = match one(client, config, "look for the log", &known).await? {
            Some(found) => Some(found),
            None => one(client, config, "register the log", &add).await?,
        };
        *id = found.and_then(|text| text.parse().ok()).unwrap_or_default();
    }
    Ok(ids)
}

/// Looks for the extension, and makes it when that is allowed.
async fn probe(client: &Object, config: &TimescaleConfig) -> Result<Option<Extension>, SinksError> {
    let installed = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'";
    let mut version = one(client, config, "look for the extension", installed).await?;
    if version.is_none() {
        let offered = "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'";
        if one(client, config, "look for the extension", offered).await?.is_none() {
            return Ok(None);
        }
        // To make it where it is not loaded ends the connection.
        let loaded = "SELECT current_setting('timescaledb.max_background_workers', true)";
        if one(client, config, "look whether the extension is loaded", loaded).await?.is_none() {
            tracing::warn!(
                "the server has TimescaleDB, but does not load it: plain tables are used, for good; add timescaledb to \
                 shared_preload_libraries and restart the server before the first start"
            );
            return Ok(None);
        }
        let make = "CREATE EXTENSION IF NOT EXISTS timescaledb";
        if let Err(error) = step(config, "make the extension", client.batch_execute(make)).await {
            tracing::warn!(
                error = %error,
                "the server has TimescaleDB, but it is not made in this database and this user may not: plain tables are \
                 used, for good; a superuser can run CREATE EXTENSION timescaledb before the first start"
            );
            return Ok(None);
        }
        version = one(client, config, "look for the extension", installed).await?;
    }
    let license =
        one(client, config, "ask for the licence", "SELECT current_setting('timescaledb.license', true)").await?;
    let community = license.as_deref() == Some("timescale");
    if !community {
        tracing::warn!(
            "this TimescaleDB is a build under Apache 2 alone: no compression, and materialised views instead of continuous \
             aggregates; retention is done by tidegate"
        );
    }
    let version = version.unwrap_or_default();
    let mut numbers = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    Ok(Some(Extension { version: (next(), next(), next()), community }))
}

/// Whether the tables have the columns that rows are written to, with room for rows that lack them, and none that these rows leave
/// out and must not.
///
/// # Errors
/// [`SinksError::Database`], which names the first column that is not as it should be.
pub(super) async fn verify(client: &Object, config: &TimescaleConfig) -> Result<(), SinksError> {
    for dataset in Dataset::ALL {
        let name = dataset.table_name();
        // Rows of odd times are in the second.
        for table in [qualified(&config.schema, name), qualified(&config.schema, &format!("{name}_default"))] {
            let query = format!(
                "SELECT attname, format_type(atttypid, NULL), attnotnull::int, atthasdef::int FROM pg_attribute \
                 WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped"
            );
            let found = rows(client, config, "look at the columns", &query).await?;
            if let Some(wrong) = wrong_column(dataset, &table, &found) {
                let reason = format!("{wrong}: make it as `tidegate timescale ddl` has it; it goes on by itself");
                return Err(SinksError::Database { reason });
            }
        }
    }
    Ok(())
}

/// What is wrong with a table of these columns: name, type, whether it is required, whether it has a default.
fn wrong_column(dataset: Dataset, table: &str, found: &[Vec<String>]) -> Option<String> {
    if found.is_empty() {
        return Some(format!("the table {table} is gone"));
    }
    let schema = dataset.core_schema();
    let mut expected: Vec<(&str, &str)> = schema
        .fields()
        .iter()
        .map(|field| (field.name().as_str(), sql_name(ddl::column_type(field.data_type()))))
        .collect();
    expected.extend([(ddl::ATTRIBUTES, "jsonb"), (ddl::LOG_ID, "smallint"), (ddl::LOG_OFFSET, "bigint")]);
    let type_of = |name: &str| found.iter().find(|row| row[0] == name).map(|row| row[1].as_str());
    if let Some((name, kind)) = expected.iter().find(|(name, kind)| type_of(name) != Some(kind)) {
        let found = type_of(name).unwrap_or("gone");
        return Some(format!("column {name:?} of {table} is {found}, not {kind}"));
    }
    found.iter().filter(|row| row[2] == "1" && !ddl::REQUIRED.contains(&row[0].as_str())).find_map(|row| {
        let (name, known) = (&row[0], expected.iter().any(|(name, _)| *name == row[0]));
        match (known, row[3] == "1") {
            (true, _) => Some(format!("column {name:?} of {table} is NOT NULL, and not every row has it")),
            (false, false) => {
                Some(format!("column {name:?} of {table} is NOT NULL and has no default, and no row brings it"))
            }
            (false, true) => None,
        }
    })
}

/// The name that PostgreSQL shows for a type.
fn sql_name(column_type: &'static str) -> &'static str {
    match column_type {
        "timestamptz" => "timestamp with time zone",
        "int4" => "integer",
        "int8" => "bigint",
        "float8" => "double precision",
        "bool" => "boolean",
        other => other,
    }
}

pub(super) async fn run(
    client: &Object,
    config: &TimescaleConfig,
    doing: &str,
    statements: &[String],
) -> Result<(), SinksError> {
    for statement in statements {
        step(config, doing, client.batch_execute(statement)).await.map_err(of_no_row)?;
    }
    Ok(())
}

/// What was asked has no rows of ours in it, so none of them is the reason.
fn of_no_row(error: SinksError) -> SinksError {
    match error {
        SinksError::Refused { reason, .. } => SinksError::Database { reason },
        other => other,
    }
}

/// The rows of a query, as text; null as the empty text.
pub(super) async fn rows(
    client: &Object,
    config: &TimescaleConfig,
    doing: &str,
    query: &str,
) -> Result<Vec<Vec<String>>, SinksError> {
    let messages = step(config, doing, client.simple_query(query)).await.map_err(of_no_row)?;
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// The first column of the first row; `None` when it is null or there is none.
async fn one(
    client: &Object,
    config: &TimescaleConfig,
    doing: &str,
    query: &str,
) -> Result<Option<String>, SinksError> {
    let messages = step(config, doing, client.simple_query(query)).await.map_err(of_no_row)?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
