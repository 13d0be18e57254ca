//! What is laid over the tables: aggregates for dashboards, compression, retention.
//!
//! | view | a row is |
//! |---|---|
//! | `events_per_minute` | events of a minute by tenant, source, category, severity |
//! | `alerts_per_hour` | alerts of an hour by tenant, rule, level |
//! | `cost_per_day` | cost of a day by tenant, account, service, currency and the whole set of tags |
//! | `cost_per_day_by_tag` | the same, a row for each tag (`key`, `value`): a cost with two tags is in two rows |
//!
//! With the extension the first three are continuous aggregates that go on to the present moment by themselves, and take in rows that
//! come late; on plain
//! PostgreSQL they are materialised views over a stretch of the past that the sink refreshes.

use tidegate_events::Dataset;

use super::config::TimescaleConfig;
use super::ddl::{Layout, chunk_hours, qualified, quoted};

/// What the server can do beyond plain PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension {
    /// The version of TimescaleDB.
    pub version: (u32, u32, u32),
    /// Whether its licence is the community one: builds under Apache 2 alone have no compression, no continuous aggregates
    /// and no policies.
    pub community: bool,
}

/// A view for dashboards.
struct Aggregate {
    name: &'static str,
    dataset: Dataset,
    bucket: &'static str,
    bucket_column: &'static str,
    keys: &'static [&'static str],
    values: &'static str,
    /// How far back the materialised view goes on plain PostgreSQL, where each refresh computes it anew.
    plain_from: &'static str,
    every: &'static str,
}

/// Days that the refresh of a continuous aggregate goes back at least: the extension wants two buckets, beside the last one.
const DAYS_MIN: u32 = 4;

const AGGREGATES: &[Aggregate] = &[
    Aggregate {
        name: "events_per_minute",
        dataset: Dataset::SecurityEvents,
        bucket: "1 minute",
        bucket_column: "minute",
        keys: &["org_id", "source", "category", "severity"],
        values: "count(*) AS events",
        plain_from: "1 day",
        every: "1 minute",
    },
    Aggregate {
        name: "alerts_per_hour",
        dataset: Dataset::Alerts,
        bucket: "1 hour",
        bucket_column: "hour",
        keys: &["org_id", "rule_id", "title", "level"],
        values: "count(*) AS alerts, sum(event_count) AS events",
        plain_from: "90 days",
        every: "5 minutes",
    },
    Aggregate {
        name: "cost_per_day",
        dataset: Dataset::CostEvents,
        bucket: "1 day",
        bucket_column: "day",
        keys: &["org_id", "billing_account_id", "sub_account_id", "service_name", "billing_currency", "tags"],
        values: "md5(tags) AS tags_md5, sum(billed_cost) AS billed_cost, sum(effective_cost) AS effective_cost, \
                 sum(list_cost) AS list_cost, count(*) AS charges",
        plain_from: "400 days",
        every: "30 minutes",
    },
];

/// The second migration: the aggregates.
pub fn aggregates(config: &TimescaleConfig, layout: Layout, extension: Option<Extension>) -> Vec<String> {
    if !config.aggregates {
        return Vec::new();
    }
    let schema = config.schema.as_str();
    let continuous = layout == Layout::Hypertables && extension.is_some_and(|extension| extension.community);
    let mut statements: Vec<String> = AGGREGATES.iter().flat_map(|view| view.create(schema, continuous)).collect();
    let as_json = qualified(schema, "json_or_null");
    statements.push(format!(
        "CREATE FUNCTION {as_json}(text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE STRICT AS \
         $$ BEGIN RETURN CASE jsonb_typeof($1::jsonb) WHEN 'object' THEN $1::jsonb END; EXCEPTION WHEN others THEN RETURN NULL; END $$"
    ));
    statements.push(format!(
        "CREATE VIEW {} AS SELECT day, org_id, billing_account_id, sub_account_id, service_name, billing_currency, \
         tag.key, tag.value, billed_cost, effective_cost, list_cost, charges FROM {}, \
         LATERAL jsonb_each_text({as_json}(tags)) AS tag",
        qualified(schema, "cost_per_day_by_tag"),
        qualified(schema, "cost_per_day")
    ));
    statements
}

impl Aggregate {
    fn create(&self, schema: &str, continuous: bool) -> Vec<String> {
        let (view, table) = (qualified(schema, self.name), qualified(schema, self.dataset.table_name()));
        let Self { bucket, bucket_column, values, .. } = self;
        let keys = self.keys.join(", ");
        let groups: Vec<String> = (1..=self.keys.len() + 1).map(|at| at.to_string()).collect();
        let groups = groups.join(", ");
        if continuous {
            return vec![format!(
                "CREATE MATERIALIZED VIEW {view} WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS \
                 SELECT time_bucket(INTERVAL '{bucket}', \"time\") AS {bucket_column}, {keys}, {values} \
                 FROM {table} GROUP BY {groups} WITH NO DATA"
            )];
        }
        let columns: Vec<&str> = std::iter::once(*bucket_column).chain(self.keys.iter().copied()).collect();
        vec![
            format!(
                "CREATE MATERIALIZED VIEW {view} AS \
                 SELECT date_bin(INTERVAL '{bucket}', \"time\", TIMESTAMPTZ '2000-01-01 00:00:00+00') AS {bucket_column}, \
                 {keys}, {values} FROM {table} WHERE \"time\" > now() - INTERVAL '{from}' GROUP BY {groups}",
                from = self.plain_from
            ),
            // What a refresh beside readers needs. The hash, because a set of tags may be longer than a key may be.
            format!(
                "CREATE UNIQUE INDEX {} ON {view} ({})",
                quoted(&format!("{}_key", self.name)),
                columns.join(", ").replace("tags", "tags_md5")
            ),
        ]
    }
}

