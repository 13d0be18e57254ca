//! The table of endpoints: one place from which requests are dispatched and the OpenAPI document is made.

use tidegate_pipeline::keys::Role;

use super::threat_detection::{ANALYZE, RULE, RULE_DISABLE, RULE_ENABLE, RULES, VALIDATE};

/// Feedback on an alert.
pub const FEEDBACK: &str = "/v2/alerts/{id}/feedback";
/// What feedback on an alert silences.
pub const SILENCE: &str = "/v2/alerts/{id}/silence";

/// What answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A few words on what this is and where to go on.
    Welcome,
    /// The process lives.
    Healthz,
    /// The process can do its work.
    Readyz,
    /// Prometheus metrics.
    Metrics,
    /// This table as OpenAPI 3.1.
    OpenApi,
    /// Events in.
    Ingest,
    /// SQL in, rows out.
    Sql,
    /// Reading events and alerts.
    Read,
    /// The alert feed.
    Feed,
    /// Feedback on alerts, and silences.
    Feedback,
    /// API keys.
    Keys,
    /// Rules, and rules tried on events.
    ThreatDetection,
}

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// HTTP method.
    pub method: &'static str,
    /// Path; a segment in braces stands for any one segment.
    pub path: &'static str,
    /// The role it needs; `None` for endpoints that tell nothing of any tenant.
    pub role: Option<Role>,
    /// What answers.
    pub door: Door,
    /// One line for the documentation.
    pub summary: &'static str,
}

const fn route(
    method: &'static str,
    path: &'static str,
    role: Option<Role>,
    door: Door,
    summary: &'static str,
) -> Route {
    Route { method, path, role, door, summary }
}

/// All endpoints.
pub const ROUTES: &[Route] = &[
    route("GET", "/", None, Door::Welcome, "What this is and where to go on"),
    route("GET", "/healthz", None, Door::Healthz, "200 while the process lives"),
    route("GET", "/readyz", None, Door::Readyz, "200 when all stages make progress, 503 naming the one that is stuck"),
    route("GET", "/metrics", None, Door::Metrics, "Prometheus metrics"),
    route("GET", "/openapi.json", None, Door::OpenApi, "This document"),
    route("POST", "/v2/events", Some(Role::Ingest), Door::Ingest, "Store one security event"),
    route("POST", "/v2/events/bulk", Some(Role::Ingest), Door::Ingest, "Store many events"),
    route("POST", "/v2/costs/bulk", Some(Role::Ingest), Door::Ingest, "Store many cost events (FOCUS)"),
    route("POST", "/v2/sql", Some(Role::Read), Door::Sql, "Ask a question in SQL"),
    route("GET", "/v2/events", Some(Role::Read), Door::Read, "Page through stored events, newest first"),
    route("GET", "/v2/events/stats", Some(Role::Read), Door::Read, "Counts over time, by source and severity"),
    route("GET", "/v2/events/{id}", Some(Role::Read), Door::Read, "One event, whole"),
    route("GET", "/v2/alerts", Some(Role::Read), Door::Read, "Page through stored alerts, newest first"),
    route("GET", "/v2/alerts/stream", Some(Role::Read), Door::Feed, "Follow alerts: WebSocket, or server-sent events"),
    route("GET", "/v2/alerts/{id}", Some(Role::Read), Door::Read, "One alert, whole"),
    route("GET", FEEDBACK, Some(Role::Read), Door::Feedback, "What was said last about an alert"),
    route("POST", FEEDBACK, Some(Role::Admin), Door::Feedback, "Say what an alert turned out to be; silence its like"),
    route("DELETE", SILENCE, Some(Role::Admin), Door::Feedback, "End the silence that feedback on an alert began"),
    route("GET", RULES, Some(Role::Read), Door::ThreatDetection, "Page through the rules, with the state of each"),
    route("POST", RULES, Some(Role::Admin), Door::ThreatDetection, "Make a rule"),
    route("POST", VALIDATE, Some(Role::Read), Door::ThreatDetection, "Say whether a rule would load, and keep nothing"),
    route(
        "POST",
        ANALYZE,
        Some(Role::Read),
        Door::ThreatDetection,
        "Try a rule on events, or on a range of stored ones",
    ),
    route("GET", RULE, Some(Role::Read), Door::ThreatDetection, "One rule, with its text"),
    route("PUT", RULE, Some(Role::Admin), Door::ThreatDetection, "Replace a rule"),
    route("DELETE", RULE, Some(Role::Admin), Door::ThreatDetection, "Remove a rule"),
    route("POST", RULE_ENABLE, Some(Role::Admin), Door::ThreatDetection, "Turn a rule on for the tenant's events"),
    route("POST", RULE_DISABLE, Some(Role::Admin), Door::ThreatDetection, "Turn a rule off for the tenant's events"),
    route("GET", "/v2/keys", Some(Role::Admin), Door::Keys, "The API keys of the tenant, without their secrets"),
    route("POST", "/v2/keys", Some(Role::Admin), Door::Keys, "Make an API key; its secret is shown once"),
    route("DELETE", "/v2/keys/{id}", Some(Role::Admin), Door::Keys, "Revoke an API key at once"),
];

