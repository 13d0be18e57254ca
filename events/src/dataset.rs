//! The five datasets and the core columns of each. Each dataset is one SQL table.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::focus;

/// A kind of row with a table, a core schema and a code in the log format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Dataset {
    /// Security events of every source, with OCSF-like core columns.
    SecurityEvents = 1,
    /// Cost and usage rows, with the columns of FOCUS 1.2 in snake case.
    CostEvents = 2,
    /// What rules raised, after OCSF Detection Finding (class 2004).
    Alerts = 3,
    /// Who changed what and when: the audit trail, and the source of all state that people edit.
    Changes = 4,
    /// What could not be stored or delivered, with the reason.
    DeadLetters = 5,
}

impl Dataset {
    /// All datasets, in the order of their codes.
    pub const ALL: [Dataset; 5] =
        [Self::SecurityEvents, Self::CostEvents, Self::Alerts, Self::Changes, Self::DeadLetters];

    /// The name of the SQL table.
    pub fn table_name(self) -> &'static str {
        match self {
            Self::SecurityEvents => "security_events",
            Self::CostEvents => "cost_events",
            Self::Alerts => "alerts",
            Self::Changes => "changes",
            Self::DeadLetters => "dead_letters",
        }
    }

    /// The dataset with this table name.
    pub fn from_table_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dataset| dataset.table_name() == name)
    }

    /// The dataset with this code in the log format.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dataset| *dataset as u8 == code)
    }

    /// The core columns, in order. `time`, `received_time`, `event_id` and `org_id` are in every batch of every dataset.
    pub fn core_schema(self) -> SchemaRef {
        static SCHEMAS: LazyLock<[SchemaRef; 5]> =
            LazyLock::new(|| [security(), cost(), alerts(), changes(), dead_letters()].map(Arc::new));
        SCHEMAS[self as usize - 1].clone()
    }

    /// The column by which retention, pruning and sorting go: `time` of every dataset, microseconds, UTC.
    pub const TIME: &'static str = "time";
    /// The tenant that owns the row.
    pub const ORG_ID: &'static str = "org_id";
    /// The id of the row, unique for a tenant within the de-duplication window.
    pub const EVENT_ID: &'static str = "event_id";
}

/// The type of all times: microseconds since the epoch, UTC.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(crate) fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, true)
}

fn time(name: &str) -> Field {
    Field::new(name, timestamp_type(), true)
}

fn int(name: &str) -> Field {
    Field::new(name, DataType::Int32, true)
}

fn long(name: &str) -> Field {
    Field::new(name, DataType::Int64, true)
}

fn texts(name: &str) -> Field {
    Field::new_list(name, Field::new_list_field(DataType::Utf8, true), true)
}

/// The columns with which every dataset starts.
fn every_dataset() -> Vec<Field> {
    vec![time("time"), time("received_time"), text("event_id"), text("org_id"), text("source")]
}

fn security() -> Schema {
    let mut fields = every_dataset();
    fields.extend([
        text("category"),
        text("class"),
        text("activity"),
        int("severity"),
        text("outcome"),
        text("actor"),
        text("src_ip"),
        int("src_port"),
        text("dst_ip"),
        int("dst_port"),
        text("asset"),
        text("resource"),
        text("message"),
    ]);
    Schema::new(fields)
}

fn cost() -> Schema {
    let mut fields = every_dataset();
    fields.extend(focus::columns().iter().map(|column| Field::new(column.name, column.kind.data_type(), true)));
    Schema::new(fields)
}

fn alerts() -> Schema {
    let mut fields = every_dataset();
    fields.extend([
        long("seq"),
        text("alert_id"),
        text("rule_id"),
        text("title"),
        text("level"),
        int("severity"),
        texts("tags"),
        text("group_key"),
        time("first_time"),
        time("last_time"),
        texts("event_ids"),
        long("event_count"),
        text("actor"),
        text("asset"),
        text("resource"),
        text("message"),
        text("matched"),
        text("continues"),
    ]);
    Schema::new(fields)
}

fn changes() -> Schema {
    let mut fields = every_dataset();
    fields.extend([text("actor"), text("kind"), text("target_id"), text("action"), text("body")]);
    Schema::new(fields)
}

fn dead_letters() -> Schema {
    let mut fields = every_dataset();
    fields.extend([
        text("dataset"),
        text("stage"),
        text("code"),
        text("reason"),
        text("request_id"),
        long("item_index"),
        text("payload"),
        text("payload_encoding"),
    ]);
    Schema::new(fields)
}
