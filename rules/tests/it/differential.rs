//! Our matches against those of `rsigma-eval`, rule by rule and event by event: on events of the wild, and on events made from
//! each rule's own values. They are the same, or one of the reasons in [`allowed`] explains it for this very rule.
//!
//! The shipped rules are always compared. The rules of SigmaHQ and the sample events are in the folder of shared data
//! (see [`crate::archive`]); by default a part of the events is compared, all of them with `TIDEGATE_DIFFERENTIAL=full`
//! (in a release build: `cargo test --release -p tidegate-rules --test it -- differential --nocapture`).

mod allowed;
mod channels;
mod generate;
mod parts;
mod peer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use rsigma_parser::{Detection, LogSource, Modifier, SigmaRule, SigmaString, SigmaValue, parse_sigma_yaml};
use serde_json::{Map, Value};
use tidegate_events::Dataset;
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig, pack};

use crate::archive::{shared_data, sigma_rules, with_placeholders};
use crate::flatten::Events;
use parts::Parts;
use peer::{Peer, Tables, flat};

/// Events of one batch.
const BATCH: usize = 512;

/// Both sides with the same rules.
struct World {
    evaluator: Evaluator,
    /// For each of our rules its id; for a probe, the log source that it tells the rows of.
    ids: Vec<Result<String, String>>,
    peers: BTreeMap<String, Peer>,
    rules: BTreeMap<String, SigmaRule>,
    /// The text of each rule's file.
    texts: BTreeMap<String, String>,
    /// Of rules that differ somewhere.
    parts: BTreeMap<String, Parts>,
    config: RulesConfig,
    figures: Figures,
}

#[derive(Debug, Default)]
struct Figures {
    events: usize,
    /// (rule, event), the event being of the rule's log source.
    pairs: usize,
    /// Of them, those that match by our answer.
    hits: usize,
    /// Events that were made for a rule, and those of them that it matches.
    made: usize,
    made_hits: usize,
    /// The rules that matched some event.
    hit: BTreeSet<String>,
    allowed: BTreeMap<&'static str, usize>,
    /// Reason and rule of each difference that is explained.
    explained: BTreeSet<(String, String)>,
    wrong: Vec<String>,
}

fn key(source: &LogSource) -> String {
    let part = |part: &Option<String>| part.as_deref().unwrap_or_default().trim().to_lowercase();
    format!("{}/{}/{}", part(&source.product), part(&source.category), part(&source.service))
}

impl World {
    fn new(files: &[RuleFile]) -> Self {
        let tables = Tables::read();
        let mut config = with_placeholders(files);
        config.rule_event_ns_max = u64::MAX;
        let mut files = files.to_vec();
        let mut peers = BTreeMap::new();
        let (mut rules, mut texts) = (BTreeMap::new(), BTreeMap::new());
        let mut probes = String::new();
        for file in &files {
            for mut rule in parse_sigma_yaml(&file.text).expect("YAML").rules {
                rule.detection.named.values_mut().for_each(expand);
                let key = key(&rule.logsource);
                let peer = peers.entry(key.clone()).or_insert_with(|| {
                    let [product, category, service] =
                        [&rule.logsource.product, &rule.logsource.category, &rule.logsource.service]
                            .map(|part| serde_json::to_string(part.as_deref().unwrap_or_default()).expect("JSON"));
                    let source = format!("{{product: {product}, category: {category}, service: {service}}}");
                    let detection = "{s: {no such field: null}, condition: s}";
                    let text =
                        format!("---\ntitle: P\nid: 'probe:{key}'\nlogsource: {source}\ndetection: {detection}\n");
                    probes.push_str(&text);
                    Peer::new(tables.source(&rule.logsource))
                });
                peer.add(&rule);
                texts.insert(rule.id.clone().expect("an id"), file.text.clone());
                rules.insert(rule.id.clone().expect("an id"), rule);
            }
        }
        files.push(RuleFile::new("probes.yml", probes.replace(": \"\"", ": null")));
        let (set, problems) = RuleSet::compile(&files, &config).expect("tables");
        assert_eq!(problems, []);
        let id = |id: &str| id.strip_prefix("probe:").map_or(Ok(id.to_owned()), |key| Err(key.to_owned()));
        let ids = set.rules().iter().map(|rule| id(&rule.head.id)).collect();
        let evaluator = Evaluator::new(Arc::new(set), &config);
        Self { evaluator, ids, peers, rules, texts, parts: BTreeMap::new(), config, figures: Figures::default() }
    }

