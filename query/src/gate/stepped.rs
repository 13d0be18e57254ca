//! The dialect of the gate: `GenericDialect`, with a bound on the steps of the parser.
//!
//! The parser of `sqlparser` 0.62 tries a reading, and on an error inside it another one, at each of many places: `cast(`, `not(`,
//! `substring(`, the dots of a name. Nested, each level doubles the time, so that a hundred bytes with a mistake at their end
//! would take years. It asks its dialect at each expression: there the steps are counted, and beyond the bound the answer is the
//! one error after which it tries nothing else.

use std::any::TypeId;
use std::cell::Cell;

use datafusion::sql::sqlparser::ast::{Expr, Statement};
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect};
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

/// What is read in one way only takes about two steps a token, and so hardly more than one a byte.
const STEPS_A_BYTE: usize = 4;
/// And a short statement may be read in several ways.
const STEPS_MIN: usize = 20_000;

/// `GenericDialect` for one parse.
#[derive(Debug)]
pub(super) struct Stepped {
    generic: GenericDialect,
    left: Cell<usize>,
}

impl Stepped {
    /// For a text of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let left = STEPS_MIN.saturating_add(bytes.saturating_mul(STEPS_A_BYTE));
        Self { generic: GenericDialect {}, left: Cell::new(left) }
    }

    /// Whether the parser was stopped.
    pub(super) fn is_spent(&self) -> bool {
        self.left.get() == 0
    }

    fn step<T>(&self) -> Option<Result<T, ParserError>> {
        self.left.set(self.left.get().saturating_sub(1));
        self.is_spent().then_some(Err(ParserError::RecursionLimitExceeded))
    }
}

impl Dialect for Stepped {
    fn parse_prefix(&self, _: &mut Parser) -> Option<Result<Expr, ParserError>> {
        self.step()
    }

    fn get_next_precedence(&self, _: &Parser) -> Option<Result<u8, ParserError>> {
        self.step()
    }

    fn parse_statement(&self, _: &mut Parser) -> Option<Result<Statement, ParserError>> {
        self.step()
    }

    // Everything else is the generic dialect's, also to those who ask which one it is.

    fn dialect(&self) -> TypeId {
        self.generic.dialect()
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.generic.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.generic.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.generic.is_identifier_part(ch)
    }

    fn supports_unicode_string_literal(&self) -> bool {
        self.generic.supports_unicode_string_literal()
    }

    fn supports_partition_by_after_order_by(&self) -> bool {
        self.generic.supports_partition_by_after_order_by()
    }

    fn supports_array_join_syntax(&self) -> bool {
        self.generic.supports_array_join_syntax()
    }

    fn supports_group_by_expr(&self) -> bool {
        self.generic.supports_group_by_expr()
    }

    fn supports_group_by_with_modifier(&self) -> bool {
        self.generic.supports_group_by_with_modifier()
    }

    fn supports_left_associative_joins_without_parens(&self) -> bool {
        self.generic.supports_left_associative_joins_without_parens()
    }

    fn supports_connect_by(&self) -> bool {
        self.generic.supports_connect_by()
    }

    fn supports_match_recognize(&self) -> bool {
        self.generic.supports_match_recognize()
    }

    fn supports_pipe_operator(&self) -> bool {
        self.generic.supports_pipe_operator()
    }

    fn supports_start_transaction_modifier(&self) -> bool {
        self.generic.supports_start_transaction_modifier()
    }

    fn supports_window_function_null_treatment_arg(&self) -> bool {
        self.generic.supports_window_function_null_treatment_arg()
    }

    fn supports_dictionary_syntax(&self) -> bool {
        self.generic.supports_dictionary_syntax()
    }

    fn supports_window_clause_named_window_reference(&self) -> bool {
        self.generic.supports_window_clause_named_window_reference()
    }

    fn supports_parenthesized_set_variables(&self) -> bool {
        self.generic.supports_parenthesized_set_variables()
    }

    fn supports_select_wildcard_except(&self) -> bool {
        self.generic.supports_select_wildcard_except()
    }

    fn support_map_literal_syntax(&self) -> bool {
        self.generic.support_map_literal_syntax()
    }

    fn allow_extract_custom(&self) -> bool {
        self.generic.allow_extract_custom()
    }

    fn allow_extract_single_quotes(&self) -> bool {
        self.generic.allow_extract_single_quotes()
    }

    fn supports_extract_comma_syntax(&self) -> bool {
        self.generic.supports_extract_comma_syntax()
    }

    fn supports_create_view_comment_syntax(&self) -> bool {
        self.generic.supports_create_view_comment_syntax()
    }

    fn supports_parens_around_table_factor(&self) -> bool {
        self.generic.supports_parens_around_table_factor()
    }

    fn supports_values_as_table_factor(&self) -> bool {
        self.generic.supports_values_as_table_factor()
    }

    fn supports_create_index_with_clause(&self) -> bool {
        self.generic.supports_create_index_with_clause()
    }

    fn supports_explain_with_utility_options(&self) -> bool {
        self.generic.supports_explain_with_utility_options()
    }

