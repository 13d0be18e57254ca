//! Numbers of rules and of events, compared as numbers whatever they were written as.

use std::cmp::Ordering;

/// Digits of a number that are kept as they are; what comes after them only says whether it is more than these.
const DIGITS_MAX: u32 = 37;
/// The longest text that may be a number: the longest that a float prints as, and more.
const TEXT_BYTES_MAX: usize = 512;
/// The most digits of an exponent.
const EXPONENT_BYTES_MAX: usize = 10;

/// A number in decimal notation. Comparisons are exact, money and counters beyond 64 bits included; of two numbers that have
/// more than 37 digits and the same first 37 it is not told which is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Number {
    Int(i64),
    /// `digits` × 10^`exponent`; no whole number that fits [`Int`](Self::Int), and without trailing zeros.
    Decimal {
        digits: i128,
        exponent: i32,
    },
}

impl Number {
    /// The number that was written so in a rule: the shortest text that reads as this float. `None` when it is none.
    pub fn from_f64(value: f64) -> Option<Self> {
        Self::parse(&format!("{value:e}"))
    }

    /// The float next to it; infinite when it is beyond all floats.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            // Always a float in decimal notation.
            Self::Decimal { digits, exponent } => format!("{digits}e{exponent}").parse().unwrap_or(f64::INFINITY),
        }
    }

    /// The number that `text` is in decimal notation (`12`, `-3.5`, `1e6`): no hexadecimal, `inf` or `nan`.
    pub fn parse(text: &str) -> Option<Self> {
        let first = *text.as_bytes().first()?;
        if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) || text.len() > TEXT_BYTES_MAX {
            return None;
        }
        if let Ok(int) = text.parse() {
            return Some(Self::Int(int));
        }
        let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
            Some(rest) => (first == b'-', rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) if exponent.len() <= EXPONENT_BYTES_MAX => (mantissa, exponent.parse().ok()?),
            Some(_) => return None,
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !(is_digits(whole) && is_digits(fraction)) || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        Some(Self::of_digits(negative, whole, fraction.trim_end_matches('0'), exponent))
    }

    fn of_digits(negative: bool, whole: &str, fraction: &str, exponent: i64) -> Self {
        let (mut digits, mut kept, mut more) = (0i128, 0, false);
        let mut exponent = exponent.saturating_sub(fraction.len() as i64);
        for digit in whole.bytes().chain(fraction.bytes()) {
            if kept < DIGITS_MAX {
                digits = digits * 10 + i128::from(digit - b'0');
                kept += u32::from(digits != 0);
            } else {
                exponent = exponent.saturating_add(1);
                more |= digit != b'0';
            }
        }
        if more {
            // Between the number that was kept and the next one.
            (digits, exponent) = (digits * 10 + 1, exponent.saturating_sub(1));
        }
        Self::normal(if negative { -digits } else { digits }, exponent)
    }

    /// In the one form that equal numbers share.
    fn normal(mut digits: i128, mut exponent: i64) -> Self {
        if digits == 0 {
            return Self::Int(0);
        }
        while digits % 10 == 0 {
            (digits, exponent) = (digits / 10, exponent.saturating_add(1));
        }
        let power = u32::try_from(exponent).ok().filter(|power| *power < 19);
        let int = power.and_then(|power| i64::try_from(digits.checked_mul(10i128.pow(power))?).ok());
        // Beyond ±2^31 one power of ten is like another.
        let exponent = exponent.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        int.map_or(Self::Decimal { digits, exponent }, Self::Int)
    }

    /// The number is the first × 10^the second.
    pub fn parts(self) -> (i128, i32) {
        match self {
            Self::Int(value) => (i128::from(value), 0),
            Self::Decimal { digits, exponent } => (digits, exponent),
        }
    }

    pub fn compare(self, other: Self) -> Ordering {
        if let (Self::Int(left), Self::Int(right)) = (self, other) {
            return left.cmp(&right);
        }
        let ((left, left_exponent), (right, right_exponent)) = (self.parts(), other.parts());
        if left.signum() != right.signum() || left == 0 {
            return left.signum().cmp(&right.signum());
        }
        let magnitude = |digits: i128, exponent: i32| i64::from(digits.unsigned_abs().ilog10()) + i64::from(exponent);
        let magnitudes = magnitude(left, left_exponent).cmp(&magnitude(right, right_exponent));
        if magnitudes.is_ne() {
            return if left < 0 { magnitudes.reverse() } else { magnitudes };
        }
        // As long as the longer of the two, so that it fits.
        let low = left_exponent.min(right_exponent);
        let aligned =
            |digits: i128, exponent: i32| digits.saturating_mul(10i128.saturating_pow(exponent.abs_diff(low)));
        aligned(left, left_exponent).cmp(&aligned(right, right_exponent))
    }
}

