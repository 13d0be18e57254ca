//! The body of every 4xx and 5xx answer, the same at every HTTP door.

use serde_json::json;

/// A refused request, for the client. What only the operator may see goes to the log instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// A stable word for programs: `body_too_large`, `unknown_key`, …
    pub code: &'static str,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it. May be empty.
    pub hint: String,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), hint: String::new() }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The JSON body: `{"error":{"code","message","hint","docs"},"request_id"}`.
    pub fn to_json(&self, request_id: &str) -> String {
        let docs = format!("docs/http-api.md#{}", self.code);
        let error = json!({"code": self.code, "message": self.message, "hint": self.hint, "docs": docs});
        json!({"error": error, "request_id": request_id}).to_string()
    }
}
