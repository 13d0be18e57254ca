//! Refuses requests whose length can be read in two ways, which is how requests are smuggled past a proxy.
//!
//! hyper refuses most such forms itself: differing or malformed `Content-Length`, a `Transfer-Encoding` that does not end
//! in `chunked`, folded headers, blanks before a colon. For `Content-Length` beside `Transfer-Encoding` it does what
//! RFC 9112, section 6.3 allows: it reads the body as chunked, closes the connection after the answer, and removes
//! `Content-Length`, so that nothing above can tell. We refuse, and therefore look at the head of a request as it
//! passes the socket ([`HeadWatch`]). A head that we could not watch, because it was pipelined behind another request, may
//! not use `Transfer-Encoding` at all.

use hyper::header::{HOST, TRANSFER_ENCODING};
use hyper::{Request, Version};
use tidegate_pipeline::Problem;

/// Watches the bytes of a connection for the head of the next request.
#[derive(Debug)]
pub(crate) struct HeadWatch {
    bytes_max: usize,
    seen: Vec<u8>,
    line_from: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next bytes are those of a head.
    Watching,
    /// `seen` is a whole head.
    Whole,
    /// In a body, or lost.
    Blind,
}

impl HeadWatch {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, seen: Vec::new(), line_from: 0, state: State::Watching }
    }

    /// Looks at bytes that were read from the socket.
    pub(crate) fn see(&mut self, bytes: &[u8]) {
        if self.state != State::Watching {
            return;
        }
        let mut from = 0;
        while let Some(rest) = bytes.get(from..).filter(|rest| !rest.is_empty()) {
            let line = memchr::memchr(b'\n', rest).map_or(rest, |at| &rest[..=at]);
            if self.seen.len() + line.len() > self.bytes_max {
                self.blind();
                return;
            }
            self.seen.extend_from_slice(line);
            from += line.len();
            if line.last() != Some(&b'\n') {
                return;
            }
            let blank = matches!(self.seen.get(self.line_from..), Some(b"\n" | b"\r\n"));
            if blank && self.line_from > 0 {
                self.state = State::Whole;
                return;
            }
            if blank {
                // Blank lines before a request line are skipped, as hyper does.
                self.seen.clear();
            }
            self.line_from = self.seen.len();
        }
    }

    fn blind(&mut self) {
        self.state = State::Blind;
        self.seen = Vec::new();
        self.line_from = 0;
    }

    /// A request was answered: what comes now is a head again.
    pub(crate) fn rearm(&mut self) {
        self.seen.clear();
        self.line_from = 0;
        self.state = State::Watching;
    }

    /// Whether the head that was watched is that of a request with this method and target, and names a length twice.
    /// `None` when it was not watched.
    fn names_two_lengths(&mut self, method: &str, path: &str) -> Option<bool> {
        let whole = std::mem::replace(&mut self.state, State::Blind) == State::Whole;
        let mut lines = self.seen.split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let target = first.strip_prefix(method.as_bytes()).and_then(|rest| rest.strip_prefix(b" "));
        // An absolute target has the authority before the path.
        let misses = |target: &[u8]| memchr::memmem::find(target, path.as_bytes()).is_none();
        if !whole || target.is_none_or(misses) {
            return None;
        }
        let (mut length, mut coding) = (false, false);
        for line in lines {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            length |= name.eq_ignore_ascii_case(b"content-length");
            coding |= name.eq_ignore_ascii_case(b"transfer-encoding");
        }
        Some(length && coding)
    }
}

/// Checks the framing of a request on HTTP/1.
///
/// # Errors
/// The problem to answer with, after which the connection must be closed.
pub(crate) fn check<B>(request: &Request<B>, head: &mut HeadWatch) -> Result<(), Problem> {
    if !matches!(request.version(), Version::HTTP_10 | Version::HTTP_11) {
        return Ok(());
    }
    let headers = request.headers();
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(bad("a request of HTTP/1.1 has exactly one Host header"));
    }
    let two_lengths = head.names_two_lengths(request.method().as_str(), request.uri().path());
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(bad("the only Transfer-Encoding accepted is a single `chunked`; use Content-Encoding to compress"));
    }
    match two_lengths {
        Some(false) => Ok(()),
        Some(true) => Err(bad("Content-Length and Transfer-Encoding contradict each other")),
        None => Err(bad("a chunked request may not be pipelined behind another one")),
    }
}

fn bad(message: &str) -> Problem {
    Problem::new(400, "ambiguous_framing", message).hint("send either Content-Length or Transfer-Encoding: chunked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(parts: &[&str]) -> Option<bool> {
        let mut head = HeadWatch::new(4096);
        for part in parts {
            head.see(part.as_bytes());
        }
        head.names_two_lengths("POST", "/v2/events")
    }

    #[test]
    fn two_lengths_are_seen_however_the_head_is_cut() {
        let cases = [
            ("POST /v2/events HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", Some(false)),
            ("POST /v2/events HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Some(false)),
            ("POST /v2/events HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Some(true)),
            ("POST /v2/events HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n", Some(true)),
            ("\r\n\nPOST /v2/events HTTP/1.1\ntransfer-encoding: chunked\ncontent-length: 3\n\n", Some(true)),
            ("POST http://a/v2/events HTTP/1.1\r\nContent-Length: 3\r\n\r\n", Some(false)),
            ("GET /v2/events HTTP/1.1\r\nContent-Length: 3\r\n\r\n", None),
            ("POST /v2/events HTTP/1.1\r\nContent-Length: 3\r\n", None),
        ];
        for (text, expected) in cases {
            assert_eq!(watched(&[text]), expected, "{text:?}");
            for cut in 1..text.len() {
                assert_eq!(watched(&[&text[..cut], &text[cut..]]), expected, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_head_over_the_bound_or_in_a_body_is_not_watched() {
        let mut head = HeadWatch::new(16);
        head.see(b"POST /v2/events HTTP/1.1\r\n\r\n");
        assert_eq!(head.names_two_lengths("POST", "/v2/events"), None);
        head.see(b"POST / HTTP\r\n\r\n");
        assert_eq!(head.names_two_lengths("POST", "/"), None, "still blind");
        head.rearm();
        head.see(b"POST / HTTP\r\n\r\n");
        assert_eq!(head.names_two_lengths("POST", "/"), Some(false));
    }
}
