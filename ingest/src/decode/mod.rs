//! Bytes in, columns out: bodies of several tenants are decoded at once into shared column builders, and a flush makes them
//! batches.
//!
//! ```text
//! body ──scan──▶ one event's text ──simd-json──▶ tape ──walk──▶ cells (field, value)
//!                                                                 │ layout: the fields, in order
//!                                     mapping resolved per layout ◀┤
//!                                                                 ▼
//!                          family of column builders ──flush──▶ EventBatch, with a RowRef a row
//! ```
//!
//! There is no tree of values and no struct per row. One event that cannot be read costs one event: it is answered for by its
//! index in the body and a reason, and kept as a row of `dead_letters`. The JSON policy is in `docs/mappings.md`.

mod arrow_columns;
mod arrow_rows;
mod arrow_stream;
mod arrow_values;
mod budget;
mod config;
mod cost;
mod csv;
mod dead_letter;
mod family;
mod json;
mod layout;
pub mod metrics;
mod names;
mod plan;
mod rejected;
mod rest;
mod rows;
mod scalar;
mod scan;
mod shape;
mod tabular;
mod walk;

pub use budget::Room;
pub use config::DecodeConfig;

use std::ops::Range;
use std::sync::Arc;

use simd_json::Node as TapeNode;
use tidegate_events::Dataset;
use tidegate_pipeline::EventBatch;

pub(crate) use crate::error::IngestError;
use crate::mapping::Mappings;
use budget::Budget;
use cost::{CostRow, Numbers};
use dead_letter::DeadLetters;
use json::{JsonParser, Malformed};
use rows::{Origin, Rows};
use scan::Element;

/// One request's body and what is known of it. `org_id` comes from the key, never from the body.
#[derive(Debug)]
pub struct Body {
    /// The tenant.
    pub org_id: Arc<str>,
    /// The table: `SecurityEvents` or `CostEvents`.
    pub dataset: Dataset,
    /// What `?source=` said: the name of a mapping, or any name, which then becomes the column `source`.
    pub source: Option<Arc<str>>,
    /// How the bytes are to be read.
    pub format: BodyFormat,
    /// The body, inflated.
    pub bytes: Vec<u8>,
    /// When it came, microseconds since the epoch.
    pub received_us: i64,
    /// The header `Idempotency-Key`: with the index it makes the id of events that bring none.
    pub idempotency_key: Option<Arc<str>>,
    /// The id of the request, for the dead letters.
    pub request_id: Arc<str>,
}

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyFormat {
    /// One JSON object (`POST /v2/events`).
    Single,
    /// Many events: a JSON array, lines of objects (also several a line, or objects over several lines), or one object whose
    /// only member `events` (or `Records`) is an array.
    Json,
    /// CSV with a header of FOCUS names (RFC 4180).
    Csv,
    /// An Arrow IPC stream.
    ArrowStream,
}

/// What became of a body.
#[derive(Debug, Default)]
pub struct BodyResult {
    /// Events in the body, the rejected ones included. Index `i` of [`Rejected`] and [`RowRef`] counts them from 0.
    pub items: u32,
    /// Events that are not stored, ascending by index.
    pub rejected: Vec<Rejected>,
    /// Set when nothing of the body could be read: then `items` is 0. A body that breaks off in the middle is no such error: the
    /// events before the break are stored, and what follows is one rejected item.
    pub error: Option<BodyError>,
}

/// An event that is not stored in its own table, only as a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Which event of the body.
    pub index: u32,
    /// `malformed_json`, `invalid_utf8`, `too_deep`, `not_an_object`, `event_too_large`, `too_many_events`, `malformed_csv`,
    /// `malformed_arrow`.
    pub code: &'static str,
    /// For the sender, with the place.
    pub reason: String,
}

/// Why nothing of a body can be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyError {
    /// `empty_body`, `unknown_csv_header`, `malformed_csv`, `malformed_arrow`, `unsupported_column`, `too_many_fields`,
    /// `wrong_dataset`, `too_many_rejected`, `body_too_large`, or what [`Room::grant`] said.
    pub code: &'static str,
    /// For the sender.
    pub reason: String,
}

/// All that was decoded since the last flush.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The batches; dead letters are one of [`Dataset::DeadLetters`], the last.
    pub batches: Vec<EventBatch>,
    /// For each batch and row, whence it came.
    pub rows: Vec<Vec<RowRef>>,
}

