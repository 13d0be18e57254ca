//! Rules compiled ahead of the change that puts them in force.
//!
//! `TIDEGATE_AHEAD_RULES` (default 300) is how many rules there are; with 3750, in release, the change must stop the stream for
//! less than 20 ms.

use std::time::Instant;

use serde_json::json;
use tidegate_pipeline::Operator;
use tidegate_rules::{Ahead, RuleFile, RulesConfig, SigmaOperator};

use crate::stream::{Event, at, batch, process};
use crate::suppression::changes;

fn text(number: usize, value: &str) -> String {
    format!(
        "title: R{number}\nid: r{number}\nlogsource: {{product: test}}\n\
         detection: {{s: {{f|contains: ['{value}{number}', '{number}x{value}'], g|endswith: 'end{number}'}}, condition: s}}\n"
    )
}

fn create(operator: &mut SigmaOperator, files: &[RuleFile]) {
    let change =
        |file: &RuleFile| ("default", "rule", file.name.clone(), "create", json!({ "text": file.text }).to_string());
    let rows: Vec<_> = files.iter().map(change).collect();
    let rows: Vec<(&str, &str, &str, &str, String)> = rows
        .iter()
        .map(|(org, kind, name, action, body)| (*org, *kind, name.as_str(), *action, body.clone()))
        .collect();
    process(operator, &changes(&rows));
}

#[test]
fn a_change_that_was_prepared_is_taken_up_at_its_offset_and_does_not_stop_the_stream() {
    #[expect(clippy::disallowed_methods, reason = "the size of a test on demand")]
    let wanted = std::env::var("TIDEGATE_AHEAD_RULES");
    let count: usize = wanted.ok().and_then(|count| count.parse().ok()).unwrap_or(300);
    let config = RulesConfig { suppress_s: 0, ..RulesConfig::default() };
    let mut files: Vec<RuleFile> =
        (0..count).map(|number| RuleFile::new(format!("{number}.yml"), text(number, "old"))).collect();
    let ahead = Ahead::default();
    let mut with = SigmaOperator::new(config.clone()).expect("tables").with_ahead(ahead.clone());
    let mut without = SigmaOperator::new(config.clone()).expect("tables");
    create(&mut with, &files);
    create(&mut without, &files);
    let event = |number: usize, value: &str| -> Event {
        let value = format!("a {value}{number} b");
        at(&format!("e{value}"), 1.0, &[("f", &value), ("g", &format!("the end{number}"))])
    };
    let events = batch(
        &(0..200).flat_map(|number| [event(number % count, "old"), event(number % count, "new")]).collect::<Vec<_>>(),
    );
    assert_eq!(process(&mut with, &events), process(&mut without, &events));
    // One rule changes: whoever writes the change compiles what there will be.
    files[7].text = text(7, "new");
    ahead.prepare(&files, &config).expect("tables");
    let changed = files[7].clone();
    let stop = |operator: &mut SigmaOperator| {
        create(operator, std::slice::from_ref(&changed));
        let small = batch(&[event(8 % count, "old")]);
        let started = Instant::now();
        let alerts = process(operator, &small);
        (started.elapsed(), alerts)
    };
    let ((short, one), (long, other)) = (stop(&mut with), stop(&mut without));
    println!("{count} rules: a change stops the stream for {short:?} when prepared, {long:?} when not");
    assert_eq!(one, other);
    assert_eq!(process(&mut with, &events), process(&mut without, &events));
    assert_eq!(with.save(), without.save());
    assert!(short < long / 3, "{short:?} {long:?}");
    assert!(count < 3_000 || cfg!(debug_assertions) || short.as_millis() < 20, "{short:?}");
    // What was prepared for other files is not taken up.
    files[8].text = text(8, "other");
    ahead.prepare(&files, &config).expect("tables");
    create(&mut with, &[RuleFile::new("9.yml", text(9, "new"))]);
    let found = process(&mut with, &batch(&[event(8 % count, "old"), event(9 % count, "new")]));
    assert_eq!(found.iter().map(|alert| alert.rule_id.as_str()).collect::<Vec<_>>(), ["r8", "r9"]);
}
