//! The tools of the people who write rules, as they use them.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::server::{Server, tidegate};
use crate::tenants;

/// Runs the command; its exit code, and what it printed.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = tidegate(args).stdin(Stdio::null()).output().expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    folder
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_string_lossy().into_owned()
}

const RULE: &str = "\
title: Trail Stopped
id: 0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a001
level: high
tags: [attack.defense-impairment, attack.t1685.002]
logsource: {product: aws, service: cloudtrail}
detection:
  selection:
    eventName: StopLogging
  filter:
    userIdentity.userName: admin
  condition: selection and not filter
";

/// A record of `name` by `user`, with the id `id`.
fn event(id: &str, name: &str, user: &str) -> String {
    format!(
        r#"{{"eventVersion":"1.08","eventID":"{id}","eventTime":"2026-03-01T10:00:00Z","eventSource":"cloudtrail.amazonaws.com","eventName":"{name}","awsRegion":"eu-west-1","userIdentity":{{"type":"IAMUser","userName":"{user}"}}}}"#
    )
}

fn events(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_cases_of_the_starter_pack_pass() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules/tests/cases");
    let (code, out, err) = run(&["rules", "test", &cases.to_string_lossy()]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.lines().count() > 30 && out.contains(" 0 failed"), "{out}");
}

#[test]
fn check_shows_each_fault_in_its_line_and_counts() {
    let bad = RULE.replace("eventName:", "eventName|contians:");
    let odd = RULE.replace("condition: selection and not filter", "condition: selection").replace("a001", "a002");
    let rules = folder(&[("bad.yml", &bad), ("sub/odd.yml", &odd), ("good.yml", &RULE.replace("a001", "a003"))]);
    let dir = rules.path().to_string_lossy().into_owned();
    let (code, out, _) = run(&["rules", "check", &dir]);
    assert_eq!(code, 1, "{out}");
    let shown = format!(
        "error: Unknown modifier 'contians'\n --> {dir}/bad.yml:8:14\n  |\n8 |     eventName|contians: StopLogging\n  |              ^^^^^^^^^\n"
    );
    assert!(out.contains(&shown), "{out}\nwanted\n{shown}");
    assert!(out.contains("warning[unused_selection]: ") && out.contains("odd.yml:9:3"), "{out}");
    assert!(out.contains("3 files: 2 rules load; 1 error, 1 warning (unused_selection 1)"), "{out}");
    assert!(!out.contains('\u{1b}'), "colours without a terminal");
    let (code, out, _) = run(&["rules", "check", &path(&rules, "sub"), &path(&rules, "good.yml")]);
    assert_eq!(code, 0, "warnings do not fail: {out}");
    let (code, ..) = run(&["rules", "check", &path(&rules, "sub"), "--deny-warnings"]);
    assert_eq!(code, 1);
    let (code, out, _) = run(&["rules", "check", &dir, "--json"]);
    let found: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &found["errors"][0]["line"], &found["summary"]["warnings"]), (1, &8.into(), &1.into()), "{out}");
    let more = format!(
        "{RULE}name: stopped\n---\ntitle: Many\nid: 0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1b001\ncorrelation:\n  type: event_count\n  \
         rules: [stopped]\n  timespan: 5m\n  condition: {{gte: 3}}\n---\ntitle: Not here\n\
         id: 0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1c001\nlogsource: {{product: aws, service: cloudtrail}}\nfilter:\n  rules: [stopped]\n  \
         here:\n    awsRegion: eu-west-3\n  condition: not here\n"
    );
    let all = folder(&[("all.yml", &more)]);
    let (code, out, _) = run(&["rules", "check", &all.path().to_string_lossy(), "--errors-only"]);
    assert!(code == 0 && out.contains("1 file: 1 rule, 1 correlation, 1 filter load; 0 errors"), "{out}");
    let (code, _, err) = run(&["rules", "check", "/nowhere"]);
    assert!(code == 1 && err.contains("/nowhere"), "{err}");
}

