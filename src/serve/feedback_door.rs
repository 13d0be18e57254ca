//! `/v2/alerts/{id}/feedback` and `/v2/alerts/{id}/silence`: what an alert turned out to be, and what is not to be told again.
//!
//! Feedback is a row of `changes` (kind [`KIND`]), written through the registry: it is durable before the answer, audited
//! like any other change, and in force for the events after its offset. See [`tidegate_rules::feedback`].

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::Principal;
use tidegate_pipeline::registry::{Action, Change, Entry, Registry};
use tidegate_pipeline::{PipelineError, Problem};
use tidegate_query::{Query, QueryError};
use tidegate_rules::RulesConfig;
use tidegate_rules::feedback::{Feedback, KIND, SilenceScope, Verdict, span_us};
use tokio::sync::Mutex;

use super::reply::{self, Body};

/// Bytes of a comment.
const COMMENT_BYTES_MAX: usize = 4096;
/// Bytes of the id of an alert.
const ID_BYTES_MAX: usize = 64;

/// The endpoints.
pub struct FeedbackDoor {
    registry: Registry,
    query: Arc<Query>,
    rules: RulesConfig,
    /// One change at a time: from the look at what there is to its being made.
    editing: Mutex<()>,
}

/// What is said about an alert.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    verdict: Verdict,
    #[serde(default)]
    comment: String,
    silence: Option<Silence>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Silence {
    /// `7d`, `12h`, `30m`, `90s`.
    r#for: String,
    #[serde(default = "group")]
    scope: SilenceScope,
}

fn group() -> SilenceScope {
    SilenceScope::Group
}

impl FeedbackDoor {
    /// The endpoints over their parts.
    pub fn new(registry: Registry, query: Arc<Query>, rules: RulesConfig) -> Self {
        Self { registry, query, rules, editing: Mutex::default() }
    }

    /// Answers a request whose key allows what the route needs.
    pub async fn handle(
        &self,
        request: Request<Full<Bytes>>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        let answer = self.answer(request, principal).await;
        answer.unwrap_or_else(|problem| reply::problem(&problem, request_id))
    }

    async fn answer(&self, request: Request<Full<Bytes>>, principal: &Principal) -> Result<Response<Body>, Problem> {
        let (head, body) = request.into_parts();
        let id = head.uri.path().rsplit('/').nth(1).unwrap_or_default();
        if id.len() > ID_BYTES_MAX {
            return Err(no_such_alert());
        }
        match head.method {
            Method::GET => self.show(id, principal).await,
            Method::DELETE => self.unsilence(id, principal).await,
            _ => {
                let Ok(body) = body.collect().await;
                self.say(id, &body.to_bytes(), principal).await
            }
        }
    }

    async fn show(&self, id: &str, principal: &Principal) -> Result<Response<Body>, Problem> {
        match self.query.feedback_on(&principal.org_id, id).await.map_err(unread)? {
            Some(row) => Ok(reply::whole(StatusCode::OK, "application/json", format!("{{\"feedback\":{row}}}\n"))),
            None => Err(Problem::new(404, "no_feedback", "nothing was said about this alert")
                .hint("POST /v2/alerts/{id}/feedback says something")),
        }
    }

