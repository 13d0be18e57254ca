//! Reading past sectors that a disk cannot read any more.
//!
//! An error of a read may pass (a cable, a controller that starts again), so it is an error of the read, and whoever follows
//! the log tries again. But a bad sector stays bad: a reader that waits for it waits for ever. So the pages that failed are
//! counted, and one that failed as often as the reader is patient, while other pages of the same file can be read, is given
//! up: it reads as filler, which passes for no frame, so that the frames in it are damage like any other.

use std::collections::BTreeMap;
use std::io;

use parking_lot::Mutex;

use crate::fs::{FsFile, is_bad_sector};

const PAGE: u64 = 4096;
/// Not zero: zeros would pass for the end of a segment.
const FILLER: u8 = 0xff;
/// Failed pages that are remembered for a file. One with more is not a file with bad sectors.
const PAGES_MAX: usize = 1024;
/// Reads that a page fails for a follower of the log before it is given up.
const PATIENCE: u32 = 5;

/// The pages of one file that could not be read.
#[derive(Debug)]
pub(crate) struct Sectors {
    failed: Mutex<BTreeMap<u64, u32>>,
    patience: u32,
}

impl Sectors {
    /// For readers that come again.
    pub fn patient() -> Self {
        Self { failed: Mutex::default(), patience: PATIENCE }
    }

    /// For a look that must come to an end: opening, verifying.
    pub fn at_once() -> Self {
        Self { failed: Mutex::default(), patience: 1 }
    }

    /// Reads as [`FsFile::read_at`] does, but for pages that are given up.
    pub fn read(&self, file: &dyn FsFile, buf: &mut [u8], at: u64) -> io::Result<usize> {
        if let Ok(count) = file.read_at(buf, at) {
            return Ok(count);
        }
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at + done as u64;
            let len = rest.len().min((PAGE - here % PAGE) as usize);
            let page = &mut rest[..len];
            match file.read_at(page, here) {
                Ok(count) if count < len => return Ok(done + count),
                Ok(_) => {}
                Err(error) if self.gives_up(file, here / PAGE, &error) => page.fill(FILLER),
                Err(error) => return Err(error),
            }
            done += len;
        }
        Ok(done)
    }

    fn gives_up(&self, file: &dyn FsFile, page: u64, error: &io::Error) -> bool {
        if !is_bad_sector(error) {
            return false;
        }
        {
            let mut failed = self.failed.lock();
            if failed.len() >= PAGES_MAX && !failed.contains_key(&page) {
                return false;
            }
            let failures = failed.entry(page).or_insert(0);
            *failures = failures.saturating_add(1);
            if *failures < self.patience {
                return false;
            }
        }
        // A device that is gone fails everywhere.
        let size = file.size().unwrap_or(0);
        let others = [0, page.saturating_sub(1) * PAGE, (page + 1) * PAGE, size.saturating_sub(1)];
        others.into_iter().any(|at| at / PAGE != page && at < size && file.read_at(&mut [0], at).is_ok())
    }
}
