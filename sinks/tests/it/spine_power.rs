//! Power cuts over the whole spine: whatever is appended, rolled, forgotten, checkpointed, committed, compacted and retained
//! when the power goes, and whatever pages the disk kept of it, everything acknowledged is there once after the next start.

use tidegate_pipeline::Ack;
use tidegate_pipeline::fs::SimFs;
use tidegate_sinks::parquet::LogSource;

use crate::parquet_rows::wait;
use crate::spine_ledger::Ledger;
use crate::spine_world::{Spine, Step, Tally};

/// A number of the environment: how many seeds to try, or which one to try again.
#[expect(clippy::disallowed_methods, reason = "how many seeds to try is asked for in the environment")]
pub fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// Says how to try a seed again when its test fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "try again: TIDEGATE_SEED={seed} cargo test -p tidegate-sinks --test it spine_power -- --nocapture"
            );
        }
    }
}

/// What the lives of a seed share.
struct World {
    ledger: Ledger,
    dice: Dice,
    next_id: u64,
    tally: Tally,
}

/// One step of a life, as the dice say.
async fn step(spine: &mut Spine, World { ledger, dice, next_id, tally }: &mut World) -> Step {
    match dice.roll(16) {
        0..=5 => {
            let count = 1 + dice.roll(6);
            let mut ids: Vec<u64> = (*next_id..*next_id + count).collect();
            *next_id += count;
            if dice.roll(3) == 0 {
                ids.extend(ledger.known(dice.roll(1000) as usize));
            }
            let ack = if dice.roll(8) == 0 { Ack::Memory } else { Ack::Disk };
            spine.append(ledger, &ids, ack).await
        }
        6 => {
            *next_id += 1;
            spine.change(ledger, &format!("rule {next_id}")).await
        }
        7..=9 => spine.run_through().await,
        10 | 11 => spine.deliver_through(LogSource::Ingest).await,
        12 => spine.deliver_through(LogSource::Output).await,
        13 => spine.maintain(dice.roll(4), tally),
        14 => {
            ledger.look(spine, "before forgetting")?;
            spine.forget(None, tally)
        }
        _ => spine.registry.save().await.map_err(|error| error.to_string()),
    }
}

/// A life that the power cut ends, or a kill.
async fn life(fs: &SimFs, world: &mut World, context: &str) {
    fs.cut_power_after(fs.calls() + world.dice.roll(600));
    let Ok((mut spine, reports)) = Spine::open(fs) else {
        assert!(fs.is_cut(), "{context}: it does not open");
        world.tally.cuts += 1;
        return;
    };
    reports.must_be_clean(context);
    reports.count(&mut world.tally);
    if !fs.is_cut() {
        // Looking does not count as work of the process.
        let twin = fs.after_kill();
        let (seen, _) = Spine::open(&twin).expect("what was opened once opens again");
        world.ledger.check(&seen, context);
    }
    for _ in 0..4 + world.dice.roll(30) {
        let done = step(&mut spine, world).await;
        spine.settle().await;
        if fs.is_cut() {
            world.tally.cuts += 1;
            return;
        }
        assert_eq!(done, Ok(()), "{context}: nothing fails but for the power");
    }
}

async fn lives(seed: u64, tally: Tally) -> Tally {
    let _replay = Replay(seed);
    let mut fs = SimFs::new();
    let mut world = World { ledger: Ledger::default(), dice: Dice(seed), next_id: 0, tally };
    for nth in 0..4 {
        let context = format!("seed {seed}, life {nth}");
        life(&fs, &mut world, &context).await;
        // Threads of the former life may live on for a moment: on the former disk.
        fs = match world.dice.roll(5) {
            0 => fs.after_kill(),
            1 => fs.after_crash(0),
            _ => fs.after_crash(world.dice.roll(u64::MAX)),
        };
    }
    let context = format!("seed {seed}, the last life");
    let (mut spine, reports) = Spine::open(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    reports.must_be_clean(&context);
    let World { mut ledger, next_id, tally, .. } = world;
    ledger.check(&spine, &context);
    spine.append(&mut ledger, &[next_id, next_id + 1], Ack::Disk).await.expect("stored");
    spine.run_through().await.expect("runs");
    spine.deliver_through(LogSource::Ingest).await.expect("delivers");
    spine.deliver_through(LogSource::Output).await.expect("delivers");
    ledger.check(&spine, &context);
    ledger.check_complete(&context);
    tally
}

#[test]
fn spine_power_may_be_cut_anywhere_and_everything_acknowledged_is_there_once() {
    let seeds = match asked("TIDEGATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked("TIDEGATE_SEEDS").unwrap_or(200),
    };
    let all = seeds.end - seeds.start >= 100;
    let mut tally = Tally::default();
    for seed in seeds {
        tally = wait(lives(seed, tally));
    }
    eprintln!("{tally:?}");
    assert!(!all || tally.is_full(), "not everything was tried: {tally:?}");
}