#[test]
fn check_tells_all_errors_at_once_each_with_its_place_and_a_hint() {
    let of = |number: u32, from: &str, to: &str| RULE.replace(from, to).replace("a001", &format!("a{number:03}"));
    let correlation =
        "title: C\nid: c\ncorrelation:\n  type: event_count\n  rules: [nobody]\n  timespan: 5m\n  condition: {lt: 1}\n";
    let rules = folder(&[
        ("a.yml", &of(10, "eventName: StopLogging", "eventName|re: 'a(?=b)'")),
        ("b.yml", &of(11, "eventName: StopLogging", "eventName|expand: '%who%'")),
        ("c.yml", &of(12, "condition: selection and not filter", "condition: selection | count() > 5")),
        ("d.yml", &of(13, "eventName: StopLogging", "eventName: [a, null]")),
        ("e.yml", correlation),
        (
            "f.yml",
            &format!(
                "{}---\n{}",
                of(14, "selection and not", "selecton and not"),
                of(15, "eventName:", "eventName|gt:")
            ),
        ),
        ("good.yml", RULE),
    ]);
    let (code, out, _) = run(&["rules", "check", &rules.path().to_string_lossy(), "--errors-only", "--json"]);
    let found: Value = serde_json::from_str(&out).expect("JSON");
    let errors: Vec<(String, u64, bool)> = found["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| {
            let file = error["file"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
            let hint = error["hint"].as_str().is_some_and(|hint| !hint.is_empty());
            (file, error["line"].as_u64().unwrap_or_default(), hint)
        })
        .collect();
    let wanted = [("a.yml", 8), ("b.yml", 8), ("c.yml", 11), ("d.yml", 8), ("e.yml", 7), ("f.yml", 11), ("f.yml", 20)];
    let told: Vec<(&str, u64)> = errors.iter().map(|(file, line, _)| (file.as_str(), *line)).collect();
    assert_eq!((code, told.as_slice()), (1, wanted.as_slice()), "{out}");
    assert!(errors.iter().all(|(.., hint)| *hint), "an error without a hint: {out}");
    assert_eq!(found["summary"]["rules"], 1, "the others load: {out}");
}

#[test]
fn a_case_that_fails_says_which_events_and_can_be_written_anew() {
    let lines = [event("a", "StopLogging", "eve"), event("b", "StopLogging", "admin"), event("c", "GetUser", "eve")];
    let case = folder(&[
        ("one/rule.yml", RULE),
        ("one/events.ndjson", &events(&lines)),
        ("one/expected.json", r#"{"source": "cloudtrail", "hits": [1]}"#),
    ]);
    let dir = case.path().to_string_lossy().into_owned();
    let (code, out, _) = run(&["rules", "test", &dir]);
    assert_eq!(code, 1, "{out}");
    for part in
        ["- event 1 must match", "+ event 0 must not match, and does: Trail Stopped", "1 failed", "\"eventID\":\"b\""]
    {
        assert!(out.contains(part), "{out}\nhas no {part}");
    }
    let (_, out, _) = run(&["rules", "test", &dir, "--json"]);
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&told["passed"], told["differences"].as_array().map(Vec::len)), (&false.into(), Some(2)), "{out}");
    let (code, out, _) = run(&["rules", "test", &dir, "--update"]);
    assert!(code == 0 && out.contains("written"), "{out}");
    let written = fs::read_to_string(case.path().join("one/expected.json")).expect("a file");
    assert_eq!(written, "{\"source\": \"cloudtrail\", \"hits\": [0]}\n");
    assert_eq!(run(&["rules", "test", &dir]).0, 0);
    let (code, _, err) = run(&["rules", "test", &dir, "--filter", "nothing"]);
    assert!(code == 1 && err.contains("no case"), "{err}");
}