    /// Explains why one side matches a rule on an event, or tells of it.
    fn differ(&mut self, id: &str, key: &str, (source, event, flat): (&str, &Value, &Map<String, Value>), by_us: bool) {
        let named = self.peers[key].source.named(flat);
        let make = || Parts::new(&self.texts[id], id, &self.config);
        let parts = self.parts.entry(id.to_owned()).or_insert_with(make);
        let none = Map::new();
        let fields = named.as_object().unwrap_or(&none);
        let differing = parts.differing(source, event, &named);
        let reasons: Option<Vec<&'static str>> =
            differing.iter().map(|(items, ours)| allowed::reason(items, fields, *ours)).collect();
        match reasons.filter(|reasons| !reasons.is_empty()) {
            Some(reasons) => {
                *self.figures.allowed.entry(reasons[0]).or_default() += 1;
                self.figures.explained.extend(reasons.iter().map(|reason| ((*reason).to_owned(), id.to_owned())));
            }
            None => {
                let who = if by_us { "only we match" } else { "only RSigma matches" };
                let parts: Vec<String> =
                    differing.iter().map(|(items, ours)| format!("{items:?} (by us: {ours})")).collect();
                let event: String = named.to_string().chars().take(1_500).collect();
                let title = &self.rules[id].title;
                self.figures.wrong.push(format!("{who}: {id} {title}, by {parts:?}: {event}"));
            }
        }
    }

