//! A rule over stored events of a time range, as a stream of lines: `{"alert": …}` for each alert, `{"progress": …}` at most
//! once a second, `{"summary": …}` at the end. An `{"error": …}` in its place says that the rest is missing.
//!
//! The range is cut into slices of some hundred thousand rows, so that each can be sorted by time in memory. Each slice is a
//! query of its own through the gate: a long analysis keeps neither files nor log from moving on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tidegate_events::{Alert, Dataset};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::Principal;
use tidegate_pipeline::{LogBatch, Problem};
use tidegate_query::scan::{Stretch, Wanted};
use tidegate_query::{Query, QueryError, Scope};
use tidegate_rules::Rehearsal;
use tokio::sync::mpsc;

use super::analyze::{invalid, rendered};
use super::config::ThreatDetectionConfig;
use super::places::Place;
use super::refusal::Refusal;
use super::{ThreatDetection, rfc3339};
use crate::serve::reply::{self, Body};

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Lines that wait for a slow reader.
const WAITING_LINES: usize = 64;
/// How long a slice waits for a place among the queries.
const QUERY_PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries for one.
const QUERY_RETRY: Duration = Duration::from_millis(200);
const HOUR_US: i64 = 3_600_000_000;
/// The most slices of one hour.
const PARTS_MAX: i64 = 100_000;

/// Which stored events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    dataset: Dataset,
    from_us: i64,
    to_us: i64,
}

impl Range {
    /// Reads times as RFC 3339 has them. Without an end the range ends now.
    ///
    /// # Errors
    /// 400 for what is not a time, or a range that ends before it starts.
    pub fn parse(dataset: Dataset, from: &str, to: Option<&str>, now_us: i64) -> Result<Self, Refusal> {
        let time = |name: &str, text: &str| {
            let parsed = chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros());
            let shown: String = text.chars().take(80).collect();
            parsed.ok_or_else(|| invalid(format!("{name} is {shown:?}, not a time as 2026-01-31T12:00:00Z")))
        };
        let from_us = time("from", from)?;
        let to_us = to.map_or(Ok(now_us), |to| time("to", to))?;
        if to_us <= from_us {
            return Err(invalid("the range ends before it starts"));
        }
        Ok(Self { dataset, from_us, to_us })
    }
}

/// Answers with the lines. Before the first line the answer may still be a refusal.
///
/// # Errors
/// When the range has too many rows, or cannot be read.
pub async fn answer(
    door: &ThreatDetection,
    mut rehearsal: Rehearsal,
    range: Range,
    principal: &Principal,
    place: Place,
) -> Result<Response<Body>, Refusal> {
    let scope = Scope::tenant(principal.org_id.clone());
    let stretch = Stretch { dataset: range.dataset, from_us: range.from_us, to_us: range.to_us };
    let hours = door.query.hours(&scope, &stretch).await.map_err(|error| error.to_problem())?;
    let rows: u64 = hours.iter().map(|(_, rows)| rows).sum();
    if rows > door.config.range_rows_max {
        let message = format!("the range has {rows} rows, at most {} are read", door.config.range_rows_max);
        let hint = "ask for a shorter range, or raise threat_detection.range_rows_max";
        return Err(Problem::new(413, "range_too_large", message).hint(hint).into());
    }
    let (lines, received) = mpsc::channel(WAITING_LINES);
    let columns = rehearsal.columns();
    let hunt = Hunt {
        query: door.query.clone(),
        scope,
        dataset: range.dataset,
        wanted: std::sync::Arc::new(move |column: &str| columns.has(column)),
        slices: slices(&range, &hours, door.config.range_slice_rows),
        rehearsal,
        lines,
        config: door.config.clone(),
        rows_all: rows,
        rows: 0,
        alerts: 0,
        through_us: range.from_us,
        started: Instant::now(),
        told: Instant::now(),
        offset: 0,
        place,
    };
    door.cpu.spawn(hunt.run());
    Ok(streamed(received))
}

fn streamed(received: mpsc::Receiver<Bytes>) -> Response<Body> {
    let lines = futures::stream::unfold(received, |mut received| async move {
        let line = received.recv().await?;
        Some((line, received))
    });
    let body = StreamBody::new(lines.map(|line| Ok(Frame::data(line)))).boxed_unsync();
    let mut response = reply::whole(StatusCode::OK, "application/x-ndjson", "");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *response.body_mut() = body;
    response
}

