//! What regular expressions and patterns take, value by value, so that one that takes too long is stopped in the middle of a batch.
//!
//! How many steps a search can need is known before it begins: the states of the expression, for each byte of the value. As long as
//! all searches in a value together need few, one value in [`SAMPLE`] is timed. Where they are many, every search is; and where one
//! may need so many that it takes seconds, it goes on in pieces, with a look at the clock after each.

use std::time::{Duration, Instant};

/// One value in so many is timed where a search is short.
pub(crate) const SAMPLE: u64 = 8;
/// One value in so many is timed for what all predicates of its class share: their literals are looked for together.
pub(crate) const SHARED_SAMPLE: u64 = 64;
/// What it takes to search a byte for anything, in nanoseconds: a value that is large is not the fault of who looks at it.
/// A debug build takes many times as long.
const READ_NS: u64 = if cfg!(debug_assertions) { 64 } else { 1 };
/// With so many steps the searches in a value take a few milliseconds at worst.
const SHORT_STEPS: u64 = 1_000_000;
/// With so many it takes some tenths of a second at worst.
const WHOLE_STEPS: u64 = 30_000_000;
/// Steps between two looks at the clock.
const PIECE_STEPS: u64 = 200_000;
/// What a piece counts at most: a thread that lost its core in the middle of one is no evidence.
const PIECE_NS_MAX: u64 = 20_000_000;
/// The time after which it is looked whether something must be stopped.
const LOOK_NS: u64 = 50_000_000;
/// How long one search, or comparing fields with each other for one condition over the rows of a batch, may take.
pub(crate) const SEARCH_NS_MAX: u64 = 300_000_000;

/// What was timed: the number of a predicate in its class, nanoseconds, and of how many searches this is one.
pub(crate) type Timed = (u32, u64, u64);

/// What predicates of a class do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// The search for all literals.
    Literals,
    /// The comparison of a number, a time or an address with all of them.
    Comparisons,
}

/// The clock beside a walk over values.
#[derive(Debug)]
pub(crate) struct Watch {
    search_ns_max: u64,
    /// Values so far.
    values: u64,
    /// Whether short searches in the value of now are timed.
    sampling: bool,
    /// Whether all are, in any value.
    thorough: bool,
    /// Nanoseconds that were timed since it is so.
    thorough_ns: u64,
    /// Steps that the searches in the value of now needed at most.
    steps: u64,
    /// What was timed and not charged yet.
    pub timed: Vec<Timed>,
    /// The same of what predicates share: nanoseconds of one value in [`SHARED_SAMPLE`].
    pub shared: Vec<(Work, u64)>,
    /// Whether somebody would pay for that.
    sharing: bool,
    /// Predicates whose search took too long and was given up.
    pub cut: Vec<u32>,
    /// Predicates of the walk that are no longer tried.
    stopped: Vec<u32>,
    /// Nanoseconds since it was last looked.
    open_ns: u64,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new(SEARCH_NS_MAX)
    }
}

impl Watch {
    pub fn new(search_ns_max: u64) -> Self {
        let (timed, cut, stopped) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            search_ns_max,
            values: 0,
            sampling: false,
            thorough: false,
            thorough_ns: 0,
            steps: 0,
            timed,
            shared: Vec::new(),
            sharing: false,
            cut,
            stopped,
            open_ns: 0,
        }
    }

    /// How long one search may take.
    pub fn search_ns_max(&self) -> u64 {
        self.search_ns_max
    }

    /// Whether what predicates share is timed from now on.
    pub fn share(&mut self, sharing: bool) {
        self.sharing = sharing;
    }

    /// Begins a walk whose time is charged to others than those of the searches in it: then each of these is timed.
    pub fn begin_search(&mut self, charged: bool) {
        (self.thorough, self.thorough_ns) = (charged, 0);
    }

    /// Ends it. The nanoseconds that the searches in it took.
    pub fn end_search(&mut self) -> u64 {
        self.thorough = false;
        self.thorough_ns
    }

    /// A value is about to be decided.
    pub fn begin_value(&mut self) {
        self.values += 1;
        self.sampling = self.values.is_multiple_of(SAMPLE);
        self.steps = 0;
    }

    /// Work that predicates share begins; when, if it is timed for this value.
    pub fn begin_shared(&self) -> Option<Instant> {
        (self.sharing && self.values.is_multiple_of(SHARED_SAMPLE)).then(Instant::now)
    }

    /// It ends, over a value of so many bytes.
    pub fn end_shared(&mut self, work: Work, began: Option<Instant>, bytes: usize) {
        if let Some(began) = began {
            let ns = (began.elapsed().as_nanos() as u64).saturating_sub(bytes as u64 * READ_NS);
            self.shared.push((work, ns));
            self.open_ns = self.open_ns.saturating_add(ns.saturating_mul(SHARED_SAMPLE));
        }
    }

    /// Leaves predicates out from now on, in the place of those before.
    pub fn stop(&mut self, numbers: impl Iterator<Item = u32>) {
        self.stopped.clear();
        self.stopped.extend(numbers);
    }

    /// Whether it is time to look if something must be stopped.
    pub fn is_due(&self) -> bool {
        self.open_ns >= LOOK_NS || !self.cut.is_empty()
    }

    /// It was looked.
    pub fn looked(&mut self) {
        self.open_ns = 0;
    }

    /// Runs a search that needs so many steps at most. With a meter it must ask that now and then, and give up when told to:
    /// `None`, which counts as not found. To be followed by a look if one [is due](Self::is_due), since many of them together
    /// take long, and since what was given up says nothing of the value.
    pub fn run(&mut self, number: u32, steps: u64, search: impl FnOnce(Option<&mut Meter>) -> Option<bool>) -> bool {
        if !self.stopped.is_empty() && self.stopped.contains(&number) {
            return false;
        }
        self.steps = self.steps.saturating_add(steps);
        // One that is timed anyway stands for itself.
        let short = self.steps < SHORT_STEPS && !self.thorough;
        if short && !self.sampling {
            return search(None) == Some(true);
        }
        let started = Instant::now();
        let mut meter = Meter::new(started, self.search_ns_max);
        let found = search((steps >= WHOLE_STEPS).then_some(&mut meter));
        let ns = started.elapsed().as_nanos() as u64;
        let weight = if short { SAMPLE } else { 1 };
        self.timed.push((number, ns, weight));
        self.open_ns = self.open_ns.saturating_add(ns.saturating_mul(weight));
        self.thorough_ns = self.thorough_ns.saturating_add(ns);
        if found.is_none() {
            self.cut.push(number);
            self.stopped.push(number);
        }
        found == Some(true)
    }
}

