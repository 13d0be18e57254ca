//! The search for keywords, and who pays for it.

use std::time::Instant;

use crate::bitmap::Bitmap;
use crate::compile::program::{PredicateId, ViewId};
use crate::eval::Evaluator;
use crate::eval::frame::Frame;
use crate::eval::watch::SAMPLE;

/// A log source whose last search took longer is charged in every batch: nanoseconds.
const SEARCH_NS_LONG: u64 = 5_000_000;

impl Evaluator {
    /// Searches the keywords of a log source's rules.
    pub(super) fn search(&mut self, log_source: usize, rows: &Bitmap, frame: &mut Frame<'_>) {
        let Some((class, view)) = self.index.keywords_of(log_source) else { return };
        let columns = frame.plan.columns.iter().zip(frame.columns).filter(|(planned, _)| planned.searched);
        let columns = columns.filter_map(|(_, column)| *column);
        let weight = match self.searched_long.get(log_source) {
            Some(true) => 1,
            _ if self.batch.is_multiple_of(SAMPLE) => SAMPLE,
            _ => 0,
        };
        self.scratch.watch.begin_search(weight > 0);
        let started = Instant::now();
        let encoded = self.walk((class, frame.rows), |walk| columns.for_each(|column| walk.column(column, rows)));
        let ns = started.elapsed().as_nanos() as u64;
        let of_others = self.scratch.watch.end_search();
        if let Some(long) = self.searched_long.get_mut(log_source) {
            *long = ns >= SEARCH_NS_LONG;
        }
        if weight > 0 {
            self.charge_keywords(view, ns.saturating_sub(of_others), weight);
        }
        frame.keywords.extend(encoded.map(|encoded| (view, encoded)));
    }

    /// Charges what a search for keywords took, but for the expressions among them, which pay for themselves: to rules by how many
    /// each has, since without them there would be none.
    fn charge_keywords(&mut self, view: ViewId, ns: u64, weight: u64) {
        let own = self.by_view.get(view as usize).into_iter().flatten();
        let own: Vec<PredicateId> = own.filter(|id| self.needed.get(**id as usize) == Some(&true)).copied().collect();
        let each = ns / own.len().max(1) as u64;
        let users = own.iter().filter_map(|id| self.rules.users.get(*id as usize)).flatten();
        let mut units: Vec<u32> = users.copied().collect();
        units.sort_unstable();
        // One sample for each, however many keywords it has: a search that was interrupted happened once.
        for same in units.chunk_by(|left, right| left == right) {
            if let Some(unit) = same.first() {
                self.budget.sampled(*unit as usize, each.saturating_mul(same.len() as u64), weight);
            }
        }
    }
}
