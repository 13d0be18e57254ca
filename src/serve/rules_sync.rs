//! Rule files → rows of `changes`: the starter pack and the rule folder are compared with what the registry holds, and the
//! difference is written as changes, which take effect at their offset in the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::DEFAULT_ORG;
use tidegate_pipeline::registry::{Action, Change, Registry};
use tidegate_rules::folder::{RuleAction, RuleFolder, changes};
use tidegate_rules::pack;

use super::threat_detection::shelf::{API_FOLDER, Shelf};
use crate::config::Config;

/// The value of `kind` in rows of `changes` about rules.
pub const RULE_KIND: &str = "rule";

/// Changes a row batch takes; thousands of rules go in as several.
const CHANGES_MAX: usize = 500;

/// Keeps the registry's rules as the pack and the folder say.
pub struct RulesSync {
    registry: Registry,
    folder: Option<RuleFolder>,
    starter_pack: bool,
    /// Whether files changed and the registry does not say so yet.
    dirty: bool,
    /// Whether there was a sync before: the stream may run, which a change must not stop.
    running: bool,
    shelf: Arc<Shelf>,
}

impl RulesSync {
    /// Nothing is read yet: see [`sync`](Self::sync).
    pub fn new(registry: Registry, shelf: Arc<Shelf>, config: &Config) -> Self {
        let folder = config.rules.clone().map(|path| RuleFolder::new(path, &config.sigma));
        Self { registry, folder, starter_pack: config.starter_pack, dirty: true, running: false, shelf }
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

    /// Looks at the folder: whether it is another than at the last look. Blocks on files.
    pub fn look(&mut self) -> bool {
        let moved = match self.folder.as_mut().map(RuleFolder::changed) {
            Some(Ok(moved)) => moved,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot look at the rule folder; the rules in force stay");
                false
            }
            None => false,
        };
        self.dirty |= moved;
        moved
    }

    /// Whether there is something to [`sync`](Self::sync): the folder was another at a look, or the last sync did not come to
    /// its end.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Writes the difference between files and registry as changes; says how many rules changed.
    ///
    /// # Errors
    /// When the folder cannot be read, or the log does not take the changes now.
    pub async fn sync(&mut self) -> anyhow::Result<usize> {
        self.dirty = true;
        let current: BTreeMap<String, String> = (self.registry.all(RULE_KIND).values())
            // What was made over the API is nobody's file.
            .filter(|entry| entry.org_id == DEFAULT_ORG && !entry.id.starts_with(API_FOLDER))
            .filter_map(|entry| Some((entry.id.clone(), entry.body["text"].as_str()?.to_owned())))
            .collect();
        let pack = if self.starter_pack { pack::files() } else { Vec::new() };
        let mut wanted: BTreeMap<String, String> = pack.into_iter().map(|file| (file.name, file.text)).collect();
        let (mut skipped, mut kept) = (Vec::new(), Vec::new());
        if let Some(folder) = &self.folder {
            let read = tokio::task::block_in_place(|| folder.read());
            let (files, left_out) = read.context("read the rule folder")?;
            let (reserved, files): (BTreeMap<_, _>, _) =
                files.into_iter().partition(|(name, _)| name.starts_with(API_FOLDER));
            wanted.extend(files);
            for name in reserved.into_keys() {
                tracing::warn!(name, "rule file not read: `{API_FOLDER}` is for rules that are made over the API");
                skipped.push(format!("{name}: `{API_FOLDER}` is for rules that are made over the API; move the file"));
            }
            for file in left_out {
                tracing::warn!(path = %file.path.display(), reason = file.reason, "rule file not read; its rules stay as they are");
                let name = file.path.strip_prefix(folder.path()).unwrap_or(&file.path).display().to_string();
                skipped.push(format!("{name}: {}", file.reason));
                kept.push(name);
            }
        }
        let difference = changes(&current, &wanted, &kept);
        if self.running && (1..=CHANGES_MAX).contains(&difference.len()) {
            let changed = difference.iter().map(|change| {
                let text = (change.action != RuleAction::Delete).then(|| change.text.clone());
                ((DEFAULT_ORG.to_owned(), change.name.clone()), text)
            });
            let changed = changed.collect();
            tokio::task::block_in_place(|| self.shelf.prepare(&changed));
        }
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
        self.shelf.skip(skipped);
        (self.dirty, self.running) = (false, true);
        Ok(difference.len())
    }
}
