//! Stretches of event time: which partitions (chunks) there are, and where rows of other times go.
//!
//! The time of an event is what its sender says. Rows of a stretch without a partition get one made, as long as the table has
//! fewer than `chunks_max`; stretches near the present always get one. All other rows go to `<table>_default`: the default
//! partition on plain PostgreSQL, a plain table beside the hypertable (which has no such thing) with the extension. So a
//! sender of nonsense costs neither its neighbours nor the database, and no row is without a place.
//!
//! A new partition is attached while nobody else uses the default one. A long query of the whole table does: rows of other days
//! than the present go to the default partition then, rather than that all rows wait for that query.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use chrono::DateTime;
use deadpool_postgres::Object;
use tidegate_events::Dataset;

use super::config::TimescaleConfig;
use super::connect::step;
use super::ddl::{Layout, chunk_hours, qualified, quoted};
use super::schema::rows;
use crate::error::SinksError;

/// Stretches this near to the present always get a partition.
const NEAR_US: i64 = 32 * 24 * HOUR_US;
const HOUR_US: i64 = 3_600_000_000;
/// Stretches this near to the present are waited for while somebody holds the table.
const PRESENT_US: i64 = 24 * HOUR_US;
/// How long a change of a table waits for those who use it, in milliseconds: all others wait behind it meanwhile.
pub(super) const CHANGE_MS_MAX: u64 = 1_000;
/// Stretches that are remembered as belonging to the default partition; past this many they are looked at again.
const REFUSED_MAX: usize = 10_000;
/// Times beyond these have no partition of their own: the years 1 to 9999.
const TIMES: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// The stretches of all tables that are known to have a partition.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    tables: BTreeMap<Dataset, Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Start → end (µs), not overlapping.
    known: BTreeMap<i64, i64>,
    /// Starts whose rows stay in the default partition.
    refused: BTreeSet<i64>,
}

impl Table {
    /// The stretch that holds this time.
    fn holding(&self, time: i64) -> Option<(i64, i64)> {
        let (start, end) = self.known.range(..=time).next_back()?;
        (time < *end).then_some((*start, *end))
    }

    /// The stretch that would be made for this time: of the configured width, cut where neighbours begin.
    fn fitting(&self, time: i64, hours: u32) -> (i64, i64) {
        let width = i64::from(hours) * HOUR_US;
        let start = time.div_euclid(width) * width;
        let before = self.known.range(..=time).next_back().map_or(i64::MIN, |(_, end)| *end);
        let after = self.known.range(time..).next().map_or(i64::MAX, |(start, _)| *start);
        (start.max(before), start.saturating_add(width).min(after))
    }
}

impl Chunks {
    /// Takes over what the database has.
    pub(super) async fn load(client: &Object, config: &TimescaleConfig, layout: Layout) -> Result<Self, SinksError> {
        let mut chunks = Self::default();
        for dataset in Dataset::ALL {
            let found = rows(client, config, "list the partitions", &listing(config, dataset, layout)).await?;
            let bound = |row: &Vec<String>, at: usize| row.get(at).and_then(|text| text.parse::<i64>().ok());
            let known = found.iter().filter_map(|row| Some((bound(row, 0)?, bound(row, 1)?))).collect();
            chunks.tables.insert(dataset, Table { known, refused: BTreeSet::new() });
        }
        Ok(chunks)
    }

    /// The stretches that these rows need and that are not there, as far as they may be made.
    pub(super) fn missing(
        &mut self,
        config: &TimescaleConfig,
        dataset: Dataset,
        batches: &[&RecordBatch],
        now_us: i64,
    ) -> Vec<(i64, i64)> {
        let hours = chunk_hours(config, dataset);
        let table = self.tables.entry(dataset).or_default();
        let mut missing: BTreeMap<i64, i64> = BTreeMap::new();
        let mut current = (1, 0);
        for time in batches.iter().flat_map(|batch| times(batch)) {
            if (current.0..current.1).contains(&time) || !TIMES.contains(&time) {
                continue;
            }
            if let Some(holding) = table.holding(time) {
                current = holding;
                continue;
            }
            let (start, end) = table.fitting(time, hours);
            current = (start, end);
            let room = table.known.len() + missing.len() < config.chunks_max;
            let near = (time - now_us).abs() < NEAR_US;
            if (room || near) && !table.refused.contains(&start) {
                missing.insert(start, end);
            }
        }
        missing.into_iter().collect()
    }

