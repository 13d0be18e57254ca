//! Rules that eat time, each beside a hundred normal ones: the normal ones go on, and what cannot be made cheap is parked.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate_pipeline::LogBatch;
use tidegate_pipeline::clock::thread_cpu;
use tidegate_rules::{Evaluator, Parked, RuleFile, RuleSet, RulesConfig};

use crate::flatten::Events;

const EVENTS: usize = 200;
/// Rounds of [`EVENTS`] events: less than a second of a stream.
const ROUNDS: usize = 24;

fn normal() -> impl Iterator<Item = RuleFile> {
    (0..100).map(|at| {
        let text = format!(
            "title: n{at}\nid: n{at}\nlogsource: {{product: test}}\n\
             detection:\n  s: {{g: value{at}, f|contains: x}}\n  condition: s\n"
        );
        RuleFile::new(format!("n{at:03}"), text)
    })
}

fn list_of(values: usize, value: impl Fn(usize) -> String) -> String {
    let values: Vec<String> = (0..values).map(|at| format!("'{}'", value(at))).collect();
    format!("[{}]", values.join(", "))
}

fn words(words: usize) -> String {
    (0..words).map(|at| format!("w{at:05}")).collect::<Vec<_>>().join("|")
}

/// Name, the selection, and whether it must be parked: a regular expression that keeps its automaton busy.
fn hogs() -> Vec<(&'static str, String, bool)> {
    let regex = |pattern: &str| format!("{{f|re: '{pattern}'}}");
    let busy = [
        ("states that stay possible", "a[abx]{150}[ab]{20}"),
        ("the same without case", "(?i)a[abx]{150}[ab]{20}"),
        ("overlapping repeats", "a.{200}b.{100}c"),
        ("two wide repeats", "[ab][abx]{90}[ab][abx]{90}[ab]zz"),
        ("an alternative of wide repeats", "(?:a[abx]{120}|b[abx]{121}|x[abx]{122})zz"),
    ];
    let calm = [
        ("a tail that is never there", "b[abx]{1,200}q"),
        ("nested counted groups", "(?:(?:a|b|x){10}){20}zz"),
        ("nested stars", "(x+x+)+y"),
        ("stars of stars", "(?:(?:a*)*)*z"),
        ("many dots", ".*.*.*.*.*=.*"),
        ("optional letters", "(?:a?){60}a{60}"),
        ("greedy classes", "^(([a-z])+.)+[A-Z]([a-z])+$"),
        ("letters of any script", "[[:alpha:]]{50,100}[0-9]"),
    ];
    let mut all: Vec<(&'static str, String, bool)> = Vec::new();
    all.extend(busy.iter().map(|(name, pattern)| (*name, regex(pattern), true)));
    all.extend(calm.iter().map(|(name, pattern)| (*name, regex(pattern), false)));
    all.extend([
        ("an alternation of ten thousand words", regex(&words(9_000)), false),
        ("ten thousand values", format!("{{f|contains: {}}}", list_of(10_000, |at| format!("v{at}z"))), false),
        ("ten thousand endings", format!("{{f|endswith: {}}}", list_of(10_000, |at| format!("e{at}"))), false),
        ("ten thousand keywords", list_of(10_000, |at| format!("keyword{at}")), false),
        ("keywords of one letter", list_of(12, |at| char::from(b'j' + at as u8).to_string()), false),
        ("states that stay possible, in any field", "{'|re': 'a[abx]{150}[ab]{20}'}".to_owned(), true),
        (
            "three thousand base64offset",
            format!("{{f|base64offset|contains: {}}}", list_of(3_000, |at| format!("cmd{at}"))),
            false,
        ),
        (
            "windash in three places",
            format!("{{f|windash|contains: {}}}", list_of(500, |at| format!("-a{at} -b -c"))),
            false,
        ),
        ("patterns that start anywhere", format!("{{f: {}}}", list_of(300, |at| format!("*a?b*{at}*x?a*"))), false),
        ("patterns without a literal", format!("{{f: {}}}", list_of(60, |at| "?".repeat(1_000 + at))), false),
        (
            "ten thousand networks",
            format!("{{f|cidr: {}}}", list_of(5_000, |at| format!("10.{}.{}.0/24", at / 250, at % 250))),
            false,
        ),
        (
            "ten thousand numbers",
            format!(
                "{{f|gte: [{}]}}",
                (0..5_000).map(|at| (at + 1_000_000).to_string()).collect::<Vec<_>>().join(", ")
            ),
            false,
        ),
        ("a field in a field", "{f|fieldref|contains: h}".to_owned(), false),
    ]);
    all
}

/// The normal rules, and one with this selection.
fn compiled(hog: Option<&str>, config: &RulesConfig) -> Arc<RuleSet> {
    compiled_beside(hog.map(|selection| hog_of(&format!("s: {selection}\n  condition: s"))), config)
}

/// A rule of which this is the detection.
fn hog_of(detection: &str) -> RuleFile {
    let text = format!("title: Hog\nid: hog\nlogsource: {{product: test}}\ndetection:\n  {detection}\n");
    RuleFile::new("zz", text)
}

fn compiled_beside(others: impl IntoIterator<Item = RuleFile>, config: &RulesConfig) -> Arc<RuleSet> {
    let files: Vec<RuleFile> = normal().chain(others).collect();
    let (rules, problems) = RuleSet::compile(&files, config).expect("tables");
    assert_eq!(problems, []);
    Arc::new(rules)
}

/// Letters without a period, so that no automaton can learn them; never sixteen without an `x`.
pub fn letters(at: usize, count: usize) -> String {
    let mut state = at as u64 + 1;
    let mut text = format!("xa{at} ");
    for place in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let letter = if place % 16 == 0 { 'x' } else { ['a', 'b', 'x'][(state >> 60) as usize % 3] };
        let _ = text.write_char(letter);
    }
    text
}

