//! The whole spine on one simulated disk: ingest log, registry, run loop with its checkpoints, output log, the deliveries
//! of both logs, the Parquet store with compaction and retention, and the logs forgetting. Composed as the program does it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tidegate_pipeline::checkpoint::Checkpoints;
use tidegate_pipeline::fs::{Fs, SimFs};
use tidegate_pipeline::log::{LogConfig, LogLock, OpenReport, SegmentLog};
use tidegate_pipeline::registry::{Action, Change, Registry, RegistryConfig};
use tidegate_pipeline::run::{RunHandle, RunStatus};
use tidegate_pipeline::{
    Ack, Append, AppendError, DeliveryConfig, DeliveryHandle, DeliveryParts, Health, LogReader, Offset, OutputLog,
    RunConfig, RunLoop, RunParts, StreamLog, deliver,
};
use tidegate_sinks::parquet::{DatasetDays, LogSource, ParquetConfig, ParquetStore, RetentionConfig};
use tokio::runtime::Handle;

use crate::parquet_rows::{HOUR, small};
use crate::spine_ledger::{Ledger, Numbering, SHORT, events};

/// No step may take longer, whatever the disk does.
pub const HANG: Duration = Duration::from_secs(5);

/// One life of the process.
pub struct Spine {
    pub fs: SimFs,
    pub log: Arc<SegmentLog>,
    pub output: Arc<SegmentLog>,
    pub store: Arc<ParquetStore>,
    pub registry: Registry,
    pub health: Health,
    writer: Arc<OutputLog>,
    status: RunStatus,
}

/// What the openings found.
#[derive(Debug)]
pub struct Reports {
    pub log: OpenReport,
    pub output: OpenReport,
    pub store: tidegate_sinks::parquet::OpenReport,
}

/// How much of what is to be tried was tried.
#[derive(Debug, Default)]
pub struct Tally {
    pub cuts: u64,
    pub compacted_files: u64,
    pub expired_rows: u64,
    pub swept_files: u64,
    pub forgotten_rows: u64,
    pub rewritten_rows: u64,
    pub torn_logs: u64,
}

/// A step that did not succeed, and why.
pub type Step<T = ()> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn log_config() -> LogConfig {
    LogConfig { segment_bytes_max: 4096, tail_bytes_max: 1, dedup_keys_max: 10_000, ..LogConfig::default() }
}

fn run_config() -> RunConfig {
    RunConfig { read_bytes_max: 1, checkpoint_interval_ms: 0, retry_ms_max: 20, ..RunConfig::default() }
}

fn delivery_config() -> DeliveryConfig {
    DeliveryConfig {
        delivery_bytes_max: 2_000,
        flush_interval_ms: 5,
        retry_ms_min: 1,
        retry_ms_max: 10,
        ..DeliveryConfig::default()
    }
}

impl Spine {
    /// Opens everything, in the order of the program.
    pub fn open(fs: &SimFs) -> Step<(Self, Reports)> {
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let data = Path::new("/data");
        let lock = LogLock::take(shared.clone(), &data.join("log")).map_err(text)?;
        let output_lock = LogLock::take(shared.clone(), &data.join("output")).map_err(text)?;
        let config = ParquetConfig { settle_hours: u32::MAX, ..small() };
        let (store, store_report) = ParquetStore::open(shared.clone(), &data.join("store"), config).map_err(text)?;
        let (ingest_min, output_min) = held_by_others(&shared, data, &store)?;
        let (log, log_report) = lock.open(log_config(), ingest_min).map_err(text)?;
        let (output, output_report) = output_lock.open(log_config(), output_min).map_err(text)?;
        let (log, output) = (Arc::new(log), Arc::new(output));
        let changes = log.clone();
        let config = RegistryConfig::default();
        let from = move |from| changes.changes_from(from);
        let registry = Registry::open(shared, &data.join("registry"), log.clone(), config, from).map_err(text)?;
        let (writer, health) = (Arc::new(OutputLog::new(output.clone())), Health::default());
        log.report_health(health.stage("log"));
        let status = RunStatus::default();
        let spine = Self { fs: fs.clone(), log, output, store, registry, health, writer, status };
        Ok((spine, Reports { log: log_report, output: output_report, store: store_report }))
    }

