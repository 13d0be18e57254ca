//! Which ATT&CK tactics and techniques rules say they detect, by their tags, and the layer of it for the ATT&CK Navigator.
//!
//! Which techniques belong to which tactic is ATT&CK's own to say, and changes twice a year. A technique is listed here under
//! every tactic that a rule with its tag names beside it; rules that name a technique and no tactic are listed under none.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tidegate_events::Level;

use crate::attack::{AttackTag, Tactic, attack_tag, tactics};
use crate::config::RulesConfig;
use crate::error::RulesError;
use crate::outline::{DocumentKind, outline};
use crate::problem::RuleFile;

/// The most titles in the comment of one technique of a layer.
const COMMENT_TITLES_MAX: usize = 50;

/// How many rules there are, by level: informational, low, medium, high, critical. A rule without a level counts as medium.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Levels {
    /// Worth knowing.
    pub informational: usize,
    /// Rarely worth acting on.
    pub low: usize,
    /// To be looked at.
    pub medium: usize,
    /// To be looked at soon.
    pub high: usize,
    /// To be looked at now.
    pub critical: usize,
}

impl Levels {
    fn add(&mut self, level: Level) {
        *match level {
            Level::Informational => &mut self.informational,
            Level::Low => &mut self.low,
            Level::Medium => &mut self.medium,
            Level::High => &mut self.high,
            Level::Critical => &mut self.critical,
        } += 1;
    }

    /// All of them.
    pub fn total(self) -> usize {
        self.informational + self.low + self.medium + self.high + self.critical
    }
}

/// One rule, as far as coverage goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CoveringRule {
    /// Its id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// The file that it is in.
    pub file: String,
}

/// A technique or sub-technique and the rules that name it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TechniqueCoverage {
    /// `T1059.001`.
    pub technique: String,
    /// Its rules by level.
    pub levels: Levels,
    /// The titles of its rules, sorted.
    pub titles: Vec<String>,
}

/// A tactic and the rules that name it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TacticCoverage {
    /// `initial-access`; empty for the techniques of rules that name no tactic.
    pub tactic: String,
    /// `Initial Access`.
    pub title: String,
    /// Whether ATT&CK has given it up.
    pub retired: bool,
    /// Its rules by level.
    pub levels: Levels,
    /// The techniques that these rules name, by number.
    pub techniques: Vec<TechniqueCoverage>,
}

/// What rules cover.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Coverage {
    /// Detection and correlation rules.
    pub rules: usize,
    /// The tactics in the order of the matrix, those without rules too.
    pub tactics: Vec<TacticCoverage>,
    /// All techniques, by number.
    pub techniques: Vec<TechniqueCoverage>,
    /// Rules without a tag of ATT&CK that names a tactic or a technique.
    pub untagged: Vec<CoveringRule>,
}

#[derive(Default)]
struct Tally {
    levels: Levels,
    titles: BTreeSet<String>,
}

impl Tally {
    fn add(&mut self, level: Level, title: &str) {
        self.levels.add(level);
        self.titles.insert(title.to_owned());
    }
}

/// Counts the rules of files. Documents that do not parse are passed over.
///
/// # Errors
/// [`RulesError::Table`] when a shipped table is broken, which is a bug.
pub fn coverage(files: &[RuleFile], config: &RulesConfig) -> Result<Coverage, RulesError> {
    let tactics = tactics()?;
    let mut rules = 0;
    let mut untagged = Vec::new();
    let mut by_tactic: BTreeMap<String, Levels> = BTreeMap::new();
    let mut pairs: BTreeMap<(String, String), Tally> = BTreeMap::new();
    let mut techniques: BTreeMap<String, Tally> = BTreeMap::new();
    for file in files {
        let (documents, _) = outline(file, config);
        for document in documents.iter().filter(|document| document.kind != DocumentKind::Filter) {
            rules += 1;
            let level = document.level.unwrap_or(Level::Medium);
            let (named, own) = named(&document.tags, &tactics);
            if named.is_empty() && own.is_empty() {
                let (id, title) = (document.id.clone(), document.title.clone());
                untagged.push(CoveringRule { id, title, file: file.name.clone() });
            }
            for tactic in &named {
                by_tactic.entry(tactic.clone()).or_default().add(level);
            }
            let none = BTreeSet::from([String::new()]);
            let under = if named.is_empty() { &none } else { &named };
            for technique in &own {
                techniques.entry(technique.clone()).or_default().add(level, &document.title);
                for tactic in under {
                    let key = (tactic.clone(), technique.clone());
                    pairs.entry(key).or_default().add(level, &document.title);
                }
            }
        }
    }
    let covered = |(technique, tally): (String, Tally)| TechniqueCoverage {
        technique,
        levels: tally.levels,
        titles: tally.titles.into_iter().collect(),
    };
    let mut of_tactic: BTreeMap<String, Vec<TechniqueCoverage>> = BTreeMap::new();
    for ((tactic, technique), tally) in pairs {
        of_tactic.entry(tactic).or_default().push(covered((technique, tally)));
    }
    Ok(Coverage {
        rules,
        tactics: table(tactics, &by_tactic, of_tactic),
        techniques: techniques.into_iter().map(covered).collect(),
        untagged,
    })
}

