//! Splits a stream of bytes into records without holding more than one: NDJSON by lines, arrays by their brackets, CSV by
//! rows. What a record means is the server's business; here only its edges are found.

use std::io::{self, Read};

use anyhow::{Context, bail};
use tidegate_events::focus;

/// How records follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON value a line.
    Ndjson,
    /// `[…]`, or the same below `Records` or `events`; any number of these one after the other.
    Array,
    /// Rows below a header.
    Csv,
}

impl Format {
    /// The content type of a batch.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Array => "application/json",
            Self::Csv => "text/csv",
        }
    }
}

/// A stream of records.
#[derive(Debug)]
pub struct Records<R> {
    window: Window<R>,
    format: Format,
    /// Bytes consumed.
    position: u64,
    event_bytes_max: usize,
    /// The header row of CSV, with its line end.
    header: Vec<u8>,
    array: Array,
}

/// Where in an array document the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Array {
    /// Before a document.
    Outside,
    /// After `[`; the flag says whether an object is around the array.
    Inside(bool),
}

/// How much is read at once.
const WINDOW_BYTES: usize = 256 * 1024;
/// The object around an array must show its array within so many bytes.
const WRAPPER_BYTES_MAX: usize = 4096;

/// The bytes that are read and not yet consumed. Unlike that of a buffered reader, its view can be made longer: pipes and
/// decompressors hand out a few bytes at a time.
#[derive(Debug)]
struct Window<R> {
    reader: R,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    ended: bool,
}

impl<R: Read> Window<R> {
    fn new(reader: R) -> Self {
        Self { reader, bytes: vec![0; WINDOW_BYTES].into_boxed_slice(), start: 0, end: 0, ended: false }
    }

    /// At least so many bytes, up to [`WRAPPER_BYTES_MAX`]; fewer only before the end.
    fn peek(&mut self, at_least: usize) -> anyhow::Result<&[u8]> {
        while self.end - self.start < at_least && !self.ended {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.reader.read(&mut self.bytes[self.end..]) {
                Ok(read) => {
                    self.end += read;
                    self.ended = read == 0;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read the input"),
            }
        }
        Ok(&self.bytes[self.start..self.end])
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }
}

impl<R: Read> Records<R> {
    /// Finds out the format from the first bytes.
    ///
    /// # Errors
    /// When they are of no format that can be sent.
    pub fn new(reader: R, event_bytes_max: usize) -> anyhow::Result<Self> {
        let mut window = Window::new(reader);
        let mut position = 0;
        if window.peek(3)?.starts_with(b"\xef\xbb\xbf") {
            window.consume(3);
            position = 3;
        }
        let format = Format::Ndjson;
        let mut records = Self { window, format, position, event_bytes_max, header: Vec::new(), array: Array::Outside };
        records.skip_space()?;
        let start = records.window.peek(WRAPPER_BYTES_MAX)?;
        records.format = match start.first() {
            Some(b'[') => Format::Array,
            Some(b'{') if wrapper(start).is_some() => Format::Array,
            Some(b'{') | None => Format::Ndjson,
            Some(0 | 0xfe | 0xff) => {
                bail!("this is not UTF-8 text (UTF-16?): convert it first, for example with iconv")
            }
            Some(_) => Format::Csv,
        };
        if records.format == Format::Csv {
            records.read_header()?;
        }
        Ok(records)
    }

    /// The format that was found.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The header row of CSV, with its line end; empty for JSON.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes consumed so far: a position that [`skip_to`](Self::skip_to) takes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at a position that [`position`](Self::position) gave after a record of the same bytes.
    ///
    /// # Errors
    /// When the stream ends before, or cannot be read.
    pub fn skip_to(&mut self, position: u64) -> anyhow::Result<()> {
        // Inside an array only its brackets tell where the reader is, so these are read over, not jumped over.
        let mut scratch = Vec::new();
        while self.format == Format::Array && self.position < position {
            scratch.clear();
            if !self.next_element(&mut scratch)? {
                break;
            }
        }
        while self.position < position {
            let window = self.window.peek(1)?.len();
            if window == 0 {
                bail!(
                    "the input ends before byte {position}, where the last run stopped: it has changed; use --restart"
                );
            }
            let step = window.min(usize::try_from(position - self.position).unwrap_or(usize::MAX));
            self.consume(step);
        }
        Ok(())
    }

