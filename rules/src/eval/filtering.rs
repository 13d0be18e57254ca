//! What is taken away from the matches of a rule: the rows of other tenants, and what filters do not let stay.

use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use rustc_hash::FxHashMap;
use tidegate_events::Dataset;

use crate::bitmap::Bitmap;
use crate::compile::RuleSet;
use crate::compile::filter::Filters;
use crate::eval::budget::Budget;
use crate::eval::frame::Frame;
use crate::eval::view_of;

/// The rows of a tenant.
pub(super) fn rows_of_tenant(rows: &RecordBatch, org_id: &str) -> Bitmap {
    let mut tenant = Bitmap::empty(rows.num_rows());
    if let Some(orgs) = rows.column_by_name(Dataset::ORG_ID).and_then(|array| array.as_string_opt::<i32>()) {
        orgs.iter().enumerate().filter(|(_, own)| *own == Some(org_id)).for_each(|(row, _)| tenant.insert(row));
    }
    tenant
}

/// Takes away the matches that filters do not let stay. How many.
pub(super) fn suppress(
    filters: &Filters,
    rules: &RuleSet,
    budget: &mut Budget,
    rows: &RecordBatch,
    matched: &mut Bitmap,
    frame: &mut Frame<'_>,
) -> u64 {
    if filters.is_empty() {
        return 0;
    }
    let before = matched.len();
    let mut keep = |matched: &Bitmap, numbers: &[u32]| {
        let mut kept = matched.clone();
        for number in numbers {
            // A filter that is too slow stops, like a rule: better an alert too many than one too few.
            let unit = rules.rules.len() + *number as usize;
            let Some(filter) = rules.filters.get(*number as usize).filter(|_| !budget.is_parked(unit)) else {
                continue;
            };
            let started = Instant::now();
            let stay = frame.run(&filter.keeps, &kept, &view_of(rules));
            budget.sampled(unit, started.elapsed().as_nanos() as u64, 1);
            match frame.take_cut() {
                true => budget.cut(unit),
                false => kept = stay,
            }
        }
        kept
    };
    *matched = keep(matched, &filters.everyone);
    let orgs = rows.column_by_name(Dataset::ORG_ID).and_then(|array| array.as_string_opt::<i32>());
    if let Some(orgs) = orgs.filter(|_| !filters.tenants.is_empty()) {
        let mut by_tenant: FxHashMap<&str, Bitmap> = FxHashMap::default();
        for row in matched.iter().filter(|row| filters.tenants.contains_key(orgs.value(*row))) {
            by_tenant.entry(orgs.value(row)).or_insert_with(|| Bitmap::empty(rows.num_rows())).insert(row);
        }
        for (org_id, mut own) in by_tenant {
            let kept = keep(&own, filters.tenants.get(org_id).map(Vec::as_slice).unwrap_or_default());
            own.and_not(&kept);
            matched.and_not(&own);
        }
    }
    (before - matched.len()) as u64
}