    fn supports_limit_comma(&self) -> bool {
        self.generic.supports_limit_comma()
    }

    fn supports_update_order_by(&self) -> bool {
        self.generic.supports_update_order_by()
    }

    fn supports_from_first_select(&self) -> bool {
        self.generic.supports_from_first_select()
    }

    fn supports_projection_trailing_commas(&self) -> bool {
        self.generic.supports_projection_trailing_commas()
    }

    fn supports_asc_desc_in_column_definition(&self) -> bool {
        self.generic.supports_asc_desc_in_column_definition()
    }

    fn supports_try_convert(&self) -> bool {
        self.generic.supports_try_convert()
    }

    fn supports_bitwise_shift_operators(&self) -> bool {
        self.generic.supports_bitwise_shift_operators()
    }

    fn supports_comment_on(&self) -> bool {
        self.generic.supports_comment_on()
    }

    fn supports_load_extension(&self) -> bool {
        self.generic.supports_load_extension()
    }

    fn supports_named_fn_args_with_assignment_operator(&self) -> bool {
        self.generic.supports_named_fn_args_with_assignment_operator()
    }

    fn supports_struct_literal(&self) -> bool {
        self.generic.supports_struct_literal()
    }

    fn supports_empty_projections(&self) -> bool {
        self.generic.supports_empty_projections()
    }

    fn supports_nested_comments(&self) -> bool {
        self.generic.supports_nested_comments()
    }

    fn supports_multiline_comment_hints(&self) -> bool {
        self.generic.supports_multiline_comment_hints()
    }

    fn supports_user_host_grantee(&self) -> bool {
        self.generic.supports_user_host_grantee()
    }

    fn supports_string_escape_constant(&self) -> bool {
        self.generic.supports_string_escape_constant()
    }

    fn supports_array_typedef_with_brackets(&self) -> bool {
        self.generic.supports_array_typedef_with_brackets()
    }

    fn supports_match_against(&self) -> bool {
        self.generic.supports_match_against()
    }

    fn supports_set_names(&self) -> bool {
        self.generic.supports_set_names()
    }

    fn supports_comma_separated_set_assignments(&self) -> bool {
        self.generic.supports_comma_separated_set_assignments()
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        self.generic.supports_filter_during_aggregation()
    }

    fn supports_select_wildcard_exclude(&self) -> bool {
        self.generic.supports_select_wildcard_exclude()
    }

    fn supports_data_type_signed_suffix(&self) -> bool {
        self.generic.supports_data_type_signed_suffix()
    }

    fn supports_interval_options(&self) -> bool {
        self.generic.supports_interval_options()
    }

    fn supports_quote_delimited_string(&self) -> bool {
        self.generic.supports_quote_delimited_string()
    }

    fn supports_select_wildcard_replace(&self) -> bool {
        self.generic.supports_select_wildcard_replace()
    }

    fn supports_select_wildcard_ilike(&self) -> bool {
        self.generic.supports_select_wildcard_ilike()
    }

    fn supports_select_wildcard_rename(&self) -> bool {
        self.generic.supports_select_wildcard_rename()
    }

    fn supports_optimize_table(&self) -> bool {
        self.generic.supports_optimize_table()
    }

    fn supports_install(&self) -> bool {
        self.generic.supports_install()
    }

    fn supports_detach(&self) -> bool {
        self.generic.supports_detach()
    }

    fn supports_prewhere(&self) -> bool {
        self.generic.supports_prewhere()
    }

    fn supports_with_fill(&self) -> bool {
        self.generic.supports_with_fill()
    }

    fn supports_limit_by(&self) -> bool {
        self.generic.supports_limit_by()
    }

    fn supports_interpolate(&self) -> bool {
        self.generic.supports_interpolate()
    }

    fn supports_settings(&self) -> bool {
        self.generic.supports_settings()
    }

    fn supports_select_format(&self) -> bool {
        self.generic.supports_select_format()
    }

    fn supports_comment_optimizer_hint(&self) -> bool {
        self.generic.supports_comment_optimizer_hint()
    }

    fn supports_constraint_keyword_without_name(&self) -> bool {
        self.generic.supports_constraint_keyword_without_name()
    }

    fn supports_key_column_option(&self) -> bool {
        self.generic.supports_key_column_option()
    }

    fn supports_comma_separated_trim(&self) -> bool {
        self.generic.supports_comma_separated_trim()
    }

    fn supports_cte_without_as(&self) -> bool {
        self.generic.supports_cte_without_as()
    }

    fn supports_select_item_multi_column_alias(&self) -> bool {
        self.generic.supports_select_item_multi_column_alias()
    }

