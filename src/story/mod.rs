//! A story of security and cost events: the normal days of an organisation, and what goes wrong in them. The demo tells it,
//! load generators and tests take from it.
//!
//! The last day before its end is told as CloudTrail and Windows records, the last three as hourly FOCUS rows. Into that come an account
//! takeover (nine hours before the end), machines with GPUs that the intruder starts and that make the bill run away from
//! then on, and a theft of credentials on a workstation (an hour before the end). Names, addresses and fields look like those
//! of real records. The same seed, size and end give the same story, byte by byte.

mod attacks;
pub mod cast;
mod cloudtrail;
mod costs;
mod fleet;
mod random;
mod reference;
mod time;
mod windows;

pub use attacks::TRACES;
pub use random::Random;
pub use reference::reference_event;

use costs::Bill;
use time::{HOUR, MINUTE};

/// What a line of the story is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An AWS CloudTrail record.
    CloudTrail,
    /// A Windows event in the flat form.
    Windows,
    /// A FOCUS row, as a JSON object whose decimals are text.
    Focus,
}

impl Kind {
    /// The `source` of the server's mappings.
    pub fn source(self) -> &'static str {
        match self {
            Self::CloudTrail => "cloudtrail",
            Self::Windows => "windows",
            Self::Focus => "focus",
        }
    }

    /// The path to which it is sent.
    pub fn path(self) -> &'static str {
        match self {
            Self::CloudTrail => "/v2/events/bulk?source=cloudtrail",
            Self::Windows => "/v2/events/bulk?source=windows",
            Self::Focus => "/v2/costs/bulk?source=focus",
        }
    }
}

/// One line of the story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// When it is told, µs since the epoch: the time of an event, or the end of the hour that a cost row is about.
    pub at: i64,
    /// What it is.
    pub kind: Kind,
    /// A JSON object, without a line end.
    pub line: String,
}

/// Which story.
#[derive(Debug, Clone, Copy)]
pub struct StoryOptions {
    /// The same seed tells the same story.
    pub seed: u64,
    /// About how many events; exactly so many when that is 1,000 or more.
    pub events: usize,
    /// When the story ends, µs since the epoch: now, for a demo.
    pub end_us: i64,
}

/// How long the security part is.
const SECURITY_SPAN: i64 = 24 * HOUR;
/// How many hours the bill goes back.
const BILL_HOURS: i64 = 72;
/// One in so many events is a cost row.
const COST_SHARE: usize = 9;
/// Before the end: the first failed login of the takeover.
const TAKEOVER_BEFORE: i64 = 9 * HOUR + 13 * MINUTE;
/// Before the end: the document is opened.
const THEFT_BEFORE: i64 = 58 * MINUTE;

/// The story, line by line, in the order in which it is told.
#[derive(Debug)]
pub struct Story {
    random: Random,
    ids: Random,
    /// Attacks and the bill, sorted by time, the next one last.
    scheduled: Vec<Item>,
    ordinary: usize,
    told: usize,
    begin: i64,
}

impl Story {
    /// The story with these options.
    pub fn new(options: StoryOptions) -> Self {
        let mut random = Random::new(options.seed);
        // Ids differ from one end to another, so that a story told twice is not taken for duplicates.
        let mut ids = Random::new(options.seed ^ (options.end_us as u64).rotate_left(23));
        let takeover_at = options.end_us - TAKEOVER_BEFORE;
        let mut scheduled = attacks::takeover(&mut random, &mut ids, takeover_at);
        scheduled.extend(attacks::theft(&mut random, options.end_us - THEFT_BEFORE));
        let resources = (options.events / COST_SHARE / BILL_HOURS as usize).max(1);
        let bill = Bill::new(&mut random, resources, takeover_at + attacks::MACHINES_AFTER);
        let last_hour = options.end_us.div_euclid(HOUR) * HOUR - HOUR;
        for back in (0..BILL_HOURS).rev() {
            let hour = last_hour - back * HOUR;
            let rows = bill.rows(&mut random, hour);
            scheduled.extend(rows.into_iter().map(|line| Item { at: hour + HOUR, kind: Kind::Focus, line }));
        }
        scheduled.sort_by_key(|item| std::cmp::Reverse(item.at));
        let ordinary = options.events.saturating_sub(scheduled.len());
        Self { random, ids, scheduled, ordinary, told: 0, begin: options.end_us - SECURITY_SPAN }
    }

    /// When the next ordinary event happens.
    fn next_ordinary_at(&self) -> Option<i64> {
        let place = (self.told < self.ordinary)
            .then(|| self.told as i128 * i128::from(SECURITY_SPAN) / self.ordinary as i128)?;
        Some(self.begin + i64::try_from(place).unwrap_or(0))
    }
}

impl Iterator for Story {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let scheduled_at = self.scheduled.last().map(|item| item.at);
        match (self.next_ordinary_at(), scheduled_at) {
            (None, _) => self.scheduled.pop(),
            (Some(ordinary), Some(scheduled)) if scheduled <= ordinary => self.scheduled.pop(),
            (Some(at), _) => {
                self.told += 1;
                Some(self.ordinary(at))
            }
        }
    }
}

impl Story {
    fn ordinary(&mut self, at: i64) -> Item {
        if self.random.per_mille(550) {
            Item { at, kind: Kind::CloudTrail, line: cloudtrail::ordinary(&mut self.random, &mut self.ids, at) }
        } else {
            Item { at, kind: Kind::Windows, line: fleet::ordinary(&mut self.random, at) }
        }
    }
}
