//! What is asked of one value: the second half of a predicate. Plain data, so that identical ones are one.

use std::net::IpAddr;

use regex::Regex;

use crate::compile::glob::Glob;
use crate::datetime::{TimePart, parse_time};
use crate::number::{Comparison, Number};

/// Where in the value a literal must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Whole,
    Anywhere,
    Start,
    End,
}

impl Place {
    /// Whether a text has another one there.
    pub fn holds(self, text: &str, other: &str) -> bool {
        match self {
            Self::Whole => text == other,
            Self::Anywhere => text.contains(other),
            Self::Start => text.starts_with(other),
            Self::End => text.ends_with(other),
        }
    }
}

/// A test of one value, given as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Matcher {
    /// The literal is at the place. Folded unless `cased`.
    Text { place: Place, literal: Box<str>, cased: bool },
    /// The pattern is the whole value. Folded unless `cased`.
    Glob { glob: Glob, cased: bool },
    /// The regular expression is found in the value, as it is.
    Regex(Box<str>),
    /// The value is an address in the network.
    Cidr(Cidr),
    /// The value is a number that compares so.
    Number { comparison: Comparison, number: Number },
    /// The value is a time, and this part of it (in UTC) compares so.
    Time { part: TimePart, comparison: Comparison, number: Number },
}

/// A network of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cidr {
    V4 { network: u32, mask: u32 },
    V6 { network: u128, mask: u128 },
}

impl Cidr {
    /// `10.0.0.0/8`, `fe80::/10`, or one address. Host bits are ignored; IPv4 written as IPv6 (`::ffff:10.0.0.0/104`) is IPv4.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        match address.trim().parse().ok()? {
            IpAddr::V4(address) => {
                let bits = bits.unwrap_or(32);
                let mask = if bits > 32 { return None } else { u32::MAX.checked_shl(32 - bits).unwrap_or(0) };
                Some(Self::V4 { network: address.to_bits() & mask, mask })
            }
            IpAddr::V6(address) => {
                let bits = bits.unwrap_or(128);
                if let (Some(address), Some(bits)) = (address.to_ipv4_mapped(), bits.checked_sub(96)) {
                    let mask = if bits > 32 { return None } else { u32::MAX.checked_shl(32 - bits).unwrap_or(0) };
                    return Some(Self::V4 { network: address.to_bits() & mask, mask });
                }
                let mask = if bits > 128 { return None } else { u128::MAX.checked_shl(128 - bits).unwrap_or(0) };
                Some(Self::V6 { network: address.to_bits() & mask, mask })
            }
        }
    }

    /// Whether the address is in the network. An IPv4 address written as IPv6 (`::ffff:10.0.0.1`) is an IPv4 address too.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4 { network, mask }, address) => match address.to_canonical() {
                IpAddr::V4(address) => address.to_bits() & mask == network,
                IpAddr::V6(_) => false,
            },
            (Self::V6 { network, mask }, IpAddr::V6(address)) => address.to_bits() & mask == network,
            (Self::V6 { .. }, IpAddr::V4(_)) => false,
        }
    }
}

impl Matcher {
    /// Whether one value, given as it is and folded, satisfies it; `regex` is that of a [`Matcher::Regex`]. The
    /// [`Evaluator`](crate::Evaluator) asks many at once.
    pub fn holds(&self, value: &str, folded: &str, regex: Option<&Regex>) -> bool {
        let text = |cased: bool| if cased { value } else { folded };
        match self {
            Self::Text { place, literal, cased } => place.holds(text(*cased), literal),
            Self::Glob { glob, cased } => glob.matches(text(*cased)),
            Self::Regex(_) => regex.is_some_and(|regex| regex.is_match(value)),
            Self::Cidr(cidr) => value.trim().parse().is_ok_and(|address| cidr.contains(address)),
            Self::Number { comparison, number } => {
                Number::parse(value).is_some_and(|own| comparison.holds(own, *number))
            }
            Self::Time { part, comparison, number } => {
                parse_time(value).is_some_and(|time| comparison.holds(Number::Int(part.of(time)), *number))
            }
        }
    }

    /// How rarely it is satisfied, as a guess: what to test first.
    pub fn selectivity(&self) -> usize {
        match self {
            Self::Text { place: Place::Whole, literal, .. } => 4 + literal.len().min(40),
            Self::Text { literal, .. } => literal.len().min(40),
            Self::Glob { glob, .. } => glob.longest_literal().len().min(40),
            Self::Regex(pattern) => 4 + pattern.len().min(40) / 4,
            Self::Cidr(_) => 4,
            Self::Number { comparison: Comparison::Equal, .. } => 5,
            Self::Number { .. } | Self::Time { .. } => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        for (network, address, holds) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3/8", "10.9.9.9", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("192.168.1.7", "192.168.1.7", true),
            ("192.168.1.7/32", "192.168.1.8", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("fe80::/10", "febf::1", true),
            ("fe80::/10", "fec0::1", false),
            ("::/0", "1.2.3.4", false),
            ("::1/128", "::1", true),
        ] {
            let cidr = Cidr::parse(network).expect("a network");
            assert_eq!(cidr.contains(address.parse().expect("an address")), holds, "{address} in {network}");
        }
        for bad in ["10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/x", ""] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
