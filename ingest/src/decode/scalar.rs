//! Scalars at a place of a text, for events whose punctuation and keys are known: anything unusual gives `None`, and the event is
//! then parsed in full.

use std::ops::Range;

use crate::column::Atom;

/// In all bytes of a word: the lowest bit, the highest bit.
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Powers of ten that are exact as floats, of which a fraction within [`FLOAT_DIGITS_MAX`] needs no more.
const POWERS: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
/// A number of so many digits is exact as a float, and divided by an exact power of ten it is rounded once.
const FLOAT_DIGITS_MAX: usize = 15;
/// Any number of so many digits fits 64 signed bits.
const INT_DIGITS_MAX: usize = 18;

/// Strings that had escapes, without them.
#[derive(Debug, Default)]
pub(super) struct Unescaped {
    text: String,
    /// The number of each value that is one, and its range in the text.
    values: Vec<(usize, Range<usize>)>,
}

impl Unescaped {
    /// None, with the room of those before.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.values.clear();
    }

    /// Puts the strings in the place of the values that stand for them.
    #[inline]
    pub(super) fn fill<'t>(&'t self, values: &mut [Atom<'t>]) {
        for (at, range) in &self.values {
            if let (Some(value), Some(text)) = (values.get_mut(*at), self.text.get(range.clone())) {
                *value = Atom::Text(text);
            }
        }
    }
}

/// Reads the scalar that starts at `at` into `values`; the place after it. The text after it is not looked at. Strings with escapes
/// go to `unescaped`, and an empty one to `values` for each.
#[inline]
pub(super) fn scalar_at<'t>(
    text: &'t str,
    at: usize,
    values: &mut Vec<Atom<'t>>,
    unescaped: &mut Unescaped,
) -> Option<usize> {
    let bytes = text.as_bytes();
    let (word, atom): (&[u8], _) = match *bytes.get(at)? {
        b'"' => {
            let end = special_at(bytes, at + 1)?;
            if bytes.get(end) == Some(&b'\\') {
                let (range, end) = unescape(text, at + 1, end, &mut unescaped.text)?;
                unescaped.values.push((values.len(), range));
                values.push(Atom::Text(""));
                return Some(end);
            }
            (bytes.get(end) == Some(&b'"')).then_some(())?;
            values.push(Atom::Text(text.get(at + 1..end)?));
            return Some(end + 1);
        }
        b'-' | b'0'..=b'9' => {
            let (number, end) = number_at(bytes, at)?;
            values.push(number);
            return Some(end);
        }
        b't' => (b"true", Atom::Bool(true)),
        b'f' => (b"false", Atom::Bool(false)),
        b'n' => (b"null", Atom::Null),
        _ => return None,
    };
    bytes.get(at..)?.starts_with(word).then_some(())?;
    values.push(atom);
    Some(at + word.len())
}

/// A string with escapes, whose text starts at `start` and has its first backslash at `at`. Halves of surrogate pairs are left to the
/// parser, and so is what is no escape.
#[cold]
fn unescape(text: &str, mut start: usize, mut at: usize, scratch: &mut String) -> Option<(Range<usize>, usize)> {
    let bytes = text.as_bytes();
    let from = scratch.len();
    loop {
        scratch.push_str(text.get(start..at)?);
        match *bytes.get(at)? {
            b'"' => return Some((from..scratch.len(), at + 1)),
            b'\\' => {}
            _ => return None,
        }
        start = at + 2;
        scratch.push(match *bytes.get(at + 1)? {
            letter @ (b'"' | b'\\' | b'/') => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                start = at + 6;
                let digits = bytes.get(at + 2..start)?.iter();
                let code = digits
                    .map(|digit| char::from(*digit).to_digit(16))
                    .try_fold(0, |sum, digit| Some(sum * 16 + digit?));
                char::from_u32(code?)?
            }
            _ => return None,
        });
        at = special_at(bytes, start)?;
    }
}

