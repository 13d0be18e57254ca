//! Making, replacing and removing rules, and turning them on and off. A change is compiled first; what is accepted is a row of
//! `changes`, durable before the answer, and in force for the events after it.

use std::collections::BTreeMap;

use hyper::header::{HeaderValue, IF_MATCH, LOCATION};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tidegate_pipeline::Problem;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::{DEFAULT_ORG, Principal};
use tidegate_pipeline::registry::{Action, Change};
use tidegate_rules::{DocumentKind, OFF_KIND, Outline};

use super::ThreatDetection;
use super::check::{Check, Checked, Place, file_key};
use super::list::{etag_of, is_among, with_etag};
use super::refusal::{Refusal, no_such_rule};
use super::shelf::{FileKey, Item, Origin, SeenFile, api_name, text_of};
use crate::serve::reply::{self, Body};
use crate::serve::rules_sync::RULE_KIND;

type Answer = Result<Response<Body>, Refusal>;

impl ThreatDetection {
    /// Looks at a rule without keeping it: `{"valid": true, "rules": […]}`.
    pub(super) async fn validate(&self, text: String, principal: &Principal) -> Answer {
        let checked = self.checked(text, principal, Place::OwnOrNew).await?;
        let said = |document: &Outline| json!({"id": document.id, "title": document.title, "kind": document.kind.as_str(), "tags": document.tags});
        let rules: Vec<Value> = checked.documents.iter().map(said).collect();
        Ok(reply::json(StatusCode::OK, &json!({"valid": true, "rules": rules})))
    }

    /// Makes a rule.
    pub(super) async fn create(&self, text: String, principal: &Principal) -> Answer {
        let checked = self.checked(text.clone(), principal, Place::New).await?;
        let key = (principal.org_id.to_string(), api_name(&checked.id));
        let _turn = self.editing.lock().await;
        // What was free when the text was compiled may have been taken since.
        self.check(principal, &self.shelf.items(&principal.org_id)).ids_are_free(&checked.documents, None)?;
        self.has_room(principal)?;
        self.keep(&key, text, checked, Action::Create, principal).await
    }

    /// Replaces a rule.
    pub(super) async fn replace(&self, id: &str, text: String, headers: &HeaderMap, principal: &Principal) -> Answer {
        let item = self.editable(id, headers, principal)?;
        let key = file_key(&item);
        let checked = self.checked(text.clone(), principal, Place::Of(key.clone())).await?;
        if api_name(&checked.id) != key.1 {
            let reason = format!("the first id in the text is {}, that of the rule is another", checked.id);
            return Err(Refusal::invalid_text(1, reason, "POST makes a new rule"));
        }
        let _turn = self.editing.lock().await;
        // Whoever came first while this text was compiled must not be overwritten unseen.
        let now = self.editable(id, headers, principal)?;
        if headers.contains_key(IF_MATCH) && now.entry.change_id != item.entry.change_id {
            return Err(changed_meanwhile());
        }
        self.check(principal, &self.shelf.items(&principal.org_id)).ids_are_free(&checked.documents, Some(&key))?;
        self.keep(&key, text, checked, Action::Update, principal).await
    }

    /// Removes a rule.
    pub(super) async fn remove(&self, id: &str, headers: &HeaderMap, principal: &Principal) -> Answer {
        let item = self.editable(id, headers, principal)?;
        let key = file_key(&item);
        let (config, items) = (self.rules.clone(), self.shelf.items(&principal.org_id));
        let (org_id, gone) = (principal.org_id.clone(), key.clone());
        let check = move || Check { org_id: &org_id, items: &items, config: &config }.removal(&gone);
        self.compile(check).await??;
        let _turn = self.editing.lock().await;
        let now = self.editable(id, headers, principal)?;
        let mut changes = vec![self.change(principal, RULE_KIND, &key.1, Action::Delete, Value::Null)];
        // A rule of the same id that comes later is another one: it starts on.
        let documents = now.seen.iter().flat_map(|seen| &seen.documents);
        let off = self.off(&principal.org_id);
        let ids = documents.map(|(document, _)| &document.id).filter(|id| off.contains(*id));
        changes.extend(ids.map(|id| self.change(principal, OFF_KIND, id, Action::Delete, Value::Null)));
        self.prepare(&key, None).await?;
        self.registry.apply(changes).await?;
        let mut response = reply::whole(StatusCode::NO_CONTENT, "application/json", "");
        response.headers_mut().remove(hyper::header::CONTENT_TYPE);
        Ok(response)
    }

