//! A node with the role `query`: SQL, the alert feed and rules over the API on what workers write, while one of them is killed. Needs
//! a Fluvio cluster (`TIDEGATE_TEST_FLUVIO`) and the PostgreSQL that `cargo xtask test` starts; without a cluster it says that it was
//! not run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::faulty_proxy::Mode;
use crate::fluvio_world::address;
use crate::roles::{TENANTS, World, agent, held, until};
use crate::server::{Caller, Server, on_demand};
use crate::tenants::key;
use crate::timescale::proxied;

/// Alerts after which a follower comes again, as after a cut.
const COMES_AGAIN: usize = 150;
/// Raised by each tenth event.
const ALONE: &str = "SELECT count(*) FROM alerts WHERE title = 'Marked alone'";
const COUNT: &str = "SELECT count(*) AS n, count(DISTINCT event_id) AS ids FROM security_events";

/// Follows alerts from the first one on, until `done` and nothing comes: the seq and the id of each, and how often it came again.
fn follow(url: &str, key: &str, done: &AtomicBool) -> (Vec<(u64, String)>, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut told, mut comes): (Vec<(u64, String)>, usize) = (Vec::new(), 0);
        loop {
            let after = told.last().map_or(-1, |(seq, _)| seq.cast_signed());
            let address = format!("{}/v2/alerts/stream?after={after}", url.replace("http://", "ws://"));
            let mut request = address.into_client_request().expect("a request");
            request.headers_mut().insert("authorization", format!("Bearer {key}").parse().expect("a value"));
            let stream = tokio::net::TcpStream::connect(url.trim_start_matches("http://")).await.expect("a connection");
            let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a handshake");
            comes += 1;
            let until = told.len() + COMES_AGAIN;
            while told.len() < until {
                match tokio::time::timeout(Duration::from_millis(500), socket.next()).await {
                    Ok(Some(Ok(Message::Text(text)))) => {
                        let frame: Value = serde_json::from_str(&text).expect("JSON");
                        let seq = frame["seq"].as_u64().unwrap_or_else(|| panic!("no alert: {frame}"));
                        let id = frame["alert"]["alert_id"].as_str().expect("an id").to_owned();
                        told.push((seq, id));
                    }
                    Ok(Some(Ok(_))) => {}
                    Ok(other) => panic!("the stream ended: {other:?}"),
                    Err(_) if done.load(Ordering::Relaxed) => return (told, comes),
                    Err(_) => {}
                }
            }
        }
    })
}

/// Asks on and on: no event is seen twice, and none that was seen is gone. How often it asked.
fn ask(url: &str, key: &str, done: &AtomicBool) -> usize {
    let (mut client, mut asked, mut seen) = (Caller::new(url, Some(key)), 0, 0);
    while !done.load(Ordering::Relaxed) {
        let rows = client.sql(COUNT);
        assert_eq!(rows[0]["n"], rows[0]["ids"], "an event is seen twice");
        let now = rows[0]["n"].as_u64().expect("a number");
        assert!(now >= seen, "{now} of {seen} events are seen");
        (asked, seen) = (asked + 1, now);
        std::thread::sleep(Duration::from_millis(50));
    }
    asked
}

/// The keys of a tenant.
struct Keys {
    ingest: String,
    read: String,
    admin: String,
}

