//! The story: the same for the same seed, of the size that was asked for, made of records that look real, with the attacks in it.

use std::collections::HashMap;

use serde_json::Value;
use tidegate::story::{Item, Kind, Story, StoryOptions, TRACES, reference_event};

const END: i64 = 1_790_000_000_000_000;

fn story(seed: u64, events: usize) -> Vec<Item> {
    Story::new(StoryOptions { seed, events, end_us: END }).collect()
}

fn json(item: &Item) -> Value {
    serde_json::from_str(&item.line).unwrap_or_else(|error| panic!("{error}: {}", item.line))
}

#[test]
fn the_same_seed_size_and_end_tell_the_same_story() {
    assert_eq!(story(7, 3_000), story(7, 3_000));
    assert_ne!(story(7, 3_000), story(8, 3_000));
}

#[test]
fn a_story_has_as_many_events_as_asked_for_in_order_and_on_time() {
    for events in [1_000, 5_000] {
        let story = story(1, events);
        assert_eq!(story.len(), events);
        assert!(story.windows(2).all(|pair| pair[0].at <= pair[1].at), "{events}: out of order");
        assert!(story.iter().all(|item| item.at <= END), "{events}: after the end");
    }
}

#[test]
fn every_line_is_one_json_object_with_the_fields_of_its_source() {
    let story = story(7, 4_000);
    let mut counts: HashMap<Kind, usize> = HashMap::new();
    for item in &story {
        *counts.entry(item.kind).or_default() += 1;
        let record = json(item);
        let fields: &[&str] = match item.kind {
            Kind::CloudTrail => &[
                "eventVersion",
                "userIdentity",
                "eventTime",
                "eventSource",
                "eventName",
                "awsRegion",
                "sourceIPAddress",
                "eventID",
            ],
            Kind::Windows => &["Channel", "EventID", "Hostname", "TimeCreated", "Message"],
            Kind::Focus => &["BilledCost", "EffectiveCost", "ChargePeriodStart", "ServiceName", "SubAccountId"],
        };
        for field in fields {
            assert!(!record[field].is_null(), "{field} is missing in {}", item.line);
        }
        assert!(!item.line.contains('\n'));
    }
    assert!(
        counts[&Kind::CloudTrail] > 1_000 && counts[&Kind::Windows] > 1_000 && counts[&Kind::Focus] > 300,
        "{counts:?}"
    );
}

#[test]
fn event_ids_are_never_told_twice() {
    let ids: Vec<String> = story(7, 5_000)
        .iter()
        .filter(|item| item.kind == Kind::CloudTrail)
        .map(|item| json(item)["eventID"].as_str().expect("an id").to_owned())
        .collect();
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}

