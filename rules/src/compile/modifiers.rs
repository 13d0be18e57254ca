//! The modifier chain of one detection item: from the rule's values to matchers, modifier by modifier, in order.

use rsigma_parser::{Modifier, SigmaString, SigmaValue, SpecialChar, StringPart};

use crate::compile::encoding::{base64, base64_offsets, utf16};
use crate::compile::glob::{DASHES, Element, Glob};
use crate::compile::matcher::{Cidr, Matcher, Place};
use crate::config::RulesConfig;
use crate::datetime::TimePart;
use crate::fold::fold_char;
use crate::number::{Comparison, Number};
use crate::problem::Fault;

/// From here on, whole numbers in YAML do not fit 64 bits: 2^63.
const LONG_FROM: f64 = 9_223_372_036_854_775_808.0;

/// What an item asks of its field, before it meets a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Test {
    /// The field has a value that matches.
    Value(Matcher),
    /// The field has a value that is no object.
    Present,
    /// The field has a value, or is an object.
    There,
    /// It has not, and is none.
    Absent,
    /// A value of the field relates so to a value of another field of the same event.
    Field { other: String, place: Place, cased: bool },
}

/// The values of an item: each one is a list of alternatives.
#[derive(Debug)]
pub(crate) struct Tests {
    pub values: Vec<Vec<Test>>,
    /// Whether every value must hold, not any.
    pub all: bool,
    /// Whether the opposite is asked for.
    pub negated: bool,
}

/// One letter, wildcard or dash of a string on its way through the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Any,
    One(Element),
}

/// A value on its way through the chain.
#[derive(Debug, Clone)]
enum Value {
    Text(Vec<Piece>),
    Bytes(Vec<u8>),
    Int(i64),
    Float(f64),
    Bool(bool),
    Null,
    Regex(String),
    Done(Test),
    Field(String, Place),
}

/// Runs the chain. `keyword` values are searched in the whole event.
pub(crate) fn apply(
    modifiers: &[Modifier],
    values: &[SigmaValue],
    keyword: bool,
    config: &RulesConfig,
) -> Result<Tests, Fault> {
    let has = |modifier| modifiers.contains(&modifier);
    check_chain(modifiers)?;
    if values.len() > 1 && values.contains(&SigmaValue::Null) {
        return Err(Fault::new("null cannot be in a list of values")
            .hint("give it a selection of its own, and join the two in the condition"));
    }
    // Without a place of its own a keyword may be anywhere in a value.
    let anywhere = keyword && !has(Modifier::StartsWith) && !has(Modifier::EndsWith);
    let mut chain = Vec::with_capacity(values.len());
    for value in values {
        let mut alternatives = start(value, modifiers, config)?;
        for modifier in modifiers {
            let mut next = Vec::with_capacity(alternatives.len());
            for alternative in alternatives {
                step(*modifier, alternative, modifiers, &mut next)?;
            }
            alternatives = next;
        }
        let finished: Result<Vec<Test>, Fault> =
            alternatives.into_iter().map(|value| finish(value, has(Modifier::Cased), (keyword, anywhere))).collect();
        chain.push(finished?);
    }
    if chain.is_empty() {
        return Err(Fault::new("an empty list of values can never match").hint("give at least one value"));
    }
    Ok(Tests { values: chain, all: has(Modifier::All), negated: has(Modifier::Neq) })
}

/// What reads the value as it stands in the rule comes first; `expand`, which completes it, may stand before.
fn check_chain(modifiers: &[Modifier]) -> Result<(), Fault> {
    let first = [
        (Modifier::Re, "re"),
        (Modifier::Cidr, "cidr"),
        (Modifier::FieldRef, "fieldref"),
        (Modifier::Exists, "exists"),
    ];
    for (modifier, name) in first {
        let before = modifiers.iter().take_while(|own| **own != modifier);
        let changed = before.into_iter().any(|own| !matches!(own, Modifier::Expand | Modifier::All | Modifier::Neq));
        if modifiers.contains(&modifier) && changed {
            let fault = Fault::new(format!("{name} takes the value as it is written, so it comes first"));
            return Err(fault.hint(format!("write |{name} before the other modifiers")));
        }
    }
    Ok(())
}

