//! A change as a value, and as a row of `changes`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use serde_json::Value;
use tidegate_events::Dataset;

use crate::error::PipelineError;

/// What a change does to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Makes it. Of one that is there already it takes the place.
    Create,
    /// Replaces its body. Of one that is not there it makes it.
    Update,
    /// Removes it; no body. Of one that is not there it does nothing.
    Delete,
}

impl Action {
    /// The word in the column `action`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Create, Self::Update, Self::Delete]
            .into_iter()
            .find(|action| action.as_str() == text)
            .ok_or_else(|| format!("no such action: {text:?} (create, update, delete)"))
    }
}

/// Who changed what, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// When (µs).
    pub time_us: i64,
    /// The id of the change itself; the registry makes one when it is empty. A change whose id the log has already is not
    /// applied again, so that a caller may repeat one that failed.
    pub change_id: String,
    /// The tenant.
    pub org_id: String,
    /// Who: the id of a key, `local`, `data-dir`, or the path of a folder.
    pub actor: String,
    /// What kind of thing: `rule`, `key`, …
    pub kind: String,
    /// Which one: unique within tenant and kind.
    pub target_id: String,
    /// What is done to it.
    pub action: Action,
    /// The whole of the thing after the change; `null` for a removal.
    pub body: Value,
}

/// The changes as a batch of [`Dataset::Changes`]. `received_time` is `time_us`, `source` is `tidegate`, `body` is JSON text.
///
/// # Errors
/// Arrow's own, when the bodies do not fit Arrow's offsets (2 GiB).
pub fn changes_to_batch(changes: &[Change]) -> Result<RecordBatch, PipelineError> {
    let text =
        |of: fn(&Change) -> Option<&str>| -> ArrayRef { Arc::new(changes.iter().map(of).collect::<StringArray>()) };
    let times = || -> ArrayRef {
        let times = changes.iter().map(|change| change.time_us);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let bodies = changes.iter().map(|change| (!change.body.is_null()).then(|| change.body.to_string()));
    let columns = vec![
        times(),
        times(),
        text(|change| Some(&change.change_id)),
        text(|change| Some(&change.org_id)),
        text(|_| Some("tidegate")),
        text(|change| Some(&change.actor)),
        text(|change| Some(&change.kind)),
        text(|change| Some(&change.target_id)),
        text(|change| Some(change.action.as_str())),
        Arc::new(bodies.collect::<StringArray>()),
    ];
    Ok(RecordBatch::try_new(Dataset::Changes.core_schema(), columns)?)
}

/// The changes in a batch of [`Dataset::Changes`], row by row; an error for a row that is none, which readers pass over.
pub fn changes_of_batch(rows: &RecordBatch) -> impl Iterator<Item = Result<Change, String>> {
    (0..rows.num_rows()).map(|row| change_of_row(rows, row))
}

fn change_of_row(rows: &RecordBatch, row: usize) -> Result<Change, String> {
    let text = |name: &str| {
        let column = rows.column_by_name(name)?.as_any().downcast_ref::<StringArray>()?;
        column.is_valid(row).then(|| column.value(row))
    };
    let needed = |name: &str| text(name).map(str::to_owned).ok_or_else(|| format!("the change has no {name}"));
    let times: Option<&TimestampMicrosecondArray> =
        rows.column_by_name("time").and_then(|times| times.as_any().downcast_ref());
    let body = text("body").map(serde_json::from_str).transpose();
    Ok(Change {
        time_us: times.filter(|times| times.is_valid(row)).map_or(0, |times| times.value(row)),
        change_id: needed("event_id")?,
        org_id: needed("org_id")?,
        actor: text("actor").unwrap_or_default().to_owned(),
        kind: needed("kind")?,
        target_id: needed("target_id")?,
        action: needed("action")?.parse()?,
        body: body.map_err(|error| format!("the body is not JSON: {error}"))?.unwrap_or(Value::Null),
    })
}
