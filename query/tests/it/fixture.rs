//! A small world of two tenants, in several modes: all rows in the logs, all in history, and a cursor within a batch.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, UInt32Array, new_null_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{SortColumn, cast, concat_batches, filter, is_not_null, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType};
use parking_lot::Mutex;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use tempfile::TempDir;
use tidegate_events::{Alert, Dataset, FieldType, Level, alerts_to_batch};
use tidegate_pipeline::keys::{Principal, Role};
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{Append, EventBatch, FieldCatalog, History, HistoryFile, LogReader, Snapshot, StreamLog};
use tidegate_query::{Query, QueryConfig, QueryParts};

use super::twin;

/// Held by tests that look at the clock or at memory: one at a time.
pub static QUIET: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Where the rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the logs only.
    Tail,
    /// In Parquet only; the logs have forgotten them.
    Parquet,
    /// In Parquet up to a row in the middle of a batch; after it in the logs.
    Mixed,
    /// In a store that answers questions only; the logs have forgotten them.
    Asked,
    /// In such a store up to a row in the middle of a batch; after it in the logs.
    AskedMixed,
    /// In such a store, written from several logs, each of which has some tenants; the logs have forgotten them.
    #[allow(dead_code, reason = "only a store that has several logs is asked for it")]
    AskedParts,
}

/// Rows that come while a test looks.
pub struct Writer {
    /// Rows below are acknowledged.
    pub acknowledged: Arc<AtomicU64>,
    /// Set by who wants no more.
    pub done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    /// Appends what `numbered` makes of one number to another, from `from` on and up to `rows_max`, a few at a time.
    pub fn start(
        world: &Arc<World>,
        numbered: fn(u64, u64) -> RecordBatch,
        (from, rows_max): (u64, u64),
        pause: Duration,
    ) -> Self {
        let (world, acknowledged, done) =
            (world.clone(), Arc::new(AtomicU64::new(from)), Arc::new(AtomicBool::new(false)));
        let (told, enough) = (acknowledged.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut next = from;
            while !enough.load(Ordering::Relaxed) && next < rows_max {
                let to = next + 1 + next * 31 % 17;
                world.append(Dataset::SecurityEvents, numbered(next, to)).await;
                told.store(to, Ordering::SeqCst);
                next = to;
                match pause.is_zero() {
                    true => tokio::task::yield_now().await,
                    false => tokio::time::sleep(pause).await,
                }
            }
        });
        Self { acknowledged, done, task }
    }

    /// Waits for the end of what it does.
    pub async fn end(self) {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer");
    }
}

/// A history whose snapshot a test can replace.
#[derive(Default)]
pub struct TestHistory(pub Mutex<Arc<Snapshot>>);

impl History for TestHistory {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.lock().clone()
    }
}

/// Logs, history and a query layer over them.
pub struct World {
    pub query: Query,
    pub log: Arc<MemoryLog>,
    pub output: Arc<MemoryLog>,
    pub history: Arc<TestHistory>,
    pub fields: Arc<Mutex<Arc<FieldCatalog>>>,
    pub dir: TempDir,
    /// What the store that answers questions needs as long as the world lives.
    #[allow(dead_code, reason = "a store in memory needs nothing")]
    pub kept: tokio::sync::OnceCell<twin::Kept>,
    files: AtomicUsize,
}

pub fn principal(org_id: &str, role: Role) -> Principal {
    Principal { org_id: org_id.into(), role, key_id: "test".into() }
}

impl World {
    /// A world with nothing in it.
    pub fn empty(config: QueryConfig) -> Self {
        let log = Arc::new(MemoryLog::new(1024, 1 << 30));
        let output = Arc::new(MemoryLog::new(1024, 1 << 30));
        let history = Arc::new(TestHistory::default());
        let fields = Arc::new(Mutex::new(Arc::new(FieldCatalog::default())));
        let known = fields.clone();
        let query = Query::new(QueryParts {
            log: log.clone(),
            log_datasets: &Dataset::ALL,
            output: output.clone(),
            history: history.clone(),
            files: None,
            log_fields: Arc::new(move || known.lock().clone()),
            config,
            cpu: tokio::runtime::Handle::current(),
        });
        let dir = tempfile::tempdir().expect("a folder");
        let (kept, files) = (tokio::sync::OnceCell::new(), AtomicUsize::new(0));
        Self { query: query.expect("a query layer"), log, output, history, fields, dir, kept, files }
    }

    /// The story in `story`, with its rows where `mode` says.
    pub async fn told(mode: Mode) -> Self {
        Self::told_with(mode, QueryConfig::default()).await
    }

