//! What a request is told of its body, and what it takes of the budget of all requests until then.

use tidegate_pipeline::Problem;

use super::Job;
use super::settle::Waiting;
use crate::decode::{BodyError, BodyResult};
use crate::http::{Held, busy};

/// What the request waits for. The bytes of the body are given back here, those of its rows and its answer when the answer
/// has been sent; so are, for the ids in it, those of a body whose items are all in the answer.
pub(super) fn waiting(job: Job, result: BodyResult, made: usize) -> Waiting {
    let items = result.items as usize;
    let mut held = job.sent.held;
    if !job.detail {
        held.keep(made);
    }
    Waiting {
        reply: job.reply,
        detail: job.detail,
        items,
        rejected: result.rejected,
        broken: result.error.map(refusal),
        held: Some(held),
    }
}

/// What an item costs that stands in the answer with its id, in bytes.
pub(super) const DETAIL_BYTES: usize = 192;

const NO_ROOM: &str = "too_many_bytes_in_flight";

/// Takes bytes for what is made of a body.
///
/// # Errors
/// Why nothing of the body is stored: what one body can never have is too large, not busy.
pub(super) fn charge(held: &mut Held, bytes: usize) -> Result<(), BodyError> {
    if bytes > held.room_bytes() {
        let reason = "what the body's events and their answer take does not fit into inflight_bytes_max".to_owned();
        return Err(BodyError { code: "body_too_large", reason });
    }
    if held.grow(bytes) { Ok(()) } else { Err(BodyError { code: NO_ROOM, reason: String::new() }) }
}

/// Why nothing of a body is stored.
fn refusal(error: BodyError) -> Problem {
    let hint = match error.code {
        NO_ROOM => return busy(),
        "body_too_large" => "nothing of this body was stored; send fewer events in each request, or without detail=all",
        "too_many_rejected" => {
            "nothing of this body was stored; is it what its Content-Type says? If so, send it in parts"
        }
        _ => return Problem::new(400, error.code, error.reason).hint("nothing of this body was stored"),
    };
    Problem::new(413, error.code, error.reason).hint(hint)
}

pub(super) fn too_large(job: Job) {
    let message = "its events take more than 1 GiB once they are decoded".to_owned();
    let _ = job.reply.send(Err(refusal(BodyError { code: "body_too_large", reason: message })));
}

pub(super) fn fail(job: Job) {
    tracing::error!(request_id = &*job.request_id, org_id = &*job.org_id, "a body made the decoder fail");
    let problem = Problem::new(500, "decode_failed", "the server failed to decode this body; nothing of it was stored")
        .hint("the log of the server has the reason under this request id; please report it with the body");
    let _ = job.reply.send(Err(problem));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::InFlight;

    #[test]
    fn what_one_body_can_never_have_is_too_large_and_what_others_have_is_busy() {
        let inflight = InFlight::new(80_000, 1_000);
        let mut held = inflight.enter().expect("room");
        let room = held.room_bytes();
        assert_eq!(charge(&mut held, room + 1).expect_err("a byte more").code, "body_too_large");
        charge(&mut held, room).expect("all that there is");
        assert_eq!(charge(&mut held, 1).expect_err("none is left").code, "body_too_large");
        held.shrink(room);
        let mut other = inflight.enter().expect("room");
        assert!(other.grow(10_000));
        let error = charge(&mut held, room).expect_err("another has some");
        assert_eq!((error.code, refusal(error).status), (NO_ROOM, 429));
    }
}
