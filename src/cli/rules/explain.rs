//! `tidegate rules explain`: what a rule compiles to, and why events match it or not.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use serde_json::json;
use tidegate_rules::explain::{Explanation, explain};
use tidegate_rules::explain_beside::{CorrelationShown, FilterShown, explain_correlation, explain_filters};
use tidegate_rules::{Findings, Near, RuleProblem, RuleSet, Trial};

use super::events::{self, Events, Wanted};
use super::files::{self, Named};
use crate::cli::Ending;
use crate::cli::style::{Style, clean, cut};
use crate::config::Config;

/// How much of a line is shown.
const LINE_CHARS_MAX: usize = 200;

/// Runs the command.
///
/// # Errors
/// When there is no such rule, files cannot be read, or nothing can be printed.
pub fn run(config: &Config, rule: &str, style: Style, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let named = files::find(rule, config)?;
    let (set, problems) = RuleSet::compile(&named.files, &config.sigma)?;
    let set = Arc::new(set);
    let file = named.files.get(named.file).map(|file| file.name.clone()).unwrap_or_default();
    let problems: Vec<RuleProblem> = problems.into_iter().filter(|problem| problem.file == file).collect();
    let rules = chosen(&set, &named, &file);
    let beside = Beside::chosen(&set, &named, &file);
    if rules.is_empty() && beside.is_empty() {
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("{file} has no rule that can be explained{}", list(&told));
    }
    let events = read_events(config)?;
    let mut told = Vec::new();
    for rule in rules {
        let explanation = explain(&set, rule).ok_or_else(|| anyhow!("rule {rule} is not there"))?;
        let findings =
            events.as_ref().map(|events| try_events(&set, rule, events, config.rule_tools.top)).transpose()?;
        if config.rule_tools.json {
            told.push(json!({"rule": explanation, "events": findings}));
            continue;
        }
        let page = Page { explanation: &explanation, style };
        page.print(out)?;
        if let (Some(findings), Some(events)) = (&findings, &events) {
            page.print_findings(findings, events, config.rule_tools.top, out)?;
        }
    }
    if config.rule_tools.json {
        told.extend(beside.correlations.iter().map(|shown| json!({"correlation": shown})));
        told.extend(beside.filters.iter().map(|shown| json!({"filter": shown})));
    } else {
        beside.print(style, out)?;
    }
    if config.rule_tools.json {
        serde_json::to_writer_pretty(&mut *out, &told)?;
        writeln!(out)?;
    }
    for problem in &problems {
        writeln!(std::io::stderr(), "{problem}")?;
    }
    Ok(if problems.is_empty() { Ending::Good } else { Ending::Bad })
}

fn list(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!(": {}", problems.join("; ")) }
}

/// The rules that are meant: those of the file; of these the one that was named.
fn chosen(set: &RuleSet, named: &Named, file: &str) -> Vec<usize> {
    let wanted = |rule: &tidegate_rules::Rule| match &named.wanted {
        None => true,
        Some(wanted) => {
            let names = [Some(&rule.head.id), rule.head.name.as_ref(), Some(&rule.head.title)];
            names.into_iter().flatten().any(|name| name.eq_ignore_ascii_case(wanted))
        }
    };
    let rules = set.rules().iter().enumerate().filter(|(_, rule)| rule.head.file == file && wanted(rule));
    rules.map(|(at, _)| at).collect()
}

/// The correlations and filters that are meant.
struct Beside {
    correlations: Vec<CorrelationShown>,
    filters: Vec<FilterShown>,
}

impl Beside {
    fn chosen(set: &RuleSet, named: &Named, file: &str) -> Self {
        let is_wanted = |names: &[Option<&String>]| {
            let wanted = named.wanted.as_ref();
            wanted.is_none_or(|wanted| names.iter().flatten().any(|name| name.eq_ignore_ascii_case(wanted)))
        };
        let own = set.correlations().iter().enumerate();
        let own = own.filter(|(_, own)| {
            own.head.file == file && is_wanted(&[Some(&own.head.id), own.head.name.as_ref(), Some(&own.head.title)])
        });
        let correlations = own.filter_map(|(at, _)| explain_correlation(set, at)).collect();
        let mut filters = explain_filters(set, file);
        // A filter is asked for by its id, or it is alone in its file.
        let first = filters.first().map(|filter| filter.rule_id.clone());
        let alone = filters.iter().all(|filter| Some(&filter.rule_id) == first.as_ref());
        let rules = set.rules().iter().any(|rule| rule.head.file == file);
        filters.retain(|filter| is_wanted(&[Some(&filter.rule_id)]) || (alone && !rules));
        Self { correlations, filters }
    }

    fn is_empty(&self) -> bool {
        self.correlations.is_empty() && self.filters.is_empty()
    }

