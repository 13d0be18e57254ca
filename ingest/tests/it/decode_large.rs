//! Events that are large in one way: a key of 10 MiB, a hundred thousand fields. At the default bounds they are rejected and
//! their neighbours stored; with larger ones they are stored, what has no column in `_rest`.

use std::fmt::Write as _;

use tidegate_ingest::decode::{BodyFormat, DecodeConfig};

use super::decoding::{Case, Outcome, computed, decode_with, decoder};

fn long_key() -> String {
    format!(r#"{{"{}":1,"x":"kept"}}"#, "k".repeat(10 << 20))
}

fn many_fields() -> String {
    let mut event = String::from(r#"{"x":"kept""#);
    for at in 0..100_000 {
        let _ = write!(event, r#","field_{at}":"{at}""#);
    }
    event + "}"
}

fn nested_fields() -> String {
    let mut event = String::from(r#"{"x":"kept","o":{"a":0"#);
    for at in 0..100_000 {
        let _ = write!(event, r#","field_{at}":{at}"#);
    }
    event + "}}"
}

/// The event between two others, in each form of body.
fn decoded(event: &str, config: &DecodeConfig) -> Vec<(&'static str, Outcome)> {
    let (before, after) = (r#"{"n":"before"}"#, r#"{"n":"after"}"#);
    let forms = [
        ("lines", format!("{before}\n{event}\n{after}\n")),
        ("array", format!("[{before},{event},{after}]")),
        ("envelope", format!("{{\"events\":[{before},{event},{after}]}}")),
        ("one line", format!("{before}{event}{after}")),
    ];
    let decode = |(form, body)| {
        let started = computed();
        let mut decoder = decoder(config.clone());
        // Twice: the shapes that the first learnt are used by the second.
        decode_with(&mut decoder, &[Case::json(String::clone(&body))]);
        let outcome = decode_with(&mut decoder, &[Case::json(body)]);
        let took = computed() - started;
        assert!(took.as_secs() < 20, "{form}: {took:?}");
        assert_eq!(outcome.column("security_events", "n"), ["before", "after"], "{form}");
        (form, outcome)
    };
    forms.into_iter().map(decode).collect()
}

#[test]
fn at_the_default_bounds_it_is_rejected_and_its_neighbours_stored() {
    for event in [long_key(), many_fields(), nested_fields()] {
        assert!(event.len() > 1 << 20);
        let config = DecodeConfig::default();
        for (form, outcome) in decoded(&event, &config) {
            assert_eq!(outcome.rejected(0), [(1, "event_too_large")], "{form}");
            let payload = outcome.column("dead_letters", "payload").concat();
            assert!(event.starts_with(&payload) && payload.len() == config.dead_letter_bytes_max, "{form}");
        }
        let alone = decode_with(&mut decoder(config), &[Case::new(BodyFormat::Single, event)]);
        assert_eq!(alone.rejected(0), [(0, "event_too_large")]);
    }
}

#[test]
fn with_larger_bounds_it_is_stored_and_what_has_no_column_is_in_rest() {
    let config = DecodeConfig { event_bytes_max: 64 << 20, ..DecodeConfig::default() };
    for (event, columns_max, rest_bytes) in
        [(long_key(), 10, 10 << 20), (many_fields(), 1_010, 2_000_000), (nested_fields(), 1_010, 1_500_000)]
    {
        for (form, outcome) in decoded(&event, &config) {
            assert_eq!(outcome.rejected(0), [], "{form}");
            assert_eq!(outcome.cell(0, 1, "x"), "kept", "{form}");
            let rest = outcome.cell(0, 1, "_rest");
            assert!(rest.len() > rest_bytes, "{form}: {} bytes", rest.len());
            let columns: usize = outcome.batches("security_events").iter().map(|batch| batch.num_columns()).sum();
            assert!(columns <= columns_max + 20, "{form}: {columns} columns");
            let memory: usize =
                outcome.batches("security_events").iter().map(|batch| batch.get_array_memory_size()).sum();
            assert!(memory < 4 * event.len(), "{form}: {memory} bytes for an event of {}", event.len());
        }
    }
}

#[test]
fn twenty_events_of_a_hundred_thousand_other_fields_stay_bounded() {
    let config = DecodeConfig { event_bytes_max: 64 << 20, ..DecodeConfig::default() };
    let mut decoder = decoder(config);
    let started = computed();
    // The first come first: later the tenant has as many fields as it may.
    decode_with(&mut decoder, &[Case::json(r#"{"n":0}"#)]);
    for round in 0..20 {
        let event = many_fields().replace("field_", &format!("round_{round}_"));
        let outcome = decode_with(&mut decoder, &[Case::json(format!("{event}\n{{\"n\":1}}"))]);
        assert_eq!((outcome.rejected(0), outcome.cell(0, 1, "n")), (Vec::new(), "1".to_owned()));
        let columns: usize = outcome.batches("security_events").iter().map(|batch| batch.num_columns()).sum();
        assert!(columns < 2_100, "{columns}");
    }
    let took = computed() - started;
    assert!(took.as_secs() < 60, "{took:?}");
}
