//! The feed as server-sent events: for curl, and for pages that use `EventSource`.
//!
//! Each alert is an event with its `seq` (with other nodes, the positions in all of them) as id; a gap is an event of type `gap`. A comment every 15 s shows that the stream
//! lives. A peer that does not read is found by the write timer of the listener.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};

use super::following::Following;
use super::subscription::{Broken, Told};
use super::{FeedBody, Seat};
use crate::metrics as names;

const HEARTBEAT: Duration = Duration::from_secs(15);

/// How often a silent stream asks whether its principal may still read.
const RECHECK: Duration = Duration::from_secs(1);

struct Stream {
    subscription: Following,
    seat: Seat,
    opened: bool,
    quiet: Duration,
}

pub(super) fn answer(subscription: Following, seat: Seat) -> Response<FeedBody> {
    let stream = Stream { subscription, seat, opened: false, quiet: Duration::ZERO };
    let frames = stream::unfold(stream, |mut stream| async move {
        let text = stream.next().await?;
        Some((Ok::<_, io::Error>(Frame::data(Bytes::from(text))), stream))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

impl Stream {
    /// The next piece of text; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.opened, true) {
            // Sends the head of the answer at once, and tells browsers when to come back.
            return Some("retry: 2000\n: alerts follow\n\n".to_owned());
        }
        loop {
            let next = tokio::select! {
                () = self.seat.stopping() => return None,
                next = tokio::time::timeout(RECHECK, self.subscription.next()) => next,
            };
            if !self.seat.is_valid() {
                return None;
            }
            match next {
                Ok(Ok(told)) => {
                    self.quiet = Duration::ZERO;
                    metrics::counter!(names::FEED_FRAMES).increment(told.len() as u64);
                    return Some(events(&told));
                }
                Ok(Err(Broken::LogClosed)) => return None,
                Ok(Err(Broken::Unreadable(reason))) => {
                    tracing::error!(reason, org_id = &*self.seat.principal.org_id, "a stream of alerts ended");
                    return None;
                }
                Err(_) => {
                    self.quiet += RECHECK;
                    if self.quiet >= HEARTBEAT {
                        self.quiet = Duration::ZERO;
                        return Some(": still here\n\n".to_owned());
                    }
                }
            }
        }
    }
}

fn events(told: &[Told]) -> String {
    let mut text = String::new();
    for told in told {
        // Writing to a string cannot fail; a frame has no line breaks, since JSON texts escape them.
        let _ = match told {
            Told::Alert { frame, after: Some(after), .. } => write!(text, "id: {after}\ndata: {frame}\n\n"),
            Told::Alert { seq, frame, after: None } => write!(text, "id: {seq}\ndata: {frame}\n\n"),
            Told::Gap { .. } => write!(text, "event: gap\ndata: {}\n\n", told.frame()),
        };
    }
    text
}