    /// Appends the next record to `into`, without what stands between records; `false` at the end.
    ///
    /// # Errors
    /// When the stream cannot be read, a record is larger than the bound, or an array is not one.
    pub fn next_into(&mut self, into: &mut Vec<u8>) -> anyhow::Result<bool> {
        match self.format {
            Format::Ndjson => self.next_line(into),
            Format::Csv => self.next_row(into),
            Format::Array => self.next_element(into),
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.window.consume(bytes);
        self.position += bytes as u64;
    }

    fn skip_space(&mut self) -> anyhow::Result<()> {
        loop {
            let window = self.window.peek(1)?;
            let space = window.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let all = space == window.len() && space > 0;
            self.consume(space);
            if !all {
                return Ok(());
            }
        }
    }

    fn peek(&mut self) -> anyhow::Result<Option<u8>> {
        Ok(self.window.peek(1)?.first().copied())
    }

    fn too_large(&self, start: u64) -> anyhow::Error {
        let max = self.event_bytes_max;
        anyhow::anyhow!(
            "the event at byte {start} is larger than {max} bytes: raise send.event_bytes_max, or take it out"
        )
    }

    /// Appends up to and with the next newline, or the end; `false` when there is nothing.
    fn take_line(&mut self, into: &mut Vec<u8>, start: u64, from: usize) -> anyhow::Result<bool> {
        let before = into.len();
        loop {
            let window = self.window.peek(1)?;
            if window.is_empty() {
                return Ok(into.len() > before);
            }
            let newline = memchr::memchr(b'\n', window);
            let step = newline.map_or(window.len(), |at| at + 1);
            into.extend_from_slice(&window[..step]);
            self.consume(step);
            if into.len() - from > self.event_bytes_max {
                return Err(self.too_large(start));
            }
            if newline.is_some() {
                return Ok(true);
            }
        }
    }

    fn next_line(&mut self, into: &mut Vec<u8>) -> anyhow::Result<bool> {
        self.skip_space()?;
        let (start, from) = (self.position, into.len());
        let found = self.take_line(into, start, from)?;
        trim_end(into, from);
        Ok(found)
    }

    /// A row ends at the first newline outside quotes (RFC 4180, 2.6).
    fn next_row(&mut self, into: &mut Vec<u8>) -> anyhow::Result<bool> {
        self.skip_space()?;
        let (start, from) = (self.position, into.len());
        let mut quotes = 0;
        loop {
            let line = into.len();
            let more = self.take_line(into, start, from)?;
            quotes += memchr::memchr_iter(b'"', &into[line..]).count();
            if quotes % 2 == 0 || !more {
                trim_end(into, from);
                return Ok(into.len() > from);
            }
        }
    }

    fn read_header(&mut self) -> anyhow::Result<()> {
        let mut header = Vec::new();
        self.next_row(&mut header)?;
        let text = String::from_utf8_lossy(&header);
        let known = |name: &str| {
            let name = name.trim().trim_matches('"');
            focus::columns().iter().any(|column| column.name == name || column.focus_names.contains(&name))
        };
        if text.split(',').filter(|name| known(name)).count() < FOCUS_NAMES_MIN {
            let start: String = text.chars().take(80).collect();
            bail!(
                "this is neither JSON nor a FOCUS cost export: its first line is {start:?}. \
                 Send NDJSON, a JSON array, or CSV whose header has FOCUS column names (BilledCost, ChargePeriodStart, …)"
            );
        }
        header.push(b'\n');
        self.header = header;
        Ok(())
    }

    /// Reads up to and with the `[` of a document.
    fn open_array(&mut self) -> anyhow::Result<()> {
        self.skip_space()?;
        let start = self.window.peek(WRAPPER_BYTES_MAX)?;
        let (bytes, wrapped) = match start.first() {
            Some(b'[') => (1, false),
            _ => match wrapper(start) {
                Some(bytes) => (bytes, true),
                None => bail!("byte {}: expected an array, or an object with \"Records\" or \"events\"", self.position),
            },
        };
        self.consume(bytes);
        self.array = Array::Inside(wrapped);
        Ok(())
    }

    fn next_element(&mut self, into: &mut Vec<u8>) -> anyhow::Result<bool> {
        loop {
            self.skip_space()?;
            match (self.array, self.peek()?) {
                (Array::Outside, None) => return Ok(false),
                (Array::Outside, Some(_)) => self.open_array()?,
                (Array::Inside(_), None) => bail!("the array is cut off at byte {}", self.position),
                (Array::Inside(_), Some(b',')) => self.consume(1),
                (Array::Inside(wrapped), Some(b']')) => {
                    self.consume(1);
                    if wrapped {
                        self.close_wrapper()?;
                    }
                    self.array = Array::Outside;
                }
                (Array::Inside(_), Some(_)) => {
                    self.take_value(into)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Appends one JSON value of any kind: up to where its brackets are closed, or, for a scalar, up to what ends it.
    fn take_value(&mut self, into: &mut Vec<u8>) -> anyhow::Result<()> {
        let (start, from) = (self.position, into.len());
        let mut edge = Edge::default();
        loop {
            let window = self.window.peek(1)?;
            if window.is_empty() {
                bail!("the event at byte {start} is cut off");
            }
            let (step, done) = edge.find(window);
            into.extend_from_slice(&window[..step]);
            self.consume(step);
            if into.len() - from > self.event_bytes_max {
                return Err(self.too_large(start));
            }
            if done && into.len() == from {
                bail!("byte {start}: expected an event or the end of the array");
            }
            if done {
                trim_end(into, from);
                return Ok(());
            }
        }
    }

    /// Reads up to and with the `}` of the object around an array. Other members after the array say nothing about events.
    fn close_wrapper(&mut self) -> anyhow::Result<()> {
        let mut edge = Edge { depth: 1, ..Edge::default() };
        loop {
            let window = self.window.peek(1)?;
            if window.is_empty() {
                bail!("the object around the array is cut off at byte {}", self.position);
            }
            let (step, done) = edge.find(window);
            self.consume(step);
            if done {
                return Ok(());
            }
        }
    }
}

/// So many columns of a CSV header must be FOCUS's.
const FOCUS_NAMES_MIN: usize = 3;

/// The bytes up to and with the `[` of `{"Records":[` or `{"events":[`.
fn wrapper(start: &[u8]) -> Option<usize> {
    let skip = |at: usize| {
        at + start.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_whitespace()).count()
    };
    let expect = |at: usize, word: &[u8]| start.get(at..)?.starts_with(word).then(|| skip(at + word.len()));
    let inside = expect(skip(0), b"{")?;
    let after_name = expect(inside, b"\"Records\"").or_else(|| expect(inside, b"\"events\""))?;
    let at_bracket = expect(after_name, b":")?;
    (start.get(at_bracket) == Some(&b'[')).then_some(at_bracket + 1)
}

fn trim_end(into: &mut Vec<u8>, from: usize) {
    while into.len() > from && into.last().is_some_and(u8::is_ascii_whitespace) {
        into.pop();
    }
}

/// Finds where a JSON value ends, window by window.
#[derive(Debug, Default)]
struct Edge {
    depth: usize,
    in_string: bool,
    escaped: bool,
    begun: bool,
}

impl Edge {
    /// How many bytes of the window belong to the value, and whether it ends there.
    fn find(&mut self, window: &[u8]) -> (usize, bool) {
        for (at, &byte) in window.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 0 => return (at, true),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                b',' if self.depth == 0 => return (at, true),
                byte if self.depth == 0 && self.begun && byte.is_ascii_whitespace() => return (at, true),
                _ => {}
            }
            self.begun = true;
        }
        (window.len(), false)
    }
}