/// The tactics and the techniques that tags name.
fn named(tags: &[String], tactics: &[Tactic]) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut named, mut techniques) = (BTreeSet::new(), BTreeSet::new());
    for tag in tags {
        match attack_tag(tag, tactics) {
            Some(AttackTag::Tactic(tactic)) => drop(named.insert(tactic)),
            Some(AttackTag::Technique(technique)) => drop(techniques.insert(technique)),
            _ => {}
        }
    }
    (named, techniques)
}

/// The tactics of the matrix, then others that rules name by number, then the techniques of no tactic.
fn table(
    tactics: Vec<Tactic>,
    by_tactic: &BTreeMap<String, Levels>,
    mut of_tactic: BTreeMap<String, Vec<TechniqueCoverage>>,
) -> Vec<TacticCoverage> {
    let mut rows: Vec<TacticCoverage> = tactics
        .into_iter()
        .filter(|tactic| !tactic.retired || by_tactic.contains_key(&tactic.name))
        .map(|tactic| TacticCoverage {
            levels: by_tactic.get(&tactic.name).copied().unwrap_or_default(),
            techniques: of_tactic.remove(&tactic.name).unwrap_or_default(),
            tactic: tactic.name,
            title: tactic.title,
            retired: tactic.retired,
        })
        .collect();
    let others: Vec<&String> = by_tactic.keys().filter(|name| !rows.iter().any(|row| row.tactic == **name)).collect();
    let others: Vec<TacticCoverage> = others
        .into_iter()
        .map(|name| TacticCoverage {
            tactic: name.clone(),
            title: name.clone(),
            retired: false,
            levels: by_tactic.get(name).copied().unwrap_or_default(),
            techniques: of_tactic.remove(name).unwrap_or_default(),
        })
        .collect();
    rows.extend(others);
    if let Some(techniques) = of_tactic.remove("") {
        rows.push(TacticCoverage {
            tactic: String::new(),
            title: "(no tactic named)".to_owned(),
            retired: false,
            levels: Levels::default(),
            techniques,
        });
    }
    rows
}

impl Coverage {
    /// A layer for the ATT&CK Navigator, format 4.5: the score of a technique is the number of its rules, its comment their
    /// titles. A technique shows under every tactic that ATT&CK has it in.
    pub fn navigator_layer(&self, name: &str) -> Value {
        let most = self.techniques.iter().map(|technique| technique.levels.total()).max().unwrap_or(0);
        let techniques: Vec<Value> = self.techniques.iter().map(layer_technique).collect();
        json!({
            "name": name,
            "versions": {"navigator": "4.9.0", "layer": "4.5"},
            "domain": "enterprise-attack",
            "description": format!("{} rules; the score of a technique is the number of rules that name it", self.rules),
            "sorting": 3,
            "layout": {"layout": "side", "showID": true, "showName": true, "expandedSubtechniques": "annotated"},
            "hideDisabled": false,
            "techniques": techniques,
            "gradient": {
                "colors": ["#e3f2fd", "#42a5f5", "#0d47a1"],
                "minValue": 0,
                // The format wants it to be larger than the minimum.
                "maxValue": most.max(1),
            },
            "legendItems": [],
            "metadata": [],
            "links": [],
            "showTacticRowBackground": false,
            "selectTechniquesAcrossTactics": true,
            "selectSubtechniquesWithParent": false,
            "selectVisibleTechniques": false,
        })
    }
}

fn layer_technique(technique: &TechniqueCoverage) -> Value {
    let mut comment: Vec<String> = technique.titles.iter().take(COMMENT_TITLES_MAX).cloned().collect();
    if technique.titles.len() > COMMENT_TITLES_MAX {
        comment.push(format!("and {} more", technique.titles.len() - COMMENT_TITLES_MAX));
    }
    let Levels { informational, low, medium, high, critical } = technique.levels;
    let levels =
        [("critical", critical), ("high", high), ("medium", medium), ("low", low), ("informational", informational)];
    let levels = levels.into_iter().filter(|(_, count)| *count > 0);
    let metadata: Vec<Value> = levels.map(|(name, count)| json!({"name": name, "value": count.to_string()})).collect();
    json!({
        "techniqueID": technique.technique,
        "score": technique.levels.total(),
        "comment": comment.join("\n"),
        "enabled": true,
        "metadata": metadata,
        "links": [],
        "showSubtechniques": technique.technique.contains('.'),
    })
}
