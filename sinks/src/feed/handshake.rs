//! What a request for the feed must say before it becomes a stream: who may ask from where, which form, from when on.

use hyper::header::{
    ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{Method, Version};
use tidegate_pipeline::url_text::decode_parameter;
use tidegate_pipeline::{LogBounds, Problem};

use super::filter::Filter;
use super::following::{Elsewhere, Positions};
use super::subscription::Start;

/// The sub-protocol of the feed.
pub const PROTOCOL: &str = "tidegate.alerts";

const BEARER: &str = "tidegate.bearer.";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Nodes that a client may name in its position.
const NODES_MAX: usize = 1_000;
const KNOWN: &[&str] = &["after", "level", "rule", "tag", "entity"];

/// The key that a browser passes as sub-protocol `tidegate.bearer.<key>`, in the form of an `Authorization` header
/// (`Bearer <key>`): browsers cannot set that header on a WebSocket, and a URL is no place for a key.
pub fn bearer_from_protocol(headers: &HeaderMap) -> Option<String> {
    let key = protocols(headers).find_map(|protocol| protocol.strip_prefix(BEARER))?;
    Some(format!("Bearer {key}"))
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    lists.filter_map(|list| list.to_str().ok()).flat_map(|list| list.split(',')).map(str::trim)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|of| of.trim().eq_ignore_ascii_case(token))
}

/// How the stream is carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// WebSocket; with the client's key, and whether it asked for our sub-protocol.
    WebSocket { key: String, protocol: bool },
    /// Server-sent events.
    Events,
}

/// A request that may become a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) form: Form,
    /// Where to start in the alerts of this node.
    pub(super) start: Start,
    /// The last alerts seen of the other nodes.
    pub(super) positions: Positions,
    /// Where to start in nodes of which nothing was said.
    pub(super) elsewhere: Elsewhere,
    pub(super) filter: Filter,
}

impl Wanted {
    /// Checks everything there is to check but whether the log [has come so far](Self::is_within). `own` is the name of this node,
    /// when there are others.
    ///
    /// # Errors
    /// 400, 403, 405 or 426, for the client.
    pub(super) fn read(parts: &Parts, origins: &[String], own: Option<&str>) -> Result<Self, Problem> {
        if parts.method != Method::GET {
            let message = format!("{} is not allowed here", parts.method);
            return Err(Problem::new(405, "method_not_allowed", message).hint("use GET"));
        }
        check_origin(&parts.headers, origins)?;
        let form = form(parts)?;
        let mut filter = Filter::default();
        let mut after = None;
        for (name, value) in parameters(parts.uri.query())? {
            let place = match name.as_str() {
                "after" => &mut after,
                "level" => &mut filter.level,
                "rule" => &mut filter.rule,
                "tag" => &mut filter.tag,
                "entity" => &mut filter.entity,
                _ => return Err(unknown(&name)),
            };
            if place.replace(value).is_some() {
                return Err(Problem::new(400, "invalid_parameter", format!("query parameter {name:?} is given twice")));
            }
        }
        // A browser that reconnects repeats the URL, and says in the header how far it has come.
        if let Some(last) = parts.headers.get(LAST_EVENT_ID).filter(|_| form == Form::Events) {
            after = Some(last.to_str().unwrap_or("?").to_owned());
        }
        let (start, positions, elsewhere) = match (after.as_deref(), own) {
            (Some(after), Some(own)) if after.contains(':') => resumed(after, own)?,
            (after, _) => {
                let elsewhere = if after == Some("-1") { Elsewhere::All } else { Elsewhere::Now };
                (start(after)?, Positions::new(), elsewhere)
            }
        };
        Ok(Self { form, start, positions, elsewhere, filter: filter.checked()? })
    }

    /// Whether the log holds, or held, what the client has seen.
    pub(super) fn is_within(&self, bounds: LogBounds) -> bool {
        !matches!(self.start, Start::At(from) if from > bounds.next)
    }