/// The place of the first quote, backslash or control character from `at` on.
#[inline]
fn special_at(bytes: &[u8], mut at: usize) -> Option<usize> {
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        // The highest bit of each byte that is zero, up to the first one: above it a borrow may show more.
        let zeros = |word: u64| word.wrapping_sub(LOW) & !word & HIGH;
        let special = zeros(word ^ (LOW * b'"' as u64))
            | zeros(word ^ (LOW * b'\\' as u64))
            | (word.wrapping_sub(LOW * 0x20) & !word & HIGH);
        if special != 0 {
            return Some(at + special.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    Some(at + rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?)
}

/// A whole number of up to 18 digits, or one with a fraction of up to 15 digits in all.
#[inline]
fn number_at(bytes: &[u8], at: usize) -> Option<(Atom<'static>, usize)> {
    let negative = bytes.get(at) == Some(&b'-');
    let start = at + usize::from(negative);
    let (whole, end) = digits_at(bytes, start, 0)?;
    let digits = end - start;
    if digits == 0 || digits > INT_DIGITS_MAX || (digits > 1 && bytes.get(start) == Some(&b'0')) {
        return None;
    }
    let signed = |value: i64| if negative { -value } else { value };
    match bytes.get(end) {
        Some(b'.') => {}
        Some(b'e' | b'E') => return None,
        // The parser has no whole number -0 either, but that is not for this place to know.
        _ if negative && whole == 0 => return None,
        _ => return Some((Atom::Int(signed(whole)), end)),
    }
    let (all, after) = digits_at(bytes, end + 1, whole)?;
    let fraction = after - end - 1;
    if fraction == 0
        || digits + fraction > FLOAT_DIGITS_MAX
        || all == 0
        || matches!(bytes.get(after), Some(b'e' | b'E'))
    {
        return None;
    }
    Some((Atom::Float(signed(all) as f64 / POWERS.get(fraction)?), after))
}

/// The digits at `at` appended to `number`, and the place after them; `None` when they are more than any number here may have.
#[inline]
fn digits_at(bytes: &[u8], at: usize, mut number: i64) -> Option<(i64, usize)> {
    let mut end = at;
    while let Some(digit) = bytes.get(end).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        if end - at >= INT_DIGITS_MAX {
            return None;
        }
        number = number.wrapping_mul(10).wrapping_add(i64::from(digit));
        end += 1;
    }
    Some((number, end))
}

/// Where the scalars of a text that is valid JSON stand: the text between them is punctuation and keys.
pub(super) fn scalars_of(text: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let start = at;
        match byte {
            b'"' => {
                at = string_end(text, at + 1);
                let next = text.get(at..).unwrap_or_default().iter().find(|byte| !byte.is_ascii_whitespace());
                if next == Some(&b':') {
                    continue;
                }
            }
            b'{' | b'}' | b'[' | b']' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            _ => {
                let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}');
                let rest = text.get(at..).unwrap_or_default();
                at += rest.iter().position(ends).unwrap_or(rest.len());
            }
        }
        found.push(start..at);
    }
    found
}

/// The place after the quote that ends the string whose text starts at `at`, escapes or not.
fn string_end(text: &[u8], mut at: usize) -> usize {
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_read_and_the_unusual_is_left() {
        use Atom::{Bool, Float, Int, Null, Text};
        for (text, want) in [
            ("\"\",", Some((Text(""), 2))),
            ("\"a\"", Some((Text("a"), 3))),
            ("\"sixteen letters!\"}", Some((Text("sixteen letters!"), 18))),
            ("\"h\u{e9}llo w\u{f6}rld \u{1f980}\"", Some((Text("h\u{e9}llo w\u{f6}rld \u{1f980}"), 20))),
            (r#""a\n\"\/\u00e9 and on""#, Some((Text("a\n\"/\u{e9} and on"), 22))),
            (r#""C:\\Windows\\system32\\""#, Some((Text("C:\\Windows\\system32\\"), 25))),
            (r#""\ud83e\udd80""#, None),
            (r#""\x""#, None),
            (r#""\u12g4""#, None),
            (r#""\u+123""#, None),
            (r#""\"#, None),
            ("\"a\\n\u{1}\"", None),
            ("\"a\u{1}\"", None),
            ("\"a\u{7f}\"", Some((Text("a\u{7f}"), 4))),
            ("\"open", None),
            ("\"long enough to be open", None),
            ("0,", Some((Int(0), 1))),
            ("-0", None),
            ("-12}", Some((Int(-12), 3))),
            ("01", None),
            ("999999999999999999", Some((Int(999_999_999_999_999_999), 18))),
            ("9999999999999999999", None),
            ("1.5]", Some((Float(1.5), 3))),
            ("-0.25", Some((Float(-0.25), 5))),
            ("0.0", None),
            ("1.", None),
            ("1.5e3", None),
            ("1e3", None),
            ("1.234567890123456", None),
            ("-", None),
            ("true", Some((Bool(true), 4))),
            ("false", Some((Bool(false), 5))),
            ("null", Some((Null, 4))),
            ("nul", None),
            ("[", None),
            ("", None),
        ] {
            let mut unescaped = Unescaped { text: "before".to_owned(), values: Vec::new() };
            let mut values = Vec::new();
            let end = scalar_at(text, 0, &mut values, &mut unescaped);
            unescaped.fill(&mut values);
            assert_eq!(end.map(|end| (values[0], end)), want, "{text}");
        }
    }

    #[test]
    fn the_scalars_of_a_text_are_its_values_not_its_keys() {
        let text = br#"{"a" : "b:", "c":[1, {"d\"":-2.5e3}], "e" :null}"#;
        let found: Vec<&[u8]> = scalars_of(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, [b"\"b:\"".as_slice(), b"1", b"-2.5e3", b"null"]);
    }
}
