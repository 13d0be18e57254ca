//! One JSON text to a tape, with the cases that simd-json refuses although they are JSON: a number that no 64-bit type holds
//! becomes text, and the escape of a lone surrogate becomes U+FFFD.

use simd_json::{Buffers, ErrorType, INPUT_PADDING, Tape, fill_tape_padded};

use super::scan;

/// Parses one text at a time; keeps its buffers.
pub(super) struct JsonParser {
    buffers: Buffers,
    scratch: Vec<u8>,
    repaired: Vec<u8>,
    repaired_scratch: Vec<u8>,
    tape: Option<Tape<'static>>,
    depth_max: usize,
    longest: usize,
}

/// A parsed text.
pub(super) struct Parsed<'p> {
    /// The tape.
    pub(super) tape: Tape<'p>,
    /// The text that the tape was made of, before simd-json unescaped its strings in place.
    pub(super) text: &'p [u8],
    /// Where values and punctuation stand in `text`.
    pub(super) structurals: &'p [u32],
    /// Whether the text had to be repaired.
    pub(super) repaired: bool,
}

/// Why a text is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    /// `malformed_json`, `invalid_utf8` or `too_deep`.
    pub(super) code: &'static str,
    /// For the sender.
    pub(super) reason: String,
}

/// Buffers for texts beyond this are given back to the allocator at the next flush.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// So are those of a text that was hardly more than punctuation.
pub(super) const KEPT_NODES_MAX: usize = 1 << 18;

impl JsonParser {
    pub(super) fn new(depth_max: usize) -> Self {
        Self {
            buffers: Buffers::with_max_depth(4096, depth_max),
            scratch: Vec::new(),
            repaired: Vec::new(),
            repaired_scratch: Vec::new(),
            tape: None,
            depth_max,
            longest: 0,
        }
    }

    /// Gives back the memory that an unusually long text took.
    pub(super) fn shrink(&mut self) {
        let nodes = self.tape.as_ref().map_or(0, |tape| tape.0.capacity());
        if self.longest > KEPT_BYTES_MAX || nodes > KEPT_NODES_MAX {
            *self = Self::new(self.depth_max);
        }
    }

    /// Takes back the tape of [`parse`](Self::parse), for its allocation.
    pub(super) fn give_back(&mut self, tape: Tape<'static>) {
        self.tape = Some(tape);
    }

    /// Parses a text of several events, after `before`, as one value, which may be nested one deeper; `None` when it is not plain
    /// JSON. There is no check before the parser's own, so the text must be short enough to spend 30 bytes of memory on each of its
    /// bytes.
    pub(super) fn parse_whole<'p>(&'p mut self, before: &[u8], text: &[u8]) -> Option<Tape<'p>> {
        let Self { buffers, scratch, tape, longest, .. } = self;
        *longest = (*longest).max(text.len());
        let mut whole: Tape<'p> = tape.take().unwrap_or_else(Tape::null).reset();
        pad(scratch, before, text);
        match fill_tape_padded(scratch, before.len() + text.len(), buffers, &mut whole) {
            Ok(()) => Some(whole),
            Err(_) => {
                *tape = Some(whole.reset());
                None
            }
        }
    }

    /// Parses `text`.
    pub(super) fn parse<'p>(&'p mut self, text: &'p [u8]) -> Result<Parsed<'p>, Malformed> {
        let Self { buffers, scratch, repaired, repaired_scratch, tape, depth_max, longest } = self;
        *longest = (*longest).max(text.len());
        // The parser would refuse it too, but only after it made an index of every bracket.
        if scan::is_deeper_than(text, *depth_max) {
            return Err(too_deep(*depth_max));
        }
        let mut first: Tape<'p> = tape.take().unwrap_or_else(Tape::null).reset();
        pad(scratch, b"", text);
        let Err(error) = fill_tape_padded(scratch, text.len(), buffers, &mut first) else {
            return Ok(Parsed { tape: first, text, structurals: buffers.structural_indexes(), repaired: false });
        };
        let refused = refusal(&error, text, *depth_max);
        if !repair(text, repaired) {
            *tape = Some(first.reset());
            return Err(refused);
        }
        let mut second: Tape<'p> = first.reset();
        pad(repaired_scratch, b"", repaired);
        match fill_tape_padded(repaired_scratch, repaired.len(), buffers, &mut second) {
            Ok(()) => {
                Ok(Parsed { tape: second, text: repaired, structurals: buffers.structural_indexes(), repaired: true })
            }
            Err(_) => {
                *tape = Some(second.reset());
                Err(refused)
            }
        }
    }
}

