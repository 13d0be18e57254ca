//! Reading a request's body: bounded in bytes, in pace, and over all requests together.
//!
//! A body that stops for `body_gap_ms_max`, or that stays below `body_rate_bytes_min` a second, is given up with 408: a
//! trickle would hold its memory for hours. Bytes are counted as they arrive against [`InFlight`], never by what the request
//! announces, so that announcing costs the others nothing. The last eighth of that budget is for small bodies, which thus
//! get through while large ones have to come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tidegate_pipeline::Problem;
use tokio::time::Instant;

use crate::metrics as names;

/// What a body costs beside its bytes: channel, job, answer.
const BODY_OVERHEAD_BYTES: usize = 1024;

/// Frames at least this long are kept as hyper gives them; shorter ones are copied together, because each of them may
/// keep a whole read buffer alive.
const FRAME_KEPT_BYTES: usize = 16 * 1024;

/// From this many frames on, a body must bring some bytes with each: frames of a byte or none cost more to take than to
/// send.
const FRAMES_FREE: u64 = 4096;
const FRAME_BYTES_MIN: u64 = 8;

/// Room that a body gets at a time which does not come in one frame.
const PART_BYTES: usize = 64 * 1024;

/// How slow a body may be.
#[derive(Debug, Clone, Copy)]
pub struct BodyPace {
    /// Without any byte.
    pub gap_max: Duration,
    /// Bytes a second on average, after a first `gap_max` of grace.
    pub rate_bytes_min: u64,
}

impl Default for BodyPace {
    fn default() -> Self {
        Self { gap_max: Duration::from_secs(10), rate_bytes_min: 1024 }
    }
}

/// The bytes of all bodies that are held at once.
#[derive(Debug)]
pub struct InFlight {
    used_bytes: AtomicUsize,
    bytes_max: usize,
    small_bytes_max: usize,
}

impl InFlight {
    /// A budget of `bytes_max`, of which an eighth is kept for bodies of at most `small_bytes_max` bytes.
    pub fn new(bytes_max: usize, small_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { used_bytes: AtomicUsize::new(0), bytes_max, small_bytes_max })
    }

    /// Bytes held now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn large_bytes_max(&self) -> usize {
        self.bytes_max / 8 * 7
    }

    /// A share of the budget for one body, which starts with what a body costs by itself. `None` when there is none left.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Held> {
        let mut held = Held { budget: self.clone(), bytes: 0 };
        held.grow(BODY_OVERHEAD_BYTES).then_some(held)
    }
}

/// A body's share of [`InFlight`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<InFlight>,
    bytes: usize,
}

impl Held {
    /// Takes `bytes` more, if the budget has them.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let small = self.bytes.saturating_add(bytes) <= self.budget.small_bytes_max;
        let bound = if small { self.budget.bytes_max } else { self.budget.large_bytes_max() };
        let take = |used: usize| used.checked_add(bytes).filter(|used| *used <= bound);
        let taken = self.budget.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if taken {
            self.bytes += bytes;
        } else {
            metrics::counter!(names::INFLIGHT_FULL_TOTAL).increment(1);
        }
        taken
    }

    /// What this body could have beside what it has, if there were no other.
    pub(crate) fn room_bytes(&self) -> usize {
        self.budget.large_bytes_max().saturating_sub(self.bytes)
    }

    /// Gives all but `bytes` back.
    pub(crate) fn keep(&mut self, bytes: usize) {
        self.shrink(self.bytes.saturating_sub(bytes));
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives `bytes` back.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body as it was sent, still in its content encodings.
#[derive(Debug)]
pub(crate) struct Sent {
    parts: Vec<Bytes>,
    bytes: usize,
    pub(crate) held: Held,
}

impl Sent {
    /// A body for tests, with room in a budget of its own.
    #[cfg(test)]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let held = InFlight::new(1 << 30, 1 << 20).enter().expect("room");
        Self { parts: vec![Bytes::copy_from_slice(bytes)], bytes: bytes.len(), held }
    }

    /// Its length.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Gives back what an earlier try to decode it took beside its own bytes.
    pub(crate) fn begin_again(&mut self) {
        self.held.keep(BODY_OVERHEAD_BYTES.saturating_add(self.bytes));
    }

    /// Its bytes in one piece. The parts stay, so that a body can be decoded a second time.
    pub(crate) fn assemble(&self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.bytes);
        for part in &self.parts {
            whole.extend_from_slice(part);
        }
        whole
    }
}