    /// The same with bounds of the test's choice.
    pub async fn told_with(mode: Mode, config: QueryConfig) -> Self {
        let world = Self::empty(config);
        for (dataset, rows) in story() {
            world.append(dataset, rows).await;
        }
        for (dataset, rows) in raised() {
            append(&world.output, dataset, rows).await;
        }
        match mode {
            Mode::Tail => {}
            Mode::Parquet => world.store(world.log.bounds().next, world.output.bounds().next),
            Mode::Mixed => world.store(9, 2),
            Mode::Asked => drop(twin::answer(&world, world.log.bounds().next, world.output.bounds().next).await),
            Mode::AskedMixed => drop(twin::answer(&world, 9, 2).await),
            Mode::AskedParts => drop(twin::answer_parts(&world).await),
        }
        if matches!(mode, Mode::Parquet | Mode::Asked | Mode::AskedParts) {
            world.log.forget(world.log.bounds().next).expect("forgotten");
            world.output.forget(world.output.bounds().next).expect("forgotten");
            *world.fields.lock() = Arc::default();
        }
        world
    }

    /// Appends rows to the ingest log.
    pub async fn append(&self, dataset: Dataset, rows: RecordBatch) {
        observe(Arc::make_mut(&mut self.fields.lock()), dataset, &rows);
        append(&self.log, dataset, rows).await;
    }

    /// Writes what the logs hold below two cursors to Parquet, two files a dataset, and makes that the snapshot.
    pub fn store(&self, log_cursor: u64, output_cursor: u64) {
        let mut rows: BTreeMap<Dataset, Vec<RecordBatch>> = BTreeMap::new();
        gather(&self.log, 0..log_cursor, &mut rows);
        gather(&self.output, 0..output_cursor, &mut rows);
        let mut snapshot = Snapshot { log_cursor, output_cursor, ..Snapshot::default() };
        let mut fields = FieldCatalog::default();
        for (dataset, batches) in rows {
            batches.iter().for_each(|batch| observe(&mut fields, dataset, batch));
            let all = joined(dataset, &batches);
            let half = all.num_rows().div_ceil(2);
            for part in [all.slice(0, half), all.slice(half, all.num_rows() - half)] {
                if part.num_rows() > 0 {
                    let at = self.files.fetch_add(1, Ordering::Relaxed);
                    snapshot.files.push(Arc::new(self.write(dataset, at, &part)));
                }
            }
        }
        snapshot.fields = Arc::new(fields);
        *self.history.0.lock() = Arc::new(snapshot);
    }

    fn write(&self, dataset: Dataset, at: usize, rows: &RecordBatch) -> HistoryFile {
        let column = |name: &str| rows.column_by_name(name).expect("a core column").clone();
        let sort = ["org_id", "time"].map(|name| SortColumn { values: column(name), options: None });
        let order: UInt32Array = lexsort_to_indices(&sort, None).expect("an order");
        let rows = take_record_batch(rows, &order).expect("sorted");
        let path = self.dir.path().join(format!("{}-{at}-secret-of-globex.parquet", dataset.table_name()));
        let properties =
            WriterProperties::builder().set_max_row_group_row_count(Some(4)).set_bloom_filter_enabled(true).build();
        let file = File::create(&path).expect("a file");
        let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).expect("a writer");
        writer.write(&rows).expect("written");
        writer.close().expect("closed");
        let times = rows.column_by_name("time").expect("time").as_primitive::<TimestampMicrosecondType>().clone();
        let orgs = rows.column_by_name("org_id").expect("org_id").as_string::<i32>().clone();
        HistoryFile {
            bytes: std::fs::metadata(&path).expect("metadata").len(),
            path,
            dataset,
            rows: rows.num_rows() as u64,
            time_min: times.values().iter().copied().min().expect("rows"),
            time_max: times.values().iter().copied().max().expect("rows"),
            org_min: orgs.value(0).into(),
            org_max: orgs.value(orgs.len() - 1).into(),
        }
    }
}

pub async fn append(log: &MemoryLog, dataset: Dataset, rows: RecordBatch) {
    let batches = vec![EventBatch { dataset, rows, keys: Vec::new() }];
    log.append(Append { batches, ..Append::default() }).await.expect("an answer").expect("appended");
}

fn gather(log: &MemoryLog, range: Range<u64>, rows: &mut BTreeMap<Dataset, Vec<RecordBatch>>) {
    if range.is_empty() {
        return;
    }
    for batch in log.read(range.start, usize::MAX).expect("read") {
        let end = range.end.min(batch.next_offset());
        if end > batch.offset {
            rows.entry(batch.dataset).or_default().push(batch.rows.slice(0, (end - batch.offset) as usize));
        }
    }
}

