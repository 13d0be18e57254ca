//! The bodies that wait for a decode thread, and when they have waited enough.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tidegate_pipeline::{Problem, Stage};

use super::{BatcherConfig, Job, settle};
use crate::metrics as names;

#[derive(Debug, Default)]
struct Jobs {
    jobs: VecDeque<Job>,
    /// Of all of them, as they were sent.
    bytes: usize,
    /// Groups that the log has and has not answered for.
    appending: usize,
    closed: bool,
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

/// A group that the log has; over when dropped.
#[derive(Debug)]
pub(super) struct Appending(Arc<Queue>);

impl Drop for Appending {
    fn drop(&mut self) {
        self.0.appended();
    }
}

impl Queue {
    pub(super) fn new(config: &BatcherConfig, stage: Arc<Stage>) -> Self {
        Self {
            waiting: Mutex::default(),
            more: Condvar::new(),
            stage,
            group_bytes_max: config.group_bytes_max,
            group_bytes_eager: config.group_bytes_eager,
        }
    }

    /// Bodies that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.lock().jobs.len()
    }

    /// Takes no more bodies.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.more.notify_all();
    }

    pub(super) fn put(&self, job: Job) -> Result<(), Problem> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(settle::stopping());
        }
        waiting.bytes += job.sent.len();
        waiting.jobs.push_back(job);
        self.tell(&waiting);
        Ok(())
    }

    /// Says that the log has a group, until the guard is dropped.
    pub(super) fn appending(self: &Arc<Self>) -> Appending {
        self.waiting.lock().appending += 1;
        Appending(self.clone())
    }

    fn appended(&self) {
        let mut waiting = self.waiting.lock();
        waiting.appending -= 1;
        self.tell(&waiting);
    }

    fn is_ready(&self, waiting: &Jobs) -> bool {
        let enough = waiting.appending == 0 || waiting.bytes >= self.group_bytes_eager || waiting.closed;
        enough && !waiting.jobs.is_empty()
    }

    /// Wakes a thread if there is a group for it. Bodies that wait for the log are no work that waits for this stage.
    fn tell(&self, waiting: &Jobs) {
        if self.is_ready(waiting) {
            self.stage.waiting(waiting.jobs.len() as u64, Instant::now());
            self.more.notify_one();
        }
    }

    /// The next bodies: one, and those behind it up to the group bound. Waits until there are enough. `None` once closed and empty.
    pub(super) fn take(&self) -> Option<Vec<Job>> {
        let mut waiting = self.waiting.lock();
        while !self.is_ready(&waiting) {
            if waiting.closed {
                return None;
            }
            self.more.wait(&mut waiting);
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(job) = waiting.jobs.front() {
            if !taken.is_empty() && bytes + job.sent.len() > self.group_bytes_max {
                break;
            }
            bytes += job.sent.len();
            taken.extend(waiting.jobs.pop_front());
        }
        waiting.bytes -= bytes;
        let now = Instant::now();
        self.stage.progressed(now);
        self.stage.waiting(0, now);
        self.tell(&waiting);
        metrics::gauge!(names::QUEUE_BODIES).set(waiting.jobs.len() as f64);
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_pipeline::Health;

    use super::super::tests::job;
    use super::*;

    fn queue(eager: usize) -> Arc<Queue> {
        let config = BatcherConfig { group_bytes_max: 8, group_bytes_eager: eager, ..BatcherConfig::default() };
        Arc::new(Queue::new(&config, Health::default().stage("decode")))
    }

    fn lengths(jobs: Option<Vec<Job>>) -> Option<Vec<usize>> {
        jobs.map(|jobs| jobs.iter().map(|job| job.sent.len()).collect())
    }

    #[test]
    fn a_body_does_not_wait_for_others() {
        let queue = queue(100);
        queue.put(job("abc")).expect("open");
        assert_eq!(lengths(queue.take()), Some(vec![3]));
        for text in ["abc", "abcd", "ab", "abcdefghij"] {
            queue.put(job(text)).expect("open");
        }
        assert_eq!(lengths(queue.take()), Some(vec![3, 4]), "up to the bound of a group");
        assert_eq!(lengths(queue.take()), Some(vec![2]));
        assert_eq!(lengths(queue.take()), Some(vec![10]), "a single one may be larger");
        queue.close();
        assert!(queue.take().is_none() && queue.put(job("a")).is_err());
    }

    #[test]
    fn while_the_log_is_busy_only_enough_bodies_are_a_group() {
        let queue = queue(6);
        let ready = |queue: &Queue| queue.is_ready(&queue.waiting.lock());
        let appending = queue.appending();
        queue.put(job("abc")).expect("open");
        assert!(!ready(&queue));
        queue.put(job("abc")).expect("open");
        assert!(ready(&queue), "six bytes are enough");
        assert_eq!(lengths(queue.take()), Some(vec![3, 3]));
        queue.put(job("abc")).expect("open");
        let second = queue.appending();
        drop(appending);
        assert!(!ready(&queue), "the log has another group");
        drop(second);
        assert!(ready(&queue));
        let last = queue.appending();
        queue.close();
        assert_eq!(lengths(queue.take()), Some(vec![3]), "what waits at the end is not forgotten");
        drop(last);
    }

    #[test]
    fn a_thread_that_waits_for_the_log_is_woken_by_its_answer() {
        let queue = queue(100);
        let appending = queue.appending();
        queue.put(job("abc")).expect("open");
        let thread = std::thread::spawn({
            let queue = queue.clone();
            move || lengths(queue.take())
        });
        drop(appending);
        assert_eq!(thread.join().expect("no panic"), Some(vec![3]));
    }
}
