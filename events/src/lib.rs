//! What flows through Tidegate: the datasets, their Arrow schemas, the type lattice of an event's own fields, and ids.
//!
//! A row is made of **core columns** (typed, named by [`Dataset::core_schema`]) and the event's **own fields**, which are
//! flattened to dotted names and appear as data brings them. A [`RecordBatch`](arrow::array::RecordBatch) of a dataset holds
//! the core columns that have at least one value in it, in the order of the core schema, then own fields. A column that a
//! batch does not have is null for all of its rows. This crate knows nothing of serde, SQL or tokio.
//!
//! ```
//! use tidegate_events::{Dataset, FieldType};
//! assert_eq!(Dataset::SecurityEvents.table_name(), "security_events");
//! assert_eq!(FieldType::INT.join(FieldType::FLOAT), FieldType::FLOAT);
//! assert_eq!(FieldType::BOOL.join(FieldType::INT), FieldType::TEXT);
//! ```

pub mod alert;
pub mod dataset;
pub mod field;
pub mod focus;
pub mod id;

pub use alert::{Alert, Level, alerts_to_batch};
pub use dataset::{Dataset, timestamp_type};
pub use field::{FieldType, RAW_PREFIX, REST_COLUMN, Scalar};
pub use id::{IdGenerator, alert_id, dedup_key};
