//! `Content-Encoding` undone, within a budget of bytes: a bomb costs the budget and the time to write it, no more.
//!
//! gzip may have several members (RFC 1952, 2.2), zstd several frames (RFC 8878, 3.1) and skippable ones; `deflate` is zlib
//! (RFC 1950) as HTTP says, or raw deflate (RFC 1951) as many clients send.

use std::io::Read;

use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use thiserror::Error;

use crate::zstd_frames::Frames;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `gzip` (also `x-gzip`).
    Gzip,
    /// `zstd`.
    Zstd,
    /// `deflate`.
    Deflate,
    /// Not at all.
    Identity,
}

impl Encoding {
    /// The encoding of this name in `Content-Encoding`, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        let is = |known: &str| name.trim().eq_ignore_ascii_case(known);
        Some(match () {
            () if is("gzip") || is("x-gzip") => Self::Gzip,
            () if is("zstd") => Self::Zstd,
            () if is("deflate") => Self::Deflate,
            () if is("identity") || is("") => Self::Identity,
            () => return None,
        })
    }
}

/// Why a body cannot be inflated. Both are the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InflateError {
    /// It has more than the budget of bytes.
    #[error("the inflated body is larger than the bound")]
    TooLarge,
    /// It is not what its encoding says, or it breaks off.
    #[error("{0}")]
    Corrupt(String),
}

/// The first guess at how much longer the text is.
const USUAL_RATIO: usize = 8;

/// Undoes `encoding`: at most `budget_bytes` come out. For several encodings, call it once for each, from the last to the
/// first, and take what came out from the budget of the next.
///
/// # Errors
/// [`InflateError`].
pub fn inflate(encoding: Encoding, sent: &[u8], budget_bytes: usize) -> Result<Vec<u8>, InflateError> {
    let capacity = sent.len().saturating_mul(USUAL_RATIO).min(budget_bytes);
    read(open(encoding, sent)?, Vec::with_capacity(capacity), budget_bytes)
}

/// Undoes `encoding` when [`inflated_len`] has said what comes out: in one allocation of just that size.
///
/// # Errors
/// [`InflateError`].
pub fn inflate_to_len(encoding: Encoding, sent: &[u8], len: usize) -> Result<Vec<u8>, InflateError> {
    read(open(encoding, sent)?, Vec::with_capacity(len), len)
}

/// How many bytes come out, without keeping them: what a body may cost is known before its memory is taken.
///
/// # Errors
/// [`InflateError`]; too large is more than `budget_bytes`.
pub fn inflated_len(encoding: Encoding, sent: &[u8], budget_bytes: usize) -> Result<usize, InflateError> {
    let Body { name, mut from } = open(encoding, sent)?;
    let mut scratch = vec![0u8; 64 * 1024];
    let mut len = 0usize;
    loop {
        match from.read(&mut scratch) {
            Ok(0) => return Ok(len),
            Ok(read) => len += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(name, &error)),
        }
        if len > budget_bytes {
            return Err(InflateError::TooLarge);
        }
    }
}

/// A body that is being inflated.
struct Body<'a> {
    name: &'static str,
    from: Box<dyn Read + 'a>,
}

fn open(encoding: Encoding, sent: &[u8]) -> Result<Body<'_>, InflateError> {
    let (name, from): (_, Box<dyn Read + '_>) = match encoding {
        Encoding::Identity => return Ok(Body { name: "plain", from: Box::new(sent) }),
        Encoding::Gzip => ("gzip", Box::new(MultiGzDecoder::new(sent))),
        Encoding::Deflate if is_zlib(sent) => ("deflate", Box::new(ZlibDecoder::new(sent))),
        Encoding::Deflate => ("deflate", Box::new(DeflateDecoder::new(sent))),
        Encoding::Zstd => {
            let frames =
                Frames::new(sent).map_err(|error| InflateError::Corrupt(format!("not a zstd body: {error}")))?;
            ("zstd", Box::new(frames))
        }
    };
    if sent.is_empty() {
        return Err(InflateError::Corrupt(format!("not a {name} body: it is empty")));
    }
    Ok(Body { name, from })
}

fn broken(name: &str, error: &std::io::Error) -> InflateError {
    InflateError::Corrupt(format!("not a whole {name} body: {error}"))
}

/// Whether the first two bytes are a zlib header: method 8, a window of at most 32 KiB, and a check that divides by 31. Raw
/// deflate starts so only by chance, and then fails as zlib with a clear reason.
fn is_zlib(sent: &[u8]) -> bool {
    match sent {
        [method, flags, ..] => {
            method & 0x0f == 8 && method >> 4 <= 7 && (u16::from(*method) << 8 | u16::from(*flags)) % 31 == 0
        }
        _ => false,
    }
}

