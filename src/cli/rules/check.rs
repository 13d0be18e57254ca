//! `tidegate rules check`: everything that is wrong with rules and what is odd about them, with the line, a caret and a hint.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use tidegate_rules::{RuleFile, RuleProblem, RuleSet, RuleWarning, lint, pack};

use super::files;
use crate::cli::Ending;
use crate::cli::style::{Style, clean, cut};
use crate::config::Config;

/// How much of a line is shown.
const LINE_CHARS_MAX: usize = 160;

/// Runs the command.
///
/// # Errors
/// When a path cannot be read, or nothing can be printed.
pub fn run(config: &Config, paths: &[PathBuf], style: Style, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let begun = Instant::now();
    let given = files::read(paths, &config.sigma)?;
    let (set, mut errors) = RuleSet::compile(&given.files, &config.sigma)?;
    errors.splice(..0, given.skipped);
    let warnings = if config.rule_tools.errors_only { Vec::new() } else { warnings(&given.files, &errors, config)? };
    let summary = Summary {
        files: given.files.len(),
        rules: set.rules().len(),
        correlations: set.correlations().len(),
        filters: set.filters(),
        errors: errors.len(),
        warnings: warnings.len(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    if config.rule_tools.json {
        let found = json!({"errors": errors, "warnings": warnings, "summary": summary});
        serde_json::to_writer_pretty(&mut *out, &found)?;
        writeln!(out)?;
    } else {
        let mut printer = Printer::new(&given.files, style);
        for error in &errors {
            printer.print(&style.error("error"), error, out)?;
        }
        for warning in &warnings {
            let kind = style.warning(&format!("warning[{}]", warning.check));
            printer.print(&kind, &warning.problem, out)?;
        }
        summary.print(&warnings, style, out)?;
    }
    let bad = summary.errors > 0 || (config.rule_tools.deny_warnings && summary.warnings > 0);
    Ok(if bad { Ending::Bad } else { Ending::Good })
}

/// What is odd, without what an error says already. Rules may refer to those of the starter pack.
fn warnings(given: &[RuleFile], errors: &[RuleProblem], config: &Config) -> anyhow::Result<Vec<RuleWarning>> {
    let mut all = given.to_vec();
    let own_pack = given.iter().any(|file| file.name.starts_with("pack/"));
    if config.starter_pack && !own_pack {
        all.extend(pack::files());
    }
    let mut warnings = lint(&all, &config.sigma)?;
    warnings.retain(|warning| {
        let problem = &warning.problem;
        let told = errors.iter().any(|error| error.file == problem.file && error.line == problem.line);
        !told && (own_pack || !problem.file.starts_with("pack/"))
    });
    Ok(warnings)
}

#[derive(Debug, serde::Serialize)]
struct Summary {
    files: usize,
    rules: usize,
    correlations: usize,
    filters: usize,
    errors: usize,
    warnings: usize,
    seconds: f64,
}

impl Summary {
    fn print(&self, warnings: &[RuleWarning], style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut checks: BTreeMap<&str, usize> = BTreeMap::new();
        warnings.iter().for_each(|warning| *checks.entry(&warning.check).or_default() += 1);
        let mut checks: Vec<(&str, usize)> = checks.into_iter().collect();
        checks.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let checks: Vec<String> = checks.iter().map(|(check, count)| format!("{check} {count}")).collect();
        let list = if checks.is_empty() { String::new() } else { format!(" ({})", checks.join(", ")) };
        let counted = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let errors = counted(self.errors, "error");
        let mut loaded = vec![counted(self.rules, "rule")];
        let more = [(self.correlations, "correlation"), (self.filters, "filter")];
        loaded.extend(more.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| counted(count, word)));
        writeln!(
            out,
            "{}: {} load; {}, {}{list}; {:.1} s",
            counted(self.files, "file"),
            loaded.join(", "),
            if self.errors > 0 { style.error(&errors) } else { style.good(&errors) },
            counted(self.warnings, "warning"),
            self.seconds,
        )?;
        Ok(())
    }
}

/// Prints problems with the lines that they are in.
struct Printer<'a> {
    /// The lines of each file.
    lines: HashMap<&'a str, Vec<&'a str>>,
    style: Style,
}

impl<'a> Printer<'a> {
    fn new(files: &'a [RuleFile], style: Style) -> Self {
        Self { lines: files.iter().map(|file| (file.name.as_str(), file.text.lines().collect())).collect(), style }
    }

    fn print(&mut self, kind: &str, problem: &RuleProblem, out: &mut dyn Write) -> anyhow::Result<()> {
        let style = self.style;
        writeln!(out, "{kind}: {}", style.bold(&clean(&problem.reason)))?;
        let number = problem.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(out, "{margin}{} {}:{}:{}", style.faint("-->"), clean(&problem.file), problem.line, problem.column)?;
        let line = self.lines.get(problem.file.as_str()).and_then(|lines| lines.get(problem.line.saturating_sub(1)));
        if let Some(line) = line.filter(|line| !line.trim().is_empty()) {
            let bar = style.faint("|");
            writeln!(out, "{margin} {bar}")?;
            writeln!(out, "{} {bar} {}", style.faint(&number), cut(line, LINE_CHARS_MAX))?;
            if problem.column <= LINE_CHARS_MAX {
                let carets = "^".repeat(underlined(line, problem.column));
                writeln!(out, "{margin} {bar} {}{}", " ".repeat(problem.column - 1), style.warning(&carets))?;
            }
        }
        if !problem.hint.is_empty() {
            writeln!(out, "{margin} {} help: {}", style.faint("="), clean(&problem.hint))?;
        }
        writeln!(out)?;
        Ok(())
    }
}

/// How many letters are meant: the word that starts there.
fn underlined(line: &str, column: usize) -> usize {
    let rest: Vec<char> = line.chars().skip(column.saturating_sub(1)).collect();
    let word =
        rest.iter().take_while(|letter| !letter.is_whitespace() && !matches!(letter, ':' | ',' | ']' | '}')).count();
    word.clamp(1, LINE_CHARS_MAX.saturating_sub(column).max(1))
}
