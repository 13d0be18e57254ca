//! What every sink promises.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use tidegate_events::Dataset;
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{
    Delivery, DeliveryConfig, DeliveryParts, EventBatch, Health, LogBatch, LogReader, Offset, OutputLog, Sink,
    StreamLog, deliver,
};
use tokio::runtime::{Builder, Runtime};

use super::memory_sink::MemorySink;
use super::rows::{batch, events, one};

/// A destination that outlives the process.
pub trait Destination {
    /// The sink of a process that has just started. The one of the process before is dropped by then.
    fn sink(&self) -> Box<dyn Sink>;

    /// The ids (`event_id`) of all rows that are durable there, in any order; twice what is there twice.
    fn ids(&self) -> Vec<String>;

    /// What its rows are of: a sink may take one dataset only.
    fn dataset(&self) -> Dataset {
        Dataset::SecurityEvents
    }

    /// Whether rows that were on their way when the process died may be there twice. Consumers know them by their id.
    fn doubles(&self) -> bool {
        false
    }

    /// An id, for each number another one, whose row is refused; `None` when there is no such thing. Called after a first row is
    /// there.
    fn refused_id(&self, _nth: usize) -> Option<String> {
        None
    }
}

/// Holds a kind of sink to its promises. `fresh` makes an empty destination. `name` says in a failure which it was.
pub fn check(name: &str, mut fresh: impl FnMut() -> Box<dyn Destination>) {
    let promises: [(&str, Promise); 7] = [
        ("a flush makes durable what was taken", a_flush_makes_durable_what_was_taken),
        ("committed never promises what is not there", committed_never_promises_what_is_not_there),
        ("the same offsets twice are harmless", the_same_offsets_twice_are_harmless),
        ("a batch that straddles the cursor is cut", a_batch_that_straddles_the_cursor_is_cut),
        ("gaps in the offsets are passed over", gaps_in_the_offsets_are_passed_over),
        ("a death before the flush loses nothing and doubles nothing", a_death_before_the_flush_is_harmless),
        ("refused rows do not bury their neighbours", refused_rows_do_not_bury_their_neighbours),
    ];
    for (promise, check) in promises {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let destination = fresh();
        let entered = runtime.enter();
        let sink = destination.sink();
        drop(entered);
        check(&mut Case { context: format!("{name}: {promise}"), destination, sink, runtime });
    }
}

type Promise = fn(&mut Case);

struct Case {
    context: String,
    destination: Box<dyn Destination>,
    sink: Box<dyn Sink>,
    runtime: Runtime,
}

impl Case {
    /// Rows that the sink takes, of a tenant.
    fn rows(&self, org: &str, ids: &[&str]) -> EventBatch {
        batch(self.destination.dataset(), &vec![org; ids.len()], ids)
    }

    fn write(&mut self, batches: &[(Offset, EventBatch)], next_offset: Offset) {
        let batch = |(offset, batch): &(Offset, EventBatch)| {
            Arc::new(LogBatch { offset: *offset, dataset: batch.dataset, rows: batch.rows.clone() })
        };
        let delivery = Delivery { batches: batches.iter().map(batch).collect(), next_offset };
        let taken = self.runtime.block_on(self.sink.write(delivery));
        taken.unwrap_or_else(|error| panic!("{}: {error}", self.context));
    }

    fn flush(&mut self) {
        let flushed = self.runtime.block_on(self.sink.flush());
        flushed.unwrap_or_else(|error| panic!("{}: {error}", self.context));
    }

    /// The process dies and starts again.
    fn restart(&mut self) {
        let _entered = self.runtime.enter();
        self.sink = self.destination.sink();
    }

    fn must_hold(&self, committed: Offset, ids: &[&str]) {
        let mut found = self.destination.ids();
        found.sort_unstable();
        assert_eq!(found, ids, "{}", self.context);
        assert_eq!(self.sink.committed(), committed, "{}", self.context);
    }
}

fn a_flush_makes_durable_what_was_taken(case: &mut Case) {
    assert!(!case.sink.name().is_empty(), "{}", case.context);
    case.must_hold(0, &[]);
    case.flush();
    case.must_hold(0, &[]);
    let other = match case.destination.dataset() {
        Dataset::SecurityEvents => Dataset::Changes,
        only => only,
    };
    let rows = [(0, case.rows("a", &["a", "b"])), (2, batch(other, &["a"], &["c"])), (3, case.rows("b", &["d"]))];
    case.write(&rows, 4);
    case.flush();
    case.must_hold(4, &["a", "b", "c", "d"]);
    case.restart();
    case.must_hold(4, &["a", "b", "c", "d"]);
}

fn committed_never_promises_what_is_not_there(case: &mut Case) {
    for nth in 0..20u64 {
        let id = format!("{nth:02}");
        case.write(&[(nth, case.rows("a", &[&id]))], nth + 1);
        if nth % 7 == 6 {
            case.flush();
        }
        let (found, committed) = (case.destination.ids(), case.sink.committed());
        for below in 0..committed {
            assert!(found.contains(&format!("{below:02}")), "{}: {below} of {committed}", case.context);
        }
    }
}