/// What the table says of a request.
#[derive(Debug, Clone, Copy)]
pub enum Found {
    /// This endpoint.
    Route(&'static Route),
    /// The path exists, for these methods.
    Methods(&'static str),
    /// No such path.
    Nothing,
}

/// Looks a request up. A path without braces goes before one with.
pub fn find(method: &str, path: &str) -> Found {
    // Most requests are for a path without braces, written as the table has it.
    if let Some(route) = ROUTES.iter().find(|route| route.path == path && route.method == method) {
        return Found::Route(route);
    }
    let mut best: Option<&'static Route> = None;
    let mut other_method: Option<&'static str> = None;
    for route in ROUTES.iter().filter(|route| matches(route.path, path)) {
        if route.method == method || (method == "HEAD" && route.method == "GET" && route.role.is_none()) {
            if best.is_none_or(|best| best.path.contains('{')) {
                best = Some(route);
            }
        } else {
            other_method = Some(allowed(route.path));
        }
    }
    match (best, other_method) {
        (Some(route), _) => Found::Route(route),
        (None, Some(methods)) => Found::Methods(methods),
        (None, None) => Found::Nothing,
    }
}

fn allowed(path: &str) -> &'static str {
    match path {
        "/v2/events" => "POST, GET",
        "/v2/keys" | RULES | FEEDBACK => "GET, POST",
        RULE => "GET, PUT, DELETE",
        VALIDATE | ANALYZE | RULE_ENABLE | RULE_DISABLE => "POST",
        "/v2/keys/{id}" | SILENCE => "DELETE",
        "/v2/events/bulk" | "/v2/costs/bulk" | "/v2/sql" => "POST",
        _ => "GET",
    }
}

fn matches(template: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    let fits = template.split('/').all(|expected| {
        segments.next().is_some_and(|segment| expected == segment || (expected.starts_with('{') && !segment.is_empty()))
    });
    fits && segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(method: &str, path: &str) -> Option<Door> {
        match find(method, path) {
            Found::Route(route) => Some(route.door),
            _ => None,
        }
    }

    #[test]
    fn fixed_segments_go_before_braces() {
        assert_eq!(door("GET", "/v2/alerts/stream"), Some(Door::Feed));
        assert_eq!(door("GET", "/v2/alerts/abc"), Some(Door::Read));
        assert_eq!(door("POST", "/v2/events/bulk"), Some(Door::Ingest));
        assert_eq!(door("GET", "/v2/alerts/"), None);
        assert_eq!(door("GET", "/v2/alerts/a/b"), None);
    }

    #[test]
    fn allowed_methods_are_those_of_the_table() {
        for route in ROUTES {
            let of_path: Vec<_> =
                ROUTES.iter().filter(|other| other.path == route.path).map(|other| other.method).collect();
            assert_eq!(allowed(route.path), of_path.join(", "), "{}", route.path);
        }
        assert!(matches!(find("PUT", "/v2/sql"), Found::Methods("POST")));
        assert!(matches!(find("GET", "/nothing"), Found::Nothing));
    }
}
