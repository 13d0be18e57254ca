//! Which files to compact: a pure function of what the manifest says.
//!
//! Files below half the target size count. In this order:
//!
//! 1. *Small* files (fewer rows than an hour needs for a file of its own), of whatever time, by size tier: as soon as
//!    `compact_files_min` of one tier are there. What comes out is split by hour and day where rows suffice.
//! 2. Files of one hour (or else one day, or else a longer time) and tenant, by size tier, likewise.
//! 3. What is left of an hour, then of a day, once it is *settled*: it lies `settle_hours` back and had no new file for as
//!    long.
//!
//! Every merge leaves fewer files below half the target size than it took, so it comes to an end; and a row is rewritten
//! about once a tier.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_events::Dataset;

use super::config::{HOUR_US, ParquetConfig};
use super::layout::{day_of, hour_of};
use super::manifest::FileMeta;

/// The time that a file keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bucket {
    /// Fewer rows than an hour needs.
    Small,
    Hour(i64),
    Day(i64),
    Longer,
}

type Group<'a> = (Dataset, Option<&'a str>, Bucket);

/// The files to merge next, at least two, or none.
pub(crate) fn pick(files: &[Arc<FileMeta>], config: &ParquetConfig, now_us: i64) -> Vec<Arc<FileMeta>> {
    let mut tenants: BTreeMap<Dataset, Option<&str>> = BTreeMap::new();
    for file in files {
        let only = (file.org_min == file.org_max).then_some(file.org_min.as_str());
        tenants
            .entry(file.dataset)
            .and_modify(|tenant| *tenant = tenant.filter(|org| Some(*org) == only))
            .or_insert(only);
    }
    let open: Vec<&Arc<FileMeta>> =
        files.iter().filter(|file| file.bytes < config.target_file_bytes.div_ceil(2)).collect();
    let tenant_of = |file: &'_ FileMeta| -> Option<String> {
        let alone = tenants.get(&file.dataset).is_some_and(Option::is_some);
        let own = file.org_min == file.org_max && file.rows > config.tenant_rows_min as u64 && !alone;
        own.then(|| file.org_min.clone())
    };
    let owners: Vec<Option<String>> = open.iter().map(|file| tenant_of(file)).collect();
    let mut tiers: BTreeMap<(Group<'_>, u32), Vec<&Arc<FileMeta>>> = BTreeMap::new();
    let mut hours: BTreeMap<Group<'_>, Vec<&Arc<FileMeta>>> = BTreeMap::new();
    let mut days: BTreeMap<Group<'_>, Vec<&Arc<FileMeta>>> = BTreeMap::new();
    for (file, owner) in open.iter().zip(&owners) {
        let bucket = bucket_of(file, config);
        let group = (file.dataset, owner.as_deref(), bucket);
        tiers.entry((group, tier_of(file.bytes))).or_default().push(file);
        let day = match bucket {
            Bucket::Hour(hour) => {
                hours.entry(group).or_default().push(file);
                hour.div_euclid(24)
            }
            Bucket::Day(day) => day,
            Bucket::Small | Bucket::Longer => continue,
        };
        days.entry((group.0, group.1, Bucket::Day(day))).or_default().push(file);
    }
    let full_tier = tiers.into_values().find(|group| group.len() >= config.compact_files_min);
    let settle_us = i64::from(config.settle_hours).saturating_mul(HOUR_US);
    let settled = |group: &Group<'_>, files: &[&Arc<FileMeta>]| {
        let end = match group.2 {
            Bucket::Hour(hour) => hour.saturating_add(1).saturating_mul(HOUR_US),
            Bucket::Day(day) => day.saturating_add(1).saturating_mul(24 * HOUR_US),
            Bucket::Small | Bucket::Longer => i64::MAX,
        };
        let written = files.iter().map(|file| file.created_us).max().unwrap_or(i64::MAX);
        files.len() >= 2 && end.max(written) <= now_us.saturating_sub(settle_us)
    };
    let mut rests = hours.into_iter().chain(days);
    let chosen = full_tier.or_else(|| rests.find(|(group, files)| settled(group, files)).map(|(_, files)| files));
    bounded(chosen.unwrap_or_default(), config)
}

fn bucket_of(file: &FileMeta, config: &ParquetConfig) -> Bucket {
    if file.rows < config.file_rows_min as u64 {
        Bucket::Small
    } else if hour_of(file.time_min) == hour_of(file.time_max) {
        Bucket::Hour(hour_of(file.time_min))
    } else if day_of(file.time_min) == day_of(file.time_max) {
        Bucket::Day(day_of(file.time_min))
    } else {
        Bucket::Longer
    }
}

/// Files of one tier differ in size by less than eight times.
fn tier_of(bytes: u64) -> u32 {
    (bytes >> 12).checked_ilog2().map_or(0, |log| 1 + log / 3)
}

