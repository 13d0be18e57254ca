//! API keys: who may do what for which tenant.

use std::str::FromStr;
use std::sync::Arc;

/// What a key allows. A role includes nothing of the others, except that `admin` includes all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Send events.
    Ingest,
    /// Query, read events and alerts, follow the feed.
    Read,
    /// Everything, for its tenant: keys and rules too.
    Admin,
}

impl Role {
    /// The word on the command line and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// Whether a key of this role may do what needs `needed`.
    pub fn allows(self, needed: Role) -> bool {
        self == Self::Admin || self == needed
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Ingest, Self::Read, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("no such role: {text:?} (ingest, read, admin)"))
    }
}

/// Who a request comes from, as its key says. A request can never choose its tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The tenant.
    pub org_id: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// The public id of the key, for the audit trail and the logs; `local` without keys.
    pub key_id: Arc<str>,
}

/// The tenant of everything while no key exists.
pub const DEFAULT_ORG: &str = "default";
