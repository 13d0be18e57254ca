//! The text of a mapping file, as TOML. `docs/mappings.md` describes it for its authors.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidegate_events::{Dataset, focus};

use super::rule::{Condition, Convert, From, Part, Rule};
use super::{Mapping, Recognise};

/// One value, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MappingText {
    pub(super) name: String,
    dataset: String,
    #[serde(default)]
    focus_columns: bool,
    #[serde(default)]
    recognise: Vec<RecogniseText>,
    ids: Option<toml::Value>,
    #[serde(default)]
    columns: BTreeMap<String, toml::Value>,
}

type ConditionTexts = BTreeMap<String, OneOrMany<String>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecogniseText {
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    absent: Vec<String>,
    #[serde(default)]
    values: ConditionTexts,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    field: Option<String>,
    template: Option<String>,
    #[serde(rename = "const")]
    constant: Option<String>,
    #[serde(rename = "as")]
    convert: Option<String>,
    #[serde(default)]
    map: BTreeMap<String, String>,
    otherwise: Option<String>,
    #[serde(default)]
    when: ConditionTexts,
    #[serde(default)]
    unless: ConditionTexts,
}

/// Compiles one file.
///
/// # Errors
/// What is wrong, with the line where TOML itself is.
pub(super) fn compile(text: &str) -> Result<Mapping, (Option<usize>, String)> {
    let parsed: MappingText = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
        (line, error.message().to_owned())
    })?;
    let line_of = |name: &str| {
        let at = text.lines().position(|line| line.trim_start().trim_start_matches('"').starts_with(name));
        at.map(|at| at + 1)
    };
    let dataset = Dataset::from_table_name(&parsed.dataset)
        .filter(|dataset| matches!(dataset, Dataset::SecurityEvents | Dataset::CostEvents))
        .ok_or_else(|| {
            (line_of("dataset"), format!("no such dataset: {:?} (security_events, cost_events)", parsed.dataset))
        })?;
    let mut columns = Vec::new();
    for (name, sources) in parsed.columns {
        let index = dataset.core_schema().index_of(&name).ok().filter(|_| !RESERVED.contains(&name.as_str()));
        let index = index.ok_or_else(|| (line_of(&name), no_such_column(&name, dataset)))?;
        let rules = rules(sources).map_err(|reason| (line_of(&name), format!("column {name:?}: {reason}")))?;
        columns.push((index, rules));
    }
    if parsed.focus_columns {
        columns.extend(focus_columns(&columns));
    }
    columns.sort_by_key(|(index, _)| *index);
    let ids = parsed.ids.map_or(Ok(Vec::new()), rules).map_err(|reason| (line_of("ids"), format!("ids: {reason}")))?;
    let ids = ids.into_iter().chain(common_ids()).collect();
    let recognise = parsed.recognise.into_iter().map(recognise).collect();
    Ok(Mapping { name: parsed.name.into(), dataset, consume: parsed.focus_columns, recognise, ids, columns })
}

/// Fields that are an event's id in every kind of record, after those that its mapping names. A number called `event_id` is
/// the kind of an event in Windows' logs, not its id.
fn common_ids() -> [Rule; 2] {
    let mut event_id = Rule::field("event_id".to_owned());
    event_id.convert = Convert::Text;
    [Rule::field("_id".to_owned()), event_id]
}

/// Columns that the decoder fills itself.
const RESERVED: [&str; 4] = ["received_time", "event_id", "org_id", "source"];

fn no_such_column(name: &str, dataset: Dataset) -> String {
    let schema = dataset.core_schema();
    let names: Vec<&str> =
        schema.fields().iter().map(|field| field.name().as_str()).filter(|name| !RESERVED.contains(name)).collect();
    format!("{name:?} is not a core column of {} that a mapping can fill ({})", dataset.table_name(), names.join(", "))
}

/// The columns of FOCUS that the file does not name, from each name that a version of FOCUS gives them, or snake case.
fn focus_columns(named: &[(usize, Vec<Rule>)]) -> Vec<(usize, Vec<Rule>)> {
    let schema = Dataset::CostEvents.core_schema();
    let column = |column: &focus::FocusColumn| {
        let index = schema.index_of(column.name).ok().filter(|index| named.iter().all(|(named, _)| named != index))?;
        let names = column.focus_names.iter().copied().chain([column.name]);
        Some((index, names.map(|name| Rule::field(name.to_owned())).collect()))
    };
    focus::columns().iter().filter_map(column).collect()
}

fn recognise(text: RecogniseText) -> Recognise {
    Recognise { fields: text.fields, absent: text.absent, values: conditions(text.values) }
}

fn conditions(texts: ConditionTexts) -> Vec<Condition> {
    texts.into_iter().map(|(field, values)| Condition { field, values: values.into_vec() }).collect()
}

/// One way to a value, or a list of them, tried in order.
fn rules(sources: toml::Value) -> Result<Vec<Rule>, String> {
    match sources {
        toml::Value::Array(sources) => sources.into_iter().map(rule).collect(),
        source => Ok(vec![rule(source)?]),
    }
}

/// Where a value comes from: the name of a field, a template, or a table that says more.
fn rule(source: toml::Value) -> Result<Rule, String> {
    let text = match source {
        toml::Value::String(name) if name.contains('{') => RuleText { template: Some(name), ..RuleText::default() },
        toml::Value::String(name) => return Ok(Rule::field(name)),
        // Through the table, so that serde names the key that is wrong.
        source @ toml::Value::Table(_) => {
            source.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?
        }
        other => return Err(format!("{other} is neither the name of a field nor a table")),
    };
    let from = match (text.field, text.template, text.constant) {
        (Some(field), None, None) => From::Field(field),
        (None, Some(template), None) => From::Template(template_parts(&template)?),
        (None, None, Some(constant)) => From::Const(constant),
        _ => return Err("exactly one of field, template and const is needed".to_owned()),
    };
    let convert = text.convert.as_deref().map(str::parse::<Convert>).transpose()?.unwrap_or_default();
    let map = text.map.into_iter().map(|(key, value)| (key.to_lowercase(), value)).collect();
    let (when, unless) = (conditions(text.when), conditions(text.unless));
    Ok(Rule { from, convert, map, otherwise: text.otherwise, when, unless })
}

fn template_parts(template: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (field, after) = after.split_once('}').ok_or_else(|| format!("`{{` without `}}` in {template:?}"))?;
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(Part::Field(field.to_owned()));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}
