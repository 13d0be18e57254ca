//! What a client of the whole spine was told, and what must therefore be there: in the ingest log, in the store, among the
//! alerts and in the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Int64Type, Schema};
use std::sync::Arc;
use tidegate_events::{Alert, Dataset, Level, alert_id, dedup_key};
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{
    Emitter, EventBatch, History, LogBatch, LogReader, Offset, Operator, PipelineError, StreamLog,
};

use crate::parquet_rows::{HOUR, read_file};
use crate::spine_world::{Spine, Step};

/// Rows of this tenant expire at the first retention; those of the other never.
pub const SHORT: &str = "short";

/// The tenant of an event. Every fifth is of the one whose rows expire.
pub fn org_of(id: u64) -> &'static str {
    if id.is_multiple_of(5) { SHORT } else { "ever" }
}

fn name_of(id: u64) -> String {
    format!("e{id:06}")
}

/// A batch of security events with these ids.
pub fn events(ids: &[u64]) -> EventBatch {
    let times = || {
        let times = ids.iter().map(|id| (*id % 3) as i64 * HOUR + *id as i64);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("time", times()),
        ("received_time", times()),
        ("event_id", Arc::new(StringArray::from_iter_values(ids.iter().map(|id| name_of(*id))))),
        ("org_id", Arc::new(StringArray::from_iter_values(ids.iter().map(|id| org_of(*id))))),
        ("source", Arc::new(StringArray::from_iter_values(ids.iter().map(|_| "spine")))),
        ("own.n", Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| *id as i64)))),
        ("own.text", Arc::new(StringArray::from_iter_values(ids.iter().map(|id| "x".repeat(*id as usize % 90))))),
    ];
    let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let rows = RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, array)| array).collect());
    let key = |id: &u64| dedup_key(org_of(*id), Dataset::SecurityEvents as u8, &name_of(*id));
    EventBatch { dataset: Dataset::SecurityEvents, rows: rows.expect("a batch"), keys: ids.iter().map(key).collect() }
}

fn texts(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = batch.column_by_name(name).expect(name).as_string::<i32>();
    column.iter().map(|text| text.unwrap_or_default().to_owned()).collect()
}

/// The ids of the security events in a batch, with their offsets.
fn ids_of(batch: &LogBatch) -> Vec<(Offset, u64)> {
    if batch.dataset != Dataset::SecurityEvents {
        return Vec::new();
    }
    let ids = texts(&batch.rows, "event_id");
    (batch.offset..).zip(ids.iter().map(|id| id[1..].parse().expect("a number"))).collect()
}

/// Numbers the security events in the order in which it sees them, and raises an alert with its number for every third id.
/// An event that is processed twice, or never, or in another order, makes every later alert another one.
#[derive(Debug, Default)]
pub struct Numbering(u64);

/// The alert of an event: what it is about, and the number that it must have.
pub fn alert_of(id: u64, number: u64) -> Option<String> {
    id.is_multiple_of(3).then(|| format!("{} is number {number}", name_of(id)))
}

impl Operator for Numbering {
    fn name(&self) -> &str {
        "numbering"
    }

    fn process(&mut self, batch: &LogBatch, out: &mut Emitter) {
        for (_, id) in ids_of(batch) {
            self.0 += 1;
            let Some(message) = alert_of(id, self.0) else { continue };
            out.alert(Alert {
                alert_id: alert_id(org_of(id), "numbering", &name_of(id), ""),
                org_id: org_of(id).into(),
                source: "spine".into(),
                rule_id: "numbering".into(),
                title: "numbering".into(),
                level: Level::High,
                tags: Vec::new(),
                group_key: name_of(id),
                first_time: 1,
                last_time: 1,
                event_ids: vec![name_of(id)],
                event_count: 1,
                actor: None,
                asset: None,
                resource: None,
                message,
                matched: "{}".into(),
                continues: None,
            });
        }
    }

