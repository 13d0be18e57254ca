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

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::path::Path;

    use super::*;
    use crate::fs::{Fs, Open, SimFs};

    /// A file of `size` bytes, of which these pages cannot be read, and what it should hold for who gives them up.
    fn file(size: usize, bad: &[usize]) -> (std::sync::Arc<dyn FsFile>, Vec<u8>) {
        let fs = SimFs::new();
        let mut bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let path = Path::new("/file");
        let file = fs.open(path, Open::Create).expect("a file");
        file.write_all_at(&[IoSlice::new(&bytes)], 0).expect("memory");
        for page in bad {
            let start = page * PAGE as usize;
            fs.spoil(path, start as u64, Some(PAGE.min((size - start) as u64)));
            let end = (start + PAGE as usize).min(size);
            bytes[start..end].fill(FILLER);
        }
        (file, bytes)
    }

    #[test]
    fn pages_that_cannot_be_read_are_filler_and_all_else_is_what_it_was() {
        let page = PAGE as usize;
        for (size, bad) in [
            (3 * page + 100, vec![1]),
            (3 * page + 100, vec![0]),
            (3 * page + 100, vec![3]),
            (3 * page + 100, vec![0, 2]),
            (4 * page, vec![2]),
            (2 * page, vec![1]),
            (2 * page, vec![]),
        ] {
            let (file, wanted) = file(size, &bad);
            for (at, len) in
                [(0, size), (0, size + 5_000), (100, 2 * page), (page - 1, 2), (page, page), (size - 1, 9), (size, 9)]
            {
                if at + len > size && bad.contains(&((size - 1) / page)) {
                    // Where a page that is given up would have ended nobody knows: the log asks for no more than there is.
                    continue;
                }
                let mut buf = vec![0; len];
                let count = Sectors::at_once().read(&*file, &mut buf, at as u64).expect("readable");
                let end = (at + len).min(size);
                assert!(buf[..count] == wanted[at..end], "{bad:?} of {size} bytes: {len} at {at}");
            }
        }
    }

    #[test]
    fn a_page_is_given_up_once_it_failed_as_often_as_the_reader_is_patient() {
        let (file, wanted) = file(3 * PAGE as usize, &[1]);
        let sectors = Sectors::patient();
        let mut buf = vec![0; wanted.len()];
        for nth in 1..PATIENCE {
            sectors.read(&*file, &mut buf, 0).expect_err("it may pass");
            assert_eq!(sectors.failed.lock().get(&1), Some(&nth));
        }
        assert_eq!(sectors.read(&*file, &mut buf, 0).expect("given up"), wanted.len());
        assert!(buf == wanted);
    }

    #[test]
    fn a_device_that_fails_everywhere_is_waited_for() {
        for (size, bad) in [(3 * PAGE as usize, vec![0, 1, 2]), (100, vec![0])] {
            let (file, _) = file(size, &bad);
            for page in bad.iter().cycle().take(3 * PATIENCE as usize) {
                let at = *page as u64 * PAGE;
                Sectors::at_once().read(&*file, &mut [0; 50], at).expect_err("nothing can be read");
            }
        }
    }

    #[test]
    fn any_other_page_that_can_be_read_shows_that_the_device_is_there() {
        let pages = 7;
        let page = 3;
        // The one page that is well, and whether it is looked at: the first, the neighbours and the last.
        for (well, looked_at) in [(0, true), (1, false), (2, true), (4, true), (5, false), (6, true)] {
            let bad: Vec<usize> = (0..pages).filter(|nth| *nth != well).collect();
            let (file, _) = file(pages * PAGE as usize - 100, &bad);
            let read = Sectors::at_once().read(&*file, &mut [0; 50], page * PAGE);
            assert_eq!(read.is_ok(), looked_at, "page {well} is well");
        }
    }
}
