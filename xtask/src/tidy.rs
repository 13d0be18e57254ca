//! The tidy test: what must hold for the tree itself. The web of arrows, module docs, names, sizes, and that the pages
//! name what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Rust files may not grow past this many lines.
const FILE_LINES_MAX: usize = 700;

/// Names that say nothing, and what to use instead.
const BANNED_MODULES: &[&str] = &["util", "utils", "common", "helpers", "core", "manager", "base", "misc", "types"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output().expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The files that git tracks, or would with `git add`, with this ending.
fn tracked(ending: &str) -> Vec<(String, String)> {
    let listed = output("git", &["ls-files", "--cached", "--others", "--exclude-standard"]);
    let names = listed.lines().filter(|name| name.ends_with(ending));
    names.filter_map(|name| Some((name.to_owned(), fs::read_to_string(root().join(name)).ok()?))).collect()
}

/// Crate → the workspace crates that it depends on, in any way.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let text = output(env!("CARGO"), &["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_str(&text).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |package: &Value| package["name"].as_str().expect("a name").to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let dependencies = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies");
        all.iter().map(name).filter(|name| ours.contains(name)).collect()
    };
    packages.iter().map(|package| (name(package), dependencies(package))).collect()
}

#[test]
fn only_the_arrows_of_the_design_exist() {
    let allowed = |from: &str| -> &[&str] {
        match from {
            "tidegate-events" | "xtask" => &[],
            "tidegate-pipeline" => &["tidegate-events"],
            "tidegate-ingest" | "tidegate-rules" | "tidegate-sinks" | "tidegate-query" => {
                &["tidegate-events", "tidegate-pipeline"]
            }
            // The program composes all parts; benches and load tests look at them from outside, and take the story from it.
            _ => &[
                "tidegate",
                "tidegate-events",
                "tidegate-pipeline",
                "tidegate-ingest",
                "tidegate-rules",
                "tidegate-sinks",
                "tidegate-query",
            ],
        }
    };
    for (from, targets) in arrows() {
        for to in targets {
            assert!(allowed(&from).contains(&to.as_str()), "{from} may not depend on {to}");
        }
    }
}

#[test]
fn every_rust_file_starts_with_a_module_doc_and_stays_small() {
    let mut wrong = Vec::new();
    for (name, text) in tracked(".rs") {
        if !text.starts_with("//!") {
            wrong.push(format!("{name}: the first line is not a module doc"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{name}: {lines} lines, more than {FILE_LINES_MAX}: find the seam inside"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    for (name, _) in tracked(".rs") {
        let path = Path::new(&name);
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let folder = path.parent().and_then(Path::file_name).and_then(|folder| folder.to_str()).unwrap_or_default();
        for banned in BANNED_MODULES {
            assert!(stem != *banned && folder != *banned, "{name}: call it by what it does");
        }
    }
}

#[test]
fn nothing_is_left_undone_in_the_source() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimpl", "emented!(")];
    for (name, text) in tracked(".rs") {
        for mark in marks {
            assert!(!text.contains(mark), "{name} holds {mark}");
        }
    }
}

#[test]
fn architecture_names_every_crate_and_no_other() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let crates: BTreeSet<String> = arrows().into_keys().collect();
    for name in crates.iter().filter(|name| name.starts_with("tidegate-")) {
        assert!(page.contains(&format!("`{name}`")), "ARCHITECTURE.md does not name `{name}`");
    }
    for word in page.split('`').skip(1).step_by(2).filter(|word| word.starts_with("tidegate-")) {
        assert!(crates.contains(word), "ARCHITECTURE.md names `{word}`, which is no crate");
    }
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    for (name, text) in tracked(".md") {
        let folder = root().join(&name).parent().expect("a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            assert!(folder.join(target).exists(), "{name} links to {target}, which is not there");
        }
    }
}

#[test]
fn each_library_crate_takes_the_lints_of_the_workspace() {
    for (name, text) in tracked("Cargo.toml") {
        if text.contains("[package]") && !name.starts_with("fuzz") {
            assert!(text.contains("[lints]\nworkspace = true"), "{name} does not take the workspace's lints");
        }
    }
}

#[test]
fn every_code_of_a_refusal_is_on_the_page_of_the_api() {
    let page = fs::read_to_string(root().join("docs/http-api.md")).expect("the page");
    let mut missing = BTreeSet::new();
    for (name, text) in tracked(".rs").iter().filter(|(name, _)| !name.contains("tests/") && !name.starts_with("xtask"))
    {
        for rest in text.split("Problem::new(").skip(1) {
            let code = rest
                .split_once(", \"")
                .filter(|(status, _)| status.len() == 3)
                .and_then(|(_, code)| code.split('"').next());
            if let Some(code) = code.filter(|code| !page.contains(&format!("id=\"{code}\""))) {
                missing.insert(format!("{code} ({name})"));
            }
        }
    }
    assert!(missing.is_empty(), "docs/http-api.md lacks {missing:?}");
}
