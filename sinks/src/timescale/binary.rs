//! Values in PostgreSQL's binary formats, appended to a buffer: what `COPY … WITH (FORMAT binary)` takes.
//!
//! Constraints: no allocation a value; integers in network order; each field is its length (`int4`, -1 for null) and its
//! bytes. Formats are those of the types' receive functions: `timestamptz_recv` (microseconds since 2000-01-01), `numeric_recv`
//! (base 10,000 digits), `array_recv`, `jsonb_recv` (a version byte, then text). See the PostgreSQL documentation, chapters
//! "COPY: Binary Format" and "Frontend/Backend Protocol", and `src/backend/utils/adt/`.

use bytes::{BufMut, BytesMut};

/// What a stream of rows begins with: the signature, no flags, no extension.
pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub(super) const TRAILER: [u8; 2] = (-1i16).to_be_bytes();

/// The length of a null.
const NULL: i32 = -1;
/// Microseconds from 1970-01-01 to 2000-01-01.
const EPOCH_2000_US: i64 = 946_684_800_000_000;
/// The object id of the type `text`.
const TEXT_OID: i32 = 25;
/// What stands for a NUL, which PostgreSQL's text cannot hold: U+FFFD.
pub(super) const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

pub(super) fn null(out: &mut BytesMut) {
    out.put_i32(NULL);
}

pub(super) fn nulls(out: &mut BytesMut, count: usize) {
    out.put_bytes(0xff, count * 4);
}

pub(super) fn int2(out: &mut BytesMut, value: i16) {
    out.put_i32(2);
    out.put_i16(value);
}

pub(super) fn int4(out: &mut BytesMut, value: i32) {
    out.put_i32(4);
    out.put_i32(value);
}

pub(super) fn int8(out: &mut BytesMut, value: i64) {
    out.put_i32(8);
    out.put_i64(value);
}

pub(super) fn float8(out: &mut BytesMut, value: f64) {
    out.put_i32(8);
    out.put_f64(value);
}

pub(super) fn boolean(out: &mut BytesMut, value: bool) {
    out.put_i32(1);
    out.put_u8(u8::from(value));
}

/// A time in microseconds since 1970. The two ends of `i64` would be read as infinities: one off them, the server refuses
/// them as out of its range.
pub(super) fn timestamp(out: &mut BytesMut, micros: i64) {
    int8(out, micros.saturating_sub(EPOCH_2000_US).clamp(i64::MIN + 1, i64::MAX - 1));
}

/// Whether a NUL had to be replaced.
pub(super) fn text(out: &mut BytesMut, value: &str) -> bool {
    if !value.as_bytes().contains(&0) {
        out.put_i32(length(value.len()));
        out.put_slice(value.as_bytes());
        return false;
    }
    let at = begin(out);
    for (nth, part) in value.as_bytes().split(|byte| *byte == 0).enumerate() {
        if nth > 0 {
            out.put_slice(REPLACEMENT);
        }
        out.put_slice(part);
    }
    end(out, at);
    true
}

/// Leaves room for a length; [`end`] fills it in.
pub(super) fn begin(out: &mut BytesMut) -> usize {
    out.put_i32(0);
    out.len()
}

/// Fills in the length of what was appended since [`begin`].
pub(super) fn end(out: &mut BytesMut, at: usize) {
    let bytes = length(out.len() - at).to_be_bytes();
    out[at - 4..at].copy_from_slice(&bytes);
}

/// A length as the format has it. What is longer than it can say is refused by the server long before: rows end at 1 GiB.
fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

/// A `text[]`; whether a NUL had to be replaced.
pub(super) fn texts<'a>(
    out: &mut BytesMut,
    count: usize,
    has_nulls: bool,
    values: impl Iterator<Item = Option<&'a str>>,
) -> bool {
    let at = begin(out);
    out.put_i32(i32::from(count > 0));
    out.put_i32(i32::from(has_nulls));
    out.put_i32(TEXT_OID);
    let mut replaced = false;
    if count > 0 {
        out.put_i32(length(count));
        out.put_i32(1);
        for value in values {
            match value {
                Some(value) => replaced |= text(out, value),
                None => null(out),
            }
        }
    }
    end(out, at);
    replaced
}

/// Digits of one group of a `numeric`.
const GROUP: u64 = 10_000;
/// Groups of the largest `i128` (39 digits) with a point anywhere in it.
const GROUPS_MAX: usize = 12;