/// Reads a whole body of at most `bytes_max` bytes, counting it against `inflight`.
///
/// # Errors
/// 400, 408, 413 or 429, for the client.
pub(crate) async fn read_sent(
    body: Incoming,
    bytes_max: usize,
    pace: BodyPace,
    inflight: &Arc<InFlight>,
) -> Result<Sent, Problem> {
    let mut sent = Sent { parts: Vec::new(), bytes: 0, held: inflight.enter().ok_or_else(busy)? };
    let mut small: Vec<u8> = Vec::new();
    read_frames(body, bytes_max, pace, |frame| {
        if !sent.held.grow(frame.len()) {
            return Err(busy());
        }
        sent.bytes += frame.len();
        if frame.len() < FRAME_KEPT_BYTES {
            small.extend_from_slice(&frame);
        } else {
            if !small.is_empty() {
                sent.parts.push(std::mem::take(&mut small).into());
            }
            sent.parts.push(frame);
        }
        Ok(())
    })
    .await?;
    if !small.is_empty() {
        sent.parts.push(small.into());
    }
    Ok(sent)
}

/// Reads a whole body of at most `bytes_max` bytes, in one piece: for endpoints whose bodies are small. It counts against
/// `inflight` until the last clone of the bytes is dropped.
///
/// # Errors
/// 400, 408, 413 or 429, for the client.
pub async fn read_body(
    body: Incoming,
    bytes_max: usize,
    pace: BodyPace,
    inflight: &Arc<InFlight>,
) -> Result<Bytes, Problem> {
    let mut held = inflight.enter().ok_or_else(busy)?;
    let (mut parts, mut bytes) = (Vec::new(), 0);
    read_frames(body, bytes_max, pace, |frame| {
        bytes += frame.len();
        append(&mut parts, &mut held, &frame)
    })
    .await?;
    if parts.len() > 1 {
        if !held.grow(bytes) {
            return Err(busy());
        }
        let rooms: usize = parts.iter().map(Vec::capacity).sum();
        parts = vec![parts.concat()];
        held.shrink(rooms);
    }
    Ok(Bytes::from_owner(Counted { bytes: parts.pop().unwrap_or_default(), _held: held }))
}

/// The bytes of a body, with their share of the budget.
struct Counted {
    bytes: Vec<u8>,
    _held: Held,
}

/// Adds a frame. The room for it is what counts, and it is given in parts: one that grows by copying would be several times what
/// came, until the allocator has taken back what was given up.
fn append(parts: &mut Vec<Vec<u8>>, held: &mut Held, frame: &[u8]) -> Result<(), Problem> {
    if let Some(last) = parts.last_mut().filter(|last| last.capacity() - last.len() >= frame.len()) {
        last.extend_from_slice(frame);
        return Ok(());
    }
    // The first frame of a small body is all of it.
    let room = if parts.is_empty() { frame.len() } else { frame.len().max(PART_BYTES) };
    if !held.grow(room) {
        return Err(busy());
    }
    let mut part = Vec::with_capacity(room);
    part.extend_from_slice(frame);
    parts.push(part);
    Ok(())
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn read_frames(
    mut body: Incoming,
    bytes_max: usize,
    pace: BodyPace,
    mut take: impl FnMut(Bytes) -> Result<(), Problem>,
) -> Result<(), Problem> {
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large(bytes_max));
    }
    let started = Instant::now();
    let mut last = started;
    let (mut received, mut frames) = (0u64, 0u64);
    let alarm = tokio::time::sleep_until(started + pace.gap_max);
    tokio::pin!(alarm);
    loop {
        tokio::select! {
            biased;
            frame = body.frame() => {
                let Some(frame) = frame else { return Ok(()) };
                let frame = frame.map_err(|error| {
                    Problem::new(400, "body_incomplete", format!("the body ended before its time: {error}"))
                })?;
                let Ok(frame) = frame.into_data() else { continue };
                received += frame.len() as u64;
                frames += 1;
                if received > bytes_max as u64 {
                    return Err(too_large(bytes_max));
                }
                if frames > FRAMES_FREE && received < frames * FRAME_BYTES_MIN {
                    return Err(too_fragmented());
                }
                last = Instant::now();
                take(frame)?;
                // To be told of its end would take another turn of the connection, and the alarm a place among all timers.
                if body.is_end_stream() {
                    return Ok(());
                }
            }
            () = &mut alarm => {
                let now = Instant::now();
                let graced = (now - started).saturating_sub(pace.gap_max);
                let owed = u128::from(pace.rate_bytes_min) * graced.as_millis() / 1000;
                if now - last >= pace.gap_max || u128::from(received) < owed {
                    metrics::counter!(names::HTTP_REAPED_TOTAL, "why" => "body").increment(1);
                    return Err(too_slow(pace));
                }
                alarm.as_mut().reset((last + pace.gap_max).min(now + Duration::from_secs(1)));
            }
        }
    }
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(413, "body_too_large", format!("the body is larger than {bytes_max} bytes"))
        .hint("send fewer events in each request; there is no bound on their number")
}