#[test]
fn what_is_wrong_with_a_case_itself_is_told() {
    let line = event("a", "StopLogging", "eve");
    let twice = events(&[line.clone(), line.clone()]);
    let broken = format!("{line}\n{{\"a\": \n");
    for (name, text, part) in [
        ("expected.json", "{\"hits\": [0], \"sauce\": 1}", "unknown field `sauce`"),
        ("expected.json", "{\"source\": \"cloudtrail\"}", "neither \"hits\" nor \"alerts\""),
        ("expected.json", "{\"dataset\": \"alerts\", \"hits\": []}", "cannot be sent to \"alerts\""),
        ("events.ndjson", &twice, "event 1 has the id of an earlier one"),
        ("events.ndjson", &broken, "would be refused"),
        ("rule.yml", "title: [", "rule: rule.yml:2:"),
        ("rule", "pack/none.yml", "names pack/none.yml"),
    ] {
        let mut files =
            vec![("rule.yml", RULE), ("events.ndjson", line.as_str()), ("expected.json", "{\"hits\": [0]}")];
        files.retain(|(own, _)| *own != name);
        files.push((name, text));
        let case = folder(&files);
        let (code, out, err) = run(&["rules", "test", &case.path().to_string_lossy()]);
        assert!(code == 1 && out.contains(part), "{name}: {out}{err}\nhas no {part}");
    }
    let case = folder(&[("events.ndjson", &line), ("rule.yml", RULE)]);
    let (code, out, _) = run(&["rules", "test", &case.path().to_string_lossy()]);
    assert!(code == 1 && out.contains("--update"), "{out}");
}

#[test]
fn alerts_of_a_case_are_compared_one_by_one() {
    let lines = [event("a", "StopLogging", "eve"), event("b", "StopLogging", "bob")];
    let case = |expected: &str| {
        folder(&[("rule.yml", RULE), ("events.json", &format!("[{}]", lines.join(","))), ("expected.json", expected)])
    };
    let id = "0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a001";
    let good = format!(
        r#"{{"alerts": [{{"rule": "{id}", "events": [1]}}, {{"rule": "Trail Stopped", "level": "high", "count": 1}}]}}"#
    );
    let (code, out, _) = run(&["rules", "test", &case(&good).path().to_string_lossy()]);
    assert_eq!(code, 0, "{out}");
    let bad = format!(r#"{{"alerts": [{{"rule": "{id}", "events": [0, 1], "count": 2}}]}}"#);
    let (code, out, _) = run(&["rules", "test", &case(&bad).path().to_string_lossy()]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("- {\"rule\"") && out.matches("+ {\"rule\"").count() == 2, "{out}");
}

#[test]
fn explain_tells_the_program_and_why_events_do_not_match() {
    let lines = [event("a", "StopLogging", "eve"), event("b", "StopLogging", "admin"), event("c", "GetUser", "eve")];
    let files = folder(&[("rule.yml", RULE), ("events.ndjson", &events(&lines))]);
    let rule = path(&files, "rule.yml");
    let (code, out, _) = run(&["rules", "explain", &rule]);
    assert_eq!(code, 0, "{out}");
    for part in ["Trail Stopped", "source is cloudtrail", "eventName is stoplogging", "matches when", "p0 is true"] {
        assert!(out.contains(part), "{out}\nhas no {part}");
    }
    let (_, out, _) = run(&["rules", "explain", &rule, "--events", &path(&files, "events.ndjson")]);
    for part in ["of 3 events it sees 3, and 1 match", "not p1  userIdentity.userName is admin: it is admin"] {
        assert!(out.contains(part), "{out}\nhas no {part}");
    }
    let (_, out, _) = run(&["rules", "explain", &rule, "--json", "--events", &path(&files, "events.ndjson")]);
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&told[0]["events"]["matched"], &told[0]["rule"]["title"]), (&1.into(), &"Trail Stopped".into()));
    // How often each was true and had a value, and how many distinct values were decided: two names, two users.
    let counts: Vec<[&Value; 3]> = told[0]["events"]["predicates"]
        .as_array()
        .expect("predicates")
        .iter()
        .map(|own| ["satisfied", "present", "decided"].map(|key| &own[key]))
        .collect();
    let number = |value: u64| Value::from(value);
    assert_eq!(counts, [[&number(2), &number(3), &number(2)], [&number(1), &number(3), &number(2)]], "{out}");
    let (code, out, _) = run(&["rules", "explain", "Security Log Cleared"]);
    assert!(code == 0 && out.contains("matches when"), "{out}");
    let (code, _, err) = run(&["rules", "explain", "No Such Rule"]);
    assert!(code == 1 && err.contains("no rule of that id or title"), "{err}");
}