/// A `numeric` of `value / 10^scale`, without zeros at its end.
pub(super) fn numeric(out: &mut BytesMut, value: i128, scale: u8) {
    let scale = u32::from(scale.min(38));
    let one = 10u128.pow(scale);
    let magnitude = value.unsigned_abs();
    // Most amounts fit 64 bits, whose division is many times faster.
    let (whole, fraction) = match (u64::try_from(magnitude), u64::try_from(one)) {
        (Ok(magnitude), Ok(one)) => (u128::from(magnitude / one), u128::from(magnitude % one)),
        _ => (magnitude / one, magnitude % one),
    };
    // Groups are built from the point outwards: before it from the right, after it from the left.
    let (mut before, mut before_len) = ([0u16; GROUPS_MAX], 0);
    let mut rest = whole;
    while rest > 0 && before_len < GROUPS_MAX {
        (rest, before[before_len]) = split(rest);
        before_len += 1;
    }
    let (after, mut after_len, digits) = fraction_groups(fraction, scale);
    // Zeros at either end are not written.
    let leading = if before_len == 0 { after[..after_len].iter().take_while(|group| **group == 0).count() } else { 0 };
    let mut trailing = 0;
    if after_len == 0 {
        trailing = before[..before_len].iter().take_while(|group| **group == 0).count();
    }
    after_len -= leading;
    let weight = if before_len > 0 { before_len as i16 - 1 } else { -1 - leading as i16 };
    let count = before_len - trailing + after_len;
    out.put_i32(8 + 2 * count as i32);
    out.put_i16(count as i16);
    out.put_i16(if count == 0 { 0 } else { weight });
    out.put_u16(if value < 0 { 0x4000 } else { 0 });
    out.put_u16(digits as u16);
    before[trailing..before_len].iter().rev().for_each(|group| out.put_u16(*group));
    after[leading..leading + after_len].iter().for_each(|group| out.put_u16(*group));
}

fn split(number: u128) -> (u128, u16) {
    match u64::try_from(number) {
        Ok(number) => (u128::from(number / GROUP), (number % GROUP) as u16),
        Err(_) => (number / u128::from(GROUP), (number % u128::from(GROUP)) as u16),
    }
}

/// The groups after the point, without zero groups at the end; how many; and how many digits after the point they show.
fn fraction_groups(fraction: u128, scale: u32) -> ([u16; GROUPS_MAX], usize, u32) {
    let mut groups = [0u16; GROUPS_MAX];
    if fraction == 0 {
        return (groups, 0, 0);
    }
    let (mut fraction, mut digits) = (fraction, scale);
    while fraction.is_multiple_of(10) {
        fraction /= 10;
        digits -= 1;
    }
    // Aligned to whole groups: at most three digits more, which fit, for a fraction is below 10^38 and shorter by its zeros.
    let padded = digits.next_multiple_of(4);
    let len = (padded / 4) as usize;
    let last = (fraction % 10u128.pow(4 - (padded - digits))) as u16 * 10u16.pow(padded - digits);
    let mut rest = fraction / 10u128.pow(4 - (padded - digits));
    if len > 0 && len <= GROUPS_MAX {
        groups[len - 1] = last;
        for at in (0..len - 1).rev() {
            (rest, groups[at]) = split(rest);
        }
    }
    (groups, len.min(GROUPS_MAX), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a `numeric` says, read back with the rules of `numeric_recv`.
    fn read(bytes: &[u8]) -> String {
        let word = |at: usize| i64::from(i16::from_be_bytes([bytes[at], bytes[at + 1]]));
        assert_eq!(i32::from_be_bytes(bytes[..4].try_into().expect("4 bytes")) as usize, bytes.len() - 4);
        let (count, weight, sign, scale) = (word(4), word(6), word(8), word(10));
        let group = |power: i64| {
            let at = weight - power;
            if (0..count).contains(&at) { word(12 + 2 * at as usize) } else { 0 }
        };
        let mut whole: String = (0..=weight.max(0)).rev().map(|power| format!("{:04}", group(power))).collect();
        whole = whole.trim_start_matches('0').to_owned();
        let after: String = (0..(scale + 3) / 4).map(|at| format!("{:04}", group(-1 - at))).collect();
        let sign = if sign == 0x4000 { "-" } else { "" };
        let whole = if whole.is_empty() { "0" } else { &whole };
        if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{}", &after[..scale as usize]) }
    }

    #[test]
    fn decimals_become_numerics_without_zeros_at_their_ends() {
        let table: &[(i128, u8, &str)] = &[
            (0, 15, "0"),
            (1, 0, "1"),
            (12_340_000_000_000_000, 15, "12.34"),
            (-12_340_000_000_000_000, 15, "-12.34"),
            (1, 15, "0.000000000000001"),
            (100_000_000_000, 15, "0.0001"),
            (10_000 * 10i128.pow(15), 15, "10000"),
            (100_000_001 * 10i128.pow(14), 15, "10000000.1"),
            (999_999_999_999_999_999_999_999_999_999, 15, "999999999999999.999999999999999"),
            (123_456_789, 4, "12345.6789"),
            (1_000_000, 4, "100"),
            (5, 1, "0.5"),
            (50_005, 4, "5.0005"),
            (i128::MAX, 38, "1.70141183460469231731687303715884105727"),
            (i128::MIN, 0, "-170141183460469231731687303715884105728"),
            (i128::MAX, 1, "17014118346046923173168730371588410572.7"),
        ];
        for (value, scale, expected) in table {
            let mut out = BytesMut::new();
            numeric(&mut out, *value, *scale);
            assert_eq!(read(&out), *expected, "{value} / 10^{scale}: {out:?}");
        }
    }

    #[test]
    fn text_without_nul_goes_as_it_is_and_a_nul_is_replaced() {
        for (value, expected, replaced) in
            [("", "", false), ("aé", "aé", false), ("\0", "\u{fffd}", true), ("a\0\0b", "a\u{fffd}\u{fffd}b", true)]
        {
            let mut out = BytesMut::new();
            assert_eq!(text(&mut out, value), replaced);
            assert_eq!(&out[..4], (expected.len() as i32).to_be_bytes());
            assert_eq!(&out[4..], expected.as_bytes());
        }
    }
}
