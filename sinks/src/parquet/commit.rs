//! A commit: rows of a log become files, and with one edit they and the cursor become visible.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::Schema;
use tidegate_events::{Dataset, FieldType};
use tidegate_pipeline::Offset;

use super::columns::{Pick, SortKeys, joined_columns, schema_of};
use super::encode::{FileBuild, FileRows, PageEncoding, TenantCount, file_path};
use super::layout::{Split, SplitRule, hour_of};
use super::manifest::{FileMeta, TenantFields, Why};
use super::publish::Change;
use super::sparse::Places;
use super::store::{LogSource, ParquetStore};
use crate::error::SinksError;

/// Rows on their way into the store: consecutive batches of one log, by dataset.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) source: LogSource,
    /// Where the cursor must stand.
    pub(crate) from: Offset,
    /// Where it stands afterwards.
    pub(crate) to: Offset,
    pub(crate) batches: BTreeMap<Dataset, Vec<RecordBatch>>,
    /// Whether to ask first if the place answers, since it did not a moment ago.
    pub(crate) ask_first: bool,
}

/// What a commit wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) files: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

impl ParquetStore {
    /// Writes the rows and moves the cursor, all or nothing. Needs a thread that may block and compute.
    pub(crate) fn commit(&self, commit: Commit) -> Result<Committed, SinksError> {
        let Commit { source, from, to, batches, ask_first } = commit;
        if ask_first {
            self.answers()?;
        }
        // Rows that are there after all need not be written again.
        self.settle_doubt()?;
        let now = self.cursor(source);
        if now != from {
            return Err(SinksError::CursorMoved { expected: from, now });
        }
        let mut files = NewFiles::new(self);
        let mut seen = FieldsSeen::default();
        for (dataset, batches) in batches {
            seen.observe(dataset, &batches)?;
            write_dataset(&mut files, dataset, batches)?;
        }
        files.make_names_durable()?;
        let added = files.keep();
        let done = Committed {
            files: added.len() as u64,
            rows: added.iter().map(|file| file.rows).sum(),
            bytes: added.iter().map(|file| file.bytes).sum(),
        };
        self.publish(&added, |table| {
            let now = source.cursor(table.cursors);
            if now != from {
                return Err(SinksError::CursorMoved { expected: from, now });
            }
            let cursors = source.with_cursor(table.cursors, to);
            Ok(Change::new(Why::Commit, cursors).with_fields(seen.new_to(&table.fields)))
        })?;
        self.show_gauges();
        Ok(done)
    }
}

/// Files that were written and that no edit names yet; removed again unless they are kept.
#[derive(Debug)]
pub(crate) struct NewFiles<'a> {
    pub(crate) store: &'a ParquetStore,
    started: Vec<PathBuf>,
    done: Vec<FileMeta>,
    kept: bool,
}

impl<'a> NewFiles<'a> {
    pub(crate) fn new(store: &'a ParquetStore) -> Self {
        Self { store, started: Vec::new(), done: Vec::new(), kept: false }
    }

    /// Begins a file.
    pub(crate) fn create(
        &mut self,
        dataset: Dataset,
        encoding: PageEncoding,
        schema: arrow::datatypes::SchemaRef,
    ) -> Result<FileBuild, SinksError> {
        let store = self.store;
        let id = store.take_file_id();
        let build = FileBuild::create(&store.place, (&store.dir, id, dataset), &store.config, encoding, schema);
        // Also when creating it failed: a name may be there all the same.
        self.started.push(file_path(&store.dir, dataset, id));
        build
    }

    /// Ends a file.
    pub(crate) fn finish(&mut self, build: FileBuild, tenants: TenantCount) -> Result<(), SinksError> {
        self.done.push(build.finish(tenants)?);
        Ok(())
    }

    /// Syncs the folders of the files.
    pub(crate) fn make_names_durable(&self) -> Result<(), SinksError> {
        let mut folders: Vec<&Path> = self.started.iter().filter_map(|path| path.parent()).collect();
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            self.store.place.sync_names(folder).map_err(SinksError::io("sync", folder))?;
        }
        Ok(())
    }

    /// The files are named by an edit from now on, or [`ParquetStore::publish`] removes them.
    pub(crate) fn keep(mut self) -> Vec<FileMeta> {
        self.kept = true;
        std::mem::take(&mut self.done)
    }
}

