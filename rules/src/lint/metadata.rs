//! What the Sigma specification asks of one document, by the linter of `rsigma-parser`.

use rsigma_parser::lint::{LintRule, Severity, lint_yaml_str};

use super::RuleWarning;
use crate::document::Part;
use crate::problem::RuleProblem;

/// Checks that are told: those that do not come up when the rule compiles, and are not about another product's extensions.
const TOLD: &[LintRule] = &[
    LintRule::TitleTooLong,
    LintRule::InvalidId,
    LintRule::MissingLevel,
    LintRule::InvalidDate,
    LintRule::InvalidModified,
    LintRule::ModifiedBeforeDate,
    LintRule::DescriptionTooLong,
    LintRule::NameTooLong,
    LintRule::NonLowercaseKey,
    LintRule::InvalidRelatedType,
    LintRule::InvalidRelatedId,
    LintRule::RelatedMissingRequired,
    LintRule::DeprecatedWithoutRelated,
    LintRule::InvalidTag,
    LintRule::UnknownTagNamespace,
    LintRule::DuplicateTags,
    LintRule::DuplicateReferences,
    LintRule::DuplicateFields,
    LintRule::FilterHasLevel,
    LintRule::FilterHasStatus,
    LintRule::NullInValueList,
    LintRule::SingleValueAllModifier,
    LintRule::AllWithRe,
    LintRule::IncompatibleModifiers,
    LintRule::WildcardOnlyValue,
    LintRule::UnknownKey,
];

/// Adds the warnings of one part of a file.
pub(super) fn lint_part(part: &Part<'_>, warnings: &mut Vec<RuleWarning>) {
    let lines: Vec<&str> = part.text.lines().collect();
    for found in lint_yaml_str(part.text) {
        // An unknown key is somebody's own attribute, unless it looks like a misspelt one.
        let own_key = found.rule == LintRule::UnknownKey && found.fix.is_none() && found.severity == Severity::Info;
        if !TOLD.contains(&found.rule) || own_key {
            continue;
        }
        let at = found.span.map_or(0, |span| span.start_line as usize);
        let text = lines.get(at).copied().unwrap_or_default();
        let indent = text.chars().take_while(|letter| letter.is_whitespace()).count();
        warnings.push(RuleWarning {
            check: found.rule.to_string(),
            problem: RuleProblem {
                file: part.file.to_owned(),
                line: part.lines_before + at + 1,
                column: indent + 1,
                rule: String::new(),
                reason: found.message,
                hint: found.fix.map(|fix| fix.title).unwrap_or_default(),
            },
        });
    }
}
