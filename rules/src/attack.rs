//! MITRE ATT&CK as rules name it: tags of the namespace `attack` (Sigma tags specification), and the tactics there are.

use crate::error::RulesError;

/// One tactic of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tactic {
    /// As tags and Navigator layers name it: `initial-access`.
    pub name: String,
    /// For people: `Initial Access`.
    pub title: String,
    /// Whether ATT&CK has given it up; older rules still name it.
    #[serde(default)]
    pub retired: bool,
}

/// The tactics, in the order of the matrix.
///
/// # Errors
/// [`RulesError::Table`] when the shipped list is broken, which is a bug.
pub fn tactics() -> Result<Vec<Tactic>, RulesError> {
    #[derive(serde::Deserialize)]
    struct File {
        tactic: Vec<Tactic>,
    }
    let file: File = toml::from_str(include_str!("../attack/tactics.toml"))
        .map_err(|error| RulesError::Table { table: "tactics", reason: error.to_string() })?;
    Ok(file.tactic)
}

/// What a tag of the namespace `attack` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttackTag {
    /// A tactic, by its name (`initial-access`) or number (`TA0001`).
    Tactic(String),
    /// A technique or sub-technique: `T1059` or `T1059.001`.
    Technique(String),
    /// Something else that ATT&CK numbers: a group, a software, a campaign, a mitigation, a data source or component, a
    /// detection strategy.
    Other,
    /// Nothing that ATT&CK has the form of.
    Unknown(String),
}

/// Reads a tag; `None` when it is not of the namespace `attack`. Old rules write tactics with `_`.
pub fn attack_tag(tag: &str, tactics: &[Tactic]) -> Option<AttackTag> {
    let lower = tag.trim().to_lowercase();
    let name = lower.strip_prefix("attack.")?;
    let numbered = |prefix: &str, digits: usize| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == digits && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if is_technique(name) {
        return Some(AttackTag::Technique(name.to_uppercase()));
    }
    if numbered("ta", 4) {
        return Some(AttackTag::Tactic(name.to_uppercase()));
    }
    if ["g", "s", "c", "m"].into_iter().any(|prefix| numbered(prefix, 4))
        || ["ds", "dc", "det", "an"].into_iter().any(|prefix| numbered(prefix, 4))
    {
        return Some(AttackTag::Other);
    }
    let dashed = name.replace('_', "-");
    if tactics.iter().any(|tactic| tactic.name == dashed) {
        return Some(AttackTag::Tactic(dashed));
    }
    Some(AttackTag::Unknown(name.to_owned()))
}

/// `t1059` or `t1059.001`.
fn is_technique(name: &str) -> bool {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(rest) = name.strip_prefix('t') else { return false };
    match rest.split_once('.') {
        Some((technique, sub)) => digits(technique, 4) && digits(sub, 3),
        None => digits(rest, 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_apart_by_their_form() {
        let tactics = tactics().expect("a list");
        assert_eq!(tactics.iter().filter(|tactic| !tactic.retired).count(), 15);
        let tactic = |name: &str| Some(AttackTag::Tactic(name.into()));
        let technique = |name: &str| Some(AttackTag::Technique(name.into()));
        for (tag, wanted) in [
            ("attack.initial-access", tactic("initial-access")),
            ("attack.privilege_escalation", tactic("privilege-escalation")),
            ("attack.ta0001", tactic("TA0001")),
            ("attack.t1059", technique("T1059")),
            ("attack.T1059.001", technique("T1059.001")),
            ("attack.g0016", Some(AttackTag::Other)),
            ("attack.t105", Some(AttackTag::Unknown("t105".into()))),
            ("attack.t1059.01", Some(AttackTag::Unknown("t1059.01".into()))),
            ("attack.persistance", Some(AttackTag::Unknown("persistance".into()))),
            ("cve.2021-44228", None),
        ] {
            assert_eq!(attack_tag(tag, &tactics), wanted, "{tag}");
        }
    }
}
