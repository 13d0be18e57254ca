//! Retention: rows whose time is over leave, per tenant.

use std::sync::Arc;

use metrics::counter;
use serde::Serialize;

use super::commit::NewFiles;
use super::config::{DAY_US, RetentionConfig};
use super::encode::{PageEncoding, TenantCount};
use super::manifest::{FileMeta, TenantRows, Why};
use super::merge::{NOWHERE, merge_order};
use super::publish::Change;
use super::read::FileReader;
use super::recover::SetAside;
use super::rewrite::{Output, Source, rewrite};
use super::store::ParquetStore;
use crate::error::SinksError;
use crate::metrics as names;

/// What [`ParquetStore::retain`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Retained {
    /// Files dropped as a whole.
    pub dropped_files: u64,
    /// Files rewritten without their expired rows.
    pub rewritten_files: u64,
    /// Rows removed.
    pub expired_rows: u64,
    /// Whether the bound on rewriting left work for the next call.
    pub more: bool,
    /// Files found damaged on the way and set aside.
    pub set_aside: Vec<SetAside>,
}

/// What is to be done with a file.
enum Verdict {
    Keep,
    Drop,
    Rewrite,
}

impl ParquetStore {
    /// Removes expired rows: files in which all rows of all tenants are expired are dropped at once; files that hold live
    /// rows too are rewritten once their expired rows are `grace_days` over, as many as the bound allows. Call
    /// [`sweep`](Self::sweep) afterwards. Needs a thread that may block and compute; commits go on meanwhile.
    ///
    /// # Errors
    /// [`SinksError::Io`], [`SinksError::Parquet`]: what was removed before stays removed; try again later.
    pub fn retain(&self, now_us: i64, policy: &RetentionConfig) -> Result<Retained, SinksError> {
        let _alone = self.maintenance.lock();
        self.settle_doubt()?;
        let mut done = Retained::default();
        let mut dropped: Vec<Arc<FileMeta>> = Vec::new();
        let mut mixed: Vec<Arc<FileMeta>> = Vec::new();
        for file in self.metas() {
            match self.judge(&file, now_us, policy) {
                Ok(Verdict::Keep) => {}
                Ok(Verdict::Drop) => dropped.push(file),
                Ok(Verdict::Rewrite) => mixed.push(file),
                Err(error) => done.set_aside.push(self.blame(&file, error)?),
            }
        }
        if !dropped.is_empty() {
            let removed = dropped.iter().map(|file| file.id).collect();
            self.publish(&[], |table| Ok(Change::new(Why::Retain, table.cursors).removing(removed)))?;
            done.dropped_files = dropped.len() as u64;
            done.expired_rows = dropped.iter().map(|file| file.rows).sum();
        }
        let mut bytes = 0;
        for file in mixed {
            if bytes > 0 && bytes + file.bytes > policy.rewrite_bytes_max {
                done.more = true;
                break;
            }
            bytes += file.bytes;
            match self.drop_expired(&file, now_us, policy) {
                Ok(expired) => {
                    done.rewritten_files += 1;
                    done.expired_rows += expired;
                }
                Err(error) => done.set_aside.push(self.blame(&file, error)?),
            }
        }
        counter!(names::PARQUET_EXPIRED_ROWS).increment(done.expired_rows);
        self.show_gauges();
        Ok(done)
    }

    fn judge(&self, file: &FileMeta, now_us: i64, policy: &RetentionConfig) -> Result<Verdict, SinksError> {
        let dataset = file.dataset;
        let latest = policy.tenants.keys().map(|org| policy.cutoff(org, dataset, now_us));
        let latest = latest.max().unwrap_or(i64::MIN).max(policy.cutoff("", dataset, now_us));
        if file.time_min >= latest {
            return Ok(Verdict::Keep);
        }
        let in_footer;
        let tenants: &[TenantRows] = match &file.tenants {
            Some(tenants) => tenants,
            None => {
                let reader = FileReader::open(&self.place, &self.path_of(file), file.bytes)?;
                in_footer = reader.tenants().ok_or_else(|| SinksError::Damaged {
                    path: self.path_of(file),
                    reason: "its footer does not name its tenants".into(),
                })?;
                &in_footer
            }
        };
        let grace = i64::from(policy.grace_days).saturating_mul(DAY_US);
        let cutoff = |tenant: &TenantRows| policy.cutoff(&tenant.org, dataset, now_us);
        if tenants.iter().all(|tenant| tenant.time_max < cutoff(tenant)) {
            return Ok(Verdict::Drop);
        }
        let overdue = |tenant: &TenantRows| tenant.time_min < cutoff(tenant).saturating_sub(grace);
        Ok(if tenants.iter().any(overdue) { Verdict::Rewrite } else { Verdict::Keep })
    }

    /// Puts a file without expired rows in the place of one with; says how many rows went.
    fn drop_expired(&self, file: &Arc<FileMeta>, now_us: i64, policy: &RetentionConfig) -> Result<u64, SinksError> {
        let reader = [FileReader::fetch(&self.place, &self.path_of(file), file.bytes)?];
        let fields: Vec<_> = reader.iter().flat_map(|reader| reader.schema().fields().iter().cloned()).collect();
        let encoding =
            PageEncoding { zstd_level: self.config.compact_zstd_level, row_group_rows: self.config.row_group_rows };
        let mut files = NewFiles::new(self);
        let mut output = Output { wanted: (0..fields.len()).collect(), tenants: TenantCount::default() };
        let mut last: Option<(Arc<str>, i64)> = None;
        let runs = merge_order(file.dataset, &reader, |org, time| {
            let cutoff = match &last {
                Some((last_org, cutoff)) if Arc::ptr_eq(last_org, org) => *cutoff,
                _ => {
                    let cutoff = policy.cutoff(org, file.dataset, now_us);
                    last = Some((org.clone(), cutoff));
                    cutoff
                }
            };
            if time < cutoff {
                return NOWHERE;
            }
            output.tenants.add(org, 1, (time, time));
            0
        })
        .map_err(|failed| failed.error)?;
        if runs.iter().any(|run| run.output != NOWHERE) {
            let source = Source { dataset: file.dataset, files: &reader, fields: &fields, runs: &runs };
            rewrite(&source, vec![output], encoding, &mut files).map_err(|failed| failed.error)?;
        }
        files.make_names_durable()?;
        let added = files.keep();
        let rows: u64 = added.iter().map(|file| file.rows).sum();
        self.publish(&added, |table| {
            if !table.files.contains_key(&file.id) {
                return Err(SinksError::Stopped("the file was removed meanwhile".into()));
            }
            Ok(Change::new(Why::Retain, table.cursors).removing(vec![file.id]))
        })?;
        Ok(file.rows.saturating_sub(rows))
    }
}