/// The oldest of the files, within the bounds.
fn bounded(mut files: Vec<&Arc<FileMeta>>, config: &ParquetConfig) -> Vec<Arc<FileMeta>> {
    files.sort_unstable_by_key(|file| (file.time_min, file.id));
    let (mut bytes, mut rows) = (0, 0);
    let mut taken: Vec<Arc<FileMeta>> = Vec::new();
    for file in files {
        bytes += file.bytes;
        rows += file.rows;
        let large = bytes > config.compact_bytes_max || rows > config.compact_rows_max;
        if taken.len() == config.compact_files_max || (taken.len() >= 2 && large) {
            break;
        }
        taken.push(file.clone());
    }
    if taken.len() < 2 { Vec::new() } else { taken }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NOW: i64 = 1_000_000 * HOUR_US;

    fn file(id: u64, rows: u64, bytes: u64, hours: (i64, i64), created_us: i64) -> Arc<FileMeta> {
        Arc::new(FileMeta {
            id,
            dataset: Dataset::SecurityEvents,
            rows,
            bytes,
            crc: 0,
            time_min: hours.0 * HOUR_US,
            time_max: hours.1 * HOUR_US,
            org_min: "a".into(),
            org_max: "b".into(),
            created_us,
            tenants: None,
        })
    }

    #[test]
    fn a_stream_of_commits_stays_at_few_files_and_few_rewrites() {
        // An hour of commits every ten seconds, 600 KB and 4,000 rows each; merges keep to their size.
        let config = ParquetConfig::default();
        let mut files: Vec<Arc<FileMeta>> = Vec::new();
        let (mut next, mut most, mut written) = (0, 0, 0);
        for commit in 0..360 {
            files.push(file(commit, 4_000, 600_000, (0, 0), NOW));
            next = next.max(commit + 1_000_000);
            loop {
                let picked = pick(&files, &config, NOW);
                if picked.is_empty() {
                    break;
                }
                let gone: BTreeSet<u64> = picked.iter().map(|file| file.id).collect();
                let (rows, bytes) = picked.iter().fold((0, 0), |sum, file| (sum.0 + file.rows, sum.1 + file.bytes));
                assert!(gone.len() >= 2 && gone.len() <= config.compact_files_max);
                files.retain(|file| !gone.contains(&file.id));
                files.push(file(next, rows, bytes, (0, 0), NOW));
                (next, written) = (next + 1, written + rows);
            }
            most = most.max(files.len());
        }
        assert!(most <= 24, "{most} files at once");
        assert!(written <= 360 * 4_000 * 3, "rows were rewritten {} times", written / (360 * 4_000));
    }

    #[test]
    fn what_is_settled_is_put_together_and_what_is_large_or_still_filling_is_left() {
        let config = ParquetConfig::default();
        let rows = config.file_rows_min as u64;
        let (old, new) = (NOW - 3 * HOUR_US, NOW - HOUR_US);
        let cases = [
            (
                "one hour, written long ago",
                [file(1, rows, 1 << 20, (5, 5), old), file(2, rows, 8 << 20, (5, 5), old)],
                2,
            ),
            ("one day", [file(1, rows, 1 << 20, (5, 5), old), file(2, rows, 8 << 20, (6, 6), old)], 2),
            ("two days", [file(1, rows, 1 << 20, (5, 5), old), file(2, rows, 8 << 20, (30, 30), old)], 0),
            ("one is new", [file(1, rows, 1 << 20, (5, 5), old), file(2, rows, 8 << 20, (5, 5), new)], 0),
            ("one is large", [file(1, rows, 1 << 20, (5, 5), old), file(2, rows, 64 << 20, (5, 5), old)], 0),
            ("one is small", [file(1, rows, 1 << 20, (5, 5), old), file(2, rows - 1, 1 << 20, (5, 5), old)], 0),
        ];
        for (name, files, expected) in cases {
            assert_eq!(pick(&files, &config, NOW).len(), expected, "{name}");
        }
    }

    #[test]
    fn a_merge_keeps_to_its_bounds_and_is_never_of_one_file() {
        let small = |id| file(id, 10, 60_000, (id as i64, id as i64), NOW);
        let files: Vec<_> = (0..100).map(small).collect();
        let config = ParquetConfig::default();
        let picked = |config: &ParquetConfig| pick(&files, config, NOW).iter().map(|file| file.id).collect::<Vec<_>>();
        assert_eq!(picked(&config), (0..32).collect::<Vec<_>>(), "the oldest first");
        assert_eq!(picked(&ParquetConfig { compact_bytes_max: 300_000, ..config.clone() }).len(), 5);
        assert_eq!(picked(&ParquetConfig { compact_rows_max: 30, ..config.clone() }).len(), 3);
        assert_eq!(picked(&ParquetConfig { compact_bytes_max: 1, ..config }).len(), 2);
    }
}
