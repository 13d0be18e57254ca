//! Sigma rules on Arrow columns.
//!
//! Rule text goes through `rsigma-parser`; what is ours is evaluation. A [`RuleSet`] is compiled from [`RuleFile`]s: each
//! rule becomes a boolean program over predicates (one field, one test), and a predicate that several rules share is one. An
//! [`Evaluator`] runs the set over batches: each distinct value of a field is decided once against all predicates on that
//! field, and remembered; rules whose necessary predicates are satisfied nowhere in a batch are not looked at. The
//! [`SigmaOperator`] does this in the run loop, with the rules that the log itself says are in force.
//!
//! ```text
//! rule text ─ document ─ compile ─ RuleSet ─┐
//!                logsource tables ─┘        ├─ Evaluator ─ (row, rule) ─ raise ─ alerts
//!                              LogBatch ────┘
//! ```
//!
//! ```
//! use tidegate_rules::{RuleFile, RuleSet, RulesConfig};
//! let text = "title: A\nid: a\nlogsource: {product: aws}\ndetection: {s: {eventName: Delete*}, condition: s}";
//! let (rules, problems) = RuleSet::compile(&[RuleFile::new("a.yml", text)], &RulesConfig::default())?;
//! assert_eq!((rules.rules().len(), problems.len()), (1, 0));
//! # Ok::<(), tidegate_rules::RulesError>(())
//! ```
//!
//! Not here: reading a clock (but to time rules), I/O (but [`folder`]), the delivery of alerts.

#[cfg(test)]
extern crate self as tidegate_rules;

mod ahead;
mod alerting;
mod apart;
pub mod attack;
mod bitmap;
#[cfg(test)]
mod blown;
mod compile;
mod config;
mod correlation;
pub mod coverage;
mod datetime;
mod document;
mod error;
mod eval;
pub mod explain;
pub mod explain_beside;
pub mod feedback;
mod fold;
pub mod folder;
#[cfg(test)]
mod fuse;
mod group_key;
mod head;
mod lint;
mod logsource;
pub mod metrics;
mod nearest;
mod number;
mod off;
pub mod operator;
mod outline;
pub mod pack;
mod panicked;
mod problem;
mod proof;
mod raise;
mod rehearsal;
mod sections;
mod shown;
mod status;
mod suppress;
pub mod testcase;

pub use ahead::Ahead;
pub use compile::{Rule, RuleSet};
pub use config::RulesConfig;
pub use correlation::Correlation;
pub use error::RulesError;
pub use eval::profile;
pub use eval::trial::{Asked, Findings, Near, Reason, Trial};
pub use eval::{Counts, Evaluator, Parked};
pub use folder::{RuleAction, RuleChange, RuleFolder, SkippedFile};
pub use head::Head;
pub use lint::{RuleWarning, lint};
pub use off::OFF_KIND;
pub use operator::SigmaOperator;
pub use outline::{DocumentKind, Outline, outline};
pub use problem::{RuleFile, RuleProblem};
pub use rehearsal::{ColumnsRead, Match, Rehearsal};
pub use status::{RulesStatus, StatusBoard};
