//! `GET /v2/threat-detection/rules` and `…/{id}`: rules as JSON, a page at a time.

use std::collections::BTreeSet;

use hyper::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tidegate_events::Level;
use tidegate_ingest::http::QueryString;
use tidegate_pipeline::Problem;
use tidegate_pipeline::url_text::{from_hex, to_hex};
use tidegate_rules::Parked;

use super::refusal::{Refusal, shown};
use super::rfc3339;
use super::shelf::{Item, Part, text_of};
use crate::serve::reply::{self, Body};

/// Most rules of a page.
const PAGE_RULES_MAX: usize = 1_000;
/// Rules of a page when the client does not say.
const PAGE_RULES: usize = 100;

/// Who looks, and what is to be said of rules beside what is in their files.
#[derive(Debug, Clone, Default)]
pub struct Viewer {
    /// The tenant.
    pub org_id: String,
    /// The ids of rules that the tenant turned off.
    pub off: BTreeSet<String>,
    /// Rules that are too slow.
    pub parked: Vec<Parked>,
}

/// What a page is to hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    level: Option<Level>,
    tag: Option<String>,
    enabled: Option<bool>,
    origin: Option<String>,
    status: Option<String>,
    text: Option<String>,
    limit: usize,
    after: Option<Position>,
}

/// The place of a rule in the list: the tenant's own come first, then by file and by place in the file.
type Position = (bool, String, Part);

impl Wanted {
    /// Reads the parameters of a list.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn parse(query: Option<&str>) -> Result<Self, Problem> {
        const KNOWN: &[&str] = &["level", "tag", "enabled", "origin", "status", "q", "limit", "cursor"];
        let params = QueryString::parse(query, KNOWN)?;
        let given = |name: &str| params.get(name).filter(|value| !value.is_empty());
        let one_of = |name: &str, words: &[&str]| match given(name) {
            Some(word) if !words.contains(&word) => Err(invalid(format!("{name} is {}", words.join(", ")))),
            word => Ok(word.map(str::to_owned)),
        };
        let level = given("level").map(str::parse).transpose().map_err(invalid)?;
        let limit = match given("limit").map(str::parse) {
            None => PAGE_RULES,
            Some(Ok(limit)) if (1..=PAGE_RULES_MAX).contains(&limit) => limit,
            Some(_) => return Err(invalid(format!("limit is a number from 1 to {PAGE_RULES_MAX}"))),
        };
        Ok(Self {
            level,
            tag: given("tag").map(str::to_lowercase),
            enabled: one_of("enabled", &["true", "false"])?.map(|word| word == "true"),
            origin: one_of("origin", &["pack", "folder", "api"])?,
            status: one_of("status", &["loaded", "problem", "parked", "pending"])?,
            text: given("q").map(str::to_lowercase),
            limit,
            after: given("cursor").map(position_of).transpose()?,
        })
    }

    fn takes(&self, item: &Item, viewer: &Viewer) -> bool {
        let document = item.document();
        let level = document.and_then(|document| document.level).unwrap_or(Level::Medium);
        let tag = |tag: &String| document.is_some_and(|document| document.tags.iter().any(|own| is_below(own, tag)));
        let text = |text: &String| {
            let words = document.map(|document| [&document.title, &document.description]);
            let holds = |word: &str| word.to_lowercase().contains(text.as_str());
            holds(item.id()) || holds(&item.entry.id) || words.into_iter().flatten().any(|word| holds(word))
        };
        self.level.is_none_or(|least| document.is_some() && level >= least)
            && self.tag.as_ref().is_none_or(tag)
            && self.enabled.is_none_or(|enabled| viewer.enabled(item) == enabled)
            && self.origin.as_ref().is_none_or(|origin| origin == item.origin().as_str())
            && self.status.as_ref().is_none_or(|status| status == viewer.status(item).0)
            && self.text.as_ref().is_none_or(text)
    }
}

/// Whether a tag is the one that was asked for, or one below it: `attack.t1003.001` is below `attack.t1003`.
fn is_below(tag: &str, asked: &str) -> bool {
    let tag = tag.to_lowercase();
    tag.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(400, "invalid_parameter", message)
}

