//! A sink in memory that keeps all promises: the twin of the real ones.

use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_pipeline::{Delivery, Offset, Refusal, Sink, SinkError, SinkFuture};

use super::rows::ids_of;
use super::sink::Destination;

/// Rows whose ids begin so are refused.
pub const REFUSED: &str = "bad";

/// When a sink refuses rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Refuses {
    /// When it is given them.
    #[default]
    AtWrite,
    /// When it is to make them durable.
    AtFlush,
}

/// What survives the process.
#[derive(Debug, Default)]
pub struct Durable {
    ids: Vec<String>,
    next: Offset,
}

/// See the module.
#[derive(Debug, Default)]
pub struct MemorySink {
    durable: Arc<Mutex<Durable>>,
    refuses: Refuses,
    taken: Vec<(Offset, String)>,
    next: Offset,
}

impl MemorySink {
    /// A sink of a process that starts.
    pub fn new(durable: Arc<Mutex<Durable>>, refuses: Refuses) -> Self {
        let next = durable.lock().next;
        Self { durable, refuses, taken: Vec::new(), next }
    }

    fn take(&mut self, delivery: &Delivery) -> Result<(), SinkError> {
        let rows = delivery.batches.iter().flat_map(|batch| ids_of(batch));
        let rows: Vec<_> = rows.filter(|(offset, _)| *offset >= self.next).collect();
        match refusal(&rows) {
            Some(refusal) if self.refuses == Refuses::AtWrite => Err(SinkError::Fatal(refusal)),
            _ => {
                self.taken.extend(rows);
                self.next = self.next.max(delivery.next_offset);
                Ok(())
            }
        }
    }

    fn store(&mut self) -> Result<(), SinkError> {
        let mut durable = self.durable.lock();
        let taken = std::mem::take(&mut self.taken);
        if let Some(refusal) = refusal(&taken) {
            self.next = durable.next;
            return Err(SinkError::Withdrawn(refusal));
        }
        durable.ids.extend(taken.into_iter().map(|(_, id)| id));
        durable.next = self.next;
        Ok(())
    }
}

fn refusal(rows: &[(Offset, String)]) -> Option<Refusal> {
    let rows = rows.iter().filter(|(_, id)| id.starts_with(REFUSED)).map(|(offset, _)| *offset);
    let rows: Vec<Offset> = rows.collect();
    (!rows.is_empty()).then(|| Refusal { reason: "its id is bad".to_owned(), rows })
}

impl Sink for MemorySink {
    fn name(&self) -> &str {
        "memory"
    }

    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_> {
        let taken = self.take(&delivery);
        Box::pin(async { taken })
    }

    fn flush(&mut self) -> SinkFuture<'_> {
        let stored = self.store();
        Box::pin(async { stored })
    }

    fn committed(&self) -> Offset {
        self.durable.lock().next
    }
}

/// The destination of such a sink.
pub struct Memory {
    durable: Arc<Mutex<Durable>>,
    refuses: Refuses,
}

impl Memory {
    /// An empty one.
    pub fn new(refuses: Refuses) -> Self {
        Self { durable: Arc::default(), refuses }
    }
}

impl Destination for Memory {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(MemorySink::new(self.durable.clone(), self.refuses))
    }

    fn ids(&self) -> Vec<String> {
        self.durable.lock().ids.clone()
    }

    fn refused_id(&self, nth: usize) -> Option<String> {
        Some(format!("{REFUSED}{nth:04}"))
    }
}
