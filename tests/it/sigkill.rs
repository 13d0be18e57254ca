//! SIGKILL at any moment under load: nothing acknowledged is lost, nothing is doubled, alerts are those of a quiet run.
//!
//! `TIDEGATE_KILLS=1000 cargo test -p tidegate --test it -- sigkill` does it more often.

use crate::ledger::{Pace, killed_under_load, some_time};
use crate::server::{Server, on_demand};

const RULE: &str = "\
title: Ledger marker
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1a01
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
level: high
";

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