    /// Turns a rule on or off for the tenant.
    pub(super) async fn switch(&self, id: &str, on: bool, principal: &Principal) -> Answer {
        let _turn = self.editing.lock().await;
        let item = self.shelf.find(&principal.org_id, id).filter(|item| !item.id().is_empty());
        let item = item.ok_or_else(|| no_such_rule(id))?;
        if item.document().is_some_and(|document| document.kind == DocumentKind::Filter) {
            let problem = Problem::new(409, "not_switchable", "a filter raises nothing that could be turned off");
            return Err(problem.hint("remove the filter, or make one of your own").into());
        }
        let off = self.off(&principal.org_id);
        if !on && !off.contains(item.id()) && off.len() >= self.config.tenant_rules_max {
            let message = format!("the tenant has turned off {} rules, as many as it may", off.len());
            let hint = "turn some on, or raise threat_detection.tenant_rules_max";
            return Err(Problem::new(409, "too_many_rules", message).hint(hint).into());
        }
        if off.contains(item.id()) == on {
            let (action, body) = match on {
                true => (Action::Delete, Value::Null),
                false => (Action::Create, json!({"file": item.entry.id})),
            };
            self.registry.apply(vec![self.change(principal, OFF_KIND, item.id(), action, body)]).await?;
        }
        let rule = self.viewer(principal).whole(&item);
        Ok(with_etag(reply::json(StatusCode::OK, &json!({"rule": rule})), etag_of(&item.entry.change_id)))
    }

    /// The rule of this id if the tenant may change it and it is the one that the client means.
    fn editable(&self, id: &str, headers: &HeaderMap, principal: &Principal) -> Result<Item, Refusal> {
        let item = self.shelf.find(&principal.org_id, id).ok_or_else(|| no_such_rule(id))?;
        if item.entry.org_id != *principal.org_id || item.origin() != Origin::Api {
            let (message, hint) = match item.origin() {
                Origin::Pack => {
                    ("the rule ships with the program", "turn it off for your tenant, or set starter_pack = false")
                }
                Origin::Folder => {
                    ("the rule is a file of the rule folder", "change the file; or turn the rule off for your tenant")
                }
                Origin::Api => ("the rule is one for every tenant", "ask the operator; or turn it off for your tenant"),
            };
            let hint = format!("{hint} (POST /v2/threat-detection/rules/{{id}}/disable)");
            return Err(Problem::new(409, "rule_read_only", message).hint(hint).into());
        }
        match headers.get(IF_MATCH) {
            Some(given) if !is_among(given, &item.entry.change_id) => Err(changed_meanwhile()),
            _ => Ok(item),
        }
    }

    /// Compiles a text as the tenant's.
    async fn checked(&self, text: String, principal: &Principal, place: Place) -> Result<Checked, Refusal> {
        if text.len() > self.rules.file_bytes_max {
            let message = format!("the rule has {} bytes, more than {}", text.len(), self.rules.file_bytes_max);
            return Err(Problem::new(413, "body_too_large", message)
                .hint("split it, or raise sigma.file_bytes_max")
                .into());
        }
        let (config, items) = (self.rules.clone(), self.shelf.items(&principal.org_id));
        let org_id = principal.org_id.clone();
        let check = move || Check { org_id: &org_id, items: &items, config: &config }.text(&text, &place);
        self.compile(check).await?
    }