/// The value as it stands in the rule; several when placeholders expand to several.
fn start(value: &SigmaValue, modifiers: &[Modifier], config: &RulesConfig) -> Result<Vec<Value>, Fault> {
    let raw = |modifier| modifiers.contains(&modifier);
    Ok(match value {
        SigmaValue::String(text) if raw(Modifier::Expand) => {
            let expanded = expand(&text.original, config)?;
            let of = |text: &str| {
                if raw(Modifier::Re) { Value::Regex(text.to_owned()) } else { text_value(&SigmaString::new(text)) }
            };
            expanded.iter().map(|text| of(text)).collect()
        }
        SigmaValue::String(text) if raw(Modifier::Re) => vec![Value::Regex(text.original.clone())],
        SigmaValue::String(text) if raw(Modifier::Cidr) => vec![cidr(&text.original)?],
        SigmaValue::String(text) if raw(Modifier::FieldRef) => {
            let name = text.as_plain().filter(|name| !name.is_empty());
            let fault = || Fault::new("fieldref needs the name of a field").hint("wildcards have no meaning there");
            vec![Value::Field(name.ok_or_else(fault)?, Place::Whole)]
        }
        SigmaValue::String(text) => vec![text_value(text)],
        SigmaValue::Integer(_) | SigmaValue::Float(_) if raw(Modifier::Re) => vec![Value::Regex(value.to_string())],
        SigmaValue::Integer(number) => vec![Value::Int(*number)],
        // YAML gives a float where a whole number does not fit 64 bits: its last digits are not those of the rule any more.
        SigmaValue::Float(number) if number.is_finite() && number.abs() >= LONG_FROM => {
            return Err(Fault::new(format!("a number of 2^63 or more, as {number:e}, loses digits in YAML"))
                .hint("write it in quotes: it is compared exactly all the same"));
        }
        SigmaValue::Float(number) => vec![Value::Float(*number)],
        SigmaValue::Bool(truth) => vec![Value::Bool(*truth)],
        SigmaValue::Null => vec![Value::Null],
    })
}

fn text_value(text: &SigmaString) -> Value {
    let mut pieces = Vec::with_capacity(text.original.len());
    for part in &text.parts {
        match part {
            StringPart::Plain(plain) => pieces.extend(plain.chars().map(|letter| Piece::One(Element::Char(letter)))),
            StringPart::Special(SpecialChar::WildcardMulti) => pieces.push(Piece::Any),
            StringPart::Special(SpecialChar::WildcardSingle) => pieces.push(Piece::One(Element::AnyChar)),
        }
    }
    Value::Text(pieces)
}

/// Replaces each `%name%` by each of its values. `\%` is a percent sign.
fn expand(text: &str, config: &RulesConfig) -> Result<Vec<String>, Fault> {
    const EXPANSIONS_MAX: usize = 10_000;
    let mut done = vec![String::new()];
    let add = |done: &mut Vec<String>, text: &str| done.iter_mut().for_each(|start| start.push_str(text));
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        if let Some(before) = before.strip_suffix('\\') {
            add(&mut done, before);
            add(&mut done, "%");
            rest = after;
            continue;
        }
        let Some((name, after)) = after.split_once('%').filter(|(name, _)| !name.is_empty()) else {
            add(&mut done, before);
            add(&mut done, "%");
            rest = after;
            continue;
        };
        let Some(values) = config.placeholders.get(name) else {
            return Err(Fault::new(format!("the placeholder %{name}% has no value"))
                .hint(format!("give it values under rules.placeholders.{name} in the configuration"))
                .near(&format!("%{name}%")));
        };
        if done.len().saturating_mul(values.len()) > EXPANSIONS_MAX {
            return Err(
                Fault::new("the placeholders of one value expand to too many values").near(&format!("%{name}%"))
            );
        }
        let with =
            |start: &String| values.iter().map(move |value| format!("{start}{before}{value}")).collect::<Vec<_>>();
        done = done.iter().flat_map(with).collect();
        rest = after;
    }
    add(&mut done, rest);
    Ok(done)
}

fn cidr(text: &str) -> Result<Value, Fault> {
    let parsed = Cidr::parse(text);
    let fault =
        || Fault::new(format!("{text:?} is not a network")).hint("write it like 10.0.0.0/8 or fe80::/10").near(text);
    parsed.map(|cidr| Value::Done(Test::Value(Matcher::Cidr(cidr)))).ok_or_else(fault)
}