    pub(super) fn add(&mut self, dataset: Dataset, (start, end): (i64, i64)) {
        self.tables.entry(dataset).or_default().known.insert(start, end);
    }

    /// The stretches of these times that are not there, however many there are already.
    pub(super) fn ahead(
        &self,
        config: &TimescaleConfig,
        dataset: Dataset,
        wanted: impl Iterator<Item = i64>,
    ) -> Vec<(i64, i64)> {
        let Some(table) = self.tables.get(&dataset) else { return Vec::new() };
        let hours = chunk_hours(config, dataset);
        let missing = wanted.filter(|time| table.holding(*time).is_none()).map(|time| table.fitting(time, hours));
        missing.filter(|(start, _)| !table.refused.contains(start)).collect()
    }

    /// Takes note that the stretches that end before this time are gone.
    pub(super) fn forget_before(&mut self, dataset: Dataset, time: i64) {
        self.tables.entry(dataset).or_default().known.retain(|_, end| *end > time);
    }

    fn refuse(&mut self, dataset: Dataset, start: i64) {
        let refused = &mut self.tables.entry(dataset).or_default().refused;
        if refused.len() >= REFUSED_MAX {
            refused.clear();
        }
        refused.insert(start);
    }

    /// Which rows have no stretch; `None` when all have one.
    pub(super) fn strays(&self, dataset: Dataset, batch: &RecordBatch) -> Option<Vec<bool>> {
        let table = self.tables.get(&dataset)?;
        let mut current = (1, 0);
        let mut stray = |time: i64| {
            if !(current.0..current.1).contains(&time) {
                match table.holding(time) {
                    Some(holding) => current = holding,
                    None => return true,
                }
            }
            false
        };
        let strays: Vec<bool> = times(batch).map(&mut stray).collect();
        strays.contains(&true).then_some(strays)
    }
}

/// The times of a batch; a row without one counts as 1970.
fn times(batch: &RecordBatch) -> impl Iterator<Item = i64> {
    let column = batch.column_by_name(Dataset::TIME);
    let column = column.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let rows = column.map_or(0, Array::len);
    (0..rows).map(move |row| column.filter(|column| column.is_valid(row)).map_or(0, |column| column.value(row)))
}

fn listing(config: &TimescaleConfig, dataset: Dataset, layout: Layout) -> String {
    let (schema, name) = (config.schema.as_str(), dataset.table_name());
    let micros = |what: &str| format!("(extract(epoch FROM {what}) * 1000000)::int8");
    match layout {
        Layout::Hypertables => format!(
            "SELECT {}, {} FROM timescaledb_information.chunks WHERE hypertable_schema = '{schema}' AND \
             hypertable_name = '{name}'",
            micros("range_start"),
            micros("range_end")
        ),
        Layout::Partitions => {
            let bound = |word: &str| micros(&format!("substring(bound FROM '{word} \\(''([^'']+)''\\)')::timestamptz"));
            format!(
                "SELECT {}, {} FROM (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound FROM pg_inherits i \
                 JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass('{}')) AS parts \
                 WHERE bound LIKE 'FOR VALUES FROM (''%'",
                bound("FROM"),
                bound("TO"),
                qualified(schema, name)
            )
        }
    }
}

/// Makes the partitions of stretches that rows have come for. What cannot be made because somebody holds the table is left to the
/// default partition, but for the present, whose partitions are made ahead of time.
///
/// # Errors
/// As [`make`].
pub(super) async fn make_all(
    client: &Object,
    config: &TimescaleConfig,
    chunks: &parking_lot::Mutex<Chunks>,
    (dataset, missing): (Dataset, Vec<(i64, i64)>),
    now_us: i64,
) -> Result<(), SinksError> {
    let mut held = false;
    for (start, end) in missing {
        let present = start < now_us.saturating_add(PRESENT_US) && end > now_us.saturating_sub(PRESENT_US);
        if held && !present {
            chunks.lock().refuse(dataset, start);
            continue;
        }
        match make(client, config, chunks, dataset, (start, end)).await {
            Err(SinksError::Locked { reason }) if !present => {
                tracing::warn!(reason, "the table is in use: rows of days without a partition go to the default one");
                chunks.lock().refuse(dataset, start);
                held = true;
            }
            made => {
                made?;
            }
        }
    }
    Ok(())
}

