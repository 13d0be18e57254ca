//! What a subscriber wants to see of its tenant's alerts.

use std::str::FromStr;

use arrow::array::{Array, AsArray, RecordBatch};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_events::Level;
use tidegate_pipeline::Problem;

use super::render::texts;

const VALUE_BYTES_MAX: usize = 512;

/// All conditions that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// This level or a graver one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// This rule, by id or by title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// This tag, or one below it: `attack.t1003` matches `attack.t1003.001`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// This actor, asset, resource, or a value or a pair of the group key (`user=kim, src_ip=10.0.0.1`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
}

/// What filters look at in one alert.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    level: u8,
    rule_id: String,
    title: String,
    tags: Vec<String>,
    entities: Vec<String>,
    group_key: String,
}

impl Filter {
    /// Checks what a client gave.
    ///
    /// # Errors
    /// 400 for a level that does not exist, or an empty or overlong value.
    pub fn checked(self) -> Result<Self, Problem> {
        let all = [("level", &self.level), ("rule", &self.rule), ("tag", &self.tag), ("entity", &self.entity)];
        for (name, value) in all {
            if value.as_ref().is_some_and(|value| value.is_empty() || value.len() > VALUE_BYTES_MAX) {
                let hint = format!("use 1 to {VALUE_BYTES_MAX} bytes, or leave it out");
                return Err(Problem::new(400, "invalid_filter", format!("{name} is empty or too long")).hint(hint));
            }
        }
        if let Some(level) = &self.level {
            Level::from_str(level).map_err(|error| {
                let known = "use informational, low, medium, high or critical";
                Problem::new(400, "invalid_filter", error).hint(known)
            })?;
        }
        Ok(self)
    }

    pub(super) fn matches(&self, facts: &Facts) -> bool {
        let level = self.level.as_deref().and_then(|level| Level::from_str(level).ok());
        level.is_none_or(|level| facts.level >= level as u8)
            && self.rule.as_ref().is_none_or(|rule| *rule == facts.rule_id || *rule == facts.title)
            && self.tag.as_ref().is_none_or(|tag| facts.tags.iter().any(|of| is_or_below(of, tag)))
            && self.entity.as_ref().is_none_or(|entity| facts.is_about(entity))
    }
}

fn is_or_below(tag: &str, of: &str) -> bool {
    tag.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl Facts {
    pub(super) fn of_row(rows: &RecordBatch, row: usize) -> Self {
        let text = |name: &str| {
            let column = rows.column_by_name(name)?.as_string_opt::<i32>()?;
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let tags = rows.column_by_name("tags").and_then(|column| column.as_list_opt::<i32>());
        Self {
            level: level_code(text("level").as_deref()),
            rule_id: text("rule_id").unwrap_or_default(),
            title: text("title").unwrap_or_default(),
            tags: tags.filter(|tags| tags.is_valid(row)).map(|tags| texts(tags, row)).unwrap_or_default(),
            entities: ["actor", "asset", "resource"].into_iter().filter_map(text).collect(),
            group_key: text("group_key").unwrap_or_default(),
        }
    }

    pub(super) fn of_json(json: &str) -> Self {
        let value: Value = serde_json::from_str(json).unwrap_or_default();
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let tags = value.get("tags").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Self {
            level: level_code(text("level").as_deref()),
            rule_id: text("rule_id").unwrap_or_default(),
            title: text("title").unwrap_or_default(),
            tags: tags.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            entities: ["actor", "asset", "resource"].into_iter().filter_map(text).collect(),
            group_key: text("group_key").unwrap_or_default(),
        }
    }

    fn is_about(&self, entity: &str) -> bool {
        self.entities.iter().any(|of| of == entity)
            || (!self.group_key.is_empty() && {
                // `GET /v2/alerts` looks for the same texts.
                let pairs = format!(", {}, ", self.group_key);
                pairs.contains(&format!(", {entity}, ")) || pairs.contains(&format!("={entity}, "))
            })
    }
}

fn level_code(level: Option<&str>) -> u8 {
    level.and_then(|level| Level::from_str(level).ok()).map_or(0, |level| level as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALERT: &str = r#"{"level":"high","rule_id":"r1","title":"Root login","tags":["attack.t1003.001","x"],
        "actor":"kim","resource":"bucket","group_key":"user=kim, src_ip=10.0.0.1"}"#;

    #[test]
    fn conditions_hold_together() {
        let cases = [
            (r#"{}"#, true),
            (r#"{"level":"medium"}"#, true),
            (r#"{"level":"high"}"#, true),
            (r#"{"level":"critical"}"#, false),
            (r#"{"rule":"r1"}"#, true),
            (r#"{"rule":"Root login"}"#, true),
            (r#"{"rule":"r"}"#, false),
            (r#"{"tag":"attack.t1003"}"#, true),
            (r#"{"tag":"attack.t100"}"#, false),
            (r#"{"tag":"x"}"#, true),
            (r#"{"entity":"kim"}"#, true),
            (r#"{"entity":"bucket"}"#, true),
            (r#"{"entity":"10.0.0.1"}"#, true),
            (r#"{"entity":"src_ip=10.0.0.1"}"#, true),
            (r#"{"entity":"10.0.0"}"#, false),
            (r#"{"level":"high","entity":"nobody"}"#, false),
        ];
        let facts = Facts::of_json(ALERT);
        for (filter, expected) in cases {
            let filter: Filter = serde_json::from_str(filter).expect("a filter");
            assert_eq!(filter.clone().checked().expect("valid").matches(&facts), expected, "{filter:?}");
        }
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused() {
        for filter in [
            Filter { level: Some("severe".into()), ..Filter::default() },
            Filter { tag: Some(String::new()), ..Filter::default() },
            Filter { entity: Some("x".repeat(600)), ..Filter::default() },
        ] {
            assert_eq!(filter.checked().expect_err("refused").status, 400);
        }
    }
}
