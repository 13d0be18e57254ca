//! The text that names what an alert is about: `field=value` pairs joined by `, `.
//!
//! One text for one group: a value that could be taken for more than itself is quoted as a JSON string, and a value that is
//! too long is cut and ends with a hash of the whole. So equal texts are equal groups, whatever an event says.

use std::borrow::Cow;
use std::fmt::Write;

use xxhash_rust::xxh3::xxh3_128;

/// The most bytes of one value.
const VALUE_BYTES_MAX: usize = 256;
/// What is left of a value that has more.
const CUT_BYTES: usize = 200;

/// Appends a pair.
pub(crate) fn push_pair(key: &mut String, name: &str, value: &str) {
    if !key.is_empty() {
        key.push_str(", ");
    }
    key.push_str(name);
    key.push('=');
    if value.len() <= VALUE_BYTES_MAX {
        push_value(key, value);
        return;
    }
    let kept = value.get(..value.floor_char_boundary(CUT_BYTES)).unwrap_or_default();
    push_value(key, kept);
    // Writing to a string cannot fail.
    let _ = write!(key, "…{:032x}", xxh3_128(value.as_bytes()));
}

fn push_value(key: &mut String, value: &str) {
    let plain = !value.starts_with('"') && !value.contains(", ") && !value.contains(char::is_control);
    match serde_json::to_string(value) {
        Ok(quoted) if !plain => key.push_str(&quoted),
        _ => key.push_str(value),
    }
}

/// A text of at most so many bytes: for the end of a longer one its hash stands.
pub(crate) fn bounded(text: &str, bytes_max: usize) -> Cow<'_, str> {
    const HASH_BYTES: usize = "…".len() + 32;
    if text.len() <= bytes_max {
        return text.into();
    }
    let kept = text.get(..text.floor_char_boundary(bytes_max.saturating_sub(HASH_BYTES))).unwrap_or_default();
    format!("{kept}…{:032x}", hash(text)).into()
}

/// The key of a group: its text, hashed.
pub(crate) fn hash(key: &str) -> u128 {
    xxh3_128(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_stay_apart() {
        let long = |end: &str| format!("{}{end}", "é".repeat(500));
        let (one, other) = (bounded(&long("a"), 240).into_owned(), bounded(&long("b"), 240).into_owned());
        assert!(one != other && one.len() <= 240 && one.starts_with('é'), "{one}");
        assert_eq!(bounded("short", 240), "short");
    }

    fn key(pairs: &[(&str, &str)]) -> String {
        let mut key = String::new();
        pairs.iter().for_each(|(name, value)| push_pair(&mut key, name, value));
        key
    }

    #[test]
    fn no_value_can_pass_for_another_group() {
        assert_eq!(key(&[("actor", "kim"), ("asset", "db=1,a")]), "actor=kim, asset=db=1,a");
        assert_eq!(key(&[("actor", "kim, asset=db")]), r#"actor="kim, asset=db""#);
        assert_ne!(key(&[("actor", "kim, asset=db")]), key(&[("actor", "kim"), ("asset", "db")]));
        assert_eq!(key(&[("actor", "\"kim\"")]), r#"actor="\"kim\"""#);
        assert_eq!(key(&[("actor", "a\nb")]), r#"actor="a\nb""#);
        let long = "é".repeat(1000);
        let other = format!("{long}x");
        assert!(key(&[("actor", &long)]).len() < 300);
        assert_ne!(key(&[("actor", &long)]), key(&[("actor", &other)]));
    }
}