fn event(at: usize) -> Value {
    json!({"f": letters(at, 400), "g": format!("value{}", at % 100), "h": format!("never {at}")})
}

fn batches(rounds: usize, first: usize) -> Vec<LogBatch> {
    let round = |round: usize| {
        let events: Vec<Value> = (0..EVENTS).map(|at| event((first + round) * EVENTS + at)).collect();
        Events::security("test", &events).batch(0)
    };
    (0..rounds).map(round).collect()
}

/// Matches of normal rules only.
fn matches(evaluator: &mut Evaluator, batch: &LogBatch) -> usize {
    evaluator.matches(batch).iter().filter(|(_, rule)| *rule < 100).count()
}

#[test]
fn a_hog_is_parked_or_cheap_and_its_neighbours_fire() {
    let config = RulesConfig { rule_event_ns_max: 300, ..RulesConfig::default() };
    let batches = batches(ROUNDS, 0);
    for (name, selection, must_park) in hogs() {
        let mut evaluator = Evaluator::new(compiled(Some(&selection), &config), &config);
        for batch in &batches {
            assert_eq!(matches(&mut evaluator, batch), EVENTS, "{name}");
            if must_park && !evaluator.parked().is_empty() {
                break;
            }
        }
        let parked: Vec<&str> = evaluator.parked().iter().map(|parked| parked.rule_id.as_str()).collect();
        assert!(parked.iter().all(|rule| *rule == "hog"), "{name}: {parked:?}");
        assert!(!must_park || parked == ["hog"], "{name} goes on");
    }
}

/// An event with a value this long.
fn large(at: usize, bytes: usize) -> Value {
    json!({"f": letters(at, bytes), "g": format!("value{}", at % 100)})
}

fn large_batch(events: &[Value]) -> LogBatch {
    Events::security("test", events).batch(0)
}

