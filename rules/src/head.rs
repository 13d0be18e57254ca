//! What detection rules and correlation rules say of themselves alike.

use std::sync::Arc;

use tidegate_events::Level;

/// The head of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The Sigma `id`, or else the `name` or the title.
    pub id: String,
    /// The Sigma `name`, by which other documents may refer to it.
    pub name: Option<String>,
    /// The Sigma `title`.
    pub title: String,
    /// The Sigma `description`.
    pub description: String,
    /// The Sigma `level`; `medium` without one.
    pub level: Level,
    /// The Sigma `tags`.
    pub tags: Vec<String>,
    /// The Sigma `falsepositives`.
    pub falsepositives: Vec<String>,
    /// The file it came from.
    pub file: String,
    /// The tenant whose events it sees; `None` for every tenant.
    pub org_id: Option<Arc<str>>,
}

/// What a document is called: its `id`, or else its `name` or its title.
pub(crate) fn called(id: Option<&String>, name: Option<&String>, title: &str) -> String {
    id.or(name).map_or(title, String::as_str).to_owned()
}

/// A level as Sigma has it; `medium` without one.
pub(crate) fn level(level: Option<rsigma_parser::Level>) -> Level {
    match level {
        Some(rsigma_parser::Level::Informational) => Level::Informational,
        Some(rsigma_parser::Level::Low) => Level::Low,
        Some(rsigma_parser::Level::Medium) | None => Level::Medium,
        Some(rsigma_parser::Level::High) => Level::High,
        Some(rsigma_parser::Level::Critical) => Level::Critical,
    }
}
