//! Which rules a command is about.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tidegate_rules::{RuleFile, RuleFolder, RuleProblem, RulesConfig, pack};

use crate::config::Config;

/// Rule files, and those that cannot be read.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The files. Their names are paths that an editor can open; those of the starter pack start with `pack/`.
    pub files: Vec<RuleFile>,
    /// Files that were left out, and why.
    pub skipped: Vec<RuleProblem>,
}

/// Reads rule files, and those of folders.
///
/// # Errors
/// When a path is neither, or a folder cannot be listed.
pub fn read(paths: &[PathBuf], config: &RulesConfig) -> anyhow::Result<Given> {
    let mut given = Given::default();
    for path in paths {
        if path.is_dir() {
            let read = RuleFolder::new(path, config).read();
            let (texts, skipped) = read.with_context(|| format!("cannot read the rules in {}", path.display()))?;
            let named = |name: &str| path.join(name).display().to_string();
            given.files.extend(texts.into_iter().map(|(name, text)| RuleFile::new(named(&name), text)));
            let skipped = skipped.into_iter().map(|file| unreadable(&file.path, file.reason));
            given.skipped.extend(skipped);
        } else {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            match String::from_utf8(bytes) {
                Ok(text) => given.files.push(RuleFile::new(path.display().to_string(), text)),
                Err(error) => given.skipped.push(unreadable(path, format!("it is not UTF-8: {error}"))),
            }
        }
    }
    Ok(given)
}

fn unreadable(path: &Path, reason: String) -> RuleProblem {
    RuleProblem {
        file: path.display().to_string(),
        line: 1,
        column: 1,
        rule: String::new(),
        reason: format!("the file is left out: {reason}"),
        hint: String::new(),
    }
}

/// The rules that a server with this configuration would load: the starter pack, and the rule folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn configured(config: &Config) -> anyhow::Result<Given> {
    let mut given = match &config.rules {
        Some(folder) => read(std::slice::from_ref(folder), &config.sigma)?,
        None => Given::default(),
    };
    if config.starter_pack {
        given.files.splice(..0, pack::files());
    }
    Ok(given)
}

/// The rules that a command with PATHs is about: those, or the configured ones.
///
/// # Errors
/// As [`read`] and [`configured`].
pub fn given_or_configured(paths: &[PathBuf], config: &Config) -> anyhow::Result<Given> {
    if paths.is_empty() { configured(config) } else { read(paths, &config.sigma) }
}

/// A rule that the user names: a file; or the id, name or title of a configured rule, or the path of one in the pack.
#[derive(Debug, Clone)]
pub struct Named {
    /// Where it is, and all rules that it may refer to.
    pub files: Vec<RuleFile>,
    /// The file that it is in, as an index.
    pub file: usize,
    /// What was asked for, unless it was the whole file.
    pub wanted: Option<String>,
}

/// Finds a rule by what the user wrote.
///
/// # Errors
/// When there is none, or the file cannot be read.
pub fn find(rule: &str, config: &Config) -> anyhow::Result<Named> {
    let path = Path::new(rule);
    if path.is_file() {
        let given = read(&[path.to_owned()], &config.sigma)?;
        if let Some(problem) = given.skipped.first() {
            bail!("{problem}");
        }
        return Ok(Named { files: given.files, file: 0, wanted: None });
    }
    let given = configured(config)?;
    if let Some(file) = given.files.iter().position(|file| file.name == rule) {
        return Ok(Named { files: given.files, file, wanted: None });
    }
    let says = |file: &RuleFile| {
        let value = |line: &str, key: &str| {
            line.trim_start_matches("- ").strip_prefix(key).is_some_and(|rest| {
                let rest = rest.split(" #").next().unwrap_or_default();
                rest.trim().trim_matches(['\'', '"']).eq_ignore_ascii_case(rule)
            })
        };
        file.text.lines().any(|line| ["id:", "name:", "title:"].into_iter().any(|key| value(line, key)))
    };
    match given.files.iter().position(says) {
        Some(file) => Ok(Named { files: given.files, file, wanted: Some(rule.to_owned()) }),
        None => bail!(
            "there is no file {rule}, and no rule of that id or title in {}",
            match &config.rules {
                Some(folder) => format!("the starter pack and {}", folder.display()),
                None => "the starter pack (choose a rule folder with --rules)".to_owned(),
            }
        ),
    }
}
