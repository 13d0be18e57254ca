//! A refusal of the rules API: a problem, and what is wrong with each rule, with its place.

use std::time::Duration;

use hyper::Response;
use hyper::header::{HeaderValue, RETRY_AFTER};
use serde_json::{Value, json};
use tidegate_pipeline::{PipelineError, Problem};
use tidegate_rules::RuleProblem;

use crate::serve::reply::{self, Body};

/// The most problems that one answer lists.
const PROBLEMS_MAX: usize = 100;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    problem: Problem,
    rules: Vec<RuleProblem>,
    /// After how many seconds to try again, where that is known.
    retry_after_s: Option<u64>,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, rules: Vec::new(), retry_after_s: None }
    }
}

impl From<PipelineError> for Refusal {
    /// Why a change was not made.
    fn from(error: PipelineError) -> Self {
        reply::unchanged(error, "a rule", |reason| reply::no_room("rule_not_kept", reason)).into()
    }
}

impl Refusal {
    /// A rule that does not load.
    pub fn invalid_rule(rules: Vec<RuleProblem>) -> Self {
        let message = match rules.as_slice() {
            [only] => format!("the rule does not load: {}", told(only)),
            several => format!("the rule does not load: {} problems", several.len()),
        };
        let hint = rules.first().map(|first| first.hint.clone()).unwrap_or_default();
        Self { problem: Problem::new(422, "invalid_rule", message).hint(hint), rules, retry_after_s: None }
    }

    /// A change that comes too soon after others of the tenant.
    pub fn too_soon(wait: Duration) -> Self {
        let seconds = wait.as_secs() + 1;
        let problem = Problem::new(429, "too_many_changes", "the tenant changes its rules too often");
        let hint = format!(
            "try again in {seconds} s, put several rules into one text, or raise threat_detection.tenant_changes_per_minute"
        );
        Self { problem: problem.hint(hint), rules: Vec::new(), retry_after_s: Some(seconds) }
    }

    /// A rule that does not load for a reason of the API's own.
    pub fn invalid_text(line: usize, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        let (reason, hint) = (reason.into(), hint.into());
        let problem = RuleProblem { file: String::new(), line, column: 1, rule: String::new(), reason, hint };
        Self::invalid_rule(vec![problem])
    }

    /// A change that would keep other rules from loading.
    pub fn in_use(rules: Vec<RuleProblem>) -> Self {
        let users: Vec<&str> = rules.iter().map(|problem| problem.rule.as_str()).take(5).collect();
        let message = format!("other rules need this one as it is: {}", users.join(", "));
        Self {
            problem: Problem::new(409, "rule_in_use", message).hint("change those first"),
            rules,
            retry_after_s: None,
        }
    }

    /// The stable word for programs.
    pub fn code(&self) -> &'static str {
        self.problem.code
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.problem.status
    }

    /// What is wrong with rules.
    pub fn rules(&self) -> &[RuleProblem] {
        &self.rules
    }

    /// The answer.
    pub fn into_response(self, request_id: &str) -> Response<Body> {
        let mut response = reply::problem(&self.problem, request_id);
        if !self.rules.is_empty() {
            let status = response.status();
            response = reply::json(status, &self.to_json(request_id));
        }
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// The body of the answer: that of every refusal, with `error.problems`.
    pub fn to_json(&self, request_id: &str) -> Value {
        let mut body: Value = serde_json::from_str(&self.problem.to_json(request_id)).unwrap_or_else(|_| json!({}));
        if !self.rules.is_empty() {
            body["error"]["problems"] = self.rules.iter().take(PROBLEMS_MAX).map(shown).collect();
        }
        body
    }
}

/// A problem of a rule, for people.
pub fn shown(problem: &RuleProblem) -> Value {
    json!({
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "rule": problem.rule,
        "reason": problem.reason,
        "hint": problem.hint,
    })
}

fn told(problem: &RuleProblem) -> String {
    format!("line {}, column {}: {}", problem.line, problem.column, problem.reason)
}

/// The answer to a request that asked for something that the tenant does not have.
pub fn no_such_rule(id: &str) -> Refusal {
    let id: String = id.chars().take(200).collect();
    Problem::new(404, "not_found", format!("the tenant has no rule {id:?}"))
        .hint("GET /v2/threat-detection/rules lists them")
        .into()
}