    fn print(&self, style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
        for own in &self.correlations {
            writeln!(out, "{}  {}", style.bold(&clean(&own.title)), style.level(&own.level).trim_end())?;
            writeln!(out, "{}", style.faint(&clean(&format!("{}  {}", own.rule_id, own.file))))?;
            let of = if own.fields.is_empty() { String::new() } else { format!(" of {}", own.fields.join(", ")) };
            writeln!(
                out,
                "\n{}",
                style.bold(&clean(&format!("{}{of} within {}: {}", own.kind, own.timespan, own.condition)))
            )?;
            for (name, ids) in &own.rules {
                writeln!(out, "  {:28} {}", cut(name, 60), style.faint(&cut(&ids.join(", "), LINE_CHARS_MAX)))?;
            }
            let group =
                if own.group_by.is_empty() { "all events of a tenant".to_owned() } else { own.group_by.join(", ") };
            writeln!(out, "  for each: {}", cut(&group, LINE_CHARS_MAX))?;
            let when = if own.with_each_event { "with the event that completes it" } else { "when the window is over" };
            writeln!(out, "  it fires {when}{}", if own.raises { "" } else { "; it raises nothing of its own" })?;
            if !own.feeds.is_empty() {
                writeln!(out, "  its firings are events for {}", cut(&own.feeds.join(", "), LINE_CHARS_MAX))?;
            }
            writeln!(out)?;
        }
        for own in &self.filters {
            writeln!(
                out,
                "{}  {}",
                style.bold("filter"),
                style.faint(&clean(&format!("{}  {}", own.rule_id, own.file)))
            )?;
            let rules = own.rules.as_ref().map_or_else(|| "every rule".to_owned(), |rules| rules.join(", "));
            writeln!(out, "  on {} of {}", cut(&rules, LINE_CHARS_MAX), clean(&own.log_source))?;
            writeln!(out, "\n{}", style.bold("a match stays when"))?;
            for line in &own.keeps {
                writeln!(out, "  {}", cut(line, LINE_CHARS_MAX))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// The events that the configuration names; `None` when it names none.
fn read_events(config: &Config) -> anyhow::Result<Option<Events>> {
    let tools = &config.rule_tools;
    if tools.events.is_empty() {
        return Ok(None);
    }
    let wanted = Wanted {
        files: tools.events.clone(),
        source: tools.source.clone(),
        dataset: tools.dataset.as_deref().map(events::dataset).transpose()?,
        events_max: tools.events_max,
        excerpts: true,
    };
    events::read(&wanted, config).map(Some)
}

fn try_events(set: &Arc<RuleSet>, rule: usize, events: &Events, top: usize) -> anyhow::Result<Findings> {
    let mut trial = Trial::new(set.clone(), rule, top).ok_or_else(|| anyhow!("rule {rule} is not there"))?;
    for (batch, numbers) in events.batches.iter().zip(&events.rows) {
        trial.batch(batch, numbers);
    }
    Ok(trial.finish())
}

/// Prints one rule.
struct Page<'a> {
    explanation: &'a Explanation,
    style: Style,
}

impl Page<'_> {
    fn head(&self, text: &str, out: &mut dyn Write) -> anyhow::Result<()> {
        writeln!(out, "\n{}", self.style.bold(text))?;
        Ok(())
    }

    fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let Explanation { rule_id, title, level, file, log_source, fields, program, witness, filters, .. } =
            self.explanation;
        writeln!(out, "{}  {}", self.style.bold(&clean(title)), self.style.level(level).trim_end())?;
        writeln!(out, "{}", self.style.faint(&clean(&format!("{rule_id}  {file}"))))?;
        self.head(&format!("events of {} it sees: {}", log_source.dataset, clean(&log_source.name)), out)?;
        self.lines(&log_source.lines(), out)?;
        if !log_source.known {
            writeln!(out, "  (no log source table knows it: the name is taken for that of a source)")?;
        }
        self.head("fields, and the columns that may hold them (the first with a value is taken)", out)?;
        for field in fields {
            let columns = if field.columns.is_empty() { "all".to_owned() } else { field.columns.join(", ") };
            writeln!(out, "  {:28} {}", cut(&field.name, 60), self.style.faint(&cut(&columns, LINE_CHARS_MAX)))?;
        }
        self.head("matches when", out)?;
        self.lines(&self.explanation.lines(program), out)?;
        for filter in filters {
            self.head(&format!("unless a filter takes it away: {} keeps", clean(&filter.id)), out)?;
            self.lines(&self.explanation.lines(&filter.keeps), out)?;
        }
        self.head("looked at only in batches where", out)?;
        match witness {
            None => writeln!(out, "  (always: nothing in it must be true, so it costs on every batch it sees)")?,
            Some(numbers) if numbers.is_empty() => writeln!(out, "  (never: it cannot match)")?,
            Some(numbers) => {
                let names: Vec<String> = numbers.iter().map(|number| format!("p{number}")).collect();
                writeln!(out, "  {} is true of an event", cut(&names.join(" or "), LINE_CHARS_MAX))?;
            }
        }
        let shared: Vec<String> = self.shared();
        if !shared.is_empty() {
            writeln!(out, "  {}", self.style.faint(&cut(&shared.join("; "), LINE_CHARS_MAX)))?;
        }
        Ok(())
    }

    /// Predicates that other rules ask too.
    fn shared(&self) -> Vec<String> {
        let predicates = self.explanation.predicates.iter().enumerate();
        let shared = predicates.filter(|(_, predicate)| predicate.rules > 1);
        shared.map(|(number, predicate)| format!("p{number} is shared with {} rules", predicate.rules - 1)).collect()
    }

    fn lines(&self, lines: &[String], out: &mut dyn Write) -> anyhow::Result<()> {
        for line in lines {
            writeln!(out, "  {}", cut(line, LINE_CHARS_MAX))?;
        }
        Ok(())
    }

    fn print_findings(
        &self,
        findings: &Findings,
        events: &Events,
        top: usize,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let Findings { covered, matched, filtered, .. } = findings;
        let filtered = if *filtered > 0 { format!(", {filtered} of them filtered") } else { String::new() };
        let refused = if events.refused.is_empty() {
            String::new()
        } else {
            format!(" ({} more would be refused)", events.refused.len())
        };
        self.head(
            &format!("of {} events{refused} it sees {covered}, and {matched} match{filtered}", findings.events),
            out,
        )?;
        if *covered == 0 {
            return self.print_uncovered(findings, events, out);
        }
        writeln!(out, "  {:5} {:>9} {:>9} {:>9}", "", "true", "has value", "decided")?;
        for (number, asked) in findings.predicates.iter().enumerate() {
            let text = self.explanation.leaf(&tidegate_rules::explain::Expression::Predicate(number));
            let text = text.unwrap_or_default();
            let text = text.split_once("  ").map_or(text.as_str(), |(_, text)| text);
            writeln!(
                out,
                "  {:5} {:>9} {:>9} {:>9}  {}",
                format!("p{number}"),
                asked.satisfied,
                asked.present,
                asked.decided,
                cut(text, 120)
            )?;
        }
        for (field, columns) in self.explanation.fields.iter().zip(&findings.columns) {
            self.print_columns(&field.name, columns, *covered, out)?;
        }
        if !findings.matches.is_empty() {
            self.head("events that match", out)?;
            for event in findings.matches.iter().take(top) {
                writeln!(out, "  {event:>6}  {}", self.style.faint(&excerpt(events, *event)))?;
            }
        }
        if !findings.nearest.is_empty() {
            self.head("events that come nearest and do not match, and what would have to be otherwise", out)?;
            for near in &findings.nearest {
                self.print_near(near, events, out)?;
            }
        }
        Ok(())
    }

    fn print_columns(
        &self,
        field: &str,
        columns: &BTreeMap<String, u64>,
        covered: u64,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let with: u64 = columns.values().sum();
        let columns: Vec<String> = columns.iter().map(|(name, count)| format!("{name} in {count}")).collect();
        let without = covered.saturating_sub(with);
        if !columns.is_empty() {
            let text = format!("{field}: {}; none in {without}", columns.join(", "));
            writeln!(out, "  {}", self.style.faint(&cut(&text, LINE_CHARS_MAX)))?;
        }
        Ok(())
    }

    fn print_uncovered(&self, findings: &Findings, events: &Events, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut sources: Vec<(&String, &u64)> = findings.sources.iter().collect();
        sources.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let sources: Vec<String> = sources.iter().take(8).map(|(source, count)| format!("{source} {count}")).collect();
        writeln!(out, "  their sources: {} (--source names another)", cut(&sources.join(", "), LINE_CHARS_MAX))?;
        self.head("events that come nearest to being seen, and what would have to be otherwise", out)?;
        for near in findings.uncovered.iter().take(5) {
            writeln!(out, "  {:>6}  {}", near.event, self.style.faint(&excerpt(events, near.event)))?;
            let predicates = &self.explanation.log_source.predicates;
            for reason in &near.reasons {
                let test =
                    reason.predicate.and_then(|number| predicates.get(number)).map_or("has a value", |own| &own.test);
                self.print_reason(&reason.field, test, reason.wanted, &reason.values, out)?;
            }
        }
        Ok(())
    }

    fn print_near(&self, near: &Near, events: &Events, out: &mut dyn Write) -> anyhow::Result<()> {
        writeln!(out, "  {:>6}  {}", near.event, self.style.faint(&excerpt(events, near.event)))?;
        for reason in &near.reasons {
            let predicate = reason.predicate.and_then(|number| self.explanation.predicates.get(number));
            let test = predicate.map_or("has a value, or fits the other field", |own| own.test.as_str());
            let number = reason.predicate.map(|number| format!("p{number}  ")).unwrap_or_default();
            self.print_reason(&format!("{number}{}", reason.field), test, reason.wanted, &reason.values, out)?;
        }
        Ok(())
    }

    fn print_reason(
        &self,
        field: &str,
        test: &str,
        wanted: bool,
        values: &[String],
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let asked = format!("{}{field} {test}", if wanted { "" } else { "not " });
        let has =
            if values.is_empty() { "it has no value".to_owned() } else { format!("it is {}", values.join(" | ")) };
        writeln!(out, "          {}: {}", cut(&asked, 120), cut(&has, 120))?;
        Ok(())
    }
}

fn excerpt(events: &Events, event: usize) -> String {
    cut(events.excerpts.get(event).map(String::as_str).unwrap_or_default(), 140)
}
