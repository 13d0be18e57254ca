//! The model: it goes through everything for every event.

use std::collections::{BTreeMap, BTreeSet};

use super::specs::{Condition, DETECTIONS, Kind, Spec, UNIT, holds, number};
use crate::stream::Event;

pub const LATENESS: i64 = 10;
pub const AHEAD: i64 = 5;

/// What an alert says, as far as the model knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    pub org: String,
    pub rule: String,
    pub group: String,
    pub count: i64,
    pub ids: Vec<String>,
    pub times: (i64, i64),
}

/// What is measured of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    None,
    Texts(Vec<String>),
    Number(i128),
}

/// An event in a group.
#[derive(Debug, Clone)]
struct Entry {
    time: i64,
    slot: usize,
    value: Value,
    id: String,
}

#[derive(Debug, Default)]
struct Group {
    /// By time, then arrival.
    entries: Vec<Entry>,
    sources: BTreeSet<String>,
    fires: Vec<i64>,
    /// The starts of windows that wait for their end.
    windows: Vec<i64>,
    /// The end of the last window that was decided.
    decided: Option<i64>,
    /// In the order in which groups began.
    number: u64,
    /// When it is looked at whether it is of no use any more.
    looked_at: Option<i64>,
}

impl Group {
    /// When it is of no use any more, if it does not wait for the end of a window.
    fn useless(&self, span: i64) -> Option<i64> {
        let last = self.entries.last().map(|entry| entry.time);
        self.windows.is_empty().then(|| self.decided.or(last).map_or(i64::MIN / 2, |moment| moment + span))
    }
}

/// On its way into a correlation.
struct Fed<'e> {
    spec: usize,
    slot: usize,
    key: Vec<String>,
    entry: Entry,
    sources: BTreeSet<String>,
    /// The event that brought it, if one did.
    origin: Option<&'e Event>,
}

/// A window that held.
struct Firing<'e> {
    spec: usize,
    key: Vec<String>,
    /// When it happened, for correlations of this one.
    time: i64,
    id: String,
    sources: BTreeSet<String>,
    origin: Option<&'e Event>,
    told: Told,
}

/// Tenant, correlation, values of the group.
type Key = (String, usize, Vec<String>);

/// All that the model remembers.
pub struct Model<'s> {
    specs: &'s [Spec],
    /// Rules that tenants turned off.
    off: &'s [(&'static str, String)],
    received: i64,
    /// Until when, in receive time, nothing is forgotten, since it went on far at once and may fall back.
    doubted_until: i64,
    /// By tenant and source: the latest time, and when something came last.
    sources: BTreeMap<String, BTreeMap<String, (Option<i64>, i64)>>,
    groups: BTreeMap<Key, Group>,
    /// By tenant: the end of the first window that is over and not decided, where event time waits.
    held: BTreeMap<String, i64>,
    /// How many windows may still be decided, and groups looked at, with this row.
    allowed: u64,
    /// How many events of this row were put into groups.
    fed: u64,
    numbers: u64,
    pub fired: usize,
}

/// The value of a field of an event.
fn field(event: &Event, name: &str) -> Option<String> {
    event.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone())
}

