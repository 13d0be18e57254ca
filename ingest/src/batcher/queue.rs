//! The bodies that wait for a decode thread, and when they have waited enough: those of each partition for themselves, so that a
//! log that hangs holds up no other's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tidegate_pipeline::{Problem, Stage};

use super::{BatcherConfig, Job, settle};
use crate::metrics as names;

/// A group of this many columns in which a column has fewer than so many rows is paid for by the column: bodies that come while the
/// log has it wait and become one group, as each would bring the same columns again.
const WIDE_COLUMNS: usize = 768;
const WIDE_ROWS: usize = 16;

/// The bodies of one partition.
#[derive(Debug, Default)]
struct Lane {
    jobs: VecDeque<Job>,
    /// Of all of them, as they were sent.
    bytes: usize,
    /// Groups that the log has and has not answered for.
    appending: usize,
    /// Whether the last of them was one of very many columns.
    wide: bool,
}

#[derive(Debug, Default)]
struct Jobs {
    lanes: Vec<Lane>,
    /// The lane that is looked at first: none waits for ever behind a busy one.
    next: usize,
    closed: bool,
}

impl Jobs {
    fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.jobs.len()).sum()
    }
}

/// Bodies of one partition that are decoded together.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) partition: usize,
    pub(super) jobs: Vec<Job>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Jobs>,
    more: Condvar,
    stage: Arc<Stage>,
    group_bytes_max: usize,
    group_bytes_eager: usize,
}

/// A group that the log of a partition has; over when dropped.
#[derive(Debug)]
pub(super) struct Appending(Arc<Queue>, usize);

impl Drop for Appending {
    fn drop(&mut self) {
        self.0.appended(self.1);
    }
}

impl Queue {
    pub(super) fn new(config: &BatcherConfig, partitions: usize, stage: Arc<Stage>) -> Self {
        let lanes = (0..partitions).map(|_| Lane::default()).collect();
        Self {
            waiting: Mutex::new(Jobs { lanes, ..Jobs::default() }),
            more: Condvar::new(),
            stage,
            group_bytes_max: config.group_bytes_max,
            group_bytes_eager: config.group_bytes_eager,
        }
    }

