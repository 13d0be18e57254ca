//! All rule files of all tenants with what is known of them: their documents, whether they load, whether they are parked.
//!
//! What a rule *is* stands in the registry. What it says and whether it compiles is found out here, beside the stream: after
//! each change all files are compiled once more, on a thread of their own, because the run loop compiles its own when the
//! next events come. A change that came over the API was compiled before it was accepted, so it is put here at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tidegate_pipeline::Problem;
use tidegate_pipeline::keys::DEFAULT_ORG;
use tidegate_pipeline::registry::{Entries, Entry, Registry};
use tidegate_rules::{Ahead, DocumentKind, Outline, RuleFile, RuleProblem, RuleSet, RulesConfig, outline};
use tokio::sync::watch;

use crate::serve::rules_sync::RULE_KIND;

/// Between two compilations of all rules, so that many changes are seen at once.
const GATHER: Duration = Duration::from_millis(300);
/// How long a request waits for the first look.
const PATIENCE: Duration = Duration::from_secs(15);
/// What names of tenants' files are preceded by while they are compiled, so that two tenants' files do not have one name.
const TENANT_MARK: char = '\u{1}';

/// The tenant and the name of a rule file.
pub type FileKey = (String, String);

/// A rule file as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenFile {
    /// The change that made it what it is.
    pub change_id: String,
    /// Its documents, and whether each is in force.
    pub documents: Vec<(Outline, bool)>,
    /// What is wrong with it.
    pub problems: Vec<RuleProblem>,
}

impl SeenFile {
    /// A file of which every document loads.
    pub fn sound(change_id: String, documents: Vec<Outline>) -> Self {
        let documents = documents.into_iter().map(|document| (document, true)).collect();
        Self { change_id, documents, problems: Vec::new() }
    }
}

/// What the last look saw.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// The files that were looked at.
    entries: Option<Arc<Entries>>,
    files: BTreeMap<FileKey, Arc<SeenFile>>,
}

/// One rule, or what stands in its place because it could not be read.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its file.
    pub entry: Arc<Entry>,
    /// What the file says; `None` while nobody has looked.
    pub seen: Option<Arc<SeenFile>>,
    /// Which of it.
    pub part: Part,
}

/// A part of a rule file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// This document.
    Document(usize),
    /// What this problem is about, of which there is no document.
    Broken(usize),
    /// A file that nobody has looked at yet.
    Unseen,
}

/// All rule files.
pub struct Shelf {
    registry: Registry,
    config: RulesConfig,
    /// Where rules wait that were compiled for the run loop, where there is one.
    ahead: Option<Ahead>,
    seen: RwLock<Seen>,
    /// Files of the rule folder that could not be read.
    skipped: RwLock<Arc<Vec<String>>>,
    looked: watch::Sender<bool>,
}

impl Shelf {
    /// A shelf that nobody has looked at.
    pub fn new(registry: Registry, config: RulesConfig, ahead: Option<Ahead>) -> Self {
        let looked = watch::Sender::new(false);
        Self { registry, config, ahead, seen: RwLock::default(), skipped: RwLock::default(), looked }
    }