fn pad(scratch: &mut Vec<u8>, before: &[u8], text: &[u8]) {
    let padded = before.len() + text.len() + INPUT_PADDING;
    scratch.clear();
    scratch.reserve(padded);
    scratch.extend_from_slice(before);
    scratch.extend_from_slice(text);
    scratch.resize(padded, b' ');
}

fn too_deep(depth_max: usize) -> Malformed {
    Malformed { code: "too_deep", reason: format!("objects and arrays are nested more than {depth_max} deep") }
}

fn refusal(error: &simd_json::Error, text: &[u8], depth_max: usize) -> Malformed {
    if let Err(error) = std::str::from_utf8(text) {
        return Malformed { code: "invalid_utf8", reason: format!("not UTF-8 at byte {}", error.valid_up_to()) };
    }
    let reason = match error.error() {
        ErrorType::DepthLimitExceeded => return too_deep(depth_max),
        // The first pass over the text knows no place.
        ErrorType::Syntax | ErrorType::Eof if error.index() == 0 => {
            "not valid JSON: a string that does not end, a control character in a string, or nothing at all".to_owned()
        }
        kind => format!("not valid JSON at byte {}: {kind:?}", error.index()),
    };
    Malformed { code: "malformed_json", reason }
}

/// Writes `text` to `into` with numbers that no 64-bit type holds in quotes, and escapes of lone surrogates replaced; false
/// when there are none.
fn repair(text: &[u8], into: &mut Vec<u8>) -> bool {
    into.clear();
    let mut changed = false;
    let mut at = 0;
    let mut in_string = false;
    while let Some(byte) = text.get(at).copied() {
        let len = match (in_string, byte) {
            (true, b'\\') => {
                let (len, lone) = escape(text.get(at..).unwrap_or_default());
                if lone {
                    changed = true;
                    into.extend_from_slice(b"\\ufffd");
                    at += len;
                    continue;
                }
                len
            }
            (_, b'"') => {
                in_string = !in_string;
                1
            }
            (false, b'-' | b'0'..=b'9') => {
                let number = number_at(text, at);
                if beyond_64_bits(number) && is_value(text, at + number.len()) {
                    changed = true;
                    into.push(b'"');
                    into.extend_from_slice(number);
                    into.push(b'"');
                    at += number.len();
                    continue;
                }
                number.len()
            }
            _ => 1,
        };
        into.extend_from_slice(text.get(at..at + len).unwrap_or_default());
        at += len;
    }
    changed
}

/// The length of the escape at the start of `text`, and whether it is one of a lone surrogate.
fn escape(text: &[u8]) -> (usize, bool) {
    let unit = |at: usize| -> Option<u32> {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    };
    match (unit(0), unit(6)) {
        (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => (12, false),
        (Some(0xd800..0xe000), _) => (6, true),
        (Some(_), _) => (6, false),
        (None, _) => (2.min(text.len()), false),
    }
}

/// The characters of a number that start at `at`.
pub(super) fn number_at(text: &[u8], at: usize) -> &[u8] {
    let rest = text.get(at..).unwrap_or_default();
    let end = rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
    rest.get(..end.unwrap_or(rest.len())).unwrap_or_default()
}

/// Whether `number` is one in JSON's grammar that fits neither 64 signed or unsigned bits nor a finite float.
fn beyond_64_bits(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else { return false };
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(head, tail)| (head, Some(tail)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(head, tail)| (head, Some(tail)));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let grammatical = all_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(all_digits)
        && exponent.is_none_or(|part| all_digits(part.strip_prefix(['+', '-']).unwrap_or(part)));
    if !grammatical {
        return false;
    }
    if fraction.is_none() && exponent.is_none() {
        return text.parse::<i64>().is_err() && text.parse::<u64>().is_err();
    }
    text.parse::<f64>().is_ok_and(f64::is_infinite)
}

/// Whether what ends at `end` is a value, not a key.
fn is_value(text: &[u8], end: usize) -> bool {
    let rest = text.get(end..).unwrap_or_default();
    matches!(rest.iter().find(|byte| !byte.is_ascii_whitespace()), None | Some(b',' | b']' | b'}'))
}
