//! Configuration: every key has its twins, the layers win in order, and what is wrong is told with its place and a hint.

use std::path::PathBuf;

use tidegate::config::keys::{Keys, Kind};
use tidegate::config::{Config, ConfigErrors, Loaded, Sources, load, reference};

fn load_text(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.toml");
    std::fs::write(&path, text).expect("a file");
    load(&Sources {
        file: Some(path),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        flags: flags
            .iter()
            .map(|(path, text)| ((*path).to_owned(), path.replace('_', "-"), (*text).to_owned()))
            .collect(),
    })
}

#[test]
fn nothing_written_is_the_default() {
    let loaded = load(&Sources::default()).expect("valid");
    assert_eq!(
        serde_json::to_value(loaded.config).expect("json"),
        serde_json::to_value(Config::default()).expect("json")
    );
    assert!(loaded.origins.is_empty());
}

#[test]
fn flag_wins_over_environment_over_file_over_default() {
    let file = "listen = \"127.0.0.1:1\"\n[log]\nlevel = \"warn\"\n";
    let env = [("TIDEGATE_LISTEN", "127.0.0.1:2")];
    let port =
        |env: &[(&str, &str)], flags: &[(&str, &str)]| load_text(file, env, flags).expect("valid").config.listen.port();
    assert_eq!(port(&[], &[]), 1);
    assert_eq!(port(&env, &[]), 2);
    assert_eq!(port(&env, &[("listen", "127.0.0.1:3")]), 3);
    assert_eq!(port(&[("TIDEGATE_LISTEN", "")], &[]), 1, "an empty variable is not set");
    let loaded = load_text(file, &env, &[]).expect("valid");
    assert_eq!(loaded.config.log.level, "warn");
    assert_eq!(loaded.origins["listen"].to_string(), "environment variable TIDEGATE_LISTEN");
    assert!(loaded.origins["log.level"].to_string().ends_with("t.toml:3:9"), "{}", loaded.origins["log.level"]);
}

#[test]
fn every_key_can_be_written_in_the_file_and_in_the_environment() {
    let keys = Keys::of_config();
    assert!(keys.keys.len() > 60, "{} keys", keys.keys.len());
    for key in &keys.keys {
        assert!(!key.doc.trim().is_empty(), "{} has no doc comment", key.path);
        let (toml, env) = match (key.kind, &key.default) {
            (Kind::List, _) => ("[]".to_owned(), "[]".to_owned()),
            (Kind::Table, _) => ("{}".to_owned(), "{}".to_owned()),
            (_, serde_json::Value::Null) => match (key.kind, key.path.as_str()) {
                (Kind::Int, _) => ("1".to_owned(), "1".to_owned()),
                (Kind::Bool, _) => ("true".to_owned(), "1".to_owned()),
                (_, "tail.level") => ("\"high\"".to_owned(), "high".to_owned()),
                (_, "key.role") => ("\"read\"".to_owned(), "read".to_owned()),
                (_, "send.dataset" | "rule_tools.dataset") => ("\"cost_events\"".to_owned(), "cost_events".to_owned()),
                _ => ("\"some\"".to_owned(), "some".to_owned()),
            },
            (_, serde_json::Value::String(text)) => (format!("{text:?}"), text.clone()),
            (_, other) => (other.to_string(), other.to_string()),
        };
        // A table that is not there unless one of its keys is wants its one necessary key too.
        let necessary = [
            ("sinks.redis.", "url", "TIDEGATE_SINKS__REDIS__URL", "redis://host"),
            ("sinks.fluvio.", "address", "TIDEGATE_SINKS__FLUVIO__ADDRESS", "host:9003"),
        ];
        let needs = necessary.iter().find(|(table, ..)| key.path.starts_with(table));
        let url: Vec<_> = needs.iter().map(|(_, _, variable, value)| (*variable, *value)).collect();
        let (toml, env) = match needs {
            Some((table, name, _, value)) if key.path == format!("{table}{name}") => {
                (format!("{value:?}"), (*value).to_owned())
            }
            _ => (toml, env),
        };
        let text = format!("{} = {toml}", key.path);
        let from_file = load_text(&text, &url, &[]).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(from_file.origins.contains_key(&key.path), "{}", key.path);
        if !env.is_empty() {
            let from_env = load_text("", &[&[(key.env_name().as_str(), env.as_str())], url.as_slice()].concat(), &[]);
            let from_env = from_env.unwrap_or_else(|error| panic!("{}={env}: {error}", key.env_name()));
            assert_eq!(
                serde_json::to_value(from_env.config).expect("json"),
                serde_json::to_value(from_file.config).expect("json"),
                "{}",
                key.path
            );
        }
    }
}

