//! Events of known shapes against the parser: the columns, ids, rejections and dead letters of a decoder that remembers shapes are
//! those of one that parses every event in full, for events whose values change and for texts that are broken anywhere.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidegate_ingest::decode::{DecodeConfig, Decoder};

use super::decoding::{Case, decode_with, decoder};

/// Decodes the bodies with both decoders, which have seen the same before.
fn check(both: &mut [Decoder; 2], bodies: &[String]) {
    let cases: Vec<Case> = bodies.iter().map(|body| Case::json(body.clone())).collect();
    let [shaped, full] = both;
    let (shaped, full) = (decode_with(shaped, &cases), decode_with(full, &cases));
    for ((body, shaped), full) in bodies.iter().zip(&shaped.results).zip(&full.results) {
        assert_eq!(
            (shaped.items, &shaped.rejected, &shaped.error),
            (full.items, &full.rejected, &full.error),
            "{body}"
        );
    }
    assert_eq!(shaped.decoded.rows, full.decoded.rows, "{bodies:?}");
    for (shaped, full) in shaped.decoded.batches.iter().zip(&full.decoded.batches) {
        assert_eq!((shaped.dataset, &shaped.keys), (full.dataset, &full.keys), "{bodies:?}");
        assert_eq!(shaped.rows, full.rows, "{bodies:?}");
    }
}

fn both(config: DecodeConfig) -> [Decoder; 2] {
    [decoder(config.clone()), decoder(DecodeConfig { shape_steps_max: 0, ..config })]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(Value::Null),
        2 => any::<bool>().prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        2 => any::<u64>().prop_map(Value::from),
        2 => (-1000i64..1000).prop_map(Value::from),
        1 => any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(Value::from),
        2 => (-100_000i32..100_000).prop_map(|value| Value::from(f64::from(value) / 100.0)),
        4 => "[a-z0-9 ._-]{0,40}".prop_map(Value::from),
        1 => "\\PC{0,20}".prop_map(Value::from),
        1 => ".{0,20}".prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(prop::collection::btree_map("[a-d]", inner.clone(), 0..4), 1..4)
                .prop_map(|maps| maps.into_iter().map(|map| Value::Object(map.into_iter().collect())).collect()),
            prop::collection::btree_map("[a-f]", inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn event() -> impl Strategy<Value = Value> {
    let keys = prop_oneof!["[a-h]", "a\\.[a-d]", "time", "_id", "message", "src_ip", "severity"];
    prop::collection::btree_map(keys, value(), 1..7).prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// The same event with other scalars.
fn refilled(event: &Value, scalars: &mut impl Iterator<Item = Value>) -> Value {
    match event {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), refilled(value, scalars)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|item| refilled(item, scalars)).collect(),
        _ => scalars.next().unwrap_or(Value::Null),
    }
}

/// A change of a text at a place: (what, where, with which byte).
type Change = (u8, prop::sample::Index, u8);

fn change(text: &mut Vec<u8>, (what, place, byte): &Change) {
    if text.is_empty() {
        return;
    }
    let at = place.index(text.len());
    let bytes = b"{}[],:\"\\ntfe-+.0129 \t\r\n\x01\x7f\xc3\xa9u_ax";
    let byte = bytes[*byte as usize % bytes.len()];
    match what % 4 {
        0 => text[at] = byte,
        1 => text.insert(at, byte),
        2 => drop(text.remove(at)),
        _ => text.truncate(at),
    }
}

fn joined(lines: &[Vec<u8>], form: u8) -> String {
    let (start, between, end) = match form % 5 {
        0 => ("[", ",", "]"),
        1 => ("[\n ", " ,\n ", "\n]\n"),
        2 => ("{\"events\":[", ", ", "]}"),
        3 => ("", " \r\n", ""),
        _ => ("", "\n", "\n"),
    };
    let lines: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("{start}{}{end}", lines.join(between))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_known_shape_gives_what_the_parser_gives(
        shapes in prop::collection::vec(event(), 1..4),
        fillings in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(scalar(), 0..24)), 2..12),
        changes in prop::collection::vec((any::<prop::sample::Index>(), (any::<u8>(), any::<prop::sample::Index>(), any::<u8>())), 0..3),
        form in any::<u8>(),
    ) {
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for (shape, scalars) in &fillings {
            let event = refilled(shape.get(&shapes), &mut scalars.iter().cloned());
            lines.push(event.to_string().into_bytes());
        }
        let mut both = both(DecodeConfig { event_fields_max: 12, ..DecodeConfig::default() });
        // Once to learn, once to know.
        check(&mut both, &[joined(&lines, 4), joined(&lines, form)]);
        check(&mut both, &[joined(&lines, form)]);
        for (line, edit) in &changes {
            let at = line.index(lines.len());
            change(&mut lines[at], edit);
        }
        check(&mut both, &[joined(&lines, form), joined(&lines, 4)]);
    }
}

