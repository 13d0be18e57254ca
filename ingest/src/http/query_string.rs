//! Query strings: parameters that are known, given once, and decoded; everything else is refused by name.

use tidegate_pipeline::Problem;
use tidegate_pipeline::url_text::decode_parameter;

/// The decoded parameters of a request, in order.
#[derive(Debug, Clone, Default)]
pub struct QueryString {
    pairs: Vec<(String, String)>,
}

impl QueryString {
    /// Decodes `query` (`a=1&b=2`, percent-encoded, `+` for a blank), of which `known` are the names there are.
    ///
    /// # Errors
    /// 400 naming an unknown, doubled or badly encoded parameter.
    pub fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let decoded = (decode_parameter(name), decode_parameter(value));
            let (Some(name), Some(value)) = decoded else {
                return Err(Problem::new(400, "invalid_parameter", format!("{part:?} is not percent-encoded UTF-8")));
            };
            if !known.contains(&name.as_str()) {
                let known_names = known.join(", ");
                let hint = match nearest(&name, known) {
                    Some(near) => format!("did you mean {near:?}? Known here: {known_names}"),
                    None => format!("known here: {known_names}"),
                };
                let message = format!("unknown query parameter {name:?}");
                return Err(Problem::new(400, "unknown_parameter", message).hint(hint));
            }
            if pairs.iter().any(|(earlier, _)| *earlier == name) {
                return Err(Problem::new(400, "invalid_parameter", format!("query parameter {name:?} is given twice")));
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The name among `known` that `name` was likely meant to be: at most two letters changed, added, dropped or swapped.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (distance(name, known), *known)).min()?;
    (near.0 <= 2 && near.0 < name.len().max(2)).then_some(near.1)
}

fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().take(64).collect(), right.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, letter) in left.iter().enumerate() {
        let mut diagonal = at;
        let mut before = at + 1;
        for (cell, other) in row.iter_mut().skip(1).zip(&right) {
            let change = diagonal + usize::from(letter != other);
            diagonal = *cell;
            before = change.min(diagonal + 1).min(before + 1);
            *cell = before;
        }
        if let Some(first) = row.first_mut() {
            *first = at + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["dataset", "source", "ack", "detail"];

    #[test]
    fn known_parameters_are_decoded() {
        let query = QueryString::parse(Some("source=a%20b+c%C3%A9&ack=&detail"), KNOWN).expect("valid");
        assert_eq!(query.get("source"), Some("a b c\u{e9}"));
        assert_eq!(query.get("ack"), Some(""));
        assert_eq!(query.get("detail"), Some(""));
        assert_eq!(query.get("dataset"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("datset=x", "datset", "did you mean \"dataset\"?"),
            ("sorce=x", "sorce", "did you mean \"source\"?"),
            ("zebra=x", "zebra", "known here: dataset"),
            ("ack=disk&ack=memory", "twice", ""),
            ("ack=%zz", "percent", ""),
            ("ack=%ff", "UTF-8", ""),
            ("ack=%f", "percent", ""),
        ];
        for (query, message, hint) in cases {
            let problem = QueryString::parse(Some(query), KNOWN).expect_err(query);
            assert_eq!(problem.status, 400, "{query}");
            assert!(problem.message.contains(message), "{query}: {problem:?}");
            assert!(problem.hint.contains(hint), "{query}: {problem:?}");
        }
    }
}
