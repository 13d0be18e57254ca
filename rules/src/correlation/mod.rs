//! Sigma correlation rules: counts, sequences and sums over what other rules match, per group, in event time.
//!
//! ```text
//! (row, rule) ─ target ─► group ─► window ─ holds ─► alert
//!                  ▲                  │
//!                  └──── chaining ────┘          a source's marks ─► windows that are over, groups that are of no use
//! ```
//!
//! - **Group**: tenant, correlation, and the values of the group-by fields, compared as text and by case; of a field with
//!   several values in one event the first counts. An event without one of the fields is skipped, as in the reference
//!   implementation. An event counts once for a correlation that counts or measures, however many of its rules it matches; a
//!   temporal one sees each rule. The same event (time and id) counts once.
//! - **Window**: sliding, `(t - span, t]`.
//! - **Eager** correlations have only bounds from below (`gt`, `gte`) or ask for no absence. They are judged with each event,
//!   for the window that ends at it, and for the windows that end at later events which came before it.
//! - **Closing** correlations (`lt`, `lte`, `eq`, `neq`, a range, `not`) can only be judged when a window is over. A window
//!   `[t, t + span)` opens at an event that no open window of its group covers, and is decided once, when event time has
//!   passed its end: see [`clock`]. Only groups with an event have windows, so that "fewer than 5" never means none.
//! - An event that is **late** counts as long as a window that it belongs to is open: until event time has passed it by a span.
//!   One whose window was decided opens no other, so a group is remembered for a span after its last window.
//! - A row lets a few windows be decided and groups be dropped, by rows and by receive time; until they are, event time is held back
//!   for their tenant. So a million of them are no pause.
//! - A group that fired is quiet for one span of event time on either side; then it fires again if it still holds. What is
//!   remembered of a group, firings included, is forgotten when event time has passed its last event by a span.
//! - **Chaining**: a firing is an event for the correlations that refer to this one: at the end of its window, with the values
//!   of the group-by fields, and, when an event completed it, that event's other fields.
//! - Rules that a correlation refers to raise no alerts of their own, unless one that does says `generate: true`. A tenant's
//!   correlation has that effect on the tenant's events only.
//!
//! Everything is decided row by row, so that the same rows give the same alerts however they are cut into batches, and
//! whether or not the state was saved and restored between two of them.

mod adopt;
mod alert;
mod amount;
mod bucket;
mod clock;
mod closing;
mod completing;
mod condition;
mod costs;
pub(crate) mod definition;
mod entry;
mod feed;
mod group;
mod index;
mod keep;
mod levels;
mod line;
#[cfg(test)]
mod lookup;
mod pass;
mod read;
mod references;
mod repeats;
mod run;
mod saved;
pub(crate) mod set;
mod sorted;
pub(crate) mod targets;
mod window;

pub(crate) use alert::Told;
pub(crate) use run::Correlations;
pub use set::Correlation;
pub(crate) use set::CorrelationSet;