/// Applies one modifier to one alternative.
fn step(modifier: Modifier, value: Value, chain: &[Modifier], out: &mut Vec<Value>) -> Result<(), Fault> {
    match modifier {
        Modifier::Contains => out.push(placed(value, Place::Anywhere)?),
        Modifier::StartsWith => out.push(placed(value, Place::Start)?),
        Modifier::EndsWith => out.push(placed(value, Place::End)?),
        Modifier::Base64 => out.push(text_of_ascii(&base64(&plain_bytes(value, "base64")?))),
        Modifier::Base64Offset => {
            out.extend(base64_offsets(&plain_bytes(value, "base64offset")?).iter().map(|text| text_of_ascii(text)));
        }
        Modifier::Wide => out.push(wide(value, u16::to_le_bytes, false)?),
        Modifier::Utf16be => out.push(wide(value, u16::to_be_bytes, false)?),
        Modifier::Utf16 => out.push(wide(value, u16::to_le_bytes, true)?),
        Modifier::WindAsh => {
            let encodes =
                [Modifier::Base64, Modifier::Base64Offset, Modifier::Wide, Modifier::Utf16, Modifier::Utf16be];
            windash(value, chain.iter().any(|modifier| encodes.contains(modifier)), out)?;
        }
        Modifier::Exists => out.push(Value::Done(exists(&value)?)),
        Modifier::Gt => out.push(compared(value, Comparison::Greater, chain)?),
        Modifier::Gte => out.push(compared(value, Comparison::GreaterOrEqual, chain)?),
        Modifier::Lt => out.push(compared(value, Comparison::Less, chain)?),
        Modifier::Lte => out.push(compared(value, Comparison::LessOrEqual, chain)?),
        Modifier::IgnoreCase => out.push(flagged(value, 'i')?),
        Modifier::Multiline => out.push(flagged(value, 'm')?),
        Modifier::DotAll => out.push(flagged(value, 's')?),
        Modifier::Minute | Modifier::Hour | Modifier::Day | Modifier::Week | Modifier::Month | Modifier::Year => {
            let compares = [Modifier::Gt, Modifier::Gte, Modifier::Lt, Modifier::Lte];
            // With a comparison in the chain, that one makes the test; it looks for the part there.
            let equal = !chain.iter().any(|modifier| compares.contains(modifier));
            out.push(if equal { compared(value, Comparison::Equal, chain)? } else { value });
        }
        // These say how the values go together or how they were read; the steps before and after know.
        Modifier::All | Modifier::Re | Modifier::Cidr | Modifier::Cased => out.push(value),
        Modifier::Expand | Modifier::FieldRef | Modifier::Neq => out.push(value),
    }
    Ok(())
}

fn placed(value: Value, place: Place) -> Result<Value, Fault> {
    let (before, after) = (place != Place::Start, place != Place::End);
    Ok(match value {
        Value::Regex(pattern) => Value::Regex(match place {
            Place::Start => format!("^(?:{pattern})"),
            Place::End => format!("(?:{pattern})$"),
            Place::Whole | Place::Anywhere => pattern,
        }),
        Value::Field(name, _) => Value::Field(name, place),
        Value::Null => {
            return Err(Fault::new("null has no text to search for").hint("write `Field: null` without a modifier"));
        }
        Value::Done(test) => Value::Done(test),
        other => {
            let Value::Text(mut pieces) = to_text(other) else { return Err(Fault::new("the value is not text")) };
            if before && pieces.first() != Some(&Piece::Any) {
                pieces.insert(0, Piece::Any);
            }
            if after && pieces.last() != Some(&Piece::Any) {
                pieces.push(Piece::Any);
            }
            Value::Text(pieces)
        }
    })
}

/// Scalars and bytes as text, for modifiers that ask about text.
fn to_text(value: Value) -> Value {
    match value {
        Value::Int(number) => text_of_ascii(&number.to_string()),
        Value::Float(number) => text_of_ascii(&number.to_string()),
        Value::Bool(truth) => text_of_ascii(if truth { "true" } else { "false" }),
        Value::Bytes(bytes) => {
            // UTF-16 of ASCII is valid UTF-8 with zero bytes; other bytes stand for themselves.
            let letters: Vec<char> = match String::from_utf8(bytes) {
                Ok(text) => text.chars().collect(),
                Err(error) => error.into_bytes().into_iter().map(char::from).collect(),
            };
            Value::Text(letters.into_iter().map(|letter| Piece::One(Element::Char(letter))).collect())
        }
        other => other,
    }
}