    /// Compares both sides on (source, event, the id of the rule that it was made for).
    fn compare(&mut self, dataset: Dataset, rows: &[(String, Value, String)]) {
        for rows in rows.chunks(BATCH) {
            let mut events = Events::new(dataset);
            events.rows =
                rows.iter().map(|(source, event, _)| ("acme".into(), source.clone(), event.clone())).collect();
            let mut ours: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); rows.len()];
            let mut sources: Vec<Vec<&str>> = vec![Vec::new(); rows.len()];
            for (row, rule) in self.evaluator.matches(&events.batch(0)) {
                match &self.ids[rule] {
                    Ok(id) => drop(ours[row].insert(id)),
                    Err(key) => sources[row].push(key),
                }
            }
            let mut differences: Vec<(String, String, usize, bool)> = Vec::new();
            for (row, (((_, event, made_for), ours), sources)) in rows.iter().zip(&ours).zip(&sources).enumerate() {
                self.figures.events += 1;
                self.figures.made += usize::from(!made_for.is_empty());
                self.figures.made_hits += usize::from(ours.contains(made_for.as_str()));
                let flat = flat(event);
                for source in sources {
                    let peer = &self.peers[*source];
                    self.figures.pairs += peer.rules.len();
                    let theirs = peer.matches(&flat);
                    let ours: BTreeSet<&str> = ours.iter().copied().filter(|id| peer.rules.contains(*id)).collect();
                    self.figures.hits += ours.len();
                    for id in &ours {
                        if !self.figures.hit.contains(*id) {
                            self.figures.hit.insert((*id).to_owned());
                        }
                    }
                    let theirs: BTreeSet<&str> = theirs.iter().map(String::as_str).collect();
                    let differing = ours.symmetric_difference(&theirs);
                    let told = |id: &&str| ((*id).to_owned(), (*source).to_owned(), row, ours.contains(id));
                    differences.extend(differing.map(told));
                }
            }
            for (id, key, row, by_us) in differences {
                let (source, event, _) = &rows[row];
                self.differ(&id, &key, (source, event, &flat(event)), by_us);
            }
        }
    }

    /// Compares on events that are made from each rule: some of them, or all.
    fn compare_made(&mut self, all: bool) {
        let (variants, damages) = if all { (4, usize::MAX) } else { (2, 3) };
        let rules: Vec<SigmaRule> = self.rules.values().cloned().collect();
        let mut by_source: BTreeMap<String, Vec<(String, Value, String)>> = BTreeMap::new();
        for (nth, rule) in rules.iter().enumerate() {
            let key = key(&rule.logsource);
            let source = &self.peers[&key].source;
            let rows = by_source.entry(key.clone()).or_default();
            let none = BTreeMap::new();
            for variant in 0..variants {
                let route = source.any.get(variant % source.any.len().max(1)).unwrap_or(&none);
                for negated in [false, true] {
                    let mut event = generate::event(rule, variant, negated);
                    for (field, wanted) in route {
                        event.entry(field).or_insert_with(|| first_value(wanted));
                    }
                    let id = if negated { String::new() } else { rule.id.clone().expect("an id") };
                    let damaged = generate::damaged(&event, route);
                    let step = (damaged.len() / damages.max(1)).max(1);
                    let chosen = damaged.into_iter().skip((nth + variant) % step).step_by(step).take(damages);
                    let row = |event: Map<String, Value>, id: String| (source.source.clone(), Value::Object(event), id);
                    rows.push(row(event, id));
                    rows.extend(chosen.map(|event| row(event, String::new())));
                }
            }
        }
        for (key, rows) in by_source {
            let dataset = if key.contains("/cost/") { Dataset::CostEvents } else { Dataset::SecurityEvents };
            if dataset == Dataset::SecurityEvents {
                self.compare(dataset, &rows);
            }
        }
    }

    /// Prints the figures; fails on a difference that nothing explains, and on an explanation of rules that need none.
    fn end(self, name: &str, all: bool) -> Figures {
        let figures = self.figures;
        let mut text = format!(
            "{name}: {} rules, {} events, {} pairs, {} matches; {} of {} made events match",
            self.rules.len(),
            figures.events,
            figures.pairs,
            figures.hits,
            figures.made_hits,
            figures.made
        );
        for (reason, count) in &figures.allowed {
            write!(text, "\n  {count} × {reason}: {}", allowed::text(reason)).expect("a string");
        }
        println!("{text}");
        let wrong = figures.wrong.len();
        assert!(wrong == 0, "{name}: {wrong} differences:\n{}", figures.wrong[..wrong.min(25)].join("\n"));
        let allowed: usize = figures.allowed.values().sum();
        assert!(
            allowed * 50 <= figures.hits,
            "{name}: what is allowed is the exception: {allowed} of {}",
            figures.hits
        );
        let own = |(_, id): &(String, String)| self.rules.contains_key(id);
        let listed: BTreeSet<(String, String)> = allowed::listed(all).into_iter().filter(own).collect();
        let unlisted: Vec<_> = figures.explained.difference(&listed).collect();
        assert!(unlisted.is_empty(), "{name}: these differ, and are not in tests/differential.yml: {unlisted:#?}");
        let unneeded: Vec<_> = listed.difference(&figures.explained).collect();
        assert!(unneeded.is_empty(), "{name}: these do not differ, and are in tests/differential.yml: {unneeded:#?}");
        let unhit: BTreeSet<String> = self.rules.keys().filter(|id| !figures.hit.contains(*id)).cloned().collect();
        let listed: BTreeSet<String> =
            allowed::unhit(all).into_iter().filter(|id| self.rules.contains_key(id)).collect();
        let unlisted: Vec<_> = unhit.difference(&listed).collect();
        assert!(
            unlisted.is_empty(),
            "{name}: no event hits these, and they are not in {}: {unlisted:#?}",
            allowed::UNHIT
        );
        let unneeded: Vec<_> = listed.difference(&unhit).collect();
        assert!(unneeded.is_empty(), "{name}: events hit these, and they are in {}: {unneeded:#?}", allowed::UNHIT);
        figures
    }
}

