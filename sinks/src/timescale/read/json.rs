//! The text of a `jsonb` value, as far as own fields have it: scalars, lists of scalars, and the object around them.
//!
//! Numbers stay text, so that none of their digits are lost. What PostgreSQL writes is valid JSON; what is not as expected is
//! `None`, never a panic.

use std::borrow::Cow;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    /// An object, as text.
    Object(&'a str),
}

/// The value that a text is.
pub(super) fn parse(text: &str) -> Option<Json<'_>> {
    let (value, rest) = value(text.trim_start())?;
    rest.trim_start().is_empty().then_some(value)
}

/// Members of an object: names, and values as text.
pub(super) type Members<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// The members of an object, each with the text of its value.
pub(super) fn members(text: &str) -> Option<Members<'_>> {
    let mut rest = text.trim_start().strip_prefix('{')?.trim_start();
    let mut members = Vec::new();
    if rest.starts_with('}') {
        return Some(members);
    }
    loop {
        let (name, after) = string(rest)?;
        let start = after.trim_start().strip_prefix(':')?.trim_start();
        let after = skip(start)?;
        members.push((name, &start[..start.len() - after.len()]));
        let after = after.trim_start();
        match after.strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None => return after.starts_with('}').then_some(members),
        }
    }
}

/// The text without the spaces between its tokens.
pub(super) fn compact(text: &str) -> String {
    let (mut out, mut inside, mut escaped) = (String::with_capacity(text.len()), false, false);
    for letter in text.chars() {
        if inside || !letter.is_ascii_whitespace() {
            out.push(letter);
        }
        let ends = letter == '"' && !escaped;
        escaped = inside && letter == '\\' && !escaped;
        inside ^= ends;
    }
    out
}

fn value(text: &str) -> Option<(Json<'_>, &str)> {
    match text.as_bytes().first()? {
        b'"' => string(text).map(|(text, rest)| (Json::Text(text), rest)),
        b'[' => list(text),
        b'{' => skip(text).map(|rest| (Json::Object(&text[..text.len() - rest.len()]), rest)),
        _ => {
            let rest = skip(text)?;
            let word = &text[..text.len() - rest.len()];
            let value = match word {
                "null" => Json::Null,
                "true" => Json::Bool(true),
                "false" => Json::Bool(false),
                number => Json::Number(number),
            };
            Some((value, rest))
        }
    }
}

fn list(text: &str) -> Option<(Json<'_>, &str)> {
    let mut rest = text.strip_prefix('[')?.trim_start();
    let mut items = Vec::new();
    if let Some(rest) = rest.strip_prefix(']') {
        return Some((Json::List(items), rest));
    }
    loop {
        // A list in a list is kept as text: own fields have none.
        let (item, after) = if rest.starts_with('[') {
            let after = skip(rest)?;
            (Json::Object(&rest[..rest.len() - after.len()]), after)
        } else {
            value(rest)?
        };
        items.push(item);
        let after = after.trim_start();
        match after.strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None => return after.strip_prefix(']').map(|rest| (Json::List(items), rest)),
        }
    }
}

fn string(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let rest = skip(text)?;
    let quoted = &text[..text.len() - rest.len()];
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str::<String>(quoted).ok().map(|text| (Cow::Owned(text), rest));
    }
    Some((Cow::Borrowed(inner), rest))
}

/// What comes after the first value of a text.
fn skip(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let (mut depth, mut inside, mut at) = (0usize, false, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if inside => at += 1,
            b'"' => {
                inside = !inside;
                if !inside && depth == 0 {
                    return text.get(at + 1..);
                }
            }
            _ if inside => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 0 => return (at > 0).then(|| text.get(at..)).flatten(),
            b']' | b'}' => {
                depth -= 1;
                if depth == 0 {
                    return text.get(at + 1..);
                }
            }
            b',' | b':' | b' ' if depth == 0 => return (at > 0).then(|| text.get(at..)).flatten(),
            _ => {}
        }
        at += 1;
    }
    (!inside && depth == 0 && at == bytes.len() && at > 0).then_some("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_postgresql_writes_them() {
        let text = |text: &'static str| Json::Text(text.into());
        for (written, wanted) in [
            ("null", Some(Json::Null)),
            ("true", Some(Json::Bool(true))),
            ("-12.50", Some(Json::Number("-12.50"))),
            ("\"a\"", Some(text("a"))),
            (r#""a\"b\\ \u00e9\n""#, Some(text("a\"b\\ é\n"))),
            ("[]", Some(Json::List(vec![]))),
            ("[1, null, \"x, ]\"]", Some(Json::List(vec![Json::Number("1"), Json::Null, text("x, ]")]))),
            ("[[1], {\"a\": 2}]", Some(Json::List(vec![Json::Object("[1]"), Json::Object("{\"a\": 2}")]))),
            ("{\"a\": [1, 2]}", Some(Json::Object("{\"a\": [1, 2]}"))),
            ("", None),
            ("[1", None),
            ("\"a", None),
            ("1 2", None),
            ("]", None),
        ] {
            assert_eq!(parse(written), wanted, "{written}");
        }
    }

    #[test]
    fn members_of_an_object_keep_the_text_of_their_values() {
        let found = members(r#"{"a": 1.50, "b\"c": ["x", {"y": "}"}], "d": {}}"#).expect("an object");
        let found: Vec<_> = found.iter().map(|(name, value)| (&**name, *value)).collect();
        assert_eq!(found, [("a", "1.50"), ("b\"c", r#"["x", {"y": "}"}]"#), ("d", "{}")]);
        assert_eq!(members("{}"), Some(vec![]));
        for damaged in ["", "{", "{\"a\"}", "{\"a\": 1", "[1]"] {
            assert_eq!(members(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn spaces_go_from_between_tokens_only() {
        assert_eq!(compact(r#"{"a b": [1, "c, \" d"], "e": {"f": null}}"#), r#"{"a b":[1,"c, \" d"],"e":{"f":null}}"#);
    }
}
