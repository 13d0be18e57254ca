//! Everything at once under a limit of memory: load, bombs, slow clients, followers that do not read, and questions. The
//! process lives, stays in its bounds, and answers for each event.
//!
//! `TIDEGATE_SIEGE_S=1800 cargo test --release --test it siege -- --nocapture` besieges for half an hour.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::ledger::{Load, Pace};
use crate::server::{Caller, Server, on_demand};
use crate::slow_clients::{KINDS, misbehave};

const MEMORY_MAX: u64 = 1 << 30;

const RULE: &str = "\
title: Marked
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1a03
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
level: high
";

/// A limit that the operating system keeps, where it lets us set one.
struct Limit(Option<PathBuf>);

impl Limit {
    fn of(server: &Server) -> Self {
        let group = PathBuf::from(format!("/sys/fs/cgroup/memory/tidegate-siege-{}", server.pid()));
        let set = std::fs::create_dir(&group)
            .and_then(|()| std::fs::write(group.join("memory.limit_in_bytes"), MEMORY_MAX.to_string()))
            .and_then(|()| std::fs::write(group.join("cgroup.procs"), server.pid().to_string()));
        match set {
            Ok(()) => Self(Some(group)),
            Err(error) => {
                println!("no limit could be set ({error}): the memory is only watched");
                let _ = std::fs::remove_dir(&group);
                Self(None)
            }
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// Followers of the feed that do not read, and clients that do not behave: 60 new ones a second.
async fn besiege(url: &str, stop: &AtomicBool) {
    let address: std::net::SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    let mut followers = Vec::new();
    let follow = KINDS.last().expect("those who follow").0;
    for at in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if followers.len() < 500 {
            followers.push(misbehave(address, follow, "").await);
        }
        let (first, drip) = KINDS[at % (KINDS.len() - 1)];
        tokio::spawn(async move {
            let stream = misbehave(address, first, drip).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            if let Some(mut stream) = stream {
                let _ = stream.shutdown().await;
            }
        });
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}

/// Bombs and questions, one after the other.
fn trouble(url: &str, stop: &AtomicBool) -> u64 {
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    std::io::copy(&mut std::io::Read::take(std::io::repeat(b' '), 1 << 30), &mut bomb).expect("memory");
    let bomb = bomb.finish().expect("memory");
    let (mut client, mut answered) = (Caller::new(url, None), 0);
    while !stop.load(Ordering::Relaxed) {
        let headers = [("content-type", "application/x-ndjson"), ("content-encoding", "zstd")];
        let refused = client.try_send("POST", "/v2/events/bulk", &headers, &bomb);
        assert!(refused.is_none_or(|reply| matches!(reply.status.as_u16(), 413 | 429)), "a bomb was taken");
        for statement in [
            "SELECT mark, count(*), max(n) FROM security_events GROUP BY mark",
            "SELECT a.n, b.n FROM security_events a CROSS JOIN security_events b ORDER BY a.n + b.n LIMIT 5",
            "SELECT sum(length(repeat(padding, 1000))) FROM security_events",
        ] {
            let asked = client.try_send("POST", "/v2/sql", &[("content-type", "text/plain")], statement.as_bytes());
            answered += u64::from(asked.is_some());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    answered
}

#[test]
fn a_siege_under_a_limit_of_memory_is_outlived() {
    let seconds = on_demand("TIDEGATE_SIEGE_S", 20);
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let settings = [
        ("RULES", rules.path().to_str().expect("a path")),
        ("STARTER_PACK", "false"),
        ("SIGMA__SUPPRESS_S", "0"),
        ("FEED__TENANT_SUBSCRIBERS_MAX", "600"),
        ("QUERY__QUERY_MS_MAX", "3000"),
        // What a team with this much memory would set.
        ("INGEST__INFLIGHT_BYTES_MAX", "134217728"),
        ("QUERY__MEMORY_BYTES_MAX", "134217728"),
        ("QUERY__QUERY_MEMORY_BYTES_MAX", "67108864"),
        ("QUERY__RSS_GROWTH_BYTES_MAX", "268435456"),
    ];
    let server = Server::start(&settings);
    let _limit = Limit::of(&server);
    let open_before = server.open_files();
    let stop = AtomicBool::new(false);
    let (mut most, mut asked) = (0, 0);
    let started = Instant::now();
    let ledger = std::thread::scope(|scope| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (url, ending) = (&server.url, &stop);
        scope.spawn(move || runtime.block_on(besiege(url, ending)));
        let troubled = scope.spawn(|| trouble(&server.url, &stop));
        let load = Load::start(&server.url, "siege", Pace { workers: 4, events: 50, bytes: 300, until_refused: false });
        while started.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(100));
            most = most.max(server.memory());
        }
        let ledger = load.stop();
        stop.store(true, Ordering::Relaxed);
        asked = troubled.join().expect("who asks");
        ledger
    });
    println!(
        "{:.0?} of siege: {} events acknowledged, {} answers 200, {} 429, {} 503, {} broken; {asked} questions answered; memory \
         at most {} MiB, files {} (before {open_before})",
        started.elapsed(),
        ledger.acknowledged.len(),
        ledger.count(200),
        ledger.count(429),
        ledger.count(503),
        ledger.broken,
        most >> 20,
        server.open_files(),
    );
    assert!(ledger.count(200) as u64 > seconds, "{} requests were taken", ledger.count(200));
    assert_eq!(ledger.refusals_without_retry, 0);
    assert!(most < MEMORY_MAX / 100 * 85, "{most} bytes");
    let calm = Instant::now();
    while server.open_files() > open_before + 16 {
        assert!(calm.elapsed() < Duration::from_secs(40), "{} files are open", server.open_files());
        std::thread::sleep(Duration::from_millis(200));
    }
    ledger.agree(&mut server.client());
}
