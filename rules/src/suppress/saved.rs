//! The open windows as bytes, for checkpoints.
//!
//! Little endian; a text is its length as `u32` and its bytes, a list its length as `u32` and its elements.
//!
//! ```text
//! version u8 = 2, received i64
//! tenants: [name text, reached i64]
//! rules:   [id text]
//! windows, in the order in which they opened:
//!   [rule u32, tenant u32, hash u128, end i64, span i64, due_event i64, due_received i64, first_id text, continued u32,
//!    folded u8, if 1: alert]
//! outlet: second i64, counts: [rule u32, tenant u32, count u32], kept back: [rule u32, tenant u32, alert]
//! alert: alert_id, source, title text, level u8, tags [text], group_key text, first_time i64, last_time i64,
//!   event_ids [text], event_count i64, actor, asset, resource (u8, if 1: text), message, matched text,
//!   continues (u8, if 1: text)
//! ```

use rustc_hash::FxHashMap;
use tidegate_events::{Alert, Level};

use super::outlet::Kept;
use super::{Bounds, Group, Lane, Outlet, Suppression, Window};

const VERSION: u8 = 2;

impl Suppression {
    /// The state, to be given to [`restore`](Self::restore).
    pub fn save(&self, outlet: &Outlet) -> Vec<u8> {
        let Kept { second, mut counts, kept_back } = outlet.state();
        let mut windows: Vec<&Window> = self.windows.iter().flatten().collect();
        windows.sort_unstable_by_key(|window| window.seq);
        let of_outlet = counts.iter().map(|(lane, _)| lane.rule);
        let mut rules: Vec<u32> = windows.iter().map(|window| window.group.lane.rule).chain(of_outlet).collect();
        rules.sort_unstable();
        rules.dedup();
        let mut names: Vec<(&str, u32)> = rules.iter().map(|rule| (self.rules.name(*rule), *rule)).collect();
        names.sort_unstable();
        let places: FxHashMap<u32, usize> = names.iter().enumerate().map(|(at, (_, rule))| (*rule, at)).collect();

        // Numbers of rules are of this process only.
        counts.sort_unstable_by_key(|(lane, _)| (places.get(&lane.rule).copied(), lane.tenant));

        let mut out = Vec::new();
        out.push(VERSION);
        put_time(&mut out, self.received);
        put_count(&mut out, self.tenants.len());
        for (number, tenant) in self.tenants.iter().enumerate() {
            put_text(&mut out, self.tenant_names.name(number as u32));
            put_time(&mut out, tenant.reached);
        }
        put_count(&mut out, names.len());
        names.iter().for_each(|(name, _)| put_text(&mut out, name));
        put_count(&mut out, windows.len());
        for window in windows {
            let rule = places.get(&window.group.lane.rule).copied().unwrap_or_default();
            put_window(&mut out, window, rule);
        }
        let put_lane = |out: &mut Vec<u8>, lane: Lane| {
            put_count(out, places.get(&lane.rule).copied().unwrap_or_default());
            put_count(out, lane.tenant as usize);
        };
        put_time(&mut out, second);
        put_count(&mut out, counts.len());
        for (lane, count) in counts {
            put_lane(&mut out, lane);
            put_count(&mut out, count);
        }
        put_count(&mut out, kept_back.len());
        for (lane, alert) in kept_back {
            put_lane(&mut out, *lane);
            put_alert(&mut out, alert);
        }
        out
    }

    /// A state that was saved.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn restore(bounds: Bounds, bytes: &[u8], outlet: &mut Outlet) -> Result<Self, String> {
        let mut from = Reader { bytes };
        let version = from.byte()?;
        if version != VERSION {
            return Err(format!("version {version} of the windows is not known, only {VERSION}"));
        }
        let mut state = Self::new(bounds);
        state.received = from.time()?;
        for number in 0..from.count()? {
            if state.tenant(from.text()?) != number {
                return Err("a tenant is there twice".into());
            }
            let reached = from.time()?;
            if let Some(tenant) = state.tenants.get_mut(number as usize) {
                tenant.reached = reached;
            }
        }
        let mut rules = Vec::new();
        for _ in 0..from.count()? {
            rules.push(state.rules.number(from.text()?));
        }
        for seq in 0..from.count()? {
            let window = state.read_window(&mut from, u64::from(seq), &rules)?;
            if state.groups.contains_key(&window.group) {
                return Err("a group is there twice".into());
            }
            state.link(window);
        }
        let second = from.time()?;
        let mut counts = Vec::new();
        for _ in 0..from.count()? {
            let lane = state.read_lane(&mut from, &rules)?;
            counts.push((lane, from.count()? as usize));
        }
        let mut kept_back = Vec::new();
        for _ in 0..from.count()? {
            let lane = state.read_lane(&mut from, &rules)?;
            let names = (state.tenant_names.name(lane.tenant), state.rules.name(lane.rule));
            kept_back.push((lane, read_alert(&mut from, names.0, names.1)?));
        }
        outlet.resume(second, counts, kept_back);
        if !from.bytes.is_empty() {
            return Err(format!("{} bytes are left over", from.bytes.len()));
        }
        Ok(state)
    }

    fn read_lane(&self, from: &mut Reader<'_>, rules: &[u32]) -> Result<Lane, String> {
        let rule = *rules.get(from.count()? as usize).ok_or("it names a rule that is not there")?;
        let tenant = from.count()?;
        if tenant as usize >= self.tenants.len() {
            return Err("it names a tenant that is not there".into());
        }
        Ok(Lane { rule, tenant })
    }

    fn read_window(&self, from: &mut Reader<'_>, seq: u64, rules: &[u32]) -> Result<Window, String> {
        let Lane { rule, tenant } = self.read_lane(from, rules)?;
        let hash = u128::from_le_bytes(from.array()?);
        let (end, span) = (from.time()?, from.time()?);
        if span <= 0 {
            return Err(format!("a window of {span} µs"));
        }
        let (due_event, due_received) = (from.time()?, from.time()?);
        let (first_id, continued) = (from.text()?.to_owned(), from.count()?);
        let folded = match from.byte()? {
            0 => None,
            1 => Some(Box::new(read_alert(from, self.tenant_names.name(tenant), self.rules.name(rule))?)),
            other => return Err(format!("{other} is neither 0 nor 1")),
        };
        let group = Group { lane: Lane { rule, tenant }, hash };
        Ok(Window { group, seq, end, span, due_event, due_received, first_id, continued, folded })
    }
}

