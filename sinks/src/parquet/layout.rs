//! Which rows share a file: tenants with many rows apart, then hours, then days, and one file for all the rest.

use std::collections::{BTreeMap, HashMap};

use super::config::{DAY_US, HOUR_US};

/// What decides about the split.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SplitRule {
    /// A tenant with more rows than this gets files of its own.
    pub(crate) tenant_rows_min: u64,
    /// An hour, or else a day, with at least this many rows gets a file of its own.
    pub(crate) file_rows_min: u64,
    /// At most this many files; the largest groups are served first.
    pub(crate) files_max: usize,
}

/// The file (by number from 0) of each (tenant, hour).
#[derive(Debug, Default)]
pub(crate) struct Split {
    slots: HashMap<(u32, i64), usize>,
    files: usize,
}

/// The hour of a time, counted from the epoch.
pub(crate) fn hour_of(time: i64) -> i64 {
    time.div_euclid(HOUR_US)
}

/// The day of a time, counted from the epoch.
pub(crate) fn day_of(time: i64) -> i64 {
    time.div_euclid(DAY_US)
}

/// A file that could be: rows, whose tenant (`None`: shared), hours from..to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rows: u64,
    tenant: Option<u32>,
    from: i64,
    to: i64,
}

impl Split {
    /// Decides by the number of rows of each (tenant, hour).
    pub(crate) fn new(counts: &BTreeMap<(u32, i64), u64>, rule: SplitRule) -> Self {
        let mut split = Self::default();
        let mut tenants: BTreeMap<u32, u64> = BTreeMap::new();
        for ((org, _), rows) in counts {
            *tenants.entry(*org).or_default() += rows;
        }
        let mut large: Vec<(u64, u32)> =
            tenants.iter().filter(|(_, rows)| **rows > rule.tenant_rows_min).map(|(org, rows)| (*rows, *org)).collect();
        if large.len() == tenants.len() && large.len() == 1 {
            large.clear(); // A single tenant needs no file "of its own".
        }
        large.sort_unstable_by(|a, b| b.cmp(a));
        large.truncate(rule.files_max.saturating_sub(1) / 2);
        let large: Vec<u32> = large.into_iter().map(|(_, org)| org).collect();
        let group_of = |org: u32| large.contains(&org).then_some(org);
        let mut groups: BTreeMap<Option<u32>, BTreeMap<i64, u64>> = BTreeMap::new();
        for ((org, hour), rows) in counts {
            *groups.entry(group_of(*org)).or_default().entry(*hour).or_default() += rows;
        }
        let rest_files = groups.len();
        let mut candidates: Vec<Candidate> =
            groups.iter().flat_map(|(tenant, hours)| candidates(*tenant, hours, rule.file_rows_min)).collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        candidates.truncate(rule.files_max.saturating_sub(rest_files));
        split.assign(counts, group_of, &candidates);
        split
    }

    fn assign(
        &mut self,
        counts: &BTreeMap<(u32, i64), u64>,
        group_of: impl Fn(u32) -> Option<u32>,
        candidates: &[Candidate],
    ) {
        let mut files: BTreeMap<(Option<u32>, i64, i64), usize> = BTreeMap::new();
        for (org, hour) in counts.keys() {
            let tenant = group_of(*org);
            // An hour of its own comes before the day around it.
            let span = candidates
                .iter()
                .filter(|candidate| candidate.tenant == tenant && (candidate.from..candidate.to).contains(hour))
                .map(|candidate| (candidate.from, candidate.to))
                .min_by_key(|(from, to)| to - from);
            let (from, to) = span.unwrap_or((i64::MIN, i64::MAX));
            let next = files.len();
            let slot = *files.entry((tenant, from, to)).or_insert(next);
            self.slots.insert((*org, *hour), slot);
        }
        self.files = files.len();
    }

    /// How many files there are.
    pub(crate) fn files(&self) -> usize {
        self.files
    }

    /// The file of a row.
    pub(crate) fn file(&self, org: u32, hour: i64) -> usize {
        self.slots.get(&(org, hour)).copied().unwrap_or(0)
    }
}

fn candidates(tenant: Option<u32>, hours: &BTreeMap<i64, u64>, file_rows_min: u64) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut days: BTreeMap<i64, u64> = BTreeMap::new();
    for (hour, rows) in hours {
        if *rows >= file_rows_min {
            found.push(Candidate { rows: *rows, tenant, from: *hour, to: hour + 1 });
        } else {
            *days.entry(hour.div_euclid(24)).or_default() += rows;
        }
    }
    for (day, rows) in days {
        if rows >= file_rows_min {
            found.push(Candidate { rows, tenant, from: day * 24, to: day * 24 + 24 });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(counts: &[(u32, i64, u64)], rule: SplitRule) -> Vec<usize> {
        let map = counts.iter().map(|(org, hour, rows)| ((*org, *hour), *rows)).collect();
        let split = Split::new(&map, rule);
        let files: Vec<usize> = counts.iter().map(|(org, hour, _)| split.file(*org, *hour)).collect();
        assert_eq!(split.files(), files.iter().max().map_or(0, |max| max + 1));
        files
    }

    const RULE: SplitRule = SplitRule { tenant_rows_min: 1000, file_rows_min: 100, files_max: 64 };

    #[test]
    fn hours_then_days_then_one_file_for_the_rest() {
        let counts = [(0, 0, 100), (0, 1, 50), (0, 2, 50), (0, 24, 99), (1, 99, 99), (1, 0, 3)];
        assert_eq!(files(&counts, RULE), [0, 1, 1, 2, 2, 0]);
    }

    #[test]
    fn a_large_tenant_has_files_of_its_own() {
        assert_eq!(files(&[(0, 0, 10), (1, 0, 1001), (2, 0, 10)], RULE), [0, 1, 0]);
        assert_eq!(files(&[(0, 0, 10), (1, 0, 1000), (2, 0, 10)], RULE), [0, 0, 0]);
    }

    #[test]
    fn a_backfill_over_months_does_not_become_thousands_of_files() {
        let counts: Vec<_> = (0..24 * 90).map(|hour| (0, hour, 4)).collect();
        assert!(files(&counts, RULE).iter().all(|file| *file == 0));
        let counts: Vec<_> = (0..24 * 90).map(|hour| (0, hour, 100)).collect();
        assert_eq!(files(&counts, RULE).iter().max(), Some(&63), "the bound holds");
    }

    #[test]
    fn hours_before_the_epoch_count_as_well() {
        assert_eq!((hour_of(-1), day_of(-1)), (-1, -1));
        assert_eq!(files(&[(0, -1, 60), (0, -24, 60), (0, -25, 60)], RULE), [1, 1, 0]);
    }
}
