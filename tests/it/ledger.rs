//! The ledger: clients that write down what they were promised, and the comparison with what the server says it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Caller, NoAnswer, Server};

/// What clients sent, and what they were told.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Every id that was sent.
    pub issued: BTreeSet<String>,
    /// Ids of requests that were answered with 200.
    pub acknowledged: BTreeSet<String>,
    /// How long the answers of a status took.
    pub answers: BTreeMap<u16, Vec<Duration>>,
    /// Refusals with 429 or 503 that did not say when to come again.
    pub refusals_without_retry: usize,
    /// Requests whose connection broke while they were sent or answered.
    pub broken: usize,
    /// Requests that nobody listened for.
    pub unheard: usize,
}

impl Ledger {
    /// Takes another one's lines over.
    pub fn merge(&mut self, other: Self) {
        self.issued.extend(other.issued);
        self.acknowledged.extend(other.acknowledged);
        for (status, waits) in other.answers {
            self.answers.entry(status).or_default().extend(waits);
        }
        self.refusals_without_retry += other.refusals_without_retry;
        self.broken += other.broken;
        self.unheard += other.unheard;
    }

    /// Requests that got no answer, for whatever reason.
    pub fn unanswered(&self) -> usize {
        self.broken + self.unheard
    }

    /// How many answers had this status.
    pub fn count(&self, status: u16) -> usize {
        self.answers.get(&status).map_or(0, Vec::len)
    }

    /// The longest wait for an answer with this status.
    pub fn longest(&self, status: u16) -> Duration {
        self.answers.get(&status).and_then(|waits| waits.iter().max().copied()).unwrap_or_default()
    }

    /// Fails unless every acknowledged event is there, once, and nothing that nobody sent.
    pub fn agree(&self, client: &mut Caller) {
        self.agree_with(stored(client, "true"));
    }

    /// The same, asked for in parts, for more events than one answer may have.
    pub fn agree_in_parts(&self, client: &mut Caller) {
        const PART: i64 = 50_000;
        let last = client.number("SELECT max(n) FROM security_events WHERE source = 'ledger'");
        let parts = (0..=last).step_by(PART as usize);
        let parts = parts.flat_map(|from| stored(client, &format!("n >= {from} AND n < {}", from + PART)));
        let found: Vec<String> = parts.collect();
        let all = client.number("SELECT count(*) FROM security_events WHERE source = 'ledger'");
        assert_eq!(found.len() as i64, all, "rows whose number is no event's of a ledger");
        self.agree_with(found);
    }

    fn agree_with(&self, stored: Vec<String>) {
        let distinct: BTreeSet<_> = stored.iter().cloned().collect();
        assert_eq!(stored.len(), distinct.len(), "events are doubled");
        let lost: Vec<_> = self.acknowledged.difference(&distinct).collect();
        assert!(lost.is_empty(), "lost {} of {}: {lost:.200?}", lost.len(), self.acknowledged.len());
        assert!(distinct.is_subset(&self.issued), "events that nobody sent");
    }
}

/// The ids of the events of ledgers for which a condition holds.
fn stored(client: &mut Caller, condition: &str) -> Vec<String> {
    let rows = client.sql(&format!("SELECT event_id FROM security_events WHERE source = 'ledger' AND {condition}"));
    rows.iter().map(|row| row["event_id"].as_str().expect("an id").to_owned()).collect()
}

/// An event of a ledger: every tenth is marked, for a rule to find.
pub fn ledger_event(id: &str, at: u64) -> Value {
    json!({"event_id": id, "n": at, "mark": if at.is_multiple_of(10) { "yes" } else { "no" }})
}

/// Clients that send until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Ledger>>,
}

/// How the clients of a [`Load`] behave.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Clients, one connection each.
    pub workers: u64,
    /// Events of a request.
    pub events: u64,
    /// Bytes of text that each event carries beside its id.
    pub bytes: usize,
    /// Whether a client ends when its connection breaks or it is refused. Otherwise it waits a moment and goes on.
    pub until_refused: bool,
}

impl Load {
    /// Starts clients; their ids start with `round`.
    pub fn start(url: &str, round: &str, pace: Pace) -> Self {
        Self::start_every(url, round, pace, Duration::ZERO)
    }

    /// The same with clients that send a request so often, if they can.
    pub fn start_every(url: &str, round: &str, pace: Pace, every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let workers = (0..pace.workers).map(|worker| {
            let (stop, url, prefix) = (stop.clone(), url.to_owned(), format!("{round}-{worker}"));
            std::thread::spawn(move || send(&stop, &url, &prefix, (pace, every)))
        });
        let workers = workers.collect();
        Self { stop, workers }
    }

    /// Waits until all clients have ended by themselves or were told to; what they wrote down.
    pub fn stop(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for worker in self.workers {
            all.merge(worker.join().expect("a client"));
        }
        all
    }
}

/// Kills a server under load, again and again, at the moment that `moment` waits for; what its clients wrote down.
pub fn killed_under_load(
    server: &mut Server,
    settings: &[(&str, &str)],
    (kills, pace): (u64, Pace),
    mut moment: impl FnMut(u64, &Server),
) -> Ledger {
    let mut ledger = Ledger::default();
    for round in 0..kills {
        let load = Load::start(&server.url, &round.to_string(), pace);
        moment(round, server);
        server.kill();
        ledger.merge(load.stop());
        server.run(settings);
    }
    assert!(ledger.acknowledged.len() as u64 > 25 * kills, "only {} acknowledged", ledger.acknowledged.len());
    ledger
}

/// A different moment each round, within 380 ms.
pub fn some_time(round: u64, least_ms: u64) -> Duration {
    Duration::from_millis(least_ms + (round * 137) % 380)
}

fn send(stop: &AtomicBool, url: &str, prefix: &str, (pace, every): (Pace, Duration)) -> Ledger {
    let mut client = Caller::new(url, None);
    let (mut ledger, mut at) = (Ledger::default(), 0);
    let padding = "x".repeat(pace.bytes);
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += every;
        let ids: Vec<_> = (at..at + pace.events).map(|at| (format!("{prefix}-{at}"), at)).collect();
        at += pace.events;
        let mut body = Vec::new();
        let now_us = tidegate_pipeline::clock::now_us();
        for ((id, at), time_us) in ids.iter().zip(now_us..) {
            let mut event = ledger_event(id, *at);
            event["padding"] = json!(padding);
            event["lane"] = json!(prefix.rsplit('-').next());
            event["time"] = json!(chrono::DateTime::from_timestamp_micros(time_us).map(|time| time.to_rfc3339()));
            body.extend_from_slice(format!("{event}\n").as_bytes());
        }
        ledger.issued.extend(ids.iter().map(|(id, _)| id.clone()));
        let started = Instant::now();
        let headers = [("content-type", "application/x-ndjson")];
        let reply = match client.attempt("POST", "/v2/events/bulk?source=ledger", &headers, &body) {
            Ok(reply) => reply,
            Err(reason) => {
                match reason {
                    NoAnswer::Nobody => ledger.unheard += 1,
                    NoAnswer::Broken(_) => ledger.broken += 1,
                }
                if pace.until_refused {
                    return ledger;
                }
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
        };
        let status = reply.status.as_u16();
        ledger.answers.entry(status).or_default().push(started.elapsed());
        if status == 200 {
            ledger.acknowledged.extend(ids.into_iter().map(|(id, _)| id));
            continue;
        }
        let said_when = reply.headers.contains_key("retry-after");
        ledger.refusals_without_retry += usize::from(matches!(status, 429 | 503) && !said_when);
        if pace.until_refused {
            return ledger;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ledger
}
