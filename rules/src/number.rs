//! Numbers of rules and of events, compared as numbers whatever they were written as.

use std::cmp::Ordering;

/// A number. Numbers in plain decimal notation compare exactly, money included; what has an exponent, or more digits than
/// fit, compares as a float.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Number {
    Int(i64),
    /// `digits` × 10^-`scale`; not a whole number that fits [`Int`](Self::Int), and without trailing zeros.
    Decimal {
        digits: i128,
        scale: u8,
    },
    /// The bits of a finite `f64`.
    Float(u64),
}

impl Number {
    /// The number that was written so in a rule: the shortest text that reads as this float.
    pub fn from_f64(value: f64) -> Self {
        Self::parse_decimal(&value.to_string()).unwrap_or(Self::Float(value.to_bits()))
    }

    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Decimal { digits, scale } => digits as f64 / 10f64.powi(i32::from(scale)),
            Self::Float(bits) => f64::from_bits(bits),
        }
    }

    /// The number that `text` is in decimal notation (`12`, `-3.5`, `1e6`): no hexadecimal, `inf` or `nan`.
    pub fn parse(text: &str) -> Option<Self> {
        let first = *text.as_bytes().first()?;
        if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) || text.len() > 64 {
            return None;
        }
        if let Some(exact) = Self::parse_decimal(text) {
            return Some(exact);
        }
        let allowed = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E');
        let float: f64 = if text.bytes().all(allowed) { text.parse().ok()? } else { return None };
        float.is_finite().then(|| Self::Float(float.to_bits()))
    }

    /// `12`, `-3.50`, `.5`: exactly, in the one form that equal numbers share.
    fn parse_decimal(text: &str) -> Option<Self> {
        if let Ok(int) = text.parse() {
            return Some(Self::Int(int));
        }
        let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
            Some(rest) => (text.starts_with('-'), rest),
            None => (false, text),
        };
        let (whole, fraction) = unsigned.split_once('.')?;
        let fraction = fraction.trim_end_matches('0');
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let count = whole.len() + fraction.len();
        if !(is_digits(whole) && is_digits(fraction)) || unsigned.len() < 2 || count > 36 {
            return None;
        }
        let digits =
            whole.bytes().chain(fraction.bytes()).fold(0i128, |sum, digit| sum * 10 + i128::from(digit - b'0'));
        let digits = if negative { -digits } else { digits };
        match (fraction.len(), i64::try_from(digits)) {
            (0, Ok(int)) => Some(Self::Int(int)),
            (scale, _) => Some(Self::Decimal { digits, scale: scale as u8 }),
        }
    }

    pub fn digits(self) -> Option<(i128, u8)> {
        match self {
            Self::Int(value) => Some((i128::from(value), 0)),
            Self::Decimal { digits, scale } => Some((digits, scale)),
            Self::Float(_) => None,
        }
    }

    pub fn compare(self, other: Self) -> Ordering {
        let aligned = self.digits().zip(other.digits()).and_then(|((left, left_scale), (right, right_scale))| {
            let scale = left_scale.max(right_scale);
            let left = left.checked_mul(10i128.checked_pow(u32::from(scale - left_scale))?)?;
            let right = right.checked_mul(10i128.checked_pow(u32::from(scale - right_scale))?)?;
            Some(left.cmp(&right))
        });
        // Both are finite, so there always is an order; -0.0 equals 0.0.
        aligned.unwrap_or_else(|| self.as_f64().partial_cmp(&other.as_f64()).unwrap_or(Ordering::Equal))
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

    #[test]
    fn text_is_a_number_only_in_decimal_notation() {
        for (text, number) in [
            ("42", Some(Number::Int(42))),
            ("-7", Some(Number::Int(-7))),
            ("1.5", Some(Number::from_f64(1.5))),
            ("1.50", Some(Number::from_f64(1.5))),
            ("-0.5", Some(Number::Decimal { digits: -5, scale: 1 })),
            ("7.000", Some(Number::Int(7))),
            (".5", Some(Number::from_f64(0.5))),
            ("1e3", Some(Number::Float(1000f64.to_bits()))),
            (".", None),
            ("-.", None),
            ("1.2.3", None),
            ("0x10", None),
            ("inf", None),
            ("-inf", None),
            ("nan", None),
            ("", None),
            ("-", None),
            ("12 ", None),
            ("1e999", None),
        ] {
            assert_eq!(Number::parse(text), number, "{text:?}");
        }
    }

    #[test]
    fn large_integers_compare_exactly_and_mixed_kinds_by_value() {
        let parse = |text| Number::parse(text).expect("a number");
        assert!(Comparison::Less.holds(parse("9007199254740992"), parse("9007199254740993")));
        assert!(Comparison::Equal.holds(parse("2.0"), parse("2")));
        assert!(Comparison::Equal.holds(parse("1e3"), parse("1000")));
        assert!(Comparison::Less.holds(parse("49.999999999999999"), parse("50")));
        assert!(Comparison::Greater.holds(parse("0.100000000000000001"), Number::from_f64(0.1)));
        assert!(Comparison::Less.holds(parse("-99999999999999999999.5"), parse("-99999999999999999999.4")));
        assert!(Comparison::Less.holds(parse("0.0000000000000000000000000000000001"), parse("9223372036854775807")));
        assert!(Comparison::GreaterOrEqual.holds(parse("0.30"), parse("0.3")));
        assert!(!Comparison::Greater.holds(parse("-1"), parse("1")));
    }
}