/// Cuts a range into slices of about so many rows, leaving out hours without any.
fn slices(range: &Range, hours: &[(i64, u64)], rows_max: u64) -> VecDeque<(i64, i64)> {
    let mut slices: VecDeque<(i64, i64)> = VecDeque::new();
    let mut last_rows = u64::MAX;
    for (hour, rows) in hours {
        let from = (*hour).max(range.from_us);
        let to = hour.saturating_add(HOUR_US).min(range.to_us);
        if let Some(last) = slices.back_mut()
            && last_rows.saturating_add(*rows) <= rows_max
        {
            last.1 = to;
            last_rows += rows;
            continue;
        }
        // An hour with more rows is cut evenly; where that is too much for one slice, the slice is halved later.
        let parts = i64::try_from(rows.div_ceil(rows_max.max(1))).unwrap_or(PARTS_MAX).clamp(1, PARTS_MAX);
        let width = (to - from).max(1) / parts + 1;
        let mut at = from;
        while at < to {
            slices.push_back((at, at.saturating_add(width).min(to)));
            at = at.saturating_add(width);
        }
        last_rows = if parts == 1 { *rows } else { rows_max };
    }
    slices
}

/// Why an analysis ends before its end.
enum End {
    /// The client went away.
    Gone,
    /// It cannot go on.
    Failed(Problem),
    /// A bound is reached; what was found until then holds.
    Bound(&'static str),
}

/// A rule on its way through a range.
struct Hunt {
    query: std::sync::Arc<Query>,
    scope: Scope,
    dataset: Dataset,
    wanted: Wanted,
    slices: VecDeque<(i64, i64)>,
    rehearsal: Rehearsal,
    lines: mpsc::Sender<Bytes>,
    config: ThreatDetectionConfig,
    rows_all: u64,
    rows: u64,
    alerts: u64,
    through_us: i64,
    started: Instant,
    told: Instant,
    offset: u64,
    place: Place,
}

impl Hunt {
    async fn run(mut self) {
        let bound = match self.go().await {
            Ok(()) => None,
            Err(End::Gone) => return,
            Err(End::Bound(what)) => Some(what),
            Err(End::Failed(problem)) => {
                let text = problem.to_json("");
                let line: Value = serde_json::from_str(&text).unwrap_or_default();
                // Nobody to tell when this fails.
                let _ = self.say(json!({"error": line["error"]})).await;
                return;
            }
        };
        let mut summary = json!({
            "rows": self.rows,
            "matches": self.rehearsal.matched(),
            "alerts": self.alerts,
            "seconds": self.started.elapsed().as_secs_f64(),
            "complete": bound.is_none(),
        });
        if let Some(bound) = bound {
            summary["reason"] = json!(format!("{bound} is reached; narrow the range, or raise it"));
            summary["through"] = json!(rfc3339(self.through_us));
        }
        let parked = self.rehearsal.parked().iter();
        let parked: Vec<Value> = parked.map(|rule| json!({"rule_id": rule.rule_id, "reason": rule.reason})).collect();
        if !parked.is_empty() {
            summary["parked"] = json!(parked);
        }
        let _ = self.say(json!({"summary": summary})).await;
        drop(self.place);
    }

    async fn go(&mut self) -> Result<(), End> {
        while let Some((from_us, to_us)) = self.slices.pop_front() {
            let lines = self.lines.clone();
            let batches = tokio::select! {
                batches = self.slice(from_us, to_us) => batches,
                () = lines.closed() => return Err(End::Gone),
            };
            match batches {
                Ok(batches) => {
                    for rows in batches {
                        self.batch(rows).await?;
                    }
                    self.through_us = to_us;
                    self.progress().await?;
                }
                // Too much at once: half of it may not be.
                Err(QueryError::Memory { .. } | QueryError::TooLarge(_) | QueryError::Timeout { .. })
                    if to_us - from_us > 1 && self.in_time() =>
                {
                    let middle = from_us + (to_us - from_us) / 2;
                    self.slices.push_front((middle, to_us));
                    self.slices.push_front((from_us, middle));
                }
                Err(error) => return Err(End::Failed(error.to_problem())),
            }
        }
        let ended = self.rehearsal.end();
        let alerts = ended.map_err(|error| End::Failed(Problem::new(500, "internal", error.to_string())))?;
        self.tell(alerts).await
    }

