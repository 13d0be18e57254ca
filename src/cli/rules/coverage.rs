//! `tidegate rules coverage`: rules by ATT&CK tactic and technique, and a layer for the ATT&CK Navigator.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use tidegate_rules::coverage::{Coverage, Levels, coverage};

use super::files;
use crate::cli::Ending;
use crate::cli::style::{Style, clean};
use crate::config::Config;

/// Runs the command.
///
/// # Errors
/// When rules cannot be read, or the layer cannot be written.
pub fn run(config: &Config, paths: &[PathBuf], style: Style, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let given = files::given_or_configured(paths, config)?;
    let found = coverage(&given.files, &config.sigma)?;
    if let Some(path) = &config.rule_tools.navigator {
        let layer = serde_json::to_string_pretty(&found.navigator_layer("Tidegate rules"))?;
        std::fs::write(path, layer + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    if config.rule_tools.json {
        serde_json::to_writer_pretty(&mut *out, &found)?;
        writeln!(out)?;
        return Ok(Ending::Good);
    }
    print(&found, style, out)?;
    if let Some(path) = &config.rule_tools.navigator {
        writeln!(out, "layer written to {}: open it in the ATT&CK Navigator", path.display())?;
    }
    Ok(Ending::Good)
}

fn print(found: &Coverage, style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{}", style.bold(&format!("{:24}{}", "", HEAD)))?;
    for tactic in &found.tactics {
        let title = if tactic.retired { format!("{} (retired)", tactic.title) } else { tactic.title.clone() };
        let numbers = if tactic.tactic.is_empty() { String::new() } else { row(tactic.levels) };
        let line = format!("{title:24}{numbers}");
        let line = if tactic.levels.total() == 0 && !tactic.tactic.is_empty() {
            style.faint(&line)
        } else {
            style.bold(&line)
        };
        writeln!(out, "{}", line.trim_end())?;
        for technique in &tactic.techniques {
            writeln!(out, "  {:22}{}", technique.technique, row(technique.levels))?;
        }
    }
    let techniques = found.techniques.len();
    writeln!(
        out,
        "{} rules, {techniques} techniques and sub-techniques, {} rules without a tag of ATT&CK",
        found.rules,
        found.untagged.len()
    )?;
    for rule in found.untagged.iter().take(LISTED_MAX) {
        writeln!(out, "  {}  {}", clean(&rule.title), style.faint(&clean(&rule.file)))?;
    }
    if found.untagged.len() > LISTED_MAX {
        writeln!(out, "  and {} more (--json lists all)", found.untagged.len() - LISTED_MAX)?;
    }
    Ok(())
}

/// The most rules without tags that are listed.
const LISTED_MAX: usize = 20;

const HEAD: &str = "  rules critical     high   medium      low     info";

fn row(levels: Levels) -> String {
    let Levels { informational, low, medium, high, critical } = levels;
    let shown = |count: usize| if count == 0 { "·".to_owned() } else { count.to_string() };
    let counts = [critical, high, medium, low, informational].map(shown);
    format!("{:>7} {}", levels.total(), counts.map(|count| format!("{count:>8}")).join(" "))
}
