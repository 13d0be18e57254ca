//! Bodies of every form, good and bad, with the neighbours of what is bad stored.

use super::decoding::{Case, decode};

#[test]
fn every_form_of_json_body_is_read() {
    for text in [
        r#"[{"a":1},{"a":2}]"#,
        "{\"a\":1}\n{\"a\":2}\n",
        "{\"a\":1}\r\n\r\n{\"a\":2}",
        r#"{"a":1}{"a":2}"#,
        "{\n  \"a\": 1\n}\n{\n  \"a\": 2\n}\n",
        r#"{"events":[{"a":1},{"a":2}]}"#,
        r#" {"Records" : [ {"a":1} , {"a":2} ] } "#,
        "\u{feff}{\"a\":1}\n{\"a\":2}",
        "[{\"a\":1}]\n[{\"a\":2}]",
    ] {
        let decoded = decode(&[Case::json(text)]);
        assert_eq!(decoded.column("security_events", "a"), ["1", "2"], "{text}");
        assert!(decoded.results[0].rejected.is_empty() && decoded.results[0].error.is_none(), "{text}");
    }
}
