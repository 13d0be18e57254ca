//! Checkpoints of who holds a lease: with the rows, alone, late, and where they cannot be written.

use std::ops::Range;
use std::sync::Arc;

use tidegate_pipeline::{Append, Delivery, LogReader, Offset, Sink, SinkError, StreamLog, log::MemoryLog};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{LeasedCheckpoint, Leases, TimescaleConfig, TimescaleSink, TimescaleStore};

use crate::contract::rows::events;
use crate::postgres::{ORIGIN, Schema};
use crate::timescale_leases::{leases, taken};

#[test]
fn a_checkpoint_that_comes_late_replaces_none_that_is_further_or_of_a_later_lease() {
    let schema = Schema::new();
    schema.block_on(async {
        let mut leases = leases(&schema.config, "first");
        let lease = taken(&mut leases).await;
        let place = leases.checkpoints(lease);
        place.save(10, b"ten").await.expect("kept");
        place.save(5, b"five, late").await.expect("its lease is held");
        assert_eq!(place.load().await.expect("read").as_deref(), Some(&b"ten"[..]));
        place.save(10, b"ten again").await.expect("kept");
        place.save(12, b"twelve").await.expect("kept");
        place.replace(3, b"back to three").await.expect("kept");
        assert_eq!(place.load().await.expect("read").as_deref(), Some(&b"back to three"[..]));
        leases.release(lease).await.expect("released");
        let later = taken(&mut leases).await;
        assert!(later.epoch > lease.epoch);
        // Who goes on where the other was may be at a smaller offset.
        leases.checkpoints(later).save(2, b"two").await.expect("kept");
        let told = place.save(20, b"twenty, of a lease that is lost").await.expect_err("refused").to_string();
        assert!(told.contains("was taken by another worker"), "{told}");
        place.replace(20, b"the same").await.expect_err("refused");
        assert_eq!(place.load().await.expect("read").as_deref(), Some(&b"two"[..]));
    });
}

/// A worker with a lease, whose sink takes checkpoints along.
struct Worker {
    leases: Leases,
    place: LeasedCheckpoint,
    sink: TimescaleSink,
    log: Arc<MemoryLog>,
}

impl Worker {
    async fn start(config: &TimescaleConfig) -> Self {
        let config = TimescaleConfig { connections: 1, ..config.clone() };
        let mut leases = leases(&config, "first");
        let lease = taken(&mut leases).await;
        let place = leases.checkpoints(lease);
        let mut sink = TimescaleStore::open_leased(config, ORIGIN, lease).expect("a store").sink(LogSource::Ingest, 0);
        sink.take_along(place.clone());
        Self { leases, place, sink, log: Arc::new(MemoryLog::new(64, 1 << 20)) }
    }

    /// Delivers rows with these ids, and commits.
    async fn deliver(&mut self, ids: &[&str]) -> Result<(), SinkError> {
        let append = Append { batches: vec![events("acme", ids)], ..Append::default() };
        let appended = self.log.append(append).await.expect("an answer").expect("stored");
        let Some(Range { start, end }) = appended.offsets.into_iter().next() else { return Ok(()) };
        self.hand_over(start, end).await
    }

    async fn hand_over(&mut self, from: Offset, to: Offset) -> Result<(), SinkError> {
        let batches = self.log.read(from, usize::MAX).expect("batches");
        self.sink.write(Delivery { batches, next_offset: to }).await?;
        self.sink.flush().await
    }

    async fn body(&self) -> String {
        let body = self.place.load().await.expect("read").unwrap_or_default();
        String::from_utf8(body).expect("text")
    }
}

/// Which transaction wrote the newest event, the cursor, and the checkpoint.
fn transactions(schema: &Schema) -> [String; 3] {
    [
        "SELECT xmin FROM security_events ORDER BY log_offset DESC LIMIT 1",
        "SELECT xmin FROM cursors WHERE next_offset > 0",
        "SELECT xmin FROM checkpoints",
    ]
    .map(|query| schema.one(query))
}

