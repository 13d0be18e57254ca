//! Rules as files in a folder: reading it, and telling what changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::RulesConfig;
use crate::error::RulesError;

/// What became of a rule file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// It is new.
    Create,
    /// Its text changed.
    Update,
    /// It is gone.
    Delete,
}

impl RuleAction {
    /// The value of `action` in a row of `changes`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// One change of a rule file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleChange {
    /// The path relative to the folder, with `/` between folders.
    pub name: String,
    /// What became of it.
    pub action: RuleAction,
    /// The new text; empty for [`RuleAction::Delete`].
    pub text: String,
}

/// A file that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Why it was left out.
    pub reason: String,
}

/// A folder tree of `*.yml` and `*.yaml` files. Names that start with a dot are left out, links are followed to files only.
#[derive(Debug)]
pub struct RuleFolder {
    path: PathBuf,
    files_max: usize,
    file_bytes_max: usize,
    stamps: BTreeMap<String, Stamp>,
}

/// What tells that a file may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

/// Folders in folders that are looked into.
const DEPTH_MAX: usize = 16;

impl RuleFolder {
    /// A folder that has not been looked at yet.
    pub fn new(path: impl Into<PathBuf>, config: &RulesConfig) -> Self {
        Self {
            path: path.into(),
            files_max: config.files_max,
            file_bytes_max: config.file_bytes_max,
            stamps: BTreeMap::new(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a file came, went, or changed its size or time of change since the last call; `true` the first time, unless
    /// the folder is empty. Reads no file, so it is cheap enough to be asked every second.
    ///
    /// # Errors
    /// [`RulesError::Read`] when the folder cannot be listed, [`RulesError::TooManyFiles`] past the bound.
    pub fn changed(&mut self) -> Result<bool, RulesError> {
        let mut stamps = BTreeMap::new();
        for (name, path) in self.list()? {
            // A file that went away since it was listed is no change yet; the next call sees it.
            if let Ok(metadata) = fs::metadata(&path) {
                stamps.insert(name, Stamp { modified: metadata.modified().ok(), bytes: metadata.len() });
            }
        }
        let changed = stamps != self.stamps;
        self.stamps = stamps;
        Ok(changed)
    }

    /// Every file's text by name, and the files left out.
    ///
    /// # Errors
    /// [`RulesError::Read`] when the folder cannot be listed, [`RulesError::TooManyFiles`] past the bound. A single file
    /// that cannot be read is left out and reported.
    pub fn read(&self) -> Result<(BTreeMap<String, String>, Vec<SkippedFile>), RulesError> {
        let mut texts = BTreeMap::new();
        let mut skipped = Vec::new();
        for (name, path) in self.list()? {
            match self.read_file(&path) {
                Ok(text) => {
                    texts.insert(name, text);
                }
                Err(reason) => skipped.push(SkippedFile { path, reason }),
            }
        }
        Ok((texts, skipped))
    }

    /// What leads from `current` (texts by name) to the folder as it is, in the order of names, and the files left out. A
    /// file that cannot be read now keeps its current text.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn diff(&self, current: &BTreeMap<String, String>) -> Result<(Vec<RuleChange>, Vec<SkippedFile>), RulesError> {
        let (texts, skipped) = self.read()?;
        let kept: Vec<String> = skipped.iter().filter_map(|file| self.name_of(&file.path)).collect();
        Ok((changes(current, &texts, &kept), skipped))
    }

    fn read_file(&self, path: &Path) -> Result<String, String> {
        let bytes = fs::metadata(path).map_err(|error| error.to_string())?.len();
        if bytes > self.file_bytes_max as u64 {
            return Err(format!(
                "it has {bytes} bytes, more than {}; split it, or raise file_bytes_max",
                self.file_bytes_max
            ));
        }
        let text = fs::read(path).map_err(|error| error.to_string())?;
        String::from_utf8(text).map_err(|error| format!("it is not UTF-8: {error}"))
    }

    fn name_of(&self, path: &Path) -> Option<String> {
        let relative = path.strip_prefix(&self.path).ok()?;
        let parts: Option<Vec<&str>> = relative.components().map(|part| part.as_os_str().to_str()).collect();
        Some(parts?.join("/"))
    }

    /// Names and paths, in the order of names.
    fn list(&self) -> Result<BTreeMap<String, PathBuf>, RulesError> {
        let mut files = BTreeMap::new();
        let mut folders = vec![(self.path.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let failed = |source| RulesError::Read { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                let hidden = entry.file_name().to_string_lossy().starts_with('.');
                let kind = entry.file_type().map_err(failed)?;
                if hidden {
                    continue;
                }
                if kind.is_dir() {
                    if depth < DEPTH_MAX {
                        folders.push((path, depth + 1));
                    }
                } else if path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml")
                    && path.is_file()
                    && let Some(name) = self.name_of(&path)
                {
                    if files.len() >= self.files_max {
                        return Err(RulesError::TooManyFiles { path: self.path.clone(), files_max: self.files_max });
                    }
                    files.insert(name, path);
                }
            }
        }
        Ok(files)
    }
}

/// What leads from one state of rule files to another, in the order of names; files in `kept` are not taken for deleted.
pub fn changes(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>, kept: &[String]) -> Vec<RuleChange> {
    let change = |name: &str, action, text: &str| RuleChange { name: name.to_owned(), action, text: text.to_owned() };
    let mut changes: Vec<RuleChange> = to
        .iter()
        .filter_map(|(name, text)| match from.get(name) {
            None => Some(change(name, RuleAction::Create, text)),
            Some(old) if old != text => Some(change(name, RuleAction::Update, text)),
            Some(_) => None,
        })
        .collect();
    let gone = from.keys().filter(|name| !to.contains_key(*name) && !kept.contains(name));
    changes.extend(gone.map(|name| change(name, RuleAction::Delete, "")));
    changes.sort_by(|left, right| left.name.cmp(&right.name));
    changes
}
