//! A number for every moment, which changes in steps, with the best of it over the ends of windows.
//!
//! What a window `(end - span, end]` holds is a function of its end: an event at `t` adds to it for the ends in `[t, t + span)`. So
//! an event, wherever it comes in, is two steps: up at `t`, down at `t + span`. Steps stand in blocks with their sum and the
//! largest level that an end in the block reaches; so a change, and the search for the first end that is high enough, look at
//! one block and pass over the others.

/// Steps in a block; one with more is cut in two.
const BLOCK_STEPS_MAX: usize = 128;

/// Where the level changes, or a window ends, or both.
#[derive(Debug, Clone, Copy)]
struct Step {
    time: i64,
    by: i128,
    /// Whether a window ends here: an event has this time.
    is_end: bool,
}

/// Some steps, ascending; never empty.
#[derive(Debug, Clone)]
struct Block {
    steps: Vec<Step>,
    sum: i128,
    /// The largest level of an end, as counted from the beginning of the block.
    best: Option<i128>,
}

impl Block {
    fn new(steps: Vec<Step>) -> Self {
        let mut block = Self { steps, sum: 0, best: None };
        block.sum_up();
        block
    }

    fn sum_up(&mut self) {
        (self.sum, self.best) = (0, None);
        for step in &self.steps {
            self.sum = self.sum.wrapping_add(step.by);
            if step.is_end {
                self.best = Some(self.best.map_or(self.sum, |best| best.max(self.sum)));
            }
        }
    }

    fn first_time(&self) -> i64 {
        self.steps.first().map_or(i64::MAX, |step| step.time)
    }

    fn last_time(&self) -> i64 {
        self.steps.last().map_or(i64::MIN, |step| step.time)
    }
}

/// The steps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Levels {
    blocks: Vec<Block>,
    /// How many steps and blocks were looked at, ever.
    pub looked_at: u64,
}

impl Levels {
    /// The level is higher by `by` for the moments in `[from, to)`.
    pub fn raise(&mut self, from: i64, to: i64, by: i128) {
        if from < to {
            self.change(from, |step| step.by = step.by.wrapping_add(by));
            self.change(to, |step| step.by = step.by.wrapping_sub(by));
        }
    }

    /// Says whether a window ends at a moment.
    pub fn set_end(&mut self, time: i64, is_end: bool) {
        self.change(time, |step| step.is_end = is_end);
    }

    fn change(&mut self, time: i64, change: impl FnOnce(&mut Step)) {
        let new = Step { time, by: 0, is_end: false };
        // The last block that does not begin after it.
        let at = self.blocks.partition_point(|block| block.first_time() <= time).saturating_sub(1);
        let Some(block) = self.blocks.get_mut(at) else {
            let mut step = new;
            change(&mut step);
            self.blocks.push(Block::new(vec![step]));
            return;
        };
        self.looked_at += block.steps.len() as u64;
        let place = block.steps.partition_point(|step| step.time < time);
        if block.steps.get(place).is_none_or(|step| step.time != time) {
            block.steps.insert(place, new);
        }
        if let Some(step) = block.steps.get_mut(place) {
            change(step);
            if step.by == 0 && !step.is_end {
                block.steps.remove(place);
            }
        }
        let mut cut = None;
        if block.steps.len() > BLOCK_STEPS_MAX {
            cut = Some(Block::new(block.steps.split_off(BLOCK_STEPS_MAX / 2)));
        }
        block.sum_up();
        if block.steps.is_empty() {
            self.blocks.remove(at);
        } else if let Some(cut) = cut {
            self.blocks.insert(at + 1, cut);
        }
    }

    /// Calls `visit` with each end in `[from, to)` at which the level is at least `least`, and the level there, until it says that
    /// this is enough.
    pub fn ends(&mut self, (from, to): (i64, i64), least: i128, mut visit: impl FnMut(i64, i128) -> bool) {
        let (mut level, mut looked_at) = (0i128, 0);
        'blocks: for block in &self.blocks {
            if block.first_time() >= to {
                break;
            }
            looked_at += 1;
            let reaches = block.best.is_some_and(|best| level.wrapping_add(best) >= least);
            if block.last_time() >= from && reaches {
                let mut level = level;
                for step in &block.steps {
                    looked_at += 1;
                    level = level.wrapping_add(step.by);
                    let counts = step.is_end && step.time >= from && step.time < to && level >= least;
                    if counts && visit(step.time, level) {
                        break 'blocks;
                    }
                }
            }
            level = level.wrapping_add(block.sum);
        }
        self.looked_at += looked_at;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn levels_are_those_of_a_model_however_they_came_to_be() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut levels, mut raised, mut ends) = (Levels::default(), Vec::new(), BTreeSet::new());
        for round in 0..3_000 {
            let time = next(2_000) as i64;
            if round % 3 == 2 && !raised.is_empty() {
                let (from, to, by): (i64, i64, i128) = raised.swap_remove(next(raised.len() as u64) as usize);
                levels.raise(from, to, -by);
            } else {
                let (to, by) = (time + next(300) as i64, i128::from(next(9)) - 4);
                levels.raise(time, to, by);
                raised.push((time, to, by));
            }
            let end = next(2_000) as i64;
            let is_end = next(4) > 0;
            levels.set_end(end, is_end);
            if is_end {
                ends.insert(end)
            } else {
                ends.remove(&end)
            };
            let (from, least) = (next(2_000) as i64, i128::from(next(30)));
            let to = from + 200;
            let level = |end: i64| -> i128 {
                raised.iter().filter(|(from, to, _)| (*from..*to).contains(&end)).map(|(.., by)| by).sum()
            };
            let wanted = ends.range(from..to).find(|end| level(**end) >= least).map(|end| (*end, level(*end)));
            let mut found = None;
            levels.ends((from, to), least, |end, level| {
                found = Some((end, level));
                true
            });
            assert_eq!(found, wanted, "round {round}");
        }
        assert!(levels.blocks.len() > 10);
    }
}
