//! Numbers that windows add up: exact while they can be.
//!
//! A value in decimal notation with up to 15 digits after the point and up to 10^16 before it is a whole number of 10^-15, as
//! money is in cost events: sums of these are exact, whatever order they come and go in. Anything else is a float: in sums it
//! counts as the whole number of [`Unit`]s next to it, so that these too are the same in any order, and one more or one less costs
//! the same however many there are.

use std::cmp::Ordering;

use crate::number::Number;

/// Digits after the point of an exact amount.
const SCALE: i32 = 15;
const UNIT: i128 = 10i128.pow(SCALE as u32);
/// Exact amounts stay below this, so that 2^20 of them add up without overflow.
const EXACT_MAX: u128 = 1 << 106;

/// With bounds up to this sums count in 10^-15.
const BOUND_MAX: f64 = 4e16;

/// What the sums of a correlation count in: 10^-15, or so much more that its bounds fit. A number beyond what fits counts as the
/// largest that does, which is past every bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Unit {
    /// In 10^-15.
    size: f64,
}

impl Unit {
    /// The unit for these bounds.
    pub fn of(bounds: impl Iterator<Item = Amount>) -> Self {
        let largest = bounds.map(|bound| bound.as_f64().abs()).fold(0.0, f64::max);
        let mut size = 1.0;
        while largest / size > BOUND_MAX {
            size *= 10.0;
        }
        Self { size }
    }

    /// Whether it is 10^-15.
    pub fn is_least(self) -> bool {
        self.size <= 1.0
    }

    /// How many units an amount is.
    pub fn count(self, amount: Amount) -> i128 {
        match amount {
            Amount::Exact(value) if self.is_least() => value,
            other => {
                let units = (other.as_f64() / self.size * UNIT as f64).round() as i128;
                units.clamp(-(EXACT_MAX as i128), EXACT_MAX as i128)
            }
        }
    }
}

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Amount {
    /// In units of 10^-15.
    Exact(i128),
    /// Finite.
    Float(f64),
}

impl Amount {
    /// A count.
    pub fn whole(value: u64) -> Self {
        Self::Exact(i128::from(value) * UNIT)
    }

    /// The number that a text is in decimal notation.
    pub fn parse(text: &str) -> Option<Self> {
        let number = Number::parse(text.trim())?;
        let (digits, exponent) = number.parts();
        let exact = u32::try_from(exponent.saturating_add(SCALE))
            .ok()
            .and_then(|power| digits.checked_mul(10i128.checked_pow(power)?))
            .filter(|exact| exact.unsigned_abs() < EXACT_MAX);
        let float = || Some(number.as_f64()).filter(|float| float.is_finite()).map(Self::Float);
        exact.map(Self::Exact).or_else(float)
    }

    pub fn as_f64(self) -> f64 {
        match self {
            Self::Exact(value) => value as f64 / UNIT as f64,
            Self::Float(value) => value,
        }
    }

    /// A total order: by value, and where values are equal exact before float.
    pub fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Exact(left), Self::Exact(right)) => left.cmp(&right),
            (left, right) => left.as_f64().total_cmp(&right.as_f64()).then_with(|| left.kind().cmp(&right.kind())),
        }
    }

    /// By value alone.
    pub fn compare_value(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Exact(left), Self::Exact(right)) => left.cmp(&right),
            (left, right) => left.as_f64().partial_cmp(&right.as_f64()).unwrap_or(Ordering::Equal),
        }
    }

    fn kind(self) -> u8 {
        u8::from(matches!(self, Self::Float(_)))
    }

    /// `self / count`: exact to the last of its digits, rounded down.
    pub fn divided(self, count: u64) -> Self {
        match self {
            Self::Exact(value) => Self::Exact(value.div_euclid(i128::from(count.max(1)))),
            Self::Float(value) => Self::Float(value / count.max(1) as f64),
        }
    }

    /// `self + (other - self) × part / whole`.
    pub fn towards(self, other: Self, part: u64, whole: u64) -> Self {
        if part == 0 {
            return self;
        }
        if let (Self::Exact(from), Self::Exact(to)) = (self, other) {
            let step = to.checked_sub(from).and_then(|step| step.checked_mul(i128::from(part)));
            if let Some(step) = step {
                return Self::Exact(from + step.div_euclid(i128::from(whole.max(1))));
            }
        }
        let (from, to) = (self.as_f64(), other.as_f64());
        Self::Float(from + (to - from) * part as f64 / whole.max(1) as f64)
    }

    /// For alerts: a whole number as one, anything else as a float.
    pub fn to_json(self) -> serde_json::Value {
        if let Self::Exact(value) = self
            && value % UNIT == 0
            && let Ok(whole) = i64::try_from(value / UNIT)
        {
            return whole.into();
        }
        serde_json::Number::from_f64(self.as_f64()).map_or(serde_json::Value::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> Amount {
        Amount::parse(text).unwrap_or_else(|| panic!("{text} is no number"))
    }

    #[test]
    fn decimals_are_exact_and_the_rest_are_floats() {
        assert_eq!(amount("0.1"), Amount::Exact(UNIT / 10));
        assert_eq!(amount("-3"), Amount::Exact(-3 * UNIT));
        assert!(matches!(amount("1e300"), Amount::Float(_)));
        assert!(matches!(amount("0.0000000000000001"), Amount::Float(_)));
        assert!(matches!(amount("9223372036854775807999"), Amount::Float(_)));
        assert_eq!(Amount::parse("x"), None);
        assert_eq!(amount("1e3"), Amount::whole(1_000));
        assert_eq!(Amount::parse("inf"), None);
        assert_eq!(Amount::parse("1e400"), None);
    }

    #[test]
    fn units_hold_what_bounds_ask_for() {
        let unit = |bounds: &[&str]| Unit::of(bounds.iter().map(|bound| amount(bound)));
        let least = unit(&["5", "-100"]);
        assert!(least.is_least());
        assert_eq!(least.count(amount("2.5")), 5 * UNIT / 2);
        assert_eq!(least.count(amount("0.1234567890123456")), 123_456_789_012_346);
        assert_eq!(least.count(amount("1e-20")), 0);
        assert_eq!(least.count(amount("-1e300")), -(EXACT_MAX as i128));
        for (bound, less, more) in
            [("1e20", "9.9e19", "1.1e20"), ("1e300", "9e299", "2e300"), ("5e16", "4.9e16", "1e18")]
        {
            let unit = unit(&[bound]);
            assert!(!unit.is_least(), "{bound}");
            let counts = [less, bound, more].map(|text| unit.count(amount(text)));
            assert!(counts.is_sorted_by(|left, right| left < right), "{bound}: {counts:?}");
            assert_eq!(unit.count(amount(&format!("-{more}"))), -counts[2]);
        }
    }

    #[test]
    fn parts_of_the_way_and_shares_are_exact() {
        assert_eq!(amount("1").towards(amount("2"), 1, 2), amount("1.5"));
        assert_eq!(amount("1").towards(amount("2"), 0, 2), amount("1"));
        assert_eq!(amount("-3").divided(2), amount("-1.5"));
        assert_eq!(amount("1e300").divided(2).as_f64(), 5e299);
        assert_eq!(amount("2").compare_value(amount("2e0")), Ordering::Equal);
        assert_eq!(amount("2.50").to_json(), serde_json::json!(2.5));
        assert_eq!(Amount::whole(7).to_json(), serde_json::json!(7));
    }
}