/// The event that a row was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRef {
    /// The body, counted from 0 in the order of [`Decoder::push`] since the last flush.
    pub body: u32,
    /// Its index in the body.
    pub item: u32,
}

/// What is counted between flushes.
#[derive(Debug, Default)]
struct Counts {
    duplicate_keys: u64,
    repaired: u64,
    times_unparsable: u64,
    fields_refused: u64,
}

/// Decodes bodies into column builders. One per decoding thread; it does no I/O and reads no clock.
pub struct Decoder {
    config: DecodeConfig,
    mappings: Arc<Mappings>,
    parser: JsonParser,
    /// For bodies that are parsed at once.
    whole: JsonParser,
    rows: Rows,
    dead: DeadLetters,
    cost: CostRow,
    /// Batches that came as Arrow streams.
    arrow: Vec<(EventBatch, Vec<RowRef>)>,
    arrow_rows: usize,
    bodies: u32,
    /// Bodies since the last flush of which nothing is to be stored.
    refused: Vec<u32>,
    bytes: usize,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("rows", &self.buffered_rows())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// So many events of an array that are of no known shape are parsed by themselves in any case, so that their shapes are learnt.
const UNKNOWN_FREE: usize = 4;

/// The state of one body while it is read.
struct Reading<'b> {
    origin: Origin,
    bytes: &'b [u8],
    /// The same bytes as text, where events may be of a known shape.
    text: Option<&'b str>,
    result: BodyResult,
    budget: Budget<'b>,
}

impl Decoder {
    /// A decoder with these mappings and bounds. `id_seed` is random, from the operating system: it keeps ids of two decoders
    /// apart and names from being made to collide.
    pub fn new(mappings: Arc<Mappings>, config: DecodeConfig, id_seed: u64) -> Self {
        Self {
            parser: JsonParser::new(config.depth_max),
            // The array is one level; a wrapped event at the bound itself is read by itself.
            whole: JsonParser::new(config.depth_max.saturating_add(1)),
            rows: Rows::new(mappings.clone(), config.clone(), id_seed),
            dead: DeadLetters::new(config.dead_letter_bytes_max),
            cost: CostRow::new(config.depth_max),
            arrow: Vec::new(),
            arrow_rows: 0,
            mappings,
            config,
            bodies: 0,
            refused: Vec::new(),
            bytes: 0,
        }
    }

    /// Decodes a body into the open builders. It never fails its neighbours.
    pub fn push(&mut self, body: Body) -> BodyResult {
        self.push_within(body, Room { grant: &mut |_| Ok(()), item_bytes: 0 })
    }

    /// As [`push`](Self::push), asking for room for what the body costs beside its bytes.
    pub fn push_within(&mut self, body: Body, room: Room<'_>) -> BodyResult {
        let number = self.bodies;
        self.bodies += 1;
        self.bytes += body.bytes.len();
        let mapping = body.source.as_deref().and_then(|name| self.mappings.position(name, body.dataset));
        let origin = Origin {
            scope: self.rows.scope(&body.org_id, body.dataset),
            org_id: body.org_id,
            dataset: body.dataset,
            mapping,
            source: body.source,
            received_us: body.received_us,
            idempotency_key: body.idempotency_key,
            request_id: body.request_id,
            body: number,
        };
        // Numbers of costs are kept as they were sent, which only the parser can tell.
        let shaped = matches!(body.format, BodyFormat::Single | BodyFormat::Json)
            && body.dataset != Dataset::CostEvents
            && self.config.shape_steps_max > 0;
        let text = if shaped { std::str::from_utf8(&body.bytes).ok() } else { None };
        let room = Room { grant: &mut *room.grant, item_bytes: room.item_bytes };
        let budget = Budget::new(room, body.format, body.bytes.len(), self.config.body_events_max);
        let mut reading = Reading { origin, bytes: &body.bytes, text, result: BodyResult::default(), budget };
        let read = if matches!(body.dataset, Dataset::SecurityEvents | Dataset::CostEvents) {
            match body.format {
                BodyFormat::Single => self.single(&mut reading),
                BodyFormat::Json => self.many(&mut reading),
                BodyFormat::Csv => self.csv(&mut reading),
                BodyFormat::ArrowStream => self.arrow(&mut reading),
            }
        } else {
            let reason = format!("events cannot be sent to {}", body.dataset.table_name());
            Err(BodyError { code: "wrong_dataset", reason })
        };
        let mut result = reading.result;
        if let Some(error) = reading.budget.into_refusal() {
            self.refused.push(number);
            result = BodyResult { error: Some(error), ..BodyResult::default() };
        } else if let Err(error) = read {
            result.error = Some(error);
        }
        result
    }