    /// The answer when it does not: to go on silently would hide that this is not the server that gave the number.
    pub(super) fn beyond(&self) -> Problem {
        let seq = if let Start::At(from) = self.start { i128::from(from) - 1 } else { -1 };
        refused_after(&seq.to_string(), "no alert has that seq yet: is it from another server?")
    }
}

fn unknown(name: &str) -> Problem {
    let hint = match name {
        "token" | "key" | "api_key" | "access_token" | "authorization" => {
            "a key does not belong in a URL: use the Authorization header, or the sub-protocol tidegate.bearer.<key>"
                .into()
        }
        _ => format!("known here: {}", KNOWN.join(", ")),
    };
    // What was given may be a key: it is not repeated.
    let name: String = name.chars().take(40).collect();
    Problem::new(400, "unknown_parameter", format!("unknown query parameter {name:?}")).hint(hint)
}

/// An origin is allowed when there is none (no browser), when it is that of this very host, or when it is configured.
fn check_origin(headers: &HeaderMap, origins: &[String]) -> Result<(), Problem> {
    let mut given = headers.get_all(ORIGIN).iter();
    let Some(origin) = given.next() else { return Ok(()) };
    let refused = || {
        Problem::new(403, "foreign_origin", "pages of this origin may not follow alerts")
            .hint("add it to `origins` of the feed, as scheme://host:port")
    };
    let origin = origin.to_str().map_err(|_| refused())?;
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let of_host =
        |scheme: &str| origin.strip_prefix(scheme).is_some_and(|authority| authority.eq_ignore_ascii_case(host));
    let same_host = !host.is_empty() && (of_host("http://") || of_host("https://"));
    let allowed = same_host || origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin));
    if allowed && given.next().is_none() { Ok(()) } else { Err(refused()) }
}

