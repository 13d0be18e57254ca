//! Events made from a rule's own values: to match it, to match what it excludes, and each a little damaged.

use std::collections::BTreeMap;

use regex_syntax::hir::{Class, Hir, HirKind};
use rsigma_parser::{
    ConditionExpr, Detection, DetectionItem, Modifier, Quantifier, SigmaRule, SigmaString, SigmaValue, SpecialChar,
    StringPart,
};
use serde_json::{Map, Value, json};

/// What a field has to be.
#[derive(Default)]
struct Wish {
    whole: Option<Value>,
    start: String,
    middle: Vec<String>,
    end: String,
    absent: bool,
}

impl Wish {
    fn value(self) -> Option<Value> {
        if self.absent {
            return None;
        }
        let text = format!("{}{}{}", self.start, self.middle.join("~"), self.end);
        Some(self.whole.unwrap_or(Value::String(text)))
    }
}

struct Maker<'a> {
    rule: &'a SigmaRule,
    /// Which alternatives are taken: 0, 1, 2, …
    variant: usize,
    /// Whether what the condition negates is made too.
    negated: bool,
    fields: BTreeMap<String, Wish>,
}

/// An event that should match the rule; with `negated`, one that should not, for what the rule excludes.
pub fn event(rule: &SigmaRule, variant: usize, negated: bool) -> Map<String, Value> {
    let mut maker = Maker { rule, variant, negated, fields: BTreeMap::new() };
    let conditions = &rule.detection.conditions;
    if let Some(condition) = conditions.get(variant % conditions.len().max(1)) {
        maker.condition(condition);
    }
    maker.fields.into_iter().filter_map(|(name, wish)| Some((name, wish.value()?))).collect()
}

