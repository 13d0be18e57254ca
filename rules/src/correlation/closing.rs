//! The windows of a group that wait for their end.

use std::sync::Arc;

use crate::correlation::entry::Entry;
use crate::correlation::group::{Completing, Fed, Fire, Group, OpenWindow, Terms};

/// The most windows of a group that may be open over one moment.
const OVERLAPS_MAX: usize = 32;

impl Group {
    /// Takes an event up, in the windows that are open for it, or in one that it opens.
    pub fn feed_closing(&mut self, entry: Entry, completing: Completing, terms: &Terms<'_>) -> Fed {
        let mut fed = Fed { looked_at: 1, ..Fed::default() };
        let (time, span) = (entry.time, terms.span());
        if !self.insert(entry, terms, &mut fed) {
            return fed;
        }
        let completing = Arc::new(completing);
        let first = self.windows.partition_point(|window| window.start <= time.saturating_sub(span));
        let after = self.windows.partition_point(|window| window.start <= time);
        fed.looked_at += (after - first) as u64;
        for window in self.windows.range_mut(first..after) {
            if time >= window.last.0 {
                window.last = (time, completing.clone());
            }
        }
        if first == after {
            let next = self.windows.partition_point(|window| window.start < time.saturating_add(span));
            if next - after >= OVERLAPS_MAX {
                fed.unjudged += 1;
                return fed;
            }
            let last = self.last_in((after, next), time, span, completing);
            self.windows.insert(after, OpenWindow { start: time, last });
        }
        fed
    }

    /// The latest event of a window that opens at `start` before windows that are open: later events may be in it.
    fn last_in(
        &self,
        (after, next): (usize, usize),
        start: i64,
        span: i64,
        completing: Arc<Completing>,
    ) -> (i64, Arc<Completing>) {
        let inside = self.windows.range(after..next).filter(|window| window.last.0 < start.saturating_add(span));
        match inside.max_by_key(|window| window.last.0) {
            Some(window) => window.last.clone(),
            None => (start, completing),
        }
    }

    /// Whether an event comes too late: event time has passed it by a span (`passed`), or the window that it belongs to was decided,
    /// and it is in none that is still open.
    pub fn is_late(&self, time: i64, passed: bool, terms: &Terms<'_>) -> bool {
        let covers = |start: i64| start <= time && time < start.saturating_add(terms.span());
        let decided = self.decided.is_some_and(|end| covers(end.saturating_sub(terms.span())));
        (passed || decided) && !self.windows.iter().any(|window| covers(window.start))
    }

    /// Decides the first open window, which is over.
    pub fn close(&mut self, terms: &Terms<'_>, fed: &mut Fed) -> Option<(OpenWindow, Option<Fire>)> {
        let window = self.windows.pop_front()?;
        let end = window.start.saturating_add(terms.span());
        self.decided = self.decided.max(Some(end));
        let from = self.entries().partition_point(|entry| entry.time < window.start);
        let to = self.entries().partition_point(|entry| entry.time < end);
        let quiet = self.is_quiet(window.start, terms.span());
        let fire = if quiet { None } else { self.judge((from, to), window.start, terms, fed) };
        if fire.is_some() {
            self.fired(window.start);
        }
        Some((window, fire))
    }

    /// Forgets what the windows that are still open do not need.
    pub fn settle(&mut self, terms: &Terms<'_>) {
        self.prune(i64::MIN, terms, false);
    }
}