#[test]
fn a_query_node_answers_and_tells_each_alert_once_while_a_worker_is_killed() {
    let suite = "a query node on what two workers write, one of which is killed";
    let Some(address) = address(suite) else { return };
    let world = World::new(&address, "query");
    let (proxy, by_proxy) = proxied();
    let of_query: Vec<(&str, &str)> = [world.of("query"), vec![("SINKS__TIMESCALE__URL", by_proxy.as_str())]].concat();
    let ingest = world.start("ingest");
    let keys: BTreeMap<&str, Keys> = TENANTS
        .into_iter()
        .map(|tenant| {
            let key = |role| key(&ingest, tenant, role);
            (tenant, Keys { ingest: key("ingest"), read: key("read"), admin: key("admin") })
        })
        .collect();
    // Before there are tables: it waits for them, and says so.
    let mut query = Server::start(&of_query);
    let text = [("content-type", "text/plain")];
    let asks = |server: &Server, sql: &str| {
        server.client_with(&keys["acme"].read).send("POST", "/v2/sql", &text, sql.as_bytes())
    };
    let told = asks(&query, "SELECT count(*) FROM alerts");
    assert_eq!((told.status.as_u16(), &told.json()["error"]["code"]), (503, &"history_unavailable".into()));
    let mut workers = [world.start("worker"), world.start("worker")];
    until("they share", || workers.iter().all(|worker| held(worker) == 2));
    until("the tables are there", || readyz(&query) == (200, json!({})));
    let asked = asks(&ingest, "SELECT 1");
    assert_eq!((asked.status.as_u16(), &asked.json()["error"]["code"]), (421, &"other_role".into()));

    let [stop, done]: [Arc<AtomicBool>; 2] = Default::default();
    let agents: Vec<_> = keys
        .iter()
        .map(|(tenant, keys)| {
            let (tenant, url, key, stop) = (*tenant, ingest.url.clone(), keys.ingest.clone(), stop.clone());
            std::thread::spawn(move || (tenant, agent(&url, &key, tenant, &stop)))
        })
        .collect();
    let followers: Vec<_> = keys
        .iter()
        .map(|(tenant, keys)| {
            let (tenant, url, key, done) = (*tenant, query.url.clone(), keys.read.clone(), done.clone());
            std::thread::spawn(move || (tenant, follow(&url, &key, &done)))
        })
        .collect();
    let (url, read, ended) = (query.url.clone(), keys["acme"].read.clone(), stop.clone());
    let asking = std::thread::spawn(move || ask(&url, &read, &ended));
    let mut taken = Vec::new();
    for round in 0..on_demand("TIDEGATE_WORKER_KILLS", 2) {
        std::thread::sleep(Duration::from_secs(3));
        let victim = (round % 2) as usize;
        workers[victim].kill();
        taken.push(until("the survivor has all partitions", || held(&workers[1 - victim]) == 4));
        world.run(&mut workers[victim], "worker");
        until("they share again", || workers.iter().all(|worker| held(worker) == 2));
    }
    stop.store(true, Ordering::Relaxed);
    let sent: BTreeMap<&str, u64> = agents
        .into_iter()
        .map(|agent| agent.join().expect("an agent"))
        .map(|(tenant, (sent, _))| (tenant, sent))
        .collect();
    let (asked, ended) = (asking.join().expect("who asks"), Instant::now());
    for (tenant, sent) in &sent {
        let mut client = query.client_with(&keys[tenant].read);
        until("all events are seen", || client.sql(COUNT)[0]["n"].as_u64() >= Some(*sent));
        let rows = client.sql(COUNT);
        assert_eq!(rows[0], json!({"n": sent, "ids": sent}), "{tenant}");
        until("all alerts are seen", || client.number(ALONE) >= sent.div_ceil(10).cast_signed());
    }
    let all_seen = ended.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    done.store(true, Ordering::Relaxed);
    let (mut alerts, mut came) = (0, 0);
    for follower in followers {
        let (tenant, (told, comes)) = follower.join().expect("a follower");
        assert!(told.is_sorted_by(|left, right| left.0 < right.0), "{tenant}: a seq is told twice, or out of order");
        let stored = world.column(&format!(
            "SELECT seq || ' ' || alert_id FROM SCHEMA.alerts WHERE org_id = '{tenant}' ORDER BY seq"
        ));
        let told: Vec<String> = told.iter().map(|(seq, id)| format!("{seq} {id}")).collect();
        assert!(told == stored, "{tenant}: {} alerts were told, {} are stored", told.len(), stored.len());
        (alerts, came) = (alerts + told.len(), came + comes);
    }
    println!(
        "{} events acknowledged and seen through the query node {all_seen:?} after the end; {asked} questions meanwhile; {alerts} alerts \
         told once each over {came} connections; taken over after {taken:?}",
        sent.values().sum::<u64>()
    );
    shows_partitions(&workers);
    rules_and_feedback(&ingest, &query, &keys["acme"]);
    proxy.set(Mode::Refuse);
    until("told", || readyz(&query).1.to_string().contains("timescale:history"));
    until("not ready", || readyz(&query).0 == 503);
    proxy.set(Mode::Pass);
    until("ready again", || readyz(&query) == (200, json!({})));
    query.stop();
}