/// (what, how often at least, how to know it)
type Scene = (&'static str, usize, fn(Kind, &Value) -> bool);

#[test]
fn the_attacks_are_told_whatever_the_seed_and_the_size() {
    let scenes: &[Scene] = &[
        ("failed logins", 5, |_, r| {
            r["eventName"] == "ConsoleLogin"
                && r["errorMessage"] == "Failed authentication"
                && r["sourceIPAddress"] == TRACES[0]
        }),
        ("login without MFA", 1, |_, r| {
            r["responseElements"]["ConsoleLogin"] == "Success" && r["additionalEventData"]["MFAUsed"] == "No"
        }),
        ("key for another user", 1, |_, r| {
            r["eventName"] == "CreateAccessKey" && r["requestParameters"]["userName"] != r["userIdentity"]["userName"]
        }),
        ("administrator", 1, |_, r| {
            r["eventName"] == "AttachUserPolicy"
                && r["requestParameters"]["policyArn"].as_str().is_some_and(|arn| arn.ends_with("AdministratorAccess"))
        }),
        ("trail stopped", 1, |_, r| r["eventName"] == "StopLogging"),
        ("bucket emptied", 50, |_, r| r["eventName"] == "GetObject" && r["sourceIPAddress"] == TRACES[0]),
        ("GPU machines", 3, |_, r| {
            r["eventName"] == "RunInstances" && r["requestParameters"]["instanceType"] == "p5.48xlarge"
        }),
        ("encoded PowerShell below Word", 1, |_, r| {
            r["EventID"] == 1
                && r["CommandLine"].as_str().is_some_and(|line| line.contains("-enc "))
                && r["ParentImage"].as_str().is_some_and(|image| image.ends_with("WINWORD.EXE"))
        }),
        ("procdump of lsass", 1, |_, r| {
            r["EventID"] == 1 && r["CommandLine"].as_str().is_some_and(|line| line.contains("-ma lsass.exe"))
        }),
        ("comsvcs MiniDump", 1, |_, r| {
            r["CommandLine"].as_str().is_some_and(|line| line.contains("comsvcs.dll, MiniDump"))
        }),
        ("lsass opened", 2, |_, r| {
            r["EventID"] == 10
                && r["TargetImage"].as_str().is_some_and(|image| image.ends_with("lsass.exe"))
                && ["0x1010", "0x1fffff"].contains(&r["GrantedAccess"].as_str().unwrap_or(""))
        }),
        ("service installed", 1, |_, r| r["EventID"] == 7045 && r["ServiceName"] == "PSEXESVC"),
        ("log cleared", 1, |_, r| r["EventID"] == 1102 && r["Channel"] == "Security"),
        ("GPU cost", 40, |kind, r| kind == Kind::Focus && r["ResourceType"] == "p5.48xlarge"),
    ];
    for (seed, events) in [(7, 2_000), (99, 6_000)] {
        let records: Vec<(Kind, Value)> = story(seed, events).iter().map(|item| (item.kind, json(item))).collect();
        for (what, least, is) in scenes {
            let found = records.iter().filter(|(kind, record)| is(*kind, record)).count();
            assert!(found >= *least, "{what}: {found} of {least} with seed {seed}");
        }
    }
}

#[test]
fn nothing_ordinary_looks_like_the_attack() {
    let suspicious: fn(&Value) -> bool = |r| {
        matches!(
            r["eventName"].as_str(),
            Some("CreateAccessKey" | "AttachUserPolicy" | "StopLogging" | "RunInstances" | "CreateLoginProfile")
        ) || matches!(r["EventID"].as_u64(), Some(1102 | 7045))
            || (r["EventID"] == 10 && r["TargetImage"].as_str().is_some_and(|image| image.ends_with("lsass.exe")))
    };
    let count = |events| story(7, events).iter().filter(|item| suspicious(&json(item))).count();
    assert_eq!(count(2_000), count(8_000), "more ordinary events brought more suspicious ones");
}

#[test]
fn the_gpu_bill_grows_hour_by_hour() {
    let mut by_hour: std::collections::BTreeMap<String, f64> = std::collections::BTreeMap::new();
    for item in story(7, 2_000).iter().filter(|item| item.kind == Kind::Focus) {
        let row = json(item);
        if row["ResourceType"] == "p5.48xlarge" {
            let cost: f64 = row["EffectiveCost"].as_str().expect("text").parse().expect("a decimal");
            *by_hour.entry(row["ChargePeriodStart"].as_str().expect("a time").to_owned()).or_default() += cost;
        }
    }
    let costs: Vec<f64> = by_hour.into_values().collect();
    assert!(costs.len() >= 6 && costs.windows(2).all(|pair| pair[1] > pair[0]), "{costs:?}");
}

#[test]
fn reference_events_have_19_fields_one_object_and_about_516_bytes() {
    let mut bytes = 0;
    let mut ids = std::collections::HashSet::new();
    for i in 0..2_000 {
        let mut line = Vec::new();
        reference_event(i, END, &mut line);
        let mut again = Vec::new();
        reference_event(i, END, &mut again);
        assert_eq!(line, again);
        let event: Value = serde_json::from_slice(&line).expect("JSON");
        let fields = event.as_object().expect("an object");
        let objects = fields.values().filter(|value| value.is_object()).count();
        assert_eq!((fields.len() - objects, objects), (19, 1), "{event}");
        assert!(ids.insert(fields["id"].as_str().expect("an id").to_owned()));
        bytes += line.len();
    }
    let mean = bytes / 2_000;
    assert!((511..=521).contains(&mean), "{mean} bytes");
}
