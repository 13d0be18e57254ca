//! Any sequence of commits, compaction, retention, crashes, faults and readers, against a plain list of rows.

use std::sync::Arc;

use proptest::prelude::*;
use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::{History, Sink, Snapshot};
use tidegate_sinks::parquet::{DatasetDays, LogSource, ParquetConfig, ParquetStore, RetentionConfig};

use crate::parquet_rows::{HOUR, Row, batch, delivery, flush, ids, open, read_file, small, write};

const DAY: i64 = 24 * HOUR;
const ORGS: [&str; 4] = ["a", "b", "keeps", "zz"];

#[derive(Debug, Clone)]
enum Step {
    /// Rows for the log: tenant, hour.
    Log(Vec<(usize, i64)>),
    /// Delivers so many rows from so many below what the sink has taken, and commits.
    Deliver {
        back: u64,
        rows: u64,
    },
    Compact,
    /// Days by which the clock goes on before retention.
    Retain(i64),
    Sweep,
    Hold,
    Release,
    Reopen,
    Crash(u64),
    /// The next call of this kind but so many fails.
    Fail(usize, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec((0..ORGS.len(), 0..50i64), 1..30).prop_map(Step::Log),
        8 => (0..6u64, 1..40u64).prop_map(|(back, rows)| Step::Deliver { back, rows }),
        4 => Just(Step::Compact),
        2 => (0..4i64).prop_map(Step::Retain),
        2 => Just(Step::Sweep),
        1 => Just(Step::Hold),
        1 => Just(Step::Release),
        1 => Just(Step::Reopen),
        2 => any::<u64>().prop_map(Step::Crash),
        2 => (0..SimOp::ALL.len(), 0..20u64).prop_map(|(op, after)| Step::Fail(op, after)),
    ];
    prop::collection::vec(step, 1..40)
}

struct World {
    fs: SimFs,
    store: Arc<ParquetStore>,
    log: Vec<Row>,
    now: i64,
    /// What the clock said when retention last began.
    retained_at: i64,
    held: Vec<Arc<Snapshot>>,
    config: ParquetConfig,
    /// Where the furthest delivery that failed was to end: its commit may have happened, and is found out later.
    in_doubt: u64,
}

fn policy() -> RetentionConfig {
    let days = |days| DatasetDays { security_events: Some(days), ..DatasetDays::default() };
    RetentionConfig {
        days: days(1),
        tenants: [("keeps".to_owned(), days(0))].into(),
        grace_days: 0,
        rewrite_bytes_max: 1 << 14,
    }
}

impl World {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Log(rows) => {
                for (org, hour) in rows {
                    let id = self.log.len() as u64;
                    self.log.push((ORGS[*org], hour * HOUR + id as i64, id));
                }
            }
            Step::Deliver { back, rows } => {
                let mut sink = self.store.sink(LogSource::Ingest);
                let from = sink.committed().saturating_sub(*back);
                let until = (sink.committed() + rows).min(self.log.len() as u64);
                let rows = &self.log[from as usize..until as usize];
                if rows.is_empty() {
                    return self.check();
                }
                if write(&mut sink, delivery(from, batch(rows))).is_ok() && flush(&mut sink).is_ok() {
                    let committed = sink.committed();
                    assert!(
                        committed == until || (until..=self.in_doubt).contains(&committed),
                        "{committed}, not {until}, nor up to {} of those that failed",
                        self.in_doubt
                    );
                } else {
                    self.in_doubt = self.in_doubt.max(until);
                }
            }
            Step::Compact => drop(self.store.compact_once()),
            Step::Retain(days) => {
                self.now += days * DAY;
                self.retained_at = self.now;
                drop(self.store.retain(self.now, &policy()));
            }
            Step::Sweep => drop(self.store.sweep()),
            Step::Hold => self.held.push(self.store.snapshot()),
            Step::Release => drop(self.held.pop()),
            Step::Fail(op, after) => {
                let op = SimOp::ALL[*op];
                self.fs.fail(Fault::eio(op, self.fs.count(op) + 1 + after));
            }
            Step::Reopen | Step::Crash(_) => {
                self.held.clear();
                self.fs.heal();
                if let Step::Crash(seed) = step {
                    self.fs.crash(*seed);
                }
                let cursor = self.store.cursor(LogSource::Ingest);
                let (store, report) = open(&self.fs, self.config.clone()).expect("opens");
                assert!(report.is_clean(), "{report:?}");
                assert!(store.cursor(LogSource::Ingest) >= cursor);
                self.store = store;
            }
        }
        self.check();
    }

    fn check(&self) {
        let cursor = self.store.snapshot().log_cursor;
        let found = ids(&self.fs, &self.store);
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "twice: {found:?}");
        assert!(found.last().is_none_or(|last| *last < cursor), "above the cursor {cursor}: {found:?}");
        let live = |row: &&Row| row.0 == "keeps" || row.1 >= self.retained_at - DAY;
        for row in self.log[..cursor as usize].iter().filter(live) {
            assert!(found.binary_search(&row.2).is_ok(), "{row:?} is missing below {cursor}");
        }
        for snapshot in &self.held {
            for file in &snapshot.files {
                let rows: usize = read_file(&self.fs, &file.path).iter().map(|batch| batch.num_rows()).sum();
                assert_eq!(rows as u64, file.rows, "a held file");
            }
            assert!(self.store.oldest_live_cursor(LogSource::Ingest) <= snapshot.log_cursor);
        }
        let ledger = self.store.stats().ledger;
        assert_eq!(ledger.committed - ledger.expired - ledger.lost, found.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_rows_and_cursor_in_agreement(steps in steps(), settle in prop_oneof![Just(0), Just(u32::MAX)]) {
        let fs = SimFs::new();
        let config = ParquetConfig { settle_hours: settle, ..small() };
        let (store, _) = open(&fs, config.clone()).expect("opens");
        let mut world = World { fs, store, log: Vec::new(), now: 0, retained_at: i64::MIN / 2, held: Vec::new(), config, in_doubt: 0 };
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Crash(1));
        let rest = world.log.len() as u64;
        world.step(&Step::Deliver { back: 3, rows: rest });
        assert_eq!(world.store.snapshot().log_cursor, rest);
    }
}
