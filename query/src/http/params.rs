//! Query parameters: decoded, known by name, each with one meaning.

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, lit};
use tidegate_pipeline::clock;
use tidegate_pipeline::url_text::{decode_parameter, from_hex, to_hex};

use crate::error::QueryError;

/// Most rows of a page.
pub(crate) const PAGE_ROWS_MAX: usize = 1000;
/// Rows of a page when the client does not say.
const PAGE_ROWS: usize = 100;

/// The parameters of a request, in order.
#[derive(Debug)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// Decodes `query` (`a=1&b=%20`) and refuses names that are not in `known` and names that come twice.
    pub(crate) fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, QueryError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if !known.contains(&name.as_str()) {
                let message =
                    format!("there is no parameter {:?}; the parameters are {}", clipped(&name), known.join(", "));
                return Err(QueryError::bad("unknown_parameter", message));
            }
            if pairs.iter().any(|(seen, _)| *seen == name) {
                return Err(QueryError::bad("invalid_parameter", format!("{name} is given twice")));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    /// The value of a parameter, when it is given and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// A parameter read by `parse`.
    pub(crate) fn read<T: std::str::FromStr>(&self, name: &str, wanted: &str) -> Result<Option<T>, QueryError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let invalid = |_| QueryError::bad("invalid_parameter", format!("{name} is {:?}, not {wanted}", clipped(text)));
        text.parse().map(Some).map_err(invalid)
    }

    /// `limit`, 1 to [`PAGE_ROWS_MAX`].
    pub(crate) fn limit(&self) -> Result<usize, QueryError> {
        match self.read::<usize>("limit", "a number")? {
            None => Ok(PAGE_ROWS),
            Some(limit) if (1..=PAGE_ROWS_MAX).contains(&limit) => Ok(limit),
            Some(_) => {
                Err(QueryError::bad("invalid_parameter", format!("limit is a number from 1 to {PAGE_ROWS_MAX}")))
            }
        }
    }

    /// A time in microseconds: RFC 3339, `now`, or relative to now (`-15m`, `-1h`, `-7d`; units s, m, h, d, w).
    pub(crate) fn time(&self, name: &str) -> Result<Option<i64>, QueryError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        time_of(text, clock::now_us()).map(Some).ok_or_else(|| {
            let message = format!("{name} is {:?}, not a time as 2026-01-31T12:00:00Z or -1h", clipped(text));
            QueryError::bad("invalid_parameter", message)
        })
    }
}

fn time_of(text: &str, now_us: i64) -> Option<i64> {
    if text == "now" {
        return Some(now_us);
    }
    if let Some(ago) = text.strip_prefix('-') {
        let unit = ago.chars().last()?;
        let count: i64 = ago.strip_suffix(unit)?.parse().ok()?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        return now_us.checked_sub(count.checked_mul(seconds * 1_000_000)?);
    }
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

/// A time as a literal of the type of every `time` column.
pub(crate) fn time_lit(us: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())))
}

fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Percent-decodes; `+` is a space.
fn decoded(text: &str) -> Result<String, QueryError> {
    decode_parameter(text)
        .ok_or_else(|| QueryError::bad("invalid_parameter", "a parameter is not percent-encoded UTF-8"))
}

/// Makes a position into text that a client hands back as it is. Hex of its parts: opaque, safe in a URL.
pub(crate) fn cursor_text(parts: &[&str]) -> String {
    to_hex(&parts.join("\0"))
}

/// The parts of a cursor.
pub(crate) fn cursor_parts(text: &str) -> Result<Vec<String>, QueryError> {
    let invalid = || QueryError::bad("invalid_parameter", "the cursor is not one that this endpoint gave");
    let text = (text.len() <= 4096).then(|| from_hex(text)).flatten().ok_or_else(invalid)?;
    Ok(text.split('\0').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_relative() {
        for (text, wanted) in [
            ("now", Some(1_000_000_000)),
            ("-10s", Some(990_000_000)),
            ("-1m", Some(940_000_000)),
            ("1970-01-01T00:00:01Z", Some(1_000_000)),
            ("1970-01-01T01:00:01+01:00", Some(1_000_000)),
            ("-9223372036854775807w", None),
            ("-é", None),
            ("-", None),
            ("yesterday", None),
        ] {
            assert_eq!(time_of(text, 1_000_000_000), wanted, "{text}");
        }
    }

    #[test]
    fn parameters_are_known_single_and_decoded() {
        let params = Params::parse(Some("q=a%20b%2Bc+d&limit=7"), &["q", "limit"]).expect("parameters");
        assert_eq!(params.get("q"), Some("a b+c d"));
        assert_eq!(params.limit().expect("a limit"), 7);
        for bad in ["x=1", "q=1&q=2", "q=%zz", "q=%ff"] {
            assert!(Params::parse(Some(bad), &["q"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn cursors_come_back_as_they_went() {
        let text = cursor_text(&["12", "é-id"]);
        assert_eq!(cursor_parts(&text).expect("parts"), ["12", "é-id"]);
        for bad in ["zz", "1", "éé", "ff"] {
            assert!(cursor_parts(bad).is_err(), "{bad}");
        }
    }
}