impl<'s> Model<'s> {
    pub fn new(specs: &'s [Spec], off: &'s [(&'static str, String)]) -> Self {
        let (sources, groups, held) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (received, doubted_until) = (i64::MIN, i64::MIN);
        Self { specs, off, received, doubted_until, sources, groups, held, allowed: 0, fed: 0, numbers: 0, fired: 0 }
    }

    fn is_off(&self, org: &str, id: &str) -> bool {
        self.off.iter().any(|(own, rule)| *own == org && rule == id)
    }

    /// The correlations that a tenant has.
    fn of(&self, org: &str) -> Vec<(usize, &'s Spec)> {
        let is_there = |spec: &Spec| spec.org.is_none_or(|own| own == org) && !self.is_off(org, &spec.id);
        self.specs.iter().enumerate().filter(|(_, spec)| is_there(spec)).collect()
    }

    /// Whether a rule raises alerts of its own.
    fn raises(&self, org: &str, names: &[&str]) -> bool {
        let mut by = self.of(org);
        by.retain(|(_, spec)| spec.rules.iter().any(|rule| names.contains(&rule.as_str())));
        by.is_empty() || by.iter().any(|(_, spec)| spec.generate)
    }

    /// How far event time has come for what these sources fed.
    fn mark(&self, org: &str, sources: &BTreeSet<String>) -> i64 {
        self.reached(org, sources).min(self.held.get(org).copied().unwrap_or(i64::MAX))
    }

    /// The same if nothing waited to be decided.
    fn reached(&self, org: &str, sources: &BTreeSet<String>) -> i64 {
        let (mut heard, mut silent) = (Vec::new(), Vec::new());
        for source in sources {
            let (latest, received) = self.sources[org][source];
            let mark = latest.unwrap_or(received) - LATENESS;
            if self.received - received > LATENESS {
                silent.push(mark + self.received - received);
            } else {
                heard.push(mark);
            }
        }
        heard.into_iter().min().unwrap_or_else(|| silent.into_iter().max().expect("a source"))
    }

    /// What a window of a group says, if it satisfies the condition.
    fn judge(&self, key: &Key, inside: impl Fn(i64) -> bool) -> Option<Told> {
        let (org, spec) = (&key.0, &self.specs[key.1]);
        let window: Vec<&Entry> = self.groups[key].entries.iter().filter(|entry| inside(entry.time)).collect();
        if window.is_empty() || !satisfies(spec, &window) {
            return None;
        }
        let pairs: Vec<String> =
            spec.group_by.iter().zip(&key.2).map(|(field, value)| format!("{field}={value}")).collect();
        let mut ids: Vec<String> = window.iter().map(|entry| entry.id.clone()).collect();
        if spec.rules.len() > 1 {
            let mut seen = BTreeSet::new();
            ids.retain(|id| seen.insert(id.clone()));
        }
        let times = (window[0].time, window[window.len() - 1].time);
        let count = window.len() as i64;
        Some(Told { org: org.clone(), rule: spec.id.clone(), group: pairs.join(", "), count, ids, times })
    }

    /// Decides what is over, the earliest first, and forgets what is of no use, as far as this row lets.
    fn pass(&mut self, org: &str, out: &mut Vec<Told>) {
        loop {
            let due = |(key, group): (&Key, &Group)| {
                let end = *group.windows.first()? + self.specs[key.1].span;
                (key.0 == org && end <= self.reached(org, &group.sources)).then(|| (end, group.number, key.clone()))
            };
            let Some((end, _, key)) = self.groups.iter().filter_map(due).min() else { break };
            self.held.insert(org.to_owned(), end);
            let Some(left) = self.allowed.checked_sub(1) else { return };
            self.allowed = left;
            if let Some(firing) = self.close(&key) {
                self.tell(org, &firing, out);
                let mut work = Vec::new();
                self.follow(org, &firing, &mut work);
                self.run(org, work, out);
            }
        }
        self.held.remove(org);
        while self.allowed > 0 && self.received >= self.doubted_until {
            let over = |(key, group): (&Key, &Group)| {
                let at = group.looked_at.filter(|_| key.0 == org && group.windows.is_empty())?;
                (at <= self.mark(org, &group.sources)).then(|| (at, group.number, key.clone()))
            };
            let Some((at, _, key)) = self.groups.iter().filter_map(over).min() else { break };
            self.allowed -= 1;
            let useless = self.groups[&key].useless(self.specs[key.1].span).expect("no window");
            if useless > at {
                self.groups.get_mut(&key).expect("a group").looked_at = Some(useless);
            } else {
                self.groups.remove(&key);
            }
        }
    }

    /// Whether event time has passed what a group is of use for.
    fn is_over(&self, key: &Key) -> bool {
        let group = &self.groups[key];
        group.useless(self.specs[key.1].span).is_some_and(|moment| moment <= self.mark(&key.0, &group.sources))
    }

    /// Decides the first window of a group.
    fn close(&mut self, key: &Key) -> Option<Firing<'static>> {
        let span = self.specs[key.1].span;
        let start = self.groups.get_mut(key).expect("a group").windows.remove(0);
        let quiet = self.groups[key].fires.iter().any(|fire| (fire - start).abs() < span);
        let told = self.judge(key, |time| (start..start + span).contains(&time)).filter(|_| !quiet);
        let group = self.groups.get_mut(key).expect("a group");
        group.decided = group.decided.max(Some(start + span));
        let firing = told.map(|told| {
            group.fires.push(start);
            let last = group.entries.iter().rfind(|entry| entry.time < start + span).expect("an event");
            let (id, sources) = (last.id.clone(), group.sources.clone());
            Firing { spec: key.1, key: key.2.clone(), time: start + span, id, sources, origin: None, told }
        });
        match group.windows.first().copied() {
            Some(next) => group.entries.retain(|entry| entry.time >= next),
            None => {
                group.entries.clear();
                group.looked_at = group.useless(span);
            }
        }
        firing
    }

    fn tell(&mut self, org: &str, firing: &Firing<'_>, out: &mut Vec<Told>) {
        self.fired += 1;
        if self.raises(org, &[&self.specs[firing.spec].id]) {
            out.push(firing.told.clone());
        }
    }

    /// What an event, or a firing, is for a correlation: the group, and what is measured.
    fn read(spec: &Spec, of: impl Fn(&str) -> Option<String>) -> Option<(Vec<String>, Value)> {
        let key = spec.group_by.iter().map(|field| of(field)).collect::<Option<Vec<String>>>()?;
        let texts = spec.fields.iter().map(|field| of(field)).collect::<Option<Vec<String>>>()?;
        let value = match spec.kind {
            Kind::ValueCount => Value::Texts(texts),
            kind if kind.is_numeric() => Value::Number(number(&texts[0])?),
            _ => Value::None,
        };
        Some((key, value))
    }

    /// What follows from a firing.
    fn follow<'e>(&self, org: &str, firing: &Firing<'e>, work: &mut Vec<Fed<'e>>) {
        let own = &self.specs[firing.spec];
        for (at, spec) in self.of(org) {
            for slot in (0..spec.rules.len()).filter(|slot| spec.rules[*slot] == own.id) {
                let read = Self::read(spec, |name| {
                    let name = spec.field(name, slot);
                    let place = own.group_by.iter().position(|field| field == name);
                    place.map_or_else(|| field(firing.origin?, name), |place| Some(firing.key[place].clone()))
                });
                let Some((key, value)) = read else { continue };
                let entry = Entry { time: firing.time, slot, value, id: firing.id.clone() };
                let sources = firing.sources.clone();
                work.push(Fed { spec: at, slot, key, entry, sources, origin: firing.origin });
            }
        }
    }