/// What a rule may take until it is parked, in CPU time: a second, and more without optimisation.
fn patience() -> Duration {
    Duration::from_secs(if asked_for() { 1 } else { 4 })
}

/// How long the same takes without a hog.
fn alone(batches: &[LogBatch], config: &RulesConfig) -> Duration {
    let mut evaluator = Evaluator::new(compiled(None, config), config);
    let started = thread_cpu();
    batches.iter().for_each(|batch| assert_eq!(matches(&mut evaluator, batch), batch.rows.num_rows()));
    thread_cpu() - started
}

/// Few events that take long keep nobody waiting, whether they come one by one or in a batch.
#[test]
fn a_hog_of_large_values_is_parked_after_a_few() {
    let config = RulesConfig::default();
    // Tens of milliseconds for one value.
    let rules = compiled(Some("{f|re: '[ab][abx]{90}[ab][abx]{90}[ab]zz'}"), &config);
    let events: Vec<Value> = (0..300).map(|at| large(at, 32 << 10)).collect();
    for piece in [1, 300] {
        let batches: Vec<LogBatch> = events.chunks(piece).map(large_batch).collect();
        let mut evaluator = Evaluator::new(rules.clone(), &config);
        let (started, mut seen) = (thread_cpu(), 0);
        for batch in &batches {
            assert_eq!(matches(&mut evaluator, batch), piece);
            seen += piece;
            if !evaluator.parked().is_empty() {
                break;
            }
        }
        let (took, without) = (thread_cpu() - started, alone(&batches[..seen / piece], &config));
        println!("parked after {took:?} and {seen} events, {piece} at a time; {without:?} without the hog");
        assert!(took < patience() + 2 * without, "{piece} at a time: {took:?}, {without:?} without");
        let parked: Vec<&str> = evaluator.parked().iter().map(|parked| parked.rule_id.as_str()).collect();
        assert_eq!(parked, ["hog"], "{piece} at a time");
    }
}

/// One event that would take minutes is given up, whatever makes it slow.
#[test]
fn a_search_that_would_never_end_is_given_up() {
    let config = RulesConfig::default();
    let list: Vec<String> = (0..20_000).map(|at| format!("x{at:0>40}")).collect();
    let wide = "x".repeat(1 << 20);
    let selected = |selection: &str| format!("s: {selection}\n  condition: s");
    let states = "(?:[ab][abx]{200}|[bx][abx]{201}|[ax][abx]{202})";
    let lists = |count: usize| json!({"f": list, "h": vec!["none"; count], "g": "value1"});
    for (name, detection, event) in [
        ("an expression of many states", selected(&format!("{{f|re: '{states}{{20}}zz'}}")), large(1, 1 << 20)),
        (
            "one behind a not",
            format!("s: {{g|startswith: value}}\n  f: {{f|re: '{states}{{20}}zz'}}\n  condition: s and not f"),
            large(1, 1 << 20),
        ),
        (
            "word boundaries beside a letter beyond ASCII",
            selected(&format!("{{f|re: '\\b{states}{{4}}zz\\b'}}")),
            json!({"f": format!("é {}", letters(1, 1 << 20)), "g": "value1"}),
        ),
        ("one of the keywords", selected(&format!("{{'|re': '{states}{{20}}zz'}}")), large(1, 1 << 20)),
        (
            "many expressions",
            selected(&format!("{{f|re: {}}}", list_of(200, |at| format!("[ab][abx]{{{}}}[ab]zz", 600 + at)))),
            large(1, 1 << 20),
        ),
        (
            "a long pattern",
            selected(&format!("{{f: 'y*{}y*'}}", "x?".repeat(4_000))),
            json!({"f": format!("y{wide}"), "g": "value1"}),
        ),
        ("lists that are compared", selected("{f|fieldref|contains: h}"), lists(4_000)),
        (
            "many pairs of lists that are compared",
            selected(&format!("[{}]", vec!["{f|fieldref|contains: h}"; 200].join(", "))),
            lists(20),
        ),
    ] {
        let mut evaluator = Evaluator::new(compiled_beside([hog_of(&detection)], &config), &config);
        let batch = large_batch(&[event]);
        let started = thread_cpu();
        let found = evaluator.matches(&batch);
        let took = thread_cpu() - started;
        println!("{name}: parked after {took:?}");
        assert!(took < patience(), "{name}: {took:?}");
        assert_eq!(found.len(), 1, "{name}: what was given up says nothing");
        assert_eq!(parked_reasons(&evaluator), [("hog", true)], "{name}: {:?}", evaluator.parked());
        assert_eq!(matches(&mut evaluator, &batch), 1, "{name}: the others go on");
    }
}