fn own(dataset: Dataset, field: &Field) -> Option<FieldType> {
    let core = dataset.core_schema().column_with_name(field.name()).is_some();
    if core || field.name() == "_rest" { None } else { FieldType::from_data_type(field.data_type()) }
}

pub fn observe(fields: &mut FieldCatalog, dataset: Dataset, rows: &RecordBatch) {
    let orgs = rows.column_by_name("org_id").expect("org_id").as_string::<i32>();
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        let Some(kind) = own(dataset, field) else { continue };
        for row in (0..rows.num_rows()).filter(|row| column.is_valid(*row)) {
            fields.add(&orgs.value(row).into(), dataset, &field.name().as_str().into(), kind);
        }
    }
}

/// The batches as one, own fields widened to the type that holds all of them, over all tenants.
fn joined(dataset: Dataset, batches: &[RecordBatch]) -> RecordBatch {
    let mut columns: Vec<Field> = dataset.core_schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    columns.retain(|field| batches.iter().any(|batch| batch.column_by_name(field.name()).is_some()));
    let mut kinds: BTreeMap<String, FieldType> = BTreeMap::new();
    for field in batches.iter().flat_map(|batch| batch.schema().fields().clone().iter().cloned().collect::<Vec<_>>()) {
        if let Some(kind) = own(dataset, &field) {
            let known = kinds.get(field.name()).copied().unwrap_or(kind);
            kinds.insert(field.name().clone(), known.join(kind));
        }
    }
    columns.extend(kinds.into_iter().map(|(name, kind)| Field::new(name, kind.data_type(), true)));
    if batches.iter().any(|batch| batch.column_by_name("_rest").is_some()) {
        columns.push(Field::new("_rest", DataType::Utf8, true));
    }
    let schema = Arc::new(Schema::new(columns));
    let batches = batches.iter().map(|batch| {
        let column = |field: &Arc<Field>| match batch.column_by_name(field.name()) {
            Some(column) => widen(column, field.data_type()),
            None => new_null_array(field.data_type(), batch.num_rows()),
        };
        RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect()).expect("a batch")
    });
    concat_batches(&schema, &batches.collect::<Vec<_>>()).expect("one batch")
}

pub fn widen(column: &ArrayRef, target: &DataType) -> ArrayRef {
    match (column.data_type(), target) {
        (from, to) if from == to => column.clone(),
        (DataType::List(_), _) => cast(column, target).expect("a cast"),
        (_, DataType::List(item)) => {
            let values = cast(column, item.data_type()).expect("a cast");
            let lengths = (0..column.len()).map(|row| usize::from(column.is_valid(row)));
            let kept = filter(&values, &is_not_null(column).expect("nulls")).expect("values");
            Arc::new(ListArray::new(item.clone(), OffsetBuffer::from_lengths(lengths), kept, column.nulls().cloned()))
        }
        _ => cast(column, target).expect("a cast"),
    }
}

/// Rows of `dataset` from JSON, with own fields of the given types; columns without a value are left out, as in the log.
pub fn rows(dataset: Dataset, own: &[(&str, FieldType)], lines: &str) -> RecordBatch {
    let mut columns: Vec<Field> = dataset.core_schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    columns.extend(own.iter().map(|(name, kind)| Field::new(*name, kind.data_type(), true)));
    let schema = Arc::new(Schema::new(columns));
    let mut decoder = arrow::json::ReaderBuilder::new(schema).build_decoder().expect("a decoder");
    decoder.decode(lines.as_bytes()).expect("rows of JSON");
    let batch = decoder.flush().expect("a batch").expect("rows");
    let used: Vec<usize> =
        (0..batch.num_columns()).filter(|at| batch.column(*at).null_count() < batch.num_rows()).collect();
    batch.project(&used).expect("columns")
}

fn of(dataset: Dataset, own: &[(&str, FieldType)], lines: &str) -> (Dataset, RecordBatch) {
    (dataset, rows(dataset, own, lines))
}