#[test]
fn what_only_looks_like_a_known_shape_is_parsed() {
    let known = r#"{"id":"x","n":1,"o":{"p":true,"q":[1,2]},"l":[{"a":1,"b":"x"},{"a":2}]}"#;
    let mut both = both(DecodeConfig::default());
    check(&mut both, &[format!("{known}\n{known}\n{known}")]);
    for (from, to) in [
        ("\"x\"", "\"a\\u0041\\n\""),
        ("\"x\"", "\"\u{e9}\u{1f980}\""),
        ("\"x\"", "\"a\u{1}\""),
        ("\"x\"", "\"open"),
        ("\"x\"", "null"),
        ("\"x\"", "{\"y\":1}"),
        ("1,\"o\"", "01,\"o\""),
        ("1,\"o\"", "-0,\"o\""),
        ("1,\"o\"", "-0.0,\"o\""),
        ("1,\"o\"", "1.50,\"o\""),
        ("1,\"o\"", "1e3,\"o\""),
        ("1,\"o\"", "18446744073709551616,\"o\""),
        ("1,\"o\"", "9223372036854775807,\"o\""),
        ("1,\"o\"", "-9223372036854775808,\"o\""),
        ("1,\"o\"", "123456789.123456789,\"o\""),
        ("1,\"o\"", "0.1,\"o\""),
        ("1,\"o\"", "1,\"n\":2,\"o\""),
        ("[1,2]", "[1,2,3]"),
        ("[1,2]", "[1,null]"),
        ("[1,2]", "[null,null]"),
        ("[1,2]", "[]"),
        ("[1,2]", "[1,\"2\"]"),
        ("\"b\":\"x\"", "\"b\":null"),
        ("\"b\":\"x\"", "\"a\":\"x\""),
        ("\"p\":true", "\"p\":tru"),
        ("\"p\":true", "\"p\" : true"),
        ("}]}", "}]} "),
        ("}]}", "}]}{"),
        ("}]}", "}]},"),
        ("}]}", "}]"),
    ] {
        let other = known.replacen(from, to, 1);
        assert_ne!(known, other);
        check(&mut both, &[format!("{known}\n{other}\n{known}"), format!("[{known},{other},{known}]"), other]);
    }
}

/// A shape that begins as another does is found all the same, which shows in the time only.
#[test]
fn a_value_that_is_an_object_in_some_events_is_none_in_others() {
    let mut both = both(DecodeConfig::default());
    let events = [r#"{"a":null,"z":1}"#, r#"{"a":{"b":2},"z":1}"#, r#"{"a":[3,4],"z":1}"#, r#"{"a": 5,"z":1}"#];
    for _ in 0..3 {
        check(&mut both, &[events.join("\n"), format!("[{}]", events.join(","))]);
    }
}

#[test]
fn a_tenant_that_may_have_no_more_fields_keeps_them_in_the_rest_whatever_the_others_have() {
    let config = DecodeConfig { fields_max: 2, ..DecodeConfig::default() };
    let mut both = both(config);
    let event = json!({"a": 1, "b": "x", "c": true}).to_string();
    for _ in 0..3 {
        check(&mut both, &[event.clone(), event.clone()]);
    }
}

#[test]
fn shapes_that_find_no_room_are_parsed() {
    let mut both = both(DecodeConfig { shape_steps_max: 8, ..DecodeConfig::default() });
    let bodies: Vec<String> = (0..40)
        .map(|at| {
            (0..40).map(|line| json!({format!("k{}", (at + line) % 9): line, "n": at}).to_string() + "\n").collect()
        })
        .collect();
    for body in bodies {
        check(&mut both, &[body]);
    }
}

#[test]
fn events_that_go_on_in_hundreds_of_ways_are_known_by_their_next_key() {
    let mut both = both(DecodeConfig::default());
    let line = |kind: usize, at: usize| match kind % 3 {
        0 => format!("{{\"id\":{at},\"field_{kind:03}\":\"v{at}\",\"next\":{kind}}}\n"),
        1 => format!("{{\"id\":{at},\"field_{:03}\":{{\"a\":{at}}}}}\n", kind - 1),
        _ => format!("{{\"id\":{at},\"field_{:03}\":[\"v{at}\"],\"odd \\\"{kind}\":null}}\n", kind - 2),
    };
    for round in 0..3 {
        let known: String = (0..300).map(|kind| line(kind, kind + round)).collect();
        let broken: String = (0..300).map(|kind| line(kind, round).replacen("\":", "\"", kind % 4)).collect();
        check(&mut both, &[known, broken]);
    }
}
