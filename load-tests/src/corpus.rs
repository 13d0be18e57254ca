//! Bodies, made before the run, with places in them that a few digits are written into for each request: so that every event has an
//! id and a time of its own, at a cost that leaves the cores to the server.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use chrono::DateTime;
use tidegate::story::{Random, Story, StoryOptions, reference_event};

use crate::case::{Encoding, Events, Format, Kind};

/// Events of one millisecond of event time.
const EVENTS_PER_MS: u64 = 20;
const DAY_MS: i64 = 86_400_000;

/// The bodies of a case.
#[derive(Debug)]
pub struct Corpus {
    templates: Vec<Template>,
    /// All bodies, when they are compressed.
    ready: Vec<Bytes>,
    base_ms: i64,
    per_request: u64,
}

/// A body and its places.
#[derive(Debug, Default)]
struct Template {
    bytes: Vec<u8>,
    /// Where eight hexadecimal digits say which request this is.
    requests: Vec<usize>,
    /// Where a time is, and the number of its event.
    times: Vec<(usize, u64)>,
}

/// An event as text, with its places.
struct Line {
    text: Vec<u8>,
    requests: Vec<usize>,
    times: Vec<usize>,
}

impl Corpus {
    /// Makes the bodies. `base_us` is the time of the first event, `requests` how many bodies will be asked for at most.
    ///
    /// # Errors
    /// When the story cannot give so many events, or Arrow bodies cannot be made of them.
    pub fn make(events: &Events, base_us: i64, requests: u64) -> anyhow::Result<Self> {
        let count = (events.corpus / events.per_request).max(1);
        // Not more templates than requests.
        let count = count.min(usize::try_from(requests).unwrap_or(usize::MAX)).max(1);
        let lines = lines(events, count * events.per_request, base_us)?;
        let templates = lines.chunks(events.per_request).map(|lines| template(lines, events.format));
        let mut corpus = Self {
            templates: templates.collect::<anyhow::Result<_>>()?,
            ready: Vec::new(),
            base_ms: base_us / 1_000,
            per_request: events.per_request as u64,
        };
        if events.encoding != Encoding::Identity {
            let made = (0..requests).map(|request| compress(&corpus.body(request), events.encoding));
            corpus.ready = made.collect::<anyhow::Result<_>>()?;
        }
        Ok(corpus)
    }

    /// The body of request `number`.
    pub fn body(&self, number: u64) -> Bytes {
        if let Some(ready) = usize::try_from(number).ok().and_then(|number| self.ready.get(number)) {
            return ready.clone();
        }
        let count = self.templates.len().max(1);
        let Some(template) = self.templates.get((number % count as u64) as usize) else { return Bytes::new() };
        let mut bytes = template.bytes.clone();
        let digits = hex(number as u32);
        for at in &template.requests {
            write(&mut bytes, *at, &digits);
        }
        let mut clock = Clock::default();
        let first = number * self.per_request;
        for (at, event) in &template.times {
            let ms = self.base_ms + ((first + event) / EVENTS_PER_MS) as i64;
            let millis = bytes.get(at + 19) == Some(&b'.');
            write(&mut bytes, *at, clock.text(ms, millis));
        }
        Bytes::from(bytes)
    }

    /// Bytes of an event on average, uncompressed.
    pub fn event_bytes(&self) -> f64 {
        let bytes: usize = self.templates.iter().map(|template| template.bytes.len()).sum();
        bytes as f64 / (self.templates.len() as u64 * self.per_request).max(1) as f64
    }
}

fn write(bytes: &mut [u8], at: usize, text: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + text.len()) {
        place.copy_from_slice(text);
    }
}

/// Times as text; the date is written anew only when the day changes.
#[derive(Debug, Default)]
struct Clock {
    day: i64,
    text: [u8; 23],
}

impl Clock {
    fn text(&mut self, ms: i64, millis: bool) -> &[u8] {
        let (day, rest) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS) as u64);
        if day != self.day || self.text[0] == 0 {
            self.day = day;
            let date =
                DateTime::from_timestamp_millis(ms).unwrap_or_default().format("%Y-%m-%dT00:00:00.000").to_string();
            write(&mut self.text, 0, date.as_bytes());
        }
        let mut two = |at: usize, number: u64| {
            self.text[at] = b'0' + (number / 10 % 10) as u8;
            self.text[at + 1] = b'0' + (number % 10) as u8;
        };
        two(11, rest / 3_600_000);
        two(14, rest / 60_000 % 60);
        two(17, rest / 1_000 % 60);
        two(20, rest % 1_000 / 10);
        self.text[22] = b'0' + (rest % 10) as u8;
        &self.text[..if millis { 23 } else { 19 }]
    }
}

