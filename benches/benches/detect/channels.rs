//! Windows rules with channel and event id written into them, as processing pipelines write them for raw event logs, beside the same
//! rules as they are.

use std::collections::BTreeMap;

use rsigma_parser::parse_sigma_yaml;

use crate::peers::{CHANNELS, sysmon};

/// The rules of Windows that have one way into the log, as they are and with that way written in.
pub fn both(texts: &BTreeMap<String, String>) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let (mut plain, mut written) = (BTreeMap::new(), BTreeMap::new());
    for (name, text) in texts {
        let Some(other) = selection(text).and_then(|selection| with(text, &selection)) else { continue };
        plain.insert(name.clone(), text.clone());
        written.insert(name.clone(), other);
    }
    (plain, written)
}

/// The selection that says what a rule's log source does.
fn selection(text: &str) -> Option<String> {
    let parsed = parse_sigma_yaml(text).ok()?;
    let [rule] = parsed.rules.as_slice() else { return None };
    let source = &rule.logsource;
    if source.product.as_deref() != Some("windows") {
        return None;
    }
    if let Some(category) = source.category.as_deref() {
        let ids: Vec<String> = (1..30).filter(|id| sysmon(*id) == Some(category)).map(|id| id.to_string()).collect();
        let channel = "Microsoft-Windows-Sysmon/Operational";
        return (!ids.is_empty())
            .then(|| format!("        Channel: {channel}\n        EventID: [{}]\n", ids.join(", ")));
    }
    let (_, channel) = CHANNELS.iter().find(|(service, _)| source.service.as_deref() == Some(service))?;
    Some(format!("        Channel: {channel}\n"))
}

/// The rule with a selection more, for all events of Windows; `None` when its text is not laid out as most are.
fn with(text: &str, selection: &str) -> Option<String> {
    let (mut out, mut block, mut conditions) = (String::new(), "", 0);
    for line in text.lines() {
        if !line.starts_with([' ', '#']) {
            block = line;
        }
        let own = line.trim_start();
        if block == "logsource:" && (own.starts_with("category:") || own.starts_with("service:")) {
            continue;
        }
        if let Some(condition) = line.strip_prefix("    condition: ").filter(|_| block == "detection:") {
            conditions += 1;
            if condition.starts_with(['>', '|', '[']) {
                return None;
            }
            let condition = condition.split(" #").next().unwrap_or(condition);
            out.push_str(&format!("    condition: _routed and ({condition})\n"));
            continue;
        }
        out.push_str(line);
        out.push('\n');
        if line == "detection:" {
            out.push_str(&format!("    _routed:\n{selection}"));
        }
    }
    (conditions == 1).then_some(out)
}
