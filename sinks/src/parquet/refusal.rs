//! What an object store said, for people: the cause without keys and signatures, and what to do.

use std::io::{self, ErrorKind};

use object_store::Error;

/// The longest text of an object store that goes into a message.
const TEXT_CHARS_MAX: usize = 300;

/// The error of a request as one of the machine. `NotFound` is only said of an object, never of a bucket that is missing: a
/// file that is missing is dropped from the manifest.
pub(crate) fn explain(op: &str, url: &str, error: &Error) -> io::Error {
    let raw = error.to_string();
    let code = between(&raw, "<Code>", "</Code>").unwrap_or_default();
    let (kind, hint) = kind_of(error, code, &raw);
    let said = match between(&raw, "<Message>", "</Message>") {
        Some(message) => format!("{code}: {message}"),
        None if !code.is_empty() => code.to_owned(),
        None => without_queries(&raw),
    };
    let said: String = said.chars().take(TEXT_CHARS_MAX).collect();
    let text =
        if hint.is_empty() { format!("{op} at {url}: {said}") } else { format!("{op} at {url}: {said}; {hint}") };
    io::Error::new(kind, text)
}

const NO_BUCKET: &str = "make the bucket, or correct parquet.url";
const NO_RIGHT: &str =
    "give the credentials of this server the right to read, write, list and delete under the prefix of parquet.url";
const NO_KEY: &str = "check the credentials in the environment of this server, and its clock";
const AWAY: &str = "the object store is away or overloaded; it is tried again";

fn kind_of(error: &Error, code: &str, raw: &str) -> (ErrorKind, &'static str) {
    match code {
        "NoSuchBucket" | "ContainerNotFound" => return (ErrorKind::HostUnreachable, NO_BUCKET),
        "AccessDenied" | "AllAccessDisabled" | "AuthorizationFailure" => {
            return (ErrorKind::PermissionDenied, NO_RIGHT);
        }
        "ExpiredToken"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "RequestTimeTooSkewed"
        | "TokenRefreshRequired"
        | "AuthenticationFailed" => return (ErrorKind::PermissionDenied, NO_KEY),
        _ => {}
    }
    match error {
        Error::NotFound { .. } if raw.contains("bucket does not exist") => (ErrorKind::HostUnreachable, NO_BUCKET),
        Error::NotFound { .. } => (ErrorKind::NotFound, ""),
        Error::AlreadyExists { .. } | Error::Precondition { .. } => (ErrorKind::AlreadyExists, ""),
        Error::PermissionDenied { .. } => (ErrorKind::PermissionDenied, NO_RIGHT),
        Error::Unauthenticated { .. } => (ErrorKind::PermissionDenied, NO_KEY),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            (ErrorKind::Unsupported, "use an object store that can put an object only if it is absent (If-None-Match)")
        }
        _ => (ErrorKind::Other, AWAY),
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(found, _)| found)
}

/// The text with what follows the `?` of a URL left out: it may hold a signature.
fn without_queries(text: &str) -> String {
    let cut = |word: &str| match word.split_once('?') {
        Some((before, _)) if before.contains("://") => format!("{before}?…"),
        _ => word.to_owned(),
    };
    text.split_whitespace().map(cut).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_and_what_to_do_without_signatures() {
        let missing = |text: &str| Error::NotFound { path: "a/b".into(), source: text.into() };
        let denied = |text: &str| Error::PermissionDenied { path: "a/b".into(), source: text.into() };
        let other = |text: &str| Error::Generic { store: "S3", source: text.into() };
        let signed = "Error performing GET https://x.blob/c/k?sv=1&sig=SECRET in 3s - error sending request";
        for (error, kind, holds) in [
            (missing("status 404: <Error><Code>NoSuchKey</Code></Error>"), ErrorKind::NotFound, "NoSuchKey"),
            (missing("status 404: <Code>NoSuchBucket</Code>"), ErrorKind::HostUnreachable, "make the bucket"),
            (
                denied("<Code>AccessDenied</Code><Message>no</Message>"),
                ErrorKind::PermissionDenied,
                "AccessDenied: no; give",
            ),
            (other("400 <Code>ExpiredToken</Code>"), ErrorKind::PermissionDenied, "check the credentials"),
            (other("503 <Code>SlowDown</Code>"), ErrorKind::Other, "tried again"),
            (other(signed), ErrorKind::Other, "https://x.blob/c/k?… in 3s"),
        ] {
            let told = explain("put", "s3://b/p", &error);
            assert_eq!(told.kind(), kind, "{told}");
            assert!(told.to_string().contains(holds), "{told}");
            assert!(!told.to_string().contains("SECRET"), "{told}");
        }
    }
}
