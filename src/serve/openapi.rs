//! The OpenAPI 3.1 document, made from the table of endpoints.

use serde_json::{Map, Value, json};

use super::routes::{Door, ROUTES, Route};
use super::threat_detection::{ANALYZE, RULES, VALIDATE};

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.method.to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Security and cost events in bulk, durable before the answer; rules while they stream; SQL over all of it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key made by `tidegate key create`. Without any key the server listens on loopback only and needs none."}},
            "schemas": schemas(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "parameters": parameters(route),
        "responses": responses(route),
    });
    if route.role.is_some() {
        operation["security"] = json!([{"key": []}]);
        operation["description"] = json!(format!("Needs the role `{}`.", route.role.map_or("", |role| role.as_str())));
    }
    if let Some(body) = request_body(route) {
        operation["requestBody"] = body;
    }
    operation
}

fn operation_id(route: &Route) -> String {
    let words = route.path.split(['/', '.']).filter(|word| !word.is_empty() && *word != "v2");
    let words: Vec<_> = words.map(|word| word.trim_matches(['{', '}'])).collect();
    if words.is_empty() { "welcome".to_owned() } else { format!("{}_{}", route.method.to_lowercase(), words.join("_")) }
}

fn parameters(route: &Route) -> Vec<Value> {
    let mut parameters = Vec::new();
    if route.path.contains("{id}") {
        parameters.push(json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}));
    }
    for (name, kind, description) in query_parameters(route) {
        parameters.push(json!({"name": name, "in": "query", "description": description, "schema": {"type": kind}}));
    }
    if route.door == Door::Ingest {
        parameters.push(json!({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"},
            "description": "Events without an id of their own get this key and their index as id, so that a repeated request stores nothing twice."}));
    }
    if route.door == Door::ThreatDetection && matches!(route.method, "PUT" | "DELETE") {
        parameters.push(json!({"name": "If-Match", "in": "header", "schema": {"type": "string"},
            "description": "The `ETag` of the rule that is meant; 412 when it was changed since"}));
    }
    parameters
}

type Parameter = (&'static str, &'static str, &'static str);

fn query_parameters(route: &Route) -> &'static [Parameter] {
    match (route.door, route.path) {
        (Door::Ingest, "/v2/events") => &[SOURCE, DATASET, ACK, DETAIL],
        (Door::Ingest, _) => &[SOURCE, DATASET, ACK, DETAIL],
        (Door::Read, "/v2/events") => &[
            FROM,
            TO,
            DATASET,
            ("source", "string", "Only this kind of record"),
            ("severity_min", "integer", "Only this OCSF severity (0 to 6) and above"),
            ("actor", "string", "Only this actor"),
            ("src_ip", "string", "Only this source address"),
            ("asset", "string", "Only this asset"),
            ("q", "string", "Only events whose message holds this text"),
            LIMIT,
            CURSOR,
        ],
        (Door::Read, "/v2/events/stats") => {
            &[FROM, TO, DATASET, ("bucket", "string", "`minute`, `hour` (default) or `day`")]
        }
        (Door::Read, "/v2/events/{id}") => &[DATASET],
        (Door::Read, "/v2/alerts") => &[FROM, TO, LEVEL, RULE, TAG, ENTITY, LIMIT, CURSOR],
        (Door::ThreatDetection, RULES) if route.method == "GET" => &[
            LEVEL,
            ("tag", "string", "Only rules with this tag, or one below it"),
            ("enabled", "boolean", "Only rules that are on, or off, for the tenant"),
            ("origin", "string", "`pack`, `folder` or `api`"),
            ("status", "string", "`loaded`, `problem`, `parked` or `pending`"),
            ("q", "string", "Only rules whose id, file, title or description holds this text"),
            LIMIT,
            CURSOR,
        ],
        (Door::Feed, _) => &[("after", "integer", "Resume after this sequence number"), LEVEL, RULE, TAG, ENTITY],
        _ => &[],
    }
}

const SOURCE: Parameter =
    ("source", "string", "The kind of record (`cloudtrail`, `windows`, …); found out when absent");
const DATASET: Parameter = ("dataset", "string", "`security_events` (default) or `cost_events`");
const ACK: Parameter = ("ack", "string", "`disk` (default): answer after fdatasync; `memory`: answer once ordered");
const DETAIL: Parameter = ("detail", "string", "`all`: list every item with its event_id, not only those not stored");
const FROM: Parameter = ("from", "string", "From this time on (RFC 3339, or relative like `-1h`)");
const TO: Parameter = ("to", "string", "Before this time (RFC 3339, or relative)");
const LIMIT: Parameter = ("limit", "integer", "Rows a page, at most 1000");
const CURSOR: Parameter = ("cursor", "string", "`cursor` of the page before");
const LEVEL: Parameter = ("level", "string", "Only this level and above");
const RULE: Parameter = ("rule", "string", "Only alerts of this rule id");
const TAG: Parameter = ("tag", "string", "Only alerts with this tag");
const ENTITY: Parameter = ("entity", "string", "Only alerts about this actor, asset, resource or group key");

