//! What can go wrong in this crate, and whose fault it is. Faults of single rules are [`RuleProblem`](crate::RuleProblem)s.

use std::path::PathBuf;

use thiserror::Error;

/// A failure that concerns more than one rule.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The machine or the operator of the program: the rule folder or a file in it cannot be read.
    #[error("cannot read {path}: {source}; check that it exists and is readable")]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The operator of the program: the folder holds more than the configured bounds allow.
    #[error("{path} holds more than {files_max} rule files; raise files_max or move some away")]
    TooManyFiles {
        /// The rule folder.
        path: PathBuf,
        /// The bound.
        files_max: usize,
    },
    /// A bug: a log source table that is shipped with the program does not parse.
    #[error("log source table {table}: {reason}")]
    Table {
        /// Which table.
        table: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller: the texts of the rules are too large for the rows of one batch.
    #[error("the rules do not fit into rows of changes: {0}; split them")]
    Rows(String),
}
