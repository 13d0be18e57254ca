//! Leases and what goes with them: tails, and a database that hangs.

use std::time::{Duration, Instant};

use tidegate_pipeline::{Append, Delivery, LogReader, Offset, Sink, SinkError, StreamLog, log::MemoryLog};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{Lease, Leases, StoredTail, TailAt, TimescaleConfig, TimescaleStore};

use crate::contract::rows::events;
use crate::faulty_proxy::{Mode, Proxy};
use crate::postgres::{ORIGIN, Schema};

const LENGTH: Duration = Duration::from_secs(3);

pub fn leases(config: &TimescaleConfig, holder: &str) -> Leases {
    Leases::new(config.clone(), holder, LENGTH).expect("leases")
}

pub async fn taken(leases: &mut Leases) -> Lease {
    leases.round(1, false).await.expect("a round").held.pop().expect("a lease")
}

/// The configuration behind a proxy.
fn proxied(config: &TimescaleConfig) -> (Proxy, TimescaleConfig) {
    let mut through = config.clone();
    (Proxy::before(&mut through), through)
}

#[test]
fn what_a_log_ended_with_is_kept_with_the_cursor_and_gone_when_that_goes_back() {
    let schema = Schema::new();
    schema.block_on(async {
        let mut config = schema.config.clone();
        config.connections = 1;
        let mut leases = leases(&config, "first");
        let lease = taken(&mut leases).await;
        let store = TimescaleStore::open_leased(config.clone(), ORIGIN, lease).expect("a store");
        assert_eq!(store.tail(LogSource::Ingest).await.expect("read"), StoredTail::default());
        let log = MemoryLog::new(8, 1 << 20);
        for ids in [["a", "b"], ["c", "d"]] {
            let append = Append { batches: vec![events("acme", &ids)], ..Append::default() };
            log.append(append).await.expect("an answer").expect("stored");
        }
        let mut sink = store.sink(LogSource::Ingest, 0);
        sink.keep_tails(TailAt::new(|at: Offset| vec![0, 0xfe, at as u8]));
        let batches = log.read(0, usize::MAX).expect("batches");
        sink.write(Delivery { batches, next_offset: 4 }).await.expect("taken");
        sink.flush().await.expect("committed");
        let kept = StoredTail { tail: vec![0, 0xfe, 4], rewind_to: None };
        assert_eq!(store.tail(LogSource::Ingest).await.expect("read"), kept);
        assert_eq!(store.tail(LogSource::Output).await.expect("read"), StoredTail::default());
        store.rewind(LogSource::Ingest, 9).await.expect("nothing to do");
        assert_eq!(store.cursor(LogSource::Ingest).await.expect("a cursor"), 4);
        store.rewind(LogSource::Ingest, 2).await.expect("put back");
        assert_eq!(store.cursor(LogSource::Ingest).await.expect("a cursor"), 2);
        assert_eq!(store.tail(LogSource::Ingest).await.expect("read"), StoredTail::default());
        // What stands there now is delivered.
        let mut sink = store.sink(LogSource::Ingest, 2);
        let batches = log.read(2, usize::MAX).expect("batches");
        sink.write(Delivery { batches, next_offset: 4 }).await.expect("taken");
        sink.flush().await.expect("committed");
        leases.release(lease).await.expect("released");
        taken(&mut leases).await;
        store.rewind(LogSource::Ingest, 0).await.expect_err("the lease is lost");
        assert_eq!(store.cursor(LogSource::Ingest).await.expect("a cursor"), 4);
    });
    assert_eq!(schema.one("SELECT count(*) FROM security_events"), "6");
}

#[test]
fn a_lease_that_was_given_back_is_good_for_nothing_more_and_no_row_is_blamed() {
    let schema = Schema::new();
    schema.block_on(async {
        let mut leases = leases(&schema.config, "first");
        let lease = taken(&mut leases).await;
        let store = TimescaleStore::open_leased(schema.config.clone(), ORIGIN, lease).expect("a store");
        let log = MemoryLog::new(8, 1 << 20);
        let append = Append { batches: vec![events("acme", &["a", "b"])], ..Append::default() };
        log.append(append).await.expect("an answer").expect("stored");
        let mut sink = store.sink(LogSource::Ingest, 0);
        // It was asked for, its answer did not come, and it is done while this is under way.
        leases.release(lease).await.expect("released");
        let batches = log.read(0, usize::MAX).expect("batches");
        let taken = sink.write(Delivery { batches, next_offset: 2 }).await;
        let told = match taken {
            Ok(()) => sink.flush().await.expect_err("refused"),
            Err(error) => error,
        };
        assert!(matches!(&told, SinkError::Retryable(_)), "{told:?}");
        assert!(told.to_string().contains("given back"), "{told}");
        let told = leases.checkpoints(lease).save(2, b"late").await.expect_err("refused").to_string();
        assert!(told.contains("given back"), "{told}");
    });
    assert_eq!(schema.one("SELECT count(*) FROM security_events"), "0");
}

