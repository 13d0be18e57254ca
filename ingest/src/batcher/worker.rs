//! A decode thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::Array;
use tidegate_pipeline::{Ack, Append, Appended, EventBatch, Problem};
use tokio::runtime::Handle;

use super::answering::{DETAIL_BYTES, charge, fail, too_large, waiting};
use super::inflating::inflated;
use super::partitions::Partitions;
use super::queue::{Queue, Taken};
use super::settle::Group;
use super::{BatcherConfig, Job};
use crate::decode::{Body, BodyResult, Decoded, Decoder, Room};
use crate::error::IngestError;
use crate::metrics as names;

/// What a decode thread needs of a decoder: [`Decoder`], and one that fails on demand in the tests.
pub(super) trait Decode {
    fn push(&mut self, body: Body, room: Room<'_>) -> BodyResult;
    fn flush(&mut self) -> Result<Decoded, IngestError>;
    fn buffered_bytes(&self) -> usize;
    fn buffered_rows(&self) -> usize;
}

impl Decode for Decoder {
    fn push(&mut self, body: Body, room: Room<'_>) -> BodyResult {
        self.push_within(body, room)
    }

    fn flush(&mut self) -> Result<Decoded, IngestError> {
        self.flush()
    }

    fn buffered_bytes(&self) -> usize {
        self.buffered_bytes()
    }

    fn buffered_rows(&self) -> usize {
        self.buffered_rows()
    }
}

pub(super) struct Worker<D> {
    new_decoder: Box<dyn Fn() -> D + Send>,
    decoder: D,
    inflated_bytes: u64,
    inflated_bytes_max: usize,
    group_bytes_max: usize,
    group_rows_max: usize,
    /// Of one batch of rows.
    batch_bytes_max: usize,
    partitions: Partitions,
    /// Of the bodies at hand.
    partition: usize,
    queue: Arc<Queue>,
    runtime: Handle,
}

/// A body whose rows are in the decoder.
struct Member {
    job: Job,
    result: BodyResult,
    /// Bytes of the body's share of the budget that its rows and its answer take.
    made: usize,
}

impl<D: Decode> Worker<D> {
    pub(super) fn new(
        new_decoder: Box<dyn Fn() -> D + Send>,
        config: &BatcherConfig,
        (partitions, queue): (Partitions, Arc<Queue>),
        runtime: Handle,
    ) -> Self {
        Self {
            decoder: new_decoder(),
            new_decoder,
            inflated_bytes: 0,
            inflated_bytes_max: config.inflated_bytes_max,
            group_bytes_max: config.group_bytes_max,
            group_rows_max: config.group_rows_max,
            batch_bytes_max: BATCH_BYTES_MAX,
            partitions,
            partition: 0,
            queue,
            runtime,
        }
    }

    /// Works until the queue is closed and empty, whatever panics. The requests of the bodies in hand are answered by their
    /// replies being dropped; each is then told 503, as what the log has of them is not known.
    pub(super) fn run(mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            metrics::counter!(names::DECODE_PANICS_TOTAL).increment(1);
            tracing::error!(
                "a decode thread panicked; the bodies that it held are not answered as stored, and it goes on"
            );
            self.decoder = (self.new_decoder)();
            self.inflated_bytes = 0;
        }
    }

    fn work(&mut self) {
        while let Some(Taken { partition, jobs }) = self.queue.take() {
            self.partition = partition;
            // Bodies whose client has gone are not worth the work: nobody would learn that they were stored.
            let (disk, memory): (Vec<Job>, Vec<Job>) =
                jobs.into_iter().filter(|job| !job.reply.is_closed()).partition(|job| job.ack == Ack::Disk);
            self.decode(disk, Ack::Disk);
            self.decode(memory, Ack::Memory);
        }
    }

    /// Decodes bodies of one ack level together and appends them.
    fn decode(&mut self, jobs: Vec<Job>, ack: Ack) {
        let mut group = Vec::new();
        let mut started = Instant::now();
        for mut job in jobs {
            match self.push(&mut job) {
                Push::Pushed(result, made) => group.push(Member { job, result, made }),
                Push::Refused(problem) => {
                    let _ = job.reply.send(Err(problem));
                }
                Push::Panicked => {
                    self.decoder = (self.new_decoder)();
                    let jobs = group.drain(..).map(|member: Member| member.job).chain([job]).collect();
                    self.one_by_one(jobs, ack);
                }
            }
            let full = self.decoder.buffered_bytes() >= self.group_bytes_max
                || self.decoder.buffered_rows() >= self.group_rows_max;
            if full {
                self.flush(std::mem::take(&mut group), ack, started);
                started = Instant::now();
            }
        }
        if !group.is_empty() {
            self.flush(group, ack, started);
        }
    }

