//! From rule text to parsed Sigma documents with their places: splitting, bounds on YAML, then `rsigma-parser`.
//!
//! The parser trusts its input in two ways that rule text from an API must not be trusted: aliases may multiply nodes, and
//! parentheses of a condition nest on the stack. So each document is first walked without being built, with a bound on nodes
//! (after aliases) and on the nesting of conditions.

use std::cell::Cell;
use std::fmt;

use rsigma_parser::{CorrelationRule, FilterRule, SigmaRule, parse_sigma_yaml};
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use yaml_serde::Value;

use crate::config::RulesConfig;
use crate::correlation::definition::readable;
use crate::problem::{Fault, RuleFile, RuleProblem};

/// The parser gives up at 64; counted here before its grammar recurses.
const CONDITION_DEPTH_MAX: usize = 64;

/// The parser recurses for each `not` of a row of them.
const NEGATIONS_MAX: usize = 256;

/// What is kept of a key: more than the keys that are looked for have.
const KEY_CHARS: usize = 16;

/// See [`flow_cost`]. A rule in block style with some flow lists stays below 10^6.
const FLOW_COST_MAX: u64 = 300_000_000;

/// What a document is.
pub(crate) enum Parsed {
    Rule(Box<SigmaRule>),
    Correlation(Box<CorrelationRule>),
    Filter(Box<FilterRule>),
}

/// A part of a file that stands alone: one document, or a whole file whose documents build on each other (`action:`).
pub(crate) struct Part<'a> {
    pub file: &'a str,
    pub text: &'a str,
    /// Lines of the file before it.
    pub lines_before: usize,
}

impl<'a> Part<'a> {
    /// The text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The problem that a fault is, with its place in the file.
    pub fn problem(&self, rule: &str, fault: Fault) -> RuleProblem {
        let (line, column) = self.locate(fault.section, &fault.near);
        RuleProblem {
            file: self.file.to_owned(),
            line,
            column,
            rule: rule.to_owned(),
            reason: fault.reason,
            hint: fault.hint,
        }
    }

    /// Line and column of the first `needle` that is a word of its own, else of the first anywhere, outside comments and from
    /// the key `section` on; the first line of the document without one. A key (`level:`) is looked for at the start of a line
    /// first.
    fn locate(&self, section: &str, needle: &str) -> (usize, usize) {
        let is_text = |line: &str| !(line.is_empty() || line.starts_with('#') || line == "---");
        let lines = || self.text.lines().enumerate().filter(|(_, line)| is_text(line.trim_start()));
        let first = lines().next().map_or(0, |(at, _)| at);
        if !needle.is_empty() {
            let start = lines().find(|(_, line)| line.starts_with(section)).map_or(0, |(at, _)| at);
            type Fits = fn(&str, usize, &str) -> bool;
            let key: Fits = |line, byte, needle| {
                needle.ends_with(':')
                    && line.get(..byte).is_some_and(|before| before.trim_matches([' ', '-']).is_empty())
            };
            for fits in [key, is_word, |_, _, _| true] {
                let mut places = lines().skip_while(|(at, _)| *at < start).flat_map(|(at, line)| {
                    let bytes = line.match_indices(needle).map(|(byte, _)| byte);
                    let before = |byte: usize| line.get(..byte).map_or(0, |before| before.chars().count());
                    bytes.filter(move |byte| fits(line, *byte, needle)).map(move |byte| (at, before(byte)))
                });
                if let Some((at, column)) = places.next() {
                    return (self.lines_before + at + 1, column + 1);
                }
            }
        }
        (self.lines_before + first + 1, 1)
    }
}

/// Whether the needle at this byte of a line has no letter right before or after it that would make it part of a word.
fn is_word(line: &str, byte: usize, needle: &str) -> bool {
    let letter = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    let before = line.get(..byte).and_then(|text| text.chars().next_back());
    let after = line.get(byte + needle.len()..).and_then(|text| text.chars().next());
    !(letter(needle.chars().next()) && letter(before) || letter(needle.chars().next_back()) && letter(after))
}

/// Parses a file. What parsed comes in document order with the part it came from; what did not is in `problems`.
pub(crate) fn parse_file<'a>(
    file: &'a RuleFile,
    config: &RulesConfig,
    problems: &mut Vec<RuleProblem>,
) -> Vec<(Part<'a>, Parsed)> {
    let mut documents = Vec::new();
    if file.text.len() > config.file_bytes_max {
        let whole = Part { file: &file.name, text: "", lines_before: 0 };
        let reason = format!("the file has {} bytes, more than {}", file.text.len(), config.file_bytes_max);
        problems.push(whole.problem("", Fault::new(reason).hint("split it, or raise file_bytes_max")));
        return documents;
    }
    for (text, lines_before) in split(&file.text) {
        let part = || Part { file: &file.name, text, lines_before };
        if let Err((fault, place)) = check_shape(text, config.document_nodes_max) {
            let mut problem = part().problem(&name_in(text), fault);
            if let Some((line, column)) = place {
                (problem.line, problem.column) = (lines_before + line, column);
            }
            problems.push(problem);
            continue;
        }
        let parsed = match parse_sigma_yaml(&readable(text)) {
            Ok(parsed) => parsed,
            Err(error) => {
                problems.push(part().problem(&name_in(text), fault_of(&error.to_string())));
                continue;
            }
        };
        for error in &parsed.errors {
            problems.push(part().problem(&name_in(text), fault_of(error)));
        }
        let rules = parsed.rules.into_iter().map(|rule| Parsed::Rule(Box::new(rule)));
        let correlations = parsed.correlations.into_iter().map(|rule| Parsed::Correlation(Box::new(rule)));
        documents.extend(rules.chain(correlations).map(|parsed| (part(), parsed)));
        for filter in parsed.filters {
            match check_filter_rules(text) {
                Ok(()) => documents.push((part(), Parsed::Filter(Box::new(filter)))),
                Err(fault) => problems.push(part().problem(&name_in(text), fault)),
            }
        }
    }
    documents
}

