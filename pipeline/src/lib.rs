//! The seams of Tidegate and what runs between them: the segment log, the run loop, checkpoints, delivery.
//!
//! Data moves one way: decoders append [`EventBatch`]es to a [`StreamLog`]; the run loop reads them in offset order and
//! hands them to [`Operator`]s, whose alerts go to a second log; each [`Sink`] reads a log at its own cursor. Two things
//! travel upward: fullness ([`AppendError::Full`]) and acknowledged offsets.

pub mod backoff;
pub mod checkpoint;
pub mod clock;
pub mod delivery;
pub mod error;
pub mod fields;
pub mod fs;
pub mod health;
pub mod history;
pub mod history_rows;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod operator;
pub mod output;
pub mod problem;
pub mod registry;
pub mod run;
pub mod sealed;
pub mod sink;
pub mod tailing;
pub mod url_text;

pub use delivery::{DeadLetter, DeliveryConfig, DeliveryHandle, DeliveryParts, dead_letter_batch, deliver};
pub use error::{AppendError, PipelineError};
pub use fields::FieldCatalog;
pub use health::{Health, Stage};
pub use history::{History, HistoryFile, Snapshot};
pub use history_rows::{HistoryError, HistoryRows, RowsAsk};
pub use log::{Ack, Append, AppendReply, Appended, EventBatch, LogBatch, LogBounds, LogReader, Offset, StreamLog};
pub use operator::{Emitter, Operator};
pub use output::OutputLog;
pub use problem::Problem;
pub use run::{RunConfig, RunHandle, RunLoop, RunParts, RunStatus};
pub use sink::{Delivery, Refusal, Sink, SinkError, SinkFuture};