fn hex(number: u32) -> [u8; 8] {
    std::array::from_fn(|at| b"0123456789abcdef"[(number >> (28 - 4 * at) & 0xf) as usize])
}

fn compress(body: &[u8], encoding: Encoding) -> anyhow::Result<Bytes> {
    Ok(match encoding {
        Encoding::Identity => body.to_vec(),
        Encoding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(body)?;
            encoder.finish()?
        }
        Encoding::Zstd => zstd::bulk::compress(body, 3)?,
    }
    .into())
}

fn template(lines: &[Line], format: Format) -> anyhow::Result<Template> {
    let mut template = Template::default();
    let (open, between, close): (&[u8], &[u8], &[u8]) = match format {
        Format::Array => (b"[", b",", b"]"),
        Format::Ndjson | Format::Arrow => (b"", b"\n", b"\n"),
    };
    template.bytes.extend_from_slice(open);
    for (number, line) in lines.iter().enumerate() {
        if number > 0 {
            template.bytes.extend_from_slice(between);
        }
        let start = template.bytes.len();
        template.bytes.extend_from_slice(&line.text);
        template.requests.extend(line.requests.iter().map(|at| start + at));
        template.times.extend(line.times.iter().map(|at| (start + at, number as u64)));
    }
    template.bytes.extend_from_slice(close);
    if format == Format::Arrow { arrow(&template, lines.len()) } else { Ok(template) }
}

/// The same events as an Arrow IPC stream. The texts of a column stand one after the other there, so the places are found by them.
fn arrow(json: &Template, rows: usize) -> anyhow::Result<Template> {
    let (schema, _) = arrow::json::reader::infer_json_schema(json.bytes.as_slice(), None)?;
    let builder = arrow::json::ReaderBuilder::new(Arc::new(schema)).with_batch_size(rows);
    let batch = builder.build(json.bytes.as_slice())?.next().context("no event in the body")??;
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    let mut template = Template { bytes: writer.into_inner()?, ..Template::default() };
    let each = json.requests.len() / rows;
    for column in 0..each {
        let places = json.requests.iter().skip(column).step_by(each);
        let width = if column == 0 { 32 } else { 16 };
        template.requests.extend(run(&template.bytes, &json.bytes, places, width)?);
    }
    let places = json.times.iter().map(|(at, _)| at);
    let found = run(&template.bytes, &json.bytes, places, 24)?;
    template.times = found.into_iter().zip(0..).collect();
    Ok(template)
}

/// Where texts of one width stand in a row.
fn run<'a>(
    bytes: &[u8],
    json: &[u8],
    places: impl Iterator<Item = &'a usize>,
    width: usize,
) -> anyhow::Result<Vec<usize>> {
    let texts: Vec<&[u8]> = places.filter_map(|at| json.get(*at..at + width)).collect();
    let joined = texts.concat();
    let first = memchr::memmem::find(bytes, &joined).context("the Arrow stream does not hold a column as it should")?;
    Ok((0..texts.len()).map(|number| first + number * width).collect())
}

fn lines(events: &Events, count: usize, base_us: i64) -> anyhow::Result<Vec<Line>> {
    let made: Vec<Vec<u8>> = match events.kind {
        Kind::Cloudtrail => story(tidegate::story::Kind::CloudTrail, events.seed, count, base_us),
        Kind::Windows => story(tidegate::story::Kind::Windows, events.seed, count, base_us),
        Kind::Fields => (0..count as u64).map(|i| fields(i, base_us, events.distinct_fields as u64)).collect(),
        kind => (0..count as u64).map(|i| generated(kind, events.seed + i, base_us, events.own_ids)).collect(),
    };
    ensure!(made.len() == count, "the story has only {} of {count} events: make events.corpus smaller", made.len());
    let (ids, times): (&[&str], &[&str]) = match events.kind {
        Kind::Cloudtrail => (&["\"eventID\":\""], &["\"eventTime\":\""]),
        Kind::Windows => (&[], &["\"@timestamp\":\"", "\"TimeCreated\":\""]),
        Kind::Reference | Kind::Large if events.own_ids => (&["\"_id\":\"", "\"request_id\":\""], &["\"time\":\""]),
        Kind::Small if events.own_ids => (&["\"_id\":\""], &["\"time\":\""]),
        Kind::Small | Kind::Fields => (&["\"id\":\""], &["\"time\":\""]),
        Kind::Reference | Kind::Large => (&["\"id\":\"", "\"request_id\":\""], &["\"time\":\""]),
    };
    made.into_iter().enumerate().map(|(number, text)| line(text, number as u32, (ids, times))).collect()
}

