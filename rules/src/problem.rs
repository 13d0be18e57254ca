//! What is wrong with a rule, where, and what to do about it: for `tidegate check`, the API and the log.

use std::fmt;

/// A rule file as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleFile {
    /// The path relative to the rule folder, with `/` between folders.
    pub name: String,
    /// The YAML text; one or more documents.
    pub text: String,
    /// The tenant whose events its rules see; `None` for the events of every tenant.
    pub org_id: Option<String>,
}

impl RuleFile {
    /// A file whose rules see the events of every tenant.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), org_id: None }
    }
}

/// Why a document of a rule file was not loaded, or what of it was ignored (an unknown `status` or `level`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RuleProblem {
    /// The rule file.
    pub file: String,
    /// Line in the file, from 1.
    pub line: usize,
    /// Column in the line, from 1, in characters.
    pub column: usize,
    /// The id, else the title, of the rule; empty when neither could be read.
    pub rule: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.reason)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// What is wrong, before it is known where: `near` is a piece of the document's text that is close to the place, from the key
/// `section` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub reason: String,
    pub hint: String,
    pub near: String,
    pub section: &'static str,
}

impl Fault {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: String::new(), near: String::new(), section: "" }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Says where, unless that was said before (by whoever was closer).
    pub fn near(mut self, near: &str) -> Self {
        if self.near.is_empty() {
            near.clone_into(&mut self.near);
        }
        self
    }

    /// Says below which key of the document.
    pub fn within(mut self, section: &'static str) -> Self {
        self.section = section;
        self
    }
}
