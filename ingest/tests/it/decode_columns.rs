//! What becomes of fields: types that widen, lists, names that clash, bounds, ids, tenants in one flush.

use std::fmt::Write as _;

use super::decoding::{Case, decode, decode_with, decoder};
use tidegate_events::dedup_key;
use tidegate_ingest::decode::DecodeConfig;

fn types(events: &str, column: &str) -> (String, Vec<String>) {
    let outcome = decode(&[Case::json(events)]);
    let batch = outcome.batches("security_events")[0].clone();
    let kind = batch.column_by_name(column).map_or("-".into(), |array| array.data_type().to_string());
    (kind, outcome.column("security_events", column))
}

#[test]
fn types_widen_within_a_batch_and_keep_the_text() {
    for (events, kind, want) in [
        (r#"[{"a":1},{"a":2}]"#, "Int64", vec!["1", "2"]),
        (r#"[{"a":1},{"a":2.5},{"a":1e2}]"#, "Float64", vec!["1.0", "2.5", "100.0"]),
        (r#"[{"a":1},{"a":"x"},{"a":0.1}]"#, "Utf8", vec!["1", "x", "0.1"]),
        (r#"[{"a":true},{"a":1}]"#, "Utf8", vec!["true", "1"]),
        (r#"[{"a":9007199254740993},{"a":0.5}]"#, "Utf8", vec!["9007199254740993", "0.5"]),
        (
            r#"[{"a":9223372036854775807},{"a":9223372036854775808}]"#,
            "Utf8",
            vec!["9223372036854775807", "9223372036854775808"],
        ),
        (r#"[{"a":[1,null,2]},{"a":3},{}]"#, "List(Int64)", vec!["[1, , 2]", "[3]"]),
        (r#"[{"a":"s"},{"a":["t"]},{"a":[1]}]"#, "List(Utf8)", vec!["[s]", "[t]", "[1]"]),
        (r#"[{"a":[{"b":1},{"c":2},{"b":3}]}]"#, "-", vec![]),
    ] {
        let (got_kind, got) = types(events, "a");
        assert_eq!((got_kind.as_str(), got), (kind, want.into_iter().map(String::from).collect()), "{events}");
    }
}

#[test]
fn arrays_of_objects_are_lists_padded_so_that_elements_stay_in_place() {
    for (event, column, want) in [
        (r#"{"a":[{"b":1},{"c":2},{"b":3}]}"#, "a.b", "[1, , 3]"),
        (r#"{"a":[{"b":1},{"c":2},{"b":3}]}"#, "a.c", "[, 2, ]"),
        (r#"{"a":[null,{"b":{"c":"x"}}]}"#, "a.b.c", "[, x]"),
        (r#"{"a":[{"b":1,"d":[1]},{"b":2}]}"#, "_rest", r#"{"a.d":[[1],null]}"#),
        (r#"{"a":[{"b":1},{"d":{}}]}"#, "_rest", r#"{"a.d":[null,{}]}"#),
        (r#"{"a":[{}]}"#, "_rest", r#"{"a":[{}]}"#),
        (r#"{"a":[]}"#, "_rest", r#"{"a":[]}"#),
        (r#"{"a":[null]}"#, "_rest", r#"{"a":[null]}"#),
        (r#"{"a":{}}"#, "_rest", r#"{"a":{}}"#),
        (r#"{"a":[[1],[2,"\n\u0001"]]}"#, "_rest", r#"{"a":[[1],[2,"\n\u0001"]]}"#),
        (r#"{"a":[1,{"b":-2.50}]}"#, "_rest", r#"{"a":[1,{"b":-2.5}]}"#),
        (r#"{"a":{"b":1},"a.b":2}"#, "a.b", "1"),
        (r#"{"a":{"b":1},"a.b":2}"#, "_rest", r#"{"a.b":2}"#),
        (r#"{"":1,"a":{"":2}}"#, "_rest", r#"{"":1,"a.":2}"#),
        (r#"{"_rest":{"z":1},"_rest":5}"#, "_rest", r#"{"_rest":5}"#),
        (r#"{"raw":{"message":1},"message":2,"msg":3}"#, "raw.message", "1"),
    ] {
        let outcome = decode(&[Case::json(event)]);
        assert_eq!(outcome.cell(0, 0, column), want, "{event}");
    }
}

#[test]
fn an_array_of_objects_does_not_grow_with_the_square_of_its_length() {
    let mut event = String::from(r#"{"x":1,"a":["#);
    for at in 0..3000 {
        let _ = write!(event, r#"{{"f{at}":{at}}},"#);
    }
    event.push_str(r#"{"g":1}]}"#);
    let outcome = decode(&[Case::json(event)]);
    assert_eq!(outcome.cell(0, 0, "x"), "1");
    assert_eq!(outcome.cell(0, 0, "a.f0"), "");
    assert!(outcome.cell(0, 0, "_rest").starts_with(r#"{"a":[{"f0":0},{"f1":1},"#));
}

#[test]
fn a_core_name_is_kept_beside_unless_the_core_column_says_the_same() {
    let outcome = decode(&[Case::json(
        r#"{"org_id":"other","received_time":"x","event_id":"e-1","message":"m","severity":"high","time":"2024-01-01T00:00:00Z","src_port":80}"#,
    )]);
    for (column, want) in [
        ("org_id", "acme"),
        ("raw.org_id", "other"),
        ("raw.received_time", "x"),
        ("event_id", "e-1"),
        ("raw.event_id", ""),
        ("raw.message", ""),
        ("severity", "4"),
        ("raw.severity", "high"),
        ("src_port", "80"),
        ("raw.src_port", ""),
        ("raw.time", "2024-01-01T00:00:00Z"),
    ] {
        assert_eq!(outcome.cell(0, 0, column), want, "{column}");
    }
}

#[test]
fn fields_past_a_bound_are_kept_in_rest() {
    let config = DecodeConfig { fields_max: 10, event_fields_max: 5, ..DecodeConfig::default() };
    let mut decoder = decoder(config);
    let eight: String = (0..8).map(|at| format!(r#""f{at}":{at},"#)).collect();
    let outcome = decode_with(&mut decoder, &[Case::json(format!(r#"{{{eight}"n":1}}"#))]);
    assert_eq!(outcome.cell(0, 0, "f4"), "4");
    assert_eq!(outcome.cell(0, 0, "_rest"), r#"{"f5":5,"f6":6,"f7":7,"n":1}"#, "event_fields_max");
    let lines: String = (0..20).map(|at| format!("{{\"g{at}\":{at}}}\n")).collect();
    let outcome = decode_with(&mut decoder, &[Case::json(lines.clone()), Case::json(lines).org("other")]);
    assert_eq!(outcome.cell(0, 4, "g4"), "4");
    assert_eq!(outcome.cell(0, 5, "_rest"), r#"{"g5":5}"#, "fields_max");
    assert_eq!(outcome.cell(0, 19, "_rest"), r#"{"g19":19}"#);
    assert_eq!(outcome.cell(1, 9, "g9"), "9", "another tenant has its own bound");
    assert_eq!(outcome.cell(1, 10, "_rest"), r#"{"g10":10}"#);
}

#[test]
fn a_hundred_thousand_fields_stay_bounded() {
    let mut decoder = decoder(DecodeConfig::default());
    let mut columns = 0;
    for body in 0..10 {
        let lines: String = (0..10_000).map(|at| format!("{{\"h\":1,\"f{}\":{at}}}\n", body * 10_000 + at)).collect();
        let outcome = decode_with(&mut decoder, &[Case::json(lines)]);
        assert!(outcome.decoded.batches.len() <= 32);
        let cells: usize =
            outcome.decoded.batches.iter().map(|batch| batch.rows.num_rows() * batch.rows.num_columns()).sum();
        assert!(cells < 10_000 * 100, "{cells} cells for 10,000 rows of two fields");
        columns = columns.max(outcome.decoded.batches.iter().map(|batch| batch.rows.num_columns()).sum::<usize>());
        assert_eq!(outcome.column("security_events", "h").len(), 10_000);
        if body > 0 {
            assert_eq!(outcome.column("security_events", "_rest").len(), 10_000);
        }
    }
    assert!(columns > 2_000, "the first fields have columns");
}

#[test]
fn ids_come_from_the_event_the_idempotency_key_or_the_decoder() {
    let body = r#"{"_id":"own"}
{"_id":7}
{"event_id":"e"}
{"event_id":4688}
{"x":1}"#;
    let outcome = decode(&[Case::json(body).key("key"), Case::json(r#"[{"x":1},{"_id":""}]"#)]);
    let ids: Vec<String> = (0..5).map(|item| outcome.cell(0, item, "event_id")).collect();
    assert_eq!(ids, ["own", "7", "e", "key:3", "key:4"]);
    assert_eq!(outcome.cell(1, 0, "event_id").len(), 36);
    for (batch, rows) in outcome.decoded.batches.iter().zip(&outcome.decoded.rows) {
        for (at, row) in rows.iter().enumerate() {
            let key = batch.keys.get(at).copied().unwrap_or(0);
            let want = if row.body == 0 { dedup_key("acme", 1, &ids[row.item as usize]) } else { 0 };
            assert_eq!(key, want, "{row:?}");
        }
    }
}

#[test]
fn tenants_share_batches_but_nothing_else() {
    let cases: Vec<Case> = (0..50)
        .map(|at| {
            Case::json(format!("{{\"a\":{at},\"b\":\"x\"}}\n{{broken\n{{\"a\":{at},\"_id\":\"same\"}}"))
                .org(&format!("org-{at}"))
        })
        .collect();
    let outcome = decode(&cases);
    assert!(outcome.decoded.batches.len() <= 3, "layouts are shared: {}", outcome.decoded.batches.len());
    let mut keys: std::collections::HashSet<u128> = std::collections::HashSet::new();
    for (batch, rows) in outcome.decoded.batches.iter().zip(&outcome.decoded.rows) {
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(outcome.cell(row.body, row.item, "org_id"), format!("org-{}", row.body));
            keys.extend(batch.keys.get(at).filter(|key| **key != 0));
        }
    }
    assert_eq!(keys.len(), 50, "the same id of two tenants is two ids");
    assert!(outcome.results.iter().all(|result| result.items == 3 && result.rejected.len() == 1));
}

#[test]
fn a_decoder_goes_on_after_a_flush_as_if_new() {
    let mut decoder = decoder(DecodeConfig::default());
    let cases = || [Case::json("{\"a\":1,\"l\":[1]}\n{\"b\":\"x\"}\nnull"), Case::json("[{\"a\":2.5}]")];
    let first = decode_with(&mut decoder, &cases());
    for _ in 0..3 {
        let again = decode_with(&mut decoder, &cases());
        for (one, two) in first.decoded.batches.iter().zip(&again.decoded.batches) {
            assert_eq!(one.rows.schema(), two.rows.schema());
        }
        assert_eq!(first.decoded.rows, again.decoded.rows);
    }
}

#[test]
fn a_small_batch_after_a_large_one_does_not_keep_its_room() {
    let mut decoder = decoder(DecodeConfig::default());
    decode_with(&mut decoder, &[Case::json("{\"a\":1,\"b\":0.5,\"c\":\"x\"}\n".repeat(20_000))]);
    let outcome = decode_with(&mut decoder, &[Case::json("{\"a\":1,\"b\":0.5,\"c\":\"x\"}")]);
    let bytes = outcome.batches("security_events")[0].get_array_memory_size();
    assert!(bytes < 10_000, "{bytes} bytes for one row");
}
