//! What people say about alerts, and what they silence.
//!
//! Feedback on an alert is a row of `changes`: kind [`KIND`], `target_id` the id of the alert, `body` a [`Feedback`]. It
//! takes effect at its offset: from then on the matches of that rule (for that group, or for every group) in events of that
//! tenant that were received before the end of the silence raise nothing.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

pub use crate::compile::span_us;
use crate::group_key;

/// The value of `kind` in rows of `changes` that are feedback on alerts.
pub const KIND: &str = "alert_feedback";

/// What an alert turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What the rule looks for did not happen.
    FalsePositive,
    /// It happened.
    TruePositive,
    /// It happened, and is allowed.
    Benign,
}

/// How much a silence covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SilenceScope {
    /// The rule, for the group of the alert.
    Group,
    /// The rule, whatever the group.
    Rule,
}

/// Feedback on an alert, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    /// The rule that raised the alert.
    pub rule_id: String,
    /// The group that the alert is about.
    pub group_key: String,
    /// What it turned out to be.
    pub verdict: Verdict,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// What is silenced, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence_scope: Option<SilenceScope>,
    /// Events received before this (µs) raise nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence_until_us: Option<i64>,
}

/// The silences of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Silences {
    /// By tenant and alert.
    all: BTreeMap<String, BTreeMap<String, Silence>>,
    /// By tenant and rule.
    by_rule: FxHashMap<String, TenantSilences>,
}

/// The silences of one tenant by rule: each a group (`None`: every one) and its end.
pub(crate) type TenantSilences = FxHashMap<String, Vec<(Option<u128>, i64)>>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Silence {
    rule_id: String,
    /// `None`: every group.
    group_key: Option<String>,
    until_us: i64,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    org_id: String,
    alert_id: String,
    #[serde(flatten)]
    silence: Silence,
}

impl Silences {
    /// Takes feedback on an alert, in the place of what was said of it before. `body` is JSON; `None` for feedback that was
    /// taken back. Silences of the tenant that ended before `now` (a receive time) are forgotten.
    ///
    /// # Errors
    /// What is wrong with the body; nothing is changed then.
    pub fn take(&mut self, org_id: &str, alert_id: &str, body: Option<&str>, now: i64) -> Result<(), String> {
        let feedback = body.map(serde_json::from_str::<Feedback>).transpose().map_err(|error| error.to_string())?;
        let own = self.all.entry(org_id.to_owned()).or_default();
        own.remove(alert_id);
        if let Some(feedback) = feedback
            && let (Some(scope), Some(until_us)) = (feedback.silence_scope, feedback.silence_until_us)
        {
            let group_key = (scope == SilenceScope::Group).then_some(feedback.group_key);
            own.insert(alert_id.to_owned(), Silence { rule_id: feedback.rule_id, group_key, until_us });
        }
        own.retain(|_, silence| silence.until_us > now);
        if own.is_empty() {
            self.all.remove(org_id);
        }
        self.index(org_id);
        Ok(())
    }

    /// Finds the silences of a tenant by rule.
    fn index(&mut self, org_id: &str) {
        let mut rules = TenantSilences::default();
        for silence in self.all.get(org_id).into_iter().flat_map(BTreeMap::values) {
            let hash = silence.group_key.as_deref().map(group_key::hash);
            rules.entry(silence.rule_id.clone()).or_default().push((hash, silence.until_us));
        }
        if rules.is_empty() {
            self.by_rule.remove(org_id);
        } else {
            self.by_rule.insert(org_id.to_owned(), rules);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.values().map(BTreeMap::len).sum()
    }

    /// Those of a tenant; `None` when it has none.
    pub fn of(&self, org_id: &str) -> Option<&TenantSilences> {
        self.by_rule.get(org_id)
    }

    /// The state as JSON.
    pub fn save(&self) -> Vec<u8> {
        let saved = |org_id: &String, alert_id: &String, silence: &Silence| Saved {
            org_id: org_id.clone(),
            alert_id: alert_id.clone(),
            silence: silence.clone(),
        };
        let of_tenant = |(org_id, own): (&String, &BTreeMap<String, Silence>)| {
            own.iter().map(|(alert_id, silence)| saved(org_id, alert_id, silence)).collect::<Vec<_>>()
        };
        // Strings and numbers always serialize.
        serde_json::to_vec(&self.all.iter().flat_map(of_tenant).collect::<Vec<_>>()).unwrap_or_default()
    }

    /// A state that was saved.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn restore(bytes: &[u8]) -> Result<Self, String> {
        let saved: Vec<Saved> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut silences = Self::default();
        for Saved { org_id, alert_id, silence } in saved {
            silences.all.entry(org_id).or_default().insert(alert_id, silence);
        }
        let tenants: Vec<String> = silences.all.keys().cloned().collect();
        tenants.iter().for_each(|org_id| silences.index(org_id));
        Ok(silences)
    }
}

/// Whether a match is silenced: `group` gives the hash of its group's key, and is asked only if that matters.
pub(crate) fn silenced(
    silences: Option<&TenantSilences>,
    rule_id: &str,
    received: i64,
    group: impl FnOnce() -> u128,
) -> bool {
    let Some(of_rule) = silences.and_then(|silences| silences.get(rule_id)) else { return false };
    let mut open = of_rule.iter().filter(|(_, until)| received < *until).peekable();
    if open.peek().is_none() {
        return false;
    }
    let group = group();
    open.any(|(hash, _)| hash.is_none_or(|hash| hash == group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feedback_of_a_tenant_leaves_what_others_silenced_where_it_is() {
        let mut silences = Silences::default();
        let body = r#"{"rule_id":"r","group_key":"","verdict":"benign","silence_scope":"rule","silence_until_us":50}"#;
        silences.take("acme", "1", Some(body), 0).expect("a body");
        let place = |silences: &Silences| silences.of("acme").and_then(|own| own.get("r")).map(|own| own.as_ptr());
        let before = place(&silences);
        for number in 0..20 {
            silences.take("zeta", &number.to_string(), Some(body), 0).expect("a body");
        }
        assert_eq!(place(&silences), before, "not made anew");
        assert_eq!(silences.len(), 21);
        silences.take("acme", "2", None, 50).expect("nothing");
        assert!(silences.of("acme").is_none() && silences.len() == 20, "over");
    }
}
