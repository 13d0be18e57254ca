//! `POST /v2/threat-detection/analyze`: a rule tried on events that come with it, or on stored events of a time range.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tidegate_events::{Alert, Dataset, alerts_to_batch};
use tidegate_ingest::decode::{Body as EventBody, BodyFormat, DecodeConfig, Decoder};
use tidegate_ingest::http::{BodyPace, InFlight, read_body};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::Principal;
use tidegate_pipeline::{LogBatch, Problem};
use tidegate_rules::{Match, Rehearsal, RulesConfig};
use tidegate_sinks::feed::render_alerts;

use super::ThreatDetection;
use super::check::{Check, own_problem};
use super::places::Place;
use super::range::{self, Range as TimeRange};
use super::refusal::{Refusal, no_such_rule};
use super::shelf::{Shelf, text_of};
use crate::serve::keys_door::is_operator;
use crate::serve::reply::{self, Body};

/// Rows that are looked at between two looks at the clock.
const PIECE_ROWS: usize = 4_096;

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    rule: Option<String>,
    rule_id: Option<String>,
    events: Option<IgnoredAny>,
    source: Option<String>,
    dataset: Option<String>,
    from: Option<String>,
    to: Option<String>,
    org: Option<String>,
}

/// What has to be analyzed, read and compiled.
enum Analysis {
    Events(Box<Events>),
    Range(Box<(Rehearsal, TimeRange)>),
}

/// Events that came with a rule.
struct Events {
    rehearsal: Rehearsal,
    dataset: Dataset,
    source: Option<Arc<str>>,
    /// The JSON array.
    text: Vec<u8>,
}

/// What reading a request needs beside its body.
struct Reader {
    principal: Principal,
    shelf: Arc<Shelf>,
    config: RulesConfig,
}

/// Says that nobody waits for the answer any more, once dropped.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ThreatDetection {
    /// Answers with what a rule makes of events.
    pub(super) async fn analyze(
        &self,
        body: Incoming,
        inflight: &Arc<InFlight>,
        principal: &Principal,
    ) -> Result<Response<Body>, Refusal> {
        let place = self.analyses.enter(&principal.org_id).ok_or_else(|| {
            Problem::new(429, "too_many_analyses", "as many analyses run as may")
                .hint("try again in a moment, or raise threat_detection.analyses_max and tenant_analyses_max")
        })?;
        let body = read_body(body, self.config.analyze_body_bytes_max, BodyPace::default(), inflight).await?;
        let config = self.config.of_analysis(&self.rules);
        let reader = Reader { principal: principal.clone(), shelf: self.shelf.clone(), config };
        let (analysis, principal) = self.compile(move || reader.read(body)).await??;
        match analysis {
            Analysis::Events(events) => self.analyze_events(*events, &principal, place).await,
            Analysis::Range(parts) => {
                let (rehearsal, range) = *parts;
                range::answer(self, rehearsal, range, &principal, place).await
            }
        }
    }

    async fn analyze_events(
        &self,
        events: Events,
        principal: &Principal,
        place: Place,
    ) -> Result<Response<Body>, Refusal> {
        let gone = Gone(Arc::default());
        // Beyond that events are not decoded only to be refused: what follows counts as one more.
        let body_events_max = self.decode.body_events_max.min(self.config.analyze_events_max);
        let decode = DecodeConfig { body_events_max, ..self.decode.clone() };
        let run = EventsRun {
            org_id: principal.org_id.clone(),
            decoder: Decoder::new(self.mappings.clone(), decode, getrandom::u64().unwrap_or(1)),
            events_max: self.config.analyze_events_max,
            shown_max: self.config.analyze_matches_max,
            deadline: Instant::now() + Duration::from_millis(self.config.analyze_ms_max),
            ms_max: self.config.analyze_ms_max,
            gone: gone.0.clone(),
        };
        let work = move || {
            let _place = place;
            run.run(events)
        };
        let answer = self.cpu.spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "an analysis ended early: a bug");
            Problem::new(500, "internal", "the analysis ended early; the server's log says why")
        })??;
        Ok(reply::json(StatusCode::OK, &answer))
    }
}

