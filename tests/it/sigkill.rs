//! SIGKILL at any moment under load: nothing acknowledged is lost, nothing is doubled, alerts are those of a quiet run.
//!
//! `TIDEGATE_KILLS=1000 cargo test -p tidegate --test it -- sigkill` does it more often.

use serde_json::{Value, json};

use crate::ledger::{Pace, killed_under_load, some_time};
use crate::server::{Server, on_demand};

const RULE: &str = "\
title: Ledger marker
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1a01
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
level: high
";

/// Rules with a state that outlives a kill by the checkpoint and the log after it: a count within a window, and one alert a day.
const STATEFUL: &str = "\
title: One of a lane
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1b01
name: one_of_a_lane
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
level: low
---
title: Many of a lane
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1b02
correlation: {type: event_count, rules: [one_of_a_lane], group-by: [lane], timespan: 2s, condition: {gte: 20}}
level: high
---
title: Marked
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1b03
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
tidegate: {group_by: [lane], suppress: 1d}
level: low
";

/// Events of a request of the second server.
const AGAIN: usize = 500;

#[test]
fn state_of_rules_is_that_of_an_undisturbed_run() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("stateful.yml"), STATEFUL).expect("rules");
    let settings = [
        ("RULES", rules.path().to_str().expect("a path")),
        ("STARTER_PACK", "false"),
        ("RUN__CHECKPOINT_INTERVAL_MS", "100"),
    ];
    let mut server = Server::start(&settings);
    let pace = Pace { workers: 3, events: 10, bytes: 0, until_refused: true };
    let kills = on_demand("TIDEGATE_KILLS", 20).min(200);
    killed_under_load(&mut server, &settings, (kills, pace), |round, _| {
        std::thread::sleep(some_time(round, 60));
    });
    let told = |server: &Server| {
        // What was processed by now shows in the alert of an event that is sent last.
        let mut client = server.client();
        let last = json!({"event_id": "last", "mark": "yes", "lane": "last"});
        client.bulk("/v2/events/bulk?source=ledger", &[last]);
        client.wait_for("SELECT count(*) FROM alerts WHERE title = 'Marked' AND event_ids[1] = 'last'", 1);
        let alerts =
            client.sql("SELECT title, alert_id FROM alerts WHERE event_ids[1] <> 'last' ORDER BY title, alert_id");
        let text = |row: &Value, name: &str| row[name].as_str().expect("a text").to_owned();
        alerts.iter().map(|row| (text(row, "title"), text(row, "alert_id"))).collect::<Vec<_>>()
    };
    let disturbed = told(&server);
    let mut rows =
        server.client().sql("SELECT event_id, n, mark, lane, time FROM security_events WHERE event_id <> 'last'");
    rows.sort_by_key(|row| row["time"].as_str().expect("a time").to_owned());
    let fresh = Server::start(&settings);
    for part in rows.chunks(AGAIN) {
        assert_eq!(fresh.client().bulk("/v2/events/bulk?source=ledger", part).json()["accepted"], part.len());
    }
    let undisturbed = told(&fresh);
    let many = disturbed.iter().filter(|(title, _)| title.starts_with("Many")).count();
    println!("{kills} kills: {} events, {} alerts, {many} of windows", rows.len(), disturbed.len());
    assert!(many >= 3, "windows were full: {disturbed:?}");
    assert_eq!(disturbed, undisturbed);
}

#[test]
fn a_hundred_kills_under_load_lose_and_double_nothing() {
    let kills = on_demand("TIDEGATE_KILLS", 100);
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("ledger.yml"), RULE).expect("a rule");
    let folder = rules.path().to_str().expect("a path");
    // Small bounds, so that rolls, commits and checkpoints happen in the middle of it; every match is an alert of its own.
    let settings = [
        ("RULES", folder),
        ("STARTER_PACK", "false"),
        ("SIGMA__SUPPRESS_S", "0"),
        ("SIGMA__ALERTS_PER_SECOND_MAX", "100000"),
        ("RUN__CHECKPOINT_INTERVAL_MS", "50"),
        ("DELIVERY__FLUSH_INTERVAL_MS", "200"),
        ("LOG_STORE__SEGMENT_BYTES_MAX", "262144"),
    ];
    let mut server = Server::start(&settings);
    let pace = Pace { workers: 3, events: 10, bytes: 0, until_refused: true };
    let ledger = killed_under_load(&mut server, &settings, (kills, pace), |round, _| {
        std::thread::sleep(some_time(round, 30));
    });
    let mut client = server.client();
    ledger.agree(&mut client);

    let marked = client.number("SELECT count(*) FROM security_events WHERE mark = 'yes'");
    client.wait_for("SELECT count(*) FROM alerts", marked);
    assert_eq!(client.number("SELECT count(DISTINCT alert_id) FROM alerts"), marked, "alerts are doubled");
    let unmatched = "SELECT count(*) FROM security_events e LEFT JOIN alerts a ON a.event_ids[1] = e.event_id \
                     WHERE e.mark = 'yes' AND a.alert_id IS NULL";
    assert_eq!(client.number(unmatched), 0);
    println!("{kills} kills: {} events acknowledged, {marked} alerts, none lost or doubled", ledger.acknowledged.len());
}
