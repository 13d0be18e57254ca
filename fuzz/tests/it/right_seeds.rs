//! Seeds that are meant to be right are taken, so that mutants start from deep inside.

use std::path::Path;

use tidegate::config::keys::Keys;
use tidegate::config::raw::Raw;
use tidegate_ingest::mapping::Mappings;
use tidegate_query::{QueryConfig, check_sql};
use tidegate_rules::{RuleFile, RuleSet, RulesConfig};

use crate::campaign::{files, folder};

/// Checks the text of each seed of a target.
fn check(target: &str, check: impl Fn(&str) -> Result<(), String>) {
    for (path, bytes) in files(&folder("corpus", target)) {
        let text = String::from_utf8(bytes).expect("text");
        check(&text).unwrap_or_else(|reason| panic!("{}: {reason}", path.display()));
    }
}

#[test]
fn right_seeds_are_taken() {
    check("rule_text", |text| {
        let rules = RuleSet::compile(&[RuleFile::new("a.yml", text)], &RulesConfig::default());
        let (_, problems) = rules.map_err(|error| error.to_string())?;
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    });
    let gate = || check("sql_gate", |text| check_sql(text, &QueryConfig::default()).map_err(|error| error.to_string()));
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(gate).expect("a thread");
    thread.join().expect("the gate takes the seeds");
    check("mapping_file", |text| {
        let (mapping, _) = text.split_once("\n---\n").ok_or("no event")?;
        Mappings::with_texts(&[("a.toml".to_owned(), mapping.to_owned())]).map(drop).map_err(|error| error.to_string())
    });
    for (path, bytes) in files(&folder("corpus", "database_value")) {
        let taken = tidegate_fuzz::values_taken(&bytes);
        assert_eq!(taken, Ok(2), "{}", path.display());
    }
    let keys = Keys::of_config();
    check("configuration", |text| {
        let mut raw = Raw::default();
        if text.contains('[') && text.contains("[log]") {
            raw.add_file(&keys, Path::new("t.toml"), text);
        } else {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            raw.add_flags(&keys, pairs.map(|(name, value)| (name.to_owned(), name.to_owned(), value.to_owned())));
        }
        if raw.problems.is_empty() { Ok(()) } else { Err(format!("{:?}", raw.problems)) }
    });
}