#[test]
fn coverage_counts_and_writes_a_layer() {
    let rules = folder(&[("rule.yml", RULE)]);
    let layer = path(&rules, "layer.json");
    let (code, out, _) = run(&["rules", "coverage", &path(&rules, "rule.yml"), "--navigator", &layer]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("T1685.002") && out.contains("1 rules, 1 techniques"), "{out}");
    let layer: Value = serde_json::from_str(&fs::read_to_string(layer).expect("a layer")).expect("JSON");
    assert_eq!(layer["techniques"][0]["techniqueID"], "T1685.002");
    let (_, out, _) = run(&["rules", "coverage", "--json"]);
    assert!(serde_json::from_str::<Value>(&out).expect("JSON")["rules"].as_u64() > Some(30), "the starter pack");
}

#[test]
fn bench_measures_rules_over_events() {
    let (code, out, err) = run(&["rules", "bench", "--seconds", "1", "--events-max", "1500"]);
    assert_eq!(code, 0, "{out}{err}");
    for part in ["events per CPU second", "are candidates in a batch", "fields whose new values cost most"] {
        assert!(out.contains(part), "{out}\nhas no {part}");
    }
    let rules = folder(&[("rule.yml", RULE), ("events.ndjson", &event("a", "StopLogging", "eve"))]);
    let (args, file) = (["rules", "bench", "--seconds", "1", "--json", "--rules"], path(&rules, "events.ndjson"));
    let dir = rules.path().to_string_lossy().into_owned();
    let (_, out, _) = run(&[&args[..], &[&dir, "--events", &file]].concat());
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&told["rules"], &told["events"], &told["alerts"]), (&1.into(), &1.into(), &1.into()), "{out}");
}

#[test]
fn hunt_needs_a_time_and_a_server() {
    let rules = folder(&[("rule.yml", RULE)]);
    let rule = path(&rules, "rule.yml");
    let (code, _, err) = run(&["rules", "hunt", &rule]);
    assert!(code == 2 && err.contains("--from is missing"), "{err}");
    let (code, _, err) = run(&["rules", "hunt", &rule, "--from", "yesterday"]);
    assert!(code == 2 && err.contains("not a time"), "{err}");
    let (code, _, err) = run(&["rules", "hunt", &rule, "--from", "2026-11-02", "--to", "2026-11-01"]);
    assert!(code == 2 && err.contains("is not before"), "{err}");
    let (code, _, err) = run(&["rules", "hunt", &rule, "--from", "2026-11-01", "--url", "http://127.0.0.1:1"]);
    assert!(code == 1 && err.contains("is the server up?"), "{err}");
}

#[test]
fn hunt_finds_what_a_rule_would_have_raised_and_stores_nothing() {
    let server = Server::start(&[]);
    let lines = [event("a", "StopLogging", "eve"), event("b", "StopLogging", "admin"), event("c", "GetUser", "eve")];
    let files = folder(&[("rule.yml", &RULE.replace("Trail Stopped", "Hunted")), ("events.ndjson", &events(&lines))]);
    let told = |args: &[&str]| {
        let mut command = tidegate(args);
        command.env("TIDEGATE_CLIENT__URL", &server.url).env("XDG_STATE_HOME", files.path());
        let output = command.stdin(Stdio::null()).output().expect("the program runs");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {out}{}", String::from_utf8_lossy(&output.stderr));
        out
    };
    told(&["send", &path(&files, "events.ndjson"), "--source", "cloudtrail"]);
    let rule = path(&files, "rule.yml");
    let hunt = ["rules", "hunt", &rule, "--from", "2026-02-01", "--to", "2026-04-01"];
    let out = told(&hunt);
    assert!(out.starts_with("2026-03-01 10:00:00 high") && out.contains("Hunted eve"), "{out}");
    assert!(out.contains("3 events looked at, 1 matches, 1 alerts"), "{out}");
    let out = told(&[&hunt[..], &["--json"]].concat());
    let last: Value = serde_json::from_str(out.lines().last().expect("a summary")).expect("JSON");
    assert_eq!(last["summary"]["alerts"], 1, "{out}");
    let out = told(&["rules", "hunt", &rule, "--from", "2020-01-01", "--to", "2020-02-01"]);
    assert!(out.starts_with("0 events looked at"), "{out}");
    let stored = told(&["sql", "SELECT count(*) AS n FROM alerts WHERE title = 'Hunted'", "--format", "csv"]);
    assert_eq!(stored, "n\n0\n");
}

