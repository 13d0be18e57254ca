//! The log against a model: any sequence of appends, restarts, kills, power cuts, failures and forgetting.

use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::log::SegmentLog;
use tidegate_pipeline::{Ack, Append, LogReader, StreamLog};

use crate::log_ledger::{Ledger, answer, open};
use crate::log_rows::events;

#[derive(Debug, Clone)]
enum Step {
    /// Appends in flight at once; each with ids out of few, so that many come again.
    Append(Vec<(Vec<u8>, bool)>),
    /// Drains, closes and opens.
    Restart,
    /// Opens what a killed process leaves.
    Kill,
    /// Opens what a power cut leaves.
    PowerCut(u64),
    /// Allows everything below this part of the log to go.
    Forget(u8),
    /// The next call of this kind fails, or from then on all of them.
    Fail { op: SimOp, sticky: bool, short_bytes: usize },
    /// The disk is well again.
    Heal,
}

fn step() -> impl Strategy<Value = Step> {
    let ids = vec(any::<u8>().prop_map(|id| id % 80), 1..6);
    let ops = vec![SimOp::Write, SimOp::SyncData, SimOp::SyncDir, SimOp::Create, SimOp::Rename, SimOp::Remove];
    prop_oneof![
        8 => vec((ids, prop::bool::weighted(0.1)), 1..5).prop_map(Step::Append),
        1 => Just(Step::Restart),
        2 => Just(Step::Kill),
        2 => any::<u64>().prop_map(|seed| Step::PowerCut(if seed % 4 == 0 { 0 } else { seed })),
        1 => (0..100u8).prop_map(Step::Forget),
        2 => (prop::sample::select(ops), prop::bool::weighted(0.3), prop_oneof![Just(0), Just(usize::MAX), 1..5000usize])
            .prop_map(|(op, sticky, short_bytes)| Step::Fail { op, sticky, short_bytes }),
        2 => Just(Step::Heal),
    ]
}

struct World {
    fs: SimFs,
    log: SegmentLog,
    ledger: Ledger,
}

impl World {
    fn new() -> Self {
        let fs = SimFs::new();
        let log = open(&fs).expect("a log").0;
        Self { fs, log, ledger: Ledger::default() }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append(appends) => self.append(&appends),
            Step::Restart => {
                self.log.close();
                self.fs.heal();
                self.reopen(self.fs.after_kill());
            }
            Step::Kill => self.reopen(self.fs.after_kill()),
            Step::PowerCut(seed) => self.reopen(self.fs.after_crash(seed)),
            Step::Forget(percent) => {
                let below = self.log.bounds().next * u64::from(percent) / 100;
                self.ledger.forgot(below);
                // It may fail when the disk does; the next one goes on from there.
                _ = self.log.forget(below);
            }
            Step::Fail { op, sticky, short_bytes } => {
                self.fs.fail(Fault { op, nth: self.fs.count(op) + 1, errno: 5, sticky, short_bytes });
            }
            Step::Heal => self.fs.heal(),
        }
    }

    fn append(&mut self, appends: &[(Vec<u8>, bool)]) {
        let text = |id: &u8| format!("{id}-{}", "x".repeat(usize::from(*id) * 20));
        let sent: Vec<_> = appends
            .iter()
            .map(|(ids, memory)| {
                let ids: Vec<String> = ids.iter().map(text).collect();
                let ack = if *memory { Ack::Memory } else { Ack::Disk };
                let refs: Vec<&str> = ids.iter().map(String::as_str).collect();
                let reply = self.log.append(Append { batches: vec![events("acme", &refs)], ack });
                (ids, ack, reply)
            })
            .collect();
        for (ids, ack, reply) in sent {
            let refs: Vec<&str> = ids.iter().map(String::as_str).collect();
            self.ledger.note(&refs, ack, &answer(reply));
        }
    }

    fn reopen(&mut self, fs: SimFs) {
        // The former process ends on the former disk.
        self.log = open(&fs).expect("a log opens on whatever is left").0;
        self.fs = fs;
        self.ledger.check(&self.log, "after a start");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn the_log_holds_what_it_owes(steps in vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.fs.heal();
        world.ledger.check(&world.log, "at the end");
        world.append(&[(vec![1, 2, 3], false)]);
        world.reopen(world.fs.after_crash(0));
    }
}
