//! The cast of the tests of run loop, delivery and registry: a log in memory that dies when told to, operators whose alerts
//! are easy to foresee, a sink that answers as scripted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Schema, TimestampMicrosecondType};
use parking_lot::Mutex;
use tidegate_events::{Alert, Dataset, Level, alert_id};
use tidegate_pipeline::{
    Append, AppendError, AppendReply, Appended, Delivery, Emitter, Health, LogBatch, LogBounds, LogReader, Offset,
    Operator, PipelineError, Refusal, Sink, SinkError, SinkFuture, Stage, StreamLog,
};
use tokio::sync::{oneshot, watch};

/// What an append of a [`ScriptedLog`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is refused as full.
    Full,
    /// It fails, and burns the offsets it would have had.
    Fails,
    /// The process dies before it is stored: this append and all later ones are answered with `Closed`.
    DiesBefore,
    /// The process dies after it was stored.
    DiesAfter,
}

#[derive(Default)]
struct Rows {
    batches: Vec<Arc<LogBatch>>,
    fates: BTreeMap<usize, Fate>,
    appends: usize,
    burnt: u64,
    dead: bool,
    keys: std::collections::HashSet<u128>,
}

/// A log in memory. [`reopen`](Self::reopen) gives the one that a restart finds.
pub struct ScriptedLog {
    rows: Mutex<Rows>,
    bounds: watch::Sender<LogBounds>,
}

impl ScriptedLog {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { rows: Mutex::default(), bounds: watch::Sender::new(LogBounds::default()) })
    }

    /// The `nth` append from now on (0 is the next) meets this fate.
    pub fn fate(&self, nth: usize, fate: Fate) {
        let mut rows = self.rows.lock();
        let at = rows.appends + nth;
        rows.fates.insert(at, fate);
    }

    /// No append meets a fate any more.
    pub fn forgive(&self) {
        self.rows.lock().fates.clear();
    }

    /// What is stored, in a new log without a script.
    pub fn reopen(&self) -> Arc<Self> {
        let rows = self.rows.lock();
        let rows = Rows { batches: rows.batches.clone(), keys: rows.keys.clone(), ..Rows::default() };
        Arc::new(Self { rows: Mutex::new(rows), bounds: watch::Sender::new(*self.bounds.borrow()) })
    }

    /// Puts a batch at the end.
    pub fn push(&self, dataset: Dataset, rows: RecordBatch) {
        let offset = self.bounds().next;
        let batch = LogBatch { offset, dataset, rows };
        let next = batch.next_offset();
        self.rows.lock().batches.push(Arc::new(batch));
        self.bounds.send_modify(|bounds| bounds.next = next);
    }

    /// Makes the batch at this offset unreadable.
    pub fn damage(&self, offset: Offset) {
        self.rows.lock().batches.retain(|batch| batch.offset != offset);
    }

    /// All batches of a dataset.
    pub fn batches_of(&self, dataset: Dataset) -> Vec<Arc<LogBatch>> {
        self.rows.lock().batches.iter().filter(|batch| batch.dataset == dataset).cloned().collect()
    }

    /// All rows of a dataset, each printed with its columns that have a value.
    pub fn rows_of(&self, dataset: Dataset) -> Vec<String> {
        self.batches_of(dataset).iter().flat_map(|batch| print_rows(&batch.rows)).collect()
    }
}

/// Each row as `name=value` pairs.
pub fn print_rows(rows: &RecordBatch) -> Vec<String> {
    let cell = |row: usize, at: usize| {
        let column = rows.column(at);
        let text = match column.as_any().downcast_ref::<TimestampMicrosecondArray>() {
            Some(times) => times.value(row).to_string(),
            None => arrow::util::display::array_value_to_string(column, row).expect("a value that prints"),
        };
        column.is_valid(row).then(|| format!("{}={text}", rows.schema_ref().field(at).name()))
    };
    (0..rows.num_rows())
        .map(|row| (0..rows.num_columns()).filter_map(|at| cell(row, at)).collect::<Vec<_>>().join(" "))
        .collect()
}

