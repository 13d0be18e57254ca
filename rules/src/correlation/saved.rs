//! The state of correlations as bytes.
//!
//! ```text
//! "TGCORR04", then little endian:
//!   largest receive time i64, receive time until which nothing is forgotten i64, next group number u64
//!   tenants: count, each: name, sources: count, each: name, latest i64, received i64
//!   correlations: count, each: tenant, scope (flag, name), id, fingerprint u64, groups: count, each:
//!     key, number, sources u64, events until room is looked for, when it is looked at i64, end of its last decided window i64 (the
//!     least one for none)
//!     events: count, each: time (zigzag of the difference to the one before), rule, id (flag, 16 bytes or text), value (flag, bytes)
//!     open windows: count, each: start i64, last i64, source, actor, asset, resource (flag and text)
//!     firings: count, each i64
//! XXH3-64 of all before it
//! ```
//!
//! Counts, lengths, numbers and differences are LEB128; texts have their length before them. Groups come in the order of their
//! last use.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::config::RulesConfig;
use crate::correlation::bucket::Bucket;
use crate::correlation::clock::{SOURCES_MAX, Source};
use crate::correlation::completing::Completing;
use crate::correlation::entry::{Entry, EventId, Value};
use crate::correlation::group::{Group, OpenWindow};
use crate::correlation::run::Correlations;
use crate::correlation::set::Correlation;
use crate::head::Head;

const MAGIC: &[u8; 8] = b"TGCORR04";
/// How often it is tried to make a state short enough by leaving out groups.
const SHORTER_MAX: usize = 6;

/// What state belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub scope: Option<Arc<str>>,
    pub id: String,
    pub fingerprint: u64,
}

impl Identity {
    pub fn of(correlation: &Correlation) -> Self {
        let Head { org_id, id, .. } = &correlation.head;
        Self { scope: org_id.clone(), id: id.clone(), fingerprint: correlation.fingerprint }
    }
}

/// The groups of a correlation and tenant, put aside.
#[derive(Debug)]
pub(crate) struct Kept {
    pub org_id: Arc<str>,
    pub identity: Identity,
    pub groups: Vec<Group>,
}

impl Correlations {
    /// The state, and how many groups are not in it: those used longest ago of each correlation and tenant, so many that it has at
    /// most so many bytes.
    pub fn save(&self, bytes_max: usize) -> (Vec<u8>, u64) {
        let mut part = 1.0;
        for _ in 0..SHORTER_MAX {
            let (out, left_out) = self.encode(part);
            if out.len() <= bytes_max {
                return (out, left_out);
            }
            part *= 0.9 * bytes_max as f64 / out.len() as f64;
        }
        self.encode(0.0)
    }

    /// The state with this part of its groups.
    fn encode(&self, part: f64) -> (Vec<u8>, u64) {
        let mut left_out = 0;
        let mut skipped = |count: usize| {
            let skipped = count - (count as f64 * part).ceil().min(count as f64) as usize;
            left_out += skipped as u64;
            skipped
        };
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.clock.received.to_le_bytes());
        out.extend_from_slice(&self.clock.doubted_until.to_le_bytes());
        out.extend_from_slice(&self.next_number.to_le_bytes());
        put(&mut out, self.clock.tenants.len() as u64);
        for tenant in &self.clock.tenants {
            put_text(&mut out, tenant.org_id.as_bytes());
            put(&mut out, tenant.sources.len() as u64);
            for source in &tenant.sources {
                put_text(&mut out, source.name.as_bytes());
                out.extend_from_slice(&source.latest.to_le_bytes());
                out.extend_from_slice(&source.received.to_le_bytes());
            }
        }
        let live: Vec<(&Arc<str>, Identity, &Bucket)> =
            self.buckets.iter().filter_map(|bucket| self.named(bucket)).collect();
        put(&mut out, (live.len() + self.kept.len()) as u64);
        for (org_id, identity, bucket) in live {
            let skipped = skipped(bucket.len());
            put_identity(&mut out, org_id, &identity, bucket.len() - skipped);
            bucket.iter().skip(skipped).for_each(|group| put_group(&mut out, group));
        }
        for kept in &self.kept {
            let skipped = skipped(kept.groups.len());
            put_identity(&mut out, &kept.org_id, &kept.identity, kept.groups.len() - skipped);
            kept.groups.iter().skip(skipped).for_each(|group| put_group(&mut out, group));
        }
        let sum = xxh3_64(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        (out, left_out)
    }