fn position(item: &Item, viewer: &Viewer) -> Position {
    (item.entry.org_id != viewer.org_id, item.entry.id.clone(), item.part)
}

/// The position as text that a client hands back as it is.
fn cursor_of((foreign, name, part): &Position) -> String {
    let part = match part {
        Part::Document(at) => format!("d{at}"),
        Part::Broken(at) => format!("b{at}"),
        Part::Unseen => "u0".to_owned(),
    };
    let text = format!("{}{part}/{name}", if *foreign { 'f' } else { 'o' });
    to_hex(&text)
}

fn position_of(cursor: &str) -> Result<Position, Problem> {
    let wrong = || invalid("the cursor is not one that this endpoint gave");
    let parse = || {
        let text = from_hex(cursor)?;
        let (head, name) = text.split_once('/')?;
        let foreign = match head.get(..1)? {
            "f" => true,
            "o" => false,
            _ => return None,
        };
        let at = head.get(2..)?.parse().ok()?;
        let part = match head.get(1..2)? {
            "d" => Part::Document(at),
            "b" => Part::Broken(at),
            "u" => Part::Unseen,
            _ => return None,
        };
        Some((foreign, name.to_owned(), part))
    };
    if cursor.len() > 4096 { Err(wrong()) } else { parse().ok_or_else(wrong) }
}

/// A page of rules: `{"rules": […], "cursor": …, "skipped": […]}`.
pub fn page(items: &[Item], wanted: &Wanted, viewer: &Viewer, skipped: &[String]) -> Value {
    let mut rules = Vec::new();
    let mut last = None;
    let mut more = false;
    for item in items.iter().filter(|item| wanted.takes(item, viewer)) {
        let at = position(item, viewer);
        if wanted.after.as_ref().is_some_and(|after| at <= *after) {
            continue;
        }
        more = rules.len() == wanted.limit;
        if more {
            break;
        }
        rules.push(viewer.short(item));
        last = Some(at);
    }
    let cursor = last.filter(|_| more).map(|last| cursor_of(&last));
    json!({"rules": rules, "cursor": cursor, "skipped": skipped})
}

/// One rule, as JSON or as its text.
pub fn one(item: &Item, viewer: &Viewer, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let etag = etag_of(&item.entry.change_id);
    if headers.get(IF_NONE_MATCH).is_some_and(|given| is_among(given, &item.entry.change_id)) {
        let mut response = reply::whole(StatusCode::NOT_MODIFIED, "application/json", "");
        response.headers_mut().remove(CONTENT_TYPE);
        return Ok(with_etag(response, etag));
    }
    let accept = headers.get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let response = match form_of(accept) {
        Some(Form::Yaml) => reply::whole(StatusCode::OK, "application/yaml", text_of(&item.entry).to_owned()),
        Some(Form::Json) => reply::json(StatusCode::OK, &json!({"rule": viewer.whole(item)})),
        None => {
            let problem = Problem::new(406, "not_acceptable", "a rule is application/json or application/yaml");
            return Err(problem.into());
        }
    };
    Ok(with_etag(response, etag))
}

/// How one rule is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Yaml,
}