impl LogReader for ScriptedLog {
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let first = self.bounds().first;
        if from < first {
            return Err(PipelineError::Forgotten { asked: from, first });
        }
        let rows = self.rows.lock();
        let mut bytes = 0;
        let wanted = rows.batches.iter().filter(|batch| batch.next_offset() > from);
        let taken = wanted.take_while(|batch| {
            let more = bytes == 0 || bytes < bytes_max;
            bytes += batch.rows.get_array_memory_size();
            more
        });
        Ok(taken.cloned().collect())
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.bounds.subscribe()
    }
}

impl StreamLog for ScriptedLog {
    fn append(&self, append: Append) -> AppendReply {
        let (sender, reply) = oneshot::channel();
        let mut rows = self.rows.lock();
        let count = append.batches.iter().map(|batch| batch.rows.num_rows() as u64).sum::<u64>();
        let fate = rows.fates.get(&rows.appends).copied().filter(|_| count > 0);
        // Fates are for appends with rows.
        rows.appends += usize::from(count > 0);
        rows.burnt += if fate == Some(Fate::Fails) { count } else { 0 };
        rows.dead |= matches!(fate, Some(Fate::DiesBefore | Fate::DiesAfter));
        let answer = match fate {
            Some(Fate::Full) => Some(AppendError::Full("scripted".into())),
            Some(Fate::Fails) => Some(AppendError::Failed("scripted".into())),
            _ => rows.dead.then_some(AppendError::Closed),
        };
        if answer.is_none() || fate == Some(Fate::DiesAfter) {
            let base = self.bounds().next + rows.burnt;
            let stored = store(&mut rows, append, base);
            let next = stored.offsets.last().map_or(base, |range| range.end);
            if next > base {
                rows.burnt = 0;
                self.bounds.send_modify(|bounds| bounds.next = next);
            }
            drop(rows);
            sender.send(answer.map_or(Ok(stored), Err)).ok();
        } else if let Some(error) = answer {
            sender.send(Err(error)).ok();
        }
        reply
    }

    fn forget(&self, below: Offset) -> Result<(), PipelineError> {
        self.rows.lock().batches.retain(|batch| batch.offset >= below);
        self.bounds.send_modify(|bounds| bounds.first = bounds.first.max(below));
        Ok(())
    }
}

fn store(rows: &mut Rows, append: Append, mut next: Offset) -> Appended {
    let mut appended = Appended::default();
    for (nth, batch) in append.batches.into_iter().enumerate() {
        let seen = |row: usize| batch.keys.get(row).is_some_and(|key| *key != 0 && rows.keys.contains(key));
        let fresh: Vec<bool> = (0..batch.rows.num_rows()).map(|row| !seen(row)).collect();
        let duplicates = fresh.iter().enumerate().filter(|(_, fresh)| !**fresh).map(|(row, _)| (nth, row));
        appended.duplicates.extend(duplicates);
        rows.keys.extend(&batch.keys);
        let kept = arrow::compute::filter_record_batch(&batch.rows, &fresh.into()).expect("a filtered batch");
        let count = kept.num_rows() as u64;
        if count > 0 {
            rows.batches.push(Arc::new(LogBatch { offset: next, dataset: batch.dataset, rows: kept }));
        }
        appended.offsets.push(next..next + count);
        next += count;
    }
    appended
}

/// One event: (id, actor, time, received time), times in seconds.
pub type Event<'a> = (&'a str, &'a str, i64, i64);