fn put_window(out: &mut Vec<u8>, window: &Window, rule: usize) {
    put_count(out, rule);
    put_count(out, window.group.lane.tenant as usize);
    out.extend_from_slice(&window.group.hash.to_le_bytes());
    [window.end, window.span, window.due_event, window.due_received].into_iter().for_each(|time| put_time(out, time));
    put_text(out, &window.first_id);
    put_count(out, window.continued as usize);
    match &window.folded {
        None => out.push(0),
        Some(alert) => {
            out.push(1);
            put_alert(out, alert);
        }
    }
}

fn put_alert(out: &mut Vec<u8>, alert: &Alert) {
    [&alert.alert_id, &alert.source, &alert.title].into_iter().for_each(|text| put_text(out, text));
    out.push(alert.level as u8);
    put_texts(out, &alert.tags);
    put_text(out, &alert.group_key);
    [alert.first_time, alert.last_time].into_iter().for_each(|time| put_time(out, time));
    put_texts(out, &alert.event_ids);
    put_time(out, alert.event_count);
    for text in [&alert.actor, &alert.asset, &alert.resource] {
        out.push(u8::from(text.is_some()));
        text.iter().for_each(|text| put_text(out, text));
    }
    [&alert.message, &alert.matched].into_iter().for_each(|text| put_text(out, text));
    out.push(u8::from(alert.continues.is_some()));
    alert.continues.iter().for_each(|text| put_text(out, text));
}

fn read_alert(from: &mut Reader<'_>, org_id: &str, rule_id: &str) -> Result<Alert, String> {
    Ok(Alert {
        alert_id: from.text()?.to_owned(),
        org_id: org_id.to_owned(),
        rule_id: rule_id.to_owned(),
        source: from.text()?.to_owned(),
        title: from.text()?.to_owned(),
        level: from.level()?,
        tags: from.texts()?,
        group_key: from.text()?.to_owned(),
        first_time: from.time()?,
        last_time: from.time()?,
        event_ids: from.texts()?,
        event_count: from.time()?,
        actor: from.optional()?,
        asset: from.optional()?,
        resource: from.optional()?,
        message: from.text()?.to_owned(),
        matched: from.text()?.to_owned(),
        continues: from.optional()?,
    })
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_time(out: &mut Vec<u8>, time: i64) {
    out.extend_from_slice(&time.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_count(out, texts.len());
    texts.iter().for_each(|text| put_text(out, text));
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or("it ends in the middle")?;
        self.bytes = rest;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn count(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn time(&mut self) -> Result<i64, String> {
        self.array().map(i64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.count()? as usize;
        let (head, rest) = self.bytes.split_at_checked(length).ok_or("it ends in a text")?;
        self.bytes = rest;
        std::str::from_utf8(head).map_err(|error| error.to_string())
    }

    fn texts(&mut self) -> Result<Vec<String>, String> {
        (0..self.count()?).map(|_| self.text().map(str::to_owned)).collect()
    }

    fn optional(&mut self) -> Result<Option<String>, String> {
        match self.byte()? {
            0 => Ok(None),
            _ => self.text().map(|text| Some(text.to_owned())),
        }
    }

    fn level(&mut self) -> Result<Level, String> {
        let number = self.byte()?;
        let levels = [Level::Informational, Level::Low, Level::Medium, Level::High, Level::Critical];
        levels.into_iter().find(|level| *level as u8 == number).ok_or_else(|| format!("level {number}"))
    }
}
