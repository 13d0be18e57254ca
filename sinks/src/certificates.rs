//! What is wrong with the certificate of a server, as something to tell an operator.

/// What to do about an error of this text, when a certificate is the reason. `setting` is how a file of authorities is named.
pub(crate) fn advice(error: &str, setting: &str) -> Option<String> {
    // As rustls writes it.
    let (_, reason) = error.split_once("invalid peer certificate: ")?;
    // The second: by another authority of the same name.
    let advice = if reason.starts_with("UnknownIssuer") || reason.starts_with("BadSignature") {
        format!(
            "no authority that is trusted here has signed the server's certificate: name a file with the one that has in {setting}"
        )
    } else if reason.contains("not valid for name") {
        "the server's certificate is for another name: use one of its names as the host in url".to_owned()
    } else if reason.to_ascii_lowercase().contains("expired") {
        "the server's certificate has expired: give it a new one".to_owned()
    } else {
        "give the server another certificate".to_owned()
    };
    Some(advice)
}