/// What is parked, and whether because it was given up.
fn parked_reasons(evaluator: &Evaluator) -> Vec<(&str, bool)> {
    let reason = |parked: &'_ Parked| parked.reason.contains("given up");
    evaluator.parked().iter().map(|parked| (parked.rule_id.as_str(), reason(parked))).collect()
}

/// Many expressions that each take too short a time to be given up.
#[test]
fn many_expressions_in_one_value_are_looked_at_between_them() {
    let config = RulesConfig::default();
    let many = list_of(400, |at| format!("a[abx]{{{}}}[ab]{{{}}}", 150 + at % 64, 20 + at / 64));
    let mut evaluator = Evaluator::new(compiled(Some(&format!("{{f|re: {many}}}")), &config), &config);
    let started = thread_cpu();
    assert_eq!(matches(&mut evaluator, &large_batch(&[large(1, 128 << 10)])), 1);
    let took = thread_cpu() - started;
    println!("parked after {took:?}");
    assert!(took < patience(), "{took:?}");
    assert_eq!(parked_reasons(&evaluator), [("hog", false)]);
}

/// A rule that is gone takes nothing any more, however its columns are remembered.
#[test]
fn a_hog_that_was_deleted_costs_nothing() {
    // Nobody is parked.
    let config = RulesConfig { rule_event_ns_max: u64::MAX, ..RulesConfig::default() };
    let hog = compiled(Some("{f|re: '[ab][abx]{90}[ab][abx]{90}[ab]zz'}"), &config);
    let batches: Vec<LogBatch> = (0..40).map(|at| large_batch(&[large(at, 32 << 10)])).collect();
    let took = |evaluator: &mut Evaluator| {
        let started = thread_cpu();
        batches.iter().for_each(|batch| assert_eq!(matches(evaluator, batch), 1));
        thread_cpu() - started
    };
    let mut evaluator = Evaluator::new(hog, &config);
    let with = took(&mut evaluator);
    let rules = compiled(None, &config);
    for ahead in [false, true] {
        let mut other = Evaluator::new(rules.clone(), &config);
        if ahead {
            other.make_ready();
        }
        evaluator.replace_with(other);
        // Nothing of these values is remembered.
        let mut fresh = Evaluator::new(rules.clone(), &config);
        let (after, alone) = (took(&mut evaluator), took(&mut fresh));
        println!("{with:?} with the hog, {after:?} after it, {alone:?} without it");
        assert!(after < alone * 4 + with / 4, "{with:?} with the hog, {after:?} after it, {alone:?} without it");
        evaluator = Evaluator::new(compiled(Some("{f|re: '[ab][abx]{90}[ab][abx]{90}[ab]zz'}"), &config), &config);
        took(&mut evaluator);
    }
}