/// Checks the `rules` of the filter that a text is, since the parser takes what it cannot read for `any`.
fn check_filter_rules(text: &str) -> Result<(), Fault> {
    let fault = |reason: &str, hint: &str| Err(Fault::new(reason).hint(hint));
    let mut documents = yaml_serde::Deserializer::from_str(text).map(Value::deserialize);
    let (Some(Ok(document)), None) = (documents.next(), documents.next()) else {
        return fault("a filter does not go together with `action:`", "write it as a document of its own");
    };
    match document.get("filter").and_then(|filter| filter.get("rules")) {
        Some(Value::String(rule)) if !rule.trim().is_empty() => Ok(()),
        Some(Value::Sequence(rules)) if rules.iter().all(Value::is_string) => Ok(()),
        Some(_) => Err(Fault::new("the rules of a filter are not names")
            .hint("write ids or names of rules in quotes, or `any`")
            .near("rules:")),
        None => Err(Fault::new("the filter does not say which rules it is for")
            .hint("add `rules:`, or `rules: any`")
            .near("filter:")),
    }
}

/// The documents of a file with the lines before each. A line that starts with `---` always starts a document, whatever
/// stands around it (YAML 1.2, section 9.1.2). Documents that build on each other (`action: global`) stay together.
fn split(text: &str) -> Vec<(&str, usize)> {
    if text.lines().any(|line| line.starts_with("action:")) {
        return vec![(text, 0)];
    }
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\r', '\n', '\t']));
        if marker && at > start {
            parts.push((text.get(start..at).unwrap_or_default(), start_line));
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    parts.push((text.get(start..).unwrap_or_default(), start_line));
    let has_content = |part: &str| {
        part.lines().any(
            |line| !matches!(line.trim().trim_start_matches("---"), rest if rest.is_empty() || rest.starts_with('#')),
        )
    };
    parts.retain(|(part, _)| has_content(part));
    parts
}

/// The id, else the title, that a document seems to have, for problems of documents that do not parse.
fn name_in(text: &str) -> String {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim().trim_matches(['\'', '"']).chars().take(200).collect::<String>())
    };
    value("id:").or_else(|| value("title:")).unwrap_or_default()
}

/// A parser's message as a fault, with what to look for in the text.
fn fault_of(message: &str) -> Fault {
    let quoted = || message.split('\'').nth(1).unwrap_or_default().to_owned();
    let fault = Fault::new(message.split_whitespace().collect::<Vec<_>>().join(" "));
    if message.starts_with("Unknown modifier") {
        return fault.hint("see docs/rules.md for the modifiers there are").near(&format!("|{}", quoted()));
    }
    if message.contains("`not` is not a value modifier") {
        return fault.near("|not");
    }
    if message.starts_with("Condition") {
        return fault.hint("identifiers, and/or/not, parentheses, `1 of name_*`, `all of them`").near("condition:");
    }
    if message.starts_with("Missing required field") {
        return fault.hint(format!("add `{}:` to the rule", quoted()));
    }
    for key in ["status", "level", "related", "logsource"] {
        if message.contains(key) {
            return fault.near(&format!("{key}:"));
        }
    }
    fault
}

/// Walks the YAML of a part without building it. A fault comes with its line and column where the scanner knows them.
fn check_shape(text: &str, nodes_max: usize) -> Result<(), (Fault, Option<(usize, usize)>)> {
    if flow_cost(text) > FLOW_COST_MAX {
        let fault = Fault::new("the document has too many brackets").hint("write lists and maps in block style");
        return Err((fault, None));
    }
    let nodes = Cell::new(0);
    for document in yaml_serde::Deserializer::from_str(text) {
        if let Err(error) = (Walk { nodes: &nodes, nodes_max, place: Place::Elsewhere }).deserialize(document) {
            let place = error.location().map(|location| (location.line(), location.column()));
            // The place is told apart from the reason, by its line in the file.
            let said = place.map(|(line, column)| format!(" at line {line} column {column}")).unwrap_or_default();
            let fault = Fault::new(error.to_string().replacen(&said, "", 1));
            return Err((fault.hint("the text is not YAML that a rule can be"), place));
        }
    }
    Ok(())
}

