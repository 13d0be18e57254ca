//! The own fields of a row as one JSON object, built from columns.

use bytes::{BufMut, BytesMut};

use super::binary::REPLACEMENT;

/// What stands for a NUL in JSON text: `jsonb` cannot hold `\u0000`.
const ESCAPED_NUL: &[u8] = b"\\u0000";

/// Whether a byte cannot stand in a JSON string as it is.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        special[byte] = true;
        byte += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special
};

/// A JSON string; whether a NUL had to be replaced.
pub(super) fn string(out: &mut BytesMut, text: &str) -> bool {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let (mut from, mut replaced) = (0, false);
    out.put_u8(b'"');
    for (at, byte) in bytes.iter().enumerate() {
        if !SPECIAL[usize::from(*byte)] {
            continue;
        }
        out.put_slice(&bytes[from..at]);
        from = at + 1;
        match byte {
            b'"' => out.put_slice(b"\\\""),
            b'\\' => out.put_slice(b"\\\\"),
            b'\n' => out.put_slice(b"\\n"),
            b'\r' => out.put_slice(b"\\r"),
            b'\t' => out.put_slice(b"\\t"),
            0 => {
                out.put_slice(REPLACEMENT);
                replaced = true;
            }
            _ => out.put_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    out.put_slice(&bytes[from..]);
    out.put_u8(b'"');
    replaced
}

pub(super) fn integer(out: &mut BytesMut, value: i64) {
    let mut digits = [0u8; 20];
    let (mut at, mut rest) = (digits.len(), value.unsigned_abs());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.put_u8(b'-');
    }
    out.put_slice(&digits[at..]);
}

/// The shortest number that reads back as this one. JSON has none for what is not finite: that becomes a string.
pub(super) fn float(out: &mut BytesMut, value: f64) {
    use std::fmt::Write as _;
    // Writing to memory does not fail. `{:?}` keeps large and small ones short (1e300), where `{}` writes all zeros.
    let _ = if value.is_finite() { write!(out, "{value:?}") } else { write!(out, "\"{value}\"") };
}

pub(super) fn boolean(out: &mut BytesMut, value: bool) {
    out.put_slice(if value { b"true" } else { b"false" });
}

/// JSON text as it is, but for escaped NULs; whether one had to be replaced.
pub(super) fn raw(out: &mut BytesMut, text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mut from, mut at, mut replaced) = (0, 0, false);
    // A backslash stands only in strings, and what follows it belongs to it.
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        let escape = at + next;
        if bytes[escape..].starts_with(ESCAPED_NUL) {
            out.put_slice(&bytes[from..escape]);
            out.put_slice(REPLACEMENT);
            from = escape + ESCAPED_NUL.len();
            at = from;
            replaced = true;
        } else {
            at = (escape + 2).min(bytes.len());
        }
    }
    out.put_slice(&bytes[from..]);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut) -> bool) -> (String, bool) {
        let mut out = BytesMut::new();
        let replaced = write(&mut out);
        (String::from_utf8(out.to_vec()).expect("UTF-8"), replaced)
    }

    #[test]
    fn strings_read_back_as_they_were_but_for_nul() {
        for text in ["", "a", "\"\\\n\r\t\u{1}\u{1f}\u{7f}é𝄞", "C:\\Windows\\x"] {
            let (json, replaced) = written(|out| string(out, text));
            assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
            assert!(!replaced);
        }
        assert_eq!(written(|out| string(out, "a\0b")), ("\"a\u{fffd}b\"".to_owned(), true));
    }

    #[test]
    fn numbers_read_back_as_they_were() {
        for value in [0, -1, 7, 10, i64::MAX, i64::MIN] {
            let (json, _) = written(|out| {
                integer(out, value);
                false
            });
            assert_eq!(json, value.to_string());
        }
        for value in [0.0, -0.5, 1.0, 1e300, 5e-324, f64::MAX, 0.1 + 0.2] {
            let (json, _) = written(|out| {
                float(out, value);
                false
            });
            assert_eq!(serde_json::from_str::<f64>(&json).expect("JSON").to_bits(), value.to_bits(), "{json}");
            assert!(json.len() < 30, "{json}");
        }
        let (json, _) = written(|out| {
            float(out, f64::NAN);
            false
        });
        assert_eq!(json, "\"NaN\"");
    }

    #[test]
    fn escaped_nuls_of_json_text_are_replaced_and_nothing_else() {
        for (text, expected, replaced) in [
            (r#"{"a":"b"}"#, r#"{"a":"b"}"#, false),
            (r#"{"a":"\u0000"}"#, "{\"a\":\"\u{fffd}\"}", true),
            (r#"["\\u0000"]"#, r#"["\\u0000"]"#, false),
            (r#"["\\\u0000\u0001"]"#, "[\"\\\\\u{fffd}\\u0001\"]", true),
            ("\\", "\\", false),
        ] {
            assert_eq!(written(|out| raw(out, text)), (expected.to_owned(), replaced), "{text}");
        }
    }
}
