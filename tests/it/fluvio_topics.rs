//! A server with `[sinks.fluvio]`: a cluster that is away harms nothing else; a server that is killed loses nothing on the way to one.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_events::Dataset;

use crate::fluvio_world::{Cluster, look, until};
use crate::server::{PATIENCE, Server, event, on_demand};

const RULE: &str = "title: Every marked event\nid: 11111111-2222-4333-8444-000000000001\nlogsource: {product: custom}\n\
                    tidegate: {suppress: 0}\ndetection: {sel: {action: marked}, condition: sel}\nlevel: high\n";

/// Events of which the first is an alert.
fn marked(from: u64, to: u64) -> Vec<Value> {
    let action = |at| if at == from { "marked" } else { "other" };
    (from..to).map(|at| event(&format!("k-{at}"), action(at))).collect()
}

fn detail(server: &Server, stage: &str) -> String {
    server.client().get("/readyz").json()["details"][stage].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_cluster_that_is_away_or_hangs_harms_nothing_else_and_leaks_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let hanging = listener.local_addr().expect("an address");
    for (address, said) in
        [("127.0.0.1:9".to_owned(), "Fluvio at 127.0.0.1:9"), (hanging.to_string(), "no answer in 100 ms")]
    {
        let settings = [
            ("SINKS__FLUVIO__ADDRESS", address.as_str()),
            ("SINKS__FLUVIO__CONNECT_MS_MAX", "100"),
            ("DELIVERY__RETRY_MS_MIN", "10"),
            ("DELIVERY__RETRY_MS_MAX", "20"),
        ];
        let server = Server::start(&settings);
        let accepted = server.client().bulk("/v2/events/bulk?source=custom", &marked(0, 50)).json();
        assert_eq!(accepted["accepted"], 50, "{accepted}");
        until("the stage says so", PATIENCE, || detail(&server, "fluvio:ingest").contains(said));
        assert_eq!(server.client().get("/readyz").status.as_u16(), 200, "what is degraded is not stuck");
        server.client().wait_for("SELECT count(*) FROM security_events", 50);
        let before = server.open_files();
        std::thread::sleep(Duration::from_secs(3));
        assert!(server.open_files() <= before + 8, "{before}, then {}", server.open_files());
    }
}

#[test]
fn a_server_killed_while_it_delivers_loses_nothing_in_fluvio() {
    let Some(cluster) = Cluster::find("a server that is killed while it delivers to Fluvio") else { return };
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let config = cluster.config();
    let settings = [
        ("SINKS__FLUVIO__ADDRESS", config.address.as_str()),
        ("SINKS__FLUVIO__PREFIX", config.prefix.as_str()),
        ("DELIVERY__RETRY_MS_MAX", "500"),
        ("RULES", rules.path().to_str().expect("a path")),
    ];
    let mut server = Server::start(&settings);
    let (mut sent, mut alerts) = (0, 0);
    for kill in 0..on_demand("TIDEGATE_FLUVIO_KILLS", 6) {
        for _ in 0..10 {
            let accepted = server.client().bulk("/v2/events/bulk?source=custom", &marked(sent, sent + 300)).json();
            assert_eq!(accepted["accepted"], 300, "{accepted}");
            (sent, alerts) = (sent + 300, alerts + 1);
        }
        // Somewhere in what is delivered.
        std::thread::sleep(Duration::from_millis(kill * 17 % 60));
        server.kill();
        server.run(&settings);
    }
    server.client().wait_for("SELECT count(*) FROM alerts", alerts);
    let number = |id: &str| id.trim_start_matches("k-").parse().expect("a number");
    let found = |dataset| cluster.consume(dataset, Some(32 << 20));
    let started = Instant::now();
    until("all are there", PATIENCE, || look(&found(Dataset::SecurityEvents), number).distinct == sent);
    let seen = look(&found(Dataset::SecurityEvents), number);
    eprintln!("{seen:?} after {:?}", started.elapsed());
    assert_eq!(seen.early, 0, "the cluster was well: {seen:?}");
    until("all alerts are there", PATIENCE, || {
        let mut ids: Vec<String> = found(Dataset::Alerts).into_iter().map(|alert| alert.id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len() as i64 == alerts
    });
}