    /// Everything since the last flush as batches, and the builders empty again.
    ///
    /// # Errors
    /// [`IngestError::ColumnFull`] when one column passed 2 GiB of text, because flushes are too far apart; the events since
    /// the last flush are lost then, and must not be acknowledged.
    pub fn flush(&mut self) -> Result<Decoded, IngestError> {
        metrics::count(&std::mem::take(&mut self.rows.counts), self.rows.layouts.families.len());
        self.bodies = 0;
        self.bytes = 0;
        self.parser.shrink();
        self.whole.shrink();
        self.cost.shrink();
        let dead = self.dead.flush(&self.rows.walker.names);
        let arrow = std::mem::take(&mut self.arrow);
        self.arrow_rows = 0;
        let refused = std::mem::take(&mut self.refused);
        let mut decoded = Decoded::default();
        for (batch, rows) in self.rows.flush()?.into_iter().chain(arrow).chain(dead?) {
            decoded.batches.push(batch);
            decoded.rows.push(rows);
        }
        if !refused.is_empty() {
            decoded.forget(&refused)?;
        }
        Ok(decoded)
    }

    /// Bytes of bodies since the last flush.
    pub fn buffered_bytes(&self) -> usize {
        self.bytes
    }

    /// Rows since the last flush, dead letters included.
    pub fn buffered_rows(&self) -> usize {
        self.rows.len() + self.arrow_rows + self.dead.len()
    }

    /// A body of one event.
    fn single(&mut self, reading: &mut Reading<'_>) -> Result<(), BodyError> {
        let start = scan::skip_space(reading.bytes, scan::skip_bom(reading.bytes));
        let range = scan::trim_end(reading.bytes, start..reading.bytes.len());
        if range.is_empty() {
            return Err(empty_body());
        }
        if self.known(reading, range.start, |_, end| end == range.end).is_none() {
            self.event(reading, range);
        }
        Ok(())
    }

    /// A body of many events.
    fn many(&mut self, reading: &mut Reading<'_>) -> Result<(), BodyError> {
        let bytes = reading.bytes;
        let mut at = scan::skip_space(bytes, scan::skip_bom(bytes));
        if at == bytes.len() {
            return Err(empty_body());
        }
        let cost = reading.origin.dataset == Dataset::CostEvents;
        if bytes.get(at) == Some(&b'[') {
            let end =
                if cost { self.elements(reading, at + 1, false, bytes.len()) } else { self.array(reading, at + 1) };
            match end {
                Some(end) => at = end,
                None => return Ok(()),
            }
        } else if scan::may_be_envelope(bytes, at) {
            if !cost && self.at_once(reading, b"", at) {
                return Ok(());
            }
            if let Some(array) = scan::envelope(bytes, at) {
                // The scan for the envelope has seen that nothing but its closing brace follows the array.
                self.elements(reading, array + 1, false, bytes.len());
                return Ok(());
            }
        }
        self.lines(reading, at);
        Ok(())
    }

    /// The event at `at`, if it is of a known shape and if what follows it does; the place after it.
    #[inline]
    fn known(&mut self, reading: &mut Reading<'_>, at: usize, follows: impl Fn(&[u8], usize) -> bool) -> Option<usize> {
        let text = reading.text?;
        if !self.rows.shapes.is_worthwhile() {
            return None;
        }
        let end = self.rows.known_event(&reading.origin, reading.result.items, (text, at), follows);
        self.rows.shapes.note(end.is_some());
        reading.result.items += u32::from(end.is_some());
        end
    }

