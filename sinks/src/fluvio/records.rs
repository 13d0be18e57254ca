//! The records of one partition, one after the other and none left out.

use std::pin::Pin;
use std::time::Duration;

use fluvio::consumer::Record;
use fluvio::dataplane::link::ErrorCode;
use futures::{Stream, StreamExt};
use tokio::time::timeout;

use super::failure::FluvioFailure;
use super::link::Link;

/// What the client library has of a partition.
pub(super) type RecordStream = Pin<Box<dyn Stream<Item = Result<Record, ErrorCode>> + Send>>;

/// See the module. After a failure it is of no use: drop it and read again.
pub(super) struct Records {
    link: Link,
    topic: String,
    partition: u32,
    expected: u64,
    stream: RecordStream,
}

impl Records {
    pub(super) fn new(link: Link, topic: String, partition: u32, from: u64, stream: RecordStream) -> Self {
        Self { link, topic, partition, expected: from, stream }
    }

    /// The next record; `None` when none came within `wait`. A broker that hangs looks like one to which nobody writes:
    /// [`Link::next_record`] tells them apart.
    ///
    /// # Errors
    /// [`FluvioFailure::Forgotten`] when retention was faster, [`FluvioFailure::Gap`] when the client library left records out,
    /// [`FluvioFailure::Away`] when the broker ended the stream.
    pub(super) async fn next(&mut self, wait: Duration) -> Result<Option<Record>, FluvioFailure> {
        let doing = || format!("read {}-{}", self.topic, self.partition);
        let record = match timeout(wait, self.stream.next()).await {
            Err(_) => return Ok(None),
            Ok(Some(Ok(record))) => record,
            Ok(Some(Err(ErrorCode::OffsetEvicted { next_available, .. }))) => {
                let first = u64::try_from(next_available).unwrap_or(self.expected);
                return Err(self.forgotten(first));
            }
            Ok(Some(Err(error))) => return Err(self.link.cluster().away(&doing(), &error)),
            Ok(None) => return Err(self.link.cluster().away(&doing(), &"the broker ended the stream")),
        };
        if u64::try_from(record.offset()) != Ok(self.expected) {
            return Err(FluvioFailure::Gap {
                topic: self.topic.clone(),
                partition: self.partition,
                expected: self.expected,
                found: u64::try_from(record.offset()).unwrap_or_default(),
            });
        }
        self.expected += 1;
        Ok(Some(record))
    }

    /// The offset of the record that comes next.
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    fn forgotten(&self, first: u64) -> FluvioFailure {
        FluvioFailure::Forgotten { topic: self.topic.clone(), partition: self.partition, offset: self.expected, first }
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("topic", &self.topic).field("expected", &self.expected).finish_non_exhaustive()
    }
}
