//! Undoing the content encodings of a body within two bounds: that of the body, and what all bodies may hold.

use tidegate_pipeline::Problem;

use super::Job;
use crate::http::{Held, busy};
use crate::inflate::{Encoding, InflateError, inflate, inflate_to_len, inflated_len};

/// An encoded body is first given this many times its size to inflate into. Most need less; of one that needs more, the
/// length is found out before its memory is taken, so that a bomb costs time only.
const GUESS_RATIO: usize = 24;

/// The largest guess. Beyond it, the memory of growing step by step costs more than finding out the length first.
const GUESS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The bytes of a body with its encodings undone, counted against the budget of all bodies. `bytes_max` is for all layers
/// together.
///
/// # Errors
/// 400, 413 or 429, for the client.
pub(super) fn inflated(job: &mut Job, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = job.sent.assemble();
    let held = &mut job.sent.held;
    // What one body can never have is too large, not busy.
    let mut left = bytes_max.min(held.room_bytes());
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
    let guess = sent.len().saturating_mul(GUESS_RATIO).saturating_add(64 * 1024);
    if guess <= GUESS_BYTES_MAX {
        let guess = guess.min(bytes_max);
        if !held.grow(guess) {
            return Err(busy());
        }
        match inflate(encoding, sent, guess) {
            Ok(bytes) => {
                held.shrink(guess - bytes.len());
                return Ok(bytes);
            }
            Err(InflateError::TooLarge) if guess < bytes_max => held.shrink(guess),
            Err(error) => return Err(refusal(error, bytes_max)),
        }
    }
    let len = inflated_len(encoding, sent, bytes_max).map_err(|error| refusal(error, bytes_max))?;
    if !held.grow(len) {
        return Err(busy());
    }
    inflate_to_len(encoding, sent, len).map_err(|error| refusal(error, bytes_max))
}

fn refusal(error: InflateError, bytes_max: usize) -> Problem {
    match error {
        InflateError::TooLarge => too_large(bytes_max),
        InflateError::Corrupt(reason) => Problem::new(400, "invalid_encoding", reason)
            .hint("the body is not what its Content-Encoding says; was it cut, or compressed twice?"),
    }
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(413, "body_too_large", format!("the body inflates to more than {bytes_max} bytes"))
        .hint("send fewer events in each request; there is no bound on their number")
}

#[cfg(test)]
mod tests {
    use tidegate_pipeline::Ack;

    use super::*;
    use crate::batcher::tests::job_with_answer;
    use crate::http::Sent;

    fn layers(body: &[u8], count: usize) -> Vec<Vec<u8>> {
        let mut layers = vec![body.to_vec()];
        for _ in 0..count {
            let inner = layers.last().expect("a body").as_slice();
            layers.push(zstd::encode_all(inner, 1).expect("memory"));
        }
        layers
    }

    #[test]
    fn all_layers_of_a_body_share_one_bound_and_are_held_to_the_byte() {
        // The last does not fit the first guess.
        for (bytes, encodings) in [(100, 0), (50_000, 1), (50_000, 2), (50_000, 3), (5_000_000, 1), (5_000_000, 2)] {
            let layers = layers(&vec![b' '; bytes], encodings);
            let sum: usize = layers[..encodings].iter().map(Vec::len).sum();
            let bound = if encodings == 0 { bytes } else { sum };
            for (bytes_max, fits) in [(bound, true), (bound - 1, false), (bound + 1, true)] {
                let (mut job, _) = job_with_answer("", Ack::Disk);
                job.sent = Sent::of(&layers[encodings]);
                job.encodings = vec![Encoding::Zstd; encodings];
                let room = job.sent.held.room_bytes();
                let context = format!("{bytes} bytes in {encodings} layers, at most {bytes_max}");
                match inflated(&mut job, bytes_max) {
                    Ok(inflated) => {
                        assert!(fits && inflated == layers[0], "{context}");
                        assert_eq!(room - job.sent.held.room_bytes(), sum, "{context}");
                    }
                    Err(problem) => assert!(!fits && problem.status == 413, "{context}: {problem:?}"),
                }
            }
        }
    }
}
