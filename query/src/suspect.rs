//! When a file of history cannot be read: which one it was, and the store is asked to look at it, so that the next query is
//! without it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use object_store::path::Path;
use parking_lot::Mutex;
use tidegate_pipeline::{History, HistoryFile};

use crate::error::QueryError;

/// Files opened last that are looked at when a scan fails: some for each of its threads.
const OPENED_MAX: usize = 32;

/// Opens the files of one scan, and remembers which.
pub(crate) struct Suspects {
    factory: CachedParquetFileReaderFactory,
    history: Arc<dyn History>,
    files: Vec<(Path, Arc<HistoryFile>)>,
    /// The last one last.
    opened: Mutex<VecDeque<Path>>,
}

impl fmt::Debug for Suspects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspects").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

impl Suspects {
    /// For the files of a scan, each with its place in the object store.
    pub(crate) fn new(
        factory: CachedParquetFileReaderFactory,
        history: Arc<dyn History>,
        files: Vec<(Path, Arc<HistoryFile>)>,
    ) -> Self {
        Self { factory, history, files, opened: Mutex::default() }
    }

    /// What an error of the scan is to the client. A file that is damaged indeed is set aside before this ends.
    pub(crate) async fn explain(self: Arc<Self>, error: DataFusionError) -> DataFusionError {
        let ours = |error: &DataFusionError| match error {
            DataFusionError::ResourcesExhausted(_) => true,
            DataFusionError::External(inner) => inner.downcast_ref::<QueryError>().is_some(),
            _ => false,
        };
        if ours(error.find_root()) {
            return error;
        }
        tracing::warn!(%error, "a scan of stored files failed; the files that it had open are checked");
        let looked = tokio::task::spawn_blocking(move || self.set_aside()).await;
        match looked {
            Ok(true) => DataFusionError::External(Box::new(QueryError::Damaged)),
            _ => error,
        }
    }

    /// Whether one of the files opened last is no longer part of history.
    fn set_aside(&self) -> bool {
        let opened: Vec<Path> = self.opened.lock().iter().rev().cloned().collect();
        let file = |path: &Path| self.files.iter().find(|(known, _)| known == path).map(|(_, file)| file);
        opened.iter().filter_map(file).any(|file| self.history.suspect(file))
    }
}

impl ParquetFileReaderFactory for Suspects {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let mut opened = self.opened.lock();
        opened.retain(|path| *path != file.object_meta.location);
        if opened.len() >= OPENED_MAX {
            opened.pop_front();
        }
        opened.push_back(file.object_meta.location.clone());
        drop(opened);
        self.factory.create_reader(partition_index, file, metadata_size_hint, metrics)
    }
}
