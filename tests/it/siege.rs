//! Everything at once under a limit of memory: load, bombs, slow clients, followers that do not read, and questions. The
//! process lives, stays in its bounds, and answers for each event.
//!
//! `TIDEGATE_SIEGE_S=1800` besieges for half an hour: docs/reliability.md, "In a gibibyte", has the command.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::ledger::{Load, Pace};
use crate::server::{Caller, Server, on_demand};
use crate::slow_clients::{KINDS, misbehave};

const MEMORY_MAX: u64 = 1 << 30;

/// What docs/reliability.md says a team with this much memory would set: the budgets that may be full at the same time.
const FOR_ONE_GIB: [(&str, &str); 9] = [
    ("INGEST__INFLIGHT_BYTES_MAX", "100663296"),
    ("QUERY__MEMORY_BYTES_MAX", "100663296"),
    ("QUERY__QUERY_MEMORY_BYTES_MAX", "67108864"),
    ("QUERY__RSS_GROWTH_BYTES_MAX", "134217728"),
    ("QUERY__METADATA_CACHE_BYTES_MAX", "16777216"),
    ("LOG_STORE__TAIL_BYTES_MAX", "33554432"),
    ("PARQUET__BUFFER_BYTES_MAX", "50331648"),
    ("PARQUET__COMPACT_BYTES_MAX", "16777216"),
    ("FEED__CACHE_BYTES_MAX", "16777216"),
];

const RULE: &str = "\
title: Marked
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1a03
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
level: high
";

/// A limit that the operating system keeps, where it lets us set one.
struct Limit(Option<PathBuf>);

/// A group of the operating system's with the server in it.
fn group_of(server: &Server) -> Option<PathBuf> {
    let group = PathBuf::from(format!("/sys/fs/cgroup/memory/tidegate-siege-{}", server.pid()));
    let set = std::fs::create_dir(&group)
        .and_then(|()| std::fs::write(group.join("memory.limit_in_bytes"), MEMORY_MAX.to_string()))
        .and_then(|()| std::fs::write(group.join("cgroup.procs"), server.pid().to_string()));
    if let Err(error) = &set {
        println!("no limit could be set ({error}): the memory is only watched");
        let _ = std::fs::remove_dir(&group);
    }
    set.is_ok().then_some(group)
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// The server gives followers up that do not read, so each is replaced after this long: there are always as many.
const FOLLOWED: Duration = Duration::from_secs(12);
/// Followers at once.
const FOLLOWERS: usize = 500;

/// Followers of the feed that do not read, and clients that do not behave: 60 new ones a second.
async fn besiege(url: &str, stop: &AtomicBool) {
    let address: std::net::SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    let mut followers = VecDeque::new();
    let follow = KINDS.last().expect("those who follow").0;
    for at in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        while followers.front().is_some_and(|(since, _): &(Instant, _)| since.elapsed() > FOLLOWED) {
            followers.pop_front();
        }
        if followers.len() < FOLLOWERS
            && let Some(stream) = misbehave(address, follow, b"").await
        {
            followers.push_back((Instant::now(), stream));
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

/// Bombs and questions, one after the other; how many of each were answered.
fn trouble(url: &str, bomb: &[u8], stop: &AtomicBool) -> (u64, u64) {
    let (mut client, mut bombs, mut questions) = (Caller::new(url, None), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let headers = [("content-type", "application/x-ndjson"), ("content-encoding", "zstd")];
        let refused = client.try_send("POST", "/v2/events/bulk", &headers, bomb);
        bombs += u64::from(refused.is_some());
        assert!(refused.is_none_or(|reply| matches!(reply.status.as_u16(), 413 | 429)), "a bomb was taken");
        for statement in [
            "SELECT mark, count(*), max(n) FROM security_events GROUP BY mark",
            "SELECT a.n, b.n FROM security_events a CROSS JOIN security_events b ORDER BY a.n + b.n LIMIT 5",
            "SELECT sum(length(repeat(padding, 1000))) FROM security_events",
        ] {
            let asked = client.try_send("POST", "/v2/sql", &[("content-type", "text/plain")], statement.as_bytes());
            questions += u64::from(asked.is_some());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    (bombs, questions)
}

/// How many follow the feed, as the server counts them.
fn followers(client: &mut Caller) -> Option<u64> {
    let page = client.try_send("GET", "/metrics", &[], b"")?;
    let page = String::from_utf8(page.body.to_vec()).ok()?;
    let line = page.lines().find_map(|line| line.strip_prefix("tidegate_sinks_feed_subscribers "))?;
    line.trim().parse().ok()
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
    ]
    .iter()
    .chain(&FOR_ONE_GIB)
    .copied()
    .collect::<Vec<_>>();
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    std::io::copy(&mut std::io::Read::take(std::io::repeat(b' '), 1 << 30), &mut bomb).expect("memory");
    let bomb = bomb.finish().expect("memory");
    // Removed after the server has ended.
    let mut limit = Limit(None);
    let server = Server::start(&settings);
    limit.0 = group_of(&server);
    let open_before = server.open_files();
    let stop = AtomicBool::new(false);
    let (mut most, mut most_followers) = (0, 0);
    let mut looks = server.client();
    let started = Instant::now();
    let (ledger, (bombs, questions)) = std::thread::scope(|scope| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (url, ending) = (&server.url, &stop);
        scope.spawn(move || runtime.block_on(besiege(url, ending)));
        let troubled = scope.spawn(|| trouble(&server.url, &bomb, &stop));
        let load = Load::start(&server.url, "siege", Pace { workers: 4, events: 50, bytes: 300, until_refused: false });
        while started.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(100));
            most = most.max(server.memory());
            most_followers = most_followers.max(followers(&mut looks).unwrap_or_default());
        }
        let ledger = load.stop();
        stop.store(true, Ordering::Relaxed);
        (ledger, troubled.join().expect("who asks"))
    });
    println!(
        "{:.0?} of siege: {} events acknowledged, {} answers 200, {} 429, {} 503, {} broken; {bombs} bombs and {questions} questions \
         answered; at most {most_followers} followers, memory at most {} MiB, files {} (before {open_before})",
        started.elapsed(),
        ledger.acknowledged.len(),
        ledger.count(200),
        ledger.count(429),
        ledger.count(503),
        ledger.unanswered(),
        most >> 20,
        server.open_files(),
    );
    assert!(ledger.count(200) as u64 > seconds, "{} requests were taken", ledger.count(200));
    assert!(bombs > 0 && questions > 0, "{bombs} bombs and {questions} questions were answered");
    // On a machine that does other things too they come more slowly.
    let least = if seconds > 60 { FOLLOWERS * 3 / 4 } else { FOLLOWERS / 5 };
    assert!(most_followers as usize > least, "only {most_followers} followed");
    assert_eq!(ledger.refusals_without_retry, 0);
    assert!(most < MEMORY_MAX / 100 * 85, "{most} bytes");
    let calm = Instant::now();
    while server.open_files() > open_before + 16 {
        assert!(calm.elapsed() < Duration::from_secs(40), "{} files are open", server.open_files());
        std::thread::sleep(Duration::from_millis(200));
    }
    ledger.agree_in_parts(&mut server.client());
}
