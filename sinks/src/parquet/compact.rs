//! Compaction: the same rows in fewer files, in the background, in bounded memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metrics::counter;
use serde::Serialize;
use tidegate_pipeline::clock::now_us;

use super::columns::Pick;
use super::commit::NewFiles;
use super::encode::{CHUNK_ROWS, FileBuild, PageEncoding};
use super::layout::{Split, SplitRule, hour_of};
use super::manifest::{FileMeta, Why};
use super::merge::{InputError, Merge, joined_fields};
use super::pick::pick;
use super::read::FileReader;
use super::recover::SetAside;
use super::store::{Change, ParquetStore};
use crate::error::SinksError;
use crate::metrics as names;

/// Bytes of decoded rows that the inputs of a merge hold together.
const WINDOW_BYTES: u64 = 64 << 20;
/// Encoded bytes that the outputs of a merge hold together before they write a row group.
const OUTPUT_BYTES: usize = 96 << 20;

/// What [`ParquetStore::compact_once`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// Files merged; 0 when there was nothing to do.
    pub files_in: u64,
    /// Files written.
    pub files_out: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of the files merged.
    pub bytes_in: u64,
    /// Bytes of the files written.
    pub bytes_out: u64,
    /// Files found damaged on the way and set aside; the merge itself was left for the next call.
    pub set_aside: Vec<SetAside>,
}

impl ParquetStore {
    /// Merges one group of files, if one is worth it. Call it from a thread that may block and compute, again as long as
    /// `files_in` is not 0, then call [`sweep`](Self::sweep). Commits go on meanwhile; another compaction or retention waits.
    ///
    /// # Errors
    /// [`SinksError::Io`], [`SinksError::Parquet`]: nothing has changed; try again later.
    pub fn compact_once(&self) -> Result<Compacted, SinksError> {
        let _alone = self.maintenance.lock();
        let spoiled = self.spoiled.lock().clone();
        let files: Vec<_> = self.metas().into_iter().filter(|file| !spoiled.contains(&file.id)).collect();
        let inputs = pick(&files, &self.config, now_us());
        if inputs.is_empty() {
            return Ok(Compacted::default());
        }
        match self.merge_files(&inputs) {
            Ok(done) => {
                counter!(names::PARQUET_COMPACTED_FILES).increment(done.files_in);
                counter!(names::PARQUET_COMPACTED_BYTES).increment(done.bytes_out);
                tracing::debug!(files_in = done.files_in, files_out = done.files_out, rows = done.rows, "compacted");
                self.show_gauges();
                Ok(done)
            }
            Err(InputError { input, error }) => match inputs.get(input) {
                Some(file) => {
                    self.blame(file, error).map(|bad| Compacted { set_aside: vec![bad], ..Compacted::default() })
                }
                None => Err(error),
            },
        }
    }

    /// A file could not be read. Sets it aside if its bytes are not what was written; otherwise keeps compaction from
    /// stumbling over it again until the next start.
    pub(crate) fn blame(&self, file: &FileMeta, error: SinksError) -> Result<SetAside, SinksError> {
        match self.damage_of(file) {
            Ok(Some(reason)) => {
                let bad = self.set_aside(file, &reason);
                self.forget_bad(vec![file.id]);
                Ok(bad)
            }
            Ok(None) => {
                if !matches!(error, SinksError::Io { .. }) {
                    self.spoiled.lock().insert(file.id);
                }
                Err(error)
            }
            Err(_) => Err(error),
        }
    }

    fn merge_files(&self, files: &[Arc<FileMeta>]) -> Result<Compacted, InputError> {
        let other = |error| InputError { input: usize::MAX, error };
        let Some(dataset) = files.first().map(|file| file.dataset) else { return Ok(Compacted::default()) };
        let opened = self.open_all(files)?;
        let fields = joined_fields(dataset, &opened).map_err(other)?;
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let counts = self.count_rows(files)?;
        let batch_rows = self.batch_rows(files);
        let mut readers = Vec::with_capacity(opened.len());
        for (input, file) in opened.into_iter().enumerate() {
            readers.push(file.batches(batch_rows).map_err(|error| InputError { input, error })?);
        }
        let mut outputs = Outputs::new(self, dataset, counts, rows, files.len());
        let wanted = outputs.wanted_fields(&fields);
        let mut merge = Merge::new(dataset, fields, readers)?;
        loop {
            let more = outputs.advance(&mut merge, &wanted)?;
            if !more {
                break;
            }
        }
        let added = outputs.finish().map_err(other)?;
        self.replace(files, &added).map_err(other)
    }

