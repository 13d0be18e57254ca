//! Text in URLs: percent-decoding of paths (RFC 3986, section 2.1) and of query strings (the URL standard, section 5.1), and the
//! hexadecimal text of cursors, which needs neither.

/// Decodes a segment of a path; `None` for what is not percent-encoded UTF-8.
pub fn decode_segment(text: &str) -> Option<String> {
    decode(text, b'+')
}

/// Decodes a name or a value of a query string, where `+` is a space; `None` for what is not percent-encoded UTF-8.
pub fn decode_parameter(text: &str) -> Option<String> {
    decode(text, b' ')
}

/// `text` in hexadecimal: opaque, and safe in a URL.
pub fn to_hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The text that [`to_hex`] was given; `None` for what it cannot have made.
pub fn from_hex(text: &str) -> Option<String> {
    if text.len() % 2 == 1 {
        return None;
    }
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks_exact(2).map(|pair| byte_of(pair[0], pair[1])).collect();
    String::from_utf8(bytes?).ok()
}

fn decode(text: &str, plus: u8) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => plus,
            b'%' => byte_of(rest.next()?, rest.next()?)?,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn byte_of(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_text_are_decoded_or_refused() {
        for (text, segment, parameter) in [
            ("", Some(""), Some("")),
            ("a+b", Some("a+b"), Some("a b")),
            ("a%2Fb%20%c3%A9", Some("a/b é"), Some("a/b é")),
            ("%2B", Some("+"), Some("+")),
            ("é", Some("é"), Some("é")),
            ("a%", None, None),
            ("a%2", None, None),
            ("%zz", None, None),
            ("%+1", None, None),
            ("%ff", None, None),
            ("%é", None, None),
        ] {
            assert_eq!(decode_segment(text).as_deref(), segment, "{text:?}");
            assert_eq!(decode_parameter(text).as_deref(), parameter, "{text:?}");
        }
    }

    #[test]
    fn hexadecimal_text_comes_back_and_nothing_else_does() {
        for text in ["", "a", "é/\0\u{1F600}"] {
            assert_eq!(from_hex(&to_hex(text)).as_deref(), Some(text));
        }
        for text in ["6", "6g", "+6", "ff", "é", "éé"] {
            assert_eq!(from_hex(text), None, "{text:?}");
        }
    }
}