/// An upper bound on the steps that the YAML scanner takes over flow collections: at each token it looks at every bracket
/// that is open. Brackets in quotes count too: telling them apart is the scanner's own work.
fn flow_cost(text: &str) -> u64 {
    let (mut opening, mut tokens) = (0u64, 0u64);
    for byte in text.bytes() {
        opening += u64::from(matches!(byte, b'[' | b'{'));
        tokens += u64::from(matches!(byte, b'[' | b'{' | b']' | b'}' | b',' | b':' | b'-' | b'?' | b'\n'));
    }
    opening * tokens
}

/// Where a node stands, as far as its place says what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Elsewhere,
    /// The value of a key `condition`, or in it.
    Condition,
    /// The value of `detection` or `filter`: selections by name.
    Detection,
    /// A selection, or one of its list.
    Selection,
    /// The value of a field: a scalar, or a list of them. The parser would take anything else for a text.
    Value,
    /// In the list of values of a field.
    Listed,
}

impl Place {
    /// The place of a value in a map that is here.
    fn below(self, key: &str) -> Self {
        match (self, key) {
            (_, "condition") => Self::Condition,
            (Self::Elsewhere, "detection" | "filter") => Self::Detection,
            (Self::Detection, _) => Self::Selection,
            // `field[any]:` may hold a selection of its own.
            (Self::Selection, key) if key.ends_with(']') => Self::Selection,
            (Self::Selection, _) => Self::Value,
            _ => Self::Elsewhere,
        }
    }
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    nodes: &'a Cell<usize>,
    nodes_max: usize,
    place: Place,
}

impl Walk<'_> {
    fn count<E: de::Error>(self) -> Result<(), E> {
        self.nodes.set(self.nodes.get() + 1);
        if self.nodes.get() > self.nodes_max {
            return Err(E::custom(format!("the document has more than {} nodes", self.nodes_max)));
        }
        Ok(())
    }

    fn scalar<E: de::Error>(self, text: &str) -> Result<String, E> {
        self.count()?;
        if self.place == Place::Condition && nesting(text) > CONDITION_DEPTH_MAX {
            return Err(E::custom(format!("a condition nests deeper than {CONDITION_DEPTH_MAX} parentheses")));
        }
        if self.place == Place::Condition && negations(text) > NEGATIONS_MAX {
            return Err(E::custom(format!("a condition says `not` more than {NEGATIONS_MAX} times")));
        }
        // Keys are only looked at for what they are called, or how they end.
        let long = text.chars().count() > KEY_CHARS;
        let cut = |text: &str| text.chars().take(KEY_CHARS).collect();
        Ok(if long { text.rsplit_once('[').map_or_else(|| cut(text), |(_, end)| cut(end)) } else { text.to_owned() })
    }
}

fn nesting(condition: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in condition.bytes() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn negations(condition: &str) -> usize {
    condition.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| *word == "not").count()
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        self.scalar(text)
    }

    fn visit_unit<E: de::Error>(self) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_none<E: de::Error>(self) -> Result<String, E> {
        self.scalar("")
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<String, A::Error> {
        self.count()?;
        let place = match self.place {
            Place::Value => Place::Listed,
            Place::Listed => return Err(de::Error::custom("a list among the values of a field")),
            other => other,
        };
        while sequence.next_element_seed(Walk { place, ..self })?.is_some() {}
        Ok(String::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        self.count()?;
        if matches!(self.place, Place::Value | Place::Listed) {
            return Err(de::Error::custom("a map where a field has its value"));
        }
        while let Some(key) = map.next_key_seed(Walk { place: Place::Elsewhere, ..self })? {
            map.next_value_seed(Walk { place: self.place.below(&key), ..self })?;
        }
        Ok(String::new())
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<String, A::Error> {
        // A tagged value (`!tag value`): the parser has no use for one, so it is only counted.
        let (_, variant) = tagged.variant::<IgnoredAny>()?;
        self.count()?;
        de::VariantAccess::newtype_variant_seed(variant, self)?;
        Ok(String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_splits_at_document_markers_and_keeps_line_numbers() {
        let text = "# first\n---\ntitle: a\n--- # second\ntitle: b\n---\n# nothing\n";
        let lines: Vec<_> = split(text).into_iter().map(|(part, before)| (before, part.contains("title"))).collect();
        assert_eq!(lines, [(1, true), (3, true)]);
        assert_eq!(split("title: a\naction: global\n---\nx: 1\n").len(), 1);
        assert!(split("").is_empty());
    }

    #[test]
    fn shape_is_bounded_whatever_hides_it() {
        let deep = format!("condition: {}a{}", "(".repeat(65), ")".repeat(65));
        let escaped = format!("condition: \"{}\"", "\\x28".repeat(100));
        let anchored = format!("x: &c \"{}\"\ncondition: *c", "(".repeat(100));
        let bomb = format!("a: &a [{}]\nb: [{}]", "x,".repeat(1000), "*a,".repeat(1000));
        for text in [deep, escaped, anchored, bomb] {
            assert!(check_shape(&text, 10_000).is_err(), "{text:.60}");
        }
        assert!(check_shape("condition: ((a))\nb: '((((('", 10_000).is_ok());
    }
}