    fn supports_xml_expressions(&self) -> bool {
        self.generic.supports_xml_expressions()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    #[test]
    fn the_dialect_is_the_generic_one_to_the_parser() {
        for sql in [
            "SELECT `a`, \"b\", #c, @d FROM e GROUP BY ALL",
            "SELECT * EXCEPT (a) FROM t QUALIFY row_number() OVER (PARTITION BY b ORDER BY c) = 1",
            "SELECT x -> x + 1, [1, 2][1], {a: 1}, map {'k': 1}, a::int, DATE '2026-01-01' FROM f(a => 1)",
            "FROM t SELECT a LIMIT 1, 2",
            "SELECT U&'\\0041', a.b.c[1].d, count(*) FILTER (WHERE a) FROM t TABLESAMPLE (10) WINDOW w AS (ORDER BY a)",
            "SELECT 1 FROM a JOIN b USING (c) LEFT SEMI JOIN d ON true CROSS JOIN UNNEST([1]) AS u",
            "SELECT a FROM t FOR SYSTEM_TIME AS OF now() WHERE a IN () AND b NOT ILIKE 'x' ESCAPE '!'",
        ] {
            let stepped = Stepped::new(sql.len());
            let [ours, theirs] =
                [&stepped as &dyn Dialect, &GenericDialect {}].map(|dialect| Parser::parse_sql(dialect, sql));
            assert_eq!(ours, theirs, "{sql}");
            assert!(!stepped.is_spent(), "{sql}");
        }
    }

    /// What a dialect says of itself, each answer with its name.
    fn answers(dialect: &dyn Dialect) -> Vec<(&'static str, bool)> {
        macro_rules! asked {
            ($($name:ident),* $(,)?) => { vec![$((stringify!($name), dialect.$name())),*] };
        }
        asked! {
            supports_unicode_string_literal, supports_partition_by_after_order_by, supports_array_join_syntax,
            supports_group_by_expr, supports_group_by_with_modifier,
            supports_left_associative_joins_without_parens, supports_connect_by, supports_match_recognize,
            supports_pipe_operator, supports_start_transaction_modifier,
            supports_window_function_null_treatment_arg, supports_dictionary_syntax,
            supports_window_clause_named_window_reference, supports_parenthesized_set_variables,
            supports_select_wildcard_except, support_map_literal_syntax, allow_extract_custom,
            allow_extract_single_quotes, supports_extract_comma_syntax, supports_create_view_comment_syntax,
            supports_parens_around_table_factor, supports_values_as_table_factor,
            supports_create_index_with_clause, supports_explain_with_utility_options, supports_limit_comma,
            supports_update_order_by, supports_from_first_select, supports_projection_trailing_commas,
            supports_asc_desc_in_column_definition, supports_try_convert, supports_bitwise_shift_operators,
            supports_comment_on, supports_load_extension, supports_named_fn_args_with_assignment_operator,
            supports_struct_literal, supports_empty_projections, supports_nested_comments,
            supports_multiline_comment_hints, supports_user_host_grantee, supports_string_escape_constant,
            supports_array_typedef_with_brackets, supports_match_against, supports_set_names,
            supports_comma_separated_set_assignments, supports_filter_during_aggregation,
            supports_select_wildcard_exclude, supports_data_type_signed_suffix, supports_interval_options,
            supports_quote_delimited_string, supports_select_wildcard_replace, supports_select_wildcard_ilike,
            supports_select_wildcard_rename, supports_optimize_table, supports_install, supports_detach,
            supports_prewhere, supports_with_fill, supports_limit_by, supports_interpolate, supports_settings,
            supports_select_format, supports_comment_optimizer_hint, supports_constraint_keyword_without_name,
            supports_key_column_option, supports_comma_separated_trim, supports_cte_without_as,
            supports_select_item_multi_column_alias, supports_xml_expressions,
        }
    }

    #[test]
    fn each_answer_of_the_dialect_is_the_generic_ones() {
        let (ours, theirs) = (Stepped::new(0), GenericDialect {});
        assert_eq!(answers(&ours), answers(&theirs));
        assert_eq!(ours.dialect(), theirs.dialect());
        for ch in (0..=0x2ff).filter_map(char::from_u32) {
            let of = |dialect: &dyn Dialect| {
                let (start, part) = (dialect.is_identifier_start(ch), dialect.is_identifier_part(ch));
                (start, part, dialect.is_delimited_identifier_start(ch))
            };
            assert_eq!(of(&ours), of(&theirs), "{ch:?}");
        }
    }

    #[test]
    fn each_place_where_the_parser_asks_is_a_step() {
        let asks: [fn(&Stepped, &mut Parser) -> bool; 3] = [
            |dialect, parser| dialect.parse_prefix(parser).is_some_and(|read| read.is_err()),
            |dialect, parser| dialect.get_next_precedence(parser).is_some_and(|read| read.is_err()),
            |dialect, parser| dialect.parse_statement(parser).is_some_and(|read| read.is_err()),
        ];
        for (nth, ask) in asks.into_iter().enumerate() {
            let (stepped, mut parser) = (Stepped::new(5), Parser::new(&GenericDialect {}));
            let steps = STEPS_MIN + 5 * STEPS_A_BYTE;
            let stopped = (1..=steps).find(|_| ask(&stepped, &mut parser));
            assert_eq!((stopped, stepped.is_spent()), (Some(steps), true), "the place {nth}");
        }
    }
}