    fn named<'a>(&'a self, bucket: &'a Bucket) -> Option<(&'a Arc<str>, Identity, &'a Bucket)> {
        let tenant = self.clock.tenants.get(bucket.tenant as usize)?;
        let correlation = self.rules.as_ref()?.correlations.correlations.get(bucket.correlation as usize)?;
        (bucket.len() > 0).then(|| (&tenant.org_id, Identity::of(correlation), bucket))
    }

    /// A state that was saved; empty bytes are the state at the beginning.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn restore(config: &RulesConfig, bytes: &[u8]) -> Result<Self, String> {
        let mut own = Self::new(config);
        if bytes.is_empty() {
            return Ok(own);
        }
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or("it is cut")?;
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return Err("its checksum is wrong".into());
        }
        let mut input = Input(body.strip_prefix(MAGIC).ok_or("it is of another version")?);
        own.clock.received = input.time()?;
        own.clock.doubted_until = input.time()?;
        own.next_number = u64::from_le_bytes(input.take()?);
        for _ in 0..input.count(2)? {
            let org_id = input.text()?;
            let tenant = own.clock.tenant(org_id).ok_or("it has too many tenants")?;
            let mut sources = Vec::new();
            for _ in 0..input.count(17)? {
                sources.push(Source { name: input.text()?.into(), latest: input.time()?, received: input.time()? });
            }
            if sources.len() > SOURCES_MAX {
                return Err("it has too many sources".into());
            }
            if let Some(tenant) = own.clock.tenants.get_mut(tenant as usize) {
                tenant.sources = sources;
            }
        }
        for _ in 0..input.count(12)? {
            own.kept.push(input.kept()?);
        }
        if input.0.is_empty() { Ok(own) } else { Err("it has too many bytes".into()) }
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put(out, text.len() as u64);
    out.extend_from_slice(text);
}

fn put_some(out: &mut Vec<u8>, text: Option<&str>) {
    out.push(u8::from(text.is_some()));
    text.into_iter().for_each(|text| put_text(out, text.as_bytes()));
}

fn put_identity(out: &mut Vec<u8>, org_id: &str, identity: &Identity, groups: usize) {
    put_text(out, org_id.as_bytes());
    put_some(out, identity.scope.as_deref());
    put_text(out, identity.id.as_bytes());
    out.extend_from_slice(&identity.fingerprint.to_le_bytes());
    put(out, groups as u64);
}

