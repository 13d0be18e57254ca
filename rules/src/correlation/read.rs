//! Reads what correlations need from the rows of a batch.

use arrow::array::{Array, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::TimestampMicrosecondType;
use rsigma_parser::CorrelationType;
use tidegate_events::Dataset;

use crate::correlation::alert::push_value;
use crate::correlation::amount::Amount;
use crate::correlation::completing::Completing;
use crate::correlation::entry::Value;
use crate::correlation::set::{Correlation, CorrelationSet};
use crate::correlation::targets::{Feed, Views};
use crate::group_key;
use crate::shown::ShownRows;

/// The columns of a batch that correlations read.
pub(super) struct Batch<'a> {
    shown: ShownRows<'a>,
    pub times: Option<&'a TimestampMicrosecondArray>,
    pub received: Option<&'a TimestampMicrosecondArray>,
    pub org_id: Option<&'a StringArray>,
    pub source: Option<&'a StringArray>,
    pub event_id: Option<&'a StringArray>,
    actor: Option<&'a StringArray>,
    asset: Option<&'a StringArray>,
    resource: Option<&'a StringArray>,
    buffer: String,
}

impl<'a> Batch<'a> {
    pub fn new(rows: &'a RecordBatch, set: &'a CorrelationSet) -> Self {
        let text = |name: &str| rows.column_by_name(name).and_then(|array| array.as_string_opt::<i32>());
        let times = |name: &str| {
            rows.column_by_name(name).and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>())
        };
        Self {
            shown: ShownRows::new(rows, &set.views),
            times: times(Dataset::TIME),
            received: times("received_time"),
            org_id: text(Dataset::ORG_ID),
            source: text("source"),
            event_id: text(Dataset::EVENT_ID),
            actor: text("actor"),
            asset: text("asset"),
            resource: text("resource").or_else(|| text("resource_id")),
            buffer: String::new(),
        }
    }

    pub fn text(column: Option<&'a StringArray>, row: usize) -> &'a str {
        column.filter(|column| column.is_valid(row)).map_or("", |column| column.value(row))
    }

    pub fn time(column: Option<&TimestampMicrosecondArray>, row: usize) -> Option<i64> {
        column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
    }

    pub fn completing(&self, row: usize) -> Completing {
        let some = |column| Some(Self::text(column, row)).filter(|text| !text.is_empty());
        Completing::new(Self::text(self.source, row), [self.actor, self.asset, self.resource].map(some))
    }

    /// Calls `visit` with the first value of a field; says whether there is one.
    pub fn first(&mut self, view: u32, row: usize, mut visit: impl FnMut(&str)) -> bool {
        let mut any = false;
        self.shown.visit(view, row, &mut self.buffer, &mut |value| {
            if !any {
                any = true;
                visit(value);
            }
        });
        any
    }
}

/// Reads the group of an event into `key` and what is measured of it; `None` when something is missing. The values of a firing
/// come from its own group where it has them.
pub(super) fn measured(
    batch: &mut Batch<'_>,
    row: usize,
    key: &mut Vec<u8>,
    (correlation, views): (&Correlation, &Views),
    firing: Option<(&Feed, &[&str])>,
) -> Option<Value> {
    let definition = &correlation.definition;
    let mut read = |group: bool, at: usize, visit: &mut dyn FnMut(&str)| -> Option<()> {
        let place = firing.and_then(|(feed, own)| {
            let places = if group { &feed.group } else { &feed.measured };
            own.get((*places.get(at)?)?).copied()
        });
        if let Some(value) = place {
            visit(value);
            return Some(());
        }
        let views = if group { &views.group } else { &views.measured };
        batch.first(*views.get(at)?, row, visit).then_some(())
    };
    for at in 0..definition.group_by.len() {
        read(true, at, &mut |value| push_value(key, value))?;
    }
    match definition.kind {
        CorrelationType::EventCount | CorrelationType::Temporal | CorrelationType::TemporalOrdered => Some(Value::None),
        CorrelationType::ValueCount => {
            let mut tuple = String::new();
            for at in 0..definition.fields.len() {
                read(false, at, &mut |value| {
                    tuple.push_str(&value.len().to_string());
                    tuple.push(':');
                    tuple.push_str(value);
                    #[cfg(test)]
                    crate::fuse::burst("measure", value);
                })?;
            }
            Some(Value::counted(group_key::hash(&tuple)))
        }
        _ => {
            let mut amount = None;
            read(false, 0, &mut |value| amount = Amount::parse(value))?;
            Some(Value::amount(amount?))
        }
    }
}
