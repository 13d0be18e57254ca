//! `tidegate check`: the configuration and the rules, everything that is wrong at once, with positions. Nothing is started.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use tidegate_rules::{RuleFile, RuleFolder, RuleSet, RulesConfig, pack};

use super::Ending;
use crate::config::{Config, ConfigErrors, Sources, examine};

/// What was found in a folder of rules, the starter pack included.
#[derive(Debug, Clone, Default)]
pub struct RulesChecked {
    /// Rules that compile.
    pub rules: usize,
    /// One line for each file or rule that does not load.
    pub problems: Vec<String>,
}

/// Compiles the starter pack and the rules of a folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn check_rules(folder: Option<&Path>, config: &RulesConfig) -> anyhow::Result<RulesChecked> {
    let mut files = pack::files();
    let mut problems = Vec::new();
    if let Some(path) = folder {
        let read = RuleFolder::new(path, config).read();
        let (texts, skipped) = read.with_context(|| format!("cannot read the rules in {}", path.display()))?;
        files.extend(texts.into_iter().map(|(name, text)| RuleFile::new(name, text)));
        problems.extend(skipped.into_iter().map(|file| format!("{}: {}", file.path.display(), file.reason)));
    }
    let (set, refused) = RuleSet::compile(&files, config)?;
    problems.extend(refused.iter().map(|problem| match folder {
        // As a path that an editor can open.
        Some(folder) if !problem.file.starts_with("pack/") => format!("{}/{problem}", folder.display()),
        _ => problem.to_string(),
    }));
    Ok(RulesChecked { rules: set.rules().len(), problems })
}

/// Says what holds and what does not; the rules are looked at even when the configuration is not valid.
///
/// # Errors
/// [`ConfigErrors`] when the configuration is not valid, and when the rule folder cannot be read or nothing can be printed.
pub fn run(sources: &Sources, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let (loaded, problems) = examine(sources);
    let config = &loaded.config;
    if problems.is_empty() {
        writeln!(out, "configuration: valid, {} settings are not defaults", loaded.origins.len())?;
    }
    for (path, origin) in &loaded.origins {
        writeln!(out, "  {path:32} from {origin}")?;
    }
    let rules = report_rules(config, out);
    if problems.is_empty() { rules } else { Err(ConfigErrors(problems).into()) }
}

fn report_rules(config: &Config, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let checked = check_rules(config.rules.as_deref(), &config.sigma)?;
    for problem in &checked.problems {
        writeln!(out, "{problem}")?;
    }
    let place = config
        .rules
        .as_ref()
        .map_or("the starter pack".to_owned(), |path| format!("the starter pack and {}", path.display()));
    writeln!(out, "rules: {} compile, {} do not, in {place}", checked.rules, checked.problems.len())?;
    Ok(if checked.problems.is_empty() { Ending::Good } else { Ending::Bad })
}