/// The event with one field damaged, each in some ways.
pub fn damaged(event: &Map<String, Value>, keep: &BTreeMap<String, Value>) -> Vec<Map<String, Value>> {
    let mut all = Vec::new();
    for (name, value) in event.iter().filter(|(name, _)| !keep.contains_key(*name)) {
        let with = |value: Value| {
            let mut event = event.clone();
            event.insert(name.clone(), value);
            event
        };
        let mut without = event.clone();
        without.remove(name);
        all.push(without);
        all.push(with(json!([value, "other"])));
        all.push(with(json!([{"deep": value}])));
        all.push(with(json!("")));
        match value {
            Value::String(text) => {
                let letters: Vec<char> = text.chars().collect();
                let half: String = letters[..letters.len() / 2].iter().collect();
                let rest: String = letters[letters.len() / 2..].iter().skip(1).collect();
                let swapped: String = text
                    .chars()
                    .map(|c| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
                    .collect();
                let values = [
                    format!("{text}~"),
                    format!("~{text}"),
                    format!("{half}é{rest}"),
                    format!("{half}\n{rest}"),
                    swapped,
                    text.replace('-', "/"),
                    text.replace('/', "-"),
                    text.replace('\\', "\\\\"),
                ];
                all.extend(values.into_iter().filter(|other| other != text).map(|text| with(json!(text))));
            }
            Value::Number(number) => {
                all.push(with(json!(number.to_string())));
                all.push(with(json!(number.as_f64().unwrap_or_default() + 1.0)));
                all.push(with(json!(number.as_i64().unwrap_or_default() - 1)));
            }
            other => all.push(with(json!(other.to_string()))),
        }
    }
    all
}

impl Maker<'_> {
    fn condition(&mut self, condition: &ConditionExpr) {
        match condition {
            ConditionExpr::And(parts) => parts.iter().for_each(|part| self.condition(part)),
            ConditionExpr::Or(parts) => {
                if let Some(part) = parts.get(self.variant % parts.len().max(1)) {
                    self.condition(part);
                }
            }
            ConditionExpr::Not(part) => {
                if self.negated {
                    self.condition(part);
                } else {
                    self.avoid(part);
                }
            }
            ConditionExpr::Identifier(name) => {
                if let Some(detection) = self.rule.detection.named.get(name) {
                    self.detection(detection);
                }
            }
            ConditionExpr::Selector { quantifier, .. } => {
                let chosen = self.chosen(condition);
                let from = self.variant % chosen.len().max(1);
                let count = match quantifier {
                    Quantifier::Any => 1,
                    Quantifier::All => chosen.len(),
                    Quantifier::Count(count) => *count as usize,
                };
                for detection in chosen.iter().cycle().skip(from).take(count) {
                    self.detection(detection);
                }
            }
        }
    }

    fn chosen(&self, selector: &ConditionExpr) -> Vec<Detection> {
        let ConditionExpr::Selector { pattern, .. } = selector else { return Vec::new() };
        let mut names: Vec<&String> =
            self.rule.detection.named.keys().filter(|name| pattern.matches_detection_name(name)).collect();
        names.sort();
        names.into_iter().map(|name| self.rule.detection.named[name].clone()).collect()
    }

    /// Sees to it that a negated selection about an absent field does not hold.
    fn avoid(&mut self, condition: &ConditionExpr) {
        let detections = match condition {
            ConditionExpr::Identifier(name) => self.rule.detection.named.get(name).cloned().into_iter().collect(),
            other => self.chosen(other),
        };
        for detection in detections {
            let Detection::AllOf(items) = detection else { continue };
            for item in items.iter().filter(|item| item.values.contains(&SigmaValue::Null)) {
                if let Some(name) = &item.field.name {
                    self.fields.entry(name.clone()).or_default().middle.push("set".into());
                }
            }
        }
    }

    fn detection(&mut self, detection: &Detection) {
        match detection {
            Detection::AllOf(items) => items.iter().for_each(|item| self.item(item)),
            Detection::And(parts) => parts.iter().for_each(|part| self.detection(part)),
            Detection::AnyOf(parts) => {
                if let Some(part) = parts.get(self.variant % parts.len().max(1)) {
                    self.detection(part);
                }
            }
            Detection::Keywords(values) => self.keywords(values, false),
            Detection::ArrayMatch { .. } | Detection::Conditional { .. } => {}
        }
    }

    fn keywords(&mut self, values: &[SigmaValue], all: bool) {
        let (from, count) = if all { (0, values.len()) } else { (self.variant % values.len().max(1), 1) };
        for value in values.iter().skip(from).take(count) {
            let text = match value {
                SigmaValue::String(text) => self.text(text),
                other => other.to_string(),
            };
            self.fields.entry("made_text".into()).or_default().middle.push(text);
        }
    }

    fn text(&self, text: &SigmaString) -> String {
        let part = |part: &StringPart| match part {
            StringPart::Plain(plain) => plain.clone(),
            StringPart::Special(SpecialChar::WildcardMulti) => {
                if self.variant.is_multiple_of(2) { "" } else { "-x\\-" }.to_owned()
            }
            StringPart::Special(SpecialChar::WildcardSingle) => "q".to_owned(),
        };
        text.parts.iter().map(part).collect()
    }

    fn item(&mut self, item: &DetectionItem) {
        let modifiers = &item.field.modifiers;
        let all = modifiers.contains(&Modifier::All);
        let Some(name) = &item.field.name else { return self.keywords(&item.values, all) };
        let name = rsigma_parser::fieldpath::unescape_brackets(name).into_owned();
        let (from, count) = if all { (0, item.values.len()) } else { (self.variant % item.values.len().max(1), 1) };
        for value in item.values.iter().skip(from).take(count) {
            self.value(&name, modifiers, value);
        }
    }

    fn value(&mut self, name: &str, modifiers: &[Modifier], value: &SigmaValue) {
        let has = |modifier| modifiers.contains(&modifier);
        if has(Modifier::FieldRef) {
            self.fields.entry(value.to_string()).or_default().whole = Some(json!("same"));
            self.fields.entry(name.to_owned()).or_default().whole = Some(json!("Same"));
            return;
        }
        let made = match value {
            SigmaValue::String(text) if has(Modifier::Re) => matching(&text.original),
            SigmaValue::String(text) if has(Modifier::Cidr) => {
                text.original.split('/').next().unwrap_or_default().to_owned()
            }
            SigmaValue::String(text) => self.text(text),
            SigmaValue::Null => String::new(),
            other => other.to_string(),
        };
        let wish = self.fields.entry(name.to_owned()).or_default();
        match value {
            SigmaValue::Null => return wish.absent = true,
            SigmaValue::Bool(truth) if has(Modifier::Exists) => {
                if *truth {
                    wish.middle.push("there".into());
                } else {
                    wish.absent = true;
                }
                return;
            }
            SigmaValue::Integer(number) if has(Modifier::Lt) => return wish.whole = Some(json!(number - 1)),
            SigmaValue::Integer(number) if modifiers.is_empty() => return wish.whole = Some(json!(number)),
            SigmaValue::Bool(truth) => return wish.whole = Some(json!(truth)),
            _ => {}
        }
        let mut bytes = made.into_bytes();
        let mut place = None;
        for modifier in modifiers {
            match modifier {
                Modifier::Contains | Modifier::StartsWith | Modifier::EndsWith => place = Some(*modifier),
                Modifier::Wide => bytes = bytes.iter().flat_map(|byte| [*byte, 0]).collect(),
                Modifier::Base64 => bytes = base64(&bytes).into_bytes(),
                Modifier::Base64Offset => {
                    let mut whole = b"zz"[..self.variant % 3].to_vec();
                    whole.extend(bytes);
                    whole.extend(b"tail");
                    bytes = base64(&whole).into_bytes();
                }
                _ => {}
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match place {
            Some(Modifier::Contains) => wish.middle.push(text),
            Some(Modifier::StartsWith) => wish.start = text,
            Some(_) => wish.end = text,
            None if has(Modifier::Re) => wish.middle.push(text),
            None => wish.whole = Some(Value::String(text)),
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0u32, |group, at| group << 8 | u32::from(*chunk.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let letter = ALPHABET[(group >> (18 - 6 * at) & 63) as usize];
            text.push(if at > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

/// A text that the regular expression is found in.
fn matching(pattern: &str) -> String {
    fn walk(hir: &Hir, out: &mut String) {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => out.push_str(&String::from_utf8_lossy(&literal.0)),
            HirKind::Class(Class::Unicode(class)) => {
                let usual = ['a', 'X', '7', '-', ' '];
                let holds = |letter: &char| class.iter().any(|range| (range.start()..=range.end()).contains(letter));
                let first = class.iter().next().map(|range| range.start());
                out.extend(usual.into_iter().find(holds).or(first));
            }
            HirKind::Class(Class::Bytes(class)) => {
                out.extend(class.iter().next().map(|range| char::from(range.start())));
            }
            HirKind::Repetition(repetition) => (0..repetition.min.max(1)).for_each(|_| walk(&repetition.sub, out)),
            HirKind::Capture(capture) => walk(&capture.sub, out),
            HirKind::Concat(parts) => parts.iter().for_each(|part| walk(part, out)),
            HirKind::Alternation(parts) => walk(&parts[0], out),
        }
    }
    let mut out = String::new();
    if let Ok(hir) = regex_syntax::parse(pattern) {
        walk(&hir, &mut out);
    }
    out
}