impl Drop for NewFiles<'_> {
    fn drop(&mut self) {
        if !self.kept {
            for path in &self.started {
                self.store.discard(path);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SortRow {
    org: u32,
    time: i64,
    batch: u32,
    row: u32,
}

/// Sorts the rows of a dataset, splits them into files and writes these.
fn write_dataset(files: &mut NewFiles<'_>, dataset: Dataset, batches: Vec<RecordBatch>) -> Result<(), SinksError> {
    let config = &files.store.config;
    let encoding = PageEncoding { zstd_level: config.commit_zstd_level, row_group_rows: config.row_group_rows };
    let rule = SplitRule {
        tenant_rows_min: config.tenant_rows_min as u64,
        file_rows_min: config.file_rows_min as u64,
        files_max: usize::MAX,
    };
    for picks in split_rows(dataset, &batches, rule)? {
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); batches.len()];
        for (batch, row) in &picks {
            if let Some(rows) = rows.get_mut(*batch as usize) {
                rows.push(*row);
            }
        }
        let columns = joined_columns(dataset, &batches, &rows)?;
        drop(rows);
        let places = Places::new(batches.iter().map(RecordBatch::num_rows), &picks);
        let mut build = files.create(dataset, encoding, schema_of(&columns))?;
        let mut tenants = TenantCount::default();
        // Of about one size: a short one at the end would be too small to be joined with others later.
        let rows_of = FileRows { batches: batches.len(), columns, places, rows: picks.len() };
        let groups = picks.len().div_ceil(encoding.row_group_rows).max(1);
        for group in picks.chunks(picks.len().div_ceil(groups).max(1)) {
            build.push_group(&rows_of, group, &mut tenants)?;
        }
        files.finish(build, tenants)?;
    }
    Ok(())
}

/// The rows of each file, sorted by tenant and time.
fn split_rows(dataset: Dataset, batches: &[RecordBatch], rule: SplitRule) -> Result<Vec<Vec<Pick>>, SinksError> {
    let keys = batches.iter().map(|batch| SortKeys::of(dataset, batch)).collect::<Result<Vec<_>, _>>()?;
    let mut rows = sort_keys(&keys);
    rows.sort_unstable();
    let mut counts: BTreeMap<(u32, i64), u64> = BTreeMap::new();
    let mut run: Option<((u32, i64), u64)> = None;
    for row in &rows {
        let group = (row.org, hour_of(row.time));
        match &mut run {
            Some((current, count)) if *current == group => *count += 1,
            run => {
                if let Some((done, count)) = run.replace((group, 1)) {
                    *counts.entry(done).or_default() += count;
                }
            }
        }
    }
    if let Some((done, count)) = run {
        *counts.entry(done).or_default() += count;
    }
    let split = Split::new(&counts, rule);
    let mut files: Vec<Vec<Pick>> = vec![Vec::new(); split.files()];
    let mut last = None;
    let mut slot = 0;
    for row in &rows {
        let group = (row.org, hour_of(row.time));
        if last != Some(group) {
            slot = split.file(group.0, group.1);
            last = Some(group);
        }
        if let Some(file) = files.get_mut(slot) {
            file.push((row.batch, row.row));
        }
    }
    Ok(files)
}

/// One key a row, with tenants numbered in byte order.
fn sort_keys(keys: &[SortKeys]) -> Vec<SortRow> {
    let mut orgs: BTreeMap<&str, u32> = BTreeMap::new();
    for keys in keys {
        let mut last = None;
        for row in 0..keys.len() {
            let org = keys.org(row);
            if last != Some(org) {
                orgs.entry(org).or_default();
                last = Some(org);
            }
        }
    }
    for (rank, number) in orgs.values_mut().enumerate() {
        *number = u32::try_from(rank).unwrap_or(u32::MAX);
    }
    let ranks: HashMap<&str, u32> = orgs.into_iter().collect();
    let mut rows = Vec::with_capacity(keys.iter().map(SortKeys::len).sum());
    for (batch, keys) in keys.iter().enumerate() {
        let mut last: Option<(&str, u32)> = None;
        for row in 0..keys.len() {
            let org = keys.org(row);
            let rank = match last {
                Some((known, rank)) if known == org => rank,
                _ => ranks.get(org).copied().unwrap_or(0),
            };
            last = Some((org, rank));
            rows.push(SortRow { org: rank, time: keys.time(row), batch: batch as u32, row: row as u32 });
        }
    }
    rows
}

/// The own fields that each tenant has in a commit.
#[derive(Debug, Default)]
struct FieldsSeen {
    seen: BTreeMap<(String, Dataset), BTreeMap<String, FieldType>>,
}

impl FieldsSeen {
    fn observe(&mut self, dataset: Dataset, batches: &[RecordBatch]) -> Result<(), SinksError> {
        let core = dataset.core_schema();
        // Layouts of which one tenant was seen to have every column: nothing new comes of the same again.
        let mut whole: HashSet<(*const Schema, String)> = HashSet::new();
        for batch in batches {
            let keys = SortKeys::of(dataset, batch)?;
            let (orgs, org_of_row) = number_orgs(&keys);
            if let [org] = orgs.as_slice() {
                let full = batch.columns().iter().all(|column| column.null_count() < column.len());
                if full && !whole.insert((Arc::as_ptr(batch.schema_ref()), (*org).to_owned())) {
                    continue;
                }
            }
            for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
                if core.fields().find(field.name()).is_some() {
                    continue;
                }
                let Some(kind) = FieldType::from_data_type(field.data_type()) else { continue };
                for org in orgs_with_values(array.as_ref(), &org_of_row, orgs.len()) {
                    let Some(org) = orgs.get(org) else { continue };
                    self.add(org, dataset, field.name(), kind);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, org: &str, dataset: Dataset, name: &str, kind: FieldType) {
        let fields = self.seen.entry((org.to_owned(), dataset)).or_default();
        match fields.get_mut(name) {
            Some(known) => *known = known.join(kind),
            None => {
                fields.insert(name.to_owned(), kind);
            }
        }
    }

    /// What the catalog does not have yet.
    fn new_to(&self, catalog: &tidegate_pipeline::FieldCatalog) -> Vec<TenantFields> {
        let mut new = Vec::new();
        for ((org, dataset), fields) in &self.seen {
            let known = catalog.fields(org, *dataset);
            let fields: Vec<(String, u8)> = fields
                .iter()
                .filter(|(name, kind)| known.get(name.as_str()).is_none_or(|known| known.join(**kind) != *known))
                .map(|(name, kind)| (name.clone(), kind.code()))
                .collect();
            if !fields.is_empty() {
                new.push(TenantFields { org: org.clone(), dataset: *dataset, fields });
            }
        }
        new
    }
}

/// The tenants of a batch, and the number of each row's tenant.
fn number_orgs(keys: &SortKeys) -> (Vec<&str>, Vec<u32>) {
    let mut orgs: Vec<&str> = Vec::new();
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut of_row = Vec::with_capacity(keys.len());
    let mut last: Option<(&str, u32)> = None;
    for row in 0..keys.len() {
        let org = keys.org(row);
        if let Some((_, number)) = last.filter(|(known, _)| *known == org) {
            of_row.push(number);
            continue;
        }
        let number = *numbers.entry(org).or_insert_with(|| {
            orgs.push(org);
            orgs.len() as u32 - 1
        });
        last = Some((org, number));
        of_row.push(number);
    }
    (orgs, of_row)
}

/// The tenants (by number) that have a value in the column.
fn orgs_with_values(array: &dyn Array, org_of_row: &[u32], orgs: usize) -> Vec<usize> {
    if array.null_count() == array.len() {
        return Vec::new();
    }
    if array.null_count() == 0 || orgs == 1 {
        return (0..orgs).collect();
    }
    let mut found = vec![false; orgs];
    let mut missing = orgs;
    for (row, org) in org_of_row.iter().enumerate() {
        let Some(found) = found.get_mut(*org as usize) else { continue };
        if !*found && array.is_valid(row) {
            *found = true;
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    found.iter().enumerate().filter(|(_, found)| **found).map(|(org, _)| org).collect()
}

/// The parts of batches at or after `cursor`, by dataset, in order.
pub(crate) fn rows_from(
    batches: &[Arc<tidegate_pipeline::LogBatch>],
    cursor: Offset,
) -> BTreeMap<Dataset, Vec<RecordBatch>> {
    let mut by_dataset: BTreeMap<Dataset, Vec<RecordBatch>> = BTreeMap::new();
    for batch in batches.iter().filter(|batch| batch.next_offset() > cursor && batch.rows.num_rows() > 0) {
        let below = usize::try_from(cursor.saturating_sub(batch.offset)).unwrap_or(usize::MAX);
        let rows = batch.rows.slice(below, batch.rows.num_rows().saturating_sub(below));
        by_dataset.entry(batch.dataset).or_default().push(rows);
    }
    by_dataset
}