fn read(body: Body<'_>, mut inflated: Vec<u8>, budget_bytes: usize) -> Result<Vec<u8>, InflateError> {
    // One byte more than the budget tells a body that just fits from one that does not.
    let limit = u64::try_from(budget_bytes).unwrap_or(u64::MAX).saturating_add(1);
    body.from.take(limit).read_to_end(&mut inflated).map_err(|error| broken(body.name, &error))?;
    if inflated.len() > budget_bytes {
        return Err(InflateError::TooLarge);
    }
    Ok(inflated)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    fn raw(text: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 3).expect("memory")
    }

    #[test]
    fn every_encoding_gives_back_the_text_exactly_up_to_the_budget() {
        let text = br#"{"a":1}"#.repeat(1000);
        let cases: [(Encoding, Vec<u8>); 5] = [
            (Encoding::Identity, text.clone()),
            (Encoding::Gzip, gzip(&text)),
            (Encoding::Deflate, zlib(&text)),
            (Encoding::Deflate, raw(&text)),
            (Encoding::Zstd, zstd(&text)),
        ];
        for (encoding, sent) in cases {
            assert_eq!(inflate(encoding, &sent, text.len()), Ok(text.clone()), "{encoding:?}");
            assert_eq!(inflate(encoding, &sent, text.len() - 1), Err(InflateError::TooLarge), "{encoding:?}");
            assert_eq!(inflated_len(encoding, &sent, text.len()), Ok(text.len()), "{encoding:?}");
            assert_eq!(inflated_len(encoding, &sent, text.len() - 1), Err(InflateError::TooLarge), "{encoding:?}");
            let exact = inflate_to_len(encoding, &sent, text.len()).expect("whole");
            assert_eq!((exact.len(), exact.capacity()), (text.len(), text.len()), "{encoding:?}: one allocation");
        }
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        for (encoding, one, two) in
            [(Encoding::Gzip, gzip(b"one"), gzip(b"two")), (Encoding::Zstd, zstd(b"one"), zstd(b"two"))]
        {
            assert_eq!(inflate(encoding, &[one, two].concat(), 6), Ok(b"onetwo".to_vec()), "{encoding:?}");
        }
    }

    #[test]
    fn what_is_cut_damaged_or_something_else_is_corrupt() {
        let text = b"the quick brown fox ".repeat(100);
        for (encoding, sent) in [
            (Encoding::Gzip, gzip(&text)),
            (Encoding::Deflate, zlib(&text)),
            (Encoding::Deflate, raw(&text)),
            (Encoding::Zstd, zstd(&text)),
        ] {
            for cut in [0, 1, 5, sent.len() / 2, sent.len() - 1] {
                let result = inflate(encoding, &sent[..cut], 1 << 20);
                assert!(matches!(result, Err(InflateError::Corrupt(_))), "{encoding:?} cut at {cut}: {result:?}");
            }
            let result = inflate(encoding, b"{\"a\":1}", 1 << 20);
            assert!(matches!(result, Err(InflateError::Corrupt(_))), "{encoding:?}: {result:?}");
        }
        let mut gzipped = gzip(&text);
        let last = gzipped.len() - 6;
        gzipped[last] ^= 1;
        assert!(matches!(inflate(Encoding::Gzip, &gzipped, 1 << 20), Err(InflateError::Corrupt(_))));
    }

    #[test]
    fn bombs_stop_at_the_budget() {
        let zeros = vec![0u8; 64 << 20];
        for (encoding, bomb) in
            [(Encoding::Gzip, gzip(&zeros)), (Encoding::Deflate, zlib(&zeros)), (Encoding::Zstd, zstd(&zeros))]
        {
            assert!(bomb.len() < 1 << 20);
            assert_eq!(inflate(encoding, &bomb, 1 << 20), Err(InflateError::TooLarge), "{encoding:?}");
        }
    }

    #[test]
    fn a_zstd_window_beyond_the_bound_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.window_log(27).expect("a window");
        encoder.write_all(&vec![7u8; 1 << 20]).expect("memory");
        let sent = encoder.finish().expect("memory");
        assert!(matches!(inflate(Encoding::Zstd, &sent, 1 << 21), Err(InflateError::Corrupt(_))));
    }

    #[test]
    fn names_are_known_in_any_case() {
        for (name, want) in [
            ("gzip", Some(Encoding::Gzip)),
            (" X-GZIP", Some(Encoding::Gzip)),
            ("ZSTD", Some(Encoding::Zstd)),
            ("deflate", Some(Encoding::Deflate)),
            ("identity", Some(Encoding::Identity)),
            ("br", None),
        ] {
            assert_eq!(Encoding::from_name(name), want, "{name}");
        }
    }
}
