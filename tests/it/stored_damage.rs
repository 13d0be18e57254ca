//! A stored file is damaged while the server runs: the query that meets it says so, and from then on what is left is served.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::server::Server;

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(parquet_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "parquet") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_file_that_is_damaged_under_a_running_server_is_set_aside_by_the_query_that_meets_it() {
    let cold = [("DELIVERY__FLUSH_INTERVAL_MS", "3600000"), ("STARTER_PACK", "false")];
    let mut server = Server::start(&cold);
    let event = |n: u64, hour: u64| {
        json!({"event_id": format!("e-{n:04}"), "@timestamp": format!("2026-11-20T{hour:02}:00:00Z"), "action": "read",
            "text": format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))})
    };
    // A file each: what is stored at a stop.
    for (ids, hour) in [(0..40, 10), (40..60, 12)] {
        let events: Vec<_> = ids.map(|n| event(n, hour)).collect();
        assert_eq!(server.client().bulk("/v2/events/bulk?source=app", &events).json()["accepted"], events.len());
        server.stop();
        server.run(&cold);
    }

    let store = server.data_dir().join("store");
    let files: Vec<_> =
        parquet_files(&store).into_iter().filter(|path| path.to_string_lossy().contains("security_events")).collect();
    assert!(files.len() > 1, "{files:?}");
    let mut bytes = std::fs::read(&files[0]).expect("a file");
    let middle = bytes.len() / 2;
    bytes[4..middle].iter_mut().for_each(|byte| *byte ^= 0xff);
    std::fs::write(&files[0], bytes).expect("written");

    let mut client = server.client();
    let question = "SELECT event_id, action, text FROM security_events ORDER BY event_id";
    let reply = client.send("POST", "/v2/sql", &[("content-type", "text/plain")], question.as_bytes());
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert_eq!((reply.status.as_u16(), reply.json()["error"]["code"].as_str()), (503, Some("store_damaged")), "{text}");
    assert!(!text.contains(".parquet"), "paths are for the operator: {text}");
    assert!(client.get("/metrics").status.is_success());

    // The next one is served with what is left, now and after a restart.
    for round in ["at once", "after a restart"] {
        let mut client = server.client();
        let left = client.sql(question).len();
        assert!(left == 40 || left == 20, "{round}: {left} rows");
        assert_eq!(client.number("SELECT count(*) FROM security_events"), left as i64, "{round}");
        let page = String::from_utf8(client.get("/metrics").body.to_vec()).expect("text");
        let counted = page.lines().any(|line| line == "tidegate_sinks_parquet_quarantined_files_total 1");
        assert_eq!(counted, round == "at once", "{round}");
        assert_eq!(client.get("/readyz").status.as_u16(), 200, "{round}: the rest works");
        server.stop();
        server.run(&cold);
    }
    assert!(!files[0].exists());
    assert_eq!(parquet_files(&store.join("quarantine")).len(), 1);
    assert!(server.lines().contains("a Parquet file is damaged and set aside"));
}
