//! Reading everything again: whether each file holds what was written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use tidegate_pipeline::fs::is_bad_sector;

use super::encode::CHUNK_ROWS;
use super::file_io::FileSource;
use super::manifest::FileMeta;
use super::read::FileReader;
use super::recover::SetAside;
use super::store::ParquetStore;
use crate::error::SinksError;

/// What [`ParquetStore::verify`] says of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileCheck {
    /// Where it is.
    pub path: PathBuf,
    /// The table of its rows.
    pub dataset: &'static str,
    /// Rows that it must have.
    pub rows: u64,
    /// Rows that could be read.
    pub rows_read: u64,
    /// Bytes that it must have.
    pub bytes: u64,
    /// What is wrong, if anything.
    pub problem: Option<String>,
}

impl ParquetStore {
    /// Reads every visible file to its end: length, checksum, footer, all rows of all columns, and their order. Changes
    /// nothing; [`recheck`](Self::recheck) sets a damaged file aside. Needs a thread that may block.
    pub fn verify(&self) -> Vec<FileCheck> {
        self.metas().iter().map(|file| self.verify_file(file)).collect()
    }

    fn verify_file(&self, file: &Arc<FileMeta>) -> FileCheck {
        let mut check = FileCheck {
            path: self.path_of(file),
            dataset: file.dataset.table_name(),
            rows: file.rows,
            rows_read: 0,
            bytes: file.bytes,
            problem: None,
        };
        let damage = self.damage_of(file).unwrap_or_else(|error| Some(error.to_string()));
        let read = self.read_all(file, &mut check.rows_read).map_err(|error| error.to_string()).err();
        let short = (check.rows_read != file.rows).then(|| format!("it has {} rows", check.rows_read));
        check.problem = damage.or(read).or(short);
        check
    }

    fn read_all(&self, file: &Arc<FileMeta>, rows: &mut u64) -> Result<(), SinksError> {
        let path = self.path_of(file);
        let reader = FileReader::fetch(&self.place, &path, file.bytes)?;
        // A column at a time: each open one holds a codec and its pages.
        for column in 0..reader.schema().fields().len() {
            let mut found = 0;
            for batch in reader.column(column, CHUNK_ROWS)? {
                found += batch?.num_rows() as u64;
            }
            *rows = if column == 0 { found } else { found.min(*rows) };
        }
        let mut last: Option<(String, i64)> = None;
        for keys in reader.keys(file.dataset, CHUNK_ROWS)? {
            let keys = keys?;
            for row in 0..keys.len() {
                let (org, time) = (keys.org(row), keys.time(row));
                match &mut last {
                    Some((last_org, last_time)) if last_org == org && *last_time <= time => *last_time = time,
                    Some((last_org, _)) if last_org.as_str() >= org => {
                        return Err(SinksError::Damaged { path, reason: "its rows are not in order".into() });
                    }
                    last => *last = Some((org.to_owned(), time)),
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the bytes of a file, if anything.
    pub(crate) fn damage_of(&self, file: &FileMeta) -> Result<Option<String>, SinksError> {
        let path = self.path_of(file);
        let source = match FileSource::open(&self.place, &path, None) {
            Err(SinksError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Some("it is missing".into()));
            }
            other => other?,
        };
        if source.len() != file.bytes {
            return Ok(Some(format!("it has {} bytes, the manifest says {}", source.len(), file.bytes)));
        }
        let source = source.fetched().map_err(SinksError::io("read", &path))?;
        let crc = match source.crc() {
            // Waiting does not mend a sector, and whoever needs the file (a query, compaction) would fail for ever.
            Err(error) if is_bad_sector(&error) && has_bad_sector(&source) => {
                return Ok(Some(format!("a part of it cannot be read: {error}")));
            }
            crc => crc.map_err(SinksError::io("read", &path))?,
        };
        Ok((crc != file.crc).then(|| "its checksum is not the one of the manifest".into()))
    }

    /// For a reader that could not read a file of a snapshot: sets it aside if it is damaged indeed, so that the next
    /// snapshot is without it. `None` when the file is whole, or no longer visible. Needs a thread that may block.
    ///
    /// # Errors
    /// [`SinksError::Io`] when the file cannot be read now.
    pub fn recheck(&self, path: &Path) -> Result<Option<SetAside>, SinksError> {
        let _alone = self.maintenance.lock();
        let Some(file) = self.metas().into_iter().find(|file| self.path_of(file) == path) else { return Ok(None) };
        let Some(reason) = self.damage_of(&file)? else { return Ok(None) };
        // Of what another writer may have taken away nothing can be said.
        self.settle_doubt()?;
        self.check_still_ours()?;
        let bad = self.set_aside(&file, &reason);
        self.forget_bad(vec![file.id]);
        Ok(Some(bad))
    }
}

/// Reads of the whole that fail before a part of a file is held to be unreadable for good.
const TRIES: u32 = 3;

/// Whether a file cannot be read to its end time and again, although the device is there: its first or last byte can be read.
fn has_bad_sector(source: &FileSource) -> bool {
    let fails = (1..TRIES).all(|_| source.crc().is_err());
    fails && (source.exact(0, 1).is_ok() || source.exact(source.len().saturating_sub(1), 1).is_ok())
}
