//! Undoing the content encodings of a body within two bounds: that of the body, and what all bodies may hold.

use tidegate_pipeline::Problem;

use super::Job;
use crate::http::{Held, busy};
use crate::inflate::{Encoding, InflateError, inflate};

/// An encoded body is first given this many times its size to inflate into, and all it may have only when that was too
/// little: the budget of all bodies is then not held for what most of them do not need.
const FIRST_RATIO: usize = 24;

/// The bytes of a body with its encodings undone, counted against the budget of all bodies. `bytes_max` is for all layers
/// together.
///
/// # Errors
/// 400, 413 or 429, for the client.
pub(super) fn inflated(job: &mut Job, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = job.sent.assemble();
    let held = &mut job.sent.held;
    let mut left = bytes_max.min(held.large_bytes_max());
    for encoding in &job.encodings {
        bytes = layer(held, *encoding, &bytes, left)?;
        left -= bytes.len();
    }
    if bytes.len() > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(bytes)
}

/// Undoes one layer into at most `bytes_max` bytes.
fn layer(held: &mut Held, encoding: Encoding, sent: &[u8], bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let first = sent.len().saturating_mul(FIRST_RATIO).saturating_add(64 * 1024).min(bytes_max);
    for wanted in [first, bytes_max] {
        let given = held.grow_up_to(wanted);
        match inflate(encoding, sent, given) {
            Ok(bytes) => {
                held.shrink(given.saturating_sub(bytes.len()));
                return Ok(bytes);
            }
            Err(InflateError::TooLarge) if given < wanted => {
                held.shrink(given);
                return Err(busy());
            }
            Err(InflateError::TooLarge) => held.shrink(given),
            Err(error) => {
                held.shrink(given);
                return Err(Problem::new(400, "invalid_encoding", error.to_string())
                    .hint("the body is not what its Content-Encoding says; was it cut, or compressed twice?"));
            }
        }
        if wanted == bytes_max {
            break;
        }
    }
    Err(too_large(bytes_max))
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(413, "body_too_large", format!("the body inflates to more than {bytes_max} bytes"))
        .hint("send fewer events in each request; there is no bound on their number")
}