    /// Looks at all rules whenever some changed, until told to stop.
    pub async fn follow(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let mut version = self.registry.watch();
        loop {
            version.borrow_and_update();
            let shelf = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || shelf.look()).await {
                tracing::error!(%error, "the rules could not be looked at: a bug; the list of rules is old");
            }
            self.looked.send_replace(true);
            tokio::select! {
                changed = version.changed() => if changed.is_err() { return },
                _ = stopping.wait_for(|stop| *stop) => return,
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Compiles for the run loop what there will be after a change of these files (`None`: the file goes), so that the change does
    /// not stop the stream. To be called under the turn of whoever changes rules, before the change is made. Blocks.
    pub fn prepare(&self, changed: &BTreeMap<FileKey, Option<String>>) {
        let Some(ahead) = &self.ahead else { return };
        let file = |(org_id, name): &FileKey, text: &str| RuleFile {
            name: name.clone(),
            text: text.to_owned(),
            org_id: (org_id != DEFAULT_ORG).then(|| org_id.clone()),
        };
        let all = self.registry.all(RULE_KIND);
        let others = all.iter().filter(|(key, _)| !changed.contains_key(*key));
        let mut files: Vec<RuleFile> = others.map(|(key, entry)| file(key, text_of(entry))).collect();
        files.extend(changed.iter().filter_map(|(key, text)| Some(file(key, text.as_deref()?))));
        if let Err(error) = ahead.prepare(&files, &self.config) {
            tracing::error!(%error, "the rules could not be compiled ahead; a bug");
        }
    }

    /// Waits for the first look.
    ///
    /// # Errors
    /// 503 when it takes too long.
    pub async fn ready(&self) -> Result<(), Problem> {
        let mut looked = self.looked.subscribe();
        let waited = tokio::time::timeout(PATIENCE, looked.wait_for(|looked| *looked)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => {
                Err(Problem::new(503, "rules_loading", "the rules are still being read").hint("try again in a moment"))
            }
        }
    }

    /// Compiles all files. Blocks.
    pub fn look(&self) {
        if let Some(ahead) = &self.ahead {
            ahead.clear();
        }
        let entries = self.registry.all(RULE_KIND);
        let before = self.seen.read().clone();
        if before.entries.as_ref().is_some_and(|known| Arc::ptr_eq(known, &entries)) {
            return;
        }
        let files: Vec<RuleFile> =
            entries.values().map(|entry| marked_file(&entry.org_id, &entry.id, text_of(entry))).collect();
        let (loaded, problems) = match RuleSet::compile(&files, &self.config) {
            Ok((set, problems)) => {
                tracing::info!(rules = set.rules().len(), problems = problems.len(), "rules looked at");
                let rules = set.rules().iter().map(|rule| (rule.head.file.clone(), rule.head.id.clone()));
                let correlations = set.correlations().iter().map(|own| (own.head.file.clone(), own.head.id.clone()));
                (rules.chain(correlations).collect::<HashSet<_>>(), problems)
            }
            Err(error) => {
                tracing::error!(%error, "the rules could not be compiled; a bug");
                return;
            }
        };
        let mut problems_of: BTreeMap<String, Vec<RuleProblem>> = BTreeMap::new();
        for problem in problems {
            problems_of.entry(problem.file.clone()).or_default().push(unmarked(problem));
        }
        let mut seen = BTreeMap::new();
        for (((org_id, name), entry), file) in entries.iter().zip(&files) {
            let key = (org_id.clone(), name.clone());
            let known = before.files.get(&key).filter(|known| known.change_id == entry.change_id);
            let documents = match known {
                Some(known) => known.documents.iter().map(|(document, _)| document.clone()).collect(),
                None => outline(file, &self.config).0,
            };
            let problems = problems_of.remove(&file.name).unwrap_or_default();
            let in_force = |document: &Outline| {
                // What is said of no rule is said of the file: it may not even have been looked at.
                let about = |problem: &RuleProblem| {
                    problem.rule.is_empty() || problem.rule == document.id || problem.rule == document.title
                };
                loaded.contains(&(file.name.clone(), document.id.clone()))
                    || (document.kind == DocumentKind::Filter && !problems.iter().any(about))
            };
            let documents = documents.into_iter().map(|document| (in_force(&document), document));
            let documents = documents.map(|(in_force, document)| (document, in_force)).collect();
            seen.insert(key, Arc::new(SeenFile { change_id: entry.change_id.clone(), documents, problems }));
        }
        self.publish(entries, seen);
    }

    /// Puts what was seen in the place of what was known, but for files that were put meanwhile.
    fn publish(&self, entries: Arc<Entries>, mut files: BTreeMap<FileKey, Arc<SeenFile>>) {
        let mut seen = self.seen.write();
        for (key, file) in &seen.files {
            let newer = files.get(key).is_none_or(|own| own.change_id != file.change_id);
            let current = self.registry.get(&key.0, RULE_KIND, &key.1);
            if newer && current.is_some_and(|entry| entry.change_id == file.change_id) {
                files.insert(key.clone(), file.clone());
            }
        }
        *seen = Seen { entries: Some(entries), files };
    }

    /// Puts a file that was compiled for its change.
    pub fn put(&self, key: FileKey, file: SeenFile) {
        self.seen.write().files.insert(key, Arc::new(file));
    }

    /// Says which files of the rule folder could not be read.
    pub fn skip(&self, files: Vec<String>) {
        *self.skipped.write() = Arc::new(files);
    }

    /// The files of the rule folder that could not be read, and why.
    pub fn skipped(&self) -> Arc<Vec<String>> {
        self.skipped.read().clone()
    }

    /// The rules that a tenant may see, its own first, each group in the order of files.
    pub fn items(&self, org_id: &str) -> Vec<Item> {
        let seen = self.seen.read().files.clone();
        let mut entries = self.registry.list(org_id, RULE_KIND);
        if org_id != DEFAULT_ORG {
            entries.extend(self.registry.list(DEFAULT_ORG, RULE_KIND));
        }
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries {
            let seen = seen.get(&(entry.org_id.clone(), entry.id.clone())).cloned();
            let parts = seen.as_ref().map_or_else(|| vec![Part::Unseen], |seen| parts(seen));
            items.extend(parts.into_iter().map(|part| Item { entry: entry.clone(), seen: seen.clone(), part }));
        }
        items
    }

    /// The rule of this id that a tenant may see; its own before one for everyone.
    pub fn find(&self, org_id: &str, id: &str) -> Option<Item> {
        let own_file = api_name(id);
        let items = self.items(org_id);
        let by_id = items.iter().find(|item| item.id() == id);
        by_id.or_else(|| items.iter().find(|item| item.entry.org_id == org_id && item.entry.id == own_file)).cloned()
    }
}

/// The name of the file of a rule that was made over the API.
pub fn api_name(id: &str) -> String {
    format!("{API_FOLDER}{id}.yml")
}

/// What the names of rules that were made over the API begin with.
pub const API_FOLDER: &str = "api/";

/// What the names of rules that come with the program begin with.
pub const PACK_FOLDER: &str = "pack/";

/// The text of a rule file.
pub fn text_of(entry: &Entry) -> &str {
    entry.body["text"].as_str().unwrap_or_default()
}

/// A tenant's file as it is compiled beside those of other tenants.
pub fn marked_file(org_id: &str, name: &str, text: &str) -> RuleFile {
    let own = org_id != DEFAULT_ORG;
    let name = if own { format!("{org_id}{TENANT_MARK}{name}") } else { name.to_owned() };
    RuleFile { name, text: text.to_owned(), org_id: own.then(|| org_id.to_owned()) }
}

/// The problem as the file's tenant may see it.
pub fn unmarked(mut problem: RuleProblem) -> RuleProblem {
    let Some((org_id, name)) = problem.file.split_once(TENANT_MARK) else { return problem };
    let mark = format!("{org_id}{TENANT_MARK}");
    problem.reason = problem.reason.replace(&mark, "");
    problem.hint = problem.hint.replace(&mark, "");
    problem.file = name.to_owned();
    problem
}

/// The documents of a file, and the problems that are about none of them.
fn parts(seen: &SeenFile) -> Vec<Part> {
    let mut parts: Vec<Part> = (0..seen.documents.len()).map(Part::Document).collect();
    for (at, problem) in seen.problems.iter().enumerate() {
        let of_document =
            |(document, _): &(Outline, bool)| problem.rule == document.id || problem.rule == document.title;
        let told = seen.problems.iter().take(at).any(|other| other.rule == problem.rule);
        if !told && !seen.documents.iter().any(of_document) {
            parts.push(Part::Broken(at));
        }
    }
    if parts.is_empty() {
        parts.push(Part::Unseen);
    }
    parts
}

impl Item {
    /// The id of the rule; empty when it has none that can be read.
    pub fn id(&self) -> &str {
        match (&self.seen, self.part) {
            (Some(seen), Part::Document(at)) => seen.documents.get(at).map_or("", |(document, _)| &document.id),
            (Some(seen), Part::Broken(at)) => seen.problems.get(at).map_or("", |problem| &problem.rule),
            _ => "",
        }
    }

    /// What the rule says of itself, if it can be read.
    pub fn document(&self) -> Option<&Outline> {
        match (&self.seen, self.part) {
            (Some(seen), Part::Document(at)) => seen.documents.get(at).map(|(document, _)| document),
            _ => None,
        }
    }

    /// Whether the rule is in force, as far as it compiles.
    pub fn loads(&self) -> bool {
        match (&self.seen, self.part) {
            (Some(seen), Part::Document(at)) => seen.documents.get(at).is_some_and(|(_, loads)| *loads),
            _ => false,
        }
    }

    /// What is wrong with the rule.
    pub fn problems(&self) -> Vec<&RuleProblem> {
        let Some(seen) = &self.seen else { return Vec::new() };
        let about = |problem: &&RuleProblem| match self.document() {
            Some(document) => {
                problem.rule == document.id
                    || problem.rule == document.title
                    || (problem.rule.is_empty() && !self.loads())
            }
            None => problem.rule == self.id(),
        };
        seen.problems.iter().filter(about).collect()
    }

    /// Whether the file was looked at as it is now.
    pub fn is_current(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.change_id == self.entry.change_id)
    }

    /// Where the rule came from.
    pub fn origin(&self) -> Origin {
        match self.entry.id.as_str() {
            name if name.starts_with(API_FOLDER) => Origin::Api,
            name if name.starts_with(PACK_FOLDER) && self.entry.org_id == DEFAULT_ORG => Origin::Pack,
            _ => Origin::Folder,
        }
    }
}

/// Where a rule came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It ships with the program.
    Pack,
    /// A file of the rule folder.
    Folder,
    /// Somebody made it over the API.
    Api,
}

impl Origin {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Folder => "folder",
            Self::Api => "api",
        }
    }
}
