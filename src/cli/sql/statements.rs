//! Where one SQL statement ends and the next begins.

/// Splits at the semicolons that stand outside of quotes and comments; drops what is empty.
pub fn split(text: &str) -> Vec<&str> {
    let mut statements = Vec::new();
    let mut rest = text;
    while let Some(end) = first_end(rest) {
        statements.push(&rest[..end]);
        rest = &rest[end + 1..];
    }
    statements.push(rest);
    statements.into_iter().map(str::trim).filter(|statement| !statement.is_empty()).collect()
}

/// The first semicolon outside of `'…'`, `"…"`, `-- …` and `/* … */`.
pub fn first_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let find = |from: usize, what: &str| text[from..].find(what).map(|at| from + at);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let two = text.as_bytes().get(at..at + 2).unwrap_or_default();
        at = match (byte, two) {
            (b';', _) => return Some(at),
            // A doubled quote inside closes and opens again, which comes to the same.
            (b'\'', _) => find(at + 1, "'")? + 1,
            (b'"', _) => find(at + 1, "\"")? + 1,
            (_, b"--") => find(at, "\n")? + 1,
            (_, b"/*") => find(at + 2, "*/")? + 2,
            _ => at + 1,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_quotes_and_comments_end_nothing() {
        for (text, wanted) in [
            ("SELECT 1; SELECT 2", vec!["SELECT 1", "SELECT 2"]),
            ("SELECT ';' AS \"a;b\";", vec!["SELECT ';' AS \"a;b\""]),
            ("SELECT 'it''s;'; x", vec!["SELECT 'it''s;'", "x"]),
            ("-- a; b\nSELECT 1", vec!["-- a; b\nSELECT 1"]),
            ("/* ; */ SELECT 1 ;;", vec!["/* ; */ SELECT 1"]),
            ("SELECT 'open;", vec!["SELECT 'open;"]),
            ("SELECT 'ü;' ; ß", vec!["SELECT 'ü;'", "ß"]),
            (" ; ", vec![]),
        ] {
            assert_eq!(split(text), wanted, "{text}");
        }
    }
}