#[test]
fn a_worker_that_rests_keeps_what_it_has_and_leaves_the_rest_to_others() {
    let schema = Schema::new();
    schema.block_on(async {
        let (mut first, mut second) = (leases(&schema.config, "first"), leases(&schema.config, "second"));
        let all = first.round(4, false).await.expect("a round");
        assert_eq!((all.held.len(), all.share, all.others), (4, 4, 0));
        let none = second.round(4, false).await.expect("a round");
        assert_eq!((none.held.len(), none.share, none.others), (0, 2, 1));
        first.release(all.held[3]).await.expect("released");
        let rests = first.round(4, true).await.expect("a round");
        assert_eq!((&rests.held[..], rests.share, rests.others), (&all.held[..3], 4, 1));
        first.release(all.held[2]).await.expect("released");
        first.release(all.held[1]).await.expect("released");
        let more = second.round(4, false).await.expect("a round");
        assert_eq!((more.held.len(), more.share, more.others), (3, 4, 0), "as if it were alone");
        let rested = first.round(4, false).await.expect("a round");
        assert_eq!((&rested.held[..], rested.share, rested.others), (&all.held[..1], 2, 1));
        assert_eq!(second.round(4, false).await.expect("a round").share, 2);
    });
}

#[test]
fn a_user_who_may_make_no_schema_any_more_works_with_the_one_that_is_there() {
    let schema = Schema::new();
    let role = format!("{}_owner", schema.config.schema);
    let join = if schema.config.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{join}options=-c%20role%3D{role}", schema.config.url);
    let config = TimescaleConfig { url, ..schema.config.clone() };
    let may = |statement: &str| {
        let statement = format!("EXECUTE format('{statement}', current_database(), '{role}')");
        schema.query(&format!("DO $$ BEGIN {statement}; END $$; SELECT 1"));
    };
    let works = |holder: &str, partitions: u32| {
        schema.block_on(async {
            let mut leases = leases(&config, holder);
            let held = leases.round(partitions, false).await.expect("a round").held;
            assert_eq!(held.len(), partitions as usize, "{holder}");
            let store = TimescaleStore::open_leased(config.clone(), ORIGIN, held[0]).expect("a store");
            assert_eq!(store.cursor(LogSource::Ingest).await.expect("a cursor"), 0, "{holder}");
            for lease in held {
                leases.release(lease).await.expect("released");
            }
            leases.leave().await.expect("left");
        });
    };
    schema.query(&format!("CREATE ROLE {role}; SELECT 1"));
    may("GRANT CREATE ON DATABASE %I TO %I");
    works("first", 2);
    let owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = to_regclass('leases')";
    assert_eq!(schema.one(owner), role);
    may("REVOKE CREATE ON DATABASE %I FROM %I");
    works("second", 3);
    schema
        .query(&format!("DROP SCHEMA \"{}\" CASCADE; DROP OWNED BY {role}; DROP ROLE {role}; SELECT 1", config.schema));
}

#[test]
fn a_round_that_is_given_up_holds_up_none_after_it() {
    let schema = Schema::new();
    let (proxy, config) = proxied(&schema.config);
    schema.block_on(async {
        let mut leases = leases(&config, "first");
        let lease = taken(&mut leases).await;
        // As when the machine of the database is gone, and another has its address.
        proxy.set(Mode::HangOld);
        let given_up = tokio::time::timeout(Duration::from_millis(200), leases.round(1, false)).await;
        assert!(given_up.is_err(), "it hangs");
        let started = Instant::now();
        assert_eq!(taken(&mut leases).await, lease, "held all the time");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(leases.renew().await.expect("renewed"), [lease]);
        let until = leases.good_until().expect("held");
        assert!(until > Instant::now() && until < Instant::now() + LENGTH);
    });
}