    /// Decodes bodies, one of which made the decoder fail, each by itself.
    fn one_by_one(&mut self, jobs: Vec<Job>, ack: Ack) {
        for mut job in jobs {
            let started = Instant::now();
            match self.push(&mut job) {
                Push::Pushed(result, made) => self.flush(vec![Member { job, result, made }], ack, started),
                Push::Refused(problem) => {
                    let _ = job.reply.send(Err(problem));
                }
                Push::Panicked => {
                    self.decoder = (self.new_decoder)();
                    fail(job);
                }
            }
        }
    }

    /// Inflates a body and gives it to the decoder.
    fn push(&mut self, job: &mut Job) -> Push {
        job.sent.begin_again();
        let bytes = match inflated(job, self.inflated_bytes_max) {
            Ok(bytes) => bytes,
            Err(problem) => return Push::Refused(problem),
        };
        self.inflated_bytes += bytes.len() as u64;
        let body = Body {
            org_id: job.org_id.clone(),
            dataset: job.dataset,
            source: job.source.clone(),
            format: job.format,
            bytes,
            received_us: job.received_us,
            idempotency_key: job.idempotency_key.clone(),
            request_id: job.request_id.clone(),
        };
        let mut made = 0;
        let held = &mut job.sent.held;
        let mut grant = |bytes: usize| {
            charge(held, bytes)?;
            made += bytes;
            Ok(())
        };
        let room = Room { grant: &mut grant, item_bytes: if job.detail { DETAIL_BYTES } else { 0 } };
        match catch_unwind(AssertUnwindSafe(|| self.decoder.push(body, room))) {
            Ok(result) => Push::Pushed(result, made),
            Err(_) => {
                metrics::counter!(names::DECODE_PANICS_TOTAL).increment(1);
                Push::Panicked
            }
        }
    }

    /// Appends what the decoder holds, which is the rows of `members`.
    fn flush(&mut self, members: Vec<Member>, ack: Ack, started: Instant) {
        let decoded = catch_unwind(AssertUnwindSafe(|| self.decoder.flush()));
        let failed = match decoded {
            Ok(Ok(decoded)) if decoded.batches.iter().any(|batch| takes_more(batch, self.batch_bytes_max)) => {
                return self.apart(members, ack, too_large);
            }
            Ok(Ok(decoded)) => return self.append(members, decoded, ack, started),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                metrics::counter!(names::DECODE_PANICS_TOTAL).increment(1);
                "the decoder panicked".to_owned()
            }
        };
        tracing::error!(error = failed, bodies = members.len(), "a group of bodies could not be decoded");
        self.decoder = (self.new_decoder)();
        self.apart(members, ack, fail);
    }

    /// Decodes the bodies of a group that cannot be appended each by itself; an only one is given up.
    fn apart(&mut self, members: Vec<Member>, ack: Ack, give_up: fn(Job)) {
        let mut jobs: Vec<Job> = members.into_iter().map(|member| member.job).collect();
        match jobs.pop() {
            Some(only) if jobs.is_empty() => give_up(only),
            last => {
                jobs.extend(last);
                self.one_by_one(jobs, ack);
            }
        }
    }

    fn append(&mut self, members: Vec<Member>, decoded: Decoded, ack: Ack, started: Instant) {
        let mut sent_bytes = 0;
        let bodies = members.len();
        let requests = request_ids(&members);
        let waiting = members
            .into_iter()
            .map(|Member { job, result, made }| {
                sent_bytes += job.sent.len();
                waiting(job, result, made)
            })
            .collect();
        let Decoded { batches, rows } = decoded;
        let group = Group::new(waiting, &batches, rows);
        let group_rows: usize = batches.iter().map(|batch| batch.rows.num_rows()).sum();
        if batches.is_empty() {
            group.settle(Ok(Appended::default()));
        } else {
            let appended_at = Instant::now();
            let columns = batches.iter().map(|batch| batch.rows.num_columns()).sum();
            let appending = self.queue.appending(self.partition, (group_rows, columns));
            let reply = self.partitions.log(self.partition).append(Append { batches, ack });
            self.runtime.spawn(async move {
                let appended = reply.await.unwrap_or(Err(tidegate_pipeline::AppendError::Closed));
                drop(appending);
                follow(requests.as_deref(), &appended);
                metrics::histogram!(names::ACK_SECONDS).record(appended_at.elapsed());
                group.settle(appended);
            });
        }
        metrics::counter!(names::BODIES_TOTAL).increment(bodies as u64);
        metrics::counter!(names::BODY_BYTES_TOTAL).increment(sent_bytes as u64);
        metrics::counter!(names::INFLATED_BYTES_TOTAL).increment(std::mem::take(&mut self.inflated_bytes));
        metrics::histogram!(names::GROUP_ROWS).record(group_rows as f64);
        metrics::histogram!(names::DECODE_SECONDS).record(started.elapsed());
    }
}