fn text_of_ascii(text: &str) -> Value {
    Value::Text(text.chars().map(|letter| Piece::One(Element::Char(letter))).collect())
}

/// The value in UTF-16. Wildcards stay what they are: `?` is one byte then.
fn wide(value: Value, order: fn(u16) -> [u8; 2], mark: bool) -> Result<Value, Fault> {
    let Value::Text(pieces) = to_text(value) else { return Err(Fault::new("UTF-16 is an encoding of text")) };
    let plain: Option<String> = pieces
        .iter()
        .map(|piece| if let Piece::One(Element::Char(letter)) = piece { Some(*letter) } else { None })
        .collect();
    if let Some(plain) = plain {
        return Ok(Value::Bytes(utf16(&plain, order, mark)));
    }
    let mut wide = Vec::with_capacity(pieces.len() * 2);
    let letters = |bytes: Vec<u8>| bytes.into_iter().map(|byte| Piece::One(Element::Char(char::from(byte))));
    wide.extend(letters(utf16("", order, mark)));
    for piece in pieces {
        match piece {
            Piece::One(Element::Char(letter)) => {
                wide.extend(letters(utf16(letter.encode_utf8(&mut [0; 4]), order, false)));
            }
            other => wide.push(other),
        }
    }
    Ok(Value::Text(wide))
}

fn plain_text(value: Value, modifier: &str) -> Result<String, Fault> {
    let wrong =
        || Fault::new(format!("{modifier} needs text without wildcards")).hint("put contains after it, not before");
    let Value::Text(pieces) = to_text(value) else { return Err(wrong()) };
    let letter = |piece: &Piece| match piece {
        Piece::One(Element::Char(letter)) => Ok(*letter),
        _ => Err(wrong()),
    };
    pieces.iter().map(letter).collect()
}

fn plain_bytes(value: Value, modifier: &str) -> Result<Vec<u8>, Fault> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        other => Ok(plain_text(other, modifier)?.into_bytes()),
    }
}

/// An option sign at the start of a word stands for every option sign. One of them becomes five literals, which are quick to
/// search; more become a pattern, since their combinations would be too many. Only what is `encoded` later has to be literal.
fn windash(value: Value, encoded: bool, out: &mut Vec<Value>) -> Result<(), Fault> {
    /// Signs of which every combination is made: 5^4 = 625 values.
    const SIGNS_MAX: usize = 4;
    let Value::Text(pieces) = to_text(value) else {
        return Err(Fault::new("windash needs text"));
    };
    let letter = |at: Option<usize>| match at.and_then(|at| pieces.get(at)) {
        Some(Piece::One(Element::Char(letter))) => Some(*letter),
        _ => None,
    };
    let word = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    let signs: Vec<usize> = (0..pieces.len())
        .filter(|at| {
            letter(Some(*at)).is_some_and(|letter| DASHES.contains(&letter))
                && !word(letter(at.checked_sub(1)))
                && word(letter(Some(at + 1)))
        })
        .collect();
    let with = |pieces: &[Piece], at: usize, element: Element| {
        let mut pieces = pieces.to_vec();
        if let Some(piece) = pieces.get_mut(at) {
            *piece = Piece::One(element);
        }
        pieces
    };
    if signs.len() > 1 && !encoded {
        let pattern = signs.iter().fold(pieces, |pieces, at| with(&pieces, *at, Element::Dash));
        out.push(Value::Text(pattern));
        return Ok(());
    }
    if signs.len() > SIGNS_MAX {
        return Err(Fault::new(format!("windash has more than {SIGNS_MAX} option signs to encode"))
            .hint("split the value, and use |all"));
    }
    let mut made = vec![pieces];
    for at in signs {
        made = made.iter().flat_map(|pieces| DASHES.map(|dash| with(pieces, at, Element::Char(dash)))).collect();
    }
    out.extend(made.into_iter().map(Value::Text));
    Ok(())
}

fn exists(value: &Value) -> Result<Test, Fault> {
    let text = match value {
        Value::Bool(true) => return Ok(Test::There),
        Value::Bool(false) => return Ok(Test::Absent),
        other => plain_text(other.clone(), "exists").unwrap_or_default().to_ascii_lowercase(),
    };
    match text.as_str() {
        "true" | "yes" => Ok(Test::There),
        "false" | "no" => Ok(Test::Absent),
        _ => Err(Fault::new("exists needs true or false").near("|exists")),
    }
}

