//! The files of a log's folder: names, headers, and which rows are void.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::Offset;
use super::format::{FRAMES_START, OFFSET_MAX, SegmentHeader};
use super::sectors::Sectors;
use crate::error::PipelineError;
use crate::fs::{Fs, FsFile};

/// The path of a segment file.
pub(crate) fn segment_path(dir: &Path, first: Offset) -> PathBuf {
    dir.join(format!("{first:020}.log"))
}

/// The path of a summary file.
pub(crate) fn summary_path(dir: &Path, first: Offset) -> PathBuf {
    dir.join(format!("{first:020}.sum"))
}

/// The files of a log's folder, by first offset.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub logs: BTreeMap<Offset, PathBuf>,
    pub sums: BTreeMap<Offset, PathBuf>,
    pub temporary: Vec<PathBuf>,
}

pub(crate) fn list(fs: &dyn Fs, dir: &Path) -> Result<Listing, PipelineError> {
    let mut listing = Listing::default();
    let paths = fs.list(dir).map_err(|source| PipelineError::Io { op: "list", path: dir.to_owned(), source })?;
    for path in paths {
        let Some((stem, extension)) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        let first = Some(stem).filter(|stem| stem.len() == 20).and_then(|stem| stem.parse().ok());
        let first = first.filter(|first| *first <= OFFSET_MAX);
        match (first, extension) {
            (Some(first), "log") => _ = listing.logs.insert(first, path),
            (Some(first), "sum") => _ = listing.sums.insert(first, path),
            (Some(_), "sum.tmp" | "log.tmp") => listing.temporary.push(path),
            _ => {}
        }
    }
    Ok(listing)
}

/// The header of a segment file; `None` when neither copy is whole or it is another segment's.
pub(crate) fn read_header(file: &dyn FsFile, first: Offset) -> io::Result<Option<SegmentHeader>> {
    let mut start = [0; FRAMES_START as usize];
    Sectors::at_once().read(file, &mut start, 0)?;
    Ok(SegmentHeader::decode(&start).filter(|header| header.first == first))
}

/// The offset from which the rows of each segment are void: the smallest *sealed at* of the segments after it.
pub(crate) fn void_offsets(headers: &[(Offset, Option<SegmentHeader>)]) -> Vec<Offset> {
    let mut void_at = Offset::MAX;
    let mut voids: Vec<_> = headers
        .iter()
        .rev()
        .map(|(first, header)| {
            let here = void_at;
            void_at = void_at.min(header.map_or(*first, |header| header.sealed_at));
            here
        })
        .collect();
    voids.reverse();
    voids
}