/// A frame of the log has at most 1 GiB; its metadata and the padding of its buffers are part of that. A group with a batch
/// that has more would be refused as a whole, those of other tenants too.
const BATCH_BYTES_MAX: usize = (1 << 30) - (64 << 20);

fn takes_more(batch: &EventBatch, bytes_max: usize) -> bool {
    let keys = size_of_val(batch.keys.as_slice());
    // What the buffers have room for is quickly known, and more than what is in them.
    batch.rows.get_array_memory_size().saturating_add(keys) > bytes_max
        && batch.rows.columns().iter().fold(keys, |sum, column| {
            sum.saturating_add(column.to_data().get_slice_memory_size().unwrap_or(usize::MAX))
        }) > bytes_max
}

/// The ids of the requests of a group, where somebody reads them: with the offsets of their rows an event's way through the
/// log, the checkpoints and the store can be followed.
fn request_ids(members: &[Member]) -> Option<String> {
    let ids = || members.iter().map(|member| &*member.job.request_id).collect::<Vec<_>>().join(" ");
    tracing::enabled!(tracing::Level::DEBUG).then(ids)
}

fn follow(requests: Option<&str>, appended: &Result<Appended, tidegate_pipeline::AppendError>) {
    let Some(requests) = requests else { return };
    match appended {
        Ok(Appended { offsets, duplicates, .. }) => {
            tracing::debug!(requests, ?offsets, duplicates = duplicates.len(), "batch in the log");
        }
        Err(error) => tracing::debug!(requests, %error, "batch not in the log"),
    }
}

enum Push {
    /// And how many bytes were taken for what was made of it.
    Pushed(BodyResult, usize),
    Refused(Problem),
    Panicked,
}

#[cfg(test)]
mod tests {
    use arrow::array::{RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use tidegate_events::Dataset;
    use tidegate_pipeline::log::MemoryLog;
    use tidegate_pipeline::{LogReader, PipelineError, StreamLog};

    use super::*;
    use crate::batcher::tests::{Answer, job_with_answer};
    use crate::decode::RowRef;

    /// Makes a row of each body; panics at the push of `panic`, at a flush with `late` in it, and fails one with `full`.
    #[derive(Default)]
    struct Fragile {
        bodies: Vec<String>,
    }

    impl Decode for Fragile {
        fn push(&mut self, body: Body, _: Room<'_>) -> BodyResult {
            let text = String::from_utf8(body.bytes).expect("text");
            assert!(text != "panic", "on purpose");
            self.bodies.push(text);
            BodyResult { items: 1, ..BodyResult::default() }
        }

        fn flush(&mut self) -> Result<Decoded, IngestError> {
            assert!(!self.bodies.iter().any(|body| body == "late"), "on purpose");
            if self.bodies.iter().any(|body| body == "full") {
                return Err(IngestError::ColumnFull("a".into()));
            }
            let ids: StringArray = std::mem::take(&mut self.bodies).into_iter().map(Some).collect();
            let rows = (0..).take(arrow::array::Array::len(&ids)).map(|body| RowRef { body, item: 0 }).collect();
            let schema = Schema::new(vec![Field::new("event_id", DataType::Utf8, true)]);
            let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(ids)])?;
            let batch = EventBatch { dataset: Dataset::SecurityEvents, rows: batch, keys: Vec::new() };
            Ok(Decoded { batches: vec![batch], rows: vec![rows] })
        }

        fn buffered_bytes(&self) -> usize {
            self.bodies.iter().map(String::len).sum()
        }

