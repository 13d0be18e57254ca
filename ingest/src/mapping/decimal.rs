//! Money and quantities from the text of a number, exactly.

use tidegate_events::focus::{DECIMAL_PRECISION, DECIMAL_SCALE};

/// The first unscaled decimal that has too many digits.
const LIMIT: i128 = 10i128.pow(DECIMAL_PRECISION as u32);
/// Any number of so many digits fits 64 bits.
const SHORT_MAX: usize = 19;
/// Powers of ten.
const POWERS: [u64; DECIMAL_SCALE as usize + 1] = {
    let mut powers = [1; DECIMAL_SCALE as usize + 1];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

/// An unscaled decimal of [`DECIMAL_SCALE`] digits after the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decimal {
    /// The value times 10^15.
    pub unscaled: i128,
    /// Whether the text said just that; if not, it was rounded half to even.
    pub exact: bool,
}

/// The decimal that `text` writes: digits with an optional sign, point and exponent. `None` when it is no number, or has
/// more digits before the point than fit.
pub fn parse(text: &str) -> Option<Decimal> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if let Some(unscaled) = short(digits) {
        return (unscaled < LIMIT)
            .then_some(Decimal { unscaled: if negative { -unscaled } else { unscaled }, exact: true });
    }
    let (mantissa, exponent) = match digits.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (digits.get(..at)?, std::str::from_utf8(digits.get(at + 1..)?).ok()?.parse::<i32>().ok()?),
        None => (digits, 0),
    };
    let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
        Some(at) => (mantissa.get(..at)?, mantissa.get(at + 1..)?),
        None => (mantissa, &[][..]),
    };
    let mut all = whole.iter().chain(fraction);
    if (whole.is_empty() && fraction.is_empty()) || !all.all(u8::is_ascii_digit) {
        return None;
    }
    // The weight of the next digit, as a power of ten of the unscaled value.
    let mut weight = i64::try_from(whole.len()).ok()? - 1 + i64::from(exponent) + i64::from(DECIMAL_SCALE);
    let mut unscaled: i128 = 0;
    let (mut half, mut beyond) = (0u8, false);
    for digit in whole.iter().chain(fraction).map(|byte| byte - b'0') {
        match weight {
            0.. => {
                let power = 10i128.checked_pow(u32::try_from(weight).ok()?);
                match power.and_then(|power| power.checked_mul(i128::from(digit))) {
                    Some(value) => unscaled = unscaled.checked_add(value)?,
                    None if digit == 0 => {}
                    None => return None,
                }
            }
            -1 => half = digit,
            _ => beyond |= digit != 0,
        }
        weight -= 1;
    }
    let exact = half == 0 && !beyond;
    let odd = unscaled % 2 == 1;
    if half > 5 || (half == 5 && (beyond || odd)) {
        unscaled = unscaled.checked_add(1)?;
    }
    (unscaled < LIMIT).then_some(Decimal { unscaled: if negative { -unscaled } else { unscaled }, exact })
}

/// What most numbers are: some of [`SHORT_MAX`] digits at most, without an exponent, of which no more than [`DECIMAL_SCALE`] follow the point.
#[inline]
fn short(digits: &[u8]) -> Option<i128> {
    let (mut value, mut count, mut point) = (0u64, 0, None);
    for byte in digits {
        match byte {
            b'0'..=b'9' => {
                value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
                count += 1;
            }
            b'.' if point.is_none() => point = Some(count),
            _ => return None,
        }
    }
    let fraction = count - point.unwrap_or(count);
    if count == 0 || count > SHORT_MAX {
        return None;
    }
    Some(i128::from(value) * i128::from(*POWERS.get((DECIMAL_SCALE as usize).checked_sub(fraction)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: i128 = 1_000_000_000_000_000;

    fn check(text: &str, want: Option<(i128, bool)>) {
        assert_eq!(parse(text).map(|decimal| (decimal.unscaled, decimal.exact)), want, "{text}");
    }

    #[test]
    fn numbers_are_read_exactly_or_rounded_half_to_even() {
        check("0.00000080000", Some((800_000_000, true)));
        check("-12.5", Some((-12 * ONE - ONE / 2, true)));
        check("+3", Some((3 * ONE, true)));
        check(".5", Some((ONE / 2, true)));
        check("5.", Some((5 * ONE, true)));
        check("1e-7", Some((100_000_000, true)));
        check("1.5E3", Some((1500 * ONE, true)));
        check("0.0000000000000005", Some((0, false)));
        check("0.0000000000000015", Some((2, false)));
        check("0.00000000000000051", Some((1, false)));
        check("0.1234567890123454999", Some((123_456_789_012_345, false)));
        check("1.0000000000000000000000", Some((ONE, true)));
        check("999999999999999.999999999999999", Some((10i128.pow(30) - 1, true)));
        check("0e999999", Some((0, true)));
    }

    #[test]
    fn what_does_not_fit_or_is_no_number_is_none() {
        for text in [
            "",
            "-",
            ".",
            "e5",
            "1e",
            "1e5e5",
            "abc",
            "1,000",
            "0x10",
            "NaN",
            "inf",
            "1000000000000000",
            "1e15",
            "1e999999",
            "999999999999999.9999999999999999",
            "1e99999999999",
            "170141183460469231731687.3037158841057279",
            "--1",
            "1 ",
        ] {
            check(text, None);
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_was_written(unscaled in -(10i128.pow(30) - 1)..10i128.pow(30)) {
            let text = format!("{}{}.{:015}", if unscaled < 0 { "-" } else { "" }, unscaled.abs() / ONE, unscaled.abs() % ONE);
            prop_assert_eq!(parse(&text), Some(Decimal { unscaled, exact: true }));
        }

        #[test]
        fn any_text_is_safe(text in "[-+0-9.eE]{0,60}") {
            let _ = parse(&text);
        }
    }
}
