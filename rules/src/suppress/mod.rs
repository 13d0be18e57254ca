//! Suppression: one alert for what goes on, not one for each event of it.
//!
//! ```text
//! match of (tenant, rule, group)
//!   no window ──► an alert at once, and a window [time, time + span)
//!   in the window (or older) ──► counted in it
//!   after it ──► the window closes, then as above
//! a window closes ──► counted nothing: gone
//!                     else: one follow-up alert that counts it, and the next window [end, end + span) opens
//! ```
//!
//! A window closes when a match of its group lies after it; or when events of its tenant have gone on, in event time, by its
//! span and the allowed lateness; or when the stream has, in receive time. All of it is in the rows and decided row by row,
//! so the same rows give the same alerts wherever batches begin and end, and whenever the state was saved and restored.
//! Every match is in the `event_count` of exactly one alert, once its window is closed.
//!
//! When receive times fall by more than the allowed lateness, a clock was set. Event time goes back with them, and windows that
//! begin where no event of now can be are over: they would count what comes until the clock is there again.
//!
//! Bounded: groups per rule and tenant, bytes over all. What is evicted is raised first.

mod names;
mod outlet;
mod saved;

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use tidegate_events::{Alert, alert_id};

use names::Names;
pub(crate) use outlet::Outlet;

/// A rule and a tenant, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lane {
    /// See [`Suppression::rule`].
    pub rule: u32,
    /// See [`Suppression::tenant`].
    pub tenant: u32,
}

/// An event that matched, as far as windows need it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Met<'a> {
    /// The rule, and the tenant.
    pub lane: Lane,
    /// The hash of its group's key.
    pub group: u128,
    /// How long further matches of the group are counted (µs); 0: every match is an alert.
    pub span: i64,
    /// Its time (µs).
    pub time: i64,
    /// Its time, but not further ahead of its receive time than allowed: where windows are.
    pub placed: i64,
    /// Its id.
    pub event_id: &'a str,
}

/// The bounds; times in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How long after its end, in event time, a window still waits for late events.
    pub lateness_us: i64,
    /// How far an event's time may be ahead of its receive time.
    pub ahead_us: i64,
    /// Open windows of one rule and tenant.
    pub groups_max: usize,
    /// Memory of all open windows.
    pub bytes_max: usize,
    /// Event ids in one alert.
    pub event_ids_max: usize,
}

/// What was done since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Matches that were counted in a window.
    pub suppressed: u64,
    /// Windows that were closed early to make room.
    pub evicted: u64,
}

/// The open windows of all rules and tenants.
#[derive(Debug)]
pub(crate) struct Suppression {
    bounds: Bounds,
    rules: Names,
    tenant_names: Names,
    /// By number.
    tenants: Vec<Tenant>,
    groups: FxHashMap<Group, u32>,
    /// The windows of each lane, oldest first.
    lanes: FxHashMap<Lane, BTreeMap<u64, u32>>,
    /// By the receive time that closes them.
    by_received: BTreeMap<(i64, u64), u32>,
    /// By slot.
    windows: Vec<Option<Window>>,
    free: Vec<u32>,
    /// The latest receive time so far (µs).
    received: i64,
    next_seq: u64,
    bytes: usize,
    counts: Counts,
}