/// What is in the ingest log, batch by batch: offsets 0–4, 5–7, 8–9, 10–12, 13–15, 16–17, 18–23.
pub fn story() -> Vec<(Dataset, RecordBatch)> {
    use tidegate_events::Scalar;
    let ints = FieldType::list_of(Scalar::Int);
    vec![
        of(
            Dataset::SecurityEvents,
            &[("winlog.event_data.Image", FieldType::TEXT), ("n", FieldType::INT), ("Case", FieldType::TEXT)],
            r#"
{"time":"2026-01-01T00:00:00Z","received_time":"2026-01-01T00:00:01Z","event_id":"a1","org_id":"acme","source":"windows","severity":1,"actor":"alice","message":"logon","winlog.event_data.Image":"C:\\x.exe","n":1}
{"time":"2026-01-01T00:10:00Z","received_time":"2026-01-01T00:10:01Z","event_id":"g1","org_id":"globex","source":"windows","severity":6,"actor":"mallory","message":"globex only","n":7}
{"time":"2026-01-01T00:20:00Z","received_time":"2026-01-01T00:20:01Z","event_id":"a2","org_id":"acme","source":"windows","severity":3,"actor":"bob","src_ip":"10.0.0.1","message":"process start","winlog.event_data.Image":"C:\\y.exe","n":2,"Case":"Kept"}
{"time":"2026-01-01T00:30:00Z","received_time":"2026-01-01T00:30:01Z","event_id":"a3","org_id":"acme","source":"cloudtrail","severity":2,"actor":"alice","message":"quote \" and é"}
{"time":"2026-01-01T00:40:00Z","received_time":"2026-01-01T00:40:01Z","event_id":"same","org_id":"globex","source":"cloudtrail","severity":2,"actor":"mallory","message":"globex same id"}
"#,
        ),
        of(
            Dataset::SecurityEvents,
            &[("n", FieldType::FLOAT), ("flag", FieldType::BOOL), ("ports", ints)],
            r#"
{"time":"2026-01-01T01:00:00Z","received_time":"2026-01-01T01:00:01Z","event_id":"a4","org_id":"acme","source":"suricata","severity":4,"src_ip":"10.0.0.2","n":2.5,"flag":true,"ports":[80,443]}
{"time":"2026-01-01T01:10:00Z","received_time":"2026-01-01T01:10:01Z","event_id":"a5","org_id":"acme","source":"suricata","severity":5,"flag":false,"ports":[]}
{"time":"2026-01-01T01:20:00Z","received_time":"2026-01-01T01:20:01Z","event_id":"same","org_id":"acme","source":"suricata","severity":0,"asset":"db-1"}
"#,
        ),
        of(
            Dataset::CostEvents,
            &[("tags.team", FieldType::TEXT)],
            r#"
{"time":"2026-01-01T00:00:00Z","received_time":"2026-01-01T02:00:00Z","event_id":"c1","org_id":"acme","source":"focus","billed_cost":"12.345678901234567","billing_currency":"EUR","service_name":"Compute","tags.team":"ml"}
{"time":"2026-01-02T00:00:00Z","received_time":"2026-01-02T02:00:00Z","event_id":"c2","org_id":"acme","source":"focus","billed_cost":"0.1","billing_currency":"EUR","service_name":"Storage","tags.team":"web"}
"#,
        ),
        of(
            Dataset::SecurityEvents,
            &[("n", FieldType::TEXT), ("ports", FieldType::INT), ("globex.secret_field", FieldType::TEXT)],
            r#"
{"time":"2026-01-01T02:00:00Z","received_time":"2026-01-01T02:00:01Z","event_id":"a6","org_id":"acme","source":"windows","severity":3,"actor":"bob","n":"three","ports":22}
{"time":"2026-01-01T02:10:00Z","received_time":"2026-01-01T02:10:01Z","event_id":"g2","org_id":"globex","source":"windows","severity":3,"actor":"mallory","globex.secret_field":"hidden"}
{"time":"2026-01-01T02:20:00Z","received_time":"2026-01-01T02:20:01Z","event_id":"a7","org_id":"acme","source":"windows","severity":3,"actor":"carol"}
"#,
        ),
        of(
            Dataset::Changes,
            &[],
            r#"
{"time":"2026-01-01T03:00:00Z","received_time":"2026-01-01T03:00:00Z","event_id":"ch1","org_id":"acme","source":"api","actor":"admin","kind":"rule","target_id":"r1","action":"put","body":"{}"}
{"time":"2026-01-01T03:10:00Z","received_time":"2026-01-01T03:10:00Z","event_id":"ch2","org_id":"*","source":"cli","actor":"root","kind":"rule","target_id":"r2","action":"put","body":"{}"}
{"time":"2026-01-01T03:20:00Z","received_time":"2026-01-01T03:20:00Z","event_id":"ch3","org_id":"default","source":"cli","actor":"root","kind":"rule","target_id":"r3","action":"put","body":"{}"}
"#,
        ),
        of(
            Dataset::DeadLetters,
            &[],
            r#"
{"time":"2026-01-01T04:00:00Z","received_time":"2026-01-01T04:00:00Z","event_id":"d1","org_id":"acme","source":"windows","dataset":"security_events","stage":"decode","code":"invalid_body","reason":"not JSON","item_index":3}
{"time":"2026-01-01T04:10:00Z","received_time":"2026-01-01T04:10:00Z","event_id":"d2","org_id":"globex","source":"windows","dataset":"security_events","stage":"decode","code":"invalid_body","reason":"globex reason","item_index":1}
"#,
        ),
        of(
            Dataset::Changes,
            &[],
            r#"
{"time":"2026-01-01T06:00:00Z","received_time":"2026-01-01T06:00:00Z","event_id":"fb1","org_id":"acme","source":"tidegate","actor":"kim","kind":"alert_feedback","target_id":"acme-alert-0","action":"create","body":"{\"rule_id\":\"rule-0\",\"group_key\":\"actor=alice\",\"verdict\":\"true_positive\"}"}
{"time":"2026-01-01T06:10:00Z","received_time":"2026-01-01T06:10:00Z","event_id":"fb2","org_id":"acme","source":"tidegate","actor":"lee","kind":"alert_feedback","target_id":"acme-alert-0","action":"update","body":"{\"rule_id\":\"rule-0\",\"group_key\":\"actor=alice\",\"verdict\":\"false_positive\",\"comment\":\"a scan\",\"silence_scope\":\"group\",\"silence_until_us\":1767829200000000}"}
{"time":"2026-01-01T06:20:00Z","received_time":"2026-01-01T06:20:00Z","event_id":"fb3","org_id":"acme","source":"tidegate","actor":"kim","kind":"alert_feedback","target_id":"acme-alert-2","action":"create","body":"{\"rule_id\":\"rule-0\",\"group_key\":\"\",\"verdict\":\"benign\"}"}
{"time":"2026-01-01T06:30:00Z","received_time":"2026-01-01T06:30:00Z","event_id":"fb4","org_id":"acme","source":"tidegate","actor":"kim","kind":"alert_feedback","target_id":"acme-alert-2","action":"delete"}
{"time":"2026-01-01T06:40:00Z","received_time":"2026-01-01T06:40:00Z","event_id":"fb5","org_id":"acme","source":"tidegate","actor":"kim","kind":"alert_feedback","target_id":"acme-alert-3","action":"create","body":"no JSON"}
{"time":"2026-01-01T06:50:00Z","received_time":"2026-01-01T06:50:00Z","event_id":"fb6","org_id":"globex","source":"tidegate","actor":"eve","kind":"alert_feedback","target_id":"acme-alert-0","action":"create","body":"{\"rule_id\":\"rule-0\",\"verdict\":\"benign\",\"comment\":\"globex only\"}"}
"#,
        ),
    ]
}