impl Reader {
    /// Reads and compiles what is asked, and says as whom. Blocks.
    fn read(self, body: Bytes) -> Result<(Analysis, Principal), Refusal> {
        let asked: Asked = serde_json::from_slice(&body).map_err(|error| {
            Problem::new(400, "invalid_body", format!("the body is not what this endpoint takes: {error}")).hint(
                r#"send {"rule": "title: …", "events": [{…}, …]} or {"rule": "…", "from": "2026-01-31T00:00:00Z"}"#,
            )
        })?;
        let principal = self.acting(&asked)?;
        let mut rehearsal = self.rehearsal(&asked, &principal.org_id)?;
        let dataset = match asked.dataset.as_deref() {
            Some("security_events") => Dataset::SecurityEvents,
            Some("cost_events") => Dataset::CostEvents,
            Some(_) => return Err(invalid("dataset is security_events or cost_events")),
            None if rehearsal.datasets() == [Dataset::CostEvents] => Dataset::CostEvents,
            None => Dataset::SecurityEvents,
        };
        match (asked.events, &asked.from) {
            (Some(_), None) if asked.to.is_none() => {
                let text = member(&body, "events").and_then(|range| body.get(range)).unwrap_or_default();
                if text.first() != Some(&b'[') {
                    return Err(invalid("events is an array of objects"));
                }
                let source = asked.source.filter(|source| !source.is_empty()).map(Arc::from);
                let events = Events { rehearsal, dataset, source, text: text.to_vec() };
                Ok((Analysis::Events(Box::new(events)), principal))
            }
            (None, Some(from)) => {
                if asked.source.is_some() {
                    return Err(invalid("source is for events that come with the rule"));
                }
                let range = TimeRange::parse(dataset, from, asked.to.as_deref(), now_us())?;
                Ok((Analysis::Range(Box::new((rehearsal, range))), principal))
            }
            _ => Err(invalid("either events, or from (and to), must be given")),
        }
    }

    /// The tenant on whose events the rule is tried: another than its own for the operator of the machine only.
    fn acting(&self, asked: &Asked) -> Result<Principal, Refusal> {
        let Some(org) = asked.org.as_deref().filter(|org| *org != &*self.principal.org_id) else {
            return Ok(self.principal.clone());
        };
        if !is_operator(&self.principal) {
            let problem = Problem::new(403, "forbidden", "a key sees the events of its own tenant only");
            return Err(problem.hint("leave `org` out, or ask on the machine of the server without a key: tidegate rules hunt --org ORG --data-dir DIR").into());
        }
        Ok(Principal { org_id: org.into(), ..self.principal.clone() })
    }

    fn rehearsal(&self, asked: &Asked, org_id: &str) -> Result<Rehearsal, Refusal> {
        let items = self.shelf.items(org_id);
        let (text, owner) = match (&asked.rule, &asked.rule_id) {
            (Some(text), None) => (text.as_str(), org_id),
            (None, Some(id)) => {
                let item = items.iter().find(|item| item.id() == id && !id.is_empty());
                let entry = &item.ok_or_else(|| no_such_rule(id))?.entry;
                (text_of(entry), entry.org_id.as_str())
            }
            _ => return Err(invalid("either rule (a text) or rule_id must be given")),
        };
        let check = Check { org_id, items: &items, config: &self.config };
        let files = check.to_run(text, owner)?;
        let mut rehearsal = Rehearsal::new(&files, &self.config).map_err(|error| {
            tracing::error!(%error, "rules could not be compiled: a bug");
            Problem::new(500, "internal", "the rule could not be compiled; the server's log says why")
        })?;
        let problems: Vec<_> = rehearsal.problems().iter().filter_map(own_problem).collect();
        if problems.is_empty() { Ok(rehearsal) } else { Err(Refusal::invalid_rule(problems)) }
    }
}

/// The run of a rule over events that came with it.
struct EventsRun {
    org_id: Arc<str>,
    decoder: Decoder,
    events_max: usize,
    shown_max: usize,
    deadline: Instant,
    ms_max: u64,
    gone: Arc<AtomicBool>,
}

impl EventsRun {
    /// Decodes the events as ingest does, and runs the rule as the run loop does. Blocks.
    fn run(mut self, events: Events) -> Result<Value, Refusal> {
        let Events { mut rehearsal, dataset, source, text } = events;
        let received_us = now_us();
        let body = EventBody {
            org_id: self.org_id.clone(),
            dataset,
            source,
            format: BodyFormat::Json,
            bytes: text,
            received_us,
            idempotency_key: None,
            request_id: "analysis".into(),
        };
        let result = self.decoder.push(body);
        // An array without events is a body without events.
        if let Some(error) = result.error.filter(|error| error.code != "empty_body") {
            return Err(Problem::new(400, "invalid_body", error.reason).into());
        }
        if result.items as usize > self.events_max {
            let message = format!("more than {} events came", self.events_max);
            let hint = "send fewer, or raise threat_detection.analyze_events_max";
            return Err(Problem::new(413, "too_many_events", message).hint(hint).into());
        }
        let decoded = self.decoder.flush().map_err(|error| Problem::new(413, "too_many_events", error.to_string()))?;
        let (mut matches, mut alerts) = (Vec::new(), Vec::new());
        let mut matched = 0;
        let mut offset = 0;
        for (batch, rows) in decoded.batches.iter().zip(&decoded.rows).filter(|(batch, _)| batch.dataset == dataset) {
            for start in (0..batch.rows.num_rows()).step_by(PIECE_ROWS) {
                self.may_go_on()?;
                let rows_now = batch.rows.slice(start, PIECE_ROWS.min(batch.rows.num_rows() - start));
                let piece = LogBatch { offset, dataset, rows: rows_now };
                offset = piece.next_offset();
                for found in rehearsal.matches(&piece) {
                    matched += 1;
                    if let Some(row) = rows.get(start + found.row).filter(|_| matches.len() < self.shown_max) {
                        matches.push((row.item, found));
                    }
                }
                alerts.extend(rehearsal.process(&piece));
            }
        }
        self.may_go_on()?;
        alerts.extend(rehearsal.end().map_err(|error| Problem::new(500, "internal", error.to_string()))?);
        matches.sort_by_key(|(index, _)| *index);
        let refused = result.rejected.iter().take(self.shown_max);
        let problems: Vec<Value> = refused
            .map(|rejected| json!({"index": rejected.index, "code": rejected.code, "reason": rejected.reason}))
            .collect();
        let raised = alerts.len();
        alerts.truncate(self.shown_max);
        Ok(json!({
            "events": result.items,
            "matched": matched,
            "matches": matches.iter().map(|(index, found)| shown(*index, found)).collect::<Vec<_>>(),
            "raised": raised,
            "alerts": rendered(&alerts, received_us),
            "problems": problems,
            "parked": rehearsal.parked().iter().map(|parked| json!({"rule_id": parked.rule_id, "reason": parked.reason})).collect::<Vec<_>>(),
        }))
    }