    /// Puts the new files in the place of the old ones.
    fn replace(&self, files: &[Arc<FileMeta>], added: &[FileMeta]) -> Result<Compacted, SinksError> {
        let removed: Vec<u64> = files.iter().map(|file| file.id).collect();
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let done = Compacted {
            files_in: files.len() as u64,
            files_out: added.len() as u64,
            rows: added.iter().map(|file| file.rows).sum(),
            bytes_in: files.iter().map(|file| file.bytes).sum(),
            bytes_out: added.iter().map(|file| file.bytes).sum(),
            set_aside: Vec::new(),
        };
        self.publish(added, |table| {
            if done.rows != rows {
                return Err(SinksError::Stopped(format!("the merge gave {} rows of {rows}", done.rows)));
            }
            if !removed.iter().all(|id| table.files.contains_key(id)) {
                return Err(SinksError::Stopped("a file of the merge was removed meanwhile".into()));
            }
            Ok(Change::new(Why::Compact, table.cursors).removing(removed))
        })?;
        Ok(done)
    }

    fn open_all(&self, files: &[Arc<FileMeta>]) -> Result<Vec<FileReader>, InputError> {
        let open = |(input, file): (usize, &Arc<FileMeta>)| {
            FileReader::open(self.fs.as_ref(), &self.path_of(file)).map_err(|error| InputError { input, error })
        };
        files.iter().enumerate().map(open).collect()
    }

    /// Rows of a batch, so that one batch of every input and one that replaces it fit in the window.
    pub(crate) fn batch_rows(&self, files: &[Arc<FileMeta>]) -> usize {
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        // Decoded rows are taken to be ten times their size on disk, and 256 bytes at least.
        let row_bytes = (bytes.saturating_mul(10) / rows.max(1)).max(256);
        let batch_rows = WINDOW_BYTES / row_bytes / (files.len() as u64).max(1);
        usize::try_from(batch_rows).unwrap_or(usize::MAX).clamp(256, CHUNK_ROWS)
    }

    /// The rows of each tenant and hour. From the manifest, when each file keeps to an hour and names its tenants;
    /// otherwise the sort keys are read.
    fn count_rows(&self, files: &[Arc<FileMeta>]) -> Result<BTreeMap<(Arc<str>, i64), u64>, InputError> {
        let mut counts: BTreeMap<(Arc<str>, i64), u64> = BTreeMap::new();
        for (input, file) in files.iter().enumerate() {
            let hour = hour_of(file.time_min);
            if let (Some(tenants), true) = (&file.tenants, hour == hour_of(file.time_max)) {
                for tenant in tenants {
                    *counts.entry((tenant.org.as_str().into(), hour)).or_default() += tenant.rows;
                }
                continue;
            }
            let failed = |error| InputError { input, error };
            let reader = FileReader::open(self.fs.as_ref(), &self.path_of(file)).map_err(failed)?;
            for keys in reader.keys(file.dataset, CHUNK_ROWS).map_err(failed)? {
                let keys = keys.map_err(failed)?;
                let mut run: Option<((Arc<str>, i64), u64)> = None;
                for row in 0..keys.len() {
                    let (org, hour) = (keys.org(row), hour_of(keys.time(row)));
                    match &mut run {
                        Some(((last, at), rows)) if &**last == org && *at == hour => *rows += 1,
                        run => {
                            if let Some((group, rows)) = run.replace(((org.into(), hour), 1)) {
                                *counts.entry(group).or_default() += rows;
                            }
                        }
                    }
                }
                if let Some((group, rows)) = run {
                    *counts.entry(group).or_default() += rows;
                }
            }
        }
        Ok(counts)
    }
}

/// The files that a merge writes at once.
struct Outputs<'a> {
    files: NewFiles<'a>,
    dataset: tidegate_events::Dataset,
    encoding: PageEncoding,
    orgs: BTreeMap<Arc<str>, u32>,
    split: Split,
    /// The tenants of each output.
    tenants: Vec<BTreeSet<Arc<str>>>,
    builds: Vec<Option<FileBuild>>,
    picks: Vec<Vec<Pick>>,
    /// The output of the last row: rows of one tenant and hour come in runs.
    last: Option<(Arc<str>, i64, usize)>,
}

