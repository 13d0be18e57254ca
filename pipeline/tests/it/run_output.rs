//! The output log with several writers, some of whom go away in the middle: alerts carry their offsets as `seq`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_events::{Dataset, dedup_key};
use tidegate_pipeline::fs::{Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::output::AlertGroup;
use tidegate_pipeline::{DeadLetter, EventBatch, LogReader, OutputLog, dead_letter_batch};

use crate::scripted::{alert, print_rows};

fn letters(writer: usize, turn: usize) -> EventBatch {
    let letter = |nth: usize| DeadLetter {
        org_id: "acme".into(),
        source: "test".into(),
        dataset: Dataset::SecurityEvents,
        stage: "delivery:test".into(),
        code: "refused_by_sink".into(),
        reason: "refused".into(),
        request_id: None,
        item_index: None,
        payload: b"{}".to_vec(),
        time_us: 1,
        received_us: 1,
        // Every second one is there already.
        event_id: format!("{writer}:{}", (turn + nth) / 2),
    };
    let letters: Vec<DeadLetter> = (0..3).map(letter).collect();
    let keys = letters.iter().map(|letter| dedup_key("acme", Dataset::DeadLetters as u8, &letter.event_id)).collect();
    EventBatch { dataset: Dataset::DeadLetters, rows: dead_letter_batch(&letters, 100).expect("a batch"), keys }
}

async fn write(output: Arc<OutputLog>, writer: usize) {
    for turn in 0..25 {
        let alerts = (0..turn % 4 + 1).map(|nth| alert("r", &format!("{writer} {turn} {nth}"), 1)).collect();
        let groups = [AlertGroup { alerts, received_us: 1 }];
        // The wait is over before, during or after the sync of the disk.
        let patience = Duration::from_millis((turn as u64 * 7 + writer as u64) % 5);
        tokio::time::timeout(patience, output.append_alerts(&groups, 2)).await.ok();
        tokio::time::timeout(patience, output.append_batch(letters(writer, turn))).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_carry_their_offsets_whoever_else_writes_and_whatever_fails() {
    let fs = SimFs::new();
    fs.set_sync_delay(Duration::from_millis(1));
    for nth in [5, 11, 12, 30] {
        fs.fail(Fault::eio(SimOp::SyncData, nth));
        fs.fail(Fault::eio(SimOp::Write, nth * 2));
    }
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let config = LogConfig { free_bytes_min: 0, ..LogConfig::default() };
    let (log, _) = SegmentLog::open(shared, Path::new("/data/output"), config).expect("a log");
    let log = Arc::new(log);
    let output = Arc::new(OutputLog::new(log.clone()));
    let writers: Vec<_> = (0..4).map(|writer| tokio::spawn(write(output.clone(), writer))).collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
    assert!(fs.failed() > 0, "no call failed");
    // Where writers gave up early, some are still to come.
    fs.heal();
    let groups = [AlertGroup { alerts: vec![alert("r", "last", 1)], received_us: 1 }];
    let last = output.append_alerts(&groups, 2).await.expect("stored");
    let read = log.read(0, usize::MAX).expect("readable");
    let mut alerts = 0;
    for batch in read.iter().filter(|batch| batch.dataset == Dataset::Alerts) {
        for (offset, row) in (batch.offset..).zip(print_rows(&batch.rows)) {
            assert!(row.contains(&format!(" seq={offset} ")), "{offset}: {row}");
            alerts += 1;
        }
    }
    assert_eq!(last, log.bounds().next - 1..log.bounds().next);
    // How many writers did not give up is the machine's affair.
    assert!(alerts > 5, "{alerts} alerts");
    assert!(read.iter().any(|batch| batch.dataset == Dataset::DeadLetters));
}