    /// The rows of a slice, sorted by time.
    async fn slice(&self, from_us: i64, to_us: i64) -> Result<Vec<RecordBatch>, QueryError> {
        let stretch = Stretch { dataset: self.dataset, from_us, to_us };
        let patience = Instant::now() + QUERY_PATIENCE;
        loop {
            match self.query.scan(&self.scope, &stretch, self.wanted.clone()).await {
                Ok(rows) => return rows.collect().await,
                Err(QueryError::Busy(_) | QueryError::Moved) if Instant::now() < patience => {
                    tokio::time::sleep(QUERY_RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn batch(&mut self, rows: RecordBatch) -> Result<(), End> {
        if !self.in_time() {
            return Err(End::Bound("threat_detection.range_ms_max"));
        }
        self.rows += rows.num_rows() as u64;
        let times = rows.column_by_name(Dataset::TIME);
        let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
        let last = times.and_then(arrow::compute::max);
        let batch = LogBatch { offset: self.offset, dataset: self.dataset, rows };
        self.offset = batch.next_offset();
        let alerts = self.rehearsal.process(&batch);
        self.through_us = last.unwrap_or(self.through_us);
        self.tell(alerts).await?;
        self.progress().await?;
        // Rules may take long: others who wait for this thread come in between.
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn tell(&mut self, alerts: Vec<Alert>) -> Result<(), End> {
        let left = self.config.range_alerts_max.saturating_sub(self.alerts);
        let too_many = alerts.len() as u64 > left;
        let kept = alerts.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(&alerts);
        self.alerts += kept.len() as u64;
        for alert in rendered(kept, now_us()) {
            self.say(json!({"alert": alert})).await?;
        }
        if too_many { Err(End::Bound("threat_detection.range_alerts_max")) } else { Ok(()) }
    }

    async fn progress(&mut self) -> Result<(), End> {
        if self.told.elapsed() < PROGRESS_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        let progress = json!({"rows": self.rows, "through": rfc3339(self.through_us), "rows_all": self.rows_all});
        self.say(json!({"progress": progress})).await
    }

    async fn say(&self, line: Value) -> Result<(), End> {
        self.lines.send(Bytes::from(format!("{line}\n"))).await.map_err(|_| End::Gone)
    }

    fn in_time(&self) -> bool {
        self.started.elapsed() < Duration::from_millis(self.config.range_ms_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_checked() {
        let parse = |from: &str, to: Option<&str>| Range::parse(Dataset::SecurityEvents, from, to, 2_000_000);
        let range = parse("1970-01-01T00:00:01Z", None).expect("a range");
        assert_eq!((range.from_us, range.to_us), (1_000_000, 2_000_000));
        for (from, to) in [
            ("1970-01-01T00:00:03Z", None),
            ("1970-01-01T00:00:01Z", Some("1970-01-01T00:00:01Z")),
            ("1970-01-01T00:00:01Z", Some("1970-01-01T00:00:00Z")),
            ("yesterday", None),
            ("1970-01-01T00:00:01Z", Some("-1h")),
        ] {
            assert_eq!(parse(from, to).expect_err("refused").status(), 400, "{from} {to:?}");
        }
    }

    #[test]
    fn slices_cover_what_has_rows_once() {
        let range = Range { dataset: Dataset::SecurityEvents, from_us: HOUR_US / 2, to_us: 10 * HOUR_US };
        let hours =
            [(0, 10), (HOUR_US, 10), (3 * HOUR_US, 75), (4 * HOUR_US, 250), (5 * HOUR_US, 100), (9 * HOUR_US, 1)];
        let slices: Vec<_> = slices(&range, &hours, 100).into_iter().collect();
        let third = HOUR_US / 3 + 1;
        assert_eq!(slices[0], (HOUR_US / 2, 4 * HOUR_US), "95 rows together");
        assert_eq!(slices[1].0, 4 * HOUR_US);
        assert_eq!(slices[2].0, 4 * HOUR_US + third);
        assert_eq!(slices[3].1, 5 * HOUR_US);
        assert_eq!(slices[4], (5 * HOUR_US, 6 * HOUR_US), "as many as fit");
        assert_eq!(slices[5], (9 * HOUR_US, 10 * HOUR_US));
        assert!(slices.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{slices:?}");
    }

    #[test]
    fn nothing_stored_is_no_slice() {
        let range = Range { dataset: Dataset::SecurityEvents, from_us: i64::MIN, to_us: i64::MAX };
        assert!(slices(&range, &[], 100).is_empty());
        assert!(slices(&range, &[(0, u64::MAX)], 1).len() as i64 <= PARTS_MAX + 1);
    }
}
