//! What a rule file says of itself: its documents with their names and what they refer to. For lists of rules, and to find the
//! files that have to be compiled together. Nothing is compiled here.

use rsigma_parser::FilterRuleTarget;
use tidegate_events::Level;

use crate::config::RulesConfig;
use crate::document::{Parsed, parse_file};
use crate::head::{called, level};
use crate::problem::{RuleFile, RuleProblem};

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// Matches single events.
    Detection,
    /// Counts and orders what other rules match.
    Correlation,
    /// Takes events away from other rules.
    Filter,
}

impl DocumentKind {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detection => "detection",
            Self::Correlation => "correlation",
            Self::Filter => "filter",
        }
    }
}

/// One document of a rule file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// What it is.
    pub kind: DocumentKind,
    /// What its alerts and its problems call it: the Sigma `id`, else the `name`, else the title.
    pub id: String,
    /// The Sigma `id`, if it has one.
    pub own_id: Option<String>,
    /// The Sigma `name`, by which others may refer to it.
    pub name: Option<String>,
    /// The Sigma `title`.
    pub title: String,
    /// The Sigma `description`.
    pub description: String,
    /// The Sigma `level`, as written.
    pub level: Option<Level>,
    /// The Sigma `tags`.
    pub tags: Vec<String>,
    /// The ids or names of the rules that it refers to.
    pub refers_to: Vec<String>,
}

/// The documents of a file in order, and why others could not be read. What is read here may still not compile.
pub fn outline(file: &RuleFile, config: &RulesConfig) -> (Vec<Outline>, Vec<RuleProblem>) {
    let mut problems = Vec::new();
    let documents = parse_file(file, config, &mut problems).into_iter().map(|(_, parsed)| outlined(parsed)).collect();
    (documents, problems)
}

fn outlined(parsed: Parsed) -> Outline {
    let (kind, own_id, name, title, description, stated, tags, refers_to) = match parsed {
        Parsed::Rule(rule) => {
            let rule = *rule;
            let kind = DocumentKind::Detection;
            (kind, rule.id, rule.name, rule.title, rule.description, rule.level, rule.tags, Vec::new())
        }
        Parsed::Correlation(rule) => {
            let rule = *rule;
            let kind = DocumentKind::Correlation;
            (kind, rule.id, rule.name, rule.title, rule.description, rule.level, rule.tags, rule.rules)
        }
        Parsed::Filter(filter) => {
            let filter = *filter;
            let refers_to = match filter.rules {
                FilterRuleTarget::Specific(rules) => rules,
                FilterRuleTarget::Any => Vec::new(),
            };
            let kind = DocumentKind::Filter;
            (kind, filter.id, filter.name, filter.title, filter.description, filter.level, filter.tags, refers_to)
        }
    };
    Outline {
        kind,
        id: called(own_id.as_ref(), name.as_ref(), &title),
        own_id,
        name,
        title,
        description: description.unwrap_or_default(),
        level: stated.map(|stated| level(Some(stated))),
        tags,
        refers_to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_say_their_names_and_what_they_refer_to() {
        let text = "title: One\nname: first\nlogsource: {product: x}\ndetection: {s: {f: v}, condition: s}\nlevel: high\n\
                    ---\ntitle: Many\nid: b\ncorrelation: {type: event_count, rules: [first], group-by: [u], timespan: 5m, condition: {gte: 3}}\n\
                    ---\ntitle: Not mine\nlogsource: {product: x}\nfilter: {rules: [first, b], sel: {u: me}, condition: sel}\n\
                    ---\ntitle: [\n";
        let (documents, problems) = outline(&RuleFile::new("a.yml", text), &RulesConfig::default());
        let said: Vec<_> =
            documents.iter().map(|one| (one.kind.as_str(), one.id.as_str(), one.refers_to.len())).collect();
        assert_eq!(said, [("detection", "first", 0), ("correlation", "b", 1), ("filter", "Not mine", 2)]);
        assert_eq!((documents[0].level, documents[1].level), (Some(Level::High), None));
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}
