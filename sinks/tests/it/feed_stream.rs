//! The alert feed over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_events::{Dataset, Level};
use tidegate_pipeline::LogReader;
use tidegate_sinks::feed::FeedConfig;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::feed_door::{Door, read_until};

const LEVELS: [Level; 4] = [Level::Low, Level::Medium, Level::High, Level::Critical];

#[tokio::test]
async fn alerts_come_in_order_to_their_tenant_only() {
    let door = Door::open(FeedConfig::default()).await;
    door.raise(&[("acme", Level::High)]).await;
    let mut acme = door.follow("").await;
    let mut umbrella = door.follow_as("umbrella", "", &[]).await.expect("a handshake");
    let mut other = door.follow_as("nobody", "?after=-1", &[]).await.expect("a handshake");
    door.subscribers(3).await;
    door.raise(&[("acme", Level::High), ("umbrella", Level::Low), ("acme", Level::Low)]).await;
    door.raise(&[("umbrella", Level::Critical)]).await;
    let frame = acme.frame().await;
    assert_eq!(frame["seq"], 1);
    assert!(frame["alert"]["org_id"].is_null(), "a tenant knows who it is: {frame}");
    assert_eq!(frame["alert"]["tags"][0], "attack.t1078.004");
    assert_eq!(frame["alert"]["seq"], 1);
    assert_eq!(acme.seqs(1).await, [3]);
    assert_eq!(umbrella.seqs(2).await, [2, 4]);
    acme.silent().await;
    umbrella.silent().await;
    other.silent().await;
}

#[tokio::test]
async fn a_follower_resumes_without_gap_or_repeat_across_history_and_log() {
    let config = FeedConfig { backfill_rows_max: 3, cache_bytes_max: 20_000, ..FeedConfig::default() };
    let door = Door::open(config).await;
    for at in 0..20u64 {
        // Every fifth batch is of something else, and every other alert of another tenant.
        if at % 5 == 4 {
            let row = RecordBatch::new_empty(Dataset::DeadLetters.core_schema());
            let nulls =
                row.columns().iter().map(|column| arrow::array::new_null_array(column.data_type(), 1)).collect();
            let row = RecordBatch::try_new(row.schema(), nulls).expect("a batch");
            door.append(Dataset::DeadLetters, row).await;
        } else {
            door.raise(&[("acme", Level::High), ("umbrella", Level::High)]).await;
        }
    }
    let mut whole = door.follow("?after=-1").await;
    let all = whole.seqs(16).await;
    assert!(all.is_sorted_by(|left, right| left < right), "{all:?}");
    door.forget(18);
    assert!(door.log.bounds().first > 9, "{:?}", door.log.bounds());
    let next = door.log.bounds().next;
    for stored_twice in [false, true] {
        if stored_twice {
            door.store_twice();
        }
        for after in -1..next as i64 {
            let mut follower = door.follow(&format!("?after={after}")).await;
            let rest: Vec<u64> = all.iter().copied().filter(|seq| *seq as i64 > after).collect();
            assert_eq!(follower.seqs(rest.len()).await, rest, "after {after}, {stored_twice}");
        }
    }
    assert!(door.asked.lock().len() > 10, "history was asked");
    assert!(door.asked.lock().iter().all(|stretch| &*stretch.org_id == "acme"));
    let mut live = door.follow(&format!("?after={}", all[5])).await;
    let first = door.raise(&[("umbrella", Level::High), ("acme", Level::Low)]).await;
    let mut rest = all[6..].to_vec();
    rest.push(first + 1);
    assert_eq!(live.seqs(rest.len()).await, rest, "and goes on with what comes");
}

#[tokio::test]
async fn filters_hold_for_history_and_log_alike() {
    let door = Door::open(FeedConfig::default()).await;
    let alerts: Vec<_> = LEVELS.iter().map(|level| ("acme", *level)).collect();
    door.raise(&alerts).await;
    door.forget(4);
    assert_eq!(door.log.bounds().first, 4);
    door.raise(&alerts).await;
    let cases: [(&str, &[u64]); 8] = [
        ("level=high", &[2, 3, 6, 7]),
        ("level=critical", &[3, 7]),
        ("rule=rule-medium", &[1, 5]),
        ("rule=Root+login&level=medium", &[1, 2, 3, 5, 6, 7]),
        ("tag=attack.t1078", &[0, 1, 2, 3, 4, 5, 6, 7]),
        ("entity=account&level=critical", &[3, 7]),
        ("entity=user%3Dkim&rule=rule-low", &[0, 4]),
        ("entity=nobody", &[]),
    ];
    for (filter, seqs) in cases {
        let mut follower = door.follow(&format!("?after=-1&{filter}")).await;
        assert_eq!(follower.seqs(seqs.len()).await, seqs, "{filter}");
        follower.silent().await;
    }
}