/// How an event's number must stand to the rule's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    pub fn holds(self, event: Number, rule: Number) -> bool {
        let ordering = event.compare(rule);
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(digits: i128, exponent: i32) -> Option<Number> {
        Some(Number::Decimal { digits, exponent })
    }

    #[test]
    fn text_is_a_number_only_in_decimal_notation() {
        for (text, number) in [
            ("42", Some(Number::Int(42))),
            ("-7", Some(Number::Int(-7))),
            ("+7", Some(Number::Int(7))),
            ("1.5", Number::from_f64(1.5)),
            ("1.50", Number::from_f64(1.5)),
            ("-0.5", decimal(-5, -1)),
            ("7.000", Some(Number::Int(7))),
            (".5", Number::from_f64(0.5)),
            ("5.", Some(Number::Int(5))),
            ("-0", Some(Number::Int(0))),
            ("-0.0e7", Some(Number::Int(0))),
            ("1e3", Some(Number::Int(1_000))),
            ("1E+3", Some(Number::Int(1_000))),
            ("1200e-2", Some(Number::Int(12))),
            ("9223372036854775807", Some(Number::Int(i64::MAX))),
            ("-9223372036854775808", Some(Number::Int(i64::MIN))),
            ("9223372036854775808", decimal(1 << 63, 0)),
            ("18446744073709551615", decimal(u64::MAX.into(), 0)),
            ("1e400", decimal(1, 400)),
            ("1e-400", decimal(1, -400)),
            (".", None),
            ("-.", None),
            ("1.2.3", None),
            ("0x10", None),
            ("inf", None),
            ("-inf", None),
            ("nan", None),
            ("", None),
            ("-", None),
            ("--1", None),
            ("12 ", None),
            ("e5", None),
            (".e5", None),
            ("1e", None),
            ("1e5.0", None),
            ("1e99999999999", None),
        ] {
            assert_eq!(Number::parse(text), number, "{text:?}");
        }
        assert_eq!(Number::parse(&"9".repeat(TEXT_BYTES_MAX + 1)), None);
        for float in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            assert_eq!(Number::from_f64(float), None);
        }
    }

    #[test]
    fn numbers_compare_exactly_however_large_or_small_they_are() {
        let nines = "9".repeat(36);
        // Ascending, all different.
        let ascending = [
            "-1e400",
            "-18446744073709551616",
            "-9223372036854775809",
            "-9223372036854775808",
            "-99999999.5",
            "-99999999.4",
            "-1",
            "-1e-400",
            "0",
            "0.0000000000000000000000000000000001",
            "0.1",
            "0.100000000000000001",
            "1",
            "49.999999999999999",
            "50",
            "9007199254740992",
            "9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "9223372036854775808.5",
            "9223372036854775809",
            "18446744073709551615",
            "18446744073709551616",
            &nines,
            &format!("{nines}.5"),
            &format!("{nines}9.00000000001"),
            "1e37",
            "1e308",
            "1.0000000000000000000000000000000000001e400",
            "2e400",
        ];
        let parse = |text: &str| Number::parse(text).unwrap_or_else(|| panic!("{text} is no number"));
        for (at, left) in ascending.iter().enumerate() {
            for (other, right) in ascending.iter().enumerate() {
                assert_eq!(parse(left).compare(parse(right)), at.cmp(&other), "{left} and {right}");
            }
        }
        for (left, right) in [
            ("2.0", "2"),
            ("1e3", "1000"),
            ("0.30", "0.3"),
            ("-0", "0.0"),
            ("1.8446744073709551616e19", "18446744073709551616"),
        ] {
            assert_eq!(parse(left), parse(right));
            assert!(
                Comparison::Equal.holds(parse(left), parse(right))
                    && Comparison::GreaterOrEqual.holds(parse(left), parse(right))
            );
        }
        assert_eq!(parse("1e300").as_f64(), 1e300);
        assert_eq!(parse("-0.1").as_f64(), -0.1);
        assert_eq!(parse("1e400").as_f64(), f64::INFINITY);
    }
}