fn compared(value: Value, comparison: Comparison, chain: &[Modifier]) -> Result<Value, Fault> {
    let number = match value {
        Value::Int(number) => Some(Number::Int(number)),
        Value::Float(number) => Number::from_f64(number),
        other => plain_text(other, "comparison").ok().and_then(|text| Number::parse(&text)),
    };
    let Some(number) = number else {
        return Err(
            Fault::new("a comparison needs a number").hint("gt, gte, lt, lte and the time parts compare numbers")
        );
    };
    let part = chain.iter().find_map(|modifier| match modifier {
        Modifier::Minute => Some(TimePart::Minute),
        Modifier::Hour => Some(TimePart::Hour),
        Modifier::Day => Some(TimePart::Day),
        Modifier::Week => Some(TimePart::Week),
        Modifier::Month => Some(TimePart::Month),
        Modifier::Year => Some(TimePart::Year),
        _ => None,
    });
    Ok(Value::Done(Test::Value(match part {
        Some(part) => Matcher::Time { part, comparison, number },
        None => Matcher::Number { comparison, number },
    })))
}

fn flagged(value: Value, flag: char) -> Result<Value, Fault> {
    match value {
        Value::Regex(pattern) => Ok(Value::Regex(format!("(?{flag}){pattern}"))),
        _ => Err(Fault::new(format!("the flag {flag} needs the modifier re before it")).hint("write |re|i")),
    }
}

/// What the value at the end of the chain asks for.
fn finish(value: Value, cased: bool, (keyword, anywhere): (bool, bool)) -> Result<Test, Fault> {
    let value = match value {
        Value::Done(test) => return Ok(test),
        Value::Field(other, place) => return Ok(Test::Field { other, place, cased }),
        Value::Null if keyword => return Err(Fault::new("null cannot be a keyword")),
        Value::Null => return Ok(Test::Absent),
        Value::Regex(pattern) => return Ok(Test::Value(Matcher::Regex(pattern.into()))),
        Value::Int(number) if !keyword => return Ok(Test::Value(equal(Number::Int(number)))),
        Value::Float(number) if !keyword => {
            let fault = || Fault::new("the value is no number").hint("write text in quotes");
            return Number::from_f64(number).map(|number| Test::Value(equal(number))).ok_or_else(fault);
        }
        other => other,
    };
    let value = if anywhere { placed(value, Place::Anywhere)? } else { to_text(value) };
    match value {
        Value::Text(pieces) => Ok(text_test(&pieces, cased)),
        _ => Err(Fault::new("the value cannot be matched")),
    }
}

fn equal(number: Number) -> Matcher {
    Matcher::Number { comparison: Comparison::Equal, number }
}

/// The cheapest test that says what the pattern says.
fn text_test(pieces: &[Piece], cased: bool) -> Test {
    if !pieces.is_empty() && pieces.iter().all(|piece| *piece == Piece::Any) {
        return Test::Present;
    }
    let fold = |letter: char| if cased { letter } else { fold_char(letter) };
    let anchored_start = pieces.first() != Some(&Piece::Any);
    let anchored_end = pieces.last() != Some(&Piece::Any);
    let segments: Vec<Vec<Element>> = pieces
        .split(|piece| *piece == Piece::Any)
        .filter(|segment| !segment.is_empty())
        .map(|segment| {
            let element = |piece: &Piece| match piece {
                Piece::One(Element::Char(letter)) => Some(Element::Char(fold(*letter))),
                Piece::One(element) => Some(*element),
                Piece::Any => None,
            };
            segment.iter().filter_map(element).collect()
        })
        .collect();
    let place = match (anchored_start, anchored_end) {
        (true, true) => Place::Whole,
        (true, false) => Place::Start,
        (false, true) => Place::End,
        (false, false) => Place::Anywhere,
    };
    let literal = match segments.as_slice() {
        [] => Some(String::new()),
        [only] => {
            only.iter().map(|element| if let Element::Char(letter) = element { Some(*letter) } else { None }).collect()
        }
        _ => None,
    };
    Test::Value(match literal {
        Some(literal) => Matcher::Text { place, literal: literal.into(), cased },
        None => Matcher::Glob { glob: Glob { anchored_start, anchored_end, segments }, cased },
    })
}
