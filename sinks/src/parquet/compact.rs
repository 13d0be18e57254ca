//! Compaction: the same rows in fewer files, in the background, in bounded memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::FieldRef;
use metrics::counter;
use serde::Serialize;
use tidegate_events::Dataset;
use tidegate_pipeline::History;
use tidegate_pipeline::clock::now_us;

use super::commit::NewFiles;
use super::encode::{CHUNK_ROWS, PageEncoding};
use super::layout::{Split, SplitRule, hour_of};
use super::manifest::{FileMeta, Why};
use super::merge::{InputError, NOWHERE, joined_fields, merge_order};
use super::pick::pick;
use super::publish::Change;
use super::read::FileReader;
use super::recover::SetAside;
use super::rewrite::{Output, Source, rewrite};
use super::splice::{can_join, join};
use super::store::ParquetStore;
use crate::error::SinksError;
use crate::metrics as names;

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
        self.settle_doubt()?;
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
                self.check_still_ours()?;
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
        let encoding =
            PageEncoding { zstd_level: self.config.compact_zstd_level, row_group_rows: self.config.row_group_rows };
        if can_join(self, files, &opened, &fields) {
            let mut new = NewFiles::new(self);
            join(files, &opened, (dataset, &fields), encoding, &mut new)?;
            new.make_names_durable().map_err(other)?;
            return self.replace(files, &new.keep()).map_err(other);
        }
        let mut plan = Plan::new(self, files, self.count_rows(files, &opened)?);
        let runs = merge_order(dataset, &opened, |org, time| plan.place(org, time))?;
        let outputs = plan.outputs(self, &fields);
        let mut new = NewFiles::new(self);
        rewrite(&Source { dataset, files: &opened, fields: &fields, runs: &runs }, outputs, encoding, &mut new)?;
        new.make_names_durable().map_err(other)?;
        self.replace(files, &new.keep()).map_err(other)
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
            FileReader::fetch(&self.place, &self.path_of(file), file.bytes).map_err(|error| InputError { input, error })
        };
        files.iter().enumerate().map(open).collect()
    }

    /// The rows of each tenant and hour. From the manifest, when each file keeps to an hour and names its tenants;
    /// otherwise the sort keys are read.
    fn count_rows(
        &self,
        files: &[Arc<FileMeta>],
        opened: &[FileReader],
    ) -> Result<BTreeMap<(Arc<str>, i64), u64>, InputError> {
        let mut counts: BTreeMap<(Arc<str>, i64), u64> = BTreeMap::new();
        for (input, (file, reader)) in files.iter().zip(opened).enumerate() {
            let hour = hour_of(file.time_min);
            if let (Some(tenants), true) = (&file.tenants, hour == hour_of(file.time_max)) {
                for tenant in tenants {
                    *counts.entry((tenant.org.as_str().into(), hour)).or_default() += tenant.rows;
                }
                continue;
            }
            let failed = |error| InputError { input, error };
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

/// Which row goes to which of the new files.
struct Plan {
    dataset: Dataset,
    orgs: BTreeMap<Arc<str>, u32>,
    split: Split,
    /// Rows after which a file is large enough.
    file_rows: u64,
    outputs: Vec<Output>,
    /// For each part of the split the file that is being filled, and its rows.
    open: Vec<Option<(usize, u64)>>,
    /// The part of the last row: rows of one tenant and hour come in runs.
    last: Option<(Arc<str>, i64, usize)>,
}

impl Plan {
    fn new(store: &ParquetStore, files: &[Arc<FileMeta>], counts: BTreeMap<(Arc<str>, i64), u64>) -> Self {
        let config = &store.config;
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let mut orgs: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for (org, _) in counts.keys() {
            let next = orgs.len() as u32;
            orgs.entry(org.clone()).or_insert(next);
        }
        let number = |org: &Arc<str>| orgs.get(org).copied().unwrap_or(0);
        // At most half as many parts as there were files: a merge must leave fewer than it found.
        let file_rows_min = rows.div_ceil((files.len() as u64 / 2).max(1)).max(config.file_rows_min as u64);
        let rule = SplitRule {
            tenant_rows_min: (config.tenant_rows_min as u64).max(file_rows_min.saturating_mul(2)),
            file_rows_min,
            files_max: config.compact_outputs_max,
        };
        let split = Split::new(&counts.iter().map(|((org, hour), rows)| ((number(org), *hour), *rows)).collect(), rule);
        let row_bytes = bytes.div_ceil(rows.max(1)).max(1);
        Self {
            dataset: files.first().map_or(Dataset::SecurityEvents, |file| file.dataset),
            orgs,
            file_rows: (config.target_file_bytes / row_bytes).max(1),
            outputs: Vec::new(),
            open: vec![None; split.files()],
            split,
            last: None,
        }
    }

    /// The file of the next row.
    fn place(&mut self, org: &Arc<str>, time: i64) -> u32 {
        let hour = hour_of(time);
        let part = match &self.last {
            Some((last_org, last_hour, part)) if *last_hour == hour && last_org == org => *part,
            _ => {
                let part = self.split.file(self.orgs.get(org).copied().unwrap_or(0), hour);
                self.last = Some((org.clone(), hour, part));
                part
            }
        };
        let Some(open) = self.open.get_mut(part) else { return NOWHERE };
        let (output, rows) = match open {
            Some((output, rows)) if *rows < self.file_rows => (*output, *rows),
            _ => {
                self.outputs.push(Output::default());
                (self.outputs.len() - 1, 0)
            }
        };
        *open = Some((output, rows + 1));
        if let Some(output) = self.outputs.get_mut(output) {
            output.tenants.add(org, 1, (time, time));
        }
        output as u32
    }

    /// The files, each with the core columns and those own fields that its tenants have.
    fn outputs(mut self, store: &ParquetStore, fields: &[FieldRef]) -> Vec<Output> {
        let catalog = History::snapshot(store).fields.clone();
        let core = self.dataset.core_schema();
        for output in &mut self.outputs {
            let own: Vec<_> = output.tenants.orgs().map(|org| catalog.fields(org, self.dataset)).collect();
            let wanted = |field: &FieldRef| {
                let name = field.name().as_str();
                core.fields().find(name).is_some() || own.iter().any(|fields| fields.contains_key(name))
            };
            output.wanted = (0..fields.len()).filter(|at| fields.get(*at).is_some_and(wanted)).collect();
        }
        self.outputs
    }
}
