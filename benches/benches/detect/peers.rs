//! The other Sigma evaluators that crates.io offers, set up as their own documentation says is fastest.

use std::hint::black_box;

use rsigma_eval::{Engine, JsonEvent};
use rsigma_parser::LogSource;
use serde_json::Value;

/// `rsigma-eval`: an index from field values to rules, then one rule after another.
pub struct Rsigma {
    engine: Engine,
    /// Rules that it loaded.
    pub rules: usize,
}

/// How `rsigma-eval` is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it comes: every rule for every event.
    Default,
    /// With the log source of each event handed to it.
    Routed,
    /// Routed, and with its bloom filter on.
    RoutedBloom,
}

impl Mode {
    /// All of them, with what a bench calls them.
    pub const ALL: [(Self, &str); 3] = [
        (Self::Default, "peer rsigma-eval"),
        (Self::Routed, "peer rsigma-eval, routed"),
        (Self::RoutedBloom, "peer rsigma-eval, routed, bloom"),
    ];
}

impl Rsigma {
    /// Loads rules; what it cannot load is left out.
    pub fn new<'a>(texts: impl Iterator<Item = &'a str>, mode: Mode) -> Self {
        let mut engine = Engine::new();
        let parsed = texts.filter_map(|text| rsigma_parser::parse_sigma_yaml(text).ok());
        let rules: Vec<_> = parsed.flat_map(|collection| collection.rules).collect();
        // In one go: each call makes the index anew.
        engine.add_rules(&rules);
        engine.set_bloom_prefilter(mode == Mode::RoutedBloom);
        let rules = engine.rule_count();
        Self { engine, rules }
    }

    /// How many rules match the events.
    pub fn matches<'a>(&self, events: impl Iterator<Item = (&'a Value, &'a LogSource)>, mode: Mode) -> usize {
        let mut found = 0;
        for (event, log_source) in events {
            let event = JsonEvent::borrow(event);
            let results = match mode {
                Mode::Default => self.engine.evaluate(&event),
                Mode::Routed | Mode::RoutedBloom => self.engine.evaluate_pruned(&event, log_source),
            };
            found += black_box(results).len();
        }
        found
    }
}

/// `sigma-rust`: one rule after another, whatever their log source.
pub struct SigmaRust {
    rules: Vec<sigma_rust::Rule>,
}

impl SigmaRust {
    /// Loads rules; what it cannot load is left out.
    pub fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        Self { rules: texts.filter_map(|text| sigma_rust::rule_from_yaml(text).ok()).collect() }
    }

    /// How many rules it loaded.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// How many rules match the events.
    pub fn matches<'a>(&self, events: impl Iterator<Item = &'a sigma_rust::Event>) -> usize {
        events.map(|event| self.rules.iter().filter(|rule| rule.is_match(event)).count()).sum()
    }
}

/// The log source of an event, made before the clock runs: the peers get for free what our log source tables work out. What
/// the event is not is said too (`-`), so that rules of other categories and services are left out.
pub fn log_source(product: &str, event: &Value) -> LogSource {
    let none = || "-".to_owned();
    let (category, service) = match product {
        "windows" => windows(event),
        _ => (None, Some("cloudtrail")),
    };
    LogSource {
        product: Some(product.to_owned()),
        category: Some(category.map_or_else(none, str::to_owned)),
        service: Some(service.map_or_else(none, str::to_owned)),
        ..LogSource::default()
    }
}

/// Category and service of a Windows event, as pySigma's pipelines have them.
fn windows(event: &Value) -> (Option<&'static str>, Option<&'static str>) {
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    let id = event.get("EventID").and_then(number).unwrap_or_default();
    match event.get("Channel").and_then(Value::as_str).unwrap_or_default() {
        "Microsoft-Windows-Sysmon/Operational" => (sysmon(id), Some("sysmon")),
        "Security" => ((id == 4688).then_some("process_creation"), Some("security")),
        "System" => (None, Some("system")),
        "Application" => (None, Some("application")),
        "Microsoft-Windows-PowerShell/Operational" => match id {
            4103 => (Some("ps_module"), Some("powershell")),
            4104 => (Some("ps_script"), Some("powershell")),
            _ => (None, Some("powershell")),
        },
        "Windows PowerShell" => ((id == 400).then_some("ps_classic_start"), Some("powershell-classic")),
        _ => (None, None),
    }
}

/// The channels of services, as pySigma's pipelines have them.
pub const CHANNELS: [(&str, &str); 5] = [
    ("security", "Security"),
    ("system", "System"),
    ("application", "Application"),
    ("powershell", "Microsoft-Windows-PowerShell/Operational"),
    ("powershell-classic", "Windows PowerShell"),
];

/// The category of an event of Sysmon.
pub fn sysmon(id: i64) -> Option<&'static str> {
    Some(match id {
        1 => "process_creation",
        2 => "file_change",
        3 => "network_connection",
        5 => "process_termination",
        6 => "driver_load",
        7 => "image_load",
        8 => "create_remote_thread",
        9 => "raw_access_thread",
        10 => "process_access",
        11 => "file_event",
        12 => "registry_event",
        13 => "registry_set",
        14 => "registry_rename",
        15 => "create_stream_hash",
        17 | 18 => "pipe_created",
        19..=21 => "wmi_event",
        22 => "dns_query",
        23 | 26 => "file_delete",
        24 => "clipboard_change",
        25 => "process_tampering",
        _ => return None,
    })
}
