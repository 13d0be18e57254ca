//! Where events begin and end in a body, without parsing them: a string-aware scan of brackets. Nothing here recurses.

use std::ops::Range;

use memchr::{memchr, memchr3};

/// Whether brackets outside strings nest deeper than `max`.
pub(super) fn is_deeper_than(text: &[u8], max: usize) -> bool {
    // Few brackets cannot nest deep; counting them is many times quicker than following strings.
    let opening = text.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    if opening <= max {
        return false;
    }
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => match string_end(text, at) {
                Some(end) => at = end,
                None => return false,
            },
            _ => {}
        }
        if depth > max {
            return true;
        }
    }
    false
}

/// The place after the quote that ends the string whose text starts at `at`; `None` when a line or the text ends first.
fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = text.get(at..)?;
        let found = memchr3(b'"', b'\\', b'\n', rest)?;
        match rest.get(found)? {
            b'"' => return Some(at + found + 1),
            b'\\' => at += found + 2,
            _ => return None,
        }
    }
}

/// The place after the object or array that starts at `start`; `None` when it does not end.
pub(super) fn value_end(text: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = start;
    loop {
        let byte = *text.get(at)?;
        at += 1;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            b'"' => at = string_end(text, at)?,
            _ => {}
        }
    }
}

/// The first place at or after `at` that is not white space.
pub(super) fn skip_space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|byte| !is_space(*byte)).unwrap_or(rest.len())
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// `range` without white space at its end.
pub(super) fn trim_end(text: &[u8], range: Range<usize>) -> Range<usize> {
    let part = text.get(range.clone()).unwrap_or_default();
    let len = part.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1);
    range.start..range.start + len
}

/// The end of the line that `at` is on.
pub(super) fn line_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + memchr(b'\n', rest).unwrap_or(rest.len())
}

/// The body without a byte order mark.
pub(super) fn skip_bom(text: &[u8]) -> usize {
    if text.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }
}

/// Keys of an object that only wraps the events of a body: ours, and that of CloudTrail's files.
const ENVELOPE_KEYS: [&[u8]; 2] = [b"\"events\"", b"\"Records\""];

/// Whether a body starts as an object that wraps an array of events.
pub(super) fn may_be_envelope(text: &[u8], at: usize) -> bool {
    let key = text.get(skip_space(text, at + 1)..).unwrap_or_default();
    text.get(at) == Some(&b'{') && ENVELOPE_KEYS.into_iter().any(|known| key.starts_with(known))
}

/// If the body is one object whose only member is an array under one of [`ENVELOPE_KEYS`]: where that array starts. An array
/// that does not end counts as one, so that the events before the break are found.
pub(super) fn envelope(text: &[u8], start: usize) -> Option<usize> {
    if *text.get(start)? != b'{' {
        return None;
    }
    let key_at = skip_space(text, start + 1);
    let key = ENVELOPE_KEYS.into_iter().find(|key| text.get(key_at..).is_some_and(|rest| rest.starts_with(key)))?;
    let colon = skip_space(text, key_at + key.len());
    let array = skip_space(text, colon + 1);
    if text.get(colon) != Some(&b':') || text.get(array) != Some(&b'[') {
        return None;
    }
    match value_end(text, array) {
        Some(end) => {
            let brace = skip_space(text, end);
            (text.get(brace) == Some(&b'}') && skip_space(text, brace + 1) == text.len()).then_some(array)
        }
        None => Some(array),
    }
}

/// An element of the array that a body is, or that it wraps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element {
    /// The text of one element.
    Value(Range<usize>),
    /// From here on the array cannot be read: what is wrong.
    Broken(usize, &'static str),
    /// The array has ended: the place after its bracket.
    End(usize),
}

/// Where the element at or after `at` starts, if it is an object.
#[inline]
pub(super) fn object_start(text: &[u8], at: usize, more: bool) -> Option<usize> {
    let mut at = skip_space(text, at);
    if more {
        if text.get(at) != Some(&b',') {
            return None;
        }
        at = skip_space(text, at + 1);
    }
    (text.get(at) == Some(&b'{')).then_some(at)
}

/// Whether nothing but white space comes before the end of the line.
#[inline]
pub(super) fn is_line_end(text: &[u8], at: usize) -> bool {
    let rest = text.get(at..).unwrap_or_default();
    matches!(rest.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r')), None | Some(b'\n'))
}

/// The element at or after `at`, which lies after the opening bracket, or after an element when `more`.
pub(super) fn next_element(text: &[u8], at: usize, more: bool) -> Element {
    let mut at = skip_space(text, at);
    match text.get(at) {
        None => return Element::Broken(at, "the array does not end"),
        Some(b']') => return Element::End(at + 1),
        Some(b',') if more => at = skip_space(text, at + 1),
        Some(_) if more => return Element::Broken(at, "a comma is missing between two elements of the array"),
        Some(_) => {}
    }
    let end = match text.get(at) {
        Some(b'{' | b'[') => value_end(text, at),
        Some(b'"') => string_end(text, at + 1),
        Some(b',' | b']' | b'}') => return Element::Broken(at, "an element of the array is missing"),
        Some(_) => {
            let rest = text.get(at..).unwrap_or_default();
            let ends = |byte: &u8| is_space(*byte) || matches!(byte, b',' | b']' | b'}' | b'{' | b'[' | b'"');
            Some(at + rest.iter().position(ends).unwrap_or(rest.len()))
        }
        None => return Element::Broken(at, "the array does not end"),
    };
    match end {
        Some(end) => Element::Value(at..end),
        None => Element::Broken(at, "an element of the array does not end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_their_brackets_close_outside_strings() {
        for (text, want) in [
            (r#"{"a":"}"} x"#, Some(9)),
            (r#"{"a":"\"}"}"#, Some(11)),
            (r#"[[],{}]"#, Some(7)),
            (r#"{"a":"#, None),
            ("{\"a\n\":1}", None),
            (r#"{"a\"#, None),
        ] {
            assert_eq!(value_end(text.as_bytes(), 0), want, "{text}");
        }
    }

    #[test]
    fn depth_ignores_brackets_in_strings() {
        let deep = "[".repeat(65);
        assert!(is_deeper_than(deep.as_bytes(), 64));
        assert!(!is_deeper_than(&deep.as_bytes()[1..], 64));
        assert!(!is_deeper_than(format!("{{\"a\":\"{deep}\"}}").as_bytes(), 64));
        assert!(is_deeper_than("{\"a\":".repeat(100_000).as_bytes(), 64));
    }

    #[test]
    fn an_envelope_has_one_member() {
        for (text, want) in [
            (r#"{"events":[1]}"#, Some(10)),
            (" {\n \"Records\" : [] }\n", Some(16)),
            (r#"{"events":[1],"x":2}"#, None),
            (r#"{"events":[1]} {}"#, None),
            (r#"{"events":1}"#, None),
            (r#"{"events":[{"a""#, Some(10)),
            (r#"{"event":[1]}"#, None),
        ] {
            assert_eq!(envelope(text.as_bytes(), skip_space(text.as_bytes(), 0)), want, "{text}");
        }
    }
}
