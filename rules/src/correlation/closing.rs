//! The windows of a group that wait for their end.

use crate::correlation::completing::Completing;
use crate::correlation::entry::Entry;
use crate::correlation::group::{Closing, Fed, Fire, Group, OpenWindow, Terms};

/// Room for so many windows stays when they are over.
const WINDOWS_FEW: usize = 2;
/// The most windows of a group that may be open over one moment.
const OVERLAPS_MAX: usize = 32;

impl OpenWindow {
    /// What it takes.
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.last.1.bytes()
    }
}

impl Closing {
    /// Puts a window in.
    pub fn open(&mut self, at: usize, window: OpenWindow) {
        if self.windows.is_empty() {
            // Most groups never have more than one.
            self.windows.reserve_exact(1);
        }
        self.bytes += window.bytes();
        self.windows.insert(at, window);
    }
}

/// The latest event of a window that opens at `start` before windows that are open: later events may be in it.
fn last_in<'a>(
    windows: impl Iterator<Item = &'a OpenWindow>,
    start: i64,
    span: i64,
    completing: Completing,
) -> (i64, Completing) {
    let inside = windows.filter(|window| window.last.0 < start.saturating_add(span));
    inside.max_by_key(|window| window.last.0).map_or((start, completing), |window| window.last.clone())
}

impl Group {
    /// Takes an event up, in the windows that are open for it, or in one that it opens.
    pub fn feed_closing(&mut self, entry: Entry, completing: Completing, terms: &Terms<'_>) -> Fed {
        let mut fed = Fed { looked_at: 1, ..Fed::default() };
        let (time, span, completing) = (entry.time, terms.span(), completing.bounded());
        if !self.insert(entry, terms, &mut fed) {
            return fed;
        }
        let closing = self.closing();
        let windows = &mut closing.windows;
        let first = windows.partition_point(|window| window.start <= time.saturating_sub(span));
        let after = windows.partition_point(|window| window.start <= time);
        fed.looked_at += (after - first) as u64;
        for window in windows.range_mut(first..after) {
            if time >= window.last.0 {
                closing.bytes += completing.bytes();
                closing.bytes -= window.last.1.bytes();
                window.last = (time, completing.clone());
            }
        }
        if first == after {
            let next = windows.partition_point(|window| window.start < time.saturating_add(span));
            if next - after >= OVERLAPS_MAX {
                fed.unjudged += 1;
                return fed;
            }
            let last = last_in(windows.range(after..next), time, span, completing);
            closing.open(after, OpenWindow { start: time, last });
        }
        fed
    }

    /// Whether an event comes too late: event time has passed it by a span (`passed`), or the window that it belongs to was decided,
    /// and it is in none that is still open.
    pub fn is_late(&self, time: i64, passed: bool, terms: &Terms<'_>) -> bool {
        let covers = |start: i64| start <= time && time < start.saturating_add(terms.span());
        let decided = self.decided().is_some_and(|end| covers(end.saturating_sub(terms.span())));
        (passed || decided) && !self.windows().any(|window| covers(window.start))
    }

    /// Decides the first open window, which is over.
    pub fn close(&mut self, terms: &Terms<'_>, fed: &mut Fed) -> Option<(OpenWindow, Option<Fire>)> {
        let closing = self.closing();
        let window = closing.windows.pop_front()?;
        closing.bytes -= window.bytes();
        if closing.windows.capacity() > WINDOWS_FEW && closing.windows.len() * 4 <= closing.windows.capacity() {
            closing.windows.shrink_to(closing.windows.len());
        }
        let end = window.start.saturating_add(terms.span());
        closing.decided = closing.decided.max(end);
        #[cfg(test)]
        crate::fuse::burst("close", &String::from_utf8_lossy(&self.key));
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
