//! How a rule wants its alerts: the custom attribute `tidegate` of its YAML.
//!
//! ```yaml
//! tidegate:
//!   group_by: [userIdentity.arn]   # what an alert is about, in the place of actor, asset and resource
//!   suppress: 1h                   # how long further matches are counted before the next alert; 0 for never
//! ```

use std::collections::HashMap;

use yaml_serde::Value;

use crate::problem::Fault;

/// The most fields of `group_by`.
const FIELDS_MAX: usize = 8;
/// The longest span.
const DAYS_MAX: i64 = 30;

/// What the attribute says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attribute {
    /// The fields of the group key; `None` for actor, asset and resource.
    pub group_by: Option<Vec<String>>,
    /// Microseconds; `None` for what the configuration says.
    pub suppress_us: Option<i64>,
}

/// Reads the attribute.
///
/// # Errors
/// What about it is not understood.
pub(crate) fn attribute(attributes: &HashMap<String, Value>) -> Result<Attribute, Fault> {
    let mut read = Attribute::default();
    let Some(attribute) = attributes.get("tidegate") else { return Ok(read) };
    let fault =
        |reason: String| Fault::new(reason).hint("tidegate: {group_by: [field, …], suppress: 10m}").near("tidegate:");
    let Some(members) = attribute.as_mapping() else { return Err(fault("`tidegate` is not a map".into())) };
    for (name, value) in members {
        match name.as_str() {
            Some("group_by") => read.group_by = Some(fields(value).map_err(fault)?),
            Some("suppress") => read.suppress_us = Some(span(value).map_err(fault)?),
            other => return Err(fault(format!("`tidegate` has no attribute {:?}", other.unwrap_or_default()))),
        }
    }
    Ok(read)
}

fn fields(value: &Value) -> Result<Vec<String>, String> {
    let wrong = || format!("`group_by` is a list of 1 to {FIELDS_MAX} fields");
    let field = |value: &Value| value.as_str().filter(|name| !name.is_empty()).map(str::to_owned).ok_or_else(wrong);
    let fields = match value.as_sequence() {
        Some(several) => several.iter().map(field).collect::<Result<Vec<_>, _>>()?,
        None => vec![field(value)?],
    };
    if fields.is_empty() || fields.len() > FIELDS_MAX { Err(wrong()) } else { Ok(fields) }
}

fn span(value: &Value) -> Result<i64, String> {
    let wrong = || format!("`suppress` is 0, or a number and s, m, h or d, up to {DAYS_MAX}d");
    if value.as_i64() == Some(0) {
        return Ok(0);
    }
    span_us(value.as_str().unwrap_or_default()).filter(|us| *us <= DAYS_MAX * 86_400_000_000).ok_or_else(wrong)
}

/// Microseconds of a number and `s`, `m`, `h` or `d`.
pub fn span_us(text: &str) -> Option<i64> {
    let split = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at))?;
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u32 = number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())??;
    i64::from(number).checked_mul(seconds)?.checked_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Attribute, String> {
        let attributes: HashMap<String, Value> = yaml_serde::from_str(text).expect("YAML");
        attribute(&attributes).map_err(|fault| fault.reason)
    }

    #[test]
    fn the_attribute_is_read_or_refused() {
        let of = |fields: &[&str], suppress_us| Attribute {
            group_by: (!fields.is_empty()).then(|| fields.iter().map(|field| (*field).to_owned()).collect()),
            suppress_us,
        };
        for (text, wanted) in [
            ("other: 1", of(&[], None)),
            ("tidegate: {}", of(&[], None)),
            ("tidegate: {group_by: [a, b.c], suppress: 1h}", of(&["a", "b.c"], Some(3_600_000_000))),
            ("tidegate: {group_by: a, suppress: 0}", of(&["a"], Some(0))),
            ("tidegate: {suppress: 0s}", of(&[], Some(0))),
            ("tidegate: {suppress: 30d}", of(&[], Some(30 * 86_400_000_000))),
        ] {
            assert_eq!(read(text), Ok(wanted), "{text}");
        }
        for text in [
            "tidegate: 1",
            "tidegate: {group: a}",
            "tidegate: {group_by: []}",
            "tidegate: {group_by: ['']}",
            "tidegate: {group_by: [a, b, c, d, e, f, g, h, i]}",
            "tidegate: {group_by: {a: b}}",
            "tidegate: {suppress: 31d}",
            "tidegate: {suppress: -1m}",
            "tidegate: {suppress: 5}",
            "tidegate: {suppress: m}",
            "tidegate: {suppress: 5é}",
            "tidegate: {suppress: 99999999999d}",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