    /// Sends events; a duplicate is one that the ledger must know.
    pub async fn append(&self, ledger: &mut Ledger, ids: &[u64], ack: Ack) -> Step {
        ledger.sends(ids);
        let reply = self.log.append(Append { batches: vec![events(ids)], ack });
        let answer = tokio::time::timeout(HANG, reply).await.expect("an append is answered within 5 s");
        let appended = answer.unwrap_or(Err(AppendError::Closed)).map_err(text)?;
        if ack == Ack::Memory {
            return Ok(());
        }
        let duplicate = |row: usize| appended.duplicates.contains(&(0, row));
        let stored: Vec<u64> = (0..).zip(ids).filter(|(row, _)| !duplicate(*row)).map(|(_, id)| *id).collect();
        ledger.stored(appended.offsets[0].start, &stored);
        for (_, row) in &appended.duplicates {
            let known = ledger.knows(ids[*row]) || ids[..*row].contains(&ids[*row]);
            // One that was never acknowledged may be in the log all the same: a look at it tells.
            if !known {
                ledger.look(self, "a duplicate")?;
            }
            assert!(ledger.knows(ids[*row]), "{} is called a duplicate, but it is not there", ids[*row]);
        }
        Ok(())
    }

    /// Makes a change that people make.
    pub async fn change(&self, ledger: &mut Ledger, target: &str) -> Step {
        let change = Change {
            time_us: 5,
            change_id: format!("change of {target}"),
            org_id: "ever".into(),
            actor: "local".into(),
            kind: "rule".into(),
            target_id: target.into(),
            action: Action::Create,
            body: json!({ "title": target }),
        };
        let made = tokio::time::timeout(HANG, self.registry.apply(vec![change])).await;
        made.expect("a change is answered within 5 s").map_err(text)?;
        ledger.changed(target);
        Ok(())
    }

    /// Starts the run loop.
    pub fn run(&self) -> Step<RunHandle> {
        let parts = RunParts {
            log: self.log.clone(),
            output: self.writer.clone(),
            operators: vec![Box::new(Numbering::default())],
            seed: Vec::new(),
            fs: Arc::new(self.fs.clone()),
            dir: PathBuf::from("/data/checkpoint"),
            config: run_config(),
            stage: self.health.stage("run loop"),
        };
        RunLoop::start(parts).map_err(text)
    }

    /// Starts the delivery of a log to the store.
    pub fn deliver(&self, source: LogSource) -> DeliveryHandle {
        let log: Arc<dyn StreamLog> = match source {
            LogSource::Ingest => self.log.clone(),
            LogSource::Output => self.output.clone(),
        };
        let parts = DeliveryParts {
            sink: Box::new(self.store.sink(source)),
            log,
            output: self.writer.clone(),
            config: delivery_config(),
            stage: self.health.stage(source.as_str()),
        };
        deliver(parts, &Handle::current())
    }

    /// Runs the loop over all that is there. On a dead disk it is dropped.
    pub async fn run_through(&mut self) -> Step {
        let handle = self.run()?;
        let until = self.log.bounds().next;
        let offset = handle.offset();
        self.unless_cut("the run loop", || *offset.borrow() >= until).await?;
        let drained = tokio::time::timeout(HANG, handle.drain(Instant::now() + Duration::from_millis(50))).await;
        self.status = drained.expect("a drain ends").map_err(text)?;
        Ok(())
    }

    /// Where a run loop was when it was drained.
    pub fn ran(&mut self, status: RunStatus) {
        self.status = status;
    }

    /// Delivers all that is there to the store.
    pub async fn deliver_through(&self, source: LogSource) -> Step {
        let until = match source {
            LogSource::Ingest => self.log.bounds().next,
            LogSource::Output => self.output.bounds().next,
        };
        let handle = self.deliver(source);
        let committed = handle.committed();
        self.unless_cut("a delivery", || *committed.borrow() >= until).await?;
        let drained = handle.drain(Instant::now() + Duration::from_millis(200)).await;
        drained.map(|_| ()).map_err(text)
    }

