//! Case folding for comparisons that ignore case: one character to one character, so that `?` and lengths keep their meaning.

use std::borrow::Cow;

/// One character folded: the lower case of its upper case where both are single characters (`ς` and `Σ` fold to `σ`).
pub(crate) fn fold_char(letter: char) -> char {
    if letter.is_ascii() {
        return letter.to_ascii_lowercase();
    }
    let mut upper = letter.to_uppercase();
    let single = match (upper.next(), upper.next()) {
        (Some(upper), None) => upper,
        _ => letter,
    };
    let mut lower = single.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(lower), None) => lower,
        _ => single,
    }
}

/// The text folded; borrowed when that changes nothing.
pub(crate) fn fold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Cow::Owned(text.to_ascii_lowercase());
        }
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(fold_char).collect())
}

/// The text folded into a buffer that is used again and again.
pub(crate) fn fold_into(text: &str, buffer: &mut String) {
    buffer.clear();
    if text.is_ascii() {
        buffer.push_str(text);
        buffer.make_ascii_lowercase();
        return;
    }
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| !byte.is_ascii()) {
        let (plain, other) = rest.split_at(at);
        let start = buffer.len();
        buffer.push_str(plain);
        if let Some(plain) = buffer.get_mut(start..) {
            plain.make_ascii_lowercase();
        }
        let mut letters = other.chars();
        buffer.extend(letters.by_ref().next().map(fold_char));
        rest = letters.as_str();
    }
    let start = buffer.len();
    buffer.push_str(rest);
    if let Some(plain) = buffer.get_mut(start..) {
        plain.make_ascii_lowercase();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_is_one_to_one_and_idempotent() {
        for (text, folded) in [
            ("ABC\\Temp", "abc\\temp"),
            ("Straße", "straße"),
            ("ΟΔΟΣ οδος ς", "οδοσ οδοσ σ"),
            ("\u{212A}ilo", "kilo"),
            ("İ", "İ"),
            ("ÀÉ", "àé"),
        ] {
            assert_eq!(fold(text), folded);
            assert_eq!(fold(folded), folded);
            let mut buffer = "old".to_owned();
            fold_into(text, &mut buffer);
            assert_eq!(buffer, folded);
            assert_eq!(text.chars().count(), fold(text).chars().count());
        }
    }
}
