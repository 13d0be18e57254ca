//! Rule folders on disk.

use std::collections::BTreeMap;
use std::fs;

use tidegate_rules::{RuleAction, RuleFolder, RulesConfig, RulesError};

#[test]
fn a_folder_tells_what_changed() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    let mut folder = RuleFolder::new(dir.path(), &RulesConfig::default());
    assert!(!folder.changed().expect("readable"), "empty");
    write("b.yml", "1");
    write("sub/a.yaml", "2");
    write("sub/notes.txt", "no rule");
    write(".git/c.yml", "hidden");
    assert!(folder.changed().expect("readable"));
    assert!(!folder.changed().expect("readable"));
    let (texts, skipped) = folder.read().expect("readable");
    assert_eq!(texts.keys().collect::<Vec<_>>(), ["b.yml", "sub/a.yaml"]);
    assert_eq!(skipped, []);
    write("b.yml", "changed");
    write("new.yml", "3");
    fs::remove_file(dir.path().join("sub/a.yaml")).expect("removed");
    assert!(folder.changed().expect("readable"));
    let (changes, _) = folder.diff(&texts).expect("readable");
    let found: Vec<_> =
        changes.iter().map(|change| (change.name.as_str(), change.action, change.text.as_str())).collect();
    let wanted = [
        ("b.yml", RuleAction::Update, "changed"),
        ("new.yml", RuleAction::Create, "3"),
        ("sub/a.yaml", RuleAction::Delete, ""),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn what_cannot_be_read_is_left_out_and_keeps_its_current_text() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = RulesConfig { file_bytes_max: 10, ..RulesConfig::default() };
    fs::write(dir.path().join("large.yml"), "x".repeat(11)).expect("a file");
    fs::write(dir.path().join("latin.yml"), b"\xff").expect("a file");
    let folder = RuleFolder::new(dir.path(), &config);
    let current =
        BTreeMap::from([("large.yml".to_owned(), "small".to_owned()), ("gone.yml".to_owned(), String::new())]);
    let (changes, skipped) = folder.diff(&current).expect("readable");
    assert_eq!(changes.iter().map(|change| change.name.as_str()).collect::<Vec<_>>(), ["gone.yml"]);
    assert_eq!(skipped.len(), 2);
}

#[test]
fn a_folder_that_is_not_there_or_too_full_is_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let missing = RuleFolder::new(dir.path().join("missing"), &RulesConfig::default());
    assert!(matches!(missing.read(), Err(RulesError::Read { .. })));
    for at in 0..3 {
        fs::write(dir.path().join(format!("{at}.yml")), "").expect("a file");
    }
    let config = RulesConfig { files_max: 2, ..RulesConfig::default() };
    assert!(matches!(RuleFolder::new(dir.path(), &config).read(), Err(RulesError::TooManyFiles { files_max: 2, .. })));
}