/// Makes the partition of a stretch; whether it is there now. A stretch that the default partition has rows of stays there.
pub(super) async fn make(
    client: &Object,
    config: &TimescaleConfig,
    chunks: &parking_lot::Mutex<Chunks>,
    dataset: Dataset,
    (start, end): (i64, i64),
) -> Result<bool, SinksError> {
    let (Some(from), Some(to)) = (DateTime::from_timestamp_micros(start), DateTime::from_timestamp_micros(end)) else {
        return Ok(false);
    };
    let (schema, name) = (config.schema.as_str(), dataset.table_name());
    let part = qualified(schema, &format!("{name}_{}", from.format("%Y%m%d%H")));
    let table = qualified(schema, name);
    // Attached rather than made in place: that would keep readers of the whole table out. The statements are one transaction.
    let make = format!(
        "SET LOCAL lock_timeout = {CHANGE_MS_MAX}; \
         CREATE TABLE IF NOT EXISTS {part} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS); \
         ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES FROM ('{}') TO ('{}')",
        from.format("%Y-%m-%d %H:%M:%S%.6f+00"),
        to.format("%Y-%m-%d %H:%M:%S%.6f+00")
    );
    match step(config, &format!("make the partition {part}"), client.batch_execute(&make)).await {
        Ok(()) => {
            chunks.lock().add(dataset, (start, end));
            Ok(true)
        }
        Err(SinksError::Refused { reason, .. }) => {
            tracing::warn!(part, reason, "the default partition has rows of this stretch: more of them go there");
            chunks.lock().refuse(dataset, start);
            Ok(false)
        }
        Err(error) => {
            // Someone else may have made it in the meantime.
            let found =
                rows(client, config, "list the partitions", &listing(config, dataset, Layout::Partitions)).await?;
            let there = found.iter().any(|row| row.first().is_some_and(|text| *text == start.to_string()));
            if there {
                chunks.lock().add(dataset, (start, end));
                return Ok(true);
            }
            Err(error)
        }
    }
}

/// Drops the partitions that end before `before_us` (unless a policy of the extension does), and rows of that age from the
/// default partition; how many partitions.
pub(super) async fn drop_before(
    client: &Object,
    config: &TimescaleConfig,
    (dataset, layout): (Dataset, Layout),
    before_us: i64,
    by_policy: bool,
) -> Result<usize, SinksError> {
    let Some(before) = DateTime::from_timestamp_micros(before_us) else { return Ok(0) };
    let before = before.format("%Y-%m-%d %H:%M:%S%.6f+00");
    let (schema, name) = (config.schema.as_str(), dataset.table_name());
    let dropped = if by_policy {
        0
    } else if layout == Layout::Hypertables {
        let table = qualified(schema, name);
        let drop = format!("SELECT drop_chunks('{table}', older_than => TIMESTAMPTZ '{before}')");
        rows(client, config, "drop old chunks", &drop).await?.len()
    } else {
        let list = format!(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass('{}') \
             AND pg_get_expr(c.relpartbound, c.oid) LIKE 'FOR VALUES FROM (''%' \
             AND substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''([^'']+)''\\)')::timestamptz <= '{before}'",
            qualified(schema, name)
        );
        let old = rows(client, config, "list old partitions", &list).await?;
        for part in old.iter().filter_map(|row| row.first()) {
            let drop = format!("DROP TABLE {}.{}", quoted(schema), quoted(part));
            step(config, &format!("drop the partition {part}"), client.batch_execute(&drop)).await?;
        }
        old.len()
    };
    let default = qualified(schema, &format!("{name}_default"));
    let delete = format!("DELETE FROM {default} WHERE \"time\" < '{before}'");
    step(config, "delete old rows", client.batch_execute(&delete)).await?;
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_stretch_has_the_configured_width_and_is_cut_by_its_neighbours() {
        let mut table = Table::default();
        let day = 24 * HOUR_US;
        assert_eq!(table.fitting(day + 5, 24), (day, 2 * day));
        assert_eq!(table.fitting(-5, 24), (-day, 0));
        table.known.extend([(0, day), (day + 6 * HOUR_US, day + 7 * HOUR_US)]);
        assert_eq!(table.holding(day - 1), Some((0, day)));
        assert_eq!(table.holding(day), None);
        assert_eq!(table.fitting(day + HOUR_US, 24), (day, day + 6 * HOUR_US));
        assert_eq!(table.fitting(day + 7 * HOUR_US, 24), (day + 7 * HOUR_US, 2 * day));
        assert_eq!(table.fitting(day + HOUR_US, 48), (day, day + 6 * HOUR_US));
    }
}