impl<'a> Outputs<'a> {
    fn new(
        store: &'a ParquetStore,
        dataset: tidegate_events::Dataset,
        counts: BTreeMap<(Arc<str>, i64), u64>,
        rows: u64,
        inputs: usize,
    ) -> Self {
        let config = &store.config;
        let mut orgs: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for (org, _) in counts.keys() {
            let next = orgs.len() as u32;
            orgs.entry(org.clone()).or_insert(next);
        }
        let number = |org: &Arc<str>| orgs.get(org).copied().unwrap_or(0);
        // At most half as many groups as there were files: a merge must leave fewer than it found.
        let file_rows_min = rows.div_ceil((inputs as u64 / 2).max(1)).max(config.file_rows_min as u64);
        let rule = SplitRule {
            tenant_rows_min: (config.tenant_rows_min as u64).max(file_rows_min.saturating_mul(2)),
            file_rows_min,
            files_max: config.compact_outputs_max,
        };
        let split = Split::new(&counts.iter().map(|((org, hour), rows)| ((number(org), *hour), *rows)).collect(), rule);
        let mut tenants = vec![BTreeSet::new(); split.files()];
        for (org, hour) in counts.keys() {
            if let Some(tenants) = tenants.get_mut(split.file(number(org), *hour)) {
                tenants.insert(org.clone());
            }
        }
        let encoding = PageEncoding {
            zstd_level: config.compact_zstd_level,
            row_group_rows: config.row_group_rows,
            row_group_bytes: OUTPUT_BYTES / split.files().max(1),
        };
        let builds = tenants.iter().map(|_| None).collect();
        let picks = vec![Vec::new(); split.files()];
        Self { files: NewFiles::new(store), dataset, encoding, orgs, split, tenants, builds, picks, last: None }
    }

    /// For each output the columns that its tenants have.
    fn wanted_fields(&self, fields: &[arrow::datatypes::FieldRef]) -> Vec<Vec<usize>> {
        let store = self.files.store;
        let catalog = tidegate_pipeline::History::snapshot(store).fields.clone();
        let core = self.dataset.core_schema();
        let wanted = |tenants: &BTreeSet<Arc<str>>| {
            let own: Vec<_> = tenants.iter().map(|org| catalog.fields(org, self.dataset)).collect();
            let keep = |field: &arrow::datatypes::FieldRef| {
                let name = field.name().as_str();
                core.fields().find(name).is_some() || own.iter().any(|fields| fields.contains_key(name))
            };
            (0..fields.len()).filter(|at| fields.get(*at).is_some_and(keep)).collect()
        };
        self.tenants.iter().map(wanted).collect()
    }

    /// Takes some rows from the merge and writes them; says whether there may be more.
    fn advance(&mut self, merge: &mut Merge, wanted: &[Vec<usize>]) -> Result<bool, InputError> {
        let (orgs, split, last) = (&self.orgs, &self.split, &mut self.last);
        let more = merge.advance(CHUNK_ROWS, &mut self.picks, |org, time| {
            let hour = hour_of(time);
            if let Some((last_org, last_hour, output)) = last
                && *last_hour == hour
                && (Arc::ptr_eq(last_org, org) || last_org == org)
            {
                return *output;
            }
            let output = split.file(orgs.get(org).copied().unwrap_or(0), hour);
            *last = Some((org.clone(), hour, output));
            output
        })?;
        self.write(merge, wanted).map_err(|error| InputError { input: usize::MAX, error })?;
        merge.release();
        Ok(more)
    }

    fn write(&mut self, merge: &Merge, wanted: &[Vec<usize>]) -> Result<(), SinksError> {
        let target = self.files.store.config.target_file_bytes;
        for ((picks, slot), wanted) in self.picks.iter_mut().zip(&mut self.builds).zip(wanted) {
            if picks.is_empty() {
                continue;
            }
            let schema = merge.schema(wanted);
            let batch = merge.gather(wanted, &schema, picks)?;
            picks.clear();
            let mut build = match slot.take() {
                Some(build) => build,
                None => self.files.create(self.dataset, self.encoding, schema)?,
            };
            build.push(&batch)?;
            if build.bytes() >= target {
                self.files.finish(build)?;
            } else {
                *slot = Some(build);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<FileMeta>, SinksError> {
        for build in std::mem::take(&mut self.builds).into_iter().flatten() {
            self.files.finish(build)?;
        }
        self.files.make_names_durable()?;
        Ok(self.files.keep())
    }
}