const BESIDE: &str = "\
title: Trail Stopped Often
id: 0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a002
level: critical
correlation:
  type: event_count
  rules: [0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a001]
  group-by: [userIdentity.userName]
  timespan: 10m
  condition: {gte: 3}
---
title: Not the robot
id: 0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a003
logsource: {product: aws, service: cloudtrail}
filter:
  rules: [0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a001]
  robot: {userIdentity.userName: robot}
  condition: not robot
";

#[test]
fn explain_tells_correlations_and_filters_too() {
    let files = folder(&[("all.yml", &format!("{RULE}---\n{BESIDE}"))]);
    let rule = path(&files, "all.yml");
    let (code, out, err) = run(&["rules", "explain", &rule]);
    assert_eq!(code, 0, "{out}{err}");
    for part in [
        "Trail Stopped Often  critical",
        "event_count within 10m: ",
        "for each: userIdentity.userName",
        "it fires with the event that completes it",
        "a match stays when",
        "userIdentity.userName is robot",
    ] {
        assert!(out.contains(part), "{out}\nhas no {part}");
    }
    let (_, out, _) = run(&["rules", "explain", &rule, "--json"]);
    let told: Value = serde_json::from_str(&out).expect("JSON");
    let kinds: Vec<&str> = told.as_array().expect("a list").iter().flat_map(kinds).collect();
    assert_eq!(kinds, ["rule", "correlation", "filter"], "{out}");
}

/// What an explanation is of.
fn kinds(told: &Value) -> Vec<&str> {
    let keys = told.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    keys.filter(|key| *key != "events").collect()
}

#[test]
fn the_operator_hunts_in_the_events_of_a_tenant_and_a_tenant_only_in_its_own() {
    let server = Server::start(&[]);
    let (agent, admin) = (tenants::key(&server, "acme", "ingest"), tenants::key(&server, "zeta", "admin"));
    let lines = [event("a", "StopLogging", "eve"), event("b", "GetUser", "eve")];
    let files = folder(&[("rule.yml", RULE), ("events.ndjson", &events(&lines))]);
    let run_as = |key: Option<&str>, args: &[&str]| {
        let mut command = tidegate(args);
        command.env("TIDEGATE_CLIENT__URL", &server.url).envs(key.map(|key| ("TIDEGATE_CLIENT__KEY", key)));
        let output = command.env("XDG_STATE_HOME", files.path()).stdin(Stdio::null()).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let sent = run_as(Some(&agent), &["send", &path(&files, "events.ndjson"), "--source", "cloudtrail"]);
    assert_eq!(sent.0, Some(0), "{sent:?}");
    let rule = path(&files, "rule.yml");
    let hunt = ["rules", "hunt", &rule, "--from", "2026-02-01", "--to", "2026-04-01"];
    let in_acme = [&hunt[..], &["--org", "acme"]].concat();
    let folder = server.data_dir().to_string_lossy().into_owned();
    let (code, out, err) = run_as(None, &[&in_acme[..], &["--data-dir", &folder]].concat());
    assert!(code == Some(0) && out.contains("2 events looked at, 1 matches, 1 alerts"), "{out}{err}");
    let (code, out, err) = run_as(Some(&admin), &in_acme);
    assert!(code == Some(1) && err.contains("own") && !out.contains("eve"), "{out}{err}");
    let (code, _, err) = run_as(None, &[&in_acme[..], &["--data-dir", &path(&files, "")]].concat());
    assert!(code == Some(1) && err.contains("key"), "a folder without a server: {err}");
    let (code, out, err) = run_as(Some(&admin), &hunt);
    assert!(code == Some(0) && out.starts_with("0 events looked at"), "{out}{err}");
}