fn too_fragmented() -> Problem {
    Problem::new(400, "body_too_fragmented", "the body comes in chunks of a few bytes")
        .hint("send larger chunks, or a Content-Length")
}

fn too_slow(pace: BodyPace) -> Problem {
    let gap_ms = pace.gap_max.as_millis();
    let rate = pace.rate_bytes_min;
    Problem::new(408, "body_too_slow", "the body came too slowly")
        .hint(format!("send without pauses of {gap_ms} ms, and at least {rate} bytes a second"))
}

pub(crate) fn busy() -> Problem {
    Problem::new(429, "too_many_bytes_in_flight", "the server holds as many bodies as it may")
        .hint("send again after Retry-After seconds; smaller requests get through sooner")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_small_ones() {
        let inflight = InFlight::new(80_000, 4_000);
        let mut large = inflight.enter().expect("room");
        assert!(large.grow(60_000));
        assert!(!large.grow(10_000), "the last eighth is not for large ones");
        let mut small: Vec<Held> = Vec::new();
        while let Some(mut held) = inflight.enter() {
            if !held.grow(2_000) {
                break;
            }
            small.push(held);
        }
        assert!(small.len() >= 5, "{}", small.len());
        assert!(inflight.used_bytes() <= 80_000);
        let before = inflight.used_bytes();
        large.shrink(10_000);
        assert_eq!((before - inflight.used_bytes(), large.room_bytes()), (10_000, 70_000 - 51_024));
        drop((small, large));
        assert_eq!(inflight.used_bytes(), 0);
    }
    #[test]
    fn small_frames_share_a_part_that_is_counted_whole() {
        let inflight = InFlight::new(1 << 20, 1 << 20);
        let mut held = inflight.enter().expect("room");
        let before = held.bytes();
        let mut parts = Vec::new();
        // The frame, and how full the parts are after it.
        for (frame, filled) in [
            (10, vec![10]),
            (40_000, vec![10, 40_000]),
            (20_000, vec![10, 60_000]),
            (PART_BYTES - 60_000, vec![10, PART_BYTES]),
            (1, vec![10, PART_BYTES, 1]),
            (PART_BYTES, vec![10, PART_BYTES, 1, PART_BYTES]),
        ] {
            append(&mut parts, &mut held, &vec![b' '; frame]).expect("room");
            assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), filled);
            assert_eq!(held.bytes() - before, parts.iter().map(Vec::capacity).sum::<usize>(), "{filled:?}");
        }
        let too_much = append(&mut parts, &mut held, &vec![b' '; 1 << 20]).expect_err("beyond the budget");
        assert_eq!((too_much.status, parts.len()), (429, 4));
    }
    #[test]
    fn a_body_that_is_decoded_again_holds_what_it_held_at_first() {
        let mut sent = Sent::of(b"0123456789");
        assert!(sent.held.grow(10), "its bytes");
        let first = sent.held.bytes();
        assert!(sent.held.grow(5_000), "what was made of it");
        sent.begin_again();
        assert_eq!(sent.held.bytes(), first);
        sent.begin_again();
        assert_eq!(sent.held.bytes(), first);
    }
}
