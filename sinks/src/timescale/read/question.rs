//! A question about history as one SQL statement with parameters.
//!
//! Names in the text are those of core columns and of our own tables; every value, names of own fields among them, is a
//! parameter. Text is compared by bytes (`COLLATE "C"`), times are cut in UTC. What can fail for a value of another tenant's row
//! (a cast of JSON, say) is never asked: PostgreSQL may evaluate a condition before it looks at the tenant.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use bytes::{BufMut, BytesMut};
use tidegate_events::REST_COLUMN;
use tidegate_pipeline::RowsAsk;
use tidegate_pipeline::history_rows::{Comparison, Filter, Output, Value};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::Cursors;
use crate::timescale::ddl::{ATTRIBUTES, LOG_ID, LOG_OFFSET, qualified, quoted};

/// Own fields that are asked for one by one; more come with the whole object.
const SINGLE_FIELDS_MAX: usize = 16;
/// Microseconds from 1970-01-01 to 2000-01-01.
pub(super) const EPOCH_2000_US: i64 = 946_684_800_000_000;

type Parameter = (Box<dyn ToSql + Sync + Send>, Type);

/// A statement, its parameters, and where the values of the answer stand in its rows.
pub(super) struct Question {
    pub(super) sql: String,
    pub(super) parameters: Vec<Parameter>,
    /// For each output; the last column of a row is the tenant.
    pub(super) places: Vec<Place>,
}

/// Where the value of an output stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In a column of its own, of the type that the output's column has in the table.
    Plain(usize),
    /// A sum of integers, as `numeric` or `int8`.
    Sum(usize),
    /// JSON in a column of its own.
    Json(usize),
    /// A member of the object in the column.
    Member(usize, Arc<str>),
}

/// A time for a parameter.
#[derive(Debug)]
struct Micros(i64);