/// Puts values in place of the placeholders, which the peer leaves to a pipeline.
fn expand(detection: &mut Detection) {
    match detection {
        Detection::AllOf(items) => {
            for item in items.iter_mut().filter(|item| item.field.has_modifier(Modifier::Expand)) {
                item.field.modifiers.retain(|modifier| *modifier != Modifier::Expand);
                for value in &mut item.values {
                    if let SigmaValue::String(text) = value {
                        let parts = text.original.split('%').enumerate();
                        let part = |(at, part): (usize, &str)| {
                            if at % 2 == 1 { format!("value-of-{part}") } else { part.to_owned() }
                        };
                        *value = SigmaValue::String(SigmaString::new(&parts.map(part).collect::<String>()));
                    }
                }
            }
        }
        Detection::AnyOf(parts) | Detection::And(parts) => parts.iter_mut().for_each(expand),
        Detection::Keywords(_) | Detection::ArrayMatch { .. } | Detection::Conditional { .. } => {}
    }
}

/// A value that the log source table asks for.
fn first_value(wanted: &Value) -> Value {
    match wanted {
        Value::Array(several) => first_value(&several[0]),
        Value::String(text) => Value::String(text.replace('*', "x")),
        other => other.clone(),
    }
}

fn is_full() -> bool {
    #[expect(clippy::disallowed_methods, reason = "how much to compare is up to who runs the test")]
    let asked = std::env::var("TIDEGATE_DIFFERENTIAL");
    asked.is_ok_and(|asked| asked == "full")
}

/// The sample events by source: every `step`th.
fn samples(step: usize) -> Option<Vec<(String, Value, String)>> {
    let folder = shared_data()?;
    let open = |name: &str| std::fs::File::open(folder.join(name)).expect("a sample");
    let windows = zstd::stream::read::Decoder::new(open("windows-lsass.ndjson.zst")).expect("zstd");
    let cloud = flate2::read::GzDecoder::new(open("cloudtrail.ndjson.gz"));
    let lines = |source: &'static str, reader: Box<dyn std::io::Read>, step: usize| {
        let lines = BufReader::new(reader).lines().step_by(step).map(Result::unwrap);
        lines.map(move |line| (source.to_owned(), serde_json::from_str(&line).expect("JSON"), String::new()))
    };
    let windows = lines("windows", Box::new(windows), step);
    Some(windows.chain(lines("cloudtrail", Box::new(cloud), step.div_ceil(10))).collect())
}

#[test]
fn the_shipped_rules_match_what_rsigma_matches() {
    let files: Vec<RuleFile> = pack::files().into_iter().filter(|file| !file.text.contains("category: cost")).collect();
    let mut world = World::new(&files);
    world.compare_made(true);
    let figures = world.end("shipped rules", true);
    assert!(figures.made_hits * 10 >= figures.made * 9, "events made to match do: {figures:?}");
}

#[test]
fn the_rules_of_sigmahq_match_what_rsigma_matches() {
    let Some(files) = sigma_rules() else { return };
    let full = is_full();
    let mut world = World::new(&files);
    let Some(samples) = samples(if full { 1 } else { 97 }) else { return };
    world.compare(Dataset::SecurityEvents, &samples);
    println!("samples: {} pairs, {} matches", world.figures.pairs, world.figures.hits);
    world.compare_made(full);
    let figures = world.end("SigmaHQ", full);
    assert!(
        figures.made_hits * 100 >= figures.made * 90,
        "events made to match do: {} of {}",
        figures.made_hits,
        figures.made
    );
}
