//! `GET /v2/rules`: the rules in force, and why others are not.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use parking_lot::RwLock;
use serde_json::json;

use super::reply::{self, Body};
use super::rules_sync::RulesView;

/// The endpoint.
pub struct RulesDoor {
    /// What the sync last found.
    pub view: Arc<RwLock<Arc<RulesView>>>,
}

impl RulesDoor {
    /// Answers with all rules that see the events of every tenant.
    pub fn handle(&self) -> Response<Body> {
        let view = self.view.read().clone();
        let answer = json!({"rules": view.rules, "problems": view.problems, "skipped": view.skipped});
        reply::json(StatusCode::OK, &answer)
    }
}