/// Large events alone park nobody: rules that search them as they should go on, also one that is alone on a column.
#[test]
fn rules_that_search_large_events_quickly_go_on() {
    let config = RulesConfig::default();
    for selection in [
        "[{f|re: ['(?i)power(shell)?\\s+-e[a-z]*\\s', 'zz$', '^[abx]{3,20}[0-9]{4}']}, {h|contains: zz}]",
        "{h|contains: [zz, 'power shell', 'xyz']}",
        "{h: ['*power*shell*', '*zz', 'xyz*']}",
    ] {
        let mut evaluator = Evaluator::new(compiled(Some(selection), &config), &config);
        for round in 0..10 {
            let event = |at: usize| {
                let (number, bytes) = (round * 30 + at, 32 << 10);
                json!({"f": letters(number, bytes), "g": format!("value{}", at % 100), "h": letters(number + 7, bytes)})
            };
            let events: Vec<Value> = (0..30).map(event).collect();
            assert_eq!(matches(&mut evaluator, &large_batch(&events)), 30, "{selection}");
        }
        assert!(evaluator.counts().decided >= 600, "{selection} searches the other column");
        assert_eq!(evaluator.parked(), [], "{selection}");
    }
}

/// An expression among the keywords of one rule is not paid for by who has more keywords.
#[test]
fn keywords_of_others_do_not_pay_for_an_expression_among_them() {
    let config = RulesConfig::default();
    let words = list_of(50, |at| format!("keyword{at}"));
    let text =
        format!("title: Words\nid: words\nlogsource: {{product: test}}\ndetection:\n  s: {words}\n  condition: s\n");
    let files = [hog_of("s: {'|re': 'a[abx]{150}[ab]{20}'}\n  condition: s"), RuleFile::new("words", text)];
    let mut evaluator = Evaluator::new(compiled_beside(files, &config), &config);
    for batch in batches(ROUNDS, 0).iter().chain(&batches(ROUNDS, ROUNDS)) {
        assert_eq!(matches(&mut evaluator, batch), EVENTS);
    }
    assert_eq!(parked_reasons(&evaluator), [("hog", false)]);
}

fn asked_for() -> bool {
    std::env::var_os("TIDEGATE_HOGS").is_some()
}

/// What an event costs end to end without rules: 600,000 stored per CPU second (docs/performance.md).
const STREAM: Duration = Duration::from_nanos(1_650);

/// On demand, in release: after a second of a busy stream, a hog that runs on, or was parked, costs it at most a tenth. The stream is
/// what an event costs end to end without rules, and the normal rules.
#[test]
fn a_hog_costs_the_stream_a_tenth() {
    if !asked_for() {
        return;
    }
    let config = RulesConfig::default();
    // No value comes twice, so that none is remembered.
    let (seen, timed) = (batches(2_400, 0), batches(600, 2_400));
    let cost = |hog: Option<&str>| {
        let mut evaluator = Evaluator::new(compiled(hog, &config), &config);
        let started = Instant::now();
        let second = seen.iter().take_while(|_| started.elapsed() < Duration::from_secs(1));
        second.for_each(|batch| assert_eq!(matches(&mut evaluator, batch), EVENTS));
        let parked = !evaluator.parked().is_empty();
        // The best of three: what else the machine does only adds.
        let part = |batches: &[LogBatch]| {
            let started = Instant::now();
            batches.iter().for_each(|batch| assert_eq!(matches(&mut evaluator, batch), EVENTS));
            started.elapsed() / (batches.len() * EVENTS) as u32
        };
        (timed.chunks(200).map(part).min().unwrap_or_default(), parked)
    };
    let (alone, _) = cost(None);
    let stream = STREAM + alone;
    let mut dear = Vec::new();
    for (name, selection, _) in hogs() {
        let (with, parked) = cost(Some(&selection));
        let more = with.saturating_sub(alone);
        println!("{name}: {more:?} an event more than {alone:?}{}", if parked { ", parked" } else { "" });
        let idle = ["ten thousand networks", "ten thousand numbers"].contains(&name);
        assert!(
            !(parked && idle),
            "{name}: no value is compared with them, and what others search for is not theirs to pay"
        );
        if more > stream / 10 {
            dear.push(name);
        }
    }
    assert_eq!(dear, [""; 0], "cost more than a tenth of {stream:?}");
}