fn form(parts: &Parts) -> Result<Form, Problem> {
    let headers = &parts.headers;
    if headers.contains_key(UPGRADE) && has_token(headers, UPGRADE, "websocket") {
        return websocket(parts);
    }
    let accepts_events = headers.get_all(ACCEPT).iter().any(|accept| {
        let accept = accept.to_str().unwrap_or_default();
        accept.split([',', ';']).any(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
    });
    if accepts_events {
        return Ok(Form::Events);
    }
    Err(Problem::new(426, "upgrade_required", "this is a stream of alerts").hint(
        "connect with a WebSocket client, or ask with `Accept: text/event-stream`; GET /v2/alerts pages through them",
    ))
}

fn websocket(parts: &Parts) -> Result<Form, Problem> {
    let headers = &parts.headers;
    let bad = |message: &str| Problem::new(400, "invalid_handshake", message).hint("see RFC 6455, section 4.2.1");
    if parts.version != Version::HTTP_11 {
        return Err(bad("a WebSocket is opened with HTTP/1.1"));
    }
    if !has_token(headers, CONNECTION, "upgrade") {
        return Err(bad("Connection does not say Upgrade"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(Problem::new(426, "unsupported_websocket_version", "only version 13 is spoken here"));
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let key = keys.next().and_then(|key| key.to_str().ok()).filter(|key| is_base64_of_16(key));
    let (Some(key), None) = (key, keys.next()) else {
        return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64"));
    };
    let offered = protocols(headers).next().is_some();
    let ours = protocols(headers).any(|protocol| protocol == PROTOCOL);
    if offered && !ours {
        return Err(bad("Sec-WebSocket-Protocol does not offer tidegate.alerts"));
    }
    Ok(Form::WebSocket { key: key.to_owned(), protocol: ours })
}

/// 16 bytes in base64: 22 characters, of which the last carries 2 bits, and two of padding.
fn is_base64_of_16(key: &str) -> bool {
    let Some(text) = key.strip_suffix("==") else { return false };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.len() == 22 && text.bytes().all(plain) && text.ends_with(['A', 'Q', 'g', 'w'])
}

/// The positions of a client that has seen alerts of several nodes.
fn resumed(after: &str, own: &str) -> Result<(Start, Positions, Elsewhere), Problem> {
    let wrong = || {
        let shown: String = after.chars().take(200).collect();
        Problem::new(400, "invalid_parameter", format!("after cannot be {shown:?}"))
            .hint("repeat the `after` of the last frame that you have, or use -1 for all")
    };
    let mut positions = Positions::new();
    for part in after.split(',') {
        let (node, seq) = part.split_once(':').ok_or_else(wrong)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let seq: i64 = seq.parse().ok().filter(|seq| *seq >= -1).ok_or_else(wrong)?;
        if !(1..=64).contains(&node.len()) || !node.bytes().all(plain) || positions.len() >= NODES_MAX {
            return Err(wrong());
        }
        positions.insert(node.into(), seq);
    }
    // A client that comes from another node and has seen nothing of this one gets all of this one.
    let own = positions.remove(own).unwrap_or(-1).to_string();
    Ok((start(Some(&own))?, positions, Elsewhere::All))
}

fn start(after: Option<&str>) -> Result<Start, Problem> {
    let Some(after) = after else { return Ok(Start::Now) };
    let wrong = |hint| refused_after(after, hint);
    let seq: i64 = after.parse().map_err(|_| wrong("use the seq of the last alert you have, or -1 for all"))?;
    let from = u64::try_from(seq.saturating_add(1)).map_err(|_| wrong("use -1 for all"))?;
    Ok(Start::At(from))
}

fn refused_after(after: &str, hint: &str) -> Problem {
    let shown: String = after.chars().take(40).collect();
    Problem::new(400, "invalid_parameter", format!("after cannot be {shown:?}")).hint(hint)
}

fn parameters(query: Option<&str>) -> Result<Vec<(String, String)>, Problem> {
    let parts = query.unwrap_or_default().split('&').filter(|part| !part.is_empty());
    let decoded = parts.map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let wrong = || Problem::new(400, "invalid_parameter", "a query parameter is not percent-encoded UTF-8");
        Ok((decode_parameter(name).ok_or_else(wrong)?, decode_parameter(value).ok_or_else(wrong)?))
    });
    decoded.collect()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn wanted(path: &str, headers: &[(&str, &str)]) -> Result<Wanted, Problem> {
        let mut request = Request::get(path).header("host", "feed.example:4000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bounds = LogBounds { first: 5, next: 100 };
        let parts = request.body(()).expect("a request").into_parts().0;
        let wanted = Wanted::read(&parts, &["https://soc.example".to_owned()], Some("n1"))?;
        if wanted.is_within(bounds) { Ok(wanted) } else { Err(wanted.beyond()) }
    }

    fn upgrade(extra: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        let mut headers = vec![
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", KEY),
        ];
        headers.extend(extra);
        headers
    }

    #[test]
    fn a_good_handshake_says_what_is_wanted() {
        let headers = upgrade(&[("sec-websocket-protocol", "tidegate.alerts, tidegate.bearer.tg_abc")]);
        let wanted = wanted("/v2/alerts/stream?after=41&level=high&tag=attack.t1003", &headers).expect("good");
        assert_eq!(wanted.form, Form::WebSocket { key: KEY.into(), protocol: true });
        assert_eq!(wanted.start, Start::At(42));
        assert_eq!(wanted.filter.level.as_deref(), Some("high"));
    }

    #[test]
    fn events_resume_by_their_header() {
        let headers = [("accept", "text/event-stream"), ("last-event-id", "41")];
        assert_eq!(wanted("/v2/alerts/stream?after=3", &headers).expect("good").start, Start::At(42));
        assert_eq!(wanted("/v2/alerts/stream?after=-1", &headers[..1]).expect("good").start, Start::At(0));
        assert_eq!(wanted("/v2/alerts/stream", &headers[..1]).expect("good").start, Start::Now);
    }

    #[test]
    fn a_client_of_several_nodes_resumes_in_each() {
        let resumed = |after: &str| wanted(&format!("/v2/alerts/stream?after={after}"), &upgrade(&[]));
        let both = resumed("n1:41,n2:7").expect("good");
        assert_eq!((both.start, both.elsewhere), (Start::At(42), Elsewhere::All));
        assert_eq!(both.positions.into_iter().collect::<Vec<_>>(), [("n2".into(), 7)]);
        let other = resumed("n2:-1").expect("good");
        assert_eq!(other.start, Start::At(0), "nothing seen of this node");
        assert_eq!(resumed("41").expect("good").elsewhere, Elsewhere::Now);
        assert_eq!(resumed("-1").expect("good").elsewhere, Elsewhere::All);
        let long = format!("{}:1", "n".repeat(65));
        for wrong in ["n1:100", "n1:", ":1", "n1:-2", "n1:1,", "n1:1,n2", "n%201:1", "n1:1:2", &long] {
            assert_eq!(resumed(wrong).expect_err(wrong).status, 400, "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let without = |name: &str| upgrade(&[]).into_iter().filter(|(of, _)| *of != name).collect::<Vec<_>>();
        let cases = [
            (vec![], "", 426),
            (vec![("accept", "text/html")], "", 426),
            (without("connection"), "", 400),
            (without("sec-websocket-version"), "", 426),
            (without("sec-websocket-key"), "", 400),
            (upgrade(&[("sec-websocket-key", KEY)]), "", 400),
            (upgrade(&[("sec-websocket-protocol", "tidegate.bearer.tg_abc")]), "", 400),
            (upgrade(&[("sec-websocket-protocol", "graphql-ws")]), "", 400),
            (upgrade(&[]), "?token=tg_abc", 400),
            (upgrade(&[]), "?after=x", 400),
            (upgrade(&[]), "?after=-2", 400),
            (upgrade(&[]), "?after=100", 400),
            (upgrade(&[]), "?after=9223372036854775807", 400),
            (upgrade(&[]), "?level=loud", 400),
            (upgrade(&[]), "?level=high&level=low", 400),
            (upgrade(&[]), "?rule=%ff", 400),
        ];
        for (headers, query, status) in cases {
            let problem = wanted(&format!("/v2/alerts/stream{query}"), &headers).expect_err(query);
            assert_eq!(problem.status, status, "{headers:?} {query}: {problem:?}");
            assert!(!format!("{problem:?}").contains("tg_abc"), "a key is never repeated");
        }
        assert!(wanted("/v2/alerts/stream?after=99", &upgrade(&[])).is_ok());
    }

    #[test]
    fn origins_are_compared_exactly() {
        let allowed = ["http://feed.example:4000", "https://feed.example:4000", "https://soc.example"];
        for origin in allowed {
            assert!(wanted("/", &upgrade(&[("origin", origin)])).is_ok(), "{origin}");
        }
        let foreign = [
            "http://feed.example",
            "http://feed.example:4001",
            "http://feed.example:4000.evil.example",
            "http://evil.example",
            "https://soc.example:8443",
            "http://soc.example",
            "https://soc.example.evil.example",
            "https://xsoc.example",
            "null",
            "",
        ];
        for origin in foreign {
            assert_eq!(wanted("/", &upgrade(&[("origin", origin)])).expect_err(origin).status, 403, "{origin}");
            let events = [("accept", "text/event-stream"), ("origin", origin)];
            assert_eq!(wanted("/", &events).expect_err(origin).status, 403, "{origin}");
        }
    }

    #[test]
    fn the_key_comes_from_the_protocols() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer_from_protocol(&headers), None);
        headers.append("sec-websocket-protocol", "tidegate.alerts".parse().expect("a header"));
        assert_eq!(bearer_from_protocol(&headers), None);
        headers.append("sec-websocket-protocol", "x, tidegate.bearer.tg_abc".parse().expect("a header"));
        assert_eq!(bearer_from_protocol(&headers).as_deref(), Some("Bearer tg_abc"));
    }
}