#[derive(Debug)]
struct Tenant {
    /// The latest event time so far.
    reached: i64,
    /// Its windows by the event time that closes them.
    by_event: BTreeMap<(i64, u64), u32>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Group {
    lane: Lane,
    hash: u128,
}

#[derive(Debug)]
struct Window {
    group: Group,
    /// Windows are numbered as they open: what settles a tie.
    seq: u64,
    end: i64,
    span: i64,
    /// The event time of the tenant that closes it.
    due_event: i64,
    /// The receive time of the stream that closes it.
    due_received: i64,
    /// The id of the alert that was raised at once.
    first_id: String,
    /// How many windows came before it without a pause.
    continued: u32,
    /// The follow-up, with what is counted so far.
    folded: Option<Box<Alert>>,
}

impl Window {
    /// An upper bound of its memory that depends on its content alone.
    fn bytes(&self) -> usize {
        const FIXED: usize = 512;
        FIXED + self.folded.as_ref().map_or(0, |alert| alert_bytes(alert))
    }
}

/// What a text in a list takes beside its bytes.
const LISTED_BYTES: usize = 24;

fn alert_bytes(alert: &Alert) -> usize {
    let texts = [&alert.alert_id, &alert.org_id, &alert.source, &alert.rule_id, &alert.title];
    let more = [&alert.group_key, &alert.message, &alert.matched];
    let some = [&alert.actor, &alert.asset, &alert.resource];
    let lists = alert.tags.iter().chain(&alert.event_ids);
    size_of::<Alert>()
        + texts.iter().chain(&more).map(|text| text.len()).sum::<usize>()
        + some.iter().map(|text| text.as_ref().map_or(0, String::len)).sum::<usize>()
        + lists.map(|text| text.len() + LISTED_BYTES).sum::<usize>()
}

impl Suppression {
    /// Without windows.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            rules: Names::default(),
            tenant_names: Names::default(),
            tenants: Vec::new(),
            groups: FxHashMap::default(),
            lanes: FxHashMap::default(),
            by_received: BTreeMap::new(),
            windows: Vec::new(),
            free: Vec::new(),
            received: i64::MIN,
            next_seq: 0,
            bytes: 0,
            counts: Counts::default(),
        }
    }

    /// The numbers of rules, by their ids; those of other rules that have no open window, and nothing in the outlet, are forgotten.
    pub fn rules<'a>(&mut self, ids: impl Iterator<Item = &'a str>, out: &Outlet) -> Vec<u32> {
        let kept = out.state();
        let lanes = self.lanes.keys().chain(kept.counts.iter().map(|(lane, _)| lane));
        let used: rustc_hash::FxHashSet<u32> = lanes.map(|lane| lane.rule).collect();
        self.rules.retain(|number| used.contains(&number));
        ids.map(|id| self.rules.number(id)).collect()
    }

    /// The number of a tenant.
    pub fn tenant(&mut self, org_id: &str) -> u32 {
        let number = self.tenant_names.number(org_id);
        if self.tenants.len() <= number as usize {
            self.tenants.push(Tenant { reached: i64::MIN, by_event: BTreeMap::new(), bytes: 0 });
        }
        number
    }

    /// The latest receive time so far (µs); `i64::MIN` before the first event.
    pub fn received(&self) -> i64 {
        self.received
    }

    /// Open windows, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.groups.len(), self.bytes)
    }

    /// What was done since this was asked last.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Takes the times of a row into account, before its matches: closes the windows that are over by now. `time` is `None`
    /// for a row that says nothing about where event time is.
    pub fn observe(&mut self, tenant: u32, time: Option<i64>, received: i64, out: &mut Outlet) {
        if received != i64::MIN && received < self.received.saturating_sub(self.bounds.lateness_us) {
            self.fall(received, out);
        }
        if received > self.received {
            self.received = received;
            while let Some((_, slot)) = self.by_received.first_key_value().filter(|((due, _), _)| *due <= received) {
                let slot = *slot;
                self.close(slot, out);
            }
        }
        let (Some(time), Some(state)) = (time, self.tenants.get_mut(tenant as usize)) else { return };
        if time <= state.reached {
            return;
        }
        state.reached = time;
        while let Some(slot) = self.due(tenant, time) {
            self.close(slot, out);
        }
    }

    /// Receive time falls to `received`.
    fn fall(&mut self, received: i64, out: &mut Outlet) {
        self.received = received;
        let latest = received.saturating_add(self.bounds.ahead_us);
        for tenant in 0..self.tenants.len() {
            let Some(state) = self.tenants.get_mut(tenant) else { continue };
            state.reached = state.reached.min(received);
            // What begins after that is due after that.
            let due: Vec<u32> = state.by_event.range((latest, 0)..).map(|(_, slot)| *slot).collect();
            for slot in due {
                let start = self.window(slot).map(|window| window.end.saturating_sub(window.span));
                if start.is_some_and(|start| start > latest) {
                    self.tell(slot, out);
                }
            }
        }
    }

    fn due(&self, tenant: u32, time: i64) -> Option<u32> {
        let ((due, _), slot) = self.tenants.get(tenant as usize)?.by_event.first_key_value()?;
        (*due <= time).then_some(*slot)
    }

    /// Takes a match: raises an alert, which `make` makes, or counts it in a window.
    pub fn offer(&mut self, met: Met<'_>, out: &mut Outlet, make: impl FnOnce() -> Alert) {
        let Met { lane, span, .. } = met;
        let group = Group { lane, hash: met.group };
        while let Some(slot) = self.groups.get(&group).copied().filter(|_| span > 0) {
            if self.window(slot).is_some_and(|window| met.placed < window.end) {
                self.fold(slot, met, make);
                self.make_room(lane, out);
                return;
            }
            self.close(slot, out);
        }
        if let Some(last) = out.full(lane) {
            fold_into(last, met, self.bounds.event_ids_max);
            return;
        }
        let alert = make();
        let first_id = alert.alert_id.clone();
        out.push(lane, alert);
        if span > 0 {
            self.open(group, met.placed, span, first_id, 0);
            self.make_room(lane, out);
        }
    }

    fn window(&self, slot: u32) -> Option<&Window> {
        self.windows.get(slot as usize)?.as_ref()
    }

    fn fold(&mut self, slot: u32, met: Met<'_>, make: impl FnOnce() -> Alert) {
        let Some(Some(window)) = self.windows.get_mut(slot as usize) else { return };
        let more = match &mut window.folded {
            Some(alert) => fold_into(alert, met, self.bounds.event_ids_max),
            none => {
                let alert = make();
                let bytes = alert_bytes(&alert);
                *none = Some(Box::new(alert));
                bytes
            }
        };
        self.counts.suppressed += 1;
        self.bytes += more;
        if let Some(tenant) = self.tenants.get_mut(window.group.lane.tenant as usize) {
            tenant.bytes += more;
        }
    }

    fn open(&mut self, group: Group, start: i64, span: i64, first_id: String, continued: u32) {
        let reached = self.tenants.get(group.lane.tenant as usize).map_or(start, |tenant| tenant.reached);
        let wait = span.saturating_add(self.bounds.lateness_us);
        let window = Window {
            group,
            seq: self.next_seq,
            end: start.saturating_add(span),
            span,
            // One that is behind already (old events that come late) waits as long as any other.
            due_event: start.max(reached).saturating_add(wait),
            due_received: self.received.saturating_add(wait),
            first_id,
            continued,
            folded: None,
        };
        self.link(window);
    }

    /// Puts a window where it can be found.
    fn link(&mut self, window: Window) {
        self.next_seq = self.next_seq.max(window.seq + 1);
        let slot = self.free.pop().unwrap_or(self.windows.len() as u32);
        let bytes = window.bytes();
        self.bytes += bytes;
        self.groups.insert(window.group, slot);
        self.lanes.entry(window.group.lane).or_default().insert(window.seq, slot);
        self.by_received.insert((window.due_received, window.seq), slot);
        if let Some(tenant) = self.tenants.get_mut(window.group.lane.tenant as usize) {
            tenant.by_event.insert((window.due_event, window.seq), slot);
            tenant.bytes += bytes;
        }
        match self.windows.get_mut(slot as usize) {
            Some(place) => *place = Some(window),
            None => self.windows.push(Some(window)),
        }
    }

    fn unlink(&mut self, slot: u32) -> Option<Window> {
        let window = self.windows.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        let bytes = window.bytes();
        self.bytes = self.bytes.saturating_sub(bytes);
        self.groups.remove(&window.group);
        let lane = window.group.lane;
        if let Some(windows) = self.lanes.get_mut(&lane) {
            windows.remove(&window.seq);
            if windows.is_empty() {
                self.lanes.remove(&lane);
            }
        }
        self.by_received.remove(&(window.due_received, window.seq));
        if let Some(tenant) = self.tenants.get_mut(lane.tenant as usize) {
            tenant.by_event.remove(&(window.due_event, window.seq));
            tenant.bytes = tenant.bytes.saturating_sub(bytes);
        }
        Some(window)
    }

    /// Closes a window: raises what it counted and opens the next one, if it counted anything.
    fn close(&mut self, slot: u32, out: &mut Outlet) {
        let Some(mut window) = self.unlink(slot) else { return };
        if let Some(folded) = window.folded.take() {
            let Window { group, end, span, continued, .. } = window;
            let first_id = window.first_id.clone();
            out.push(group.lane, follow_up(&window, *folded));
            self.open(group, end, span, first_id, continued.saturating_add(1));
        }
    }

    /// Evicts until the bounds hold: in the lane the oldest windows; over all, those of the tenant that takes the room if it
    /// has more than a quarter of it all, else the oldest.
    fn make_room(&mut self, lane: Lane, out: &mut Outlet) {
        while let Some(windows) = self.lanes.get(&lane).filter(|windows| windows.len() > self.bounds.groups_max.max(1))
        {
            let Some(slot) = windows.first_key_value().map(|(_, slot)| *slot) else { break };
            self.evict(slot, out);
        }
        while self.bytes > self.bounds.bytes_max {
            let own = self.tenants.get(lane.tenant as usize).filter(|own| own.bytes > self.bounds.bytes_max / 4);
            let oldest = own.map_or(&self.by_received, |own| &own.by_event).first_key_value();
            let Some(slot) = oldest.map(|(_, slot)| *slot) else { break };
            self.evict(slot, out);
        }
    }

    fn evict(&mut self, slot: u32, out: &mut Outlet) {
        self.counts.evicted += 1;
        self.tell(slot, out);
    }

    /// Ends a window: raises what it counted, and opens no other.
    fn tell(&mut self, slot: u32, out: &mut Outlet) {
        let Some(mut window) = self.unlink(slot) else { return };
        if let Some(folded) = window.folded.take() {
            out.push(window.group.lane, follow_up(&window, *folded));
        }
    }
}

/// Counts a match in an alert; by how many bytes that grew.
fn fold_into(alert: &mut Alert, met: Met<'_>, event_ids_max: usize) -> usize {
    alert.event_count = alert.event_count.saturating_add(1);
    alert.first_time = alert.first_time.min(met.time);
    alert.last_time = alert.last_time.max(met.time);
    if alert.event_ids.len() >= event_ids_max || met.event_id.is_empty() {
        return 0;
    }
    alert.event_ids.push(met.event_id.to_owned());
    met.event_id.len() + LISTED_BYTES
}

/// The alert that says what a window counted.
fn follow_up(window: &Window, mut alert: Alert) -> Alert {
    let which = format!("{}/{}", window.first_id, window.continued);
    alert.alert_id = alert_id(&alert.org_id, &alert.rule_id, &alert.group_key, &which);
    alert.message = format!("{} (continued: {} more in {})", alert.message, alert.event_count, span_text(window.span));
    alert.continues = Some(window.first_id.clone());
    alert
}

/// `5m`, `1h`, `90s`.
fn span_text(span: i64) -> String {
    let seconds = span / 1_000_000;
    match seconds {
        _ if seconds > 0 && seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        _ if seconds > 0 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}