    async fn say(&self, id: &str, body: &[u8], principal: &Principal) -> Result<Response<Body>, Problem> {
        let said: Said = serde_json::from_slice(body).map_err(|error| {
            Problem::new(400, "invalid_body", error.to_string()).hint(
                r#"send {"verdict": "false_positive" | "true_positive" | "benign", "comment": "…", "silence": {"for": "7d", "scope": "group" | "rule"}}; comment and silence may be absent"#,
            )
        })?;
        if said.comment.len() > COMMENT_BYTES_MAX {
            let message = format!("the comment has {} bytes, more than {COMMENT_BYTES_MAX}", said.comment.len());
            return Err(Problem::new(400, "invalid_comment", message).hint("shorten it"));
        }
        let span = said.silence.as_ref().map(|silence| self.span(&silence.r#for)).transpose()?;
        let found = self.query.alert_of(&principal.org_id, id).await.map_err(unread)?;
        let alert = found.ok_or_else(no_such_alert)?;
        let _turn = self.editing.lock().await;
        let now = now_us();
        let known = self.registry.list(&principal.org_id, KIND);
        let before = known.iter().find(|entry| entry.id == id).and_then(feedback_of);
        // A silence stays in force until another one takes its place, or it is taken back.
        let (silence_scope, silence_until_us) = match (&said.silence, span, before) {
            (Some(silence), Some(span), _) => (Some(silence.scope), Some(now.saturating_add(span))),
            (_, _, Some(before)) if open(&before, now).is_some() => (before.silence_scope, before.silence_until_us),
            _ => (None, None),
        };
        let feedback = Feedback {
            rule_id: alert.rule_id,
            group_key: alert.group_key,
            verdict: said.verdict,
            comment: said.comment,
            silence_scope,
            silence_until_us,
        };
        if span.is_some() {
            self.check_room(&known, id, now)?;
        }
        let first = !known.iter().any(|entry| entry.id == id);
        let mut changes = vec![self.change(id, principal, now, &feedback, first)];
        if first && known.len() >= self.rules.feedback_max {
            changes.extend(oldest(&known, now).map(|entry| forgotten(entry, principal, now)));
        }
        self.registry.apply(changes).await.map_err(refused)?;
        let status = if first { StatusCode::CREATED } else { StatusCode::OK };
        Ok(reply::json(status, &json!({ "feedback": shown(id, &feedback, principal, now) })))
    }

    async fn unsilence(&self, id: &str, principal: &Principal) -> Result<Response<Body>, Problem> {
        let _turn = self.editing.lock().await;
        let now = now_us();
        let known = self.registry.get(&principal.org_id, KIND, id);
        let feedback = known.as_ref().and_then(feedback_of).filter(|feedback| open(feedback, now).is_some());
        let mut feedback = feedback.ok_or_else(|| {
            Problem::new(404, "no_silence", "feedback on this alert silences nothing now")
                .hint("SELECT * FROM alert_feedback WHERE silence_until > now() lists the silences in force")
        })?;
        (feedback.silence_scope, feedback.silence_until_us) = (None, None);
        let change = self.change(id, principal, now, &feedback, false);
        self.registry.apply(vec![change]).await.map_err(refused)?;
        Ok(reply::json(StatusCode::OK, &json!({ "feedback": shown(id, &feedback, principal, now) })))
    }

    /// Microseconds of the length of a silence.
    fn span(&self, text: &str) -> Result<i64, Problem> {
        let max = self.rules.silence_s_max;
        let longest = i64::try_from(max).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        span_us(text).filter(|span| (1..=longest).contains(span)).ok_or_else(|| {
            let message = format!("{text:?} is not how long a silence may be");
            Problem::new(400, "invalid_silence", message)
                .hint(format!("a number and s, m, h or d (`7d`), at most {max} seconds in all"))
        })
    }

    fn check_room(&self, known: &[Arc<Entry>], id: &str, now: i64) -> Result<(), Problem> {
        let others = known.iter().filter(|entry| entry.id != id).filter_map(feedback_of);
        let max = self.rules.silences_max;
        if others.filter(|feedback| open(feedback, now).is_some()).count() < max {
            return Ok(());
        }
        let message = format!("the tenant has {max} silences in force, which is the most there may be");
        Err(Problem::new(409, "too_many_silences", message)
            .hint("end some with DELETE /v2/alerts/{id}/silence, silence a whole rule, or raise sigma.silences_max"))
    }

    fn change(&self, id: &str, principal: &Principal, now: i64, feedback: &Feedback, first: bool) -> Change {
        Change {
            time_us: now,
            change_id: String::new(),
            org_id: principal.org_id.to_string(),
            actor: principal.key_id.to_string(),
            kind: KIND.to_owned(),
            target_id: id.to_owned(),
            action: if first { Action::Create } else { Action::Update },
            body: json!(feedback),
        }
    }
}

/// What an entry of the registry says.
fn feedback_of(entry: &Arc<Entry>) -> Option<Feedback> {
    Feedback::deserialize(&entry.body).ok()
}

/// The end of a silence that is in force.
fn open(feedback: &Feedback, now: i64) -> Option<i64> {
    feedback.silence_until_us.filter(|until| *until > now)
}

/// The oldest feedback that silences nothing.
fn oldest(known: &[Arc<Entry>], now: i64) -> Option<&Arc<Entry>> {
    let idle = |entry: &&Arc<Entry>| feedback_of(entry).is_none_or(|feedback| open(&feedback, now).is_none());
    known.iter().filter(idle).min_by_key(|entry| entry.updated_us)
}

/// The registry lets go of an entry; what was said stays in the table `changes`, and so in the view `alert_feedback`.
fn forgotten(entry: &Arc<Entry>, principal: &Principal, now: i64) -> Change {
    Change {
        time_us: now,
        change_id: String::new(),
        org_id: entry.org_id.clone(),
        actor: principal.key_id.to_string(),
        kind: KIND.to_owned(),
        target_id: entry.id.clone(),
        action: Action::Delete,
        body: Value::Null,
    }
}

/// Feedback in the form of a row of `alert_feedback`.
fn shown(id: &str, feedback: &Feedback, principal: &Principal, now: i64) -> Value {
    let mut shown = json!(feedback);
    if let Some(members) = shown.as_object_mut() {
        members.remove("silence_until_us");
        members.insert("alert_id".into(), id.into());
        members.insert("actor".into(), (&*principal.key_id).into());
        members.insert("time".into(), rfc3339(now).into());
        if let Some(until) = feedback.silence_until_us {
            members.insert("silence_until".into(), rfc3339(until).into());
        }
    }
    shown
}

fn rfc3339(time_us: i64) -> Option<String> {
    let time = chrono::DateTime::from_timestamp_micros(time_us)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

fn no_such_alert() -> Problem {
    Problem::new(404, "no_such_alert", "the tenant has no alert with this id").hint("GET /v2/alerts lists them")
}

fn unread(error: QueryError) -> Problem {
    error.to_problem()
}

fn refused(error: PipelineError) -> Problem {
    reply::unchanged(error, "feedback", |reason| reply::no_room("feedback_not_kept", reason))
}