    fn may_go_on(&self) -> Result<(), Problem> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Problem::new(503, "query_cancelled", "the client went away"));
        }
        if Instant::now() >= self.deadline {
            let message = format!("the analysis did not end within {} ms", self.ms_max);
            let hint = "send fewer events, or raise threat_detection.analyze_ms_max";
            return Err(Problem::new(408, "analysis_timeout", message).hint(hint));
        }
        Ok(())
    }
}

fn shown(index: u32, found: &Match) -> Value {
    let matched: Value = serde_json::from_str(&found.matched).unwrap_or(Value::Null);
    json!({"index": index, "rule_id": found.rule_id, "title": found.title, "matched": matched})
}

/// Alerts as `GET /v2/alerts` shows them, but for what they get when they are stored.
pub fn rendered(alerts: &[Alert], received_us: i64) -> Vec<Value> {
    let Ok(rows) = alerts_to_batch(alerts, 0, received_us) else { return Vec::new() };
    let parse = |(_, text): (u64, String)| {
        let mut alert: Value = serde_json::from_str(&text).ok()?;
        alert.as_object_mut()?.remove("seq");
        Some(alert)
    };
    render_alerts(&rows).into_iter().filter_map(parse).collect()
}

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Problem::new(400, "invalid_body", message).into()
}

/// Where the value of a member of the object in `json` stands: of the last one of that name. The text must have been parsed
/// before: on what is not JSON the answer is any.
fn member(json: &[u8], name: &str) -> Option<Range<usize>> {
    let mut found = None;
    let mut at = skip_space(json, 0);
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at = skip_space(json, at + 1);
    while json.get(at) == Some(&b'"') {
        let key_end = value_end(json, at);
        let key: Option<String> = json.get(at..key_end).and_then(|key| serde_json::from_slice(key).ok());
        let start = skip_space(json, skip_space(json, key_end) + 1);
        let end = value_end(json, start);
        if key.as_deref() == Some(name) {
            found = Some(start..end);
        }
        at = skip_space(json, end);
        if json.get(at) == Some(&b',') {
            at = skip_space(json, at + 1);
        }
    }
    found
}

fn skip_space(json: &[u8], from: usize) -> usize {
    let rest = json.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count()
}

/// The end of the value that starts at `from`.
fn value_end(json: &[u8], from: usize) -> usize {
    let (mut depth, mut text, mut escaped) = (0usize, false, false);
    for (at, byte) in json.iter().enumerate().skip(from) {
        if text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    text = false;
                    if depth == 0 {
                        return at + 1;
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => text = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 0 => return at,
            b']' | b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return at,
            _ => {}
        }
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_are_found_as_they_are_written() {
        for (body, wanted) in [
            (r#"{"events":[1, {"a":"]"}],"rule":"x"}"#, r#"[1, {"a":"]"}]"#),
            (r#" { "rule" : "\"events\":[0]\\" , "events" : [ {"n":1e400} ] } "#, r#"[ {"n":1e400} ]"#),
            (r#"{"rule_id":"x","\u0065vents":[]}"#, "[]"),
            (r#"{"a":1,"events":null}"#, "null"),
            (r#"{"events":[1],"events":[2]}"#, "[2]"),
            (r#"{"a":{"events":[1]},"b":true}"#, ""),
            ("[]", ""),
            ("{", ""),
            (r#"{"events":"#, ""),
        ] {
            let range = member(body.as_bytes(), "events").unwrap_or_default();
            assert_eq!(body.get(range).unwrap_or_default().trim(), wanted, "{body}");
        }
    }
}
