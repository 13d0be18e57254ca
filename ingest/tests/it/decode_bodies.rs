//! Bodies of every form, good and bad, with the neighbours of what is bad stored.

use super::decoding::{Case, decode, decode_with, decoder, fixture};
use tidegate_ingest::decode::DecodeConfig;

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

/// A short array is parsed at once, a long one element by element: nobody can tell.
#[test]
fn an_array_is_read_the_same_at_once_and_by_its_elements() {
    let lines = ["cloudtrail.ndjson", "kubernetes_audit.ndjson", "ecs.ndjson"]
        .map(|name| String::from_utf8(fixture(name)).expect("text").trim_end().replace('\n', ","));
    let events = lines.join(",");
    let longest = 8 << 10;
    assert!(events.len() > longest);
    for body in [format!("[{events}]"), format!("{{\"Records\": [{events}]}}")] {
        let at_once = decode(&[Case::json(body.clone())]);
        let config = DecodeConfig { event_bytes_max: longest, ..DecodeConfig::default() };
        let by_element = decode_with(&mut decoder(config), &[Case::json(body)]);
        assert_eq!(at_once.results[0].items, 18);
        assert_eq!(by_element.results[0].items, 18);
        // Both decoders have the same seed, so even the ids that they make are the same.
        assert_eq!(at_once.batches("security_events"), by_element.batches("security_events"));
        assert_eq!(at_once.decoded.rows, by_element.decoded.rows);
    }
}