fn put_group(out: &mut Vec<u8>, group: &Group) {
    put_text(out, &group.key);
    put(out, group.number);
    out.extend_from_slice(&group.sources.to_le_bytes());
    put(out, u64::from(group.crowded()));
    out.extend_from_slice(&group.armed.to_le_bytes());
    out.extend_from_slice(&group.decided().unwrap_or(i64::MIN).to_le_bytes());
    put(out, group.entries().len() as u64);
    let mut before = 0;
    for entry in group.entries() {
        let step = entry.time.wrapping_sub(before);
        before = entry.time;
        put(out, ((step << 1) ^ (step >> 63)) as u64);
        put(out, u64::from(entry.slot));
        match &entry.id {
            EventId::Uuid(bytes) => {
                out.push(1);
                out.extend_from_slice(bytes);
            }
            EventId::Text(text) => {
                out.push(0);
                put_text(out, text.as_bytes());
            }
        }
        let (flag, halves): (u8, &[u64]) = match &entry.value {
            Value::None => (0, &[]),
            Value::Counted(halves) => (1, halves),
            Value::Exact(halves) => (2, halves),
            Value::Float(value) => (3, &[value.to_bits()]),
        };
        out.push(flag);
        halves.iter().for_each(|half| out.extend_from_slice(&half.to_le_bytes()));
    }
    put(out, group.windows().len() as u64);
    for window in group.windows() {
        let (last, about) = &window.last;
        out.extend_from_slice(&window.start.to_le_bytes());
        out.extend_from_slice(&last.to_le_bytes());
        put_text(out, about.source().as_bytes());
        about.about().into_iter().for_each(|text| put_some(out, text));
    }
    put(out, group.fires().len() as u64);
    group.fires().iter().for_each(|fire| out.extend_from_slice(&fire.to_le_bytes()));
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("it is cut")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn flag(&mut self) -> Result<u8, String> {
        self.take::<1>().map(|[flag]| flag)
    }

    fn time(&mut self) -> Result<i64, String> {
        self.take().map(i64::from_le_bytes)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.flag()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number is too long".into())
    }

    /// A count of things that take so many bytes each at least.
    fn count(&mut self, bytes_min: usize) -> Result<usize, String> {
        let count = usize::try_from(self.number()?).map_err(|error| error.to_string())?;
        if count > self.0.len() / bytes_min { Err("it is cut".into()) } else { Ok(count) }
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = self.count(1)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it is cut")?;
        self.0 = rest;
        Ok(taken)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|error| error.to_string())
    }

    fn some(&mut self) -> Result<Option<&'a str>, String> {
        if self.flag()? == 0 { Ok(None) } else { self.text().map(Some) }
    }

    fn kept(&mut self) -> Result<Kept, String> {
        let org_id = self.text()?.into();
        let scope = self.some()?.map(Arc::from);
        let id = self.text()?.to_owned();
        let fingerprint = u64::from_le_bytes(self.take()?);
        let mut groups = Vec::new();
        for _ in 0..self.count(30)? {
            groups.push(self.group()?);
        }
        Ok(Kept { org_id, identity: Identity { scope, id, fingerprint }, groups })
    }

    fn group(&mut self) -> Result<Group, String> {
        let key = self.bytes()?.into();
        let number = self.number()?;
        let sources = u64::from_le_bytes(self.take()?);
        let crowded = u32::try_from(self.number()?).map_err(|error| error.to_string())?;
        let (armed, decided) = (self.time()?, self.time()?);
        let count = self.count(4)?;
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        let mut before = 0i64;
        for _ in 0..count {
            let entry = self.entry(before)?;
            if !entries.is_empty() && entry.time < before {
                return Err("its events are not in order".into());
            }
            before = entry.time;
            entries.push(entry);
        }
        let mut group = Group::from_parts(key, number, sources, entries);
        if crowded > 0 {
            group.rare().crowded = crowded;
        }
        group.armed = armed;
        if decided > i64::MIN {
            group.closing().decided = decided;
        }
        for _ in 0..self.count(20)? {
            let (start, last) = (self.time()?, self.time()?);
            let about = Completing::new(self.text()?, [self.some()?, self.some()?, self.some()?]);
            let at = group.windows().len();
            group.closing().open(at, OpenWindow { start, last: (last, about) });
        }
        for _ in 0..self.count(8)? {
            let fire = self.time()?;
            group.rare().fires.push(fire);
        }
        if !group.windows().is_sorted_by_key(|window| window.start) || !group.fires().is_sorted() {
            return Err("its windows are not in order".into());
        }
        Ok(group)
    }

    fn entry(&mut self, before: i64) -> Result<Entry, String> {
        let step = self.number()?;
        let time = before.wrapping_add(((step >> 1) as i64) ^ -((step & 1) as i64));
        let slot = u16::try_from(self.number()?).map_err(|error| error.to_string())?;
        let id = match self.flag()? {
            0 => EventId::Text(self.text()?.into()),
            _ => EventId::Uuid(self.take()?),
        };
        let half = |input: &mut Self| input.take().map(u64::from_le_bytes);
        let value = match self.flag()? {
            0 => Value::None,
            1 => Value::Counted([half(self)?, half(self)?]),
            2 => Value::Exact([half(self)?, half(self)?]),
            3 => Value::Float(f64::from_bits(half(self)?)),
            other => return Err(format!("{other} is no kind of value")),
        };
        Ok(Entry { time, id, value, slot })
    }
}