/// Finds the places of an event, and writes its number into the last digits of its ids.
fn line(mut text: Vec<u8>, number: u32, (ids, times): (&[&str], &[&str])) -> anyhow::Result<Line> {
    let find = |text: &[u8], key: &str| {
        let at = memchr::memmem::find(text, key.as_bytes()).with_context(|| format!("an event without {key}"))?;
        anyhow::Ok(at + key.len())
    };
    let mut requests = Vec::new();
    for key in ids {
        let at = find(&text, key)?;
        let length = text.get(at..).and_then(|rest| memchr::memchr(b'"', rest)).unwrap_or(0);
        ensure!(length >= 16, "{key} is too short for the numbers of request and event");
        write(&mut text, at + length - 8, &hex(number));
        requests.push(at);
    }
    let times = times.iter().map(|key| find(&text, key)).collect::<anyhow::Result<_>>()?;
    Ok(Line { text, requests, times })
}

fn story(kind: tidegate::story::Kind, seed: u64, count: usize, end_us: i64) -> Vec<Vec<u8>> {
    let story = Story::new(StoryOptions { seed, events: count * 3 + 4_000, end_us });
    story.filter(|item| item.kind == kind).map(|item| item.line.into_bytes()).take(count).collect()
}

fn generated(kind: Kind, i: u64, base_us: i64, own_ids: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(640);
    if kind == Kind::Small {
        small(i, base_us, &mut text);
    } else {
        reference_event(i, base_us, &mut text);
    }
    if kind == Kind::Large {
        text.pop();
        stack(i, &mut text);
    }
    if own_ids {
        // `{"id":…` → `{"_id":…`
        text.insert(2, b'_');
    }
    text
}