        fn buffered_rows(&self) -> usize {
            self.bodies.len()
        }
    }

    fn queue(config: &BatcherConfig) -> Arc<Queue> {
        Arc::new(Queue::new(config, 1, tidegate_pipeline::Health::default().stage("decode")))
    }

    async fn decode(texts: &[&str], config: BatcherConfig) -> (Vec<Result<String, &'static str>>, Arc<MemoryLog>) {
        let log = Arc::new(MemoryLog::new(16, 1 << 20));
        let mut worker = Worker::new(
            Box::new(Fragile::default),
            &config,
            (Partitions::one(log.clone()), queue(&config)),
            Handle::current(),
        );
        let (jobs, answers): (Vec<Job>, Vec<Answer>) =
            texts.iter().map(|text| job_with_answer(text, Ack::Disk)).unzip();
        worker.decode(jobs, Ack::Disk);
        let mut results = Vec::new();
        for answer in answers {
            let answer = answer.await.expect("an answer");
            results.push(answer.map(|settled| settled.stored[0].event_id.clone()).map_err(|problem| problem.code));
        }
        (results, log)
    }

    #[tokio::test]
    async fn a_body_that_breaks_the_decoder_fails_alone() {
        for poison in ["panic", "late", "full"] {
            for at in 0..4 {
                let mut texts = vec!["a", "b", "c"];
                texts.insert(at, poison);
                let (results, log) = decode(&texts, BatcherConfig::default()).await;
                for (text, result) in texts.iter().zip(results) {
                    let expected = if *text == poison { Err("decode_failed") } else { Ok((*text).to_owned()) };
                    assert_eq!(result, expected, "{poison} at {at}");
                }
                assert_eq!(log.bounds().next, 3, "each neighbour is stored once");
            }
        }
    }

    #[tokio::test]
    async fn groups_end_at_their_bounds() {
        let texts = ["a", "b", "c", "d", "e"];
        for (config, appends) in [
            (BatcherConfig::default(), 1),
            (BatcherConfig { group_rows_max: 2, ..BatcherConfig::default() }, 3),
            (BatcherConfig { group_bytes_max: 3, ..BatcherConfig::default() }, 2),
        ] {
            let (results, log) = decode(&texts, config).await;
            assert_eq!(results, texts.map(|text| Ok(text.to_owned())));
            assert_eq!(log.read(0, usize::MAX).expect("readable").len(), appends);
        }
    }

    #[tokio::test]
    async fn a_body_too_large_for_the_log_costs_its_neighbours_nothing() {
        for at in 0..3 {
            let mut texts = vec!["a".to_owned(), "b".to_owned()];
            texts.insert(at, "x".repeat(10_000));
            let log = Arc::new(MemoryLog::new(16, 1 << 20));
            let config = BatcherConfig::default();
            let parts = (Partitions::one(log.clone()), queue(&config));
            let mut worker = Worker::new(Box::new(Fragile::default), &config, parts, Handle::current());
            worker.batch_bytes_max = 5_000;
            let (jobs, answers): (Vec<Job>, Vec<Answer>) =
                texts.iter().map(|text| job_with_answer(text, Ack::Disk)).unzip();
            worker.decode(jobs, Ack::Disk);
            for (text, answer) in texts.iter().zip(answers) {
                match answer.await.expect("an answer") {
                    Ok(settled) => assert_eq!(settled.stored[0].event_id, *text),
                    Err(problem) => {
                        assert_eq!((problem.status, problem.code, text.len()), (413, "body_too_large", 10_000));
                    }
                }
            }
            assert_eq!(log.bounds().next, 2, "each neighbour is stored once");
        }
    }

    #[test]
    fn what_a_batch_takes_is_what_is_in_it_and_not_what_it_keeps_alive() {
        let ids: StringArray = (0..100).map(|_| Some("x".repeat(100))).collect();
        let schema = Schema::new(vec![Field::new("event_id", DataType::Utf8, true)]);
        let rows = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(ids)]).expect("a batch");
        for (count, keys) in [(100, 0), (1, 0), (1, 100)] {
            let rows = rows.slice(0, count);
            let text = rows.column(0).to_data().get_slice_memory_size().expect("a size");
            assert!((100 * count..=108 * count).contains(&text), "{text}");
            let batch = EventBatch { dataset: Dataset::SecurityEvents, rows, keys: vec![1; keys] };
            let takes = text + 16 * keys;
            assert!(takes_more(&batch, takes - 1) && !takes_more(&batch, takes), "{count} rows and {keys} keys");
        }
    }

    /// Panics at its first append.
    struct PanicsOnce(MemoryLog, std::sync::atomic::AtomicBool);

    impl LogReader for PanicsOnce {
        fn read(&self, from: u64, bytes_max: usize) -> Result<Vec<Arc<tidegate_pipeline::LogBatch>>, PipelineError> {
            self.0.read(from, bytes_max)
        }

        fn watch(&self) -> tokio::sync::watch::Receiver<tidegate_pipeline::LogBounds> {
            self.0.watch()
        }
    }

    impl StreamLog for PanicsOnce {
        fn append(&self, append: Append) -> tidegate_pipeline::AppendReply {
            assert!(self.1.swap(true, std::sync::atomic::Ordering::Relaxed), "on purpose");
            self.0.append(append)
        }

        fn forget(&self, below: u64) -> Result<(), PipelineError> {
            self.0.forget(below)
        }
    }

    #[tokio::test]
    async fn a_thread_outlives_a_panic_anywhere_and_no_request_waits_for_good() {
        let log = Arc::new(PanicsOnce(MemoryLog::new(16, 1 << 20), false.into()));
        let config = BatcherConfig { group_bytes_max: 1, ..BatcherConfig::default() };
        let queue = queue(&config);
        let worker =
            Worker::new(Box::new(Fragile::default), &config, (Partitions::one(log), queue.clone()), Handle::current());
        let mut answers = Vec::new();
        for text in ["a", "b"] {
            let (job, answer) = job_with_answer(text, Ack::Disk);
            queue.put(0, job).expect("queued");
            answers.push(answer);
        }
        queue.close();
        tokio::task::spawn_blocking(move || worker.run()).await.expect("the thread ends by itself");
        let (first, second) = (answers.remove(0).await, answers.remove(0).await);
        assert!(first.is_err(), "dropped, which the door answers with 503: {first:?}");
        assert_eq!(second.expect("an answer").expect("stored").stored[0].event_id, "b");
    }

    #[tokio::test]
    async fn bodies_and_their_bytes_are_counted() {
        let config = BatcherConfig { group_rows_max: 2, ..BatcherConfig::default() };
        let log = Arc::new(MemoryLog::new(16, 1 << 20));
        let mut worker =
            Worker::new(Box::new(Fragile::default), &config, (Partitions::one(log), queue(&config)), Handle::current());
        let (jobs, answers): (Vec<Job>, Vec<Answer>) =
            ["a", "bb", "ccc", "panic"].iter().map(|text| job_with_answer(text, Ack::Disk)).unzip();
        let counters =
            [names::BODIES_TOTAL, names::BODY_BYTES_TOTAL, names::INFLATED_BYTES_TOTAL, names::DECODE_PANICS_TOTAL];
        let raised = names::counted::during(counters, || worker.decode(jobs, Ack::Disk));
        // Of the one that panicked no row was made, but its bytes were inflated, twice.
        assert_eq!((raised[0], raised[1], raised[3]), (3, 6, 2));
        assert!(raised[2] >= 6, "{raised:?}");
        drop(answers);
    }

    #[test]
    fn a_group_is_measured_in_the_bytes_and_rows_of_its_bodies() {
        let mappings = Arc::new(crate::mapping::Mappings::builtin().expect("mappings"));
        let mut decoder = Decoder::new(mappings, crate::decode::DecodeConfig::default(), 1);
        let mut bytes = 0;
        for (text, rows) in [("{\"a\":1}\noops\n{\"a\":2}\n", 3), ("oops\n", 4), ("{\"a\":3}", 5)] {
            let body = Body {
                org_id: "acme".into(),
                dataset: Dataset::SecurityEvents,
                source: None,
                format: crate::decode::BodyFormat::Json,
                bytes: text.into(),
                received_us: 0,
                idempotency_key: None,
                request_id: "r".into(),
            };
            Decode::push(&mut decoder, body, Room { grant: &mut |_| Ok(()), item_bytes: 0 });
            bytes += text.len();
            let measured = (Decode::buffered_bytes(&decoder), Decode::buffered_rows(&decoder));
            assert_eq!(measured, (bytes, rows), "dead letters are rows too: {text}");
        }
        Decode::flush(&mut decoder).expect("rows");
        assert_eq!((Decode::buffered_bytes(&decoder), Decode::buffered_rows(&decoder)), (0, 0));
    }
}