#[test]
fn a_checkpoint_is_committed_with_the_rows_and_the_cursor() {
    let schema = Schema::new();
    schema.block_on(async {
        let mut worker = Worker::start(&schema.config).await;
        worker.deliver(&["a"]).await.expect("committed");
        assert_eq!(worker.body().await, "", "none was left");
        worker.place.leave(1, b"one".to_vec());
        worker.place.leave(2, b"two".to_vec());
        assert!(worker.place.left_since().is_some());
        worker.deliver(&["b", "c"]).await.expect("committed");
        assert_eq!((worker.body().await.as_str(), worker.place.left_since()), ("two", None), "the newest");
    });
    let [event, cursor, checkpoint] = transactions(&schema);
    assert!(event == checkpoint && cursor == checkpoint, "{event}, {cursor}, {checkpoint}: one transaction");
}

#[test]
fn a_checkpoint_whose_transaction_failed_goes_with_the_next_and_never_back() {
    let schema = Schema::new();
    schema.block_on(async {
        let mut worker = Worker::start(&schema.config).await;
        worker.deliver(&["a"]).await.expect("committed");
        let check = "ALTER TABLE security_events ADD CONSTRAINT good CHECK (event_id <> 'bad')";
        schema.query(check);
        worker.place.leave(1, b"one".to_vec());
        let refused = worker.deliver(&["bad"]).await;
        assert!(matches!(&refused, Err(SinkError::Withdrawn(_))), "{refused:?}");
        assert_eq!(worker.body().await, "", "nothing of that transaction");
        assert!(worker.place.left_since().is_some(), "it is left again");
        schema.query("ALTER TABLE security_events DROP CONSTRAINT good");
        worker.deliver(&["b"]).await.expect("committed");
        assert_eq!((worker.body().await.as_str(), worker.place.left_since()), ("one", None));
        worker.place.leave(7, b"seven".to_vec());
        worker.place.write_left().await.expect("alone");
        worker.place.leave(3, b"three, from before".to_vec());
        worker.deliver(&["c"]).await.expect("committed");
        assert_eq!((worker.body().await.as_str(), worker.place.left_since()), ("seven", None));
        worker.place.write_left().await.expect("nothing to do");
    });
    let [event, _, checkpoint] = transactions(&schema);
    assert_ne!(event, checkpoint);
}

#[test]
fn rows_do_not_wait_for_a_checkpoint_that_cannot_be_written() {
    let schema = Schema::new();
    schema.block_on(async {
        let mut worker = Worker::start(&schema.config).await;
        worker.deliver(&["a"]).await.expect("committed");
        schema.query("ALTER TABLE checkpoints ADD CONSTRAINT short CHECK (length(body) < 10)");
        worker.place.leave(1, b"more than ten bytes".to_vec());
        let failed = worker.deliver(&["b"]).await;
        assert!(matches!(&failed, Err(SinkError::Retryable(_))), "no row is blamed: {failed:?}");
        worker.sink.flush().await.expect("without it");
        let told = worker.place.write_left().await.expect_err("refused").to_string();
        assert!(told.contains("write the checkpoint") && told.contains("short"), "{told}");
        schema.query("ALTER TABLE checkpoints DROP CONSTRAINT short");
        worker.place.write_left().await.expect("kept");
        assert_eq!(worker.body().await, "more than ten bytes");
        // A large one takes its own way from the beginning.
        worker.place.leave(2, vec![b'x'; (8 << 20) + 1]);
        worker.deliver(&["c"]).await.expect("committed");
        assert!(worker.place.left_since().is_some());
        worker.place.write_left().await.expect("kept");
        assert_eq!(worker.body().await.len(), (8 << 20) + 1);
    });
    assert_eq!(schema.ids(), ["a", "b", "c"]);
}

#[test]
fn nothing_is_left_behind_by_who_lost_the_lease() {
    let schema = Schema::new();
    schema.block_on(async {
        let mut worker = Worker::start(&schema.config).await;
        let lease = worker.leases.renew().await.expect("held")[0];
        worker.leases.release(lease).await.expect("released");
        let later = taken(&mut worker.leases).await;
        worker.leases.checkpoints(later).save(2, b"later").await.expect("kept");
        worker.place.leave(9, b"late".to_vec());
        let failed = worker.deliver(&["a"]).await;
        assert!(matches!(&failed, Err(SinkError::Retryable(_))), "{failed:?}");
        let told = worker.place.write_left().await.expect_err("refused").to_string();
        assert!(told.contains("was taken by another worker"), "{told}");
        assert_eq!(worker.body().await, "later");
    });
    assert_eq!(schema.one("SELECT count(*) FROM security_events"), "0");
}