#[tokio::test]
async fn a_client_may_change_its_filter_and_is_told_when_it_cannot() {
    let door = Door::open(FeedConfig::default()).await;
    let mut follower = door.follow("?level=critical").await;
    follower.say(r#"{"type":"filter","level":"high"}"#).await;
    let answer = follower.frame().await;
    assert_eq!((&answer["type"], &answer["filter"]["level"]), (&"filter".into(), &"high".into()));
    for (wrong, code) in [
        (r#"{"type":"filter","level":"loud"}"#, "invalid_filter"),
        (r#"{"type":"filter","colour":"red"}"#, "invalid_message"),
        (r#"{"type":"sql"}"#, "invalid_message"),
        ("hello", "invalid_message"),
    ] {
        follower.say(wrong).await;
        let answer = follower.frame().await;
        assert_eq!((&answer["type"], &answer["code"]), (&"error".into(), &code.into()), "{wrong}");
    }
    door.raise(&[("acme", Level::Medium), ("acme", Level::High)]).await;
    assert_eq!(follower.seqs(1).await, [1], "the last good filter holds");
}

#[tokio::test]
async fn handshakes_are_checked_before_the_upgrade() {
    let config = FeedConfig { origins: vec!["https://soc.example".into()], ..FeedConfig::default() };
    let door = Door::open(config).await;
    let own = format!("http://{}", door.at);
    for origin in [own.as_str(), "https://soc.example"] {
        assert!(door.follow_as("acme", "", &[("origin", origin)]).await.is_ok(), "{origin}");
    }
    for origin in ["https://evil.example", "null", "https://soc.example:444", "http://127.0.0.1"] {
        let refused = door.follow_as("acme", "", &[("origin", origin)]).await;
        assert_eq!(refused.err(), Some(403), "{origin}");
    }
    assert_eq!(door.follow_as("acme", "?token=tg_x", &[]).await.err(), Some(400));
    assert_eq!(door.follow_as("acme", "?after=5", &[]).await.err(), Some(400), "there is no such seq");
    let offered = [("sec-websocket-protocol", "tidegate.alerts, tidegate.bearer.tg_x")];
    let follower = door.follow_as("acme", "", &offered).await.expect("a handshake");
    assert_eq!(follower.protocol.as_deref(), Some("tidegate.alerts"), "and the key is not sent back");
    let mut plain = door.raw("GET /v2/alerts/stream HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = read_until(&mut plain, "request_id").await;
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("sec-websocket-version: 13"), "{answer}");
}

#[tokio::test]
async fn what_clients_send_is_bounded() {
    let door =
        Door::open(FeedConfig { message_bytes_max: 1000, messages_per_10s_max: 5, ..FeedConfig::default() }).await;
    let mut large = door.follow("").await;
    large.say(&" ".repeat(1001)).await;
    assert_eq!(large.closed().await, Some(1009));
    let mut eager = door.follow("").await;
    for _ in 0..6 {
        let _ = futures::SinkExt::send(&mut eager.socket, Message::Text("{}".into())).await;
    }
    assert_eq!(eager.closed().await, Some(1008));
    let mut pinging = door.follow("").await;
    for _ in 0..6 {
        let _ = futures::SinkExt::send(&mut pinging.socket, Message::Ping(Default::default())).await;
    }
    assert_eq!(pinging.closed().await, Some(1008), "pings count too");
    let mut binary = door.follow("").await;
    let _ = futures::SinkExt::send(&mut binary.socket, Message::Binary(vec![1].into())).await;
    assert_eq!(binary.closed().await, Some(1003));
    let mut unmasked = door.raw(&upgrade("")).await;
    read_until(&mut unmasked, "\r\n\r\n").await;
    unmasked.write_all(b"\x81\x02hi").await.expect("writes");
    let answer = read_until(&mut unmasked, "never").await;
    assert!(answer.contains("RFC 6455"), "closed with a reason: {answer:?}");
    door.subscribers(0).await;
}

fn upgrade(query: &str) -> String {
    format!(
        "GET /v2/alerts/stream{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

#[tokio::test]
async fn subscribers_are_bounded_for_all_and_for_each_tenant() {
    let config = FeedConfig { subscribers_max: 3, tenant_subscribers_max: 2, ..FeedConfig::default() };
    let door = Door::open(config).await;
    let first = door.follow("").await;
    let _second = door.follow("").await;
    assert_eq!(door.follow_as("acme", "", &[]).await.err(), Some(503), "the tenant's bound");
    let _third = door.follow_as("umbrella", "", &[]).await.expect("another tenant has room");
    assert_eq!(door.follow_as("initech", "", &[]).await.err(), Some(503), "the bound of all");
    drop(first);
    door.subscribers(2).await;
    assert!(door.follow_as("initech", "", &[]).await.is_ok(), "a place is free again");
}

#[tokio::test]
async fn silent_peers_are_reaped() {
    let door = Door::open(FeedConfig { ping_ms: 100, ..FeedConfig::default() }).await;
    let mut dead = door.raw(&upgrade("")).await;
    read_until(&mut dead, "\r\n\r\n").await;
    let mut alive = door.follow("").await;
    door.subscribers(2).await;
    let started = Instant::now();
    // Reading answers pings.
    let reading = tokio::spawn(async move {
        alive.silent().await;
        alive.silent().await;
        alive.silent().await;
        alive
    });
    door.subscribers(1).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    reading.await.expect("the one that answers stays");
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_told_of_its_gap_when_it_reads_again() {
    let config = FeedConfig { lag_rows_max: 2_000, write_ms_max: 60_000, ..FeedConfig::default() };
    let door = Door::open(config).await;
    let mut slow = door.follow("").await;
    door.subscribers(1).await;
    let batch: Vec<_> = (0..500).map(|at| (if at % 2 == 0 { "acme" } else { "umbrella" }, Level::High)).collect();
    // More than the buffers of the sockets hold.
    for _ in 0..80 {
        door.raise(&batch).await;
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (mut seen, mut missed, mut gaps) = (Vec::new(), 0, Vec::new());
    while seen.len() as u64 + missed < 80 * 250 {
        let frame = slow.frame().await;
        match frame["seq"].as_u64() {
            Some(seq) => seen.push(seq),
            None => {
                assert_eq!(frame["type"], "gap");
                let resume = frame["resume_after"].as_i64().expect("a seq");
                assert!(seen.iter().all(|seq| *seq as i64 <= resume), "it resumes after what was sent");
                missed += frame["missed"].as_u64().expect("a count");
                gaps.push((resume, seen.len()));
            }
        }
    }
    assert_eq!(seen.len() as u64 + missed, 80 * 250, "every alert was sent or counted, and no other tenant's");
    assert!(seen.is_sorted_by(|left, right| left < right));
    let (resume, seen_before) = *gaps.first().expect("a gap");
    let next = door.raise(&[("acme", Level::Low)]).await;
    assert_eq!(slow.seqs(1).await, [next], "and goes on with the newest");
    let mut again = door.follow(&format!("?after={resume}")).await;
    let caught_up = again.seqs(80 * 250 - seen_before + 1).await;
    assert_eq!(caught_up.last(), Some(&next), "what was missed can be had");
    assert!(caught_up.first().is_some_and(|first| *first as i64 > resume));
}

#[tokio::test]
async fn a_peer_that_never_reads_is_given_up() {
    let config = FeedConfig { write_ms_max: 300, lag_rows_max: u64::MAX, ..FeedConfig::default() };
    let door = Door::open(config).await;
    let mut dead = door.raw(&upgrade("")).await;
    read_until(&mut dead, "\r\n\r\n").await;
    door.subscribers(1).await;
    let batch: Vec<_> = (0..500).map(|_| ("acme", Level::High)).collect();
    for _ in 0..80 {
        door.raise(&batch).await;
    }
    door.subscribers(0).await;
}

#[tokio::test]
async fn a_revoked_key_ends_its_streams() {
    let valid = Arc::new(AtomicBool::new(true));
    let recheck = {
        let valid = valid.clone();
        Arc::new(move |_: &_| valid.load(Ordering::Relaxed))
    };
    let door = Door::open_with(FeedConfig::default(), Some(recheck)).await;
    let mut follower = door.follow("").await;
    let mut events = door.raw("GET /v2/alerts/stream HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await;
    door.subscribers(2).await;
    door.raise(&[("acme", Level::High)]).await;
    assert_eq!(follower.seqs(1).await, [0]);
    // Each is told at its own time: a key that is revoked before that is told nothing.
    let text = read_until(&mut events, "id: 0\n").await;
    assert!(text.contains("id: 0\n"), "{text}");
    valid.store(false, Ordering::Relaxed);
    door.raise(&[("acme", Level::High)]).await;
    assert_eq!(follower.closed().await, Some(1008), "and no alert before it");
    let text = read_until(&mut events, "0\r\n\r\n").await;
    assert!(text.ends_with("0\r\n\r\n") && !text.contains("id: 1"), "{text}");
    door.subscribers(0).await;
}

#[tokio::test]
async fn a_stop_closes_streams_with_going_away() {
    let door = Door::open(FeedConfig::default()).await;
    let mut follower = door.follow("").await;
    let mut events = door.raw("GET /v2/alerts/stream HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await;
    door.subscribers(2).await;
    door.stop();
    assert_eq!(follower.closed().await, Some(1001));
    let text = read_until(&mut events, "\r\n0\r\n\r\n").await;
    assert!(text.ends_with("0\r\n\r\n"), "a whole answer: {text}");
    door.subscribers(0).await;
    assert_eq!(door.follow_as("acme", "", &[]).await.err(), Some(503));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_peer_that_does_not_read() {
    let config = FeedConfig { write_ms_max: 60_000, lag_rows_max: u64::MAX, ..FeedConfig::default() };
    let door = Door::open(config).await;
    let mut dead = door.raw(&upgrade("")).await;
    read_until(&mut dead, "\r\n\r\n").await;
    door.subscribers(1).await;
    let batch: Vec<_> = (0..500).map(|_| ("acme", Level::High)).collect();
    for _ in 0..80 {
        door.raise(&batch).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(door.feed.subscribers(), 1, "it is stuck, not gone");
    let started = Instant::now();
    door.stop();
    door.subscribers(0).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn history_that_is_slow_is_waited_for() {
    let door = Door::open(FeedConfig { ping_ms: 300, backfill_rows_max: 2, ..FeedConfig::default() }).await;
    door.raise(&[("acme", Level::High), ("acme", Level::High), ("acme", Level::High)]).await;
    door.forget(3);
    door.raise(&[("acme", Level::High)]).await;
    *door.slowness.lock() = Duration::from_millis(1_500);
    let mut follower = door.follow("?after=-1").await;
    let mut events =
        door.raw("GET /v2/alerts/stream?after=-1 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await;
    assert_eq!(follower.seqs(4).await, [0, 1, 2, 3]);
    assert!(read_until(&mut events, "id: 3\n").await.contains("id: 2\n"));
    assert_eq!(door.asked.lock().len(), 4, "each stretch is asked for once by each");
}

#[tokio::test]
async fn server_sent_events_carry_the_same_and_resume_by_header() {
    let door = Door::open(FeedConfig::default()).await;
    door.raise(&[("acme", Level::High), ("umbrella", Level::High), ("acme", Level::Low)]).await;
    let ask = |query: &str, last: &str| {
        format!("GET /v2/alerts/stream{query} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{last}\r\n")
    };
    let mut events = door.raw(&ask("?after=-1", "")).await;
    let text = read_until(&mut events, "id: 2\n").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.to_ascii_lowercase().contains("content-type: text/event-stream"), "{text}");
    assert!(text.contains("id: 0\ndata: {\"seq\":0,\"alert\":{"), "{text}");
    assert!(!text.contains("id: 1\n") && !text.contains("umbrella"), "{text}");
    let mut resumed = door.raw(&ask("?after=-1", "Last-Event-ID: 0\r\n")).await;
    let text = read_until(&mut resumed, "id: 2\n").await;
    assert!(!text.contains("id: 0\n"), "the header is newer than the URL: {text}");
    door.raise(&[("acme", Level::Critical)]).await;
    let text = read_until(&mut resumed, "id: 3\n").await;
    assert!(text.contains("id: 3\n"), "{text}");
    let mut foreign = door.raw(&ask("", "Origin: https://evil.example\r\n")).await;
    assert!(read_until(&mut foreign, "}").await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn many_followers_of_one_tenant_share_what_is_rendered() {
    let door = Door::open(FeedConfig::default()).await;
    let mut followers = Vec::new();
    for _ in 0..50 {
        followers.push(door.follow("").await);
    }
    door.subscribers(50).await;
    for _ in 0..20 {
        door.raise(&[("acme", Level::High), ("umbrella", Level::High)]).await;
        tokio::task::yield_now().await;
    }
    let expected: Vec<u64> = (0..20).map(|at| at * 2).collect();
    for follower in &mut followers {
        assert_eq!(follower.seqs(20).await, expected);
    }
}