    fn check<'a>(&'a self, principal: &'a Principal, items: &'a [Item]) -> Check<'a> {
        Check { org_id: &principal.org_id, items, config: &self.rules }
    }

    fn has_room(&self, principal: &Principal) -> Result<(), Refusal> {
        let own = self.registry.list(&principal.org_id, RULE_KIND);
        let own = own.iter().filter(|entry| entry.id.starts_with(super::shelf::API_FOLDER)).count();
        if own >= self.config.tenant_rules_max {
            let message = format!("the tenant has {own} rules of its own, as many as it may");
            let hint = "remove some, or raise threat_detection.tenant_rules_max";
            return Err(Problem::new(409, "too_many_rules", message).hint(hint).into());
        }
        let (bound, max) = match &*principal.org_id == DEFAULT_ORG {
            true => ("files_max", self.rules.files_max),
            false => ("tenant_files_max", self.rules.tenant_files_max),
        };
        if self.registry.list(&principal.org_id, RULE_KIND).len() >= max {
            let problem = Problem::new(409, "too_many_rules", "there are as many rule files as there may be");
            return Err(problem.hint(format!("remove some, or raise sigma.{bound}")).into());
        }
        Ok(())
    }

    /// Whether the texts of rules stay within their bounds with this one.
    fn texts_fit(&self, key: &FileKey, text: &str) -> Result<(), Refusal> {
        let all = self.registry.all(RULE_KIND);
        let bytes = |own: bool| -> usize {
            let counted = |known: &FileKey| known != key && (!own || known.0 == key.0);
            all.iter().filter(|(known, _)| counted(known)).map(|(_, entry)| text_of(entry).len()).sum()
        };
        let fits = bytes(false) + text.len() <= self.rules.files_bytes_max
            && (key.0 == DEFAULT_ORG || bytes(true) + text.len() <= self.rules.tenant_files_bytes_max);
        if fits {
            return Ok(());
        }
        let problem = Problem::new(409, "too_many_rules", "the texts of all rules would be too long");
        Err(problem.hint("remove some rules, or raise sigma.tenant_files_bytes_max and sigma.files_bytes_max").into())
    }

    /// Compiles what will be in force after a change, beside the stream. One at a time, under the turn of editing.
    async fn prepare(&self, key: &FileKey, text: Option<String>) -> Result<(), Refusal> {
        let (shelf, changed) = (self.shelf.clone(), BTreeMap::from([(key.clone(), text)]));
        self.compile(move || shelf.prepare(&changed)).await
    }

    /// Writes a rule to the log and answers with it. Under the turn of editing.
    async fn keep(
        &self,
        key: &FileKey,
        text: String,
        checked: Checked,
        action: Action,
        principal: &Principal,
    ) -> Answer {
        self.texts_fit(key, &text)?;
        self.prepare(key, Some(text.clone())).await?;
        let change = self.change(principal, RULE_KIND, &key.1, action, json!({"text": text}));
        self.registry.apply(vec![change]).await?;
        let entry = self.registry.get(&key.0, RULE_KIND, &key.1);
        let change_id = entry.map(|entry| entry.change_id.clone()).unwrap_or_default();
        self.shelf.put(key.clone(), SeenFile::sound(change_id.clone(), checked.documents));
        let item = self.shelf.find(&key.0, &checked.id).ok_or_else(|| no_such_rule(&checked.id))?;
        let rule = self.viewer(principal).whole(&item);
        let status = if action == Action::Create { StatusCode::CREATED } else { StatusCode::OK };
        let mut response = with_etag(reply::json(status, &json!({"rule": rule})), etag_of(&change_id));
        if action == Action::Create
            && let Ok(location) = HeaderValue::try_from(format!("/v2/threat-detection/rules/{}", checked.id))
        {
            response.headers_mut().insert(LOCATION, location);
        }
        Ok(response)
    }

    fn change(&self, principal: &Principal, kind: &str, target: &str, action: Action, body: Value) -> Change {
        Change {
            time_us: now_us(),
            change_id: String::new(),
            org_id: principal.org_id.to_string(),
            actor: principal.key_id.to_string(),
            kind: kind.to_owned(),
            target_id: target.to_owned(),
            action,
            body,
        }
    }
}

fn changed_meanwhile() -> Refusal {
    Problem::new(412, "rule_changed", "the rule is not the one that If-Match names: somebody changed it")
        .hint("GET it, look at what changed, and try again with its ETag")
        .into()
}
