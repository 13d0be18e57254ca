//! What small bodies become costs more than they do: rows, dead letters, answers. All of it is counted against the budget of
//! bodies, until the answer has been sent.

use std::time::Duration;

use tidegate_events::Dataset;
use tidegate_ingest::batcher::BatcherConfig;
use tidegate_ingest::http::IngestConfig;

use super::http_events::{Door, encoded};
use super::http_log::Mood;
use super::http_wire::Answer;

const BULK: &str = "/v2/events/bulk";

async fn door(inflight_bytes_max: usize) -> Door {
    let config = IngestConfig { inflight_bytes_max, small_body_bytes: 4_096, ..IngestConfig::default() };
    // A body does not wait for the log to be decoded.
    Door::open(config, BatcherConfig { decode_threads: 1, group_bytes_eager: 1, ..BatcherConfig::default() }).await
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// Everything is given back a moment after the answer was sent.
async fn given_back(door: &Door) -> bool {
    for _ in 0..100 {
        if door.ingest.inflight().used_bytes() == 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn two_million_bad_lines_in_some_kilobytes_are_refused_as_a_whole() {
    let door = Door::with_defaults().await;
    let sent = encoded("gzip", "1\n".repeat(2_000_000).as_bytes());
    assert!(sent.len() < 50_000, "{}", sent.len());
    let answer = door.post(BULK, "Content-Encoding: gzip\r\n", &sent).await;
    assert_eq!(code(&answer), (413, "too_many_rejected".into()));
    assert!(answer.body.len() < 2_000, "{}", answer.body.len());
    assert!(door.texts(Dataset::DeadLetters, "code").is_empty(), "nothing of it is stored");
    // As many as may be are each answered for and each in dead_letters, and their neighbours stored.
    let body = format!("{{\"n\":1}}\n{}{{\"n\":2}}\n", "1\n".repeat(10_000));
    let answer = door.post(BULK, "", body.as_bytes()).await;
    let told = answer.json();
    assert_eq!((answer.status, &told["accepted"], &told["rejected"]), (207, &2.into(), &10_000.into()));
    assert_eq!(told["items"].as_array().map(Vec::len), Some(10_000));
    assert_eq!(door.texts(Dataset::DeadLetters, "code").len(), 10_000);
    assert!(given_back(&door).await);
}

#[tokio::test]
async fn rows_and_answers_of_tiny_events_are_counted_until_they_are_sent() {
    let door = door(8 << 20).await;
    let tiny = |count: usize| "{}\n".repeat(count);
    for (path, count) in [(BULK.to_owned(), 30_000), (format!("{BULK}?detail=all"), 12_000)] {
        // More than one request may ever have.
        let answer = door.post(&path, "", tiny(200_000).as_bytes()).await;
        assert_eq!(code(&answer), (413, "body_too_large".into()), "{path}");
        assert!(given_back(&door).await, "{path}");
        let answer = door.post(&path, "", tiny(count).as_bytes()).await;
        assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(count as u64)), "{path}");
        assert!(given_back(&door).await, "{path}");
        // Together they share the budget: while the first waits for the log, there is no room for a second and third.
        door.log.set(Mood::Hold);
        let body = tiny(count);
        let first = door.post(&path, "", body.as_bytes());
        let others = async {
            while door.log.held() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let used = door.ingest.inflight().used_bytes();
            assert!(used > 2_000_000, "{path}: {used} bytes for the rows of {} bytes", body.len());
            let mut refused = 0;
            let request = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let (second, third) = tokio::join!(
                tokio::time::timeout(Duration::from_secs(3), door.server.ask(request.as_bytes())),
                tokio::time::timeout(Duration::from_secs(3), door.server.ask(request.as_bytes())),
            );
            for answer in [second, third].into_iter().flatten() {
                assert_eq!(code(&answer), (429, "too_many_bytes_in_flight".into()), "{path}");
                refused += 1;
            }
            assert!(refused > 0, "{path}");
            assert!(door.ingest.inflight().used_bytes() <= 8 << 20);
            door.log.set(Mood::Store);
        };
        let (first, ()) = tokio::join!(first, others);
        assert_eq!(first.status, 200, "{path}");
        assert!(given_back(&door).await, "{path}");
    }
}

#[tokio::test]
async fn common_events_are_not_charged_beside_their_bytes() {
    let door = door(1 << 20).await;
    let line = format!("{{\"message\":\"{}\"}}\n", "m".repeat(300));
    let body = line.repeat(1_300);
    door.log.set(Mood::Hold);
    let first = door.post(BULK, "", body.as_bytes());
    let look = async {
        while door.log.held() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(door.ingest.inflight().used_bytes(), 0, "given back once it is decoded");
        door.log.set(Mood::Store);
    };
    let (first, ()) = tokio::join!(first, look);
    assert_eq!(first.json()["accepted"], 1_300);
}