/// An event of about 100 bytes.
fn small(i: u64, base_us: i64, into: &mut Vec<u8>) {
    let mut random = Random::new(i);
    let mut clock = Clock::default();
    let time = String::from_utf8_lossy(clock.text(base_us / 1_000, true)).into_owned();
    let (id, door) = (random.bits(), random.below(400));
    let word = random.pick_skewed(&["opened", "closed", "held", "forced"]);
    // Writing to a vector cannot fail.
    let _ = write!(into, r#"{{"id":"{id:016x}","time":"{time}Z","door":"d-{door:03}","what":"{word}"}}"#);
}

/// An event with ten of `distinct` fields: the same ten in every event of a kind, and as many kinds as that makes.
fn fields(i: u64, base_us: i64, distinct: u64) -> Vec<u8> {
    const FIELDS: u64 = 10;
    let mut random = Random::new(i);
    let mut clock = Clock::default();
    let time = String::from_utf8_lossy(clock.text(base_us / 1_000, true)).into_owned();
    let mut text = Vec::with_capacity(320);
    // Writing to a vector cannot fail.
    let _ = write!(text, r#"{{"id":"{:016x}","time":"{time}Z""#, random.bits());
    let first = random.below((distinct / FIELDS).max(1)) * FIELDS;
    for field in first..first + FIELDS {
        let _ = write!(text, r#","field_{field:05}":"v{:03}""#, random.below(500));
    }
    text.push(b'}');
    text
}

/// The members `message` and `stack`, and the brace that closes the event: about 7.5 kB.
fn stack(i: u64, into: &mut Vec<u8>) {
    const PARTS: [&str; 12] = [
        "gateway", "session", "storage", "billing", "ledger", "cache", "router", "export", "index", "policy", "audit",
        "queue",
    ];
    let mut random = Random::new(i ^ 0x6c61_7267);
    let _ = write!(into, r#","message":"request failed after {} tries","stack":""#, random.below(9));
    for _ in 0..120 {
        let (first, second) = (random.pick_skewed(&PARTS), random.pick(&PARTS));
        let (method, line) = (random.below(4_000), random.below(900));
        let _ = write!(into, r"at io.harbor.{first}.{second}.Step{method:04x}.call(Step{method:04x}.java:{line})\n");
    }
    into.extend_from_slice(b"\"}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BASE_US: i64 = 1_795_132_800_000_000;

    /// The events of bodies 0 to 3 as values.
    fn sent(events: &Events) -> Vec<serde_json::Value> {
        let corpus = Corpus::make(events, BASE_US, 4).expect("bodies");
        let mut all = Vec::new();
        for number in 0..4 {
            let body = corpus.body(number);
            match events.format {
                Format::Array => all.extend(serde_json::from_slice::<Vec<_>>(&body).expect("an array")),
                Format::Ndjson => {
                    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                    all.extend(lines.map(|line| serde_json::from_slice(line).expect("an event")));
                }
                Format::Arrow => {
                    let reader = arrow::ipc::reader::StreamReader::try_new(body.as_ref(), None).expect("a stream");
                    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
                    reader.for_each(|batch| writer.write(&batch.expect("a batch")).expect("rows"));
                    let text = String::from_utf8(writer.into_inner()).expect("UTF-8");
                    all.extend(text.lines().map(|line| serde_json::from_str(line).expect("a row")));
                }
            }
        }
        all
    }

    #[test]
    fn every_event_of_every_request_has_an_id_and_a_time_of_its_own() {
        let cases = [
            (Kind::Reference, Format::Array, "id", "time"),
            (Kind::Reference, Format::Arrow, "id", "time"),
            (Kind::Cloudtrail, Format::Ndjson, "eventID", "eventTime"),
            (Kind::Windows, Format::Ndjson, "", "@timestamp"),
            (Kind::Small, Format::Ndjson, "id", "time"),
            (Kind::Large, Format::Ndjson, "id", "time"),
            (Kind::Fields, Format::Ndjson, "id", "time"),
        ];
        for (kind, format, id, time) in cases {
            let events = Events { kind, format, per_request: 30, corpus: 60, ..Events::default() };
            let sent = sent(&events);
            assert_eq!(sent.len(), 120, "{kind:?}");
            let texts = |name: &str| sent.iter().filter_map(|event| event[name].as_str()).collect::<Vec<_>>();
            if !id.is_empty() {
                assert_eq!(texts(id).into_iter().collect::<BTreeSet<_>>().len(), 120, "{kind:?} {format:?}");
            }
            let first = DateTime::from_timestamp_micros(BASE_US).expect("a time").timestamp_millis();
            for (number, text) in texts(time).iter().enumerate() {
                let at = DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis();
                let wanted = first + number as i64 / EVENTS_PER_MS as i64;
                assert_eq!(at / 1_000, wanted / 1_000, "{kind:?} {format:?} {number}: {text}");
                assert!(at % 1_000 == wanted % 1_000 || kind == Kind::Cloudtrail, "{kind:?} {number}: {text}");
            }
        }
    }

    #[test]
    fn sizes_are_what_the_cases_say() {
        for (kind, low, high) in
            [(Kind::Small, 90.0, 110.0), (Kind::Reference, 505.0, 530.0), (Kind::Large, 7_500.0, 8_500.0)]
        {
            let events = Events { kind, per_request: 100, corpus: 1_000, ..Events::default() };
            let bytes = Corpus::make(&events, BASE_US, 10).expect("bodies").event_bytes();
            assert!((low..high).contains(&bytes), "{kind:?}: {bytes}");
        }
    }

    #[test]
    fn compressed_bodies_are_those_of_the_plain_ones() {
        let mut events = Events { per_request: 10, corpus: 20, ..Events::default() };
        let plain = Corpus::make(&events, BASE_US, 3).expect("bodies");
        events.encoding = Encoding::Zstd;
        let packed = Corpus::make(&events, BASE_US, 3).expect("bodies");
        for number in 0..3 {
            let text = zstd::bulk::decompress(&packed.body(number), 1 << 20).expect("zstd");
            assert_eq!(text, plain.body(number), "{number}");
        }
    }

    #[test]
    fn the_clock_goes_over_midnight() {
        let mut clock = Clock::default();
        for (ms, text) in [
            (1_795_132_800_000 - 1, "2026-11-19T23:59:59.999"),
            (1_795_132_800_000, "2026-11-20T00:00:00.000"),
            (1_795_132_800_000 + 45_296_789, "2026-11-20T12:34:56.789"),
        ] {
            assert_eq!(clock.text(ms, true), text.as_bytes());
        }
    }
}
