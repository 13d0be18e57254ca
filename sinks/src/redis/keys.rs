//! The names of keys. Names that come from outside are percent-encoded, so that none can reach the key of another:
//!
//! | key | what |
//! |---|---|
//! | `<prefix>:stream:<tenant>:<dataset>` | entries for consumers |
//! | `<prefix>:cursor:<node>:<log>` | up to where a node's log is in the streams |
//! | `<prefix>:id:<16 bytes>` | an event id that is stored, or is about to be |
//! | `<prefix>:alerts:<node>` | a node's alerts for the feeds of the others |
//! | `<prefix>:nodes` | nodes that publish alerts, by when they were last seen |

use super::config::is_plain;

/// Makes the names of keys.
#[derive(Debug, Clone)]
pub(super) struct KeyNames {
    prefix: String,
}

impl KeyNames {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn stream(&self, org_id: &str, dataset: &str) -> String {
        format!("{}:stream:{}:{dataset}", self.prefix, encoded(org_id))
    }

    pub(super) fn cursor(&self, node: &str, log: &str) -> String {
        format!("{}:cursor:{}:{log}", self.prefix, encoded(node))
    }

    pub(super) fn id(&self, key: u128) -> Vec<u8> {
        [self.prefix.as_bytes(), b":id:", &key.to_be_bytes()].concat()
    }

    pub(super) fn alerts(&self, node: &str) -> String {
        format!("{}:alerts:{}", self.prefix, encoded(node))
    }

    pub(super) fn nodes(&self) -> String {
        format!("{}:nodes", self.prefix)
    }
}

/// Percent-encoded (RFC 3986, section 2.1), but for letters, digits, `_`, `-` and `.`.
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if is_plain(byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_reaches_the_key_of_another() {
        let keys = KeyNames::new("tidegate");
        assert_eq!(keys.stream("acme", "alerts"), "tidegate:stream:acme:alerts");
        let names = ["acme", "acme:alerts", "acme%3Aalerts", "", "*", "{acme}", "a\0b", "ä", "acme:alerts:x"];
        let mut seen = std::collections::HashSet::new();
        for name in names {
            let key = keys.stream(name, "alerts");
            assert_eq!(key.matches(':').count(), 3, "{key}");
            assert!(!key.contains(['*', '{', '[', '?', '\\', '\0']), "no pattern and no hash tag: {key}");
            assert!(seen.insert(key), "{name:?} has a key of its own");
        }
    }
}