fn the_same_offsets_twice_are_harmless(case: &mut Case) {
    let rows = [(0, case.rows("a", &["a", "b"])), (2, case.rows("b", &["c"]))];
    case.write(&rows, 3);
    case.write(&rows, 3);
    case.flush();
    case.must_hold(3, &["a", "b", "c"]);
    case.write(&rows, 3);
    case.flush();
    case.restart();
    case.write(&rows[1..], 3);
    case.flush();
    case.must_hold(3, &["a", "b", "c"]);
}

fn a_batch_that_straddles_the_cursor_is_cut(case: &mut Case) {
    case.write(&[(0, case.rows("a", &["a", "b"]))], 2);
    case.flush();
    case.write(&[(1, case.rows("a", &["b", "c"]))], 3);
    case.flush();
    case.must_hold(3, &["a", "b", "c"]);
}

fn gaps_in_the_offsets_are_passed_over(case: &mut Case) {
    case.write(&[(5, case.rows("a", &["a"])), (9, case.rows("a", &["b"]))], 12);
    case.flush();
    case.must_hold(12, &["a", "b"]);
    case.write(&[(30, case.rows("a", &["c"]))], 31);
    case.flush();
    case.must_hold(31, &["a", "b", "c"]);
}

fn a_death_before_the_flush_is_harmless(case: &mut Case) {
    let rows = [(0, case.rows("a", &["a", "b"])), (2, case.rows("b", &["c"])), (3, case.rows("b", &["d"]))];
    case.write(&rows[..1], 2);
    case.flush();
    case.write(&rows[1..], 4);
    case.restart();
    let from = case.sink.committed();
    assert!((2..=4).contains(&from), "{}: {from}", case.context);
    let rest: Vec<_> = rows.into_iter().filter(|(offset, _)| *offset >= from).collect();
    if !rest.is_empty() {
        case.write(&rest, 4);
    }
    case.flush();
    let mut found = case.destination.ids();
    found.sort_unstable();
    if case.destination.doubles() {
        found.dedup();
    }
    assert_eq!(found, ["a", "b", "c", "d"], "{}", case.context);
    assert_eq!(case.sink.committed(), 4, "{}", case.context);
}

/// Many more than there are tries to find them by halving.
const REFUSED: usize = 100;

fn refused_rows_do_not_bury_their_neighbours(case: &mut Case) {
    case.write(&[(0, case.rows("a", &["first"]))], 1);
    case.flush();
    let Some(bad) = (0..REFUSED).map(|nth| case.destination.refused_id(nth)).collect::<Option<Vec<_>>>() else {
        return;
    };
    let (log, output) = (Arc::new(MemoryLog::new(1 << 20, 1 << 30)), Arc::new(MemoryLog::new(1 << 20, 1 << 30)));
    // Every second row, and two of them side by side.
    let good: Vec<String> = (0..REFUSED).map(|nth| format!("good{nth:04}")).collect();
    let mixed = good.iter().zip(&bad).flat_map(|(good, bad)| [good.as_str(), bad.as_str()]);
    let mut ids: Vec<&str> = std::iter::once("first").chain(mixed).collect();
    ids.swap(2, 3);
    for ids in ids.chunks(77) {
        let appended = case.runtime.block_on(log.append(one(events("a", ids))));
        appended.expect("an answer").expect("room");
    }
    let parts = DeliveryParts {
        sink: std::mem::replace(&mut case.sink, Box::new(MemorySink::default())),
        log: log.clone(),
        output: Arc::new(OutputLog::new(output.clone())),
        config: DeliveryConfig {
            flush_interval_ms: 20,
            retry_ms_min: 1,
            retry_ms_max: 50,
            ..DeliveryConfig::default()
        },
        stage: Health::default().stage("sink"),
    };
    let delivery = deliver(parts, case.runtime.handle());
    let drained = case.runtime.block_on(delivery.drain(Instant::now() + Duration::from_secs(60)));
    assert_eq!(
        drained.unwrap_or_else(|error| panic!("{}: {error}", case.context)),
        ids.len() as u64,
        "{}",
        case.context
    );
    let mut found = case.destination.ids();
    found.sort_unstable();
    let expected: Vec<String> = std::iter::once("first".to_owned()).chain(good).collect();
    assert_eq!(found, expected, "{}", case.context);
    let letters = output.read(0, usize::MAX).expect("letters");
    let payloads = |batch: &Arc<LogBatch>| -> Vec<String> {
        let column = batch.rows.column_by_name("payload").expect("payload").as_string::<i32>();
        column.iter().flatten().map(str::to_owned).collect()
    };
    let payloads: Vec<String> = letters.iter().flat_map(payloads).collect();
    assert_eq!(payloads.len(), bad.len(), "{}", case.context);
    for id in &bad {
        let named = payloads.iter().filter(|payload| payload.contains(id.as_str())).count();
        assert_eq!(named, 1, "{}: {id}", case.context);
    }
}