    /// The elements of the array that the body is, or begins with; the place after it, unless it breaks off or is done with all
    /// that follows. As long as most events are of known shapes, the others are parsed and learnt one by one; else all that is left is
    /// parsed at once.
    fn array(&mut self, reading: &mut Reading<'_>, mut at: usize) -> Option<usize> {
        let bytes = reading.bytes;
        let (mut more, mut known, mut unknown) = (false, 0usize, 0usize);
        while let Some(start) = scan::object_start(bytes, at, more) {
            if reading.result.items as usize >= reading.budget.items() && self.has_no_room(reading, start) {
                return None;
            }
            if let Some(end) = self.known(reading, start, |_, _| true) {
                known += 1;
                at = end;
            } else {
                unknown += 1;
                let one_by_one = reading.text.is_some() && self.rows.shapes.is_learning();
                if !one_by_one || unknown > UNKNOWN_FREE + known / 4 {
                    if self.at_once(reading, b"[", start) {
                        return None;
                    }
                    break;
                }
                let Element::Value(range) = scan::next_element(bytes, at, more) else { break };
                at = range.end;
                self.event(reading, range);
            }
            more = true;
        }
        self.elements(reading, at, more, bytes.len())
    }

    /// Decodes a short rest of a body that is, after `before`, an array, or wraps one, with a single parse, if all of its elements
    /// are objects that the parser takes; else nothing is done, and each element is looked at by itself.
    fn at_once(&mut self, reading: &mut Reading<'_>, before: &[u8], start: usize) -> bool {
        let range = scan::trim_end(reading.bytes, start..reading.bytes.len());
        let text = reading.bytes.get(range).unwrap_or_default();
        if text.len() > self.config.event_bytes_max {
            return false;
        }
        let first = reading.result.items;
        let Self { whole, rows, config, .. } = self;
        let Some(tape) = whole.parse_whole(before, text) else { return false };
        let array = match tape.0.first() {
            Some(TapeNode::Array { .. }) => Some(0),
            Some(TapeNode::Object { len: 1, .. }) => Some(2),
            _ => None,
        };
        let room = config.body_events_max.saturating_sub(first as usize);
        let mut elements = array.and_then(|array| object_elements(&tape.0, array, room));
        if let Some(elements) = &mut elements
            && first as usize + elements.len() > reading.budget.items()
            && !reading.budget.cover(first as usize + elements.len())
        {
            elements.clear();
        }
        for (item, range) in elements.iter().flatten().enumerate() {
            let event = tape.0.get(range.clone()).unwrap_or_default();
            rows.event(&reading.origin, first + item as u32, (event, None), Numbers::NONE);
        }
        let done = elements.as_ref().map(Vec::len);
        let tape = tape.reset();
        whole.give_back(tape);
        reading.result.items += done.unwrap_or(0) as u32;
        done.is_some()
    }

    /// The elements of an array within `limit`, from `at` on, which is after its bracket, or after an element when `more`; the
    /// place after the array, unless it breaks off.
    fn elements(&mut self, reading: &mut Reading<'_>, mut at: usize, mut more: bool, limit: usize) -> Option<usize> {
        let bytes = reading.bytes.get(..limit).unwrap_or_default();
        loop {
            match scan::next_element(bytes, at, more) {
                Element::Value(range) => {
                    at = range.end;
                    more = true;
                    if self.is_full(reading, range.start) {
                        return None;
                    }
                    self.event(reading, range);
                }
                Element::End(end) => return Some(end),
                Element::Broken(from, what) => {
                    let reason = format!("{what} (byte {from} of the body)");
                    self.reject(reading, from..limit, Malformed { code: "malformed_json", reason });
                    return None;
                }
            }
        }
    }

    /// Events one after the other: one a line, several a line, or one over several lines.
    fn lines(&mut self, reading: &mut Reading<'_>, mut at: usize) {
        let bytes = reading.bytes;
        // What may be scanned in vain for objects over several lines: without a bound, a body of lines that each open an
        // object would cost the square of its length.
        let mut patience = bytes.len().saturating_mul(2);
        loop {
            at = scan::skip_space(bytes, at);
            if at >= bytes.len() || self.is_full(reading, at) {
                return;
            }
            if let Some(end) = self.known(reading, at, scan::is_line_end) {
                at = end;
                continue;
            }
            let line_end = scan::line_end(bytes, at);
            let line = scan::trim_end(bytes, at..line_end);
            let whole = bytes.get(at) == Some(&b'{')
                && bytes.get(line.end - 1) == Some(&b'}')
                && line.len() <= self.config.event_bytes_max;
            if whole && self.try_event(reading, line.clone()).is_ok() {
                at = line_end;
            } else {
                at = self.odd_line(reading, line, &mut patience);
            }
        }
    }

