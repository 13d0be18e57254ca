//! Numbers of rules and of events, compared as numbers whatever they were written as.

use std::cmp::Ordering;

/// A number. Integers compare exactly; an integer and a float compare as floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Number {
    Int(i64),
    /// The bits of a finite `f64`.
    Float(u64),
}

impl Number {
    pub fn from_f64(value: f64) -> Self {
        Self::Float(value.to_bits())
    }

    fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(bits) => f64::from_bits(bits),
        }
    }

    /// The number that `text` is in decimal notation (`12`, `-3.5`, `1e6`): no hexadecimal, `inf` or `nan`.
    pub fn parse(text: &str) -> Option<Self> {
        let first = *text.as_bytes().first()?;
        if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) || text.len() > 64 {
            return None;
        }
        if let Ok(int) = text.parse() {
            return Some(Self::Int(int));
        }
        let allowed = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E');
        let float: f64 = if text.bytes().all(allowed) { text.parse().ok()? } else { return None };
        float.is_finite().then(|| Self::from_f64(float))
    }

    pub fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Int(left), Self::Int(right)) => left.cmp(&right),
            // Both are finite, so there always is an order; -0.0 equals 0.0.
            _ => self.as_f64().partial_cmp(&other.as_f64()).unwrap_or(Ordering::Equal),
        }
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
            ("1e3", Some(Number::from_f64(1000.0))),
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
        assert!(Comparison::GreaterOrEqual.holds(parse("0.30"), parse("0.3")));
        assert!(!Comparison::Greater.holds(parse("-1"), parse("1")));
    }
}
