//! A wall clock that jumps by a day, forward and back: nothing is lost or reordered, alerts come, those of windows too, and health
//! tells the truth.

use serde_json::json;

use crate::faults::Faults;
use crate::server::Server;

const DAY_S: i64 = 86_400;

const RULE: &str = "\
title: Marked
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1a02
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
level: high
---
title: Step
id: 3b8f0a5c-9a0e-4c39-8d53-0f4c1a6e2b7d
name: step
logsource: {product: ledger}
detection: {step: {step: 'yes'}, condition: step}
---
title: Three steps
id: 5e1d7c44-2f6b-4b0a-9c1e-7a3d9b8e6f10
correlation: {type: event_count, rules: [step], group-by: [round], timespan: 1m, condition: {gte: 3}}
level: high
";

const MARKED: &str = "rule_id = '7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1a02'";
const THREE: &str = "rule_id = '5e1d7c44-2f6b-4b0a-9c1e-7a3d9b8e6f10'";

#[test]
fn a_clock_that_jumps_by_a_day_loses_and_reorders_nothing() {
    let faults = Faults::new();
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let settings = [("RULES", rules.path().to_str().expect("a path")), ("SIGMA__SUPPRESS_S", "0")];
    let mut server = Server::start_under(&faults, &[], &settings);
    let (mut sent, mut stepped) = (Vec::new(), Vec::new());
    for (round, offset) in [0, DAY_S, -DAY_S, 0, -DAY_S, DAY_S].into_iter().enumerate() {
        faults.clock(offset);
        if round == 4 {
            // A restart while the clock is wrong.
            server.stop();
            server.run(&settings);
        }
        let mut client = server.client();
        for part in 0..5 {
            // Events without a time of their own take the server's.
            let ids: Vec<_> = (0..20).map(|at| format!("{round}-{part}-{at:02}")).collect();
            let mut events: Vec<_> = ids.iter().map(|id| json!({"event_id": id, "mark": "yes"})).collect();
            // One step in each of three bulks: whatever the clock says, they are within a minute.
            if part < 3 {
                events[0]["step"] = "yes".into();
                events[0]["round"] = format!("r{round}").into();
            }
            assert_eq!(client.bulk("/v2/events/bulk?source=ledger", &events).status.as_u16(), 200);
            sent.extend(ids);
        }
        stepped.push(format!("round=r{round}"));
        // A jump must not make a stage look stuck that is not.
        assert_eq!(client.get("/readyz").status.as_u16(), 200, "{round}: {:?}", client.get("/readyz").body);
    }
    let mut client = server.client();
    assert_eq!(client.number("SELECT count(*) FROM security_events"), sent.len() as i64);
    client.wait_for(&format!("SELECT count(*) FROM alerts WHERE {MARKED}"), sent.len() as i64);
    // The feed's order is the log's order, whatever the clock said.
    let alerts = client.sql(&format!("SELECT event_ids[1] AS id FROM alerts WHERE {MARKED} ORDER BY seq"));
    let order: Vec<_> = alerts.iter().map(|alert| alert["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(order, sent);
    // No window is taken for one that is long over.
    let alerts = client.sql(&format!("SELECT group_key FROM alerts WHERE {THREE} ORDER BY seq"));
    let groups: Vec<_> = alerts.iter().map(|alert| alert["group_key"].as_str().expect("a group").to_owned()).collect();
    assert_eq!(groups, stepped);
    // The same answers after a restart with the clock right.
    faults.clock(0);
    server.stop();
    server.run(&settings);
    assert_eq!(server.client().number("SELECT count(DISTINCT event_id) FROM security_events"), sent.len() as i64);
}
