//! Rules that a tenant turned off for its own events: rows of `changes` of the kind [`OFF_KIND`], whose target is the id of
//! the rule. A rule that is off for a tenant does not match its events: it raises nothing and feeds no correlation. A correlation that
//! is off is as if it were not there: it fires for nobody, and the rules that it refers to raise alerts of their own.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};
use tidegate_events::Dataset;

use crate::compile::RuleSet;

/// The value of `kind` in rows of `changes` that turn rules off (`create`) and on again (`delete`).
pub const OFF_KIND: &str = "rule_off";

/// What is off, by tenant and rule id.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Off {
    tenants: BTreeMap<String, BTreeSet<String>>,
}

impl Off {
    /// Takes a change up.
    pub fn take_change(&mut self, org_id: &str, rule_id: &str, action: &str) {
        if action == "delete" {
            if let Some(rules) = self.tenants.get_mut(org_id) {
                rules.remove(rule_id);
                if rules.is_empty() {
                    self.tenants.remove(org_id);
                }
            }
        } else {
            self.tenants.entry(org_id.to_owned()).or_default().insert(rule_id.to_owned());
        }
    }

    /// What is off for a tenant; `None` when nothing is.
    pub fn of(&self, org_id: &str) -> Option<&BTreeSet<String>> {
        self.tenants.get(org_id)
    }

    /// Whether the rule is off for the tenant.
    pub fn is_off(&self, org_id: &str, rule_id: &str) -> bool {
        self.tenants.get(org_id).is_some_and(|rules| rules.contains(rule_id))
    }

    /// Takes away the matches (row, rule) of rules that are off for the row's tenant.
    pub fn retain(&self, rules: &RuleSet, rows: &RecordBatch, matches: &mut Vec<(usize, usize)>) {
        if self.tenants.is_empty() || matches.is_empty() {
            return;
        }
        let Some(orgs) = rows.column_by_name(Dataset::ORG_ID).and_then(|array| array.as_string_opt::<i32>()) else {
            return;
        };
        matches.retain(|(row, at)| match rules.rules().get(*at) {
            Some(rule) if *row < orgs.len() && orgs.is_valid(*row) => !self.is_off(orgs.value(*row), &rule.head.id),
            _ => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;
    use crate::{RuleFile, RulesConfig};

    #[test]
    fn a_rule_is_off_for_the_tenant_that_said_so_until_it_is_on_again() {
        let text = "title: A\nid: a\nlogsource: {product: x}\ndetection: {s: {f: v}, condition: s}";
        let (rules, _) = RuleSet::compile(&[RuleFile::new("a", text)], &RulesConfig::default()).expect("tables");
        let orgs: ArrayRef = Arc::new(StringArray::from(vec![Some("acme"), Some("zeta"), None]));
        let rows = RecordBatch::try_from_iter([(Dataset::ORG_ID, orgs)]).expect("a batch");
        let left = |off: &Off| {
            let mut matches = vec![(0, 0), (1, 0), (2, 0)];
            off.retain(&rules, &rows, &mut matches);
            matches.into_iter().map(|(row, _)| row).collect::<Vec<_>>()
        };
        let mut off = Off::default();
        assert_eq!(left(&off), [0, 1, 2]);
        off.take_change("acme", "a", "create");
        off.take_change("zeta", "b", "create");
        assert_eq!(left(&off), [1, 2]);
        off.take_change("acme", "a", "delete");
        off.take_change("nobody", "a", "delete");
        assert_eq!(left(&off), [0, 1, 2]);
    }
}
