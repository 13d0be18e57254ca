//! Rule files → rows of `changes`: the starter pack and the rule folder are compared with what the registry holds, and the
//! difference is written as changes, which take effect at their offset in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use parking_lot::RwLock;
use serde_json::{Value, json};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::DEFAULT_ORG;
use tidegate_pipeline::registry::{Action, Change, Registry};
use tidegate_rules::folder::{RuleAction, RuleFolder, changes};
use tidegate_rules::{Rule, RuleFile, RuleProblem, RuleSet, RulesConfig, pack};

use crate::config::Config;

/// The value of `kind` in rows of `changes` about rules.
pub const RULE_KIND: &str = "rule";

/// Changes a row batch takes; thousands of rules go in as several.
const CHANGES_MAX: usize = 500;

/// What the rules in force are, for people.
#[derive(Debug, Default)]
pub struct RulesView {
    /// The rules that are evaluated: id, title, level, tags, file.
    pub rules: Vec<Value>,
    /// Why others are not.
    pub problems: Vec<RuleProblem>,
    /// Files that could not be read.
    pub skipped: Vec<String>,
}

/// Keeps the registry's rules as the pack and the folder say.
pub struct RulesSync {
    registry: Registry,
    config: RulesConfig,
    folder: Option<RuleFolder>,
    starter_pack: bool,
    /// Whether files changed and the registry does not say so yet.
    dirty: bool,
    /// Counts the compilations, so that one that was overtaken does not show.
    looks: Arc<AtomicU64>,
    view: Arc<RwLock<Arc<RulesView>>>,
}

impl RulesSync {
    /// Nothing is read yet: see [`sync`](Self::sync).
    pub fn new(registry: Registry, config: &Config) -> Self {
        let folder = config.rules.clone().map(|path| RuleFolder::new(path, &config.sigma));
        let (config, starter_pack) = (config.sigma.clone(), config.starter_pack);
        Self { registry, config, folder, starter_pack, dirty: true, looks: Arc::default(), view: Arc::default() }
    }

    /// What [`sync`](Self::sync) last found, for the endpoint.
    pub fn view(&self) -> Arc<RwLock<Arc<RulesView>>> {
        self.view.clone()
    }

    /// Reads the folder once, so that a wrong path is told at the start.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn check_folder(&self) -> anyhow::Result<()> {
        if let Some(folder) = &self.folder {
            folder.read().with_context(|| format!("read the rule folder {}", folder.path().display()))?;
        }
        Ok(())
    }

    /// Whether there is something to [`sync`](Self::sync): the folder looks different than at the last look, or the last
    /// sync did not come to its end. Blocks on files.
    pub fn changed(&mut self) -> bool {
        match self.folder.as_mut().map(RuleFolder::changed) {
            Some(Ok(changed)) => self.dirty |= changed,
            Some(Err(error)) => tracing::warn!(%error, "cannot look at the rule folder; the rules in force stay"),
            None => {}
        }
        self.dirty
    }

    /// Writes the difference between files and registry as changes; says how many rules changed.
    ///
    /// # Errors
    /// When the folder cannot be read, or the log does not take the changes now.
    pub async fn sync(&mut self) -> anyhow::Result<usize> {
        self.dirty = true;
        let current: BTreeMap<String, String> = (self.registry.all(RULE_KIND).values())
            .filter(|entry| entry.org_id == DEFAULT_ORG)
            .filter_map(|entry| Some((entry.id.clone(), entry.body["text"].as_str()?.to_owned())))
            .collect();
        let pack = if self.starter_pack { pack::files() } else { Vec::new() };
        let mut wanted: BTreeMap<String, String> = pack.into_iter().map(|file| (file.name, file.text)).collect();
        let (mut skipped, mut kept) = (Vec::new(), Vec::new());
        if let Some(folder) = &self.folder {
            let read = tokio::task::block_in_place(|| folder.read());
            let (files, left_out) = read.context("read the rule folder")?;
            wanted.extend(files);
            for file in left_out {
                tracing::warn!(path = %file.path.display(), reason = file.reason, "rule file not read; its rules stay as they are");
                let name = file.path.strip_prefix(folder.path()).unwrap_or(&file.path).display().to_string();
                skipped.push(format!("{name}: {}", file.reason));
                kept.push(name);
            }
        }
        let difference = changes(&current, &wanted, &kept);
        for part in difference.chunks(CHANGES_MAX) {
            let part = part.iter().map(|change| Change {
                time_us: now_us(),
                change_id: String::new(),
                org_id: DEFAULT_ORG.to_owned(),
                actor: "rule folder".to_owned(),
                kind: RULE_KIND.to_owned(),
                target_id: change.name.clone(),
                action: match change.action {
                    RuleAction::Create => Action::Create,
                    RuleAction::Update => Action::Update,
                    RuleAction::Delete => Action::Delete,
                },
                body: if change.action == RuleAction::Delete { json!({}) } else { json!({"text": change.text}) },
            });
            self.registry.apply(part.collect()).await.context("write rule changes to the log")?;
        }
        if !difference.is_empty() || self.view.read().rules.is_empty() {
            self.look(wanted, skipped);
        }
        self.dirty = false;
        Ok(difference.len())
    }

    /// Compiles the rules for the endpoint and the log lines, beside what goes on: thousands of rules take a moment, and a
    /// start does not wait for it. The run loop compiles its own, at the offset of the change.
    fn look(&self, wanted: BTreeMap<String, String>, skipped: Vec<String>) {
        let (config, view, looks) = (self.config.clone(), self.view.clone(), self.looks.clone());
        let look = looks.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::task::spawn_blocking(move || {
            let files: Vec<_> = wanted.into_iter().map(|(name, text)| RuleFile::new(name, text)).collect();
            match RuleSet::compile(&files, &config) {
                Ok((set, problems)) => {
                    let rules: Vec<_> = set.rules().iter().map(shown).collect();
                    tracing::info!(rules = rules.len(), problems = problems.len(), "rules in force");
                    let mut view = view.write();
                    if looks.load(Ordering::Relaxed) == look {
                        *view = Arc::new(RulesView { rules, problems, skipped });
                    }
                }
                Err(error) => tracing::error!(%error, "the rules could not be compiled; a bug"),
            }
        });
    }
}

fn shown(rule: &Rule) -> Value {
    json!({"id": rule.id, "title": rule.title, "level": rule.level.as_str(), "tags": rule.tags, "file": rule.file})
}
