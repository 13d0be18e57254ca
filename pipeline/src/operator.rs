//! The operator seam: what runs over the stream and raises alerts. Operators do no I/O, hold no locks and read no clock.

use tidegate_events::Alert;

use crate::error::PipelineError;
use crate::log::LogBatch;

/// A deterministic stage of the run loop. The same batches in the same order give the same alerts with the same ids.
pub trait Operator: Send {
    /// A stable name: the key of its state in a checkpoint and a label of its metrics.
    fn name(&self) -> &str;

    /// Looks at one batch of any dataset (a rule change arrives here as a batch of `changes`) and emits what it finds.
    fn process(&mut self, batch: &LogBatch, out: &mut Emitter);

    /// No event older than `watermark` (µs, event time) is to be waited for: windows that ended before it can close. It goes back
    /// only when the clock by which events are received was set back.
    fn advance(&mut self, watermark: i64, out: &mut Emitter) {
        let _ = (watermark, out);
    }

    /// The state after the last processed batch, to be given to [`restore`](Self::restore) after a restart.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes up a saved state.
    ///
    /// # Errors
    /// When the bytes are not a state of this operator, which is then as if it had not been called: the run loop goes on with
    /// it afresh.
    fn restore(&mut self, state: &[u8]) -> Result<(), PipelineError> {
        let _ = state;
        Ok(())
    }
}

/// Collects what operators emit while one batch is processed.
#[derive(Debug, Default)]
pub struct Emitter {
    alerts: Vec<Alert>,
}

impl Emitter {
    /// Emits an alert. Order matters: it is the order of the feed.
    pub fn alert(&mut self, alert: Alert) {
        self.alerts.push(alert);
    }

    /// Takes what was emitted so far.
    pub fn take_alerts(&mut self) -> Vec<Alert> {
        std::mem::take(&mut self.alerts)
    }
}
