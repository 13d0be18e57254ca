//! Bounds on the text of a statement, counted on the same tokens that the parser will see.
//!
//! The tokenizer does not recurse; the parser, the planner and the evaluation of an expression do. A chain of `n` operators
//! is a tree of depth `n`, so operators are bounded as depth is.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};

use crate::config::QueryConfig;
use crate::error::QueryError;

/// Says whether `sql` is small enough to be parsed.
///
/// # Errors
/// [`QueryError::TooComplex`] beyond a bound, [`QueryError::Syntax`] when the text has no tokens.
pub(crate) fn check(sql: &str, config: &QueryConfig) -> Result<(), QueryError> {
    let over = |what: &str, max: usize| {
        Err(QueryError::TooComplex { message: format!("the statement has more than {max} {what}") })
    };
    if sql.len() > config.sql_bytes_max {
        return over("bytes", config.sql_bytes_max);
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize()
        .map_err(|error| QueryError::Syntax(error.to_string().chars().take(500).collect()))?;
    let tokens: Vec<&Token> = tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
    if tokens.len() > config.sql_tokens_max {
        return over("tokens", config.sql_tokens_max);
    }
    if tokens.iter().any(|token| literal_bytes(token) > config.sql_literal_bytes_max) {
        return over("bytes in one literal or name", config.sql_literal_bytes_max);
    }
    if tokens.iter().filter(|token| is_operator(token)).count() > config.sql_operators_max {
        return over("operators", config.sql_operators_max);
    }
    if depth(&tokens) > config.sql_depth_max {
        return over("levels of nesting", config.sql_depth_max);
    }
    Ok(())
}

/// The deepest nesting of parentheses, brackets, braces, angle types and `CASE`.
fn depth(tokens: &[&Token]) -> usize {
    let (mut deepest, mut now) = (0usize, 0usize);
    for token in tokens {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => now += 1,
            Token::RParen | Token::RBracket | Token::RBrace => now = now.saturating_sub(1),
            Token::Word(Word { keyword: Keyword::CASE, quote_style: None, .. }) => now += 1,
            Token::Word(Word { keyword: Keyword::END, quote_style: None, .. }) => now = now.saturating_sub(1),
            // `ARRAY<ARRAY<…`: a type that nests without brackets.
            Token::Word(Word {
                keyword: Keyword::ARRAY | Keyword::STRUCT | Keyword::MAP, quote_style: None, ..
            }) => now += 1,
            _ => {}
        }
        deepest = deepest.max(now);
    }
    deepest
}

fn literal_bytes(token: &Token) -> usize {
    match token {
        Token::Comma | Token::LParen | Token::RParen | Token::Whitespace(_) | Token::Period => 1,
        Token::Word(word) => word.value.len(),
        Token::Number(text, _) | Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) => text.len(),
        other => other.to_string().len(),
    }
}