#[test]
fn environment_names_are_made_of_the_path() {
    let keys = Keys::of_config();
    let name = |path: &str| keys.get(path).unwrap_or_else(|| panic!("{path}")).env_name();
    assert_eq!(name("data_dir"), "TIDEGATE_DATA_DIR");
    assert_eq!(name("send.batch_events_max"), "TIDEGATE_SEND__BATCH_EVENTS_MAX");
    let mut names: Vec<String> = keys.keys.iter().map(|key| key.env_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), keys.keys.len());
}

#[test]
fn what_is_wrong_is_told_with_place_and_hint() {
    for (text, wanted) in [
        ("lissten = \"a\"", "t.toml:1:1: unknown key \"lissten\" (did you mean \"listen\"?)"),
        ("\n[sned]\n", "t.toml:2:2: unknown key \"sned\" (did you mean \"send\"?)"),
        ("[send]\nconections = 3", "t.toml:2:1: unknown key \"send.conections\" (did you mean \"connections\"?)"),
        (
            "[log]\nlisten = \"x\"",
            "t.toml:2:1: unknown key \"log.listen\" (\"listen\" stands at the top of the file, before any [table])",
        ),
        ("drain_ms_max = 1", "t.toml:1:1: unknown key \"drain_ms_max\" (\"drain_ms_max\" belongs under [shutdown])"),
        ("listen = 4000", "t.toml:1:10: listen: invalid type"),
        ("listen = \"nowhere\"", "t.toml:1:10: listen: invalid socket address"),
        ("[send]\nconnections = \"4\"", "t.toml:2:15: send.connections: invalid type: string \"4\", expected usize"),
        ("[send]\nconnections = 0", "t.toml:2:15: send.connections: must be from 1 to 256, found 0"),
        ("[shutdown]\ndrain_ms_max = -1", "t.toml:2:16: shutdown.drain_ms_max: must be from 0 to 600000, found -1"),
        ("[log]\nformat = \"jsno\"", "unknown variant `jsno`, expected `human` or `json` (did you mean \"json\"?)"),
        ("log = 3", "t.toml:1:1: log is a table of settings (write [log] and keys below it)"),
        ("[tail]\nlevel = \"severe\"", "t.toml:2:9: tail.level: no such level"),
        ("[send]\ndataset = \"alerts\"", "t.toml:2:11: send.dataset: no such table"),
        ("listen = ", "t.toml:1:10: not valid TOML"),
        ("a = 1\nb = ", "unknown key \"a\""),
    ] {
        let error = load_text(text, &[], &[]).expect_err(text).to_string();
        assert!(error.contains(wanted), "{text:?} gives {error}\nwanted {wanted}");
    }
    let missing = load(&Sources { file: Some(PathBuf::from("/nowhere/t.toml")), ..Sources::default() });
    let error = missing.expect_err("no file").to_string();
    assert!(error.contains("cannot read /nowhere/t.toml") && error.contains("--config"), "{error}");
}

#[test]
fn the_environment_and_flags_are_checked_like_the_file() {
    for (env, flags, wanted) in [
        (
            &[("TIDEGATE_LISTN", "x")][..],
            &[][..],
            "unknown environment variable TIDEGATE_LISTN (did you mean TIDEGATE_LISTEN?)",
        ),
        (
            &[("TIDEGATE_SEND__CONNECTIONS", "many")],
            &[],
            "environment variable TIDEGATE_SEND__CONNECTIONS: send.connections takes a whole number, found \"many\"",
        ),
        (&[("TIDEGATE_SEND__CONNECTIONS", "999")], &[], "must be from 1 to 256, found 999"),
        (&[], &[("listen", "x")], "flag --listen: listen: invalid socket address"),
        (&[], &[("sql.format", "tabel")], "did you mean \"table\"?"),
    ] {
        let error = load_text("", env, flags).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}\nwanted {wanted}");
    }
    // What Kubernetes sets beside a service named `tidegate`, and what is not ours at all.
    let links = [
        "TIDEGATE_PORT",
        "TIDEGATE_SERVICE_HOST",
        "TIDEGATE_SERVICE_PORT_HTTP",
        "TIDEGATE_PORT_4000_TCP_ADDR",
        "PATH",
        "TIDEGATE_CONFIG",
    ];
    let links: Vec<(&str, &str)> = links.iter().map(|name| (*name, "tcp://10.0.0.1:4000")).collect();
    load_text("", &links, &[]).expect("none of them is a setting");
}

#[test]
fn all_problems_are_told_at_once() {
    let error =
        load_text("a = 1\nb = 2\n[send]\nzstd = 3\n", &[("TIDEGATE_C", "1")], &[("listen", "x")]).expect_err("invalid");
    assert_eq!(error.0.len(), 5, "{error}");
}

#[test]
fn the_reference_page_is_the_one_in_docs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let made = reference();
    let differs = page.lines().zip(made.lines()).find(|(page, made)| page != made);
    assert!(page == made, "docs/configuration.md is out of date ({differs:?}): run `cargo xtask docs`");
}