impl ToSql for Micros {
    fn to_sql(&self, _kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i64(self.0.saturating_sub(EPOCH_2000_US));
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl Question {
    /// The statement for `ask` on the tables of `schema`, whose logs are complete up to `cursors`. With the extension, rows of
    /// odd times are `apart`, in a table of their own.
    pub(super) fn new(schema: &str, ask: &RowsAsk, cursors: &Cursors, apart: bool) -> Self {
        let mut question = Self { sql: "SELECT ".to_owned(), parameters: Vec::new(), places: Vec::new() };
        let core = ask.dataset.core_schema();
        let keys = question.outputs(ask, &core);
        let name = ask.dataset.table_name();
        let table = qualified(schema, name);
        let _ = if apart {
            let default = qualified(schema, &format!("{name}_default"));
            write!(question.sql, " FROM (SELECT * FROM {table} UNION ALL SELECT * FROM {default}) AS whole WHERE ")
        } else {
            write!(question.sql, " FROM {table} WHERE ")
        };
        question.tenants(&ask.orgs);
        question.below(ask, cursors);
        for filter in &ask.filters {
            question.sql.push_str(" AND ");
            question.filter(filter, &core);
        }
        if ask.grouped {
            question.sql.push_str(" GROUP BY org_id");
            for key in keys {
                let _ = write!(question.sql, ", {key}");
            }
        }
        for (nth, step) in ask.order.iter().enumerate() {
            question.sql.push_str(if nth == 0 { " ORDER BY " } else { ", " });
            question.sorted_column(&step.column, &core);
            question.sql.push_str(if step.descending { " DESC" } else { " ASC" });
            question.sql.push_str(if step.nulls_first { " NULLS FIRST" } else { " NULLS LAST" });
        }
        if let Some(limit) = ask.limit {
            question.sql.push_str(" LIMIT ");
            question.value(i64::try_from(limit).unwrap_or(i64::MAX), Type::INT8);
        }
        question
    }

    /// The list after SELECT; the positions of what the rows are grouped by.
    fn outputs(&mut self, ask: &RowsAsk, core: &Schema) -> Vec<usize> {
        let is_own = |output: &Output| matches!(output, Output::Column(name) if core.column_with_name(name).is_none());
        let whole = ask.outputs.iter().filter(|output| is_own(output)).count() > SINGLE_FIELDS_MAX;
        let (mut at, mut object, mut keys) = (0, None, Vec::new());
        for output in &ask.outputs {
            let own = is_own(output);
            if let (true, true, Some(object), Output::Column(name)) = (own, whole, object, output) {
                self.places.push(Place::Member(object, stored_name(name)));
                continue;
            }
            if at > 0 {
                self.sql.push_str(", ");
            }
            let place = match output {
                Output::Column(name) if own && whole => {
                    object = Some(at);
                    self.sql.push_str(ATTRIBUTES);
                    Place::Member(at, stored_name(name))
                }
                Output::Column(name) if own => {
                    self.member(name);
                    Place::Json(at)
                }
                Output::Sum(_) => Place::Sum(at),
                _ => Place::Plain(at),
            };
            self.places.push(place);
            if !own {
                self.output(output, core);
            }
            at += 1;
            if !output.is_aggregate() {
                keys.push(at);
            }
        }
        self.sql.push_str(if at > 0 { ", org_id" } else { "org_id" });
        keys
    }

    fn output(&mut self, output: &Output, core: &Schema) {
        match output {
            Output::Column(name) => self.sql.push_str(&quoted(name)),
            Output::TimeTrunc(unit, name) => {
                let _ = write!(self.sql, "date_trunc('{}', {}, 'UTC')", unit.as_str(), quoted(name));
            }
            Output::TimeBin { width_us, origin_us, column } => {
                self.sql.push_str("date_bin(");
                self.value(format!("{width_us} microseconds"), Type::TEXT);
                let _ = write!(self.sql, "::text::interval, {}, ", quoted(column));
                self.value(Micros(*origin_us), Type::TIMESTAMPTZ);
                self.sql.push(')');
            }
            Output::Count => self.sql.push_str("count(*)"),
            Output::CountOf(name) => {
                let _ = write!(self.sql, "count({})", quoted(name));
            }
            Output::Min(name) => self.extreme("min", name, core),
            Output::Max(name) => self.extreme("max", name, core),
            Output::Sum(name) => {
                let _ = write!(self.sql, "sum({})", quoted(name));
            }
        }
    }

    fn extreme(&mut self, function: &str, name: &str, core: &Schema) {
        let _ = write!(self.sql, "{function}(");
        self.sorted_column(name, core);
        self.sql.push(')');
    }

    /// A core column as it is sorted and compared.
    fn sorted_column(&mut self, name: &str, core: &Schema) {
        self.sql.push_str(&quoted(name));
        if core.field_with_name(name).is_ok_and(|field| *field.data_type() == DataType::Utf8) {
            self.sql.push_str(" COLLATE \"C\"");
        }
    }

    /// An own field, or `_rest`.
    fn member(&mut self, name: &str) {
        let _ = write!(self.sql, "({ATTRIBUTES} -> ");
        self.value(stored(name), Type::TEXT);
        self.sql.push(')');
    }

    fn tenants(&mut self, orgs: &[Arc<str>]) {
        match orgs {
            [org] => {
                self.sql.push_str("org_id = ");
                self.value(org.to_string(), Type::TEXT);
            }
            orgs => {
                self.sql.push_str("org_id = ANY(");
                self.value(orgs.iter().map(|org| org.to_string()).collect::<Vec<_>>(), Type::TEXT_ARRAY);
                self.sql.push(')');
            }
        }
    }

    /// The rows of each log that are all there.
    fn below(&mut self, ask: &RowsAsk, cursors: &Cursors) {
        let own = [(cursors.ingest_id, ask.log_cursor), (cursors.output_id, ask.output_cursor)];
        let own = own.into_iter().filter_map(|(id, cursor)| Some((id?, cursor)));
        let others = cursors.others.iter().filter(|_| ask.others);
        let mut any = " AND (";
        for (id, cursor) in own.chain(cursors.kin.iter().chain(others).copied()) {
            self.sql.push_str(any);
            any = " OR ";
            let _ = write!(self.sql, "({LOG_ID} = ");
            self.value(id, Type::INT2);
            let _ = write!(self.sql, " AND {LOG_OFFSET} < ");
            self.value(i64::try_from(cursor).unwrap_or(i64::MAX), Type::INT8);
            self.sql.push(')');
        }
        self.sql.push_str(if any == " OR " { ")" } else { " AND false" });
    }

    fn filter(&mut self, filter: &Filter, core: &Schema) {
        match filter {
            Filter::And(filters) => self.joined(filters, " AND ", core),
            Filter::Or(filters) => self.joined(filters, " OR ", core),
            Filter::Not(inner) => {
                self.sql.push_str("(NOT ");
                self.filter(inner, core);
                self.sql.push(')');
            }
            Filter::Compare(name, op, value) => {
                self.sql.push('(');
                if matches!(op, Comparison::Eq | Comparison::NotEq) {
                    self.sql.push_str(&quoted(name));
                } else {
                    self.sorted_column(name, core);
                }
                let _ = write!(self.sql, " {} ", op.symbol());
                self.constant(value);
                self.sql.push(')');
            }
            Filter::In(name, values) => {
                let _ = write!(self.sql, "({} = ANY(", quoted(name));
                self.constants(values);
                self.sql.push_str("))");
            }
            Filter::IsNull(name) => {
                let _ = write!(self.sql, "({} IS NULL)", quoted(name));
            }
            Filter::Like(name, pattern) => {
                let _ = write!(self.sql, "({} LIKE ", quoted(name));
                self.value(stored(pattern), Type::TEXT);
                self.sql.push(')');
            }
            Filter::OwnHas(name) => {
                let _ = write!(self.sql, "({ATTRIBUTES} ? ");
                self.value(stored(name), Type::TEXT);
                self.sql.push(')');
            }
            Filter::OwnIn(name, values) => {
                for (nth, value) in values.iter().enumerate() {
                    let _ = write!(self.sql, "{}{ATTRIBUTES} @> ", if nth == 0 { "(" } else { " OR " });
                    let object: serde_json::Map<_, _> = [(stored(name), json(value))].into_iter().collect();
                    self.value(serde_json::Value::Object(object).to_string(), Type::TEXT);
                    self.sql.push_str("::text::jsonb");
                }
                self.sql.push(')');
            }
            Filter::OwnCompare(name, op, value) => {
                self.sql.push('(');
                self.member(name);
                let _ = write!(self.sql, " {} ", op.symbol());
                self.value(json(value).to_string(), Type::TEXT);
                self.sql.push_str("::text::jsonb)");
            }
        }
    }

    fn joined(&mut self, filters: &[Filter], word: &str, core: &Schema) {
        for (nth, filter) in filters.iter().enumerate() {
            self.sql.push_str(if nth == 0 { "(" } else { word });
            self.filter(filter, core);
        }
        self.sql.push_str(if filters.is_empty() { "true" } else { ")" });
    }

    fn constant(&mut self, value: &Value) {
        match value {
            Value::Text(text) => self.value(stored(text), Type::TEXT),
            Value::Int(value) => self.value(*value, Type::INT8),
            Value::Float(value) => self.value(*value, Type::FLOAT8),
            Value::Bool(value) => self.value(*value, Type::BOOL),
            Value::Time(us) => self.value(Micros(*us), Type::TIMESTAMPTZ),
            Value::Decimal { digits, scale } => {
                self.value(format!("{digits}e-{scale}"), Type::TEXT);
                self.sql.push_str("::text::numeric");
            }
        }
    }

    /// Constants of one kind, as an array.
    fn constants(&mut self, values: &[Value]) {
        self.sql.push_str("ARRAY[");
        for (nth, value) in values.iter().enumerate() {
            if nth > 0 {
                self.sql.push_str(", ");
            }
            self.constant(value);
        }
        self.sql.push(']');
    }

    fn value(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) {
        self.parameters.push((Box::new(value), kind));
        let _ = write!(self.sql, "${}", self.parameters.len());
    }
}

/// A name or a text as the tables have it: they hold no NUL, and what came with one was stored with U+FFFD.
fn stored(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn stored_name(name: &Arc<str>) -> Arc<str> {
    if name.contains('\0') { stored(name).into() } else { name.clone() }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => stored(text).into(),
        Value::Int(value) | Value::Time(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Bool(value) => (*value).into(),
        Value::Decimal { .. } => serde_json::Value::Null,
    }
}

/// Whether a column of the answer holds the JSON text of what had no column of its own.
pub(super) fn is_rest(name: &str) -> bool {
    name == REST_COLUMN
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Field;
    use tidegate_events::Dataset;
    use tidegate_pipeline::history_rows::{Order, TimeUnit};

    fn ask(outputs: Vec<Output>, filters: Vec<Filter>) -> RowsAsk {
        RowsAsk {
            dataset: Dataset::SecurityEvents,
            orgs: ["acme".into()].into(),
            log_cursor: 70,
            output_cursor: 7,
            others: true,
            schema: Arc::new(Schema::new(vec![Field::new("any", DataType::Utf8, true); outputs.len()])),
            outputs,
            grouped: false,
            filters,
            order: Vec::new(),
            limit: None,
        }
    }

    fn cursors() -> Cursors {
        Cursors { ingest_id: Some(1), output_id: Some(2), ..Cursors::default() }
    }

    /// The statement after its fixed parts.
    fn told(ask: &RowsAsk) -> (String, String, usize) {
        let question = Question::new("tidegate", ask, &cursors(), false);
        let (columns, rest) =
            question.sql.split_once(" FROM \"tidegate\".\"security_events\" WHERE ").expect("a table");
        let parts = rest.split_once("org_id = $").expect("the tenant").1;
        let conditions = parts.split_once("))").map_or("", |(_, rest)| rest);
        (columns.to_owned(), conditions.to_owned(), question.parameters.len())
    }

    #[test]
    fn values_are_parameters_and_never_text() {
        let text = |text: &str| Value::Text(text.into());
        let evil = "x'; DROP TABLE security_events; --\" $1";
        for (filter, wanted, parameters) in [
            (Filter::Compare("actor".into(), Comparison::Eq, text(evil)), " AND (\"actor\" = $6)", 6),
            (Filter::Compare("actor".into(), Comparison::Gt, text(evil)), " AND (\"actor\" COLLATE \"C\" > $6)", 6),
            (Filter::In("actor".into(), vec![text(evil), text("b")]), " AND (\"actor\" = ANY(ARRAY[$6, $7]))", 7),
            (Filter::Like("message".into(), evil.into()), " AND (\"message\" LIKE $6)", 6),
            (Filter::Not(Box::new(Filter::IsNull("asset".into()))), " AND (NOT (\"asset\" IS NULL))", 5),
            (Filter::OwnHas(evil.into()), " AND (attributes ? $6)", 6),
            (Filter::OwnIn(evil.into(), vec![text(evil)]), " AND (attributes @> $6::text::jsonb)", 6),
            (
                Filter::OwnCompare(evil.into(), Comparison::LtEq, Value::Int(3)),
                " AND ((attributes -> $6) <= $7::text::jsonb)",
                7,
            ),
            (
                Filter::Or(vec![
                    Filter::Compare("severity".into(), Comparison::GtEq, Value::Int(3)),
                    Filter::Compare("time".into(), Comparison::Lt, Value::Time(0)),
                ]),
                " AND ((\"severity\" >= $6) OR (\"time\" < $7))",
                7,
            ),
            (
                Filter::Compare("billed_cost".into(), Comparison::Eq, Value::Decimal { digits: 15, scale: 1 }),
                " AND (\"billed_cost\" = $6::text::numeric)",
                6,
            ),
        ] {
            let (_, conditions, count) = told(&ask(vec![], vec![filter]));
            assert_eq!((conditions.as_str(), count), (wanted, parameters));
        }
    }

    #[test]
    fn outputs_groups_order_and_limit_have_their_words() {
        let name = |name: &str| Output::Column(name.into());
        let order = Order { column: "actor".into(), descending: true, nulls_first: false };
        let asked =
            RowsAsk { order: vec![order], limit: Some(9), ..ask(vec![name("time"), name("own.field")], vec![]) };
        let (columns, rest, _) = told(&asked);
        assert_eq!(columns, "SELECT \"time\", (attributes -> $1), org_id");
        assert_eq!(rest, " ORDER BY \"actor\" COLLATE \"C\" DESC NULLS LAST LIMIT $7");

        let outputs = vec![
            name("source"),
            Output::Count,
            Output::TimeTrunc(TimeUnit::Hour, "time".into()),
            Output::Max("actor".into()),
            Output::Sum("severity".into()),
        ];
        let (columns, rest, _) = told(&RowsAsk { grouped: true, ..ask(outputs, vec![]) });
        let wanted = "SELECT \"source\", count(*), date_trunc('hour', \"time\", 'UTC'), max(\"actor\" COLLATE \"C\"), sum(\"severity\"), org_id";
        assert_eq!(columns, wanted);
        assert_eq!(rest, " GROUP BY org_id, 1, 3");

        let many: Vec<_> = (0..20).map(|at| name(&format!("own{at}"))).collect();
        let question = Question::new("tidegate", &ask(many, vec![]), &cursors(), true);
        let wanted = "SELECT attributes, org_id FROM (SELECT * FROM \"tidegate\".\"security_events\" UNION ALL SELECT * FROM \"tidegate\".\"security_events_default\") AS whole WHERE ";
        assert!(question.sql.starts_with(wanted), "{}", question.sql);
        assert_eq!(question.places[19], Place::Member(0, "own19".into()));
    }

    #[test]
    fn rows_are_those_below_the_cursors_of_each_log() {
        let mut cursors = cursors();
        cursors.others = vec![(3, 500)];
        let sql = Question::new("tidegate", &ask(vec![], vec![]), &cursors, false).sql;
        let wanted = "AND ((log_id = $2 AND log_offset < $3) OR (log_id = $4 AND log_offset < $5) OR (log_id = $6 AND log_offset < $7))";
        assert!(sql.contains(wanted), "{sql}");
        let own = |cursors: &Cursors| {
            Question::new("tidegate", &RowsAsk { others: false, ..ask(vec![], vec![]) }, cursors, false).sql
        };
        let alone = own(&cursors);
        assert!(alone.ends_with("(log_id = $4 AND log_offset < $5))"), "{alone}");
        cursors.kin = vec![(7, 9)];
        let with_kin = own(&cursors);
        assert!(
            with_kin.ends_with("(log_id = $4 AND log_offset < $5) OR (log_id = $6 AND log_offset < $7))"),
            "{with_kin}"
        );
        let nothing = Question::new("tidegate", &ask(vec![], vec![]), &Cursors::default(), false).sql;
        assert!(nothing.ends_with("org_id = $1 AND false"), "{nothing}");
    }
}