/// Whether something that takes long may go on.
#[derive(Debug)]
pub(crate) struct Meter {
    last: Instant,
    spent_ns: u64,
    ns_max: u64,
}

impl Meter {
    pub fn new(now: Instant, ns_max: u64) -> Self {
        Self { last: now, spent_ns: 0, ns_max }
    }

    /// Goes on measuring: what went by since it was last asked does not count.
    pub fn resume(&mut self, now: Instant) {
        self.last = now;
    }

    /// Whether something that could not ask took no longer than it may.
    pub fn allows(&self, took: Duration) -> bool {
        took <= Duration::from_nanos(self.ns_max)
    }

    /// To be asked after every [`PIECE_STEPS`] or so.
    pub fn goes_on(&mut self) -> bool {
        let now = Instant::now();
        let piece = now.duration_since(self.last).as_nanos() as u64;
        self.last = now;
        self.spent_ns = self.spent_ns.saturating_add(piece.min(PIECE_NS_MAX));
        self.spent_ns <= self.ns_max
    }
}

/// How many things of so many steps each make a piece.
pub(crate) fn piece_of(steps: u64) -> usize {
    usize::try_from(PIECE_STEPS / steps.max(1)).unwrap_or(1).clamp(1, 1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_timed_by_what_it_can_cost() {
        let mut watch = Watch::default();
        for (steps, timed, metered) in
            [(10, 2, 0), (SHORT_STEPS - 1, 2, 0), (SHORT_STEPS, 16, 0), (WHOLE_STEPS - 1, 16, 0), (WHOLE_STEPS, 16, 16)]
        {
            let mut meters = 0;
            for _ in 0..16 {
                watch.begin_value();
                let found = watch.run(7, steps, |meter| {
                    meters += u32::from(meter.is_some());
                    Some(true)
                });
                assert!(found, "{steps}");
            }
            assert_eq!((watch.timed.len(), meters), (timed, metered), "{steps}");
            // Each of them stands for itself and those that were not timed.
            assert_eq!(watch.timed.drain(..).map(|(.., weight)| weight).sum::<u64>(), 16, "{steps}");
        }
        assert!(!watch.is_due());
    }

    #[test]
    fn many_short_searches_in_one_value_are_timed_like_a_long_one() {
        let mut watch = Watch::default();
        watch.begin_value();
        (0..20).for_each(|number| assert!(watch.run(number, SHORT_STEPS / 10, |_| Some(true))));
        assert_eq!(watch.timed.iter().map(|(number, _, weight)| (*number, *weight)).next(), Some((9, 1)));
        assert_eq!(watch.timed.len(), 11);
        watch.begin_value();
        assert!(watch.run(0, SHORT_STEPS / 10, |_| Some(true)));
        assert_eq!(watch.timed.len(), 11, "each value begins anew");
    }

    #[test]
    fn what_is_shared_is_timed_now_and_then_if_somebody_pays() {
        let mut watch = Watch::default();
        for (sharing, timed) in [(false, 0), (true, 2)] {
            watch.share(sharing);
            for _ in 0..2 * SHARED_SAMPLE {
                watch.begin_value();
                let began = watch.begin_shared();
                watch.end_shared(Work::Literals, began, 10);
            }
            assert_eq!(watch.shared.drain(..).filter(|(work, _)| *work == Work::Literals).count(), timed);
        }
        let began = Instant::now().checked_sub(Duration::from_millis(1));
        watch.end_shared(Work::Comparisons, began, 1 << 30);
        assert!(!watch.is_due(), "to read a value takes time");
        watch.end_shared(Work::Comparisons, began, 10);
        assert!(watch.is_due(), "it stands for those that were not timed");
    }

    #[test]
    fn what_is_given_up_is_not_tried_again_in_the_walk() {
        let mut watch = Watch::new(0);
        watch.begin_value();
        let search = |meter: Option<&mut Meter>| {
            std::thread::sleep(Duration::from_millis(1));
            meter.is_none_or(Meter::goes_on).then_some(true)
        };
        assert!(!watch.run(7, WHOLE_STEPS, search));
        assert!(watch.is_due() && watch.cut == [7]);
        assert!(!watch.run(7, 1, |_| panic!("it was stopped")));
        assert!(watch.run(8, 1, |_| Some(true)));
        watch.stop([8].into_iter());
        assert!(watch.run(7, 1, |_| Some(true)));
        assert!(!watch.run(8, 1, |_| Some(true)));
    }

    #[test]
    fn a_thread_that_was_asleep_is_not_cut() {
        let long_ago =
            Instant::now().checked_sub(Duration::from_secs(30)).expect("a clock that runs for half a minute");
        let mut meter = Meter::new(long_ago, SEARCH_NS_MAX);
        assert!(meter.goes_on() && meter.goes_on());
    }
}