    fn save(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PipelineError> {
        let bytes = state.try_into().map_err(|_| PipelineError::Invalid("not a number".into()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    /// Events that were acknowledged or seen in the log: they must be there for ever, at this offset.
    events: BTreeMap<Offset, u64>,
    /// Ids that were sent, acknowledged or not.
    sent: BTreeSet<u64>,
    /// Alerts that were seen in the output log, by `seq`.
    alerts: BTreeMap<Offset, String>,
    /// Cursors of the store that were seen: (ingest, output). They never go back.
    cursors: (Offset, Offset),
    /// Changes that were acknowledged.
    changes: BTreeSet<String>,
}

impl Ledger {
    /// Ids are about to be sent.
    pub fn sends(&mut self, ids: &[u64]) {
        self.sent.extend(ids);
    }

    /// The answer was that the ids at these places are stored from `offset` on.
    pub fn stored(&mut self, offset: Offset, ids: &[u64]) {
        for (offset, id) in (offset..).zip(ids) {
            self.event(offset, *id, "an answer");
        }
    }

    /// A change was acknowledged.
    pub fn changed(&mut self, target: &str) {
        self.changes.insert(target.to_owned());
    }

    /// An id that is in the log.
    pub fn known(&self, nth: usize) -> Option<u64> {
        self.events.values().nth(nth % self.events.len().max(1)).copied()
    }

    /// Whether an id is in the log.
    pub fn knows(&self, id: u64) -> bool {
        self.events.values().any(|known| *known == id)
    }

    fn event(&mut self, offset: Offset, id: u64, context: &str) {
        assert!(self.sent.contains(&id), "{context}: nobody sent {id}");
        let before = self.events.insert(offset, id);
        assert!(before.is_none_or(|before| before == id), "{context}: {offset} was {before:?} and is {id}");
    }

    /// Takes down what is in the logs, and compares it with what was there. An error when the logs cannot be read.
    pub fn look(&mut self, spine: &Spine, context: &str) -> Step {
        let (bounds, output) = (spine.log.bounds(), spine.output.bounds());
        let batches = read_all(&*spine.log, bounds.first)?;
        let alerts = read_all(&*spine.output, output.first)?;
        let found: BTreeMap<Offset, u64> = batches.iter().flat_map(|batch| ids_of(batch)).collect();
        let must: Vec<_> = self.events.range(bounds.first..).collect();
        for (offset, id) in must {
            assert_eq!(found.get(offset), Some(id), "{context}: {id} at {offset} of {bounds:?} is lost or another one");
        }
        for (offset, id) in &found {
            self.event(*offset, *id, context);
        }
        let once: BTreeSet<u64> = self.events.values().copied().collect();
        assert_eq!(once.len(), self.events.len(), "{context}: an event is there twice");
        let letters = alerts.iter().any(|batch| batch.dataset == Dataset::DeadLetters);
        assert!(!letters, "{context}: a disk that fails is no reason to refuse rows");
        let found: BTreeMap<Offset, String> = alerts.iter().flat_map(|batch| alerts_of(batch, context)).collect();
        for (seq, alert) in self.alerts.range(output.first..) {
            assert_eq!(found.get(seq), Some(alert), "{context}: the alert {seq} of {output:?} is lost or another one");
        }
        for (seq, alert) in found {
            assert!(self.alerts.get(&seq).is_none_or(|before| *before == alert), "{context}: {seq}: {alert}");
            self.alerts.insert(seq, alert);
        }
        let snapshot = spine.store.snapshot();
        let cursors = (snapshot.log_cursor, snapshot.output_cursor);
        assert!(
            cursors.0 >= self.cursors.0 && cursors.1 >= self.cursors.1,
            "{context}: {cursors:?} {:?}",
            self.cursors
        );
        self.cursors = cursors;
        Ok(())
    }

    /// Everything is there once: events in the store and the log after its cursor, alerts likewise, changes in the registry.
    pub fn check(&mut self, spine: &Spine, context: &str) {
        self.look(spine, context).unwrap_or_else(|error| panic!("{context}: {error}"));
        let snapshot = spine.store.snapshot();
        let mut rows: BTreeMap<u64, u32> = BTreeMap::new();
        let mut alerts: BTreeMap<Offset, String> = BTreeMap::new();
        for file in &snapshot.files {
            for batch in read_file(&spine.fs, &file.path) {
                match file.dataset {
                    Dataset::SecurityEvents => texts(&batch, "event_id")
                        .iter()
                        .for_each(|id| *rows.entry(id[1..].parse().expect("a number")).or_default() += 1),
                    Dataset::Alerts => {
                        let seqs = batch.column_by_name("seq").expect("seq").as_primitive::<Int64Type>().clone();
                        for (seq, message) in seqs.values().iter().zip(texts(&batch, "message")) {
                            let before = alerts.insert(*seq as Offset, message);
                            assert_eq!(before, None, "{context}: the alert {seq} is in the store twice");
                        }
                    }
                    _ => {}
                }
            }
        }
        for batch in read_all(&*spine.log, snapshot.log_cursor).expect("readable") {
            ids_of(&batch).iter().for_each(|(_, id)| *rows.entry(*id).or_default() += 1);
        }
        for batch in read_all(&*spine.output, snapshot.output_cursor).expect("readable") {
            for (seq, alert) in alerts_of(&batch, context) {
                assert_eq!(
                    alerts.insert(seq, alert),
                    None,
                    "{context}: the alert {seq} is in the store and after its cursor"
                );
            }
        }
        for (offset, id) in &self.events {
            let expired = org_of(*id) == SHORT && *offset < snapshot.log_cursor;
            let found = rows.remove(id).unwrap_or(0);
            assert!(found == 1 || (expired && found == 0), "{context}: {id} at {offset} is there {found} times");
        }
        assert!(rows.is_empty(), "{context}: nobody knows of {rows:?}");
        for (seq, alert) in &self.alerts {
            let expired = alert_is_short(alert) && *seq < snapshot.output_cursor;
            assert!(alerts.get(seq) == Some(alert) || expired, "{context}: the alert {seq}, {alert}, is lost");
        }
        let numbered = self.numbered();
        let mut once = BTreeSet::new();
        for alert in self.alerts.values() {
            assert!(numbered.contains(alert), "{context}: {alert} should not be");
            assert!(once.insert(alert), "{context}: {alert} twice");
        }
        for target in &self.changes {
            assert!(spine.registry.get("ever", "rule", target).is_some(), "{context}: the change of {target} is lost");
        }
        let named: BTreeSet<&Path> = snapshot.files.iter().map(|file| file.path.as_path()).collect();
        assert_eq!(named.len(), snapshot.files.len(), "{context}: a file is named twice");
    }

    /// Forgets how far the store was: damage to its newest edit may set it back.
    pub fn forgive_cursors(&mut self) {
        self.cursors = (0, 0);
    }

    /// How many events are neither in the store nor in the log after its cursor. None may be there twice, whatever is damaged,
    /// nor one that nobody sent.
    pub fn missing(&self, spine: &Spine, context: &str) -> usize {
        let snapshot = spine.store.snapshot();
        let mut rows: BTreeMap<u64, u32> = BTreeMap::new();
        for file in snapshot.files.iter().filter(|file| file.dataset == Dataset::SecurityEvents) {
            for batch in read_file(&spine.fs, &file.path) {
                let ids = texts(&batch, "event_id");
                ids.iter().for_each(|id| *rows.entry(id[1..].parse().expect("a number")).or_default() += 1);
            }
        }
        for batch in read_all(&*spine.log, snapshot.log_cursor).expect("readable") {
            ids_of(&batch).iter().for_each(|(_, id)| *rows.entry(*id).or_default() += 1);
        }
        let twice: Vec<_> = rows.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{context}: there twice: {twice:?}");
        assert!(rows.keys().all(|id| self.sent.contains(id)), "{context}: nobody sent one of {rows:?}");
        let live = self.events.values().filter(|id| org_of(**id) != SHORT);
        live.filter(|id| !rows.contains_key(id)).count()
    }

    /// Every alert that the events must raise was raised.
    pub fn check_complete(&self, context: &str) {
        let raised: BTreeSet<String> = self.alerts.values().cloned().collect();
        let missing: Vec<_> = self.numbered().difference(&raised).cloned().collect();
        assert!(missing.is_empty(), "{context}: {missing:?} were never raised");
    }

    fn numbered(&self) -> BTreeSet<String> {
        (1..).zip(self.events.values()).filter_map(|(number, id)| alert_of(*id, number)).collect()
    }
}

fn alert_is_short(alert: &str) -> bool {
    alert[1..7].parse::<u64>().is_ok_and(|id| org_of(id) == SHORT)
}

/// Alerts in a batch of the output log, by `seq`, which is their offset.
fn alerts_of(batch: &LogBatch, context: &str) -> Vec<(Offset, String)> {
    if batch.dataset != Dataset::Alerts {
        return Vec::new();
    }
    let seqs = batch.rows.column_by_name("seq").expect("seq").as_primitive::<Int64Type>().clone();
    let alerts: Vec<_> = (batch.offset..).zip(texts(&batch.rows, "message")).collect();
    for ((offset, alert), seq) in alerts.iter().zip(seqs.values()) {
        assert_eq!(*offset as i64, *seq, "{context}: {alert}");
    }
    alerts
}

/// All batches from `from` on, the first cut to the rows from there.
fn read_all(log: &dyn StreamLog, from: Offset) -> Step<Vec<Arc<LogBatch>>> {
    let end = log.bounds().next;
    let mut from = from;
    let mut all = Vec::new();
    while from < end {
        let reading = read_on(log, from, 4 << 10).map_err(|error| error.to_string())?;
        all.extend(reading.batches);
        from = reading.next.max(from + 1);
    }
    Ok(all)
}
