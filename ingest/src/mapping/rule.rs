//! One way to fill a core column from an event's fields.

use std::collections::HashMap;
use std::str::FromStr;

use super::time::TimeUnit;

/// Where a rule's value comes from. Fields are dotted names.
#[derive(Debug, Clone)]
pub enum From {
    /// The value of a field; of a list, its first element.
    Field(String),
    /// Text with fields in it; all of them must be there.
    Template(Vec<Part>),
    /// A fixed text.
    Const(String),
}

/// A piece of a template.
#[derive(Debug, Clone)]
pub enum Part {
    /// Itself.
    Text(String),
    /// The text of a field.
    Field(String),
}

/// What is done to the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Convert {
    /// Nothing; for a column of times the unit of a number is guessed by its magnitude.
    #[default]
    Plain,
    /// Nothing, but only text counts, not a number.
    Text,
    /// Lower case.
    Lower,
    /// The address of `address:port` (`[v6]:port` too).
    Ip,
    /// The port of `address:port`.
    Port,
    /// What comes after the last `/`, `\` or `:`.
    LastPart,
    /// A number of this unit, for a column of times.
    Time(TimeUnit),
}

impl FromStr for Convert {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "text" => Self::Text,
            "lower" => Self::Lower,
            "ip" => Self::Ip,
            "port" => Self::Port,
            "last_part" => Self::LastPart,
            "time" => Self::Time(TimeUnit::Auto),
            "time_s" => Self::Time(TimeUnit::Seconds),
            "time_ms" => Self::Time(TimeUnit::Milliseconds),
            "time_us" => Self::Time(TimeUnit::Microseconds),
            "time_ns" => Self::Time(TimeUnit::Nanoseconds),
            _ => {
                let known = "text, lower, ip, port, last_part, time, time_s, time_ms, time_us, time_ns";
                return Err(format!("no such conversion: {name:?} ({known})"));
            }
        })
    }
}

/// A field whose text must be one of these: exactly, by its start (`start*`), or any (`*`). Upper and lower case are alike.
#[derive(Debug, Clone)]
pub struct Condition {
    /// The dotted name.
    pub field: String,
    /// The texts.
    pub values: Vec<String>,
}

impl Condition {
    /// Whether `text` is one of the values.
    pub fn holds(&self, text: &str) -> bool {
        self.values.iter().any(|value| match value.strip_suffix('*') {
            Some(start) => {
                text.as_bytes().get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()))
            }
            None => value.eq_ignore_ascii_case(text),
        })
    }
}

/// A way to fill a column. The first of a column's rules that gives a value wins.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where the text comes from.
    pub from: From,
    /// What is done to it.
    pub convert: Convert,
    /// What it becomes, by lower-case text; empty when it stays as it is.
    pub map: HashMap<String, String>,
    /// What it becomes when the map does not name it; without this the rule gives nothing then.
    pub otherwise: Option<String>,
    /// All of these must hold.
    pub when: Vec<Condition>,
    /// None of these may hold.
    pub unless: Vec<Condition>,
}

impl Rule {
    /// The plain value of a field.
    pub fn field(name: String) -> Self {
        Self {
            from: From::Field(name),
            convert: Convert::Plain,
            map: HashMap::new(),
            otherwise: None,
            when: Vec::new(),
            unless: Vec::new(),
        }
    }

    /// The dotted names without which the rule gives nothing.
    pub fn needs(&self) -> impl Iterator<Item = &str> {
        let parts: &[Part] = if let From::Template(parts) = &self.from { parts } else { &[] };
        let field = if let From::Field(name) = &self.from { Some(name.as_str()) } else { None };
        let of_parts = parts.iter().filter_map(|part| match part {
            Part::Field(name) => Some(name.as_str()),
            Part::Text(_) => None,
        });
        field.into_iter().chain(of_parts).chain(self.when.iter().map(|condition| condition.field.as_str()))
    }
}

/// The address part of `address:port`, `[v6]:port` or an address alone.
pub fn address_of(text: &str) -> &str {
    if let Some(inner) = text.strip_prefix('[') {
        return inner.split_once(']').map_or(text, |(address, _)| address);
    }
    match text.split_once(':') {
        // More than one colon: a bare IPv6 address.
        Some((_, port)) if port.contains(':') => text,
        Some((address, _)) => address,
        None => text,
    }
}

/// The port part of `address:port` or `[v6]:port`.
pub fn port_of(text: &str) -> Option<&str> {
    let port = match text.strip_prefix('[') {
        Some(inner) => inner.split_once("]:")?.1,
        None => text.split_once(':')?.1,
    };
    (!port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_split() {
        for (text, address, port) in [
            ("10.0.0.1:443", "10.0.0.1", Some("443")),
            ("10.0.0.1", "10.0.0.1", None),
            ("[::1]:80", "::1", Some("80")),
            ("fe80::1", "fe80::1", None),
            ("[::1", "[::1", None),
            ("host:", "host", None),
            ("", "", None),
        ] {
            assert_eq!((address_of(text), port_of(text)), (address, port), "{text}");
        }
    }

    #[test]
    fn conditions_are_exact_or_by_start_and_ignore_case() {
        let condition = Condition { field: "f".into(), values: vec!["One".into(), "Two*".into()] };
        for (text, want) in
            [("one", true), ("ones", false), ("two", true), ("TWOfold", true), ("tw", false), ("é", false)]
        {
            assert_eq!(condition.holds(text), want, "{text}");
        }
    }
}
