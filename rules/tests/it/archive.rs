//! The rules of SigmaHQ, from the archive that developers and CI have beside the checkout (`../shared/data`; nothing of it is
//! part of this repository). Without it these tests say that they did NOT RUN, on the terminal; `TIDEGATE_SHARED_DATA` names another
//! folder, which must be there.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use tidegate_rules::{RuleFile, RuleSet, RulesConfig};

/// The folder of shared data; `None` in a clone that has none beside it.
pub fn shared_data() -> Option<PathBuf> {
    let named = std::env::var_os("TIDEGATE_SHARED_DATA").map(PathBuf::from);
    let is_named = named.is_some();
    let path = named.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"));
    if path.is_dir() {
        return Some(path);
    }
    assert!(!is_named, "TIDEGATE_SHARED_DATA names {}, which is no folder", path.display());
    // Not `eprintln!`, which the test harness keeps to itself when a test passes.
    let _ = writeln!(std::io::stderr(), "NOT RUN: a test of the rules: there is no {}", path.display());
    None
}

/// The rule files of the archive, by path.
pub fn sigma_rules() -> Option<Vec<RuleFile>> {
    let packed = fs::read(shared_data()?.join("sigma-rules.tar.gz")).expect("the archive");
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut archive).expect("gzip");
    let mut files: Vec<RuleFile> = untar(&archive)
        .into_iter()
        .filter(|(name, _)| name.ends_with(".yml"))
        .map(|(name, bytes)| {
            let name = name.strip_prefix("sigma-rules/").unwrap_or(&name).to_owned();
            RuleFile::new(name, String::from_utf8(bytes.to_vec()).expect("UTF-8"))
        })
        .collect();
    files.sort();
    Some(files)
}

/// The files of a tar archive (POSIX ustar, with the long names of GNU and of pax).
fn untar(mut archive: &[u8]) -> Vec<(String, &[u8])> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let mut files = Vec::new();
    let mut long_name = None;
    while let Some((header, rest)) = archive.split_at_checked(512).filter(|(header, _)| header[0] != 0) {
        let size = usize::from_str_radix(text(&header[124..135]).trim(), 8).expect("a size");
        let body = &rest[..size];
        archive = &rest[size.next_multiple_of(512)..];
        match header[156] {
            b'L' => long_name = Some(text(body)),
            b'x' => {
                let records = text(body);
                let path = records.lines().find_map(|line| line.split_once(" path="));
                long_name = path.map(|(_, path)| path.to_owned());
            }
            b'0' | 0 => {
                let (prefix, name) = (text(&header[345..500]), text(&header[..100]));
                let joined = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                files.push((long_name.take().unwrap_or(joined), body));
            }
            _ => long_name = None,
        }
    }
    files
}

/// Every placeholder that the rules of the archive use, with a value.
pub fn with_placeholders(files: &[RuleFile]) -> RulesConfig {
    let mut config = RulesConfig::default();
    for file in files.iter().filter(|file| file.text.contains("|expand")) {
        for name in file.text.split('%').skip(1).step_by(2).filter(|name| !name.contains(char::is_whitespace)) {
            config.placeholders.insert(name.to_owned(), vec![format!("value-of-{name}")]);
        }
    }
    config
}

#[test]
fn every_rule_loads_or_needs_a_placeholder() {
    let Some(files) = sigma_rules() else { return };
    assert!(files.len() > 3_700, "{} files", files.len());
    let (rules, problems) = RuleSet::compile(&files, &RulesConfig::default()).expect("tables");
    for problem in &problems {
        assert!(problem.reason.contains("has no value"), "{problem}");
    }
    assert_eq!(rules.unknown_log_sources(), [""; 0], "every log source of SigmaHQ is in a table");
    let waiting: BTreeSet<&str> = problems.iter().map(|problem| problem.file.as_str()).collect();
    assert_eq!(rules.rules().len() + waiting.len(), files.len(), "one rule a file");
    assert!(waiting.len() <= 25, "{} rules need placeholders", waiting.len());
    let config = with_placeholders(&files);
    let (rules, problems) = RuleSet::compile(&files, &config).expect("tables");
    assert_eq!(problems, []);
    assert_eq!(rules.rules().len(), files.len());
}
