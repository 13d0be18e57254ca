//! The generated pages of docs/ are those that the program makes, and the configurations in the others are such that it takes.

use std::path::Path;

use serde_json::Value;
use tidegate::config::{Sources, load};

/// The pages with configurations to copy.
const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");

/// The blocks of a language in all hand-written pages, each with its page and line.
fn blocks(language: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["", "sinks"] {
        for page in std::fs::read_dir(Path::new(PAGES).join(folder)).expect("the pages").flatten() {
            let name = page.file_name().to_string_lossy().into_owned();
            // The first is made by the program; the TOML of the second is a mapping.
            if !name.ends_with(".md") || ["configuration.md", "mappings.md"].contains(&name.as_str()) {
                continue;
            }
            let text = std::fs::read_to_string(page.path()).expect("a page");
            let mut lines = text.lines().enumerate();
            while let Some((at, line)) = lines.next() {
                if line.strip_prefix("```") == Some(language) {
                    let block = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
                    found.push((format!("{name}:{}", at + 1), block.collect::<Vec<_>>().join("\n")));
                }
            }
        }
    }
    found
}

#[test]
fn configurations_in_the_pages_have_no_key_or_value_that_is_not_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let blocks = blocks("toml");
    assert!(blocks.len() >= 9, "only {} blocks", blocks.len());
    for (place, block) in blocks {
        let file = folder.path().join("t.toml");
        std::fs::write(&file, &block).expect("written");
        let loaded = load(&Sources { file: Some(file), ..Sources::default() });
        loaded.unwrap_or_else(|error| panic!("{place}: {error}"));
    }
}

#[test]
fn compose_files_in_the_pages_give_the_server_settings_that_it_has() {
    let mut servers = 0;
    for (place, block) in blocks("yaml") {
        let mut file: yaml_serde::Value =
            yaml_serde::from_str(&block).unwrap_or_else(|error| panic!("{place}: {error}"));
        file.apply_merge().unwrap_or_else(|error| panic!("{place}: {error}"));
        let file: Value = serde_json::to_value(file).expect("JSON");
        for (name, service) in file["services"].as_object().into_iter().flatten() {
            if service["image"] != "tidegate" {
                assert!(service["image"].is_string() || service["build"].is_object(), "{place}: {name} has no image");
                continue;
            }
            servers += 1;
            let text =
                |value: &Value| value.as_str().unwrap_or_else(|| panic!("{place}: {value} is no text")).to_owned();
            let set = service["environment"].as_object().into_iter().flatten();
            let env: Vec<_> = set.map(|(name, value)| (name.clone(), text(value))).collect();
            let role = service["command"].as_str().and_then(|command| command.strip_prefix("serve --role "));
            let flags = role.map(|role| ("role".to_owned(), "role".to_owned(), role.to_owned())).into_iter().collect();
            let loaded = load(&Sources { file: None, env, flags });
            loaded.unwrap_or_else(|error| panic!("{place}: {name}: {error}"));
            for volume in service["volumes"].as_array().into_iter().flatten() {
                let volume = text(volume);
                let (volume, folder) = volume.split_once(':').expect("volume:folder");
                assert_eq!(folder, "/var/lib/tidegate", "{place}: {name}");
                assert!(file["volumes"].get(volume).is_some(), "{place}: {volume} is no volume");
            }
        }
    }
    assert!(servers >= 8, "only {servers} servers");
}

#[test]
fn the_metrics_page_is_current() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap_or_default();
    assert!(
        page == tidegate::serve::telemetry::metrics_page(),
        "docs/metrics.md is not current: run `cargo xtask docs`"
    );
}

#[test]
fn each_metric_has_one_name_a_kind_and_a_prefix() {
    let metrics = tidegate::serve::telemetry::metrics();
    for (at, (name, kind, help)) in metrics.iter().enumerate() {
        assert!(name.starts_with("tidegate_") && !help.is_empty(), "{name}");
        assert!(["counter", "gauge", "histogram"].contains(kind), "{name}: {kind}");
        assert!(metrics[at + 1..].iter().all(|(other, _, _)| other != name), "{name} twice");
    }
}