fn form_of(accept: &str) -> Option<Form> {
    accept.split(',').find_map(|kind| {
        match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" | "*/*" | "application/*" | "" => Some(Form::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" | "text/*" => Some(Form::Yaml),
            _ => None,
        }
    })
}

/// The entity tag of a rule as this change made it.
pub fn etag_of(change_id: &str) -> String {
    format!("\"{change_id}\"")
}

/// The answer with the rule's entity tag.
pub fn with_etag(mut response: Response<Body>, etag: String) -> Response<Body> {
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

/// Whether a list of entity tags (`If-Match`, `If-None-Match`) holds that of a change, or is `*`.
pub fn is_among(given: &HeaderValue, change_id: &str) -> bool {
    let tags = given.to_str().unwrap_or_default().split(',').map(str::trim);
    let mut tags = tags.map(|tag| tag.strip_prefix("W/").unwrap_or(tag));
    tags.any(|tag| tag == "*" || tag.trim_matches('"') == change_id)
}

impl Viewer {
    /// Whether the rule is on for the tenant.
    pub fn enabled(&self, item: &Item) -> bool {
        !self.off.contains(item.id())
    }

    /// A word on the state of the rule, and why it is not in force.
    pub fn status(&self, item: &Item) -> (&'static str, String) {
        if !item.is_current() {
            return ("pending", "the rule was changed a moment ago".to_owned());
        }
        if !item.loads() {
            let reasons: Vec<&str> = item.problems().into_iter().map(|problem| problem.reason.as_str()).collect();
            return ("problem", reasons.join("; "));
        }
        let org_id = (item.entry.org_id != tidegate_pipeline::keys::DEFAULT_ORG).then_some(item.entry.org_id.as_str());
        // Parked for all who have it, or for this tenant alone.
        let mine = |org: Option<&str>| org == org_id || org == Some(self.org_id.as_str());
        let parked = self.parked.iter().find(|parked| parked.rule_id == item.id() && mine(parked.org_id.as_deref()));
        match parked {
            Some(parked) => ("parked", parked.reason.clone()),
            None => ("loaded", String::new()),
        }
    }

    /// The rule in a list.
    pub fn short(&self, item: &Item) -> Value {
        let (status, reason) = self.status(item);
        let document = item.document();
        let own = item.entry.org_id == self.org_id;
        let mut rule = json!({
            "id": item.id(),
            "title": document.map(|document| &document.title),
            "kind": document.map(|document| document.kind.as_str()),
            "level": document.map(|document| document.level.unwrap_or(Level::Medium).as_str()),
            "tags": document.map(|document| document.tags.as_slice()).unwrap_or_default(),
            "status": status,
            "enabled": self.enabled(item),
            "origin": item.origin().as_str(),
            "file": item.entry.id,
            "org": item.entry.org_id,
            "changed": rfc3339(item.entry.updated_us),
            // Who works for another tenant is that tenant's business.
            "actor": own.then_some(item.entry.actor.as_str()),
            "offset": item.entry.offset,
            "version": item.entry.change_id,
        });
        if !reason.is_empty() {
            rule["reason"] = json!(reason);
        }
        let problems = item.problems();
        if !problems.is_empty() {
            rule["problems"] = problems.into_iter().map(shown).collect();
        }
        rule
    }

    /// The rule alone, with its text.
    pub fn whole(&self, item: &Item) -> Value {
        let mut rule = self.short(item);
        if let Some(document) = item.document() {
            rule["description"] = json!(document.description);
            rule["refers_to"] = json!(document.refers_to);
        }
        rule["created"] = json!(rfc3339(item.entry.created_us));
        rule["text"] = json!(text_of(&item.entry));
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_list_are_checked() {
        for good in ["", "level=high&tag=attack.t1003&enabled=false&origin=pack&status=parked&q=x&limit=1000", "level="]
        {
            assert!(Wanted::parse(Some(good)).is_ok(), "{good}");
        }
        for bad in
            ["level=loud", "enabled=maybe", "origin=here", "status=fine", "limit=0", "limit=1001", "cursor=zz", "x=1"]
        {
            assert!(Wanted::parse(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn cursors_come_back_as_they_went() {
        for position in [
            (false, "api/é/x.yml".to_owned(), Part::Document(3)),
            (true, "b.yml".to_owned(), Part::Broken(0)),
            (true, String::new(), Part::Unseen),
        ] {
            assert_eq!(position_of(&cursor_of(&position)), Ok(position));
        }
        for bad in ["", "6", "66", "é", "6675302f"] {
            assert_eq!(position_of(bad).is_ok(), bad == "6675302f", "{bad}");
        }
    }

    #[test]
    fn tags_below_a_tag_are_found() {
        assert!(is_below("attack.t1003.001", "attack.t1003") && is_below("ATTACK.T1003", "attack.t1003"));
        assert!(!is_below("attack.t10030", "attack.t1003"));
    }

    #[test]
    fn entity_tags_are_compared_in_lists() {
        for (given, wanted) in
            [("\"a\"", true), ("W/\"a\"", true), ("\"b\", \"a\"", true), ("*", true), ("\"b\"", false)]
        {
            assert_eq!(is_among(&HeaderValue::from_static(given), "a"), wanted, "{given}");
        }
    }
}