fn readyz(server: &Server) -> (u16, Value) {
    let reply = server.client().get("/readyz");
    (reply.status.as_u16(), reply.json()["details"].clone())
}

/// The workers tell of each partition.
fn shows_partitions(workers: &[Server; 2]) {
    let value = |worker: &Server, metric: &str| {
        let page = String::from_utf8_lossy(&worker.client().get("/metrics").body).into_owned();
        let line = page.lines().find_map(|line| line.strip_prefix(metric).map(str::to_owned));
        line.unwrap_or_else(|| panic!("{metric}: {page}")).trim().parse::<f64>().expect("a number")
    };
    for partition in 0..4 {
        let of = |name: &str| -> Vec<f64> {
            workers.iter().map(|worker| value(worker, &format!("{name}{{partition=\"{partition}\"}}"))).collect()
        };
        assert_eq!(of("tidegate_worker_partition_held").iter().sum::<f64>(), 1.0, "{partition}");
        for worker in workers {
            for stage in ["rules", "events", "alerts"] {
                let lag =
                    format!("tidegate_worker_partition_lag_records{{partition=\"{partition}\",stage=\"{stage}\"}}");
                until("nothing is behind", || value(worker, &lag) == 0.0);
            }
        }
    }
}

/// What is edited at the query node is in force at the workers, and seen at the query node.
fn rules_and_feedback(ingest: &Server, query: &Server, keys: &Keys) {
    let rule = "title: By API\nid: 11111111-2222-4333-8444-000000000009\nlogsource: {product: custom}\n\
                tidegate: {suppress: 0}\ndetection: {sel: {action: special}, condition: sel}\nlevel: high\n";
    let mut admin = query.client_with(&keys.admin);
    let yaml = [("content-type", "application/yaml")];
    let made = admin.send("POST", "/v2/threat-detection/rules", &yaml, rule.as_bytes());
    assert_eq!(made.status.as_u16(), 201, "{}", String::from_utf8_lossy(&made.body));
    let path = "/v2/threat-detection/rules/11111111-2222-4333-8444-000000000009";
    assert_eq!(admin.get(path).json()["rule"]["title"], "By API");
    let mut agent = ingest.client_with(&keys.ingest);
    let by_api = "SELECT count(*) FROM alerts WHERE title = 'By API'";
    let mut sent = 0;
    // In force with the next batch after a worker has read it.
    until("the rule is in force", || {
        let event =
            json!({"event_id": format!("special-{sent}"), "action": "special", "@timestamp": "2026-11-20T10:30:00Z"});
        sent += 1;
        assert_eq!(agent.bulk("/v2/events/bulk?source=custom", &[event]).status.as_u16(), 200);
        admin.number(by_api) > 0
    });
    let alerts = admin.get("/v2/alerts?rule=By%20API&limit=1").json();
    let alert = alerts["alerts"][0]["alert_id"].as_str().expect("an id").to_owned();
    let feedback = format!("/v2/alerts/{alert}/feedback");
    let said = json!({"verdict": "false_positive", "comment": "a test"}).to_string();
    assert_eq!(admin.send("POST", &feedback, &[], said.as_bytes()).status.as_u16(), 201);
    assert_eq!(admin.get(&feedback).json()["feedback"]["verdict"], "false_positive");
    assert_eq!(admin.send("DELETE", path, &[], b"").status.as_u16(), 204);
    // The changes are read from the topic and from the database, each once.
    let changes = "SELECT count(*) FROM changes WHERE kind IN ('rule', 'alert_feedback')";
    assert_eq!(admin.number(changes), 3);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(admin.number(changes), 3);
}