/// Security events of the tenant `acme`.
pub fn events(events: &[Event<'_>]) -> RecordBatch {
    let times = |of: fn(&Event<'_>) -> i64| -> ArrayRef {
        let times = events.iter().map(|event| of(event) * 1_000_000);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let text = |of: fn(&Event<'_>) -> String| -> ArrayRef {
        Arc::new(events.iter().map(|e| Some(of(e))).collect::<StringArray>())
    };
    let names = ["time", "received_time", "event_id", "org_id", "source", "actor"];
    let columns = vec![
        times(|event| event.2),
        times(|event| event.3),
        text(|event| event.0.into()),
        text(|_| "acme".into()),
        text(|_| "test".into()),
        text(|event| event.1.into()),
    ];
    let core = Dataset::SecurityEvents.core_schema();
    let fields: Vec<_> = names.iter().map(|name| core.field_with_name(name).expect("a core column").clone()).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
}

/// The texts of a column.
pub fn texts(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = batch.column_by_name(name).expect(name).as_string::<i32>();
    column.iter().map(|text| text.unwrap_or_default().to_owned()).collect()
}

/// An alert about something.
pub fn alert(rule: &str, about: &str, time_us: i64) -> Alert {
    Alert {
        alert_id: alert_id("acme", rule, about, ""),
        org_id: "acme".into(),
        source: "test".into(),
        rule_id: rule.into(),
        title: rule.into(),
        level: Level::High,
        tags: Vec::new(),
        group_key: about.into(),
        first_time: time_us,
        last_time: time_us,
        event_ids: vec![about.into()],
        event_count: 1,
        actor: None,
        asset: None,
        resource: None,
        message: format!("{rule}: {about}"),
        matched: "{}".into(),
        continues: None,
    }
}

/// Raises an alert for every event of an actor, `times` times. Panics at the event `poison`.
pub struct Each {
    pub actor: &'static str,
    pub times: usize,
    pub poison: &'static str,
}

impl Operator for Each {
    fn name(&self) -> &str {
        self.actor
    }

    fn process(&mut self, batch: &LogBatch, out: &mut Emitter) {
        if batch.dataset != Dataset::SecurityEvents {
            return;
        }
        let times = batch.rows.column(0).as_primitive::<TimestampMicrosecondType>();
        for (row, (id, actor)) in texts(&batch.rows, "event_id").iter().zip(texts(&batch.rows, "actor")).enumerate() {
            assert_ne!(id, self.poison, "poisoned");
            if actor == self.actor {
                (0..self.times).for_each(|_| out.alert(alert(self.actor, id, times.value(row))));
            }
        }
    }
}

/// Counts the events of each actor in windows of event time, and says how many there were once the watermark has passed.
#[derive(Default)]
pub struct Windows {
    pub window_s: i64,
    counts: BTreeMap<(i64, String), u64>,
    closed: Option<i64>,
}

impl Windows {
    pub fn new(window_s: i64) -> Self {
        Self { window_s, ..Self::default() }
    }
}

impl Operator for Windows {
    fn name(&self) -> &str {
        "windows"
    }

    fn process(&mut self, batch: &LogBatch, _out: &mut Emitter) {
        let times = batch.rows.column(0).as_primitive::<TimestampMicrosecondType>();
        for (row, actor) in texts(&batch.rows, "actor").into_iter().enumerate() {
            let window = times.value(row).div_euclid(self.window_s * 1_000_000) * self.window_s * 1_000_000;
            if self.closed.is_none_or(|closed| window + self.window_s * 1_000_000 > closed) {
                *self.counts.entry((window, actor)).or_default() += 1;
            }
        }
    }

    fn advance(&mut self, watermark: i64, out: &mut Emitter) {
        assert!(self.closed.is_none_or(|closed| closed < watermark), "the watermark only goes forward");
        self.closed = Some(watermark);
        let open = self.counts.split_off(&(watermark - self.window_s * 1_000_000 + 1, String::new()));
        for ((window, actor), count) in std::mem::replace(&mut self.counts, open) {
            out.alert(alert("windows", &format!("{actor} {count} at {}", window / 1_000_000), window));
        }
    }

    fn save(&self) -> Vec<u8> {
        let counts: Vec<_> = self.counts.iter().collect();
        serde_json::to_vec(&(self.closed, counts)).expect("JSON")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PipelineError> {
        let counts: Vec<_>;
        (self.closed, counts) =
            serde_json::from_slice(state).map_err(|error| PipelineError::Invalid(error.to_string()))?;
        self.counts = counts.into_iter().collect();
        Ok(())
    }
}

/// What a [`ScriptedSink`] does at a call.
#[derive(Debug, Clone)]
pub enum Answer {
    Retry,
    Fatal,
    Panic,
    Hang,
}

/// What a scripted sink was given.
#[derive(Debug, Default)]
pub struct Seen {
    /// Ids of events that are durable.
    pub durable: Vec<String>,
    /// Ids of events that were taken.
    pub taken: Vec<String>,
    pub writes: usize,
    pub flushes: usize,
    pub committed: Offset,
    cursor: Offset,
    /// Answers to the next writes.
    pub to_writes: VecDeque<Answer>,
    /// Answers to the next flushes.
    pub to_flushes: VecDeque<Answer>,
    /// Deliveries with an event of one of these ids are refused.
    pub refused: Vec<String>,
    /// Flushes with an event of one of these ids are withdrawn.
    pub spoilt: Vec<String>,
    /// Whether it is said which rows are refused.
    pub says_which: bool,
    /// What it names instead when it does not.
    pub names: Vec<Offset>,
    /// Where each event was that it was given.
    places: HashMap<String, Offset>,
    pub largest: usize,
}

impl Seen {
    /// What is said of these ids when some of them are `bad`.
    fn refusal(&self, reason: &str, ids: &[String], bad: &[String]) -> Option<Refusal> {
        let mut rows: Vec<Offset> = ids.iter().filter(|id| bad.contains(id)).map(|id| self.places[id]).collect();
        rows.sort_unstable();
        let any = !rows.is_empty();
        let rows = if self.says_which { rows } else { self.names.clone() };
        any.then(|| Refusal { reason: reason.to_owned(), rows })
    }

    /// What a restart leaves of it.
    pub fn restart(&mut self) {
        self.taken = self.durable.clone();
        self.cursor = self.committed;
    }
}

/// A sink that buffers until it is flushed.
pub struct ScriptedSink(pub Arc<Mutex<Seen>>);

impl ScriptedSink {
    fn answer(answer: Option<Answer>) -> Option<SinkFuture<'static>> {
        match answer? {
            Answer::Retry => Some(Box::pin(async { Err(SinkError::Retryable("down".into())) })),
            Answer::Fatal => Some(Box::pin(async { Err(SinkError::Fatal("refused".into())) })),
            Answer::Panic => Some(Box::pin(async { panic!("a bug") })),
            Answer::Hang => Some(Box::pin(std::future::pending())),
        }
    }
}

impl Sink for ScriptedSink {
    fn name(&self) -> &str {
        "scripted"
    }

    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_> {
        let mut seen = self.0.lock();
        seen.writes += 1;
        if let Some(answer) = Self::answer(seen.to_writes.pop_front()) {
            return answer;
        }
        let ids: Vec<String> = delivery.batches.iter().flat_map(|batch| texts(&batch.rows, "event_id")).collect();
        for batch in &delivery.batches {
            let places = texts(&batch.rows, "event_id").into_iter().zip(batch.offset..);
            seen.places.extend(places);
        }
        if let Some(refusal) = seen.refusal("refused", &ids, &seen.refused) {
            return Box::pin(async { Err(SinkError::Fatal(refusal)) });
        }
        seen.largest = seen.largest.max(ids.len());
        seen.taken.extend(ids);
        seen.cursor = delivery.next_offset;
        Box::pin(async { Ok(()) })
    }

    fn flush(&mut self) -> SinkFuture<'_> {
        let mut seen = self.0.lock();
        seen.flushes += 1;
        if let Some(answer) = Self::answer(seen.to_flushes.pop_front()) {
            return answer;
        }
        if let Some(refusal) = seen.refusal("spoilt", &seen.taken[seen.durable.len()..], &seen.spoilt) {
            seen.taken = seen.durable.clone();
            seen.cursor = seen.committed;
            return Box::pin(async { Err(SinkError::Withdrawn(refusal)) });
        }
        seen.durable = seen.taken.clone();
        seen.committed = seen.cursor;
        Box::pin(async { Ok(()) })
    }

    fn committed(&self) -> Offset {
        self.0.lock().committed
    }
}

/// A stage and the health it belongs to.
pub fn stage() -> (Health, Arc<Stage>) {
    let health = Health::default();
    let stage = health.stage("tested");
    (health, stage)
}

/// Far enough for anything that is going to end.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Waits until something is so; panics when it does not come about.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = soon();
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