/// Whether a token can make a tree one deeper. What is not known to be harmless counts.
fn is_operator(token: &Token) -> bool {
    use Keyword as K;
    match token {
        Token::Word(word) if word.quote_style.is_some() => false,
        Token::Word(word) => matches!(
            word.keyword,
            K::AND
                | K::OR
                | K::XOR
                | K::NOT
                | K::IS
                | K::LIKE
                | K::ILIKE
                | K::SIMILAR
                | K::RLIKE
                | K::REGEXP
                | K::BETWEEN
                | K::IN
                | K::DIV
                | K::AT
                | K::COLLATE
                | K::UNION
                | K::EXCEPT
                | K::INTERSECT
                | K::MINUS
                | K::JOIN
                | K::APPLY
                | K::PRIOR
                | K::EXPLAIN
                | K::DESCRIBE
                | K::DESC
                | K::INTERVAL
                | K::WHEN
        ),
        Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Comma
        | Token::Period
        | Token::LParen
        | Token::RParen
        | Token::SemiColon
        | Token::EOF => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_within_bounds_pass_and_others_do_not() {
        let config = QueryConfig::default();
        let sum = |terms: usize| format!("SELECT {}", vec!["1"; terms].join("+"));
        let nested = |depth: usize| format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth));
        let cases = "CASE WHEN true THEN ".repeat(60) + "1" + &" END".repeat(60);
        for (sql, fits) in [
            (sum(500), true),
            (sum(2_000), false),
            (nested(40), true),
            (nested(10_000), false),
            (format!("SELECT {cases}"), false),
            (format!("SELECT '{}'", "x".repeat(9_000)), false),
            (format!("SELECT {}true", "NOT ".repeat(600)), false),
            (format!("SELECT {}1", "- ".repeat(600)), false),
            (format!("SELECT 1 {}", "UNION ALL SELECT 1 ".repeat(600)), false),
            (format!("SELECT CAST(NULL AS {}INT)", "ARRAY<".repeat(600)), false),
            (format!("SELECT x {}", "::int".repeat(600)), false),
            (format!("SELECT 1 WHERE 1 IN ({})", vec!["1"; 9_000].join(",")), true),
            ("x".repeat(70_000), false),
        ] {
            assert_eq!(check(&sql, &config).is_ok(), fits, "{}", &sql[..60.min(sql.len())]);
        }
    }

    /// A statement passes at its measure and not below it, and the refusal says what there is too much of.
    fn exactly(sql: &str, measure: usize, what: &str, set: fn(&mut QueryConfig, usize)) {
        let mut config = QueryConfig::default();
        set(&mut config, measure);
        assert!(check(sql, &config).is_ok(), "{measure} {what} are allowed: {sql}");
        let Some(less) = measure.checked_sub(1) else { return };
        set(&mut config, less);
        match check(sql, &config) {
            Err(QueryError::TooComplex { message }) => {
                assert!(message.contains(&format!("{less} {what}")), "{message}")
            }
            other => panic!("{less} {what}: {other:?}: {sql}"),
        }
    }

    #[test]
    fn each_bound_is_exact() {
        exactly("SELECT 1", 8, "bytes", |config, max| config.sql_bytes_max = max);
        exactly("SELECT a, 'b' -- c", 4, "tokens", |config, max| config.sql_tokens_max = max);
        for (sql, bytes) in [
            ("SELECT 'abcdefgh'", 8),
            ("SELECT \"abcdefghi\"", 9),
            ("SELECT abcdefghij", 10),
            ("SELECT 12345678901", 11),
            ("SELECT X'0123456789'", 13),
        ] {
            exactly(sql, bytes, "bytes in one literal or name", |config, max| config.sql_literal_bytes_max = max);
        }
        for (sql, operators) in [
            ("SELECT a.b, ('c', 1), \"d\" FROM e;", 0),
            ("SELECT \"and\", \"not\" FROM a", 0),
            ("SELECT 1 + 2 - 3", 2),
            ("SELECT a AND b OR NOT c XOR d", 4),
            ("SELECT a IS NULL, b LIKE 'c', d ILIKE 'e', f BETWEEN g AND h, i IN (j)", 6),
            ("SELECT x::int", 1),
            ("SELECT CASE WHEN a THEN b WHEN c THEN d END", 2),
            ("SELECT 1 UNION SELECT 2 EXCEPT SELECT 3 INTERSECT SELECT 4", 3),
            ("SELECT 1 FROM a JOIN b ON true", 1),
            ("SELECT a[1]", 2),
        ] {
            exactly(sql, operators, "operators", |config, max| config.sql_operators_max = max);
        }
        for (sql, depth) in [
            ("SELECT 1", 0),
            ("SELECT ((1))", 2),
            ("SELECT (1), (2), (3)", 1),
            ("SELECT [1, [2], [3]]", 2),
            ("SELECT {a: {b: 1}}", 2),
            ("SELECT CASE WHEN a THEN 1 END, CASE WHEN b THEN CASE WHEN c THEN 2 END END", 2),
            ("SELECT \"case\", \"array\", \"end\"", 0),
            ("SELECT \"end\", (1)", 1),
            ("SELECT CAST(a AS ARRAY<ARRAY<INT>>)", 3),
            ("SELECT CAST(a AS STRUCT<b MAP<INT, INT>>)", 3),
        ] {
            exactly(sql, depth, "levels of nesting", |config, max| config.sql_depth_max = max);
        }
    }
}