    /// Compacts, retains or sweeps.
    pub fn maintain(&self, what: u64, tally: &mut Tally) -> Step {
        match what % 4 {
            0 => tally.compacted_files += self.store.compact_once().map_err(text)?.files_in,
            1 => tally.expired_rows += self.store.retain(100 * 24 * HOUR, &policy()).map_err(text)?.expired_rows,
            _ => tally.swept_files += self.store.sweep().map_err(text)? as u64,
        }
        Ok(())
    }

    /// Lets the logs forget what nobody needs, as the housekeeping does. `running` is where the run loop is.
    pub fn forget(&self, running: Option<RunStatus>, tally: &mut Tally) -> Step {
        let first = self.log.bounds().first;
        let status = running.unwrap_or_else(|| self.status.clone());
        let needed = self.store.oldest_live_cursor(LogSource::Ingest).min(status.needed_from);
        self.log.forget(needed.min(self.registry.covered())).map_err(text)?;
        let needed = self.store.oldest_live_cursor(LogSource::Output).min(status.output_needed_from);
        self.output.forget(needed).map_err(text)?;
        tally.forgotten_rows += self.log.bounds().first - first;
        Ok(())
    }

    /// Waits until something is so; an error when the power is cut before.
    async fn unless_cut(&self, what: &str, mut so: impl FnMut() -> bool) -> Step {
        let started = Instant::now();
        while !so() {
            if self.fs.is_cut() {
                return Err("the power is cut".into());
            }
            assert!(started.elapsed() < HANG, "{what} hangs: {:?}", self.health.details());
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(())
    }

    /// Waits a moment for the summaries of closed segments, so that a seed gives the same calls in the same order.
    pub async fn settle(&self) {
        for dir in ["/data/log", "/data/output"] {
            let count = |end: &str| {
                let files = self.fs.files();
                files
                    .iter()
                    .filter(|path| {
                        path.parent() == Some(Path::new(dir)) && path.extension().is_some_and(|is| is == end)
                    })
                    .count()
            };
            for _ in 0..40 {
                if self.fs.is_cut() || count("log") <= count("sum") + 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        }
    }
}

/// The offsets below which others than the logs hold rows: (ingest log, output log).
fn held_by_others(fs: &Arc<dyn Fs>, data: &Path, store: &ParquetStore) -> Step<(Offset, Offset)> {
    let (_, checkpoint) = Checkpoints::open(fs.clone(), &data.join("checkpoint"), 1 << 20).map_err(text)?;
    let checkpoint = checkpoint.unwrap_or_default();
    let registry =
        Registry::covered_in(fs.clone(), &data.join("registry"), &RegistryConfig::default()).map_err(text)?;
    let ingest = store.cursor(LogSource::Ingest).max(checkpoint.offset).max(registry);
    Ok((ingest, store.cursor(LogSource::Output).max(checkpoint.output_offset)))
}

fn policy() -> RetentionConfig {
    let days = |days| DatasetDays { security_events: Some(days), alerts: Some(days), ..DatasetDays::default() };
    RetentionConfig {
        days: days(0),
        tenants: [(SHORT.to_owned(), days(1))].into(),
        grace_days: 0,
        ..RetentionConfig::default()
    }
}

impl Reports {
    /// A power cut or a kill is no damage, and nothing may be called so.
    pub fn must_be_clean(&self, context: &str) {
        for report in [&self.log, &self.output] {
            assert!(report.damage.is_empty() && report.burnt_to.is_none(), "{context}: {report:?}");
        }
        assert!(self.store.is_clean(), "{context}: {:?}", self.store);
    }

    /// Takes down what the openings had to do.
    pub fn count(&self, tally: &mut Tally) {
        for report in [&self.log, &self.output] {
            tally.rewritten_rows += report.rewritten_rows;
            tally.torn_logs += u64::from(report.torn_bytes > 0 || !report.half_made.is_empty());
        }
    }
}

impl Tally {
    /// Whether everything was tried.
    pub fn is_full(&self) -> bool {
        let Self { cuts, compacted_files, expired_rows, swept_files, forgotten_rows, rewritten_rows, torn_logs } = self;
        [cuts, compacted_files, expired_rows, swept_files, forgotten_rows, rewritten_rows, torn_logs]
            .iter()
            .all(|count| **count > 0)
    }
}