    /// A line that is not just one object: several, the start of one, or none. The place to go on from.
    fn odd_line(&mut self, reading: &mut Reading<'_>, line: Range<usize>, patience: &mut usize) -> usize {
        let bytes = reading.bytes;
        let mut at = line.start;
        while at < line.end {
            if self.is_full(reading, at) {
                return bytes.len();
            }
            if !matches!(bytes.get(at), Some(b'{' | b'[')) {
                self.event(reading, at..line.end);
                return line.end;
            }
            let limit = at.saturating_add(*patience).clamp(line.end, bytes.len());
            let end = scan::value_end(bytes.get(..limit).unwrap_or_default(), at);
            if end.is_none_or(|end| end > line.end) {
                *patience = patience.saturating_sub(end.unwrap_or(limit) - at);
            }
            let Some(end) = end else {
                let reason = format!("an object or array does not end (byte {at} of the body)");
                self.reject(reading, at..line.end, Malformed { code: "malformed_json", reason });
                return line.end;
            };
            if bytes.get(at) == Some(&b'[') {
                self.elements(reading, at + 1, false, end);
            } else if let Err(malformed) = self.try_event(reading, at..end) {
                if end > line.end {
                    // What looked like an object over several lines is none: only this line is lost.
                    self.reject(reading, at..line.end, malformed);
                    return line.end;
                }
                self.reject(reading, at..end, malformed);
            }
            at = scan::skip_space(bytes, end);
        }
        at
    }

    /// One event, which is rejected if it cannot be read.
    fn event(&mut self, reading: &mut Reading<'_>, range: Range<usize>) {
        if let Err(malformed) = self.try_event(reading, range.clone()) {
            self.reject(reading, range, malformed);
        }
    }

    /// One event; an error, and nothing done, if its text cannot be read.
    #[inline]
    fn try_event(&mut self, reading: &mut Reading<'_>, range: Range<usize>) -> Result<(), Malformed> {
        let text = reading.bytes.get(range).unwrap_or_default();
        if text.len() > self.config.event_bytes_max {
            let reason = format!("the event has {} bytes, more than {}", text.len(), self.config.event_bytes_max);
            return Err(Malformed { code: "event_too_large", reason });
        }
        let Self { parser, rows, cost, .. } = self;
        let parsed = parser.parse(text)?;
        if !matches!(parsed.tape.0.first(), Some(TapeNode::Object { .. })) {
            let tape = parsed.tape.reset();
            parser.give_back(tape);
            let reason = "valid JSON, but not an object: an event is an object".to_owned();
            return Err(Malformed { code: "not_an_object", reason });
        }
        rows.counts.repaired += u64::from(parsed.repaired);
        let item = reading.result.items;
        if reading.origin.dataset == Dataset::CostEvents {
            cost.row(&parsed, |tape, numbers| rows.event(&reading.origin, item, (tape, None), numbers));
        } else {
            let learn = (reading.text.is_some() && !parsed.repaired).then_some(parsed.text);
            rows.event(&reading.origin, item, (&parsed.tape.0, learn), Numbers::NONE);
        }
        let tape = parsed.tape.reset();
        parser.give_back(tape);
        reading.result.items += 1;
        Ok(())
    }
}

/// Where each element of the array at `array` stands on the tape; `None` unless all are objects, few and shallow enough.
fn object_elements(tape: &[TapeNode<'_>], array: usize, events_max: usize) -> Option<Vec<Range<usize>>> {
    let Some(TapeNode::Array { len, .. }) = tape.get(array) else { return None };
    if *len > events_max {
        return None;
    }
    let mut elements = Vec::with_capacity(*len);
    let mut at = array + 1;
    for _ in 0..*len {
        let next = walk::after(tape, at);
        if !matches!(tape.get(at), Some(TapeNode::Object { .. })) {
            return None;
        }
        elements.push(at..next);
        at = next;
    }
    Some(elements)
}

fn empty_body() -> BodyError {
    BodyError { code: "empty_body", reason: "the body has no event in it".to_owned() }
}
