//! The operators of a run loop, each on its own: one that panics is parked, the others go on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use metrics::{counter, gauge};
use tidegate_events::Alert;

use crate::checkpoint::Checkpoint;
use crate::error::PipelineError;
use crate::log::LogBatch;
use crate::metrics as names;
use crate::operator::{Emitter, Operator};

/// An operator that was taken out of the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The operator's name.
    pub operator: String,
    /// Why.
    pub reason: String,
}

struct Station {
    name: String,
    /// `None` once parked.
    operator: Option<Box<dyn Operator>>,
}

/// The operators in their order.
pub(super) struct Stations {
    stations: Vec<Station>,
    parked: Vec<Parked>,
    emitter: Emitter,
}

impl Stations {
    /// # Errors
    /// [`PipelineError::Invalid`] when two operators have one name: it is the key of their states.
    pub(super) fn new(operators: Vec<Box<dyn Operator>>) -> Result<Self, PipelineError> {
        let mut stations: Vec<Station> = Vec::with_capacity(operators.len());
        for operator in operators {
            let name = operator.name().to_owned();
            if stations.iter().any(|station| station.name == name) {
                return Err(PipelineError::Invalid(format!("two operators are named {name:?}: rename one")));
            }
            stations.push(Station { name, operator: Some(operator) });
        }
        Ok(Self { stations, parked: Vec::new(), emitter: Emitter::default() })
    }

    /// Gives each operator its state. One without a state that it takes starts afresh: with `seed`, so that it knows what
    /// people have set up by now, when `history` says that there are rows which it will not see.
    pub(super) fn restore(&mut self, checkpoint: Option<&Checkpoint>, seed: &[LogBatch], history: bool) {
        for at in 0..self.stations.len() {
            let name = self.stations[at].name.clone();
            let restored = match checkpoint.and_then(|checkpoint| checkpoint.state(&name)) {
                None => false,
                Some(state) => match self.guard(at, "restore", |operator, _| operator.restore(state)) {
                    Some(Ok(())) => true,
                    Some(Err(error)) => {
                        tracing::warn!(operator = name, %error, "the saved state was refused: the operator starts afresh");
                        false
                    }
                    None => continue,
                },
            };
            if restored || !history {
                continue;
            }
            tracing::warn!(operator = name, "starts without the state of earlier rows: open windows begin anew");
            for batch in seed {
                self.guard(at, "process", |operator, out| operator.process(batch, out));
                // What the seed would raise was raised when these changes were made.
                self.emitter.take_alerts();
            }
        }
    }

    /// Hands a batch to each operator, then the watermark if it moved; the alerts in order.
    pub(super) fn process(&mut self, batch: &LogBatch, watermark: Option<i64>) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for at in 0..self.stations.len() {
            let done = self.guard(at, "process", |operator, out| operator.process(batch, out));
            if done.is_some()
                && let Some(watermark) = watermark
            {
                self.take(&mut alerts);
                self.guard(at, "advance", |operator, out| operator.advance(watermark, out));
            }
            self.take(&mut alerts);
        }
        alerts
    }

    /// The state of every operator that is not parked.
    pub(super) fn save(&mut self) -> Vec<(String, Vec<u8>)> {
        let states = (0..self.stations.len()).filter_map(|at| {
            let state = self.guard(at, "save", |operator, _| operator.save())?;
            Some((self.stations[at].name.clone(), state))
        });
        states.collect()
    }

    pub(super) fn parked(&self) -> &[Parked] {
        &self.parked
    }

    fn take(&mut self, alerts: &mut Vec<Alert>) {
        let emitted = self.emitter.take_alerts();
        if alerts.is_empty() { *alerts = emitted } else { alerts.extend(emitted) }
    }

    /// Calls one operator. If it panics it is parked, and what it emitted in this call is dropped: its state is not to be
    /// trusted, and a replay drops the same.
    fn guard<T>(&mut self, at: usize, call: &str, run: impl FnOnce(&mut dyn Operator, &mut Emitter) -> T) -> Option<T> {
        let station = &mut self.stations[at];
        let operator = station.operator.as_mut()?;
        let emitter = &mut self.emitter;
        let panic = match catch_unwind(AssertUnwindSafe(|| run(operator.as_mut(), emitter))) {
            Ok(value) => return Some(value),
            Err(panic) => panic,
        };
        let reason = format!("panicked in {call}: {}", panic_text(panic.as_ref()));
        tracing::error!(
            operator = station.name,
            reason,
            "an operator is parked: its rules raise nothing until a restart"
        );
        emitter.take_alerts();
        let operator = station.operator.take();
        // Its destructor may panic just as well.
        catch_unwind(AssertUnwindSafe(|| drop(operator))).ok();
        counter!(names::RUN_OPERATOR_PANICS, "operator" => station.name.clone()).increment(1);
        self.parked.push(Parked { operator: station.name.clone(), reason });
        gauge!(names::RUN_PARKED_OPERATORS).set(self.parked.len() as f64);
        None
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no message)").chars().take(500).collect()
}