impl Aggregate {
    /// The policy of a continuous aggregate: it looks for rows that came late as far back as rows are kept, since below what it has
    /// computed once it shows nothing else. Only what has changed is computed. What was dropped stays in the aggregate: it is out of
    /// its sight.
    fn setting(&self, config: &TimescaleConfig) -> Setting {
        let view = qualified(&config.schema, self.name);
        let Self { bucket, every, .. } = self;
        let days = config.retention.of(self.dataset).filter(|days| *days > 0);
        let from = days.map_or("NULL".to_owned(), |days| format!("INTERVAL '{} days'", days.max(DAYS_MIN)));
        let policies = vec![
            format!("SELECT remove_continuous_aggregate_policy('{view}', if_exists => true)"),
            format!(
                "SELECT add_continuous_aggregate_policy('{view}', start_offset => {from}, end_offset => INTERVAL '{bucket}', \
                 schedule_interval => INTERVAL '{every}')"
            ),
        ];
        Setting { name: self.name, compress: None, policies }
    }
}

/// The refreshes of the materialised views on plain PostgreSQL; their readers go on meanwhile.
pub fn refreshes(schema: &str) -> Vec<String> {
    AGGREGATES
        .iter()
        .map(|view| format!("REFRESH MATERIALIZED VIEW CONCURRENTLY {}", qualified(schema, view.name)))
        .collect()
}

/// What is set for a table or a view, in a transaction of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The table or view, without the schema.
    pub name: &'static str,
    /// Lets chunks of the table be compressed, which keeps everybody else away from it meanwhile; before it, the question that has an
    /// answer where they may be already.
    pub compress: Option<(String, String)>,
    /// The policies, without harm when they are set already.
    pub policies: Vec<String>,
}

impl Setting {
    /// All statements.
    pub fn statements(self) -> Vec<String> {
        self.compress.map(|(_, compress)| compress).into_iter().chain(self.policies).collect()
    }
}

/// What is set anew by each process, because the configuration may have changed: compression, retention, refreshes.
pub fn settings(config: &TimescaleConfig, layout: Layout, extension: Option<Extension>) -> Vec<Setting> {
    let Some(extension) = extension.filter(|extension| layout == Layout::Hypertables && extension.community) else {
        return Vec::new();
    };
    let tables = Dataset::ALL.into_iter().map(|dataset| of_table(config, dataset, extension));
    let views = AGGREGATES.iter().filter(|_| config.aggregates).map(|view| view.setting(config));
    tables.chain(views).collect()
}

fn of_table(config: &TimescaleConfig, dataset: Dataset, extension: Extension) -> Setting {
    let new_names = extension.version >= (2, 18, 0);
    let name = dataset.table_name();
    let table = qualified(&config.schema, name);
    let hours = chunk_hours(config, dataset);
    let remove = if new_names { "CALL remove_columnstore_policy" } else { "SELECT remove_compression_policy" };
    let mut policies = vec![
        format!("SELECT set_chunk_time_interval('{table}', INTERVAL '{hours} hours')"),
        format!("{remove}('{table}', if_exists => true)"),
    ];
    let after = config.compress_after_hours;
    let compress = (after > 0).then(|| {
        let (set, segment, order) = if new_names {
            ("timescaledb.enable_columnstore", "timescaledb.segmentby", "timescaledb.orderby")
        } else {
            ("timescaledb.compress", "timescaledb.compress_segmentby", "timescaledb.compress_orderby")
        };
        policies.push(if new_names {
            format!("CALL add_columnstore_policy('{table}', after => INTERVAL '{after} hours')")
        } else {
            format!("SELECT add_compression_policy('{table}', INTERVAL '{after} hours')")
        });
        let question = format!(
            "SELECT 1 FROM timescaledb_information.hypertables WHERE hypertable_schema = '{}' AND hypertable_name = '{name}' \
             AND compression_enabled",
            config.schema
        );
        let order_by = "\"time\" DESC, log_offset DESC";
        (
            question,
            format!("ALTER TABLE {table} SET ({set} = true, {segment} = 'org_id', {order} = '{order_by}')"),
        )
    });
    policies.push(format!("SELECT remove_retention_policy('{table}', if_exists => true)"));
    if let Some(days) = config.retention.of(dataset).filter(|days| *days > 0) {
        policies.push(format!("SELECT add_retention_policy('{table}', INTERVAL '{days} days')"));
    }
    Setting { name, compress, policies }
}