pub fn alert(org_id: &str, at: u64, level: Level) -> Alert {
    Alert {
        alert_id: format!("{org_id}-alert-{at}"),
        org_id: org_id.into(),
        source: "windows".into(),
        rule_id: format!("rule-{}", at % 2),
        title: format!("Rule {}", at % 2),
        level,
        tags: vec!["attack.t1003".into(), format!("attack.t{at}")],
        group_key: String::new(),
        first_time: 1_767_225_600_000_000 + at as i64,
        last_time: 1_767_225_600_000_000 + at as i64,
        event_ids: vec![format!("e{at}")],
        event_count: 1,
        actor: Some("alice".into()),
        asset: None,
        resource: None,
        message: format!("alert {at} of {org_id}"),
        matched: r#"{"actor":"alice"}"#.into(),
        continues: None,
    }
}

/// What is in the output log: alerts 0–3 and a dead letter.
pub fn raised() -> Vec<(Dataset, RecordBatch)> {
    let alerts = [
        alert("acme", 0, Level::Low),
        alert("globex", 1, Level::Critical),
        alert("acme", 2, Level::High),
        alert("acme", 3, Level::Critical),
    ];
    vec![
        (Dataset::Alerts, alerts_to_batch(&alerts, 0, 1_767_225_700_000_000).expect("alerts")),
        of(
            Dataset::DeadLetters,
            &[],
            r#"{"time":"2026-01-01T05:00:00Z","received_time":"2026-01-01T05:00:00Z","event_id":"d3","org_id":"acme","source":"sink","dataset":"alerts","stage":"store","code":"sink_fatal","reason":"full"}"#,
        ),
    ]
}
