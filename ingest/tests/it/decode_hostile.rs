//! Hostile and odd events in every form of body: what is bad is answered for and kept as a dead letter, its neighbours are
//! stored.

use super::decoding::{Case, decode, decode_with, decoder, fixture};
use tidegate_ingest::decode::{BodyFormat, DecodeConfig};
use tidegate_pipeline::delivery::LetterText;

/// What an odd event becomes: the code of its rejection, or the text of its field `x`.
type Want = Result<&'static str, &'static str>;

fn odd_events() -> Vec<(Vec<u8>, Want)> {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        // Numbers that no 64-bit type holds are kept as text.
        (text(r#"{"x":18446744073709551616}"#), Ok("18446744073709551616")),
        (text(r#"{"x":18446744073709551615}"#), Ok("18446744073709551615")),
        (text(r#"{"x":-9223372036854775808}"#), Ok("-9223372036854775808")),
        (text(r#"{"x":-9223372036854775809}"#), Ok("-9223372036854775809")),
        (text(r#"{"x":1e400}"#), Ok("1e400")),
        (text(r#"{"x": -1E+400 }"#), Ok("-1E+400")),
        (text(r#"{"x":[1e400,1]}"#), Ok("[1e400, 1]")),
        (text(r#"{"x":123123e100000}"#), Ok("123123e100000")),
        (text(r#"{"s":"\"1e400","x":1e400}"#), Ok("1e400")),
        // What only looks like one is still no JSON.
        (text(r#"{1e400:1}"#), Err("malformed_json")),
        (text(r#"{"x":01}"#), Err("malformed_json")),
        (text(r#"{"x":1e}"#), Err("malformed_json")),
        (text(r#"{"x":99999999999999999999x}"#), Err("malformed_json")),
        (text(r#"{"x":-}"#), Err("malformed_json")),
        (text(r#"{"x":NaN}"#), Err("malformed_json")),
        // Last wins.
        (text(r#"{"x":1,"y":{"z":1},"x":2}"#), Ok("2")),
        (text(r#"{"x":{"y":1},"x":"last"}"#), Ok("last")),
        (text(r#"{"x":"first","x":null}"#), Ok("")),
        // Strings.
        (text(r#"{"x":"a\u0000b"}"#), Ok("a\0b")),
        (text(r#"{"x":"\ud83d\ude00"}"#), Ok("\u{1f600}")),
        (text(r#"{"x":"a\ud800b"}"#), Ok("a\u{fffd}b")),
        (text(r#"{"x":"\udc00\ud800"}"#), Ok("\u{fffd}\u{fffd}")),
        (text(r#"{"x":"\ud800\u0041"}"#), Ok("\u{fffd}A")),
        (text(r#"{"x":"\\ud800"}"#), Ok("\\ud800")),
        (text("{\"x\":\"\u{feff}\"}"), Ok("\u{feff}")),
        (text(r#"{"x":"\ug000"}"#), Err("malformed_json")),
        (text(r#"{"x":"\ud8"}"#), Err("malformed_json")),
        (text("{\"x\":\"a\tb\"}"), Err("malformed_json")),
        (b"{\"x\":\"a\0b\"}".to_vec(), Err("malformed_json")),
        (b"{\"x\":\"\xff\"}".to_vec(), Err("invalid_utf8")),
        (b"{\"x\":\"\xed\xa0\x80\"}".to_vec(), Err("invalid_utf8")),
        // Keys.
        (text(r#"{"":1,"x":"k"}"#), Ok("k")),
        (format!(r#"{{"{}":1,"x":"k"}}"#, "k".repeat(2000)).into_bytes(), Ok("k")),
        (text(r#"{"_rest":{"a":1},"x":"k"}"#), Ok("k")),
        // Depth.
        (format!("{}1{}", r#"{"d":"#.repeat(64), "}".repeat(64)).into_bytes(), Ok("")),
        (format!("{}1{}", r#"{"d":"#.repeat(65), "}".repeat(65)).into_bytes(), Err("too_deep")),
        (format!(r#"{{"x":{}{}}}"#, "[".repeat(1000), "]".repeat(1000)).into_bytes(), Err("too_deep")),
        // Not objects, or nothing whole.
        (text("17"), Err("not_an_object")),
        (text("\"text\""), Err("not_an_object")),
        (text("null"), Err("not_an_object")),
        (text("nul"), Err("malformed_json")),
        (text(r#"{"x":1,}"#), Err("malformed_json")),
        (text(r#"{"x"}"#), Err("malformed_json")),
        (text(r#"{'x':1}"#), Err("malformed_json")),
        (text("{}"), Ok("")),
    ]
}

fn check_neighbours(form: &str, body: &[u8], event: &[u8], want: &Want) {
    let outcome = decode(&[Case::json(body)]);
    let said = format!("{form}: {}", String::from_utf8_lossy(event.get(..80).unwrap_or(event)));
    assert_eq!(outcome.column("security_events", "n"), ["before", "after"], "{said}");
    assert_eq!(outcome.results[0].items, 3, "{said}");
    match want {
        Ok(text) => {
            assert_eq!(outcome.rejected(0), [], "{said}: {:?}", outcome.results[0].rejected);
            assert_eq!(outcome.cell(0, 1, "x"), *text, "{said}");
        }
        Err(code) => {
            assert_eq!(outcome.rejected(0), [(1, *code)], "{said}: {:?}", outcome.results[0].rejected);
            assert_eq!(outcome.column("dead_letters", "code"), [*code], "{said}");
            assert_eq!(outcome.column("dead_letters", "item_index"), ["1"], "{said}");
            assert_eq!(outcome.column("dead_letters", "request_id"), ["req"], "{said}");
            let payload = outcome.column("dead_letters", "payload").concat();
            match std::str::from_utf8(event) {
                Ok(text) => assert_eq!(payload, text, "{said}"),
                Err(_) => {
                    let kept = LetterText::of(event, usize::MAX);
                    assert_eq!((payload, kept.encoding), (kept.text, "base64"), "{said}");
                    assert_eq!(outcome.column("dead_letters", "payload_encoding"), ["base64"], "{said}");
                }
            }
        }
    }
}

#[test]
fn odd_events_cost_only_themselves_in_every_form() {
    let (before, after) = (br#"{"n":"before"}"#, br#"{"n":"after"}"#);
    for (event, want) in odd_events() {
        let join = |parts: [&[u8]; 3], start: &[u8], by: &[u8], end: &[u8]| [start, &parts.join(by), end].concat();
        let parts = [&before[..], &event, &after[..]];
        check_neighbours("lines", &join(parts, b"", b"\n", b"\n"), &event, &want);
        check_neighbours("crlf", &join(parts, b"\xef\xbb\xbf", b"\r\n", b""), &event, &want);
        // A bracket or quote that does not balance leaves no way to see where the next element of an array starts.
        check_neighbours("array", &join(parts, b"[", b",", b"]"), &event, &want);
        check_neighbours("envelope", &join(parts, b"{\"events\":[", b" ,\n", b"]}"), &event, &want);
    }
}

#[test]
fn odd_events_alone() {
    for (event, want) in odd_events() {
        let outcome = decode(&[Case::new(BodyFormat::Single, event.clone())]);
        let said = String::from_utf8_lossy(&event).into_owned();
        match want {
            Ok(text) => assert_eq!(outcome.cell(0, 0, "x"), text, "{said}"),
            Err(code) => assert_eq!(outcome.rejected(0), [(0, code)], "{said}"),
        }
    }
}

#[test]
fn lines_that_do_not_balance_cost_only_themselves() {
    for line in [
        r#"{"x":1"#,
        r#"{"x":"a"#,
        r#"{"x":[1}"#,
        r#""x":1}"#,
        r#"{"x":{"#,
        "}",
        "]",
        "[1,2",
        ",{\"x\":1}",
        r#"{"x":"\"#,
    ] {
        let body = format!("{{\"n\":1}}\n{line}\n{{\"n\":2}}\n{line}\n{{\"n\":3}}\n");
        let outcome = decode(&[Case::json(body)]);
        assert_eq!(outcome.column("security_events", "n"), ["1", "2", "3"], "{line}");
        let codes = outcome.rejected(0);
        assert_eq!(codes.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 3], "{line}: {codes:?}");
        assert_eq!(outcome.column("dead_letters", "payload"), [line, line]);
    }
}

#[test]
fn several_objects_on_a_line_and_objects_over_lines_mix() {
    let body = "{\"n\":1}{\"n\":2} {\"n\":}{\"n\":3}\n{\n \"n\":\n4}{\"n\":5}\n[{\"n\":6},\n{\"n\":7}]\n{\"n\":8}";
    let outcome = decode(&[Case::json(body)]);
    assert_eq!(outcome.column("security_events", "n"), ["1", "2", "3", "4", "5", "6", "7", "8"]);
    assert_eq!(outcome.rejected(0), [(2, "malformed_json")]);
}

#[test]
fn an_array_that_breaks_keeps_what_came_before() {
    for (body, rest) in [
        (r#"[{"n":1},{"n":2},{"n":3"#, r#"{"n":3"#),
        (r#"[{"n":1},{"n":2} {"n":3}]"#, r#"{"n":3}]"#),
        (r#"{"events":[{"n":1},{"n":2},"#, ""),
        (r#"[{"n":1},{"n":2},,{"n":3}]"#, r#",{"n":3}]"#),
        (r#"[{"n":1},{"n":2}"#, ""),
    ] {
        let outcome = decode(&[Case::json(body)]);
        assert_eq!(outcome.column("security_events", "n"), ["1", "2"], "{body}");
        assert_eq!(outcome.rejected(0), [(2, "malformed_json")], "{body}");
        assert_eq!(outcome.column("dead_letters", "payload").concat(), rest, "{body}");
    }
}

#[test]
fn a_body_without_events_is_an_error_of_the_body() {
    for body in ["", " \r\n\t", "\u{feff}", "\u{feff}\n"] {
        for format in [BodyFormat::Single, BodyFormat::Json] {
            let outcome = decode(&[Case::new(format, body)]);
            assert_eq!(outcome.results[0].items, 0);
            assert_eq!(outcome.results[0].error.as_ref().map(|error| error.code), Some("empty_body"), "{body:?}");
        }
    }
    let outcome = decode(&[Case::json("[]")]);
    assert!(outcome.results[0].error.is_none() && outcome.results[0].items == 0);
}

#[test]
fn bounds_of_an_event_cost_only_that_event() {
    let config = DecodeConfig {
        event_bytes_max: 1000,
        body_events_max: 4,
        dead_letter_bytes_max: 100,
        ..DecodeConfig::default()
    };
    let long = format!(r#"{{"x":"{}"}}"#, "é".repeat(1000));
    for body in [
        format!("{{\"n\":1}}\n{long}\n{{\"n\":2}}"),
        format!("[{{\"n\":1}},{long},{{\"n\":2}}]"),
        format!("{{\"n\":1}}{long}{{\"n\":2}}"),
    ] {
        let outcome = decode_with(&mut decoder(config.clone()), &[Case::json(body)]);
        assert_eq!(outcome.column("security_events", "n"), ["1", "2"]);
        assert_eq!(outcome.rejected(0), [(1, "event_too_large")]);
        let payload = outcome.column("dead_letters", "payload").concat();
        assert!(long.starts_with(&payload) && payload.len() > 90, "{payload}");
        assert_eq!(outcome.column("dead_letters", "payload_encoding"), ["utf8;cut"]);
    }
    for body in ["{\"n\":1}\n".repeat(9), format!("[{}{{}}]", "{\"n\":1},".repeat(9)), "{\"n\":1}".repeat(9)] {
        let outcome = decode_with(&mut decoder(config.clone()), &[Case::json(body)]);
        assert_eq!(outcome.column("security_events", "n").len(), 4);
        assert_eq!(outcome.rejected(0), [(4, "too_many_events")]);
    }
}

#[test]
fn depth_of_100_000_neither_recurses_nor_costs_time() {
    for deep in ["[".repeat(100_000), r#"{"a":"#.repeat(100_000), r#"[{"":"#.repeat(50_000)] {
        let started = std::time::Instant::now();
        let outcome = decode(&[Case::json(format!("{{\"n\":1}}\n{deep}\n{{\"n\":2}}"))]);
        assert_eq!(outcome.column("security_events", "n"), ["1", "2"]);
        assert_eq!(outcome.results[0].rejected.len(), 1);
        let outcome = decode(&[Case::new(BodyFormat::Single, deep)]);
        assert_eq!(outcome.rejected(0), [(0, "too_deep")]);
        assert!(started.elapsed().as_secs() < 5);
    }
}

#[test]
fn unbalanced_lines_do_not_cost_the_square_of_the_body() {
    let started = std::time::Instant::now();
    let config = DecodeConfig { rejected_items_max: usize::MAX, ..DecodeConfig::default() };
    let outcome = decode_with(&mut decoder(config), &[Case::json("{\"a\":[\n".repeat(100_000))]);
    assert_eq!(outcome.results[0].rejected.len(), 100_000);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn the_json_test_suite_is_answered_per_event() {
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for line in String::from_utf8(fixture("json_test_suite.txt")).expect("text").lines() {
        let (name, hex) = line.split_once(' ').expect("name and bytes");
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        cases.push((name.to_owned(), (0..hex.len()).step_by(2).map(digit).collect()));
    }
    cases.push(("n_structure_100000_opening_arrays".into(), "[".repeat(100_000).into_bytes()));
    cases.push(("n_structure_open_array_object".into(), format!("{}\n", "[{\"\":".repeat(50_000)).into_bytes()));
    assert_eq!(cases.len(), 318);
    for (name, text) in &cases {
        // As one event: any JSON is recognised as such, and only an object is an event.
        let outcome = decode(&[Case::new(BodyFormat::Single, text.clone())]);
        let result = &outcome.results[0];
        let code =
            result.rejected.first().map(|rejected| rejected.code).or(result.error.as_ref().map(|error| error.code));
        let is_json = matches!(code, None | Some("not_an_object"));
        match name.as_bytes()[0] {
            b'y' => assert!(is_json, "{name}: {code:?}"),
            b'n' => assert!(!is_json, "{name}: {code:?}"),
            _ => {}
        }
        let object = matches!(text.iter().find(|byte| !byte.is_ascii_whitespace()), Some(b'{'));
        assert!(!(name.starts_with("y_object") && object) || code.is_none(), "{name}");
        // As a field of an event in a line, unless a line end in it would make it two.
        if !text.contains(&b'\n') {
            let body = [b"{\"n\":1}\n{\"x\":", &text[..], b"}\n{\"n\":2}\n"].concat();
            let outcome = decode(&[Case::json(body)]);
            assert_eq!(outcome.column("security_events", "n"), ["1", "2"], "{name}");
            let stored = outcome.results[0].rejected.is_empty();
            assert!(
                name.starts_with("i_") || stored == name.starts_with("y_") || text.starts_with(b"\xef\xbb"),
                "{name}"
            );
        }
    }
}
