//! The Parquet store keeps the contract of a sink, whatever makes it commit.

use std::sync::Arc;

use arrow::array::AsArray;
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::{History, Sink};
use tidegate_sinks::parquet::{LogSource, ParquetConfig, ParquetStore};

use crate::contract::sink::{Destination, check};
use crate::parquet_rows::{open, read_file, small};

struct Store {
    fs: SimFs,
    config: ParquetConfig,
    source: LogSource,
}

impl Store {
    /// What a process that starts finds.
    fn open(&self) -> Arc<ParquetStore> {
        let (store, report) = open(&self.fs, self.config.clone()).expect("opens");
        assert!(report.is_clean(), "{report:?}");
        store
    }
}

impl Destination for Store {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.open().sink(self.source))
    }

    fn ids(&self) -> Vec<String> {
        // Read from what a power cut leaves, so that only what is durable counts.
        let durable = Self { fs: self.fs.after_crash(0), config: self.config.clone(), source: self.source };
        let snapshot = durable.open().snapshot();
        let batches = snapshot.files.iter().flat_map(|file| read_file(&durable.fs, &file.path));
        let ids = |batch: arrow::array::RecordBatch| -> Vec<String> {
            let column = batch.column_by_name("event_id").expect("event_id").as_string::<i32>();
            column.iter().flatten().map(str::to_owned).collect()
        };
        batches.flat_map(ids).collect()
    }
}

#[test]
fn the_parquet_store_keeps_the_contract_of_a_sink() {
    for (source, commit_rows) in [(LogSource::Ingest, 1 << 20), (LogSource::Output, 1 << 20), (LogSource::Ingest, 3)] {
        let name = format!("{source:?}, commits of {commit_rows} rows");
        check(&name, || {
            let config = ParquetConfig { commit_rows, ..small() };
            Box::new(Store { fs: SimFs::new(), config, source })
        });
    }
}
