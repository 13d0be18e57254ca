//! Bodies with very many bad events: refused as a whole, before their rejections cost more than they do.

use tidegate_ingest::decode::{BodyFormat, DecodeConfig};

use super::decoding::{Case, computed, decode_with, decoder};

/// A body of so many bad items, and one good one before and after, in each form.
fn forms(bad: usize) -> Vec<(&'static str, Case)> {
    let lines = |line: &str| line.repeat(bad);
    vec![
        ("lines", Case::json(format!("{{\"n\":1}}\n{}{{\"n\":2}}", lines("1\n")))),
        ("one line", Case::json(format!("{{\"n\":1}}{}{{\"n\":2}}", lines("[1]")))),
        ("array", Case::json(format!("[{{\"n\":1}},{}{{\"n\":2}}]", lines("1,")))),
        ("envelope", Case::json(format!("{{\"events\":[{{\"n\":1}},{}{{\"n\":2}}]}}", lines("1,")))),
        ("cost", Case::json(format!("{{\"n\":1}}\n{}{{\"n\":2}}", lines("1\n"))).cost()),
        ("csv", Case::new(BodyFormat::Csv, format!("BilledCost,n\n1,1\n{}2,2\n", lines("1\n"))).cost()),
    ]
}

#[test]
fn a_body_with_more_bad_events_than_the_bound_is_refused_as_a_whole() {
    let config = DecodeConfig { rejected_items_max: 100, ..DecodeConfig::default() };
    for bad in [100, 101, 5_000] {
        for (form, case) in forms(bad) {
            let neighbour = || Case::json("{\"neighbour\":1}\noops\n{\"neighbour\":2}").org("other");
            let mut decoder = decoder(config.clone());
            let outcome = decode_with(&mut decoder, &[neighbour(), case, neighbour()]);
            let result = &outcome.results[1];
            let context = format!("{form} with {bad}: {:?}", result.error);
            assert_eq!(outcome.column("security_events", "neighbour"), ["1", "2", "1", "2"], "{context}");
            let letters = outcome.column("dead_letters", "item_index").len();
            let table = if matches!(form, "cost" | "csv") { "cost_events" } else { "security_events" };
            let stored = outcome.column(table, "n");
            if bad <= 100 {
                assert!(result.error.is_none() && result.rejected.len() == bad, "{context}");
                assert_eq!((letters, stored), (bad + 2, vec!["1".to_owned(), "2".to_owned()]), "{context}");
            } else {
                assert_eq!(result.error.as_ref().map(|error| error.code), Some("too_many_rejected"), "{context}");
                assert_eq!((result.items, result.rejected.len()), (0, 0), "{context}");
                assert_eq!((letters, stored), (2, Vec::new()), "nothing of it is stored: {context}");
            }
            // The decoder goes on as if the body had never come.
            let outcome = decode_with(&mut decoder, &[neighbour()]);
            assert_eq!(outcome.column("security_events", "neighbour"), ["1", "2"], "{context}");
        }
    }
}

#[test]
fn two_million_bad_lines_cost_no_more_than_ten_thousand() {
    let started = computed();
    let outcome = decode_with(&mut decoder(DecodeConfig::default()), &[Case::json("1\n".repeat(2_000_000))]);
    assert_eq!(outcome.results[0].error.as_ref().map(|error| error.code), Some("too_many_rejected"));
    assert!(outcome.decoded.batches.is_empty());
    assert!((computed() - started).as_secs() < 5, "{:?}", (computed() - started));
}

#[test]
fn a_long_name_in_a_reason_is_cut() {
    let name = "n".repeat(100_000);
    let body = [format!("BilledCost,{name}\n").as_bytes(), &b"1,\xff\n".repeat(50)].concat();
    let outcome = decode_with(&mut decoder(DecodeConfig::default()), &[Case::new(BodyFormat::Csv, body).cost()]);
    assert_eq!(outcome.results[0].rejected.len(), 50);
    assert!(outcome.results[0].rejected.iter().all(|rejected| rejected.reason.len() <= 1_000));
    assert!(outcome.column("dead_letters", "reason").iter().all(|reason| reason.len() <= 1_000));
}
