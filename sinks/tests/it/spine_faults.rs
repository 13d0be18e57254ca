//! Every call site of the file system fails, over the whole spine at work: nothing panics, nothing acknowledged is lost, no
//! step hangs, and once the disk is well everything goes on by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::{Ack, LogReader};
use tidegate_sinks::parquet::LogSource;

use crate::parquet_rows::wait;
use crate::spine_ledger::Ledger;
use crate::spine_power::asked;
use crate::spine_world::{HANG, Spine, Step, Tally};

/// Tries a step until it succeeds; a panic when it does not within 5 s.
async fn again<T>(what: &str, mut step: impl AsyncFnMut() -> Step<T>) -> T {
    let started = Instant::now();
    loop {
        match step().await {
            Ok(done) => return done,
            Err(error) => assert!(started.elapsed() < HANG, "{what} fails for 5 s: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A life of the whole spine: everything at once, as in the program. What fails is tried again, as clients and timers do.
async fn live(fs: &SimFs, ledger: &mut Ledger, first_id: u64) -> Step {
    // A start that fails is a start again, by whoever looks after the process.
    let (mut spine, _) = again("opening", async || Spine::open(fs)).await;
    let run = again("the run loop", async || spine.run()).await;
    let status = run.status_reader();
    let deliveries = [LogSource::Ingest, LogSource::Output].map(|source| spine.deliver(source));
    let mut tally = Tally::default();
    for nth in 0..8u64 {
        let ids = [first_id + nth * 3, first_id + nth * 3 + 1, first_id + nth * 3 + 2, first_id + nth];
        again("an append", async || spine.append(ledger, &ids, Ack::Disk).await).await;
        if nth == 2 {
            again("a change", async || spine.change(ledger, &format!("rule {first_id}")).await).await;
        }
        if nth % 3 == 2 {
            caught_up(&spine, &run, &deliveries).await;
            again("a look", async || ledger.look(&spine, "before forgetting")).await;
            again("forgetting", async || spine.forget(Some(status()), &mut tally)).await;
            for what in 0..3 {
                again("maintenance", async || spine.maintain(what, &mut tally)).await;
            }
        }
    }
    caught_up(&spine, &run, &deliveries).await;
    let soon = || Instant::now() + Duration::from_secs(2);
    spine.ran(run.drain(soon()).await.map_err(|error| error.to_string())?);
    for delivery in deliveries {
        delivery.drain(soon()).await.map_err(|error| error.to_string())?;
    }
    spine.registry.save().await.ok();
    again("a look", async || ledger.look(&spine, "at the end")).await;
    spine.log.close();
    spine.output.close();
    Ok(())
}

/// Waits until the run loop and the deliveries have taken everything; a panic when they hang.
async fn caught_up(
    spine: &Spine,
    run: &tidegate_pipeline::RunHandle,
    deliveries: &[tidegate_pipeline::DeliveryHandle; 2],
) {
    let started = Instant::now();
    loop {
        let ran = *run.offset().borrow() >= spine.log.bounds().next;
        let delivered = deliveries.iter().zip([&spine.log, &spine.output]);
        if ran && delivered.into_iter().all(|(delivery, log)| *delivery.committed().borrow() >= log.bounds().next) {
            return;
        }
        assert!(started.elapsed() < HANG, "something hangs: {:?}", spine.health.details());
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// Lives with a fault at one site, then opens what a kill and what a power cut leave.
fn fail_once(site: &str, fault: Fault) -> u64 {
    let context = format!("{site}: {fault:?}");
    let fs = SimFs::new();
    fs.track_sites();
    fs.fail_at(site, fault);
    let mut ledger = Ledger::default();
    let healed = fault.sticky.then(|| {
        let fs = fs.clone();
        std::thread::spawn(move || {
            let started = Instant::now();
            while fs.failed() == 0 && started.elapsed() < HANG {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(25));
            fs.heal();
        })
    });
    let lived = wait(live(&fs, &mut ledger, 0));
    assert_eq!(lived, Ok(()), "{context}");
    if let Some(thread) = healed {
        thread.join().expect("it heals");
    }
    let failed = fs.failed();
    fs.heal();
    for (left, how) in [(fs.after_kill(), "killed"), (fs.after_crash(fault.nth), "power cut")] {
        let context = format!("{context}, {how}");
        let (spine, _) = Spine::open(&left).unwrap_or_else(|error| panic!("{context}: {error}"));
        ledger.check(&spine, &context);
        ledger.check_complete(&context);
    }
    failed
}

/// The calls that an undisturbed life makes at each site. The life after it opens what is there.
fn sites() -> BTreeMap<(SimOp, String), u64> {
    let fs = SimFs::new();
    fs.track_sites();
    let mut ledger = Ledger::default();
    assert_eq!(wait(live(&fs, &mut ledger, 0)), Ok(()));
    fs.sites()
}

/// Which calls of a site fail: all of them when asked for, else some from its start and its end.
fn chosen(calls: u64) -> BTreeSet<u64> {
    match asked("TIDEGATE_FAULTS") {
        Some(_) => (1..=calls).collect(),
        None => [1, 2, calls / 2, calls].into_iter().filter(|nth| *nth > 0).collect(),
    }
}

#[test]
fn spine_any_call_at_any_site_may_fail_and_everything_goes_on() {
    let sites = sites();
    let mut unfired = Vec::new();
    for ((op, site), calls) in &sites {
        let mut fired = 0;
        for nth in chosen(*calls) {
            let once = Fault::eio(*op, nth);
            fired += fail_once(site, once);
            if matches!(op, SimOp::Write | SimOp::Create | SimOp::Rename | SimOp::MakeDir) {
                fired += fail_once(site, Fault { errno: 28, short_bytes: 100, ..once });
            }
        }
        eprintln!("{op:?} {site}: {calls} calls, {fired} failures");
        // Threads take turns as they like, so the last calls of a site may be missing in one life or another.
        if fired == 0 {
            unfired.push((op, site));
        }
    }
    assert!(unfired.is_empty(), "never failed: {unfired:?}");
}

#[test]
fn spine_a_site_that_fails_for_a_while_is_waited_for() {
    for ((op, site), calls) in &sites() {
        fail_once(site, Fault { sticky: true, ..Fault::eio(*op, calls.div_ceil(2)) });
    }
}