    /// Feeds events, and what follows from them, in the order of correlations.
    fn run<'e>(&mut self, org: &str, mut work: Vec<Fed<'e>>, out: &mut Vec<Told>) {
        while !work.is_empty() {
            let first = (0..work.len()).min_by_key(|at| (work[*at].spec, work[*at].slot, *at)).expect("some");
            let fed = work.remove(first);
            if let Some(firing) = self.feed(org, fed) {
                self.tell(org, &firing, out);
                self.follow(org, &firing, &mut work);
            }
        }
    }

    /// Puts an event into its group.
    fn feed<'e>(&mut self, org: &str, fed: Fed<'e>) -> Option<Firing<'e>> {
        let key: Key = (org.to_owned(), fed.spec, fed.key);
        let spec = &self.specs[key.1];
        let (time, span) = (fed.entry.time, spec.span);
        let known = self.groups.get(&key).filter(|_| !self.is_over(&key));
        let sources = known.map_or_else(BTreeSet::new, |group| group.sources.clone());
        let joined: BTreeSet<String> = sources.union(&fed.sources).cloned().collect();
        let mark = self.mark(org, &joined);
        // It counts as long as a window that it belongs to is open; where there is none, until event time has passed it by a span.
        let covers = |start: i64| (start..start + span).contains(&time);
        let open = known.is_some_and(|group| group.windows.iter().any(|start| covers(*start)));
        let decided = known.and_then(|group| group.decided).is_some_and(|end| covers(end - span));
        if !open && (decided || time + span <= mark) {
            return None;
        }
        if known.is_none() {
            let group = Group { number: self.numbers, ..Group::default() };
            (self.numbers, self.allowed) = (self.numbers + 1, self.allowed + 1);
            self.groups.insert(key.clone(), group);
        }
        (self.fed, self.allowed) = (self.fed + 1, self.allowed + u64::from(self.fed > 0));
        let group = self.groups.get_mut(&key)?;
        let other_sources = std::mem::replace(&mut group.sources, joined) != group.sources;
        if spec.is_eager() {
            // What event time has passed by a span is forgotten, though a source that was silent may go back behind it.
            group.entries.retain(|entry| entry.time > mark - span);
        }
        let group = self.groups.get_mut(&key)?;
        let same = |entry: &Entry| entry.time == time && entry.slot == fed.slot && entry.id == fed.entry.id;
        let again = group.entries.iter().any(same);
        if spec.is_eager() {
            let last = group.entries.last().map_or(i64::MIN, |entry| entry.time);
            let moment = if again { last } else { last.max(time) } + span;
            if other_sources || group.looked_at.is_none_or(|at| moment < at) {
                group.looked_at = Some(moment);
            }
        }
        if again {
            return None;
        }
        let place = group.entries.partition_point(|entry| entry.time <= time);
        let id = fed.entry.id.clone();
        group.entries.insert(place, fed.entry);
        if !spec.is_eager() {
            if !group.windows.iter().any(|start| (*start..start + span).contains(&time)) {
                group.windows.push(time);
                group.windows.sort_unstable();
                self.allowed += 1;
            }
            return None;
        }
        let ends: BTreeSet<i64> =
            group.entries.iter().map(|entry| entry.time).filter(|end| (time..time + span).contains(end)).collect();
        for end in ends {
            let quiet = self.groups[&key].fires.iter().any(|fire| (fire - end).abs() < span);
            if let Some(told) = self.judge(&key, |time| time > end - span && time <= end).filter(|_| !quiet) {
                let group = self.groups.get_mut(&key).expect("a group");
                group.fires.push(end);
                let sources = group.sources.clone();
                return Some(Firing { spec: key.1, key: key.2, time: end, id, sources, origin: fed.origin, told });
            }
        }
        None
    }

    /// The alerts that an event brings.
    pub fn row(&mut self, event: &Event) -> Vec<Told> {
        let mut out = Vec::new();
        let (time, received, org) = (event.time as i64, event.received as i64, event.org.as_str());
        if received < self.received.saturating_sub(LATENESS) {
            // A clock was set back: no mark stays ahead of it.
            (self.received, self.doubted_until) = (received, i64::MIN);
            self.held.clear();
            for (latest, last) in self.sources.values_mut().flat_map(BTreeMap::values_mut) {
                (*latest, *last) = (latest.map(|latest| latest.min(received)), (*last).min(received));
            }
        }
        if self.received != i64::MIN && received > self.received + LATENESS {
            self.doubted_until = received + LATENESS;
        }
        let seconds = if self.received == i64::MIN { 0 } else { (received - self.received).clamp(0, 3) };
        // Of receive time, 250 µs let one step be made; at most 10,000.
        (self.allowed, self.fed) = ((4_000 * seconds as u64).min(10_000), 0);
        self.received = self.received.max(received);
        let orgs: Vec<String> = self.sources.keys().cloned().collect();
        orgs.iter().for_each(|org| self.pass(org, &mut out));
        let sources = self.sources.entry(org.to_owned()).or_default();
        let (latest, last) = sources.entry(event.source.clone()).or_insert((None, received));
        *last = (*last).max(received);
        let time = if time > received + AHEAD {
            received
        } else {
            *latest = Some(latest.map_or(time, |known| known.max(time)));
            time
        };
        self.allowed += 1;
        self.pass(org, &mut out);
        let kind = field(event, "k");
        let matched: Vec<(&str, &str)> = DETECTIONS
            .iter()
            .filter(|(id, _, value)| kind.as_deref() == Some(*value) && !self.is_off(org, id))
            .map(|(id, name, _)| (*id, *name))
            .collect();
        for (id, _) in matched.iter().filter(|(id, name)| self.raises(org, &[id, name])) {
            let (ids, times) = (vec![event.id.clone()], (event.time as i64, event.time as i64));
            out.push(Told { org: org.into(), rule: (*id).into(), group: String::new(), count: 1, ids, times });
        }
        let mut work: Vec<Fed<'_>> = Vec::new();
        for (at, spec) in self.of(org) {
            for slot in 0..spec.rules.len() {
                if !matched.iter().any(|(_, name)| *name == spec.rules[slot]) {
                    continue;
                }
                // An event counts once, but a temporal correlation sees each rule.
                if !spec.kind.is_temporal() && work.iter().any(|fed| fed.spec == at) {
                    continue;
                }
                let read = Self::read(spec, |name| field(event, spec.field(name, slot)));
                let Some((key, value)) = read else { continue };
                let entry = Entry { time, slot, value, id: event.id.clone() };
                let sources = BTreeSet::from([event.source.clone()]);
                work.push(Fed { spec: at, slot, key, entry, sources, origin: Some(event) });
            }
        }
        self.run(org, work, &mut out);
        // A window that this event's source has to pass as well may be over already.
        self.pass(org, &mut out);
        out
    }
}