fn request_body(route: &Route) -> Option<Value> {
    let event = json!({"type": "object"});
    let events = json!({"oneOf": [{"type": "array", "items": event}, {"type": "object", "properties": {"events": {"type": "array", "items": event}}}]});
    let content = match (route.door, route.method, route.path) {
        (Door::Ingest, _, "/v2/events") => json!({"application/json": {"schema": event}}),
        (Door::Ingest, _, _) => json!({
            "application/json": {"schema": events},
            "application/x-ndjson": {"schema": {"type": "string"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
        }),
        (Door::Sql, _, _) => json!({
            "application/json": {"schema": {"type": "object", "required": ["sql"], "properties": {"sql": {"type": "string"}}}},
            "text/plain": {"schema": {"type": "string"}},
        }),
        (Door::Feedback, "POST", _) => {
            json!({"application/json": {"schema": {"$ref": "#/components/schemas/NewFeedback"}}})
        }
        (Door::Keys, "POST", _) => json!({"application/json": {"schema": {"$ref": "#/components/schemas/NewKey"}}}),
        (Door::ThreatDetection, _, ANALYZE) => {
            json!({"application/json": {"schema": {"$ref": "#/components/schemas/Analysis"}}})
        }
        (Door::ThreatDetection, "PUT", _) | (Door::ThreatDetection, _, RULES | VALIDATE) if route.method != "GET" => {
            json!({
                "application/yaml": {"schema": {"type": "string", "description": "Sigma, one document or several"}},
                "application/json": {"schema": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}},
            })
        }
        _ => return None,
    };
    Some(json!({"required": true, "content": content}))
}

fn responses(route: &Route) -> Value {
    let json_body = |schema: Value| json!({"application/json": {"schema": schema}});
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let problem = |description: &str| json!({"description": description, "content": json_body(reference("Problem"))});
    let mut responses = Map::new();
    let ok = match route.door {
        Door::Metrics => json!({"text/plain": {"schema": {"type": "string"}}}),
        Door::Ingest => json_body(reference("Accepted")),
        Door::Sql => json!({
            "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
            "application/x-ndjson": {"schema": {"type": "string"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
        }),
        Door::ThreatDetection if route.path == ANALYZE => json!({
            "application/json": {"schema": {"type": "object", "description": "For events that came with the rule"}},
            "application/x-ndjson": {"schema": {"type": "string", "description": "For a time range: lines of alerts and progress, then the summary"}},
        }),
        Door::Feed => json!({"text/event-stream": {"schema": {"type": "string"}}}),
        _ => json_body(json!({"type": "object"})),
    };
    responses.insert("200".into(), json!({"description": "Done", "content": ok}));
    if route.role.is_some() {
        responses.insert("401".into(), problem("No key, or not one that is known"));
        responses.insert("403".into(), problem("The key's role does not allow this"));
        responses.insert("400".into(), problem("Something about the request is wrong; the message says what"));
    }
    match route.door {
        Door::Ingest => {
            responses.insert(
                "207".into(),
                json!({"description": "Some stored, some rejected", "content": json_body(reference("Accepted"))}),
            );
            responses.insert("408".into(), problem("The body stalled or trickled"));
            responses.insert("413".into(), problem("Too many bytes, sent or inflated"));
            responses.insert("415".into(), problem("A content type or encoding that is not taken"));
            responses.insert("429".into(), problem("Full for now: retry after `Retry-After` seconds"));
            responses.insert("503".into(), problem("The events could not be made durable: retry"));
        }
        Door::Sql => {
            responses.insert("406".into(), problem("`Accept` names no format that there is"));
            responses.insert("408".into(), problem("The query took longer than it may"));
            responses.insert("413".into(), problem("The statement is too long"));
            responses.insert("429".into(), problem("Too many queries at once"));
        }
        Door::Feed => {
            responses.insert("101".into(), json!({"description": "WebSocket: frames of `{\"seq\", \"alert\"}`"}));
            responses.insert("426".into(), problem("Neither a WebSocket upgrade nor `Accept: text/event-stream`"));
            responses.insert("503".into(), problem("Too many subscribers"));
        }
        Door::Feedback if route.method == "POST" => {
            responses.insert("201".into(), json!({"description": "Said for the first time about this alert"}));
            responses.insert("409".into(), problem("There are as many silences as there may be"));
        }
        Door::Keys if route.method == "POST" => {
            responses.insert("201".into(), json!({"description": "The key; its secret is shown only here"}));
        }
        Door::ThreatDetection => threat_detection_responses(route, &mut responses),
        Door::Readyz => {
            responses.insert("503".into(), json!({"description": "Not ready; `stuck` names the stages"}));
        }
        _ => {}
    }
    if route.path.contains("{id}") {
        responses.insert("404".into(), problem("Nothing with this id"));
    }
    Value::Object(responses)
}

fn threat_detection_responses(route: &Route, responses: &mut Map<String, Value>) {
    let mut problem = |status: &str, description: &str| {
        let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
        responses.insert(status.into(), json!({"description": description, "content": content}));
    };
    problem("429", "The log or the compiler is busy: retry");
    problem("503", "The rules are still being read, or the change could not be made durable: retry");
    if route.method != "GET" {
        problem("409", "The rule cannot be changed so; the hint says what can be done");
        problem("413", "The rule is too large");
        problem("422", "The rule does not load; `error.problems` says where and why");
    }
    match (route.method, route.path) {
        ("GET", RULES) => {}
        ("GET", _) => {
            problem("406", "A rule is JSON or YAML");
            responses.insert("304".into(), json!({"description": "The rule is the one that `If-None-Match` names"}));
        }
        ("PUT", _) => problem("412", "The rule is not the one that `If-Match` names"),
        ("DELETE", _) => {
            problem("412", "The rule is not the one that `If-Match` names");
            responses.remove("200");
            responses.insert("204".into(), json!({"description": "Removed"}));
        }
        (_, ANALYZE) => {
            problem("404", "The tenant has no rule with this id");
            problem("408", "The analysis took longer than it may");
        }
        ("POST", RULES) => {
            responses.remove("200");
            responses.insert("201".into(), json!({"description": "Made; `Location` names it"}));
        }
        _ => {}
    }
}

fn schemas() -> Value {
    json!({
        "Accepted": {
            "type": "object",
            "required": ["accepted", "duplicates", "rejected", "items"],
            "properties": {
                "accepted": {"type": "integer"},
                "duplicates": {"type": "integer"},
                "rejected": {"type": "integer"},
                "items": {"type": "array", "items": {"type": "object", "required": ["index", "status"], "properties": {
                    "index": {"type": "integer"},
                    "status": {"enum": ["stored", "duplicate", "rejected"]},
                    "event_id": {"type": "string"},
                    "code": {"type": "string"},
                    "reason": {"type": "string"},
                }}},
            },
        },
        "Problem": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {"type": "object", "required": ["code", "message"], "properties": {
                    "code": {"type": "string"}, "message": {"type": "string"}, "hint": {"type": "string"}, "docs": {"type": "string"},
                }},
                "request_id": {"type": "string"},
            },
        },
        "NewFeedback": {
            "type": "object",
            "required": ["verdict"],
            "properties": {
                "verdict": {"enum": ["false_positive", "true_positive", "benign"]},
                "comment": {"type": "string"},
                "silence": {"type": "object", "required": ["for"], "properties": {
                    "for": {"type": "string", "description": "A number and `s`, `m`, `h` or `d`"},
                    "scope": {"enum": ["group", "rule"], "description": "The rule for the alert's group (default), or for every group"},
                }},
            },
        },
        "Analysis": {
            "type": "object",
            "properties": {
                "rule": {"type": "string", "description": "Sigma, one document or several"},
                "rule_id": {"type": "string", "description": "Instead of `rule`: one that the tenant sees"},
                "events": {"type": "array", "items": {"type": "object"}},
                "source": {"type": "string", "description": "The kind of record of the events; found out when absent"},
                "dataset": {"enum": ["security_events", "cost_events"]},
                "from": {"type": "string", "format": "date-time", "description": "Instead of `events`: stored ones from this time on"},
                "to": {"type": "string", "format": "date-time", "description": "Before this time; now when absent"},
            },
        },
        "NewKey": {
            "type": "object",
            "required": ["role"],
            "properties": {
                "org": {"type": "string", "description": "The tenant; only the operator of the machine may name another than its own"},
                "role": {"enum": ["ingest", "read", "admin"]},
                "label": {"type": "string"},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_described_with_a_name_of_its_own() {
        let document = document();
        let mut names = Vec::new();
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.method.to_lowercase()];
            assert_eq!(operation["summary"], route.summary);
            let name = operation["operationId"].as_str().expect("a name").to_owned();
            assert!(!names.contains(&name), "{name} twice");
            names.push(name);
        }
    }
}
