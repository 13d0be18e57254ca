//! What groups take. `TIDEGATE_CORRELATION_GROUPS` (default 5,000) is how many; with 1,000,000 the bound of 512 MiB is checked
//! against the memory of the process, in a minute or two.

use std::time::{Duration, Instant};

use tidegate_pipeline::Operator;
use tidegate_rules::RulesConfig;

use crate::correlation::{base, correlation};
use crate::stream::{Event, at, batch, operator, process};

/// Events of one batch.
const EVENTS: u64 = 2_000;

/// Resident memory of the process in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

#[test]
fn a_million_groups_fit_into_512_mib_and_no_batch_is_a_pause() {
    #[expect(clippy::disallowed_methods, reason = "the size of a test on demand")]
    let wanted = std::env::var("TIDEGATE_CORRELATION_GROUPS");
    let groups: u64 = wanted.ok().and_then(|count| count.parse().ok()).unwrap_or(5_000);
    let section = "type: event_count, rules: [a], group-by: [u], timespan: 10m, condition: {gte: 5}";
    let mut operator = operator(RulesConfig::default(), &[("default", &(base(&["a"]) + &correlation(section)))]);
    let before = resident();
    let mut next = 0;
    let mut run = |count: u64, user: &dyn Fn(u64) -> u64| {
        let mut times: Vec<Duration> = Vec::new();
        let end = next + count;
        while next < end {
            let event = |number: u64| -> Event {
                let id = format!("018f4e2a-0000-7000-8000-{number:012x}");
                // All groups once in 100 seconds.
                let time = 1_000.0 + number as f64 * 100.0 / groups as f64;
                at(&id, time, &[("k", "a"), ("u", &format!("user-{:07}", user(number)))])
            };
            let batch = batch(&(next..end.min(next + EVENTS)).map(event).collect::<Vec<_>>());
            let started = Instant::now();
            process(&mut operator, &batch);
            times.push(started.elapsed());
            next = end.min(next + EVENTS);
        }
        times.sort_unstable();
        let part = |percent: usize| times[(times.len() - 1) * percent / 100];
        let (known, bytes) = operator.correlation_groups();
        let grown = resident().saturating_sub(before);
        println!(
            "{known} groups: about {bytes} bytes, {} each; resident {grown} more, {} each; batches of {EVENTS}: p50 {:?}, p99 {:?}, worst {:?}",
            bytes / known.max(1),
            grown / known.max(1),
            part(50),
            part(99),
            part(100)
        );
        (known as u64, bytes, grown)
    };
    let (known, bytes, grown) = run(groups, &|number| number);
    assert_eq!(known, groups);
    assert!(bytes as u64 / groups <= 536, "{bytes} bytes for {groups} groups");
    assert!(groups < 100_000 || grown <= 512 << 20, "{grown} bytes resident");
    // One more event of each, while as many others come and the first ones end.
    run(groups, &|number| number % groups);
    let (known, bytes, _) = run(12 * groups, &|number| number);
    assert!(known <= 8 * groups && bytes <= 512 << 20, "groups that are over go: {known} of {groups}, {bytes} bytes");
    let started = Instant::now();
    let state = operator.save();
    println!("saved {} bytes in {:?}", state.len(), started.elapsed());
}