/// Whether a window satisfies the condition.
fn satisfies(spec: &Spec, window: &[&Entry]) -> bool {
    let seen = |slot: usize| window.iter().any(|entry| entry.slot == slot);
    let count = spec.rules.len();
    let tree = match &spec.condition {
        Condition::Bounds(bounds) => {
            let (value, parts) = measure(spec, window);
            return bounds.iter().all(|(relation, bound)| holds(relation, value, bound * parts));
        }
        Condition::All if spec.kind == Kind::Ordered => return in_order(window, &(0..count).collect::<Vec<_>>()),
        Condition::All => return (0..count).all(seen),
        Condition::Words(tree) => tree,
    };
    if spec.kind == Kind::Temporal {
        return tree.holds(false, &seen, &|slot| !seen(slot));
    }
    // Any set of rules that were seen one after the other.
    (0..1usize << count).any(|set| {
        let slots: Vec<usize> = (0..count).filter(|slot| set & (1 << slot) != 0).collect();
        in_order(window, &slots) && tree.holds(false, &|slot| slots.contains(&slot), &|slot| !seen(slot))
    })
}

/// What a window measures, and how many parts of a [`UNIT`] it is in.
fn measure(spec: &Spec, window: &[&Entry]) -> (i128, i128) {
    let numbers = || -> Vec<i128> {
        let number = |entry: &&Entry| if let Value::Number(number) = entry.value { number } else { 0 };
        window.iter().map(number).collect()
    };
    let distinct = |count: usize| (count as i128 * UNIT, 1);
    match spec.kind {
        Kind::EventCount => distinct(window.len()),
        Kind::ValueCount => distinct(window.iter().map(|entry| &entry.value).collect::<BTreeSet<_>>().len()),
        Kind::Temporal | Kind::Ordered => {
            distinct(window.iter().map(|entry| entry.slot).collect::<BTreeSet<_>>().len())
        }
        Kind::Sum => (numbers().iter().sum(), 1),
        Kind::Average => (numbers().iter().sum(), window.len() as i128),
        Kind::Percentile | Kind::Median => {
            let mut sorted = numbers();
            sorted.sort_unstable();
            let place = spec.percentile * (sorted.len() as i128 - 1);
            let low = sorted[(place / 100) as usize];
            let high = *sorted.get((place / 100) as usize + 1).unwrap_or(&low);
            (low * (100 - place % 100) + high * (place % 100), 100)
        }
    }
}

/// Whether these rules were seen one after the other.
fn in_order(window: &[&Entry], slots: &[usize]) -> bool {
    fn from(window: &[&Entry], slots: &[usize], earliest: i64) -> bool {
        let Some((first, rest)) = slots.split_first() else { return true };
        window.iter().any(|entry| entry.slot == *first && entry.time >= earliest && from(window, rest, entry.time))
    }
    from(window, slots, i64::MIN)
}