    /// Bodies that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Takes no more bodies.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.more.notify_all();
    }

    pub(super) fn put(&self, partition: usize, job: Job) -> Result<(), Problem> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(settle::stopping());
        }
        let lane = &mut waiting.lanes[partition];
        lane.bytes += job.sent.len();
        lane.jobs.push_back(job);
        self.tell(&waiting, partition);
        Ok(())
    }

    /// Says that the log of a partition has a group of so many rows and columns (of all its batches), until the guard is dropped.
    pub(super) fn appending(self: &Arc<Self>, partition: usize, (rows, columns): (usize, usize)) -> Appending {
        let lane = &mut self.waiting.lock().lanes[partition];
        lane.appending += 1;
        lane.wide = columns >= WIDE_COLUMNS && rows < columns.saturating_mul(WIDE_ROWS);
        Appending(self.clone(), partition)
    }

    fn appended(&self, partition: usize) {
        let mut waiting = self.waiting.lock();
        waiting.lanes[partition].appending -= 1;
        self.tell(&waiting, partition);
    }

    fn is_ready(&self, waiting: &Jobs, partition: usize) -> bool {
        let lane = &waiting.lanes[partition];
        let eager = if lane.wide { self.group_bytes_eager.max(self.group_bytes_max) } else { self.group_bytes_eager };
        let enough = lane.appending == 0 || lane.bytes >= eager || waiting.closed;
        enough && !lane.jobs.is_empty()
    }

    fn ready(&self, waiting: &Jobs) -> Option<usize> {
        let lanes = waiting.lanes.len();
        (0..lanes).map(|at| (waiting.next + at) % lanes).find(|at| self.is_ready(waiting, *at))
    }

    /// Wakes a thread if there is a group for it. Bodies that wait for the log are no work that waits for this stage.
    fn tell(&self, waiting: &Jobs, partition: usize) {
        if self.is_ready(waiting, partition) {
            self.stage.waiting(waiting.lanes[partition].jobs.len() as u64, Instant::now());
            self.more.notify_one();
        }
    }

    /// The next bodies of a partition: one, and those behind it up to the group bound. Waits until there are enough. `None` once
    /// closed and empty.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut waiting = self.waiting.lock();
        let partition = loop {
            match self.ready(&waiting) {
                Some(ready) => break ready,
                None if waiting.closed => return None,
                None => self.more.wait(&mut waiting),
            }
        };
        let lane = &mut waiting.lanes[partition];
        let mut jobs = Vec::new();
        let mut bytes = 0;
        while let Some(job) = lane.jobs.front() {
            if !jobs.is_empty() && bytes + job.sent.len() > self.group_bytes_max {
                break;
            }
            bytes += job.sent.len();
            jobs.extend(lane.jobs.pop_front());
        }
        lane.bytes -= bytes;
        waiting.next = (partition + 1) % waiting.lanes.len();
        let now = Instant::now();
        self.stage.progressed(now);
        self.stage.waiting(0, now);
        if let Some(more) = self.ready(&waiting) {
            self.tell(&waiting, more);
        }
        metrics::gauge!(names::QUEUE_BODIES).set(waiting.len() as f64);
        Some(Taken { partition, jobs })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_pipeline::Health;

    use super::super::tests::job;
    use super::*;

    /// Rows and columns of a common group.
    const NARROW: (usize, usize) = (2_000, 30);

    fn queue(eager: usize) -> Arc<Queue> {
        queue_of(1, eager)
    }

    fn queue_of(partitions: usize, eager: usize) -> Arc<Queue> {
        let config = BatcherConfig { group_bytes_max: 8, group_bytes_eager: eager, ..BatcherConfig::default() };
        Arc::new(Queue::new(&config, partitions, Health::default().stage("decode")))
    }

    fn lengths(taken: Option<Taken>) -> Option<Vec<usize>> {
        taken.map(|taken| taken.jobs.iter().map(|job| job.sent.len()).collect())
    }

    #[test]
    fn a_body_does_not_wait_for_others() {
        let queue = queue(100);
        queue.put(0, job("abc")).expect("open");
        assert_eq!(lengths(queue.take()), Some(vec![3]));
        for text in ["abc", "abcd", "ab", "abcdefghij"] {
            queue.put(0, job(text)).expect("open");
        }
        assert_eq!(lengths(queue.take()), Some(vec![3, 4]), "up to the bound of a group");
        assert_eq!(lengths(queue.take()), Some(vec![2]));
        assert_eq!(lengths(queue.take()), Some(vec![10]), "a single one may be larger");
        for text in ["abc", "abcde", "a"] {
            queue.put(0, job(text)).expect("open");
        }
        assert_eq!(lengths(queue.take()), Some(vec![3, 5]), "to the byte");
        assert_eq!(lengths(queue.take()), Some(vec![1]));
        queue.close();
        assert!(queue.take().is_none() && queue.put(0, job("a")).is_err());
    }

    #[test]
    fn while_the_log_is_busy_only_enough_bodies_are_a_group() {
        let queue = queue(6);
        let ready = |queue: &Queue| queue.is_ready(&queue.waiting.lock(), 0);
        let appending = queue.appending(0, NARROW);
        queue.put(0, job("abc")).expect("open");
        assert!(!ready(&queue));
        queue.put(0, job("abc")).expect("open");
        assert!(ready(&queue), "six bytes are enough");
        assert_eq!(lengths(queue.take()), Some(vec![3, 3]));
        queue.put(0, job("abc")).expect("open");
        let second = queue.appending(0, NARROW);
        drop(appending);
        assert!(!ready(&queue), "the log has another group");
        drop(second);
        assert!(ready(&queue));
        let last = queue.appending(0, NARROW);
        queue.close();
        assert_eq!(lengths(queue.take()), Some(vec![3]), "what waits at the end is not forgotten");
        drop(last);
    }

    #[test]
    fn after_a_group_of_very_many_columns_more_bodies_become_one_group() {
        for (group, wide) in [
            (NARROW, false),
            ((1, 20), false),
            ((2_000, WIDE_COLUMNS - 1), false),
            ((2_000, WIDE_COLUMNS), true),
            ((WIDE_COLUMNS * WIDE_ROWS, WIDE_COLUMNS), false),
        ] {
            let queue = queue(6);
            let ready = |queue: &Queue| queue.is_ready(&queue.waiting.lock(), 0);
            let appending = queue.appending(0, group);
            queue.put(0, job("abcdef")).expect("open");
            assert_eq!(ready(&queue), !wide, "{group:?}");
            queue.put(0, job("ab")).expect("open");
            assert!(ready(&queue), "the bound of a group is enough: {group:?}");
            assert_eq!(lengths(queue.take()), Some(vec![6, 2]));
            queue.put(0, job("a")).expect("open");
            drop(appending);
            assert!(ready(&queue), "the log has answered: {group:?}");
        }
    }

    #[test]
    fn a_partition_whose_log_is_busy_holds_up_no_other() {
        let queue = queue_of(3, 100);
        let taken = |queue: &Queue| queue.take().map(|taken| (taken.partition, taken.jobs.len()));
        let _hangs = queue.appending(1, NARROW);
        for (partition, text) in [(1, "a"), (0, "b"), (2, "c"), (1, "d"), (0, "e")] {
            queue.put(partition, job(text)).expect("open");
        }
        assert_eq!([taken(&queue), taken(&queue)], [Some((0, 2)), Some((2, 1))], "those of one partition together");
        queue.put(0, job("f")).expect("open");
        assert_eq!(taken(&queue), Some((0, 1)));
        assert_eq!(queue.len(), 2, "of the one that hangs");
        let (free, also) = (queue.put(0, job("g")), queue.put(2, job("h")));
        free.and(also).expect("open");
        assert_eq!([taken(&queue), taken(&queue)], [Some((2, 1)), Some((0, 1))], "in turns");
        queue.close();
        assert_eq!([taken(&queue), taken(&queue)], [Some((1, 2)), None], "what waits at the end is not forgotten");
    }

    #[test]
    fn a_thread_that_waits_for_the_log_is_woken_by_its_answer() {
        let queue = queue(100);
        let appending = queue.appending(0, NARROW);
        queue.put(0, job("abc")).expect("open");
        let thread = std::thread::spawn({
            let queue = queue.clone();
            move || lengths(queue.take())
        });
        drop(appending);
        assert_eq!(thread.join().expect("no panic"), Some(vec![3]));
    }
}
